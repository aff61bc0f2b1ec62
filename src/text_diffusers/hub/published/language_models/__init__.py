"""Families of published checkpoints whose network is one of transformers."""
