"""Denoising diffusion (https://arxiv.org/abs/2006.11239): a network that predicts the noise of a noisy point.

    x_t = signal x_0 + sigma noise,    loss = |noise - network(x_t, t)|^2

A point is a text of one latent with two numbers for the schedulers of this library, (B, 1, 2). All samplers of
`samplers.py` draw from the same network; its density is known by a bound, and by the probability-flow ODE.

Shapes: B batch, N points, T training timesteps, n times.
"""

import math

import torch
from torch import Tensor, nn

from laboratory.base import PointModel, mlp
from laboratory.ode_density import ode_log_density
from laboratory.samplers import SAMPLERS, path_of
from text_diffusers.common.clean_estimate import NoiseLevel, convert_prediction, prediction_of
from text_diffusers.schedulers.latent.latent_noise import add_noise_of
from text_diffusers.schedulers.latent.scheduling_score import ProbabilityFlowScheduler

NUM_FREQUENCIES = 8
ODE_STEPS = 100
NUM_VARIANCE_POINTS = 1000


class TimeNetwork(nn.Module):
    """A network that is told the time: (B, 1, 2) points and (B,) times in [0, 1] to (B, 1, 2)."""

    def __init__(self):
        super().__init__()
        self.network = mlp(2 + 2 * NUM_FREQUENCIES, 2)

    def forward(self, points: Tensor, times: Tensor) -> Tensor:
        # Waves of many lengths tell times apart that are close to each other.
        frequencies = 2.0 ** torch.arange(NUM_FREQUENCIES)
        angles = times.float()[:, None, None] * frequencies * math.pi / 2  # (B, 1, 8)
        return self.network(torch.cat([points, angles.sin(), angles.cos()], dim=2))


class Diffusion(PointModel):
    """A network, and the noise that it was trained with.

    Args:
        num_train_timesteps: T.
        beta_schedule: "linear", "cosine" or "sigmoid".
        prediction_type: what the network predicts, "epsilon", "sample" or "v_prediction".
        network: of points (B, 1, 2) and times (B,) in [0, 1].
    """

    learning_rate = 1e-2
    density_kind = "probability-flow ODE"
    mean_squares: Tensor

    def __init__(
        self,
        num_train_timesteps: int = 500,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        network: nn.Module | None = None,
    ):
        super().__init__()
        self.num_train_timesteps = num_train_timesteps
        self.prediction_type = prediction_type
        self.network = TimeNetwork() if network is None else network
        # One of the schedulers of this noise, which knows its level at every time
        self.noise = ProbabilityFlowScheduler(
            num_train_timesteps, beta_schedule=beta_schedule, prediction_type=prediction_type
        )
        # Of the clean estimates at the training points, once there are any
        self.register_buffer("mean_squares", torch.ones(num_train_timesteps, dtype=torch.float64))

    def predict(self, noisy: Tensor, timestep: Tensor | float) -> Tensor:
        """(B, 1, 2) of noisy points (B, 1, 2) at one timestep, or at one for each (B,)."""
        times = torch.as_tensor(timestep).float().expand(len(noisy)) / self.num_train_timesteps
        return self.network(noisy, times)

    def loss(self, batch: Tensor) -> Tensor:
        clean = batch.unsqueeze(1)  # (B, 1, 2)
        timesteps = torch.randint(self.num_train_timesteps, (len(batch),))
        level = self.noise.noise_level(timesteps)

        noise = torch.randn_like(clean)
        noisy = add_noise_of(level, clean, noise)
        target = prediction_of(self.prediction_type, clean, noise, level)
        return (self.predict(noisy, timesteps) - target).square().mean()

    @torch.no_grad()
    def path(self, sampler: str, noise: Tensor) -> Tensor:
        """(n + 1, N, 2) all points of one of `SAMPLERS` on the way from noise (N, 2)."""
        scheduler = SAMPLERS[sampler](self)
        return path_of(scheduler, self.predict, noise)

    def sample(self, count: int) -> Tensor:
        return self.path("DDPM", torch.randn(count, 2))[-1]

    def fit(self, points: Tensor, budget: int, batch_size: int) -> int:
        num_steps = super().fit(points, budget, batch_size)
        shown = points[torch.randperm(len(points))[:NUM_VARIANCE_POINTS]]
        self.mean_squares.copy_(self.estimate_errors(shown))
        return num_steps

    @torch.no_grad()
    def estimate_errors(self, points: Tensor) -> Tensor:
        """(T,) mean squared error of a coordinate of the clean estimate, at each timestep, of points (N, 2).

        Errors grow with the noise that was drawn. Its mean square is known to be 1, so that what it was by chance is
        taken out by a regression.
        """
        clean = points.unsqueeze(1)  # (N, 1, 2)
        errors = torch.zeros(self.num_train_timesteps, dtype=torch.float64)
        for step in range(self.num_train_timesteps):
            level = self.level(step)
            noise = torch.randn_like(clean)
            noisy = add_noise_of(level, clean, noise)
            prediction = self.predict(noisy, float(step))
            estimate = convert_prediction(prediction, noisy, level, self.prediction_type, "sample")
            squares = (estimate - clean).double().square().mean(dim=(1, 2))  # (N,)

            surplus = noise.double().square().mean(dim=(1, 2)) - 1
            slope = (surplus * (squares - squares.mean())).mean() / surplus.var()
            errors[step] = squares.mean() - slope * surplus.mean()
        return errors

    def bound_terms(self, points: Tensor, widened: bool = True) -> Tensor:
        """(T + 1,) nats per point: what each reverse step costs, and last what is left of points in the last noise.

        A step from t to t - 1 is a Gaussian around the clean estimate. With the variance of the posterior that knows
        x_0, as DDPM has it, its KL is half of the gain in signal-to-noise ratio times the squared error of the
        estimate (https://arxiv.org/abs/2107.00630). The estimate is not certain, so that a wider one is better, and
        the best is known: it adds gain times mean squared error (https://arxiv.org/abs/2201.06503).

        Args:
            points: (N, 2).
            widened: by the errors at the training points; otherwise as DDPM has them.
        """
        timesteps = torch.arange(self.num_train_timesteps)
        signal, sigma = (torch.as_tensor(part) for part in self.noise.noise_level(timesteps))
        ratios = (signal / sigma).square()  # (T,)
        errors = self.estimate_errors(points)
        terms = torch.zeros(self.num_train_timesteps + 1, dtype=torch.float64)

        # 1. From each time to the one before, in two coordinates
        gains = ratios[:-1] - ratios[1:]
        widening = 1 + gains * self.mean_squares[1:] if widened else torch.ones_like(gains)
        terms[1:-1] = widening.log() + 1 / widening - 1 + gains * errors[1:] / widening

        # 2. The point itself, by a Gaussian around the clean estimate
        variance = self.mean_squares[0] if widened else 1 / ratios[0]
        terms[0] = (2 * math.pi * variance).log() + errors[0] / variance

        # 3. KL of what is left of the points to N(0, 1)
        squares = signal[-1].square() * points.double().square().mean()
        terms[-1] = squares + sigma[-1].square() - 1 - 2 * sigma[-1].log()
        return terms

    def bound(self, points: Tensor) -> Tensor:
        # The terms are means over points, of which each gets the same share.
        return -self.bound_terms(points).sum().expand(len(points))

    def level(self, step: int) -> NoiseLevel:
        """Of one timestep, in plain numbers."""
        signal, sigma = self.noise.noise_level(step)
        return NoiseLevel(float(signal), float(sigma))

    def velocity(self, points: Tensor, step: int) -> Tensor:
        """(N, 2) noise - x_0 at a timestep, of points x_t / (signal + sigma) on the straight path."""
        level = self.level(step)
        noisy = points.unsqueeze(1) * (level.signal + level.sigma)
        prediction = self.predict(noisy, float(step))
        flow = convert_prediction(prediction, noisy, level, self.prediction_type, "flow")
        return flow.squeeze(1)

    def score(self, points: Tensor, step: int) -> Tensor:
        """(N, 2) gradient of log p_t at points (N, 2), which is -noise / sigma."""
        level = self.level(step)
        noisy = points.unsqueeze(1)
        prediction = self.predict(noisy, float(step))
        noise = convert_prediction(prediction, noisy, level, self.prediction_type, "epsilon")
        return -noise.squeeze(1) / level.sigma

    def log_density(self, points: Tensor) -> Tensor:
        """Along the probability-flow ODE, of points with as much noise as there is at timestep 0."""
        # 1. Where sigma / (signal + sigma) is on the straight path, at some of the timesteps
        last = self.num_train_timesteps - 1
        num_steps = min(ODE_STEPS, last)
        steps = torch.linspace(0, last, num_steps + 1).round().long()
        signal, sigma = (torch.as_tensor(part) for part in self.noise.noise_level(steps))
        times = (sigma / (signal + sigma)).tolist()
        step_at = dict(zip(times, steps.tolist(), strict=True))

        # 2. The points on that path, and how the change of scale changes densities
        begin = (1 - times[0]) * points
        log_density = ode_log_density(
            lambda at, time: self.velocity(at, step_at[time]),
            begin,
            times,
            last_scale=float(signal[-1] + sigma[-1]),
        )
        return log_density + 2 * math.log(1 - times[0])
