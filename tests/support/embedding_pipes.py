"""A small pipeline over word embeddings."""

import torch

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
)


def make_embedding_pipe(tokenizer, **noise):
    torch.manual_seed(0)
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 32,
    }
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    steps = noise.get("num_train_timesteps", 2000)
    model = EmbeddingTransformerModel(len(tokenizer), num_train_timesteps=steps, **sizes, **ids)
    return DiffusionLMPipeline(tokenizer, model.eval(), EmbeddingDDIMScheduler(**noise))
