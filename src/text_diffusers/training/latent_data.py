"""Data of the recipes of latent diffusion: texts, pairs and conversations to rows for two tokenizers."""

from collections.abc import Sequence
from copy import copy
from functools import partial
from typing import Any

from datasets import Dataset

from text_diffusers.common.source_prompts import FRAME_TOKENS
from text_diffusers.common.validation import require_int
from text_diffusers.data.latent_rows import (
    conversation_pairs,
    room_for_pairs,
    with_encoder_columns,
    with_source_columns,
    with_sources_apart,
)
from text_diffusers.data.sources import find_conversations, load_conversations, register_corpora
from text_diffusers.training.text_options import TextData, TextTrainingConfig, prepare_data

# Both halves of a dataset of rows
SPLITS = ("train_rows", "validation_rows")


def prepare_latent_data(
    config: Any,
    accelerator: Any,
    pretrained: str | None,
    encoder_tokenizer: Any = None,
    label_names: Sequence[str] | None = None,
    source_encoder_length: int | None = None,
) -> TextData:
    """Rows of texts, one a row, in the tokens of decoder and encoder; as `prepare_data`.

    Args:
        config: options with `source_column`, `source_length`, `context_turns` and `read_length` beside those of texts.
            The source column of conversations is theirs: each answer is a text, the turns before it its source.
        pretrained: whose tokenizer is the decoder's; by default it is made from the texts.
        encoder_tokenizer: by default the decoder's.
        label_names: as in `prepare_data`.
        source_encoder_length: tokens of a source that the encoder reads; `None` leaves sources to the decoder.

    Returns:
        Rows with the columns of `with_encoder_columns`, and with a `source_encoder_length` of `with_source_columns`.

    Raises:
        ValueError: if the texts stream, or as `prepare_data`.
    """
    if config.streaming:
        raise ValueError(
            "`streaming` must be false: latents need a corpus that is there, got True."
        )

    # 1. Rows of the decoder; of pairs first such that hold all that is made of them
    source_length = config.source_length or config.length
    shaped = copy(config)
    if config.source_column:
        shaped = answers_as_texts(shaped)
        shaped.length = room_for_pairs(config.length, source_length)
    data = prepare_data(
        shaped,
        accelerator,
        pretrained=pretrained,
        source_column=shaped.source_column,
        label_names=label_names,
    )

    # 2. What the encoder reads; the other processes find what the first one cached
    tokenizers = {
        "tokenizer": data.tokenizer,
        "encoder_tokenizer": data.tokenizer if encoder_tokenizer is None else encoder_tokenizer,
    }
    with accelerator.main_process_first():
        for name in SPLITS:
            rows = getattr(data, name)
            if config.source_column:
                rows = with_sources_apart(rows, data.tokenizer, config.length, source_length)
            rows = with_encoder_columns(rows, **tokenizers, length=config.read_length)
            if config.source_column and source_encoder_length is not None:
                rows = with_source_columns(rows, **tokenizers, length=source_encoder_length)
            setattr(data, name, rows)
    return data


def check_sources(config: Any):
    """Refuse lengths that a source cannot have, and those of a source that there is not."""
    require_int("source_length", config.source_length, FRAME_TOKENS + 1, optional=True)
    if config.source_length and not config.source_column:
        raise ValueError(f"`source_length` needs a `source_column`, got {config.source_length}.")
    # Of pairs, a row holds one.
    if config.source_column and config.min_length is not None:
        raise ValueError("`min_length` cannot be used with sources, which are not cut.")


def answers_as_texts(config: Any) -> Any:
    """Options that read the answers of conversations as texts with a source; those of other data as they are."""
    columns = find_conversations(config.dataset, config.text_column, config.split, config.streaming)
    if not columns:
        return config
    if config.streaming:
        raise ValueError("`streaming` must be false for conversations, got True.")

    changed = copy(config)
    changed.dataset = f"answers of {config.dataset}"
    register_corpora({changed.dataset: partial(load_answers, config, columns)})
    changed.text_column = "text"
    changed.source_column = "source"
    changed.split = "train"
    return changed


def load_answers(config: TextTrainingConfig, columns: dict[str, str]) -> Dataset:
    """The answers of the conversations of a data set, each with the turns before it."""
    conversations = load_conversations(config.dataset, columns, config.split)
    options: Any = config
    return conversation_pairs(conversations, options.context_turns)
