"""Laws of progress: in a log whole lines and few of them, in a terminal a bar."""

import io
import sys

import pytest
from tqdm.auto import tqdm

from text_diffusers.common.progress import ProgressLines, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def work(file, count=50, **settings):
    with progress_bar(total=count, file=file, **settings) as bar:
        for _ in range(count):
            bar.update()
            bar.set_postfix(loss=1.5, refresh=False)


def test_a_log_gets_whole_lines_and_the_last_says_that_all_is_done():
    log = io.StringIO()
    work(log, desc="training")
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert lines[-1].startswith("training: 100% 50/50 [") and "loss=1.5" in lines[-1]
    assert len(lines) < 50


def test_a_line_is_written_when_it_is_time():
    log = io.StringIO()
    work(log, mininterval=0)
    assert [line.split()[1] for line in log.getvalue().splitlines()] == [
        f"{count}/50" for count in range(1, 51)
    ]


def test_an_unknown_total_and_a_run_that_goes_on_are_counted():
    log = io.StringIO()
    with progress_bar(total=None, initial=7, file=log, unit="step") as bar:
        bar.update(3)
    assert log.getvalue().startswith("10 step [")


def test_iteration_is_that_of_the_iterable_and_hidden_lines_are_none():
    log = io.StringIO()
    assert list(progress_bar(iter("abc"), file=log, disable=True)) == list("abc")
    assert log.getvalue() == ""
    assert list(progress_bar("abc", file=log)) == list("abc")
    assert log.getvalue().startswith("100% 3/3")


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    bar = progress_bar(range(3), file=terminal)
    assert isinstance(bar, tqdm) and not isinstance(bar, ProgressLines)
    list(bar)
    assert "\r" in terminal.getvalue()


@pytest.mark.parametrize("settings", [{}, {"desc": "writing"}])
def test_pipelines_and_loops_write_lines_to_a_log(pipe, make_loop, monkeypatch, settings):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    pipe.set_progress_bar_config(disable=False, **settings)
    pipe(length=5, num_inference_steps=4)
    make_loop(max_train_steps=2).run()
    lines = [line for line in log.getvalue().splitlines() if "it/s" in line or "s/it" in line]
    assert "\r" not in log.getvalue() and "100% 2/2 [" in lines[-1]
    name = f"{settings['desc']}: " if settings else ""
    assert any(line.startswith(f"{name}100% 4/4 [") for line in lines)
