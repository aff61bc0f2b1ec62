"""What a step trains of a model with blocks: which length they have, and beside them the loss of next tokens.

Over a causal past one model learns blocks of several lengths, which take turns, and keeps predicting next tokens: its
clean tokens are read anyway, and read as an autoregressive model reads them. One that was never autoregressive learns
next tokens first, blocks of one token: shifted, a step of these reads no noisy tokens, and so is cheaper, and all that
it teaches holds in longer blocks.

Shapes: B batch, L row length in tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.training_randomness import turn_of_step
from text_diffusers.common.validation import is_number, require
from text_diffusers.data.rows import Batch
from text_diffusers.evaluation.autoregression import counted_behind_others, next_token_nats

# Of the loss of next tokens beside the bound; the best of those measured
NEXT_TOKEN_WEIGHT = 0.1

# Of the next tokens beside the bound one in so many is asked for in a step. Logits cost more memory than all else, and
# each token has its turn.
NEXT_TOKEN_STRIDE = 4

# Of the training of an encoder, at its beginning
NEXT_TOKEN_SHARE = 0.6


@dataclass
class BlockSteps:
    """The blocks of training steps.

    Args:
        denoiser_config: with `block_length` and `causal_past` if the model has them.
        block_lengths: of blocks over a causal past, which take turns; none is the model's own.
        next_token_weight: of the loss of next tokens over a causal past; `None` is `NEXT_TOKEN_WEIGHT` there.
        next_token_share: of the training, at its beginning, in which these alone are learned; in [0, 1).
        seed: of the turns.

    Raises:
        ValueError: if the past is not causal, and several lengths, a weight or a share are asked for; or if the share
            is not in [0, 1).

    Example:
        >>> from types import SimpleNamespace
        >>> from text_diffusers.training.steps.blocks import BlockSteps
        >>> steps = BlockSteps(SimpleNamespace(block_length=4, causal_past=True), block_lengths=[4, 8])
        >>> sorted({steps.length_at(step) for step in range(4)}), steps.weight
        ([4, 8], 0.1)
    """

    denoiser_config: Any
    block_lengths: Sequence[int] = field(default_factory=list)
    next_token_weight: float | None = None
    next_token_share: float = 0.0
    seed: int = 0

    def __post_init__(self):
        self.causal_past = getattr(self.denoiser_config, "causal_past", False)
        if len(self.block_lengths) > 1 and not self.causal_past:
            raise ValueError(
                "`block_length` must be one length without a past that is read token by token, got "
                f"{list(self.block_lengths)}."
            )
        if self.next_token_weight and not self.causal_past:
            raise ValueError(
                "`ar_loss_weight` must be left out without a past that is read token by token, got "
                f"{self.next_token_weight}."
            )
        require(
            is_number(self.next_token_share, 0) and self.next_token_share < 1,
            "next_token_share",
            "a number in [0, 1)",
            self.next_token_share,
        )
        if self.next_token_share and not self.causal_past:
            raise ValueError(
                "`next_token_share` must be 0 without a past that is read token by token, got "
                f"{self.next_token_share}."
            )
        self.weight = self.next_token_weight or 0.0
        if self.causal_past and self.next_token_weight is None:
            self.weight = NEXT_TOKEN_WEIGHT

    def length_at(self, step: int, progress: float = 1.0) -> int | None:
        """Tokens of the blocks of a step; `None` is the model's own, or none.

        Args:
            progress: share of the training that is done before the step.
        """
        if progress < self.next_token_share:
            return 1
        if len(self.block_lengths) < 2:
            return None
        return turn_of_step(self.block_lengths, self.seed, step)

    def inputs(
        self, batch: Batch, block_length: int | None = None, step: int = 0
    ) -> dict[str, Any]:
        """Arguments of the denoiser by which it predicts next tokens of a batch too.

        Args:
            block_length: of the step. Blocks of one token are next tokens already.
            step: whose turn decides which: each of the batch once in `NEXT_TOKEN_STRIDE` steps.
        """
        if not self.weight or (block_length or self.denoiser_config.block_length) == 1:
            return {}
        # Another seed than that of the lengths, or four of these would each always meet the same tokens.
        turn = turn_of_step(range(NEXT_TOKEN_STRIDE), self.seed + 1, step)
        counted = counted_behind_others(batch)
        columns = torch.arange(counted.shape[1], device=counted.device)
        return {"clean_positions": counted & (columns % NEXT_TOKEN_STRIDE == turn)}

    def loss(self, output: Any, batch: Batch, inputs: dict[str, Any]) -> Tensor | float:
        """The weighted loss of next tokens, of which those of the step stand for all; 0 where none were asked for.

        Args:
            inputs: of the denoiser, those of `inputs` among them.
        """
        positions = inputs.get("clean_positions")
        if positions is None:
            return 0.0
        nats = next_token_nats(output.clean_logits, batch, positions)
        return self.weight * NEXT_TOKEN_STRIDE * nats.double().sum()
