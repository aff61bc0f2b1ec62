"""Train a discrete diffusion model on text, from raw files to a saved `TextDiffusionPipeline`.

    accelerate launch training_scripts/train_d3pm.py --dataset chitchat --output_dir runs/chitchat

Read it from top to bottom: options, data, model, loss, training, report. Shapes: B batch, L sequence length, V
vocabulary size, N predicted positions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed

from text_diffusers import TextDiffusionPipeline, TextTransformerModel
from text_diffusers.common.scheduler_config import HIDING_NOISES
from text_diffusers.common.token_ids import never_written, noise_vocabulary, num_ids
from text_diffusers.data.rows import tensor_batches, text_ends, trimmed
from text_diffusers.data.sources import find_conversations
from text_diffusers.evaluation.autoregression import predicts_next
from text_diffusers.evaluation.held_out import (
    length_metrics,
    make_validation_rows,
    report_causal_past,
    report_labels,
    report_rows,
    report_texts,
)
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.kernels import BIT_CODES, KERNELS, KernelConfig, make_scheduler
from text_diffusers.models.text_lengths import check_length_ids
from text_diffusers.training.adaptation.adapters import (
    add_adapters,
    merge_adapters,
    quantize,
    save_adapters,
)
from text_diffusers.training.adaptation.chat_data import (
    prepare_chat_data,
    print_replies,
    with_reply_end,
)
from text_diffusers.training.adaptation.language_models import (
    choose_attention,
    end_behind_texts,
    fresh_copy,
    load_language_model,
    plain_model,
    training_denoiser,
    writing_defaults,
)
from text_diffusers.training.adaptation.options import AdaptationConfig
from text_diffusers.training.checkpoints import begins_anew
from text_diffusers.training.config import marked_options, option
from text_diffusers.training.initialization import (
    LARGEST_VOCABULARY,
    TextStatistics,
    start_clusters,
    start_from_words,
)
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics, write_texts
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.blocks import NEXT_TOKEN_SHARE, NEXT_TOKEN_WEIGHT, BlockSteps
from text_diffusers.training.steps.condition_dropout import drop_conditions
from text_diffusers.training.steps.tokens import ALL_TIME_SAMPLINGS, TokenCorruption
from text_diffusers.training.text_options import (
    TextData,
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
KERNEL = ("pipeline", "kernel")  # the parts of which an option of the noise is one
FINE_MIN_TIMESTEP = 1e-3  # of the reported bound: the smaller, the tighter and the noisier


@dataclass
class D3PMConfig(AdaptationConfig):
    """Options of this recipe; those of a model to start from are in `AdaptationConfig`, those of every recipe in
    `TextTrainingConfig` and `TrainingConfig`."""

    # Conditions
    source_column: str | None = option(
        None,
        "column of the texts from which `text_column` is to be written",
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
    reverse_rule: str = option(
        "plug_in", "plug_in or marginal; not for absorbing and hierarchical", part_of=KERNEL
    )
    mask_fraction: float = option(
        0.9, "of hybrid noise: how much of it is the mask", part_of=KERNEL
    )
    num_neighbors: int = option(
        8, "of the neighbors kernel: nearest tokens of each token", part_of=KERNEL
    )
    walk_rate: float = option(
        2.0, "of the neighbors kernel: steps a unit of -log(alpha)", part_of=KERNEL
    )
    num_clusters: int | None = option(
        None,
        "of the hierarchical kernel: clusters of tokens with like neighbours; default: 64",
        part_of=KERNEL,
    )
    cluster_power: float = option(
        2.0,
        "of the hierarchical kernel: the larger, the longer a token shows its cluster; above 1",
        part_of=KERNEL,
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
    ar_loss_weight: float | None = option(
        None,
        f"of the loss of next tokens, for blocks over a causal past; default there: {NEXT_TOKEN_WEIGHT}",
        limit="at least 0",
    )
    next_token_share: float | None = option(
        None,
        "of the training, at its beginning, that learns next tokens alone, before blocks over a causal past; default: "
        f"{NEXT_TOKEN_SHARE} of an encoder, else 0",
        limit="in [0, 1)",
    )

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
    block_length: list[int] | None = option(
        None,
        "tokens in a block, to write long texts block by block; absorbing kernel. Over a causal past several, which "
        "take turns; the first is that of the saved model",
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

        self._check_blocks()
        # A row holds one pair, so it is neither packed nor, but behind a prompt, cut into blocks.
        has_own_blocks = self.block_length is not None and not self.adapts_language_model
        if self.source_column and (self.packing or has_own_blocks):
            raise ValueError(
                "`source_column` needs `--packing false`, a row for a pair, and no `block_length`."
            )

        # Only a condition that is there can be dropped.
        has_condition = self.source_column or self.label_column
        conditional = has_condition and (self.adapts_language_model or self.block_length is None)
        if not 0 <= self.condition_dropout < 1 or (self.condition_dropout and not conditional):
            raise ValueError(
                "`condition_dropout` must be in [0, 1) and needs a `label_column` or `source_column`, and no "
                f"`block_length`, got {self.condition_dropout!r}."
            )

        # Texts are asked for by these names, so each must stand for one label.
        check_label_names(self)

    def _check_blocks(self):
        # A single length is noted as a number, as it always was.
        settings: Any = self
        if self.block_length is not None and len(self.block_lengths) == 1:
            settings.block_length = self.block_lengths[0]

        # Blocks are written by unmasking, so the noise must be masks alone.
        lengths = self.block_lengths
        are_possible = all(length >= 1 for length in lengths) and len({*lengths}) == len(lengths)
        if lengths and (not are_possible or self.kernel != "absorbing"):
            raise ValueError(
                '`block_length` must be at least 1, each another, and needs `kernel` "absorbing", got '
                f"{self.block_length!r} with {self.kernel!r}."
            )
        asked = (self.ar_loss_weight, self.next_token_share)
        if not self.reads_causal_past and (len(lengths) > 1 or any(asked)):
            raise ValueError(
                "`ar_loss_weight`, `next_token_share` and several `block_length`s need a language model with a causal "
                f"past, got {self.ar_loss_weight!r}, {self.next_token_share!r} and {self.block_length!r}."
            )
        if self.next_token_share is None:
            self.next_token_share = NEXT_TOKEN_SHARE if self.learns_next_tokens_first else 0.0

    @property
    def block_lengths(self) -> list[int]:
        """Tokens of the blocks that take turns; none without blocks, or for those of the model itself."""
        lengths: Any = self.block_length
        if lengths is None:
            return []
        return list(lengths) if isinstance(lengths, Iterable) else [lengths]


def read_data(config: D3PMConfig, accelerator: Any) -> TextData:
    """Tokenizer and rows of the data set, which holds texts or conversations."""
    columns = find_conversations(config.dataset, config.text_column, config.split, config.streaming)
    if columns:
        return prepare_chat_data(config, accelerator, columns)
    # A saved model brings its tokenizer, since its embeddings stand in that order.
    return prepare_data(
        config,
        accelerator,
        pretrained=config.model_name_or_path,
        # A masked LM was never trained to predict where a text begins and ends.
        given_ends=config.gives_ends,
        source_column=config.source_column,
        label_names=known_label_names(config),
        known_classes=known_label_names(config) is not None and config.kind is not None,
        # A language model is told the label by a prompt.
        whole_texts=config.adapts_language_model,
        given_starts=config.reads_causal_past,
        label_prompts=config.known_label_prompts,
    )


def build_parts(config: D3PMConfig, data: TextData) -> tuple[Any, Any]:
    """As `build_model`; a denoiser that learns conversations may end its replies as their template does."""
    denoiser, scheduler = build_model(config, data)
    if data.template is not None:
        saves_model = not config.lora_rank or config.merges_adapters
        denoiser = with_reply_end(denoiser, data.template, saves_model)
    return denoiser, scheduler


def build_model(config: D3PMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of this configuration, the scheduler as training uses it."""
    set_seed(config.seed)
    counted_batches = partial(tensor_batches, data.train_rows, COUNTED_ROWS)
    if config.adapts_language_model:
        statistics = TextStatistics(counted_batches, len(data.tokenizer), width=1)
        return load_adapted(config, data, statistics.frequencies)
    if config.model_name_or_path:
        return load_model(config, data)

    tokenizer = data.tokenizer
    if config.init_embeddings == "cooccurrence" and len(tokenizer) > LARGEST_VOCABULARY:
        raise ValueError(
            f'`init_embeddings` must be "random" for more than {LARGEST_VOCABULARY:,} tokens, whose pairs are too '
            f"many to be counted, got {config.init_embeddings!r} with {len(tokenizer):,}."
        )
    statistics = TextStatistics(counted_batches, num_ids(tokenizer), config.hidden_size)

    # Options of the noise have the names that `KernelConfig` gives them.
    kernel_options = {
        name: getattr(config, name) for name in marked_options(config, "part_of", "kernel")
    }
    kernel = KernelConfig(
        mask_token_id=tokenizer.mask_token_id,
        num_tokens=noise_vocabulary(tokenizer),
        frequencies=statistics.frequencies,
        vectors=statistics.vectors,
        num_ids=num_ids(tokenizer),
        **kernel_options,
    )
    scheduler = make_scheduler(config.kernel, kernel)

    # Some kernels have states that are no tokens. Absorbing ones need no time: masks and clusters say all of it.
    hides_tokens = config.kernel in HIDING_NOISES
    denoiser = TextTransformerModel(
        vocab_size=max(num_ids(tokenizer), scheduler.config.get("vocab_size") or 0),
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.length,
        time_conditioning=not hides_tokens,
        num_classes=data.num_classes,
        tie_embeddings=config.tie_embeddings,
        dropout=config.dropout,
        block_length=next(iter(config.block_lengths), None),
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
        predicts_length=config.source_column is not None,
    )
    # A checkpoint brings its own weights.
    if begins_anew(config):
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
            sets_head=hides_tokens,
        )
        if config.kernel == "hierarchical":
            start_clusters(denoiser, scheduler)
    return denoiser, scheduler


def load_adapted(
    config: D3PMConfig, data: TextData, frequencies: Callable[[], torch.Tensor]
) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of a language model, read as the options ask for.

    Args:
        frequencies: counts the tokens of the rows.
    """
    denoiser, scheduler = load_language_model(
        config.model_name_or_path,
        data.tokenizer,
        # A checkpoint brings its own weights, but of adapters no other ones.
        frequencies if begins_anew(config) or config.lora_rank else None,
        config.reading | {"block_length": next(iter(config.block_lengths), None)},
        knows_ends=data.template is not None or not config.gives_ends,
        dropout=config.dropout,
    )
    check_row_length(config, denoiser)
    return denoiser, type(scheduler).from_config(scheduler.config, min_timestep=config.min_timestep)


def check_row_length(config: D3PMConfig, denoiser: Any):
    if config.length > denoiser.config.max_length:
        raise ValueError(
            f"`length` must be at most {denoiser.config.max_length} for this model, got {config.length}."
        )


def load_model(config: D3PMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of a saved pipeline."""
    pipe = TextDiffusionPipeline.from_pretrained(config.model_name_or_path)
    denoiser = pipe.denoiser
    scheduler = pipe.scheduler

    # The rows and labels of the data must fit into the saved model.
    check_row_length(config, denoiser)
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

    # The noise stays that of the saved model, but the first interval is of this run.
    return denoiser, type(scheduler).from_config(scheduler.config, min_timestep=config.min_timestep)


def main(config: D3PMConfig, on_validation: ValidationCallback | None = None) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step in nats per token."""
    # 1. Data, model and noise
    accelerator = make_accelerator(config)
    data = read_data(config, accelerator)
    names = chosen_label_names(config, data)

    denoiser, scheduler = build_parts(config, data)
    choose_attention(denoiser, accelerator, config.length)
    # The weights under adapters are frozen, and the adapters begin as zero.
    if config.quantization:
        quantize(denoiser, config.quantization, accelerator.device, accelerator.mixed_precision)
    if config.lora_rank:
        add_adapters(denoiser, config.lora_rank, config.lora_alpha, config.lora_targets)
    # Training makes one step of the noisiest weights, near the data; what is reported and saved does not.
    fine_scheduler = type(scheduler).from_config(scheduler.config, min_timestep=FINE_MIN_TIMESTEP)
    corruption = TokenCorruption(
        scheduler,
        denoiser.config,
        time_sampling=config.time_sampling,
        min_timestep=config.min_timestep,
        auxiliary_weight=config.auxiliary_weight,
        answer_end_id=end_behind_texts(config, data),
    )
    blocks = BlockSteps(
        denoiser.config,
        config.block_lengths,
        config.ar_loss_weight,
        config.next_token_share,
        config.seed,
    )
    accelerator.print(
        f"{denoiser.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary"
    )

    # 2. The loss of a batch, and what is watched on the way
    def loss_function(model, batch, uniform, generators):
        # Rows without their condition teach the model the text that guidance leads away from.
        batch = drop_conditions(
            # Behind an answer stands what is written together with it.
            trimmed(batch) if corruption.answer_end_id is None else batch,
            generators,
            probability=config.condition_dropout,
            num_classes=denoiser.config.num_classes,
            pad_token_id=data.tokenizer.pad_token_id,
            mask_token_id=data.tokenizer.mask_token_id if config.adapts_language_model else None,
            frame_ids=text_ends(data.tokenizer),
        )
        block_length = blocks.length_at(loop.step, loop.progress)
        corrupted = corruption(batch, uniform, generators, block_length)

        # The head, the dearest part, runs only at the N positions whose prediction the bound needs.
        inputs = {"class_labels": batch.get("label"), "positions": corrupted.positions}
        inputs |= corrupted.block_inputs | blocks.inputs(batch, block_length, loop.step)
        if config.head_chunk_size:
            # The model computes the loss itself, so that the logits of one chunk are all that exists at once.
            inputs |= {"loss_function": corrupted.criterion, "chunk_size": config.head_chunk_size}
        mask = corrupted.batch["attention_mask"]
        output = model(corrupted.noisy, corrupted.times, mask, **inputs)
        if config.head_chunk_size:
            return output.loss
        logits = output.logits  # (N, V)
        loss = corrupted.criterion(logits)
        return loss + blocks.loss(output, batch, inputs)

    # Far fewer rows than the report reads, from all over the held-out documents.
    validation = make_validation_rows(config, data, denoiser)

    def evaluate(model) -> dict[str, float]:
        estimate = estimate_bound(
            model, fine_scheduler, validation.rows, seed=config.seed, accelerator=accelerator
        )
        metrics = validation.metrics(estimate, model)
        if predicts_next(model):
            metrics |= validation.autoregressive_metrics(
                model, seed=config.seed, accelerator=accelerator
            )
        return metrics

    # Users write under the fine schedule, so samples on the way do, too.
    defaults = writing_defaults(denoiser, config.kind, config.model_name_or_path, config.length)

    def make_pipeline(model) -> TextDiffusionPipeline:
        return TextDiffusionPipeline(
            data.tokenizer,
            plain_model(model),
            fine_scheduler,
            data.lengths,
            names,
            label_prompts=data.label_prompts,
            takes_source=config.adapts_language_model and config.source_column is not None,
            generation_defaults=defaults,
        )

    def write(model) -> list[str]:
        # In the precision of the training, without which frozen weights in bfloat16 and adapters would not meet.
        with accelerator.autocast():
            pipe = make_pipeline(model)
            return write_texts(config, pipe, data, config.num_samples, WRITING_STEPS).texts

    # 3. Train
    per_step = rows_per_step(config, accelerator)
    config.settle_steps(None if config.streaming else len(data.train_rows), per_step)
    # The loop owns the optimizer, checkpoints and trackers, and calls the functions above.
    loop = TrainingLoop(
        config,
        accelerator,
        denoiser,
        loss_function,
        row_order(config, data.train_rows, per_step),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 4. Save the averaged weights, load them as users will, and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        if config.lora_rank and not config.merges_adapters:
            save_adapters(denoiser, averages, config.output_dir)
            # The report judges what is read back from the disk.
            name = config.model_name_or_path
            pipe = TextDiffusionPipeline.from_pretrained(name, scheduler=fine_scheduler)
            pipe.load_lora_weights(config.output_dir)
        else:
            if config.lora_rank:
                rebuild = partial(build_parts, config, data) if config.quantization else None
                model = merge_adapters(denoiser, averages, rebuild)
            else:
                model = fresh_copy(denoiser)
                model.load_state_dict(averages)
            pipe = make_pipeline(model.eval())
            pipe.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, pipe.to(accelerator.device), data))
    end_training(accelerator)
    return losses


def report(config: D3PMConfig, pipe: TextDiffusionPipeline, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split."""
    # 1. The bound of held-out texts, as the pipeline writes them: packed, or one a row
    rows = data.validation_rows
    is_part = config.report_rows is not None and len(rows) > config.report_rows
    if is_part:
        rows = data.spread_validation_rows(config.report_rows)
    if config.adapts_language_model:
        print(f"held-out rows      {len(rows):,}, being judged; fewer: --report_rows")
    denoiser = training_denoiser(pipe.denoiser, pipe.tokenizer)
    if data.template is not None or (is_part and config.packing):
        estimate = estimate_bound(denoiser, pipe.scheduler, rows, seed=config.seed)
        metrics = report_rows(estimate, rows, tokenizer=pipe.tokenizer)
    elif config.packing:
        estimate = estimate_bound(denoiser, pipe.scheduler, rows, seed=config.seed)
        metrics = report_rows(estimate, rows, data.validation_documents)
    else:
        metrics = report_texts(config, data, pipe, denoiser)
    if data.num_classes and data.label_prompts and config.packing:
        metrics |= report_labels(config, data, denoiser, pipe.scheduler)
    # Texts with a row each have that in their own report.
    if predicts_next(denoiser) and (config.packing or data.template is not None):
        metrics |= report_causal_past(config, denoiser, pipe.scheduler, rows, metrics)
    data_lengths = text_lengths(
        pipe.tokenizer, data.validation_documents, data.validation_rows, config
    )

    # 2. Lengths of written texts beside those of the data
    if config.num_length_samples:
        written = write_texts(config, pipe, data, config.num_length_samples, WRITING_STEPS)
        metrics |= length_metrics(
            written.tokens, pipe.tokenizer, data_lengths, bool(pipe.config.lengths)
        )
        if data.template is not None:
            print_replies(data, written.texts, config.length)

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, D3PMConfig)
