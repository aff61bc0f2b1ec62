"""Laws of `text-diffusers lm-eval`: lm-eval's own command line with pipelines, alone and in two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_denoiser
from support.language_models import make_language_model, word_tokenizer
from support.markov_texts import learn_by_heart
from support.masked_lms import make_masked_lm

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation.written_texts import texts_of_pipeline
from text_diffusers.models import Reading

pytest.importorskip("lm_eval", reason="lm-eval comes with text-diffusers[eval]")
pytestmark = pytest.mark.slow

MASK, END = 0, 2
CAUSAL = Reading(
    attention="block",
    past="causal",
    block_length=2,
    alignment="shifted",
    mask_token_id=MASK,
    end_token_ids=[END],
)
WORDS = [("w8 w9", " w10 w11 w12"), ("w13 w9", " w14 w15"), ("w16", " w17 w18 w19 w20")]
HALVES = [
    ("the cat sat", " on the mat and looked at the dog"),
    ("a bird sang", " in the tree"),
    ("she was", " late for the train"),
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
output_type: {kind}
"""
CHOICES = """doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITING = """doc_to_target: "{{choices[answer]}}"
generation_kwargs: {max_gen_toks: 12, num_inference_steps: 12, until: ["!"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """doc_to_target: "{{question}}{{choices[answer]}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""


def tokens_from_scratch(tokenizer):
    denoiser = make_denoiser(tokenizer)
    return tokenizer, denoiser, HALVES


def masked_lm(tokenizer):
    model, own_tokenizer = make_masked_lm("bert")
    return own_tokenizer, model, HALVES


def adapted_causal_lm(tokenizer):
    own_tokenizer = word_tokenizer(
        mask_token="<|mask|>", pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|user|>"
    )
    return own_tokenizer, make_language_model("qwen2", CAUSAL), WORDS


def save_learned(make, tokenizer, folder):
    """Save a pipeline that has learned the answers to questions by heart, which are returned."""
    tokenizer, denoiser, pairs = make(tokenizer)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    # One text a row is written to a length that is drawn; the causal LM predicts where a text ends.
    lengths = None if make is adapted_causal_lm else [0] * 4 + [1] * 26
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler, lengths=lengths)
    questions, answers = zip(*pairs, strict=True)
    texts = texts_of_pipeline(pipe, answers, prompts=questions)
    assert learn_by_heart(pipe, [text.row() for text in texts]) < 2
    pipe.save_pretrained(folder)
    return pairs


def write_tasks(folder, pairs):
    """Three tasks of local data: choices among all answers, writing the answer, and whole texts."""
    folder.mkdir()
    data = folder / "questions.jsonl"
    answers = [answer for _, answer in pairs]
    lines = [
        json.dumps({"question": question, "choices": answers, "answer": place})
        for place, (question, _) in enumerate(pairs)
    ]
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    kinds = {
        "multiple_choice": CHOICES,
        "generate_until": WRITING,
        "loglikelihood_rolling": ROLLING,
    }
    for kind, rest in kinds.items():
        text = TASK.format(name=f"local_{kind}", data=data, kind=kind)
        if kind == "multiple_choice":
            # The answers begin with a space, as lm-eval puts one between both.
            text += 'target_delimiter: ""\n'
        if kind == "loglikelihood_rolling":
            text = text.replace("{{question}}", "")
        (folder / f"{kind}.yaml").write_text(text + rest, encoding="utf-8")


def lm_eval(tmp_path, *words, processes=1, tasks="local_multiple_choice", **model_args):
    """The results that lm-eval writes, its samples by task, and its output."""
    given = {"pretrained": tmp_path / "model", "num_times": 8} | model_args
    launcher = [sys.executable]
    if processes > 1:
        launch = f"-m accelerate.commands.launch --multi_gpu --num_processes {processes}"
        launcher += launch.split()
    output = tmp_path / f"results{len(list(tmp_path.glob('results*')))}"
    command = [
        *launcher,
        *("-m", "text_diffusers.cli", "lm-eval", "--model", "text_diffusers"),
        *("--model_args", ",".join(f"{name}={value}" for name, value in given.items())),
        *("--tasks", tasks, "--include_path", tmp_path / "tasks"),
        *("--device", "cpu", "--batch_size", "8", "--output_path", output, "--log_samples"),
        *words,
    ]
    folders = {
        "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
        "LM_HARNESS_CACHE_PATH": str(tmp_path / "requests"),
    }
    environment = {
        name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"
    }
    environment |= folders | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = output.rglob("results_*.json")
    samples = {}
    for path in output.rglob("samples_*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        task = path.name.removeprefix("samples_").rsplit("_", 1)[0]
        samples[task] = sorted(map(json.loads, lines), key=lambda sample: sample["doc_id"])
    return json.loads(file.read_text(encoding="utf-8")), samples, done.stdout + done.stderr


def answers_of(samples):
    """The first answer to each request: lm-eval repeats some, so that all processes have as many."""
    return {
        task: [[answers[0] for answers in sample["resps"]] for sample in found]
        for task, found in samples.items()
    }


ALL = "local_multiple_choice,local_generate_until,local_loglikelihood_rolling"


@pytest.mark.parametrize("make", [tokens_from_scratch, masked_lm, adapted_causal_lm])
def test_what_a_model_has_learned_by_heart_it_knows_in_every_task(make, tokenizer, tmp_path):
    pairs = save_learned(make, tokenizer, tmp_path / "model")
    write_tasks(tmp_path / "tasks", pairs)
    results, samples, output = lm_eval(tmp_path, tasks=ALL)
    assert results["results"]["local_multiple_choice"]["acc,none"] == 1
    assert 0 < results["results"]["local_loglikelihood_rolling"]["bits_per_byte,none"]
    errors = results["config"]["errors_of_noise"]
    assert errors["local_multiple_choice"]["requests"] == len(pairs) ** 2
    assert errors["local_loglikelihood_rolling"]["mean_error"] > 0
    assert "local_multiple_choice: log-likelihoods have a standard error of" in output

    # Where the end is not predicted, as many tokens are written as may be.
    written = [sample["resps"][0][0] for sample in samples["local_generate_until"]]
    assert all(written)
    if make is adapted_causal_lm:
        assert written == [answer for _, answer in pairs]
        assert results["results"]["local_generate_until"]["exact_match,none"] == 1


def test_two_processes_answer_as_one(tokenizer, tmp_path):
    write_tasks(
        tmp_path / "tasks", save_learned(tokens_from_scratch, tokenizer, tmp_path / "model")
    )
    alone, samples, _ = lm_eval(tmp_path, tasks=ALL)
    shared, shared_samples, _ = lm_eval(tmp_path, tasks=ALL, processes=2)
    for task, figures in alone["results"].items():
        for name, value in figures.items():
            if isinstance(value, float):
                assert shared["results"][task][name] == pytest.approx(value, rel=1e-4)
    written = "local_generate_until"
    assert answers_of(shared_samples)[written] == answers_of(samples)[written]

    # The errors are those of all processes.
    for task, figures in alone["config"]["errors_of_noise"].items():
        others = shared["config"]["errors_of_noise"][task]
        assert others["requests"] == figures["requests"]
        if figures["mean_error"] is not None:
            assert others["mean_error"] == pytest.approx(figures["mean_error"], rel=1e-3)


def test_conversations_and_caches_of_lm_eval(tokenizer, tmp_path):
    """With a chat template, requests and answers are read from lm-eval's caches the second time, and are the same."""
    write_tasks(tmp_path / "tasks", save_learned(adapted_causal_lm, tokenizer, tmp_path / "model"))
    words = ("--apply_chat_template", "--cache_requests", "--use_cache", tmp_path / "answers")
    first, samples, _ = lm_eval(tmp_path, *words, tasks=ALL.rpartition(",")[0])
    again, samples_again, output = lm_eval(tmp_path, *words, tasks=ALL.rpartition(",")[0])
    assert answers_of(samples) == answers_of(samples_again)
    assert "Requests remaining: 0" in output and list(Path(tmp_path / "requests").iterdir())
    # What was not asked again has no errors.
    assert first["config"]["errors_of_noise"] and not again["config"]["errors_of_noise"]
    context = samples["local_multiple_choice"][0]["arguments"]["gen_args_0"]["arg_0"]
    assert context.startswith("<|user|>") and context.endswith("<|assistant|>")
