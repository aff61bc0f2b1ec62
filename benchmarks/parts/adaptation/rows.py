"""What is trained in the lines of the table of benchmarks/adaptation.py: a start, and an objective."""

from dataclasses import dataclass, field
from typing import Any

from text_diffusers.training.steps.blocks import NEXT_TOKEN_SHARE

BLOCK_LENGTH = 4
LORA_RANK = 32


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        start: name of the weights that training starts from.
        objective: what is learned, in words.
        options: of training_scripts/train_d3pm.py.
        folder: option of the benchmark that names the model, none from scratch.
        in_parts: whether the objective changes on the way, so that a run is worth little before its end.
    """

    start: str
    objective: str
    options: dict[str, Any] = field(default_factory=dict)
    folder: str | None = None
    in_parts: bool = False

    @property
    def is_autoregressive(self) -> bool:
        """Whether all blocks have one token, so that the bound is the loss of next tokens itself."""
        return self.options.get("block_length") == [1]


# As `--attention` and `--alignment` name them. Blocks are read over a causal past.
BLOCKS = {"attention": "block", "alignment": "shifted", "block_length": [BLOCK_LENGTH]}
# The bound of blocks of one token is that loss already.
NEXT_TOKENS = BLOCKS | {"block_length": [1], "ar_loss_weight": 0.0}

MINILM = {"train_batch_size": 16}
LORA = {"lora_rank": LORA_RANK}
# Minutes stand a higher rate than the default, which is for passes over the data.
FAST_LORA = LORA | {"learning_rate": 1.5e-3}

# Small enough to learn something in minutes
SCRATCH = {"vocab_size": 2_048, "hidden_size": 128, "num_layers": 4, "train_batch_size": 8}

ROWS = {
    "scratch": Row("none", "masked", SCRATCH),
    "minilm_masked": Row(
        "MiniLM",
        "masked, bidirectional",
        MINILM | {"attention": "bidirectional", "alignment": "aligned"},
        folder="minilm",
    ),
    "minilm_blocks": Row(
        "MiniLM",
        f"blocks of {BLOCK_LENGTH} and next tokens",
        MINILM | BLOCKS | {"next_token_share": 0.0},
        folder="minilm",
    ),
    "minilm_next_then_blocks": Row(
        "MiniLM",
        f"next tokens for {NEXT_TOKEN_SHARE:.0%}, then blocks of {BLOCK_LENGTH} too",
        MINILM | BLOCKS | {"next_token_share": NEXT_TOKEN_SHARE},
        folder="minilm",
        in_parts=True,
    ),
    "smollm2_masked": Row(
        "SmolLM2",
        "masked, bidirectional",
        {"attention": "bidirectional", "alignment": "shifted"},
        folder="smollm2",
    ),
    "smollm2_masked_lora": Row(
        "SmolLM2",
        "masked, bidirectional, LoRA",
        FAST_LORA | {"attention": "bidirectional", "alignment": "shifted"},
        folder="smollm2",
    ),
    "smollm2_blocks_lora": Row(
        "SmolLM2",
        f"blocks of {BLOCK_LENGTH} and next tokens, LoRA",
        # Two streams a row: fewer rows a step, and more steps
        FAST_LORA | BLOCKS | {"train_batch_size": 4},
        folder="smollm2",
    ),
    "smollm2_autoregressive_lora": Row(
        "SmolLM2",
        "autoregressive, LoRA",
        LORA | NEXT_TOKENS,
        folder="smollm2",
    ),
}
