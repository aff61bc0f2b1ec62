"""A training step of the autoencoder of two-level diffusion: the mistakes it is shown, and its loss.

Shapes: B batch, L tokens of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import rand
from text_diffusers.data.code_rows import full_rows
from text_diffusers.data.rows import Batch, unknown_tokens
from text_diffusers.evaluation.reconstruction import token_nats


@dataclass
class CodeNoise:
    """Mistakes that make codes robust against those of the diffusion models that will write them.

    Attributes:
        input_masking: share of tokens that the encoder does not see.
        fine_dropout: share of rows that are decoded from coarse codes alone.
        code_corruption: share of codes, of both levels, in whose place the decoder is given random ones.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from text_diffusers.training.steps.autoencoder import CodeNoise
        >>> sizes = SimpleNamespace(patch_length=2, num_fine_codes=9, coarse_ratio=None)
        >>> drawn = CodeNoise().draw(sizes, torch.Size([1, 8]), [torch.Generator().manual_seed(0)])
        >>> {name: tuple(values.shape) for name, values in drawn.items()}
        {'hidden': (1, 8), 'wrong_fine': (1, 4)}
    """

    input_masking: float = 0.1
    fine_dropout: float = 0.25
    code_corruption: float = 0.05

    def draw(
        self, model_config: Any, shape: torch.Size, generators: list[torch.Generator]
    ) -> Batch:
        """Arguments of the autoencoder's `forward` for rows of `shape`, (B, L), one generator a row."""
        batch_size, length = shape
        num_fine = length // model_config.patch_length
        levels = {
            "fine": (num_fine, model_config.num_fine_codes)
        }  # codes of a row, size of the codebook
        if model_config.coarse_ratio is not None:
            levels["coarse"] = (
                num_fine // model_config.coarse_ratio,
                model_config.num_coarse_codes,
            )

        # One draw a row: its coin, a number a token, and two a code, for whether it is wrong and which it is then.
        sizes = [1, length]
        for count, _ in levels.values():
            sizes += [count, count]
        numbers = rand((batch_size, sum(sizes)), generators, generators[0].device)
        coins, token_numbers, *code_numbers = numbers.split(sizes, dim=1)

        # Of coarse codes alone a row can be decoded only if there are such.
        drawn = {"hidden": token_numbers < self.input_masking}
        if "coarse" in levels:
            drawn["without_fine"] = coins[:, 0] < self.fine_dropout
        for place, (level, (_, codebook_size)) in enumerate(levels.items()):
            chances = code_numbers[2 * place]
            # Any code of the codebook, or -1 for the right one
            wrong = (code_numbers[2 * place + 1] * codebook_size).long()
            drawn[f"wrong_{level}"] = wrong.masked_fill(chances >= self.code_corruption, -1)
        return drawn


def autoencoder_loss(
    model: Any,
    batch: Batch,
    noise: CodeNoise,
    generators: list[torch.Generator],
    end_token_id: int,
    topic_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy of the counted tokens in nats and, as often, the losses of quantisers and topics, over a batch.

    Args:
        model: the autoencoder, which may be prepared by Accelerate.
        generators: one a row.
        end_token_id: fills rows up.
        topic_weight: of the loss by which each coarse code tells the tokens of its window.
    """
    tokens = full_rows(batch, end_token_id)  # (B, L)
    counted = unknown_tokens(batch)
    config = getattr(model, "module", model).config  # Accelerate may have wrapped the model

    drawn = noise.draw(config, tokens.shape, generators)

    output = model(tokens, **{name: values.to(tokens.device) for name, values in drawn.items()})
    # Losses of the whole batch, as nats per token: they count as often as there are tokens.
    per_token = output.commitment_loss + topic_weight * output.topic_loss
    return (token_nats(output.logits, tokens) * counted).sum() + per_token * counted.sum()
