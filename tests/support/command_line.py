"""The command line as tests call it, and the generators by which it writes."""

import torch
from typer.testing import CliRunner

from text_diffusers.cli import app as cli
from text_diffusers.cli.writer import text_seed


def run(*words, code=0, **options):
    result = CliRunner().invoke(cli.app, [str(word) for word in words], **options)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*words):
    """The one line on stderr of a command that is refused."""
    result = run(*words, code=2)
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("text-diffusers: ") and not result.stdout
    return lines[0]


def generators(count, seed=0, number=1):
    seeds = [text_seed(seed, place, copy) for place in range(count) for copy in range(number)]
    return [torch.Generator().manual_seed(value) for value in seeds]
