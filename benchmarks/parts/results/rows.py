"""What is trained, and how it writes, in each row of the table of benchmarks/results.py."""

from dataclasses import dataclass, field
from typing import Any

from text_diffusers.kernels import KERNELS

AUTOREGRESSIVE = "autoregressive"
# The folder of the row's model, and of a stage before its last one, in options of a recipe
STAGE = "{stage}"


@dataclass(frozen=True)
class Stage:
    """A training of a row.

    Attributes:
        recipe: of training_scripts, or "autoregressive".
        minutes: of the CPU, in training steps.
        options: of the recipe; `STAGE` in a value stands for the folder of the stage before.
    """

    recipe: str
    minutes: float
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        group: its part of the table.
        title: what the model is, in words.
        stages: its trainings; none for another way to write with the model of the row `model`.
        steps: in which a text is written, or `None` for what the pipeline does by itself.
        repeated: whether all seeds are trained, or the first one only.
        model: name of the row whose model writes.
        sampler: a name of `text_diffusers.samplers`, by which it writes.
        settings: of the sampler.
        start: option of the benchmark that names the model it starts from.
    """

    group: str
    title: str
    stages: tuple[Stage, ...] = ()
    steps: int | None = 64
    repeated: bool = False
    model: str | None = None
    sampler: str | None = None
    settings: dict[str, float] = field(default_factory=dict)
    start: str | None = None


# A text a row, and models of one size
TEXTS = {"packing": False, "length": 40}
SMALL = TEXTS | {
    "vocab_size": 2_048,
    "hidden_size": 128,
    "num_layers": 4,
    "num_attention_heads": 4,
    "train_batch_size": 16,
    "lr_warmup_steps": 50,
    "ema_decay": 0.99,
}
SCRATCH = "from scratch"
SAMPLERS = "samplers of the absorbing model"
ADAPTED = "adapted"
OTHER_SPACES = "other spaces"

MINUTES = 3.0
LONGER = 10.0
LONG_MODEL = "absorbing_longer"


def from_scratch(kernel: str, repeated: bool = False, minutes: float = MINUTES) -> Row:
    """Diffusion over tokens with a kernel."""
    stage = Stage("train_d3pm", minutes, SMALL | {"kernel": kernel})
    return Row(SCRATCH, f"{kernel} diffusion", (stage,), repeated=repeated)


def by_sampler(sampler: str, steps: int, **settings: float) -> Row:
    """The longest trained absorbing model, by another sampler."""
    shown = "".join(f", {name} {value:g}" for name, value in settings.items())
    title = f"{sampler.replace('_', ' ')}, {steps} steps{shown}"
    return Row(SAMPLERS, title, model=LONG_MODEL, sampler=sampler, steps=steps, settings=settings)


def distilled(title: str, teacher: str, stage: Stage) -> Row:
    """A student of the model of another row."""
    return Row(SAMPLERS, title, (stage,), steps=8, model=teacher)


REPEATED = ("absorbing", "hierarchical", "uniform")

ROWS: dict[str, Row] = {
    AUTOREGRESSIVE: Row(
        SCRATCH,
        "autoregressive GPT-2",
        (Stage(AUTOREGRESSIVE, MINUTES, SMALL),),
        steps=None,
        repeated=True,
    ),
    **{name: from_scratch(name, repeated=True) for name in REPEATED},
    **{name: from_scratch(name) for name in KERNELS if name not in (*REPEATED, "gaussian", "band")},
    LONG_MODEL: from_scratch("absorbing", minutes=LONGER),
    "ancestral_8": by_sampler("ancestral", 8),
    "even_64": by_sampler("even", 64),
    "even_8": by_sampler("even", 8),
    "even_4": by_sampler("even", 4),
    "even_8_cooler": by_sampler("even", 8, temperature=0.9),
    "ancestral_64_cooler": by_sampler("ancestral", 64, temperature=0.9),
    "first_hitting": by_sampler("first_hitting", 40),
    "confidence": by_sampler("confidence", 40),
    "remdm": by_sampler("remdm", 64),
    "distilled_8": distilled(
        "distilled from 32 steps to 8, ancestral",
        LONG_MODEL,
        Stage(
            "train_distill",
            MINUTES,
            TEXTS
            | {
                "model_name_or_path": STAGE,
                "teacher_steps": 32,
                "student_steps": 8,
                "train_batch_size": 16,
                "lr_warmup_steps": 20,
                "ema_decay": 0.95,
            },
        ),
    ),
    "minilm_masked": Row(
        ADAPTED,
        "MiniLM, masked",
        (
            Stage(
                "train_d3pm",
                6.0,
                TEXTS
                | {
                    "attention": "bidirectional",
                    "alignment": "aligned",
                    "train_batch_size": 16,
                    "lr_warmup_steps": 20,
                    "ema_decay": 0.99,
                    "mixed_precision": "bf16",
                },
            ),
        ),
        start="minilm",
        steps=40,
    ),
    "smollm2_blocks": Row(
        ADAPTED,
        "SmolLM2, blocks of 4, LoRA",
        (
            Stage(
                "train_d3pm",
                10.0,
                TEXTS
                | {
                    "attention": "block",
                    "alignment": "shifted",
                    "block_length": [4],
                    "lora_rank": 32,
                    "learning_rate": 1.5e-3,
                    "quantization": "bf16",
                    "train_batch_size": 4,
                    "lr_warmup_steps": 20,
                    "ema_decay": 0.99,
                    "mixed_precision": "bf16",
                },
            ),
        ),
        start="smollm2",
        steps=None,
    ),
    "diffusion_lm": Row(
        OTHER_SPACES,
        "word embeddings, Diffusion-LM",
        (
            Stage(
                "train_diffusion_lm",
                MINUTES,
                TEXTS
                | {
                    "hidden_size": 128,
                    "num_layers": 4,
                    "vocab_size": 2_048,
                    "train_batch_size": 16,
                    "lr_warmup_steps": 50,
                    "ema_decay": 0.99,
                },
            ),
        ),
    ),
    "two_levels": Row(
        OTHER_SPACES,
        "two levels of codes",
        (
            Stage(
                "train_vq_autoencoder",
                MINUTES,
                TEXTS | {"vocab_size": 2_048, "train_batch_size": 16, "lr_warmup_steps": 50},
            ),
            Stage(
                "train_two_level",
                MINUTES,
                TEXTS
                | {
                    "autoencoder": STAGE,
                    "train_batch_size": 16,
                    "lr_warmup_steps": 50,
                    "ema_decay": 0.99,
                },
            ),
        ),
        steps=32,
    ),
    "latents": Row(
        OTHER_SPACES,
        "latents, decoded by SmolLM2 with LoRA",
        (
            Stage(
                "train_text_autoencoder",
                12.0,
                TEXTS
                | {
                    "encoder": "{minilm}",
                    "decoder": "{smollm2}",
                    "lora_rank": 32,
                    "quantization": "bf16",
                    "mixed_precision": "bf16",
                    "learning_rate": 1e-3,
                    "words_share": 0.15,
                    "train_batch_size": 16,
                    "lr_warmup_steps": 50,
                    "ema_decay": 0.99,
                },
            ),
            Stage(
                "train_latent_diffusion",
                MINUTES,
                TEXTS
                | {
                    "autoencoder": STAGE,
                    "train_batch_size": 64,
                    "max_train_samples": 12_000,
                    "lr_warmup_steps": 100,
                    "ema_decay": 0.999,
                },
            ),
        ),
        steps=20,
    ),
}
