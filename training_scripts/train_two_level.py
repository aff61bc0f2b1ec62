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

import shutil
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed

from text_diffusers import (
    AutoencoderVQTextModel,
    CodeTransformerModel,
    D3PMAbsorbingScheduler,
    PromptEncoderModel,
)
from text_diffusers.data.code_rows import LEVELS, code_rows, text_rows
from text_diffusers.evaluation.bounds import predict
from text_diffusers.evaluation.held_out import report_rows
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.evaluation.two_level import estimate_two_level_bound, per_token
from text_diffusers.models.prompted_denoiser import PromptedDenoiser
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.config import note_training, option, refuse_parts_of_a_pipeline
from text_diffusers.training.initialization import start_from_codebooks
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics
from text_diffusers.training.runtime import end_training, make_accelerator, refuse_shards
from text_diffusers.training.steps.codes import (
    check_autoencoder_of,
    load_prompt_encoder,
    note_autoencoder,
    same_prompt_encoder,
    shown_plans,
    shown_prompts,
)
from text_diffusers.training.steps.tokens import ALL_TIME_SAMPLINGS, TokenCorruption
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    prepare_data,
    row_order,
    rows_per_step,
)


@dataclass
class TwoLevelConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # What is trained, and on which codes
    autoencoder: str | None = option(None, "folder that train_vq_autoencoder.py made")
    stage: str = option("all", "coarse, fine, or all: one after the other", one_of=(*LEVELS, "all"))

    # Prompts
    prompt_length: int | None = option(
        None,
        "most tokens of a prompt: the text before a row, or the source; default: none",
        limit="at least 1",
    )
    source_column: str | None = option(
        None, "column of the texts from which `text_column` is to be written"
    )
    prompt_encoder: str | None = option(
        None, "encoder of transformers that reads prompts, and stays as it is"
    )

    # Prompts and plans that training hides or spoils, for guidance and robustness
    condition_dropout: float = option(0.1, "share of rows without their prompt", limit="in [0, 1)")
    plan_corruption: float = option(
        0.1, "share of coarse codes that fine ones see wrong", limit="in [0, 1)"
    )
    plan_dropout: float = option(
        0.1, "share of fine rows without coarse codes and prompt", limit="in [0, 1)"
    )

    # Loss
    min_timestep: float = option(0.1, "in training, the interval below is one step")
    time_sampling: str = option(
        "log_uniform", ", ".join(ALL_TIME_SAMPLINGS), one_of=ALL_TIME_SAMPLINGS
    )

    # Transformers
    hidden_size: int = option(128, "width of the transformers")
    coarse_layers: int = option(4, "blocks of the coarse denoiser")
    fine_layers: int = option(4, "blocks of the fine denoiser")
    prompt_layers: int = option(2, "blocks of the prompt encoder")
    num_attention_heads: int = option(4, "heads")
    dropout: float = option(0.0, "in training")

    def __post_init__(self):
        super().__post_init__()
        if not self.autoencoder:
            raise ValueError(
                "`autoencoder` must be given, the folder that train_vq_autoencoder.py made."
            )
        refuse_parts_of_a_pipeline(self, what="autoencoder", option="autoencoder")
        # The name of one checkpoint can belong to one stage only.
        if self.resume_from_checkpoint not in (None, "latest", "auto") and self.stage == "all":
            raise ValueError(
                "`resume_from_checkpoint` is the checkpoint of one stage: pass `stage` coarse or fine."
            )

        # A source is a prompt, by default of as many tokens as the text.
        if self.source_column and self.prompt_length is None:
            self.prompt_length = self.length
        if self.label_column:
            raise ValueError(
                "`label_column` is not used by this recipe: tell the model by prompts, `source_column`."
            )
        if self.prompt_length is None:
            if self.prompt_encoder:
                raise ValueError(
                    "`prompt_encoder` needs prompts: `prompt_length`, or `source_column`."
                )
            return

        # A prompt is the first part of a packed row, or the source of a pair in a row of its own.
        if self.packing == bool(self.source_column):
            raise ValueError(
                "`prompt_length` needs packed rows, or a `source_column` and `--packing false`, a row for a pair, got "
                f"`packing`={self.packing} and `source_column`={self.source_column!r}."
            )
        if self.min_length is not None:
            raise ValueError(
                "`min_length` cannot be used with prompts, which are not cut with their rows."
            )


# The stages, and what can be refused before any work is done


def load_autoencoder(config: TwoLevelConfig) -> Any:
    """The frozen autoencoder, checked to take rows of `length`, and of all shorter lengths that are read."""
    if not Path(str(config.autoencoder), "autoencoder").is_dir():
        raise FileNotFoundError(
            f"`autoencoder`={config.autoencoder!r} holds nothing that train_vq_autoencoder.py made."
        )
    # The codes must stay what they mean, so the autoencoder is not trained further.
    autoencoder: Any = AutoencoderVQTextModel.from_pretrained(
        config.autoencoder, subfolder="autoencoder"
    )

    full_length = autoencoder.full_length(config.length)
    if full_length != config.length:
        raise ValueError(
            f"`length` must be one that the autoencoder takes, such as {full_length}, got {config.length}."
        )
    # A window is encoded as a whole, so a part of it has no codes of its own.
    window = autoencoder.config.window_length
    if config.min_length not in (None, config.length) and config.min_length % window:
        raise ValueError(
            f"`min_length` must be a multiple of the autoencoder's `window_length`={window}, got {config.min_length}: "
            "the codes of a part of a window are not those of a shorter text."
        )
    return autoencoder.eval().requires_grad_(False)


def levels_of(autoencoder: Any) -> tuple[str, ...]:
    """The levels of codes, in the order in which they are trained and written."""
    # An autoencoder of one level has no plan, only detail.
    return LEVELS if autoencoder.config.coarse_ratio is not None else LEVELS[1:]


def stage_configs(config: TwoLevelConfig, autoencoder: Any) -> list[TwoLevelConfig]:
    """The options of each stage to run, whose `output_dir` is its own folder."""
    levels = levels_of(autoencoder)
    if config.stage not in (*levels, "all"):
        raise ValueError(
            f"`stage` must be fine or all for an autoencoder of one level, got {config.stage!r}."
        )

    # Each stage is a run of its own, in its own folder.
    configs = []
    for level in levels if config.stage == "all" else (config.stage,):
        resume = config.resume_from_checkpoint
        # An interrupted run may not have come to the later stage.
        if resume == "latest" and configs:
            resume = "auto"
        folder = str(Path(config.output_dir, level))
        configs.append(
            replace(config, stage=level, output_dir=folder, resume_from_checkpoint=resume)
        )
    return configs


def check_other_stage(config: TwoLevelConfig, autoencoder: Any):
    """Refuse a stage that does not go with the prompts of the one that is not run now, but was before or will be."""
    levels = levels_of(autoencoder)
    prompted = config.prompt_length is not None
    for level in levels:
        if config.stage in (level, "all"):
            continue

        # What a stage was trained with is seen from its folder.
        folder = Path(config.output_dir, level)
        trained = (folder / "denoiser").exists()
        has_encoder = (folder / "prompt_encoder").exists()
        if trained and has_encoder != prompted:
            preposition = "with" if has_encoder else "without"
            raise ValueError(
                f"`prompt_length`: stage {level} in {config.output_dir!r} was trained {preposition} prompts."
            )

        # One encoder must serve both stages: frozen, or trained by the first stage.
        if config.prompt_encoder:
            if trained and not same_prompt_encoder(
                folder / "prompt_encoder", config.prompt_encoder
            ):
                raise ValueError(
                    f"`prompt_encoder`: stage {level} in {config.output_dir!r} was trained with another one."
                )
        elif prompted and level == levels[0]:
            if not has_encoder:
                raise ValueError(
                    "`stage` fine needs the prompt encoder that `--stage coarse` trains: run that before."
                )
        elif prompted and trained:
            raise ValueError(
                "`stage` coarse would train a prompt encoder that the fine denoiser in `output_dir` does not know: "
                "train both by `--stage all`, or choose another folder."
            )


# Data and models


def prepare_texts(config: TwoLevelConfig, accelerator: Any) -> TextData:
    """Rows of text, with their prompts if there are any, by the tokenizer of the autoencoder."""
    # First rows that hold all that a row of text is made of, see `text_rows`.
    shaped = copy(config)
    if config.source_column:
        shaped.length = 2 * max(config.length, config.prompt_length or 0) + 4
    elif config.packing:
        shaped.length = config.length + (config.prompt_length or 0)
    else:
        shaped.length = config.length + 1
    data = prepare_data(
        shaped, accelerator, f"{config.autoencoder}/tokenizer", source_column=config.source_column
    )

    # Then rows of text without padding, and their prompts
    to_text_rows = partial(
        text_rows,
        tokenizer=data.tokenizer,
        length=config.length,
        prompt_length=config.prompt_length,
        packed=config.packing,
    )
    # The other processes read what the first one cached.
    with accelerator.main_process_first():
        data.train_rows = to_text_rows(data.train_rows)
        data.validation_rows = to_text_rows(data.validation_rows)

    # Rows that are all prompt were left out, which may leave none.
    for name, rows in (("train", data.train_rows), ("validation", data.validation_rows)):
        if next(iter(rows), None) is None:
            raise ValueError(
                f"`dataset` must have a text after a prompt in its {name} rows: shorten `prompt_length`."
            )
    return data


def build_model(config: TwoLevelConfig, autoencoder: Any, tokenizer: Any) -> PromptedDenoiser:
    """The denoiser of a stage and, with prompts, their encoder, which the first stage trains."""
    set_seed(config.seed)
    prompt_encoder, trained = make_prompt_encoder(config, autoencoder, tokenizer)

    # A row has as many codes as its tokens are divided into at this level.
    sizes = autoencoder.config
    if config.stage == "coarse":
        num_codes = sizes.num_coarse_codes
        num_layers = config.coarse_layers
        tokens_of_a_code = autoencoder.code_length
    else:
        num_codes = sizes.num_fine_codes
        num_layers = config.fine_layers
        tokens_of_a_code = sizes.patch_length

    # Fine codes are written where the coarse ones are known.
    has_plan = config.stage == "fine" and sizes.coarse_ratio is not None
    denoiser = CodeTransformerModel(
        vocab_size=num_codes + 1,  # the mask comes last
        hidden_size=config.hidden_size,
        num_layers=num_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.length // tokens_of_a_code,
        num_context_codes=sizes.num_coarse_codes if has_plan else None,
        context_ratio=sizes.coarse_ratio if has_plan else 1,
        prompt_size=None if prompt_encoder is None else prompt_encoder.config.hidden_size,
        dropout=config.dropout,
    )
    # Codes that name similar vectors are alike from the first step on.
    start_from_codebooks(denoiser, autoencoder, config.stage)
    return PromptedDenoiser(denoiser, prompt_encoder, trained)


def make_prompt_encoder(
    config: TwoLevelConfig, autoencoder: Any, tokenizer: Any
) -> tuple[Any, bool]:
    """`(prompt_encoder, trained)` of a stage: the first stage's, that of transformers, or a new one to be trained."""
    if config.prompt_length is None:
        return None, False

    # All stages read prompts by one encoder; only the first stage may train it.
    first = levels_of(autoencoder)[0]
    first_encoder = Path(config.output_dir).parent / first / "prompt_encoder"
    pretrained = (
        first_encoder if config.stage != first and first_encoder.exists() else config.prompt_encoder
    )
    if pretrained:
        return load_prompt_encoder(pretrained, tokenizer, config.prompt_length), False

    # As wide as the denoiser: both are trained together.
    encoder = PromptEncoderModel(
        len(tokenizer),
        config.hidden_size,
        config.prompt_layers,
        config.num_attention_heads,
        max_length=config.prompt_length,
    )
    return encoder, True


def main(
    config: TwoLevelConfig, on_validation: ValidationCallback | None = None
) -> dict[str, list[float]]:
    """Train the stages, save them and the pipeline; returns the loss of each step by stage, in nats per code."""
    # 1. The codes, and the stages that learn to write them
    autoencoder = load_autoencoder(config)
    levels = levels_of(autoencoder)
    configs = stage_configs(config, autoencoder)
    check_other_stage(config, autoencoder)
    # Codes of an autoencoder with other weights mean something else.
    for level in levels:
        if config.resume_from_checkpoint or config.stage not in (level, "all"):
            check_autoencoder_of(Path(config.output_dir, level), autoencoder)

    accelerator = make_accelerator(config)
    refuse_shards(accelerator)
    if (
        config.overwrite_output_dir
        and not config.resume_from_checkpoint
        and accelerator.is_main_process
    ):
        # Else a run that is stopped and resumed would take up the old later stage.
        for stage in configs:
            shutil.rmtree(Path(stage.output_dir, CHECKPOINT_FOLDER), ignore_errors=True)

    # 2. Train, one stage after the other
    data = prepare_texts(config, accelerator)
    autoencoder.to(accelerator.device)
    # A later stage trains on true codes of the earlier level, not on written ones.
    losses = {
        stage.stage: train_stage(stage, autoencoder, data, on_validation) for stage in configs
    }

    # 3. Save the pipeline when all its stages are there, and report
    complete = all(Path(config.output_dir, level, "denoiser").exists() for level in levels)
    if accelerator.is_main_process and complete:
        note_training(config, accelerator)
        pipe = save_pipeline(config, autoencoder, data)
        report(config, pipe.to(accelerator.device), data)
    end_training(accelerator)
    return losses


def train_stage(
    config: TwoLevelConfig, autoencoder: Any, data: TextData, on_validation: Any
) -> list[float]:
    """Train the denoiser of `config.stage`, save it in `config.output_dir`; returns the loss of each step."""
    accelerator = make_accelerator(config)
    model = build_model(config, autoencoder, data.tokenizer)
    # The mask is the state after all codes, so its id is the number of codes.
    mask_id = model.config.vocab_size - 1
    num_plans = model.config.num_context_codes
    # A frozen prompt encoder does not count.
    num_parameters = sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    accelerator.print(f"stage {config.stage}: {num_parameters:,} parameters, {mask_id:,} codes")
    if accelerator.is_main_process:
        note_autoencoder(Path(config.output_dir), autoencoder)

    scheduler = D3PMAbsorbingScheduler(mask_id, min_timestep=config.min_timestep)
    # The reported bound has no long step next to the data.
    exact_scheduler = D3PMAbsorbingScheduler(mask_id)
    corruption = TokenCorruption(
        scheduler,
        model.config,
        time_sampling=config.time_sampling,
        min_timestep=config.min_timestep,
    )

    def loss_function(model, batch, uniform, generators):
        # Prompts and plans are partly hidden or wrong, as they will be when the model writes.
        batch = shown_prompts(
            batch, generators, config.condition_dropout, suffixes=not config.source_column
        )
        batch = shown_plans(
            batch, generators, config.plan_corruption, config.plan_dropout, num_plans
        )

        corrupted = corruption(batch, uniform, generators)
        logits = predict(
            model, corrupted.batch, corrupted.noisy, corrupted.times, corrupted.positions
        )  # (N, V)
        loss = corrupted.criterion(logits)
        return loss

    # Texts are encoded once, since the autoencoder stays as it is; the other processes read what the first one cached.
    with accelerator.main_process_first():
        train_codes = code_rows(autoencoder, data.train_rows, config.stage)
        validation_rows = data.spread_validation_rows(config.validation_rows)
        validation_codes = code_rows(autoencoder, validation_rows, config.stage)

    # Nats per code become nats per token, so that stages and other models compare.
    def evaluate(model) -> dict[str, float]:
        estimate = estimate_bound(
            model, exact_scheduler, validation_codes, seed=config.seed, accelerator=accelerator
        )
        return per_token(estimate, validation_codes, validation_rows).metrics()

    loop = TrainingLoop(
        config,
        accelerator,
        model,
        loss_function,
        row_order(config, train_codes, rows_per_step(config, accelerator)),
        evaluate=evaluate,
        on_validation=on_validation,
        data=data.train_rows,  # codes are computed
    )
    losses = loop.run()

    # All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        # Only weights that are trained have averages.
        model.load_state_dict(model.state_dict() | averages)
        model.denoiser.eval().save_pretrained(Path(config.output_dir, "denoiser"))
        if model.prompt_encoder is not None:
            model.prompt_encoder.eval().save_pretrained(Path(config.output_dir, "prompt_encoder"))
        loop.log_pipeline({})

    # The process group stays for the next stage.
    accelerator.wait_for_everyone()
    for tracker in accelerator.trackers:
        tracker.finish()
    return losses


def save_pipeline(
    config: TwoLevelConfig, autoencoder: Any, data: TextData
) -> TwoLevelVQDiffusionPipeline:
    """Save the pipeline of all stages, as they are in their folders, and return it."""
    # A stage may have been trained in another run, so all are read from their folders.
    levels = levels_of(autoencoder)
    parts: dict[str, Any] = {}
    for level in levels:
        denoiser: Any = CodeTransformerModel.from_pretrained(
            Path(config.output_dir, level), subfolder="denoiser"
        )
        parts[f"{level}_denoiser"] = denoiser.eval()
        parts[f"{level}_scheduler"] = D3PMAbsorbingScheduler(denoiser.config.vocab_size - 1)
    if config.prompt_length is not None:
        # The first stage has the encoder that both were trained with.
        folder = Path(config.output_dir, levels[0], "prompt_encoder")
        parts["prompt_encoder"] = load_prompt_encoder(folder, data.tokenizer, config.prompt_length)

    # A source is another text; any other prompt is the beginning of the text itself.
    begins_text = config.prompt_length is not None and not config.source_column
    pipe = TwoLevelVQDiffusionPipeline(
        data.tokenizer, autoencoder, **parts, prompt_begins_text=begins_text
    )
    pipe.save_pretrained(config.output_dir)
    return pipe


def report(
    config: TwoLevelConfig, pipe: TwoLevelVQDiffusionPipeline, data: TextData
) -> dict[str, float]:
    """Print, save and return what the models are worth on the held-out split, in nats per token of text."""
    # 1. The bound of the texts, as a sum over the levels and the decoder
    bound = estimate_two_level_bound(pipe, data.validation_rows, seed=config.seed)
    # Characters of packed texts are those of the texts, unless prompts are taken away from them.
    whole = config.packing and config.prompt_length is None
    metrics = report_rows(
        bound.total,
        data.validation_rows,
        documents=data.validation_documents if whole else None,
        tokenizer=data.tokenizer,
    )
    metrics |= bound.metrics()
    print(bound.table())
    save_metrics(config, metrics)

    # 2. Texts, written as users will
    if config.num_samples:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(config.seed)
        for text in pipe(num_return_sequences=config.num_samples, generator=generator).texts or []:
            print(f"\n{text}")
    return metrics


if __name__ == "__main__":
    run(main, TwoLevelConfig)
