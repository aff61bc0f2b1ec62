"""Laws of `text-diffusers evaluate` beyond the bound: texts that are written, distances, rows of joined texts."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES, make_denoiser, slow
from datasets import Dataset
from diffusers import BlockRefinementScheduler, FlowMatchEulerDiscreteScheduler
from peft import LoraConfig, get_peft_model_state_dict
from support.command_line import generators, refused, run
from support.doc_blocks import blocks_of, run_shell, tidy
from support.embedding_pipes import make_embedding_pipe
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.masked_lms import wordpiece_tokenizer
from support.two_level_pipes import make_two_level
from transformers import BertConfig, BertModel

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.cli.evaluation import run as evaluation_run
from text_diffusers.cli.evaluation.records import EvaluationRecord, RealFigures, WrittenFigures
from text_diffusers.cli.evaluation.tables import texts_table
from text_diffusers.cli.evaluation.text_bounds import (
    evaluate_texts,
    evaluate_wrapped,
    load_texts,
    report,
    spread,
)
from text_diffusers.data.latent_rows import with_encoder_columns
from text_diffusers.data.rows import tokenize
from text_diffusers.evaluation import (
    distinct_n,
    estimate_latent_bound,
    evaluate_likelihood,
    hold_out_latents,
    token_entropy,
)
from text_diffusers.evaluation.distances import sentence_embeddings, text_distances
from text_diffusers.evaluation.judges import WordNgramJudge, text_figures
from text_diffusers.evaluation.protocols import wrap_texts, wrapped_likelihood

ROOT = Path(__file__).parent.parent.parent
TWO_PROCESSES = ROOT / "training_scripts/accelerate_configs/cpu_two_processes.yaml"
# Parts of sentences, four words each
REAL = [" ".join(text.split()[first : first + 4]) for first in range(6) for text in SENTENCES] * 2
FIGURES = ("length", "token_entropy", "distinct_2", "repetition", "generative_perplexity")


@pytest.fixture
def model(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def real(tmp_path):
    path = tmp_path / "real.txt"
    path.write_text("\n".join(REAL) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def encoder(tmp_path):
    tokenizer = wordpiece_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=8, **sizes)
    parts = BertModel(config).eval(), tokenizer
    for part in parts:
        part.save_pretrained(tmp_path / "encoder")
    return parts


def measured(*words):
    return json.loads(run("evaluate", *words, "--json").stdout)


# The bound


def test_every_unit_of_a_bound_has_its_error(pipe, model, real):
    found = evaluate_texts(pipe, REAL, num_times=2, seed=5)
    likelihood = evaluate_likelihood(pipe, REAL, num_times=2, seed=5)
    assert found.standard_error == pytest.approx(likelihood.standard_error)
    assert found.perplexity_error == pytest.approx(likelihood.perplexity_error)
    # For the same texts, their numbers of tokens, characters and bytes are known.
    bits = likelihood.standard_error * likelihood.num_tokens / math.log(2)
    assert found.bits_per_character_error == pytest.approx(bits / likelihood.num_characters)
    assert found.bits_per_byte_error == pytest.approx(bits / likelihood.num_bytes)
    assert found.error_over_texts == pytest.approx(likelihood.error_over_texts)
    assert found.record()["error_over_texts"] == found.error_over_texts

    words = [model, "--dataset", real, "--num-times", 2, "--seed", 5]
    assert measured(*words)["perplexity_error"] == pytest.approx(found.perplexity_error, rel=1e-3)
    lines = run("evaluate", *words).stdout.splitlines()
    assert f"{found.perplexity:.2f} +- {found.perplexity_error:.2f} per token" in lines[2]
    per_character = f"{found.bits_per_character:.3f} +- {found.bits_per_character_error:.3f}"
    per_byte = f"{found.bits_per_byte:.3f} +- {found.bits_per_byte_error:.3f}"
    assert f"{per_character} per character, {per_byte} per byte" in lines[3]
    assert "The errors are those of other noise, for the same texts." in lines
    over_texts = "For other texts from the same source as well, that of the bound is"
    assert f"{over_texts} {found.error_over_texts:.3f}." in lines


def test_errors_that_are_not_known_are_none(pipe):
    once = evaluate_texts(pipe, REAL, num_times=1)
    assert once.standard_error is None and once.perplexity_error is None
    assert once.bits_per_character_error is None and once.bits_per_byte_error is None
    # The texts are several even at one time each.
    assert once.error_over_texts is not None and "+-" not in report(once)
    assert evaluate_texts(pipe, REAL[:1], num_times=2).error_over_texts is None


@pytest.mark.parametrize("num_times", [1, 2])
def test_the_errors_of_codes_are_over_texts(tokenizer, num_times):
    found = evaluate_texts(make_two_level(tokenizer), REAL, num_times=num_times)
    assert found.perplexity_error == pytest.approx(found.perplexity * found.standard_error)
    share = found.standard_error / found.nats_per_token
    assert found.bits_per_character_error == pytest.approx(share * found.bits_per_character)
    assert found.bits_per_byte_error == pytest.approx(share * found.bits_per_byte)
    # It is the one error that there is, and no second one stands beside it.
    assert found.error_over_texts is None and "of other texts" in report(found)


@pytest.mark.parametrize("chats", [False, True])
def test_exactly_so_many_texts_are_measured_as_were_asked_for(chats, tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = []
    for number in range(1_001):
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"{number}"}]
        rows.append({"messages": turns} if chats else {"text": f"{number}"})
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    for most in (1_000, 7, 2_000):
        found = load_texts(str(path), "text", None, "train", most)
        numbers = list(map(int, found.texts))
        assert numbers == spread(range(1_001), most) and len(numbers) == min(most, 1_001)
        assert not chats or len(found.conditions["messages"]) == len(numbers)


def test_the_page_shows_what_a_bound_prints(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/command_line.md"
    blocks = blocks_of(page, "bash", "text")
    [command] = [block for block in blocks if "evaluate --dataset held_out.txt" in block.code]
    [shown] = [block for block in blocks if block.code.startswith("bound  ")]
    printed = tidy(run_shell(command)).splitlines()
    # The last line is of the machine.
    assert printed[:-1] == tidy(shown.code).splitlines()[:-1]
    assert printed[-1].startswith("cpu, float32, seed 0, ") and "; text-diffusers " in printed[-1]


# Texts


def test_written_texts_are_those_of_the_pipeline_with_a_seed_each(pipe, model, real, tmp_path):
    words = [model, "--generate", 5, "--num-inference-steps", 4, "--seed", 3]
    words += ["--judge", f"words:{real}", "--save-texts", tmp_path / "texts" / "written.jsonl"]
    found = measured(*words, "--batch-size", 2)
    texts = pipe([""] * 5, num_inference_steps=4, generator=generators(5, seed=3)).texts
    lines = (tmp_path / "texts" / "written.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == texts

    # Their figures, however they are batched, and those of a file of them
    written = found["written"]
    tokens = pipe.tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert written["num_texts"] == 5 and written["unit"] == "word"
    assert written["length"]["value"] == pytest.approx(sum(map(len, tokens)) / 5)
    assert written["token_entropy"]["value"] == pytest.approx(token_entropy(tokens))
    assert written["distinct_2"]["value"] == pytest.approx(distinct_n(texts, 2))
    verdict = WordNgramJudge(REAL).judge(texts)
    assert written["generative_perplexity"]["value"] == pytest.approx(verdict.perplexity)
    assert written["tokens_per_second"] > 0 and "real" not in found

    again = measured(*words, "--batch-size", 5)["written"]
    written_file = ["--written", tmp_path / "texts" / "written.jsonl", "--judge", f"words:{real}"]
    of_file = measured(model, *written_file)["written"]
    assert of_file["tokens_per_second"] is None
    for name in FIGURES:
        assert again[name] == of_file[name] == written[name], name


def test_real_texts_stand_beside_as_many_written_ones(model, real, pipe):
    words = [model, "--generate", 6, "--num-inference-steps", 2, "--reference", real]
    found = measured(*words, "--encoder", "none")
    assert found["real"]["num_texts"] == 6 and found["real"]["num_cut"] == 0
    # Twelve of all are read, and every other of these is judged.
    beside = spread(REAL, 12)[::2]
    tokens = pipe.tokenizer(beside, add_special_tokens=False)["input_ids"]
    assert found["real"]["token_entropy"]["value"] == pytest.approx(token_entropy(tokens))
    assert found["written"]["length_distance"]["value"] >= 0
    table = run("evaluate", *words, "--encoder", "none").stdout
    assert "written" in table and "real" in table and "+-" in table and "seed 0" in table


def test_distances_are_those_of_the_embeddings_of_equally_many_texts(
    model, real, encoder, tmp_path
):
    texts = [f"the cat {word}" for word in "sat ran slept sang looked was".split()] * 2
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "written.jsonl").write_text("\n".join(lines) + "\n")
    words = [model, "--written", tmp_path / "written.jsonl", "--reference", real]
    found = measured(*words, "--encoder", tmp_path / "encoder")["distances"]
    chosen = spread(REAL, 24)
    parts = [texts, chosen[::2], chosen[1::2]]
    embeddings = [sentence_embeddings(part, *encoder) for part in parts]
    for name, others in (("written", embeddings[0]), ("floor", embeddings[2])):
        expected = text_distances(others, embeddings[1]).record()
        for figure in ("frechet", "mmd", "precision", "coverage", "divergence_curve"):
            assert found[name][figure]["value"] == pytest.approx(
                expected[figure]["value"], rel=1e-4, abs=1e-6
            )
        assert found[name]["num_first"] == found[name]["num_second"] == 12
    assert found["encoder"] == str(tmp_path / "encoder")


def test_texts_are_written_behind_the_beginnings_of_the_real_ones(pipe, model, tmp_path):
    rows = [{"text": " sat on the mat", "prompt": "the cat"}, {"text": " ran", "prompt": "she"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = [model, "--texts", tmp_path / "texts.jsonl", "--prompt-column", "prompt"]
    words += ["--generate", 3, "--num-inference-steps", 2, "--num-times", 2]
    found = measured(*words, "--save-texts", tmp_path / "written.jsonl")
    prompts = ["the cat", "she", "the cat"]
    texts = pipe(prompts, num_inference_steps=2, generator=generators(3)).texts
    lines = [json.loads(line) for line in (tmp_path / "written.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["text"]) for line in lines] == list(
        zip(prompts, texts, strict=True)
    )
    # The bound is that of the command without texts, and real ones begin like the others.
    alone = measured(*words[:5], "--num-times", 2)
    assert found["nats_per_token"] == alone["nats_per_token"] and "written" not in alone
    assert found["real"]["num_texts"] == 2
    assert found["real"]["length"]["value"] > 3

    # `--max-texts` limits the texts of the bound alone.
    limited = measured(*words, "--num-times", 2, "--max-texts", 1)
    assert limited["num_texts"] == 1 and limited["real"]["num_texts"] == 2


def test_texts_of_a_reference_are_read_behind_their_beginnings_too(model, real, tmp_path):
    rows = [{"text": " sat on the mat", "prompt": "the cat"}, {"text": " ran", "prompt": "she"}]
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = [model, "--texts", path, "--prompt-column", "prompt", "--generate", 2]
    words += ["--num-inference-steps", 2, "--num-times", 2, "--encoder", "none"]
    # The same file by its name, and where nothing is named
    named = measured(*words, "--reference", path)["real"]
    assert named == measured(*words)["real"] and named["length"]["value"] > 3

    message = refused("evaluate", *words, "--reference", real)
    assert (
        "`--reference` must have texts in the column 'text' and, with `--prompt-column`" in message
    )
    assert "real.txt" in message and "no column 'prompt'" in message


def test_saved_texts_are_read_back_whatever_column_the_data_set_has(model, tmp_path):
    rows = [{"review": text} for text in SENTENCES]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = [model, "--dataset", tmp_path / "reviews.jsonl", "--text-column", "review"]
    words += ["--num-times", 1]
    saved = tmp_path / "saved.jsonl"
    found = measured(*words, "--generate", 3, "--num-inference-steps", 2, "--save-texts", saved)
    again = measured(*words, "--written", saved)
    assert again["written"]["length"] == found["written"]["length"]

    # The column that is named is read where it is there.
    rows = [{"review": "the cat sat", "text": "a"}, {"text": "the cat ran"}]
    saved.write_text("\n".join(map(json.dumps, rows)) + "\n")
    both = measured(*words, "--written", saved)["written"]
    assert both["distinct_1"]["value"] == distinct_n(["the cat sat", "the cat ran"], 1)
    saved.write_text('{"words": "the cat"}\n')
    assert "line 1: must have a string `review` or `text`" in refused(
        "evaluate", *words, "--written", saved
    )


def test_the_table_says_how_many_texts_self_bleu_compares():
    def table_of(*counts):
        columns = [text_figures(["a cat sat"] * count, [["a"]] * count) for count in counts]
        written, *real = columns
        record = EvaluationRecord(run={}, written=WrittenFigures(written))
        if real:
            record.real = RealFigures(real[0], num_cut=0)
        return texts_table(record)

    assert "self-BLEU (of 7)" in table_of(7)
    assert "self-BLEU (of 100)" in table_of(120, 101)
    assert "self-BLEU (of 100, 9)" in table_of(120, 9)


def test_a_judge_from_which_the_model_was_made_is_warned_of(model, real):
    note = {"options": {"model_name_or_path": f"words:{real}"}}
    (model / "training_config.json").write_text(json.dumps(note))
    words = [model, "--generate", 2, "--num-inference-steps", 1, "--judge", f"words:{real}"]
    found = run("evaluate", *words, "--json")
    assert json.loads(found.stdout)["written"]["judge_is_kin"]
    assert "warning: the judge seems to be the model itself" in found.stderr


@pytest.mark.parametrize("kind", ["embeddings", slow("codes"), slow("latents")])
def test_every_family_is_evaluated(tokenizer, kind, tmp_path):
    make = {"embeddings": make_embedding_pipe, "codes": make_two_level, "latents": make_latent_pipe}
    noise = {"num_train_timesteps": 50} if kind == "embeddings" else {}
    make[kind](tokenizer, **noise).save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("the cat\na dog sat\n")
    words = [tmp_path / "model", "--dataset", tmp_path / "texts.txt", "--num-times", 2]
    writing = ["--generate", 3, "--num-inference-steps", 2]
    found = measured(*words, *writing)
    assert found["written"]["num_texts"] == 3 and found["real"]["num_texts"] == 2
    assert found["nats_per_token"] > 0 and "no_bound" not in found


@pytest.mark.parametrize("label_names", [None, ["sad", "glad"]])
def test_the_bound_of_latents_is_that_of_the_program(tokenizer, label_names):
    """Of all tokens of three texts and their ends, the last one without a label."""
    denoiser = make_latent_denoiser(num_classes=None if label_names is None else 2)
    pipe = make_latent_pipe(tokenizer, denoiser, label_names=label_names)
    texts = ["the cat", "a dog sat on the mat", "she was late"]
    labels = None if label_names is None else ["glad", 0, None]
    found = evaluate_texts(pipe, texts, labels=labels, num_times=2, seed=3)

    rows = tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=24, packing=False)
    rows = with_encoder_columns(rows, tokenizer, tokenizer, length=24)
    if labels is not None:
        rows = rows.add_column("label", [1, 0, 2])
    bounds = []
    for seed in (3, 4):
        held_out = hold_out_latents(pipe.autoencoder, rows, seed)
        bounds.append(estimate_latent_bound(pipe.denoiser, pipe.scheduler, held_out, seed).bound)
    assert found.nats_per_token == pytest.approx(sum(bounds) / 2, rel=1e-5)
    assert found.standard_error == pytest.approx(abs(bounds[0] - bounds[1]) / 2, rel=1e-3)
    once = evaluate_texts(pipe, texts, labels=labels, num_times=1, seed=3)
    assert once.nats_per_token == pytest.approx(bounds[0], rel=1e-5) and once.standard_error is None

    num_tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    num_characters = sum(len(text) + 1 for text in texts)
    assert (found.num_tokens, found.num_characters) == (num_tokens, num_characters)
    bits = found.nats_per_token * num_tokens / num_characters / math.log(2)
    assert found.bits_per_character == pytest.approx(bits)


def test_what_the_bound_of_latents_cannot_be_of_is_refused(tokenizer):
    texts = ["the cat", "a dog"]
    pipe = make_latent_pipe(tokenizer)
    for name in ("labels", "sources", "prompts"):
        with pytest.raises(
            ValueError, match="must be left out: the bound of latents is of texts alone"
        ):
            evaluate_texts(pipe, texts, **{name: [0, 0]})
    wrapped = wrap_texts(REAL, tokenizer, 16, max_rows=7)
    with pytest.raises(ValueError, match="`wrap` and `zero_shot` must be left out"):
        evaluate_wrapped(pipe, wrapped)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="must have a scheduler with a bound, got FlowMatchEuler"):
        evaluate_texts(pipe, texts)


def test_the_bound_of_latents_without_noise_is_infinite(tokenizer):
    pipe = make_latent_pipe(tokenizer, regularization="noise", noise_scale=0.0)
    found = evaluate_texts(pipe, ["the cat", "a dog"], num_times=2)
    assert found.nats_per_token == math.inf and found.standard_error is None
    assert found.error_is.startswith("unknown: the bound is infinite")
    assert found.record()["perplexity"] is None


def test_a_pipeline_without_a_bound_says_so(pipe, tmp_path):
    """One that writes by a scheduler of diffusers."""
    pipe.scheduler = BlockRefinementScheduler()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("the cat\na dog sat\n")
    words = [tmp_path / "model", "--dataset", tmp_path / "texts.txt"]
    writing = ["--generate", 3, "--num-inference-steps", 2]
    found = measured(*words, *writing)
    reason = "`model` must have a scheduler with a bound, got BlockRefinementScheduler."
    assert found["written"]["num_texts"] == 3 and found["no_bound"] == reason
    assert f"bound              none: {reason}" in run("evaluate", *words, *writing).stdout
    assert reason in refused("evaluate", *words)


# Rows of joined texts


def test_wrapped_texts_have_the_bound_of_their_rows(pipe, model, real):
    words = [model, "--dataset", real, "--num-times", 2, "--seed", 5, "--max-texts", 7]
    found = measured(*words, "--wrap", 16, "--wrap-frame")
    wrapped = wrap_texts(REAL, pipe.tokenizer, 16, framed=True, max_rows=7)
    expected = wrapped_likelihood(pipe, wrapped, num_times=2, seed=5)
    assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert found["bits_per_character"] == pytest.approx(expected.bits_per_character, rel=1e-5)
    assert (found["num_texts"], found["num_tokens"]) == (len(wrapped.rows), expected.num_tokens)
    facts = {"length": 16, "ends": True, "framed": True, "num_rows": len(wrapped.rows)}
    assert found["wrap"].items() >= facts.items()
    joined = run("evaluate", *words, "--wrap", 16, "--no-wrap-ends").stdout
    assert "of all texts joined as they are" in joined


def test_zero_shot_sets_of_a_folder_are_evaluated_as_rows(pipe, model, tmp_path):
    rows = [json.dumps({"sentence": text}) for text in REAL]
    (tmp_path / "ptb.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "ag_news.txt").write_text("\n".join(REAL[:9]) + "\n")
    words = [model, "--zero-shot", "ptb,ag_news", "--zero-shot-folder", tmp_path, "--num-times", 2]
    found = measured(*words, "--wrap", 16)["zero_shot"]
    assert list(found) == ["ptb", "ag_news"]
    expected = wrapped_likelihood(pipe, wrap_texts(REAL, pipe.tokenizer, 16), num_times=2)
    assert found["ptb"]["perplexity"] == pytest.approx(expected.perplexity, rel=1e-4)
    assert found["ptb"]["wrap"]["num_rows"] == len(expected.per_text_nats)
    table = run("evaluate", *words).stdout
    assert "perplexity, at most" in table and "Rows of 32 tokens" in table


@pytest.mark.slow
def test_wrapped_codes_are_rows_of_whole_codes(tokenizer):
    codes = make_two_level(tokenizer)
    wrapped = wrap_texts(REAL, tokenizer, 8)
    found = evaluate_wrapped(codes, wrapped, num_times=2)
    assert found.num_tokens == 8 * len(wrapped.rows) and found.nats_per_token > 0
    with pytest.raises(ValueError, match="`wrap` must be a multiple of the tokens of a code"):
        evaluate_wrapped(codes, wrap_texts(REAL, tokenizer, 7), num_times=2)


# Adapters, processes, refusals


def test_an_adapter_changes_the_bound_as_in_the_pipeline(tokenizer, model, real, tmp_path):
    denoiser = make_denoiser(tokenizer)
    config = LoraConfig(r=2, target_modules=["ff.0", "ff.2"], init_lora_weights=False)
    denoiser.add_adapter(config)
    layers = get_peft_model_state_dict(denoiser)
    TextDiffusionPipeline.save_lora_weights(tmp_path / "adapter", layers, config.to_dict())
    found = measured(model, "--dataset", real, "--num-times", 2, "--lora", tmp_path / "adapter")

    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    adapted = TextDiffusionPipeline(tokenizer, denoiser.eval(), scheduler)
    expected = evaluate_texts(adapted, REAL, num_times=2)
    assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert found["run"]["lora"] == str(tmp_path / "adapter")
    plain = measured(model, "--dataset", real, "--num-times", 2)
    assert abs(plain["nats_per_token"] - expected.nats_per_token) > 1e-3


def test_an_adapter_is_refused_by_name_where_there_is_no_one_denoiser(tokenizer, tmp_path):
    make_two_level(tokenizer).save_pretrained(tmp_path / "model")
    # Before the texts are looked for
    words = [tmp_path / "model", "--dataset", tmp_path / "none.txt", "--lora", tmp_path / "none"]
    message = refused("evaluate", *words)
    assert "`--lora` must be left out" in message and "TwoLevelVQDiffusionPipeline" in message


def test_the_run_is_told(model, real, monkeypatch):
    words = [model, "--dataset", real, "--num-times", 1, "--max-texts", 2]
    found = measured(*words)["run"]
    assert found["device"] == "cpu" and found["dtype"] == "float32" and found["seed"] == 0
    assert found["num_processes"] == 1 and found["seconds"] > 0
    assert set(found["versions"]) >= {"text-diffusers", "torch", "transformers", "diffusers"}
    assert set(found["versions"]) >= {"tokenizers", "datasets", "scikit-learn", "sacrebleu"}
    assert set(found["versions"]) == set(evaluation_run.PACKAGES)

    # A bound by itself has the line too, without packages that are not installed.
    monkeypatch.setattr(evaluation_run, "PACKAGES", ("torch", "no-such-package"))
    line = run("evaluate", *words).stdout.splitlines()[-1]
    assert line.startswith("cpu, float32, seed 0, ") and line.endswith(
        f"; torch {torch.__version__}"
    )


@pytest.mark.slow
def test_two_processes_measure_what_one_does(model, real, encoder, tmp_path):
    words = [model, "--dataset", real, "--num-times", 3, "--max-texts", 9, "--generate", 11]
    words += ["--num-inference-steps", 3, "--batch-size", 4, "--judge", f"words:{real}"]
    words += ["--reference", real, "--encoder", tmp_path / "encoder", "--json"]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_PROCESSES]
    command += ["-m", "text_diffusers.cli", "evaluate", *words]
    command += ["--save-texts", tmp_path / "two.jsonl"]
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads(done.stdout)
    one = json.loads(run("evaluate", *words, "--save-texts", tmp_path / "one.jsonl").stdout)
    assert (two["run"]["num_processes"], one["run"]["num_processes"]) == (2, 1)
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()

    def numbers(record, name=""):
        if isinstance(record, dict):
            return {
                key: value
                for part, inner in record.items()
                if part not in ("run", "tokens_per_second")
                for key, value in numbers(inner, f"{name}/{part}").items()
            }
        return {name: record}

    of_two, of_one = numbers(two), numbers(one)
    assert of_two.keys() == of_one.keys() and len(of_one) > 50
    for name, value in of_one.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-5, abs=1e-7)
        assert of_two[name] == value, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generate", 2, "--written", "a"], "`--generate` excludes `--written`"),
        (["--dataset", "a", "--judge", "b"], "`--judge` must be given with `--generate`"),
        (["--dataset", "a", "--save-texts", "b.jsonl"], "`--save-texts` must be given with"),
        (["--generate", 2, "--save-texts", "b.txt"], "`--save-texts` must be a .jsonl file"),
        (["--dataset", "a", "--wrap", 8, "--label-column", "b"], "`--label-column` excludes"),
        (["--generate", 2, "--prompt-column", "b"], "must be given with `--dataset`"),
        (["--zero-shot", "ptb,wiki"], "`zero_shot` must be one of wikitext, lambada"),
        (["--generate", 2, "--wrap", 8], "`--wrap` must be given with `--dataset`"),
        (["--dataset", "a", "--zero-shot-folder", "b"], "must be given with `--zero-shot`"),
        (["--written", "none.jsonl"], "'none.jsonl' does not exist"),
        (["--generate", 2, "--judge", "none"], "`judge` 'none' is no folder here"),
        (["--generate", 2, "--reference", "{real}"], "`generate` must be at least 10 texts"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(model, real, words, message, monkeypatch):
    monkeypatch.chdir(real.parent)
    words = [str(word).format(real=real) for word in words]
    assert message in refused("evaluate", model, *words)
