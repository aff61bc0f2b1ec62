"""The errors that the pages of the pipelines speak of, from models that are not asked to write anything."""

from typing import Any

import torch
from diffusers import DDIMScheduler

from text_diffusers import (
    ConfidenceScheduler,
    ParaGuidePipeline,
    TextBlockDiffusionPipeline,
    TextDiffusionCFGPipeline,
    TextDiffusionPipeline,
    TokenParaGuidePipeline,
)
from text_diffusers.guidance.classifiers import ClassifierGuidance
from text_diffusers.guidance.controls import LengthControl
from text_diffusers.samplers import with_sampler


def refused_calls(page: str, models: dict[str, Any], masked_lm: Any) -> list[Any]:
    """Functions without arguments, each of which should raise an error; `masked_lm` is a pipeline of one."""
    labelled, reviews, two = models["runs/sentiment"], models["runs/reviews"], models["runs/two_level"]
    parts = labelled.components
    noisy = ClassifierGuidance(models["runs/classifier"], labels=1)
    paraphrases = TokenParaGuidePipeline(**parts)
    hurried = TextDiffusionCFGPipeline(
        **parts | {"scheduler": ConfidenceScheduler.from_config(parts["scheduler"].config)}
    )
    stock = type(reviews)(**reviews.components)
    stock.scheduler = DDIMScheduler()
    unprompted = {**two.components, "prompt_encoder": None}
    return {
        "text_diffusion": [
            lambda: labelled(text="the cat"),
            lambda: labelled("the", text="the [MASK]"),
            lambda: labelled("the cat " * 40),
            lambda: labelled("the cat", max_new_tokens=1_000),
            lambda: labelled(num_return_sequences=3, generator=[torch.Generator()]),
            lambda: masked_lm("the cat"),
            lambda: TextDiffusionPipeline.from_pretrained("runs/nothing"),
        ],
        "guided": [
            lambda: labelled(guidance_scale=3.0),
            lambda: labelled(class_labels="happy"),
            lambda: labelled(class_labels=7),
            lambda: hurried(controls=noisy),
            lambda: labelled("the", controls=LengthControl(12, eos_token_id=1), max_new_tokens=5),
        ],
        "block": [
            lambda: TextBlockDiffusionPipeline(**parts),
            lambda: TextDiffusionPipeline(**models["runs/block"].components),
        ],
        "diffusion_lm": [
            lambda: reviews(num_inference_steps=5_000),
            lambda: with_sampler(reviews, "dpm_solver")(eta=0.5),
            lambda: with_sampler(reviews, temperature=0.7),
            lambda: reviews(num_candidates=3),
            lambda: stock(),
            lambda: TextDiffusionCFGPipeline(**reviews.components),
        ],
        "paraguide": [
            lambda: paraphrases(None),
            lambda: paraphrases("the cat", controls=noisy),
            lambda: paraphrases("the cat " * 400),
            lambda: ParaGuidePipeline(**parts),
        ],
        "two_level": [
            lambda: type(two)(**unprompted)("the cat"),
            lambda: two(max_new_tokens=5_000),
            lambda: two(plan=torch.full((1, 4), 9_999)),
            lambda: two(guidance_scale=2.0),
        ],
    }[page]
