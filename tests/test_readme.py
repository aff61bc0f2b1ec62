"""The pages are true: their code runs, their commands are ones, their outputs are real, their links lead somewhere."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import typer
from conftest import SENTENCES, make_denoiser
from support.doc_blocks import (
    COMMANDS,
    PAGES,
    ROOT,
    blocks_of,
    check_command,
    commands_of,
    is_settled,
    run_python,
    run_shell,
    tidy,
    without_words,
)
from support.doc_refusals import refused_calls
from support.hub_client import TOKEN, Client
from support.loopback_hub import LoopbackHub
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    GuidedDiffusionLMPipeline,
    TextBlockDiffusionPipeline,
    TextClassifierModel,
    TextDiffusionCFGPipeline,
    TextDiffusionPipeline,
)

README, RUSSIAN = ROOT / "README.md", ROOT / "README.ru.md"
ONCE = [page for page in PAGES if page != RUSSIAN]  # its code is that of the English page
TREE = r"## The tree\n\n```\n((?:.*\n)*?)```"
RENDEZVOUS = {"rdzv_backend", "rdzv_endpoint", "rdzv_id"}
TAGS = ["DET", "ADJ", "NOUN", "VERB", "ADV", "PUNCT"]
BERT = "google-bert/bert-base-uncased"


def parameters(*languages, pages=PAGES):
    return [pytest.param(block, id=block.name) for page in pages for block in blocks_of(page, *languages)]


@pytest.fixture(scope="session")
def models(tokenizer):
    """Small ones by the folders in which the pages expect them."""
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    labelled = make_denoiser(tokenizer, num_classes=2, max_length=64)
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id, "max_length": 64}
    embeddings = EmbeddingTransformerModel(len(tokenizer), partial_noising=True, **sizes, **ids)
    reviews = EmbeddingTransformerModel(len(tokenizer), partial_noising=True, num_classes=2, **sizes, **ids)
    over_embeddings = DiffusionLMPipeline(tokenizer, embeddings, EmbeddingDDIMScheduler())
    plain = TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer, max_length=64), scheduler)
    blocks = make_denoiser(tokenizer, block_length=8, max_length=64)
    words = {"vocab_size": len(tokenizer), **sizes}
    feelings = ["negative", "positive"]
    return {
        "runs/quickstart": plain,
        "runs/mine": plain,
        "runs/sentiment": TextDiffusionCFGPipeline(tokenizer, labelled, scheduler, lengths=[0] * 40 + [1]),
        "runs/paraphrase": TextDiffusionCFGPipeline(tokenizer, make_denoiser(tokenizer, max_length=128), scheduler),
        "runs/block": TextBlockDiffusionPipeline(tokenizer, blocks, scheduler),
        "runs/diffusion_lm": over_embeddings,
        "runs/answers": over_embeddings,
        "runs/reviews": GuidedDiffusionLMPipeline(tokenizer, reviews, EmbeddingDDIMScheduler()),
        "runs/two_level": make_two_level(tokenizer, window_length=16, max_row=256, prompt_begins_text=True),
        "runs/classifier": TextClassifierModel(num_classes=2, labels=feelings, **words),
        "runs/tagger": TextClassifierModel(num_classes=len(TAGS), labels=TAGS, per_token=True, **words),
    }


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    """An empty folder into which `workplace(block)` puts the models that a block opens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)

    def furnish(code):
        for folder, model in models.items():
            if re.search(rf"{folder}\b", code):
                model.save_pretrained(folder)
        if BERT in code:
            for part in make_masked_lm("bert"):
                part.save_pretrained(BERT)
        return tmp_path

    return furnish


@pytest.mark.parametrize("block", parameters("python", pages=ONCE))
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(block, workplace):
    workplace(block.code)
    printed = run_python(block.code)
    assert printed.strip()
    if block.shown is not None and is_settled(block):
        assert tidy(printed) == tidy(block.shown)


@pytest.mark.parametrize("block", parameters("py", pages=ONCE))
def test_the_python_that_asks_the_hub_does_what_it_says(block, workplace):
    before = [one.code for one in blocks_of(block.page, "python") if one.place < block.place][-1]  # it goes on there
    folder = workplace(before + block.code)
    with LoopbackHub({TOKEN: "me"}).serving() as hub:
        done = Client(hub.endpoint, folder).start([sys.executable, "-c", before + block.code])
    assert done.returncode == 0, done.stderr[-2000:]
    asked = set(re.findall(r"push_to_(\w+)\(|push_(space)\(", block.code))
    assert asked and len(hub.repositories) == len(asked)
    assert all(len(repository.files()) > 3 for repository in hub.repositories.values())


@pytest.mark.parametrize("block", parameters("bash", pages=ONCE))
def test_the_commands_of_a_page_are_ones_and_print_what_the_page_shows(block, workplace):
    for words in commands_of(block):
        check_command(words)
    folder = workplace(block.code)
    for name in re.findall(r"--(?:input|dataset) (\w+\.txt)", block.code):
        Path(folder, name).write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    printed = run_shell(block)
    assert printed is None or printed.strip()
    assert block.shown is None or printed is not None
    if block.shown is not None and is_settled(block):
        assert tidy(printed) == tidy(block.shown)


def test_wrong_commands_are_noticed():
    wrong = [
        "make nothing",
        "python training_scripts/train_nothing.py",
        "python training_scripts/train_d3pm.py --dataset a --output_dir b --no_such_option 1",
        "accelerate launch training_scripts/train_d3pm.py --output_dir b --lr 1",
        "torchrun --nproc_per_node 2 training_scripts/train_d3pm.py --kernel",
        "python benchmarks/sampling.py --no_such_option",
        "python training_scripts/quickstart.py --option",
        "text-diffusers generate --no-such-option",
        "text-diffusers generate --steps many",
        "text-diffusers write",
        'pip install -e ".[nothing]"',
        "rm -rf runs",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, SystemExit, ValueError, KeyError, typer.BadParameter.__base__)):
            check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_is_named_exists(page):
    files = [*ROOT.glob("training_scripts/*.py"), *ROOT.glob("benchmarks/*_config.py")]
    files += [ROOT / "src/text_diffusers" / name for name in ("training_config.py", "text_data.py")]
    options = {name for file in files for name in re.findall(r"^    (\w+): ", file.read_text(), flags=re.MULTILINE)}
    options |= {name.lstrip("-") for command in COMMANDS.values() for option in command.params for name in option.opts}
    others = {"multi_gpu", "cpu", "num_processes", "config_file", "logdir", "help", "local-dir"}  # of other programs
    others |= {"machine_rank", "main_process_ip", "nproc_per_node", "nnodes"} | RENDEZVOUS
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--([a-z][a-z_-]*)", text)) <= options | others


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_file_in_the_tree_exists():
    (page,) = [page for page in PAGES if re.search(TREE, page.read_text(encoding="utf-8"))]
    tree = re.search(TREE, page.read_text(encoding="utf-8")).group(1)
    for line in tree.splitlines():
        for name in re.split(r" · ", line.split("  ")[0]):
            assert (ROOT / name.strip()).exists(), name


def test_the_russian_page_is_the_english_one():
    pages = [page.read_text(encoding="utf-8") for page in (README, RUSSIAN)]
    for language in ("python", "py", "bash"):
        pairs = [blocks_of(page, language) for page in (README, RUSSIAN)]
        english, russian = ([without_words(block) for block in blocks] for blocks in pairs)
        assert english == russian
        english, russian = ([block.shown for block in blocks] for blocks in pairs)
        assert english == russian
    english, russian = (re.findall(r"^(#+) ", page, flags=re.MULTILINE) for page in pages)
    assert english == russian
    english, russian = (set(re.findall(r"\]\((?!http)([^)#\s]+)", page)) for page in pages)
    assert english - {RUSSIAN.name} == russian - {README.name}


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/pipelines/[!R]*.md")), ids=lambda page: page.stem)
def test_the_errors_of_a_page_are_raised_as_they_are_quoted(page, models, workplace):
    """An error is quoted in part, with "…" for what changes."""
    _, _, table = page.read_text(encoding="utf-8").partition("## When it refuses")
    quoted = [text for _, text in re.findall(r"^\| (`+) ?(.*?) ?\1 \|", table, flags=re.MULTILINE)]
    model, words = make_masked_lm("bert")
    masked_lm = TextDiffusionPipeline(words, model, D3PMAbsorbingScheduler(words.mask_token_id))
    raised = []
    for call in refused_calls(page.stem, models, masked_lm):
        with pytest.raises((ValueError, OSError)) as error:
            call()
        raised.append(str(error.value))
    assert len(quoted) == len(raised)
    for text, message in zip(quoted, raised, strict=True):
        parts = [re.escape(part) for part in text.replace("\\|", "|").split("…")]
        assert re.search(".+".join(parts), message), (text, message)
