"""The command line of benchmarks: the options of all long ones, and the errors of a user as messages."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from parts.common.texts import PerplexityJudge
from text_diffusers.evaluation.text_metrics import JUDGES
from text_diffusers.training.config import OptionParser, check_options, option

# An option on which no finished result depends, so that a later run in the same folder may have another value.
free_option = partial(option, may_change_on_resume=True)


@dataclass
class BenchmarkOptions:
    """Options of all long benchmarks; those of a benchmark extend it.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = free_option(help="folder of finished runs and of the report")

    # Texts are judged after they are written, so they do not depend on these.
    judge: str = free_option(
        "smollm2",
        f"of generative perplexity: {', '.join(JUDGES)} or none",
        one_of=(*JUDGES, "none"),
    )
    judge_cache: str | None = free_option(None, "folder of the converted judge")
    picture: str | None = free_option(None, "file of the picture; default: in `output_dir`")

    def __post_init__(self):
        check_options(self)

    @property
    def folder(self) -> Path:
        return Path(self.output_dir)

    def perplexity_judge(self, load: bool = False) -> PerplexityJudge | None:
        """The judge of generative perplexity, which loads now or at its first use; None if there is to be none."""
        if self.judge == "none":
            return None

        # A long benchmark loads it first: a missing package is then an error before the training, not after it.
        judge = PerplexityJudge(self.judge, self.judge_cache)
        if load:
            judge.load()
        return judge


def check_judge_dataset(judge_dataset: str | None, dataset: str):
    """Refuse labelled texts without others for their judge: "movie_reviews" alone has a part that is kept for it."""
    if judge_dataset is None and dataset != "movie_reviews":
        raise ValueError(f"`judge_dataset` must be given with `dataset`={dataset!r}.")


class ManualFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Formatter of `--help` that shows the docstring of the script, lines as written, and the defaults."""


def run(main: Callable[[Any], Any], parser: OptionParser):
    """Run a benchmark with the options of the command line; errors of its user are messages without a traceback."""
    parser.formatter_class = ManualFormatter
    try:
        main(parser.parse_args_into_dataclasses()[0])
    # All of these name an option, a file or a package; other errors are ours, and keep their traceback.
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
