"""What a type checker makes of a user's program: it finds the package, its types and a misspelt argument."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import text_diffusers

pytestmark = pytest.mark.slow

# The program of a user, then what a type checker is asked about it
PROGRAM = """from text_diffusers import TextDiffusionPipeline
pipe = TextDiffusionPipeline.from_pretrained("x")
texts = pipe("a", guidance_scale=2.0).texts
"""
REVEALED = """reveal_type(pipe)
reveal_type(texts)
reveal_type(pipe.__call__)
reveal_type(pipe.stream)
pipe("a", guidance_scal=2.0)
pipe.stream("a", guidance_scal=2.0)
"""


@pytest.fixture(scope="module")
def remarks(tmp_path_factory):
    """`{line: message}` of pyright, as an editor shows them."""
    pytest.importorskip("pyright")
    package = Path(text_diffusers.__file__).parent
    if not Path(package, "pipelines").is_dir():
        pytest.skip(
            "pyright sees files only: install with `--config-settings editable_mode=strict`"
        )
    folder = tmp_path_factory.mktemp("user")
    Path(folder, "program.py").write_text(PROGRAM + REVEALED, encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run([*command, "program.py"], cwd=folder, capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not start: {done.stderr[-200:]}")
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    return {remark["range"]["start"]["line"] + 1: remark["message"] for remark in diagnostics}


def test_a_program_of_three_lines_is_clean(remarks):
    assert min(remarks) > PROGRAM.count("\n"), remarks


def test_types_are_known(remarks):
    assert remarks[4] == 'Type of "pipe" is "TextDiffusionPipeline"'
    assert "list[str]" in remarks[5]


def test_stream_takes_what_a_call_takes(remarks):
    call, stream = (re.search(r'"(\(.*\)) -> (.*)"$', remarks[line]).groups() for line in (6, 7))
    assert call[0] == stream[0]
    assert "guidance_scale: float | list[float]" in call[0]
    assert call[1] == "TextDiffusionPipelineOutput"
    assert stream[1] == "Iterator[list[str]]"


@pytest.mark.parametrize("line", [8, 9])
def test_a_misspelt_argument_is_an_error(remarks, line):
    assert remarks[line] == 'No parameter named "guidance_scal"'
