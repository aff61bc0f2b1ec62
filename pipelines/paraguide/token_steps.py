"""ParaGuide's steps over tokens, which are ours: under masks or other noise, with classifier-free guidance.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from text_diffusers.common.token_ids import never_written
from text_diffusers.pipelines.guidance import guide
from text_diffusers.pipelines.paraguide.steering import without_tokens
from text_diffusers.pipelines.scheduler_adapters import stock_class
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_diffusion.prediction import TokenPredictor
from text_diffusers.pipelines.text_endings import masked_tokens
from text_diffusers.pipelines.text_inputs import GuidanceInputs


@dataclass
class TokenSteps(TokenPredictor):
    """A denoiser of tokens, and a scheduler that is asked for its noise and its clock only."""

    def check(self, guidance: GuidanceInputs):
        """Raise a `ValueError` unless denoiser and scheduler can take such steps."""
        name = type(self.scheduler).__name__
        block_length = getattr(self.denoiser.config, "block_length", None)
        if block_length is not None:
            raise ValueError(
                f"`denoiser` must write whole rows, but has `block_length`={block_length}."
            )

        if stock_class(self.scheduler) is not None or not hasattr(self.scheduler, "add_noise"):
            raise ValueError(
                "`scheduler` must have `add_noise`, with which every step ends, such as D3PMAbsorbingScheduler or "
                f"D3PMUniformScheduler, got {name}."
            )

        # A word that is drawn for a cluster need not be one of its own.
        if self.scheduler.corruption == "hierarchical":
            raise ValueError(
                f"`scheduler` must be of another noise than hierarchical masks for a ParaGuidePipeline, got {name}."
            )

        # Only of uniform noise is it known what a noisy token says of the clean one.
        if self._leaves_itself_out and self.scheduler.corruption != "uniform":
            raise ValueError(
                f'`scheduler` must have `reverse_rule="marginal"` or uniform noise, got {name} with "plug_in".'
            )

    def begin(self, batch: TextBatch):
        """Cover what is to be written with pure noise."""
        # Noise for whole rows, of which only what is to be written is used.
        noise = self.scheduler.prior(
            tuple(batch.tokens.shape), generator=batch.generators, device=batch.tokens.device
        )
        batch.tokens = torch.where(batch.editable, noise, batch.tokens)

    def open_tokens(self, batch: TextBatch) -> Tensor:
        """(B, L) bool: the tokens that a step draws.

        A token that is not masked is its own clean estimate, since a masked model says nothing of it.
        """
        if self.scheduler.corruption != "absorbing":
            return batch.editable
        return masked_tokens(batch, self.tokenizer)

    @property
    def revises_tokens(self) -> bool:
        return self.scheduler.revises_tokens

    def predict_words(self, batch: TextBatch, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) logits of p(x_0 | x_t) at the positions (B, L), of tokens that a text may have only."""
        cond, uncond = self.predict_pair(batch, timestep, positions)
        logits = cond
        if uncond is not None:
            logits = guide(cond, uncond, batch.step_scales[positions.nonzero()[:, 0]])

        # Special tokens are never written, nor ids that the noise does not have.
        noise_size = self.scheduler.config.get("vocab_size") or logits.shape[-1]
        beyond_noise = range(noise_size, logits.shape[-1])
        logits = without_tokens(logits, [*never_written(self.tokenizer), *beyond_noise])

        if self._leaves_itself_out:
            # q(x_t | x_0) of uniform noise is the same in both directions.
            likelihood = self.scheduler.transition(batch.tokens[positions], timestep)  # (N, noise)
            posterior = logits[:, :noise_size] + likelihood.log().to(logits)
            # Ids beyond the noise are excluded already.
            logits = torch.cat([posterior, logits[:, noise_size:]], dim=-1)
        return logits

    def add_noise(self, batch: TextBatch, timestep: float | None):
        """Noise the drawn tokens afresh for `timestep`, which may also mask a token that was settled; `None` keeps."""
        if timestep is not None:
            # Only what is written gets noise; the source stays clean.
            noisy = self.scheduler.add_noise(batch.tokens, timestep, batch.generators)
            batch.tokens = torch.where(batch.editable, noisy, batch.tokens)

    @property
    def _leaves_itself_out(self) -> bool:
        """Whether the model's prediction of a token leaves out what its noisy value says."""
        return (
            self.scheduler.corruption != "absorbing"
            and self.scheduler.config.get("reverse_rule") == "plug_in"
        )
