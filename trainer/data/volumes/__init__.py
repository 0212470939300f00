"""Volumes: where voxels lie, the file of prepared cases, and what trains and predicts on them."""
