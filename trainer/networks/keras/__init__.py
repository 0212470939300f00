"""Keras network files: graph.py reads and checks them, module.py builds them in torch."""
