"""The text that all models of benchmarks/quality.py learn: one tokenizer, and the same held-out rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from parts.common.recipes import CORPORA  # noqa: F401 - names for `--dataset`
from parts.common.results import make_folder_once
from parts.quality.config import QualityConfig
from text_diffusers.data.rows import tokenize
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tokenizers import EOS_TOKEN, MASK_TOKEN, PAD_TOKEN, train_tokenizer


@dataclass
class HeldOut:
    """The held-out text.

    Attributes:
        tokenizer: of all models.
        rows: tokenized rows.
        num_characters: of all texts, the end of each counting as one.
    """

    tokenizer: Any
    rows: Any
    num_characters: int


def character_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token a character: `[EOS]`, the characters of the texts, `[PAD]`, `[MASK]`; ids as in `train_tokenizer`."""
    alphabet = sorted(set().union(*texts))
    vocabulary = {token: number for number, token in enumerate([EOS_TOKEN, *alphabet])}

    # Without merges BPE splits a text into its characters, and without a pre-tokenizer white space is one too.
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS_TOKEN, PAD_TOKEN, MASK_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=MASK_TOKEN,
        clean_up_tokenization_spaces=False,
    )


def prepare_text(options: QualityConfig) -> HeldOut:
    """Make the tokenizer, or load the one of earlier runs, and cut the held-out texts into rows."""
    documents = load_documents(options.dataset, sample_by=options.sample_by)
    train, validation = split_documents(documents)

    def save_tokenizer(folder: Path):
        if options.characters:
            # Of the whole text, so that each held-out character has a token.
            tokenizer = character_tokenizer(documents["text"])
        else:
            tokenizer = train_tokenizer(train["text"], options.vocab_size)
        tokenizer.save_pretrained(folder)

    # Processes that train different models share it.
    folder = make_folder_once(options.folder / "tokenizer", save_tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return HeldOut(
        tokenizer,
        rows=tokenize(validation, tokenizer, options.length),
        num_characters=sum(len(text) + 1 for text in validation["text"]),
    )
