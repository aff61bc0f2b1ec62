"""Options of benchmarks/two_level.py, and which cells of its table they ask for."""

from dataclasses import dataclass, field

from text_diffusers.evaluation.text_metrics import JUDGES

TWO_LEVEL, ONE_LEVEL, TOKENS = SYSTEMS = ("two-level", "one-level", "tokens")
STAGES = ("all", "train", "write", "report")
WRITTEN, ORACLE, SHUFFLED, UNTOLD = PLANS = ("written", "oracle", "shuffled", "untold")


@dataclass
class TwoLevelConfig:
    output_dir: str = field(default="runs/two_level_benchmark", metadata={"help": "folder of models and texts"})
    stage: str = field(default="all", metadata={"help": f"{', '.join(STAGES)}: what to do of what is not done"})
    systems: list[str] = field(default_factory=lambda: list(SYSTEMS), metadata={"help": "that are trained and write"})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "of weights, order and noise"})
    dataset: str = field(default="austen_and_speeches", metadata={"help": "name of a corpus, or a file of texts"})
    judge_dataset: str | None = field(
        default=None, metadata={"help": "file of other texts, each with a label; default: the corpus's judge part"}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "share of the texts, the last, held out"})
    train_minutes: float = field(default=30.0, metadata={"help": "of each system and seed, all its parts together"})
    autoencoder_share: float = field(default=0.45, metadata={"help": "of these minutes, for the autoencoder"})
    coarse_share: float = field(default=0.3, metadata={"help": "of those of both denoisers, for the coarse one"})
    max_train_steps: int = field(default=1_000_000, metadata={"help": "of each part, if minutes do not end it"})
    train_batch_size: int = field(default=2, metadata={"help": "rows in a step of the token model"})
    fine_batch_size: int = field(default=4, metadata={"help": "rows in a step of fine codes"})
    coarse_batch_size: int = field(default=32, metadata={"help": "rows in a step of coarse codes"})
    autoencoder_batch_size: int = field(default=16, metadata={"help": "windows in a step of an autoencoder"})
    learning_rate: float = field(default=1e-3, metadata={"help": "peak, of all parts but autoencoders"})
    lr_warmup_steps: int = field(default=50, metadata={"help": "linear warm-up; a cosine to 0 follows"})
    ema_decay: float = field(default=0.995, metadata={"help": "of the averaged weights of the denoisers"})
    checkpointing_steps: int = field(default=200, metadata={"help": "between checkpoints, from which runs go on"})
    vocab_size: int = field(default=2_048, metadata={"help": "tokens of the tokenizer that all share"})
    length: int = field(default=1_024, metadata={"help": "tokens in a row"})
    min_length: int | None = field(default=128, metadata={"help": "of the parts of rows that are learned too"})
    patch_length: int = field(default=2, metadata={"help": "tokens of a fine code"})
    coarse_ratio: int = field(default=4, metadata={"help": "fine codes of a coarse one"})
    window_length: int = field(default=128, metadata={"help": "tokens that an autoencoder reads together"})
    num_fine_codes: int = field(default=1_024, metadata={"help": "size of the fine codebook"})
    num_coarse_codes: int = field(default=256, metadata={"help": "size of the coarse codebook"})
    hidden_size: int = field(default=128, metadata={"help": "width of autoencoders and of the two-level denoisers"})
    num_layers: int = field(default=4, metadata={"help": "blocks of each of the two-level denoisers"})
    baseline_layers: int = field(default=6, metadata={"help": "blocks of a baseline's denoiser; its width is matched"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads of all"})
    lengths: list[int] = field(default_factory=lambda: [128, 256, 512, 1_024], metadata={"help": "tokens of texts"})
    budgets: list[int] = field(default_factory=lambda: [2, 4, 8, 16], metadata={"help": "forwards of the token model"})
    coarse_forwards: float = field(default=0.5, metadata={"help": "share of equal forwards that writes the plan"})
    coarse_flops: float = field(default=0.3, metadata={"help": "share of equal FLOPs that writes the plan"})
    num_texts: int = field(default=64, metadata={"help": "in a cell of the shortest texts; fewer of longer ones"})
    least_texts: int = field(default=8, metadata={"help": "in a cell of longer texts, at least"})
    batch_tokens: int = field(default=4_096, metadata={"help": "written at once"})
    sampler: str | None = field(default=None, metadata={"help": "scheduler class of all levels; default: as trained"})
    temperature: float = field(default=1.0, metadata={"help": "of all schedulers"})
    top_p: float | None = field(default=None, metadata={"help": "of all schedulers"})
    window_tokens: int = field(default=64, metadata={"help": "of real text, as many words has a window"})
    judge: str = field(default="smollm2", metadata={"help": f"of generative perplexity: {', '.join(JUDGES)} or none"})
    judge_cache: str | None = field(default=None, metadata={"help": "folder of the converted judge"})
    judge_texts: int = field(default=4, metadata={"help": "of a cell, whose generative perplexity is taken"})
    judge_tokens: int = field(default=128, metadata={"help": "of such a text, at most"})
    picture: str | None = field(default=None, metadata={"help": "default: two_level.png in `output_dir`"})

    def __post_init__(self):
        known = {"stage": STAGES, "judge": (*JUDGES, "none")}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"`{name}` must be one of {list(values)}, got {getattr(self, name)!r}.")
        if not self.systems or not set(self.systems) <= set(SYSTEMS):
            raise ValueError(f"`systems` must be among {list(SYSTEMS)}, got {self.systems!r}.")
        for name in ("train_minutes", "num_texts", "least_texts", "batch_tokens", "window_tokens", "judge_texts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)!r}.")
        for name in ("autoencoder_share", "coarse_share", "coarse_forwards", "coarse_flops"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)!r}.")
        if not self.budgets or min(self.budgets) < 2:
            raise ValueError(f"`budgets` must be of at least 2 forwards, one a level, got {self.budgets!r}.")
        if not self.lengths or max(self.lengths) > self.length:
            raise ValueError(f"`lengths` must be at most `length`={self.length}, got {self.lengths!r}.")

    def texts_of(self, length: int) -> int:
        """How many texts of so many tokens are in a cell."""
        most = self.num_texts * min(self.lengths) // length
        return min(self.num_texts, max(self.least_texts, most))

    @property
    def ablation_budget(self) -> int:
        """Forwards of the ablations: 8, or the most."""
        return 8 if 8 in self.budgets else max(self.budgets)


@dataclass(frozen=True)
class Steps:
    """Of a call: `fine` are those of the only denoiser where there is one."""

    fine: int
    coarse: int = 0

    def __str__(self) -> str:
        return f"{self.coarse}+{self.fine}" if self.coarse else str(self.fine)


@dataclass(frozen=True)
class Cell:
    """Texts of one system and seed; `plan` says what its fine codes are told."""

    system: str
    seed: int
    length: int
    steps: Steps
    plan: str = WRITTEN

    @property
    def file_name(self) -> str:
        return f"{self.system}-seed{self.seed}-{self.length}-{self.steps}-{self.plan}.json"


def split_forwards(system: str, forwards: int, options: TwoLevelConfig) -> Steps:
    """The steps of so many forwards; of two levels both take at least one."""
    if system != TWO_LEVEL:
        return Steps(forwards)
    coarse = min(forwards - 1, max(1, round(options.coarse_forwards * forwards)))
    return Steps(forwards - coarse, coarse)


@dataclass(frozen=True)
class Cost:
    """FLOPs of a text: `fixed`, and of each step of a level; never less than what a call takes."""

    fixed: int
    fine: int
    coarse: int = 0

    def of(self, steps: Steps) -> int:
        return self.fixed + self.fine * steps.fine + self.coarse * steps.coarse


def fitting_steps(cost: Cost, flops: int, fine_codes: int, coarse_codes: int, coarse_share: float) -> Steps | None:
    """As many steps as fit into so many FLOPs, but no more of a level than it has codes; None if nothing fits.

    Of what the fixed part leaves, `coarse_share` at most is spent on coarse steps, and more only for their first.
    """
    left, coarse = flops - cost.fixed, 0
    if cost.coarse:
        coarse = min(coarse_codes, max(1, int(coarse_share * left / cost.coarse)))
        left -= coarse * cost.coarse
    fine = min(fine_codes, left // cost.fine)
    return Steps(int(fine), coarse) if fine >= 1 else None
