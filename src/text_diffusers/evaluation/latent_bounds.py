"""What held-out texts cost by an autoencoder and a prior of its latents together, in nats per token.

For latents z that are drawn from the posterior q(z | text) of a text,

    -log p(text) <= E [-log p(text | z)] + E [log q(z | text) - log p(z)],

the reconstruction and the rate. Of a Gaussian prior, -log p(z) is known. Of a diffusion model it is bounded by the
squared errors of its clean estimates over the signal-to-noise ratio (https://arxiv.org/abs/2107.00630):

    -log p(z) <= KL at the first time + 1/2 the integral of |z - estimate|^2 dSNR + E [-log N(z; x_t / signal, 1/SNR)]

with the last term at the last time. The integral is by the trapezoidal rule, so that its value is an estimate. With
the same latents and noise each time, models compare.

Shapes: B batch, R rows, K latents, E width of a latent, P tokens of a source, n times.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import NoiseLevel, convert_prediction
from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.randomness import randn
from text_diffusers.common.validation import require_int
from text_diffusers.data.latent_rows import SOURCE_COLUMNS
from text_diffusers.data.rows import Batch, to_device, unknown_tokens
from text_diffusers.evaluation.latents import batch_nats, batches_for, encode_batch
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.models.latent.gaussian_prior import gaussian_nats

# Logarithms of the signal-to-noise ratio between which the integral is taken, by so many times
FIRST_LOG_SNR = -6.0
LAST_LOG_SNR = 6.0
BOUND_TIMES = 24

ROWS_AT_ONCE = 256


@dataclass
class HeldOutLatents:
    """Latents of held-out texts, drawn once, and what they cost but for the prior.

    Attributes:
        latents: (R, K, E), normalised.
        conditions: `label` (R,), `prompt_states` (R, P, S) and `prompt_mask` (R, P), as far as there are any.
        reconstruction: -log p(text | z) of all texts, in nats.
        entropy: of the posteriors of all texts, in nats, of normalised latents; -inf without any noise.
        tokens: number of tokens that are counted.
    """

    latents: Tensor
    reconstruction: float
    entropy: float
    tokens: int
    conditions: Batch = field(default_factory=dict)


@dataclass
class LatentBound:
    """Nats per token of held-out texts.

    Attributes:
        bound: reconstruction and rate, an estimate of a bound of -log p.
        reconstruction: from drawn latents.
        rate: what the posterior knows of a text that the prior does not.

    Example:
        >>> from text_diffusers.evaluation.latent_bounds import LatentBound
        >>> LatentBound(bound=3.5, reconstruction=0.5, rate=3.0).metrics()["rate"]
        3.0
    """

    bound: float
    reconstruction: float
    rate: float

    def metrics(self) -> dict[str, float]:
        """The figures by their names."""
        return asdict(self)


@torch.no_grad()
def hold_out_latents(autoencoder: Any, rows: Any, seed: int = 0) -> HeldOutLatents:
    """Draw the latents of rows, and let the decoder write these from them.

    Args:
        autoencoder: an `AutoencoderTextLatentModel`.
        rows: of `with_encoder_columns`, and with sources of `with_source_columns`.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    device = device_of(autoencoder)
    parts: dict[str, list[Tensor]] = {}
    reconstruction = 0.0
    entropy = 0.0
    tokens = 0
    with evaluating(autoencoder):
        for batch in batches_for(autoencoder, rows):
            # 1. Drawn latents, as the denoiser sees them, and the entropy of what they are drawn from
            posterior = encode_batch(autoencoder, batch)
            shape = tuple(posterior.latents.shape)
            noise = randn(shape, generator, device, torch.float32)
            drawn = autoencoder.sample(posterior, noise)
            told = {"latents": autoencoder.normalize(drawn)} | conditions_of(autoencoder, batch)
            entropy += posterior_entropy(autoencoder, posterior)

            # 2. The way back
            batch = to_device(batch, device)
            reconstruction += batch_nats(autoencoder, batch, drawn)
            tokens += int(unknown_tokens(batch).sum())
            for name, values in told.items():
                parts.setdefault(name, []).append(values)

    columns = {name: joined(values) for name, values in parts.items()}
    return HeldOutLatents(columns.pop("latents"), reconstruction, entropy, tokens, columns)


def joined(parts: list[Tensor]) -> Tensor:
    """(R, ...) of tensors (B, ...); what is shorter in its second axis, as sources are, is filled up by zeros."""
    if parts[0].ndim == 1:
        return torch.cat(parts)
    longest = max(part.shape[1] for part in parts)
    rows = parts[0].new_zeros(sum(map(len, parts)), longest, *parts[0].shape[2:])
    first = 0
    for part in parts:
        rows[first : first + len(part), : part.shape[1]] = part
        first += len(part)
    return rows


def posterior_entropy(autoencoder: Any, posterior: Any) -> float:
    """Nats of the normalised latents (B, K, E) that a posterior draws, summed over the batch."""
    if posterior.logvar is not None:
        logvar = posterior.logvar.double()
    else:
        scale = torch.tensor(autoencoder.config.noise_scale, dtype=torch.float64)
        logvar = (2 * scale.log()).expand(posterior.latents.shape).to(posterior.latents.device)
    by_entry = 0.5 * (math.log(2 * math.pi) + 1 + logvar) - autoencoder.latent_std.double().log()
    return float(by_entry.sum())


def conditions_of(autoencoder: Any, batch: Batch) -> Batch:
    """What a denoiser is told of a batch: `label`, and `prompt_states` and `prompt_mask` of sources."""
    device = device_of(autoencoder)
    told: Batch = {}
    if "label" in batch:
        told["label"] = batch["label"].to(device)
    if SOURCE_COLUMNS[0] in batch:
        ids, mask = (batch[name].to(device) for name in SOURCE_COLUMNS)
        told["prompt_states"], told["prompt_mask"] = source_states(autoencoder, ids, mask)
    return told


@torch.no_grad()
def source_states(autoencoder: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`(states, mask)` (B, P, S) and (B, P) of sources by the autoencoder's encoder, P of the longest one.

    The mask of an empty source is zeros, as of a text without a prompt.
    """
    # An encoder reads at least one token; what it says of an empty source is left out again.
    empty = ~mask.bool().any(dim=1, keepdim=True)  # (B, 1)
    first = torch.arange(mask.shape[1], device=mask.device) == 0
    states, found = autoencoder.encode_states(ids, mask.masked_fill(empty & first, 1))
    return states, found.long().masked_fill(empty, 0)


@torch.no_grad()
def estimate_latent_bound(
    model: Any,
    scheduler: Any,
    held_out: HeldOutLatents,
    seed: int = 0,
    num_times: int = BOUND_TIMES,
) -> LatentBound:
    """The bound of texts by the prior of their latents.

    Args:
        model: a `LatentTransformerModel`, or a `LatentGaussianPrior`.
        scheduler: with the noise that the first was trained with; `None` for the second.
        held_out: of `hold_out_latents`.
        seed: of the noise.
        num_times: n, at least 2, at which a denoiser is asked.
    """
    require_int("num_times", num_times, 2)
    nats = 0.0
    with evaluating(model):
        for first in range(0, len(held_out.latents), ROWS_AT_ONCE):
            rows = slice(first, first + ROWS_AT_ONCE)
            latents = at_least_float32(held_out.latents[rows])
            told = {name: column[rows] for name, column in held_out.conditions.items()}
            if scheduler is None:
                prompts = (told.get("prompt_states"), told.get("prompt_mask"), len(latents))
                mean, logvar = model(*prompts, return_dict=False)
                nats += float(gaussian_nats(latents.double(), mean.double(), logvar.double()).sum())
            else:
                nats += diffusion_nats(model, scheduler, latents, told, seed + first, num_times)

    rate = (nats - held_out.entropy) / held_out.tokens
    reconstruction = held_out.reconstruction / held_out.tokens
    return LatentBound(reconstruction + rate, reconstruction, rate)


def diffusion_nats(
    model: Any, scheduler: Any, latents: Tensor, told: Batch, seed: int, num_times: int
) -> float:
    """The bound of -log p of latents (B, K, E), summed over the batch: three terms as above."""
    start, times = bound_times(scheduler, num_times)
    num_entries = latents.numel()

    # 1. What is left of the latents at the first time, where sampling begins with pure noise
    signal, sigma = (float(part) for part in scheduler.noise_level(start))
    squares = float(latents.double().square().sum())
    nats = 0.5 * (signal**2 * squares + num_entries * (sigma**2 - 1 - 2 * math.log(sigma)))

    # 2. Clean estimates: one step from the first time, and then the integral
    log_snrs = log_snr(scheduler, times)
    errors = []
    for index, time in enumerate([start, *times.tolist()]):
        generator = torch.Generator().manual_seed(seed + 1_000_003 * index)
        errors.append(estimate_error(model, scheduler, latents, told, time, generator))
    step = float(log_snrs[0].exp()) - (signal / sigma) ** 2
    nats += 0.5 * max(step, 0.0) * errors[0]
    heights = torch.tensor(errors[1:], dtype=torch.float64) * log_snrs.exp()
    nats += 0.5 * float(torch.trapezoid(heights, log_snrs))

    # 3. What the last time leaves open
    return nats + 0.5 * num_entries * (math.log(2 * math.pi) + 1 - float(log_snrs[-1]))


def log_snr(scheduler: Any, times: Tensor) -> Tensor:
    """(n,) logarithms of the signal-to-noise ratio at timesteps (n,)."""
    signal, sigma = scheduler.noise_level(times)
    return 2 * (torch.as_tensor(signal).log() - torch.as_tensor(sigma).log())


def bound_times(scheduler: Any, num_times: int) -> tuple[float, Tensor]:
    """The first time of sampling, and descending timesteps (n,) at even steps of the logarithm of the SNR."""
    wanted = torch.linspace(FIRST_LOG_SNR, LAST_LOG_SNR, num_times, dtype=torch.float64)
    num_steps = scheduler.config.num_train_timesteps
    if getattr(scheduler, "alphas_cumprod", None) is None:
        # Signal over sigma is (1 - t) / t.
        return num_steps, num_steps / (1 + torch.exp(0.5 * wanted))

    # The nearest of whole steps, each once
    clock = torch.arange(num_steps)
    distances = (log_snr(scheduler, clock)[:, None] - wanted).abs()  # (T, n)
    return num_steps - 1, distances.argmin(dim=0).unique().flip(0)


def estimate_error(
    model: Any,
    scheduler: Any,
    latents: Tensor,
    told: Batch,
    time: float,
    generator: torch.Generator,
) -> float:
    """Squared error of the clean estimates of latents (B, K, E) at one time, summed."""
    level = NoiseLevel(*(float(part) for part in scheduler.noise_level(time)))
    noise = randn(tuple(latents.shape), generator, latents.device, latents.dtype)
    times = torch.full((len(latents),), time, device=latents.device)
    noisy = scheduler.add_noise(latents, noise, times)
    inputs = {
        "class_labels": told.get("label"),
        "prompt_states": told.get("prompt_states"),
        "prompt_mask": told.get("prompt_mask"),
    }

    # With self-conditioning a second look, at the estimate of the first
    estimate = None
    for _ in range(2 if model.config.self_conditioning else 1):
        shown = {} if estimate is None else {"self_condition": estimate}
        prediction = model(noisy, times, **inputs, **shown).sample
        kind = model.config.prediction_type
        estimate = convert_prediction(at_least_float32(prediction), noisy, level, kind, "sample")
    assert estimate is not None
    return float((estimate.double() - latents.double()).square().sum())
