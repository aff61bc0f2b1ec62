"""What published models take of memory: weights by type, caches, activations; for small ones also measured.

    python benchmarks/model_memory.py [--length 1024] [--positions 32] [--measure gpt2 mdlm]

Models have their published sizes on the meta device, without numbers. GB are 10^9 bytes, MB 10^6.

- float32, bfloat16: of all parameters, a tied one once.
- int8, int4: as torchao quantises by default: the matrices of linear layers, with a scale and a zero for each row, or
  for each group of 128 weights; all else is bfloat16, among it embeddings and the head of a language model. What
  transformers does not build of linear layers is not quantised: the layers of GPT-2, and the experts of a mixture.
- cache: keys and values of one row in bfloat16, for language models of transformers.
- layer: the largest activations of one layer for one row in bfloat16, which are those of its feed-forward part.
- logits: of one row in bfloat16, at all positions and at those of one block; a sampler's copies come on top.

Measured is a process of its own with random float32 weights: the memory that the model takes, and by how much a call
exceeds it. Linux only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from parts.common.options import run
from parts.common.processes import in_own_process, peak_of, resident_memory
from parts.common.results import Record
from parts.common.tables import print_aligned
from torch import nn
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from text_diffusers import TextTransformerModel
from text_diffusers.common.validation import require, require_int
from text_diffusers.hub.published.mdlm import read as read_mdlm
from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading
from text_diffusers.training.config import OptionParser, check_options, option

GIGA = 10**9
MEGA = 10**6
BFLOAT16 = 2
FLOAT32 = 4

# A row of int8 has a float32 scale and a zero of one byte, a group of int4 a bfloat16 scale and zero.
ROW_BYTES = 5
GROUP = 128
GROUP_BYTES = 4
MEASURED = ("gpt2", "mdlm")


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        name: for people.
        build: makes it, with random weights or on the meta device.
        config: of a language model of transformers; `None` for models of this package.
    """

    name: str
    build: Callable[[], nn.Module]
    config: Any = None


def language_model(name: str, model: Any, config: Any) -> Published:
    write_reading(config, Reading(mask_token_id=0))
    return Published(name, lambda: model(config), config)


def mdlm_owt() -> nn.Module:
    config = {
        "model_type": "mdlm",
        "hidden_dim": 768,
        "n_blocks": 12,
        "n_heads": 12,
        "cond_dim": 128,
        "model_length": 1024,
        "vocab_size": 50_258,
        "dropout": 0.1,
        "time_conditioning": False,
    }
    blueprint = read_mdlm(config, {}, "kuleshov-group/mdlm-owt")
    assert blueprint is not None
    return blueprint.build()


def published_models() -> dict[str, Published]:
    """The models of the table, from small to large."""
    qwen3 = {"num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    qwen3 |= {"head_dim": 128, "vocab_size": 151_936, "tie_word_embeddings": True}
    return {
        "gpt2": language_model("DiffuGPT-s", GPT2LMHeadModel, GPT2Config()),
        "mdlm": Published("mdlm-owt", mdlm_owt),
        "a2d": language_model(
            "Qwen3-0.6B-diffusion",
            Qwen3ForCausalLM,
            Qwen3Config(hidden_size=1024, intermediate_size=3072, **qwen3),
        ),
        "sdar": language_model(
            "SDAR-4B",
            Qwen3ForCausalLM,
            Qwen3Config(
                vocab_size=151_936,
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=False,
            ),
        ),
        "dream": language_model(
            "Dream-7B",
            Qwen2ForCausalLM,
            Qwen2Config(
                vocab_size=152_064,
                hidden_size=3584,
                intermediate_size=18_944,
                num_hidden_layers=28,
                num_attention_heads=28,
                num_key_value_heads=4,
                tie_word_embeddings=False,
            ),
        ),
        "llada": language_model(
            "LLaDA-8B",
            LlamaForCausalLM,
            LlamaConfig(
                vocab_size=126_464,
                hidden_size=4096,
                intermediate_size=12_288,
                num_hidden_layers=32,
                num_attention_heads=32,
                tie_word_embeddings=False,
            ),
        ),
        "llada2": language_model(
            "LLaDA2.0-mini",
            Glm4MoeForCausalLM,
            Glm4MoeConfig(
                vocab_size=157_184,
                hidden_size=2048,
                intermediate_size=5120,
                moe_intermediate_size=512,
                num_hidden_layers=20,
                num_attention_heads=16,
                num_key_value_heads=4,
                head_dim=128,
                n_routed_experts=256,
                n_shared_experts=1,
                num_experts_per_tok=8,
                n_group=8,
                topk_group=4,
                first_k_dense_replace=1,
                use_qk_norm=True,
                num_mtp_layers=0,
                tie_word_embeddings=False,
            ),
        ),
    }


@dataclass
class MemoryOptions:
    length: int = option(1024, "tokens of the row", limit="at least 1")
    positions: int = option(32, "at which a step asks for logits", limit="at least 1")
    measure: list[str] = option(list(MEASURED), f"models that are also run, among {MEASURED}")

    def __post_init__(self):
        check_options(self)
        require_int("length", self.length, 1)
        require(set(self.measure) <= set(MEASURED), "measure", f"among {MEASURED}", self.measure)


# Computed


def bytes_of_weights(model: nn.Module) -> dict[str, float]:
    """Bytes of all parameters of a model, by type."""
    total = sum(parameter.numel() for parameter in model.parameters())
    matrices = linear_matrices(model)
    quantised = sum(matrix.numel() for matrix in matrices)
    rows = sum(matrix.shape[0] for matrix in matrices)
    groups = sum(matrix.shape[0] * -(-matrix.shape[1] // GROUP) for matrix in matrices)

    rest = (total - quantised) * BFLOAT16
    return {
        "parameters": total,
        "float32": total * FLOAT32,
        "bfloat16": total * BFLOAT16,
        "int8": rest + quantised + rows * ROW_BYTES,
        "int4": rest + quantised / 2 + groups * GROUP_BYTES,
    }


def linear_matrices(model: Any) -> list[nn.Parameter]:
    """The weights of linear layers, without the head, as transformers has them quantised."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kept = {id(parameter) for parameter in ([] if head is None else head.parameters())}
    return [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in kept
    ]


def computed_line(published: Published, length: int, positions: int) -> Record:
    with torch.device("meta"):
        model = published.build()
    config = model.config
    weights = bytes_of_weights(model)
    line = {
        "case": published.name,
        "parameters": f"{weights['parameters'] / GIGA:.2f} B",
    }
    for name in ("float32", "bfloat16", "int8", "int4"):
        line[name] = f"{weights[name] / GIGA:.2f} GB"

    line["cache"] = ""
    line["layer"] = ""
    if published.config is not None:
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        cache = 2 * config.num_hidden_layers * heads * width * length * BFLOAT16
        line["cache"] = f"{cache / MEGA:.0f} MB"

        # Two inputs of a gated unit and their product; GPT-2 has one and its activation.
        is_gated = published.config.model_type != "gpt2"
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        layer = (3 if is_gated else 2) * inner * length * BFLOAT16
        line["layer"] = f"{layer / MEGA:.0f} MB"

    vocab_size = config.vocab_size
    line["all logits"] = f"{vocab_size * length * BFLOAT16 / MEGA:.0f} MB"
    line[f"logits of {positions}"] = f"{vocab_size * positions * BFLOAT16 / MEGA:.1f} MB"
    return line


# Measured


def measured_line(key: str, length: int, positions: int) -> Record:
    """Of a model with random weights, in the process that calls this: MB of the model, and of calls beyond it."""
    published = published_models()[key]
    before = resident_memory("VmRSS")
    model = published.build().eval()
    size = sum(parameter.nbytes for parameter in model.parameters()) / MEGA
    resident = resident_memory("VmRSS") - before

    is_ours = isinstance(model, TextTransformerModel)
    denoiser: Any = model if is_ours else LanguageModelDenoiser(model)
    tokens = torch.randint(1, 50_000, (1, length))
    times = torch.full((1,), 0.5)
    some = torch.zeros_like(tokens, dtype=torch.bool)
    some[:, :positions] = True
    every = torch.ones_like(some)

    # Libraries allocate at their first use.
    with torch.no_grad():
        denoiser(tokens[:, :positions], times, positions=some[:, :positions])
        peaks = {
            name: peak_of(lambda asked=asked: denoiser(tokens, times, positions=asked))
            for name, asked in (("all", every), ("some", some))
        }
    mib = 2**20 / MEGA
    return {
        "case": published.name,
        "float32": f"{size:.0f} MB",
        "resident": f"{resident * mib:.0f} MB",
        "all positions": f"{peaks['all'] * mib:.0f} MB",
        f"{positions} positions": f"{peaks['some'] * mib:.0f} MB",
    }


def main(options: MemoryOptions):
    """Print what is computed, then what is measured."""
    length, positions = options.length, options.positions
    # Measured first: a fork does not inherit the threads of torch.
    measured = [in_own_process(1, measured_line, key, length, positions) for key in options.measure]

    print(f"computed, one row of {length} tokens")
    for number, published in enumerate(published_models().values()):
        print_aligned(computed_line(published, length, positions), first=number == 0)
    print(f"\nmeasured, float32, one row of {length} tokens")
    for number, line in enumerate(measured):
        print_aligned(line, first=number == 0)


if __name__ == "__main__":
    run(main, OptionParser(MemoryOptions, description=__doc__))
