"""Put a pipeline that `train_d3pm.py` trained into the package: in half precision, with its figures measured again.

    python training_scripts/ship.py runs/four-voices sentence-transformers/all-MiniLM-L6-v2 --stages runs/next_tokens

The second argument is the repository of the model that all began with, for the card; `--stages` are the folders of the
trainings in between, the first one first. The pipeline is then loaded by its name alone:
`TextDiffusionPipeline.from_pretrained("four-voices")`.
"""

import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from train_d3pm import D3PMConfig, read_data, report

from text_diffusers import TextDiffusionPipeline
from text_diffusers.common.json_files import read_object
from text_diffusers.hub.export import (
    SHIPPED_MODEL,
    copy_records,
    forget_origin,
    write_object,
)
from text_diffusers.hub.model_card import EARLIER_STAGES, earlier_stages_of, model_card
from text_diffusers.pipelines.calls.labels import label_frames, shown_labels
from text_diffusers.training.adaptation.starting_models import local_folder
from text_diffusers.training.config import NOTE_FILE, marked_options
from text_diffusers.training.curves import curves_of
from text_diffusers.training.runtime import make_accelerator

LARGEST = 32_000_000  # bytes of weights
LICENSE = "apache-2.0"

# How it writes by default. Sharper, it would repeat itself more; flatter, it would leave its subject sooner.
WRITING_SHAPE = {"temperature": 0.7, "top_p": 0.9}

# What a corpus is made of, and by which licence it may be used
SOURCES = {
    "four_kinds": (
        "BYU Chit-Chat Challenge (MIT)",
        "novels of Jane Austen (public domain)",
        "speeches on the State of the Union since 1900 (public domain)",
        "World English Bible (public domain)",
    ),
}


def main(run: Path, folder: Path, base_model: str | None = None, stages: Sequence[str | Path] = ()):
    """Round the weights of the pipeline in `run`, save it in `folder`, and measure there what it is worth.

    Args:
        base_model: the repository of the model that the run, or the first of its stages, started from, for the card.
        stages: folders of the trainings before the run, the first one first, or names of shipped models; those before
            a shipped model are in its own note.

    Raises:
        ValueError: if the weights are too large to be shipped, or it is not said what they were made from.
        OSError: if a stage has left no note.
    """
    note = read_object(run / NOTE_FILE)
    options = note["options"]
    if options.get("model_name_or_path") and not base_model:
        raise ValueError(
            "`base_model` must name the repository of the model that `run` started from, whose licence holds on."
        )
    # One of them may lie in the folder that is written anew.
    earlier_stages = [stage for place in stages for stage in stages_up_to(place)]

    # 1. Half the bytes; the wheel holds the model, so it must stay small.
    pipe = TextDiffusionPipeline.from_pretrained(run)
    pipe.to(torch.float16)
    weights = pipe.denoiser.parameters()
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    if size > LARGEST:
        raise ValueError(
            f"`run` must hold at most {LARGEST:,} bytes of weights in half precision, got {size:,}."
        )

    if pipe.generation_defaults:
        pipe.generation_defaults = shipped_defaults(pipe, options["length"])

    # 2. A folder of an older model must leave no file behind.
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    forget_origin(folder)
    load_in_full_precision(folder / "denoiser/config.json")

    # 3. The figures of the rounded weights, on the texts that the run held out
    config = D3PMConfig(**options_of_report(options, run, folder))
    copy_records(run, folder)
    if earlier_stages:
        write_object(folder / NOTE_FILE, note | {EARLIER_STAGES: earlier_stages})
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    report(config, pipe, read_data(config, make_accelerator(config)))

    # 4. The card shows texts, which are written here.
    card = model_card(
        pipe,
        folder,
        name=SHIPPED_MODEL,
        license=LICENSE,
        base_model=base_model,
        with_code=False,
    )
    sources = SOURCES.get(options["dataset"], ())
    if sources:
        card += "\n## Texts it was trained on\n\n" + "".join(f"- {source}\n" for source in sources)
    (folder / "README.md").write_text(card, encoding="utf-8")


def stages_up_to(place: str | Path) -> list[dict[str, Any]]:
    """What the card says of a training and of those before it, from the note and the curves in its folder.

    Args:
        place: the folder, or the name of a shipped model.
    """
    folder = local_folder(str(place)) or Path(place)
    note = read_object(folder / NOTE_FILE)
    stage = {"command": note.get("command")}

    # The last line of the curves has all steps, and the time since the first one.
    curve = curves_of(folder).get("", [])
    if curve:
        stage["num_steps"] = curve[-1]["step"]
        stage["minutes"] = round(curve[-1]["seconds"] / 60, 1)
    return earlier_stages_of({EARLIER_STAGES: [*earlier_stages_of(note), stage]})


def shipped_defaults(pipe: TextDiffusionPipeline, length: int) -> dict[str, Any]:
    """How it writes where a call does not say it: from the left, one token a step, as far as a row of training goes.

    Args:
        length: tokens of such a row, with what stands before its text.
    """
    # A start token, or one around each side of a label
    longest_frame = 1
    prompts = shown_labels(pipe.denoiser, pipe.config)
    if prompts:
        frames = label_frames(pipe.tokenizer, prompts, range(len(prompts)))
        longest_frame = max(len(frame) for frame in frames)

    # Whole blocks, of which each has so many steps
    room = length - longest_frame
    block_length = min(pipe.block_length or room, room)
    num_tokens = room // block_length * block_length
    return {"max_new_tokens": num_tokens, "num_inference_steps": block_length} | WRITING_SHAPE


def load_in_full_precision(config_file: Path):
    """Let transformers load a model in float32, whatever its weights are saved in: CPUs are slow at half precision."""
    config = read_object(config_file)
    # Models of diffusers have no such entry, and are loaded so anyway.
    if "dtype" in config:
        write_object(config_file, config | {"dtype": "float32"})


def options_of_report(options: dict[str, Any], run: Path, folder: Path) -> dict[str, Any]:
    """The options of a run for the report on its model, which is in `folder` now.

    The texts are cut by the run's own tokenizer, since one that is trained or pruned anew might differ.
    """
    kept = options | {"output_dir": str(folder), "overwrite_output_dir": True}
    if not options.get("model_name_or_path"):
        return kept | {"tokenizer": str(run / "tokenizer")}

    # What was made of a pretrained model is a pipeline of its own, which has settled what it is.
    settled = {"prune_vocabulary", "retrain_tokenizer", "attention", "alignment", "lora_rank"}
    settled.update(marked_options(D3PMConfig, "part_of", "pipeline"))
    kept = {name: value for name, value in kept.items() if name not in settled}
    return kept | {"model_name_or_path": str(run)}


if __name__ == "__main__":
    parser = ArgumentParser(description="Put a trained pipeline into the package.")
    parser.add_argument("run", type=Path, help="folder of a pipeline that train_d3pm.py trained")
    parser.add_argument("base_model", nargs="?", help="repository of the model that all began with")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=[],
        help="folders of the trainings before `run`, the first one first, or names of shipped models",
    )
    # The repository, and not an installed package, which may consist of links to it
    shipped = Path(__file__).parent.parent / "src" / "text_diffusers" / "shipped"
    words = parser.parse_args()
    main(words.run, shipped / SHIPPED_MODEL, words.base_model, words.stages)
