"""Laws of classifier training: what is noisy and what is not, the unit of the loss, what is reported.

A made-up language tells its label in every token: label 0 uses tokens 2 to 11, label 1 tokens 12 to 21.
"""

import math

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from datasets import Dataset
from scipy.stats import chisquare

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    EmbeddingDDIMScheduler,
    TextClassifierModel,
)
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import ShuffledRows, to_tensors, unknown_tokens
from text_diffusers.evaluation.classifier import clean_text, evaluate_classifier, label_losses
from text_diffusers.training.steps.classifier import (
    EmbeddingCorruption,
    TokenCorruption,
    check_labels,
    fixed_tokens,
    noise_levels,
    one_label_each,
)

EOS, PAD, MASK, V, L = 0, 22, 23, 24, 10
PRIOR = 0.7  # of label 1


def labelled_rows(count, seed=0, tagged=False):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        label, length = int(rng.random() < PRIOR), int(rng.integers(2, L - 1))
        words = rng.integers(2 + 10 * label, 12 + 10 * label, size=length).tolist()
        padding = L - length - 2
        row = {
            "input_ids": [EOS, *words, EOS] + [PAD] * padding,
            "attention_mask": [1] * (length + 2) + [0] * padding,
        }
        tags = [-100] + [label] * length + [-100] * (padding + 1)
        rows.append(
            row
            | ({"tags": tags, "given": [t == -100 for t in tags]} if tagged else {"label": label})
        )
    rows = Dataset.from_list(rows)
    return rows if tagged else rows.map(one_label_each, batched=True)


def some_batch(tagged=False, count=6):
    return to_tensors(labelled_rows(count, tagged=tagged)[:])


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(count)]


def small_classifier(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_length": L}
    return TextClassifierModel(**{"vocab_size": V} | sizes | changes)


def test_noise_levels_are_zero_in_the_clean_share_and_uniform_otherwise():
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    levels = noise_levels(uniform, 0.3)
    assert (levels[:300] == 0).all() and float(levels[300]) == pytest.approx(0.5 / 700)
    torch.testing.assert_close(levels[300:], (torch.arange(700, dtype=torch.float64) + 0.5) / 700)
    assert (
        torch.equal(noise_levels(uniform, 0.0), uniform) and (noise_levels(uniform, 1.0) == 0).all()
    )


def test_fixed_tokens_are_start_padding_and_an_end_that_stands_last():
    tokens = torch.tensor([[EOS, 5, EOS, PAD], [EOS, 5, 6, 7], [5, EOS, 6, EOS]])
    mask = (tokens != PAD).long()
    fixed = fixed_tokens(tokens, mask, EOS, EOS)
    assert fixed.long().tolist() == [[1, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert fixed_tokens(tokens, mask, EOS, None).long().tolist() == [
        [1, 0, 0, 1],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
    ]
    assert fixed_tokens(tokens, mask, None, None).long().tolist() == [
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
    ]


@pytest.mark.parametrize("end_id", [EOS, None])
def test_pure_absorbing_noise_masks_all_but_what_is_fixed(end_id):
    batch = some_batch()
    corrupt = TokenCorruption(D3PMAbsorbingScheduler(MASK), EOS, end_id)
    inputs = corrupt(batch, torch.ones(6), generators(6))
    fixed = fixed_tokens(batch["input_ids"], batch["attention_mask"], EOS, end_id)
    assert torch.equal(inputs["input_ids"] == MASK, ~fixed) and (inputs["timestep"] > 0.999).all()
    assert torch.equal(inputs["input_ids"][fixed], batch["input_ids"][fixed])


@pytest.mark.parametrize(
    "scheduler", [D3PMAbsorbingScheduler(MASK), D3PMUniformScheduler(V - 2, 20)]
)
def test_level_zero_is_clean_at_time_zero_and_rows_have_their_own_noise(scheduler):
    batch, levels = some_batch(), torch.tensor([0.0, 0.5, 0.9, 0.0, 1.0, 0.3])
    corrupt = TokenCorruption(scheduler, EOS, EOS)
    inputs = corrupt(batch, levels, generators(6))
    clean = levels == 0
    assert torch.equal(inputs["input_ids"][clean], batch["input_ids"][clean])
    assert (inputs["timestep"][clean] == 0).all() and (
        inputs["timestep"][~clean] >= levels[~clean] - 1e-6
    ).all()
    assert (inputs["timestep"] <= 1).all()
    one = {name: column[2:3] for name, column in batch.items()}
    assert torch.equal(
        corrupt(one, levels[2:3], generators(6)[2:3])["input_ids"], inputs["input_ids"][2:3]
    )


def test_tokens_are_corrupted_as_the_scheduler_says():
    """The share of kept tokens at level 0.3 of linear uniform noise, by chi-square."""
    tokens = torch.full((4000, 3), 5)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    corrupt = TokenCorruption(D3PMUniformScheduler(6), None, None)
    noisy = corrupt(batch, torch.full((4000,), 0.3), generators(4000))["input_ids"]
    counts = torch.bincount(noisy.flatten(), minlength=6).tolist()
    expected = [len(noisy.flatten()) * (0.3 / 6 + 0.7 * (token == 5)) for token in range(6)]
    assert chisquare(counts, expected).pvalue > 1e-3


def test_embeddings_get_gaussian_noise_of_their_clock():
    torch.manual_seed(0)
    table = torch.randn(V, 4)
    scheduler = EmbeddingDDIMScheduler(50)
    corrupt = EmbeddingCorruption(scheduler, lambda ids: table[ids], EOS, None)
    batch = {name: column[:1].expand(3000, -1) for name, column in some_batch().items()}
    inputs = corrupt(batch, torch.full((3000,), 0.5), generators(3000))
    assert (inputs["timestep"] == 25).all()
    alpha = float(scheduler.alphas_cumprod[25])
    clean = table[batch["input_ids"][0]]
    noisy = inputs["inputs_embeds"]
    assert torch.equal(noisy[:, 0], clean[0].expand(3000, -1))  # the start is given
    normalised = (noisy[:, 1:4] - alpha**0.5 * clean[1:4]) / (1 - alpha) ** 0.5
    assert normalised.mean().abs() < 0.02 and abs(float(normalised.var()) - 1) < 0.03
    again = corrupt(batch, torch.zeros(3000), generators(3000))
    assert (
        torch.equal(again["inputs_embeds"], clean.expand(3000, -1, -1))
        and (again["timestep"] == 0).all()
    )
    last = corrupt(batch, torch.ones(3000), generators(3000))
    assert (last["timestep"] == 49).all()


@pytest.mark.parametrize("tagged", [False, True])
def test_counted_tokens_are_labels(tagged):
    """So the training loop, which divides by them, reports nats per label."""
    batch = some_batch(tagged)
    logits = torch.randn(
        (6, L, 2) if tagged else (6, 2), generator=torch.Generator().manual_seed(0)
    )
    losses = label_losses(logits, batch)
    targets = batch["tags"] if tagged else batch["label"]
    wanted = targets != -100
    by_hand = torch.stack(
        [
            -z.log_softmax(dim=-1)[y]
            for z, y in zip(logits[wanted], targets[wanted].tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(losses[wanted], by_hand)
    assert int(unknown_tokens(batch).sum()) == int(wanted.sum()) and float(losses.sum()) == float(
        losses[wanted].sum()
    )


def test_the_report_counts_by_hand():
    """A classifier that knows label 1 by its tokens and is unsure about masks: 0.9 against 0.1, or even."""

    class Knowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parameter = torch.nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, timestep=None, attention_mask=None):
            ones = ((input_ids >= 12) & (input_ids < 22)).sum(dim=1)
            zeros = ((input_ids >= 2) & (input_ids < 12)).sum(dim=1)
            logit = (ones - zeros).sign() * math.log(9) / 2
            return type("Output", (), {"logits": torch.stack([-logit, logit], dim=1)})

    rows = labelled_rows(500)
    report = evaluate_classifier(
        Knowing(), TokenCorruption(D3PMAbsorbingScheduler(MASK), EOS, EOS), rows, num_times=3
    )
    assert report.accuracy == 1 and report.cross_entropy == pytest.approx(-math.log(0.9), abs=1e-6)
    share = float(np.mean(rows["label"]))
    assert report.majority == pytest.approx(max(share, 1 - share))
    assert report.entropy == pytest.approx(
        -share * math.log(share) - (1 - share) * math.log(1 - share)
    )
    lengths = np.array([sum(mask) - 2 for mask in rows["attention_mask"]])
    for level, (_, cross_entropy) in enumerate(report.by_noise):
        seen = 1 - np.mean(((level + 0.5) / 10) ** lengths)  # some token is left
        expected = seen * -math.log(0.9) + (1 - seen) * math.log(2)
        assert cross_entropy == pytest.approx(expected, abs=0.12)
    assert evaluate_classifier(Knowing(), clean_text, rows).metrics().keys() == {
        *("accuracy", "cross_entropy", "majority", "label_entropy")
    }
    assert len(report.table().splitlines()) == 13 and "0.9 to 1.0" in report.table()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    mostly_slow(["absorbing", "uniform", "embeddings", "words of embeddings"], ["absorbing"]),
)
def test_training_learns_clean_text_and_comes_to_the_frequencies_in_pure_noise(kind):
    torch.manual_seed(0)
    if "embeddings" in kind:
        table, scheduler = (
            torch.nn.functional.normalize(torch.randn(V, 4), dim=-1) * 2,
            EmbeddingDDIMScheduler(50),
        )
        corrupt = EmbeddingCorruption(scheduler, lambda ids: table[ids], None, None)
        vocab_size = None if kind == "embeddings" else V
        model = small_classifier(embedding_dim=4, num_train_timesteps=50, vocab_size=vocab_size)
        if vocab_size:
            model.set_words(table, scheduler.alphas_cumprod)
    else:
        scheduler = (
            D3PMAbsorbingScheduler(MASK) if kind == "absorbing" else D3PMUniformScheduler(PAD)
        )
        corrupt = TokenCorruption(scheduler, EOS, EOS)
        model = small_classifier(time_conditioning=kind == "uniform")
    rows, held_out = labelled_rows(2000), labelled_rows(500, seed=1)
    order, optimizer = ShuffledRows(rows, 64), torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(200):
        batch, (uniform, sources) = order.batch(step), row_noise(0, step, 64)
        logits = model(**corrupt(batch, noise_levels(uniform, 0.2), sources)).logits
        optimizer.zero_grad()
        label_losses(logits, batch).mean().backward()
        optimizer.step()
    model.eval()
    report = evaluate_classifier(model, corrupt, held_out, num_times=4)
    assert report.accuracy > 0.95
    accuracy, cross_entropy = report.by_noise[0]
    assert accuracy > report.by_noise[9][0] and cross_entropy < report.by_noise[9][1]
    batch = to_tensors(held_out[:])
    with torch.no_grad():
        logits = model(**corrupt(batch, torch.ones(500), generators(500))).logits
    found = logits.softmax(dim=-1)[:, 1]
    assert abs(float(found.mean()) - PRIOR) < 0.1
    nats = float(label_losses(logits, batch).mean())
    assert (
        report.entropy - 0.02 < nats < report.entropy + 0.06
    )  # knows the frequencies, and nothing of the text


def test_unknown_labels_are_refused():
    check_labels(labelled_rows(20), 2)
    check_labels(labelled_rows(20, tagged=True), 2)
    with pytest.raises(ValueError, match=r"Labels must be between 0 and 0, got \[0, 1\]"):
        check_labels(labelled_rows(20), 1)
