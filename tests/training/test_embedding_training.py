"""The loss of a training step: which words are given, what is noised, and that its parts add up."""

import pytest
import torch
from datasets import Dataset

from text_diffusers import EmbeddingDDIMScheduler, EmbeddingTransformerModel
from text_diffusers.data.rows import trimmed
from text_diffusers.evaluation.embedding import bound_terms
from text_diffusers.training.steps.embedding import OBJECTIVES, EmbeddingLoss

LENGTHS = [12, 7, 3]


def make_batch(rows=3):
    mask = (torch.arange(12) < torch.tensor(LENGTHS * (rows // 3)).unsqueeze(1)).long()
    ids = torch.randint(0, 20, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": mask}


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {"embedding_dim": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
    model = EmbeddingTransformerModel(
        20, **sizes, num_train_timesteps=50, partial_noising=True, **changes
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def generators(count):
    return [torch.Generator().manual_seed(row) for row in range(count)]


SCHEDULER = EmbeddingDDIMScheduler(num_train_timesteps=50)


class Spy(torch.nn.Module):
    """The model, and what it was called with."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def forward(self, *inputs, **named):
        output = self.model(*inputs, **named)
        self.calls.append((named, output))
        return output


def test_given_words_are_beginnings_or_any_words_of_so_many_rows_and_stay_clean():
    model, batch = Spy(make_model()), make_batch(3_000)
    loss = EmbeddingLoss(SCHEDULER, model.model, given_words=0.6, self_conditioning=0.0)
    losses = loss(model, batch, torch.full((3_000,), 25), generators(3_000))
    named, output = model.calls[-1]
    given, real = named["given"], batch["attention_mask"].bool()
    lengths = torch.tensor(LENGTHS * 1_000)
    assert not (given & ~real).any() and (given.sum(dim=1) < lengths).all()
    assert torch.equal(output.noisy[given], output.clean[given])
    assert (output.noisy != output.clean).any(dim=-1)[real & ~given].all()
    assert torch.equal(losses != 0, real & ~given)  # L10: what is given costs nothing
    some = given.any(dim=1)
    counts = given.sum(dim=1, keepdim=True)
    beginning = (given == (torch.arange(12) < counts)).all(dim=1) & some
    long = lengths == 12
    # 0.15 of the rows are given a beginning, 0.45 any words, which are a beginning by chance now and then.
    assert float(some[long].float().mean()) == pytest.approx(0.59, abs=0.05)
    assert 0.15 - 0.04 < float(beginning[long].float().mean()) < 0.15 + 0.15
    any_words = given[long & some & ~beginning].float()
    assert any_words[:, :-1].mean(dim=0).std() < 0.05  # all places alike
    prefix = counts[beginning & long].squeeze(1).bincount(minlength=12)[1:]
    assert (prefix > 0).all()  # beginnings of all lengths


def test_no_words_are_given_unless_asked_for():
    model = Spy(make_model())
    EmbeddingLoss(SCHEDULER, model.model)(
        model, make_batch(), torch.tensor([0, 20, 49]), generators(3)
    )
    assert all(named["given"] is None for named, _ in model.calls)


def test_a_first_estimate_is_shown_to_its_share_of_the_rows_without_a_gradient():
    model, batch = Spy(make_model()), make_batch(3_000)
    loss = EmbeddingLoss(SCHEDULER, model.model, self_conditioning=0.5)
    loss(model, batch, torch.full((3_000,), 25), generators(3_000)).sum().backward()
    (first, estimate), (second, _) = model.calls
    shown = second["self_condition"].abs().amax(dim=(1, 2)) > 0
    assert float(shown.float().mean()) == pytest.approx(0.5, abs=0.04)
    assert not second["self_condition"].requires_grad and len(first["input_ids"]) == int(
        shown.sum()
    )
    torch.testing.assert_close(second["self_condition"][shown], estimate.sample)
    assert (first["self_condition"] if "self_condition" in first else None) is None
    torch.testing.assert_close(
        estimate.noisy, model.calls[1][1].noisy[shown]
    )  # the same noise in both calls


@pytest.mark.parametrize("objective", ["diffusion_lm", "bound"])
def test_a_row_costs_the_same_alone_trimmed_and_in_a_batch(objective):
    model, batch = make_model(), make_batch()
    loss = EmbeddingLoss(SCHEDULER, model, objective, given_words=0.5)
    times = torch.tensor([0, 20, 49])
    together = loss(model, batch, times, generators(3))
    for row in range(3):
        alone = trimmed({name: column[row : row + 1] for name, column in batch.items()})
        assert alone["input_ids"].shape == (1, LENGTHS[row])
        cost = loss(model, alone, times[row : row + 1], generators(3)[row : row + 1])
        torch.testing.assert_close(cost[0], together[row, : LENGTHS[row]], rtol=1e-4, atol=1e-5)


def test_the_objective_bound_is_on_average_the_bound_that_is_reported():
    """Weighted over the times that are drawn, against the sum of the terms of all times by the evaluation's code."""
    model, batch = make_model(categorical_output=True, self_conditioning=False), make_batch()
    loss = EmbeddingLoss(SCHEDULER, model, "bound")
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    times, weights = loss.draw_times(uniform, None)
    every = torch.zeros(50, dtype=torch.float64).index_add_(0, times, weights) / len(times)
    torch.testing.assert_close(every, torch.ones(50, dtype=torch.float64), atol=5e-3, rtol=0)
    total, want = (torch.zeros(3, dtype=torch.float64) for _ in range(2))
    for timestep in range(50):
        times, same = torch.full((3,), timestep), generators(3)
        for (
            generator
        ) in same:  # the loss draws a number more, that of self-conditioning, before its noise
            torch.randint(2**62, (1,), generator=generator)
        total += loss(model, batch, times, generators(3)).sum(dim=1).detach()
        steps, prior = bound_terms(model, batch, times, SCHEDULER.alphas_cumprod, same)
        want += steps + prior / 50
    torch.testing.assert_close(total, want, rtol=1e-5, atol=0)


def test_losses_by_time_are_the_same_at_every_call():
    model, batch = make_model(), make_batch(300)
    rows = Dataset.from_dict({name: column.tolist() for name, column in batch.items()})
    loss = EmbeddingLoss(SCHEDULER, model, "simple")
    first, again = (loss.by_time(model, rows, 5) for _ in range(2))
    assert first.shape == (5, 256) and torch.equal(first, again) and (first >= 0).all()


def test_every_objective_is_finite_at_both_ends_of_the_clock():
    for objective in OBJECTIVES:
        model = make_model(categorical_output=objective != "simple")
        loss = EmbeddingLoss(SCHEDULER, model, objective)
        assert torch.isfinite(
            loss(model, make_batch(), torch.tensor([0, 1, 49]), generators(3))
        ).all()
