"""Figures of latents: each against the same computed text by text, and what lies between two texts."""

import math

import pytest
import torch
from datasets import Dataset
from support.latent_models import make_autoencoder, padded

from text_diffusers.evaluation import (
    evaluate_latents,
    interpolate_latents,
    interpolated_texts,
    latent_statistics,
)
from text_diffusers.evaluation import latents as module

TEXTS = [[1, 3, 4, 5, 2], [1, 6, 7, 8, 9, 2], [1, 10, 2], [1, 12, 13, 2]]


class Words:
    """A tokenizer whose words are the numbers of the tokens."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(str(token) for token in row if token > 2) for row in rows.tolist()]


@pytest.fixture
def rows():
    ids, mask = padded(TEXTS)
    # Texts stand at the left, as in rows of `tokenize`.
    columns = {"input_ids": [], "attention_mask": [], "given": []}
    for text in TEXTS:
        missing = ids.shape[1] - len(text)
        columns["input_ids"].append(text + [0] * missing)
        columns["attention_mask"].append([1] * len(text) + [0] * missing)
        columns["given"].append([True] + [False] * (ids.shape[1] - 1))
    columns["encoder_ids"] = [[token + 5 for token in row] for row in columns["input_ids"]]
    columns["encoder_mask"] = columns["attention_mask"]
    return Dataset.from_dict(columns)


def latents_of(model):
    with torch.no_grad():
        return [model.encode(torch.tensor([text]) + 5) for text in TEXTS]


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 2**25])
def test_figures_are_those_of_each_text_alone(rows, at_once, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", at_once)
    model = make_autoencoder()
    found = evaluate_latents(model, rows, Words(), num_texts=4)

    posteriors = latents_of(model)
    means = [posterior.latents for posterior in posteriors]
    told = {
        "cross_entropy": means,
        "without_latents": [None] * 4,
        "other_latents": means[-1:] + means,
    }
    num_tokens = sum(len(text) - 1 for text in TEXTS)
    for name, latents in told.items():
        nats = 0.0
        for text, one in zip(TEXTS, latents, strict=False):
            ids = torch.tensor([text])
            scores = model.decode_logits(one, ids).log_softmax(dim=-1)
            nats -= float(scores[0, 1:].gather(1, ids[0, 1:, None]).sum())
        assert getattr(found, name) == pytest.approx(nats / num_tokens, rel=1e-5), name

    kl = 0.0
    for posterior in posteriors:
        normal = torch.distributions.Normal(posterior.latents, (0.5 * posterior.logvar).exp())
        kl += float(
            torch.distributions.kl_divergence(normal, torch.distributions.Normal(0, 1)).sum()
        )
    assert found.kl == pytest.approx(kl / num_tokens, rel=1e-5)
    assert found.bound == pytest.approx(found.sampled_cross_entropy + found.kl)
    assert found.active_units == int((torch.cat(means).var(dim=0, correction=0) > 0.01).sum())

    # The likeliest tokens, up to the end or the length of a row
    written = model.generate(
        torch.cat(means), torch.ones(4, 1).long(), max_new_tokens=5, end_token_ids=[2]
    )
    texts = Words().batch_decode(torch.tensor(rows["input_ids"][:]), True)
    copies = Words().batch_decode(written, True)
    matches = [text == copy for text, copy in zip(texts, copies, strict=True)]
    assert found.exact_match == sum(matches) / 4


def test_the_mean_of_drawn_bounds_is_the_bound(rows):
    """Over many seeds; the divergence is exact, and the drawn half has an expectation by quadrature."""
    model = make_autoencoder(num_latents=1, latent_size=1, std=0.4)
    grid = torch.linspace(-6, 6, 801)
    expected = 0.0
    with torch.no_grad():
        for text, posterior in zip(TEXTS, latents_of(model), strict=True):
            std = (0.5 * posterior.logvar.squeeze()).exp()
            values = posterior.latents.squeeze() + std * grid
            ids = torch.tensor([text]).expand(len(grid), -1)
            scores = model.decode_logits(values[:, None, None], ids).log_softmax(dim=-1)
            nats = -scores[:, 1:].gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
            density = (-0.5 * grid**2).exp() / math.sqrt(2 * math.pi)
            expected += float(torch.trapezoid(nats * density, grid))
    expected /= sum(len(text) - 1 for text in TEXTS)
    drawn = torch.tensor(
        [evaluate_latents(model, rows, seed=10 * s).sampled_cross_entropy for s in range(40)]
    )
    error = drawn.std() / math.sqrt(len(drawn))
    assert abs(float(drawn.mean()) - expected) < 4 * float(error)


def test_without_a_variance_there_is_no_bound(rows):
    metrics = evaluate_latents(make_autoencoder(regularization="noise"), rows).metrics()
    assert "bound" not in metrics and "kl" not in metrics and "exact_match" not in metrics
    assert metrics["sampled_cross_entropy"] != metrics["cross_entropy"]


def test_statistics_are_those_of_all_latents_at_once(rows, monkeypatch):
    monkeypatch.setattr(module, "WRITTEN_AT_ONCE", 3)
    model = make_autoencoder()
    latents = torch.cat([posterior.latents for posterior in latents_of(model)])
    mean, std = latent_statistics(model, rows, most=100)
    torch.testing.assert_close(mean, latents.mean(dim=0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(std, latents.std(dim=0, correction=0), atol=1e-5, rtol=1e-5)
    first, _ = latent_statistics(model, rows, most=2)
    torch.testing.assert_close(first, latents[:2].mean(dim=0), atol=1e-5, rtol=1e-5)


def test_the_ends_of_an_interpolation_are_the_reconstructions(rows):
    first, second = torch.randn(2, 3, 4).unbind()
    line = interpolate_latents(first, second, count=4)
    assert torch.equal(line[0], first) and torch.equal(line[-1], second)
    torch.testing.assert_close(line[1], (2 * first + second) / 3)

    model = make_autoencoder(std=0.6)
    written = module.rewritten_texts(model, Words(), rows, 3)[1]
    lines = interpolated_texts(model, Words(), rows, num_pairs=2, count=3)
    assert [line[0] for line in lines] == written[:2] and lines[1][-1] == written[2]
    assert len(set(written)) == 3
