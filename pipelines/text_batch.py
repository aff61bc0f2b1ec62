"""The rows that a pipeline writes: laid out from prompts, sources and gaps.

Shapes: B rows, L sequence length, E embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain, holds_mask
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.pipelines.given_text import GivenText

# Token ids of one text; `None` is a token to be written.
Row = list[int | None]

# In a row, padding before its first token.
LEFT_PADDING = -1


@dataclass
class TextBatch:
    """Rows being denoised, and all that a step needs to know of them.

    Attributes:
        tokens: (B, L) ids; where noise is continuous, the words that the latest estimate is rounded to.
        editable: (B, L) bool, the tokens to be written; all others stay as they are.
        attention_mask: (B, L), 1 at real tokens, 0 at padding, on the right or before the first token.
        class_labels: (B,) ids, if the denoiser is told any.
        ends_at_eos: whether a text ends at the first end token that is written, rather than with its row.
        end_token_ids: tokens that end a text beside the tokenizer's own.
        earliest_ends: (B,) index before which no text ends; empty where that is left to the model.
        suppressed_ids: tokens that are not written in this call.
        first_cluster_id: ids from here on are clusters of tokens, under hierarchical noise.
        past_lengths: (B,) columns behind which all is one block, where a call writes one block over a causal past.
        window: (B, L) bool, the tokens that are written together now; `None` is all of them.
        denoiser: which the call asks, a language model being wrapped.
        starts: index of the first token of each text, its prompt included and a source before it not.
        given_texts: the given characters of each text.
        drops_source: whether what stands before `starts` is left out of the output.
        generators: one a row.
        controls: in the order in which they act.
        scales: (B,) float64 of classifier-free guidance.
        guidance_interval: shares of the steps between which these scales apply.
        guidance_scale: that the scales are made of, as it was given, one or one a text.
        repeats: rows of each text, which stand next to each other.
        unconditional: the same tokens to write, in the same order, in rows without the condition; `None` until a
            scale other than 1 needs them.
        make_unconditional: makes these rows; `None` where there is no condition.
        num_steps, steps_done: of this call.
        condition: what the denoiser is told beside the tokens, by the names of its arguments; one row of each tensor
            for each of the batch.
        laid_out: (B, L) ids as they were before anything was written.
        latents: (B, L, E) noisy embeddings, on the scale of the scheduler.
        clean: (B, L, E) embeddings of the known words.
        shows_clean: whether the denoiser is shown known words clean, and not as noisy as the rest.
        noisy: (B, L, E) the latents that the denoiser was last shown, on the scale of its training.
        estimate: (B, L, E) latest clean estimate, which the scheduler steps towards.
        own_estimate: (B, L, E) that of the denoiser alone, before guidance, which self-conditioning shows it; `None`
            before the first step.

    Example:
        >>> batch = lay_out([[1, 7, None], [1, None]], pad_token_id=0)
        >>> batch.tokens.tolist(), batch.editable.tolist()
        ([[1, 7, 0], [1, 0, 0]], [[False, False, True], [False, True, False]])
    """

    tokens: Tensor
    editable: Tensor
    attention_mask: Tensor
    class_labels: Tensor | None = None
    ends_at_eos: bool = False
    end_token_ids: list[int] = field(default_factory=list)
    earliest_ends: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    suppressed_ids: list[int] = field(default_factory=list)
    first_cluster_id: int | None = None
    past_lengths: Tensor | None = None
    window: Tensor | None = None
    denoiser: Any = None
    starts: list[int] = field(default_factory=list)
    given_texts: list[GivenText] = field(default_factory=list)
    drops_source: bool = False
    generators: list[torch.Generator] = field(default_factory=list)
    controls: list = field(default_factory=list)
    scales: Tensor = field(default_factory=lambda: torch.ones(0))
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_scale: Any = 1.0
    repeats: int = 1
    unconditional: "TextBatch | None" = None
    make_unconditional: Callable[[], "TextBatch"] | None = None
    num_steps: int = 1
    steps_done: int = 0
    condition: dict[str, Tensor] = field(default_factory=dict)
    laid_out: Tensor | None = None

    # Of continuous noise only; empty over tokens.
    latents: Tensor = field(default_factory=lambda: torch.ones(0))
    clean: Tensor = field(default_factory=lambda: torch.ones(0))
    shows_clean: bool = False
    noisy: Tensor = field(default_factory=lambda: torch.ones(0))
    estimate: Tensor = field(default_factory=lambda: torch.ones(0))
    own_estimate: Tensor | None = None

    @property
    def progress(self) -> float:
        """Share of the steps that are done, in [0, 1)."""
        return self.steps_done / self.num_steps

    @property
    def step_scales(self) -> Tensor:
        """(B,) scales of guidance in the step that is due: 1 outside of the interval."""
        start, stop = self.guidance_interval
        return self.scales if start <= self.progress < stop else torch.ones_like(self.scales)

    @property
    def text_ends(self) -> list[int]:
        """Index behind the last real token of each row."""
        columns = torch.arange(1, self.attention_mask.shape[1] + 1, device=self.tokens.device)
        return (self.attention_mask.bool() * columns).amax(dim=1).tolist()


def lay_out(
    rows: list[Row],
    pad_token_id: int,
    device: torch.device | str | None = None,
    class_labels: Tensor | None = None,
) -> TextBatch:
    """A batch of rows padded on the right; a `None` is to be written, and holds the padding until then.

    Padding before the first token of a row is in the row, as `LEFT_PADDING`.
    """
    length = max(len(row) for row in rows)
    tokens = torch.full((len(rows), length), pad_token_id)  # (B, L)
    editable = torch.zeros(len(rows), length, dtype=torch.bool)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)

    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(
            [pad_token_id if token in (None, LEFT_PADDING) else token for token in row]
        )
        editable[index, : len(row)] = torch.tensor(
            [token is None for token in row], dtype=torch.bool
        )
        attention_mask[index, row.count(LEFT_PADDING) : len(row)] = 1

    # Rows are filled in on the CPU, and moved once.
    tokens = tokens.to(device)
    labels = None if class_labels is None else class_labels.to(device)
    return TextBatch(
        tokens, editable.to(device), attention_mask.to(device), labels, laid_out=tokens
    )


def encode_prompts(tokenizer: Any, prompts: Sequence[str], name: str = "prompt") -> list[Row]:
    """Token ids of each text, after the start token.

    Raises:
        ValueError: if one holds the mask, or cannot be taken for plain text; `name` is the argument to be named.
    """
    # A mask in a prompt is surely meant to be filled in.
    if any(holds_mask(tokenizer, prompt) for prompt in prompts):
        raise ValueError(
            f"`{name}` must not hold {tokenizer.mask_token}; give it as `text` to fill it in."
        )
    start = start_ids(tokenizer)
    return [[*start, *row] for row in encode_plain(tokenizer, prompts, name)]


def encode_sources(
    tokenizer: Any, source: str | Sequence[str], name: str = "source", num_ends: int = 1
) -> list[Row]:
    """Token ids that stand before the texts written from `source`: start, source, and so many ends."""
    sources = [source] if isinstance(source, str) else source
    return [row + end_ids(tokenizer) * num_ends for row in encode_prompts(tokenizer, sources, name)]


def text_before(text: str, row: Row) -> GivenText:
    """The given text of a row that is continued: all that is written stands behind it."""
    return GivenText(pieces=[text, ""], runs=[(len(row), None)])


def append_exactly(
    rows: list[Row], starts: list[int], lengths: list[int], end: list[int]
) -> list[Row]:
    """The rows, each followed by `None` up to its length in tokens from its start on, and by the `end` tokens.

    Raises:
        ValueError: if a length leaves nothing to be written.
    """
    extended = []
    for row, start, length in zip(rows, starts, lengths, strict=True):
        # A source before the start does not count.
        num_new = length - (len(row) - start)
        if num_new < 1:
            raise ValueError(
                f"`length` must be more than the tokens of its `prompt`, {len(row) - start}, got {length}."
            )
        extended.append(row + [None] * num_new + end)
    return extended


def repeat_rows(rows: Sequence[Any], count: int) -> list:
    """Each of the rows `count` times, copies of one next to each other."""
    return [row for row in rows for _ in range(count)]
