"""Small checkpoints in the layouts of others, and changes of them."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text_diffusers.hub.published.checkpoint import check_weights, stored_tensors
from text_diffusers.hub.published.families import blueprint_of
from text_diffusers.hub.published.repository import published_config

GOLDEN = Path(__file__).parent.parent / "golden/published"

# The language models of transformers among the families.
LANGUAGE_MODELS = (
    "llada",
    "illada",
    "dream",
    "a2d_qwen3",
    "sdar",
    "diffugpt",
    "diffullama",
    "modernbert_mdlm",
)


def golden_numbers(family):
    return json.loads((GOLDEN / family / "golden.json").read_text())


def golden_files(family):
    """`(configuration, stored tensors)` of a golden checkpoint."""
    return published_config(GOLDEN / family), stored_tensors(GOLDEN / family)


def read_checkpoint(family, config, stored):
    """The blueprint of a checkpoint, once it is checked; it has the name of the golden one."""
    blueprint = blueprint_of(config, stored, family)
    check_weights(blueprint, stored)
    return blueprint


def copy_checkpoint(family, folder, config=None, tensors=None):
    """A copy of a golden checkpoint in one file, with another configuration or other tensors."""
    folder.mkdir(parents=True)
    for file in (GOLDEN / family).glob("*.json"):
        if file.name not in ("golden.json", "model.safetensors.index.json"):
            shutil.copy(file, folder)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    save_file(golden_tensors(family) if tensors is None else tensors, folder / "model.safetensors")
    return folder


def golden_tensors(family):
    tensors = {}
    for file in sorted((GOLDEN / family).glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def numbered_tokenizer(num_tokens, special=None, **names):
    """A tokenizer of the words w0, w1, ..., some of which have other names.

    Args:
        special: names by id.
        names: such as `eos_token`.
    """
    vocabulary = {(special or {}).get(token, f"w{token}"): token for token in range(num_tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def real_rows(family, case):
    """(B, L) 1 at real tokens of a golden case; `None` where it has no padding."""
    inputs = {name: torch.tensor(value) for name, value in case["inputs"].items()}
    if "attention_mask" in inputs:
        return inputs["attention_mask"]
    if family == "a2d_qwen3" and "block_length" in case:
        # Pads, which are on the left, have an id of their own.
        return (inputs["input_ids"] != 85).long()
    return None
