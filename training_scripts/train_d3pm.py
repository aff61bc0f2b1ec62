"""Train a discrete diffusion model on text, from raw files to a saved `TextDiffusionPipeline`.

    accelerate launch training_scripts/train_d3pm.py --dataset chitchat --output_dir runs/chitchat

Read it from top to bottom: options, data, model, loss, training, report. Shapes: B batch, L sequence length, V
vocabulary size, N predicted positions.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from peft import LoraConfig, get_peft_model_state_dict
from transformers import HfArgumentParser

from text_diffusers import (
    TextBlockDiffusionPipeline,
    TextDiffusionCFGPipeline,
    TextDiffusionPipeline,
    TextTransformerModel,
)
from text_diffusers.common.training_randomness import TIME_SAMPLINGS, token_uniform
from text_diffusers.data.rows import tensor_batches, unknown_tokens
from text_diffusers.evaluation.bounds import at_positions, predicted_positions, token_bound
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.kernels import BIT_CODES, KERNELS, KernelConfig, make_scheduler
from text_diffusers.losses.discrete import reconstruction_loss
from text_diffusers.training.condition_dropout import drop_conditions
from text_diffusers.training.initialization import TextStatistics
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.masked_lm import (
    check_masked_lm_options,
    fresh_copy,
    holds_masked_lm,
    load_masked_lm,
    plain_model,
    saved_pipeline,
    training_denoiser,
)
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    bound_metrics,
    length_metrics,
    prepare_data,
    refuse_parts_of_a_pipeline,
    row_order,
    rows_per_step,
    text_lengths,
)

COUNTED_ROWS = 200_000
WRITING_STEPS = 128
PARTS_OF_A_PIPELINE = (
    *("tokenizer", "vocab_size", "kernel", "schedule", "num_train_timesteps", "reverse_rule", "hidden_size"),
    *("num_layers", "num_attention_heads", "init_embeddings", "tie_embeddings", "dropout", "mask_fraction"),
    *("num_neighbors", "walk_rate", "bit_codes"),
    *("block_length", "label_names"),
)
KERNEL_OPTIONS = (
    *("schedule", "num_train_timesteps", "reverse_rule", "min_timestep"),
    *("mask_fraction", "num_neighbors", "walk_rate", "bit_codes"),
)
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.0", "ff.2", "modulation"]
FINE_MIN_TIMESTEP = 1e-3  # of the reported bound: the smaller, the tighter and the noisier


@dataclass
class D3PMConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "saved pipeline or masked LM to train further"}
    )
    lora_rank: int | None = field(default=None, metadata={"help": "trains low-rank adapters of that pipeline only"})
    lora_alpha: float | None = field(default=None, metadata={"help": "adapters weigh alpha / rank; default: the rank"})
    source_column: str | None = field(
        default=None, metadata={"help": "column of the texts from which `text_column` is to be written"}
    )
    label_names: list[str] | None = field(
        default=None, metadata={"help": "names of the labels, in their order, by which texts can be asked for"}
    )
    condition_dropout: float = field(
        default=0.0, metadata={"help": "share of rows without their label or source, for classifier-free guidance"}
    )
    kernel: str = field(default="absorbing", metadata={"help": f"{', '.join(KERNELS)}"})
    schedule: str = field(
        default="linear",
        metadata={"help": "linear, cosine, sigmoid, sqrt, geometric, reciprocal, mutual_information"},
    )
    num_train_timesteps: int | None = field(
        default=None, metadata={"help": "steps of the bound; default: continuous time if the kernel has it, or 1,000"}
    )
    reverse_rule: str = field(default="plug_in", metadata={"help": "plug_in or marginal; not for absorbing"})
    mask_fraction: float = field(default=0.9, metadata={"help": "of hybrid noise: how much of it is the mask"})
    num_neighbors: int = field(default=8, metadata={"help": "of the neighbors kernel: nearest tokens of each token"})
    walk_rate: float = field(default=2.0, metadata={"help": "of the neighbors kernel: steps a unit of -log(alpha)"})
    bit_codes: str = field(default="embedding", metadata={"help": f"of the bit_flip kernel: {', '.join(BIT_CODES)}"})
    min_timestep: float = field(default=0.1, metadata={"help": "in training, the interval below is one step"})
    time_sampling: str = field(default="log_uniform", metadata={"help": "times in training: log_uniform or uniform"})
    auxiliary_weight: float = field(default=0.0, metadata={"help": "lambda of D3PM's cross-entropy on x_0"})
    hidden_size: int = field(default=256, metadata={"help": "width of the transformer"})
    num_layers: int = field(default=6, metadata={"help": "blocks"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    init_embeddings: str = field(default="cooccurrence", metadata={"help": "cooccurrence of tokens, or random"})
    tie_embeddings: bool = field(default=False, metadata={"help": "share the embedding with the head"})
    dropout: float = field(default=0.0, metadata={"help": "in training"})
    block_length: int | None = field(
        default=None, metadata={"help": "tokens in a block, to write long texts block by block; absorbing kernel"}
    )
    head_chunk_size: int | None = field(
        default=None, metadata={"help": "tokens whose logits exist at once, such as 128: saves memory"}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("kernel", KERNELS), ("bit_codes", BIT_CODES)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {sorted(known)}, got {getattr(self, name)!r}.")
        if self.block_length is not None and (self.block_length < 1 or self.kernel != "absorbing"):
            raise ValueError(
                '`block_length` must be at least 1 and needs `kernel` "absorbing", got '
                f"{self.block_length!r} with {self.kernel!r}."
            )
        if self.source_column and (self.packing or self.block_length is not None):
            raise ValueError("`source_column` needs `--packing false`, a row for a pair, and no `block_length`.")
        if not 0 <= self.condition_dropout < 1 or (self.condition_dropout and not self.conditional):
            raise ValueError(
                "`condition_dropout` must be in [0, 1) and needs a `label_column` or `source_column`, and no "
                f"`block_length`, got {self.condition_dropout!r}."
            )
        if self.label_names is not None and not self.label_column:
            raise ValueError(f"`label_names` needs a `label_column`, got {self.label_names}.")
        if len(set(self.label_names or [])) < len(self.label_names or []):
            raise ValueError(f"`label_names` must differ from each other, got {self.label_names}.")
        if self.init_embeddings not in ("cooccurrence", "random"):
            raise ValueError(f'`init_embeddings` must be "cooccurrence" or "random", got {self.init_embeddings!r}.')
        if self.time_sampling not in TIME_SAMPLINGS:
            raise ValueError(f"`time_sampling` must be one of {sorted(TIME_SAMPLINGS)}, got {self.time_sampling!r}.")
        if self.head_chunk_size is not None and self.head_chunk_size < 1:
            raise ValueError(f"`head_chunk_size` must be None or at least 1, got {self.head_chunk_size!r}.")
        if self.lora_rank is not None and (self.lora_rank < 1 or not self.model_name_or_path):
            raise ValueError(
                "`lora_rank` must be at least 1 and needs a pipeline to adapt, got "
                f"{self.lora_rank!r} with `model_name_or_path`={self.model_name_or_path!r}."
            )
        refuse_parts_of_a_pipeline(self, PARTS_OF_A_PIPELINE)

    @property
    def conditional(self) -> bool:
        """Whether texts are written under a condition that guidance can strengthen."""
        return self.block_length is None and bool(self.source_column or self.label_column)


def build_model(config: D3PMConfig, data: TextData):
    """`(denoiser, scheduler)` of this configuration, the scheduler as training uses it."""
    set_seed(config.seed)
    if config.model_name_or_path:
        return load_model(config, data)
    tokenizer = data.tokenizer
    # Padding and mask have the last ids; the others are what text consists of.
    words = min(tokenizer.pad_token_id, tokenizer.mask_token_id)
    counted = partial(tensor_batches, data.train_rows, COUNTED_ROWS)
    statistics = TextStatistics(counted, len(tokenizer), config.hidden_size)
    kernel = KernelConfig(
        mask_token_id=tokenizer.mask_token_id,
        num_tokens=words,
        frequencies=statistics.frequencies,
        vectors=statistics.vectors,
        **{name: getattr(config, name) for name in KERNEL_OPTIONS},
    )
    scheduler = make_scheduler(config.kernel, kernel)
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
    )
    if config.init_embeddings == "cooccurrence" and not config.resume_from_checkpoint:
        with torch.no_grad():
            denoiser.token_embedding.weight[:words] = statistics.vectors()[:words]
    return denoiser, scheduler


def load_model(config: D3PMConfig, data: TextData):
    """`(denoiser, scheduler)` of a saved pipeline or masked LM, with fresh adapters if only those are trained."""
    source = config.model_name_or_path
    if holds_masked_lm(source):
        denoiser, scheduler = load_masked_lm(source, data.tokenizer)
    else:
        pipe = TextDiffusionPipeline.from_pretrained(source)
        denoiser, scheduler = pipe.denoiser, pipe.scheduler
    if config.length > denoiser.config.max_length:
        raise ValueError(f"`length` must be at most {denoiser.config.max_length} for this model, got {config.length}.")
    if (data.num_classes or 0) > (denoiser.config.num_classes or 0):
        raise ValueError(
            f"`label_column` holds labels up to {data.num_classes - 1}; the model in `model_name_or_path` has "
            f"`num_classes`={denoiser.config.num_classes}."
        )
    if config.lora_rank:
        alpha = config.lora_alpha or config.lora_rank
        denoiser.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=alpha, target_modules=LORA_TARGETS))
    return denoiser, type(scheduler).from_config(scheduler.config, min_timestep=config.min_timestep)


def main(config: D3PMConfig, on_validation: Callable[[int, dict[str, float]], None] | None = None) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step in nats per token."""
    accelerator = make_accelerator(config)
    masked_lm = holds_masked_lm(config.model_name_or_path)
    if masked_lm:
        check_masked_lm_options(config)
    data = prepare_data(config, accelerator, config.model_name_or_path, masked_lm, config.source_column)
    names = label_names(config, data)
    denoiser, scheduler = build_model(config, data)
    fine_scheduler = type(scheduler).from_config(scheduler.config, min_timestep=FINE_MIN_TIMESTEP)
    accelerator.print(f"{denoiser.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary")
    sample_times = TIME_SAMPLINGS[config.time_sampling]
    first_interval = min(config.min_timestep, 1 / (scheduler.config.num_train_timesteps or 1))

    def loss_function(model, batch, uniform, generators):
        dropout = (config.condition_dropout, denoiser.config.num_classes, data.tokenizer.pad_token_id)
        batch = drop_conditions(batch, generators, *dropout)
        tokens, attention_mask = batch["input_ids"], batch["attention_mask"]  # (B, L)
        uniform = token_uniform(uniform, tokens.shape[1], denoiser.config.block_length, generators)
        uniform, weights = sample_times(uniform, first_interval)
        times = scheduler.training_timesteps(uniform)  # (B,), or with blocks (B, L)
        noisy = scheduler.add_noise(tokens, times, generators)  # (B, L)
        positions = predicted_positions(scheduler, noisy, unknown_tokens(batch))  # (B, L), the head runs there only
        if "given" in batch:
            noisy = torch.where(batch["given"], tokens, noisy)
        targets, corrupted = tokens[positions], noisy[positions]  # (N,)
        times_there, weights_there = at_positions(times, positions), at_positions(weights, positions)  # (N,)

        def weighted_sum(logits, chunk=slice(None)):  # (n, V) of all N positions or a chunk of them
            loss = token_bound(scheduler, logits, targets[chunk], corrupted[chunk], times_there[chunk])  # (n,)
            if config.auxiliary_weight:
                loss = loss + config.auxiliary_weight * reconstruction_loss(logits, targets[chunk])
            return (loss.double() * weights_there[chunk]).sum()

        inputs = {"class_labels": batch.get("label"), "positions": positions}
        if denoiser.config.block_length is not None:
            inputs |= {"clean_ids": tokens}
        if config.head_chunk_size:
            inputs |= {"loss_function": weighted_sum, "chunk_size": config.head_chunk_size}
            return model(noisy, times, attention_mask, **inputs).loss
        return weighted_sum(model(noisy, times, attention_mask, **inputs).logits)

    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        estimate = estimate_bound(model, fine_scheduler, rows, seed=config.seed, accelerator=accelerator)
        return estimate.metrics()

    def write(model) -> list[str]:
        pipe = pipeline_class(config, model)(data.tokenizer, plain_model(model), fine_scheduler, data.lengths, names)
        return written(config, pipe, data, config.num_samples).texts

    order = row_order(config, data.train_rows, rows_per_step(config, accelerator))
    writer = write if config.num_samples else None
    loop = TrainingLoop(config, accelerator, denoiser, loss_function, order, evaluate, writer, on_validation)
    losses = loop.run()
    averages = loop.state.averages()  # of all processes
    if accelerator.is_main_process:
        pipe = save(config, data, denoiser, averages, fine_scheduler, names).to(accelerator.device)
        loop.log_pipeline(report(config, pipe, data))
    end_training(accelerator)
    return losses


def label_names(config: D3PMConfig, data: TextData) -> list[str] | None:
    """Names of the labels: as configured, if they are as many as the data has, or of the pipeline trained further."""
    names = config.label_names
    if names is not None and len(names) != data.num_classes:
        raise ValueError(f"`label_names` must name the {data.num_classes} labels of the data, got {names}.")
    if config.model_name_or_path:
        return (saved_pipeline(config.model_name_or_path) or {}).get("label_names")
    return names


def save(
    config: D3PMConfig,
    data: TextData,
    denoiser: Any,
    averages: dict[str, torch.Tensor],
    scheduler: Any,
    names: list[str] | None,
) -> TextDiffusionPipeline:
    """Save the averaged weights, a pipeline or adapters of one, and return the pipeline as users will load it."""
    if config.lora_rank:
        adapters = get_peft_model_state_dict(denoiser, state_dict=averages)
        settings = denoiser.peft_config["default"].to_dict()
        TextDiffusionPipeline.save_lora_weights(config.output_dir, adapters, settings)
        pipe = TextDiffusionPipeline.from_pretrained(config.model_name_or_path, scheduler=scheduler)
        pipe.load_lora_weights(config.output_dir)
        return pipe
    model = fresh_copy(denoiser)
    model.load_state_dict(averages)
    pipe = pipeline_class(config, model)(data.tokenizer, plain_model(model.eval()), scheduler, data.lengths, names)
    pipe.save_pretrained(config.output_dir)
    return pipe


def pipeline_class(config: D3PMConfig, model: Any) -> type[TextDiffusionPipeline]:
    if model.config.block_length is not None:
        return TextBlockDiffusionPipeline
    return TextDiffusionCFGPipeline if config.conditional else TextDiffusionPipeline


def written(config: D3PMConfig, pipe: Any, data: TextData, count: int) -> Any:
    """Seeded texts of the pipeline: for the first validation sources, or of the first label, if there are such."""
    inputs: dict[str, Any] = {"num_return_sequences": count}
    if config.source_column:
        some = data.validation_documents.select(range(min(count, len(data.validation_rows))))
        inputs = {"source": list(some["source"])}
    if data.num_classes is not None:
        inputs["class_labels"] = 0
    if holds_masked_lm(config.model_name_or_path) and pipe.config.lengths is None:
        inputs["max_new_tokens"] = config.length - 2
    pipe.set_progress_bar_config(disable=True)
    steps = min(WRITING_STEPS, pipe.scheduler.config.num_train_timesteps or WRITING_STEPS)
    return pipe(**inputs, num_inference_steps=steps, generator=torch.Generator().manual_seed(config.seed))


def report(config: D3PMConfig, pipe: TextDiffusionPipeline, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split."""
    rows = data.validation_rows
    denoiser = training_denoiser(pipe.denoiser, pipe.tokenizer)
    estimate = estimate_bound(denoiser, pipe.scheduler, rows, seed=config.seed)
    data_lengths = text_lengths(pipe.tokenizer, data.validation_documents, rows, config)
    metrics = bound_metrics(estimate, rows, None if config.packing else pipe.config.lengths, data_lengths)
    if config.num_length_samples:
        tokens = written(config, pipe, data, config.num_length_samples).tokens
        metrics |= length_metrics(tokens, pipe.tokenizer, data_lengths, bool(pipe.config.lengths))
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"saved in           {config.output_dir}")
    return metrics


if __name__ == "__main__":
    try:
        main(HfArgumentParser(D3PMConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_d3pm.py: {error}")
