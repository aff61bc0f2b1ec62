"""Every pipeline is held to the laws of `PipelineTesterMixin`."""

import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model
from support.conformance_pipelines import PipelineCase, PipelineTesterMixin, quiet
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.two_level_pipes import make_two_level

import text_diffusers
from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    GuidedDiffusionLMPipeline,
    LatentTextDiffusionPipeline,
    ParaGuidePipeline,
    TextBlockDiffusionPipeline,
    TextDiffusionCFGPipeline,
    TextDiffusionPipeline,
    TokenParaGuidePipeline,
    TwoLevelVQDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer

TOKENIZER = train_tokenizer(SENTENCES, vocab_size=300)
STEPS = 3
PROMPT = {"prompt": "the cat sat", "max_new_tokens": 6, "num_inference_steps": STEPS}
SOURCE = {"source": "the cat sat", "max_new_tokens": 6, "num_inference_steps": STEPS}
TEXTS = ["the cat", "a bird sang in the tree", "she"]
LABELLED = {"class_labels": 1, "guidance_scale": 2.0}


def over_tokens(pipeline_class, **sizes):
    scheduler = D3PMAbsorbingScheduler(TOKENIZER.mask_token_id)
    return quiet(pipeline_class(TOKENIZER, make_denoiser(TOKENIZER, **sizes), scheduler))


def over_embeddings(pipeline_class, **changes):
    return quiet(
        pipeline_class(
            TOKENIZER, make_embedding_model(TOKENIZER, **changes), EmbeddingDDIMScheduler()
        )
    )


def case(pipeline_class, make, inputs, changes="tokens", **settings):
    batches = {"source" if "source" in inputs else "prompt": TEXTS}
    defaults = {"num_timesteps": STEPS, "batches": batches, "changes": changes} | settings
    return PipelineCase(pipeline_class, lambda: make(pipeline_class), inputs, **defaults)


CASES = {
    "text": case(TextDiffusionPipeline, over_tokens, PROMPT),
    "text_tied": case(
        TextDiffusionPipeline, lambda cls: over_tokens(cls, tie_embeddings=True), PROMPT
    ),
    "guided": case(
        TextDiffusionCFGPipeline,
        lambda cls: over_tokens(cls, num_classes=2),
        PROMPT | LABELLED,
        guidance={"guidance_scale": 4.0},
    ),
    "blocks": case(
        TextBlockDiffusionPipeline, lambda cls: over_tokens(cls, block_length=16), PROMPT
    ),
    "embeddings": case(DiffusionLMPipeline, over_embeddings, PROMPT, "latents"),
    "guided_embeddings": case(
        GuidedDiffusionLMPipeline,
        lambda cls: over_embeddings(cls, num_classes=2),
        PROMPT | LABELLED,
        "latents",
        guidance={"guidance_scale": 4.0},
    ),
    "paraphrases_embeddings": case(
        ParaGuidePipeline, lambda cls: over_embeddings(cls, partial_noising=True), SOURCE, "latents"
    ),
    "paraphrases": case(
        TokenParaGuidePipeline, over_tokens, SOURCE, guidance={"guidance_scale": 4.0}
    ),
    "two_levels": case(
        TwoLevelVQDiffusionPipeline,
        lambda _: make_two_level(TOKENIZER),
        {"prompt": "the cat", "max_new_tokens": 6, "num_inference_steps": 2},
        "codes",
        batches={"prompt": ["the cat", "a bird", "she"]},
        num_timesteps=4,
        optional=({"prompt_encoder": None}, {"prompt": None}),
        guidance={"guidance_scale": 4.0},
    ),
    "latents": case(
        LatentTextDiffusionPipeline,
        lambda _: make_latent_pipe(TOKENIZER, make_latent_denoiser(self_conditioning=True)),
        SOURCE,
        "latents",
        # Without a scheduler latents are decoded, and nothing is told to the denoiser.
        optional=({"scheduler": None}, {"source": None, "latents": torch.ones(1, 3, 4)}),
        guidance={"guidance_scale": 4.0},
    ),
}


def test_every_pipeline_is_held_to_them():
    public = {
        getattr(text_diffusers, name)
        for name in text_diffusers.__all__
        if name.endswith("Pipeline")
    }
    assert {case.pipeline_class for case in CASES.values()} == public


class TestPipelines(PipelineTesterMixin):
    cases = CASES
    few = ("text", "two_levels", "latents")
