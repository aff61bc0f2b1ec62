"""Train the diffusion models of two-level diffusion, over the codes that `train_vq_autoencoder.py` has learned.

    accelerate launch training_scripts/train_two_level.py --autoencoder runs/vq_autoencoder --dataset my_texts.txt \\
        --output_dir runs/two_level

Stage "coarse" learns to write coarse codes, the plan of a text; stage "fine" to write fine codes, its detail, from the
coarse ones. Each has a folder of its own in `output_dir`, with its checkpoints and logs, and can be run and resumed
alone; `max_train_steps` and the like hold for each. When both are done a `TwoLevelVQDiffusionPipeline` is saved. With
an autoencoder of one level there is only stage "fine". `num_samples` texts are written at the end, and
`num_length_samples` has no effect. Read it from top to bottom: options, data, models, loss, training, report. Shapes:
B batch, n codes of a row.
"""

import json
import shutil
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from transformers import HfArgumentParser

from text_diffusers import AutoencoderVQTextModel, CodeTransformerModel, D3PMAbsorbingScheduler, PromptEncoderModel
from text_diffusers.common.training_randomness import TIME_SAMPLINGS
from text_diffusers.evaluation.bounds import noisy_token_bound
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.evaluation.two_level import estimate_two_level_bound, per_token
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.code_initialization import start_from_codebooks
from text_diffusers.training.codes import (
    LEVELS,
    PromptedDenoiser,
    check_autoencoder_of,
    code_rows,
    load_prompt_encoder,
    note_autoencoder,
    same_prompt_encoder,
    shown_plans,
    shown_prompts,
    text_rows,
)
from text_diffusers.training.config import note_training
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import end_training, make_accelerator, refuse_shards
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    bound_metrics,
    prepare_data,
    refuse_parts_of_a_pipeline,
    row_order,
    rows_per_step,
)

SHARES = ("condition_dropout", "plan_corruption", "plan_dropout")


@dataclass
class TwoLevelConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    autoencoder: str | None = field(default=None, metadata={"help": "folder that train_vq_autoencoder.py made"})
    stage: str = field(default="all", metadata={"help": "coarse, fine, or all: one after the other"})
    prompt_length: int | None = field(
        default=None, metadata={"help": "most tokens of a prompt: the text before a row, or the source; default: none"}
    )
    source_column: str | None = field(
        default=None, metadata={"help": "column of the texts from which `text_column` is to be written"}
    )
    prompt_encoder: str | None = field(
        default=None, metadata={"help": "encoder of transformers that reads prompts, and stays as it is"}
    )
    condition_dropout: float = field(default=0.1, metadata={"help": "share of rows without their prompt"})
    plan_corruption: float = field(default=0.1, metadata={"help": "share of coarse codes that fine ones see wrong"})
    plan_dropout: float = field(default=0.1, metadata={"help": "share of fine rows without coarse codes and prompt"})
    min_timestep: float = field(default=0.1, metadata={"help": "in training, the interval below is one step"})
    time_sampling: str = field(default="log_uniform", metadata={"help": "times in training: log_uniform or uniform"})
    hidden_size: int = field(default=128, metadata={"help": "width of the transformers"})
    coarse_layers: int = field(default=4, metadata={"help": "blocks of the coarse denoiser"})
    fine_layers: int = field(default=4, metadata={"help": "blocks of the fine denoiser"})
    prompt_layers: int = field(default=2, metadata={"help": "blocks of the prompt encoder"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    dropout: float = field(default=0.0, metadata={"help": "in training"})

    def __post_init__(self):
        super().__post_init__()
        if not self.autoencoder:
            raise ValueError("`autoencoder` must be given, the folder that train_vq_autoencoder.py made.")
        refuse_parts_of_a_pipeline(self, ("tokenizer", "vocab_size"), "autoencoder", "autoencoder")
        choices = {"stage": (*LEVELS, "all"), "time_sampling": tuple(TIME_SAMPLINGS)}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known}, got {getattr(self, name)!r}.")
        for name in SHARES:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)!r}.")
        if self.source_column and self.prompt_length is None:
            self.prompt_length = self.length
        self._check_prompts()
        if self.resume_from_checkpoint not in (None, "latest", "auto") and self.stage == "all":
            raise ValueError("`resume_from_checkpoint` is the checkpoint of one stage: pass `stage` coarse or fine.")
        if Path(self.output_dir, "denoiser").exists() and not (
            self.overwrite_output_dir or self.resume_from_checkpoint
        ):
            raise ValueError(
                f"{self.output_dir!r} holds a trained denoiser: choose another `output_dir`, "
                "`--resume_from_checkpoint auto`, or `--overwrite_output_dir true`."
            )

    def _check_prompts(self):
        if self.label_column:
            raise ValueError("`label_column` is not used by this recipe: tell the model by prompts, `source_column`.")
        if self.prompt_length is not None and self.prompt_length < 1:
            raise ValueError(f"`prompt_length` must be None or at least 1, got {self.prompt_length!r}.")
        if self.prompt_encoder and self.prompt_length is None:
            raise ValueError("`prompt_encoder` needs prompts: `prompt_length`, or `source_column`.")
        if self.prompt_length is not None and self.packing == bool(self.source_column):
            raise ValueError(
                "`prompt_length` needs packed rows, or a `source_column` and `--packing false`, a row for a pair, got "
                f"`packing`={self.packing} and `source_column`={self.source_column!r}."
            )
        if self.min_length is not None and self.prompt_length is not None:
            raise ValueError("`min_length` cannot be used with prompts, which are not cut with their rows.")


# The stages, and what can be refused before any work is done


def load_autoencoder(config: TwoLevelConfig) -> Any:
    """The frozen autoencoder, checked to take rows of `length`, and of all shorter lengths that are read."""
    if not Path(str(config.autoencoder), "autoencoder").is_dir():
        raise FileNotFoundError(
            f"`autoencoder`={config.autoencoder!r} holds nothing that train_vq_autoencoder.py made."
        )
    autoencoder: Any = AutoencoderVQTextModel.from_pretrained(config.autoencoder, subfolder="autoencoder")
    needed = autoencoder.full_length(config.length)
    if needed != config.length:
        raise ValueError(f"`length` must be one that the autoencoder takes, such as {needed}, got {config.length}.")
    window = autoencoder.config.window_length
    if config.min_length is not None and config.min_length != config.length and config.min_length % window:
        raise ValueError(
            f"`min_length` must be a multiple of the autoencoder's `window_length`={window}, got {config.min_length}: "
            "the codes of a part of a window are not those of a shorter text."
        )
    return autoencoder.eval().requires_grad_(False)


def stage_configs(config: TwoLevelConfig, autoencoder: Any) -> list[TwoLevelConfig]:
    """The options of each stage to run, whose `output_dir` is its own folder."""
    levels = levels_of(autoencoder)
    if config.stage not in (*levels, "all"):
        raise ValueError(f"`stage` must be fine or all for an autoencoder of one level, got {config.stage!r}.")
    configs = []
    for level in levels if config.stage == "all" else (config.stage,):
        resume = config.resume_from_checkpoint
        if resume == "latest" and configs:  # an interrupted run may not have come to the later stage
            resume = "auto"
        folder = str(Path(config.output_dir, level))
        configs.append(replace(config, stage=level, output_dir=folder, resume_from_checkpoint=resume))
    return configs


def levels_of(autoencoder: Any) -> tuple[str, ...]:
    return LEVELS if autoencoder.config.coarse_ratio is not None else LEVELS[1:]


def check_other_stage(config: TwoLevelConfig, autoencoder: Any):
    """Whether a stage that is not run now, but was before or will be, goes with the prompts of this one."""
    prompted, levels = config.prompt_length is not None, levels_of(autoencoder)
    for level in levels:
        encoder = Path(config.output_dir, level, "prompt_encoder")
        done, with_prompts = encoder.with_name("denoiser").exists(), encoder.exists()
        if config.stage in (level, "all"):
            continue
        if done and with_prompts != prompted:
            had = "with" if with_prompts else "without"
            raise ValueError(f"`prompt_length`: stage {level} in {config.output_dir!r} was trained {had} prompts.")
        if done and config.prompt_encoder and not same_prompt_encoder(encoder, config.prompt_encoder):
            raise ValueError(f"`prompt_encoder`: stage {level} in {config.output_dir!r} was trained with another one.")
        if prompted and level == levels[0] and not with_prompts and not config.prompt_encoder:
            raise ValueError("`stage` fine needs the prompt encoder that `--stage coarse` trains: run that before.")
        if prompted and level != levels[0] and done and not config.prompt_encoder:
            raise ValueError(
                "`stage` coarse would train a prompt encoder that the fine denoiser in `output_dir` does not know: "
                "train both by `--stage all`, or choose another folder."
            )


# Data and models


def prepare_texts(config: TwoLevelConfig, accelerator: Any) -> TextData:
    """Rows of text, with their prompts if there are any, by the tokenizer of the autoencoder."""
    shaped = copy(config)  # rows that hold all that a row of text is made of, see `text_rows`
    if config.source_column:
        shaped.length = 2 * max(config.length, config.prompt_length or 0) + 4
    else:
        shaped.length = config.length + ((config.prompt_length or 0) if config.packing else 1)
    data = prepare_data(shaped, accelerator, f"{config.autoencoder}/tokenizer", source_column=config.source_column)
    options = data.tokenizer, config.length, config.prompt_length, config.packing
    with accelerator.main_process_first():
        data.train_rows = text_rows(data.train_rows, *options)
        data.validation_rows = text_rows(data.validation_rows, *options)
    for name, rows in (("train", data.train_rows), ("validation", data.validation_rows)):
        if next(iter(rows), None) is None:
            raise ValueError(f"`dataset` must have a text after a prompt in its {name} rows: shorten `prompt_length`.")
    return data


def build_model(config: TwoLevelConfig, autoencoder: Any, tokenizer: Any) -> PromptedDenoiser:
    """The denoiser of a stage and, with prompts, their encoder, which the first stage trains."""
    set_seed(config.seed)
    sizes, level = autoencoder.config, config.stage
    prompt_encoder, trained = make_prompt_encoder(config, autoencoder, tokenizer)
    told = level == "fine" and sizes.coarse_ratio is not None
    tokens_each = autoencoder.code_length if level == "coarse" else sizes.patch_length
    denoiser = CodeTransformerModel(
        vocab_size=(sizes.num_coarse_codes if level == "coarse" else sizes.num_fine_codes) + 1,
        hidden_size=config.hidden_size,
        num_layers=config.coarse_layers if level == "coarse" else config.fine_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.length // tokens_each,
        num_context_codes=sizes.num_coarse_codes if told else None,
        context_ratio=sizes.coarse_ratio if told else 1,
        prompt_size=None if prompt_encoder is None else prompt_encoder.config.hidden_size,
        dropout=config.dropout,
    )
    start_from_codebooks(denoiser, autoencoder, level)
    return PromptedDenoiser(denoiser, prompt_encoder, trained)


def make_prompt_encoder(config: TwoLevelConfig, autoencoder: Any, tokenizer: Any) -> tuple[Any, bool]:
    """`(prompt_encoder, trained)` of a stage: the first stage's, that of transformers, or a new one to be trained."""
    if config.prompt_length is None:
        return None, False
    first = levels_of(autoencoder)[0]
    saved = Path(config.output_dir).parent / first / "prompt_encoder"
    if config.stage != first and saved.exists():
        return load_prompt_encoder(saved, tokenizer, config.prompt_length), False
    if config.prompt_encoder:
        return load_prompt_encoder(config.prompt_encoder, tokenizer, config.prompt_length), False
    sizes = (config.hidden_size, config.prompt_layers, config.num_attention_heads)
    return PromptEncoderModel(len(tokenizer), *sizes, max_length=config.prompt_length), True


def main(
    config: TwoLevelConfig, on_validation: Callable[[int, dict[str, float]], None] | None = None
) -> dict[str, list[float]]:
    """Train the stages, save them and the pipeline; returns the loss of each step by stage, in nats per code."""
    autoencoder = load_autoencoder(config)
    configs = stage_configs(config, autoencoder)
    check_other_stage(config, autoencoder)
    for level in levels_of(autoencoder):
        if config.resume_from_checkpoint or config.stage not in (level, "all"):
            check_autoencoder_of(Path(config.output_dir, level), autoencoder)
    accelerator = make_accelerator(config)
    refuse_shards(accelerator)
    if config.overwrite_output_dir and not config.resume_from_checkpoint and accelerator.is_main_process:
        for stage in configs:  # else a run that is stopped and resumed would take up the old later stage
            shutil.rmtree(Path(stage.output_dir, CHECKPOINT_FOLDER), ignore_errors=True)
    data = prepare_texts(config, accelerator)
    autoencoder.to(accelerator.device)
    losses = {stage.stage: train_stage(stage, autoencoder, data, on_validation) for stage in configs}
    folders = [Path(config.output_dir, level) for level in levels_of(autoencoder)]
    if accelerator.is_main_process and all((folder / "denoiser").exists() for folder in folders):
        note_training(config, accelerator)
        report(config, save_pipeline(config, autoencoder, data).to(accelerator.device), data)
    end_training(accelerator)
    return losses


def train_stage(config: TwoLevelConfig, autoencoder: Any, data: TextData, on_validation: Any) -> list[float]:
    """Train the denoiser of `config.stage`, save it in `config.output_dir`; returns the loss of each step."""
    accelerator = make_accelerator(config)
    model = build_model(config, autoencoder, data.tokenizer)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if accelerator.is_main_process:
        note_autoencoder(Path(config.output_dir), autoencoder)
    accelerator.print(f"stage {config.stage}: {trained:,} parameters, {model.config.vocab_size - 1:,} codes")
    mask_id, num_plans = model.config.vocab_size - 1, model.config.num_context_codes
    scheduler = D3PMAbsorbingScheduler(mask_id, min_timestep=config.min_timestep)
    sample_times = TIME_SAMPLINGS[config.time_sampling]

    def loss_function(model, batch, uniform, generators):
        batch = shown_prompts(batch, generators, config.condition_dropout, suffixes=not config.source_column)
        batch = shown_plans(batch, generators, config.plan_corruption, config.plan_dropout, num_plans)
        uniform, weights = sample_times(uniform, config.min_timestep)
        times = scheduler.training_timesteps(uniform)  # (B,)
        noisy = scheduler.add_noise(batch["input_ids"], times, generators)  # (B, n)
        nats = noisy_token_bound(model, scheduler, batch, noisy, times)  # (B, n)
        return (nats.double().sum(dim=1) * weights).sum()

    with accelerator.main_process_first():
        train_codes = code_rows(autoencoder, data.train_rows, config.stage)
        validation_rows = data.spread_validation_rows(config.validation_rows)
        validation_codes = code_rows(autoencoder, validation_rows, config.stage)

    def evaluate(model) -> dict[str, float]:
        exact = D3PMAbsorbingScheduler(mask_id)  # its bound has no long step below `min_timestep`
        estimate = estimate_bound(model, exact, validation_codes, seed=config.seed, accelerator=accelerator)
        return per_token(estimate, validation_codes, validation_rows).metrics()

    order = row_order(config, train_codes, rows_per_step(config, accelerator))
    loop = TrainingLoop(config, accelerator, model, loss_function, order, evaluate, None, on_validation)
    losses = loop.run()
    averages = loop.state.averages()  # of all processes
    if accelerator.is_main_process:
        model.load_state_dict(model.state_dict() | averages)
        model.denoiser.eval().save_pretrained(Path(config.output_dir, "denoiser"))
        if model.prompt_encoder is not None:
            model.prompt_encoder.eval().save_pretrained(Path(config.output_dir, "prompt_encoder"))
        loop.log_pipeline({})
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return losses


def save_pipeline(config: TwoLevelConfig, autoencoder: Any, data: TextData) -> TwoLevelVQDiffusionPipeline:
    """Save the pipeline of all stages, as they are in their folders, and return it."""
    parts: dict[str, Any] = {}
    for level in levels_of(autoencoder):
        denoiser: Any = CodeTransformerModel.from_pretrained(Path(config.output_dir, level), subfolder="denoiser")
        parts[f"{level}_denoiser"] = denoiser.eval()
        parts[f"{level}_scheduler"] = D3PMAbsorbingScheduler(denoiser.config.vocab_size - 1)
    if config.prompt_length is not None:
        folder = Path(config.output_dir, levels_of(autoencoder)[0], "prompt_encoder")
        parts["prompt_encoder"] = load_prompt_encoder(folder, data.tokenizer, config.prompt_length)
    begins = config.prompt_length is not None and not config.source_column
    pipe = TwoLevelVQDiffusionPipeline(data.tokenizer, autoencoder, **parts, prompt_begins_text=begins)
    pipe.save_pretrained(config.output_dir)
    return pipe


def report(config: TwoLevelConfig, pipe: TwoLevelVQDiffusionPipeline, data: TextData) -> dict[str, float]:
    """Print, save and return what the models are worth on the held-out split, in nats per token of text."""
    bound = estimate_two_level_bound(pipe, data.validation_rows, seed=config.seed)
    metrics = bound_metrics(bound.total, data.validation_rows, None, []) | bound.metrics()
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{bound.table()}\nsaved in           {config.output_dir}")
    if config.num_samples:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(config.seed)
        for text in pipe(num_return_sequences=config.num_samples, generator=generator).texts or []:
            print(f"\n{text}")
    return metrics


if __name__ == "__main__":
    try:
        main(HfArgumentParser(TwoLevelConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_two_level.py: {error}")
