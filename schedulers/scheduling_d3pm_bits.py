"""Discrete diffusion by bit manipulation: the bits of a token's code flip independently.

D3PM (https://arxiv.org/abs/2107.03006).

Shapes: B batch, L sequence length, V vocabulary size, N positions, D embedding width.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand
from text_diffusers.common.tensor_config import TensorConfigMixin
from text_diffusers.common.validation import is_int, is_table, require
from text_diffusers.schedulers.noise_schedules import Time
from text_diffusers.schedulers.scheduling_d3pm_transition import D3PMSemigroupScheduler, per_token


class D3PMBitFlipScheduler(TensorConfigMixin, D3PMSemigroupScheduler):
    """Each bit of each token's code is redrawn at a random time: alpha is the probability that a bit is still itself.

    Tokens whose codes differ in few bits turn into each other first, so the code decides what "near" means:
    `frequency_codes` makes it the frequency, `embedding_codes` the direction of an embedding.

    Args:
        vocab_size: a power of two; noise is drawn from all these ids.
        num_tokens: ids below are what text consists of, by default all; the others occur in noise only.
        codes: (V,) a permutation of 0 to V - 1, the code of each id; by default the id itself.
        num_train_timesteps: T.
        reverse_rule, schedule, min_timestep, temperature, top_k, top_p: as in `D3PMUniformScheduler`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMBitFlipScheduler
        >>> scheduler = D3PMBitFlipScheduler(vocab_size=16, num_tokens=10)
        >>> scheduler.set_timesteps(4)
        >>> sample = scheduler.prior((2, 6))
        >>> for timestep in scheduler.timesteps:
        ...     positions = scheduler.select(timestep, sample)
        ...     logits = torch.randn(int(positions.sum()), 10)  # of a denoiser, at these positions
        ...     sample = scheduler.step(logits, timestep, sample, positions=positions).prev_sample
        >>> sample.shape, bool((sample < 10).all())
        (torch.Size([2, 6]), True)
    """

    corruption = "bit_flip"
    _tensor_arguments = ("codes",)

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        num_tokens: int | None = None,
        codes: Tensor | None = None,
        num_train_timesteps: int = 1000,
        schedule: str | list[float] = "linear",
        reverse_rule: str = "marginal",
        min_timestep: float = 1e-3,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ):
        self._set_up()
        require(vocab_size & (vocab_size - 1) == 0, "vocab_size", "a power of two", vocab_size)
        if num_tokens is not None:
            limit = f"None or an integer from 2 to `vocab_size`={vocab_size}"
            in_range = is_int(num_tokens, 2) and num_tokens <= vocab_size
            require(in_range, "num_tokens", limit, num_tokens)
        limit = f"None or a tensor ({vocab_size},) of ids"
        require(codes is None or is_table(codes, 1), "codes", limit, codes)

        ids = torch.arange(vocab_size)
        self._codes = ids if codes is None else codes.long()
        complete = torch.equal(self._codes.sort().values, ids)
        require(complete, "codes", f"a permutation of 0 to {vocab_size - 1}", self._codes)
        self._ids = self._codes.argsort()  # of each code
        self.num_bits = vocab_size.bit_length() - 1

    @property
    def num_tokens(self) -> int:
        return self.config.num_tokens or self.config.vocab_size

    def _corrupt(self, tokens: Tensor, timesteps: Time, generator: Generators) -> Tensor:
        rows, length = tokens.shape
        uniform = rand((rows, length * self.num_bits), generator, tokens.device)
        uniform = uniform.view(rows, length, self.num_bits)

        # A bit that is redrawn flips every other time.
        flip_prob = (1 - self.alpha(per_token(timesteps, tokens))) / 2
        flips = (uniform < flip_prob.view(rows, length, 1)).long()

        # The flipped bits of a token as one number.
        pattern = (flips << torch.arange(self.num_bits, device=tokens.device)).sum(dim=-1)
        codes = self._codes.to(tokens.device)[tokens]  # (B, L)
        return self._ids.to(tokens.device)[codes ^ pattern]

    def _diffuse(self, probs: Tensor, start: Tensor, end: Tensor) -> Tensor:
        flip = (1 - self._survival(start, end, probs)) / 2  # (N, 1)
        x = probs[:, self._ids.to(probs.device)]

        # Bits are independent: one after the other, each code mixes with the code that differs in that bit.
        for bit in range(self.num_bits):
            pairs = x.view(len(x), -1, 2, 2**bit)  # the third axis is the bit
            x = torch.lerp(pairs, pairs.flip(2), flip.view(-1, 1, 1, 1)).view(len(x), -1)
        return x[:, self._codes.to(probs.device)]


def frequency_codes(frequencies: Tensor) -> Tensor:
    """(V,) codes that give tokens of similar frequency, (V,), codes one bit apart: the rank, in Gray code."""
    rank = torch.empty(len(frequencies), dtype=torch.long)
    rank[frequencies.argsort(descending=True, stable=True)] = torch.arange(len(frequencies))
    return rank ^ (rank >> 1)


def embedding_codes(embeddings: Tensor) -> Tensor:
    """(V,) codes that share their leading bits with near embeddings (V, D), V a power of two.

    The tokens are halved again and again along the direction in which they spread most.
    """
    codes = torch.zeros(len(embeddings), dtype=torch.long)
    groups = [torch.arange(len(embeddings))]
    while len(groups[0]) > 1:
        halves = []
        for group in groups:
            vectors = embeddings[group].double()
            centred = vectors - vectors.mean(dim=0)
            direction = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]

            # An eigenvector has no sign of its own, so its largest entry is made positive.
            direction = direction * direction[direction.abs().argmax()].sign()
            low, high = group[(centred @ direction).argsort(stable=True)].chunk(2)
            codes[low] = 2 * codes[low]
            codes[high] = 2 * codes[high] + 1
            halves += [low, high]
        groups = halves
    return codes
