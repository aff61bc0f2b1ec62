"""The benchmark of orders: its judge is a distribution, its lines have the same seeds, and finished ones stay."""

import json
import math
from pathlib import Path

import pytest
import torch
import writing_orders
from conftest import SENTENCES, make_denoiser
from parts.writing_orders.judge import START, CharacterJudge
from parts.writing_orders.report import figures_of, has_loop, words_of

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline


def test_the_judge_is_a_distribution_by_the_formula_of_witten_and_bell():
    judge = CharacterJudge(["ab", "ac", "ab"], order=2)
    # Behind "a" stand b, b and c: N = 3, T = 2. Of all 9 characters, ends included, T = 4; none is seen 1 in 5 times.
    base = {"b": (2 + 4 / 5) / 13, "c": (1 + 4 / 5) / 13}
    assert judge.probability("a", "b") == pytest.approx((2 + 2 * base["b"]) / 5)
    assert judge.probability("a", "c") == pytest.approx((1 + 2 * base["c"]) / 5)
    for context in ("", "a", "b", "z"):
        total = sum(judge.probability(context, character) for character in "abc\nz")
        assert total == pytest.approx(1)

    bits = -math.log2(judge.probability(START, "a") * judge.probability("a", "b"))
    bits -= math.log2(judge.probability("b", "\n"))
    assert judge.bits_per_character(["ab"]) == pytest.approx(bits / 3)


def test_loops_and_words_are_found():
    assert has_loop("no no no") and has_loop("I am I am I am") and not has_loop("I am I am")
    judge = CharacterJudge(["the cat", "the dog"], order=3)
    figures = figures_of(["the cow", "", "the the the"], judge, words_of(["the cat", "the dog"]))
    assert figures["empty"] == pytest.approx(1 / 3) and figures["loops"] == 0.5
    assert figures["known"] == pytest.approx(4 / 5) and figures["words"] == 2.5
    assert figures["distinct_2"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_lines_are_written_once_and_are_those_of_the_pipeline(tokenizer, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES * 8))
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(tmp_path / "model")
    options = writing_orders.WritingOrdersConfig(
        model=str(tmp_path / "model"),
        output_dir=str(tmp_path / "out"),
        orders=["ancestral", "left_to_right", "random", "threshold"],
        windows=[0, 2],
        steps=[4],
        max_new_tokens=6,
        num_texts=5,
        batch_size=2,
        dataset=str(texts),
        judge_texts=30,
        top_p=None,
    )
    writing_orders.main(options)
    results = sorted(path.name for path in Path(tmp_path / "out" / "results").iterdir())
    # A window makes no difference to the first two.
    assert len(results) == 1 + 1 + 2 + 2

    name = "random-window2-block0-steps4-temperature0.8.json"
    record = json.loads((tmp_path / "out" / "results" / name).read_text())
    config = pipe.scheduler.config
    pipe.scheduler = ConfidenceScheduler.from_config(config, order="random", window=2)
    written = pipe(
        max_new_tokens=6,
        num_inference_steps=4,
        temperature=0.8,
        num_return_sequences=5,
        generator=[torch.Generator().manual_seed(seed) for seed in range(5)],
    )
    assert record["texts"] == [text.strip() for text in written.texts]
    assert record["calls"] == 4

    report = (tmp_path / "out" / "writing_orders.md").read_text()
    assert "| real texts |" in report and "| threshold | 2 |" in report

    # A finished line is read again, and not written.
    path = tmp_path / "out" / "results" / name
    path.write_text(json.dumps(record | {"calls": 99}))
    writing_orders.main(options)
    assert "99.0" in (tmp_path / "out" / "writing_orders.md").read_text()
    with pytest.raises(ValueError, match="`orders` must be among ancestral, .*random, got 'best'"):
        writing_orders.main(
            writing_orders.WritingOrdersConfig(
                model=str(tmp_path / "model"),
                output_dir=str(tmp_path / "other"),
                orders=["best"],
                dataset=str(texts),
            )
        )
