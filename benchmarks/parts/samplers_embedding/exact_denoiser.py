"""A denoiser over word embeddings that makes no mistake: words are independent, with known frequencies.

Shapes: B batch, L sequence length, E embedding width, V vocabulary size, T training timesteps.
"""

from typing import Any

import torch
from torch import Tensor

from text_diffusers import DiffusionLMPipeline, EmbeddingDDIMScheduler
from text_diffusers.models.transformer_embedding import (
    EmbeddingTransformerModel,
    EmbeddingTransformerOutput,
)

FAR = 1e3  # added to the coordinates of embeddings that no word is to be near


class ExactDenoiser(EmbeddingTransformerModel):
    """The mean of the clean embedding given the noisy one, a softmax over words by Bayes' rule.

    Its transformer is idle: with this denoiser, what a sampler gets wrong is the sampler's own mistake.

    Args:
        table: (V, E) embeddings.
        frequencies: (V,) of the words, up to a factor.
        alphas_cumprod: (T,) of the scheduler.
        max_length: tokens of the longest text.
    """

    def __init__(
        self,
        table: Tensor,
        frequencies: Tensor,
        alphas_cumprod: Tensor,
        max_length: int,
    ):
        vocab_size, width = table.shape

        # The smallest transformer: it is never called.
        super().__init__(
            vocab_size=vocab_size,
            embedding_dim=width,
            hidden_size=2,
            num_layers=1,
            num_attention_heads=1,
            max_length=max_length,
            num_train_timesteps=len(alphas_cumprod),
            self_conditioning=False,
            normalize_embeddings=False,
            train_embeddings=False,
            rounding="nearest",
        )
        self.token_embedding.weight.copy_(table)

        self.log_prior = (frequencies / frequencies.sum()).log().to(table)
        # Double precision: 1 - alpha of the least noise has few digits in single.
        self.alphas = alphas_cumprod.double()

    def forward(self, sample: Tensor, timestep, *_, **__) -> EmbeddingTransformerOutput:
        """The mean of the clean embeddings given `sample` (B, L, E), and the log-probabilities of words."""
        alpha = float(self.alphas[int(timestep)])
        table = self.embedding_table()

        # log N(x_t; sqrt(alpha) e, (1 - alpha) I) of each word's embedding e, without what all words share
        square_norms = table.square().sum(dim=1)  # (V,)
        evidence = alpha**0.5 * (sample @ table.T) - alpha / 2 * square_norms  # (B, L, V)

        # Bayes' rule: the softmax divides by the sum over words.
        logits = self.log_prior + evidence / (1 - alpha)
        return EmbeddingTransformerOutput(sample=logits.softmax(dim=-1) @ table, logits=logits)


def exact_pipeline(pipe: Any, num_words: int, seed: int) -> tuple[Any, Tensor]:
    """A pipeline without mistakes over random words of a model, and their frequencies (V,), which are Zipf's."""
    model = pipe.denoiser

    # By Zipf's law the frequency of a word is inversely proportional to its rank; ranks are random.
    num_plain_tokens = model.config.vocab_size - len(pipe.tokenizer.all_special_ids)
    generator = torch.Generator().manual_seed(seed)
    words = torch.randperm(num_plain_tokens, generator=generator)[:num_words]
    frequencies = 1 / torch.arange(1, len(words) + 1, dtype=torch.float64)

    # Words that are never drawn stand far from all others, so that the tokenizer's ids can stay.
    embeddings = model.embedding_table().detach()
    table = (embeddings + FAR).index_copy(0, words, embeddings[words])
    prior = torch.zeros(len(table), dtype=torch.float64)  # (V,)
    prior[words] = frequencies / frequencies.sum()

    scheduler = EmbeddingDDIMScheduler.from_config(pipe.scheduler.config)
    denoiser = ExactDenoiser(table, prior, scheduler.alphas_cumprod, model.config.max_length)
    return DiffusionLMPipeline(pipe.tokenizer, denoiser, scheduler), prior
