"""The command line with orders, windows and defaults of a pipeline, and with conditions of language models."""

import json
import re

import pytest
import torch
from conftest import SENTENCES, make_denoiser
from support.command_line import generators, refused, run
from support.language_models import chat_pipe

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    TextDiffusionPipeline,
)
from text_diffusers.cli.text_requests import Settings, TextRequest
from text_diffusers.cli.writer import Writer
from text_diffusers.evaluation import evaluate_likelihood


@pytest.fixture
def pipe(tokenizer):
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditional_pipe():
    plain = chat_pipe(alignment="shifted")
    pipe = TextDiffusionPipeline(
        plain.tokenizer,
        plain.denoiser,
        plain.scheduler,
        label_names=["w30", "w31"],
        generation_defaults={"num_inference_steps": 3, "max_new_tokens": 5},
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_an_order_and_a_window_are_those_of_the_scheduler(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    options = {"num_inference_steps": 4, "max_new_tokens": 9, "prompt": "the cat"}
    words = ["generate", tmp_path, "--prompt", "the cat", "--steps", 4, "--max-new-tokens", 9]
    config = pipe.scheduler.config
    for settings, more in (
        ({"order": "left_to_right"}, ["--order", "left_to_right"]),
        ({"order": "entropy", "window": 3}, ["--order", "entropy", "--window", 3]),
        ({"window": 2}, ["--window", 2]),
    ):
        pipe.scheduler = ConfidenceScheduler.from_config(config, **settings)
        (text,) = pipe(**options, generator=generators(1)).texts
        assert run(*words, *more).stdout == f"{text}\n"

    assert "`order` must be None or one of" in refused(*words, "--order", "backwards")
    assert "`order` must be left out: D3PMAbsorbingScheduler takes" in refused(
        *words, "--scheduler", "ancestral", "--order", "random"
    )


def test_what_is_written_has_the_structure_that_is_asked_for(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": ["cat", 1]}, "maxItems": 2}')
    words = ["generate", tmp_path, "--steps", 3, "--max-new-tokens", 12, "--num", 2]
    shown = run(*words, "--prompt", "the cat", "--regex", " (sat|ran)[.!]").stdout.splitlines()
    assert len(shown) == 2
    assert all(re.fullmatch(r"the cat (sat|ran)[.!]", text) for text in shown)
    for text in run(*words, "--json-schema", schema).stdout.splitlines():
        assert set(json.loads(text)) <= {"cat", 1}
    assert set(run(*words, "--choices", "a cat,a dog").stdout.split("\n")) <= {"a cat", "a dog", ""}
    assert "`--regex` and `--choices` exclude each other" in refused(
        *words, "--regex", "a", "--choices", "b"
    )
    assert "`pattern` must be without look-around" in refused(*words, "--regex", "a(?=b)")


def test_an_order_needs_masks(tokenizer, tmp_path):
    uniform = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), D3PMUniformScheduler(tokenizer.vocab_size - 2)
    )
    with pytest.raises(ValueError, match="`window` must be left out: only schedulers of absorbing"):
        Writer(uniform, Settings(window=2))


def test_from_the_left_there_is_a_step_for_each_token_unless_the_model_says_otherwise(pipe):
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append(int((tensors["tokens"] == pipe.tokenizer.mask_token_id).sum()))
        return {}

    writer = Writer(pipe, Settings(order="left_to_right", max_new_tokens=7))
    writer.arguments["callback_on_step_end"] = note
    writer([TextRequest(0)])
    assert sorted(set(seen), reverse=True) == list(range(7, -1, -1))

    def steps(pipe, inputs=(), **settings):
        writer = Writer(pipe, Settings(**settings))
        return writer.inputs([TextRequest(0, dict(inputs))]).get("num_inference_steps")

    pipe.generation_defaults = {"num_inference_steps": 2}
    assert steps(pipe, order="left_to_right") is None
    assert steps(pipe, scheduler="first_hitting") == pipe.max_length

    # Gaps over a causal past are written in one block, for which defaults of short ones are none.
    blocks = chat_pipe(attention="block", past="causal", alignment="shifted")
    blocks.generation_defaults = {"num_inference_steps": 2}
    assert steps(blocks, {"text": "w8 [MASK]"}, order="left_to_right") == blocks.max_length
    assert steps(blocks, {"prompt": "w8"}, scheduler="first_hitting") == blocks.block_length
    assert steps(blocks, {"prompt": "w8"}, scheduler="first_hitting", block_length=6) == 6


def test_a_pipeline_writes_by_its_defaults_and_they_are_shown_and_recorded(tmp_path):
    pipe = conditional_pipe()
    pipe.save_pretrained(tmp_path)
    words = ["generate", tmp_path, "--prompt", "w8", "--label", "w31"]
    expected = pipe("w8", class_labels="w31", generator=generators(1)).texts
    assert run(*words).stdout == f"{expected[0]}\n"

    shown = run("generate", tmp_path, "--scheduler", "list").stdout
    assert "num_inference_steps=3, max_new_tokens=5" in shown
    # Of a text with gaps the length is known.
    shown = run("infill", tmp_path, "w8 [MASK]", "--scheduler", "list").stdout
    assert "num_inference_steps=3." in shown
    record = Writer(pipe, Settings()).record()
    assert record["generation_defaults"] == pipe.generation_defaults


@pytest.mark.parametrize(
    ("record", "options", "arguments"),
    [
        ({"text": "w9 w10", "beginning": "w8"}, ["--prompt-column", "beginning"], {"prompts": ["w8"]}),
        ({"text": "w9 w10", "kind": "w31"}, ["--label-column", "kind"], {"class_labels": ["w31"]}),
        (
            {"messages": [{"role": "user", "content": "w8"}, {"role": "assistant", "content": "w9 w10"}]},
            [],
            {"messages": [{"role": "user", "content": "w8"}]},
        ),
        (
            {"conversations": [{"from": "human", "value": "w8"}, {"from": "gpt", "value": "w9 w10"}]},
            [],
            {"messages": [{"role": "user", "content": "w8"}]},
        ),
    ],
    ids=["prompt", "label", "messages", "conversations"],
)  # fmt: skip
def test_evaluate_reads_what_texts_are_written_from(record, options, arguments, tmp_path):
    pipe = conditional_pipe()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.jsonl").write_text(json.dumps(record) + "\n")
    words = ["evaluate", tmp_path / "model", "--dataset", tmp_path / "texts.jsonl", "--json"]
    found = json.loads(run(*words, "--num-times", 4, *options).stdout)
    expected = evaluate_likelihood(pipe, ["w9 w10"], num_times=4, **arguments)
    assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert found["num_tokens"] == 3


def test_evaluate_refuses_two_conditions(tmp_path, pipe):
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat", "source": "a", "prompt": "b"}\n')
    pipe.save_pretrained(tmp_path / "model")
    words = ["evaluate", tmp_path / "model", "--dataset", tmp_path / "texts.jsonl"]
    columns = ["--source-column", "source", "--prompt-column", "prompt"]
    assert "`source_column` excludes `prompt_column`" in refused(*words, *columns)


def test_the_texts_of_prompts_of_an_own_denoiser_are_judged_behind_them(pipe, tmp_path):
    rows = [{"text": f" {text}", "prompt": "the"} for text in SENTENCES]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    pipe.save_pretrained(tmp_path / "model")
    words = ["evaluate", tmp_path / "model", "--dataset", tmp_path / "texts.jsonl", "--json"]
    found = json.loads(run(*words, "--num-times", 2, "--prompt-column", "prompt").stdout)
    texts = [row["text"] for row in rows]
    prompts = ["the"] * len(rows)
    expected = evaluate_likelihood(pipe, texts, prompts=prompts, num_times=2)
    assert found["nats_per_token"] == pytest.approx(expected.nats_per_token, rel=1e-5)
    assert torch.isfinite(torch.tensor(found["nats_per_token"]))
