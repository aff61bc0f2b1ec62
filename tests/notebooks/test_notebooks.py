"""The course's notebooks: made from their sources, complete in both languages, and right when they are run."""

import re

import make_notebooks
import pytest
from make_notebooks import EXERCISE, LANGUAGES, SOLUTION, WRONG, cell_tags, execute
from nbformat import read
from nbformat.v4 import new_code_cell, new_notebook

SOURCES = make_notebooks.sources()
every_module = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


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
    """A notebook of the code in which each exercise has its wrong answer, which is checked, and then its solution."""
    code = [new_code_cell(make_notebooks.CHECK)]
    solution = ""
    wrong = ""
    for cell in make_notebooks.source_cells(source):
        tags = cell_tags(cell)
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
        elif cell.cell_type == "code" and EXERCISE not in tags:
            code.append(new_code_cell(cell.source))
    return new_notebook(cells=code)
