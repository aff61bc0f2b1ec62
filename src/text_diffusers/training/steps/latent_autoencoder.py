"""A training step of the autoencoder with continuous latents: what the decoder is not told, and the loss.

Shapes: B batch, L tokens of the encoder, T tokens of the decoder, K latents, E width of a latent.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.randomness import rand, randn
from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.losses.latent import gaussian_kl, with_free_bits


@dataclass
class LatentDropout:
    """What is kept from the decoder in training, each by chance; nothing is dropped outside of it.

    Attributes:
        memory_dropout: share of the latents that the decoder is not told, each by itself, so that no latent is the
            only one to tell something; 1 leaves none.
        text_dropout: share of texts that are written without any latent. They make the decoder a language model too,
            by which is known what the latents tell.
        word_dropout: share of the words that the decoder does not see while it writes the next ones, so that it has to
            look at the latents.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from text_diffusers.training.steps.latent_autoencoder import LatentDropout
        >>> sizes = SimpleNamespace(num_latents=2, latent_size=3)
        >>> drawn = LatentDropout(word_dropout=0.5).draw(sizes, 1, 8, [torch.Generator().manual_seed(0)])
        >>> {name: tuple(values.shape) for name, values in drawn.items()}
        {'noise': (1, 2, 3), 'dropped_latents': (1, 2), 'hidden_words': (1, 8)}
    """

    memory_dropout: float = 0.0
    text_dropout: float = 0.0
    word_dropout: float = 0.0

    def draw(
        self, model_config: Any, batch_size: int, length: int, generators: list[torch.Generator]
    ) -> Batch:
        """Arguments of the autoencoder's `forward` for B rows of T tokens, one generator a row."""
        num_latents = model_config.num_latents
        device = generators[0].device
        noise = randn(
            (batch_size, num_latents, model_config.latent_size), generators, device, torch.float32
        )

        # One draw a row: its coin, a number a latent, and a number a word. Longer rows draw the same first ones.
        numbers = rand((batch_size, 1 + num_latents + length), generators, device)
        coins, latent_numbers, word_numbers = numbers.split([1, num_latents, length], dim=1)
        without_any = coins < self.text_dropout  # (B, 1)
        return {
            "noise": noise,
            "dropped_latents": (latent_numbers < self.memory_dropout) | without_any,
            "hidden_words": word_numbers < self.word_dropout,
        }


@dataclass(frozen=True)
class LatentLossWeights:
    """What the parts of the loss of an autoencoder weigh beside the nats of its texts.

    Attributes:
        kl: of the divergence from the prior. With weight 1, no free bits, words or dropout, the loss is a bound of
            -log p of the counted tokens.
        free_bits: nats that each entry of the latents of a text may tell for nothing, see `with_free_bits`.
        words: of the words that the latents tell by themselves, see `PrefixDecoder.word_nats`.
    """

    kl: float = 1.0
    free_bits: float = 0.0
    words: float = 0.0


BOUND = LatentLossWeights()


def latent_autoencoder_loss(
    model: Any,
    batch: Batch,
    dropout: LatentDropout,
    generators: list[torch.Generator],
    weights: LatentLossWeights = BOUND,
    words_only: bool = False,
) -> Tensor:
    """Reconstruction and what is weighed beside it, in nats, summed over a batch.

    Args:
        model: the autoencoder, which may be prepared by Accelerate.
        batch: rows of `with_encoder_columns`.
        generators: one a row.
        weights: of the other parts.
        words_only: whether latents learn to tell words, with weight 1, and the decoder does not run: a small part of
            the cost of a step.
    """
    autoencoder = getattr(model, "module", model)  # Accelerate may have wrapped the model
    tokens = batch["input_ids"]
    counted = unknown_tokens(batch)  # (B, T)

    batch_size, length = tokens.shape
    drawn = dropout.draw(autoencoder.config, batch_size, length, generators)
    output = model(
        input_ids=batch["encoder_ids"],
        attention_mask=batch["encoder_mask"],
        decoder_ids=tokens,
        decoder_mask=batch["attention_mask"],
        positions=counted,
        reads_text=not words_only,
        tells_words=words_only or weights.words > 0,
        **{name: values.to(tokens.device) for name, values in drawn.items()},
    )

    loss = tokens.new_zeros((), dtype=torch.float32)
    if words_only:
        # Several processes wait for the gradient of all that learns.
        loss = loss + 0.0 * sum(w.sum() for w in autoencoder.parameters() if w.requires_grad)
    else:
        loss = loss + F.cross_entropy(output.logits.float(), tokens[counted], reduction="sum")
    if output.word_nats is not None:
        weight = 1.0 if words_only else weights.words
        loss = loss + weight * output.word_nats[counted].sum()
    if output.logvar is not None:
        kl = gaussian_kl(output.latents.float(), output.logvar.float())
        loss = loss + weights.kl * with_free_bits(kl, weights.free_bits).sum()
    return loss
