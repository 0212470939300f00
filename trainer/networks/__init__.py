"""Networks. Empty: description.py and weights.py are torch-free, and the host half imports them."""
