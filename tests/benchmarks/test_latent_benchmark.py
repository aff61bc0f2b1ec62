"""The benchmark of latent diffusion: its judges, and a whole run in seconds."""

import json
from itertools import pairwise

import latent
import numpy as np
import pytest
import torch
from conftest import SENTENCES
from parts.latent.config import PARTS
from parts.latent.figures import energy_distance
from support.latent_pipes import make_latent_denoiser, make_latent_pipe, make_latent_prior

from text_diffusers.data.tokenizers import train_tokenizer

pytestmark = pytest.mark.slow


def test_the_distance_is_zero_for_texts_of_one_kind_and_grows_with_a_shift():
    random = torch.Generator().manual_seed(0)
    first = torch.randn(400, 3, generator=random)
    seen = [
        energy_distance(first, torch.randn(400, 3, generator=random) + shift)
        for shift in (0.0, 0.0, 0.5, 1.0)
    ]
    assert max(abs(value) for value in seen[:2]) < 0.02
    assert 0.05 < seen[2] < seen[3]
    # In one dimension: the squared area between distribution functions, twice; here of N(0, 1) and N(2, 1)
    one = np.random.default_rng(0).normal(size=(2000, 1))
    other = np.random.default_rng(1).normal(size=(2000, 1)) + 2
    places = np.linspace(-5, 7, 4001)
    share = [(column[:, 0, None] <= places).mean(axis=0) for column in (one, other)]
    expected = 2 * np.trapezoid((share[0] - share[1]) ** 2, places)
    found = energy_distance(torch.tensor(one), torch.tensor(other))
    assert found == pytest.approx(expected, rel=0.01)


@pytest.fixture
def folders(tmp_path):
    """Data, and pipelines with random weights: their texts are noise, the run is whole."""
    tokenizer = train_tokenizer(SENTENCES * 2, vocab_size=326)
    rows = [{"text": text, "label": number % 2} for number, text in enumerate(SENTENCES * 30)]
    turns = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in pairwise(SENTENCES * 30)
    ]
    for name, lines in (("rows", rows), ("turns", turns)):
        lines_of_file = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(lines_of_file, encoding="utf-8")

    plain = {"prompt_size": None, "num_classes": 2}
    pipes = {
        "flow": make_latent_pipe(tokenizer, make_latent_denoiser(**plain)),
        "betas": make_latent_pipe(
            tokenizer, make_latent_denoiser(**plain, prediction_type="v_prediction")
        ),
        "diffusion_replies": make_latent_pipe(tokenizer, reads_source=True),
        "gaussian_replies": make_latent_pipe(tokenizer, make_latent_prior(), reads_source=True),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_run_of_seconds_leaves_a_report_of_all_parts(folders):
    options = latent.LatentBenchmarkConfig(
        output_dir=str(folders / "figures"),
        **{
            name: str(folders / name)
            for name in ("flow", "betas", "diffusion_replies", "gaussian_replies")
        },
        tokens_model="chat-and-novels",
        dataset=str(folders / "rows.jsonl"),
        judge_dataset=str(folders / "rows.jsonl"),
        conversations=str(folders / "turns.jsonl"),
        max_train_samples=100,
        max_train_replies=100,
        steps=[4, 2],
        scales=[0, 2],
        num_texts=4,
        num_contexts=3,
        num_replies=2,
        temperatures=[0.5, 1.0],
        latent_temperatures=[0.0],
        languages=["en"],
        train_minutes=0.05,
        prior_minutes=0.03,
        num_questions=3,
        max_new_tokens=8,
        batch_size=3,
    )
    found = latent.main(options)
    assert set(found) == {*PARTS[:-1], "facts_en"}
    assert len(found["samplers"]) == 3 + 5 * 2 + 2
    # Real texts are at no distance to measure, and are what the judge knows.
    assert found["samplers"][0]["perplexity"] < found["samplers"][3]["perplexity"]
    assert [len(record["texts"]) for record in found["replies"]] == [3] + [6] * 5
    assert [len(record["texts"]) for record in found["facts_en"]] == [6] * 4
    for record in found["facts_en"]:
        assert record["all"] <= min(record["name"], record["number"])

    alone, whole, tokens = found["memory"]
    assert alone["weights"] == whole["weights"] > 0 and tokens["peak"] > 0

    # Of one seed, the latents of both samplers without noise begin alike; a batch changes nothing.
    again = latent.main(
        latent.LatentBenchmarkConfig(
            **vars(options)
            | {"output_dir": str(folders / "again"), "parts": ["samplers"], "batch_size": 4}
        )
    )
    for first, second in zip(found["samplers"], again["samplers"], strict=True):
        assert first["texts"] == second["texts"]

    report = (options.folder / "latent.md").read_text(encoding="utf-8")
    for heading in ("## Memory", "## Samplers", "## Labels", "## Replies", "## Known facts: en"):
        assert heading in report
    assert {"samplers.png", "replies.png"} <= {file.name for file in options.folder.iterdir()}

    # A second run reads what the first has left, and measures memory anew.
    second = json.loads(json.dumps(latent.main(options)))
    del second["memory"], found["memory"]
    assert second == json.loads(json.dumps(found))
