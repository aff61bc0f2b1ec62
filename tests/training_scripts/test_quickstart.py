"""The comparison of a trained pipeline with the one that it was trained from."""

import re
from pathlib import Path

import pytest
from support.recipes import load_script

from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation import evaluate_likelihood

train_d3pm = load_script("train_d3pm")


@pytest.fixture
def trained(text_file, tmp_path):
    """A pipeline of one text a row, and one that was trained further, on texts that are longer than its own."""
    options = {
        "max_train_steps": 3,
        "train_batch_size": 4,
        "num_cpu_threads": 1,
        "length": 32,
        "packing": False,
        "num_length_samples": 0,
        "num_samples": 0,
        "report_to": ["none"],
    }
    start = str(tmp_path / "start")
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    config = train_d3pm.D3PMConfig(dataset=str(text_file), output_dir=start, **options, **sizes)
    train_d3pm.main(config)

    longer = tmp_path / "longer.txt"
    texts = text_file.read_text().splitlines()
    longer.write_text("\n".join(f"{text} {' '.join(text.split()[:4])}" for text in texts * 3))
    further = str(tmp_path / "further")
    config = train_d3pm.D3PMConfig(
        dataset=str(longer),
        output_dir=further,
        model_name_or_path=start,
        validation_fraction=0.1,
        **options,
    )
    train_d3pm.main(config)
    return start, further, longer


def test_bounds_before_and_after_are_of_the_texts_that_were_held_out(trained, capsys):
    start, further, longer = trained
    texts = longer.read_text().splitlines()
    held_out = texts[-round(len(texts) * 0.1) :]
    quickstart = load_script("quickstart")
    capsys.readouterr()
    quickstart.main(further, before=start, dataset=str(longer))
    printed = capsys.readouterr().out

    bounds = re.findall(r"(before|after) +([\d.]+) nats per token, ([\d.]+) bits", printed)
    assert [name for name, _, _ in bounds] == ["before", "after"]
    assert f"of {len(held_out)} held-out texts of {len(held_out)}" in printed
    for (_, nats, bits), folder in zip(bounds, (start, further), strict=True):
        pipe = TextDiffusionPipeline.from_pretrained(folder)
        likelihood = evaluate_likelihood(
            pipe, held_out, num_times=quickstart.NUM_TIMES, max_length=32
        )
        assert float(nats) == pytest.approx(likelihood.nats_per_token, abs=1e-3)
        assert float(bits) == pytest.approx(likelihood.bits_per_character, abs=1e-3)

    assert printed.count("\n  - ") == 2 * quickstart.NUM_TEXTS
    assert printed.count(f"A text continued:\n  {quickstart.BEGINNING}") == 2
    first = quickstart.INFILL.split("[MASK]")[0]
    assert printed.count(f"A text filled in:\n  {quickstart.INFILL}\n  {first}") == 2
    assert Path(further, "denoising.png").read_bytes().startswith(b"\x89PNG")


def test_texts_that_a_pipeline_never_writes_are_left_out_of_both_bounds(trained, capsys):
    start, further, _ = trained
    quickstart = load_script("quickstart")
    pipes = {name: TextDiffusionPipeline.from_pretrained(name) for name in (start, further)}
    # Lengths of the first only: no text of two tokens
    pipes[start].register_to_config(lengths=[0, 0, 0, *[1] * 28])
    quickstart.print_bounds(pipes, ["the cat sat on the mat", "a", "the dog sat on the cat"], 32)
    assert "2 held-out texts of 3" in capsys.readouterr().out
