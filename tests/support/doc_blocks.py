"""The code blocks of the pages, what they print, and whether the programs that they name take their words.

`python tests/support/doc_blocks.py PAGE ...`, started in a folder with the models that the blocks open, runs the
blocks of the pages and writes below each what it prints now, where a page shows its output.
"""

import argparse
import ast
import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer
from accelerate.commands.launch import launch_command_parser
from diffusers.utils import logging
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from text_diffusers.cli.app import app
from text_diffusers.cli.train import recipes
from text_diffusers.training.config import OptionParser

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
# A block, and the block of text after it that shows what it prints
FENCE = re.compile(
    r"^( *)```(\w*)\n(.*?)^\1```$(?:\n\n\1```text\n(.*?)^\1```$)?", flags=re.MULTILINE | re.DOTALL
)
COMMANDS = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
# Commands that tests run; all others are only parsed.
RUN_HERE = ("generate", "infill", "corrupt", "evaluate", "convert", "env", "--version")
SHELL = ("printf", "cat")
# First words of other programs
OTHERS = {
    "tensorboard": ["--logdir"],
    "hf": ["auth", "download"],
    "make": [],
    "pip": ["install"],
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the page says that it prints, if it does."""

    page: Path
    place: int
    language: str
    code: str
    shown: str | None

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}-{self.place}"

    @property
    def models(self) -> list[str]:
        """Folders of models that it opens or makes."""
        return re.findall(r"\bruns/\w+", self.code)


def blocks_of(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, in their order."""
    blocks = []
    for place, match in enumerate(FENCE.finditer(page.read_text(encoding="utf-8"))):
        indent, language, code, shown = match.groups()
        if language in languages:
            shown = None if shown is None else without_indent(shown, indent)
            blocks.append(Block(page, place, language, without_indent(code, indent), shown))
    return blocks


def without_indent(text: str, indent: str) -> str:
    return re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands_of(block: Block) -> list[list[str]]:
    """The words of each command of a shell block, without comments, variables and dots for more."""
    commands = []
    for line in lines_of(block):
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        if words:
            commands.append(words)
    return commands


def lines_of(block: Block) -> list[str]:
    """The lines of a shell block, each command on one of its own."""
    return block.code.replace("\\\n", " ").splitlines()


def run_python(code: str) -> str:
    """What a block prints."""
    logging.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "page", "exec"), {"__name__": "page"})
    return printed.getvalue()


def run_shell(block: Block) -> str | None:
    """What the commands of a block print; None if one of them is not to be run here."""
    lines = [line for line in lines_of(block) if line.strip()]
    commands = commands_of(block)
    if not all(is_run_here(words) for words in commands) or len(commands) != len(lines):
        return None

    printed = []
    for line, words in zip(lines, commands, strict=True):
        if words[0] in SHELL:
            done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
            printed.append(done.stdout)
        else:
            result = CliRunner().invoke(app, words[1:], prog_name=words[0])
            assert result.exit_code in (0, 2), result.output
            printed.append(result.output)
    return "".join(printed)


def is_run_here(words: list[str]) -> bool:
    if words[0] in SHELL:
        return True
    is_command = words[0] == "text-diffusers" and len(words) > 1
    if words == ["text-diffusers", "train"]:
        return True
    return is_command and (words[1] in RUN_HERE or "--dry-run" in words)


def is_settled(block: Block) -> bool:
    """Whether a block prints the same everywhere: it opens the shipped model, and does not ask for the machine."""
    of_machine = ("text-diffusers env", "text-diffusers --version")
    return not block.models and not any(command in block.code for command in of_machine)


class Parsed(BaseException):
    """A script has read its command line."""


def check_command(words: list[str]):
    """Refuse a command whose program is not there or does not take its words.

    Raises:
        AssertionError, SystemExit: if so.
    """
    program = words[0]
    arguments = words[1:]
    if program == "accelerate":
        assert arguments[0] == "launch", words
        options = launch_command_parser().parse_args(arguments[1:])
        module = ["-m"] if options.module else []
        check_python([*module, options.training_script, *options.training_script_args])
        if options.config_file is not None:
            assert (ROOT / options.config_file).is_file(), options.config_file
    elif program == "torchrun":
        options = get_args_parser().parse_args(arguments)
        check_python([options.training_script, *options.training_script_args])
    elif program in ("python", "python3"):
        check_python(arguments)
    elif words[:2] == ["text-diffusers", "train"] and len(words) > 2:
        # The options are those of the script.
        check_python([f"training_scripts/{recipes()[words[2]].name}", *words[3:]])
    elif words == ["text-diffusers", "--version"]:
        pass
    elif program == "text-diffusers":
        COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
    elif program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), words
    elif program == "pip":
        check_install(words)
    elif program not in SHELL:
        first_words = OTHERS.get(program, [])
        assert arguments[:1] == [] == first_words or arguments[0] in first_words, words


def check_install(words: list[str]):
    packaging = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = {*re.findall(r'^    "(\w+)": \[', packaging, flags=re.MULTILINE), "all"}
    assert words[1] == "install", words
    for word in words:
        for names in re.findall(r"\[(.*?)\]", word):
            assert set(names.split(",")) <= extras, words
    if "-c" in words:
        assert (ROOT / words[words.index("-c") + 1]).is_file(), words


def check_python(words: list[str]):
    """Let a script read its command line, and no more."""
    if words[:2] == ["-m", "text_diffusers.cli"]:
        return check_command(["text-diffusers", *words[2:]])
    script = ROOT / words[0]
    assert script.is_file(), script
    if not re.search(
        r"Parser\(|run\(main, ", script.read_text(encoding="utf-8")
    ):  # takes no options
        assert not any(word.startswith("-") for word in words[1:]), words
        return

    def then_stop(parse: Any):
        def stopping(*arguments: Any, **options: Any):
            parse(*arguments, **options)
            raise Parsed

        return stopping

    parsers = {
        argparse.ArgumentParser: "parse_args",
        OptionParser: "parse_args_into_dataclasses",
    }
    with contextlib.ExitStack() as stack:
        for parser, name in parsers.items():
            stack.enter_context(patch.object(parser, name, then_stop(getattr(parser, name))))
        stack.enter_context(patch.object(sys, "argv", [str(script), *words[1:]]))
        stack.enter_context(patch.object(sys, "path", [str(script.parent), *sys.path]))
        with contextlib.suppress(Parsed):
            runpy.run_path(str(script), run_name="__main__")
            raise AssertionError(f"{script} read no command line")


def without_words(block: Block) -> Any:
    """A block without what a translation may change: comments, and texts in quotes."""
    if block.language not in ("python", "py"):
        quoted = re.sub(r"\"[^\"]*\"|'[^']*'", "''", block.code).replace("\\\n", " ")
        return [shlex.split(line, comments=True) for line in quoted.splitlines() if line.strip()]

    tree = ast.parse(block.code)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and not node.value.isidentifier():
            node.value = ""
    return ast.dump(tree)


def refresh(page: Path):
    """Write what the blocks of a page print now below those that show it, if the models that they open are there."""
    text = page.read_text(encoding="utf-8")
    for block in blocks_of(page, "python", "bash"):
        if block.shown is None or not all(Path(model).exists() for model in block.models):
            continue
        printed = run_python(block.code) if block.language == "python" else run_shell(block)
        if printed is not None:
            fence = f"```{block.language}\n{block.code}```\n\n```text\n"
            text = text.replace(f"{fence}{block.shown}```", f"{fence}{tidy(printed)}\n```")
            page.write_text(text, encoding="utf-8")


def tidy(printed: str) -> str:
    """Without the blanks at the ends of lines, which editors take away."""
    return "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    for argument in sys.argv[1:]:
        refresh(Path(argument).resolve())
