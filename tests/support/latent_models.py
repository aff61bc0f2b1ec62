"""Tiny autoencoders of text with continuous latents, with random weights, and rows for them."""

import torch
from transformers import AutoConfig

from text_diffusers import AutoencoderTextLatentModel

ENCODER_VOCAB = 30
DECODER_VOCAB = 20
SIZES = {
    "num_latents": 3,
    "latent_size": 4,
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
}


def encoder_config(vocab_size=ENCODER_VOCAB, **changes):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "max_position_embeddings": 64}
    return AutoConfig.for_model("bert", **{"vocab_size": vocab_size} | sizes | changes).to_dict()


def decoder_config(model_type="llama", vocab_size=DECODER_VOCAB, **changes):
    if model_type == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        sizes |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 16, "tie_word_embeddings": True}
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    settings = {"vocab_size": vocab_size} | ids | sizes | changes
    return AutoConfig.for_model(model_type, **settings).to_dict()


def make_autoencoder(model_type="llama", seed=0, std=0.3, **changes):
    """An autoencoder in evaluation mode whose predictions differ from token to token and from latent to latent."""
    torch.manual_seed(seed)
    parts = {
        "encoder_config": encoder_config(),
        "decoder_config": decoder_config(model_type),
    }
    model = AutoencoderTextLatentModel(**parts | SIZES | changes)
    for name, parameter in model.named_parameters():
        if "norm" not in name.lower() and "ln_" not in name:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def padded(rows, left=0, right=0):
    """`(ids, mask)` of rows of tokens, with so much more padding of tokens that exist, at either side."""
    length = max(len(row) for row in rows)
    ids = torch.full((len(rows), left + length + right), 7)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        # Short rows stand at the right of their place, so that padding is on both sides.
        start = left + length - len(row)
        ids[place, start : start + len(row)] = torch.tensor(row)
        mask[place, start : start + len(row)] = 1
    return ids, mask
