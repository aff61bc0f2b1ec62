"""The pages are true: their code runs, their commands are ones, their outputs are real, their links lead somewhere."""

import importlib
import importlib.util
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
from support.doc_models import put_stand_ins
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
    TextClassifierModel,
    TextDiffusionPipeline,
)
from text_diffusers.hub.published import families

# The code of a translation is that of its English page, and runs there.
RUSSIAN = [page for page in PAGES if page.name.endswith(".ru.md")]
ENGLISH = [page for page in PAGES if page not in RUSSIAN]
LAYOUT = ROOT / "docs/layout.md"
RENDEZVOUS = {"rdzv_backend", "rdzv_endpoint", "rdzv_id"}
TAGS = ["DET", "ADJ", "NOUN", "VERB", "ADV", "PUNCT"]
BERT = "google-bert/bert-base-uncased"
# Packages that a page speaks of, and that no extra of this package brings
ASIDE = ("torchao",)
QUOTING_PAGES = [
    *sorted(ROOT.glob("docs/pipelines/[!R]*[!u].md")),
    ROOT / "docs/models_of_others.md",
]


def is_slow(block):
    """Whether it takes seconds: a command, what a shipped model writes, controls; Python of the first page is fast."""
    if block.language == "bash":
        return re.search(r"^text-diffusers (?!.*--help)", block.code, re.MULTILINE) is not None
    if block.page.parent == ROOT:
        return False
    writes = re.search("four-voices|chat-and-novels|gradio_client", block.code) is not None
    return (writes and not block.models) or "controls=" in block.code


def parameters(*languages, pages=PAGES):
    cases = []
    for page in pages:
        for block in blocks_of(page, *languages):
            marks = [pytest.mark.slow] if is_slow(block) else []
            cases.append(pytest.param(block, id=block.name, marks=marks))
    return cases


@pytest.fixture(scope="session")
def models(tokenizer):
    """Small models by the folders in which the pages expect them."""
    sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    words = {"vocab_size": len(tokenizer), **sizes}
    noise = D3PMAbsorbingScheduler(tokenizer.mask_token_id)

    def over_tokens(lengths=None, **config):
        return TextDiffusionPipeline(
            tokenizer,
            make_denoiser(tokenizer, **{"max_length": 64} | config),
            noise,
            lengths=lengths,
        )

    def over_embeddings(**config):
        denoiser = EmbeddingTransformerModel(
            max_length=64, partial_noising=True, **words, **ids, **config
        )
        return DiffusionLMPipeline(tokenizer, denoiser, EmbeddingDDIMScheduler())

    plain = over_tokens()
    pairs = over_embeddings()
    labels = ["negative", "positive"]
    two_level = make_two_level(tokenizer, window_length=16, max_row=256, prompt_begins_text=True)
    return {
        "runs/quickstart": plain,
        "runs/mine": plain,
        "runs/sentiment": over_tokens(num_classes=2, lengths=[0] * 40 + [1]),
        "runs/paraphrase": over_tokens(max_length=128),
        "runs/block": over_tokens(block_length=8),
        "runs/diffusion_lm": pairs,
        "runs/answers": pairs,
        "runs/reviews": over_embeddings(num_classes=2),
        "runs/two_level": two_level,
        "runs/classifier": TextClassifierModel(num_classes=2, labels=labels, **words),
        "runs/tagger": TextClassifierModel(
            num_classes=len(TAGS), labels=TAGS, per_token=True, **words
        ),
    }


@pytest.fixture
def workplace(models, tmp_path, monkeypatch):
    """An empty folder into which `workplace(block)` puts the models that a block opens."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)
    # A page adds a family of its own.
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))

    def furnish(code):
        for folder, model in models.items():
            if re.search(rf"{folder}\b", code):
                model.save_pretrained(folder)
        if BERT in code:
            for part in make_masked_lm("bert"):
                part.save_pretrained(BERT)
        put_stand_ins(code, tmp_path)
        return tmp_path

    return furnish


@pytest.mark.parametrize("block", parameters("python", pages=ENGLISH))
def test_the_python_of_a_page_runs_and_prints_what_the_page_shows(block, workplace):
    for package in ASIDE:
        if package in block.code and importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    workplace(block.code)
    printed = run_python(block.code)
    assert printed.strip()
    if block.shown is not None and is_settled(block):
        assert tidy(printed) == tidy(block.shown)


@pytest.mark.slow
@pytest.mark.parametrize("block", parameters("py", pages=ENGLISH))
def test_the_python_that_asks_the_hub_does_what_it_says(block, workplace):
    before = [one.code for one in blocks_of(block.page, "python") if one.place < block.place][
        -1
    ]  # it goes on there
    folder = workplace(before + block.code)
    with LoopbackHub({TOKEN: "me"}).serving() as hub:
        done = Client(hub.endpoint, folder).start([sys.executable, "-c", before + block.code])
    assert done.returncode == 0, done.stderr[-2000:]
    asked = set(re.findall(r"push_to_(\w+)\(|push_(space)\(", block.code))
    assert asked and len(hub.repositories) == len(asked)
    assert all(len(repository.files()) > 3 for repository in hub.repositories.values())


@pytest.mark.parametrize("block", parameters("bash", pages=ENGLISH))
def test_the_commands_of_a_page_are_ones_and_print_what_the_page_shows(block, workplace):
    # A recipe looks at the model that it is to train further, and wants no folder where it will write.
    workplace(" ".join(re.findall(r"--model_name_or_path (\S+)", block.code)))
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
        with pytest.raises(
            (AssertionError, SystemExit, ValueError, KeyError, typer.BadParameter.__base__)
        ):
            check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_is_named_exists(page):
    options = set()
    for pattern in (
        "training_scripts/*.py",
        "benchmarks/**/*.py",
        "examples/**/*.py",
        "src/text_diffusers/training/**/*.py",
    ):
        for file in ROOT.glob(pattern):
            options |= set(re.findall(r"^    (\w+): ", file.read_text(), flags=re.MULTILINE))
    for command in COMMANDS.values():
        for option in command.params:
            options |= {name.lstrip("-") for name in (*option.opts, *option.secondary_opts)}
    # Of the program itself, and a misspelling that is answered
    options |= {"version", "kernal"}
    others = {
        "multi_gpu",
        "cpu",
        "num_processes",
        "config_file",
        "logdir",
        "help",
        "local-dir",
        "config-settings",
    }  # of other programs
    others |= {"machine_rank", "main_process_ip", "nproc_per_node", "nnodes"} | RENDEZVOUS
    # Those of lm-eval
    others |= {"model", "model_args", "tasks", "device", "batch_size", "output_path", "gen_kwargs"}
    others |= {"apply_chat_template", "include_path", "use_cache", "cache_requests"}
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?<![\w-])--([a-z][a-z_-]*)", text)) <= options | others


def anchors(page):
    """What GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("room", ["", "guidance", "evaluation", "hub", "losses"])
def test_the_reference_has_every_public_name(room):
    module = importlib.import_module(f"text_diffusers.{room}".rstrip("."))
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)$", pages, flags=re.MULTILINE))
    classes_and_functions = {name for name in module.__all__ if callable(getattr(module, name))}
    assert {f"{module.__name__}.{name}" for name in classes_and_functions} <= shown


def test_every_name_of_the_reference_exists():
    for page in (ROOT / "docs/api").glob("*.md"):
        for name in re.findall(
            r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE
        ):
            owner, _, member = name.rpartition(".")
            assert hasattr(importlib.import_module(owner), member), name


def test_every_file_of_the_layout_exists():
    text = LAYOUT.read_text(encoding="utf-8")
    tree = re.search(r"```\n(.*?)```", text, flags=re.DOTALL).group(1)
    folders = [""]  # those that the lines stand under, by their indent
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.split(" · ", re.split(" {3,}", line.strip())[0])
        for name in names:
            assert Path(ROOT, *folders[: depth + 1], name).exists(), name
        folders[depth + 1 :] = [names[0]]
    for name in re.findall(r"`([\w/.]+/[\w.]+\.py|[\w/]+/)`", text):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "src/text_diffusers")), name


@pytest.mark.parametrize("page", RUSSIAN, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_translation_has_the_code_headings_and_links_of_its_page(page):
    original = page.with_name(page.name.replace(".ru.md", ".md"))
    for language in ("python", "py", "bash"):
        english = blocks_of(original, language)
        russian = blocks_of(page, language)
        assert [without_words(block) for block in english] == [
            without_words(block) for block in russian
        ]
        assert [block.shown for block in english] == [block.shown for block in russian]

    english, russian = (file.read_text(encoding="utf-8") for file in (original, page))
    assert re.findall(r"^(#+) ", english, flags=re.MULTILINE) == re.findall(
        r"^(#+) ", russian, flags=re.MULTILINE
    )
    assert links_of(english) - {original.name} == links_of(russian) - {original.name}
    assert quoted_errors(english) == quoted_errors(russian)


def links_of(text):
    """Files that a page links to; a translation stands for its page."""
    links = re.findall(r"\]\((?!http)([^)#\s]+)", text)
    return {link.replace(".ru.md", ".md") for link in links}


@pytest.mark.parametrize("page", QUOTING_PAGES, ids=lambda page: page.stem)
def test_the_errors_of_a_page_are_raised_as_they_are_quoted(page, models, workplace):
    """An error is quoted in part, with "…" for what changes."""
    model, words = make_masked_lm("bert")
    masked_lm = TextDiffusionPipeline(words, model, D3PMAbsorbingScheduler(words.mask_token_id))

    quotes = quoted_errors(page.read_text(encoding="utf-8"))
    calls = refused_calls(page.stem, models, masked_lm)
    for quote, call in zip(quotes, calls, strict=True):
        parts = [re.escape(part) for part in quote.replace("\\|", "|").split("…")]
        with pytest.raises((ValueError, OSError), match=".+".join(parts)):
            call()


def quoted_errors(text):
    """The messages of the table of a page of a pipeline."""
    return re.findall(r"^\| `` (.*?) `` \|", text, flags=re.MULTILINE)
