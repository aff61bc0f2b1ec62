"""diffusers' own schedulers as the schedulers of these pipelines, so that they can be swapped for ours.

Discrete ones count steps upwards, sample one block of text with one generator, and know neither prompts nor padding.
Here each row is stepped by itself, its block being the tokens that may change. `BlockRefinementScheduler` gets masks
to fill in, as for absorbing noise; `DiscreteDDIMScheduler` and `EntropyBoundScheduler` are of uniform noise.

Continuous ones differ in the scale of what they step (Euler's grows with the noise, the others' stays), in the
arguments of `step`, and in how they draw noise for a batch. Here a row's noise depends on its own generator only.

Shapes: B batch, L sequence length, V vocabulary size, E embedding width, N selected positions, n those of one row.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    BlockRefinementScheduler,
    DiscreteDDIMScheduler,
    EntropyBoundScheduler,
    EulerAncestralDiscreteScheduler,
)
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.clean_estimate import clean_estimate
from text_diffusers.common.randomness import (
    NORMAL_BLOCK,
    Generators,
    randn,
    row_generators,
    row_seeds,
)
from text_diffusers.common.token_ids import noise_vocabulary
from text_diffusers.common.validation import (
    as_ids,
    as_plain,
    is_int,
    is_number,
    require,
    require_int,
)

# Settings that the `step` of diffusers' discrete schedulers takes at each call.
STEP_SETTINGS = {
    BlockRefinementScheduler: ("temperature", "top_k", "top_p"),
    DiscreteDDIMScheduler: ("temperature",),
    EntropyBoundScheduler: (),
}

# Settings that a scheduler of ours may have in its configuration.
SHAPING = ("temperature", "top_k", "top_p")


@dataclass
class StockSchedulerOutput(BaseOutput):
    """Output of `step`. `prev_sample`: (B, L) tokens at the next, less noisy time."""

    prev_sample: Tensor


class StockTokenScheduler:
    """A discrete scheduler of diffusers under the contract of a token scheduler.

    Step i of n is at time 1 - i / n, the linear noise schedule of all three; the model is told that time. Their
    `step` takes temperature, top_k and top_p at each call, and is greedy by default. Here the temperature is 1, so
    that texts are samples, unless the scheduler's config has one: `scheduler.register_to_config(temperature=0.0)`;
    likewise top_k and top_p. `EntropyBoundScheduler` has its own temperatures, `t_max` and `t_min`.

    Block refinement predicts the mask only if the config has `allow_mask=True`: some models were sampled so. Greedy
    editing of a row ends with the first step that changes nothing in it, as LLaDA2.1 does.

    The last step takes the predicted token wherever `EntropyBoundScheduler` would leave noise.

    Args:
        scheduler: of diffusers.
        mask_token_id: id of the mask.
        vocab_size: uniform noise is drawn from the ids below.

    Raises:
        ValueError: if the scheduler asks for corrector steps, which call the model once more, or if uniform noise has
            no ids to be drawn from.
    """

    def __init__(self, scheduler: Any, mask_token_id: int, vocab_size: int):
        self.scheduler = scheduler
        self.mask_token_id = mask_token_id
        self.vocab_size = vocab_size
        # (B, L) the rows that the last step left as they were; of other rows -1.
        self.stable_rows: Tensor | None = None
        # Of the three only block refinement fills in masks.
        self.corruption = (
            "absorbing" if isinstance(scheduler, BlockRefinementScheduler) else "uniform"
        )

        # With editing, revealed tokens may change again, as all tokens may under uniform noise.
        edits = (scheduler.config.get("editing_threshold") or 0) > 0
        self.revises_tokens = edits or self.corruption == "uniform"

        corrector_steps = scheduler.config.get("corrector_steps")
        if corrector_steps:
            raise ValueError(
                f"`corrector_steps` must be 0 in this pipeline, which calls the model once, got {corrector_steps}."
            )
        if self.corruption == "uniform" and vocab_size < 2:
            raise ValueError(
                f"`tokenizer` must have the ids of its mask and padding above those of text for uniform noise, which "
                f"is drawn from the ids below, got {vocab_size} such ids."
            )

    @property
    def config(self) -> Any:
        return self.scheduler.config

    @property
    def timesteps(self) -> Tensor:
        """(n,) the descending times, in (0, 1]."""
        # In float64 first, so that each time is the float32 nearest to 1 - i / n.
        steps = self.scheduler.num_inference_steps
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].float()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
    ):
        """Set so many even steps, which is all that diffusers' discrete schedulers know of time.

        Raises:
            ValueError: if it is no integer of at least 1, or `timesteps` are given.
        """
        limit = f"None, since {type(self.scheduler).__name__} takes a number of even steps"
        require(timesteps is None, "timesteps", limit, timesteps)
        count = as_plain(num_inference_steps)
        require_int("num_inference_steps", count, 1)
        self.scheduler.set_timesteps(count, device=device)
        self.stable_rows = None

    def model_timesteps(self, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """(B,) times, float32, that the model is told at the step from `timestep`."""
        return torch.full((len(sample),), float(timestep), device=sample.device)

    def prior(
        self,
        shape: tuple[int, int],
        generator: Generators = None,
        device: str | torch.device | None = None,
    ) -> Tensor:
        """(B, L) pure noise: all masked, or uniformly random tokens."""
        if self.corruption == "absorbing":
            return torch.full(shape, self.mask_token_id, device=device)

        # One generator a row: each row draws in a batch what it would draw alone.
        num_rows, length = shape
        rows = [
            torch.randint(self.vocab_size, (length,), generator=row_generator)
            for row_generator in row_generators(generator, num_rows)
        ]
        return torch.stack(rows).to(device)

    def select(
        self, timestep: float | Tensor, sample: Tensor, generator: Generators = None
    ) -> Tensor:
        """(B, L) bool: every position, since these schedulers compare the predictions of a block with each other.

        None of a row in which nothing changes any more.
        """
        positions = torch.ones_like(sample, dtype=torch.bool)
        if self.stable_rows is None or self.stable_rows.shape != sample.shape:
            return positions
        # A callback may have changed a row since.
        is_stable = (self.stable_rows == sample).all(dim=1, keepdim=True)
        return positions & ~is_stable

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        positions: Tensor | None = None,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StockSchedulerOutput | tuple[Tensor]:
        """From x_t to x_s, row by row.

        Args:
            model_output: (N, V) logits of clean tokens, one row a selected position; (B, L, V) without `positions`.
            timestep: one of `timesteps`.
            sample: (B, L) tokens, int64 or int32, not changed.
            positions: (B, L) bool, the tokens that make up the block of each row; the others stay.
            generator: one generator, or one a row.

        Raises:
            ValueError: if the logits are not finite.
        """
        # Without a selection every position is in the block of its row.
        if positions is None:
            positions = self.select(timestep, sample)
            model_output = model_output.flatten(0, 1)
        logits = self._text_logits(model_output)  # (N, V)
        tokens = as_ids("sample", sample)

        # diffusers counts steps upwards from 0.
        index = round((1 - float(timestep)) * self.scheduler.num_inference_steps)

        # Each row is a block of its own, which draws by its own generator.
        prev_sample = tokens.clone()
        blocks = logits.split(positions.sum(dim=1).tolist())
        seeds = row_seeds(generator, len(sample))
        for row, (seed, block) in enumerate(zip(seeds, blocks, strict=True)):
            if len(block):
                fresh = torch.Generator(block.device).manual_seed(seed)
                selected = positions[row]
                prev_sample[row, selected] = self._step_block(
                    block, index, tokens[row, selected], fresh
                )
        self._note_stable_rows(tokens, prev_sample, positions)
        prev_sample = prev_sample.to(sample.dtype)
        return StockSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _step_block(
        self, logits: Tensor, index: int, tokens: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(n,) tokens after step `index` from logits (n, V) and tokens (n,)."""
        scheduler = self.scheduler
        setting_names = step_settings(scheduler)
        # Texts are samples, where stock is greedy, unless the configuration says otherwise.
        settings: dict[str, Any] = {"temperature": 1.0} if setting_names else {}
        settings |= {
            name: scheduler.config[name] for name in setting_names if name in scheduler.config
        }

        # How many tokens a step reveals depends on the length of the block, here that of the row.
        if self.corruption == "absorbing":
            scheduler.set_timesteps(
                scheduler.num_inference_steps, device=logits.device, block_length=len(tokens)
            )
            settings["mask_token_id"] = self.mask_token_id

        # The row as a batch of one
        output = scheduler.step(
            logits.unsqueeze(0), index, tokens.unsqueeze(0), generator=generator, **settings
        )
        # Tokens that the last step would leave as noise take their predicted value.
        is_last = index == scheduler.num_inference_steps - 1
        if is_last and self.corruption == "uniform":
            return output.sampled_tokens[0]
        return output.prev_sample[0]

    def _note_stable_rows(self, tokens: Tensor, prev_sample: Tensor, positions: Tensor):
        """Remember the rows of (B, L) tokens in which every step to come would predict and keep the same."""
        # What is drawn at random may be another token in the next step.
        is_greedy = self.scheduler.config.get("temperature") == 0
        if self.corruption != "absorbing" or not is_greedy:
            return
        changes = (prev_sample != tokens) | (positions & (tokens == self.mask_token_id))
        is_stable = ~changes.any(dim=1, keepdim=True)
        self.stable_rows = torch.where(is_stable, tokens, -1)

    def _text_logits(self, model_output: Tensor) -> Tensor:
        """The logits of the ids that a text may hold: without the mask, and no wider than uniform noise."""
        if self.corruption == "absorbing" and not self.config.get("allow_mask"):
            # Out of place: these may be the logits of the model itself.
            mask = torch.tensor(self.mask_token_id, device=model_output.device)
            model_output = model_output.index_fill(-1, mask, -torch.inf)
        elif self.corruption == "uniform":
            model_output = model_output[:, : self.vocab_size]

        # The largest logit is NaN if any is, and -inf if no token is left.
        if not torch.isfinite(model_output.amax(dim=-1)).all():
            raise ValueError(
                "`model_output` has NaN or infinite logits: check the weights and the denoiser's dtype."
            )
        return model_output


def stock_class(scheduler: Any) -> type | None:
    """The class of diffusers' discrete schedulers that `scheduler` is of, if any."""
    return next((stock for stock in STEP_SETTINGS if isinstance(scheduler, stock)), None)


def step_settings(scheduler: Any) -> tuple[str, ...]:
    """Names of the settings that shape the logits of a token scheduler: temperature, top_k, top_p."""
    stock = stock_class(scheduler)
    if stock is not None:
        return STEP_SETTINGS[stock]
    return tuple(name for name in SHAPING if name in scheduler.config)


def as_token_scheduler(scheduler: Any, tokenizer: Any) -> Any:
    """`scheduler` itself, or an adapter of one of diffusers' discrete schedulers.

    Uniform noise is drawn from the same ids as in training, see `noise_vocabulary`.
    """
    if stock_class(scheduler) is None:
        return scheduler
    return StockTokenScheduler(scheduler, tokenizer.mask_token_id, noise_vocabulary(tokenizer))


def with_shaping(scheduler: Any, **shaping: Any) -> Any:
    """A token scheduler of the same noise with another temperature, top_k or top_p; `None` keeps the scheduler's own.

    Raises:
        ValueError: if the scheduler has no such setting, or a value is out of its range.
    """
    changes = {name: value for name, value in shaping.items() if value is not None}
    if not changes:
        return scheduler
    names = step_settings(scheduler)
    for name, value in changes.items():
        if name not in names:
            raise ValueError(
                f"`{name}` must be left out: {type(scheduler).__name__} has no such setting, got {value!r}."
            )

    # A new scheduler, so that a call leaves the pipeline's own as it is.
    return scheduler_from_config(type(scheduler), scheduler.config, **changes)


def scheduler_from_config(
    factory: Any, config: Mapping[str, Any], preset: Mapping[str, Any] | None = None, **shaping: Any
) -> Any:
    """A scheduler of the class `factory` with the noise of a configuration.

    Args:
        preset: settings of the class that differ from the configuration.
        shaping: temperature, top_k and top_p. diffusers' own schedulers take these at each step; here they read them
            from their configuration.
    """
    scheduler = factory.from_config(dict(config), **(preset or {}), **shaping)
    if stock_class(scheduler) is not None:
        scheduler.register_to_config(**shaping)
    return scheduler


class EmbeddingScheduler:
    """A scheduler of continuous noise as pipelines over word embeddings call it; its state stays in the scheduler.

    Args:
        scheduler: with `alphas_cumprod`, `add_noise` and `step`: ours for embeddings, or stock DDIM, DDPM,
            DPM-Solver, UniPC or Euler made by `from_config` of one of ours.
        prediction_type: of the denoiser.
        num_train_timesteps: of the denoiser.

    Raises:
        ValueError: if the scheduler is of tokens, disagrees with the denoiser, or would clip the clean estimate.
    """

    def __init__(self, scheduler: Any, prediction_type: str, num_train_timesteps: int):
        self.scheduler = scheduler
        self.prediction_type = prediction_type
        self.num_train_timesteps = num_train_timesteps
        self._check()

    def _check(self):
        self._check_kind()
        config = self.scheduler.config
        name = type(self.scheduler).__name__

        # Both must agree on the clock, on what is predicted, and on its range.
        if config.num_train_timesteps != self.num_train_timesteps:
            raise ValueError(
                f"`scheduler` has `num_train_timesteps`={config.num_train_timesteps}, "
                f"but the denoiser was trained with {self.num_train_timesteps}."
            )
        self._check_prediction_type()

        # `from_config` also keeps settings that a class does not take, so its signature is asked.
        for setting in ("clip_sample", "thresholding"):
            if (
                config.get(setting)
                and setting in inspect.signature(type(self.scheduler).__init__).parameters
            ):
                raise ValueError(
                    f"`scheduler` must have `{setting}=False`, since embeddings go beyond [-1, 1]: make it by "
                    f"`{name}.from_config` of one of this package's embedding schedulers, or set it there."
                )

    def _check_kind(self):
        # The samplers by score have none on the straight path of flow.
        if getattr(self.scheduler, "alphas_cumprod", None) is None:
            raise ValueError(
                "`scheduler` must be one for embeddings, such as EmbeddingDDIMScheduler, got "
                f"{type(self.scheduler).__name__}."
            )

    def _check_prediction_type(self):
        own_type = self.scheduler.config.prediction_type
        if own_type != self.stepped_type:
            raise ValueError(
                f"`scheduler` has `prediction_type`={own_type!r}, but the denoiser predicts "
                f"{self.prediction_type!r}: make it by "
                f"`{type(self.scheduler).__name__}.from_config(config, prediction_type={self.stepped_type!r})`."
            )

    @property
    def stepped_type(self) -> str:
        """The prediction type of the scheduler; stock ancestral Euler cannot be told a clean estimate."""
        is_ancestral = isinstance(self.scheduler, EulerAncestralDiscreteScheduler)
        return (
            "epsilon" if is_ancestral and self.prediction_type == "sample" else self.prediction_type
        )

    @property
    def timesteps(self) -> Tensor:
        """(n,) of the clock, descending."""
        return self.scheduler.timesteps

    def alpha_bar(self, timestep: float) -> float:
        """The share of signal, squared, at a timestep."""
        # Some schedulers have timesteps between those of the training clock.
        return float(self.scheduler.alphas_cumprod[round(timestep)])

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        count = as_plain(num_inference_steps)
        if not is_int(count, 1) or count > self.num_train_timesteps:
            raise ValueError(
                "`num_inference_steps` must be an integer between 1 and `num_train_timesteps`="
                f"{self.num_train_timesteps}, got {num_inference_steps!r}."
            )
        self.scheduler.set_timesteps(count, device=device)

    def scale_noise(self, noise: Tensor) -> Tensor:
        """(B, L, E) latents of the first step, given standard normal `noise` (B, L, E)."""
        return noise * float(self.scheduler.init_noise_sigma)

    def add_noise(
        self, clean: Tensor, timestep: float, generators: list[torch.Generator]
    ) -> Tensor:
        """(B, L, E) clean embeddings with as much noise as the latents have at `timestep`."""
        noise = normal_noise(clean, generators).to(clean)
        # In the dtype of the grid, in which some schedulers look times up.
        times = torch.full((len(clean),), timestep, dtype=self.timesteps.dtype, device=clean.device)
        return self.scheduler.add_noise(clean, noise, times)

    def scale_model_input(self, latents: Tensor, timestep: float) -> Tensor:
        """(B, L, E) `sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) noise`, as the denoiser was trained."""
        return self.scheduler.scale_model_input(latents, timestep)

    def clean_estimate(self, prediction: Tensor, noisy: Tensor, timestep: float) -> Tensor:
        """(B, L, E) the clean embeddings that a prediction at `noisy`, the model's input, stands for."""
        if self.prediction_type == "sample":
            return prediction
        return clean_estimate(self.prediction_type, prediction, noisy, self.alpha_bar(timestep))

    def step(
        self,
        prediction: Tensor,
        timestep: float,
        latents: Tensor,
        *,
        eta: float,
        generators: list[torch.Generator],
        round_function: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """(B, L, E) latents at the next, less noisy time."""
        # Stock ancestral Euler takes the noise that a clean estimate implies.
        if self.stepped_type != self.prediction_type:
            prediction = (latents - prediction) / self.scheduler.sigmas[self.scheduler.step_index]

        # Schedulers differ in what their steps take.
        offered = {
            "eta": eta,
            # Seeded by one number of each row's own, however many the step draws.
            "generator": row_generators(generators, len(latents)),
            "round_function": round_function,
        }
        accepted = {name: value for name, value in offered.items() if name in self._step_arguments}

        # A row's normal numbers do not depend on its length if it is padded to whole blocks of them.
        _, length, width = latents.shape
        padding = -length % (NORMAL_BLOCK // math.gcd(NORMAL_BLOCK, width))
        padded_prediction = F.pad(prediction, (0, 0, 0, padding))
        padded_latents = F.pad(latents, (0, 0, 0, padding))
        output = self.scheduler.step(padded_prediction, timestep, padded_latents, **accepted)
        return output.prev_sample[:, :length]

    def check_eta(self, eta: float):
        """Raise a `ValueError` unless `eta` is in [0, 1], and 0 for a scheduler without it."""
        if eta != 0 and "eta" not in self._step_arguments:
            raise ValueError(
                f"`eta` must be 0 with {type(self.scheduler).__name__}, which has no `eta`, got {eta!r}."
            )
        if not is_number(eta, 0, 1):
            raise ValueError(f"`eta` must be between 0 and 1, got {eta!r}.")

    @property
    def _step_arguments(self) -> Any:
        return inspect.signature(self.scheduler.step).parameters


def normal_noise(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """(B, L, E) standard normal numbers, drawn on the CPU, one generator a row."""
    # On the CPU, so that the numbers are the same whatever device the model is on.
    batch_size, length, width = like.shape
    return randn((batch_size, length, width), generators, "cpu", torch.float32)
