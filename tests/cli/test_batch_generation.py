"""Laws of batch generation: a file is the same bytes whoever wrote it and however often it was interrupted."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import make_denoiser

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.cli.batch_generation import BatchFile, generate_file
from text_diffusers.cli.text_requests import Settings, TextRequest, read_requests
from text_diffusers.cli.writer import Writer, text_seed
from text_diffusers.training.checkpoints import weights_digest

PROMPTS = [
    "the cat",
    "",
    "a bird sang in the tree",
    "she was",
    "the dog",
    "the",
    "she",
    "a",
    "the mat",
    "late",
]


@pytest.fixture
def labelled(tokenizer):
    parts = (
        tokenizer,
        make_denoiser(tokenizer, num_classes=2),
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
    )
    pipe = TextDiffusionPipeline(*parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def writer_of(pipe, **settings):
    return Writer(
        pipe, Settings(**{"num_inference_steps": 3, "max_new_tokens": 5, "seed": 7} | settings)
    )


def requests_of(prompts):
    return [TextRequest(place, {"prompt": prompt}) for place, prompt in enumerate(prompts)]


def write_file(pipe, path, prompts=PROMPTS, batch_size=4, overwrite=False, **settings):
    # A fork has none of the threads that torch may have had before.
    torch.set_num_threads(1)
    return generate_file(
        writer_of(pipe, **settings), requests_of(prompts), path, batch_size, overwrite
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_line_holds_the_texts_that_the_pipeline_writes_alone_with_the_seed_of_its_place(
    pipe, tmp_path
):
    write_file(pipe, tmp_path / "out.jsonl", num_return_sequences=2)
    found = lines_of(tmp_path / "out.jsonl")
    assert [line["line"] for line in found] == list(range(1, len(PROMPTS) + 1))
    for place, line in enumerate(found):
        generators = [
            torch.Generator().manual_seed(text_seed(7, place, number)) for number in range(2)
        ]
        options = {"num_inference_steps": 3, "max_new_tokens": 5, "num_return_sequences": 2}
        assert line["texts"] == pipe(PROMPTS[place], generator=generators, **options).texts
        assert line["prompt"] == PROMPTS[place]


def test_the_file_does_not_depend_on_the_batch_size(pipe, tmp_path):
    for size in (1, 3, 64):
        write_file(pipe, tmp_path / f"{size}.jsonl", batch_size=size)
    files = [(tmp_path / f"{size}.jsonl").read_bytes() for size in (1, 3, 64)]
    assert files[0] == files[1] == files[2]


def test_seeds_differ_between_places_texts_and_runs():
    seeds = {
        text_seed(seed, place, number)
        for seed in range(3)
        for place in range(50)
        for number in range(4)
    }
    assert len(seeds) == 600 and all(0 <= seed < 2**32 for seed in seeds)


def test_a_file_that_was_cut_anywhere_is_finished_to_the_same_bytes(pipe, tmp_path):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write_file(pipe, whole)
    content = whole.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for size in (
        0,
        1,
        ends[0] - 1,
        ends[0],
        ends[0] + 5,
        ends[3],
        ends[4] + 30,
        ends[-2],
        len(content) - 1,
    ):
        write_file(pipe, cut, overwrite=True)
        cut.write_bytes(content[:size])
        assert write_file(pipe, cut) == 0
        assert cut.read_bytes() == content


def test_a_finished_file_costs_no_call_of_the_model(pipe, tmp_path):
    write_file(pipe, tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    calls = []
    pipe.denoiser.register_forward_pre_hook(lambda *inputs: calls.append(inputs))
    write_file(pipe, tmp_path / "out.jsonl")
    assert not calls and (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 8}, "seed"),
        ({"num_inference_steps": 4}, "num_inference_steps"),
        ({"scheduler": "entropy"}, "scheduler, schedulers"),
        ({"temperature": 0.5}, "temperature"),
        ({"prompts": [*PROMPTS[:-1], "other"]}, "input"),
        ({"prompts": [*PROMPTS, "more"]}, "input, lines"),
        ({"weights": 1}, "weights"),
    ],
)
def test_a_file_is_not_continued_with_other_settings(pipe, tmp_path, change, name):
    write_file(pipe, tmp_path / "out.jsonl", PROMPTS)
    before = (tmp_path / "out.jsonl").read_bytes()
    if change.pop("weights", None):
        next(pipe.denoiser.parameters()).data[0, 0] += 1e-6
    with pytest.raises(ValueError, match=f"was begun with another {name}:"):
        write_file(pipe, tmp_path / "out.jsonl", **change)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    write_file(pipe, tmp_path / "out.jsonl", overwrite=True, **change)
    write_file(pipe, tmp_path / "out.jsonl", **change)


def test_the_digest_sees_every_weight(pipe):
    digests = {weights_digest(pipe.denoiser)}
    for parameter in pipe.denoiser.parameters():
        parameter.data.view(-1)[-1] += 1e-3
        digests.add(weights_digest(pipe.denoiser))
    assert len(digests) == 1 + sum(1 for _ in pipe.denoiser.parameters())


def test_files_of_others_are_left_as_they_are(pipe, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(ValueError, match="holds something else"):
        write_file(pipe, path)
    assert path.read_text() == "my notes\n"
    write_file(pipe, path, overwrite=True)
    lines = path.read_bytes().split(b"\n")
    for damaged in (
        lines[:2] + lines[3:],
        [*lines[:2], b'{"line": "x"}', *lines[3:]],
        [b"[1]", *lines[1:]],
    ):
        path.write_bytes(b"\n".join(damaged))
        with pytest.raises(ValueError, match=r"out.jsonl, line [13]: not of this file"):
            write_file(pipe, path)
    (tmp_path / "out.jsonl.settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json: not JSON"):
        write_file(pipe, path)


def test_one_request_that_does_not_fit_stops_no_other(pipe, tmp_path):
    prompts = [*PROMPTS[:5], "the cat sat on the mat " * 20, *PROMPTS[6:]]
    assert write_file(pipe, tmp_path / "bad.jsonl", prompts) == 1
    write_file(pipe, tmp_path / "good.jsonl")
    found, good = lines_of(tmp_path / "bad.jsonl"), lines_of(tmp_path / "good.jsonl")
    assert found[5].keys() == {"line", "prompt", "error"} and "32 tokens" in found[5]["error"]
    assert found[:5] + found[6:] == good[:5] + good[6:]
    assert write_file(pipe, tmp_path / "bad.jsonl", prompts) == 1  # told again of a finished file


def test_half_of_a_character_in_one_request_stops_no_other(pipe, tmp_path):
    prompts = [*PROMPTS[:5], "Hi \ud83d", *PROMPTS[6:]]
    assert write_file(pipe, tmp_path / "bad.jsonl", prompts) == 1
    write_file(pipe, tmp_path / "good.jsonl")
    found, good = lines_of(tmp_path / "bad.jsonl"), lines_of(tmp_path / "good.jsonl")
    assert found[5]["prompt"] == prompts[5] and "valid Unicode" in found[5]["error"]
    assert found[:5] + found[6:] == good[:5] + good[6:]


def test_settings_that_fit_no_request_leave_no_file(pipe, tmp_path):
    with pytest.raises(ValueError, match="must fit into the model's 32 tokens"):
        write_file(pipe, tmp_path / "out.jsonl", max_new_tokens=500)
    assert not list(tmp_path.iterdir())


def test_labels_and_gaps_reach_the_pipeline_row_by_row(labelled, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"label": 0}\n{"label": 1}\n{}\n')
    writer = writer_of(labelled, guidance_scale=2.0)
    generate_file(writer, read_requests(tmp_path / "in.jsonl", label=1), tmp_path / "out.jsonl")
    found = lines_of(tmp_path / "out.jsonl")
    assert [line["label"] for line in found] == [0, 1, 1]
    for place, line in enumerate(found):
        options = {"num_inference_steps": 3, "max_new_tokens": 5, "guidance_scale": 2.0}
        generator = [torch.Generator().manual_seed(text_seed(7, place, 0))]
        assert (
            line["texts"]
            == labelled(class_labels=[line["label"]], generator=generator, **options).texts
        )
    without = [TextRequest(0, {"prompt": "the"}, 1), TextRequest(1, {"prompt": "the"})]
    assert len(writer_of(labelled)(without)) == 2  # no label is one of the choices


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("in.csv", "a", "must end in .txt or .jsonl"),
        ("in.txt", "", "line 1: the file holds no request"),
        ("in.txt", b"good\nb\xff", "line 2: not UTF-8"),
        ("in.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
        (
            "in.jsonl",
            '["a"]',
            "line 1: expected one of prompt, source, text, messages, and a label",
        ),
        ("in.jsonl", '{"prompt": "a", "text": "b"}', "line 1: expected one of"),
        ("in.jsonl", '{"prompts": "a"}', "line 1: expected one of"),
        ("in.jsonl", '{"prompt": 3}', "line 1: `prompt` must be a string, got 3"),
        (
            "in.jsonl",
            '{"prompt": "a", "label": 1.5}',
            "line 1: `label` must be an integer or a name, got 1.5",
        ),
        (
            "in.jsonl",
            '{"prompt": "a"}\n{"text": "b"}',
            "line 2: must have prompt as line 1, got text",
        ),
        (
            "in.jsonl",
            '{"label": 1}\n{"text": "b"}',
            "line 2: must have no text as line 1, got text",
        ),
    ],
)
def test_inputs_that_cannot_be_read_are_named_with_their_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_requests(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_marks_of_an_encoding_are_no_part_of_a_request(tmp_path, encoding):
    texts = ["Привет", "the cat"]
    (tmp_path / "in.txt").write_text("\r\n".join(texts) + "\r\n", encoding=encoding, newline="")
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding=encoding)
    for name in ("in.txt", "in.jsonl"):
        requests = read_requests(tmp_path / name)
        assert [request.inputs["prompt"] for request in requests] == texts


def test_lines_of_text_are_kept_as_they_are(tmp_path):
    (tmp_path / "in.txt").write_text("one\n\n  two\u2028still two\n", encoding="utf-8")
    requests = read_requests(tmp_path / "in.txt", "text")
    assert [request.inputs["text"] for request in requests] == ["one", "", "  two\u2028still two"]


def test_settings_are_there_before_the_first_line(tmp_path):
    file = BatchFile(tmp_path / "out.jsonl", {"settings": {"seed": 1}})
    assert file.begin() == 0 and not list(tmp_path.iterdir())
    file.append([{"line": 1}])
    torn = (tmp_path / "out.jsonl").read_bytes() + b'{"li'
    (tmp_path / "out.jsonl").write_bytes(torn)
    again = BatchFile(tmp_path / "out.jsonl", {"settings": {"seed": 1}})
    assert again.begin() == 1
    again.append([{"line": 2}])
    assert lines_of(tmp_path / "out.jsonl") == [{"line": 1}, {"line": 2}]


def write_as(rank, port, *arguments):
    """`write_file` as one of two processes of a launcher."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in ranks.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("ACCELERATE_USE_CPU", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    write_file(*arguments)


def test_a_torn_file_is_continued_by_two_processes_to_the_bytes_of_one(pipe, tmp_path):
    torn, whole = tmp_path / "torn.jsonl", tmp_path / "whole.jsonl"
    write_file(pipe, whole, PROMPTS * 2, 2)
    write_file(pipe, torn, PROMPTS * 2, 2)
    torn.write_bytes(whole.read_bytes()[:-700])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    runs = [
        fork.Process(target=write_as, args=(rank, port, pipe, torn, PROMPTS * 2, 2))
        for rank in range(2)
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0]
    assert torn.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_a_run_that_was_killed_is_continued_by_two_processes_to_the_bytes_of_one(pipe, tmp_path):
    prompts = PROMPTS * 15
    killed, whole = tmp_path / "killed.jsonl", tmp_path / "whole.jsonl"
    run = multiprocessing.get_context("fork").Process(
        target=write_file, args=(pipe, killed, prompts, 2)
    )
    run.start()
    while run.is_alive() and not (killed.exists() and killed.read_bytes().count(b"\n") >= 5):
        time.sleep(0.005)
    run.kill()
    run.join()
    assert run.exitcode == -signal.SIGKILL
    before = killed.read_bytes()
    assert 5 <= before.count(b"\n") < len(prompts)
    with open(killed, "ab") as file:
        file.write(b'{"line": 99')  # as if the last line had been torn
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "in.txt").write_text("\n".join(prompts) + "\n")
    launch = [
        *"-m accelerate.commands.launch --multi_gpu --num_processes 2 -m text_diffusers.cli generate".split()
    ]
    options = [*"--steps 3 --batch-size 2 --max-new-tokens 5 --seed 7".split(), "--output", killed]
    words = [sys.executable, *launch, tmp_path / "model", "--input", tmp_path / "in.txt", *options]
    variables = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*map(str, words)], env=variables, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "text-diffusers: 2 processes write" in done.stderr
    write_file(pipe, whole, prompts, batch_size=2)
    assert killed.read_bytes() == whole.read_bytes() and whole.read_bytes().startswith(before)
