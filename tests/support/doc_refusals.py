"""The errors that the pages of the pipelines speak of, from models that are not asked to write anything."""

from typing import Any

import torch
from diffusers import DDIMScheduler

from support.doc_models import refused_checkpoints, refused_latents
from support.language_models import chat_pipe
from support.tokenizer_kinds import word_tokenizer
from text_diffusers import ConfidenceScheduler, ParaGuidePipeline, TextDiffusionPipeline
from text_diffusers.guidance import ClassifierGuidance, LengthControl, WordsControl
from text_diffusers.samplers import with_sampler


def refused_calls(page: str, models: dict[str, Any], masked_lm: Any) -> list[Any]:
    """Functions without arguments, each of which should raise an error; `masked_lm` is a pipeline of one."""
    if page == "models_of_others":
        return refused_checkpoints()
    if page == "latent_text_diffusion":
        return refused_latents()
    labelled = models["runs/sentiment"]
    blocks = models["runs/block"]
    reviews = models["runs/reviews"]
    two_level = models["runs/two_level"]

    noisy_control = ClassifierGuidance(models["runs/classifier"], labels=1)
    scheduler = ConfidenceScheduler.from_config(labelled.scheduler.config)
    by_confidence = TextDiffusionPipeline(**labelled.components | {"scheduler": scheduler})
    paraphrases = ParaGuidePipeline(**labelled.components)
    of_embeddings = ParaGuidePipeline(**models["runs/answers"].components)
    unprompted = type(two_level)(**{**two_level.components, "prompt_encoder": None})
    by_word = TextDiffusionPipeline(**labelled.components)
    by_word.tokenizer = word_tokenizer(splits_marks=False)
    stock = type(reviews)(**reviews.components)
    stock.scheduler = DDIMScheduler()
    causal = chat_pipe(attention="block", past="causal")
    compiled = chat_pipe(attention="block", past="causal")
    compiled.denoiser.compile(backend="eager")

    return {
        "text_diffusion": [
            lambda: labelled(text="the cat"),
            lambda: labelled(text="[MASK]", mask=[False]),
            lambda: by_word("the [EOS]"),
            lambda: labelled("the \ud83d"),
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
            lambda: by_confidence(controls=noisy_control),
            lambda: labelled("the", controls=LengthControl(12, eos_token_id=1), max_new_tokens=5),
        ],
        "block": [
            lambda: blocks("the cat", guidance_scale=2.0, max_new_tokens=8),
            lambda: blocks(controls=WordsControl(blocks.tokenizer, ["cat"])),
            lambda: causal(controls=WordsControl(causal.tokenizer, ["w8"]), block_length=8),
            lambda: compiled("w8", max_new_tokens=4),
        ],
        "diffusion_lm": [
            lambda: reviews(num_inference_steps=5_000),
            lambda: with_sampler(reviews, "dpm_solver")(eta=0.5),
            lambda: with_sampler(reviews, temperature=0.7),
            lambda: reviews(num_candidates=3),
            lambda: stock(),
            lambda: TextDiffusionPipeline(**reviews.components),
        ],
        "paraguide": [
            lambda: paraphrases(None),
            lambda: paraphrases("the cat", controls=noisy_control),
            lambda: paraphrases("the cat " * 400),
            lambda: of_embeddings("the cat", guidance_scale=2.0),
        ],
        "two_level": [
            lambda: unprompted("the cat"),
            lambda: two_level(max_new_tokens=5_000),
            lambda: two_level(plan=torch.full((1, 4), 9_999)),
            lambda: two_level(guidance_scale=2.0),
        ],
    }[page]
