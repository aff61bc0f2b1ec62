"""What `hub.save_with_code` writes loads without the package and writes the same; no foreign code is run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_denoiser, make_embedding_model
from diffusers import EntropyBoundScheduler
from huggingface_hub import metadata_load
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

import text_diffusers
from text_diffusers import (
    AnnealedLangevinScheduler,
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMHierarchicalScheduler,
    D3PMHybridScheduler,
    D3PMMatrixScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    EvenRevealScheduler,
    FirstHittingScheduler,
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
    ParaGuidePipeline,
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
    ProbabilityFlowScheduler,
    ReMDMScheduler,
    ReverseSDEScheduler,
    TextDiffusionPipeline,
    TokenDDIMScheduler,
)
from text_diffusers.cli.options import DEFAULT_MODEL
from text_diffusers.hub.export import (
    ROOMS,
    SHIPPED_MODEL,
    save_with_code,
    source_folder,
    write_source,
    write_space,
)
from text_diffusers.pipelines.loading import with_installed_classes

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

LATENT_SCHEDULERS = {
    "flow": LatentFlowEulerScheduler,
    "flow_heun": LatentFlowHeunScheduler,
    "probability_flow": ProbabilityFlowScheduler,
    "reverse_sde": ReverseSDEScheduler,
    "langevin": AnnealedLangevinScheduler,
}
STEPS = {"num_inference_steps": 4}
FAR = {"max_new_tokens": 8, **STEPS}
BLOCKED = """
import json, sys, torch
sys.modules["text_diffusers"] = None
from diffusers import DiffusionPipeline
for folder, arguments in json.loads(sys.argv[1]):
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    tokens = pipe(**arguments, generator=torch.Generator().manual_seed(0)).tokens
    pipe.save_pretrained(folder + "-again")
    modules = [sys.modules[type(part).__module__] for part in pipe.components.values()]
    mixins = [{"ModelMixin", "SchedulerMixin"} & {*vars(module)} for module in modules
              if module.__name__.startswith("diffusers_modules.")]
    owner = [type(pipe).__module__.split(".")[0], type(pipe).__name__]
    print(json.dumps({"owner": owner, "tokens": tokens.tolist(), "mixins": all(mixins)}))
"""


def token_schedulers(tokenizer):
    mask, words = tokenizer.mask_token_id, tokenizer.pad_token_id
    vectors = torch.randn(words, 4, generator=torch.Generator().manual_seed(0))
    return {
        "confidence": ConfidenceScheduler(mask),
        "even": EvenRevealScheduler(mask),
        "first_hitting": FirstHittingScheduler(mask),
        "remdm": ReMDMScheduler(mask),
        "corrector": PredictorCorrectorAbsorbingScheduler(mask),
        "uniform": D3PMUniformScheduler(words),
        "uniform_corrector": PredictorCorrectorUniformScheduler(words),
        "ddim": TokenDDIMScheduler(words),
        "hybrid": D3PMHybridScheduler(mask, words),
        "hierarchical": D3PMHierarchicalScheduler(
            mask, len(tokenizer) + 4, torch.arange(words) % 4
        ),
        "neighbors": D3PMNeighborScheduler.from_embeddings(vectors, num_neighbors=2),
        "bits": D3PMBitFlipScheduler(512, num_tokens=words),
        "matrix": D3PMMatrixScheduler(words),
        "stock": EntropyBoundScheduler(),
    }


@pytest.fixture(scope="session")
def pipelines(tokenizer):
    """Every pipeline class, and every scheduler class in one of them, with arguments of a call."""
    mask = tokenizer.mask_token_id
    absorbing = D3PMAbsorbingScheduler(mask)
    plain = make_denoiser(tokenizer, time_conditioning=True)
    labelled = make_denoiser(tokenizer, num_classes=2)
    embedded = make_embedding_model(tokenizer, partial_noising=True, num_classes=2)
    ddim = EmbeddingDDIMScheduler()
    masked_lm, words = make_masked_lm("bert")
    found = {
        "token": (TextDiffusionPipeline(tokenizer, plain, absorbing, lengths=[0, 0, 3, 5]), STEPS),
        "cfg": (
            TextDiffusionPipeline(tokenizer, labelled, absorbing, label_names=["calm", "loud"]),
            {"class_labels": "loud", "guidance_scale": 2.0, **STEPS},
        ),
        "block": (
            TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer, block_length=4), absorbing),
            FAR,
        ),
        "masked_lm": (
            TextDiffusionPipeline(words, masked_lm, D3PMAbsorbingScheduler(words.mask_token_id)),
            FAR,
        ),
        "two_level": (make_two_level(tokenizer), {"num_inference_steps": 3, "prompt": "the cat"}),
        "diffusion_lm": (DiffusionLMPipeline(tokenizer, embedded, EmbeddingDDPMScheduler()), FAR),
        "guided": (
            DiffusionLMPipeline(tokenizer, embedded, EmbeddingDPMSolverScheduler()),
            {"class_labels": 1, "guidance_scale": 2.0, **FAR},
        ),
        "paraguide": (
            ParaGuidePipeline(tokenizer, embedded, ddim),
            {"source": "the cat sat", **STEPS},
        ),
        "token_paraguide": (
            ParaGuidePipeline(tokenizer, plain, absorbing),
            {"source": "the cat sat", **STEPS},
        ),
    }
    labelled = make_latent_denoiser(num_classes=2, self_conditioning=True)
    for name, scheduler_class in LATENT_SCHEDULERS.items():
        pipe = make_latent_pipe(tokenizer, labelled, scheduler_class(100), ["calm", "loud"])
        told = {"source": "the cat", "class_labels": "loud", "guidance_scale": 2.0}
        found[name] = (pipe, FAR | told)
    # The prior of a conditional VAE, whose decoder reads the source
    found["latent_prior"] = (
        make_latent_pipe(tokenizer, make_latent_prior(), reads_source=True),
        {"source": "the cat", "max_new_tokens": 8, "temperature": 0.9},
    )
    wide = make_denoiser(tokenizer, time_conditioning=True, vocab_size=512)
    for name, scheduler in token_schedulers(tokenizer).items():
        few = {"max_new_tokens": 3} if name == "first_hitting" else {}  # it wants a step a token
        found[name] = (
            TextDiffusionPipeline(
                tokenizer, wide if name in ("bits", "hierarchical") else plain, scheduler
            ),
            STEPS | few,
        )
    for pipe, _ in found.values():
        pipe.set_progress_bar_config(disable=True)
    return found


def write(pipe, arguments):
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).tokens.tolist()


# Every family and form of pipeline, and a scheduler with tensors; the others are of the same classes.
FAST = (
    "token",
    "cfg",
    "block",
    "masked_lm",
    "two_level",
    "guided",
    "paraguide",
    "token_paraguide",
    "neighbors",
    "flow",
    "latent_prior",
)
SLOW = (
    "diffusion_lm",
    "confidence",
    "even",
    "first_hitting",
    "remdm",
    "corrector",
    "uniform",
    "uniform_corrector",
)
SLOW += ("ddim", "hybrid", "hierarchical", "bits", "matrix", "stock")
SLOW += ("flow_heun", "probability_flow", "reverse_sde", "langevin")


def publish(pipelines, names, folder):
    for name in names:
        save_with_code(pipelines[name][0], folder / name)
    return folder


def load_without_the_package(pipelines, names, folder):
    """What each pipeline came to in a process of its own, which also saves it again."""
    calls = [(str(folder / name), pipelines[name][1]) for name in names]
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, json.dumps(calls)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


def check_written_without_the_package(pipelines, results):
    for name, result in results.items():
        pipe, arguments = pipelines[name]
        assert result["owner"] == ["diffusers_modules", type(pipe).__name__], name
        assert result["tokens"] == write(pipe, arguments), name
        assert result["mixins"], name  # by which stock diffusers learns how a component is loaded


@pytest.fixture(scope="session")
def published(pipelines, tmp_path_factory):
    return publish(pipelines, FAST, tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def loaded_without_the_package(pipelines, published):
    return load_without_the_package(pipelines, FAST, published)


@pytest.mark.slow
def test_stock_diffusers_without_the_package_writes_the_same(pipelines, loaded_without_the_package):
    check_written_without_the_package(pipelines, loaded_without_the_package)


@pytest.mark.slow
def test_stock_diffusers_writes_the_same_by_every_other_scheduler(pipelines, tmp_path):
    publish(pipelines, SLOW, tmp_path)
    results = load_without_the_package(pipelines, SLOW, tmp_path)
    check_written_without_the_package(pipelines, results)


def test_every_public_pipeline_and_scheduler_is_among_them(pipelines):
    assert {*FAST, *SLOW} == pipelines.keys()
    public = {name for name in text_diffusers.__all__ if name.endswith(("Pipeline", "Scheduler"))}
    covered = {
        type(part).__name__
        for pipe, _ in pipelines.values()
        for part in (pipe, *pipe.components.values())
    }
    assert public - covered == {"BlockAncestralScheduler"}


@pytest.mark.parametrize("suffix", ["", "-again"])
@pytest.mark.parametrize("name", FAST)
def test_installed_classes_load_folders_with_code_and_those_saved_after_remote_loading(
    pipelines, published, loaded_without_the_package, name, suffix
):
    pipe, arguments = pipelines[name]
    loaded = TextDiffusionPipeline.from_pretrained(f"{published / name}{suffix}")
    loaded.set_progress_bar_config(disable=True)
    assert [type(part) for part in (loaded, *loaded.components.values())] == [
        type(part) for part in (pipe, *pipe.components.values())
    ]
    assert write(loaded, arguments) == write(pipe, arguments)
    assert loaded.config._name_or_path == f"{published / name}{suffix}"


def test_a_folder_holds_one_file_a_class_and_weights_as_safetensors_only(published):
    index = json.loads((published / "two_level" / "model_index.json").read_text())
    listed = {
        value[0]
        for value in index.values()
        if isinstance(value, list) and "text_diffusers" in str(value[0])
    }
    files = [path for path in (published / "two_level").rglob("*") if path.is_file()]
    assert {path.stem for path in files if path.suffix == ".py"} == listed
    assert {path.suffix for path in files} <= {".py", ".json", ".safetensors"}
    assert all(
        name.startswith(f"text_diffusers_{text_diffusers.__version__.replace('.', '_')}_")
        for name in listed
    )


def test_what_is_published_does_not_tell_where_it_was_loaded_from(published, tmp_path):
    loaded = TextDiffusionPipeline.from_pretrained(published / "cfg")
    folder = save_with_code(loaded, tmp_path / "pipe")
    texts = [file.read_text() for file in folder.rglob("*") if file.suffix in (".json", ".py")]
    assert texts and not any(str(published) in text or str(tmp_path) in text for text in texts)


def test_code_that_differs_has_another_file_name_and_replaces_the_old(tmp_path, monkeypatch):
    first = write_source(D3PMAbsorbingScheduler, tmp_path)
    assert write_source(D3PMAbsorbingScheduler, tmp_path) == first
    monkeypatch.setattr(
        "text_diffusers.hub.export.standalone_source", lambda module: "changed = 1\n"
    )
    assert write_source(D3PMAbsorbingScheduler, tmp_path) != first
    assert len(list(tmp_path.glob("*.py"))) == 1


def test_no_code_of_a_folder_runs_without_trust(pipelines, tmp_path):
    """Not where the installed class has its name, nor where it is another's, in the root or in a component."""
    pipe, arguments = pipelines["token"]
    folder = save_with_code(pipe, tmp_path / "pipe")
    marker = tmp_path / "ran"
    evil = f"open({str(marker)!r}, 'w').close()\n"
    for file in folder.rglob("*.py"):
        file.write_text(evil)
    index = json.loads((folder / "model_index.json").read_text())
    for module in ("text_diffusers.schedulers.scheduling_d3pm", "evil"):
        (folder / "scheduler" / f"{module}.py").write_text(evil)
    (folder / "pipeline.py").write_text(evil)
    loaded = None
    try:
        loaded = TextDiffusionPipeline.from_pretrained(folder)
    except ValueError as error:  # a file that is named like the module of the class is not trusted
        assert "trust_remote_code" in str(error)
    (folder / "scheduler" / "text_diffusers.schedulers.scheduling_d3pm.py").unlink()
    loaded = loaded or TextDiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    assert write(loaded, arguments) == write(pipe, arguments)
    for key, value in (("scheduler", ["evil", "Evil"]), ("_class_name", ["pipeline", "Evil"])):
        (folder / "model_index.json").write_text(json.dumps(index | {key: value}))
        with pytest.raises(ValueError, match="trust_remote_code"):
            TextDiffusionPipeline.from_pretrained(folder)
    assert not marker.exists()


@pytest.mark.parametrize("code", ["one_step_unet", "pipeline.py", "user/name"])
def test_custom_pipelines_need_trust(published, code):
    with pytest.raises(ValueError, match="`custom_pipeline` .* needs `trust_remote_code=True`"):
        TextDiffusionPipeline.from_pretrained(published / "token", custom_pipeline=code)


def test_trusted_code_of_a_class_that_is_not_installed_runs(pipelines, tmp_path):
    folder = save_with_code(pipelines["token"][0], tmp_path / "pipe")
    index = json.loads((folder / "model_index.json").read_text())
    file, name = index["_class_name"]
    source = (folder / f"{file}.py").read_text().replace(name, "AnotherPipeline")
    (folder / f"{file}_2.py").write_text(source)
    (folder / "model_index.json").write_text(
        json.dumps(index | {"_class_name": [f"{file}_2", "AnotherPipeline"]})
    )
    with pytest.raises(ValueError, match="AnotherPipeline"):
        TextDiffusionPipeline.from_pretrained(folder)
    loaded = TextDiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__name__ == "AnotherPipeline" and type(loaded).__module__.startswith(
        "diffusers_modules"
    )


class OwnScheduler(D3PMAbsorbingScheduler):
    pass


def test_classes_whose_source_is_unknown_are_refused_before_anything_is_written(
    pipelines, tokenizer, tmp_path
):
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), OwnScheduler(tokenizer.mask_token_id)
    )
    with pytest.raises(
        ValueError, match="`scheduler` must be of a class of text_diffusers.*OwnScheduler"
    ):
        save_with_code(pipe, tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def test_only_pairs_that_name_an_installed_class_change():
    index = {
        "_class_name": ["file", "TextDiffusionPipeline"],
        "scheduler": ["file", "D3PMUniformScheduler"],
        "tokenizer": ["transformers", "TokenizersBackend"],
        "other": ["os", "system"],
        "lengths": [1, 2],
        "nothing": [None, None],
    }
    changed = {"_class_name": "TextDiffusionPipeline"}
    changed |= {"scheduler": ["text_diffusers.schedulers.scheduling_d3pm", "D3PMUniformScheduler"]}
    assert with_installed_classes(index) == index | changed


@pytest.mark.parametrize(
    "name, earlier",
    [
        ("cfg", "TextDiffusionCFGPipeline"),
        ("block", "TextBlockDiffusionPipeline"),
        ("guided", "GuidedDiffusionLMPipeline"),
        ("token_paraguide", "TokenParaGuidePipeline"),
    ],
)
def test_folders_of_the_first_edition_load_by_the_classes_that_took_theirs_in(
    pipelines, published, tmp_path, name, earlier
):
    pipe, arguments = pipelines[name]
    folder = shutil.copytree(published / name, tmp_path / name)
    index = json.loads((folder / "model_index.json").read_text())
    for saved in (earlier, [index["_class_name"][0], earlier]):
        (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": saved}))
        loaded = TextDiffusionPipeline.from_pretrained(folder)
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded) is type(pipe) and write(loaded, arguments) == write(pipe, arguments)


def test_the_shipped_model_is_found_by_its_name_unless_a_folder_has_it(
    pipelines, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert DEFAULT_MODEL == SHIPPED_MODEL  # the command line cannot import it before it is needed
    shipped = TextDiffusionPipeline.from_pretrained(SHIPPED_MODEL)
    assert shipped.label_names == ["chat", "novel", "scripture", "speech"]
    earlier = TextDiffusionPipeline.from_pretrained("chat-and-novels")
    assert earlier.label_names == ["chat", "novel"]
    pipelines["block"][0].save_pretrained(tmp_path / SHIPPED_MODEL)
    assert TextDiffusionPipeline.from_pretrained(SHIPPED_MODEL).block_length == 4


@pytest.mark.parametrize(
    "name", ["no/such", "no-such", "a/b/c", "../../etc", "", "shipped/..", "..", "x" * 300]
)
def test_names_of_nothing_are_refused(name, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(
        (ValueError, OSError), match="is no folder here|no pipeline|model_index|too long"
    ):
        TextDiffusionPipeline.from_pretrained(name)


def test_label_names_mean_their_labels(pipelines):
    pipe = pipelines["cfg"][0]
    assert write(pipe, {"class_labels": ["loud", None], **STEPS}) == write(
        pipe, {"class_labels": [1, None], **STEPS}
    )
    with pytest.raises(
        ValueError, match=r"`class_labels` must be among .*\['calm', 'loud'\], got 'quiet'"
    ):
        pipe(class_labels="quiet")
    with pytest.raises(ValueError, match="`label_names` must be 2, one a label"):
        TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, label_names=["one"])


def test_pickles_are_neither_written_nor_read(pipelines, tmp_path, caplog):
    pipelines["token"][0].save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "denoiser/diffusion_pytorch_model.safetensors").is_file()
    weights = tmp_path / "denoiser/diffusion_pytorch_model.safetensors"
    torch.save({}, tmp_path / "denoiser/diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        TextDiffusionPipeline.from_pretrained(tmp_path)


def page_of(package):
    return {Path("README.md")} if package == "text_diffusers.space" else set()


def relative_files(folder):
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {file for file in files if file.suffix in (".py", ".pyi", ".txt")}


def test_the_files_of_a_space_hold_the_whole_package_and_name_the_model(tmp_path):
    write_space(tmp_path, "someone/model", 'A "title": with marks')
    assert {path.name for path in tmp_path.iterdir()} == {
        *("app.py", "requirements.txt", "README.md", "model.txt", "text_diffusers"),
    }
    front = metadata_load(tmp_path / "README.md")
    assert front["models"] == ["someone/model"] and front["title"] == 'A "title": with marks'
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    package = tmp_path / "text_diffusers"
    assert not (package / "shipped").exists() and not list(tmp_path.rglob("__pycache__"))
    for room in ("pipelines", "schedulers", "space", "hub", "cli"):  # with their sub-packages
        assert relative_files(source_folder(f"text_diffusers.{room}")) == relative_files(
            package / room
        )

    # Public names are imported lazily, by the stubs.
    code = "import text_diffusers; print(text_diffusers.__file__, len(text_diffusers.__all__))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    place, count = done.stdout.split()
    assert Path(place).is_relative_to(tmp_path) and int(count) == len(text_diffusers.__all__)


def test_links_of_an_editable_installation_become_files_of_the_space(tmp_path, monkeypatch):
    """In strict mode setuptools installs folders whose files are links."""
    installed = tmp_path / "build"
    for name in ("text_diffusers", *(f"text_diffusers.{room}" for room in ROOMS)):
        source = source_folder(name)
        for file in relative_files(source) | page_of(name):
            link = installed / name.replace(".", "/") / file
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():  # the package's own folder may hold its rooms already
                link.symlink_to((source / file).resolve())
    monkeypatch.setattr(
        "text_diffusers.hub.export.source_folder", lambda name: installed / name.replace(".", "/")
    )
    write_space(tmp_path / "space", "someone/model", "A title")
    copied = tmp_path / "space/text_diffusers"
    assert relative_files(copied) == relative_files(installed / "text_diffusers")
    assert not [path for path in copied.rglob("*") if path.is_symlink()]
    assert (copied / "pipelines/text_diffusion/pipeline_text_diffusion.py").is_file()
    assert (copied / "evaluation/__init__.pyi").is_file()


def test_records_of_training_and_the_card_go_along(pipelines, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("{}")
    (tmp_path / "run/secret.txt").write_text("")
    folder = save_with_code(
        pipelines["token"][0], tmp_path / "pipe", card="# A card", records=tmp_path / "run"
    )
    assert Path(folder, "README.md").read_text() == "# A card"
    assert Path(folder, "metrics.json").is_file() and not Path(folder, "secret.txt").exists()
