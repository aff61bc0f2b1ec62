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
from text_diffusers.common.randomness import randn
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.common.validation import require
from text_diffusers.data.rows import to_tensors, unknown_tokens
from text_diffusers.evaluation.likelihood import NOISE_LEVELS, BoundEstimate, SharedBatches, evaluating
from text_diffusers.losses.embedding import per_row, prior_kl, reconstruction, reparameterize, transition_kl

FIRST_STEP_SHARE = 0.1  # of the times that are drawn for the bound: t = 0, where the words are read off

Batch = dict[str, Tensor]


class Denoised(NamedTuple):
    """A batch and what the model makes of its noise, (B, L, E) each; `logits` (B, L, V) are of the words."""

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

    Padding is neither noised nor counted, and nor are the tokens of the column `given`, if the model was built with
    `partial_noising`. In `by_noise` the tenths are of the clock; the reconstruction is in the first, the prior in the
    last. With `num_times=1` the standard error is that of other rows from the same source and other noise; with more,
    a row that is drawn again counts as another row.

    Args:
        model: `EmbeddingTransformerModel`.
        scheduler: with `alphas_cumprod` of the model's clock.
        rows: tokenized data set.
        num_times: random times a row; `time_distribution` says which, and they are stratified within each batch.
        accelerator: its processes share the batches and all get the same result; each must call this.

    Raises:
        ValueError: if the clocks of model and scheduler differ, or the rows have nothing to count.
    """
    alphas = cumulative_alphas(model, scheduler)
    probs = time_distribution(alphas)
    device = next(model.parameters()).device
    batches = SharedBatches(rows, num_times, batch_size, seed, device, accelerator)
    nats = torch.zeros(batches.count, NOISE_LEVELS, dtype=torch.float64)
    tokens = torch.zeros(batches.count, dtype=torch.float64)
    with evaluating(model):
        for step, batch, uniform, generators in batches:
            times = timesteps_at(uniform, probs)  # (B,)
            steps, prior = bound_terms(model, batch, times, alphas, generators)  # (B,) each
            if step is not None:
                nats[step].index_add_(0, times * NOISE_LEVELS // len(probs), steps / probs[times])
                nats[step, -1] += prior.sum()
                tokens[step] = counted_tokens(model, batch).sum()
    nats, tokens = batches.total(nats), batches.total(tokens)
    require(bool(tokens.sum() > 0), "rows", "rows with a token that is neither padding nor given", rows)
    by_noise = NOISE_LEVELS * nats.sum(dim=0) / tokens.sum()
    bound = by_noise.mean()
    residuals = nats.sum(dim=1) - bound * tokens  # batches differ in tokens too, and long ones are not dear ones
    error = residuals.std() / tokens.mean() / batches.count**0.5
    return BoundEstimate(float(bound), float(error), by_noise.tolist())


def time_distribution(alphas_cumprod: Tensor) -> Tensor:
    """(T,) float64 probabilities with which the bound's timesteps are drawn; any would do, at other standard errors.

    After the share of t = 0, half of the times are even in a_t, among which words are told apart. The other half are
    even in log(1 - a_t), where it costs most if an estimate that should be exact is not.
    """
    alphas = alphas_cumprod.double()
    if len(alphas) == 1:
        return torch.ones(1, dtype=torch.float64)
    even = [values.diff() / (values[-1] - values[0]) for values in (alphas, torch.log1p(-alphas))]  # (T - 1,) each
    share = torch.tensor([FIRST_STEP_SHARE], dtype=torch.float64)
    return torch.cat([share, (1 - share) * (even[0] + even[1]) / 2])


def timesteps_at(uniform: Tensor, probabilities: Tensor) -> Tensor:
    """(B,) timesteps by inverse CDF from uniform numbers (B,) in [0, 1) and probabilities (T,)."""
    return torch.searchsorted(probabilities.cumsum(dim=0), uniform, right=True).clamp(max=len(probabilities) - 1)


def bound_terms(
    model: Any, batch: Batch, times: Tensor, alphas_cumprod: Tensor, generators: list[torch.Generator]
) -> tuple[Tensor, Tensor]:
    """(B,) float64 nats of the rows: of the sampling step from `times` (B,), and of the prior.

    The sum of the steps from all timesteps, and the prior, is the bound; tokens that are not counted cost nothing.
    """
    denoised = denoise(model, batch, times, alphas_cumprod, generators)
    alpha_t, alpha_s = alphas_cumprod[times], alphas_cumprod[(times - 1).clamp(min=0)]
    transition = transition_kl(denoised.clean, denoised.estimate, alpha_t, alpha_s)
    words = reconstruction(denoised.logits, batch["input_ids"])
    steps = torch.where((times == 0).unsqueeze(1).to(words.device), words, transition)  # (B, L)
    prior = prior_kl(denoised.clean, alphas_cumprod[-1])
    counted = counted_tokens(model, batch)
    steps, prior = ((terms.double() * counted).sum(dim=1).cpu() for terms in (steps, prior))
    return steps, prior


def denoise(
    model: Any, batch: Batch, times: Tensor, alphas_cumprod: Tensor, generators: list[torch.Generator]
) -> Denoised:
    """Noise the words that count, row b at `times[b]` from `generators[b]`, and let the model estimate them."""
    tokens = batch["input_ids"]
    shape = len(tokens), tokens.shape[1], model.config.embedding_dim
    noise = randn(shape, generators, tokens.device, torch.float32)
    counted = counted_tokens(model, batch).unsqueeze(-1)
    alpha = alphas_cumprod[times]

    def corrupt(clean: Tensor) -> tuple[Tensor, Tensor]:
        noisy = reparameterize(per_row(alpha.sqrt(), clean) * clean, (1 - alpha).sqrt(), noise.to(clean))
        return clean, torch.where(counted, noisy, clean)

    inputs = {"attention_mask": batch["attention_mask"], "class_labels": batch.get("label")}
    if model.config.partial_noising:
        inputs["given"] = batch.get("given")

    def estimated(self_condition: Tensor | None) -> tuple[Any, Tensor]:
        # Words go in and not embeddings: a model in shards has its embeddings within `forward` only.
        words = {"input_ids": tokens, "corrupt": corrupt}
        output = model(None, times.to(tokens.device), self_condition=self_condition, **words, **inputs)
        return output, clean_estimate(model.config.prediction_type, output.sample, output.noisy, alpha)

    output, estimate = estimated(None)
    if model.config.self_conditioning:
        output, estimate = estimated(estimate)
    logits = model.logits(estimate) if output.logits is None else output.logits
    return Denoised(output.clean, output.noisy, estimate, logits)


def counted_tokens(model: Any, batch: Batch) -> Tensor:
    """(B, L) bool: tokens that are noised and paid for, neither padding nor `given` to a model that can be given."""
    return unknown_tokens(batch) if model.config.partial_noising else batch["attention_mask"].bool()


def cumulative_alphas(model: Any, scheduler: Any) -> Tensor:
    """(T,) float64, checked to be of the model's clock."""
    alphas, limit = scheduler.alphas_cumprod.double().cpu(), model.config.num_train_timesteps
    require(len(alphas) == limit, "scheduler", f"one with the model's `num_train_timesteps`={limit}", len(alphas))
    return alphas


@torch.no_grad()
def rounding_accuracy(
    model: Any, scheduler: Any, rows: Any, timesteps: Sequence[int], seed: int = 0, batch_size: int = 64
) -> list[RoundingAccuracy]:
    """Words that survive the noise at each of `timesteps`, among all rows, without a model and with it.

    Padding and `given` tokens are left out as in `estimate_embedding_bound`; the noise of a row is the same at all
    timesteps but for its strength.

    Raises:
        ValueError: if a timestep is not on the clock, or the clocks of model and scheduler differ.
    """
    alphas = cumulative_alphas(model, scheduler)
    for timestep in timesteps:
        require(0 <= timestep < len(alphas), "timesteps", f"between 0 and {len(alphas) - 1}", timestep)
    device = next(model.parameters()).device
    right, counts = torch.zeros(len(timesteps), 2, dtype=torch.float64), 0
    with evaluating(model):
        for step, batch in enumerate(rows.iter(batch_size=batch_size)):
            batch = {name: column.to(device) for name, column in to_tensors(batch).items()}
            counted = counted_tokens(model, batch)
            counts += int(counted.sum())
            for place, timestep in enumerate(timesteps):
                _, generators = row_noise(seed, step, len(counted))
                times = torch.full((len(counted),), timestep)
                denoised = denoise(model, batch, times, alphas, generators)
                nearest = model.nearest_words(denoised.noisy / per_row(alphas[times].sqrt(), denoised.noisy))
                found = (nearest == model.embed(batch["input_ids"])).all(dim=-1)
                rounded = model.round(denoised.estimate) == batch["input_ids"]
                right[place] += torch.stack([(found & counted).sum(), (rounded & counted).sum()]).cpu()
    require(counts > 0, "rows", "rows with a token that is neither padding nor given", rows)
    levels = (1 - alphas).sqrt()
    return [
        RoundingAccuracy(timestep, float(levels[timestep]), *(values / counts).tolist())
        for timestep, values in zip(timesteps, right, strict=True)
    ]


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
    """
    require(table.ndim == 2 and len(table) > 1, "table", "(V, E) with at least two rows", tuple(table.shape))
    table = table.detach().double().cpu()
    exact: dict[str, Any] = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    nearest = [torch.cdist(part, table, **exact).topk(2, largest=False).values[:, 1] for part in table.split(1024)]
    values = torch.linalg.svdvals(table - table.mean(dim=0))
    shares = values / values.sum()
    rank = float(torch.exp(-torch.xlogy(shares, shares).sum())) if values.sum() > 0 else 0.0
    distance = float(torch.cat(nearest).mean())
    return {"norm": float(table.norm(dim=1).mean()), "nearest_distance": distance, "effective_rank": rank}
