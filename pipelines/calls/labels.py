"""Class labels of a call: as numbers that a denoiser is told, or as short prompts of a language model.

A language model takes no label. It is shown one as a text before its own, "start label end text", with the frame that
a source has; no label is as many masks as the first label has tokens.

Shapes: B rows (texts times `num_return_sequences`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import end_ids, frames_with_none, start_ids
from text_diffusers.common.validation import is_int, is_list, require
from text_diffusers.models.language_model import is_language_model
from text_diffusers.pipelines.given_text import GivenText
from text_diffusers.pipelines.row_limits import RowLimits, label_prompts_of
from text_diffusers.pipelines.text_batch import Row, encode_sources, repeat_rows

# Labels


def label_tensor(
    class_labels: Any, limits: RowLimits, num_texts: int, repeats: int
) -> Tensor | None:
    """(B,) label ids from one label or one a text, by id or by name; `None` among them is no label.

    Raises:
        ValueError: if there are neither one nor one a text, or the model has no such label.
    """
    if class_labels is None and limits.tells_no_label and limits.num_classes is not None:
        class_labels = limits.num_classes
    if class_labels is None:
        return None
    return torch.tensor(repeat_rows(label_numbers(class_labels, limits, num_texts), repeats))


def label_numbers(class_labels: Any, limits: RowLimits, num_texts: int) -> list[int]:
    """The id of each text's label, from one label or one a text; errors as of `label_tensor`."""
    labels = list(class_labels) if is_list(class_labels) else [class_labels] * num_texts
    if len(labels) != num_texts:
        raise ValueError(
            f"`class_labels` must be one or {num_texts}, one a text, got {len(labels)}."
        )
    return [label_id(label, limits) for label in labels]


def label_id(label: Any, limits: RowLimits) -> int:
    """The id of a label, given by its id or name; no label, `None`, has the id behind those of all labels.

    Raises:
        ValueError: if the model has no such label.
    """
    names = list(limits.label_names or [])
    num_classes = limits.num_classes
    if isinstance(label, str):
        limit = f"among the model's `label_names`, {names}"
        require(label in names, "class_labels", limit, label, names)
        return names.index(label)
    if label is None and num_classes is not None:
        return num_classes

    # A truth value or a float is no number of a class. A model that does not say how many it has checks them itself.
    highest = math.inf if num_classes is None else num_classes
    number: Any = label
    if is_int(number, 0) and number <= highest:
        return number
    limit = "at least 0"
    if num_classes is not None:
        limit = f"between 0 and {num_classes - 1} (or {num_classes} for no label)"
    raise ValueError(
        f"`class_labels` must be {limit}, as integers or by their names, got {label!r}."
    )


def unconditional_labels(labels: Tensor | None, guide_by: str, limits: RowLimits) -> Tensor | None:
    """(B,) labels of the unconditional view: no label, unless guidance is by the prompt alone."""
    if labels is None or guide_by in ("prompt", "masked_prompt"):
        return labels
    assert limits.num_classes is not None  # a model that is told labels has as many
    return torch.full_like(labels, limits.num_classes)


# Labels as prompts


def encode_frames(tokenizer: Any, texts: Sequence[str], name: str) -> list[list[int]]:
    """Token ids of texts that stand before others: "start text end" each.

    Where a tokenizer has no token for the start, the end of the text before is one, as in the rows of a training.

    Args:
        name: of the argument that the texts are.
    """
    start = [] if start_ids(tokenizer) else end_ids(tokenizer)
    rows: Any = encode_sources(tokenizer, texts, name)
    return [[*start, *row] for row in rows]


def label_frames(
    tokenizer: Any, label_prompts: Sequence[str], labels: Sequence[int]
) -> list[list[int]]:
    """Token ids "start label end" that stand before the text of each label.

    Args:
        label_prompts: of all labels.
        labels: numbers of labels; the number behind the last one is no label, which masks stand for.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.pipelines.calls.labels import label_frames
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> tokenizer.batch_decode(label_frames(tokenizer, ["the cat", "a dog"], labels=[1, 2]))
        ['[EOS]a dog[EOS]', '[EOS][MASK][MASK][EOS]']
    """
    frames = encode_frames(tokenizer, label_prompts, "label_prompts")
    choices = frames_with_none(frames, tokenizer.mask_token_id)
    return [choices[label] for label in labels]


def shown_labels(denoiser: Any, config: Mapping[str, Any]) -> list[str] | None:
    """The prompts that a denoiser is shown for its labels; `None` for one that is told numbers, or has no labels.

    Args:
        config: of its pipeline.
    """
    return label_prompts_of(config) if is_language_model(denoiser) else None


def masked(row: Sequence[Any], span: tuple[int, int], mask_token_id: int) -> list:
    """A row in which every token of a span is the mask."""
    first, end = span
    return [*row[:first], *[mask_token_id] * (end - first), *row[end:]]


def behind_frames(rows: list[Row], frames: list[list[int]], num_start: int) -> list[Row]:
    """Each row behind its frame, which takes the place of its start.

    Args:
        num_start: tokens of the start of a row.
    """
    return [[*frame, *row[num_start:]] for frame, row in zip(frames, rows, strict=True)]


def moved(given: GivenText, columns: int) -> GivenText:
    """A given text whose row has moved by so many columns."""
    runs = []
    for first, end in given.runs:
        runs.append((first + columns, None if end is None else end + columns))
    return replace(given, runs=runs)


def check_label_prompts(tokenizer: Any, denoiser: Any, config: Mapping[str, Any]):
    """Refuse prompts of labels that cannot be told apart, or that stand for other labels than there are names of.

    Args:
        config: of a pipeline of these components.

    Raises:
        ValueError: that names the setting.
    """
    prompts = config.get("label_prompts")
    if prompts is not None:
        limit = "None for a denoiser that is told its labels by their numbers"
        require(is_language_model(denoiser), "label_prompts", limit, prompts)
        are_strings = is_list(prompts) and all(isinstance(prompt, str) for prompt in prompts)
        limit = "a list of strings, of at least one"
        require(are_strings and len(prompts) > 0, "label_prompts", limit, prompts)

        names = config.get("label_names")
        num_labels = len(prompts) if names is None else len(names)
        limit = f"{num_labels}, one a name in `label_names`"
        require(len(prompts) == num_labels, "label_prompts", limit, prompts)

    prompts = label_prompts_of(config)
    if prompts is None or not is_language_model(denoiser):
        return
    limit = "None for a tokenizer without an end token, which stands behind a label"
    require(len(end_ids(tokenizer)) > 0, "label_prompts", limit, prompts)

    # Two prompts of the same tokens would be one label.
    frames = [tuple(frame) for frame in encode_frames(tokenizer, prompts, "label_prompts")]
    (empty,) = encode_frames(tokenizer, [""], "label_prompts")
    are_told_apart = len(set(frames)) == len(frames)
    have_tokens = all(len(frame) > len(empty) for frame in frames)
    limit = "of at least one token each, and differ from each other in their tokens"
    require(are_told_apart and have_tokens, "label_prompts", limit, prompts)
