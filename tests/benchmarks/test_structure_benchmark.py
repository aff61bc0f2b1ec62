"""The benchmark of structure: its texts are judged by `re` and `jsonschema`, its steps in forward passes."""

import json

import pytest
import structure

pytestmark = pytest.mark.slow


def test_every_text_is_right_and_a_step_is_measured(tmp_path):
    file = tmp_path / "figures.json"
    structure.main(
        structure.StructureOptions(
            num_texts=15, num_inference_steps=4, repetitions=1, json=str(file)
        )
    )
    figures = json.loads(file.read_text())
    assert "15 of 15" in json.dumps(figures["texts"])
    costs = [line["a step in forwards"] for line in figures["steps"]]
    assert len(costs) == 6 and min(costs) > 0
