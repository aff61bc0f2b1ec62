"""What adapting a causal language model takes on GPUs: memory and hours, computed from the sizes of published models.

    python benchmarks/adaptation_memory.py [--length 512] [--rows 4] [--rank 32] [--shards 8] [--tokens 1e8]

Nothing is measured: models stand on the meta device, without numbers. Training is that of `train_d3pm.py` with blocks
over a causal past, bf16 autocast and gradient checkpointing. GB are 10^9 bytes.

- A trained weight takes 22 bytes: itself, its gradient, two moments of AdamW and its average, each in float32, and a
  copy in bfloat16, which autocast keeps for the pass.
- A frozen weight takes 4 bytes, or 2 in bf16; of a linear layer 1 byte in int8, or half a byte in nf4, with their
  scales. Autocast copies the weights of a layer where they are needed, unless they are bfloat16 already.
- In shards everything but the copies of autocast is divided, and a layer at a time is gathered. For a validation each
  process has all weights beside its part. A checkpoint is gathered in the memory of the machine, tensor by tensor.
- Activations are the inputs of all layers, what one layer keeps for its backward pass, and the logits of a quarter of
  the clean tokens and of half of the noisy ones. A row is read as two streams, which have two states for a token.
- Hours are 6 N FLOPs a state, N being the weights that it is multiplied with: 2 N of the forward pass, 4 N of the
  backward. Checkpointing repeats the forward pass, 2 N; frozen weights need no gradients, 2 N less. The head is
  counted as if every state had logits.

Shapes: B rows of a micro-batch, L tokens of a row, V vocabulary size, D width, I inner width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from parts.common.options import run
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from text_diffusers.training.adaptation.adapters import linear_layers
from text_diffusers.training.config import OptionParser, check_options, option
from text_diffusers.training.steps.blocks import NEXT_TOKEN_STRIDE

GIGA = 10**9
TERA = 10**12
BFLOAT16 = 2
FLOAT32 = 4

STREAMS = 2
# Weight, gradient, two moments and average
TRAINED = 5 * FLOAT32

# int8 has a float32 scale and a zero of one byte for each row of a weight, nf4 a float32 scale for 64 weights.
ROW_BYTES = 5
GROUP = 64

# Of a logit with its log-probability and its gradient; measured on a CPU, as the growth of a step with V.
LOGIT_BYTES = 12
# Of the logits that a token has: as a next token in one of four steps, and as a mask half of the time
LOGITS_A_TOKEN = 1 / NEXT_TOKEN_STRIDE + 0.5

# Dense bfloat16 FLOPs a second that are published, in tera, and the share of them that training reaches
PEAKS = {"A100": 312, "H100": 989}
UTILISATION = 0.4

FORWARD = 2
BACKWARD = 4
BACKWARD_OF_FROZEN = 2


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights of a language model, and its widths.

    Attributes:
        total: of all weights, a tied one once.
        linear: of the matrices of linear layers, without the head.
        rows: outputs of these layers, all together.
        ends: inputs and outputs of these layers, all together.
        head: of the matrix of the head.
        num_layers, width, inner, vocab_size: of its configuration.
    """

    total: int
    linear: int
    rows: int
    ends: int
    head: int
    num_layers: int
    width: int
    inner: int
    vocab_size: int


def sizes_of(model: Any) -> Sizes:
    """The sizes of a causal language model, which may be on the meta device."""
    layers: list[Any] = list(linear_layers(model).values())
    config = model.config
    return Sizes(
        total=sum(parameter.numel() for parameter in model.parameters()),
        linear=sum(layer.weight.numel() for layer in layers),
        rows=sum(layer.out_features for layer in layers),
        ends=sum(layer.in_features + layer.out_features for layer in layers),
        head=model.get_output_embeddings().weight.numel(),
        num_layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        vocab_size=config.vocab_size,
    )


def published_sizes() -> dict[str, Sizes]:
    """The models of the tables, from small to large."""
    qwen = {"vocab_size": 151_936, "num_key_value_heads": 2, "tie_word_embeddings": True}
    configs: dict[str, Any] = {
        "Qwen2.5-0.5B": Qwen2Config(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            **qwen,
        ),
        "Qwen2.5-1.5B": Qwen2Config(
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            **qwen,
        ),
        "Qwen2.5-3B": Qwen2Config(
            hidden_size=2048,
            intermediate_size=11_008,
            num_hidden_layers=36,
            num_attention_heads=16,
            **qwen,
        ),
        "Llama-3.1-8B": LlamaConfig(
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            tie_word_embeddings=False,
        ),
    }
    architectures = {"qwen2": Qwen2ForCausalLM, "llama": LlamaForCausalLM}
    sizes = {}
    for name, config in configs.items():
        with torch.device("meta"):
            sizes[name] = sizes_of(architectures[config.model_type](config))
    return sizes


@dataclass
class MemoryOptions:
    length: int = option(512, "tokens of a row", limit="at least 1")
    rows: int = option(4, "of a micro-batch", limit="at least 1")
    rank: int = option(32, "of the adapters", limit="at least 1")
    shards: int = option(8, "GPUs that share the weights", limit="at least 1")
    tokens: float = option(1e8, "to train on", limit="above 0")

    def __post_init__(self):
        check_options(self)

    @property
    def tokens_of_step(self) -> int:
        """B L."""
        return self.rows * self.length


# Memory, in bytes


def activations(sizes: Sizes, num_tokens: int, stream: int = FLOAT32) -> float:
    """Of a micro-batch of so many tokens in two streams, with gradient checkpointing.

    Args:
        stream: bytes of a number between the layers, which is as wide as the embeddings.
    """
    states = STREAMS * num_tokens
    # A layer keeps about ten of its width and four of its inner width.
    inputs = sizes.num_layers * states * sizes.width * stream
    layer = states * (10 * sizes.width * stream + 4 * sizes.inner * BFLOAT16)
    logits = LOGITS_A_TOKEN * num_tokens * sizes.vocab_size * LOGIT_BYTES
    return inputs + layer + logits


def all_weights(sizes: Sizes) -> float:
    """Of a model of which all weights are trained, beside its activations."""
    return (TRAINED + BFLOAT16) * sizes.total


def in_shards(sizes: Sizes, num_shards: int) -> float:
    """The same on each GPU of so many that share the weights."""
    layer = sizes.linear / sizes.num_layers
    outside = sizes.total - sizes.linear
    # What is outside of the layers, embeddings and head, is gathered throughout.
    gathered = FLOAT32 * (outside + layer)
    return TRAINED * sizes.total / num_shards + BFLOAT16 * sizes.total + gathered


def at_validation(sizes: Sizes, num_shards: int) -> float:
    """What a GPU of these holds during a validation, between two steps, beside its activations."""
    # Gradients are gone then.
    shard = (TRAINED - FLOAT32) * sizes.total / num_shards
    return shard + (FLOAT32 + BFLOAT16) * sizes.total


def adapters(sizes: Sizes, rank: int, quantization: str | None = None) -> float:
    """Of adapters that are trained, and frozen weights, in float32 or as `quantization` stores them."""
    trained = (TRAINED + BFLOAT16) * rank * sizes.ends
    if quantization == "bf16":
        return BFLOAT16 * sizes.total + trained
    linear = {
        None: FLOAT32 * sizes.linear,
        "int8": sizes.linear + ROW_BYTES * sizes.rows,
        "nf4": sizes.linear / 2 + FLOAT32 * sizes.linear / GROUP,
    }[quantization]
    frozen = linear + FLOAT32 * (sizes.total - sizes.linear)
    copies = BFLOAT16 * (sizes.head + sizes.linear / sizes.num_layers)
    return frozen + copies + trained


# Time


def hours(sizes: Sizes, num_tokens: float, peak: float, has_adapters: bool = False) -> float:
    """On one GPU of so many tera FLOPs a second at `UTILISATION`, with gradient checkpointing."""
    backward = BACKWARD_OF_FROZEN if has_adapters else BACKWARD
    multiplied = sizes.linear + sizes.head
    flops = (2 * FORWARD + backward) * multiplied * STREAMS * num_tokens
    return flops / (peak * TERA * UTILISATION) / 3600


# Tables


def memory_table(models: dict[str, Sizes], options: MemoryOptions) -> str:
    """The memory of a GPU in GB, as a table in markdown."""
    lines = [
        f"| model | parameters | all weights | in {options.shards} shards | at a validation of these "
        f"| LoRA {options.rank} | the same, bf16 | int8 | nf4 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sizes in models.items():
        step = activations(sizes, options.tokens_of_step)
        figures = [
            all_weights(sizes) + step,
            in_shards(sizes, options.shards) + step,
            at_validation(sizes, options.shards),
        ]
        for quantization in (None, "bf16", "int8", "nf4"):
            stream = BFLOAT16 if quantization == "bf16" else FLOAT32
            passing = activations(sizes, options.tokens_of_step, stream)
            figures.append(adapters(sizes, options.rank, quantization) + passing)
        cells = [f"{figure / GIGA:.0f}" for figure in figures]
        lines.append(f"| {name} | {sizes.total / GIGA:.2f} billion | {' | '.join(cells)} |")
    return "\n".join(lines)


def time_table(models: dict[str, Sizes], options: MemoryOptions) -> str:
    """Hours of one GPU, as a table in markdown."""
    titles = [f"{name}, all weights | LoRA" for name in PEAKS]
    lines = [f"| model | {' | '.join(titles)} |", "|---|" + "---|" * 2 * len(PEAKS)]
    for name, sizes in models.items():
        cells = []
        for peak in PEAKS.values():
            for has_adapters in (False, True):
                cells.append(f"{hours(sizes, options.tokens, peak, has_adapters):.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(options: MemoryOptions):
    """Print both tables."""
    models = published_sizes()
    print(
        f"GB of a GPU, {options.rows} rows of {options.length} tokens in a micro-batch, computed\n"
    )
    print(memory_table(models, options))
    share = f"{UTILISATION:.0%} of the peak"
    print(
        f"\nhours of one GPU at {share} for {options.tokens / 1e6:,.0f} million tokens, computed\n"
    )
    print(time_table(models, options))


if __name__ == "__main__":
    run(main, OptionParser(MemoryOptions, description=__doc__))
