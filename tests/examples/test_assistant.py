"""The sales assistant: whatever its model would rather write, facts are right and no number is made up."""

import itertools
import json
import re
import sys
from pathlib import Path

import pytest
from support.recipes import load_script

from text_diffusers import TextDiffusionPipeline

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "examples" / "sales_assistant"))

from assistant import NUMBER, SalesAssistant, fact_pattern  # noqa: E402 - the path above leads to them
from conversations import as_pair, generate, missing_facts  # noqa: E402

train_d3pm = load_script("train_d3pm")


@pytest.mark.parametrize("language", ["en", "ru"])
def test_replies_of_the_team_match_their_pattern_and_altered_ones_do_not(language):
    pairs = [as_pair(record) for record in generate(language, 300)]
    matched = 0
    for pair in pairs:
        pattern = fact_pattern(pair["facts"], pair["source"])
        matched += bool(re.fullmatch(pattern, pair["reply"]))

        for fact in pair["facts"]:
            assert not re.fullmatch(pattern, pair["reply"].replace(fact, ""))
            assert not re.fullmatch(pattern, pair["reply"].replace(fact, f"x{fact}x"))
        assert not re.fullmatch(pattern, pair["reply"] + " Only 777777 today!")

    # The rest has its facts in another order, which is not asked for.
    assert matched > 0.95 * len(pairs)


def test_a_pattern_takes_facts_in_their_order_or_with_two_neighbours_exchanged():
    facts = ["one", "two", "three"]
    pattern = fact_pattern(facts)
    orders = {
        order
        for order in itertools.permutations(facts)
        if re.fullmatch(pattern, f"So {', '.join(order)}.")
    }
    assert orders == {
        ("one", "two", "three"),
        ("two", "one", "three"),
        ("one", "three", "two"),
    }
    with pytest.raises(ValueError, match="`facts` must be at most 6, got 7"):
        fact_pattern([*"abcdefg"])


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_model_that_has_learned_nothing_says_the_facts_and_no_other_number(tmp_path, language):
    pairs = [as_pair(record) for record in generate(language, 200)]
    lines = [json.dumps(pair, ensure_ascii=False) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = train_d3pm.D3PMConfig(
        dataset=str(tmp_path / "pairs.jsonl"),
        output_dir=str(tmp_path / "model"),
        source_column="source",
        text_column="reply",
        label_column="tone",
        packing=False,
        length=256,
        vocab_size=600,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        max_train_steps=3,
        train_batch_size=4,
        num_cpu_threads=1,
        num_length_samples=0,
        num_samples=0,
        validation_rows=8,
        report_to=["none"],
    )
    train_d3pm.main(options)
    pipe = TextDiffusionPipeline.from_pretrained(options.output_dir)

    assistant = SalesAssistant(pipe, num_inference_steps=8)
    asked = pairs[:8]
    replies = assistant.write(
        [pair["source"] for pair in asked],
        [pair["tone"] for pair in asked],
        [pair["facts"] for pair in asked],
    )
    for pair, reply in zip(asked, replies, strict=True):
        assert missing_facts(reply, pair["facts"]) == []
        known = set(NUMBER.findall(f"{pair['source']} {' '.join(pair['facts'])}"))
        assert set(NUMBER.findall(reply)) <= known
    varied = assistant.replies(asked[0]["source"], asked[0]["tone"], asked[0]["facts"], count=3)
    assert len(set(varied)) == 3
