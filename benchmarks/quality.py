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
- nats per token: of all tokens of the held-out rows, ends included, as recipes and `evaluate_likelihood` count; a
  bound for diffusion, exact for GPT-2. No model is shown a token of a row for free: GPT-2 predicts the first one too,
  after an [EOS] that is put before every row.
- bits per character: the same, the end of a text counting as one character.
- Texts are full rows from pure noise, or from [EOS] by GPT-2, at temperature 1. `data` is as many held-out rows.
"""

from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.results import check_settings, read_json, read_or_make, write_json
from parts.common.texts import PerplexityJudge
from parts.quality.config import ModelSpec, QualityConfig
from parts.quality.evaluation import DATA, evaluate_data, train_and_evaluate
from parts.quality.report import findings, plot_quality, quality_table, read_records
from parts.quality.text import prepare_text
from parts.quality.training import Trainer

from text_diffusers.training.config import OptionParser


def run_missing(options: QualityConfig):
    """Train, evaluate and judge what is not finished."""
    check_settings(options)
    torch.set_num_threads(1)
    disable_progress_bars()

    # 1. What is missing, by the file that its record is to be
    results = options.folder / "results"
    runs = {}
    for seed in options.seeds:
        for name in options.models:
            spec = ModelSpec.parse(name, options.learning_rate)
            runs[results / f"{spec.file_name}-seed{seed}.json"] = (spec, seed)
    data_path = results / f"{DATA}.json"
    missing = [path for path in runs if not path.exists()]

    # An error of the judge comes now, and not after the training.
    judge = options.perplexity_judge(load=bool(missing))

    # 2. Train and evaluate it
    if missing or not data_path.exists():
        held_out = prepare_text(options)
        read_or_make(data_path, lambda: evaluate_data(options, held_out))

        # The costs of all steps are measured in one go, under about the same load of the machine.
        trainer = Trainer(options, held_out.tokenizer)
        for path in missing:
            trainer.step_cost(runs[path][0])

        for path in missing:
            # Another process may have been faster.
            if not path.exists():
                spec, seed = runs[path]
                write_json(path, train_and_evaluate(trainer, spec, seed, held_out))

    # 3. Judge what has not been judged
    if judge is not None:
        for path in (data_path, *runs):
            record = read_json(path)
            if "generative_perplexity" not in record:
                write_json(path, record | judge_texts(record, judge))


def judge_texts(record: dict[str, Any], judge: PerplexityJudge) -> dict[str, Any]:
    """Generative perplexity of the texts of a record, and the judge's name."""
    run_name = f"{record['model']}, seed {record['seed']}"
    print(f"{run_name}: generative perplexity under {judge.name}", flush=True)
    score = judge.score(record["texts"])
    return {
        "judge": judge.name,
        "generative_perplexity": score.perplexity,
        "texts_skipped": score.num_skipped,
    }


def report(options: QualityConfig):
    """Print the table and what it says, and draw the picture, of all finished runs in the folder."""
    records = read_records(options.folder / "results")
    print(f"\n{quality_table(records)}\n")

    # What a model of single tokens reaches is the scale of all likelihoods.
    for record in records:
        if record["model"] == DATA:
            print(f"Token frequencies alone: {record['unigram_entropy']:.3f} nats per token.")
    print(*findings(records, options.characters), sep="\n")

    if any("nats_per_token" in record for record in records):
        picture = plot_quality(records, options.picture or options.folder / "quality.png")
        print(f"Picture: {picture}")


def main(options: QualityConfig):
    """Run what is not finished, unless only the report is asked for, and report."""
    if not options.report:
        run_missing(options)
    report(options)


if __name__ == "__main__":
    run(main, OptionParser(QualityConfig, description=__doc__))
