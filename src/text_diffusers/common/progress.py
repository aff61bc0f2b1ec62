"""Progress of long work: a bar in a terminal or notebook, and in a log a line every so often."""

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as text_tqdm

# Seconds between lines in a log: they double from the first to the last
FIRST_INTERVAL = 0.1
LONGEST_INTERVAL = 30.0

WITH_TOTAL = (
    "{desc}{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
)
WITHOUT_TOTAL = "{desc}{n_fmt} {unit} [{elapsed}, {rate_fmt}{postfix}]"


def progress_bar(iterable: Iterable[Any] | None = None, **settings: Any) -> Any:
    """A bar of tqdm in a terminal or notebook, and elsewhere its `ProgressLines`; the arguments are those of tqdm.

    Example:
        >>> from text_diffusers.common.progress import progress_bar
        >>> [number for number in progress_bar(range(3), disable=True)]
        [0, 1, 2]
    """
    bar = tqdm if draws_over_lines(settings.get("file") or sys.stderr) else ProgressLines
    return bar(iterable, **settings)


def draws_over_lines(stream: Any) -> bool:
    """Whether a bar can be drawn again and again in one place, as it can in a terminal and in a notebook."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or (hasattr(stream, "isatty") and stream.isatty())


def print_beside_bars(text: str):
    """Print a text above the bars there are, or between their lines."""
    if draws_over_lines(sys.stderr):
        tqdm.write(text)
    else:
        print(text)


class ProgressLines(text_tqdm):
    """A tqdm that writes its state on lines of their own: soon at first, later every `mininterval` seconds."""

    def __init__(self, iterable: Iterable[Any] | None = None, **settings: Any):
        self._longest_interval = settings.pop("mininterval", LONGEST_INTERVAL)
        self._interval = min(FIRST_INTERVAL, self._longest_interval)
        self._line_at = time.monotonic()
        self._line_of = None  # the count on the last line

        # Only time decides when a line is due. A short delay keeps tqdm from a first line before anything is done.
        settings = {"delay": 1e-9} | settings
        timing = {"mininterval": self._interval, "maxinterval": 0, "miniters": 1}
        super().__init__(iterable, **settings | timing)

    def display(self, msg: str | None = None, pos: int | None = None):
        """Write a line, if it is time for one."""
        if not self.disable and time.monotonic() - self._line_at >= self._interval:
            self._write_line()
            self._interval = min(2 * self._interval, self._longest_interval)

    def clear(self, nolock: bool = False):
        """Lines stay."""

    def close(self):
        """Write the last line."""
        if self.disable:
            return
        if self.leave and self.n != self._line_of:
            self._write_line()
        self.disable = True
        instances: Any = type(self)
        instances._decr_instances(self)

    def _write_line(self):
        layout = WITHOUT_TOTAL if self.total is None else WITH_TOTAL
        state = {**self.format_dict, "bar_format": layout, "ncols": None}
        # tqdm adds the colon to its own layouts only.
        name = state["prefix"].rstrip(": ")
        state["prefix"] = f"{name}: " if name else ""
        self.fp.write(self.format_meter(**state).strip() + "\n")
        self.fp.flush()
        self._line_at = time.monotonic()
        self._line_of = self.n
