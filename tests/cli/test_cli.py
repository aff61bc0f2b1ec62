"""Laws of the command line: it prints what the pipeline says, and says in one line what is wrong."""

import inspect
import json
import math
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import diffusers
import pytest
import torch
import typer
from conftest import SENTENCES, make_denoiser
from support.command_line import generators, refused, run
from support.embedding_pipes import make_embedding_pipe
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level
from typer.testing import CliRunner

import text_diffusers
from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.cli import app as cli
from text_diffusers.cli.evaluation.text_bounds import evaluate_texts, load_texts
from text_diffusers.cli.noisy_text import corrupted_texts
from text_diffusers.evaluation.likelihood import evaluate_likelihood
from text_diffusers.kernels import KERNELS

COMMANDS = [
    *("generate", "chat", "infill", "corrupt", "evaluate", "convert", "publish", "demo", "env")
]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
TEXT = "the cat sat on the mat and looked at the dog"


@pytest.fixture
def labelled(tokenizer):
    denoiser = make_denoiser(tokenizer, num_classes=2)
    parts = tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(*parts, label_names=["quiet", "loud"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def model(labelled, tmp_path):
    labelled.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


# Writing


def test_generate_prints_the_texts_of_the_pipeline(labelled, model):
    options = [
        "--num",
        2,
        "--steps",
        4,
        "--max-new-tokens",
        6,
        "--seed",
        3,
        "--label",
        "loud",
        "--guidance-scale",
        2,
    ]
    found = run("generate", model, "--prompt", "the cat", "--prompt", "she", *options)
    texts = labelled(
        ["the cat", "she"],
        class_labels=[1, 1],
        guidance_scale=2.0,
        num_inference_steps=4,
        max_new_tokens=6,
        num_return_sequences=2,
        generator=generators(2, seed=3, number=2),
    ).texts
    assert found.stdout == "".join(f"{text}\n" for text in texts) and not found.stderr
    by_number = [1 if word == "loud" else word for word in options]
    assert (
        run("generate", model, "--prompt", "the cat", "--prompt", "she", *by_number).stdout
        == found.stdout
    )


def test_scheduler_and_shaping_are_those_that_were_asked_for(labelled, model):
    words = [
        "--steps",
        4,
        "--scheduler",
        "margin",
        "--temperature",
        0.5,
        "--top-k",
        9,
        "--top-p",
        0.7,
    ]
    found = run("generate", model, *words)
    shaping = {"temperature": 0.5, "top_k": 9, "top_p": 0.7}
    labelled.scheduler = ConfidenceScheduler.from_config(
        labelled.scheduler.config, order="margin", **shaping
    )
    assert found.stdout == labelled(num_inference_steps=4, generator=generators(1)).texts[0] + "\n"


def test_a_sampler_of_a_token_a_step_gets_as_many_steps_as_it_needs(model):
    assert run("generate", model, "--scheduler", "first_hitting").stdout.strip()
    assert "at least" in refused("generate", model, "--scheduler", "first_hitting", "--steps", 3)


def test_a_stream_ends_with_the_text_and_begins_with_masks(model):
    words = ["generate", model, "--prompt", "the", "--steps", 4, "--max-new-tokens", 6]
    frames = run(*words, "--stream").stdout.splitlines()
    assert len(frames) == 4 and "[MASK]" in frames[0] and "[MASK]" not in frames[-1]
    assert frames[-1] == run(*words).stdout.strip()


def test_infill_keeps_what_is_given(labelled, model):
    text = "the [MASK] sat on the [MASK] dog"
    found = run("infill", model, text, "--steps", 4, "--num", 3).stdout.splitlines()
    options = {
        "num_inference_steps": 4,
        "num_return_sequences": 3,
        "generator": generators(1, number=3),
    }
    assert found == labelled(text=[text], **options).texts
    assert all(
        line.startswith("the") and " sat on the" in line and line.endswith(" dog") for line in found
    )
    assert "must hold [MASK]" in refused("infill", model, "nothing to fill in")


def test_gaps_are_those_of_the_tokenizer(tmp_path):
    denoiser, tokenizer = make_masked_lm("roberta")
    assert tokenizer.mask_token == "<mask>"
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.save_pretrained(tmp_path / "model")
    by_ours, by_theirs = (
        run("infill", tmp_path / "model", f"The cat sat on the {mask}.", "--steps", 2).stdout
        for mask in ("[MASK]", "<mask>")
    )
    assert by_ours == by_theirs and by_ours.startswith("The cat sat on the")


def test_pipelines_take_the_options_that_they_have(tokenizer, tmp_path):
    two = make_two_level(tokenizer)
    two.save_pretrained(tmp_path / "two")
    words = ["--steps", 3, "--temperature", 0.5, "--top-p", 0.9, "--max-new-tokens", 8]
    found = run("generate", tmp_path / "two", "--prompt", "the cat", "--guidance-scale", 2, *words)
    options = {"num_inference_steps": 3, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 8}
    output = two(["the cat"], guidance_scale=2.0, generator=generators(1), **options)
    assert found.stdout == output.texts[0] + "\n"
    folder = tmp_path / "two"
    assert "`top_k` must be left out: TwoLevelVQDiffusionPipeline" in refused(
        "generate", folder, "--top-k", 3
    )
    assert "`class_labels` must be left out" in refused("generate", folder, "--label", 1)
    make_embedding_pipe(tokenizer).save_pretrained(tmp_path / "lm")
    assert (
        run("generate", tmp_path / "lm", "--scheduler", "dpm_solver", "--steps", 4).exit_code == 0
    )
    assert "`temperature` must be left out" in refused(
        "generate", tmp_path / "lm", "--temperature", 0.5
    )


def test_a_list_of_samplers_names_the_own_one(model):
    lines = run("generate", model, "--scheduler", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("(the default)")] == ["ancestral"]
    assert {"confidence", "remdm", "first_hitting"} <= {line.split()[0] for line in lines}


def test_files_of_requests_are_written_and_their_errors_counted(model, tmp_path):
    (tmp_path / "in.txt").write_text(f"the cat\n{TEXT * 9}\nshe\n")
    words = ["--input", tmp_path / "in.txt", "--output", tmp_path / "out.jsonl", "--steps", 2]
    result = run("generate", model, *words, code=1)
    assert "1 of 3 lines" in result.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [("texts" in line, line["line"]) for line in found] == [(True, 1), (False, 2), (True, 3)]
    (tmp_path / "gaps.jsonl").write_text('{"text": "the [MASK]", "label": "loud"}\n')
    words = [
        "--input",
        tmp_path / "gaps.jsonl",
        "--output",
        tmp_path / "filled.jsonl",
        "--steps",
        2,
    ]
    run("infill", model, *words)
    assert json.loads((tmp_path / "filled.jsonl").read_text())["texts"][0].startswith("the")
    assert "was begun with another" in refused("infill", model, *words, "--seed", 5)
    run("infill", model, *words, "--seed", 5, "--overwrite")


# The forward process


def parts(pipe, times, **options):
    return [dict(enumerate(pieces)) for pieces in corrupted_texts(pipe, TEXT, times, **options)]


def test_corruption_begins_clean_ends_in_noise_and_never_goes_back(labelled, model):
    times = [0, 0.25, 0.5, 0.75, 1]
    lines = run("corrupt", model, TEXT, "--times", ",".join(map(str, times))).stdout.splitlines()
    assert lines[0] == f"0.00  {TEXT}" and re.fullmatch(r"1.00  (\[MASK\] ?)+", lines[-1])
    lost = [line.count("[MASK]") for line in lines]
    assert lost == sorted(lost) and lost[0] == 0 < lost[2] < lost[-1]
    ids = labelled.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert lost[-1] == len(ids)
    kept = [
        [i for i, word in enumerate(tokens(labelled, line[6:])) if word != "[MASK]"]
        for line in lines
    ]
    assert all(set(later) <= set(earlier) for earlier, later in zip(kept, kept[1:], strict=False))


def tokens(pipe, text):
    return pipe.tokenizer.convert_ids_to_tokens(
        pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(name, marks=[pytest.mark.slow] * (name == "gaussian")) for name in KERNELS],
)
def test_every_kernel_corrupts_and_its_pieces_say_how(kernel, pipe):
    text = " ".join([TEXT] * 30)
    clean, noisy = corrupted_texts(pipe, text, [0.0, 1.0], kernel)
    states = {state for _, state in noisy}
    lost = {"absorbing": {"masked"}, "hierarchical": {"masked"}, "hybrid": {"masked", "changed"}}
    lost = lost.get(kernel, {"changed"})
    spare = {"masked", "spare"} if kernel == "bit_flip" else set()  # codes that are of no word
    assert lost <= states <= lost | {"kept"} | spare
    assert clean == [(text, "kept")]


@pytest.mark.parametrize(
    "kernel, state", [("absorbing", "masked"), ("uniform", "changed"), ("neighbors", "changed")]
)
def test_kernels_corrupt_the_words_of_a_masked_lm_whose_special_tokens_come_first(kernel, state):
    model, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(tokenizer, model, D3PMAbsorbingScheduler(tokenizer.mask_token_id))
    clean, noisy = corrupted_texts(pipe, " ".join(["the cat"] * 30), [0.0, 1.0], kernel)
    assert {name for _, name in clean} == {"kept"}
    states = {name for _, name in noisy}
    assert state in states and states <= {state, "kept"}


def test_colours_are_for_terminals(model, monkeypatch):
    words = ["corrupt", model, TEXT, "--kernel", "hybrid", "--times", "0.7", "--seed", 1]
    colored, plain = run(*words, color=True).stdout, run(*words).stdout
    assert ANSI.search(colored) and not ANSI.search(plain) and ANSI.sub("", colored) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    assert run(*words, color=True).stdout == plain


def test_words_of_noisy_embeddings_go_with_the_noise(tokenizer):
    pipe = make_embedding_pipe(tokenizer)
    clean, mild, noise = (
        "".join(text for text, _ in found) for found in corrupted_texts(pipe, TEXT, [0, 0.001, 1])
    )
    assert clean == TEXT and mild == TEXT != noise and "[MASK]" not in noise


def test_wordpieces_keep_their_spaces():
    denoiser, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    ((*pieces,),) = corrupted_texts(pipe, "the cat sat on the mat", [0.5], seed=1)
    words = "".join(text for text, _ in pieces)
    ids = tokenizer("the cat sat on the mat", add_special_tokens=False)["input_ids"]
    again = tokenizer(words, add_special_tokens=False)["input_ids"]
    assert len(again) == len(ids) and all(
        a in (b, tokenizer.mask_token_id) for a, b in zip(again, ids, strict=True)
    )


# Evaluation


class Indifferent(torch.nn.Module):
    """Equal logits for all words."""

    def __init__(self, denoiser):
        super().__init__()
        self.config, self.weight = denoiser.config, torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, timestep, attention_mask=None, class_labels=None, positions=None):
        shape = input_ids.shape if positions is None else (int(positions.sum()),)
        return diffusers.utils.BaseOutput(logits=torch.zeros(*shape, self.config.vocab_size))


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_vocabulary(tokenizer, pipe):
    pipe.denoiser = Indifferent(pipe.denoiser)
    found = evaluate_texts(pipe, SENTENCES, num_times=16)
    words = len(tokenizer) - 1  # all but the mask
    assert found.nats_per_token == pytest.approx(math.log(words), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))
    bits = found.nats_per_token * found.num_tokens / math.log(2)
    # An end is a character too.
    assert found.bits_per_character == pytest.approx(
        bits / sum(len(text) + 1 for text in SENTENCES)
    )
    counts = [
        tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        for text in SENTENCES
    ]
    flat = torch.tensor(sum(counts, []))
    shares = flat.bincount().double() / len(flat)
    assert found.unigram_entropy == pytest.approx(float(torch.special.entr(shares).sum()))
    assert (found.num_texts, found.num_tokens, found.num_truncated) == (4, len(flat), 0)


def test_evaluate_prints_the_likelihood_of_the_file(labelled, model, tmp_path):
    lines = [json.dumps({"words": text, "mood": place % 2}) for place, text in enumerate(SENTENCES)]
    (tmp_path / "held_out.jsonl").write_text("\n".join(lines) + "\n")
    words = [
        "--dataset",
        tmp_path / "held_out.jsonl",
        "--text-column",
        "words",
        "--num-times",
        4,
        "--seed",
        5,
    ]
    found = json.loads(run("evaluate", model, *words, "--label-column", "mood", "--json").stdout)
    known = evaluate_likelihood(
        labelled, SENTENCES, class_labels=[0, 1, 0, 1], num_times=4, seed=5, max_length=32
    )
    for name in ("nats_per_token", "standard_error", "perplexity", "bits_per_byte", "num_tokens"):
        assert found[name] == pytest.approx(getattr(known, name), rel=1e-5)
    for_people = run("evaluate", model, *words).stdout
    assert "nats per token" in for_people and "of other noise, for the same texts" in for_people
    few = json.loads(run("evaluate", model, *words, "--max-texts", 2, "--json").stdout)
    assert few["num_texts"] == 2
    assert "`--dataset` must be given" in refused("evaluate", model)
    assert "does not exist" in refused("evaluate", model, "--dataset", tmp_path / "none.txt")


def test_the_texts_of_a_few_are_spread_over_the_data_set(tmp_path):
    (tmp_path / "data.txt").write_text("".join(f"text {number}\n" for number in range(10)))
    judged = load_texts(str(tmp_path / "data.txt"), "text", None, "train", 4)
    assert judged.texts == ["text 0", "text 2", "text 5", "text 7"] and not judged.conditions


def test_evaluate_reads_the_split_and_the_names_that_were_asked_for(model, tmp_path, caplog):
    data = tmp_path / "data"
    data.mkdir()
    for split, words in (("train", ["quiet"] * 9), ("test", ["loud", "quiet", "quiet", None])):
        rows = [
            {"text": text, "mood": word} for text, word in zip(SENTENCES * 3, words, strict=False)
        ]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = ["evaluate", model, "--dataset", data, "--num-times", 2, "--json"]
    found = run(*words, "--split", "test", "--label-column", "mood")
    assert json.loads(found.stdout)["num_texts"] == 3
    assert "left out 1 of 4 rows: 1 without a label." in caplog.text
    assert json.loads(run(*words).stdout)["num_texts"] == 9
    assert "`split` must be one of train, test" in refused(*words, "--split", "validation")

    (data / "test.jsonl").write_text('{"text": "the cat", "mood": "shrill"}\n')
    words += ["--split", "test", "--label-column", "mood"]
    assert "among the names ['quiet', 'loud'], got 'shrill'" in refused(*words)
    (data / "test.jsonl").write_text('{"text": "the cat"}\n{"text": "Hi \\ud83d"}\n')
    assert "test.jsonl, line 2: `text` must be valid Unicode" in refused(*words[:-2])
    assert "is no file or folder here" in refused("evaluate", model, "--dataset", "imdbb")


def test_texts_that_are_too_long_are_cut_and_counted(tokenizer, pipe):
    pipe.register_to_config(lengths=[1] * 21)
    found = evaluate_texts(pipe, [TEXT, TEXT * 9], num_times=2)
    assert found.num_truncated == 1 and found.num_texts == 2
    lm = make_embedding_pipe(tokenizer, num_train_timesteps=50)
    found = evaluate_texts(lm, [TEXT, TEXT * 9], num_times=2)
    assert found.num_truncated == 1 and found.error_is == "of other noise, for the same texts"
    codes = evaluate_texts(make_two_level(tokenizer), [TEXT, TEXT * 9], num_times=2)
    assert codes.num_truncated == 1 and "each of these counting as 2 texts" in codes.error_is


@pytest.mark.parametrize("two", [True, False])
def test_embeddings_and_codes_have_bounds_too(tokenizer, two):
    lm, codes = (
        make_embedding_pipe(tokenizer, num_train_timesteps=50),
        make_two_level(tokenizer, two=two),
    )
    for pipe in (lm, codes):
        found = evaluate_texts(pipe, ["the cat", "a dog sat"], num_times=1)
        bits = found.nats_per_token * found.num_tokens / math.log(2)
        assert found.bits_per_byte == pytest.approx(bits / len("the cat\na dog sat\n"))
        assert found.num_characters == len("the cat\na dog sat\n")
        # A single time says nothing of other noise, but two texts something of others.
        assert (found.standard_error is None) == (pipe is lm)
    assert found.error_is == "of other texts from the same source, and other noise"
    with pytest.raises(ValueError, match="`label_column` must be left out"):
        evaluate_texts(codes, ["the cat"], labels=[1])
    with pytest.raises(ValueError, match="`source_column` must be left out"):
        evaluate_texts(codes, ["the cat"], sources=["a dog"])


def test_pipelines_without_a_bound_are_refused(tokenizer, pipe):
    embeddings = make_embedding_pipe(tokenizer)
    embeddings.denoiser.register_to_config(partial_noising=True)
    paraphraser = ParaGuidePipeline(tokenizer, embeddings.denoiser, embeddings.scheduler)
    pipe.scheduler = diffusers.BlockRefinementScheduler()
    for other in (paraphraser, pipe):
        with pytest.raises(ValueError, match="`model` must"):
            evaluate_texts(other, SENTENCES)


# Publishing, the demo, the environment


def test_a_dry_run_writes_the_folder_that_would_be_uploaded(labelled, model, tmp_path):
    target = tmp_path / "upload"
    words = [
        "publish",
        model,
        "ada/mine",
        "--license",
        "mit",
        "--dataset-name",
        "chitchat",
        "--dry-run",
        target,
    ]
    assert run(*words).stdout.strip() == str(target)
    card = (target / "README.md").read_text(encoding="utf-8")
    assert "license: mit" in card and "ada/mine" in card and "chitchat" in card
    options = {"num_inference_steps": 3, "max_new_tokens": 5}
    texts = [
        p(generator=generators(1), **options).texts
        for p in (labelled, TextDiffusionPipeline.from_pretrained(target))
    ]
    assert texts[0] == texts[1]
    assert "must name a folder that is empty" in refused(*words)
    assert "holds no pipeline" in refused("publish", tmp_path, "ada/mine", "--license", "mit")


def test_publish_hands_over_what_was_asked_for_and_prints_no_token(
    labelled, model, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        "text_diffusers.hub.export.push_to_hub",
        lambda *args, **more: asked.append((args[1], more)) or "URL",
    )
    monkeypatch.setattr(
        "text_diffusers.hub.export.push_space",
        lambda *args, **more: asked.append((args, more)) or "SPACE",
    )
    (tmp_path / "token").write_text("hf_canary\n")
    words = [
        "--license",
        "mit",
        "--private",
        "--space",
        "ada/demo",
        "--token-file",
        tmp_path / "token",
    ]
    result = run("publish", model, "ada/mine", *words)
    assert result.stdout == "URL\nSPACE\n" and "canary" not in result.output
    (repo, model_options), (space, space_options) = asked
    assert repo == "ada/mine" and space == ("ada/demo", "ada/mine")
    assert model_options["token"] == space_options["token"] == "hf_canary"
    assert (
        model_options["private"] is space_options["private"] is True
        and model_options["records"] == model
    )


@pytest.mark.parametrize("package, extra", [("gradio", "demo"), ("datasets", "eval")])
def test_a_missing_package_is_named_with_what_installs_it(package, extra):
    error = ModuleNotFoundError(f"No module named '{package}'", name=package)
    assert cli.one_line(error) == f"this needs {package}: pip install 'text-diffusers[{extra}]'"
    assert cli.one_line(ValueError("one\n  two")) == "one two"


def test_the_environment_has_versions_and_no_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    found = json.loads(run("env", "--json").stdout)
    assert found["torch"] == version("torch") and found["diffusers"] == version("diffusers")
    assert (
        found["text-diffusers"] == text_diffusers.__version__
        and found["threads"] == torch.get_num_threads()
    )
    shown = run("env").output
    assert (
        "canary" not in shown
        and str(Path.home()) not in shown
        and f"torch {version('torch')}" in " ".join(shown.split())
    )


# Errors and help


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate", "{model}", "--steps", "0"], "'--steps'"),
        (["generate", "{model}", "--colour"], "No such option"),
        (["generate", "{model}", "--scheduler", "ddim"], "`scheduler` must be one of ancestral,"),
        (["generate", "{model}", "--label", "shrill"], "label"),
        (["generate", "{model}", "--temperature", "-1"], "'--temperature'"),
        (["generate", "{model}", "--prompt", "a", "--source", "b"], "exclude each other"),
        (["generate", "{model}", "--input", "in.txt", "--output", "out.jsonl"], "in.txt"),
        (["generate", "{model}", "--input", "in.txt"], "`--output` must be given"),
        (["generate", "{model}/none"], "model/none"),
        (["infill", "{model}"], "expected [MODEL] TEXT, got the folder"),
        (["infill", "{model}", "too", "many"], "expected [MODEL] TEXT"),
        (["corrupt", "{model}", "a", "--times", "x"], "`--times` must be numbers"),
        (["corrupt", "{model}", "a", "--times", "1.5"], "between 0, clean text, and 1"),
        (["corrupt", "{model}", "a", "--kernel", "pink"], "`kernel` must be one of"),
        (["publish", "{model}"], "Missing argument"),
        (["publish", "{model}", "ada/mine"], "Missing option '--license'"),
        (["paint"], "No such command 'paint'"),
        ([], "Missing command"),
    ],
)
def test_bad_input_is_one_line_and_code_2(words, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(*[word.format(model=model) for word in words])


def test_only_the_first_of_several_processes_speaks(model, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("generate", model, "--scheduler", "ddim", code=2).output == ""


def test_mistakes_of_the_program_keep_their_traceback(monkeypatch):
    def fail():
        raise KeyError("a bug")

    monkeypatch.setattr("text_diffusers.cli.env.environment", fail)
    result = CliRunner().invoke(cli.app, ["env"])
    assert isinstance(result.exception, KeyError)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_a_manual_with_examples_that_parse(name):
    assert run(name, "--help").stdout
    command = typer.main.get_command(cli.app).commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    examples = re.findall(
        r"`([^`]*text[-_]diffusers(?:\.cli)? [^`]*)`", inspect.cleandoc(command.help)
    )
    assert examples
    for example in examples:
        words = shlex.split(example)
        given = words[words.index(name) + 1 :]
        assert {word for word in given if word.startswith("--")} <= options
        with command.make_context(name, given):
            pass
    for parameter in command.params:
        assert parameter.help


def test_help_needs_neither_torch_nor_diffusers():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['diffusers'] = sys.modules['transformers'] = None;"
        "from text_diffusers.cli.app import app; app(['generate', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--prompt" in done.stdout, done.stderr
