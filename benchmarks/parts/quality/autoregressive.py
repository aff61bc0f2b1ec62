"""The yardstick of diffusion over tokens: an autoregressive GPT-2 on the same rows.

Shapes: B batch, L row length, V vocabulary size, D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from text_diffusers.data.rows import tensor_batches, unknown_tokens


class AutoregressiveModel(nn.Module):
    """GPT-2 that pays for each token of a row, the first one included: every row follows a start token.

    Diffusion over a row of L tokens pays for all L of them, so their nats per token compare.

    Args:
        config: with `bos_token_id`, the start token, and no `eos_token_id`; `n_positions` is L.
        never_written: ids that `write` leaves out, such as padding and the mask.

    Example:
        >>> config = GPT2Config(vocab_size=8, n_positions=4, n_embd=8, n_layer=1, n_head=1, bos_token_id=0,
        ...                     eos_token_id=None)
        >>> AutoregressiveModel(config, never_written=[7]).eval().write(num_rows=2).shape
        torch.Size([2, 4])
    """

    def __init__(self, config: GPT2Config, never_written: list[int] | None = None):
        super().__init__()
        self.gpt2 = GPT2LMHeadModel(config)
        self.config = config.to_dict()
        # `generate` leaves nothing out with None.
        self.never_written = never_written or None

    def num_parameters(self) -> int:
        return self.gpt2.num_parameters()

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) nats of tokens (B, L); padding, where the mask (B, L) is 0, costs nothing and is on the right."""
        # Shifted by one, so that the logits at a place are those of the token there.
        start = torch.full_like(tokens[:, :1], self.config["bos_token_id"])  # (B, 1)
        inputs = torch.cat([start, tokens[:, :-1]], dim=1)  # (B, L)
        logits = self.gpt2(inputs).logits  # (B, L, V)

        # Padding on the right is after all tokens that count, so the model needs no attention mask.
        nats = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
        return nats.view(tokens.shape) * attention_mask

    @torch.no_grad()
    def initialize(self, vectors: Tensor | None = None, like_denoiser: bool = False):
        """Set the embeddings of the first tokens, and all weights by the rules of `TextTransformerModel` if asked for.

        Args:
            vectors: (up to V, D) embeddings of unit variance; scaled to the standard deviation of the others.
            like_denoiser: draw all weights anew: embeddings of unit variance, matrices that preserve the variance, and
                zeros where a branch or the head ends. Else they stay as transformers has drawn them.
        """
        transformer = self.gpt2.transformer
        if like_denoiser:
            # Embeddings of tokens and of positions
            nn.init.normal_(transformer.wte.weight)
            nn.init.normal_(transformer.wpe.weight)

            for block in transformer.h:
                # GPT-2 stores a matrix as (inputs, outputs).
                for layer in (block.attn.c_attn, block.mlp.c_fc):
                    num_inputs = layer.weight.shape[0]
                    nn.init.normal_(layer.weight, std=num_inputs**-0.5)

                # With zeros at the end of each branch, a block begins as the identity.
                for layer in (block.attn.c_proj, block.mlp.c_proj):
                    nn.init.zeros_(layer.weight)

            nn.init.zeros_(self.gpt2.lm_head.weight)

        if vectors is not None:
            scale = 1.0 if like_denoiser else self.gpt2.config.initializer_range
            transformer.wte.weight[: len(vectors)] = scale * vectors

    @torch.no_grad()
    def row_nats(self, rows: Any, batch_size: int = 64) -> tuple[Tensor, Tensor]:
        """Nats and number of counted tokens of each of R tokenized rows, in their order: both (R,), float64."""
        nats = []
        num_tokens = []
        for batch in tensor_batches(rows, len(rows)):
            tokens_of_batches = batch["input_ids"].split(batch_size)
            masks = unknown_tokens(batch).split(batch_size)
            for tokens, mask in zip(tokens_of_batches, masks, strict=True):
                nats.append(self(tokens, mask).double().sum(dim=1))
                num_tokens.append(mask.double().sum(dim=1))
        return torch.cat(nats), torch.cat(num_tokens)

    @torch.no_grad()
    def write(self, num_rows: int, seed: int = 0) -> Tensor:
        """(num_rows, L) tokens drawn one after the other, at temperature 1, from all of the vocabulary."""
        start = torch.full((num_rows, 1), self.config["bos_token_id"])
        length = self.config["n_positions"]

        # `generate` takes no generator: the seed is that of a copy of the global state.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokens = self.gpt2.generate(
                start,
                attention_mask=torch.ones_like(start),
                # From the whole distribution, as the denoisers sample
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                # Full rows: an end of a text is a token like others.
                min_new_tokens=length,
                max_new_tokens=length,
                suppress_tokens=self.never_written,
            )

        # Without the start token
        return tokens[:, 1:]
