"""Masked language models of transformers are opened by their name, and predict what transformers says they do."""

import json

import pytest
import torch
from conftest import mostly_slow
from safetensors.torch import load_file, save_file
from support.masked_lms import make_masked_lm
from transformers import AutoModelForMaskedLM

from text_diffusers import FirstHittingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation import evaluate_likelihood

KINDS = ["bert", "roberta", "distilbert", "electra", "albert", "xlm-roberta"]


def save_masked_lm(kind, folder):
    for part in make_masked_lm(kind):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", mostly_slow(KINDS, ["bert", "roberta"]))
def test_logits_are_those_of_transformers_and_gaps_are_filled(kind, tmp_path):
    folder = save_masked_lm(kind, tmp_path)
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    assert type(pipe.scheduler) is FirstHittingScheduler
    pipe.set_progress_bar_config(disable=True)

    mask = pipe.tokenizer.mask_token
    inputs = pipe.tokenizer(f"Paris is the {mask} of France.", return_tensors="pt")
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(folder).eval()(**inputs).logits
        assert torch.equal(pipe.denoiser(**inputs).logits, expected)

    texts = pipe(text=f"Paris is the {mask} of France.", num_return_sequences=3).texts
    assert all("of france" in text.lower() and mask not in text for text in texts)
    assert evaluate_likelihood(pipe, "the cat sat", num_times=2).perplexity > 1


def test_files_of_the_first_bert_have_other_names_and_heads_of_other_tasks(tmp_path):
    folder = save_masked_lm("bert", tmp_path)
    expected = AutoModelForMaskedLM.from_pretrained(folder).state_dict()
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "LayerNorm" in name:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = tensor
    tensors["bert.pooler.dense.weight"] = torch.ones(2, 2)
    tensors["cls.seq_relationship.bias"] = torch.ones(2)
    save_file(tensors, folder / "model.safetensors")

    found = TextDiffusionPipeline.from_pretrained(folder).denoiser.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_weights_that_are_missing_or_not_understood_are_refused_by_name(tmp_path):
    folder = save_masked_lm("bert", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    head = "cls.predictions.transform.dense.weight"
    save_file({k: v for k, v in tensors.items() if k != head}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"must have '{head}' of a BertForMaskedLM"):
        TextDiffusionPipeline.from_pretrained(folder)

    save_file(tensors | {"bert.more.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="'bert.more.weight', but has none"):
        TextDiffusionPipeline.from_pretrained(folder)

    # Ties of the configuration that the stored numbers do not keep
    name = "bert.embeddings.word_embeddings.weight"
    copy = {"cls.predictions.decoder.weight": tensors[name] + 1}
    save_file(tensors | copy, folder / "model.safetensors")
    with pytest.raises(ValueError, match="must have the same numbers in .*decoder.weight"):
        TextDiffusionPipeline.from_pretrained(folder)
    save_file(
        tensors | {"cls.predictions.decoder.weight": tensors[name].clone()},
        folder / "model.safetensors",
    )
    TextDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_attention_heads": 7}, "`num_attention_heads` must be a divisor"),
        ({"is_decoder": True}, "`is_decoder` must be False"),
        ({"norm_position": "pre"}, "not understood here.*norm_position"),
        ({"hidden_act": "relu6"}, "`hidden_act` must be"),
        ({"tie_word_embeddings": False}, "`tie_word_embeddings` must be True"),
        ({"num_hidden_layers": 10**9}, "`num_hidden_layers` must be a number of which each"),
        ({"architectures": {"BertForMaskedLM": 1}}, "must be of a family that is known"),
        (
            {"architectures": ["BigBirdForMaskedLM"], "model_type": "big_bird"},
            "AutoModelForMaskedLM",
        ),
        ({"model_type": ["bert"]}, "`model_type` must be a string"),
    ],
)
def test_configurations_that_make_another_network_are_refused(change, message, tmp_path):
    folder = save_masked_lm("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        TextDiffusionPipeline.from_pretrained(folder)


def test_what_a_configuration_says_of_code_and_attention_changes_nothing(tmp_path):
    folder = save_masked_lm("bert", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "attn_implementation": "someone/a-kernel",
        "auto_map": {"AutoModelForMaskedLM": "code.Own"},
    }
    config |= {"torch_dtype": "float33", "id2label": {"0": "a"}}
    (folder / "config.json").write_text(json.dumps(config))
    model = TextDiffusionPipeline.from_pretrained(folder).denoiser
    assert model.config._attn_implementation in ("sdpa", "eager")
    assert not hasattr(model.config, "auto_map")
