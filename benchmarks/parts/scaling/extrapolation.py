"""What larger models would take on GPUs: arithmetic from the shapes of calls and a few assumptions; nothing is run.

FLOPs are those of `parts.scaling.flops`, at the calls of a small model. A GPU does `peak_tflops` x `utilisation` of
them a second. GB are 10^9 bytes.

Memory counts as in adaptation_memory.py: a trained weight is a weight, a gradient, two moments and an average in
float32, and a copy in bfloat16 that autocast keeps. DDP has the gradients once more, in the buckets that it exchanges.
"""

from typing import Any, NamedTuple

from adaptation_memory import (
    BFLOAT16,
    FLOAT32,
    GIGA,
    LOGIT_BYTES,
    Sizes,
    adapters,
    all_weights,
    at_validation,
    in_shards,
)

from parts.sampling.measuring import Size
from parts.scaling.config import (
    FEED_FORWARD_RATIO,
    LARGE_MODELS,
    LargeModel,
    ScalingConfig,
)
from parts.scaling.flops import (
    CHECKPOINTED_PASSES,
    PASSES_OF_A_STEP,
    Call,
    Network,
    on_no_device,
)
from parts.scaling.training import calls_of_training
from parts.scaling.writing import Case, calls_of_writing

DAY = 86_400  # seconds
MASKED = 0.5  # of the tokens of a row, on average, whose logits are needed

# Of a trained weight under ZeRO-2: bfloat16 weights on each GPU; their gradients, and weights, two moments and the
# average in float32, in shards
ZERO2_SHARDED = BFLOAT16 + 4 * FLOAT32


class Training(NamedTuple):
    """What it takes to train a model.

    Attributes:
        flops_per_token: of a step, in FLOPs a token.
        tokens: that it is trained on.
        flops: of all of the training.
        gpu_days: without and with gradient checkpointing.
    """

    flops_per_token: float
    tokens: float
    flops: float
    gpu_days: tuple[float, float]


class Memory(NamedTuple):
    """GB of a GPU. The first five are beside activations, which are those of a micro-batch."""

    whole: float
    zero2: float
    sharded: float
    validation: float
    adapters: float
    activations: float
    checkpointed: float


class Writing(NamedTuple):
    """What a token costs that is written: steps and FLOPs a token, and tokens a day of one GPU."""

    steps_per_token: float
    flops_per_token: float
    tokens_a_day: float


def size_of(large: LargeModel, options: ScalingConfig) -> Size:
    return Size(
        layers=large.layers,
        width=large.width,
        heads=large.heads,
        batch=options.large_batch,
        length=options.large_length,
        vocab_size=options.large_vocab_size,
    )


def network_of(large: LargeModel, options: ScalingConfig) -> Network:
    return Network(large.width, large.layers, options.large_vocab_size)


def sizes_of(large: LargeModel, options: ScalingConfig) -> Sizes:
    """The numbers of weights by which memory is counted."""
    width = large.width
    inner = FEED_FORWARD_RATIO * width
    model = on_no_device(
        vocab_size=options.large_vocab_size,
        hidden_size=width,
        num_layers=large.layers,
        num_attention_heads=large.heads,
        max_length=options.large_length,
    )
    # Queries, keys, values and output, and the two layers of the feed-forward part
    outputs = 4 * width + inner + width
    inputs = 4 * width + width + inner
    return Sizes(
        total=model.num_parameters(),
        linear=large.layers * (4 * width * width + 2 * width * inner),
        rows=large.layers * outputs,
        ends=large.layers * (inputs + outputs),
        head=width * options.large_vocab_size,
        num_layers=large.layers,
        width=width,
        inner=inner,
        vocab_size=options.large_vocab_size,
    )


def flops_a_day(options: ScalingConfig, utilisation: float) -> float:
    """FLOPs of one GPU in a day."""
    return options.peak_tflops * 1e12 * utilisation * DAY


def training_of(large: LargeModel, options: ScalingConfig, calls: list[Call]) -> Training:
    """What it takes to train a model from scratch.

    Args:
        calls: of training steps on such rows, by `calls_of_training`.
    """
    num_tokens = sum(call.rows * call.tokens for call in calls)
    network = network_of(large, options)
    flops_per_token = network.flops(calls, PASSES_OF_A_STEP) / num_tokens

    tokens = options.tokens_per_parameter * sizes_of(large, options).total
    days = flops_per_token * tokens / flops_a_day(options, options.utilisation)
    return Training(
        flops_per_token,
        tokens,
        flops_per_token * tokens,
        (days, days * CHECKPOINTED_PASSES / PASSES_OF_A_STEP),
    )


def memory_of(
    large: LargeModel,
    options: ScalingConfig,
    block_bytes: float,
    checkpointed_bytes: float,
) -> Memory:
    """GB that training takes on each GPU.

    Args:
        block_bytes: that a block keeps for a token, in units of the width; measured.
        checkpointed_bytes: the same with gradient checkpointing, when a block at a time is computed anew.
    """
    sizes = sizes_of(large, options)
    num_tokens = options.large_batch * options.large_length
    logits = MASKED * num_tokens * options.large_vocab_size * LOGIT_BYTES
    a_block = num_tokens * large.width
    figures = Memory(
        whole=all_weights(sizes) + FLOAT32 * sizes.total,
        zero2=(BFLOAT16 + ZERO2_SHARDED / options.gpus) * sizes.total,
        sharded=in_shards(sizes, options.gpus),
        validation=at_validation(sizes, options.gpus),
        adapters=adapters(sizes, options.lora_rank),
        activations=block_bytes * a_block * large.layers + logits,
        checkpointed=a_block * (checkpointed_bytes * large.layers + block_bytes) + logits,
    )
    return Memory(*(figure / GIGA for figure in figures))


def writing_calls(options: ScalingConfig, block_steps: int) -> tuple[Case, list[Call]]:
    """A row of the larger models, written in blocks with a cache, and the calls that it takes."""
    case = Case("", size_of(LARGE_MODELS[0], options), block_steps, options.block_length)
    return case, calls_of_writing(case)


def writing_of(
    large: LargeModel,
    options: ScalingConfig,
    case: Case,
    calls: list[Call],
) -> Writing:
    """What a written token costs.

    Args:
        case: the rows that are written.
        calls: that this takes.
    """
    num_tokens = case.size.batch * case.size.length
    flops = network_of(large, options).flops(calls) / num_tokens
    return Writing(
        case.num_steps / case.size.length,
        flops,
        flops_a_day(options, options.writing_utilisation) / flops,
    )


def training_table(options: ScalingConfig) -> list[dict[str, Any]]:
    """The figures of each larger model in training, one after the other."""
    calls = calls_of_training(size_of(LARGE_MODELS[0], options))
    lines = []
    for large in LARGE_MODELS:
        training = training_of(large, options, calls)
        lines.append(
            {
                "model": large.name,
                "width": large.width,
                "layers": large.layers,
                "parameters": sizes_of(large, options).total,
                "flops_per_token": training.flops_per_token,
                "tokens": training.tokens,
                "flops": training.flops,
                "gpu_days": training.gpu_days[0],
                "gpu_days_checkpointed": training.gpu_days[1],
            }
        )
    return lines


def memory_table(
    options: ScalingConfig,
    block_bytes: float,
    checkpointed_bytes: float,
) -> list[dict[str, Any]]:
    """The memory of each larger model."""
    return [
        {"model": large.name} | memory_of(large, options, block_bytes, checkpointed_bytes)._asdict()
        for large in LARGE_MODELS
    ]


def writing_table(options: ScalingConfig) -> list[dict[str, Any]]:
    """The cost of a written token for each larger model, at one step for each four, two and one tokens of a block."""
    step_counts = sorted({max(1, options.block_length // parts) for parts in (4, 2, 1)})
    lines = []
    for block_steps in step_counts:
        case, calls = writing_calls(options, block_steps)
        for large in LARGE_MODELS:
            writing = writing_of(large, options, case, calls)
            lines.append({"model": large.name, "block_steps": block_steps} | writing._asdict())
    return lines
