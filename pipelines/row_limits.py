"""The rows that a model can write: how long they are, how they end, and what it says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from text_diffusers.models.language_model import is_language_model, reading_of
from text_diffusers.pipelines.text_lengths import LengthLogits

# What a language model writes where nothing says how much; its rows may be very long.
NEW_TOKENS = 128


@dataclass
class RowLimits:
    """The rows that a model can write.

    Attributes:
        max_length: the longest row in tokens, with the start token.
        histogram: `histogram[n]` is the number of training texts with n tokens, from which lengths are drawn.
        predicts_end: whether the model says where a text ends; a masked LM does not, and has its end token in place.
        label_names: of the class labels.
        tells_no_label: whether the model is told "no label" where none is asked for.
        num_classes: number of labels, and the id that stands for no label.
        label_prompts: of a language model, a short text for each label, which stands before what is written.
        takes_source: whether a language model was trained to write from a source.
        block_length: tokens of a block, for a model that writes block by block.
        one_block: whether all that is written is a single block, over a past that is read token by token.
        blocks_from_prompt: whether the first block that is written begins behind the prompt.
        end_token_ids: tokens that end a text beside the tokenizer's own.
        source_ends: end tokens between a source and what is written from it.
        new_tokens: how many are written where nothing says it; `None` is up to `max_length`.
        length_logits: of a model that predicts how long a text from a source is.
    """

    max_length: int
    histogram: list[int] | None = None
    predicts_end: bool = True
    label_names: Sequence[str] | None = None
    tells_no_label: bool = False
    num_classes: int | None = None
    label_prompts: Sequence[str] | None = None
    takes_source: bool = False
    block_length: int | None = None
    one_block: bool = False
    blocks_from_prompt: bool = False
    end_token_ids: list[int] = field(default_factory=list)
    source_ends: int = 1
    new_tokens: int | None = None
    length_logits: LengthLogits | None = None

    def check_length(self, length: int):
        """Raise a `ValueError` if a row of `length` tokens does not fit."""
        if length > self.max_length:
            # A masked LM reads texts between two special tokens, other models after one.
            ends = "start token" if self.predicts_end else "tokens around it"
            raise ValueError(
                f"`prompt` and `max_new_tokens` together, or `text`, must fit into the model's {self.max_length} "
                f"tokens (with the {ends}), got {length}: shorten the text or lower `max_new_tokens`."
            )


def language_limits(denoiser: Any, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a language model says of the rows that it can write, as arguments of `RowLimits`.

    Args:
        config: of the pipeline.
    """
    if not is_language_model(denoiser):
        return {}
    reading = reading_of(denoiser)
    return {
        "label_prompts": label_prompts_of(config or {}),
        "takes_source": bool((config or {}).get("takes_source")),
        "blocks_from_prompt": reading.begins_behind_prompt,
        "end_token_ids": reading.end_token_ids,
        "new_tokens": NEW_TOKENS,
    }


def label_prompts_of(config: Mapping[str, Any]) -> list[str] | None:
    """The prompts of the labels of a language model: by default, their names.

    Args:
        config: of the pipeline.
    """
    prompts = config.get("label_prompts") or config.get("label_names")
    return list(prompts) if prompts else None
