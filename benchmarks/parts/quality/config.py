"""Options of benchmarks/quality.py, and what the name of a model means."""

from dataclasses import dataclass

from parts.common.options import BenchmarkOptions, free_option
from text_diffusers.common.validation import require
from text_diffusers.kernels import KERNELS
from text_diffusers.training.config import option

GPT2 = "gpt2"
# After the name of a kernel: with D3PM's auxiliary cross-entropy, of this weight.
AUXILIARY = "_auxiliary"
AUXILIARY_WEIGHT = 0.01
MODELS = [
    "absorbing",
    "absorbing_auxiliary",
    "uniform",
    "uniform_auxiliary",
    "neighbors",
    "bit_flip",
    "hierarchical",
    GPT2,
    "gpt2:3e-3",
]


@dataclass
class QualityConfig(BenchmarkOptions):
    """Options of the comparison of kernels with GPT-2."""

    output_dir: str = free_option("runs/quality", "folder of finished runs")

    # The text
    dataset: str = option("chitchat", '"chitchat", or a file or folder of texts')
    sample_by: str = option("paragraph", "a text in a .txt file: line, paragraph, document")
    characters: bool = option(False, "tokens are characters")

    # The comparison
    models: list[str] = free_option(MODELS, "see above")
    seeds: list[int] = free_option([0, 1, 2], "of weights, order and noise")
    cpu_minutes: float = option(3.0, "of training steps, for each model and seed", limit="above 0")
    steps: int = option(64, "in which a text is written", limit="above 0")
    num_samples: int = option(256, "texts that are written", limit="above 0")
    num_times: int = option(2, "random times a held-out row in the bound", limit="above 0")

    # What is equal in all models
    equal_parameters: bool = option(True, "of all models; see above")
    reverse_rule: str = option("plug_in", "of all kernels but absorbing, or marginal")
    num_clusters: int = option(64, "of the hierarchical kernel")
    cluster_power: float = option(2.0, "of the hierarchical kernel")
    init_embeddings: str = option("cooccurrence", "cooccurrence or random, for all models")
    gpt2_init: str = option(
        "stock",
        "stock: transformers' weights; project: the denoiser's",
        one_of=("project", "stock"),
    )
    vocab_size: int = option(2_048, "of a trained tokenizer; not of characters")
    length: int | None = option(None, "tokens in a row; default: 64, of characters 256")

    # Size and training, those of the recipe
    hidden_size: int = option(128, "width")
    num_layers: int = option(4, "blocks")
    num_attention_heads: int = option(4, "heads")
    train_batch_size: int = option(8, "rows in a step")
    learning_rate: float = option(1e-3, "peak, of models that name none")
    lr_warmup_steps: int = option(50, "linear warm-up; a cosine to 0 follows")
    ema_decay: float = option(0.995, "of the averaged weights, which are evaluated")

    report: bool = free_option(False, "only print the table and draw the picture")

    def __post_init__(self):
        super().__post_init__()

        # A word piece has about four characters.
        self.length = self.length or (256 if self.characters else 64)
        if self.characters and self.dataset == "chitchat":
            raise ValueError(
                "`characters` needs a `dataset` that is a file or a folder, got 'chitchat'."
            )

        # A wrong name is an error now, and not after the models before it.
        for model in self.models:
            ModelSpec.parse(model, self.learning_rate)


@dataclass(frozen=True)
class ModelSpec:
    """A model of the comparison, as its name describes it.

    Example:
        >>> ModelSpec.parse("uniform_auxiliary:3e-3", default_rate=1e-3)
        ModelSpec(name='uniform_auxiliary:3e-3', kernel='uniform', auxiliary_weight=0.01, learning_rate=0.003)
    """

    name: str
    kernel: str
    auxiliary_weight: float
    learning_rate: float

    @classmethod
    def parse(cls, name: str, default_rate: float) -> "ModelSpec":
        """From `kernel`, `kernel_auxiliary` or `gpt2`, each with an optional `:learning_rate`.

        Raises:
            ValueError: if there is no such model.
        """
        model, _, rate = name.partition(":")
        kernel = model.removesuffix(AUXILIARY)
        exists = kernel in KERNELS or model == GPT2
        require(exists, "models", f"among {[*KERNELS, GPT2]}, {AUXILIARY!r} after a kernel", name)

        weight = AUXILIARY_WEIGHT if model != kernel else 0.0
        return cls(name, kernel, weight, float(rate or default_rate))

    @property
    def file_name(self) -> str:
        """The name without a colon, which not all file systems take."""
        return self.name.replace(":", "-lr")
