"""The benchmark of samplers over embeddings: complete, resumable, and its exact denoiser is exact."""

from pathlib import Path

import pytest
import samplers_embedding
import torch
from parts.samplers_embedding import exact_denoiser
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from text_diffusers import DiffusionLMPipeline, EmbeddingDDIMScheduler, EmbeddingTransformerModel

pytestmark = pytest.mark.slow


@pytest.fixture
def saved(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 12,
    }
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = EmbeddingTransformerModel(len(tokenizer), num_train_timesteps=100, **sizes, **ids)
    torch.nn.init.normal_(model.proj_out.weight)
    scheduler = EmbeddingDDIMScheduler(num_train_timesteps=100)
    DiffusionLMPipeline(tokenizer, model, scheduler, [0, 0, 1, 3, 5, 1]).save_pretrained(
        tmp_path / "model"
    )
    return str(tmp_path / "model")


@pytest.fixture
def options(saved, tmp_path, text_file):
    def make(**changes):
        settings = {
            "model": saved,
            "output_dir": str(tmp_path / "out"),
            "dataset": str(text_file),
            "judge": "none",
        }
        settings |= {"steps": [20, 3], "most_fast_steps": 10, "num_texts": 6, "num_words": 16}
        return samplers_embedding.SamplersConfig(**settings | changes)

    return make


def test_every_sampler_is_run_once_and_reported(options, capsys, monkeypatch):
    records, mistakes = samplers_embedding.main(options())
    runs = {(record["sampler"], record["steps"]) for record in records}
    fast, every = samplers_embedding.FAST, samplers_embedding.SAMPLERS
    assert runs == {
        (name, steps) for name in every for steps in (20, 3) if name not in fast or steps == 3
    } | {("data", 0)}
    by_run = {(record["sampler"], record["steps"]): record for record in records}
    assert by_run["DDIM", 20]["token_error"] == 0 == by_run["DDPM", 20]["token_error"]
    assert 0 < by_run["DDIM", 3]["token_error"] <= 1
    # All samplers write rows of the same lengths, drawn from the histogram by the same generator.
    lengths = [
        [len(row) for row in record["tokens"]] for record in records if record["sampler"] != "data"
    ]
    assert all(found == lengths[0] for found in lengths)
    assert {record["sampler"] for record in mistakes} == {*samplers_embedding.SAMPLERS, "exact"}
    printed = capsys.readouterr().out
    assert printed.count("| DPM-Solver++ 2 |") == 4 and "| exact |" in printed
    assert Path(options().output_dir, "samplers.png").stat().st_size > 20_000
    monkeypatch.setattr(
        samplers_embedding, "write_texts", lambda *_, **__: pytest.fail("it was run again")
    )
    assert [record["seconds"] for record in samplers_embedding.main(options())[1][1:]] == [
        record["seconds"] for record in mistakes[1:]
    ]


def test_token_error_counts_missing_tokens_too():
    assert samplers_embedding.token_error([[1, 2], [3, 4]], [[1, 5], [3, 4]]) == 0.25
    assert samplers_embedding.token_error([[1, 2]], [[1, 2, 3, 4]]) == 0.5


def test_the_exact_denoiser_is_the_posterior_mean():
    """Against the score of the mixture, by autograd: E[x_0 | x_t] = (x_t + (1 - a) score) / sqrt(a)."""
    table, prior = (
        torch.randn(6, 3, dtype=torch.float64),
        torch.tensor([0.4, 0.3, 0.1, 0.1, 0.05, 0.05]).double(),
    )
    alphas = EmbeddingDDIMScheduler(num_train_timesteps=100).alphas_cumprod
    denoiser = exact_denoiser.ExactDenoiser(table, prior, alphas, max_length=5).double()
    for timestep in (3, 50, 97):
        alpha = alphas[timestep]
        words = Independent(
            Normal(alpha.sqrt() * denoiser.embedding_table(), (1 - alpha).sqrt()), 1
        )
        noisy = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
        MixtureSameFamily(Categorical(prior), words).log_prob(noisy).sum().backward()
        want = (noisy + (1 - alpha) * noisy.grad) / alpha.sqrt()
        torch.testing.assert_close(
            denoiser(noisy.detach(), timestep).sample, want.detach(), atol=1e-6, rtol=1e-5
        )


def test_total_variation_is_that_of_the_counts():
    prior = torch.tensor([0.5, 0.25, 0.25, 0.0]).double()
    records = [{"tokens": [[0, 0, 1, 1], [1, 1, 1, 1]]}]
    exact, found = samplers_embedding.with_total_variation(records, prior, seed=0)
    assert found["total_variation"] == pytest.approx(0.5 * (0.25 + 0.5 + 0.25))
    assert exact["sampler"] == "exact" and 0 <= exact["total_variation"] < 0.5


@pytest.mark.parametrize("changes", [{"steps": [0]}, {"num_texts": 1}, {"judge": "gpt4"}])
def test_options_that_make_no_sense_are_refused(options, changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}` must be"):
        options(**changes)
