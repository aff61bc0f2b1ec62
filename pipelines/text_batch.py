"""What a pipeline writes on: rows of tokens, which of them are to be written, and text to and from these rows.

Shapes: B rows, L sequence length, E embedding width.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import is_list


@dataclass
class Canvas:
    """The rows being denoised: `tokens` (B, L), which of them may change, which are real, and how a text may end."""

    tokens: Tensor
    editable: Tensor
    attention_mask: Tensor
    class_labels: Tensor | None
    ends_at_eos: bool


@dataclass
class EmbeddingCanvas(Canvas):
    """A canvas whose `tokens` are read off `latents` (B, L, E), which have the scale of the scheduler.

    `clean` (B, L, E) are the embeddings of known words, `estimate` (B, L, E) is the last clean estimate, and the texts
    begin at `starts`, by default with the row.
    """

    latents: Tensor
    clean: Tensor
    estimate: Tensor | None = None
    starts: list[int] | None = None
    eta: float = 0.0
    known_words: str = "renoise"


@dataclass
class GuidedCanvas(Canvas):
    """A canvas with what guides it.

    `unconditional` has the same tokens to write, in the same order, in rows without the condition, and `scales` (B,)
    are those of guidance by it, within the `interval` of shares of the steps. The texts begin at `starts`, and `cut`
    says whether what is before them is left out of the output.
    """

    unconditional: Canvas | None = None
    scales: Tensor | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    controls: list = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    cut: bool = False
    steps_done: int = 0


def lay_out(rows: list[list[int | None]], pad_token_id: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """`(tokens, editable, attention_mask)`, each (B, L), of rows padded on the right; a `None` is to be written."""
    length = max(len(row) for row in rows)
    tokens = [[pad_token_id if t is None else t for t in row] + [pad_token_id] * (length - len(row)) for row in rows]
    editable = torch.tensor([[t is None for t in row] + [False] * (length - len(row)) for row in rows])
    real = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return torch.tensor(tokens).to(device), editable.to(device), real.to(device)


def append_exactly(known: list, starts: list[int], lengths: list[int], end: list[int]) -> list:
    """The rows, each followed by `None` up to its length in tokens from its start on, and by the `end` tokens.

    Raises:
        ValueError: if a length leaves nothing to be written.
    """
    rows = []
    for row, start, length in zip(known, starts, lengths, strict=True):
        extra = length - (len(row) - start)
        if extra < 1:
            raise ValueError(
                f"`length` must be more than the tokens of its `prompt`, {len(row) - start}, got {length}."
            )
        rows.append(row + [None] * extra + end)
    return rows


def without_beginnings(rows: list, begins: list[int], others: list[list[int]]) -> list:
    """The rows from `begins` on, each behind another beginning."""
    return [other + row[begin:] for row, begin, other in zip(rows, begins, others, strict=True)]


def cut_rows(values: Tensor, canvas: Any, filling: int = 0) -> Tensor:
    """(B, longest text, ...) of `values` (B, L, ...): each row from the start of its text, filled up at its end."""
    if canvas.starts is None:
        return values
    ends = canvas.attention_mask.sum(dim=1).tolist()
    rows = [row[start:end] for row, start, end in zip(values, canvas.starts, ends, strict=True)]
    return pad_sequence(rows, batch_first=True, padding_value=filling)


def encode_prompts(tokenizer: Any, prompts: list[str], name: str = "prompt") -> list[list[int]]:
    """Token ids of each text, after the start token.

    Raises:
        ValueError: if one holds the mask.
    """
    rows = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    if any(tokenizer.mask_token_id in ids for ids in rows):
        raise ValueError(f"`{name}` must not hold {tokenizer.mask_token}; give it as `text` to fill it in.")
    return [start_ids(tokenizer) + ids for ids in rows]


def encode_sources(tokenizer: Any, source: str | list[str]) -> list[list[int]]:
    """What stands before the texts that are written from `source`."""
    sources = [source] if isinstance(source, str) else source
    return [row + end_ids(tokenizer) for row in encode_prompts(tokenizer, sources, "source")]


def encode_infill(tokenizer: Any, texts: list[str], mask: Any) -> list[list[int | None]]:
    """Token ids, after the start token, with `None` wherever a token is to be filled in."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    if mask is None:
        masks = [[token == tokenizer.mask_token_id for token in row] for row in rows]
    else:
        masks = mask.tolist() if hasattr(mask, "tolist") else list(mask)
        masks = masks if masks and is_list(masks[0]) else [masks]
        if [len(row) for row in masks] != [len(row) for row in rows]:
            raise ValueError(
                f"`mask` must have one value a token of `text`, {[len(row) for row in rows]} tokens, "
                f"got {[len(row) for row in masks]}."
            )
    for text, row in zip(texts, masks, strict=True):
        if not any(row):
            raise ValueError(f"`text` must hold {tokenizer.mask_token} where to write, got {text!r}.")
    blanked = zip(rows, masks, strict=True)
    start = start_ids(tokenizer)
    return [start + [None if m else t for t, m in zip(row, row_mask, strict=True)] for row, row_mask in blanked]


def written_ends(canvas: Canvas) -> Tensor:
    """(B, L) bool: the tokens at which a text may end."""
    return canvas.editable & canvas.ends_at_eos


def partial_text(tokenizer: Any, row: list[int]) -> str:
    """Text of a row that still has masks, which keep the space that their word will bring."""
    mask, hidden = tokenizer.mask_token_id, set(tokenizer.all_special_ids)
    pieces, run = [], []
    for token in [*row, None]:
        if token is not None and token != mask:
            run.append(token)
            continue
        pieces.append(tokenizer.decode([t for t in run if t not in hidden]))
        pieces.append("" if token is None else f" {tokenizer.mask_token}")
        run = []
    return "".join(pieces).strip()
