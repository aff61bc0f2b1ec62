from .rows import ShuffledRows, tokenize
from .sources import load_documents, register_corpora, split_documents
from .tokenizers import train_tokenizer

__all__ = [
    "ShuffledRows",
    "load_documents",
    "register_corpora",
    "split_documents",
    "tokenize",
    "train_tokenizer",
]
