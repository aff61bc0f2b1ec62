"""Models that `torch.compile` was given, or that were compiled in place, write and are saved as what they are."""

import pytest
import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model, mostly_slow
from support.language_models import chat_pipe
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.models.language_model import is_masked_lm

TOKENIZER = train_tokenizer(SENTENCES, vocab_size=300)
MASKED_LMS = ("bert", "roberta", "modernbert", "distilbert")
KINDS = ("tokens", "blocks", "embeddings", "paraphrases", "two_levels", "latents", *MASKED_LMS)


def absorbing(tokenizer):
    return D3PMAbsorbingScheduler(tokenizer.mask_token_id)


def make_pipe(kind):
    if kind == "tokens":
        return TextDiffusionPipeline(TOKENIZER, make_denoiser(TOKENIZER), absorbing(TOKENIZER))
    if kind == "blocks":
        denoiser = make_denoiser(TOKENIZER, block_length=4)
        return TextDiffusionPipeline(TOKENIZER, denoiser, absorbing(TOKENIZER))
    if kind == "embeddings":
        denoiser = make_embedding_model(TOKENIZER, self_conditioning=True)
        return DiffusionLMPipeline(TOKENIZER, denoiser, EmbeddingDDIMScheduler())
    if kind == "paraphrases":
        denoiser = make_embedding_model(TOKENIZER, partial_noising=True)
        return ParaGuidePipeline(TOKENIZER, denoiser, EmbeddingDDIMScheduler())
    if kind == "two_levels":
        return make_two_level(TOKENIZER)
    if kind == "latents":
        return make_latent_pipe(TOKENIZER, make_latent_denoiser(self_conditioning=True))
    model, tokenizer = make_masked_lm(kind)
    return TextDiffusionPipeline(tokenizer, model, absorbing(tokenizer))


def write(pipe):
    pipe.set_progress_bar_config(disable=True)
    source = {"source": "the cat"} if isinstance(pipe, ParaGuidePipeline) else {}
    generator = torch.Generator().manual_seed(0)
    return pipe(**source, max_new_tokens=6, num_inference_steps=3, generator=generator).texts


def models_of(pipe):
    return {
        name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }


@pytest.mark.parametrize(
    "kind", mostly_slow(KINDS, fast=["tokens", "embeddings", "latents", "bert"])
)
def test_a_compiled_model_writes_and_is_saved_as_the_model_that_it_is(kind, tmp_path):
    """The wrapper alone, whose calls are not traced: what is asked of a model must not depend on its class."""
    pipe = make_pipe(kind)
    expected = write(pipe)
    with torch.compiler.set_stance("force_eager"):
        for name, model in models_of(pipe).items():
            setattr(pipe, name, torch.compile(model, backend="eager"))
        assert is_masked_lm(getattr(pipe, "denoiser", None)) == (kind in MASKED_LMS)
        assert write(pipe) == expected

        # As components of a new pipeline, which are checked anew
        assert write(type(pipe)(**pipe.components)) == expected
        pipe.save_pretrained(tmp_path)
    assert write(type(pipe).from_pretrained(tmp_path)) == expected


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", mostly_slow(["bert", "tokens"], fast=[]))
def test_the_compiled_forward_is_the_one_that_is_called(kind, in_place):
    """Not only parts of the model, which would run as if it had not been compiled."""
    pipe = make_pipe(kind)
    expected = write(pipe)
    num_calls = 0

    def backend(graph, inputs):
        def run(*args):
            nonlocal num_calls
            num_calls += 1
            return graph.forward(*args)

        return run

    if in_place:
        pipe.denoiser.compile(backend=backend)
    else:
        pipe.denoiser = torch.compile(pipe.denoiser, backend=backend)
    assert write(pipe) == expected
    assert num_calls


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_language_model_in_blocks_is_refused_its_cache_and_writes_the_same_without(
    in_place,
):
    pipe = chat_pipe(attention="block", past="causal", alignment="shifted")
    expected = write(pipe)
    with torch.compiler.set_stance("force_eager"):
        if in_place:
            pipe.denoiser.compile(backend="eager")
        else:
            pipe.denoiser = torch.compile(pipe.denoiser, backend="eager")
        with pytest.raises(ValueError, match="not compiled, .* by `pipe.use_cache = False`"):
            write(pipe)
        pipe.use_cache = False
        assert write(pipe) == expected


def test_adapters_of_a_compiled_model_are_refused_and_not_left_as_they_are():
    pipe = make_pipe("tokens")
    pipe.denoiser = torch.compile(pipe.denoiser, backend="eager")
    calls = [
        lambda: pipe.load_lora_weights("adapter"),
        lambda: pipe.set_adapters(["default"]),
        pipe.fuse_lora,
        pipe.unfuse_lora,
        pipe.unload_lora_weights,
        pipe.enable_lora,
        pipe.disable_lora,
        lambda: pipe.delete_adapters("default"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="`denoiser` is compiled, and its adapters"):
            call()
