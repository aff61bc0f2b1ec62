"""The examples of docstrings run and print what they show, and every public class has one."""

import doctest
import importlib.util
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from diffusers.utils import BaseOutput, logging

import text_diffusers

FINDER = doctest.DocTestFinder(exclude_empty=True)
RUNNER_OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# They stand beside `src`, where a walk through it does not find them.
ROOMS = ("pipelines", "schedulers", "space")


def modules_with_examples():
    names = [text_diffusers.__name__]
    for package in (text_diffusers, *(import_room(room) for room in ROOMS)):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            names.append(module.name)

    # The others are not imported, which for some takes seconds.
    files = {name: importlib.util.find_spec(name).origin for name in sorted(set(names))}
    return [
        name for name, file in files.items() if ">>> " in Path(file).read_text(encoding="utf-8")
    ]


def import_room(name):
    return importlib.import_module(f"text_diffusers.{name}")


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_of_a_module_print_what_they_show(name, monkeypatch, tmp_path):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # for what an example writes
    logging.disable_progress_bar()
    runner = doctest.DocTestRunner(optionflags=RUNNER_OPTIONS)

    report = []
    for examples in FINDER.find(module):
        if not examples.examples:
            continue
        torch.manual_seed(0)
        runner.run(examples, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


@pytest.mark.parametrize("name", text_diffusers.__all__)
def test_a_public_class_shows_an_example(name):
    public_class = getattr(text_diffusers, name)
    if issubclass(public_class, BaseOutput):
        return
    assert ">>> " in (inspect.getdoc(public_class) or ""), name
