"""Tiny pipelines of every kind that the Space serves, and its server on a free port."""

from contextlib import contextmanager

import httpx
from conftest import make_denoiser

from support.language_models import chat_pipe
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level
from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextDiffusionPipeline,
)
from text_diffusers.space.app import build, serve
from text_diffusers.space.limits import Limits
from text_diffusers.space.parts.interface import Page
from text_diffusers.space.parts.served import Served

CHATS = ("chat", "chat_blocks")
WRITERS = ("tokens", "labelled", "uniform", "blocks", "masked_lm", "embeddings", *CHATS)
KINDS = (*WRITERS, "two_levels", "one_level")


def make_pipe(kind, tokenizer=None):
    """A pipeline with random weights; rows have 32 tokens at most, 16 of the two-level ones."""
    # Language models have tokenizers of their own.
    if kind in CHATS:
        return chat_pipe(attention="block" if kind == "chat_blocks" else "bidirectional")
    absorbing = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    if kind == "tokens":
        return TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), absorbing)
    if kind == "labelled":
        denoiser = make_denoiser(tokenizer, num_classes=2)
        return TextDiffusionPipeline(tokenizer, denoiser, absorbing, lengths=[0] * 10 + [1] * 3)
    if kind == "uniform":
        words = min(tokenizer.pad_token_id, tokenizer.mask_token_id)
        return TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer), D3PMUniformScheduler(words)
        )
    if kind in ("blocks", "labelled_blocks"):
        labels = {"num_classes": 2} if kind == "labelled_blocks" else {}
        denoiser = make_denoiser(tokenizer, block_length=8, **labels)
        return TextDiffusionPipeline(tokenizer, denoiser, absorbing)
    if kind == "masked_lm":
        model, own = make_masked_lm("bert")
        return TextDiffusionPipeline(own, model, D3PMAbsorbingScheduler(own.mask_token_id))
    if kind == "embeddings":
        sizes = {"hidden_size": 32, "num_layers": 1, "num_attention_heads": 2, "max_length": 32}
        ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
        denoiser = EmbeddingTransformerModel(len(tokenizer), **sizes, **ids)
        return DiffusionLMPipeline(tokenizer, denoiser, EmbeddingDDIMScheduler())
    return make_two_level(tokenizer, two=kind == "two_levels", prompts=None)


def make_page(kind, tokenizer=None, **limits):
    return Page(Served(make_pipe(kind, tokenizer), "a model", Limits(**limits)))


@contextmanager
def running(pipe, title="a model", **limits):
    """The address of a server of the page, in threads of this process."""
    # Gradio gives a page that is slow to open up after three seconds.
    for last_attempt in (False, False, True):
        blocks = build(pipe, title, Limits(**limits))
        try:
            _, url, _ = serve(blocks, host="127.0.0.1", quiet=True, prevent_thread_lock=True)
            break
        except ValueError:
            blocks.close()
            if last_attempt:
                raise
    try:
        yield url.rstrip("/")
    finally:
        blocks.close()


def endpoint(url, element_id):
    """The number of the function that runs when an element is clicked."""
    config = httpx.get(f"{url}/config").json()
    component = next(
        part["id"] for part in config["components"] if part["props"].get("elem_id") == element_id
    )
    return next(
        d["id"]
        for d in config["dependencies"]
        if [component, "click"] in [list(t) for t in d["targets"]]
    )
