"""Pipelines with language models are published as others are: stock diffusers opens the folder, and the card fits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from huggingface_hub import metadata_load
from support.language_models import chat_pipe
from support.masked_lms import make_masked_lm

from text_diffusers import (
    BertEmbeddingDenoiser,
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.hub import save_with_code
from text_diffusers.hub.card_examples import examples_of
from text_diffusers.hub.model_card import model_card

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

QUESTION = [{"role": "user", "content": "w8 w9"}]
CALLS = {
    "chat": {"messages": QUESTION, "max_new_tokens": 8, "num_inference_steps": 4},
    "windows": {
        "messages": QUESTION,
        "max_new_tokens": 8,
        "num_inference_steps": 4,
        "block_length": 4,
        "approximate_cache": "dual",
    },
    "blocks": {"prompt": "w8 w9", "max_new_tokens": 9, "num_inference_steps": 4},
    "causal-past": {
        "prompt": "w8 w9",
        "max_new_tokens": 9,
        "num_inference_steps": 4,
        "block_length": 3,
    },
    # Two labels, whose prompts a stock loader must not take for a component; the rest is by the pipeline's defaults.
    "labels": {"prompt": "w8 w9", "class_labels": "loud", "guidance_scale": 2.0},
    "bert-embeddings": {"length": 6, "num_inference_steps": 5, "num_return_sequences": 2},
}

LOADER = """
import json, sys
sys.modules["text_diffusers"] = None
import torch
from diffusers import DiffusionPipeline
written = {}
for name, call in json.load(open("calls.json")).items():
    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    written[name] = pipe(**call, generator=torch.Generator().manual_seed(0)).texts
print(json.dumps(written))
"""


def bert_embedding_pipe():
    _, tokenizer = make_masked_lm("bert")
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    denoiser = BertEmbeddingDenoiser(
        vocab_size=len(tokenizer), max_length=16, embedding_dim=8, feed_forward_size=32, **sizes
    )
    return DiffusionLMPipeline(tokenizer, denoiser.eval(), EmbeddingDDIMScheduler())


def labelled_pipe():
    plain = chat_pipe(alignment="shifted")
    return TextDiffusionPipeline(
        plain.tokenizer,
        plain.denoiser,
        ConfidenceScheduler(0, order="left_to_right", window=3),
        label_names=["calm", "loud"],
        label_prompts=["w30", "w31 w32"],
        generation_defaults={"num_inference_steps": 5, "max_new_tokens": 7, "temperature": 0.8},
    )


def make_pipe(name):
    if name == "bert-embeddings":
        pipe = bert_embedding_pipe()
    elif name == "labels":
        pipe = labelled_pipe()
    elif name == "blocks":
        pipe = chat_pipe(attention="block", scheduler=D3PMAbsorbingScheduler(0))
    elif name == "causal-past":
        reading = {"attention": "block", "past": "causal", "alignment": "shifted"}
        pipe = chat_pipe(**reading, scheduler=D3PMAbsorbingScheduler(0))
    else:
        pipe = chat_pipe("qwen2", alignment="shifted")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with one published folder for each kind, and what each pipeline writes."""
    place = tmp_path_factory.mktemp("published")
    written = {}
    for name, call in CALLS.items():
        pipe = make_pipe(name)
        written[name] = pipe(**call, generator=torch.Generator().manual_seed(0)).texts
        save_with_code(pipe, place / name)
    return place, written


@pytest.mark.slow
def test_stock_diffusers_without_the_package_writes_the_same(published):
    place, written = published
    (place / "calls.json").write_text(json.dumps(CALLS))
    environment = os.environ | {
        "HF_MODULES_CACHE": str(place / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOADER],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == written


def test_ours_loads_the_folder_without_its_code(published):
    place, written = published
    for name, call in CALLS.items():
        owner = DiffusionLMPipeline if name == "bert-embeddings" else TextDiffusionPipeline
        pipe = owner.from_pretrained(place / name)
        pipe.set_progress_bar_config(disable=True)
        assert pipe(**call, generator=torch.Generator().manual_seed(0)).texts == written[name]


def test_the_card_asks_a_chat_model_something_and_tells_how_it_is_read():
    pipe = chat_pipe(attention="block")
    first, *others = examples_of(pipe, {})
    assert first.arguments == {
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "max_new_tokens": 32,
        "num_inference_steps": 4,
    }
    assert [example.title for example in others] == ["Continue a text", "Fill in a text"]
    assert '[{"role": "user", "content": "Why is the sky blue?"}]' in first.source()
    card = model_card(pipe, name="mine")
    assert "| block | 4 tokens, written together |" in card
    assert "texts end at `<\\|end\\|>`, `<\\|eot\\|>`" in card

    # Greedy texts from nothing are all the same, so one is shown.
    pipe = chat_pipe()
    pipe.tokenizer.chat_template = None
    assert "num_return_sequences" not in examples_of(pipe, {})[0].arguments
    pipe.scheduler = ConfidenceScheduler(0)
    assert examples_of(pipe, {})[0].arguments["num_return_sequences"] == 4


def test_the_card_tells_labels_and_defaults_and_asks_for_what_they_leave_open():
    pipe = labelled_pipe()
    pipe.tokenizer.chat_template = None
    arguments = examples_of(pipe, {})[0].arguments
    assert arguments == {"class_labels": ["calm", "loud"], "num_return_sequences": 2}
    card = model_card(pipe, name="mine")
    assert "| labels | `calm`, `loud` |" in card and "| their prompts | `w30`, `w31 w32` |" in card
    defaults = "`num_inference_steps=5`, `temperature=0.8`, `max_new_tokens=7`"
    assert f"| writes by default with | {defaults} |" in card

    # A temperature of the scheduler comes first.
    pipe.scheduler = ConfidenceScheduler(0, temperature=0.5)
    in_force = "`num_inference_steps=5`, `max_new_tokens=7`"
    assert f"| writes by default with | {in_force} |" in model_card(pipe, name="mine")


def test_the_card_names_the_model_that_this_one_was_made_from(tmp_path):
    """Loaded from the Hub by name, told by the card of a converted folder, noted in training, or by the caller."""
    pipe = chat_pipe()

    def base(**arguments):
        (tmp_path / "card.md").write_text(model_card(pipe, name="mine", **arguments))
        return metadata_load(tmp_path / "card.md").get("base_model")

    assert base() is None
    pipe.register_to_config(_name_or_path=str(tmp_path))
    assert base() is None
    pipe.register_to_config(_name_or_path="GSAI-ML/LLaDA-8B-Instruct")
    assert base() == "GSAI-ML/LLaDA-8B-Instruct"
    assert base(repo_id="GSAI-ML/LLaDA-8B-Instruct") is None
    assert base(base_model="Dream-org/Dream-v0-Base-7B") == "Dream-org/Dream-v0-Base-7B"
    card = model_card(pipe, name="mine")
    assert card.index("arXiv:2502.09992") < card.index("arXiv:2202.04200")
    assert card.count("[arXiv:2502.09992]") == 1

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "README.md").write_text("---\nbase_model: JetLM/SDAR-1.7B-Chat\n---\n")
    assert base(folder=folder) == "JetLM/SDAR-1.7B-Chat"
    options = {"options": {"model_name_or_path": "openai-community/gpt2"}}
    (folder / "training_config.json").write_text(json.dumps(options))
    assert base(folder=folder) == "openai-community/gpt2"
    with pytest.raises(ValueError, match="base_model|Repo id"):
        model_card(pipe, name="mine", base_model="no such/name at all")
