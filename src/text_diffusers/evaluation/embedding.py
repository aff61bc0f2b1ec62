"""How good a model over word embeddings is: its bound, how well it rounds, and whether its words lie apart.

The bound is of the process that DDPM sampling runs, step by step over the whole clock T-1, ..., 0: the words are then
drawn from the softmax of the logits of the last clean estimate. A model with self-conditioning is shown its own first
estimate at each step, in place of that of the step before.

Shapes: B batch, L sequence length, E embedding width, V vocabulary size, T training timesteps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import clean_estimate
from text_diffusers.common.randomness import rand, randn
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import to_tensors, unknown_tokens
from text_diffusers.evaluation.estimates import (
    NOISE_LEVELS,
    BoundEstimate,
    SharedBatches,
    ratio_error,
)
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.evaluation.row_bounds import RowBounds, num_strata_of, sampled_bounds
from text_diffusers.losses.embedding import (
    per_row,
    prior_kl,
    reconstruction,
    reparameterize,
    transition_kl,
)

FIRST_STEP_SHARE = (
    0.1  # of the times that are drawn for the bound: t = 0, where the words are read off
)
ROWS_OF_DISTANCES = 1024  # rows of a table whose distances to all others exist at once

Batch = dict[str, Tensor]


class Denoised(NamedTuple):
    """A batch and the model's estimate of it from its noise.

    Attributes:
        clean, noisy, estimate: (B, L, E) embeddings.
        logits: (B, L, V) of the words.
    """

    clean: Tensor
    noisy: Tensor
    estimate: Tensor
    logits: Tensor


class RoundingAccuracy(NamedTuple):
    """How many words survive the noise of one timestep.

    Attributes:
        timestep: of the clock 0, ..., T - 1.
        noise_level: standard deviation of the noise, sqrt(1 - alphas_cumprod[timestep]).
        input_accuracy: share of words that are the nearest ones to the noisy embeddings, without a model.
        model_accuracy: share of words to which the model's clean estimates are rounded.
    """

    timestep: int
    noise_level: float
    input_accuracy: float
    model_accuracy: float


@torch.no_grad()
def estimate_embedding_bound(
    model: Any,
    scheduler: Any,
    rows: Any,
    num_times: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: Any = None,
) -> BoundEstimate:
    """Bound of the rows in nats per token, by stratified Monte Carlo.

    Padding and the tokens of the column `given` are not counted. A model that was built with `partial_noising` is
    shown given tokens clean, any other as noisy as the rest, which is how a pipeline shows it what is known. In
    `by_noise` the tenths are of the clock; the reconstruction is in the first, the prior in the last. With
    `num_times=1` the standard error is that of other rows from the same source and other noise; with more, a row that
    is drawn again counts as another row.

    Args:
        model: `EmbeddingTransformerModel`.
        scheduler: with `alphas_cumprod` of the model's clock.
        rows: tokenized data set.
        num_times: random times a row; `time_distribution` says which, and they are stratified within each batch.
        batch_size: rows in one call of the model.
        seed: of all draws.
        accelerator: its processes share the batches and all get the same result; each must call this.

    Raises:
        ValueError: if the clocks of model and scheduler differ, or the rows have nothing to count.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers import EmbeddingDDPMScheduler, EmbeddingTransformerModel
        >>> from text_diffusers.evaluation import estimate_embedding_bound
        >>> sizes = {"embedding_dim": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> model = EmbeddingTransformerModel(9, num_train_timesteps=50, **sizes)
        >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 8, "attention_mask": [[1] * 4] * 8})
        >>> estimate = estimate_embedding_bound(model, EmbeddingDDPMScheduler(50), rows, batch_size=4)
        >>> estimate.bound > 0
        True
    """
    alphas = cumulative_alphas(model, scheduler)
    probs = time_distribution(alphas)  # (T,)

    # 1. One term of the sum over time for each row, and the prior
    batches = SharedBatches(rows, num_times, batch_size, seed, device_of(model), accelerator)
    nats = torch.zeros(batches.count, NOISE_LEVELS, dtype=torch.float64)
    tokens = torch.zeros(batches.count, dtype=torch.float64)
    with evaluating(model):
        for step, batch, uniform, generators in batches:
            times = timesteps_at(uniform, probs)  # (B,)
            transitions, prior = bound_terms(model, batch, times, alphas, generators)  # (B,) each
            if step is not None:
                # An integrand counts for as many timesteps as it was unlikely to be drawn.
                levels = times * NOISE_LEVELS // len(probs)
                nats[step].index_add_(0, levels, transitions / probs[times])
                nats[step, -1] += prior.sum()
                tokens[step] = unknown_tokens(batch).sum()

    # 2. Per token, by tenths of the clock
    nats = batches.total(nats)
    tokens = batches.total(tokens)
    require(
        bool(tokens.sum() > 0), "rows", "rows with a token that is neither padding nor given", rows
    )
    by_noise = NOISE_LEVELS * nats.sum(dim=0) / tokens.sum()
    error = ratio_error(nats.sum(dim=1), tokens)
    return BoundEstimate(float(by_noise.mean()), error, by_noise.tolist())


def embedding_row_bounds(
    model: Any,
    scheduler: Any,
    rows: Sequence[dict[str, Any]],
    num_times: int = 32,
    full: bool = False,
    num_noise: int = 1,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
    noise_ids: Sequence[int] | None = None,
    accelerator: Any = None,
) -> RowBounds:
    """The bound of each row, as `monte_carlo_bound`, or if `full` as `full_bound`, gives it for tokens.

    Args:
        model, scheduler: as in `estimate_embedding_bound`, the model in evaluation mode.
        rows: mappings with `input_ids`, `attention_mask` and, as far as they are needed, `given` and `label`.
        num_times: random times a row, of which two fall in each stratum.
        full: every timestep of the clock has its turn instead.
        num_noise: draws of the noise at each step, if `full`.
        batch_size, seed, progress, noise_ids, accelerator: as in `full_bound`.

    Example:
        >>> from text_diffusers import EmbeddingDDPMScheduler, EmbeddingTransformerModel
        >>> from text_diffusers.evaluation.embedding import embedding_row_bounds
        >>> sizes = {"embedding_dim": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> model = EmbeddingTransformerModel(9, num_train_timesteps=50, **sizes).eval()
        >>> rows = [{"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}]
        >>> embedding_row_bounds(model, EmbeddingDDPMScheduler(50), rows, num_times=4).num_samples
        4
    """
    alphas = cumulative_alphas(model, scheduler)
    num_steps = len(alphas)
    probs = time_distribution(alphas)  # (T,)

    # One term of the sum over all timesteps, the prior shared out among them.
    def one_step(batch: Batch, step: Tensor, generators: list[torch.Generator]) -> Tensor:
        transitions, prior = bound_terms(model, batch, step.cpu(), alphas, generators)
        return transitions + prior / num_steps

    # A timestep of the row's stratum, whose term counts for as many as it was unlikely to be drawn.
    def one_time(batch: Batch, stratum: Tensor, generators: list[torch.Generator]) -> Tensor:
        uniform = rand((len(stratum), 1), generators, stratum.device).squeeze(1)  # (B,)
        times = timesteps_at(((stratum + uniform) / num_strata).cpu(), probs)
        transitions, prior = bound_terms(model, batch, times, alphas, generators)
        return (transitions / probs[times] + prior) / num_strata

    if full:
        require(is_int(num_noise, 1), "num_noise", "an integer of at least 1", num_noise)
        integrand = one_step
        strata = num_steps
        num_draws = num_steps * num_noise
    else:
        integrand = one_time
        strata = num_strata = num_strata_of(num_times)
        num_draws = num_times
    rows = list(rows)
    return sampled_bounds(
        rows,
        [strata] * len(rows),
        [num_draws] * len(rows),
        integrand,
        device_of(model),
        batch_size,
        seed,
        progress,
        noise_ids,
        accelerator,
    )


def time_distribution(alphas_cumprod: Tensor) -> Tensor:
    """(T,) float64 probabilities with which the bound's timesteps are drawn; any would do, at other standard errors.

    After the share of t = 0, half of the times are even in a_t, among which words are told apart. The other half are
    even in log(1 - a_t), where it costs most if an estimate that should be exact is not.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation.embedding import time_distribution
        >>> time_distribution(torch.tensor([0.9, 0.5, 0.1])).sum()
        tensor(1., dtype=torch.float64)
    """
    alphas = alphas_cumprod.double()
    if len(alphas) == 1:
        return torch.ones(1, dtype=torch.float64)

    def steps(values: Tensor) -> Tensor:
        return values.diff() / (values[-1] - values[0])  # (T - 1,)

    share = torch.tensor([FIRST_STEP_SHARE], dtype=torch.float64)
    even = steps(alphas) + steps(torch.log1p(-alphas))
    return torch.cat([share, (1 - share) * even / 2])


def timesteps_at(uniform: Tensor, probabilities: Tensor) -> Tensor:
    """(B,) timesteps by inverse CDF from uniform numbers (B,) in [0, 1) and probabilities (T,)."""
    return torch.searchsorted(probabilities.cumsum(dim=0), uniform, right=True).clamp(
        max=len(probabilities) - 1
    )


def bound_terms(
    model: Any,
    batch: Batch,
    times: Tensor,
    alphas_cumprod: Tensor,
    generators: list[torch.Generator],
) -> tuple[Tensor, Tensor]:
    """(B,) float64 nats of the rows: of the sampling step from `times` (B,), and of the prior.

    The sum of the steps from all timesteps, and the prior, is the bound; tokens that are not counted cost nothing.
    """
    denoised = denoise(model, batch, times, alphas_cumprod, generators)

    # The step from t to s = t - 1, or at t = 0 the words.
    alpha_t = alphas_cumprod[times]
    alpha_s = alphas_cumprod[(times - 1).clamp(min=0)]
    transition = transition_kl(denoised.clean, denoised.estimate, alpha_t, alpha_s)

    words = reconstruction(denoised.logits, batch["input_ids"])
    is_last = (times == 0).unsqueeze(1).to(words.device)
    steps = torch.where(is_last, words, transition)  # (B, L)

    # The prior, and the sums over the tokens that count.
    prior = prior_kl(denoised.clean, alphas_cumprod[-1])

    counted = unknown_tokens(batch)  # (B, L)
    steps = (steps.double() * counted).sum(dim=1)
    prior = (prior.double() * counted).sum(dim=1)
    return steps.cpu(), prior.cpu()


def denoise(
    model: Any,
    batch: Batch,
    times: Tensor,
    alphas_cumprod: Tensor,
    generators: list[torch.Generator],
) -> Denoised:
    """Noise the words of a batch, row b at `times[b]` from `generators[b]`, and let the model estimate them."""
    tokens = batch["input_ids"]
    config = model.config
    noise = randn((*tokens.shape, config.embedding_dim), generators, tokens.device, torch.float32)
    is_noised = noised_tokens(model, batch).unsqueeze(-1)  # (B, L, 1)
    alpha = alphas_cumprod[times]  # (B,)

    def corrupt(clean: Tensor) -> tuple[Tensor, Tensor]:
        mean = per_row(alpha.sqrt(), clean) * clean
        noisy = reparameterize(mean, (1 - alpha).sqrt(), noise.to(clean))
        return clean, torch.where(is_noised, noisy, clean)

    # Words go in and not embeddings: a model in shards has its embeddings within `forward` only.
    inputs: dict[str, Any] = {
        "input_ids": tokens,
        "corrupt": corrupt,
        "attention_mask": batch["attention_mask"],
        "class_labels": batch.get("label"),
    }
    if config.partial_noising:
        inputs["given"] = batch.get("given")

    # A model with self-conditioning is called again, with its own estimate.
    output = model(None, times.to(tokens.device), self_condition=None, **inputs)
    estimate = clean_estimate(config.prediction_type, output.sample, output.noisy, alpha)
    if config.self_conditioning:
        output = model(None, times.to(tokens.device), self_condition=estimate, **inputs)
        estimate = clean_estimate(config.prediction_type, output.sample, output.noisy, alpha)

    logits = model.logits(estimate) if output.logits is None else output.logits
    return Denoised(output.clean, output.noisy, estimate, logits)


def noised_tokens(model: Any, batch: Batch) -> Tensor:
    """(B, L) bool: tokens that are noised, which those that are `given` are not for a model that can be given some.

    For any other model what is given is as noisy as the rest. The bound of the rest needs no term of it: its noise is
    drawn from the same process in the bound as in a pipeline, whatever is written beside it.
    """
    return unknown_tokens(batch) if model.config.partial_noising else batch["attention_mask"].bool()


def cumulative_alphas(model: Any, scheduler: Any) -> Tensor:
    """(T,) float64, checked to be of the model's clock."""
    alphas = scheduler.alphas_cumprod.double().cpu()
    limit = model.config.num_train_timesteps
    require(
        len(alphas) == limit,
        "scheduler",
        f"one with the model's `num_train_timesteps`={limit}",
        len(alphas),
    )
    return alphas


@torch.no_grad()
def rounding_accuracy(
    model: Any,
    scheduler: Any,
    rows: Any,
    timesteps: Sequence[int],
    seed: int = 0,
    batch_size: int = 64,
) -> list[RoundingAccuracy]:
    """Words that survive the noise at each of `timesteps`, among all rows, without a model and with it.

    Padding and `given` tokens are left out as in `estimate_embedding_bound`; the noise of a row is the same at all
    timesteps but for its strength.

    Raises:
        ValueError: if a timestep is not on the clock, or the clocks of model and scheduler differ.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers import EmbeddingDDPMScheduler, EmbeddingTransformerModel
        >>> from text_diffusers.evaluation import rounding_accuracy
        >>> sizes = {"embedding_dim": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> model = EmbeddingTransformerModel(9, num_train_timesteps=50, **sizes)
        >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]], "attention_mask": [[1] * 4]})
        >>> accuracies = rounding_accuracy(model, EmbeddingDDPMScheduler(50), rows, timesteps=[0, 49])
        >>> [accuracy.timestep for accuracy in accuracies]
        [0, 49]
    """
    alphas = cumulative_alphas(model, scheduler)
    for timestep in timesteps:
        require(
            0 <= timestep < len(alphas), "timesteps", f"between 0 and {len(alphas) - 1}", timestep
        )
    device = device_of(model)

    # 1. Count the words that are found at each timestep
    num_right = torch.zeros(len(timesteps), 2, dtype=torch.float64)  # without a model, and with it
    num_words = 0
    with evaluating(model):
        for step, columns in enumerate(rows.iter(batch_size=batch_size)):
            batch = {name: column.to(device) for name, column in to_tensors(columns).items()}
            words = batch["input_ids"]
            counted = unknown_tokens(batch)
            num_words += int(counted.sum())
            for index, timestep in enumerate(timesteps):
                _, generators = row_noise(seed, step, len(words))
                times = torch.full((len(words),), timestep)  # (B,)
                denoised = denoise(model, batch, times, alphas, generators)

                # Without a model: the word nearest to the noisy embedding, without the shrinking.
                rescaled = denoised.noisy / per_row(alphas[times].sqrt(), denoised.noisy)
                is_nearest = (model.nearest_words(rescaled) == model.embed(words)).all(dim=-1)
                # With a model: the word to which its estimate is rounded.
                is_rounded = model.round(denoised.estimate) == words
                right = torch.stack([(is_nearest & counted).sum(), (is_rounded & counted).sum()])
                num_right[index] += right.cpu()

    # 2. As shares of all words
    require(num_words > 0, "rows", "rows with a token that is neither padding nor given", rows)
    levels = (1 - alphas).sqrt()
    accuracies = []
    for timestep, shares in zip(timesteps, (num_right / num_words).tolist(), strict=True):
        accuracies.append(RoundingAccuracy(timestep, float(levels[timestep]), *shares))
    return accuracies


def embedding_health(table: Tensor) -> dict[str, float]:
    """Whether the words lie apart: their embeddings (V, E) collapse if squared error alone trains them.

    Args:
        table: (V, E), two rows at least.

    Returns:
        `norm`, the mean length of the rows; `nearest_distance`, the mean distance of a row to the nearest other, to be
        seen beside the noise at t = 0; `effective_rank`, between 1 and E, exp of the entropy of the normalised
        singular values of the centred table, and 0 if all rows are equal.

    Raises:
        ValueError: if the table has fewer than two rows.

    Example:
        >>> import torch
        >>> from text_diffusers.evaluation import embedding_health
        >>> embedding_health(torch.tensor([[3.0, 4.0], [-3.0, -4.0]]))["nearest_distance"]
        10.0
    """
    require(
        table.ndim == 2 and len(table) > 1,
        "table",
        "(V, E) with at least two rows",
        tuple(table.shape),
    )
    table = table.detach().double().cpu()

    nearest = []
    for rows in table.split(ROWS_OF_DISTANCES):
        # The fast way by matrix products would not find the distance of a row to itself to be 0.
        distances = torch.cdist(rows, table, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.topk(2, largest=False).values[:, 1])  # the first is the row itself

    # The entropy of the singular values: how many directions the words spread over.
    values = torch.linalg.svdvals(table - table.mean(dim=0))
    shares = values / values.sum()
    rank = torch.exp(-torch.xlogy(shares, shares).sum())
    return {
        "norm": float(table.norm(dim=1).mean()),
        "nearest_distance": float(torch.cat(nearest).mean()),
        "effective_rank": float(rank) if values.sum() > 0 else 0.0,
    }
