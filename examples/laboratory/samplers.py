"""The samplers of one trained network, from diffusers, from this library, and one from the textbook.

| sampler | what it solves |
|---|---|
| DDPM | the reversed chain, step by step (https://arxiv.org/abs/2006.11239) |
| DDIM | a chain without noise, in few steps (https://arxiv.org/abs/2010.02502) |
| Euler-Maruyama | the reverse SDE, as the textbook has it (https://arxiv.org/abs/2011.13456) |
| reverse SDE | the same one, solved exactly for a clean estimate that stays for a step |
| probability flow | the ODE with the same marginals, by Heun's method |
| Langevin | dynamics under less and less noise (https://arxiv.org/abs/1907.05600) |

Shapes: N points, T training timesteps, n steps.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from text_diffusers.common.clean_estimate import NoiseLevel, convert_prediction
from text_diffusers.schedulers.latent.scheduling_score import (
    AnnealedLangevinScheduler,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
)

DDIM_STEPS = 50
SDE_STEPS = 100
HEUN_STEPS = 25
LANGEVIN_LEVELS = 100
LANGEVIN_STEPS_PER_LEVEL = 5


class EulerMaruyamaScheduler:
    """The reverse SDE in the smallest number of lines; `dt` times beta is the fall of log alphas_cumprod.

        dx = (x / 2 + score) beta dt + sqrt(beta dt) noise,    score = -predicted noise / sigma

    Args:
        alphas_cumprod: (T,) float64.
        prediction_type: what the network predicts.
    """

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str):
        self.log_alphas = alphas_cumprod.log()
        self.prediction_type = prediction_type

    def set_timesteps(self, num_inference_steps: int):
        last = len(self.log_alphas) - 1
        self.timesteps = torch.linspace(last, 0, num_inference_steps).round().long()

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> DDIMSchedulerOutput:
        """From a timestep to the next one, or to clean points: (N, 1, 2)."""
        place = int((self.timesteps == timestep).nonzero())
        log_alpha = float(self.log_alphas[timestep])
        is_last = place == len(self.timesteps) - 1
        next_log_alpha = 0.0 if is_last else float(self.log_alphas[self.timesteps[place + 1]])
        beta_dt = next_log_alpha - log_alpha

        alpha = torch.tensor(log_alpha, dtype=torch.float64).exp()
        level = NoiseLevel(float(alpha.sqrt()), float((1 - alpha).sqrt()))
        noise = convert_prediction(model_output, sample, level, self.prediction_type, "epsilon")
        score = -noise / level.sigma
        moved = sample + beta_dt * (sample / 2 + score)
        if not is_last:
            moved = moved + beta_dt**0.5 * torch.randn_like(sample)
        return DDIMSchedulerOutput(prev_sample=moved)


def stock_settings(model: Any) -> dict[str, Any]:
    """Arguments of diffusers' schedulers for the noise of a model; points are no pixels, and are not clipped."""
    return {
        "num_train_timesteps": model.num_train_timesteps,
        "trained_betas": model.noise.betas.tolist(),
        "prediction_type": model.prediction_type,
        "clip_sample": False,
    }


def fewer_steps(num_steps: int, model: Any) -> list[int]:
    """(n,) descending timesteps, closer to each other towards the data, where points move in detail."""
    last = model.num_train_timesteps - 1
    shares = torch.linspace(1, 0, num_steps).square()
    return (last * shares).round().long().unique().flip(0).tolist()


# Each makes the scheduler for a `Diffusion`, with its timesteps set.


def ddpm(model: Any) -> DDPMScheduler:
    scheduler = DDPMScheduler(**stock_settings(model))
    scheduler.set_timesteps(model.num_train_timesteps)
    return scheduler


def ddim(model: Any) -> DDIMScheduler:
    # Even steps, as stock has them
    scheduler = DDIMScheduler(**stock_settings(model), timestep_spacing="trailing")
    scheduler.set_timesteps(min(DDIM_STEPS, model.num_train_timesteps))
    return scheduler


def euler_maruyama(model: Any) -> EulerMaruyamaScheduler:
    scheduler = EulerMaruyamaScheduler(model.noise.alphas_cumprod, model.prediction_type)
    scheduler.set_timesteps(model.num_train_timesteps)
    return scheduler


def reverse_sde(model: Any) -> Any:
    scheduler: Any = ReverseSDEScheduler.from_config(model.noise.config)
    scheduler.set_timesteps(timesteps=fewer_steps(SDE_STEPS, model))
    return scheduler


def probability_flow(model: Any) -> Any:
    scheduler: Any = ProbabilityFlowScheduler.from_config(model.noise.config)
    scheduler.set_timesteps(timesteps=fewer_steps(HEUN_STEPS, model))
    return scheduler


def langevin(model: Any) -> Any:
    scheduler: Any = AnnealedLangevinScheduler.from_config(
        model.noise.config, steps_per_level=LANGEVIN_STEPS_PER_LEVEL
    )
    # It begins where there is some signal.
    noisiest = int(scheduler.timesteps[0])
    timesteps = fewer_steps(LANGEVIN_LEVELS, model)
    scheduler.set_timesteps(timesteps=[step for step in timesteps if step <= noisiest])
    return scheduler


SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "DDPM": ddpm,
    "Euler-Maruyama": euler_maruyama,
    "reverse SDE": reverse_sde,
    "probability flow": probability_flow,
    "DDIM": ddim,
    "Langevin": langevin,
}


def path_of(scheduler: Any, predict: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> Tensor:
    """(calls + 1, N, 2) all points on the way from noise (N, 2), which is the loop of every pipeline.

    Args:
        scheduler: with its timesteps set.
        predict: of points (N, 1, 2) at a timestep, (N, 1, 2).
    """
    sample = noise.unsqueeze(1)  # (N, 1, 2)
    path = [sample]
    for timestep in scheduler.timesteps:
        prediction = predict(sample, timestep)
        sample = scheduler.step(prediction, timestep, sample).prev_sample
        path.append(sample)
    return torch.stack(path).squeeze(2)
