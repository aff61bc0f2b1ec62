"""The head at selected positions by architecture: `language_models.py --parts heads`.

Toy models under a vocabulary as large as LLaDA's, where the head is nearly all of a forward pass. A step that asks for
one position should cost little more than the body.

Shapes: B batch, L length, V vocabulary size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from parts.common.results import Record
from parts.sampling.measuring import interleaved, verdict
from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading

# All but the masked LMs are causal LMs that are read in both directions.
ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma",
    "gemma2",
    "mistral",
    "phi",
    "olmo2",
    "granite",
    "modernbert",
)
MASKED_LMS = ("modernbert",)
# Of a forward pass with all logits
TARGETS = {"llama": 0.15}


@dataclass(frozen=True)
class HeadSize:
    """Sizes of the models."""

    vocab_size: int = 126_464
    length: int = 256
    width: int = 64
    layers: int = 2
    heads: int = 4


def toy_model(model_type: str, size: HeadSize) -> Any:
    """A language model with random weights, read in both directions."""
    sizes = {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "head_dim": size.width // size.heads,
        "intermediate_size": 2 * size.width,
        "max_position_embeddings": size.length,
    }
    if model_type == "gpt2":
        sizes = {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads}
        sizes["n_positions"] = size.length
    ids = dict.fromkeys(("bos_token_id", "eos_token_id"))
    # Some configurations must have a padding.
    ids["pad_token_id"] = 0
    config = AutoConfig.for_model(model_type, vocab_size=size.vocab_size, **ids, **sizes)

    torch.manual_seed(0)
    if model_type in MASKED_LMS:
        return AutoModelForMaskedLM.from_config(config).eval()
    write_reading(config, Reading(mask_token_id=size.vocab_size - 1))
    return AutoModelForCausalLM.from_config(config).eval()


def head_costs(size: HeadSize, repetitions: int) -> Iterator[Record]:
    """Yield a line for each architecture: CPU time of a call, in units of a forward pass with all logits."""
    tokens = torch.randint(1, size.vocab_size - 1, (1, size.length))
    one = torch.zeros_like(tokens, dtype=torch.bool)
    one[0, size.length // 2] = True

    for model_type in ARCHITECTURES:
        model = toy_model(model_type, size)
        denoiser = LanguageModelDenoiser(model)
        runs = {
            "whole": lambda model=model: model(input_ids=tokens),
            "body": lambda model=model: model.base_model(input_ids=tokens),
            "all": lambda denoiser=denoiser: denoiser(tokens),
            "one": lambda denoiser=denoiser: denoiser(tokens, positions=one),
        }
        with torch.no_grad():
            # The first turn allocates.
            interleaved(runs, 1)
            seconds = interleaved(runs, repetitions)

        share = seconds["one"] / seconds["whole"]
        yield {
            "case": type(model).__name__,
            "whole ms": f"{1000 * seconds['whole']:.1f}",
            "body": f"{seconds['body'] / seconds['whole']:.3f}",
            "one position": f"{share:.3f}",
            "all positions": f"{seconds['all'] / seconds['whole']:.2f}",
            **verdict(share, TARGETS.get(model_type)),
        }
