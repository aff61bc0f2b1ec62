"""A pipeline as the Space sees it: what it writes on, what it can be asked for, and by which names."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipeline
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm_guided import GuidedDiffusionLMPipeline
from text_diffusers.pipelines.text_batch import encode_prompts
from text_diffusers.pipelines.text_diffusion.pipeline_text_block_diffusion import TextBlockDiffusionPipeline
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion_cfg import TextDiffusionCFGPipeline
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline
from text_diffusers.samplers import PARAPHRASES, SCHEDULERS, Sampler, current_sampler, samplers_for, with_sampler
from text_diffusers.space.limits import Limits, Refusal

ENDS_AROUND = 2  # a start and an end token


@dataclass
class Served:
    """A pipeline with what the page needs to know of it.

    Raises:
        ValueError: if it is not a pipeline that writes texts of its own, as those of paraphrases do not.
    """

    pipe: Any
    title: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        writes = isinstance(self.pipe, (TextDiffusionPipeline, TwoLevelVQDiffusionPipeline))
        if not writes or isinstance(self.pipe, PARAPHRASES):
            raise ValueError(
                "`pipe` must be a pipeline over tokens, word embeddings or codes that writes without a source, got "
                f"{type(self.pipe).__name__}."
            )

    @property
    def kind(self) -> str:
        """What the model writes on: "tokens", "blocks" of them, "embeddings" or "codes"."""
        if isinstance(self.pipe, TwoLevelVQDiffusionPipeline):
            return "codes"
        if isinstance(self.pipe, DiffusionLMPipeline):
            return "embeddings"
        return "blocks" if isinstance(self.pipe, TextBlockDiffusionPipeline) else "tokens"

    @property
    def masked_lm(self) -> bool:
        return self.kind == "tokens" and is_masked_lm(self.pipe.denoiser)

    @cached_property
    def samplers(self) -> dict[str, Sampler]:
        return samplers_for(self.pipe)

    @property
    def sampler(self) -> str:
        """The name of the pipeline's own sampler, or of the first that fits it."""
        return current_sampler(self.pipe) or next(iter(self.samplers))

    @property
    def shaped(self) -> bool:
        """Whether temperature means anything to the samplers."""
        return any("temperature" in sampler.settings for sampler in self.samplers.values())

    @property
    def longest(self) -> int:
        """The most tokens that may be asked for."""
        if self.kind == "codes":
            pipe = self.pipe
            rows = pipe.autoencoder.config.patch_length * pipe.fine_denoiser.config.max_length
            return min(self.limits.length, rows)
        return max(1, min(self.limits.length, self.pipe._max_length - ENDS_AROUND))

    @property
    def most_steps(self) -> int:
        schedulers = [getattr(self.pipe, name, None) for name in SCHEDULERS]
        trained = [scheduler.config.get("num_train_timesteps") for scheduler in schedulers if scheduler is not None]
        return min([self.limits.steps, *(steps for steps in trained if steps)])

    @property
    def labels(self) -> list[str | None]:
        """The names of the labels, `None` where one has no name; empty without labels."""
        count = 0 if self.kind == "codes" else getattr(self.pipe.denoiser.config, "num_classes", None) or 0
        names = self.pipe.config.get("label_names") or []
        return [names[label] if label < len(names) else None for label in range(count)]

    def with_sampler(self, name: str, temperature: float | None = None) -> Any:
        """The pipeline with another sampler, at a temperature if the sampler has one; the progress bar is off."""
        takes = temperature is not None and "temperature" in self.samplers[name].settings
        pipe = with_sampler(self.pipe, name, **({"temperature": temperature} if takes else {}))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def controlled(self, pipe: Any) -> Any:
        """The same models in the pipeline that takes guidance and controls."""
        cls = GuidedDiffusionLMPipeline if self.kind == "embeddings" else TextDiffusionCFGPipeline
        if not isinstance(pipe, cls):
            pipe = cls(**pipe.components, lengths=pipe.config.lengths)
            pipe.set_progress_bar_config(disable=True)
        return pipe

    def request(self, field: str, prompt: str, length: int) -> dict[str, Any]:
        """Arguments of a pipeline for a text that begins with `prompt`, a length of 0 being left to the model."""
        if self.masked_lm and not length:
            raise Refusal("error.length")
        asked: dict[str, Any] = {"max_new_tokens": length} if length else {}
        if not prompt:
            return asked
        try:
            known = len(encode_prompts(self.pipe.tokenizer, [prompt])[0])
        except ValueError as error:
            raise Refusal("error.mask", field=field, mask=self.pipe.tokenizer.mask_token) from error
        room = self.pipe._max_length - known - (ENDS_AROUND - 1)
        if room < 1:
            raise Refusal("error.tokens", field=field, limit=self.pipe._max_length - ENDS_AROUND, got=known - 1)
        return asked | {"prompt": prompt} | ({"max_new_tokens": min(length, room)} if length else {})
