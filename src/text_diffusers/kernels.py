"""From the name of a corruption kernel and the statistics of a text to a scheduler.

Shapes: V vocabulary size, D width of the vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.token_ids import noise_vocabulary, num_ids
from text_diffusers.common.validation import require_key
from text_diffusers.models.language_model import is_language_model
from text_diffusers.schedulers.hierarchical.scheduling_d3pm_hierarchical import (
    D3PMHierarchicalScheduler,
)
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

# Value of `schedule` under which the text loses its information at an even pace.
MUTUAL_INFORMATION = "mutual_information"

# T of the kernels that move in steps, where none is given.
TRANSITION_STEPS = 1000

# Clusters of tokens, where no number is given.
NUM_CLUSTERS = 64


@dataclass
class KernelConfig:
    """Settings of the corruption kernels, and the statistics of a text that they are made from.

    Attributes:
        mask_token_id: the id of `[MASK]`.
        num_tokens: ids below are those among which noise draws, see `noise_vocabulary`.
        frequencies: returns counts (V,) of the tokens.
        vectors: returns embeddings (V, D), for neighbours, codes and clusters.
        schedule: as in `D3PMAbsorbingScheduler`, or "mutual_information", for which `frequencies` are counted.
        num_train_timesteps: T; `None` is continuous time, or 1,000 steps for kernels that move in steps.
        reverse_rule: of all kernels but absorbing; "plug_in" trains well.
        min_timestep: as in `D3PMAbsorbingScheduler`.
        mask_fraction: of "hybrid", the share of the masks in its noise.
        num_neighbors, walk_rate: of "neighbors", as in `D3PMNeighborScheduler`.
        bit_codes: of "bit_flip", a key of `BIT_CODES`.
        bandwidth: of "band", as in `D3PMMatrixScheduler`.
        num_clusters, cluster_power: of "hierarchical", as in `D3PMHierarchicalScheduler`; by default there are 64
            clusters, of fewer tokens as many as there are tokens.
        num_ids: ids of the tokenizer, behind which states stand that are no tokens; by default they stand behind the
            last of the tokens and the mask.
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
    num_clusters: int | None = None
    cluster_power: float = 2.0
    num_ids: int | None = None


def kernels_of(pipe: Any, **options: Any) -> KernelConfig:
    """Settings of kernels over the tokens of a pipeline, with `options` of `KernelConfig`.

    Where the mask is one of the tokens among which noise draws, or there is none, it stands behind them: a random
    token then differs from a lost one.
    """
    tokenizer = pipe.tokenizer
    num_tokens = noise_vocabulary(tokenizer)
    mask_token_id = tokenizer.mask_token_id
    if mask_token_id is None or mask_token_id < num_tokens:
        mask_token_id = num_tokens

    # No text is counted here: all tokens are equally frequent.
    return KernelConfig(
        mask_token_id=mask_token_id,
        num_tokens=num_tokens,
        frequencies=lambda: torch.ones(num_tokens),
        vectors=lambda: token_vectors(pipe),
        num_ids=max(num_ids(tokenizer), mask_token_id + 1),
        **options,
    )


def token_vectors(pipe: Any) -> Tensor:
    """(V, D) vectors of the tokens of a pipeline, in float32 on the CPU."""
    # A pipeline of codes has the embeddings of its tokens in the autoencoder.
    model = getattr(pipe, "autoencoder", None) or pipe.denoiser
    table = model.get_input_embeddings() if is_language_model(model) else model.token_embedding
    return table.weight.detach().float().cpu()


def make_scheduler(kernel: str, config: KernelConfig) -> Any:
    """The scheduler of a key of `KERNELS`.

    Raises:
        ValueError: if there is no such kernel, or a value is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.kernels import KernelConfig, make_scheduler
        >>> config = KernelConfig(
        ...     mask_token_id=10,
        ...     num_tokens=10,
        ...     frequencies=lambda: torch.arange(1, 11),
        ...     vectors=lambda: torch.randn(10, 4),
        ... )
        >>> scheduler = make_scheduler("hybrid", config)
        >>> scheduler.add_noise(torch.tensor([[1, 2, 3]]), 0.5).shape
        torch.Size([1, 3])
    """
    require_key("kernel", kernel, KERNELS)
    if config.schedule != MUTUAL_INFORMATION:
        return KERNELS[kernel](config)
    if kernel in SCHEDULED_BY_BETAS:
        raise ValueError(
            f"`schedule` must be left out for the {kernel} kernel, whose betas are its schedule."
        )

    # How much is lost at which alpha depends on the kernel, so one is made to measure it.
    plain = KERNELS[kernel](replace(config, schedule="linear"))
    frequencies = config.frequencies()[: config.num_tokens]
    schedule = mutual_information_schedule(plain, frequencies)

    # The same kernel with the schedule that was measured on it
    return type(plain).from_config(plain.config, schedule=schedule)


# The kernels


def absorbing(config: KernelConfig):
    # For masks both reverse rules are the same, so there is none to choose.
    return D3PMAbsorbingScheduler(
        config.mask_token_id,
        schedule=config.schedule,
        num_train_timesteps=config.num_train_timesteps,
        min_timestep=config.min_timestep,
    )


def uniform(config: KernelConfig):
    return D3PMUniformScheduler(
        config.num_tokens,
        schedule=config.schedule,
        num_train_timesteps=config.num_train_timesteps,
        reverse_rule=config.reverse_rule,
        min_timestep=config.min_timestep,
    )


def hybrid(config: KernelConfig):
    return D3PMHybridScheduler(
        config.mask_token_id,
        config.num_tokens,
        mask_fraction=config.mask_fraction,
        schedule=config.schedule,
        **in_steps(config),
    )


def neighbors(config: KernelConfig):
    # The text itself decides which tokens are neighbours, by the distance of their vectors.
    return D3PMNeighborScheduler.from_embeddings(
        config.vectors()[: config.num_tokens],
        config.num_neighbors,
        walk_rate=config.walk_rate,
        schedule=config.schedule,
        **in_steps(config),
    )


def bit_flip(config: KernelConfig):
    # Codes fill a power of two.
    size = 2 ** (config.num_tokens - 1).bit_length()
    return D3PMBitFlipScheduler(
        size,
        num_tokens=config.num_tokens,
        codes=BIT_CODES[config.bit_codes](config, size),
        schedule=config.schedule,
        **in_steps(config),
    )


def hierarchical(config: KernelConfig):
    # As under absorbing noise both reverse rules are the same.
    vectors = config.vectors()[: config.num_tokens]
    num_clusters = config.num_clusters
    if num_clusters is None:
        # A mask among the tokens is in no cluster.
        num_words = len(vectors) - (config.mask_token_id < len(vectors))
        num_clusters = min(NUM_CLUSTERS, num_words)
    return D3PMHierarchicalScheduler.from_embeddings(
        vectors,
        num_clusters,
        config.mask_token_id,
        num_ids=config.num_ids,
        cluster_power=config.cluster_power,
        schedule=config.schedule,
        num_train_timesteps=config.num_train_timesteps,
        min_timestep=config.min_timestep,
    )


def gaussian(config: KernelConfig):
    # Matrix kernels order the tokens by id, and have betas in place of a `schedule`.
    return D3PMMatrixScheduler(config.num_tokens, kernel="gaussian", **in_steps(config))


def band(config: KernelConfig):
    return D3PMMatrixScheduler(
        config.num_tokens,
        kernel="band",
        bandwidth=config.bandwidth,
        **in_steps(config),
    )


def in_steps(config: KernelConfig) -> dict[str, Any]:
    """Arguments of a kernel that moves in steps."""
    return {
        "num_train_timesteps": config.num_train_timesteps or TRANSITION_STEPS,
        "reverse_rule": config.reverse_rule,
        "min_timestep": config.min_timestep,
    }


# Codes of the tokens, (size,), for `bit_flip`


def codes_by_id(config: KernelConfig, size: int) -> None:
    # The id is the code, as the scheduler has it by default.
    return None


def codes_by_frequency(config: KernelConfig, size: int) -> Tensor:
    counts = config.frequencies()[: config.num_tokens].double()

    # Codes of no token are rarer than all tokens.
    return frequency_codes(F.pad(counts, (0, size - len(counts)), value=-1))


def codes_by_embedding(config: KernelConfig, size: int) -> Tensor:
    """Unused codes are put far from all words: they stand at one end of the direction that is halved first."""
    # One more dimension, in which only unused codes differ from zero
    vectors = F.pad(config.vectors()[: config.num_tokens].double(), (0, 1))
    unused = torch.zeros(size - len(vectors), vectors.shape[1], dtype=vectors.dtype)
    unused[:, -1] = 100 * vectors.abs().max()
    return embedding_codes(torch.cat([vectors, unused]))


# Tables of the names on the command line
BIT_CODES = {"id": codes_by_id, "frequency": codes_by_frequency, "embedding": codes_by_embedding}
SCHEDULED_BY_BETAS = ("gaussian", "band")
KERNELS = {
    "absorbing": absorbing,
    "uniform": uniform,
    "hierarchical": hierarchical,
    "hybrid": hybrid,
    "neighbors": neighbors,
    "bit_flip": bit_flip,
    "gaussian": gaussian,
    "band": band,
}
