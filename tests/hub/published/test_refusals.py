"""A checkpoint with a key or tensor that is not understood is refused by its name."""

import json
from dataclasses import replace

import pytest
from conftest import mostly_slow
from support.published_checkpoints import (
    GOLDEN,
    LANGUAGE_MODELS,
    copy_checkpoint,
    golden_files,
    golden_tensors,
    read_checkpoint,
)

from text_diffusers.hub import load_denoiser
from text_diffusers.hub.published.families import blueprint_of

# Layouts of three kinds: one of its own, one of transformers, and an encoder
FAST = ("llada", "diffullama", "modernbert_mdlm")


def network_of(blueprint):
    """What the blueprint builds: the configuration of the network, and the sources of its weights."""
    config = blueprint.build.args[0].to_dict()
    return config, {name: weight.names for name, weight in blueprint.weights.items()}


def refusal(family, config, stored):
    """The message with which a checkpoint is refused, and what it is read as if it is not."""
    try:
        return None, network_of(read_checkpoint(family, config, stored))
    except ValueError as error:
        return str(error), None


@pytest.mark.parametrize("family", mostly_slow(LANGUAGE_MODELS, fast=FAST))
def test_a_key_that_is_missing_or_wrong_is_refused_by_its_name_or_changes_nothing(family):
    config, stored = golden_files(family)
    network = network_of(read_checkpoint(family, config, stored))
    refused = set()
    for key in config:
        without = {other: value for other, value in config.items() if other != key}
        for changed in (without, config | {key: {"wrong": [1]}}):
            message, read = refusal(family, changed, stored)
            if message is None:
                # Ids of tokens that a text ends with, for one, need not be there.
                is_token = key.endswith("token_id")
                assert read == network or is_token, key
            else:
                assert key in message
                refused.add(key)
    assert len(refused) >= 10


@pytest.mark.parametrize("family", mostly_slow(LANGUAGE_MODELS, fast=FAST))
def test_an_option_with_another_value_is_refused_or_changes_nothing(family):
    config, stored = golden_files(family)
    network = network_of(read_checkpoint(family, config, stored))
    for key, value in config.items():
        if isinstance(value, bool) or value is None:
            for other in ({True, False} - {value}) | {7}:
                message, read = refusal(family, config | {key: other}, stored)
                # A head that is said to be tied or not makes a tensor too many, or one too few.
                is_named = message is not None and (key in message or "The weights of" in message)
                assert read == network or is_named, key


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
def test_an_unknown_key_is_refused_by_its_name(family):
    config, stored = golden_files(family)
    with pytest.raises(ValueError, match="no keys that are not understood.*'logit_softcap'"):
        read_checkpoint(family, config | {"logit_softcap": 30.0}, stored)


@pytest.mark.parametrize("family", mostly_slow(LANGUAGE_MODELS, fast=FAST))
def test_a_tensor_that_is_missing_extra_or_of_another_shape_or_kind_is_refused_by_its_name(family):
    config, stored = golden_files(family)
    for place, (name, tensor) in enumerate(stored.items()):
        others = {other: entry for other, entry in stored.items() if other != name}
        longer = (tensor.shape[0] + 1, *tensor.shape[1:])
        changes = [
            others | {name: replace(tensor, shape=longer)},
            others | {name: replace(tensor, dtype="I64")},
            others | {name: replace(tensor, dtype="F8_E4M3")},
            stored | {f"{name}_scale": tensor},
        ]
        # The other changes take turns.
        for changed in (others, changes[place % len(changes)]):
            message, _ = refusal(family, config, changed)
            assert message is not None and name in message, name


def test_more_layers_than_tensors_are_refused_before_anything_is_built():
    config, stored = golden_files("llada")
    with pytest.raises(ValueError, match="`n_layers` must be a number of which each has weights"):
        blueprint_of(config | {"n_layers": 10**9}, stored, "llada")


@pytest.mark.parametrize(
    "change, limit",
    [
        ({"rope_theta": 0}, "`rope_theta` must be a number above 0"),
        ({"rope_theta": float("nan")}, "`rope_theta` must be a number above 0"),
        ({"n_kv_heads": 3}, "`num_key_value_heads` must be a divisor of `num_attention_heads`=4"),
        ({"mask_token_id": 96}, "`mask_token_id` must be None or an id below 96"),
        ({"architectures": ["LLaDAMoEModelLM"]}, "`architectures` must be .*LLaDAModelLM"),
        ({"rope": 1}, "`rope` must be True in the configuration of LLaDA, got 1"),
    ],
)
def test_values_that_make_no_sense_are_refused_with_their_limit(change, limit):
    config, stored = golden_files("llada")
    with pytest.raises(ValueError, match=limit):
        blueprint_of(config | change, stored, "llada")


def test_a_checkpoint_of_no_family_is_refused_with_what_it_says_of_itself(tmp_path):
    config = {"model_type": "newllm", "architectures": ["NewLM"], "depth": 3}
    folder = copy_checkpoint("llada", tmp_path / "model", config)
    message = "`model_type`='newllm', `architectures`=.'NewLM'., and the keys architectures, depth"
    with pytest.raises(ValueError, match=message):
        load_denoiser(folder)

    # What is a plain causal LM is told how it can become one of ours.
    config = json.loads((GOLDEN / "diffullama/config.json").read_text())
    folder = copy_checkpoint("diffullama", tmp_path / "llama", config)
    with pytest.raises(ValueError, match="says nothing of diffusion.*--model_name_or_path .*llama"):
        load_denoiser(folder)

    # One that was converted is no longer as it was published.
    folder = copy_checkpoint("diffullama", tmp_path / "converted", config | {"diffusion": {}})
    with pytest.raises(ValueError, match="load it by transformers"):
        load_denoiser(folder)

    config = {"model_type": "bert", "architectures": ["BertModel"]}
    folder = copy_checkpoint("llada", tmp_path / "bert", config)
    with pytest.raises(
        ValueError, match="not one of a masked language model.*--model_name_or_path"
    ):
        load_denoiser(folder)


def test_arguments_are_refused_by_their_name(tmp_path):
    for arguments in (
        {"dtype": "int8"},
        {"dtype": "float33"},
        {"device_map": "disk"},
        {"device_map": {"model": "cpu"}},
        {"device_map": {"": "cuda:99"}},
        {"device_map": ["cpu"]},
        {"block_length": 0},
        {"family": "gpt"},
    ):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            load_denoiser(GOLDEN / "llada", **arguments)
    with pytest.raises(ValueError, match="revison"):
        load_denoiser(GOLDEN / "llada", revison="main")
    with pytest.raises(ValueError, match="`block_length` must be None for a "):
        load_denoiser(GOLDEN / "modernbert_mdlm", block_length=4)
    with pytest.raises(ValueError, match="attn_out.weight' must hold finite numbers"):
        tensors = golden_tensors("llada")
        tensors["model.transformer.blocks.0.attn_out.weight"][3, 4] = float("nan")
        load_denoiser(copy_checkpoint("llada", tmp_path / "nan", tensors=tensors))
