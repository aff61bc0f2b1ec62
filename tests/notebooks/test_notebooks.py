"""The course's notebooks: made from their sources, complete in both languages, and right when they are run."""

import importlib.util
import re
from pathlib import Path

import make_notebooks
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from make_notebooks import EXERCISE, LANGUAGES, SOLUTION, WRONG, cell_tags, execute
from nbformat import read
from nbformat.v4 import new_code_cell, new_notebook

SOURCES = make_notebooks.sources()
every_module = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
REPOSITORY = "someone/a-fork"


@every_module
def test_the_notebooks_are_what_their_source_makes(source):
    for language in LANGUAGES:
        made = make_notebooks.localized(source, language)
        kept = read(make_notebooks.notebook_file(source, language), as_version=4)
        assert [(cell.cell_type, cell.source) for cell in kept.cells] == [
            (cell.cell_type, cell.source) for cell in made.cells
        ]
        printed = [output for cell in kept.cells for output in cell.get("outputs", [])]
        assert printed and all(output.output_type != "error" for output in printed)


@every_module
def test_both_languages_say_the_same_things_in_the_same_order(source):
    texts = {
        language: [
            cell.source
            for cell in make_notebooks.localized(source, language).cells
            if cell.cell_type == "markdown"
        ]
        for language in LANGUAGES
    }
    for english, russian in zip(texts["en"], texts["ru"], strict=True):
        assert re.findall("(?m)^#+", english) == re.findall("(?m)^#+", russian)
        assert re.findall(r"\$\$", english) == re.findall(r"\$\$", russian)
        assert not re.search("[а-яё]", english.lower())
        assert re.search("[а-яё]", russian.lower())


@every_module
def test_every_exercise_has_a_solution_a_wrong_answer_and_a_check(source):
    kinds = [
        tag
        for cell in make_notebooks.source_cells(source)
        for tag in (EXERCISE, SOLUTION, WRONG, "check")
        if tag in cell_tags(cell)
    ]
    assert kinds and kinds == [EXERCISE, SOLUTION, WRONG, "check"] * (len(kinds) // 4)


@every_module
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_form_for_colab_differs_by_its_badge_its_installation_and_its_links(source, language):
    plain = make_notebooks.localized(source, language).cells
    title, badge, installation, *others = make_notebooks.localized(
        source, language, REPOSITORY
    ).cells
    assert f"/{REPOSITORY}/blob/main/notebooks/{language}/{source.stem}.ipynb)" in badge.source
    assert installation.cell_type == "code"
    assert [cell.cell_type for cell in (title, *others)] == [cell.cell_type for cell in plain]

    code = [cell.source for cell in others if cell.cell_type == "code"]
    assert code == [cell.source for cell in plain if cell.cell_type == "code"]

    texts = [cell.source for cell in (title, *others) if cell.cell_type == "markdown"]
    links = re.findall(r"\]\(([^)]*)\)", "\n".join(texts))
    assert all(link.startswith("https://") for link in links)
    root = f"https://github.com/{REPOSITORY}/blob/main/"
    files = [link.removeprefix(root).partition("#")[0] for link in links if link.startswith(root)]
    assert files and all((make_notebooks.FOLDER.parent / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("is_installed", "is_cloned", "expected"),
    [
        (False, False, ["clone", "cd a-fork", "install"]),
        (False, True, ["cd a-fork", "install"]),
        (True, True, ["cd a-fork"]),  # after a restart
        (True, False, []),  # in a clone, with the package installed
    ],
)
def test_the_form_for_colab_installs_what_is_missing_from_a_clone_that_it_enters(
    monkeypatch, tmp_path, is_installed, is_cloned, expected
):
    class Shell:
        """Keeps the commands of a notebook, and makes the folder of a clone."""

        def __init__(self):
            self.commands = []

        def system(self, command):
            assert command == f"git clone --depth 1 https://github.com/{REPOSITORY}"
            Path("a-fork").mkdir()
            self.commands.append("clone")

        def run_line_magic(self, name, line):
            if name == "pip":
                assert line == 'install -q ".[train,eval]"'
                self.commands.append("install")
            else:
                self.commands.append(f"{name} {line}")

    monkeypatch.chdir(tmp_path)
    if is_cloned:
        Path("a-fork").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if is_installed else None)

    installation = make_notebooks.localized(SOURCES[0], "en", REPOSITORY).cells[2]
    shell = Shell()
    code = TransformerManager().transform_cell(installation.source)
    exec(code, {"get_ipython": lambda: shell})
    assert shell.commands == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@every_module
def test_a_notebook_runs_without_answers_and_refuses_wrong_ones(source):
    unanswered = execute(make_notebooks.localized(source, "ru"))
    checks = [cell for cell in unanswered.cells if "check" in cell_tags(cell)]
    assert checks and all(cell.outputs[-1].text == "...\n" for cell in checks)


@pytest.mark.slow
@pytest.mark.timeout(900)
@every_module
def test_checks_refuse_the_wrong_answer_and_accept_the_solution(source):
    tried = execute(with_answers(source))
    checks = [cell.outputs[-1].text for cell in tried.cells if "check" in cell_tags(cell)]
    assert checks and set(checks) == {"✓\n"}
    refused = [cell.outputs[-1].text for cell in tried.cells if WRONG in cell_tags(cell)]
    assert len(refused) == len(checks) and set(refused) == {"refused\n"}


def with_answers(source):
    """The English code, in which each exercise has its wrong answer, which is checked, and then its solution."""
    code = [new_code_cell(make_notebooks.CHECK)]
    solution = ""
    wrong = ""
    for cell in make_notebooks.source_cells(source):
        tags = cell_tags(cell)
        is_english = cell.metadata.get("lang", "en") == "en"
        if SOLUTION in tags:
            solution = cell.source
        elif WRONG in tags:
            wrong = cell.source
        elif "check" in tags:
            attempt = (
                f"try:\n    exec({cell.source!r}, globals())\n"
                "except AssertionError:\n    print('refused')"
            )
            code.append(new_code_cell(f"{wrong}\n{attempt}", metadata={"tags": [WRONG]}))
            code += [
                new_code_cell(solution),
                new_code_cell(cell.source, metadata={"tags": ["check"]}),
            ]
        elif cell.cell_type == "code" and EXERCISE not in tags and is_english:
            code.append(new_code_cell(cell.source))
    return new_notebook(cells=code)
