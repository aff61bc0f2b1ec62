"""Tiny pipelines of every family, saved."""

from pathlib import Path

import torch
from conftest import SENTENCES, make_denoiser

from support.two_level_pipes import make_two_level
from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMNeighborScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer


def save_pipelines(folder: Path) -> dict[str, Path]:
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300)
    absorbing = D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=100)
    torch.manual_seed(0)
    neighbours = D3PMNeighborScheduler.from_embeddings(
        torch.randn(len(tokenizer), 4), num_neighbors=2
    )
    lengths = [0, 0, 3, 5, 4, 2]
    embeddings = EmbeddingTransformerModel(
        len(tokenizer),
        hidden_size=32,
        num_layers=2,
        max_length=32,
        num_train_timesteps=100,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipes = {
        "token": TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer, time_conditioning=True), neighbours
        ),
        "cfg": TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer, num_classes=2), absorbing, lengths
        ),
        "block": TextDiffusionPipeline(
            tokenizer, make_denoiser(tokenizer, block_length=4), absorbing
        ),
        "embedding": DiffusionLMPipeline(
            tokenizer, embeddings.eval(), EmbeddingDDIMScheduler(100), lengths
        ),
        "two-level": make_two_level(tokenizer),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    return {name: folder / name for name in pipes}
