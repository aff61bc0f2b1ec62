"""Train a discrete diffusion model on text, from raw files to a saved `TextDiffusionPipeline`.

    accelerate launch training_scripts/train_d3pm.py --dataset chitchat --output_dir runs/chitchat

Read it from top to bottom: options, data, model, loss, training, report. Shapes: B batch, L sequence length, V
vocabulary size, N predicted positions.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model_state_dict

from text_diffusers import TextDiffusionPipeline, TextTransformerModel
from text_diffusers.common.token_ids import never_written, noise_vocabulary
from text_diffusers.data.rows import tensor_batches, trimmed
from text_diffusers.evaluation.held_out import (
    length_metrics,
    make_validation_rows,
    report_rows,
    report_texts,
)
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.kernels import BIT_CODES, KERNELS, KernelConfig, make_scheduler
from text_diffusers.models.text_lengths import check_length_ids
from text_diffusers.training.config import marked_options, option, refuse_parts_of_a_pipeline
from text_diffusers.training.initialization import (
    LARGEST_VOCABULARY,
    TextStatistics,
    start_from_words,
)
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.masked_lm import (
    check_language_model_options,
    fresh_copy,
    holds_language_model,
    knows_no_ends,
    load_language_model,
    plain_model,
    training_denoiser,
)
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics, write_texts
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.condition_dropout import drop_conditions
from text_diffusers.training.steps.tokens import ALL_TIME_SAMPLINGS, TokenCorruption
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    check_label_names,
    chosen_label_names,
    known_label_names,
    prepare_data,
    row_order,
    rows_per_step,
    text_lengths,
)

COUNTED_ROWS = 200_000  # for the frequencies and neighbours of tokens
WRITING_STEPS = 128
# The linear layers of a block; embeddings and head stay frozen.
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.0", "ff.2", "modulation"]
KERNEL = ("pipeline", "kernel")  # the parts of which an option of the noise is one
FINE_MIN_TIMESTEP = 1e-3  # of the reported bound: the smaller, the tighter and the noisier


@dataclass
class D3PMConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # A model to start from
    model_name_or_path: str | None = option(
        None, "saved pipeline, masked LM or causal LM to train further"
    )
    lora_rank: int | None = option(
        None, "trains low-rank adapters of that pipeline only", not_for="language_model"
    )
    lora_alpha: float | None = option(None, "adapters weigh alpha / rank; default: the rank")

    # Conditions
    source_column: str | None = option(
        None,
        "column of the texts from which `text_column` is to be written",
        not_for="language_model",
    )
    label_names: list[str] | None = option(
        None,
        "names of the labels, in their order, to ask for texts by; default: labels that are words",
        part_of="pipeline",
    )
    condition_dropout: float = option(
        0.0, "share of rows without their label or source, for classifier-free guidance"
    )

    # Noise
    kernel: str = option("absorbing", f"{', '.join(KERNELS)}", part_of="pipeline", one_of=KERNELS)
    schedule: str = option(
        "linear",
        "linear, cosine, sigmoid, sqrt, geometric, reciprocal, mutual_information",
        part_of=KERNEL,
    )
    num_train_timesteps: int | None = option(
        None,
        "steps of the bound; default: continuous time if the kernel has it, or 1,000",
        part_of=KERNEL,
    )
    reverse_rule: str = option("plug_in", "plug_in or marginal; not for absorbing", part_of=KERNEL)
    mask_fraction: float = option(
        0.9, "of hybrid noise: how much of it is the mask", part_of=KERNEL
    )
    num_neighbors: int = option(
        8, "of the neighbors kernel: nearest tokens of each token", part_of=KERNEL
    )
    walk_rate: float = option(
        2.0, "of the neighbors kernel: steps a unit of -log(alpha)", part_of=KERNEL
    )
    bit_codes: str = option(
        "embedding",
        f"of the bit_flip kernel: {', '.join(BIT_CODES)}",
        part_of=KERNEL,
        one_of=BIT_CODES,
    )

    # Loss
    min_timestep: float = option(
        0.1, "in training, the interval below is one step", part_of="kernel"
    )
    time_sampling: str | None = option(
        None,
        f"{', '.join(ALL_TIME_SAMPLINGS)}; default: the first if the noise is masks without a grid, else the second",
        one_of=ALL_TIME_SAMPLINGS,
    )
    auxiliary_weight: float = option(0.0, "lambda of D3PM's cross-entropy on x_0")

    # Transformer
    hidden_size: int = option(256, "width of the transformer", part_of="pipeline")
    num_layers: int = option(6, "blocks", part_of="pipeline")
    num_attention_heads: int = option(4, "heads", part_of="pipeline")
    init_embeddings: str = option(
        "cooccurrence",
        "from the neighbours of tokens, cooccurrence, or random",
        part_of="pipeline",
        one_of=("cooccurrence", "random"),
    )
    tie_embeddings: bool = option(False, "share the embedding with the head", part_of="pipeline")
    dropout: float = option(0.0, "in training", part_of="pipeline")

    # Long texts, and memory
    block_length: int | None = option(
        None,
        "tokens in a block, to write long texts block by block; absorbing kernel",
        part_of="pipeline",
    )
    head_chunk_size: int | None = option(
        None,
        "tokens whose logits exist at once, such as 128: saves memory",
        limit="at least 1",
        not_for="language_model",
        may_change_on_resume=True,
    )

    def __post_init__(self):
        super().__post_init__()
        refuse_parts_of_a_pipeline(self)

        # Blocks are written by unmasking, so the noise must be masks alone.
        if self.block_length is not None and (self.block_length < 1 or self.kernel != "absorbing"):
            raise ValueError(
                '`block_length` must be at least 1 and needs `kernel` "absorbing", got '
                f"{self.block_length!r} with {self.kernel!r}."
            )
        # A row holds one pair, so it is neither packed nor cut into blocks.
        if self.source_column and (self.packing or self.block_length is not None):
            raise ValueError(
                "`source_column` needs `--packing false`, a row for a pair, and no `block_length`."
            )

        # Only a condition that is there can be dropped.
        conditional = self.block_length is None and (self.source_column or self.label_column)
        if not 0 <= self.condition_dropout < 1 or (self.condition_dropout and not conditional):
            raise ValueError(
                "`condition_dropout` must be in [0, 1) and needs a `label_column` or `source_column`, and no "
                f"`block_length`, got {self.condition_dropout!r}."
            )

        # Texts are asked for by these names, so each must stand for one label.
        check_label_names(self)

        # Adapters alone are no model: they need the weights under them.
        if self.lora_rank is not None and (self.lora_rank < 1 or not self.model_name_or_path):
            raise ValueError(
                "`lora_rank` must be at least 1 and needs a pipeline to adapt, got "
                f"{self.lora_rank!r} with `model_name_or_path`={self.model_name_or_path!r}."
            )


def build_model(config: D3PMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of this configuration, the scheduler as training uses it."""
    set_seed(config.seed)
    if config.model_name_or_path:
        return load_model(config, data)

    tokenizer = data.tokenizer
    if config.init_embeddings == "cooccurrence" and len(tokenizer) > LARGEST_VOCABULARY:
        raise ValueError(
            f'`init_embeddings` must be "random" for more than {LARGEST_VOCABULARY:,} tokens, whose pairs are too '
            f"many to be counted, got {config.init_embeddings!r} with {len(tokenizer):,}."
        )
    counted_batches = partial(tensor_batches, data.train_rows, COUNTED_ROWS)
    statistics = TextStatistics(counted_batches, len(tokenizer), config.hidden_size)

    # Options of the noise have the names that `KernelConfig` gives them.
    kernel_options = {
        name: getattr(config, name) for name in marked_options(config, "part_of", "kernel")
    }
    kernel = KernelConfig(
        mask_token_id=tokenizer.mask_token_id,
        num_tokens=noise_vocabulary(tokenizer),
        frequencies=statistics.frequencies,
        vectors=statistics.vectors,
        **kernel_options,
    )
    scheduler = make_scheduler(config.kernel, kernel)

    # Some kernels have states that are no tokens. The absorbing one needs no time: a mask says all of the noise.
    denoiser = TextTransformerModel(
        vocab_size=max(len(tokenizer), scheduler.config.get("vocab_size") or 0),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.length,
        time_conditioning=config.kernel != "absorbing",
        num_classes=data.num_classes,
        tie_embeddings=config.tie_embeddings,
        dropout=config.dropout,
        block_length=config.block_length,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        predicts_length=config.source_column is not None,
    )
    # A checkpoint brings its own weights.
    if not config.resume_from_checkpoint:
        vectors = statistics.vectors() if config.init_embeddings == "cooccurrence" else None
        # Padding and mask have no neighbours, wherever they stand.
        written = [id for id in range(len(tokenizer)) if id not in never_written(tokenizer)]
        start_from_words(
            denoiser,
            vectors,
            written,
            # What is written from a source must not confuse its names and numbers.
            shared_variance=0.5 if config.source_column else 0.8,
            # Under other noise a token is shown where it is predicted, and the head would have to unlearn it.
            sets_head=config.kernel == "absorbing",
        )
    return denoiser, scheduler


def load_model(config: D3PMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of a saved pipeline or language model, with fresh adapters if only those are trained."""
    if holds_language_model(config.model_name_or_path):
        denoiser, scheduler = load_language_model(config.model_name_or_path, data.tokenizer)
    else:
        pipe = TextDiffusionPipeline.from_pretrained(config.model_name_or_path)
        denoiser = pipe.denoiser
        scheduler = pipe.scheduler

    # The rows and labels of the data must fit into the saved model.
    if config.length > denoiser.config.max_length:
        raise ValueError(
            f"`length` must be at most {denoiser.config.max_length} for this model, got {config.length}."
        )
    if (data.num_classes or 0) > (denoiser.config.num_classes or 0):
        raise ValueError(
            f"`label_column` holds labels up to {data.num_classes - 1}; the model in `model_name_or_path` has "
            f"`num_classes`={denoiser.config.num_classes}."
        )

    # From now on it says how long texts from a source are; a folder of adapters cannot tell that of their model.
    if config.source_column and not denoiser.config.predicts_length:
        if config.lora_rank:
            raise ValueError(
                "`source_column` with `lora_rank` needs a pipeline in `model_name_or_path` that was trained with a "
                "source, which predicts how long texts are; without `lora_rank` any will do."
            )
        denoiser.register_to_config(predicts_length=True)
        check_length_ids(denoiser.config)

    # The weights under fresh adapters are frozen, and the adapters begin as zero.
    if config.lora_rank:
        alpha = config.lora_alpha or config.lora_rank
        denoiser.add_adapter(
            LoraConfig(r=config.lora_rank, lora_alpha=alpha, target_modules=LORA_TARGETS)
        )
    # The noise stays that of the saved model, but the first interval is of this run.
    return denoiser, type(scheduler).from_config(scheduler.config, min_timestep=config.min_timestep)


def main(config: D3PMConfig, on_validation: ValidationCallback | None = None) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step in nats per token."""
    # 1. Data, model and noise
    accelerator = make_accelerator(config)
    if holds_language_model(config.model_name_or_path):
        check_language_model_options(config)
    # A saved model brings its tokenizer, since its embeddings stand in that order.
    data = prepare_data(
        config,
        accelerator,
        pretrained=config.model_name_or_path,
        # A masked LM was never trained to predict where a text begins and ends.
        given_ends=knows_no_ends(config.model_name_or_path),
        source_column=config.source_column,
        label_names=known_label_names(config),
        known_classes=config.model_name_or_path is not None,
    )
    names = chosen_label_names(config, data)

    denoiser, scheduler = build_model(config, data)
    # Training makes one step of the noisiest weights, near the data; what is reported and saved does not.
    fine_scheduler = type(scheduler).from_config(scheduler.config, min_timestep=FINE_MIN_TIMESTEP)
    corruption = TokenCorruption(
        scheduler,
        denoiser.config,
        time_sampling=config.time_sampling,
        min_timestep=config.min_timestep,
        auxiliary_weight=config.auxiliary_weight,
    )
    accelerator.print(
        f"{denoiser.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary"
    )

    # 2. The loss of a batch, and what is watched on the way
    def loss_function(model, batch, uniform, generators):
        # Rows without their condition teach the model the text that guidance leads away from.
        batch = drop_conditions(
            trimmed(batch),
            generators,
            probability=config.condition_dropout,
            num_classes=denoiser.config.num_classes,
            pad_token_id=data.tokenizer.pad_token_id,
        )
        corrupted = corruption(batch, uniform, generators)

        # The head, the dearest part, runs only at the N positions whose prediction the bound needs.
        inputs = {"class_labels": batch.get("label"), "positions": corrupted.positions}
        if denoiser.config.block_length is not None:
            inputs["clean_ids"] = batch["input_ids"]
        if config.head_chunk_size:
            # The model computes the loss itself, so that the logits of one chunk are all that exists at once.
            inputs |= {"loss_function": corrupted.criterion, "chunk_size": config.head_chunk_size}
        mask = corrupted.batch["attention_mask"]
        output = model(corrupted.noisy, corrupted.times, mask, **inputs)
        if config.head_chunk_size:
            return output.loss
        logits = output.logits  # (N, V)
        loss = corrupted.criterion(logits)
        return loss

    # Far fewer rows than the report reads, from all over the held-out documents.
    validation = make_validation_rows(config, data, denoiser)

    def evaluate(model) -> dict[str, float]:
        estimate = estimate_bound(
            model, fine_scheduler, validation.rows, seed=config.seed, accelerator=accelerator
        )
        return validation.metrics(estimate, model)

    # Users write under the fine schedule, so samples on the way do, too.
    def make_pipeline(model) -> TextDiffusionPipeline:
        return TextDiffusionPipeline(
            data.tokenizer, plain_model(model), fine_scheduler, data.lengths, names
        )

    def write(model) -> list[str]:
        return write_texts(
            config, make_pipeline(model), data, config.num_samples, WRITING_STEPS
        ).texts

    # 3. Train
    # The loop owns the optimizer, checkpoints and trackers, and calls the functions above.
    loop = TrainingLoop(
        config,
        accelerator,
        denoiser,
        loss_function,
        row_order(config, data.train_rows, rows_per_step(config, accelerator)),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 4. Save the averaged weights, load them as users will, and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        if config.lora_rank:
            pipe = save_adapters(config, denoiser, averages, fine_scheduler)
        else:
            model = fresh_copy(denoiser)
            model.load_state_dict(averages)
            pipe = make_pipeline(model.eval())
            pipe.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, pipe.to(accelerator.device), data))
    end_training(accelerator)
    return losses


def save_adapters(
    config: D3PMConfig, denoiser: Any, averages: dict[str, torch.Tensor], scheduler: Any
) -> TextDiffusionPipeline:
    """Save low-rank adapters, and return the pipeline they are of with them."""
    # A folder with adapters only; the weights under them stay where they came from.
    adapters = get_peft_model_state_dict(denoiser, state_dict=averages)
    settings = denoiser.peft_config["default"].to_dict()
    TextDiffusionPipeline.save_lora_weights(config.output_dir, adapters, settings)

    # The report judges what is read back from the disk.
    pipe = TextDiffusionPipeline.from_pretrained(config.model_name_or_path, scheduler=scheduler)
    pipe.load_lora_weights(config.output_dir)
    return pipe


def report(config: D3PMConfig, pipe: TextDiffusionPipeline, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split."""
    # 1. The bound of all held-out texts, as the pipeline writes them: packed, or one a row
    rows = data.validation_rows
    denoiser = training_denoiser(pipe.denoiser, pipe.tokenizer)
    if config.packing:
        estimate = estimate_bound(denoiser, pipe.scheduler, rows, seed=config.seed)
        metrics = report_rows(estimate, rows, data.validation_documents)
    else:
        metrics = report_texts(config, data, pipe, denoiser)
    data_lengths = text_lengths(pipe.tokenizer, data.validation_documents, rows, config)

    # 2. Lengths of written texts beside those of the data
    if config.num_length_samples:
        written = write_texts(config, pipe, data, config.num_length_samples, WRITING_STEPS)
        metrics |= length_metrics(
            written.tokens, pipe.tokenizer, data_lengths, bool(pipe.config.lengths)
        )

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, D3PMConfig)
