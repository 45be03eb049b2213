"""Federated algorithms, one file each: the site's half and the coordinator's half side by side."""
