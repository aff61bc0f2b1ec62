"""The table of results: its commands are those of recipes, its figures are exact, and nothing is made twice."""

import json
import math
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import results
import torch
from parts.common.recipes import CONFIGS
from parts.results.config import ResultsConfig, Run
from parts.results.data import prepare_texts
from parts.results.report import read_records, results_table
from parts.results.rows import AUTOREGRESSIVE, ROWS
from parts.results.training import command_of
from support.masked_lms import make_masked_lm
from transformers import AutoModelForCausalLM, AutoTokenizer

from text_diffusers.training.config import OptionParser


@pytest.fixture
def options(tmp_path):
    """Tiny texts, an encoder with random weights, and hardly any training."""
    for part in make_masked_lm("bert"):
        part.save_pretrained(tmp_path / "encoder")
    names = ["cat", "dog", "bird", "train", "tree", "mat"]
    lines = [f"the {names[i % 6]} and the {names[i // 6 % 6]} saw {i} of them" for i in range(600)]
    (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "table"),
            "rows": ["absorbing", AUTOREGRESSIVE, "even_4"],
            "seeds": [0],
            "budget": 0.004,
            "minilm": str(tmp_path / "encoder"),
            "dataset": str(tmp_path / "texts.txt"),
            "num_held_out": 20,
            "num_written": 20,
            "num_times": 2,
            "vocab_size": 300,
        }
        return ResultsConfig(**settings | changes)

    return make


def test_the_commands_of_all_rows_are_those_of_recipes():
    for name, row in ROWS.items():
        for number, stage in enumerate(row.stages):
            if stage.recipe == AUTOREGRESSIVE:
                continue
            config = getattr(import_module(stage.recipe), CONFIGS[stage.recipe])
            command = command_of(name, number)
            assert "{" not in command
            parser = OptionParser(config)
            # What a recipe makes of the values needs the models; their names and kinds are read here.
            given, unknown = parser.parse_known_args(shlex.split(command)[3:])
            assert not unknown and given.max_train_minutes == stage.minutes
            for option, value in stage.options.items():
                if not isinstance(value, str):
                    assert getattr(given, option) == value, (name, option)


def test_texts_of_one_part_are_in_no_other(options):
    config = options()
    prepare_texts(config)
    parts = {
        name: config.texts_file(name).read_text().splitlines()
        for name in ("train", "held_out", "reference", "judge")
    }
    assert len(parts["held_out"]) == 20 and len(parts["reference"]) == 40
    together = [line for lines in parts.values() for line in lines]
    assert len(together) == len({*together}) == 600
    with pytest.raises(ValueError, match="`dataset` must have more than"):
        prepare_texts(options(output_dir=config.output_dir + "-large", num_held_out=600))


@pytest.mark.slow
def test_rows_are_trained_and_measured_once(options):
    config = options()
    results.main(config)
    records = read_records(config)
    assert {*records} == {*config.rows}
    lines = results_table(records).splitlines()
    assert any("absorbing diffusion" in line for line in lines) and "people" in lines[-2]

    # Exact for the autoregressive model, one text at a time by transformers itself
    folder = config.model_folder(Run(AUTOREGRESSIVE, 0))
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    nats = 0.0
    characters = 0
    for line in config.texts_file("held_out").read_text().splitlines():
        text = json.loads(line)["text"]
        ids = torch.tensor(
            [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
        )
        with torch.no_grad():
            nats += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        characters += len(text) + 1
    (record,) = records[AUTOREGRESSIVE]
    assert record["bits_per_character"] == pytest.approx(nats / characters / math.log(2), rel=1e-5)

    # The row of another sampler has the model, and the minutes, of the one that it writes with.
    (even,) = records["even_4"]
    assert even["minutes"] == pytest.approx(ROWS["absorbing_longer"].stages[0].minutes * 0.004)
    assert "bits_per_character" not in even and even["generative_perplexity"] > 1

    files = {path: path.stat().st_mtime_ns for path in Path(config.output_dir).rglob("*.json*")}
    results.main(config)
    changed = {path.name for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed <= {"results.json"}
    with pytest.raises(ValueError, match="`num_times` must be 2"):
        results.main(options(num_times=3))
