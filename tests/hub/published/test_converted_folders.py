"""A converted checkpoint in a fresh process: nothing but the folder, no network, and no code of others."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support.published_checkpoints import GOLDEN, golden_numbers, numbered_tokenizer

from text_diffusers.hub import load_denoiser
from text_diffusers.hub.published.convert import convert

MASKS = {"llada": 90, "illada": 5, "dream": 90, "a2d_qwen3": 90, "sdar": 90, "llada2": 90}
MASKS |= {"diffugpt": 66, "diffullama": 66, "modernbert_mdlm": 90, "mdlm": 90, "bd3lm": 90}
MASKS |= {"sedd": 90, "gidd": 79, "duo": 89, "udlm": 79}

CHILD = """
import json, socket, sys
import torch

def refuse(*args):
    raise OSError("there is no network")

socket.socket.connect = refuse
from text_diffusers import TextDiffusionPipeline
from text_diffusers.models import as_denoiser

written = {}
for family, case in json.load(open(sys.argv[1])).items():
    pipe = TextDiffusionPipeline.from_pretrained(case["folder"])
    pipe.set_progress_bar_config(disable=True)
    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer, but=range(10_000))
    with torch.no_grad():
        logits = denoiser(torch.tensor(case["input_ids"]), torch.tensor(case["timestep"])).logits
    settings = {"max_new_tokens": 6, "num_inference_steps": 3}
    generator = torch.Generator().manual_seed(0)
    texts = pipe("w1 w2 w3", generator=generator, **settings).texts
    written[family] = {"logits": logits.tolist(), "texts": texts, "class": type(pipe.denoiser).__name__}
    assert not any("trust_remote_code" in str(value) for value in pipe.config.values())
json.dump(written, open(sys.argv[2], "w"))
"""


def first_case(family):
    case = golden_numbers(family)["forward"][0]
    times = case["inputs"].get("timesteps_t", [0.5])
    rows = case["inputs"]["input_ids"]
    if case.get("mode") == "train":
        rows = [row[: len(row) // 2] for row in rows]
    return rows, (times * len(rows))[: len(rows)]


@pytest.mark.slow
def test_converted_folders_give_the_same_in_a_fresh_process_without_network(tmp_path):
    cases = {}
    expected = {}
    for family, mask in MASKS.items():
        denoiser = load_denoiser(GOLDEN / family)
        vocab_size = denoiser.config.vocab_size
        tokenizer = numbered_tokenizer(vocab_size, {mask: "<mask>"}, mask_token="<mask>")
        folder = tmp_path / family
        pipe = convert(GOLDEN / family, folder, tokenizer=tokenizer)
        pipe.set_progress_bar_config(disable=True)

        rows, times = first_case(family)
        with torch.no_grad():
            logits = denoiser(torch.tensor(rows), torch.tensor(times)).logits
        generator = torch.Generator().manual_seed(0)
        settings = {"max_new_tokens": 6, "num_inference_steps": 3}
        texts = pipe("w1 w2 w3", generator=generator, **settings).texts
        expected[family] = (logits, texts)
        cases[family] = {"folder": str(folder), "input_ids": rows, "timestep": times}
        assert not list(folder.rglob("*.py")) and (folder / "README.md").is_file()

    (tmp_path / "cases.json").write_text(json.dumps(cases))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    arguments = [tmp_path / "cases.json", tmp_path / "written.json"]
    subprocess.run([sys.executable, "-c", CHILD, *arguments], env=environment, check=True)

    written = json.loads((tmp_path / "written.json").read_text())
    for family, (logits, texts) in expected.items():
        torch.testing.assert_close(
            torch.tensor(written[family]["logits"]), logits, atol=1e-6, rtol=1e-6
        )
        assert written[family]["texts"] == texts, family
    assert {entry["class"] for entry in written.values()} == {
        "LlamaForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "GPT2LMHeadModel",
        "Glm4MoeForCausalLM",
        "ModernBertForMaskedLM",
        "TextTransformerModel",
    }
