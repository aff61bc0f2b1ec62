"""What every token scheduler draws with: seeded uniform numbers, shaped probabilities, inverse-CDF sampling, checks.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None

MASS_BLOCK = 256
# Logits shaped at a time: on a CPU their copy stays in the cache, elsewhere few large kernels are faster.
CPU_BLOCK = 2**18
DEVICE_BLOCK = 2**26
LARGEST_UNIFORM = 1 - 1e-12
LONGEST_CLOCK = 2**20
MOST_IDS = 2**24
LONGEST_SHOWN = 80
CLOCK_LIMIT = f"an integer of at least 1 and at most {LONGEST_CLOCK}"


def rand(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """(B, L) float64 uniform numbers in [0, 1).

    With a list, one generator a row, row b depends on its own generator only, and its first numbers do not depend on
    L: the same prompt draws the same noise alone or padded in a batch.
    """
    if generator is None or isinstance(generator, torch.Generator):
        source = device if generator is None else generator.device
        return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)
    if len(generator) != shape[0]:
        raise ValueError(f"`generator` must be one generator or one a row: {shape[0]} rows, got {len(generator)}.")
    rows = []
    for row_generator in generator:
        seed = torch.randint(2**62, (1,), generator=row_generator, device=row_generator.device)
        fresh = torch.Generator(row_generator.device).manual_seed(int(seed))
        rows.append(torch.rand(shape[1], generator=fresh, device=fresh.device, dtype=torch.float64))
    return torch.stack(rows).to(device)


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
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if mask_token_id is not None:
        scores[:, mask_token_id] = -math.inf
    peak = scores.amax(dim=-1, keepdim=True)
    if not torch.isfinite(peak).all():
        raise ValueError("`model_output` has NaN or infinite logits: check the weights and the dtype of the denoiser.")
    if temperature == 0:
        return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=-1, keepdim=True), 1.0)
    scores.sub_(peak).div_(temperature)
    if top_k is not None and top_k < scores.shape[-1]:
        scores.masked_fill_(scores < scores.topk(top_k, dim=-1).values[:, -1:], -math.inf)
    weights = scores.exp_()
    if top_p is not None and top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True)
        mass_before = ordered.cumsum(dim=-1, dtype=torch.float64) - ordered
        dropped = mass_before >= top_p * ordered.sum(dim=-1, keepdim=True, dtype=torch.float64)
        weights = weights.masked_fill(torch.zeros_like(dropped).scatter_(1, order, dropped), 0.0)
    return weights


def sample_tokens(weights: Tensor, uniform: Tensor) -> Tensor:
    """(N,) token ids by inverse CDF from unnormalised probabilities (N, V) and uniform numbers (N,).

    Two levels, masses of blocks and then one block in float64: one read of the weights, and no Gumbel noise, whose
    float32 tail ends at 16.6 and starves large vocabularies (https://arxiv.org/abs/2409.02908).
    """
    num_rows, vocab_size = weights.shape
    blocks = torch.nn.functional.pad(weights, (0, -vocab_size % MASS_BLOCK)).unflatten(-1, (-1, MASS_BLOCK))
    mass = blocks.sum(dim=-1).double().cumsum(dim=-1)  # (N, V / block)
    target = uniform.double().clamp(max=LARGEST_UNIFORM).unsqueeze(-1) * mass[:, -1:]
    block = torch.searchsorted(mass, target, right=True)  # (N, 1), the first block whose mass exceeds the target
    before = torch.where(block > 0, mass.gather(1, (block - 1).clamp(min=0)), torch.zeros_like(target))
    inside = blocks[torch.arange(num_rows, device=weights.device), block.squeeze(-1)].double().cumsum(dim=-1)
    share = ((target - before) / (mass.gather(1, block) - before)).clamp(0, LARGEST_UNIFORM)
    return (block * MASS_BLOCK + torch.searchsorted(inside, share * inside[:, -1:], right=True)).squeeze(-1)


def in_row_blocks(logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`logits` (N, V) and `others` (N,) in blocks of as many rows as are best shaped together; at least one block."""
    size = CPU_BLOCK if logits.device.type == "cpu" else DEVICE_BLOCK
    rows = max(1, size // logits.shape[-1])
    return zip(*(values.split(rows) for values in (logits, *others)), strict=True)


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
    uniform = rand(tuple(logits.shape), generator, logits.device).clamp(min=torch.finfo(torch.float64).tiny)
    relaxed = ((scores - torch.log(-torch.log(uniform))) / temperature).softmax(dim=-1)
    if not hard:
        return relaxed.to(logits.dtype)
    one_hot = torch.zeros_like(relaxed).scatter_(-1, relaxed.argmax(dim=-1, keepdim=True), 1.0)
    return (one_hot + (relaxed - relaxed.detach())).to(logits.dtype)


def is_int(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and low <= value <= high
        and abs(value) < math.inf
    )


def is_table(value: Any, axes: int) -> bool:
    """Whether this is a tensor of finite numbers with so many axes."""
    return isinstance(value, Tensor) and value.ndim == axes and bool(torch.isfinite(value).all())


def is_number_of_steps(value: Any) -> bool:
    """Whether a clock may have so many steps: their times are told apart in float32, and their tables are small."""
    return is_int(value, 1) and value <= LONGEST_CLOCK


def is_key(value: Any, table: Collection[str]) -> bool:
    return isinstance(value, str) and value in table


def are_numbers(values: Any) -> bool:
    """Whether these are finite numbers in a row, in a list, a tensor or an array, of which there is at least one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return isinstance(values, (list, tuple)) and len(values) > 0 and all(is_number(v, -math.inf) for v in values)


def require(condition: bool, name: str, limit: str, value: Any):
    if not condition:
        text = repr(value)
        text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
        raise ValueError(f"`{name}` must be {limit}, got {text}.")
