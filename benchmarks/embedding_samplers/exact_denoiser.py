"""A denoiser over word embeddings that makes no mistake: words are independent, with known frequencies.

Shapes: B batch, L sequence length, E embedding width, V vocabulary size.
"""

from torch import Tensor

from text_diffusers.models.transformer_embedding import EmbeddingTransformerModel, EmbeddingTransformerOutput


class ExactDenoiser(EmbeddingTransformerModel):
    """The mean of the clean embedding given the noisy one, a softmax over words by Bayes' rule.

    Its transformer is idle: with this denoiser, what a sampler gets wrong is the sampler's own mistake.
    """

    def __init__(self, table: Tensor, frequencies: Tensor, alphas_cumprod: Tensor, max_length: int):
        """`table` (V, E), `frequencies` (V,) up to a factor, `alphas_cumprod` (T,) of the scheduler."""
        vocab_size, width = table.shape
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
        self.alphas = alphas_cumprod.double()

    def forward(self, sample: Tensor, timestep, *_, **__) -> EmbeddingTransformerOutput:
        alpha = float(self.alphas[int(timestep)])
        table = self.embedding_table()
        evidence = alpha**0.5 * (sample @ table.T) - alpha / 2 * table.square().sum(dim=1)  # (B, L, V)
        logits = self.log_prior + evidence / (1 - alpha)
        return EmbeddingTransformerOutput(sample=logits.softmax(dim=-1) @ table, logits=logits)
