"""Put a pipeline that `train_d3pm.py` trained into the package: in half precision, with its figures measured again.

    python training_scripts/ship.py runs/chat-and-novels

It is then loaded by its name alone: `TextDiffusionPipeline.from_pretrained("chat-and-novels")`.
"""

import shutil
import sys
from pathlib import Path

import corpora  # noqa: F401 - names for `--dataset`
import torch
from train_d3pm import D3PMConfig, report

from text_diffusers import TextDiffusionPipeline
from text_diffusers.common.json_files import read_object
from text_diffusers.hub.export import SHIPPED_MODEL, copy_records, forget_origin
from text_diffusers.hub.model_card import model_card
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.runtime import make_accelerator
from text_diffusers.training.text_options import prepare_data

LARGEST = 10_000_000  # bytes of weights


def main(run: Path, folder: Path):
    """Round the weights of the pipeline in `run`, save it in `folder`, and measure there what it is worth.

    Raises:
        ValueError: if the weights are too large to be shipped.
    """
    # 1. Half the bytes; a folder of an older model must leave no file behind.
    pipe = TextDiffusionPipeline.from_pretrained(run)
    pipe.to(torch.float16)
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder)
    forget_origin(folder)

    # 2. The wheel holds the model, so it must stay small.
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    if size > LARGEST:
        raise ValueError(
            f"`run` must hold at most {LARGEST:,} bytes of weights in half precision, got {size:,}."
        )

    # 3. The figures of the rounded weights, on the texts that the run held out. They are cut by the
    # run's own tokenizer, since one that is trained anew might differ.
    options = read_object(run / NOTE_FILE)["options"]
    options |= {
        "output_dir": str(folder),
        "tokenizer": str(run / "tokenizer"),
        "overwrite_output_dir": True,
    }
    config = D3PMConfig(**options)
    copy_records(run, folder)
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    report(config, pipe, prepare_data(config, make_accelerator(config)))

    # 4. The card shows texts, which are written here in full precision, as on a CPU.
    pipe.to(torch.float32)
    card = model_card(pipe, folder, name=SHIPPED_MODEL, license="apache-2.0")
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python training_scripts/ship.py FOLDER_OF_A_TRAINED_PIPELINE")
    # The repository, and not an installed package, which may consist of links to it
    shipped = Path(__file__).parent.parent / "src" / "text_diffusers" / "shipped"
    main(Path(sys.argv[1]), shipped / SHIPPED_MODEL)
