"""What a pipeline makes of continuations: nats, their Monte-Carlo errors, and whether it would write them greedily.

Shapes: B batch, R rows, L row length in tokens, V vocabulary size, N positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.row_blocks import block_numbers
from text_diffusers.common.validation import is_int, require, require_int, require_key
from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.evaluation.autoregression import (
    counted_behind_others,
    next_token_logits,
    next_token_nats,
    predicts_next,
)
from text_diffusers.evaluation.bounds import block_length, block_starts, predict, row_sums
from text_diffusers.evaluation.likelihood import check_has_bound, row_bounds_of
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.evaluation.row_bounds import collate
from text_diffusers.evaluation.written_texts import WrittenText
from text_diffusers.models.language_model import as_denoiser
from text_diffusers.schedulers.noise_schedules import time_of_noise_level

LIKELIHOODS = ("bound", "autoregressive")


@dataclass
class Score:
    """Of one row.

    Attributes:
        nats: bound of -log p of its continuation given what stands before it, or -log p itself.
        error: standard error of `nats` over repeated noise; 0 where nothing is drawn, `nan` of a single draw.
        is_greedy: whether the model would write the continuation greedily; `None` if that was not asked for.
    """

    nats: float
    error: float
    is_greedy: bool | None = None


@dataclass
class ContinuationScores:
    """Scores rows of continuations under a pipeline.

    Args:
        pipe: a pipeline of tokens or of word embeddings.
        likelihood: "bound", or of a model whose past is causal also "autoregressive": -log p of the same weights
            writing one token after the other.
        num_times: random times a row, for the Monte-Carlo bound; the errors need two at least.
        full: the full sum instead, see `full_bound`.
        num_noise: draws of each term of the full sum.
        greedy: whether to find out what would be written greedily, see `writes_greedily`.
        batch_size: rows in one call of the model; the scores do not depend on it.
        seed: of the noise.

    Raises:
        ValueError: if an argument is out of its range, or the pipeline has no such likelihood.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.evaluation.harness.rows import ContinuationRows, encode_text
        >>> from text_diffusers.evaluation.harness.scores import ContinuationScores
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")
        >>> layout = ContinuationRows(pipe)
        >>> scores = ContinuationScores(pipe, num_times=8)
        >>> context, likely, odd = (encode_text(pipe.tokenizer, text) for text in ("i do not", " know", " gave"))
        >>> rows = [layout.row(context, likely), layout.row(context, odd)]
        >>> first, second = scores(rows, noise_ids=[0, 0])
        >>> first.nats < second.nats
        True
    """

    pipe: Any
    likelihood: str = "bound"
    num_times: int = 32
    full: bool = False
    num_noise: int = 2
    greedy: bool = True
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self):
        require_key("likelihood", self.likelihood, LIKELIHOODS)
        for name in ("num_times", "num_noise", "batch_size"):
            require_int(name, getattr(self, name), 1)
        require_int("seed", self.seed, 0)
        for name in ("full", "greedy"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False", value)

        if not self.pipe.draws_from_scheduler and self.pipe.kind != "latents":
            raise ValueError(
                f"`pretrained` must be a pipeline that writes by itself: {type(self.pipe).__name__} steers away from "
                "its model, and has no likelihood."
            )
        check_has_bound(self.pipe, has_sources=False)
        self.denoiser = as_denoiser(self.pipe.denoiser, self.pipe.tokenizer)
        is_known = self.likelihood == "bound" or predicts_next(self.denoiser)
        limit = '"bound" for a model whose past is not causal'
        require(is_known, "likelihood", limit, self.likelihood)

    @property
    def says_greedy(self) -> bool:
        """Whether there is a greedy continuation: a model with masks to fill in, or one that predicts next tokens."""
        if self.likelihood == "autoregressive":
            return True
        return self.pipe.kind == "tokens" and self.pipe.scheduler.corruption == "absorbing"

    def __call__(
        self,
        texts: Sequence[WrittenText],
        noise_ids: Sequence[int],
        label: int | None = None,
        greedy: bool = True,
    ) -> list[Score]:
        """The score of each row.

        Args:
            texts: rows as of `ContinuationRows`.
            noise_ids: a number a row; rows with one number have the same noise levels.
            label: that the model is told of each row.
            greedy: whether it is of interest what would be written greedily.

        Raises:
            ValueError: naming the row, if -log p is asked for and nothing stands before its continuation.
        """
        with evaluating(self.pipe.denoiser):
            if self.likelihood == "autoregressive":
                rows = [text.next_token_row() for text in texts]
                return next_token_scores(self.denoiser, rows, self.batch_size)
            rows = [text.row(label) for text in texts]
            return self._bound_scores(rows, noise_ids, greedy and self.greedy)

    def _bound_scores(
        self, rows: list[dict[str, Any]], noise_ids: Sequence[int], greedy: bool
    ) -> list[Score]:
        bounds = row_bounds_of(
            self.pipe,
            self.denoiser,
            rows,
            full=self.full,
            num_times=self.num_times,
            num_noise=self.num_noise,
            batch_size=self.batch_size,
            seed=self.seed,
            noise_ids=noise_ids,
        )
        are_greedy: list[bool | None] = [None] * len(rows)
        if greedy and self.says_greedy:
            scheduler = self.pipe.scheduler
            are_greedy = list(writes_greedily(self.denoiser, scheduler, rows, self.batch_size))
        errors = bounds.variance.sqrt().tolist()
        scores = zip(bounds.nats.tolist(), errors, are_greedy, strict=True)
        return [Score(*score) for score in scores]


@torch.no_grad()
def next_token_scores(
    denoiser: Any, rows: Sequence[dict[str, Any]], batch_size: int = 64
) -> list[Score]:
    """-log p of rows under a model whose past is causal, one token after the other.

    Args:
        denoiser: for which `predicts_next` is true, in evaluation mode.
        rows: as of `full_bound`, in each of which something is given before the tokens that count.

    Raises:
        ValueError: naming the row, if nothing is.
    """
    scores = []
    device = device_of(denoiser)
    for first in range(0, len(rows), batch_size):
        batch = collate(list(rows[first : first + batch_size]))
        batch = {name: column.to(device) for name, column in batch.items()}
        positions = counted_behind_others(batch)
        unknown = unknown_tokens(batch)
        lacks_past = (unknown & ~positions).any(dim=1).nonzero().flatten().tolist()
        if lacks_past:
            raise ValueError(
                f"`rows[{first + lacks_past[0]}]` must have a token before those that count, got none."
            )
        logits = next_token_logits(denoiser, batch, positions)  # (N, V)
        nats = next_token_nats(logits, batch, positions)
        is_missed = logits.argmax(dim=-1) != batch["input_ids"][positions]
        num_missed = row_sums(is_missed.double(), positions)
        for row_nats, missed in zip(
            row_sums(nats.double(), positions).tolist(), num_missed.tolist(), strict=True
        ):
            scores.append(Score(row_nats, 0.0, missed == 0))
    return scores


@torch.no_grad()
def writes_greedily(
    denoiser: Any, scheduler: Any, rows: Sequence[dict[str, Any]], batch_size: int = 64
) -> list[bool]:
    """Whether a model of masks would write what counts in each row, being greedy, in as many steps as it has tokens.

    All of these tokens are masked. In each step the model reveals the one that it is most certain of, among all or,
    with blocks, among those of the first block that is not written. A row is written greedily if every token that is
    revealed is the one of the row: as soon as one is not, no more is asked.

    Args:
        denoiser: in evaluation mode.
        scheduler: of absorbing noise.
        rows: as of `full_bound`.
        batch_size: rows in one call of the denoiser.
    """
    device = device_of(denoiser)
    results = []
    for first in range(0, len(rows), batch_size):
        batch = collate(list(rows[first : first + batch_size]))
        batch = {name: column.to(device) for name, column in batch.items()}
        unwritten = unknown_tokens(batch)  # (B, L)
        is_right = torch.ones(len(unwritten), dtype=torch.bool, device=device)
        while True:
            asked = (is_right & unwritten.any(dim=1)).nonzero().flatten()
            if not len(asked):
                break
            part = {name: column[asked] for name, column in batch.items()}
            columns, tokens = most_certain(denoiser, scheduler, part, unwritten[asked])
            unwritten[asked, columns] = False
            is_right[asked] = tokens == part["input_ids"].gather(1, columns[:, None]).squeeze(1)
        results += is_right.tolist()
    return results


def most_certain(
    denoiser: Any, scheduler: Any, batch: Batch, unwritten: Tensor
) -> tuple[Tensor, Tensor]:
    """(B,) the columns of the tokens that a model is most certain of, and (B,) the tokens that it would write there.

    Args:
        batch: rows, in each of which something is unwritten.
        unwritten: (B, L) bool, the tokens that are masked.
    """
    tokens = batch["input_ids"]
    mask_token_id = scheduler.config.mask_token_id

    # 1. The tokens that may be written now: those of the first block that has any
    numbers = numbers_of_blocks(denoiser, batch)  # (B, L)
    last = numbers.max() + 1
    current = numbers.masked_fill(~unwritten, int(last)).amin(dim=1, keepdim=True)
    in_block = numbers == current
    positions = unwritten & in_block

    # 2. The time at which so many of them are masked
    num_counted = (unknown_tokens(batch) & in_block).sum(dim=1)
    level = positions.sum(dim=1).double() / num_counted  # (B,)
    times = times_of_levels(scheduler, level)
    if block_length(denoiser) is not None:
        times = times.unsqueeze(1).expand(tokens.shape)

    # 3. The likeliest token at each of them, and where it is likeliest
    noisy = tokens.masked_fill(unwritten, mask_token_id)
    logits = predict(denoiser, batch, noisy, times, positions).float()  # (N, V)
    logits[:, mask_token_id] = -torch.inf
    certainty, best = logits.softmax(dim=-1).max(dim=-1)
    certainty_of_row = torch.full(tokens.shape, -1.0, device=tokens.device)
    certainty_of_row = certainty_of_row.masked_scatter(positions, certainty)
    columns = certainty_of_row.argmax(dim=1)
    best_of_row = torch.zeros_like(tokens).masked_scatter(positions, best)
    return columns, best_of_row.gather(1, columns.unsqueeze(1)).squeeze(1)


def numbers_of_blocks(denoiser: Any, batch: Batch) -> Tensor:
    """(B, L) the number of the block of each token; 0 without blocks."""
    tokens = batch["input_ids"]
    size = block_length(denoiser)
    if size is None:
        return torch.zeros_like(tokens)
    starts = block_starts(denoiser, batch)
    if starts is None:
        starts = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    return block_numbers(tokens.shape[1], size, starts)


def times_of_levels(scheduler: Any, level: Tensor) -> Tensor:
    """Float64 times at which the shares `level` of the tokens are masked, on the grid of a scheduler that has one."""
    times = time_of_noise_level(scheduler.alpha, level)
    num_steps = scheduler.config.num_train_timesteps
    if is_int(num_steps, 1):
        return (times * num_steps).ceil().clamp(min=1) / num_steps
    return times.clamp(min=scheduler.config.min_timestep)
