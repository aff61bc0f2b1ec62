"""Folders that are damaged, or made by somebody who means harm, load and write, or it is said what is wrong."""

import inspect
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostile_driver import (
    control_result,
    mutation_results,
    repository_result,
    sample_pipe,
)
from support.hostile_pipes import save_pipelines
from support.hostile_repositories import CONTROLS, REPOSITORIES
from support.mutations import INDEX, edit

import text_diffusers
from text_diffusers import (
    AutoencoderVQTextModel,
    CodeTransformerModel,
    EmbeddingTransformerModel,
    PromptEncoderModel,
    TextClassifierModel,
    TextDiffusionPipeline,
    TextTransformerModel,
)
from text_diffusers.common.subclasses import loaded_subclasses
from text_diffusers.schedulers.embedding_noise import EmbeddingSchedulerMixin
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler

DRIVER = Path(__file__).parent.parent / "support" / "hostile_driver.py"
FAMILIES = ["token", "cfg", "block", "embedding", "two-level"]
WEIGHTS = "diffusion_pytorch_model.safetensors"
ENTRIES = (
    "tokenizer",
    "denoiser",
    "scheduler",
    "autoencoder",
    "prompt_encoder",
    "lengths",
    "label_names",
    "label_prompts",
    "takes_source",
    "generation_defaults",
    "prompt_begins_text",
    "_class_name",
)
MODELS = [
    TextTransformerModel,
    EmbeddingTransformerModel,
    CodeTransformerModel,
    PromptEncoderModel,
    TextClassifierModel,
    AutoencoderVQTextModel,
]
SCHEDULERS = [
    cls
    for cls in (*loaded_subclasses(D3PMScheduler), *loaded_subclasses(EmbeddingSchedulerMixin))
    if cls.__name__ in text_diffusers.__all__
]
ARGUMENTS = {
    "vocab_size": 8,
    "mask_token_id": 8,
    "edges": torch.tensor([[0, 1], [1, 0]]),
    "rates": torch.ones(2),
    "num_train_timesteps": 4,
}
# Its clusters are ids too, behind all others.
OWN_ARGUMENTS = {
    "D3PMHierarchicalScheduler": {"mask_token_id": 4, "clusters": torch.tensor([0, 1, 0, 1])}
}
VALUES = [None, True, 1, 2.5, "3", math.nan, math.inf, [1], ["a"], {}]


def drive(*arguments: str) -> list[dict]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parent.parent)}
    command = [sys.executable, str(DRIVER), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of the families. Everything that is imported late is imported before the forks."""
    families = save_pipelines(tmp_path_factory.mktemp("saved"))
    for folder in families.values():
        sample_pipe(TextDiffusionPipeline.from_pretrained(folder))
    return families


@pytest.fixture
def copy(saved, tmp_path):
    def make(family="cfg"):
        return Path(shutil.copytree(saved[family], tmp_path / family))

    return make


def check_verdicts(verdicts: list[dict]):
    """Every mutation was loaded and written with, or refused by an error that says what is wrong."""
    bad = [verdict for verdict in verdicts if verdict["outcome"] not in ("written", "refused")]
    assert not bad, bad[:5]
    silent = [
        verdict
        for verdict in verdicts
        if verdict["outcome"] == "refused" and not says_what(verdict)
    ]
    assert not silent, silent[:5]


def says_what(verdict: dict) -> bool:
    """Whether a message quotes something and has the name of what was changed.

    That is its component, or of the index itself, the folder or one of its entries.
    """
    message, changed = verdict["message"], verdict["changed"]
    names = {path.partition("/")[0] for path in changed}
    if INDEX in changed:
        names |= {f"in/{verdict['family']}", *ENTRIES}
    return "`" in message and (
        verdict["stage"] == "write" or any(name in message for name in names)
    )


def test_mutations_load_and_write_or_are_refused_by_name(saved):
    verdicts = list(mutation_results(saved, range(2000, 2012)))
    assert {verdict["outcome"] for verdict in verdicts} == {"written", "refused"}
    check_verdicts(verdicts)


@pytest.mark.slow
def test_two_thousand_mutations_load_and_write_or_are_refused_by_name():
    verdicts = drive("2000")
    check_verdicts(verdicts)
    outcomes = {(verdict["family"], verdict["outcome"]) for verdict in verdicts}
    assert outcomes == {(family, end) for family in FAMILIES for end in ("written", "refused")}


# One of each kind is fast: pickles, names, code, links, memory and time
FAST_REPOSITORIES = (
    "pickle_instead_of_weights",
    "pickle_as_a_tokenizer",
    "index_names_popen",
    "index_names_a_path",
    "index_has_a_component_outside",
    "component_is_a_link",
    "link_within_the_folder",
    "wide_beyond_memory",
    "four_billion_steps",
    "deep_index",
)


def marked(names, fast):
    assert {*fast} <= {*names}
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in fast)) for name in names]


@pytest.mark.parametrize("name", marked(REPOSITORIES, FAST_REPOSITORIES))
def test_hostile_repository_runs_nothing_and_shows_nothing(saved, name):
    verdict = repository_result(saved["token"], name)
    assert verdict["outcome"] == verdict["expected"], verdict
    assert verdict["outcome"] == "written" or "`" in verdict["message"], verdict


@pytest.mark.parametrize("name", marked(CONTROLS, {*CONTROLS} - {"waits_forever"}))
def test_what_a_repository_must_not_do_is_seen(saved, name):
    verdict = control_result(saved["token"], name)
    assert verdict["outcome"] == verdict["expected"], verdict


def fits(value, kind) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def kinds(annotation) -> set:
    """The plain types in an annotation; any list is a list."""
    if get_origin(annotation) in (Union, UnionType):
        return set().union(*(kinds(choice) for choice in get_args(annotation)))
    return {list} if get_origin(annotation) in (list, Sequence) else {annotation}


def cases(classes) -> list:
    """Each argument of JSON of each constructor."""
    found = []
    for cls in classes:
        for name, parameter in inspect.signature(cls).parameters.items():
            types = kinds(parameter.annotation)
            if torch.Tensor not in types:
                found.append(pytest.param(cls, name, types, id=f"{cls.__name__}-{name}"))
    return found


def arguments_of(cls, arguments: dict) -> dict:
    """Those that a class takes."""
    known = inspect.signature(cls).parameters
    arguments = arguments | OWN_ARGUMENTS.get(cls.__name__, {})
    return {key: value for key, value in arguments.items() if key in known}


def check_types(cls, arguments: dict, name: str, types: set):
    wrong = [value for value in VALUES if not any(fits(value, kind) for kind in types)]
    assert len(wrong) > 3
    given = arguments_of(cls, arguments)
    for value in wrong:
        with pytest.raises(ValueError, match=f"`{name}`"):
            cls(**given | {name: value})


@pytest.mark.parametrize(("cls", "name", "types"), cases(MODELS))
def test_a_model_refuses_values_of_another_type(cls, name, types):
    check_types(cls, {"vocab_size": 8}, name, types)


@pytest.mark.parametrize(("cls", "name", "types"), cases(SCHEDULERS))
def test_a_scheduler_refuses_values_of_another_type(cls, name, types):
    check_types(cls, ARGUMENTS, name, types)


@pytest.mark.parametrize("cls", SCHEDULERS)
def test_a_clock_of_billions_of_steps_is_refused_at_once(cls):
    given = arguments_of(cls, ARGUMENTS)
    with pytest.raises(
        ValueError, match="`num_train_timesteps` must be .* to 1048576, got 4000000000"
    ):
        cls(**given | {"num_train_timesteps": 4_000_000_000})


def test_all_weights_must_be_there_and_be_those_of_the_configuration(copy):
    folder = copy()
    file = folder / "denoiser" / WEIGHTS
    whole = load_file(file)
    name = "blocks.1.ff.2.weight"
    changed = {
        "lacks 1 of the weights": {key: value for key, value in whole.items() if key != name},
        rf"must hold numbers \(32, 128\) in `{name}`, .* got numbers \(128, 32\)": whole
        | {name: whole[name].T.contiguous()},
        rf"in `{name}`, .* got integers \(32, 128\)": whole | {name: whole[name].long()},
    }
    for message, tensors in changed.items():
        save_file(tensors, file)
        with pytest.raises(ValueError, match=f"`{folder}/denoiser` .*{message}"):
            TextDiffusionPipeline.from_pretrained(folder)
    save_file(whole | {"one_more": torch.ones(1)}, file, metadata={"format": "pt"})
    assert TextDiffusionPipeline.from_pretrained(folder).denoiser.config.num_classes == 2


def test_weights_in_shards_are_those_of_the_whole_file(saved, tmp_path):
    whole = TextDiffusionPipeline.from_pretrained(saved["cfg"])
    whole.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "denoiser").glob("*.safetensors"))) > 1
    again = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert sample_pipe(again).texts == sample_pipe(whole).texts


@pytest.mark.parametrize(
    ("family", "value"), [*((family, math.nan) for family in FAMILIES), ("cfg", math.inf)]
)
def test_weights_that_are_no_numbers_are_refused_by_name(copy, family, value):
    """One entry of any tensor: attention turns NaN queries into zeros, so that no step afterwards would notice."""
    folder, draw = copy(family), random.Random(0)
    for file in sorted(folder.rglob(WEIGHTS)):
        whole = load_file(file)
        name = draw.choice([name for name, tensor in whole.items() if tensor.is_floating_point()])
        spoiled = whole[name].clone()
        spoiled.view(-1)[draw.randrange(spoiled.numel())] = value
        save_file(whole | {name: spoiled}, file)
        with pytest.raises(
            ValueError,
            match=f"`{file.parent}` holds NaN or infinite numbers in `{re.escape(name)}`",
        ):
            TextDiffusionPipeline.from_pretrained(folder)
        save_file(whole, file)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_whose_weights_become_nan_writes_no_text(saved, family):
    pipe = TextDiffusionPipeline.from_pretrained(saved[family])
    models = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    for model in models:
        kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, math.nan)
        with pytest.raises(ValueError, match="NaN or infinite"):
            sample_pipe(pipe)
        model.load_state_dict(kept)
    assert sample_pipe(pipe).texts


@pytest.mark.parametrize(
    ("component", "file", "changes", "message"),
    [
        (
            "scheduler",
            "scheduler_config.json",
            {"_class_name": "DDPMScheduler"},
            "must be of a D3PMAbsorbingScheduler",
        ),
        (
            "denoiser",
            "config.json",
            {"_class_name": "EmbeddingTransformerModel"},
            "must be of a TextTransformerModel",
        ),
        (
            "scheduler",
            "scheduler_config.json",
            {"mask_token_id": 3},
            "`scheduler` has `mask_token_id`=3",
        ),
        (
            "denoiser",
            "config.json",
            {"mask_token_id": 3},
            "`denoiser` has `mask_token_id`=3, but the tokenizer's is",
        ),
        (
            "denoiser",
            "config.json",
            {"pad_token_id": 3},
            "`denoiser` has `pad_token_id`=3, but the tokenizer's is",
        ),
        (
            "denoiser",
            "config.json",
            {"max_length": 5},
            "`lengths` must not go beyond the 3 tokens .* got 5",
        ),
        (".", INDEX, {"lengths": [1, -1]}, "`lengths` must be .* number of texts of each length"),
        (
            ".",
            INDEX,
            {"lengths": [0.5, 0.5]},
            "`lengths` must be .* number of texts of each length",
        ),
        (".", INDEX, {"lengths": [0, 0, 0]}, "`lengths` must be .* not all of them 0"),
        (".", INDEX, {"label_names": ["a", "b", "c"]}, "`label_names` must be 2"),
        (".", INDEX, {"label_names": ["a", "a"]}, "`label_names` must be 2"),
        (".", INDEX, {"label_names": [1, 2]}, "`label_names` must be None or a list of strings"),
        (".", INDEX, {"denoiser": [None, None]}, "must name module and class of `denoiser`"),
        (
            ".",
            INDEX,
            {"_class_name": "NoSuchPipeline"},
            "`_class_name` must be a pipeline of texts",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(copy, component, file, changes, message):
    folder = copy()
    edit(folder / component / file, changes)
    with pytest.raises(ValueError, match=message):
        TextDiffusionPipeline.from_pretrained(folder)


def test_a_setting_without_a_default_is_missed_by_name(copy):
    folder = copy()
    (folder / "scheduler/scheduler_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"scheduler_config.json` must hold .* but lacks \['mask_token_id'\]"
    ):
        TextDiffusionPipeline.from_pretrained(folder)


def test_a_word_with_an_id_beyond_the_vocabulary_is_refused(copy):
    folder = copy()
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["t"] = 5_000
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        ValueError, match="`denoiser` has `vocab_size`=302, but the tokenizer .* ids up to 5000"
    ):
        TextDiffusionPipeline.from_pretrained(folder)


def test_links_into_the_blobs_of_the_hubs_cache_are_followed(saved, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    shutil.copytree(saved["token"], snapshot)
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(os.path.relpath(blobs / str(number), file.parent))
    pipe = TextDiffusionPipeline.from_pretrained(snapshot)
    assert (
        sample_pipe(pipe).texts
        == sample_pipe(TextDiffusionPipeline.from_pretrained(saved["token"])).texts
    )


def test_a_component_that_is_given_is_not_read(copy):
    folder = copy()
    whole = TextDiffusionPipeline.from_pretrained(folder)
    shutil.rmtree(folder / "denoiser")
    with pytest.raises(OSError, match="denoiser` must be the folder of a component"):
        TextDiffusionPipeline.from_pretrained(folder)
    again = TextDiffusionPipeline.from_pretrained(folder, denoiser=whole.denoiser)
    assert sample_pipe(again).texts == sample_pipe(whole).texts
