"""Corpora that the recipes know by a name: importing this package makes them names for `--dataset`."""

from corpora.registry import CORPORA
from text_diffusers.data.sources import register_corpora

register_corpora(CORPORA)
