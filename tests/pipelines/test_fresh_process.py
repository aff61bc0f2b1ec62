"""Saved pipelines of every kind write the same tokens in a process that has nothing but their folders."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import make_denoiser
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline

MASKED_LMS = ("bert", "roberta", "modernbert")
# One process for all: most of its time goes into its imports.
SCRIPT = """
import json
import sys

import torch
from text_diffusers import TextDiffusionPipeline

torch.set_num_threads(1)
for folder, arguments in json.loads(sys.argv[1]).items():
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    output = pipe(**arguments, num_inference_steps=3, generator=torch.Generator().manual_seed(4))
    print(json.dumps([type(pipe).__name__, output.tokens.tolist()]))
"""


def text_pipeline(tokenizer, denoiser):
    return TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )


def make_pipelines(tokenizer):
    """`{name: (pipeline, arguments of a call)}`"""
    prompt = {"prompt": "the cat"}
    text = {"max_new_tokens": 6} | prompt
    drawn = {"temperature": 1.0}

    pipelines = {"text": (text_pipeline(tokenizer, make_denoiser(tokenizer)), text)}
    for kind in MASKED_LMS:
        masked_lm, its_tokenizer = make_masked_lm(kind)
        pipelines[kind] = (text_pipeline(its_tokenizer, masked_lm), text)

    two_levels = make_two_level(tokenizer, prompt_begins_text=True)
    margin = ConfidenceScheduler.from_config(two_levels.fine_scheduler.config, order="margin")
    two_levels.fine_scheduler = margin
    pipelines |= {
        "two levels": (two_levels, drawn | prompt),
        "without prompts": (make_two_level(tokenizer, prompts=None), drawn),
        "one level": (make_two_level(tokenizer, two=False), drawn | prompt),
        "bare": (make_two_level(tokenizer, two=False, prompts=None), drawn),
        "prompts of bert": (make_two_level(tokenizer, prompts="bert"), drawn | prompt),
    }
    return pipelines


@pytest.mark.slow
def test_every_kind_of_pipeline_saves_loads_and_writes_the_same_in_a_fresh_process(
    tokenizer, tmp_path
):
    calls = {}
    wanted = []
    for name, (pipe, arguments) in make_pipelines(tokenizer).items():
        pipe.set_progress_bar_config(disable=True)
        output = pipe(
            **arguments, num_inference_steps=3, generator=torch.Generator().manual_seed(4)
        )
        wanted.append([type(pipe).__name__, output.tokens.tolist()])

        folder = tmp_path / name
        pipe.save_pretrained(folder)
        calls[str(folder)] = arguments
        if name in MASKED_LMS:
            index = json.loads((folder / "model_index.json").read_text())
            assert index["denoiser"] == ["transformers", type(pipe.denoiser).__name__]

    command = [sys.executable, "-c", SCRIPT, json.dumps(calls)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == wanted
    assert not list(tmp_path.rglob("*.bin"))
