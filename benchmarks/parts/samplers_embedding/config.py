"""Options of benchmarks/samplers_embedding.py."""

from dataclasses import dataclass

from parts.common.options import BenchmarkOptions
from text_diffusers.common.validation import require
from text_diffusers.training.config import option


@dataclass
class SamplersConfig(BenchmarkOptions):
    """Options of the comparison; a finished run is not repeated, even if they have changed."""

    # The model and its yardstick
    output_dir: str = option("runs/samplers_embedding", "folder of finished runs")
    model: str = option("runs/diffusion_lm", "folder of a trained DiffusionLMPipeline")
    dataset: str | None = option("chitchat", "whose last texts are the yardstick, or none")

    # What is written
    steps: list[int] = option([1000, 200, 50, 20, 10, 5], "the first is the reference")
    most_fast_steps: int = option(50, "of the samplers that are made for few steps")
    num_texts: int = option(48, "texts of each sampler and number of steps")
    num_words: int = option(256, "words of the source whose denoiser is exact")
    seed: int = option(0, "of the noise")

    # How it is written
    self_conditioning: bool = option(True, "off: the model never sees its last estimate")
    num_cpu_threads: int | None = option(None, "torch threads; default: all", limit="at least 0")

    def __post_init__(self):
        super().__post_init__()

        require(bool(self.steps) and min(self.steps) >= 1, "steps", "at least 1 each", self.steps)

        for name in ("num_texts", "num_words"):
            value = getattr(self, name)
            require(value >= 2, name, "at least 2", value)
