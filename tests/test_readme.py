"""The Python of README and docs runs as written, in a folder that has a trained model where it expects one."""

import re
from pathlib import Path

import pytest
from conftest import make_denoiser
from two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextClassifierModel,
    TextDiffusionCFGPipeline,
)

ROOT = Path(__file__).parent.parent
README, DOCS = ROOT / "README.md", sorted((ROOT / "docs").glob("*.md"))
DOWNLOADS = "google-bert/"
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in (README, *DOCS)
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL))
    if DOWNLOADS not in block
]


@pytest.fixture
def embedding_pipe(tokenizer):
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "max_length": 64}
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    denoiser = EmbeddingTransformerModel(len(tokenizer), partial_noising=True, **sizes, **ids)
    return DiffusionLMPipeline(tokenizer, denoiser, EmbeddingDDIMScheduler())


@pytest.fixture
def other_models(tokenizer):
    """By the folders in which the pages expect them."""
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    labelled = make_denoiser(tokenizer, num_classes=2, max_length=64)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    tags = ["DET", "ADJ", "NOUN", "VERB", "ADV", "PUNCT"]
    return {
        "sentiment": TextDiffusionCFGPipeline(tokenizer, labelled, scheduler, lengths=[0] * 40 + [1]),
        "paraphrase": TextDiffusionCFGPipeline(tokenizer, make_denoiser(tokenizer, max_length=256), scheduler),
        "classifier": TextClassifierModel(num_classes=2, **sizes),
        "two_level": make_two_level(tokenizer, window_length=16, max_row=256, prompt_begins_text=True),
        "tagger": TextClassifierModel(num_classes=len(tags), labels=tags, per_token=True, **sizes),
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_the_python_of_the_pages_runs(block, pipe, embedding_pipe, other_models, tmp_path, monkeypatch, capsys):
    models = other_models | {"quickstart": pipe, "diffusion_lm": embedding_pipe}
    for name, model in models.items():
        if f'"runs/{name}"' in block:
            model.save_pretrained(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "page", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_file_in_the_tree_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    for line in tree.splitlines():
        for name in re.split(r" · ", line.split("  ")[0]):
            assert (README.parent / name.strip()).exists(), name


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page):
    files = [*ROOT.glob("training_scripts/*.py"), *ROOT.glob("benchmarks/*_config.py")]
    files += [ROOT / "src/text_diffusers" / name for name in ("training_config.py", "text_data.py")]
    options = {name for file in files for name in re.findall(r"^    (\w+): ", file.read_text(), flags=re.MULTILINE)}
    others = {"multi_gpu", "cpu", "num_processes", "config_file", "nproc_per_node", "logdir", "help"}  # launchers'
    assert set(re.findall(r"--([a-z_]+)", page.read_text(encoding="utf-8"))) <= options | others


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link
