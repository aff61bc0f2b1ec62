"""Options of benchmarks/quality.py, and what the name of a model means."""

from dataclasses import dataclass, field

from text_diffusers.evaluation.text_metrics import JUDGES
from text_diffusers.kernels import KERNELS

GPT2, AUXILIARY = "gpt2", "_auxiliary"
MODELS = ["absorbing", "absorbing_auxiliary", "uniform", "uniform_auxiliary", "neighbors", "bit_flip"]
MODELS += [GPT2, "gpt2:3e-3"]


@dataclass
class QualityConfig:
    output_dir: str = field(default="runs/quality", metadata={"help": "folder of finished runs"})
    dataset: str = field(default="chitchat", metadata={"help": '"chitchat", or a file or folder of texts'})
    sample_by: str = field(default="paragraph", metadata={"help": "a text in a .txt file: line, paragraph, document"})
    characters: bool = field(default=False, metadata={"help": "tokens are characters"})
    models: list[str] = field(default_factory=lambda: MODELS, metadata={"help": "see above"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights, order and noise"})
    cpu_minutes: float = field(default=3.0, metadata={"help": "of training steps, for each model and seed"})
    steps: int = field(default=64, metadata={"help": "in which a text is written"})
    num_samples: int = field(default=256, metadata={"help": "texts that are written"})
    num_times: int = field(default=2, metadata={"help": "random times a held-out row in the bound"})
    judge: str = field(default="smollm2", metadata={"help": f"of generative perplexity: {', '.join(JUDGES)} or none"})
    judge_cache: str | None = field(default=None, metadata={"help": "folder of the converted judge"})
    equal_parameters: bool = field(default=True, metadata={"help": "of all models; see above"})
    reverse_rule: str = field(default="plug_in", metadata={"help": "of all kernels but absorbing, or marginal"})
    init_embeddings: str = field(default="cooccurrence", metadata={"help": "cooccurrence or random, for all models"})
    gpt2_init: str = field(default="stock", metadata={"help": "stock: transformers' weights; project: the denoiser's"})
    vocab_size: int = field(default=2_048, metadata={"help": "of a trained tokenizer; not of characters"})
    length: int | None = field(default=None, metadata={"help": "tokens in a row; default: 64, of characters 256"})
    hidden_size: int = field(default=128, metadata={"help": "width"})
    num_layers: int = field(default=4, metadata={"help": "blocks"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    train_batch_size: int = field(default=8, metadata={"help": "rows in a step"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, of models that name none"})
    lr_warmup_steps: int = field(default=50, metadata={"help": "linear warm-up; a cosine to 0 follows"})
    ema_decay: float = field(default=0.995, metadata={"help": "of the averaged weights, which are evaluated"})
    report: bool = field(default=False, metadata={"help": "only print the table and draw the picture"})
    picture: str | None = field(default=None, metadata={"help": "default: quality.png in `output_dir`"})

    def __post_init__(self):
        self.length = self.length or (256 if self.characters else 64)
        if self.characters and self.dataset == "chitchat":
            raise ValueError("`characters` needs a `dataset` that is a file or a folder, got 'chitchat'.")
        for name in ("cpu_minutes", "steps", "num_samples", "num_times"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        for name, known in (("judge", [*JUDGES, "none"]), ("gpt2_init", ["project", "stock"])):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {getattr(self, name)!r}.")
        for model in self.models:
            ModelSpec.parse(model, self)


@dataclass(frozen=True)
class ModelSpec:
    """What the name of a model says."""

    name: str
    kernel: str
    auxiliary_weight: float
    learning_rate: float

    @classmethod
    def parse(cls, name: str, options: QualityConfig) -> "ModelSpec":
        """From `kernel`, `kernel_auxiliary` or `gpt2`, each with an optional `:learning_rate`."""
        model, _, rate = name.partition(":")
        kernel = model.removesuffix(AUXILIARY)
        if kernel not in (*KERNELS, GPT2) or model == GPT2 + AUXILIARY:
            raise ValueError(f"`models` must be among {[*KERNELS, GPT2]}, {AUXILIARY!r} after a kernel, got {name!r}.")
        weight = 0.01 if model.endswith(AUXILIARY) else 0.0
        return cls(name, kernel, weight, float(rate or options.learning_rate))

    @property
    def file_name(self) -> str:
        return self.name.replace(":", "-lr")
