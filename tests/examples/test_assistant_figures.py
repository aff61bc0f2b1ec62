"""The figures of the sales assistant, of a model that has learned nothing, are what they say."""

import json
import sys
from pathlib import Path

import pytest
from support.sales import train_assistant

sys.path.append(str(Path(__file__).parents[2] / "examples" / "sales_assistant"))

import figures  # noqa: E402 - the path above leads to it
from conversations import as_pair, generate, missing_facts  # noqa: E402

pytestmark = pytest.mark.slow


def test_the_team_is_right_and_a_model_that_knows_nothing_is_so_by_its_control_alone(tmp_path):
    pairs = [as_pair(record) for record in generate("en", 240)]
    options = figures.AssistantConfig(
        output_dir=str(tmp_path / "figures"),
        model=train_assistant(pairs, tmp_path),
        dataset=str(tmp_path / "pairs"),
        num_conversations=3,
        num_inference_steps=8,
        autoregressive_minutes=0.02,
    )
    figures.main(options)
    records = json.loads((tmp_path / "figures" / "report.json").read_text())
    team = records["the team itself"]
    controlled = records["diffusion, facts controlled"]
    assert team["right"] == controlled["right"] == controlled["all_right"] == 1
    assert team["invented"] == controlled["invented"] == 0
    assert team["astray"] == team["misnamed"] == 0
    assert controlled["different"] == 5
    for name in ("diffusion", "autoregressive, sampled", "autoregressive, beam of 5"):
        assert records[name]["right"] == 0
    # What the yardstick has learned in a second depends on the machine: it may write one common word over and over.
    assert records["diffusion"]["perplexity"] > 5 * team["perplexity"]

    # Counted again, from the replies themselves
    asked = pairs[-40:-37]
    for pair, replies in zip(asked, controlled["replies"], strict=True):
        assert len(replies) == 5
        assert not any(missing_facts(reply, pair["facts"]) for reply in replies)

    # A finished figure is not made again.
    finished = tmp_path / "figures" / "results" / "diffusion.json"
    before = finished.stat().st_mtime_ns
    figures.main(options)
    assert finished.stat().st_mtime_ns == before


def test_a_fact_costs_the_judge_of_language_nothing():
    facts = ["Anna", "$129"]
    assert figures.without_facts("Anna, it is $129.", facts) == "#, it is #."
