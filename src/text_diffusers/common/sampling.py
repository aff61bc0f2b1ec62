"""Drawing tokens from logits: shaped probabilities, inverse-CDF sampling, Gumbel-softmax.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from text_diffusers.common.randomness import Generators, rand, rand_like
from text_diffusers.common.validation import is_number, require

# Tokens whose masses are added up first, when a vocabulary is searched in two levels.
MASS_BLOCK = 256

# Logits shaped at a time: on a CPU their copy stays in the cache, elsewhere few large kernels are faster.
CPU_BLOCK = 2**18
DEVICE_BLOCK = 2**26

# Uniform numbers are cut here, so that no rounding takes the search past the last token.
LARGEST_UNIFORM = 1 - 1e-12

# The largest vocabulary; float32 counts exactly up to here.
MOST_IDS = 2**24


def token_scores(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    mask_token_id: int | None = None,
) -> Tensor:
    """Logarithms (N, V) of `token_weights`, the largest being 0; -inf is a token that gets no mass.

    Example:
        >>> import torch
        >>> from text_diffusers.common.sampling import token_scores
        >>> token_scores(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0.5, top_k=2)
        tensor([[-inf, 0., -2.]])
    """
    # In float32 at least, where the difference to the largest logit is exact enough.
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if mask_token_id is not None:
        scores[:, mask_token_id] = -math.inf
    peak = scores.amax(dim=-1, keepdim=True)
    if not torch.isfinite(peak).all():
        raise ValueError(
            "`model_output` has NaN or infinite logits: check the weights and the dtype of the denoiser."
        )

    # All mass on the first of the largest; what is no number of this precision divides as 0 does.
    if temperature < torch.finfo(scores.dtype).tiny:
        first = scores.argmax(dim=-1, keepdim=True)
        return scores.fill_(-math.inf).scatter_(1, first, 0.0)

    # `scores` is a copy of our own, so it is changed in place: no second (N, V) tensor.
    scores.sub_(peak).div_(temperature)
    if top_k is not None and top_k < scores.shape[-1]:
        smallest_kept = scores.topk(top_k, dim=-1).values[:, -1:]
        scores.masked_fill_(scores < smallest_kept, -math.inf)

    # A token is dropped if those before it have the mass already.
    if top_p is not None and top_p < 1:
        ordered, order = scores.exp().sort(dim=-1, descending=True)
        mass_before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
        dropped = mass_before >= top_p * ordered.sum(dim=-1, keepdim=True, dtype=torch.float64)
        scores.masked_fill_(torch.zeros_like(dropped).scatter_(1, order, dropped), -math.inf)
    return scores


def token_weights(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    mask_token_id: int | None = None,
) -> Tensor:
    """Unnormalised probabilities (N, V) of logits (N, V), the largest being 1; `logits` are left as they are.

    Args:
        temperature: divides the logits; 0 keeps only the largest.
        top_k: keeps the k largest.
        top_p: keeps the smallest set whose mass reaches `top_p`, with the token that crosses it.
        mask_token_id: gets no mass.

    Raises:
        ValueError: if a row of logits has no finite largest entry.

    Example:
        >>> import torch
        >>> from text_diffusers.common.sampling import token_weights
        >>> token_weights(torch.tensor([[0.0, 2.0, 1.0]]), top_k=2).gt(0)
        tensor([[False,  True,  True]])
    """
    return token_scores(logits, temperature, top_k, top_p, mask_token_id).exp_()


def sample_tokens(weights: Tensor, uniform: Tensor) -> Tensor:
    """(N,) token ids by inverse CDF from unnormalised probabilities (N, V) and uniform numbers (N,).

    Two levels, masses of blocks and then one block in float64: one read of the weights, and no Gumbel noise, whose
    float32 tail ends at 16.6 and starves large vocabularies (https://arxiv.org/abs/2409.02908).

    Example:
        >>> import torch
        >>> from text_diffusers.common.sampling import sample_tokens
        >>> sample_tokens(torch.tensor([[1.0, 2.0, 1.0]]).expand(3, -1), torch.tensor([0.1, 0.5, 0.9]))
        tensor([0, 1, 2])
    """
    num_rows, vocab_size = weights.shape
    # (N, V / block, block), filled up with tokens without mass
    blocks = torch.nn.functional.pad(weights, (0, -vocab_size % MASS_BLOCK)).unflatten(
        -1, (-1, MASS_BLOCK)
    )

    # The first block at whose end more mass has passed than the target.
    mass = blocks.sum(dim=-1).double().cumsum(dim=-1)  # (N, V / block)
    target = uniform.double().clamp(max=LARGEST_UNIFORM).unsqueeze(-1) * mass[:, -1:]
    block = torch.searchsorted(mass, target, right=True)  # (N, 1)

    # The token inside, at the same share of the block's own mass, which float64 adds up again.
    before = torch.where(
        block > 0, mass.gather(1, (block - 1).clamp(min=0)), torch.zeros_like(target)
    )
    inside = (
        blocks[torch.arange(num_rows, device=weights.device), block.squeeze(-1)]
        .double()
        .cumsum(dim=-1)
    )
    share = ((target - before) / (mass.gather(1, block) - before)).clamp(0, LARGEST_UNIFORM)
    token = torch.searchsorted(inside, share * inside[:, -1:], right=True)
    return (block * MASS_BLOCK + token).squeeze(-1)


def in_row_blocks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`logits` (N, V) and `others` (N,) in blocks of as many rows as are best shaped together; at least one block."""
    size = CPU_BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK
    num_rows = max(1, size // logits.shape[-1])
    columns = [values.split(num_rows) for values in (logits, *others)]
    return zip(*columns, strict=True)


def draw_at(
    positions: Tensor,
    sample: Tensor,
    weights_of: Callable[..., Tensor],
    rows: tuple[Tensor, ...],
    generator: Generators,
    in_blocks: bool = True,
) -> Tensor:
    """(B, L) `sample` with new tokens at `positions`.

    Args:
        positions: (B, L) bool, N of them.
        sample: (B, L) tokens, not changed.
        weights_of: unnormalised probabilities (n, V) from n rows of each tensor in `rows`.
        rows: logits (N, V), and whatever else belongs to the positions, (N,).
        in_blocks: whether to take as many rows at once as are best shaped together, or all.
    """
    # One number for every token, so that a draw does not depend on which others are drawn.
    uniform = rand_like(sample, generator)[positions]
    blocks = in_row_blocks(*rows, uniform) if in_blocks else [(*rows, uniform)]
    drawn = [sample_tokens(weights_of(*block), numbers) for *block, numbers in blocks]

    prev_sample = sample.clone()
    prev_sample[positions] = torch.cat(drawn)
    return prev_sample


def check_rows(name: str, rows: Tensor, positions: Tensor):
    """Raise a `ValueError` unless `rows` are (N, V), one of the N true `positions` each."""
    count = int(positions.sum())
    one_a_position = rows.ndim == 2 and len(rows) == count
    require(one_a_position, name, f"({count}, V), one row a selected position", tuple(rows.shape))


def gumbel_softmax(
    logits: Tensor,
    temperature: float,
    generator: Generators = None,
    hard: bool = False,
    mask_token_id: int | None = None,
) -> Tensor:
    """Relaxed one-hot samples (N, V) of softmax(logits), differentiable in the logits (N, V).

    The largest entry of a sample is at each token with that token's probability, whatever the temperature
    (https://arxiv.org/abs/1611.01144). Noise and softmax are in float64: uniform numbers of float32 end Gumbel noise
    at 16.6, which starves rare tokens.

    Args:
        temperature: above 0; towards 0 samples become one-hot and their gradients vary more.
        generator: one generator, or one a row.
        hard: the value is one-hot, the gradient that of the relaxed sample ("straight-through").
        mask_token_id: gets no mass.

    Returns:
        (N, V) in the dtype of the logits; rows add up to 1.

    Raises:
        ValueError: if the temperature is not above 0.
    """
    positive = is_number(temperature, 0) and temperature > 0
    require(positive, "temperature", "a number above 0", temperature)

    scores = logits.double()
    if mask_token_id is not None:
        scores = scores.index_fill(-1, torch.tensor(mask_token_id, device=logits.device), -math.inf)

    # Uniform numbers may be 0, whose logarithm is not finite.
    uniform = rand(tuple(logits.shape), generator, logits.device).clamp(
        min=torch.finfo(torch.float64).tiny
    )
    relaxed = ((scores - torch.log(-torch.log(uniform))) / temperature).softmax(dim=-1)
    if not hard:
        return relaxed.to(logits.dtype)

    one_hot = torch.zeros_like(relaxed).scatter_(-1, relaxed.argmax(dim=-1, keepdim=True), 1.0)
    # The second term is zero, and carries the gradient.
    return (one_hot + (relaxed - relaxed.detach())).to(logits.dtype)
