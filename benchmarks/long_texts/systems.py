"""The three systems of benchmarks/two_level.py: their sizes and training, what a text of theirs costs, and writing.

Shapes: B texts, L tokens of a text, C coarse codes of a text.
"""

import ctypes
import gc
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from learning.models import load_recipe
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer

import text_diffusers
from long_texts.config import (
    ONE_LEVEL,
    ORACLE,
    SHUFFLED,
    TOKENS,
    TWO_LEVEL,
    UNTOLD,
    WRITTEN,
    Cell,
    Cost,
    Steps,
    TwoLevelConfig,
)
from text_diffusers import CodeTransformerModel, TextDiffusionPipeline, TextTransformerModel
from text_diffusers.data.sources import load_documents, split_documents, train_tokenizer

SEED_STRIDE = 1_000_003
WIDTH_MULTIPLE = 2  # of the heads: a head's width is even
COUNTED_TEXTS = 2
MEMORY_TEXTS = 8
QUIET = {
    **{"num_samples": 0, "num_length_samples": 0, "validation_steps": 0, "validation_rows": 64},
    **{"report_to": ["none"], "num_cpu_threads": 1, "resume_from_checkpoint": "auto"},
}


# --- sizes


def level_sizes(options: TwoLevelConfig, system: str) -> dict[str, Any]:
    """What the recipe of the autoencoder is told of its codes."""
    names = ("patch_length", "coarse_ratio", "num_fine_codes", "num_coarse_codes", "num_attention_heads")
    names += ("window_length",)
    sizes = {name: getattr(options, name) for name in names}
    return sizes | {"levels": 2 if system == TWO_LEVEL else 1, "hidden_size": options.hidden_size}


def autoencoder_parameters(options: TwoLevelConfig, system: str, tokenizer: Any) -> int:
    """Parameters of the autoencoder of a system, as its recipe builds it."""
    recipe = load_recipe("train_vq_autoencoder")
    config = recipe.AutoencoderConfig(output_dir="", length=options.length, **level_sizes(options, system))
    return recipe.build_model(config, len(tokenizer), tokenizer.mask_token_id).num_parameters()


def denoiser_parameters(options: TwoLevelConfig, tokenizer: Any, kind: str, width: int) -> int:
    """Parameters of a denoiser: "coarse" or "fine" of two levels, that of "one-level", or of "tokens"."""
    layers = options.num_layers if kind in ("coarse", "fine") else options.baseline_layers
    sizes = {"hidden_size": width, "num_layers": layers, "num_attention_heads": options.num_attention_heads}
    with torch.device("meta"):
        if kind == TOKENS:
            ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
            return TextTransformerModel(len(tokenizer), time_conditioning=False, **sizes, **ids).num_parameters()
        told = {"num_context_codes": options.num_coarse_codes, "context_ratio": options.coarse_ratio}
        codes = options.num_coarse_codes if kind == "coarse" else options.num_fine_codes
        return CodeTransformerModel(codes + 1, **sizes, **(told if kind == "fine" else {})).num_parameters()


def system_parameters(options: TwoLevelConfig, system: str, tokenizer: Any, width: int) -> int:
    """Parameters of all parts; `width` is that of a baseline's denoiser."""
    if system == TOKENS:
        return denoiser_parameters(options, tokenizer, TOKENS, width)
    autoencoder = autoencoder_parameters(options, system, tokenizer)
    if system == ONE_LEVEL:
        return autoencoder + denoiser_parameters(options, tokenizer, ONE_LEVEL, width)
    levels = (denoiser_parameters(options, tokenizer, kind, options.hidden_size) for kind in ("coarse", "fine"))
    return autoencoder + sum(levels)


def matched_width(options: TwoLevelConfig, system: str, tokenizer: Any) -> int:
    """The width of a baseline's denoiser that brings its system closest to the parameters of two levels."""
    if system == TWO_LEVEL:
        return options.hidden_size
    target = system_parameters(options, TWO_LEVEL, tokenizer, options.hidden_size)
    rest = autoencoder_parameters(options, ONE_LEVEL, tokenizer) if system == ONE_LEVEL else 0
    step = WIDTH_MULTIPLE * options.num_attention_heads
    kind = ONE_LEVEL if system == ONE_LEVEL else TOKENS

    def distance(width: int) -> int:
        return abs(rest + denoiser_parameters(options, tokenizer, kind, width) - target)

    width = step
    while distance(width + step) < distance(width):
        width += step
    return width


# --- training


def shared_tokenizer(options: TwoLevelConfig) -> Any:
    """The tokenizer of all systems and seeds, made once from the training texts."""
    folder = Path(options.output_dir, "tokenizer")
    if not folder.exists():
        train, _ = split_documents(load_documents(options.dataset), options.validation_fraction)
        unfinished = folder.with_name(f"tokenizer.{os.getpid()}")
        train_tokenizer(train["text"], options.vocab_size).save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    return AutoTokenizer.from_pretrained(folder)


def run_folder(options: TwoLevelConfig, system: str, seed: int) -> Path:
    return Path(options.output_dir, "models", f"{system}-seed{seed}")


def pipeline_folder(options: TwoLevelConfig, system: str, seed: int) -> Path:
    folder = run_folder(options, system, seed)
    return folder if system == TOKENS else folder / "codes"


def is_trained(options: TwoLevelConfig, system: str, seed: int) -> bool:
    """Whether the figures of the last part are there, which is written when all is done."""
    return (pipeline_folder(options, system, seed) / "metrics.json").exists()


def train(options: TwoLevelConfig, system: str, seed: int):
    """Train what is not trained of a system, by the recipes; parts that were interrupted go on."""
    tokenizer = shared_tokenizer(options)
    width, folder = matched_width(options, system, tokenizer), run_folder(options, system, seed)
    names = ("dataset", "validation_fraction", "max_train_steps", "lr_warmup_steps", "checkpointing_steps")
    shared = {name: getattr(options, name) for name in names} | QUIET | {"seed": seed}
    rows = {name: getattr(options, name) for name in ("length", "min_length", "learning_rate")}
    sizes = {"hidden_size": width, "num_attention_heads": options.num_attention_heads, "ema_decay": options.ema_decay}
    if system == TOKENS:
        recipe, layers = load_recipe(), {"num_layers": options.baseline_layers}
        own = {"output_dir": str(folder), "tokenizer": str(Path(options.output_dir, "tokenizer"))}
        own |= {"max_train_minutes": options.train_minutes, "train_batch_size": options.train_batch_size}
        recipe.main(recipe.D3PMConfig(**shared, **rows, **sizes, **layers, **own))
        return
    minutes = options.train_minutes * options.autoencoder_share
    if not (folder / "autoencoder" / "metrics.json").exists():
        recipe = load_recipe("train_vq_autoencoder")
        own = {"output_dir": str(folder / "autoencoder"), "tokenizer": str(Path(options.output_dir, "tokenizer"))}
        own |= level_sizes(options, system) | {"max_train_minutes": minutes, "length": options.window_length}
        own |= {"train_batch_size": options.autoencoder_batch_size}
        recipe.main(recipe.AutoencoderConfig(**shared, **own))
    left = options.train_minutes - minutes
    stages = {"coarse": left * options.coarse_share, "fine": left * (1 - options.coarse_share)}
    recipe = load_recipe("train_two_level")
    for stage, minutes in stages.items() if system == TWO_LEVEL else [("fine", left)]:
        layers = options.num_layers if system == TWO_LEVEL else options.baseline_layers
        own = {"output_dir": str(folder / "codes"), "autoencoder": str(folder / "autoencoder"), "stage": stage}
        own |= {"coarse_layers": layers, "fine_layers": layers, "max_train_minutes": minutes}
        own |= {"train_batch_size": getattr(options, f"{stage}_batch_size")}
        recipe.main(recipe.TwoLevelConfig(**shared, **rows, **sizes, **own))


# --- writing


def load_pipeline(options: TwoLevelConfig, system: str, seed: int) -> Any:
    """The pipeline of a trained system, with the samplers that the options ask for.

    Raises:
        FileNotFoundError: if it is not trained.
    """
    if not is_trained(options, system, seed):
        raise FileNotFoundError(f"`{run_folder(options, system, seed)}` is not trained: `--stage train` comes before.")
    pipe = TextDiffusionPipeline.from_pretrained(pipeline_folder(options, system, seed))
    pipe.set_progress_bar_config(disable=True)
    for name in ("scheduler", "coarse_scheduler", "fine_scheduler"):
        if (scheduler := getattr(pipe, name, None)) is not None:
            sampler: Any = getattr(text_diffusers, options.sampler) if options.sampler else type(scheduler)
            shaped = {"temperature": options.temperature, "top_p": options.top_p}
            setattr(pipe, name, sampler.from_config(scheduler.config, **shaped))
    return pipe


def parameters_of(pipe: Any) -> int:
    """Of all parts of a pipeline."""
    models = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def oracle_plans(pipe: Any, rows: Tensor) -> Tensor:
    """(B, C) coarse codes of real texts (B, L)."""
    return pipe.autoencoder.encode(rows).coarse


def shuffled_plans(plans: Tensor, seed: int) -> Tensor:
    """(B, C) plans in which each place has the codes of all texts, but in another order."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(plans), generator=generator) for _ in range(plans.shape[1])]
    return plans.gather(0, torch.stack(orders, dim=1))


def plans_of(pipe: Any, cell: Cell, rows: Tensor) -> Tensor | None:
    """(B, C) plans that a cell is given, from as many real texts (B, L); None if it writes its own."""
    if cell.plan not in (ORACLE, SHUFFLED):
        return None
    plans = oracle_plans(pipe, rows)
    return plans if cell.plan == ORACLE else shuffled_plans(plans, cell.seed)


def write(pipe: Any, cell: Cell, first: int, count: int, plans: Tensor | None = None) -> list[list[int]]:
    """Tokens of texts `first` to `first + count` of a cell, without special ones; each has a seed of its own.

    A text of the token model begins after a start token, which its row of L tokens holds too. Untold is a text whose
    fine denoiser does not know the plan that its decoder is given.
    """
    seeds = range(SEED_STRIDE * cell.seed + first, SEED_STRIDE * cell.seed + first + count)
    arguments: dict[str, Any] = {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    arguments |= {"output_type": "tokens"}
    if plans is None:
        arguments["num_return_sequences"] = count
    else:
        arguments["plan"] = plans[first : first + count]
    if cell.system == TOKENS:
        output = pipe(max_new_tokens=cell.length - 1, num_inference_steps=cell.steps.fine, **arguments)
    else:
        steps = {"num_fine_steps": cell.steps.fine, "num_coarse_steps": max(1, cell.steps.coarse)}
        scale = {"fine_guidance_scale": 0.0} if cell.plan == UNTOLD else {}
        output = pipe(max_new_tokens=cell.length, **steps, **scale, **arguments)
    special = set(pipe.tokenizer.all_special_ids)
    return [[token for token in row if token not in special] for row in output.tokens.tolist()]


def count_flops(run: Callable[[], Any]) -> int:
    """FLOPs of a call, two for each multiplication of a matrix product; attention is counted in its plain form.

    The counter does not know the fused attention of the CPU.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def flops_of_text(pipe: Any, cell: Cell, plans: Tensor | None = None) -> float:
    """Mean over the first texts of a cell, each written alone."""
    return (
        sum(count_flops(partial(write, pipe, cell, text, 1, plans)) for text in range(COUNTED_TEXTS)) / COUNTED_TEXTS
    )


def measured_cost(pipe: Any, system: str, length: int) -> Cost:
    """What a text costs, from calls of one step a level and of one more: with so few no step is without work."""

    def flops(fine: int, coarse: int = 0) -> int:
        return round(flops_of_text(pipe, Cell(system, 0, length, Steps(fine, coarse))))

    if system != TWO_LEVEL:
        one = flops(1)
        each = flops(2) - one
        return Cost(one - each, each)
    one = flops(1, 1)
    fine, coarse = flops(2, 1) - one, flops(1, 2) - one
    return Cost(one - fine - coarse, fine, coarse)


def write_cell(pipe: Any, cell: Cell, options: TwoLevelConfig, rows: Tensor | None) -> dict[str, Any]:
    """The record of a cell: its texts, CPU seconds, and FLOPs of a text; `rows` (B, L) are real texts for plans."""
    count = options.texts_of(cell.length)
    plans = None if rows is None or cell.plan == WRITTEN else plans_of(pipe, cell, rows[:count])
    at_once = max(1, options.batch_tokens // cell.length)
    tokens: list[list[int]] = []
    started = time.process_time()
    for first in range(0, count, at_once):
        tokens += write(pipe, cell, first, min(at_once, count - first), plans)
    seconds = time.process_time() - started
    return {
        **{"system": cell.system, "seed": cell.seed, "length": cell.length, "plan": cell.plan},
        **{"coarse_steps": cell.steps.coarse, "fine_steps": cell.steps.fine},
        **{"tokens_per_second": count * cell.length / seconds, "flops": flops_of_text(pipe, cell, plans)},
        **{"tokens": tokens, "texts": [text.strip() for text in pipe.tokenizer.batch_decode(tokens)]},
    }


def peak_memory(options: TwoLevelConfig, system: str, seed: int, length: int) -> float:
    """MiB of resident memory (on Linux) at the peak of writing a few texts, beyond the loaded pipeline."""
    pipe = load_pipeline(options, system, seed)
    steps = Steps(1, 1) if system == TWO_LEVEL else Steps(1)
    write(pipe, Cell(system, seed, min(options.lengths), steps), 0, 1)  # libraries allocate on first use
    return peak_of(partial(write, pipe, Cell(system, seed, length, steps), 0, MEMORY_TEXTS))


def peak_of(run: Callable[[], Any]) -> float:
    """MiB by which resident memory grows at the peak of a call, whatever this process has used and freed before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would be used again and not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak is forgotten
    base = resident_memory("VmRSS")
    run()
    return resident_memory("VmHWM") - base


def resident_memory(name: str) -> float:
    """MiB that Linux knows of this process: "VmRSS", now, or "VmHWM", at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
