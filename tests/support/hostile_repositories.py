"""Repositories that somebody made to run code, to read or to exhaust, each as a change of a saved pipeline."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from support.mutations import INDEX, PAYLOAD, SECRET, Scene, Touch, edit

REPOSITORIES: dict[str, tuple[Callable[[Scene], Any], str]] = {}
CONTROLS: dict[str, tuple[Callable[[Scene], Any], str]] = {}


def repository(outcome: str, controls: bool = False) -> Callable:
    """Notes a repository under its name: loading it must be "refused", or it is as good as any and "written"."""

    def note(build: Callable[[Scene], Any]):
        (CONTROLS if controls else REPOSITORIES)[build.__name__] = build, outcome
        return build

    return note


def pickled(scene: Scene) -> bytes:
    return pickle.dumps(Touch(scene.marker))


def code(scene: Scene, path: str, body: str = ""):
    """A Python file that creates the marker."""
    imports = "from diffusers import *\nfrom transformers import *\n"
    (scene.folder / path).write_text(PAYLOAD.format(marker=str(scene.marker)) + imports + body)


def index_names(scene: Scene, component: str, module: str, name: str):
    edit(scene.folder / INDEX, {component: [module, name]})


# Pickles


@repository("refused")
def pickle_instead_of_weights(scene):
    for weights in (scene.folder / "denoiser").glob("*.safetensors"):
        weights.unlink()
    (scene.folder / "denoiser/diffusion_pytorch_model.bin").write_bytes(pickled(scene))


@repository("written")
def pickle_beside_the_weights(scene):
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.pt"):
        (scene.folder / "denoiser" / name).write_bytes(pickled(scene))


@repository("refused")
def pickle_called_safetensors(scene):
    (scene.folder / "denoiser/diffusion_pytorch_model.safetensors").write_bytes(pickled(scene))


@repository("refused")
def pickle_as_the_tensors_of_a_scheduler(scene):
    (scene.folder / "scheduler/scheduler_tensors.safetensors").write_bytes(pickled(scene))


@repository("refused")
def pickle_as_a_tokenizer(scene):
    (scene.folder / "tokenizer/tokenizer.json").write_bytes(pickled(scene))


@repository("refused")
def pickle_as_a_shard(scene):
    (scene.folder / "denoiser/part.bin").write_bytes(pickled(scene))
    shards(scene, "part.bin")


# Names of modules and classes


@repository("refused")
def index_names_popen(scene):
    index_names(scene, "denoiser", "subprocess", "Popen")


@repository("refused")
def index_names_a_module_that_acts_when_imported(scene):
    index_names(scene, "denoiser", "antigravity", "geohash")


@repository("refused")
def index_names_os_system(scene):
    index_names(scene, "scheduler", "os", "system")


@repository("refused")
def index_names_eval(scene):
    index_names(scene, "scheduler", "builtins", "eval")


@repository("refused")
def index_names_torch_load(scene):
    index_names(scene, "denoiser", "torch", "load")


@repository("refused")
def index_names_a_path(scene):
    code(scene, "../evil.py", "class Evil(ModelMixin): pass\n")
    index_names(scene, "denoiser", "../evil", "Evil")


@repository("written")
def index_has_a_component_outside(scene):
    edit(scene.folder / INDEX, {"../outside": ["diffusers", "DDIMScheduler"]})


@repository("refused")
def index_names_a_function_as_pipeline(scene):
    edit(scene.folder / INDEX, {"_class_name": "load_dataset"})


# Code


@repository("refused")
def pipeline_is_a_file(scene):
    code(scene, "pipeline_evil.py", "class Evil(DiffusionPipeline): pass\n")
    edit(scene.folder / INDEX, {"_class_name": ["pipeline_evil", "Evil"]})


@repository("written")
def pipeline_file_that_nothing_names(scene):
    code(scene, "pipeline.py", "class Evil(DiffusionPipeline): pass\n")


@repository("refused")
def denoiser_is_a_file(scene):
    code(scene, "denoiser/evil.py", "class Evil(ModelMixin): pass\n")
    index_names(scene, "denoiser", "evil", "Evil")


@repository("written")
def denoiser_file_of_an_installed_class(scene):
    code(scene, "denoiser/evil.py", "class TextTransformerModel(ModelMixin): pass\n")
    index_names(scene, "denoiser", "evil", "TextTransformerModel")


@repository("refused")
def scheduler_is_a_file(scene):
    code(scene, "scheduler/evil.py", "class Evil(SchedulerMixin): pass\n")
    index_names(scene, "scheduler", "evil", "Evil")


@repository("refused")
def denoiser_is_remote_code_of_transformers(scene):
    code(scene, "denoiser/modeling_evil.py", "class Evil(PreTrainedModel): pass\n")
    auto = {"AutoConfig": "modeling_evil.Evil", "AutoModelForMaskedLM": "modeling_evil.Evil"}
    edit(scene.folder / "denoiser/config.json", {"auto_map": auto, "model_type": "evil"})
    index_names(scene, "denoiser", "transformers", "AutoModelForMaskedLM")


@repository("written")
def tokenizer_is_remote_code_of_transformers(scene):
    code(scene, "tokenizer/evil.py", "class Evil(PreTrainedTokenizerFast): pass\n")
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(
        scene.folder / "tokenizer/tokenizer_config.json",
        {"auto_map": auto, "tokenizer_class": "Evil"},
    )


@repository("refused")
def tokenizer_is_chosen_by_remote_code(scene):
    code(scene, "tokenizer/evil.py", "class Evil(PreTrainedTokenizerFast): pass\n")
    auto = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    edit(
        scene.folder / "tokenizer/tokenizer_config.json",
        {"auto_map": auto, "tokenizer_class": "Evil"},
    )
    index_names(scene, "tokenizer", "transformers", "AutoTokenizer")


@repository("written")
def chat_template_with_code(scene):
    template = "{{ cycler.__init__.__globals__.os.mkdir('" + str(scene.marker) + "') }}"
    (scene.folder / "tokenizer/chat_template.jinja").write_text(template)


# Files of the reader


def shards(scene: Scene, place: str):
    weights = scene.folder / "denoiser/diffusion_pytorch_model.safetensors"
    index = {"metadata": {"total_size": 8}, "weight_map": {"token_embedding.weight": place}}
    weights.with_name(f"{weights.name}.index.json").write_text(json.dumps(index))
    weights.unlink()


@repository("refused")
def shards_above_the_folder(scene):
    shards(scene, "../../../outside/secret.safetensors")


@repository("refused")
def shards_at_an_absolute_path(scene):
    shards(scene, str(scene.outside / "secret.safetensors"))


def link(path: Path, target: Path | str):
    if path.is_dir():
        shutil.copytree(path, target)
        shutil.rmtree(path)
    elif not Path(target).exists():
        shutil.copy(path, target)
        path.unlink()
    else:
        path.unlink()
    path.symlink_to(target)


@repository("refused")
def weights_are_a_link(scene):
    link(
        scene.folder / "denoiser/diffusion_pytorch_model.safetensors",
        scene.outside / "weights.safetensors",
    )


@repository("refused")
def tokenizer_is_a_link(scene):
    link(scene.folder / "tokenizer/tokenizer.json", scene.outside / "tokenizer.json")


@repository("refused")
def template_is_a_link(scene):
    (scene.folder / "tokenizer/chat_template.jinja").symlink_to(scene.outside / "secret.json")


@repository("written")
def tokenizer_names_a_file_elsewhere(scene):
    content = json.loads((scene.folder / "tokenizer/tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"][SECRET] = content["model"]["vocab"].pop("t")
    (scene.outside / "tokenizer.json").write_text(json.dumps(content))
    elsewhere = dict.fromkeys(
        ("tokenizer_file", "vocab_file", "fast_tokenizer_file"),
        str(scene.outside / "tokenizer.json"),
    )
    edit(scene.folder / "tokenizer/tokenizer_config.json", elsewhere)


@repository("refused")
def index_is_a_link(scene):
    link(scene.folder / INDEX, scene.outside / "index.json")


@repository("refused")
def component_is_a_link(scene):
    link(scene.folder / "scheduler", scene.outside / "scheduler")


@repository("refused")
def link_to_a_link(scene):
    inside = scene.folder / "tokenizer/inside.json"
    link(scene.folder / "tokenizer/tokenizer.json", scene.outside / "tokenizer.json")
    (scene.folder / "tokenizer/tokenizer.json").rename(inside)
    (scene.folder / "tokenizer/tokenizer.json").symlink_to(inside)


@repository("refused")
def index_is_endless(scene):
    link(scene.folder / INDEX, "/dev/zero")


@repository("refused")
def configuration_waits_for_a_writer(scene):
    (scene.folder / "scheduler/scheduler_config.json").unlink()
    os.mkfifo(scene.folder / "scheduler/scheduler_config.json")


@repository("written")
def link_within_the_folder(scene):
    link(scene.folder / "tokenizer/tokenizer.json", scene.folder / "shared.json")


# Memory and time


def sized(scene: Scene, **sizes: Any):
    edit(scene.folder / "denoiser/config.json", sizes)


@repository("refused")
def wide_beyond_memory(scene):
    sized(scene, hidden_size=2**20, num_attention_heads=2)


@repository("refused")
def words_beyond_memory(scene):
    sized(scene, vocab_size=2**24)


@repository("refused")
def words_beyond_numbers(scene):
    sized(scene, vocab_size=10**30)


@repository("refused")
def a_billion_layers(scene):
    sized(scene, num_layers=10**9)


@repository("refused")
def four_billion_steps(scene):
    edit(scene.folder / "scheduler/scheduler_config.json", {"num_train_timesteps": 4_000_000_000})


@repository("refused")
def deep_index(scene):
    (scene.folder / INDEX).write_text('{"_class_name": ' + "[" * 200_000 + "]" * 200_000 + "}")


@repository("refused")
def header_as_long_as_a_disk(scene):
    weights = scene.folder / "denoiser/diffusion_pytorch_model.safetensors"
    weights.write_bytes((2**62).to_bytes(8, "little") + weights.read_bytes()[8:])


@repository("refused")
def edges_of_a_graph_without_end(scene):
    edges = torch.tensor([[0], [2**40]])
    save_file(
        {"edges": edges, "rates": torch.ones(1)},
        scene.folder / "scheduler/scheduler_tensors.safetensors",
    )


@repository("refused")
def tensors_instead_of_settings(scene):
    file = scene.folder / "scheduler/scheduler_tensors.safetensors"
    save_file(
        {
            "edges": torch.tensor([[0, 1], [1, 0]]),
            "rates": torch.ones(2),
            "vocab_size": torch.ones(1),
        },
        file,
    )


# What the watching must see: `mutations.load_and_write` is called after these, in the same process.


@repository("executed", controls=True)
def unpickles(scene):
    return lambda: pickle.loads(pickled(scene))


@repository("executed", controls=True)
def starts_a_program(scene):
    return lambda: os.system("true")


@repository("executed", controls=True)
def opens_the_secret(scene):
    return lambda: (scene.outside / "secret.json").read_text()


@repository("executed", controls=True)
def imports_a_module_that_acts(scene):
    return lambda: __import__("this")


@repository("hung", controls=True)
def works_forever(scene):
    def work():
        while True:
            pass

    return work


@repository("hung", controls=True)
def waits_forever(scene):
    return lambda: time.sleep(1_000)


@repository("died", controls=True)
def dies(scene):
    return lambda: os._exit(1)


@repository("raw", controls=True)
def takes_all_memory(scene):
    return lambda: torch.ones(2**32)
