"""ParaGuide's steps over word embeddings, the authors' setting.

Theirs is a fixed number of padded tokens and a RoBERTa over its own embeddings; here the source stands before the text
in one row, and self-conditioning, if the model has it, shows what the denoiser predicted last, without the drift.

Shapes: B rows, L sequence length, V vocabulary size, E embedding width, N open tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import never_written
from text_diffusers.pipelines.diffusion_lm.prediction import EmbeddingPredictor
from text_diffusers.pipelines.paraguide.steering import without_tokens
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_inputs import GuidanceInputs


@dataclass
class EmbeddingSteps(EmbeddingPredictor):
    """A denoiser of word embeddings, and a scheduler that is asked for its noise and its clock only."""

    # Embeddings are noised afresh in each step.
    revises_tokens = True

    def check(self, guidance: GuidanceInputs):
        """Raise a `ValueError` unless the components can take such steps."""
        if not self.denoiser.config.partial_noising:
            raise ValueError("`source` needs a denoiser with `partial_noising=True`.")
        if not hasattr(self.denoiser, "logits"):
            name = type(self.denoiser).__name__
            raise ValueError(f"`denoiser` must have `logits` of words; {name} has none.")

        # Words are noised by the scheduler and shown as they are, without `scale_model_input`.
        stepped = self.scheduler.scheduler
        if float(stepped.init_noise_sigma) != 1:
            raise ValueError(
                "`scheduler` must noise on the scale of the model, since its noise is all that is asked of it, such "
                f"as EmbeddingDDIMScheduler, got {type(stepped).__name__}."
            )

        refuse_guidance(guidance.guidance_scale, guidance.negative_prompt)

    def open_tokens(self, batch: TextBatch) -> Tensor:
        """(B, L) bool: the tokens that a step draws, which are all that are written."""
        return batch.editable

    def predict_words(self, batch: TextBatch, timestep: float, positions: Tensor) -> Tensor:
        """(N, V) logits of the clean words at the positions (B, L).

        Those of a model with `categorical_output` are its own; those of another are read off its clean estimate, as in
        rounding, and where that lies between words they are no more than near it.
        """
        # The source is shown clean, as in training.
        noisy = torch.where(batch.editable.unsqueeze(-1), batch.latents, batch.clean)
        output = self.output(batch, noisy, timestep)
        prediction = output.sample.to(noisy.dtype)
        batch.own_estimate = self.scheduler.clean_estimate(prediction, noisy, timestep)

        logits = getattr(output, "logits", None)
        if logits is None:
            logits = self.denoiser.logits(batch.own_estimate.to(batch.clean.dtype))
        return without_tokens(logits[positions], never_written(self.tokenizer))

    def add_noise(self, batch: TextBatch, timestep: float | None):
        """Set the latents to those of the drawn words at `timestep`, by fresh noise; `None` is without any."""
        # In the precision of the latents, which is that of their noise.
        batch.latents = self.denoiser.embed(batch.tokens).to(batch.latents.dtype)
        if timestep is not None:
            batch.latents = self.scheduler.add_noise(batch.latents, timestep, batch.generators)

    def finish(self, batch: TextBatch):
        """Round the latents that a callback changed; those of drawn words are these words, whatever is nearest."""
        # Where norms differ, rounding may give another word than the one whose embedding it is.
        drawn = batch.tokens
        self.read_words(batch, batch.latents)
        embeddings = self.denoiser.embed(drawn).to(batch.latents.dtype)
        is_unchanged = (embeddings == batch.latents).all(dim=-1)  # (B, L)
        batch.tokens = torch.where(is_unchanged, drawn, batch.tokens)


def refuse_guidance(guidance_scale: Any, negative_prompt: Any = None):
    """Raise a `ValueError` if classifier-free guidance is asked for, which is for denoisers of tokens."""
    if guidance_scale != 1 or negative_prompt is not None:
        raise ValueError(
            "`guidance_scale` must be 1, and `negative_prompt` be left out, for a denoiser of word embeddings, "
            f"got {guidance_scale!r} and {negative_prompt!r}."
        )
