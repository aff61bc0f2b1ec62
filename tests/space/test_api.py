"""The page for programs, by the real client of Gradio over HTTP: what it writes, and the limits that hold for it."""

import concurrent.futures
import re
import threading
import time

import gradio_client
import pytest
import torch
from support.space_pages import make_pipe, running

from text_diffusers.space.parts.running import WORKER
from text_diffusers.space.parts.texts import TEXTS

pytestmark = pytest.mark.slow  # servers take their time


@pytest.fixture(scope="module")
def page(tokenizer):
    with running(make_pipe("labelled", tokenizer)) as url:
        yield gradio_client.Client(url, verbose=False)


def test_write_returns_what_the_pipeline_writes(page, tokenizer):
    result = page.predict(prompt="the cat", length=9, steps=5, count=2, seed=4, api_name="/write")
    pipe = make_pipe("labelled", tokenizer)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, temperature=0.7)
    generator = torch.Generator().manual_seed(4)
    asked = {"num_inference_steps": 5, "num_return_sequences": 2, "generator": generator}
    assert result["texts"] == pipe("the cat", max_new_tokens=9, **asked).texts
    assert result["steps"] == 5 and result["calls"] <= 5
    assert (
        result["address"].startswith("?tab=write&prompt=the+cat&") and "seed=4" in result["address"]
    )


def test_fill_keeps_what_was_given(page):
    result = page.predict("the ___ sat [2] mat", count=3, api_name="/fill")
    assert len(result["texts"]) == 3
    assert all(re.fullmatch(r"the.* sat.* mat", text, re.DOTALL) for text in result["texts"])


def test_every_setting_has_the_value_that_the_page_begins_with(page):
    """One that is left out is no setting of nothing."""
    parameters = page.view_api(return_format="dict")["named_endpoints"]["/write"]["parameters"]
    defaults = {each["parameter_name"]: each["parameter_default"] for each in parameters}
    assert defaults["steps"] == 32 and defaults["temperature"] == 0.7 and defaults["seed"] == 0
    assert set(defaults) >= {"prompt", "label", "length", "sampler", "count", "language"}


@pytest.mark.parametrize(
    ("function", "asked", "key"),
    [
        ("/write", {"prompt": "x" * 601}, "error.long"),
        ("/write", {"steps": 129}, "error.range"),
        ("/write", {"steps": "8"}, "error.range"),
        ("/write", {"count": 5}, "error.range"),
        ("/write", {"count": True}, "error.range"),
        ("/write", {"length": 2.5}, "error.integer"),
        ("/write", {"sampler": "__class__"}, "error.choice"),
        ("/write", {"label": [0]}, "error.choice"),
        ("/fill", {"text": "no gap"}, "error.gap"),
        ("/fill", {"text": "[9999]"}, "error.tokens"),
    ],
)
@pytest.mark.parametrize("language", ["en", "ru"])
def test_the_checks_of_the_page_hold_for_programs(function, asked, key, language, page):
    with pytest.raises(gradio_client.exceptions.AppError) as refused:
        page.predict(**asked, language=language, api_name=function)
    message = str(refused.value)
    words = TEXTS[key][("en", "ru").index(language)]
    # The parts of the sentence between its fields
    assert all(part in message for part in re.split(r"{\w+}", words)), message


def test_a_call_out_of_time_is_stopped_and_says_so(tokenizer):
    with running(make_pipe("labelled", tokenizer), seconds=0.0) as url:
        client = gradio_client.Client(url, verbose=False)
        with pytest.raises(gradio_client.exceptions.AppError, match="took too long"):
            client.predict(prompt="the cat", steps=64, api_name="/write")


def test_calls_of_both_functions_run_one_at_a_time(page):
    """The threads that run the model are those of this process, where the server is, too."""
    most = 0
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = ({"length": 20, "api_name": "/write"}, {"text": "[20]", "api_name": "/fill"})
        calls = []
        for seed in range(4):
            call = pool.submit(page.predict, steps=60, count=4, seed=seed, **asked[seed % 2])
            calls.append(call)
        while not all(call.done() for call in calls):
            running = [thread for thread in threading.enumerate() if thread.name == WORKER]
            most = max(most, len(running))
            time.sleep(0.002)
    assert most == 1 and all(len(call.result()["texts"]) == 4 for call in calls)


def test_calls_beyond_the_queue_are_turned_away(tokenizer):
    with running(make_pipe("labelled", tokenizer), waiting=2) as url:
        client = gradio_client.Client(url, verbose=False)

        def call(seed):
            try:
                return client.predict(steps=128, count=4, length=20, seed=seed, api_name="/write")
            except Exception as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(call, range(16)))
        written = [answer for answer in answers if isinstance(answer, dict)]
        refused = [answer for answer in answers if isinstance(answer, str)]
        assert written and refused and len(written) + len(refused) == 16
        assert all("ueue" in answer for answer in refused), set(refused)


@pytest.mark.parametrize("name", ["/lambda", "/stream", "/call", "/reword"])
def test_nothing_else_can_be_called(name, page):
    with pytest.raises(ValueError, match="Cannot find a function"):
        page.predict(api_name=name)
