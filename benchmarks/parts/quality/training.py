"""Trains the models of benchmarks/quality.py: equal parameters, equal CPU time.

Shapes: V vocabulary size, D width.
"""

import os
import shutil
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import GPT2Config

from parts.common.recipes import QUIET, load_recipe, selected_options
from parts.common.results import read_or_make
from parts.common.yardsticks import yardstick_config
from parts.quality.autoregressive import AutoregressiveModel
from parts.quality.config import GPT2, ModelSpec, QualityConfig
from text_diffusers import TextDiffusionPipeline, TextTransformerModel
from text_diffusers.common.token_ids import never_written
from text_diffusers.data.rows import ShuffledRows, tensor_batches, unknown_tokens
from text_diffusers.training.initialization import cooccurrence_vectors
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import make_accelerator
from text_diffusers.training.text_options import prepare_data

# The cost of a step is the least mean of several stretches of steps, after some that are not counted.
WARM_UP_STEPS = 5
TIMED_STEPS = 20
TIMINGS = 3

COUNTED_ROWS = 200_000  # of which words that stand near each other are counted, as in the recipe

# Options of the recipe that are those of the benchmark.
SHARED_OPTIONS = (
    "dataset",
    "sample_by",
    "length",
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "train_batch_size",
    "lr_warmup_steps",
    "ema_decay",
    "init_embeddings",
    "reverse_rule",
    "num_clusters",
    "cluster_power",
)


# --- models of one size


def gpt2_config(options: QualityConfig, tokenizer: Any, feed_forward_width: int) -> GPT2Config:
    """A GPT-2 of the denoisers' width, layers and heads; like them it has no dropout, and a head of its own."""
    return yardstick_config(
        tokenizer,
        options.length,
        options.hidden_size,
        options.num_layers,
        options.num_attention_heads,
        n_inner=feed_forward_width,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
    )


def feed_forward_ratio(options: QualityConfig, width: int) -> float:
    """The ratio that gives a denoiser feed-forward layers of that width, which it rounds down."""
    return (width + 0.5) / options.hidden_size


def gpt2_parameters(options: QualityConfig, tokenizer: Any, width: int) -> int:
    """Parameters of GPT-2 with feed-forward layers of that width."""
    # Nothing is allocated on the meta device.
    with torch.device("meta"):
        return AutoregressiveModel(gpt2_config(options, tokenizer, width)).num_parameters()


def denoiser_parameters(
    options: QualityConfig,
    tokenizer: Any,
    width: int,
    conditioned: bool = False,
    num_clusters: int = 0,
) -> int:
    """Parameters of a denoiser with feed-forward layers of that width.

    Args:
        conditioned: on the time, or not.
        num_clusters: ids behind the tokens.
    """
    with torch.device("meta"):
        model = TextTransformerModel(
            vocab_size=len(tokenizer) + num_clusters,
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
            num_attention_heads=options.num_attention_heads,
            feed_forward_ratio=feed_forward_ratio(options, width),
            max_length=options.length,
            time_conditioning=conditioned,
        )
    return model.num_parameters()


def matched_width(spec: ModelSpec, options: QualityConfig, tokenizer: Any) -> int:
    """Width of the feed-forward layers: 4 times the model's, or one that matches a denoiser with time conditioning."""
    usual_width = 4 * options.hidden_size
    if spec.kernel not in ("absorbing", "hierarchical", GPT2):
        return usual_width

    target = denoiser_parameters(
        options, tokenizer, usual_width, conditioned=options.equal_parameters
    )
    count: Callable[..., int] = gpt2_parameters if spec.kernel == GPT2 else denoiser_parameters
    if spec.kernel == "hierarchical":
        count = partial(denoiser_parameters, num_clusters=options.num_clusters)

    # The number of parameters is a linear function of the width, so two of its values give all.
    first = count(options, tokenizer, 1)
    slope = count(options, tokenizer, 2) - first
    return max(1, round(1 + (target - first) / slope))


# --- training


def timed_loop(seconds: list[float]) -> type[TrainingLoop]:
    """A training loop that appends the CPU seconds of each step."""

    class TimedLoop(TrainingLoop):
        def train_step(self):
            started = time.process_time()
            result = super().train_step()
            seconds.append(time.process_time() - started)
            return result

    return TimedLoop


class Trainer:
    """Trains the models of one comparison, each in a working folder that is removed again.

    Args:
        tokenizer: of all models.
    """

    def __init__(self, options: QualityConfig, tokenizer: Any):
        self.options = options
        self.tokenizer = tokenizer
        self.working_folder = options.folder / f"working-{os.getpid()}"

    def run(self, spec: ModelSpec, seed: int, max_train_steps: int) -> tuple[Any, list[float]]:
        """The trained `TextDiffusionPipeline` or `AutoregressiveModel`, and the CPU seconds of each step."""
        seconds = []
        # The recipe is this run's own copy, so that its loop can be replaced by one with a clock.
        recipe = load_recipe()
        recipe.TrainingLoop = timed_loop(seconds)

        width = matched_width(spec, self.options, self.tokenizer)
        config = recipe.D3PMConfig(
            output_dir=str(self.working_folder),
            tokenizer=str(self.options.folder / "tokenizer"),
            kernel="absorbing" if spec.kernel == GPT2 else spec.kernel,
            auxiliary_weight=spec.auxiliary_weight,
            learning_rate=spec.learning_rate,
            seed=seed,
            max_train_steps=max_train_steps,
            validation_rows=1,
            checkpointing_steps=0,
            overwrite_output_dir=True,
            **QUIET,
            **selected_options(self.options, SHARED_OPTIONS),
        )

        # What an interrupted run has left is not gone on with: its seconds are lost.
        shutil.rmtree(self.working_folder, ignore_errors=True)
        try:
            if spec.kernel == GPT2:
                model = self.train_gpt2(config, width, recipe.TrainingLoop)
            else:
                # The recipe has no option for it.
                ratio = feed_forward_ratio(self.options, width)
                recipe.TextTransformerModel = partial(
                    TextTransformerModel, feed_forward_ratio=ratio
                )
                recipe.main(config)
                model = TextDiffusionPipeline.from_pretrained(self.working_folder)
        finally:
            shutil.rmtree(self.working_folder, ignore_errors=True)
        return model, seconds

    def train_gpt2(
        self,
        config: Any,
        width: int,
        loop_class: Callable[..., TrainingLoop],
    ) -> AutoregressiveModel:
        """As the recipe trains a denoiser, with the averaged weights at the end."""
        # 1. Data and model
        accelerator = make_accelerator(config)
        data = prepare_data(config, accelerator)
        set_seed(config.seed)
        special_ids = never_written(data.tokenizer)
        model = AutoregressiveModel(gpt2_config(self.options, data.tokenizer, width), special_ids)

        # 2. The same initial embeddings; padding and mask have the last ids
        vectors = None
        if config.init_embeddings == "cooccurrence":
            counted = tensor_batches(data.train_rows, COUNTED_ROWS)
            vectors = cooccurrence_vectors(counted, len(data.tokenizer), config.hidden_size)
            vectors = vectors[: min(special_ids)]  # (number of other tokens, D)
        model.initialize(vectors, like_denoiser=self.options.gpt2_init == "project")

        # 3. The same loop
        def loss_function(
            model,
            batch,
            uniform,
            generators,
        ):
            return model(batch["input_ids"], unknown_tokens(batch)).double().sum()

        order = ShuffledRows(data.train_rows, config.train_batch_size, config.seed)
        loop = loop_class(config, accelerator, model, loss_function, order)
        loop.run()

        # Averages are of parameters only; buffers are as they were.
        model.load_state_dict(loop.state.averages(), strict=False)
        return model.eval()

    def step_cost(self, spec: ModelSpec) -> float:
        """CPU seconds of a training step, measured once for all runs of a kernel."""

        def measure() -> dict[str, float]:
            num_steps = WARM_UP_STEPS + TIMINGS * TIMED_STEPS
            _, seconds = self.run(spec, seed=0, max_train_steps=num_steps)

            # Other work on the machine makes a step look dearer, never cheaper.
            starts = range(WARM_UP_STEPS, len(seconds), TIMED_STEPS)
            means = [statistics.fmean(seconds[start : start + TIMED_STEPS]) for start in starts]
            return {"seconds_per_step": min(means)}

        file = self.options.folder / "calibration" / f"{spec.kernel}.json"
        return read_or_make(file, measure)["seconds_per_step"]
