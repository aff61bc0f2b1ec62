"""How well each kernel learns a text, beside an autoregressive GPT-2: equal parameters, data and CPU minutes.

    python benchmarks/quality.py --cpu_minutes 3 --seeds 0 1 2 --output_dir runs/quality
    python benchmarks/quality.py --dataset book.txt --characters --output_dir runs/quality-characters
    python benchmarks/quality.py --models absorbing --seeds 0 --output_dir runs/quality   # one run of many, alone
    python benchmarks/quality.py --report --picture docs/quality.png --output_dir runs/quality

A model is a kernel of training_scripts/train_d3pm.py or `gpt2`; `absorbing_auxiliary` adds D3PM's cross-entropy,
weight 0.01; `gpt2:3e-3` has a learning rate of its own. A finished model and seed is a file in `output_dir/results`
and is not trained again; processes that train different ones may share the folder.

- Equal: rows, tokenizer, width, layers, heads, the loop with its optimizer, averaging and schedule, and the initial
  embeddings, which in GPT-2 are scaled to the 0.02 of its other weights. All kernels but the absorbing one have
  parameters that take in the time. The feed-forward layers of the absorbing model and of GPT-2 are widened until they
  have as many in all; `--equal_parameters false` leaves the recipe's, and gives GPT-2 those of the absorbing model.
- CPU minutes are those of training steps on one thread. A short run measures the cost of a step, once for all seeds,
  and the budget divided by it is the number of steps, so a run can be repeated. Contention makes a step look dearer:
  the table has the CPU minutes that the steps took in the end.
- nats per token: of all tokens of the held-out rows; a bound for diffusion, exact for GPT-2. No model is shown a token
  of a row for free: GPT-2 predicts the first one too, after an [EOS] that is put before every row.
- bits per character: the same, the end of a text counting as one character.
- Texts are full rows from pure noise, or from [EOS] by GPT-2, at temperature 1. `data` is as many held-out rows.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.comparison import (
    DATA,
    check_settings,
    markdown_table,
    order_of,
    read_json,
    read_records,
    values_of,
    write_json,
)
from datasets import disable_progress_bars
from learning.config import AUXILIARY, GPT2, ModelSpec, QualityConfig
from learning.models import Trainer, evaluate_data, prepare_text, run_one
from transformers import HfArgumentParser

from text_diffusers.evaluation.text_metrics import generative_perplexity, load_judge
from text_diffusers.evaluation.visualization import plot_quality
from text_diffusers.kernels import KERNELS

TARGET = 1.15  # times the nats of the autoregressive model
# Orders that D3PM (https://arxiv.org/abs/2107.03006) reports, best first, of characters and of pieces of words.
PAPER_ORDERS = {
    True: (["absorbing", "neighbors", "uniform"], "text8"),
    False: (["absorbing", "uniform", "neighbors"], "LM1B"),
}
FREE = ("output_dir", "models", "seeds", "judge", "judge_cache", "report", "picture")


def run(options: QualityConfig):
    """Train, evaluate and judge what is not finished, then report."""
    check_settings(Path(options.output_dir), {k: v for k, v in asdict(options).items() if k not in FREE})
    torch.set_num_threads(1)
    disable_progress_bars()
    judge = None if options.judge == "none" else partial(load_judge, options.judge, options.judge_cache)
    results = Path(options.output_dir, "results")
    specs = [ModelSpec.parse(name, options) for name in options.models]
    runs = {results / f"{spec.file_name}-seed{seed}.json": (spec, seed) for seed in options.seeds for spec in specs}
    missing = {path: run for path, run in runs.items() if not path.exists()}
    if judge and missing:
        judge()  # if it cannot be had, this is the time to say so
    if missing or not (results / f"{DATA}.json").exists():
        held_out = prepare_text(options)
        if not (results / f"{DATA}.json").exists():
            write_json(results / f"{DATA}.json", evaluate_data(options, held_out))
        trainer = Trainer(options, held_out)
        for spec, _ in missing.values():
            trainer.step_cost(spec)
        for path, (spec, seed) in missing.items():
            if not path.exists():  # another process may have been faster
                write_json(path, run_one(trainer, spec, seed))
    if judge:
        judge_texts([results / f"{DATA}.json", *runs], judge, options.judge)
    report(options)


def judge_texts(paths: list[Path], judge: Callable[[], tuple[Any, Any]], name: str):
    """Add the generative perplexity to results that have none."""
    unjudged = [path for path in paths if "generative_perplexity" not in read_json(path)]
    loaded = judge() if unjudged else None
    for path in unjudged:
        record = read_json(path)
        print(f"{record['model']}, seed {record['seed']}: generative perplexity under {name}", flush=True)
        scored = generative_perplexity(record["texts"], *loaded)
        judged = {"judge": name, "generative_perplexity": scored.perplexity, "texts_skipped": scored.num_skipped}
        write_json(path, record | judged)


def report(options: QualityConfig):
    """Print the table and what it says, and draw the picture, of all finished runs in the folder."""
    records = read_records(Path(options.output_dir, "results"))
    print(f"\n{markdown_table(records, GPT2)}\n")
    for record in records:
        if record["model"] == DATA:
            print(f"Token frequencies alone: {record['unigram_entropy']:.3f} nats per token.")
    print(*findings(records, options.characters), sep="\n")
    if any("nats_per_token" in record for record in records):
        picture = plot_quality(records, options.picture or Path(options.output_dir, "quality.png"))
        print(f"Picture: {picture}")


def findings(records: list[dict[str, Any]], characters: bool) -> list[str]:
    """The target, the order of the kernels beside the paper's, and the auxiliary loss, as far as they were run."""
    nats = {record["model"]: values_of(records, record["model"], "nats_per_token") for record in records}
    mean = {model: statistics.fmean(values) for model, values in nats.items() if values}
    lines = []
    if "absorbing" in mean and (rivals := [mean[m] for m in mean if m.partition(":")[0] == GPT2]):
        ratio = mean["absorbing"] / min(rivals)
        verdict = "reached" if ratio <= TARGET else "missed"
        lines.append(f"Absorbing needs {ratio:.3f} times the nats of the best GPT-2; target {TARGET}: {verdict}.")
    order = order_of(records, KERNELS)
    if len(order) > 1:
        lines.append("Kernels, best first: " + ", ".join(f"{name} {mean[name]:.3f}" for name in order) + ".")
        paper, text = PAPER_ORDERS[characters]
        if set(paper) <= set(order):
            same = "the same" if [name for name in order if name in paper] == paper else "not the same"
            lines.append(f"D3PM's order on {text} is {', '.join(paper)}: {same}.")
    for kernel in order:
        if (other := kernel + AUXILIARY) in mean:
            change = mean[other] - mean[kernel]
            lines.append(f"The auxiliary cross-entropy changes {kernel} by {change:+.3f} nats per token.")
    return lines


def main(options: QualityConfig):
    if options.report:
        report(options)
    else:
        run(options)


if __name__ == "__main__":
    try:
        main(HfArgumentParser(QualityConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"quality.py: {error}")
