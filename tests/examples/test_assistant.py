"""The sales assistant: whatever its model would rather write, facts are right and no number is made up."""

import itertools
import json
import random
import re
import sys
from collections import Counter
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
def test_a_pattern_matches_what_holds_all_facts_and_no_number_of_its_own(language):
    rng = random.Random(0)
    pairs = [as_pair(record) for record in generate(language, 300)]
    outcomes = Counter()
    for pair in pairs:
        facts = pair["facts"]
        pattern = fact_pattern(facts, pair["source"])
        known = set(NUMBER.findall(" ".join([pair["source"], *facts])))
        others = rng.choice(pairs)["facts"]
        for _ in range(8):
            words = pair["reply"].split(" ")
            place = rng.randrange(len(words))
            words[place : place + rng.randrange(3)] = rng.choice(
                [[], [rng.choice(facts)], [rng.choice(others)], [f"x{rng.choice(facts)}"], ["7,"]]
            )
            text = " ".join(words)
            is_right = not missing_facts(text, facts) and known >= set(NUMBER.findall(text))
            assert bool(re.fullmatch(pattern, text)) == is_right, (facts, text)
            outcomes[is_right] += 1
        assert re.fullmatch(pattern, pair["reply"])
    assert min(outcomes.values()) > 500


@pytest.mark.parametrize("order", itertools.permutations(["one", "two", "5 days", "5 000"]))
def test_facts_may_come_in_any_order(order):
    pattern = fact_pattern(["one", "two", "5 days", "5 000"])
    assert re.fullmatch(pattern, f"So {', '.join(order)}.")
    for fact in order:
        assert not re.fullmatch(pattern, f"So {', '.join(order)}.".replace(fact, "three"))


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
