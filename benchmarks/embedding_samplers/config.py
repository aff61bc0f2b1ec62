"""Options of benchmarks/samplers_embedding.py."""

from dataclasses import dataclass, field

from text_diffusers.evaluation.text_metrics import JUDGES


@dataclass
class SamplersConfig:
    model: str = field(default="runs/diffusion_lm", metadata={"help": "folder of a trained DiffusionLMPipeline"})
    output_dir: str = field(default="runs/samplers_embedding", metadata={"help": "folder of finished runs"})
    dataset: str | None = field(default="chitchat", metadata={"help": "whose last texts are the yardstick, or none"})
    steps: list[int] = field(
        default_factory=lambda: [1000, 200, 50, 20, 10, 5], metadata={"help": "the first is the reference"}
    )
    most_fast_steps: int = field(default=50, metadata={"help": "of the samplers that are made for few steps"})
    num_texts: int = field(default=48, metadata={"help": "texts of each sampler and number of steps"})
    num_words: int = field(default=256, metadata={"help": "words of the source whose denoiser is exact"})
    seed: int = field(default=0, metadata={"help": "of the noise"})
    self_conditioning: bool = field(default=True, metadata={"help": "off: the model never sees its last estimate"})
    num_cpu_threads: int | None = field(default=None, metadata={"help": "torch threads; default: all"})
    judge: str = field(default="smollm2", metadata={"help": f"of generative perplexity: {', '.join(JUDGES)} or none"})
    judge_cache: str | None = field(default=None, metadata={"help": "folder of the converted judge"})
    picture: str | None = field(default=None, metadata={"help": "default: samplers.png in `output_dir`"})

    def __post_init__(self):
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"`steps` must be at least 1 each, got {self.steps!r}.")
        for name in ("num_texts", "num_words"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be at least 2, got {getattr(self, name)!r}.")
        if self.judge not in (*JUDGES, "none"):
            raise ValueError(f"`judge` must be one of {[*JUDGES, 'none']}, got {self.judge!r}.")
