"""Train every model of the laboratory on points in the plane, and compare them by a table and by pictures.

    python training_scripts/train_2d.py --points moons --output_dir runs/2d/moons

It needs no accelerator: a set of points takes some minutes of one CPU core. The models stand in `examples/laboratory`,
one a file. A model that is finished is kept: started again, a command goes on with the next one. Read it from top to
bottom: options, training, measures, pictures. Shapes: N points, n steps.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.clean_estimate import PREDICTION_TYPES
from text_diffusers.common.validation import require
from text_diffusers.training.config import check_options, option
from text_diffusers.training.recipes import run

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
if not EXAMPLES.is_dir():
    raise ImportError(
        "the laboratory stands beside the library: run this in a clone of the repository"
    )
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))

from laboratory import pictures  # noqa: E402 - the path above leads to it
from laboratory.base import PointModel  # noqa: E402
from laboratory.diffusion import Diffusion  # noqa: E402
from laboratory.flow_matching import FlowMatching  # noqa: E402
from laboratory.ideal import ideal_diffusion  # noqa: E402
from laboratory.measures import Row, markdown_table, sample_figures  # noqa: E402
from laboratory.models import MODELS, TITLES, make_model  # noqa: E402
from laboratory.points import POINTS, PointSet, make_points  # noqa: E402
from laboratory.samplers import SAMPLERS  # noqa: E402

# Options that do not change what a finished model is
FREE_OPTIONS = ("output_dir", "models", "overwrite_output_dir")
OPTIONS_FILE = "laboratory.json"


@dataclass
class LaboratoryConfig:
    """Options of the laboratory.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = option(help="folder of the models, the table and the pictures")
    points: str = option("moons", "moons, rings, eight_gaussians or words", one_of=POINTS)
    models: list[str] = option([*MODELS], f"some of {', '.join(MODELS)}")
    overwrite_output_dir: bool = option(False, "train anew what is in the folder")
    seed: int = option(0, "of the points, the weights and the noise", limit="at least 0")

    # The budget of every model
    max_train_steps: int = option(
        4000, "plain steps; a model whose step takes longer gets fewer", limit="at least 1"
    )
    train_batch_size: int = option(256, "points in a step", limit="at least 1")
    num_points: int = option(20_000, "to train with; of words, all", limit="at least 1")
    num_samples: int = option(1000, "held-out points, and samples of a model", limit="at least 1")

    # The noise of the diffusion model
    num_train_timesteps: int = option(500, "steps from data to noise", limit="at least 1")
    beta_schedule: str = option(
        "linear", "linear, cosine or sigmoid", one_of=("linear", "cosine", "sigmoid")
    )
    prediction_type: str = option("epsilon", "what its network predicts", one_of=PREDICTION_TYPES)

    def __post_init__(self):
        check_options(self)
        for name in self.models:
            require(name in MODELS, "models", f"among {', '.join(MODELS)}", name, MODELS)


def main(config: LaboratoryConfig) -> list[Row]:
    """Train what is missing, measure and draw; returns the rows of the table."""
    # 1. Points, and a folder that belongs to these options
    folder = Path(config.output_dir)
    prepare_folder(config, folder)
    points = make_points(config.points, config.num_points, config.num_samples, config.seed)

    # 2. Every model, in the order of the table
    rows = [data_row(points)]
    models: dict[str, PointModel] = {}
    samples: dict[str, Tensor] = {}
    for name in MODELS:
        if name not in config.models:
            continue
        # Weights, batches and noise depend on the seed, and not on the models before.
        torch.manual_seed(config.seed)
        model = make_model(name, **noise_options(config))
        kept = folder / "models" / name
        if not Path(kept, "rows.json").exists():
            train_and_measure(config, model, name, points, kept)

        model.load_state_dict(torch.load(kept / "weights.pt"))
        models[TITLES[name]] = model
        samples |= torch.load(kept / "samples.pt")
        records = json.loads(Path(kept, "rows.json").read_text(encoding="utf-8"))
        rows += [Row(**record) for record in records]

    # 3. The table
    table = markdown_table(rows)
    print(table)
    Path(folder, "table.md").write_text(table, encoding="utf-8")
    write_json(folder / "table.json", [row.record() for row in rows])

    # 4. The pictures
    draw(config, folder, points, models, samples)
    return rows


def prepare_folder(config: LaboratoryConfig, folder: Path):
    """Make the folder, or find that what is in it was made with the same options.

    Raises:
        ValueError: if it was made with others.
    """
    options = {name: value for name, value in asdict(config).items() if name not in FREE_OPTIONS}
    file = folder / OPTIONS_FILE
    if config.overwrite_output_dir:
        shutil.rmtree(folder / "models", ignore_errors=True)
    elif file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in options.items():
            limit = f"{before[name]!r}, as in `output_dir`, unless `--overwrite_output_dir true`"
            require(value == before[name], name, limit, value)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, options)


def noise_options(config: LaboratoryConfig) -> dict[str, Any]:
    """The arguments of `Diffusion`."""
    return {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
        "prediction_type": config.prediction_type,
    }


def data_row(points: PointSet) -> Row:
    """Training points in the place of samples: the best that samples can do, and the entropy if it is known."""
    count = len(points.held_out)
    figures = sample_figures(points.training[:count], points.held_out)
    if points.truth is None:
        return Row("training points", **figures)
    nats = -float(points.truth.log_density(points.held_out).mean())
    return Row("training points", **figures, nats=nats, density_kind="exact")


def train_and_measure(
    config: LaboratoryConfig, model: PointModel, name: str, points: PointSet, folder: Path
):
    """Leave weights, samples and rows of the table in the folder of a model."""
    # 1. Training
    begin = time.process_time()
    steps = model.fit(points.training, config.max_train_steps, config.train_batch_size)
    cpu_seconds = time.process_time() - begin
    print(f"{TITLES[name]}: {steps:,} steps, {cpu_seconds:.0f} s of the processor", flush=True)

    # 2. What is known of the density
    log_density = model.log_density(points.held_out)
    with torch.no_grad():
        bound = model.bound(points.held_out)
    known = {
        "steps": steps,
        "cpu_seconds": cpu_seconds,
        "nats": None if log_density is None else -float(log_density.mean()),
        "density_kind": model.density_kind,
        "bound": None if bound is None else -float(bound.mean()),
    }

    # 3. Samples; the first sampler of a diffusion model stands for all in the line of the density
    rows = []
    samples = draw_samples(config, model, name, points)
    for title, drawn in samples.items():
        rows.append(Row(title, **sample_figures(drawn, points.held_out), **known))
        known = {}

    # 4. The rows are written last: a folder that has them is whole
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(samples, folder / "samples.pt")
    write_json(folder / "rows.json", [row.record() for row in rows])


def draw_samples(
    config: LaboratoryConfig, model: PointModel, name: str, points: PointSet
) -> dict[str, Tensor]:
    """(N, 2) samples for each line of the table; all samplers of a network begin with the same noise."""
    count = len(points.held_out)
    if not isinstance(model, Diffusion):
        torch.manual_seed(config.seed + 1)
        return {TITLES[name]: model.sample(count)}

    samples = {}
    for sampler in SAMPLERS:
        torch.manual_seed(config.seed + 1)
        noise = torch.randn(count, 2)
        samples[f"{TITLES[name]}, {sampler}"] = model.path(sampler, noise)[-1]
    if points.truth is not None:
        torch.manual_seed(config.seed + 1)
        ideal = ideal_diffusion(points.truth, **noise_options(config))
        samples["exact denoiser, DDPM"] = ideal.sample(count)
    return samples


def draw(
    config: LaboratoryConfig,
    folder: Path,
    points: PointSet,
    models: dict[str, PointModel],
    samples: dict[str, Tensor],
):
    """Write the pictures; those of a kind of model only where there is one."""
    torch.manual_seed(config.seed + 2)
    pictures.draw_models(folder / "models.png", points, samples)
    if points.truth is not None or any(model.density_kind for model in models.values()):
        pictures.draw_densities(folder / "densities.png", points, models)

    # All ways from noise to points begin at the same noise.
    noise = torch.randn(pictures.SHOWN_POINTS, 2)
    paths: dict[str, Tensor] = {}
    for title, model in models.items():
        if isinstance(model, Diffusion):
            pictures.draw_schedules(folder / "schedules.png", model, points.held_out)
            paths |= {sampler: model.path(sampler, noise) for sampler in SAMPLERS}
        elif isinstance(model, FlowMatching):
            paths[title] = model.path(noise)
    if paths:
        pictures.draw_fields(folder / "fields.png", points, models)
        pictures.draw_paths(folder / "paths.png", points, paths)
        pictures.draw_animation(folder / "paths.gif", points, paths)


def write_json(file: Path, value: Any):
    """Write a file at once: one that is there is whole."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file)


if __name__ == "__main__":
    run(main, LaboratoryConfig)
