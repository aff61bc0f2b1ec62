"""From the name of a corruption kernel and the statistics of a text to a scheduler.

Shapes: V vocabulary size, D width of the vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.schedulers.noise_schedules import mutual_information_schedule
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.schedulers.scheduling_d3pm_bits import (
    D3PMBitFlipScheduler,
    embedding_codes,
    frequency_codes,
)
from text_diffusers.schedulers.scheduling_d3pm_hybrid import D3PMHybridScheduler
from text_diffusers.schedulers.scheduling_d3pm_matrix import D3PMMatrixScheduler
from text_diffusers.schedulers.scheduling_d3pm_neighbors import D3PMNeighborScheduler

MUTUAL_INFORMATION = "mutual_information"
TRANSITION_STEPS = 1000


@dataclass
class KernelConfig:
    """What the kernels need to know.

    Attributes:
        mask_token_id: the id of `[MASK]`, not below `num_tokens`.
        num_tokens: ids below are what text consists of.
        schedule: as in `D3PMAbsorbingScheduler`, or "mutual_information", for which `frequencies` are counted.
        num_train_timesteps: T; `None` is continuous time, or 1,000 steps for kernels that move in steps.
        reverse_rule: of all kernels but absorbing; "plug_in" is what trains well.
        frequencies: returns counts (V,) of the tokens.
        vectors: returns embeddings (V, D), for neighbours and codes.
    """

    mask_token_id: int
    num_tokens: int
    frequencies: Callable[[], Tensor]
    vectors: Callable[[], Tensor]
    schedule: str | list[float] = "linear"
    num_train_timesteps: int | None = None
    reverse_rule: str = "plug_in"
    min_timestep: float = 1e-3
    mask_fraction: float = 0.9
    num_neighbors: int = 8
    walk_rate: float = 2.0
    bit_codes: str = "embedding"
    bandwidth: int = 2


def kernels_of(pipe: Any, **options: Any) -> KernelConfig:
    """What kernels over the tokens of a pipeline need to know, with `options` of `KernelConfig`.

    Where special tokens do not come last, noise is drawn from all tokens, and the mask stands behind them.
    """
    tokenizer = pipe.tokenizer
    special = [id for id in (tokenizer.pad_token_id, tokenizer.mask_token_id) if id is not None]
    last = bool(special) and min(special) >= len(tokenizer) - len(special)
    num_tokens = min(special) if last else len(tokenizer)
    mask = tokenizer.mask_token_id
    return KernelConfig(
        mask_token_id=mask if mask is not None and mask >= num_tokens else num_tokens,
        num_tokens=num_tokens,
        frequencies=lambda: torch.ones(num_tokens),
        vectors=lambda: token_vectors(pipe),
        **options,
    )


def token_vectors(pipe: Any) -> Tensor:
    """(V, D) vectors of the tokens of a pipeline, in float32 on the CPU."""
    model = getattr(pipe, "autoencoder", None) or pipe.denoiser
    table = model.get_input_embeddings() if is_masked_lm(model) else model.token_embedding
    return table.weight.detach().float().cpu()


def make_scheduler(kernel: str, config: KernelConfig) -> Any:
    """The scheduler of a key of `KERNELS`.

    Raises:
        ValueError: if there is no such kernel, or a value is out of its range.
    """
    if kernel not in KERNELS:
        raise ValueError(f"`kernel` must be one of {sorted(KERNELS)}, got {kernel!r}.")
    if config.schedule != MUTUAL_INFORMATION:
        return KERNELS[kernel](config)
    if kernel in SCHEDULED_BY_BETAS:
        raise ValueError(f"`schedule` must be left out for the {kernel} kernel, whose betas are its schedule.")
    plain = KERNELS[kernel](replace(config, schedule="linear"))
    frequencies = config.frequencies()[: config.num_tokens]
    return type(plain).from_config(plain.config, schedule=mutual_information_schedule(plain, frequencies))


def absorbing(config: KernelConfig):
    clock = {"num_train_timesteps": config.num_train_timesteps, "schedule": config.schedule}
    return D3PMAbsorbingScheduler(config.mask_token_id, min_timestep=config.min_timestep, **clock)


def uniform(config: KernelConfig):
    return D3PMUniformScheduler(config.num_tokens, **clock_of(config, steps=None))


def hybrid(config: KernelConfig):
    ids = config.mask_token_id, config.num_tokens
    return D3PMHybridScheduler(*ids, mask_fraction=config.mask_fraction, **clock_of(config))


def neighbors(config: KernelConfig):
    vectors = config.vectors()[: config.num_tokens]
    return D3PMNeighborScheduler.from_embeddings(
        vectors, config.num_neighbors, walk_rate=config.walk_rate, **clock_of(config)
    )


def bit_flip(config: KernelConfig):
    size = 2 ** (config.num_tokens - 1).bit_length()
    codes = BIT_CODES[config.bit_codes](config, size)
    return D3PMBitFlipScheduler(size, num_tokens=config.num_tokens, codes=codes, **clock_of(config))


def gaussian(config: KernelConfig):
    return D3PMMatrixScheduler(config.num_tokens, kernel="gaussian", **steps_of(config))


def band(config: KernelConfig):
    return D3PMMatrixScheduler(config.num_tokens, kernel="band", bandwidth=config.bandwidth, **steps_of(config))


def codes_by_id(config: KernelConfig, size: int) -> None:
    return None


def codes_by_frequency(config: KernelConfig, size: int) -> Tensor:
    counts = config.frequencies()[: config.num_tokens]
    return frequency_codes(F.pad(counts.double(), (0, size - len(counts)), value=-1))


def codes_by_embedding(config: KernelConfig, size: int) -> Tensor:
    """Unused codes are put far from all words: they stand at one end of the direction that is halved first."""
    vectors = config.vectors()[: config.num_tokens].double()
    vectors = torch.cat([vectors, torch.zeros(len(vectors), 1, dtype=vectors.dtype)], dim=1)
    spare = torch.zeros(size - len(vectors), vectors.shape[1], dtype=vectors.dtype)
    spare[:, -1] = 100 * vectors.abs().max()
    return embedding_codes(torch.cat([vectors, spare]))


def steps_of(config: KernelConfig) -> dict[str, Any]:
    steps = config.num_train_timesteps or TRANSITION_STEPS
    return {"num_train_timesteps": steps, "reverse_rule": config.reverse_rule, "min_timestep": config.min_timestep}


def clock_of(config: KernelConfig, steps: int | None = TRANSITION_STEPS) -> dict[str, Any]:
    return steps_of(config) | {
        "num_train_timesteps": config.num_train_timesteps or steps,
        "schedule": config.schedule,
    }


BIT_CODES = {"id": codes_by_id, "frequency": codes_by_frequency, "embedding": codes_by_embedding}
SCHEDULED_BY_BETAS = ("gaussian", "band")
KERNELS = {
    "absorbing": absorbing,
    "uniform": uniform,
    "hybrid": hybrid,
    "neighbors": neighbors,
    "bit_flip": bit_flip,
    "gaussian": gaussian,
    "band": band,
}
