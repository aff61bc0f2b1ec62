"""Self-distillation through time, against an exact teacher of a source that can be enumerated.

Shapes: B rows, L length, K data tokens; the mask has the last id.
"""

import math

import pytest
import torch
from support.oracles import MarkovSource, TableDenoiser
from torch.distributions import Categorical, kl_divergence

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
)
from text_diffusers.losses import distillation_divergence
from text_diffusers.training.steps.distillation import TeacherSteps

ROWS = 500
SOURCE = MarkovSource([0.7, 0.3], [[0.9, 0.1], [0.2, 0.8]], length=3)
K = SOURCE.num_tokens
MARGINALS = torch.tensor(
    [
        [SOURCE.probs[SOURCE.sequences[:, place] == token].sum() for token in range(K)]
        for place in range(SOURCE.length)
    ]
)


def absorbing_steps(**steps):
    return TeacherSteps(
        TableDenoiser(SOURCE.masked_denoiser(), K + 1), D3PMAbsorbingScheduler(K), **steps
    )


def uniform_steps(**steps):
    scheduler = D3PMUniformScheduler(K)

    def table(time):
        return SOURCE.uniform_denoiser(float(scheduler.alpha(time)))

    return TeacherSteps(TableDenoiser(table, K), scheduler, **steps)


def rows_from_noise(count=ROWS):
    """Rows that begin at pure noise, each with its own generator."""
    tokens = torch.zeros(count, SOURCE.length, dtype=torch.long)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    generators = [torch.Generator().manual_seed(row) for row in range(count)]
    return batch, torch.full((count,), 0.99), generators


@pytest.mark.parametrize("make", [absorbing_steps, uniform_steps])
def test_what_an_exact_teacher_predicts_on_the_way_is_on_average_what_it_predicts_at_once(make):
    """Of uniform noise, whose steps are drawn apart, the way is not exact to the end, but to its middle."""
    steps = make(student_steps=2, teacher_steps=32)
    batch = steps(*rows_from_noise())
    assert batch.positions.all() and (batch.times == 1).all()
    mean = batch.log_probs[:, :K].exp().view(ROWS, SOURCE.length, K).mean(dim=0)
    # Within four standard errors of numbers in [0, 1], and the error of the steps
    torch.testing.assert_close(mean, MARGINALS, atol=2 / math.sqrt(ROWS) + 0.01, rtol=0)


def test_on_the_way_to_the_text_the_teacher_predicts_token_for_token():
    """The entropies of the predictions by which tokens were revealed add up to that of the source: the chain rule."""
    totals = []
    for teacher_steps in (1, 48):
        steps = absorbing_steps(student_steps=1, teacher_steps=teacher_steps)
        log_probs = steps(*rows_from_noise()).log_probs[:, :K]
        entropies = Categorical(logits=log_probs).entropy()
        totals.append(float(entropies.view(ROWS, SOURCE.length).sum(dim=1).mean()))
    independent = float(Categorical(MARGINALS).entropy().sum())
    assert totals[0] == pytest.approx(independent, abs=1e-6)
    assert (
        totals[1] == pytest.approx(SOURCE.entropy, abs=0.08) and SOURCE.entropy < independent - 0.2
    )


def test_rows_stand_at_the_steps_of_the_student_and_do_not_depend_on_the_batch():
    steps = absorbing_steps(student_steps=4, teacher_steps=8)
    tokens = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 1]])
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    batch["given"] = torch.tensor([[True, False, False]] * 3)
    uniform = torch.tensor([0.1, 0.6, 0.99])

    def generators(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    together = steps(batch, uniform, generators(range(3)))
    assert together.times.tolist() == [0.25, 0.75, 1.0]
    assert torch.equal(together.noisy[:, 0], tokens[:, 0]) and not together.positions[:, 0].any()
    alone = steps(
        {name: column[2:] for name, column in batch.items()}, uniform[2:], generators([2])
    )
    assert torch.equal(alone.noisy, together.noisy[2:])
    assert torch.equal(alone.log_probs, together.log_probs[-2:])


def test_where_each_mask_is_its_own_step_the_student_starts_as_its_teacher():
    """A step of the student that is one of the teacher: nothing is to be learned of what this step reveals."""
    steps = absorbing_steps(student_steps=1, teacher_steps=1)
    batch = steps(*rows_from_noise(8))
    logits = steps.teacher(batch.noisy, 1.0, positions=batch.positions).logits
    assert float(batch.loss(logits)) == pytest.approx(0, abs=1e-9)


def test_divergences_are_those_of_torch_and_have_gradients_where_tokens_are_impossible():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator)
    teacher = torch.randn(5, 7, generator=generator)
    logits[:, 3] = teacher[:, 3] = -torch.inf
    logits.requires_grad_()
    teacher = teacher.log_softmax(dim=-1)
    student = Categorical(logits=logits)
    mixture = Categorical((student.probs + teacher.exp()) / 2)
    want = {
        "forward": kl_divergence(Categorical(logits=teacher), student),
        "reverse": kl_divergence(student, Categorical(logits=teacher)),
        "jensen_shannon": (
            kl_divergence(Categorical(logits=teacher), mixture) + kl_divergence(student, mixture)
        )
        / 2,
    }
    for divergence, value in want.items():
        got = distillation_divergence(logits, teacher, divergence)
        torch.testing.assert_close(got, value)
        (gradient,) = torch.autograd.grad(got.sum(), logits)
        assert gradient.isfinite().all()
    with pytest.raises(ValueError, match="`divergence` must be one of forward, reverse"):
        distillation_divergence(logits, teacher, "backward")


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (
            D3PMAbsorbingScheduler(K),
            (3, 8),
            "`teacher_steps` must be a multiple of the student's 3",
        ),
        (
            D3PMNeighborScheduler.from_embeddings(torch.randn(6, 2), 2),
            (2, 8),
            "`scheduler` must be a D3PMAbsorbingScheduler or EvenRevealScheduler",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(scheduler, steps, message):
    with pytest.raises(ValueError, match=message):
        TeacherSteps(None, scheduler, *steps)
