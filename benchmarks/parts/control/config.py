"""Options of benchmarks/control.py."""

from dataclasses import dataclass

from parts.common.options import BenchmarkOptions, check_judge_dataset, free_option
from text_diffusers.common.validation import require
from text_diffusers.training.config import option

# Nouns and adjectives, each in at least 500 of 134,314 sentences of "movie_reviews".
FREQUENT_WORDS = (
    "story characters acting plot actors director scenes music people life love family action comedy horror funny "
    "great real old young big little long short bad good beautiful money war world man woman house ending script "
    "dialogue time book friends"
).split()


@dataclass
class ControlConfig(BenchmarkOptions):
    """Options of the measurement of controls."""

    output_dir: str = free_option("runs/control", "folder of finished texts, and of the report")

    # The models; files of finished texts name theirs, so that they may change between runs.
    model: str | None = free_option(
        "runs/sentiment",
        "folder of a pipeline over tokens, trained with labels; of any model: none",
    )
    classifier: str | None = free_option(
        "runs/classifier", "folder of a noise-aware classifier for it"
    )
    clean_classifier: str | None = free_option(
        None, "folder of any classifier of clean text; default: the noise-aware one"
    )
    tagger: str | None = free_option("runs/tagger", "folder of a classifier of its tokens")
    embedding_model: str | None = free_option(None, "folder of a DiffusionLMPipeline")
    embedding_classifier: str | None = free_option(
        None, "folder of a noise-aware classifier of its embeddings"
    )

    # How texts are written
    scales: list[float] = free_option([0, 1, 2, 3, 5], "of guidance")
    num_texts: int = option(200, "texts of each control and scale")
    num_inference_steps: int = option(32, "steps that write a text", limit="at least 1")
    batch_size: int = free_option(
        50, "texts at a time; the texts do not depend on it", limit="at least 1"
    )
    temperature: float | None = option(None, "of the token scheduler; default: the model's")
    top_p: float | None = option(None, "of the token scheduler; default: the model's")

    # What is asked of them
    words: list[str] = option(FREQUENT_WORDS, "of which texts must hold some; at least two")
    shortest: int = option(6, "tokens of the shortest text that is asked for", limit="at least 1")
    longest: int = option(20, "tokens of the longest")

    # Texts of others
    dataset: str = option(
        "movie_reviews", "labelled texts: the judge is measured on the last; real texts"
    )
    num_tagged_texts: int = option(
        4000, "the first of `dataset`, in which the tagger tags each token", limit="at least 1"
    )
    judge_dataset: str | None = free_option(
        None,
        "labelled texts that no other model has seen; default: the judge's part of movie_reviews",
    )
    tagged_dataset: str | None = option(
        None, "words and tags that no other model has seen; default: the judge's part of Brown"
    )

    # Of the run
    seed: int = option(0, "of what is asked for, and of the noise: the same at all scales")
    num_cpu_threads: int | None = free_option(
        None, "torch threads; default: all", limit="at least 0"
    )

    def __post_init__(self):
        super().__post_init__()

        # A scale is a line of the table and a file of texts.
        differ = len(set(self.scales)) == len(self.scales) > 0
        require(
            differ and min(self.scales) >= 0,
            "scales",
            "different numbers of at least 0",
            self.scales,
        )

        # Texts have two labels, and self-BLEU compares them.
        require(self.num_texts >= 2, "num_texts", "at least 2", self.num_texts)
        require(
            self.longest >= self.shortest,
            "longest",
            f"at least `shortest`={self.shortest}",
            self.longest,
        )
        require(len(set(self.words)) >= 2, "words", "at least two", self.words)

        check_judge_dataset(self.judge_dataset, self.dataset)

    def model_folder(self, name: str) -> str | None:
        """The folder of a model, such as "tagger"; `None` if there is none."""
        folder = getattr(self, name)
        # A noise-aware classifier also knows clean text, which has no noise.
        if name == "clean_classifier" and folder is None:
            folder = self.classifier
        return None if folder == "none" else folder
