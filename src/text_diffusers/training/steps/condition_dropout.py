"""Rows without their condition, from which a model learns the unconditional text that classifier-free guidance needs.

Classifier-Free Diffusion Guidance (https://arxiv.org/abs/2207.12598). Shapes: B batch, L row length in tokens.
"""

import torch
from torch import Tensor

from text_diffusers.common.randomness import rand
from text_diffusers.common.validation import is_number, require
from text_diffusers.data.rows import Batch

FRAME = 2  # tokens around a source, which stay


def drop_conditions(
    batch: Batch,
    generators: list[torch.Generator],
    probability: float,
    num_classes: int | None = None,
    pad_token_id: int = 0,
    mask_token_id: int | None = None,
    frame_ids: tuple[int, ...] = (),
) -> Batch:
    """A batch in which each row has lost its label, its source, both or neither, by one coin for each.

    A label becomes `num_classes`, "no label". A source is the `given` beginning `[EOS] source [EOS]` of a row; without
    it the row is `[EOS] [EOS] text`, the text being followed by as much padding as is missing. Where only the ends of
    a text are `given` there is no source.

    Args:
        batch: `input_ids` and `attention_mask` (B, L), and `label` (B,) or `given` (B, L) bool, or both; not changed.
        generators: one a row, of which each gives one number if `probability` is above 0. A row's coins depend on its
            own generator only.
        probability: of losing each condition; 0 returns `batch`.
        num_classes: of the labels.
        pad_token_id: the token of padding.
        mask_token_id: put in the place of each `given` token, for language models, which know no rows without one;
            the text stays where it is.
        frame_ids: tokens that such a mask is never put on: the ends around what is given.

    Raises:
        ValueError: if `probability` is not in [0, 1], or rows have no condition, or labels come without `num_classes`.

    Example:
        >>> import torch
        >>> from text_diffusers.training.steps.condition_dropout import drop_conditions
        >>> tokens = torch.zeros(4, 8, dtype=torch.long)
        >>> batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "label": torch.arange(4)}
        >>> generators = [torch.Generator().manual_seed(row) for row in range(4)]
        >>> drop_conditions(batch, generators, probability=1.0, num_classes=5)["label"]
        tensor([5, 5, 5, 5])
    """
    require(is_number(probability, 0, 1), "probability", "a number in [0, 1]", probability)
    if probability == 0:
        return batch
    if "label" not in batch and "given" not in batch:
        raise ValueError(
            f"`batch` must have a `label` or `given` column to drop, got {sorted(batch)}."
        )

    # A coin for the label and one for the source, whether the row has both or not
    tokens = batch["input_ids"]
    dropped = rand((len(tokens), 2), generators, tokens.device) < probability  # (B, 2)
    changed = {}
    if "label" in batch:
        if num_classes is None:
            raise ValueError("`num_classes` must be given to drop a `label`.")
        changed["label"] = batch["label"].masked_fill(dropped[:, 0], num_classes)
    if "given" in batch and mask_token_id is not None:
        masked = batch["given"] & batch["attention_mask"].bool() & dropped[:, 1:]
        for token in frame_ids:
            masked = masked & (tokens != token)
        changed["input_ids"] = tokens.masked_fill(masked, mask_token_id)
    elif "given" in batch:
        changed |= without_sources(batch, dropped[:, 1], pad_token_id)
    return batch | changed


def without_sources(batch: Batch, dropped: Tensor, pad_token_id: int) -> Batch:
    """The columns (B, L) of a batch in which the rows `dropped` (B,) bool have an empty source."""
    given = batch["given"]
    length = given.shape[1]
    beginnings = given.long().cumprod(dim=1).sum(dim=1)  # (B,) tokens of the source and its frame
    cut = (beginnings - FRAME).clamp(min=0) * dropped

    # Every token behind the first moves forward by what is cut; padding comes in at the end.
    places = torch.arange(length, device=given.device)
    origins = torch.where(places == 0, places, places + cut.unsqueeze(1))  # (B, L)
    outside = origins >= length
    origins = origins.clamp(max=length - 1)

    columns = {}
    for name, filling in {"input_ids": pad_token_id, "attention_mask": 0, "given": False}.items():
        columns[name] = batch[name].gather(1, origins).masked_fill(outside, filling)
    return columns
