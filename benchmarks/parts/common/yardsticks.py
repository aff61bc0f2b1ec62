"""The autoregressive yardstick of benchmarks: a GPT-2 of the size of the diffusion models beside it."""

from typing import Any

from transformers import GPT2Config


def yardstick_config(
    tokenizer: Any,
    length: int,
    hidden_size: int,
    num_layers: int,
    num_attention_heads: int,
    **settings: Any,
) -> GPT2Config:
    """A GPT-2 of the width, the layers and the heads of the denoisers, which like them has no dropout.

    Args:
        length: tokens of its longest row.
        settings: others of `GPT2Config`, such as the tokens around a text.
    """
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=hidden_size,
        n_layer=num_layers,
        n_head=num_attention_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **settings,
    )
