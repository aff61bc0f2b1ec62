"""The benchmark of replies: its turns and their facts, and a whole run in seconds."""

import dataclasses
import json

import conditional
import pytest
from parts.conditional.turns import LANGUAGES, facts_of, make_turns

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reply_has_the_facts_of_its_own_turn_and_not_those_of_another(language):
    turns = make_turns(language, 300)
    assert turns == make_turns(language, 300)
    for turn in turns:
        assert facts_of(turn, turn.reply) == dict.fromkeys(
            ("name", "product", "number", "tone", "all"), True
        )

    # With one fact of another turn, that one is wrong.
    for first, second in zip(turns, turns[1:], strict=False):
        for fact in ("name", "product", "number", "tone"):
            if getattr(first, fact) == getattr(second, fact):
                continue
            asked = dataclasses.replace(first, **{fact: getattr(second, fact)})
            facts = facts_of(asked, first.reply)
            assert [name for name, right in facts.items() if not right] == [fact, "all"]


@pytest.mark.slow
def test_a_run_of_seconds_leaves_a_table_of_all_systems(tmp_path):
    options = conditional.ConditionalConfig(
        output_dir=str(tmp_path),
        languages=["en"],
        train_minutes=0.1,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
    )
    records = conditional.main(options)["en"]
    assert {record["system"].partition(",")[0] for record in records} == set(conditional.SYSTEMS)
    for record in records:
        assert len(record["replies"]) == conditional.ASKED
        assert record["nats_per_token"] > conditional.entropy(options, "en")
        assert 0 <= record["all"] <= min(record["name"], record["tone"])

    # A second run reads what the first has left.
    assert conditional.main(options) == {"en": json.loads(json.dumps(records))}
    report = (tmp_path / "report.md").read_text()
    assert report.count("| d3pm") == len(conditional.SAMPLES["d3pm"])
