"""Corpora that the recipes know by a name, such as `--dataset austen`.

Importing this package tells the names to `text_diffusers.data.sources.load_documents`; the module of a corpus is
imported when its texts are asked for. The texts themselves are not part of this repository: they come with packages
that are fetched at set-up.

To add a corpus `poems`:

1. Write `corpora/poems.py` with a function that returns a `datasets.Dataset`. It needs the column `text`; it may have
   `label` (numbers from 0, or words) and `source` (what `text` is to be written from). Recipes hold out the last
   documents, so return them in a random order that depends on a seed only.
2. If its files are fetched into `data/poems`, find them by `parts.data_folder`, which names the make target that
   fetches them, and write that target into the Makefile.
3. Add a line to `CORPORA` below: the module, the function, and the function's arguments.
4. Test the parser on a small made-up file in `tests/training_scripts/test_corpora.py`.

Example:
    >>> from corpora import CORPORA
    >>> sorted(CORPORA)[:3]
    ['austen', 'austen_and_speeches', 'bible']
    >>> CORPORA["austen"].keywords  # what a model may see; `CORPORA["austen"](part="judge")` is the rest
    {'part': 'train'}
"""

import importlib
from functools import partial

from datasets import Dataset

from text_diffusers.data.sources import register_corpora


def load_corpus(module: str, function: str, **options) -> Dataset:
    """Documents of the corpus that `function` in `corpora/<module>.py` reads."""
    return getattr(importlib.import_module(f"corpora.{module}"), function)(**options)


# What a model may be trained on; where there are judges, their part is left out.
CORPORA = {
    "austen": partial(load_corpus, "austen", "austen_chapters", part="train"),
    "austen_and_speeches": partial(load_corpus, "speeches", "austen_and_speeches", part="train"),
    "bible": partial(load_corpus, "bible", "bible_pairs"),
    "brown": partial(load_corpus, "brown", "brown_documents", part="train"),
    "chat_and_novels": partial(load_corpus, "chat", "chat_and_novels"),
    "chitchat": partial(load_corpus, "chat", "chitchat_documents"),
    "chitchat_messages": partial(load_corpus, "chat", "chitchat_messages"),
    "four_kinds": partial(load_corpus, "four_kinds", "four_kinds"),
    "movie_reviews": partial(load_corpus, "movie_reviews", "movie_review_sentences"),
    "russian_texts": partial(load_corpus, "russian", "russian_texts"),
    "state_of_the_union": partial(load_corpus, "speeches", "state_of_the_union", part="train"),
}
register_corpora(CORPORA)
