"""Pictures of the laboratory: models, densities, samplers on their way, fields, schedules, and an animation.

Shapes: N points, T training timesteps, n steps, G points of a grid.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from laboratory.base import PointModel
from laboratory.diffusion import Diffusion
from laboratory.flow_matching import FlowMatching
from laboratory.points import PointSet
from text_diffusers.evaluation.plots import pyplot
from text_diffusers.schedulers.embedding_noise import embedding_betas

DPI = 80
NUM_COLORS = 96  # of a file, which keeps it small
LIMIT = 2.6  # of the axes
DATA_COLOR = "0.8"
POINT_COLOR = "tab:blue"
SHOWN_POINTS = 600
SHOWN_PATHS = 40
SHOWN_RANDOM_PATHS = 4  # which cover the whole panel
SHOWN_TIMES = (0.0, 0.4, 0.7, 0.85, 1.0)  # shares of a path
SHOWN_LEVELS = (0.9, 0.5, 0.2)  # sigma / (signal + sigma) of the fields
NAME_WIDTH = 2.0
NAME_HEIGHT = 0.35
DENSITY_SIZE = 64
FIELD_SIZE = 19
LOWEST_LOG_DENSITY = -6.0
NUM_FRAMES = 28
FRAME_MILLISECONDS = 110
LAST_FRAME_MILLISECONDS = 2000
SCHEDULES = ("linear", "cosine", "sigmoid")


def save_small(figure: Any, path: Path):
    """Write a figure as PNG of few colours, and close it."""
    image = image_of(figure)
    pyplot().close(figure)
    image.save(path, optimize=True)


def image_of(figure: Any) -> Image.Image:
    """A figure as a picture of few colours."""
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    return image.quantize(NUM_COLORS, dither=Image.Dither.NONE)


def panels(num_rows: int, num_columns: int, size: float = 2.1) -> tuple[Any, Any]:
    """A figure, and its square axes (rows, columns) without ticks, all of the same part of the plane."""
    figure, axes = pyplot().subplots(
        num_rows,
        num_columns,
        figsize=(size * num_columns, size * num_rows),
        dpi=DPI,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
    return figure, axes


def scatter(axis: Any, points: Tensor, color: Any = POINT_COLOR, size: float = 2.0) -> Any:
    """Draw points (N, 2), the first so many of them."""
    shown = points[:SHOWN_POINTS]
    return axis.scatter(shown[:, 0], shown[:, 1], s=size, color=color, linewidths=0)


def draw_models(path: Path, points: PointSet, samples: dict[str, Tensor]):
    """Samples of every model over the held-out points, which are grey; of words the first panel has some."""
    num_columns = 6
    num_rows = -(-(len(samples) + 1) // num_columns)
    figure, axes = panels(num_rows, num_columns)
    scatter(axes.flat[0], points.held_out, "0.4" if points.names is None else DATA_COLOR)
    axes.flat[0].set_title("held-out points", fontsize=9)
    for x, y, name in legible_names(points):
        axes.flat[0].text(x, y, name, fontsize=7, ha="center", va="center")

    for axis, (title, drawn) in zip(axes.flat[1:], samples.items(), strict=False):
        scatter(axis, points.held_out, DATA_COLOR)
        scatter(axis, drawn)
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[len(samples) + 1 :]:
        axis.axis("off")
    save_small(figure, path)


def legible_names(points: PointSet) -> list[tuple[float, float, str]]:
    """Places and words of some points, the first ones that leave room for each other."""
    chosen: list[tuple[float, float, str]] = []
    for (x, y), name in zip(points.held_out.tolist(), points.names or [], strict=False):
        is_inside = abs(x) + NAME_WIDTH / 2 < LIMIT and abs(y) < LIMIT
        if is_inside and all(
            abs(x - other_x) > NAME_WIDTH or abs(y - other_y) > NAME_HEIGHT
            for other_x, other_y, _ in chosen
        ):
            chosen.append((x, y, name))
    return chosen


def draw_densities(path: Path, points: PointSet, models: dict[str, PointModel]):
    """The log-density of every model that has one, in colours that all panels share."""
    axis_values = torch.linspace(-LIMIT, LIMIT, DENSITY_SIZE)
    grid = torch.cartesian_prod(axis_values, axis_values)  # (G, 2)
    surfaces: dict[str, Tensor] = {}
    if points.truth is not None:
        surfaces["the truth"] = points.truth.log_density(grid)
    for title, model in models.items():
        log_density = model.log_density(grid)
        if log_density is not None:
            surfaces[title] = log_density

    num_columns = 4
    figure, axes = panels(-(-len(surfaces) // num_columns), num_columns)
    highest = max(float(surface.max()) for surface in surfaces.values())
    image = None
    for axis, (title, surface) in zip(axes.flat, surfaces.items(), strict=False):
        image = axis.imshow(
            surface.reshape(DENSITY_SIZE, DENSITY_SIZE).T,
            origin="lower",
            extent=(-LIMIT, LIMIT, -LIMIT, LIMIT),
            vmin=LOWEST_LOG_DENSITY,
            vmax=highest,
            cmap="viridis",
        )
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[len(surfaces) :]:
        axis.axis("off")
    figure.colorbar(image, ax=axes, shrink=0.8, label="log p, nats")
    save_small(figure, path)


def draw_paths(path: Path, points: PointSet, paths: dict[str, Tensor]):
    """A line a sampler: the cloud at some times of its way, and the whole way of some points.

    Args:
        paths: (n + 1, N, 2) of each sampler.
    """
    figure, axes = panels(len(paths), len(SHOWN_TIMES) + 1, size=1.7)
    for row, (title, way) in zip(axes, paths.items(), strict=True):
        for axis, share in zip(row, SHOWN_TIMES, strict=False):
            scatter(axis, points.held_out, DATA_COLOR)
            scatter(axis, way[frame_at(share, len(way))])
        row[0].set_ylabel(f"{title}\n{len(way) - 1} calls", fontsize=9)

        lines = way[:, : SHOWN_RANDOM_PATHS if is_random(way) else SHOWN_PATHS]
        row[-1].plot(lines[:, :, 0], lines[:, :, 1], linewidth=0.6)
        scatter(row[-1], lines[-1], "black", size=8.0)
    for axis, share in zip(axes[0], SHOWN_TIMES, strict=False):
        axis.set_title(f"{share:.0%} of the way", fontsize=9)
    axes[0, -1].set_title("trajectories", fontsize=9)
    save_small(figure, path)


def is_random(way: Tensor) -> bool:
    """Whether paths (n + 1, N, 2) are much longer than the distance that they cover."""
    lengths = way.diff(dim=0).norm(dim=2).sum(dim=0)
    distances = (way[-1] - way[0]).norm(dim=1)
    return bool(lengths.sum() > 5 * distances.sum())


def frame_at(share: float, length: int) -> int:
    """Index of a path at a share of its way."""
    return round(share * (length - 1))


def draw_fields(path: Path, points: PointSet, models: dict[str, PointModel]):
    """Where the network sends a point: the score of the diffusion, and the velocities of both ODEs, at some times.

    Arrows have the length that they have, but for a scale of each panel.
    """
    axis_values = torch.linspace(-LIMIT, LIMIT, FIELD_SIZE)
    grid = torch.cartesian_prod(axis_values, axis_values)
    fields: dict[str, Callable[[float], tuple[Tensor, Tensor]]] = {}
    for title, model in models.items():
        if isinstance(model, Diffusion):
            fields[f"{title}: score"] = score_field(model, points.held_out, grid)
            fields[f"{title}: probability flow"] = flow_field(model, points.held_out, grid)
        elif isinstance(model, FlowMatching):
            fields[title] = velocity_field(model, points.held_out, grid)

    figure, axes = panels(len(fields), len(SHOWN_LEVELS), size=2.6)
    for row, (title, field) in zip(axes, fields.items(), strict=True):
        for axis, level in zip(row, SHOWN_LEVELS, strict=True):
            noisy, arrows = field(level)
            scatter(axis, noisy, DATA_COLOR)
            axis.quiver(grid[:, 0], grid[:, 1], arrows[:, 0], arrows[:, 1], width=0.004)
        row[0].set_ylabel(title, fontsize=9)
    for axis, level in zip(axes[0], SHOWN_LEVELS, strict=True):
        axis.set_title(f"σ / (signal + σ) = {level}", fontsize=9)
    save_small(figure, path)


def nearest_step(model: Diffusion, share: float) -> int:
    """The timestep whose sigma / (signal + sigma) is nearest to a share."""
    steps = torch.arange(model.num_train_timesteps)
    signal, sigma = (torch.as_tensor(part) for part in model.noise.noise_level(steps))
    return int((sigma / (signal + sigma) - share).abs().argmin())


def score_field(model: Diffusion, clean: Tensor, grid: Tensor) -> Any:
    @torch.no_grad()
    def field(share: float) -> tuple[Tensor, Tensor]:
        step = nearest_step(model, share)
        level = model.level(step)
        noisy = level.signal * clean + level.sigma * torch.randn_like(clean)
        return noisy, model.score(grid, step)

    return field


def flow_field(model: Diffusion, clean: Tensor, grid: Tensor) -> Any:
    @torch.no_grad()
    def field(share: float) -> tuple[Tensor, Tensor]:
        # Samples go backwards in time.
        return on_straight_path(clean, share), -model.velocity(grid, nearest_step(model, share))

    return field


def velocity_field(model: FlowMatching, clean: Tensor, grid: Tensor) -> Any:
    @torch.no_grad()
    def field(share: float) -> tuple[Tensor, Tensor]:
        return on_straight_path(clean, share), -model.velocity(grid, share)

    return field


def on_straight_path(clean: Tensor, share: float) -> Tensor:
    """(N, 2) points with a share of noise."""
    return (1 - share) * clean + share * torch.randn_like(clean)


def draw_schedules(path: Path, model: Diffusion, held_out: Tensor):
    """Three schedules, as signal and as signal-to-noise ratio, and what each step adds to the bound."""
    figure, axes = pyplot().subplots(1, 3, figsize=(11, 3), dpi=DPI, layout="constrained")
    times = torch.arange(model.num_train_timesteps) / model.num_train_timesteps
    for name in SCHEDULES:
        alphas = (1 - embedding_betas(name, model.num_train_timesteps)).cumprod(dim=0)
        axes[0].plot(times, alphas.sqrt(), label=name)
        axes[1].plot(times, torch.logit(alphas), label=name)
    axes[0].set(title="signal at time t", xlabel="t")
    axes[1].set(title="log signal-to-noise ratio", xlabel="t")
    axes[0].legend()

    # The last term, of the point itself, is below zero, and is only part of the sum.
    for title, widened in (("DDPM's variances", False), ("the best variances", True)):
        terms = model.bound_terms(held_out, widened)
        label = f"{title}: {float(terms.sum()):.2f} in all"
        axes[2].plot(times[1:], terms[1:-1], label=label)
    axes[2].set(title="bound: nats of each step", xlabel="t", xscale="log", yscale="log")
    axes[2].legend()
    save_small(figure, path)


def draw_animation(path: Path, points: PointSet, paths: dict[str, Tensor]):
    """A GIF of all samplers on their way, side by side; each takes the whole film, however many steps it has."""
    figure, axes = panels(2, -(-len(paths) // 2), size=1.75)
    clouds = []
    for axis, (title, way) in zip(axes.flat, paths.items(), strict=False):
        scatter(axis, points.held_out, DATA_COLOR)
        clouds.append((scatter(axis, way[0], size=3.0), way))
        axis.set_title(title, fontsize=9)
    for axis in axes.flat[len(paths) :]:
        axis.axis("off")

    # The layout of the first frame is that of all.
    figure.canvas.draw()
    figure.set_layout_engine("none")
    images = []
    for frame in range(NUM_FRAMES):
        for cloud, way in clouds:
            cloud.set_offsets(way[frame_at(frame / (NUM_FRAMES - 1), len(way))])
        images.append(image_of(figure))
    pyplot().close(figure)

    durations = [FRAME_MILLISECONDS] * (NUM_FRAMES - 1) + [LAST_FRAME_MILLISECONDS]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True
    )
