"""Write the notebooks of the course from their sources: one text a module, one notebook a language.

    python notebooks/make_notebooks.py                 # notebooks/en and notebooks/ru, with the outputs that are there
    python notebooks/make_notebooks.py --execute 1 2   # runs modules 1 and 2 and keeps what they print and draw
    python notebooks/make_notebooks.py --repository me/text-diffusers   # with links that open them in Colab

A source (`sources/*.py`, the percent format of jupytext) has the cells of both languages: a text cell says its
language, `# %% [markdown] lang="ru"`, and code is shared, except for cells that say a language, `# %% lang="ru"`.
Code of an exercise comes in four kinds, in this order:

- `tags=["exercise"]` is what a student fills in;
- `tags=["solution"]` is folded behind the check, and serves where the exercise is empty: "run all" always works;
- `tags=["wrong"]` is left out; tests see that the check accepts the solution and refuses this;
- `tags=["check"]` tells whether an answer is right.
"""

import argparse
import ast
import json
import os
import posixpath
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, read, write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
SOURCES = FOLDER / "sources"
LANGUAGES = ("en", "ru")
EXERCISE = "exercise"
SOLUTION = "solution"
WRONG = "wrong"
CHECKED = "check"

# Seconds that a cell may take
TIMEOUT = 600

# The first code of every notebook
CHECK = """\
def check(answer, is_right):
    \"\"\"Say whether the answer of an exercise is right; `...` is no answer yet.\"\"\"
    answers = answer if isinstance(answer, tuple) else (answer,)
    if any(part is ... for part in answers):
        print("...")
    else:
        assert is_right(answer)
        print("\N{CHECK MARK}")
"""
# A notebook may need files of the repository beside the package. After a restart only the folder is to be entered.
INSTALL = """\
# On Colab, or wherever the package is missing: clone the repository, and install the package from there.
import importlib.util
from pathlib import Path

is_missing = importlib.util.find_spec("text_diffusers") is None
if is_missing and not Path("{folder}").is_dir():
    !git clone --depth 1 https://github.com/{repository}
if Path("{folder}").is_dir():
    %cd {folder}
if is_missing:
    %pip install -q ".[train,eval]"
"""
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/main/notebooks/{language}/{name}.ipynb)"
)
# The target of a link that is neither an address nor a place in the same text
RELATIVE_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s]+")


def sources() -> list[Path]:
    """The texts of all modules, in order."""
    return sorted(SOURCES.glob("*.py"))


def cell_tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def source_cells(source: Path) -> list[NotebookNode]:
    """All cells of a source, in both languages, with solutions and wrong answers."""
    return jupytext.read(source, fmt="py:percent").cells


def localized(source: Path, language: str, repository: str | None = None) -> NotebookNode:
    """The notebook of a source in a language, without outputs.

    Args:
        repository: "owner/name" on GitHub, from which Colab opens the notebook; the notebook then clones it, installs
            the package from there, and has absolute links to its pages.
    """
    cells = []
    names: list[str] = []
    solution = ""
    for cell in source_cells(source):
        tags = cell_tags(cell)
        if SOLUTION in tags:
            solution = cell.source
        if EXERCISE in tags:
            names = assigned_names(cell.source)
        if cell.metadata.get("lang", language) != language or tags & {SOLUTION, WRONG}:
            continue
        make = new_markdown_cell if cell.cell_type == "markdown" else new_code_cell
        cells.append(make(cell.source, metadata={"tags": sorted(tags)} if tags else {}))
        if CHECKED in tags:
            cells.append(folded_solution(names, solution))
    cells.insert(1, new_code_cell(CHECK.rstrip()))

    if repository is not None:
        for cell in cells:
            if cell.cell_type == "markdown":
                cell.source = with_absolute_links(cell.source, language, repository)

        badge = BADGE.format(repository=repository, language=language, name=source.stem)
        folder = repository.split("/")[1]
        install = INSTALL.format(repository=repository, folder=folder).rstrip()
        cells[1:1] = [new_markdown_cell(badge), new_code_cell(install)]

    # The same notebook is the same file.
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def with_absolute_links(text: str, language: str, repository: str) -> str:
    """A text of a notebook in which links to files of the repository lead to GitHub."""

    def absolute(link: re.Match[str]) -> str:
        path = posixpath.normpath(f"notebooks/{language}/{link.group()}")
        return f"https://github.com/{repository}/blob/main/{path}"

    return RELATIVE_LINK.sub(absolute, text)


def assigned_names(code: str) -> list[str]:
    """The names that an exercise asks for, such as `add_noise` of `add_noise = ...`."""
    statements = ast.parse(code).body
    targets = [node.targets[0] for node in statements if isinstance(node, ast.Assign)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def folded_solution(names: list[str], solution: str) -> NotebookNode:
    """The solution of an exercise, out of sight, which serves where a name has no answer."""
    is_empty = " or ".join(f"{name} is ..." for name in names)
    code = f"# @title Solution\nif {is_empty}:\n{textwrap.indent(solution, '    ')}"
    hidden = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": [SOLUTION]}
    return new_code_cell(code, metadata=hidden)


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run all cells, in the folder of the repository; an error of one is raised."""
    NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER.parent)}},
    ).execute()
    return notebook


def code_key(code: str) -> str:
    """The same for code that differs in its format alone."""
    try:
        return ast.dump(ast.parse(code))
    except SyntaxError:
        return code  # such as a command of a notebook


def code_outputs(notebook: NotebookNode) -> dict[str, Any]:
    """What each piece of code printed and drew."""
    return {
        code_key(cell.source): cell.outputs
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.outputs
    }


def keep_outputs(notebook: NotebookNode, outputs: dict[str, Any]):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs.get(code_key(cell.source), [])


def notebook_file(source: Path, language: str) -> Path:
    return FOLDER / language / f"{source.stem}.ipynb"


def make(source: Path, executes: bool, repository: str | None):
    """Write both languages of a module; code that is the same in both runs once."""
    runs: dict[str, dict[str, Any]] = {}
    for language in LANGUAGES:
        file = notebook_file(source, language)
        outputs: dict[str, Any] = {}
        if executes:
            plain = localized(source, language)
            code = all_code(plain)
            if code not in runs:
                runs[code] = code_outputs(without_noise(execute(plain)))
            outputs = runs[code]
        elif file.exists():
            outputs = code_outputs(read(file, as_version=4))

        notebook = localized(source, language, repository)
        keep_outputs(notebook, outputs)
        file.parent.mkdir(exist_ok=True)
        write(notebook, file)
        print(f"{file.relative_to(FOLDER.parent)}: {file.stat().st_size / 1e3:,.0f} kB")


def all_code(notebook: NotebookNode) -> str:
    """The code of a notebook."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def without_noise(notebook: NotebookNode) -> NotebookNode:
    """Outputs without what libraries say on the error stream, and without counts of cells."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue
            if "execution_count" in output:
                output.execution_count = None
            if kept and output.output_type == kept[-1].output_type == "stream":
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept
        cell.execution_count = None
    return notebook


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", type=int, help="numbers of modules; all by default")
    parser.add_argument("--execute", action="store_true", help="run the code and keep its outputs")
    parser.add_argument("--repository", help="owner/name on GitHub, for links to Colab")
    options = parser.parse_args()

    found = {int(source.stem.split("_")[0]): source for source in sources()}
    unknown = sorted(set(options.modules) - set(found))
    if unknown:
        parser.error(f"modules must be among {json.dumps(sorted(found))}, got {unknown}")
    # The kernel is this interpreter, whatever kernels the user has installed.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    for number in options.modules or sorted(found):
        make(found[number], options.execute, options.repository)


if __name__ == "__main__":
    sys.exit(main())
