"""Distil a discrete diffusion model, so that it writes in a few steps what it wrote in many.

    accelerate launch training_scripts/train_distill.py --model_name_or_path runs/chitchat --dataset chitchat \\
        --teacher_steps 64 --student_steps 8 --output_dir runs/chitchat_8_steps

The student begins with the weights of its teacher, and learns to predict at once what the teacher predicts on the way
(https://arxiv.org/abs/2410.21035). How the teacher's scheduler shapes predictions is learned too. What was distilled
may be the teacher of the next run. Read it from top to bottom: options, models, loss, training, report. Shapes: B
batch, L sequence length, V vocabulary size, N predicted positions.
"""

import copy
from dataclasses import dataclass
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`

from text_diffusers import TextDiffusionPipeline, TextTransformerModel
from text_diffusers.common.validation import require
from text_diffusers.data.rows import trimmed
from text_diffusers.evaluation.held_out import (
    make_validation_rows,
    report_rows,
    report_texts,
)
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.losses.distillation import DIVERGENCES
from text_diffusers.training.adaptation.language_models import fresh_copy
from text_diffusers.training.config import option, refuse_parts_of_a_pipeline
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics, write_texts
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.condition_dropout import drop_conditions
from text_diffusers.training.steps.distillation import (
    TEACHERS,
    TeacherSteps,
    distillation_loss,
    held_out_divergence,
)
from text_diffusers.training.text_options import (
    TextTrainingConfig,
    prepare_data,
    row_order,
    rows_per_step,
)


@dataclass
class DistillationConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    model_name_or_path: str | None = option(
        None, "the teacher: a saved pipeline of absorbing or uniform noise"
    )
    learning_rate: float = option(3e-4, "peak learning rate", limit="above 0")
    max_train_steps: int = option(1_000, "optimizer steps", limit="above 0")

    teacher_steps: int = option(
        64, "in which the teacher writes a text: a multiple of `student_steps`", limit="at least 1"
    )
    student_steps: int = option(8, "in which the student is to write one", limit="at least 1")
    condition_dropout: float = option(
        0.0, "share of rows without their label, for classifier-free guidance", limit="in [0, 1)"
    )
    divergence: str = option(
        "forward",
        "of the predictions: forward, which keeps the variety of the teacher, reverse, which keeps to what it is sure "
        "of, or jensen_shannon",
        one_of=DIVERGENCES,
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.model_name_or_path is not None,
            "model_name_or_path",
            "a saved pipeline, the teacher",
            self.model_name_or_path,
        )
        limit = f"a multiple of `student_steps`={self.student_steps}, and more"
        fits = self.teacher_steps % self.student_steps == 0
        require(
            fits and self.teacher_steps > self.student_steps,
            "teacher_steps",
            limit,
            self.teacher_steps,
        )
        refuse_parts_of_a_pipeline(self)


def load_teacher(config: DistillationConfig) -> TextDiffusionPipeline:
    """The saved pipeline, whose denoiser must be one that writes whole rows."""
    pipe: Any = TextDiffusionPipeline.from_pretrained(config.model_name_or_path)
    if type(pipe.scheduler) not in TEACHERS:
        names = ", ".join(teacher.__name__ for teacher in TEACHERS)
        raise ValueError(
            f"`model_name_or_path` must be a pipeline with one of {names}, got {type(pipe.scheduler).__name__}."
        )
    settings = pipe.denoiser.config
    if not isinstance(pipe.denoiser, TextTransformerModel):
        raise ValueError(
            f"`model_name_or_path` must have a `TextTransformerModel`, got {type(pipe.denoiser).__name__}."
        )
    if settings.block_length is not None or settings.predicts_length:
        raise ValueError(
            "`model_name_or_path` must be without blocks and without sources, got "
            f"block_length={settings.block_length!r} and predicts_length={settings.predicts_length!r}."
        )
    limit = f"at most {settings.max_length}, the longest row of the teacher"
    require(config.length <= settings.max_length, "length", limit, config.length)
    shaping = pipe.scheduler.config
    leaves_out = shaping.temperature == 0 or shaping.top_k or (shaping.top_p or 1) < 1
    if config.divergence == "reverse" and leaves_out:
        raise ValueError(
            "`divergence` must be forward or jensen_shannon for a teacher that leaves tokens out, got 'reverse' with "
            f"temperature={shaping.temperature!r}, top_k={shaping.top_k!r} and top_p={shaping.top_p!r}."
        )
    steps = pipe.scheduler.config.num_train_timesteps
    limit = f"at most {steps}, the steps of the teacher's own bound"
    require(
        steps is None or config.teacher_steps <= steps, "teacher_steps", limit, config.teacher_steps
    )
    return pipe


def main(
    config: DistillationConfig, on_validation: ValidationCallback | None = None
) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step in nats per token."""
    # 1. The teacher, data and the student
    accelerator = make_accelerator(config)
    pipe: Any = load_teacher(config)
    names = pipe.label_names or None
    num_classes = pipe.denoiser.config.num_classes
    if (num_classes is None) != (config.label_column is None):
        raise ValueError(
            f"`label_column` must be given if, and only if, the teacher was trained with labels, got "
            f"{config.label_column!r} for {num_classes or 'no'} labels."
        )
    data = prepare_data(
        config,
        accelerator,
        pretrained=config.model_name_or_path,
        label_names=names,
        known_classes=names is not None,
    )
    student = copy.deepcopy(pipe.denoiser)
    teacher = pipe.denoiser.to(accelerator.device).eval().requires_grad_(False)
    steps = TeacherSteps(teacher, pipe.scheduler, config.student_steps, config.teacher_steps)
    accelerator.print(
        f"{student.num_parameters():,} parameters; {config.student_steps} steps for "
        f"{config.teacher_steps} of the teacher"
    )

    # 2. The loss of a batch, and what is watched on the way
    def loss_function(model, batch, uniform, generators):
        # Rows without their label keep the prediction that guidance leads away from.
        batch = drop_conditions(
            trimmed(batch), generators, config.condition_dropout, num_classes=num_classes
        )
        return distillation_loss(model, steps, batch, uniform, generators, config.divergence)

    validation = make_validation_rows(config, data, student)
    # What the scheduler shaped is in the student's predictions now.
    scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, temperature=1.0, top_k=None, top_p=None
    )

    def evaluate(model) -> dict[str, float]:
        estimate = estimate_bound(
            model, scheduler, validation.rows, seed=config.seed, accelerator=accelerator
        )
        divergence = held_out_divergence(
            model, steps, validation.rows, config.divergence, seed=config.seed
        )
        return validation.metrics(estimate, model) | {"divergence": divergence}

    # What shaped the teacher's predictions shapes the student's no more, also where it is a default of calls.
    defaults = {
        name: value
        for name, value in pipe.generation_defaults.items()
        if name not in ("temperature", "top_k", "top_p")
    }
    defaults["num_inference_steps"] = config.student_steps

    def make_pipeline(model) -> TextDiffusionPipeline:
        return TextDiffusionPipeline(
            data.tokenizer,
            model,
            scheduler,
            data.lengths,
            names,
            generation_defaults=defaults,
        )

    def write(model) -> list[str]:
        with accelerator.autocast():
            return write_texts(
                config, make_pipeline(model), data, config.num_samples, config.student_steps
            ).texts

    # 3. Train
    per_step = rows_per_step(config, accelerator)
    loop = TrainingLoop(
        config,
        accelerator,
        student,
        loss_function,
        row_order(config, data.train_rows, per_step),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 4. Save the averaged weights and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        model = fresh_copy(student)
        model.load_state_dict(averages)
        distilled = make_pipeline(model.eval())
        distilled.save_pretrained(config.output_dir)
        if config.packing:
            rows = data.validation_rows
            estimate = estimate_bound(model, scheduler, rows, seed=config.seed)
            metrics = report_rows(estimate, rows, data.validation_documents)
        else:
            metrics = report_texts(config, data, distilled)
        # The teacher takes many steps, and is where it was in training.
        metrics["divergence"] = held_out_divergence(
            model.to(accelerator.device), steps, validation.rows, config.divergence, config.seed
        )
        print(f"divergence         {metrics['divergence']:.3f} nats per token from the teacher")
        save_metrics(config, metrics)
        loop.log_pipeline(metrics)
    end_training(accelerator)
    return losses


if __name__ == "__main__":
    run(main, DistillationConfig)
