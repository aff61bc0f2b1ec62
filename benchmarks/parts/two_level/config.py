"""Options of benchmarks/two_level.py, and the names of its systems, stages and plans."""

from dataclasses import dataclass

from parts.common.options import BenchmarkOptions, free_option
from text_diffusers.common.validation import require
from text_diffusers.training.config import option

TWO_LEVEL = "two-level"
ONE_LEVEL = "one-level"
TOKENS = "tokens"
SYSTEMS = (TWO_LEVEL, ONE_LEVEL, TOKENS)
STAGES = ("all", "train", "write", "report")


@dataclass
class TwoLevelConfig(BenchmarkOptions):
    """Options of the comparison of two levels with one, and with a token model."""

    output_dir: str = free_option("runs/two_level_benchmark", "folder of models and texts")
    stage: str = free_option(
        "all", f"{', '.join(STAGES)}: what to do of what is not done", one_of=STAGES
    )

    # What is trained, and on what
    systems: list[str] = free_option(list(SYSTEMS), "that are trained and write")
    seeds: list[int] = free_option([0, 1, 2], "of weights, order and noise")
    dataset: str = option("austen_and_speeches", "name of a corpus, or a file of texts")
    judge_dataset: str | None = option(
        None, "file of other texts, each with a label; default: the corpus's judge part"
    )
    validation_fraction: float = option(0.1, "share of the texts, the last, held out")

    # Training
    train_minutes: float = option(
        30.0, "of each system and seed, all its parts together", limit="above 0"
    )
    autoencoder_share: float = option(0.45, "of these minutes, for the autoencoder")
    coarse_share: float = option(0.3, "of those of both denoisers, for the coarse one")
    max_train_steps: int = option(1_000_000, "of each part, if minutes do not end it")
    train_batch_size: int = option(2, "rows in a step of the token model")
    fine_batch_size: int = option(4, "rows in a step of fine codes")
    coarse_batch_size: int = option(32, "rows in a step of coarse codes")
    autoencoder_batch_size: int = option(16, "windows in a step of an autoencoder")
    learning_rate: float = option(1e-3, "peak, of all parts but autoencoders")
    lr_warmup_steps: int = option(50, "linear warm-up; a cosine to 0 follows")
    ema_decay: float = option(0.995, "of the averaged weights of the denoisers")
    checkpointing_steps: int = free_option(200, "between checkpoints, from which runs go on")

    # Sizes of what all systems share
    vocab_size: int = option(2_048, "tokens of the tokenizer that all share")
    length: int = option(1_024, "tokens in a row")
    min_length: int | None = option(128, "of the parts of rows that are learned too")

    # Codes
    patch_length: int = option(2, "tokens of a fine code")
    coarse_ratio: int = option(4, "fine codes of a coarse one")
    window_length: int = option(128, "tokens that an autoencoder reads together")
    num_fine_codes: int = option(1_024, "size of the fine codebook")
    num_coarse_codes: int = option(256, "size of the coarse codebook")

    # Networks
    hidden_size: int = option(128, "width of autoencoders and of the two-level denoisers")
    num_layers: int = option(4, "blocks of each of the two-level denoisers")
    baseline_layers: int = option(6, "blocks of a baseline's denoiser; its width is matched")
    num_attention_heads: int = option(4, "heads of all")

    # What is compared
    lengths: list[int] = option([128, 256, 512, 1_024], "tokens of texts")
    budgets: list[int] = free_option([2, 4, 8, 16], "forwards of the token model")
    coarse_forwards: float = free_option(0.5, "share of equal forwards that writes the plan")
    coarse_flops: float = free_option(0.3, "share of equal FLOPs that writes the plan")

    # Writing
    num_texts: int = option(
        64, "in a cell of the shortest texts; fewer of longer ones", limit="above 0"
    )
    least_texts: int = option(8, "in a cell of longer texts, at least", limit="above 0")
    batch_tokens: int = free_option(4_096, "written at once", limit="above 0")
    sampler: str | None = option(None, "scheduler class of all levels; default: as trained")
    temperature: float = option(1.0, "of all schedulers")
    top_p: float | None = option(None, "of all schedulers")

    # Judging
    window_tokens: int = free_option(
        64, "of real text, as many words has a window", limit="above 0"
    )
    judge_texts: int = free_option(
        4, "of a cell, whose generative perplexity is taken", limit="above 0"
    )
    judge_tokens: int = free_option(128, "of such a text, at most")

    def __post_init__(self):
        super().__post_init__()
        are_systems = bool(self.systems) and set(self.systems) <= set(SYSTEMS)
        require(are_systems, "systems", f"among {list(SYSTEMS)}", self.systems)

        for name in ("autoencoder_share", "coarse_share", "coarse_forwards", "coarse_flops"):
            share = getattr(self, name)
            require(0 < share < 1, name, "between 0 and 1", share)

        # Two levels need a forward each.
        enough = bool(self.budgets) and min(self.budgets) >= 2
        require(enough, "budgets", "of at least 2 forwards, one a level", self.budgets)

        # No model has learned positions beyond its rows.
        fit = bool(self.lengths) and max(self.lengths) <= self.length
        require(fit, "lengths", f"at most `length`={self.length}", self.lengths)

    def texts_of(self, length: int) -> int:
        """How many texts of so many tokens are in a cell: as many tokens, but not too few texts."""
        most = self.num_texts * min(self.lengths) // length
        return min(self.num_texts, max(self.least_texts, most))

    @property
    def ablation_budget(self) -> int:
        """Forwards of the ablations: 8, or the most."""
        return 8 if 8 in self.budgets else max(self.budgets)
