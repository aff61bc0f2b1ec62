"""A conversation in a terminal, or line by line through a pipe."""

import re
import sys
import time
from collections.abc import Iterator

import typer

from text_diffusers.cli.chat.conversation import Conversation
from text_diffusers.common.plain_text import call_tokenizer

# A token that is still to be written
OPEN = "\N{LIGHT SHADE}"

COMMANDS = "/clear begins anew, /system TEXT sets the instruction, /exit ends, Ctrl-C stops a reply"
COMMAND = re.compile(r"/[a-z]+")
PROMPT = "> "


def talk(conversation: Conversation):
    """Read turns and commands, and write the replies, until the input ends.

    In a terminal a turn that is refused is forgotten, and the next one is asked for; a script stops there.
    """
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        note(COMMANDS)
    for line in lines_of_input(PROMPT if is_terminal else ""):
        try:
            if is_command(line):
                if not obey(conversation, line):
                    return
            else:
                answer(conversation, line)
        except ValueError as error:
            if not is_terminal:
                raise
            note(str(error))


def lines_of_input(prompt: str) -> Iterator[str]:
    """Lines that are not empty, up to the end of the input."""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        # Ctrl-C drops a line that was begun; without a terminal it is for the whole program.
        except KeyboardInterrupt:
            if not prompt:
                raise
            typer.echo()
            continue
        if line:
            yield line


def is_command(line: str) -> bool:
    """Whether a line is a command; a path such as /usr/bin is none."""
    return COMMAND.fullmatch(line.split(maxsplit=1)[0]) is not None


def obey(conversation: Conversation, line: str) -> bool:
    """Carry a command out; whether the conversation goes on.

    Raises:
        ValueError: if there is no such command.
    """
    command, _, rest = line.partition(" ")
    if command == "/exit":
        return False
    if command == "/clear":
        conversation.clear()
    elif command == "/system":
        # Without a text there is no instruction any more.
        conversation.system = rest.strip() or None
    else:
        raise ValueError(f"There is no command {command}: {COMMANDS}.")
    return True


def answer(conversation: Conversation, content: str):
    """Write the reply to a turn, and how fast it was; Ctrl-C stops it."""
    start = time.perf_counter()
    try:
        reply, num_steps = show(conversation, content)
    except KeyboardInterrupt:
        note("stopped; the turn is forgotten")
        return

    seconds = time.perf_counter() - start
    num_tokens = len(call_tokenizer(conversation.tokenizer, reply)["input_ids"])
    note(
        f"{num_tokens} tokens in {num_steps} steps, {seconds:.1f} s, {num_tokens / seconds:.1f} tokens/s"
    )


def show(conversation: Conversation, content: str) -> tuple[str, int]:
    """Write a reply, in a terminal as it settles, and return it with the number of its steps."""
    reply = ""
    num_steps = 0
    states = conversation.reply(content)

    # In a file or a pipe nothing can change in place.
    if not sys.stdout.isatty():
        for state in states:
            reply = state
            num_steps += 1
        typer.echo(reply)
        return reply, num_steps

    # Only a terminal needs rich.
    from rich.live import Live
    from rich.text import Text

    mask = conversation.tokenizer.mask_token
    with Live(refresh_per_second=12) as live:
        for reply in states:
            num_steps += 1
            shown = Text(reply.replace(mask, OPEN))
            shown.highlight_regex(OPEN, "dim")
            live.update(shown)
    return reply, num_steps


def note(message: str):
    """A line about the conversation, which is no part of it."""
    typer.echo(typer.style(message, dim=True), err=True)
