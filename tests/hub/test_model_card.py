"""The model card: its code writes what it shows, its figures are those that were left, and no text breaks out."""

import ast
import functools
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import yaml
from conftest import make_denoiser, make_embedding_model
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from PIL import Image
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

import text_diffusers
from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.hub.card_examples import examples_of
from text_diffusers.hub.card_text import code, escaped, fenced, table, wrapped
from text_diffusers.hub.export import save_with_code
from text_diffusers.hub.model_card import model_card
from text_diffusers.hub.papers import ARXIV, PUBLISHED, TITLES, papers_of
from text_diffusers.training.curves import draw_column, draw_curves

STEPS = 8
MARKDOWN = MarkdownIt("commonmark").enable("table")
BOUNDS = {"bound": 5.02, "standard_error": 0.045, "unigram_entropy": 6.5}
NASTY = [
    "# not a heading",
    "```\n</details><script>alert(1)</script>\n````",
    "~~~\n---\nlicense: mit\n---",
    "[link](https://evil.example) ![x](https://evil.example/x.png) <img src=x onerror=alert(1)>",
    "a | b `c` **d** _e_ \\ $x$ &amp; <!-- www.evil.example",
    "'\"]); import os; os.system('x') #",
    "x\u202ey\u2028z\x00\x1b[31m",
    "one\r\ntwo\rthree",
]


def embedding_model(tokenizer, **changes):
    return make_embedding_model(
        tokenizer, **{"num_layers": 1, "num_train_timesteps": STEPS} | changes
    )


def absorbing_of(tokenizer):
    """Noise in few steps, which the card then asks for."""
    return D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=STEPS)


@pytest.fixture
def pipe(tokenizer, denoiser):
    return TextDiffusionPipeline(tokenizer, denoiser, absorbing_of(tokenizer))


def all_pipes(tokenizer):
    """`{name: (pipeline, options of its training)}` of every kind that there is."""
    absorbing = absorbing_of(tokenizer)
    continuous = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    uniform = D3PMUniformScheduler(tokenizer.pad_token_id, num_train_timesteps=20)
    plain = make_denoiser(tokenizer)
    labelled = make_denoiser(tokenizer, num_classes=2)
    drawn = [0] * 6 + [1] * 20
    ddim = EmbeddingDDIMScheduler(num_train_timesteps=STEPS)
    masked_lm, words = make_masked_lm("bert")
    roberta, bytes_of = make_masked_lm("roberta")
    source = {"source_column": "source", "condition_dropout": 0.1}
    return {
        "tokens": (TextDiffusionPipeline(tokenizer, plain, continuous), {}),
        "tokens-few-steps": (
            TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), uniform, drawn),
            {},
        ),
        "labels": (TextDiffusionPipeline(tokenizer, labelled, absorbing), {}),
        "cfg-names": (
            TextDiffusionPipeline(tokenizer, labelled, absorbing, drawn, ["good", 'it\'s "bad"']),
            {"condition_dropout": 0.1},
        ),
        "cfg-source": (TextDiffusionPipeline(tokenizer, plain, absorbing), source),
        "cfg-undropped": (
            TextDiffusionPipeline(tokenizer, labelled, absorbing),
            {"condition_dropout": 0.0},
        ),
        "blocks": (
            TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer, block_length=8), absorbing),
            {},
        ),
        "bert": (TextDiffusionPipeline(words, masked_lm, absorbing_of(words)), {}),
        "roberta": (
            TextDiffusionPipeline(bytes_of, roberta, absorbing_of(bytes_of), drawn),
            {},
        ),
        "token-paraguide": (ParaGuidePipeline(tokenizer, plain, absorbing), {}),
        "paraguide": (
            ParaGuidePipeline(tokenizer, embedding_model(tokenizer, partial_noising=True), ddim),
            {},
        ),
        "diffusion-lm": (DiffusionLMPipeline(tokenizer, embedding_model(tokenizer), ddim), {}),
        "diffusion-lm-source": (
            DiffusionLMPipeline(tokenizer, embedding_model(tokenizer, partial_noising=True), ddim),
            source,
        ),
        "guided": (
            DiffusionLMPipeline(tokenizer, embedding_model(tokenizer, num_classes=3), ddim),
            {"condition_dropout": 0.1},
        ),
        "two-level": (make_two_level(tokenizer, prompts=None), {}),
        "two-level-continues": (make_two_level(tokenizer, prompt_begins_text=True), {}),
        "two-level-source": (make_two_level(tokenizer, prompts="bert"), {}),
        "one-level": (make_two_level(tokenizer, two=False, prompts=None), {}),
        "latents": (make_latent_pipe(tokenizer), {}),
        "latents-names": (
            make_latent_pipe(
                tokenizer, make_latent_denoiser(num_classes=2), label_names=["good", "bad"]
            ),
            {"condition_dropout": 0.1},
        ),
        "latents-source": (make_latent_pipe(tokenizer), source),
        "latents-prior": (
            make_latent_pipe(tokenizer, make_latent_prior(), reads_source=True),
            source,
        ),
    }


# Some whose pipelines write fast, and the others
FAST = (
    "tokens-few-steps",
    "blocks",
    "diffusion-lm",
)
SLOW = (
    "cfg-names",
    "two-level-continues",
    "latents-names",
    "tokens",
    "cfg-source",
    "bert",
    "labels",
    "cfg-undropped",
    "roberta",
    "token-paraguide",
    "paraguide",
    "diffusion-lm-source",
)
SLOW += ("guided", "two-level", "two-level-source", "one-level")
SLOW += ("latents", "latents-source", "latents-prior")


@pytest.fixture(scope="module")
def pipes(tokenizer):
    return all_pipes(tokenizer)


@pytest.fixture(scope="module")
def card_of(pipes, tmp_path_factory):
    """The card of a pipeline, made once; it names the folder in which the pipeline is saved with its code."""
    folder = tmp_path_factory.mktemp("published")

    @functools.cache
    def card(name):
        pipe, options = pipes[name]
        (folder / name).mkdir()
        (folder / name / "training_config.json").write_text(json.dumps({"options": options}))
        text = model_card(pipe, folder / name, name=str(folder / name), license="apache-2.0")
        save_with_code(pipe, folder / name, text)
        return text

    card.folder = folder
    return card


def blocks(card, language):
    """Contents of the blocks of code in a language, as a parser of Markdown finds them."""
    tokens = MARKDOWN.parse(card)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def shown_texts(card):
    return [text.removesuffix("\n") for text in blocks(card, "text")]


def as_shown(text):
    """What can be seen of a text."""
    text = text.replace("\r\n", "\n")
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def printed_texts(output):
    return [as_shown(text) for line in output.splitlines() for text in ast.literal_eval(line)]


def unbroken(text):
    return text.replace("\n", "")


@pytest.mark.parametrize(
    "name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_the_code_of_the_card_writes_the_texts_of_the_card(name, card_of, pipes, capsys):
    card = card_of(name)
    exec(compile(blocks(card, "python")[0], "card", "exec"), {})
    printed = printed_texts(capsys.readouterr().out)
    assert [unbroken(text) for text in shown_texts(card)] == [unbroken(text) for text in printed]
    assert any(printed)
    assert f"`{type(pipes[name][0]).__name__}`" in card


def test_every_kind_of_pipeline_has_a_card(pipes):
    assert {*FAST, *SLOW} == set(pipes)
    public = {
        getattr(text_diffusers, name)
        for name in text_diffusers.__all__
        if name.endswith("Pipeline")
    }
    assert public == {type(pipe) for pipe, _ in pipes.values()}


STOCK = """
import json, sys
sys.modules["text_diffusers"] = None
from contextlib import redirect_stdout
from io import StringIO
found = {}
for name, block in json.load(open("blocks.json")).items():
    with redirect_stdout(StringIO()) as printed:
        exec(compile(block, name, "exec"), {})
    found[name] = printed.getvalue()
print(json.dumps(found))
"""


@pytest.mark.parametrize("name", FAST)
def test_the_code_for_stock_diffusers_is_the_first_call_after_another_loader(card_of, name):
    ours, stock = blocks(card_of(name), "python")
    expected = (
        ours.replace("from text_diffusers import Text", "from diffusers import ")
        .replace("= TextDiffusionPipeline", "= DiffusionPipeline")
        .splitlines()
    )
    assert expected[3].endswith('")')
    first_call = next(line for line in expected if line.startswith("print"))
    assert stock.splitlines() == [
        *expected[:3],
        expected[3].removesuffix(")") + ", trust_remote_code=True)",
        first_call,
    ]


@pytest.mark.slow
def test_the_code_for_stock_diffusers_writes_the_same_where_the_package_is_not(card_of, tmp_path):
    kinds = ("cfg-names", "blocks", "bert", "token-paraguide", "guided", "two-level-continues")
    stock = {name: blocks(card_of(name), "python")[1] for name in kinds}
    (tmp_path / "blocks.json").write_text(json.dumps(stock))
    (tmp_path / "run.py").write_text(STOCK)
    environment = os.environ | {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "run.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, output in json.loads(done.stdout.splitlines()[-1]).items():
        printed = [unbroken(text) for text in printed_texts(output)]
        assert (
            printed
            and printed == [unbroken(text) for text in shown_texts(card_of(name))][: len(printed)]
        ), name


def test_calls_fit_what_the_model_was_trained_for(pipes):
    first = {}
    for name, (pipe, options) in pipes.items():
        examples = examples_of(pipe, options)
        first[name] = " ".join(example.source() for example in examples)
    assert (
        "class_labels=[" in first["cfg-names"]
        and "good" in first["cfg-names"]
        and "bad" in first["cfg-names"]
    )
    assert (
        "guidance_scale=2.0" in first["cfg-names"]
        and "guidance_scale" not in first["cfg-undropped"]
    )
    assert (
        'source="It was late."' in first["cfg-source"]
        and "guidance_scale=2.0" in first["cfg-source"]
    )
    assert (
        "class_labels=[0, 1, 2]" in first["guided"]
        and "num_inference_steps=20" in first["tokens-few-steps"]
    )
    assert "max_new_tokens" in first["bert"] and "max_new_tokens" not in first["roberta"]
    assert "<mask>" in first["roberta"] and "prompt=" not in first["two-level"]


def test_the_front_matter_is_what_the_hub_reads(pipe, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(BOUNDS))
    names = {"name": "My model", "license": "apache-2.0", "repo_id": "me/my-model"}
    card = model_card(pipe, tmp_path, **names, datasets=["me/texts", "a file: of mine"])
    (tmp_path / "README.md").write_text(card)
    data = metadata_load(tmp_path / "README.md")
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "text-generation"
    assert (
        data["license"] == "apache-2.0"
        and data["datasets"] == ["me/texts"]
        and "text-diffusers" in data["tags"]
    )
    assert "widget" not in data
    results = {result.metric_type: result for result in ModelCard(card).data.eval_results}
    assert results["nats-per-token"].metric_value == 5.02
    assert results["perplexity"].metric_value == pytest.approx(math.exp(5.02))
    assert {result.dataset_name for result in results.values()} == {"me/texts"}
    assert ModelCard(card).data.model_name == "My model"
    assert 'from_pretrained("me/my-model")' in card and "`a file: of mine`" in card


def test_without_a_folder_the_card_claims_nothing_of_training(pipe):
    card = model_card(pipe, name="bare")
    assert (
        "## Training" not in card
        and "## Evaluation" not in card
        and "## Licence" not in card
        and "![" not in card
    )
    data = yaml.safe_load(card.split("---")[1])
    assert data.keys() == {"library_name", "pipeline_tag", "tags"}


def test_figures_are_those_that_were_left(pipe, tmp_path):
    metrics = {
        "bound": 2.5,
        "standard_error": 0.25,
        "unigram_entropy": 2.0,
        "mean_length": 7.25,
        "unheard_of": 8.5,
    }
    (tmp_path / "metrics.json").write_text(
        json.dumps(metrics | {"length_distance": None, "fine_bound": "many"})
    )
    worth = model_card(pipe, tmp_path, name="x").split("## Evaluation")[1].split("\n## ")[0]
    numbers = re.findall(r"\| ([\d.]+)(?: ± ([\d.]+))? \|", worth)
    assert numbers == [("2.500", "0.250"), ("2.000", ""), ("7.250", "")]
    assert (
        f"e^-2.500 = {math.exp(-2.5):.3g}" in worth
        and f"at most {math.exp(2.5):.4g} per token" in worth
    )
    assert "not shown to know more" in worth and "8.5" not in worth and "many" not in worth
    assert "left by an earlier version" in worth and "per character" not in worth
    (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"bound": 1.9}))
    assert "not shown to know more" not in model_card(pipe, tmp_path, name="x")

    # What is counted, and what compares with models of other tokenizers
    (tmp_path / "metrics.json").write_text(
        json.dumps(metrics | {"bits_per_character": 1.125, "num_tokens": 1200})
    )
    card = model_card(pipe, tmp_path, name="x", datasets=["me/texts"])
    assert "| 1.125 | bits per character |" in card and "the 1,200 tokens" in card
    assert "left by an earlier version" not in card
    results = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for metric in results[0]["metrics"]}
    assert found["bits-per-character"] == 1.125 and found["nats-per-token"] == 2.5


def test_training_is_told_as_it_was_noted(pipe, tmp_path):
    command = (
        "accelerate launch training_scripts/train_d3pm.py --dataset 'my texts.txt' --packing false "
        + "--seed 7 " * 12
    )
    note = {
        "command": command,
        "options": {"dataset": "my texts.txt", "seed": 7},
        "num_processes": 2,
        "device": "cuda",
    }
    note |= {"mixed_precision": "bf16", "versions": {"torch": "2.13.0+cpu"}}
    (tmp_path / "training_config.json").write_text(json.dumps(note))
    rows = [
        {"step": step, "seconds": 6.0 * step, "loss": 3.0, "learning_rate": 0.1}
        for step in range(10, 101, 10)
    ]
    (tmp_path / "curves.jsonl").write_text("\n".join(map(json.dumps, rows)))
    card = model_card(pipe, tmp_path, name="x")
    (shown,) = blocks(card, "bash")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {shown}"], capture_output=True, text=True
    ).stdout
    before, after = (
        "accelerate launch training_scripts/train_d3pm.py --dataset",
        f"--packing false {'--seed 7 ' * 12}",
    )
    assert words.split("\0")[:-1] == [*before.split(), "my texts.txt", *after.split()]
    assert "100 optimizer steps in 10.0 minutes" in card and "2 processes on `cuda`" in card
    assert "torch `2.13.0+cpu`" in card and "| `seed` | `7` |" in card
    assert "![Curves of the training by step](curves.png)" in card
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 400


def test_the_curves_that_are_drawn_are_those_of_the_file():
    curve = [
        {"step": 10 * i, "loss": 5 - i / 100, "learning_rate": 1e-3 * i} for i in range(1, 101)
    ]
    curve[49]["validation"], curve[99]["validation"] = {"bound": 4.5}, {"bound": 4.0}
    axes = Figure().subplots(3)
    draw_column(axes, curve + [{"step": 1005, "validation": {"bound": "?"}}], entropy=6.0)
    points, smooth = (line.get_xydata() for line in axes[0].lines)
    assert points.tolist() == [[row["step"], row["loss"]] for row in curve]
    slope = (smooth[-1, 1] - smooth[0, 1]) / (smooth[-1, 0] - smooth[0, 0])
    assert len(smooth) == 97 and slope == pytest.approx(-0.001)  # averaging keeps a straight line
    assert axes[1].lines[0].get_xydata().tolist() == [[500, 4.5], [1000, 4.0]]
    assert axes[1].lines[1].get_ydata()[0] == 6.0 and axes[2].lines[0].get_ydata()[
        -1
    ] == pytest.approx(0.1)


def test_stages_are_drawn_beside_each_other_and_no_curves_make_no_picture(tmp_path):
    assert draw_curves(tmp_path) is None and not list(tmp_path.iterdir())
    for stage in ("coarse", "fine"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "curves.jsonl").write_text(
            '{"step": 10, "validation": {"cross_entropy": 1.0}}\n'
        )
    with Image.open(draw_curves(tmp_path)) as two:
        assert two.size[0] > 1.5 * two.size[1]


class Reader(HTMLParser):
    """The text of a page, and the tags that it has."""

    def __init__(self, page):
        super().__init__()
        self.text, self.tags = "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def breakouts(card):
    """Tags of the rendered card that no card has, and links and pictures that lead elsewhere than its own."""
    known = {*"h1 h2 p table thead tbody tr th td code pre ul li a img details summary hr".split()}
    own = re.compile(r"https://arxiv\.org/abs/[\d.]+|curves\.png")
    tags = Reader(MARKDOWN.render(card.split("\n---\n", 1)[1])).tags
    places = [
        attributes.get("href") or attributes.get("src")
        for tag, attributes in tags
        if tag in ("a", "img")
    ]
    return [tag for tag, _ in tags if tag not in known] + [
        place for place in places if not own.fullmatch(place)
    ]


@pytest.mark.parametrize("nasty", NASTY)
def test_no_name_breaks_out(nasty, tokenizer, tmp_path):
    labels = [nasty, f"{nasty} "]
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer, num_classes=2), absorbing_of(tokenizer)
    )
    pipe.register_to_config(label_names=labels)
    note = {
        "command": f"run --dataset {json.dumps(nasty)}",
        "options": {"dataset": nasty, nasty: nasty},
    }
    note |= {
        "num_processes": 1,
        "device": nasty,
        "mixed_precision": nasty,
        "versions": {nasty: nasty},
    }
    (tmp_path / "training_config.json").write_text(json.dumps(note))
    (tmp_path / "metrics.json").write_text(json.dumps(BOUNDS | {nasty: 1.0}))
    card = model_card(pipe, tmp_path, name=nasty, datasets=[nasty])
    assert breakouts(card) == []
    seen = " ".join("".join(char if char.isprintable() else " " for char in nasty).split())
    page = Reader(MARKDOWN.render(card.split("\n---\n", 1)[1]))
    assert page.text.lstrip().startswith(seen + "\n") and page.text.count(seen) >= 6
    data = yaml.safe_load(card.split("\n---\n", 1)[0].removeprefix("---"))
    assert data["tags"][0] == "text-diffusers" and "license" not in data and "datasets" not in data
    assert data["model-index"][0]["name"] == seen
    ast.parse(blocks(card, "python")[0])


class WritesNasty(TextDiffusionPipeline):
    """Writes as its parent does, and then something else."""

    @functools.wraps(TextDiffusionPipeline.__call__)
    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        output.texts = (NASTY * 2)[self.start :][: len(output.texts)]
        return output


@pytest.mark.parametrize("start", [0, 4])
def test_written_texts_are_shown_as_they_are_and_do_not_break_out(pipe, start):
    WritesNasty.start = start
    card = model_card(WritesNasty(**pipe.components), name="nasty")
    assert breakouts(card) == []
    assert shown_texts(card)[:4] == [as_shown(text) for text in NASTY[start : start + 4]]


@pytest.mark.parametrize(
    "text", [*NASTY, "", " ", "`", "``` `", "a" * 300, "word " * 60, "  two  spaces \n\n end"]
)
def test_markdown_reads_back_what_it_was_given(text):
    (block,) = blocks(fenced(wrapped(text), "text"), "text")
    assert unbroken(block) == unbroken(as_shown(text))
    assert all(len(line) <= 101 or " " not in line.strip() for line in block.splitlines())
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    assert Reader(MARKDOWN.render(f"# {escaped(text)}")).text.strip() == line
    assert Reader(MARKDOWN.render(f"x {code(text)}")).text.strip().removeprefix("x").strip() == line
    rendered = Reader(MARKDOWN.render(table(("a", "b"), [(code(text), "end")]))).text.split("\n")
    assert line in [cell.strip() for cell in rendered] and "end" in rendered


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"name": " \n"}, "`name` must hold something"),
        ({"license": "MIT\n---"}, "`license` must be an identifier of the Hub"),
        ({"repo_id": "a/b/c"}, "repo_name"),
    ],
)
def test_what_is_no_name_is_refused(pipe, changes, match):
    with pytest.raises(ValueError, match=match):
        model_card(pipe, **{"name": "x"} | changes)


@pytest.mark.parametrize("content", ["{", "[1]", '{"options": 3}'])
def test_a_file_that_cannot_be_read_is_named(pipe, tmp_path, content):
    (tmp_path / "training_config.json").write_text(content)
    with pytest.raises(ValueError, match="training_config.json` must"):
        model_card(pipe, tmp_path, name="x")


def test_the_bar_is_as_before(pipe):
    pipe.set_progress_bar_config(disable=False, desc="mine")
    model_card(pipe, name="x")
    assert pipe._progress_bar_config == {"disable": False, "desc": "mine"}


def test_every_scheduler_has_a_paper_and_every_title_is_used():
    schedulers = [
        getattr(text_diffusers, name)
        for name in text_diffusers.__all__
        if name.endswith("Scheduler")
    ]
    assert len(schedulers) > 10
    for owner in schedulers:
        assert papers_of(owner.__new__(owner)), owner
    parts = [getattr(text_diffusers, name) for name in text_diffusers.__all__]
    cited = {
        number
        for part in parts
        if isinstance(part, type)
        for number, _ in papers_of(part.__new__(part))
    }
    cited |= set(PUBLISHED.values())
    assert set(TITLES) == cited and all(
        ARXIV.fullmatch(f"arxiv.org/abs/{number}") for number in TITLES
    )
