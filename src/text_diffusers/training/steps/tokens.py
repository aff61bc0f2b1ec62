"""What a training step of discrete diffusion computes: corrupted rows, and the loss of what is predicted of them.

Shapes: B batch, L row length in tokens, V vocabulary size, N predicted positions, n positions of a chunk.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.row_blocks import places_behind
from text_diffusers.common.training_randomness import (
    TIME_SAMPLINGS,
    masks_by_count,
    token_uniform,
)
from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.evaluation.bounds import D3PMLoss, begins_of_answers, first_unknown
from text_diffusers.losses.discrete import absorbing_bound
from text_diffusers.training.steps.answers import with_ends_behind
from text_diffusers.training.steps.lengths import (
    LossWithLengths,
    ask_for_lengths,
    asked_positions,
    text_sizes,
)

BY_MASK_COUNT = "mask_count"
ALL_TIME_SAMPLINGS = (BY_MASK_COUNT, *TIME_SAMPLINGS)


class MaskCountLoss(D3PMLoss):
    """Cross-entropy at masks whose number was drawn, and not the time; see `masks_by_count`.

    Arguments as of `D3PMLoss`. With `weights` n / k it is the bound of absorbing noise.
    """

    def bound(self, logits: Tensor, chunk: slice = slice(None)) -> Tensor:
        """(n,) cross-entropy in nats of the logits (n, V) at all positions or a chunk of them."""
        targets = self.targets[chunk]
        ones = torch.ones(len(targets), device=logits.device)
        return absorbing_bound(logits, targets, ones, self.scheduler.config.mask_token_id)


@dataclass
class CorruptedBatch:
    """Rows as a denoiser is shown them in training, and the loss of its predictions.

    Attributes:
        criterion: `(logits (n, V), chunk) -> ()`, the loss summed over all positions or a chunk of them.
        batch: the clean rows, as `criterion` counts them.
        times: (B,), or with blocks (B, L).
        block_inputs: arguments of a denoiser with blocks, which say what it is shown beside the noisy tokens.
    """

    criterion: Any
    batch: Batch
    times: Tensor
    block_inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def noisy(self) -> Tensor:
        """(B, L) tokens that the denoiser is shown."""
        return self.criterion.noisy

    @property
    def positions(self) -> Tensor:
        """(B, L) bool, the N positions at which its head has to run."""
        return self.criterion.positions


@dataclass
class TokenCorruption:
    """How rows are corrupted in training.

    Args:
        scheduler: a token scheduler of any kernel.
        denoiser_config: with `block_length`, `causal_past` and `predicts_length` if the model has them.
        time_sampling: "mask_count", which weighs all masks alike, see `MaskCounts.even_weights`; or "log_uniform" or
            "uniform", whose loss is on average the bound. By default the first where `mask_counts_are_exact`, else
            the second.
        min_timestep: the interval below is one step of the bound.
        auxiliary_weight: lambda of D3PM's cross-entropy on x_0.
        answer_end_id: of rows of conversations, or of a text with a row to itself, the token that ends an answer or
            text, and that stands behind it; see `with_ends_behind`. By default nothing does.

    Raises:
        ValueError: if masks are to be counted where there are others, or times matter.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
        >>> from text_diffusers.training.steps.tokens import TokenCorruption
        >>> model = TextTransformerModel(vocab_size=9, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> corruption = TokenCorruption(D3PMAbsorbingScheduler(mask_token_id=8), model.config)
        >>> rows = {"input_ids": torch.zeros(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6)}
        >>> generators = [torch.Generator().manual_seed(row) for row in range(2)]
        >>> corrupted = corruption(rows, torch.tensor([0.0, 0.99]), generators)
        >>> (corrupted.noisy == 8).sum(dim=1).tolist()
        [1, 6]
        >>> logits = model(corrupted.noisy, corrupted.times, positions=corrupted.positions).logits
        >>> corrupted.criterion(logits).item() > 0
        True
    """

    scheduler: Any
    denoiser_config: Any
    time_sampling: str | None = None
    min_timestep: float = 0.1
    auxiliary_weight: float = 0.0
    answer_end_id: int | None = None

    def __post_init__(self):
        config = self.denoiser_config
        self.block_length = getattr(config, "block_length", None)
        self.causal_past = getattr(config, "causal_past", False)
        self.predicts_length = getattr(config, "predicts_length", False)

        exact = mask_counts_are_exact(self.scheduler, config)
        if self.time_sampling is None:
            self.time_sampling = BY_MASK_COUNT if exact else "log_uniform"
        if self.time_sampling == BY_MASK_COUNT and not exact:
            raise ValueError(
                f'`time_sampling` "{BY_MASK_COUNT}" needs absorbing noise in continuous time and a denoiser that is '
                f"not told the time, got {self.scheduler.corruption} noise."
            )

    def __call__(
        self,
        batch: Batch,
        uniform: Tensor,
        generators: list[torch.Generator],
        block_length: int | None = None,
    ) -> CorruptedBatch:
        """Corrupt a batch.

        Args:
            batch: `input_ids` and `attention_mask` (B, L); tokens that are `given` stay clean and cost nothing.
            uniform: (B,) numbers in [0, 1), from which times or numbers of masks are made.
            generators: one a row.
            block_length: of the blocks over a causal past, if another than the model's own.
        """
        # 1. Of pairs, some rows are asked how long the text is, and show none of it
        lengths = text_sizes(batch)
        asked = None
        if self.predicts_length and "given" in batch:
            batch, asked = ask_for_lengths(batch, generators)

        # 2. The others are corrupted
        length = batch["input_ids"].shape[1]
        block_length = block_length or self.block_length
        starts = self._block_starts(batch, block_length) if self.causal_past else None
        if self.answer_end_id is not None:
            batch = with_ends_behind(batch, self.answer_end_id, generators, block_length, starts)
        # A model with blocks is shown the earlier ones clean, so each block may have a time of its own.
        uniform = token_uniform(uniform, length, block_length, generators, starts)
        if self.time_sampling == BY_MASK_COUNT:
            criterion, times = self._by_mask_count(batch, uniform, generators, block_length, starts)
        else:
            criterion, times = self._by_time(batch, uniform, generators)

        # 3. Lengths are asked for at time 0, since nothing of such a row is noise
        if asked is not None:
            positions = asked_positions(batch, asked)
            criterion = LossWithLengths(criterion, positions, lengths)
            times = times.masked_fill(asked, 0)
        return CorruptedBatch(
            criterion, batch, times, self._block_inputs(batch, block_length, starts)
        )

    def _block_starts(self, batch: Batch, block_length: int | None) -> Tensor:
        """(B,) the column at which the first block of each row begins; or (B, L) places in blocks of answers."""
        assert block_length is not None
        # A causal past knows no blocks, so that the first begins with the first token that is learned, and of several
        # answers each with one.
        if self.answer_end_id is not None:
            return places_behind(begins_of_answers(batch), block_length)
        return first_unknown(batch) % block_length

    def _block_inputs(
        self, batch: Batch, block_length: int | None, starts: Tensor | None
    ) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        if "segment_ids" in batch:
            inputs["segment_ids"] = batch["segment_ids"]
        if block_length is None:
            return inputs
        inputs["clean_ids"] = batch.get("clean_ids", batch["input_ids"])
        if starts is not None:
            inputs |= {"block_length": block_length, "block_starts": starts}
        return inputs

    def _by_mask_count(
        self,
        batch: Batch,
        uniform: Tensor,
        generators: list[torch.Generator],
        block_length: int | None,
        starts: Tensor | None,
    ) -> tuple[D3PMLoss, Tensor]:
        unknown = unknown_tokens(batch)
        masks = masks_by_count(unknown, uniform, generators, block_length, starts)
        mask_token_id = self.scheduler.config.mask_token_id
        noisy = batch["input_ids"].masked_fill(masks.masked, mask_token_id)
        weights = with_token_weights(masks.even_weights, batch)
        criterion = MaskCountLoss(
            self.scheduler, batch, noisy, masks.shares, weights, self.auxiliary_weight
        )
        return criterion, masks.shares if block_length else masks.shares[:, 0]

    def _by_time(
        self, batch: Batch, uniform: Tensor, generators: list[torch.Generator]
    ) -> tuple[D3PMLoss, Tensor]:
        # `log_uniform` goes down to the first interval: one step of the grid, or `min_timestep`.
        num_steps = self.scheduler.config.num_train_timesteps
        first_interval = min(self.min_timestep, 1 / (num_steps or 1))
        uniform, weights = TIME_SAMPLINGS[str(self.time_sampling)](uniform, first_interval)

        times = self.scheduler.training_timesteps(uniform)  # (B,), or with blocks (B, L)
        noisy = self.scheduler.add_noise(batch["input_ids"], times, generators)  # (B, L)
        weights = with_token_weights(weights, batch)
        criterion = D3PMLoss(self.scheduler, batch, noisy, times, weights, self.auxiliary_weight)
        return criterion, times


def with_token_weights(weights: Tensor, batch: Batch) -> Tensor:
    """Weights (B,) or (B, L) of the loss times those that the tokens of a batch may have, (B, L)."""
    if "token_weights" not in batch:
        return weights
    return weights.reshape(len(weights), -1) * batch["token_weights"]


def mask_counts_are_exact(scheduler: Any, denoiser_config: Any) -> bool:
    """Whether the number of masks says all of the time: absorbing noise, no grid, and a model that is not told it."""
    told_the_time = getattr(denoiser_config, "time_conditioning", False)
    is_continuous = scheduler.config.num_train_timesteps is None
    return scheduler.corruption == "absorbing" and is_continuous and not told_the_time
