"""The ends of every training script: its command line, seeded texts of its pipeline, and the figures it leaves."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import diffusers
import huggingface_hub
import torch
import transformers

from text_diffusers.common.progress import draws_over_lines
from text_diffusers.models.language_model import is_masked_lm
from text_diffusers.training.adaptation.chat_data import first_questions
from text_diffusers.training.config import OptionParser, TrainingConfig
from text_diffusers.training.text_options import TextData, TextTrainingConfig, kept_source

# The step, and the figures of the validation after it.
ValidationCallback = Callable[[int, dict[str, float]], None]


def run(main: Callable[[Any], Any], config_class: Any):
    """Call `main` with the options on the command line; a mistake in them ends the script with one line."""
    if not draws_over_lines(sys.stderr):
        hide_bars_of_libraries()
    try:
        (config,) = OptionParser(config_class).parse_args_into_dataclasses()
        main(config)
    except (ValueError, OSError, ImportError) as error:
        # Of several processes only the first speaks; some messages of libraries have several lines.
        if os.environ.get("RANK", "0") != "0":
            sys.exit(1)
        sys.exit(f"{Path(sys.argv[0]).name}: {' '.join(str(error).split())}")


def hide_bars_of_libraries():
    """Leave out the bars of reading, saving and loading, which in a log would be drawn one behind the other."""
    datasets.disable_progress_bars()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def write_texts(
    config: TextTrainingConfig, pipe: Any, data: TextData, count: int, max_steps: int
) -> Any:
    """Seeded output of a pipeline: for the first held-out sources or questions, or of the first label.

    Args:
        count: texts to write, or sources or questions to write one text for.
        max_steps: of inference; no more than the pipeline was trained with are taken.
    """
    num_steps = min(max_steps, pipe.scheduler.config.num_train_timesteps or max_steps)
    # A pipeline may know itself how it writes best.
    knows_steps = "num_inference_steps" in pipe.generation_defaults
    inputs: dict[str, Any] = {} if knows_steps else {"num_inference_steps": num_steps}
    if data.template is not None:
        inputs["messages"] = first_questions(data, count, config.length)
    elif "source" in data.validation_documents.column_names:
        documents = data.validation_documents.select(range(min(count, len(data.validation_rows))))
        inputs["source"] = [
            kept_source(pipe.tokenizer, source, config.length) for source in documents["source"]
        ]
    else:
        inputs["num_return_sequences"] = count
    if data.num_classes is not None:
        inputs["class_labels"] = 0
    if is_masked_lm(pipe.denoiser) and pipe.config.lengths is None:
        # Between the start and the end, which are given
        inputs["max_new_tokens"] = config.length - 2

    pipe.set_progress_bar_config(disable=True)
    return pipe(**inputs, generator=torch.Generator().manual_seed(config.seed))


def save_metrics(config: TrainingConfig, metrics: dict[str, float]):
    """Leave the figures of the held-out split in the output folder, and say where everything is."""
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"saved in           {config.output_dir}")
