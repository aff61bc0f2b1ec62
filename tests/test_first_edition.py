"""Folders that the first edition saved are loaded, and write to the last token what they wrote then.

`tests/golden/first_edition` holds them as they were saved, one of each class and kernel, and what they wrote. The
arguments of the calls are those of today: some had other names then.
"""

import functools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import text_diffusers
from text_diffusers import TextDiffusionPipeline

FOLDERS = Path(__file__).parent / "golden" / "first_edition"
HISTORIES = json.loads((FOLDERS / "histories.json").read_text(encoding="utf-8"))["histories"]
PROMPTS = ["the cat", "a bird sang in the tree", "she"]


class Call(NamedTuple):
    """A call of a saved pipeline.

    Attributes:
        folder: where the pipeline is.
        title: of the call among those of the folder.
        arguments: of the call, but for the generator, whose seed is 0.
        has_row_generators: whether each text has a generator, with its number for a seed.
    """

    folder: str
    title: str
    arguments: dict[str, Any]
    has_row_generators: bool = False

    @property
    def name(self) -> str:
        return f"{self.folder}: {self.title}"


SIX = {"num_inference_steps": 6, "max_new_tokens": 8}
LABELLED = {"class_labels": [0, "merry"], "guidance_scale": 2.0}
TWO_LEVELS = {"num_inference_steps": (4, 3)}
PARAPHRASE = {"source": ["the cat sat", "a bird"], "num_inference_steps": 5, "max_new_tokens": 8}
CALLS = [
    Call(
        "text_lengths",
        "lengths behind prompts",
        {"num_inference_steps": 6, "prompt": ["the cat", "she", "the"]},
        has_row_generators=True,
    ),
    Call("text_lengths", "limit instead of lengths", SIX | {"prompt": PROMPTS}),
    Call("text_uniform", "prompts", SIX | {"prompt": PROMPTS}),
    Call("text_hybrid", "prompts", SIX | {"prompt": PROMPTS}),
    Call("text_neighbors", "prompts", SIX | {"prompt": PROMPTS}),
    Call("text_bert", "prompts", SIX | {"prompt": PROMPTS, "max_new_tokens": 5}),
    Call(
        "cfg_both",
        "guide_by both",
        SIX | LABELLED | {"prompt": ["the cat", "a bird sang"], "guide_by": "both"},
    ),
    Call(
        "cfg_both",
        "source, guide_by label",
        SIX
        | LABELLED
        | {"source": ["the cat", "a bird sang"], "guidance_scale": [2.0, 0.5], "guide_by": "label"},
    ),
    Call(
        "block",
        "prompts",
        {"num_inference_steps": 3, "prompt": PROMPTS, "max_new_tokens": 9},
        has_row_generators=True,
    ),
    Call("embed_ddim", "prompt renoised", SIX | {"prompt": "the cat", "known_words": "renoise"}),
    Call(
        "guided_both",
        "guide_by both",
        {
            "source": PROMPTS[:2],
            "class_labels": [0, 1],
            "length": 6,
            "num_inference_steps": 6,
            "guidance_scale": 2.0,
            "guide_by": "both",
        },
    ),
    Call("paraguide", "strength 0, whole nucleus", PARAPHRASE | {"strength": 0.0, "top_p": 1.0}),
    Call("tokenpara_absorbing", "guided", PARAPHRASE | {"guidance_scale": 2.0}),
    Call(
        "two_level",
        "guided",
        TWO_LEVELS | {"prompt": ["the cat sat", "a bird"], "guidance_scale": (2.0, 1.5)},
    ),
    Call(
        "two_level",
        "temperature and nucleus",
        TWO_LEVELS | {"prompt": ["the", "a bird"], "temperature": 0.7, "top_p": 0.6},
        has_row_generators=True,
    ),
]


@functools.cache
def load(folder):
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def written(pipe, call):
    """What the call returns, as the histories hold it."""
    generator = torch.Generator().manual_seed(0)
    if call.has_row_generators:
        num_texts = len(call.arguments["prompt"])
        generator = [torch.Generator().manual_seed(row) for row in range(num_texts)]

    output = pipe(**call.arguments, generator=generator)
    found = {}
    for field in HISTORIES[call.name]:
        value = getattr(output, field)
        found[field] = value.tolist() if isinstance(value, torch.Tensor) else value
    return found


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_a_folder_of_the_first_edition_writes_what_it_wrote_then(call):
    folder = FOLDERS / call.folder
    pipe = load(folder)
    earlier_class = json.loads((folder / "model_index.json").read_text())["_class_name"]
    assert type(pipe) is getattr(text_diffusers, earlier_class)
    assert written(pipe, call) == HISTORIES[call.name]


def test_every_class_of_the_first_edition_has_a_folder():
    indices = [json.loads(file.read_text()) for file in FOLDERS.glob("*/model_index.json")]
    assert {index["_class_name"] for index in indices} == {
        "TextDiffusionPipeline",
        "TextDiffusionCFGPipeline",
        "TextBlockDiffusionPipeline",
        "DiffusionLMPipeline",
        "GuidedDiffusionLMPipeline",
        "ParaGuidePipeline",
        "TokenParaGuidePipeline",
        "TwoLevelVQDiffusionPipeline",
    }
    assert {file.parent.name for file in FOLDERS.glob("*/model_index.json")} == {
        call.folder for call in CALLS
    }


def test_a_folder_with_code_of_the_first_edition_is_loaded_by_the_installed_classes(tmp_path):
    """Packed, since its code is none of this repository."""
    shutil.unpack_archive(FOLDERS / "exported_text_absorbing.zip", tmp_path)
    assert list(tmp_path.glob("text_diffusers_0_1_0_*_pipeline_text_diffusion.py"))

    pipe = load(tmp_path)
    assert type(pipe) is TextDiffusionPipeline
    call = Call("exported_text_absorbing", "prompts", SIX | {"prompt": PROMPTS})
    assert written(pipe, call) == HISTORIES[call.name]
