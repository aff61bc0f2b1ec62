"""Trains the rows of benchmarks/adaptation.py by the recipe, on the clock of the CPU, and judges them on the way."""

import math
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from parts.adaptation.config import AdaptationBenchmarkConfig, Run
from parts.adaptation.rows import ROWS
from parts.common.cpu_clock import CpuClockLoop
from parts.common.recipes import QUIET, load_recipe, selected_options
from parts.common.results import Record, read_json, write_json
from text_diffusers.evaluation.estimates import count_tokens, counted_ids
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER, find_checkpoint

MOST_STEPS = 10_000_000  # the minutes end a training before
SHARED_OPTIONS = (
    "dataset",
    "sample_by",
    "length",
    "lr_warmup_steps",
    "ema_decay",
    "mixed_precision",
)
# What else the table says of all runs
TOLD_OPTIONS = ("dataset", "length", "mixed_precision", "anneal")


@dataclass
class Judge:
    """What is found of a run on the way, in a file, so that an interrupted one goes on with it.

    Attributes:
        run: that is judged.
        file: of the points.
        points: bits per character, after each of the minutes that are over.
        held_out: figures of the held-out text.
        parameters, trained: numbers of weights, all and those that training changes.
    """

    run: Run
    file: Path
    points: list[Record] = field(default_factory=list)
    held_out: Record = field(default_factory=dict)
    parameters: int = 0
    trained: int = 0

    def forget_after(self, step: int):
        """Begin with the points in the file, but those after a step to which training went back."""
        points = read_json(self.file) if self.file.exists() else []
        self.points = [point for point in points if point["steps"] <= step]

    def minutes_due(self, seconds: float) -> list[float]:
        """Minutes that are over and not judged yet."""
        judged = {point["minutes"] for point in self.points}
        return [
            minutes
            for minutes in self.run.minutes
            if 60 * minutes <= seconds and minutes not in judged
        ]

    def note(self, minutes: float, step: int, metrics: dict[str, float]):
        """Keep what the recipe has found, in nats per counted token, as bits per character."""
        scale = self.held_out["tokens_per_character"] / math.log(2)
        point = {"minutes": minutes, "steps": step}
        if ROWS[self.run.row].is_autoregressive:
            # The bound of blocks of one token is this loss, but for noise.
            point["bits"] = scale * metrics["ar_loss"]
        else:
            point["bits"] = scale * metrics["bound"]
            point["error"] = scale * metrics["standard_error"]
            if "ar_loss" in metrics:
                point["next_token_bits"] = scale * metrics["ar_loss"]
        self.points.append(point)
        write_json(self.file, self.points)
        print(
            f"{self.run.name}: {point['bits']:.3f} bits per character after {minutes:g} minutes, {step} steps",
            flush=True,
        )


@dataclass(eq=False)
class JudgedLoop(CpuClockLoop):
    """A training loop on the clock of the CPU that is judged after some minutes; what a judge takes is not counted."""

    judge: Any = None

    def __post_init__(self):
        super().__post_init__()
        self.judge.parameters = self.unwrapped.num_parameters()
        self.judge.trained = sum(weight.numel() for weight in self.state.parameters.values())

    def train_step(self) -> Any:
        self.judge_if_due()
        return super().train_step()

    def judge_if_due(self):
        for minutes in self.judge.minutes_due(self.elapsed):
            self._judge(minutes)
            # What was judged need not be trained again.
            if self.step:
                self.save(required=False)

    def run_validation(self):
        """Judge at the end."""
        for minutes in self.judge.minutes_due(math.inf):
            self._judge(minutes)

    def _judge(self, minutes: float):
        assert self.evaluate is not None
        with self.state.averaged() as model:
            metrics = self.evaluate(model)
        self.judge.note(minutes, self.step, metrics)

    def load(self):
        super().load()
        self.judge.forget_after(self.step)


def recipe_config(
    recipe: Any, run: Run, options: AdaptationBenchmarkConfig, resumes: bool = False
) -> Any:
    """The options of the recipe for a run.

    Raises:
        ValueError: if the row's model cannot be found, or is of another kind.
    """
    row = ROWS[run.row]
    model = getattr(options, row.folder) if row.folder else None
    # Frozen weights can be as narrow as what is computed with them.
    narrow = "lora_rank" in row.options and options.mixed_precision == "bf16"
    return recipe.D3PMConfig(
        output_dir=str(working_folder(run, options)),
        model_name_or_path=model,
        seed=run.seed,
        max_train_steps=MOST_STEPS,
        max_train_minutes=run.minutes[-1],
        validation_rows=options.held_out_rows,
        # Those after a judgement, and the one of an interruption, are all that is needed.
        checkpointing_steps=0,
        checkpoints_total_limit=1,
        overwrite_output_dir=not resumes,
        resume_from_checkpoint="latest" if resumes else None,
        quantization="bf16" if narrow else None,
        **QUIET,
        **selected_options(options, SHARED_OPTIONS),
        **row.options,
    )


def working_folder(run: Run, options: AdaptationBenchmarkConfig) -> Path:
    return options.folder / "working" / run.name


def train_and_judge(run: Run, options: AdaptationBenchmarkConfig) -> Record:
    """The record of a run, which goes on where it was interrupted."""
    # 1. What an interrupted run has left
    folder = working_folder(run, options)
    checkpoint, _ = find_checkpoint(folder / CHECKPOINT_FOLDER, "auto")
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    judge = Judge(run, folder / "points.json")

    # 2. A copy of the recipe, in which some parts are replaced
    recipe = load_recipe()
    recipe.TrainingLoop = partial(JudgedLoop, judge=judge)
    read_data = recipe.read_data

    def read_and_count(config: Any, accelerator: Any) -> Any:
        data = read_data(config, accelerator)
        judge.held_out = held_out_figures(data, options.held_out_rows)
        return data

    recipe.read_data = read_and_count
    # The judge has the figures.
    recipe.report = lambda config, pipe, data: {}

    # 3. Train, and keep the figures, and maybe the pipeline
    recipe.main(recipe_config(recipe, run, options, resumes=checkpoint is not None))
    if options.keep_models:
        shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
        kept = options.folder / "models" / run.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(exist_ok=True)
        folder.rename(kept)
    return record_of(run, judge) | selected_options(options, TOLD_OPTIONS)


def record_of(run: Run, judge: Judge) -> Record:
    row = ROWS[run.row]
    return {
        "row": run.row,
        "seed": run.seed,
        "start": row.start,
        "objective": row.objective,
        "parameters": judge.parameters,
        "trained": judge.trained,
        **judge.held_out,
        "points": judge.points,
    }


def held_out_figures(data: Any, num_rows: int) -> Record:
    """How the tokenizer spells the held-out texts, of which the first rows are judged.

    All vocabularies are measured by the characters of the texts as they are. Decoded tokens may have other ones, as
    where a space stands before each comma.

    Args:
        data: `TextData` with packed rows.
        num_rows: on which the model is judged.
    """
    tokenizer = data.tokenizer
    texts = data.validation_documents["text"]
    num_characters = sum(len(text) + 1 for text in texts)
    num_tokens = count_tokens(data.validation_rows)

    judged = data.spread_validation_rows(num_rows)
    unknown = tokenizer.unk_token_id
    num_unknown = sum(ids.count(unknown) for ids in counted_ids(data.validation_rows))
    return {
        "text": "lower case" if lowers_case(tokenizer) else "cased",
        "tokens_per_character": num_tokens / num_characters,
        "held_out_texts": len(texts),
        "held_out_rows": len(judged),
        "held_out_tokens": count_tokens(judged),
        "unknown_share": num_unknown / num_tokens,
        "vocabulary": len(tokenizer),
    }


def lowers_case(tokenizer: Any) -> bool:
    """Whether capitals are spelt as small letters, which costs less than to predict them.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> lowers_case(train_tokenizer(["Abba abba"] * 9, vocab_size=300))
        False
    """
    capitals, small = tokenizer(["ABC", "abc"], add_special_tokens=False)["input_ids"]
    return capitals == small
