"""Trains and evaluates one model of benchmarks/quality.py.

Shapes: B batch, L row length, V vocabulary size.
"""

import importlib.util
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from common.comparison import (
    DATA,
    read_json,
    write_json,
)
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

import text_diffusers
from learning.autoregressive import AutoregressiveModel
from learning.config import GPT2, ModelSpec, QualityConfig
from text_diffusers import TextTransformerModel
from text_diffusers.data.rows import ShuffledRows, tensor_batches, tokenize
from text_diffusers.data.sources import (
    EOS_TOKEN,
    MASK_TOKEN,
    PAD_TOKEN,
    load_documents,
    split_documents,
    train_tokenizer,
)
from text_diffusers.evaluation.likelihood import estimate_bound, unigram_entropy
from text_diffusers.evaluation.text_metrics import distinct_n, token_entropy
from text_diffusers.training.initialization import cooccurrence_vectors
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import make_accelerator

WARM_UP_STEPS, TIMED_STEPS, TIMINGS = 5, 20, 3
COUNTED_ROWS = 200_000
WRITTEN_AT_ONCE = 64


def load_recipe(name: str = "train_d3pm") -> Any:
    """A module of training_scripts, loaded anew: what is put into it stays here."""
    path = Path(__file__).parent.parent.parent / "training_scripts" / f"{name}.py"
    spec: Any = importlib.util.spec_from_file_location(f"{name}_of_a_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


# --- the text


def character_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token a character: `[EOS]`, the characters of the texts, `[PAD]`, `[MASK]`; ids as in `train_tokenizer`."""
    alphabet = sorted(set().union(*texts))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([EOS_TOKEN, *alphabet])}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([EOS_TOKEN, PAD_TOKEN, MASK_TOKEN])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=MASK_TOKEN,
        clean_up_tokenization_spaces=False,
    )


@dataclass
class HeldOut:
    """The held-out rows, all their characters (one more for each end of a text), and the tokenizer."""

    tokenizer: Any
    rows: Any
    num_characters: int


def prepare_text(options: QualityConfig) -> HeldOut:
    """Make the tokenizer, or load the one of earlier runs, and cut the held-out texts into rows."""
    folder = Path(options.output_dir, "tokenizer")
    documents = load_documents(options.dataset, sample_by=options.sample_by)
    train, validation = split_documents(documents)
    if not folder.exists():
        if options.characters:  # of the whole text, so that each held-out one has a token
            made = character_tokenizer(documents["text"])
        else:
            made = train_tokenizer(train["text"], options.vocab_size)
        unfinished = folder.with_name(f"tokenizer.{os.getpid()}")
        made.save_pretrained(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(unfinished)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenize(validation, tokenizer, options.length)
    return HeldOut(tokenizer, rows, sum(len(text) + 1 for text in validation["text"]))


# --- models of one size


def feed_forward_width(count: Callable[[int], int], target: int) -> int:
    """The width at which `count(width)` parameters, a linear function, come closest to the target."""
    slope = count(2) - count(1)
    return max(1, round(1 + (target - count(1)) / slope))


def gpt2_config(options: QualityConfig, tokenizer: Any, width: int | None = None) -> GPT2Config:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": None}
    sizes = {"n_positions": options.length, "n_embd": options.hidden_size, "n_inner": width}
    depth = {"n_layer": options.num_layers, "n_head": options.num_attention_heads}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2Config(vocab_size=len(tokenizer), tie_word_embeddings=False, **ends, **sizes, **depth, **dropout)


def denoiser_parameters(options: QualityConfig, tokenizer: Any, conditioned: bool, width: int) -> int:
    """Parameters of the denoiser with feed-forward layers of that width."""
    with torch.device("meta"):
        model = TextTransformerModel(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            num_attention_heads=options.num_attention_heads,
            feed_forward_ratio=ratio_of_width(options, width),
            max_length=options.length,
            time_conditioning=conditioned,
        )
    return model.num_parameters()


def ratio_of_width(options: QualityConfig, width: int) -> float:
    return (width + 0.5) / options.hidden_size  # the model rounds down


def gpt2_parameters(options: QualityConfig, tokenizer: Any, width: int) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in AutoregressiveModel(gpt2_config(options, tokenizer, width)).parameters())


def matched_width(spec: ModelSpec, options: QualityConfig, tokenizer: Any) -> int:
    """Of the feed-forward layers: 4 times the model's, or what gives it the parameters of a denoiser with time."""
    usual = 4 * options.hidden_size
    if spec.kernel not in ("absorbing", GPT2):
        return usual
    target = denoiser_parameters(options, tokenizer, options.equal_parameters, usual)
    count = gpt2_parameters if spec.kernel == GPT2 else partial(denoiser_parameters, conditioned=False)
    return feed_forward_width(lambda width: count(options, tokenizer, width=width), target)


# --- training and evaluating one model


class CalibratedError(Exception):
    """Ends a run that only measures the cost of a step."""


def timed_loop(seconds: list[float]) -> type[TrainingLoop]:
    """A training loop that appends the CPU seconds of each step."""

    class TimedLoop(TrainingLoop):
        def train_step(self):
            started = time.process_time()
            result = super().train_step()
            seconds.append(time.process_time() - started)
            return result

    return TimedLoop


@dataclass
class TrainedDiffusion:
    """What main of the recipe saved, but its tokenizer."""

    denoiser: Any
    scheduler: Any

    @classmethod
    def load(cls, folder: Path) -> "TrainedDiffusion":
        scheduler_class = getattr(text_diffusers, read_json(folder / "model_index.json")["scheduler"][1])
        scheduler = scheduler_class.from_pretrained(folder, subfolder="scheduler")
        return cls(TextTransformerModel.from_pretrained(folder, subfolder="denoiser").eval(), scheduler)


class Trainer:
    """Trains the models of one comparison; `working` is a folder that it empties."""

    def __init__(self, options: QualityConfig, held_out: HeldOut):
        self.options, self.held_out = options, held_out
        self.working = Path(options.output_dir, f"working-{os.getpid()}")

    def config(self, recipe: Any, spec: ModelSpec, seed: int, max_train_steps: int) -> Any:
        options = self.options
        shared = ("dataset", "sample_by", "length", "hidden_size", "num_layers", "num_attention_heads")
        shared += ("train_batch_size", "lr_warmup_steps", "ema_decay", "init_embeddings", "reverse_rule")
        quiet = {"validation_steps": 0, "checkpointing_steps": 0, "report_to": ["none"], "validation_rows": 1}
        quiet |= {"num_samples": 0, "num_length_samples": 0, "num_cpu_threads": 1, "overwrite_output_dir": True}
        return recipe.D3PMConfig(
            output_dir=str(self.working),
            tokenizer=str(Path(options.output_dir, "tokenizer")),
            kernel="absorbing" if spec.kernel == GPT2 else spec.kernel,
            auxiliary_weight=spec.auxiliary_weight,
            learning_rate=spec.learning_rate,
            seed=seed,
            max_train_steps=max_train_steps,
            **quiet,
            **{name: getattr(options, name) for name in shared},
        )

    def run(self, spec: ModelSpec, seed: int, max_train_steps: int, calibration: bool = False) -> tuple[Any, list]:
        """The `TrainedDiffusion` or `AutoregressiveModel`, and the CPU seconds of each step."""
        shutil.rmtree(self.working, ignore_errors=True)
        recipe, seconds = load_recipe(), []
        recipe.TrainingLoop = timed_loop(seconds)
        config = self.config(recipe, spec, seed, max_train_steps)
        width = matched_width(spec, self.options, self.held_out.tokenizer)
        try:
            if spec.kernel == GPT2:
                return self.train_gpt2(recipe, config, width), seconds
            recipe.TextTransformerModel = partial(
                TextTransformerModel, feed_forward_ratio=ratio_of_width(self.options, width)
            )
            recipe.main(config, on_validation=calibrated if calibration else None)
            return TrainedDiffusion.load(self.working), seconds
        except CalibratedError:
            return None, seconds
        finally:
            shutil.rmtree(self.working, ignore_errors=True)

    def train_gpt2(self, recipe: Any, config: Any, width: int) -> AutoregressiveModel:
        """As `main` of the recipe trains a denoiser, with the averaged weights at the end."""
        accelerator = make_accelerator(config)
        data = recipe.prepare_data(config, accelerator)
        set_seed(config.seed)
        model = AutoregressiveModel(gpt2_config(self.options, data.tokenizer, width), special_ids(data.tokenizer))
        vectors = None
        if config.init_embeddings == "cooccurrence":
            counted = tensor_batches(data.train_rows, COUNTED_ROWS)
            words = min(special_ids(data.tokenizer))
            vectors = cooccurrence_vectors(counted, len(data.tokenizer), config.hidden_size)[:words]
        model.initialize(vectors, self.options.gpt2_init == "project")

        def loss_function(model, batch, uniform, generators):
            return model(batch["input_ids"], batch["attention_mask"]).double().sum()

        order = ShuffledRows(data.train_rows, config.train_batch_size, config.seed)
        loop = recipe.TrainingLoop(config, accelerator, model, loss_function, order)
        loop.run()
        model.load_state_dict(loop.state.averages(), strict=False)  # buffers are as they were
        return model.eval()

    def step_cost(self, spec: ModelSpec) -> float:
        """CPU seconds of a training step, the least of some means; measured once for all runs of a kernel."""
        path = Path(self.options.output_dir, "calibration", f"{spec.kernel}.json")
        if not path.exists():
            _, seconds = self.run(spec, 0, WARM_UP_STEPS + TIMINGS * TIMED_STEPS, calibration=True)
            starts = range(WARM_UP_STEPS, len(seconds), TIMED_STEPS)
            least = min(statistics.fmean(seconds[start : start + TIMED_STEPS]) for start in starts)
            write_json(path, {"seconds_per_step": least})
        return read_json(path)["seconds_per_step"]


def calibrated(step: int, metrics: dict[str, float]):
    raise CalibratedError


def special_ids(tokenizer: Any) -> list[int]:
    """Ids that no text holds."""
    return [tokenizer.pad_token_id, tokenizer.mask_token_id]


@torch.no_grad()
def write_rows(model: Any, options: QualityConfig, num_rows: int, seed: int) -> list[list[int]]:
    """Rows of L tokens, all of them written; ends of texts are tokens like others."""
    if isinstance(model, AutoregressiveModel):
        return model.write(num_rows, seed).tolist()
    generators = [torch.Generator().manual_seed(1_000_003 * seed + row) for row in range(num_rows)]
    denoiser, scheduler = model.denoiser, model.scheduler
    scheduler.set_timesteps(options.steps)
    tokens = scheduler.prior((num_rows, options.length), generators)  # (B, L)
    for timestep in scheduler.timesteps.tolist():
        positions = scheduler.select(timestep, tokens, generators)
        rows = positions.any(dim=1)
        if rows.any():
            times = scheduler.model_timesteps(timestep, tokens)[rows]
            logits = denoiser(tokens[rows], times, positions=positions[rows]).logits  # (N, V)
        else:
            logits = torch.zeros(0, denoiser.config.vocab_size)
        step = scheduler.step(logits, timestep, tokens, positions=positions, generator=generators)
        tokens = step.prev_sample
    return tokens.tolist()


def likelihood(model: Any, options: QualityConfig, held_out: HeldOut) -> dict[str, float]:
    """Nats per token of the held-out rows, their standard error for other rows and noise, and bits per character."""
    num_tokens = sum(map(sum, held_out.rows["attention_mask"]))
    if isinstance(model, AutoregressiveModel):
        nats, tokens = model.row_nats(held_out.rows)
        per_token, error = float(nats.sum() / tokens.sum()), float(nats.std() / tokens.mean() / len(nats) ** 0.5)
    else:
        per_token, error, _ = estimate_bound(model.denoiser, model.scheduler, held_out.rows, options.num_times)
    bits = per_token * num_tokens / held_out.num_characters / math.log(2)
    return {"nats_per_token": per_token, "standard_error": error, "bits_per_character": bits}


def diversity(rows: list[list[int]], tokenizer: Any) -> dict[str, Any]:
    """Entropy and distinct n-grams of rows, and their texts, a line each."""
    ngrams = {f"distinct_{n}": distinct_n(rows, n) for n in (1, 2, 3)}
    texts = []
    for row in rows:
        pieces: list[list[int]] = [[]]
        for token in row:
            pieces[-1].append(token)
            if token == tokenizer.eos_token_id:
                pieces.append([])
        texts.append("\n".join(tokenizer.batch_decode(pieces, skip_special_tokens=True)).strip())
    return {"entropy": token_entropy(rows)} | ngrams | {"texts": texts}


def evaluate_data(options: QualityConfig, held_out: HeldOut) -> dict[str, Any]:
    """The same figures of held-out rows, spread over all full ones; in place of a bound, the unigram entropy."""
    full = [row["input_ids"] for row in held_out.rows if all(row["attention_mask"])]
    spread = full[:: max(1, len(full) // options.num_samples)][: options.num_samples]
    entropy = {"unigram_entropy": unigram_entropy(held_out.rows)}
    return {"model": DATA, "seed": 0} | entropy | diversity(spread, held_out.tokenizer)


def run_one(trainer: Trainer, spec: ModelSpec, seed: int) -> dict[str, Any]:
    """Train and evaluate one model and seed."""
    options, held_out = trainer.options, trainer.held_out
    cost = trainer.step_cost(spec)
    steps = max(1, round(60 * options.cpu_minutes / cost))
    print(f"{spec.name}, seed {seed}: {1000 * cost:.1f} CPU ms a step, {steps:,} steps", flush=True)
    model, seconds = trainer.run(spec, seed, steps)
    network = model if spec.kernel == GPT2 else model.denoiser
    rows = []
    for first in range(0, options.num_samples, WRITTEN_AT_ONCE):
        count = min(WRITTEN_AT_ONCE, options.num_samples - first)
        rows += write_rows(model, options, count, 1_000 * seed + first)
    return {
        **asdict(spec),
        "model": spec.name,
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds_per_step": cost,
        "steps": steps,
        "cpu_minutes": sum(seconds) / 60,
        **likelihood(model, options, held_out),
        **diversity(rows, held_out.tokenizer),
    }
