"""Laws of ParaGuide's steps: the schedule, the drift against its formula, nuclei by enumeration, ends of texts."""

import itertools
import math

import numpy as np
import pytest
import torch
from support.oracles import chi_square_passes

from text_diffusers.guidance.controls import Control
from text_diffusers.pipelines.guidance import TextState
from text_diffusers.pipelines.paraguide.steering import (
    Steering,
    draw_tokens,
    drift,
    ended_state,
    nucleus,
    sine_schedule,
    soft_text_of,
    without_tokens,
)

VOCAB, END = 7, 6


class LogLinear(Control):
    """A score that is linear in the soft text: the sum of `weights` (V,) over the tokens that are real."""

    def __init__(self, weights, **arguments):
        super().__init__(**arguments)
        self.weights, self.seen = weights, []

    def log_prob(self, probs, state):
        self.seen.append(state)
        return ((probs @ self.weights.to(probs)) * state.attention_mask).sum(dim=1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_state(progress=0.5):
    """Two rows of 5 tokens: a start, open and settled ones, and padding."""
    open_ = torch.tensor([[0, 1, 1, 0, 1], [0, 1, 1, 1, 0]]).bool()
    real = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    return TextState(
        tokens=torch.tensor([[0, 5, 5, 2, 5], [0, 5, 5, 5, 1]]),
        open=open_,
        settled=real.bool() & ~open_,
        attention_mask=real,
        starts=[1, 1],
        timestep=0.5,
        progress=progress,
        last=False,
    )


def make_logits(seed=0):
    return torch.randn(6, VOCAB, generator=seeded(seed), dtype=torch.float64)


def nowhere(state):
    return torch.zeros_like(state.open)


def test_the_schedule_is_a_half_sine_that_is_0_to_the_last_bit_at_both_ends():
    assert sine_schedule(200.0, 0.0) == sine_schedule(200.0, 1.0) == 0.0
    assert sine_schedule(200.0, 0.5) == 200.0
    for progress in np.linspace(0, 1, 21):
        assert sine_schedule(3.0, progress) == pytest.approx(
            3 * math.sin(math.pi * progress), abs=1e-12
        )
        assert sine_schedule(3.0, progress) == pytest.approx(
            sine_schedule(3.0, 1 - progress), abs=1e-12
        )


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_drift_of_a_log_linear_score_is_its_formula(num_steps, temperature):
    """With softmax p at the temperature, the gradient of p w in the logits is p (w - p w) / temperature."""
    state, logits = make_state(progress=0.3), make_logits()
    weights = torch.linspace(-1, 2, VOCAB, dtype=torch.float64)
    kept = logits.clone()
    steering = Steering(LogLinear(weights, scale=0.7), 5.0, num_steps, temperature)
    got = steering.steer(logits, state, nowhere(state), END)
    want = logits.clone()
    for _ in range(num_steps):
        p = (want / temperature).exp()
        p = p / p.sum(dim=1, keepdim=True)
        gradient = p * (weights - (p @ weights).unsqueeze(1)) / temperature
        want = want + 5 * math.sin(0.3 * math.pi) * 0.7 * gradient
    torch.testing.assert_close(got, want)
    assert torch.equal(logits, kept)


def test_the_losses_of_several_controls_add_up_each_times_its_scale():
    state, logits = make_state(), make_logits()
    one, other = (torch.randn(VOCAB, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    both = Steering([LogLinear(one, scale=2.0), LogLinear(other, scale=-0.5)], 4.0)
    joint = Steering(LogLinear(2 * one - 0.5 * other), 4.0)
    ends = nowhere(state)
    torch.testing.assert_close(
        both.steer(logits, state, ends, END), joint.steer(logits, state, ends, END)
    )


def test_the_wanted_share_of_a_convex_toy_grows_with_the_strength():
    """Wanted tokens only gain and others only lose, so their share under the model rises with every lambda."""
    state, logits = make_state(), make_logits()
    wanted = torch.tensor([1.0, 0, 0, 1, 0, 0, 0])
    for num_steps in (1, 3):
        shares = []
        for strength in (0.0, 1.0, 5.0, 20.0, 100.0, 1000.0):
            steering = Steering(LogLinear(wanted), strength, num_steps)
            steered = steering.steer(logits, state, nowhere(state), END)
            shares.append(steered.softmax(dim=-1)[:, [0, 3]].sum(dim=-1))
        steps = torch.stack(shares).diff(dim=0)
        assert (steps[:-1] > 0).all() and (steps[-1] >= 0).all()
        assert shares[-1].min() > 0.99


def test_where_nothing_acts_the_logits_are_the_very_same():
    state, logits, weights = make_state(), make_logits(), torch.arange(VOCAB)
    for steering in (
        Steering(),
        Steering(LogLinear(weights), strength=0.0),
        Steering(LogLinear(weights, scale=0.0)),
        Steering(LogLinear(weights, start=0.6)),
        Steering(LogLinear(weights, stop=0.5)),
    ):
        assert steering.steer(logits, state, nowhere(state), END) is logits
    ends = make_state(progress=0.0)
    assert Steering(LogLinear(weights)).steer(logits, ends, nowhere(ends), END) is logits
    none = make_state()
    none.open = nowhere(none)
    assert len(Steering(LogLinear(weights)).steer(logits[:0], none, nowhere(none), END)) == 0


def test_excluded_tokens_stay_excluded_through_the_drift():
    state, logits = make_state(), without_tokens(make_logits(), [5, VOCAB + 3])
    steered = Steering(LogLinear(torch.arange(VOCAB)), 1000.0).steer(
        logits, state, nowhere(state), END
    )
    assert (steered[:, 5] == -torch.inf).all() and torch.isfinite(
        steered[:, [0, 1, 2, 3, 4, 6]]
    ).all()


def test_soft_text_is_soft_where_it_is_open_and_certain_elsewhere():
    state, logits = make_state(), make_logits()
    soft, next_row = soft_text_of(logits, state), iter(logits.exp())
    for row, place in itertools.product(range(2), range(5)):
        want = torch.eye(VOCAB, dtype=torch.float64)[state.tokens[row, place]]
        if state.open[row, place]:
            want = next(next_row)
        torch.testing.assert_close(soft[row, place], want / want.sum())


def test_a_text_ends_for_controls_at_its_first_likeliest_end_in_each_drift_step():
    state, logits = make_state(), make_logits()
    logits[1, END] = logits[3, END] = 9.0  # row 0: its second open token; row 1: its first
    ended = ended_state(logits, state, state.open, END)
    assert ended.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]
    assert ended.open.tolist() == [
        [False, True, True, False, False],
        [False, True, False, False, False],
    ]
    assert ended.settled.tolist() == [
        [True, False, False, False, False],
        [True, False, False, False, False],
    ]
    assert (
        ended_state(logits, state, nowhere(state), END).attention_mask.tolist()
        == state.attention_mask.tolist()
    )
    # A revealed end counts too, and what is shown follows the drift: END gains until the text is over.
    state.tokens[0, 3] = END
    shown = ended_state(
        make_logits().index_fill(1, torch.tensor(END), -9.0),
        state,
        state.attention_mask.bool(),
        END,
    )
    assert shown.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
    control = LogLinear(torch.eye(VOCAB)[END])
    Steering(control, 200.0, drift_steps=2).steer(
        make_logits(), make_state(), make_state().open, END
    )
    first, second = (state.attention_mask.sum(dim=1) for state in control.seen)
    assert (second <= first).all() and (second < first).any()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.8, 0.97, 1.0])
def test_the_nucleus_is_the_smallest_set_that_reaches_its_mass(top_p):
    """Against all subsets: the fewest tokens whose mass reaches top_p, of these the most probable."""
    logits = make_logits()
    for row, got in zip(
        logits.softmax(dim=-1).numpy(), nucleus(logits, top_p).numpy(), strict=True
    ):
        sets = [
            list(s) for n in range(1, VOCAB + 1) for s in itertools.combinations(range(VOCAB), n)
        ]
        reaching = [s for s in sets if row[s].sum() >= top_p - 1e-12]
        best = min(reaching, key=lambda s: (len(s), -row[s].sum()))
        want = np.zeros(VOCAB)
        want[best] = row[best] / row[best].sum()
        np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("top_p", [0.6, 1.0])
def test_tokens_are_drawn_from_the_nucleus_and_never_outside(top_p):
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0, 0.5, -3.0]])
    count = 20_000
    positions = torch.ones(20, count // 20, dtype=torch.bool)
    generators = [seeded(i) for i in range(20)]
    drawn = draw_tokens(logits.expand(count, -1), positions, top_p, generators)
    probs = nucleus(logits, top_p)[0].numpy()
    assert (probs == 0).sum() == (5 if top_p == 0.6 else 1)
    assert chi_square_passes(np.bincount(drawn.numpy(), minlength=VOCAB), probs)


def test_the_draw_of_a_row_depends_on_its_own_generator_and_not_on_padding():
    logits = torch.randn(3, 6, 50, generator=seeded(0))
    positions = torch.ones(3, 6, dtype=torch.bool)
    positions[1, 4:] = False
    together = torch.zeros(3, 6).long()
    together[positions] = draw_tokens(
        logits[positions], positions, 0.9, [seeded(i) for i in range(3)]
    )
    alone = draw_tokens(logits[1, :4], torch.ones(1, 4, dtype=torch.bool), 0.9, [seeded(1)])
    assert torch.equal(alone, together[1, :4])
    again = draw_tokens(logits[1, :4], torch.ones(1, 4, dtype=torch.bool), 0.9, [seeded(9)])
    assert not torch.equal(alone, again)


def test_a_large_vocabulary_is_drawn_in_blocks_with_the_same_result(monkeypatch):
    logits, positions = (
        torch.randn(40, 30, generator=seeded(0)),
        torch.ones(4, 10, dtype=torch.bool),
    )
    want = draw_tokens(logits, positions, 0.8, [seeded(i) for i in range(4)])
    monkeypatch.setattr("text_diffusers.pipelines.paraguide.steering.LOGITS_AT_A_TIME", 70)
    assert torch.equal(draw_tokens(logits, positions, 0.8, [seeded(i) for i in range(4)]), want)


def test_settings_that_make_no_sense_are_named():
    for name, value in (
        ("strength", -1.0),
        ("strength", math.inf),
        ("drift_steps", 0),
        ("drift_steps", 1.5),
        ("drift_temperature", 0.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
    ):
        with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
            Steering(**{name: value})
    noisy = LogLinear(torch.ones(VOCAB))
    noisy.acts_on = "posterior"
    for control in (noisy, abs):
        with pytest.raises(ValueError, match="`controls` must have a `log_prob` of clean text"):
            Steering(control)


def test_controls_and_models_that_give_no_numbers_are_named():
    logits = make_logits()
    with pytest.raises(
        ValueError, match="`controls` must give log-probabilities that can be differentiated"
    ):
        drift(logits, lambda x: x.detach().sum(), 1.0, 1)
    with pytest.raises(ValueError, match="`controls` gave NaN or infinite gradients"):
        drift(logits, lambda x: (0 * x).log().sum(), 1.0, 1)
    with pytest.raises(ValueError, match="`denoiser` predicted NaN or infinite logits"):
        nucleus(torch.full((1, 3), torch.nan), 0.8)
    with pytest.raises(ValueError, match="`denoiser` predicted NaN or infinite logits"):
        nucleus(torch.full((1, 3), -torch.inf), 0.8)
