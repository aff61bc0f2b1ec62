"""Checkpoints that others published: each family in a file, which says how its configuration and weights are read."""
