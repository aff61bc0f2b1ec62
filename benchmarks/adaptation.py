"""What a pretrained language model is worth as a diffusion model after minutes on one core, and how fast it writes.

    python benchmarks/adaptation.py --output_dir runs/adaptation
    python benchmarks/adaptation.py --rows minilm_masked minilm_blocks --seeds 0 1 2 --output_dir runs/adaptation
    python benchmarks/adaptation.py --report --output_dir runs/adaptation
    python benchmarks/adaptation.py --speed --dtype bfloat16 --output_dir runs/adaptation

**Bits per character** (the default): a row of the table is a start and an objective, trained by
training_scripts/train_d3pm.py on the text, and a column is a number of minutes.

- Minutes are those of the CPU in training steps, on one thread. A run has the longest budget, its learning rate falls
  to 0 there, and it is judged on the way too, where the rate is still high; with `--anneal true` each budget has a run
  of its own. Where the objective changes on the way, each always has one.
- A figure is the bound of held-out rows, its standard error over rows and noise behind ±, in bits per character of the
  texts as they are, the end of a text counting as one character: vocabularies compare. A model that knows lower case
  only does not pay for capitals, and the table says so. In parentheses, or alone where blocks have one token, is the
  loss of next tokens of the same weights, which is exact.
- Rows begin with a text, and behind a token that is given, where the start is a language model; those of a model from
  scratch begin in the middle of a text.
- The averaged weights are judged. All but rates, sizes of batches and lengths of rows are the defaults of the recipe.

A finished run is a file in `output_dir/results`, and is not trained again. One that was interrupted goes on from its
last judgement, or, if it was stopped by a signal, from where it was.

**Speed** (`--speed true`): tokens a second of the causal LM of `smollm2`, or of random weights of its size where there
is none, by `generate` with its cache, in blocks, and bidirectionally: see parts/adaptation/speed.py. Seconds are
medians of measurements that take turns, of the CPU on one thread, or of the clock on an accelerator.
"""

import platform
import shutil

import torch
from datasets import disable_progress_bars
from parts.adaptation.config import AdaptationBenchmarkConfig
from parts.adaptation.report import bits_table, read_records, unknown_words
from parts.adaptation.speed import Writers, load_causal_lm, measure, speed_table
from parts.adaptation.training import recipe_config, train_and_judge, working_folder
from parts.common.options import run
from parts.common.recipes import load_recipe
from parts.common.results import Record, check_settings, write_json, write_report

from text_diffusers.training.config import OptionParser


def train_missing(options: AdaptationBenchmarkConfig):
    """Train and judge what is not finished."""
    check_settings(options)
    torch.set_num_threads(1)
    disable_progress_bars()
    results = options.folder / "results"
    files = {training: results / f"{training.name}.json" for training in options.runs}
    missing = [training for training, file in files.items() if not file.exists()]

    # A model that is not there is an error now, and not after hours.
    recipe = load_recipe()
    for training in missing:
        recipe_config(recipe, training, options)

    for training in missing:
        write_json(files[training], train_and_judge(training, options))
        shutil.rmtree(working_folder(training, options), ignore_errors=True)


def report(options: AdaptationBenchmarkConfig):
    """Print the table of all finished runs in the folder."""
    records = read_records(options.folder / "results")
    if not records:
        raise ValueError(f"`output_dir`={options.output_dir!r} holds no finished run.")
    text = "\n\n".join([head_of(records), bits_table(records), *unknown_words(records)])
    write_report(options.folder, "adaptation", text, records)


def head_of(records: list[Record]) -> str:
    """What holds for all lines of the table."""
    first = records[0]
    num_texts = max(record["held_out_texts"] for record in records)
    num_rows = max(record["held_out_rows"] for record in records)
    precision = "float32" if first["mixed_precision"] == "no" else "bf16 autocast"
    runs = "a run each" if first["anneal"] else "of one run, where its objective is one"
    return (
        f"Bits per character of {first['dataset']}: {num_rows} rows of {first['length']} tokens, spread over "
        f"{num_texts:,} held-out texts; CPU minutes of one thread, {runs}; {precision}; torch {torch.__version__}."
    )


def measure_speed(options: AdaptationBenchmarkConfig):
    """Print the table of tokens a second."""
    model, tokenizer, is_trained = load_causal_lm(options)
    model.to(getattr(torch, options.dtype))
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
        machine = torch.accelerator.current_accelerator().type
    else:
        torch.set_num_threads(1)
        machine = f"one thread of a CPU ({platform.machine()})"
    writers = Writers(options, model, tokenizer)

    records = []
    for record in measure(writers, options):
        records.append(record)
        print(
            f"{record['batch']} at once, {record['case']}: {record['tokens_per_second']:.1f} tokens a second",
            flush=True,
        )
    weights = "its own weights" if is_trained else "random weights"
    head = (
        f"{model.num_parameters() / 1e6:.0f}M parameters, {weights}, {options.dtype}, {options.num_tokens} tokens a "
        f"text, {machine}; torch {torch.__version__}."
    )
    options.folder.mkdir(parents=True, exist_ok=True)
    write_report(options.folder, "speed", f"{head}\n\n{speed_table(records)}", records)


def main(options: AdaptationBenchmarkConfig):
    """Measure the speed, or train what is not finished, unless only the report is asked for, and report."""
    if options.speed:
        measure_speed(options)
        return
    if not options.report:
        train_missing(options)
    report(options)


if __name__ == "__main__":
    run(main, OptionParser(AdaptationBenchmarkConfig, description=__doc__))
