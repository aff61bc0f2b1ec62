"""Calls of one language model at the same time write what each writes alone: the head is chosen from by thread."""

import threading

import pytest
import torch
from conftest import slow
from support.language_models import chat_pipe

QUESTIONS = [[{"role": "user", "content": f"w{8 + index} w{20 + index}"}] for index in range(4)]


@pytest.mark.parametrize(
    ("attention", "settings"),
    [
        ("bidirectional", {}),
        slow("bidirectional", {"block_length": 4, "approximate_cache": "dual"}),
        ("block", {}),
    ],
    ids=["whole rows", "stale cache", "blocks"],
)
def test_threads_write_what_each_writes_alone(attention, settings):
    pipe = chat_pipe(attention=attention, alignment="aligned")
    settings = {"max_new_tokens": 12, "num_inference_steps": 6} | settings
    alone = [pipe(messages=question, **settings).texts for question in QUESTIONS]
    written = [[] for _ in QUESTIONS]
    barrier = threading.Barrier(len(QUESTIONS))

    def write(index):
        barrier.wait()
        for _ in range(4):
            written[index].append(pipe(messages=QUESTIONS[index], **settings).texts)

    threads = [threading.Thread(target=write, args=(index,)) for index in range(len(QUESTIONS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert written == [[texts] * 4 for texts in alone]


def test_streams_taken_in_turn_write_what_each_writes_alone():
    pipe = chat_pipe()
    settings = {"max_new_tokens": 12, "num_inference_steps": 6}
    alone = [list(pipe.stream(messages=question, **settings)) for question in QUESTIONS[:2]]
    together = zip(
        *(pipe.stream(messages=question, **settings) for question in QUESTIONS[:2]), strict=True
    )
    assert [list(texts) for texts in zip(*together, strict=True)] == alone


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_reply_in_half_precision_is_that_of_its_own_row(dtype):
    pipe = chat_pipe()
    pipe.to(dtype)
    settings = {"max_new_tokens": 6, "num_inference_steps": 3}
    assert (
        pipe(messages=QUESTIONS[0], **settings).texts
        == pipe(messages=[QUESTIONS[0]] * 2, **settings).texts[:1]
    )
