"""A denoiser of word embeddings as the pipelines ask it: from pure noise to predictions, and from embeddings to words.

Shapes: B rows, L sequence length, E embedding width, V vocabulary size.
"""

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import never_written
from text_diffusers.pipelines.component_checks import check_text_components
from text_diffusers.pipelines.scheduler_adapters import EmbeddingScheduler, normal_noise
from text_diffusers.pipelines.text_batch import TextBatch

# Relative, of weights that were rounded to bfloat16.
NOISE_TOLERANCE = 0.02


@dataclass
class EmbeddingPredictor:
    """A denoiser of word embeddings with its tokenizer and the scheduler that it is stepped by.

    Args:
        denoiser: an `EmbeddingTransformerModel`, a `BertEmbeddingDenoiser`, or a model with the `config`, `embed`,
            `round` and `nearest_words` of the first that is called like it. A configuration without
            `self_conditioning` or `prediction_type` is that of a model that predicts clean embeddings from noisy ones.
        tokenizer: its tokenizer.
        scheduler: its noise and its clock.
    """

    denoiser: Any
    tokenizer: Any
    scheduler: EmbeddingScheduler

    def begin(self, batch: TextBatch):
        """Set the embeddings of the known words of a batch, and pure noise as its latents.

        Raises:
            ValueError: if the scheduler has other noise than the denoiser was told in training.
        """
        self._check_noise()

        # Noise in half precision is drawn and kept in float32.
        batch.clean = self.embed(batch.tokens)
        precise = torch.promote_types(batch.clean.dtype, torch.float32)
        noise = normal_noise(batch.clean, batch.generators).to(batch.tokens.device, precise)
        batch.latents = self.scheduler.scale_noise(noise)

        # The first entry of a history: the words that pure noise is rounded to.
        self.read_words(batch, noise)

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, L, E) embeddings of words (B, L)."""
        # The hook of CPU offloading waits for a call of the model as a whole.
        if hasattr(self.denoiser, "_hf_hook"):
            self.denoiser._hf_hook.pre_forward(self.denoiser)
        return self.denoiser.embed(tokens)

    def output(self, batch: TextBatch, noisy: Tensor, timestep: float) -> Any:
        """The denoiser's output at noisy embeddings (B, L, E).

        Self-conditioning shows it the `own_estimate` of the batch; partial noising tells it which words are known.

        Raises:
            ValueError: if the prediction is not finite.
        """
        config = self.denoiser.config
        dtype = batch.clean.dtype

        # A denoiser takes only what it was built for.
        optional = {}
        is_conditioned = getattr(config, "self_conditioning", False)
        if is_conditioned and batch.own_estimate is not None:
            optional["self_condition"] = batch.own_estimate.to(dtype)
        if config.partial_noising:
            optional["given"] = ~batch.editable

        output = self.denoiser(
            noisy.to(dtype), timestep, batch.attention_mask, batch.class_labels, **optional
        )
        # Rounding would make some word of NaN, and nobody would notice.
        if not torch.isfinite(output.sample).all():
            raise ValueError(
                "`denoiser` predicted NaN or infinite values: check its weights and dtype."
            )
        return output

    def predict(self, batch: TextBatch, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, E) prediction at noisy embeddings, in their dtype."""
        return self.output(batch, noisy, timestep).sample.to(noisy.dtype)

    def read_words(self, batch: TextBatch, embeddings: Tensor):
        """Round clean embeddings (B, L, E) to the tokens of the batch; known words stay.

        Raises:
            ValueError: if a denoiser that rounds by itself returns an id that cannot be written.
        """
        clean = embeddings.to(batch.clean.dtype)
        # Models of others may round by themselves.
        if "excluded_ids" in inspect.signature(self.denoiser.round).parameters:
            words = self.denoiser.round(clean, excluded_ids=self.excluded_ids)
        else:
            words = self.denoiser.round(clean)
            self._check_words(words[batch.editable])
        batch.tokens = torch.where(batch.editable, words, batch.tokens)

    def nearest_words(self, batch: TextBatch, clean: Tensor) -> Tensor:
        """(B, L, E) the nearest embeddings of words to clean estimates."""
        return self.denoiser.nearest_words(clean.to(batch.clean.dtype)).to(clean.dtype)

    @cached_property
    def excluded_ids(self) -> list[int]:
        """Ids that are never written: special ones, and those that no token has."""
        unused_ids = range(len(self.tokenizer), self.denoiser.config.vocab_size)
        return [*never_written(self.tokenizer), *unused_ids]

    def _check_words(self, words: Tensor):
        excluded = torch.tensor(self.excluded_ids, dtype=words.dtype, device=words.device)
        refused = words[torch.isin(words, excluded)]
        if len(refused):
            raise ValueError(
                f"`denoiser.round` must return ids of words, got {int(refused[0])}, which cannot be written."
            )

    def _check_noise(self):
        evidence = getattr(self.denoiser, "evidence", None)
        if evidence is None or not evidence.any():
            return  # a model that was never told its noise
        # The least noise of a long clock is beyond the largest number of float16.
        if not evidence.isfinite().all():
            raise ValueError(
                f"`denoiser` must have a dtype that holds its `evidence`, which overflows in {evidence.dtype}: use "
                "bfloat16 or float32."
            )

        # The first of two terms of the likelihood that the model was told, for each timestep
        alpha = self.scheduler.scheduler.alphas_cumprod.double().cpu()
        signal = alpha.sqrt() / (1 - alpha)
        if not torch.allclose(evidence[0].double().cpu(), signal, rtol=NOISE_TOLERANCE):
            raise ValueError(
                "`scheduler` must have the noise that the denoiser was trained with: make it by `from_config` of the "
                f"saved scheduler, got alphas_cumprod from {float(alpha[0]):.4g} to {float(alpha[-1]):.4g}."
            )


def embedding_scheduler(scheduler: Any, denoiser: Any) -> EmbeddingScheduler:
    """A scheduler of continuous noise for this denoiser.

    Raises:
        ValueError: if the two do not fit each other.
    """
    config = denoiser.config
    prediction_type = getattr(config, "prediction_type", "sample")
    return EmbeddingScheduler(scheduler, prediction_type, config.num_train_timesteps)


def check_embedding_components(
    tokenizer: Any, denoiser: Any, scheduler: Any, lengths: Any = None, label_names: Any = None
):
    """Raise a `ValueError` unless the components of a pipeline over word embeddings fit each other."""
    for name in ("embed", "round", "nearest_words"):
        if not hasattr(denoiser, name):
            raise ValueError(
                "`denoiser` must be of word embeddings, such as EmbeddingTransformerModel; "
                f"{type(denoiser).__name__} has no `{name}`."
            )
    check_text_components(tokenizer, denoiser, denoiser.config.max_length, lengths, label_names)
    embedding_scheduler(scheduler, denoiser)


def accept_latents(batch: TextBatch, changed: dict[str, Tensor]):
    """Take the latents that a callback returned.

    Raises:
        ValueError: if it changed the tokens, which are read off them.
    """
    if "tokens" in changed and not torch.equal(changed["tokens"], batch.tokens):
        raise ValueError('`callback_on_step_end` may change "latents"; "tokens" are read off them.')
    batch.latents = changed.get("latents", batch.latents)
