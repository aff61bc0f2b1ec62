"""Laws of guidance on p(x_s | x_t): guide first and shape then, in every precision, under every kernel.

Shapes: N tokens, V vocabulary size, S states of a token.
"""

import math

import numpy as np
import pytest
import torch
from conftest import covering
from diffusers import DiscreteDDIMScheduler
from support.label_tables import LabelTable, Tilt
from support.oracles import chi_square_passes

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMHierarchicalScheduler,
    D3PMHybridScheduler,
    D3PMMatrixScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    PredictorCorrectorUniformScheduler,
    TextDiffusionPipeline,
    TokenDDIMScheduler,
)
from text_diffusers.common.scheduler_config import HIDING_NOISES
from text_diffusers.pipelines.guidance import ReverseStep, guide, guided_log_reverse

N, V = 64, 32
CLUSTERS = torch.arange(V) % 4
VECTORS = torch.randn(V, 3, generator=torch.Generator().manual_seed(0))
MAKERS = {
    "absorbing": lambda **more: D3PMAbsorbingScheduler(V, **more),
    "uniform": lambda **more: D3PMUniformScheduler(V, **more),
    "plug_in": lambda **more: D3PMUniformScheduler(V, reverse_rule="plug_in", **more),
    "ddim": lambda **more: TokenDDIMScheduler(V, reverse_rule="plug_in", eta=0.5, **more),
    "corrector": lambda **more: PredictorCorrectorUniformScheduler(V, **more),
    "hierarchical": lambda **more: D3PMHierarchicalScheduler(V, V + 5, CLUSTERS, **more),
    "hybrid": lambda **more: D3PMHybridScheduler(V, V, **more),
    "bit_flip": lambda **more: D3PMBitFlipScheduler(V, **more),
    "neighbors": lambda **more: D3PMNeighborScheduler.from_embeddings(VECTORS, 2, **more),
    "matrix": lambda **more: D3PMMatrixScheduler(V, num_train_timesteps=40, beta_end=0.5, **more),
}
SHAPINGS = [{}, {"top_p": 0.9}, {"top_k": 5}, {"temperature": 0.3}, {"temperature": 0.0}]


class Case:
    """Two predictions of N tokens, and a scheduler of four steps."""

    def __init__(self, kernel, dtype=torch.float32, spread=6.0, **shaping):
        generator = torch.Generator().manual_seed(2)
        self.scheduler = MAKERS[kernel](**shaping)
        self.scheduler.set_timesteps(4)
        self.tokens = torch.randint(V, (N,), generator=generator)
        self.cond = (spread * torch.randn(N, V + 1, generator=generator)).to(dtype)
        self.uncond = (spread * torch.randn(N, V + 1, generator=generator)).to(dtype)
        self.scale = torch.full((N,), 2.5, dtype=torch.float64)

    def reverse(self, logits, timestep):
        """(N, S) p(x_s | x_t) of logits (N, V + 1)."""
        return self.scheduler.reverse_probs(logits[None], timestep, self.tokens[None])[0]

    def guided(self, timestep, scale=None, **controls):
        step = ReverseStep(
            self.scheduler, timestep, self.tokens, self.scale if scale is None else scale
        )
        return guided_log_reverse(step, self.cond, self.uncond, **controls)

    def each_step(self):
        """The times of the run, each of its steps being taken."""
        for timestep in self.scheduler.timesteps.tolist():
            yield timestep
            self.scheduler.step(torch.zeros(1, N, V + 1), timestep, self.tokens[None])


@pytest.mark.parametrize(
    "kernel, shaping, dtype",
    covering(MAKERS, SHAPINGS, [torch.float32, torch.float16, torch.bfloat16]),
    ids=str,
)
def test_what_cannot_be_is_zero_in_every_precision_and_nothing_is_below(kernel, shaping, dtype):
    """The oracle is the same in float64: rounding makes no zero of what can be, and nothing of a zero."""
    case = Case(kernel, dtype, **shaping)
    for timestep in case.each_step():
        # A prediction that has excluded the token that is there, and one that has not.
        for logits in (case.cond, case.cond.scatter(1, case.tokens[:, None], -math.inf)):
            probs = case.reverse(logits, timestep)
            exact = case.reverse(logits.double(), timestep)
            assert (probs[exact == 0] == 0).all() and (probs[exact > 1e-30] > 0).all()
            torch.testing.assert_close(probs.double(), exact, atol=2e-6, rtol=1e-4)
            torch.testing.assert_close(probs.sum(dim=-1), torch.ones(N, dtype=probs.dtype))
        weights = case.guided(timestep)
        assert not weights.isnan().any() and weights.amax(dim=-1).isfinite().all()


@pytest.mark.parametrize("kernel", MAKERS)
def test_unshaped_predictions_are_guided_as_published(kernel):
    case = Case(kernel, spread=2.0)
    for timestep in case.each_step():
        log_cond, log_uncond = (
            case.reverse(logits, timestep).double().log() for logits in (case.cond, case.uncond)
        )
        want = log_uncond + 2.5 * (log_cond - log_uncond)
        if kernel in HIDING_NOISES:  # tokens that are no masks stay, whatever is predicted
            want = log_cond
        torch.testing.assert_close(
            case.guided(timestep).double().softmax(dim=-1),
            want.nan_to_num(nan=-math.inf, neginf=-math.inf).softmax(dim=-1),
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize(
    "kernel, coldest",
    covering(MAKERS, [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}]),
    ids=str,
)
def test_at_temperature_zero_the_likeliest_token_under_guidance_is_taken_for_clean(kernel, coldest):
    case = Case(kernel, **coldest)
    guided = guide(case.cond, case.uncond, case.scale)
    for timestep in case.each_step():
        # What is read as leave-one-out is first turned into p(x_0 | x_t).
        logits = case.scheduler.clean_scores(guided[None], timestep, case.tokens[None])[0]
        best = logits[:, :V].argmax(dim=-1, keepdim=True)
        sure = torch.full((N, V + 1), -math.inf).scatter(1, best, 0.0)
        torch.testing.assert_close(
            case.guided(timestep).softmax(dim=-1), case.reverse(sure, timestep)
        )


@pytest.mark.parametrize("kernel, shaping", covering(MAKERS, SHAPINGS), ids=str)
def test_both_ends_of_the_scale_are_the_predictions_themselves_to_the_last_bit(kernel, shaping):
    case = Case(kernel, **shaping)
    scale = torch.ones(N)
    scale[::2] = 0
    for timestep in case.each_step():
        guided = case.guided(timestep, scale)
        assert torch.equal(guided[1::2], case.reverse(case.cond, timestep).log()[1::2])
        assert torch.equal(guided[::2], case.reverse(case.uncond, timestep).log()[::2])


@pytest.mark.parametrize("kernel", ["uniform", "plug_in", "ddim", "hybrid", "matrix"])
def test_a_little_shaping_changes_guidance_a_little(kernel):
    plain, shaped = Case(kernel, spread=2.0), Case(kernel, spread=2.0, temperature=1 + 1e-4)
    for timestep in plain.scheduler.timesteps.tolist():
        laws = [case.guided(timestep).softmax(dim=-1) for case in (plain, shaped)]
        torch.testing.assert_close(*laws, atol=2e-3, rtol=0)


@pytest.mark.parametrize("kernel", MAKERS)
def test_controls_act_on_the_guided_prediction_and_before_shaping(kernel):
    """In the last step p(x_s | x_t) is p(x_0): the likeliest token that the control leaves is drawn."""
    case = Case(kernel, temperature=0.0)
    if kernel in HIDING_NOISES:
        case.tokens.fill_(V)
    guided = guide(case.cond, case.uncond, case.scale)
    *_, last = case.each_step() if kernel != "corrector" else [case.scheduler.timesteps[0].item()]
    if kernel == "corrector":
        case.scheduler.set_timesteps(1)
        last = 1.0
    forbidden = guided[:, :V].argmax(dim=-1)  # another one for each token
    seen = []

    def forbid(logits):
        seen.append(logits.clone())
        return logits.scatter_(1, forbidden[:, None], -math.inf)  # in its place

    scores = case.scheduler.clean_scores(guided[None], last, case.tokens[None])[0][:, :V]
    want = scores.scatter(1, forbidden[:, None], -math.inf).argmax(dim=-1)
    assert torch.equal(case.guided(last, control=forbid).argmax(dim=-1), want)
    assert len(seen) == 1 and torch.equal(seen[0], guided)

    # Likewise controls of p(x_s | x_t), which see what would be drawn without shaping.
    gains = torch.linspace(-4, 4, V)

    def tilt(log_weights):
        log_weights[:, :V] += gains
        return log_weights

    got = case.guided(last, posterior_control=tilt)[:, :V].argmax(dim=-1)
    assert torch.equal(got, (scores + gains).argmax(dim=-1))
    assert not torch.equal(got, scores.argmax(dim=-1))


def test_predictions_in_half_precision_are_guided_in_single():
    cond, uncond = 30 * torch.randn(2, 5, 9).half()
    scale = torch.full((5,), 5_000.0)
    guided = guide(cond, uncond, scale)
    assert guided.dtype == torch.float32 and guided.isfinite().all()
    torch.testing.assert_close(guided, guide(cond.float(), uncond.float(), scale))


def test_a_scale_that_is_too_large_is_named_and_not_the_model():
    cond, uncond = torch.randn(2, 4, 7)
    with pytest.raises(ValueError, match="`guidance_scale` must be small enough .* got 1e\\+39"):
        guide(cond, uncond, torch.full((4,), 1e39, dtype=torch.float64))
    scheduler = D3PMUniformScheduler(7)
    nothing, positions = torch.full((4, 7), -math.inf), torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="guidance or a control did not leave, got -inf"):
        scheduler.draw(nothing, torch.zeros(1, 4, dtype=torch.long), positions)


# In the pipeline


def written(tokenizer, scheduler, table, rows=40, **request):
    """(rows,) texts of one token, under the labels' logits in `table` (C + 1, V)."""
    pipe = TextDiffusionPipeline(tokenizer, LabelTable(table, tokenizer), scheduler)
    pipe.set_progress_bar_config(disable=True)
    request = {
        "class_labels": 0,
        "num_inference_steps": 1,
        "generator": torch.Generator().manual_seed(0),
    } | request
    return pipe(num_return_sequences=rows, max_new_tokens=1, **request).tokens[:, 1]


@pytest.mark.parametrize("cold", [{"temperature": 0.0}, {"top_k": 1}], ids=str)
@pytest.mark.parametrize("kernel", ["absorbing", "uniform", "ddim", "corrector", "matrix", "stock"])
def test_the_scale_counts_at_temperature_zero(tokenizer, kernel, cold):
    """Guided logits 0, 5.7, 0, 0, 0: the second token is the likeliest, and the first in both predictions."""
    table = torch.tensor([[2.0, 1.9, 0, 0, 0], [3.0, 0, 0, 0, 0]])
    size = 5
    schedulers = {
        "absorbing": lambda: D3PMAbsorbingScheduler(tokenizer.mask_token_id, **cold),
        "uniform": lambda: D3PMUniformScheduler(size, **cold),
        "ddim": lambda: TokenDDIMScheduler(size, **cold),
        "corrector": lambda: PredictorCorrectorUniformScheduler(size, **cold),
        "matrix": lambda: D3PMMatrixScheduler(size, num_train_timesteps=9, beta_end=0.9, **cold),
        "stock": lambda: DiscreteDDIMScheduler(),
    }
    scheduler = schedulers[kernel]()
    if kernel == "stock":
        scheduler.register_to_config(temperature=0.0)
    for steps in (1, 4):
        request = {"num_inference_steps": steps, "guidance_scale": 3.0}
        assert (written(tokenizer, scheduler, table, **request) == 1).all()
        assert (written(tokenizer, scheduler, table, num_inference_steps=steps) == 0).all()


def test_a_classifier_counts_at_temperature_zero(tokenizer):
    table = torch.tensor([[2.0, 1.9, 0, 0, 0], [3.0, 0, 0, 0, 0]])
    control = Tilt(torch.tensor([0.0, 1.0]), "posterior")
    mask = tokenizer.mask_token_id
    for scheduler in (
        D3PMAbsorbingScheduler(mask, top_k=1),
        D3PMUniformScheduler(5, temperature=0.0),
    ):
        for steps in (1, 3):
            request = {"controls": control, "num_inference_steps": steps}
            assert (written(tokenizer, scheduler, table, **request) == 1).all()


@pytest.mark.parametrize(
    "rule, shaping", covering(["marginal", "plug_in"], [{"top_p": 0.9}, {"top_k": 50}]), ids=str
)
def test_guidance_with_cut_predictions_writes_what_is_guided(tokenizer, rule, shaping):
    """In one step x_0 is drawn from the guided prediction, cut; noise that no prediction has left is never kept."""
    size, rows = 250, 3_000
    table = 4 * torch.randn(2, size, generator=torch.Generator().manual_seed(3))
    scheduler = D3PMUniformScheduler(size, reverse_rule=rule, **shaping)
    drawn = written(tokenizer, scheduler, table, rows=rows, guidance_scale=3.0)
    guided = table[1].double() + 3 * (table[0] - table[1]).double()
    probs = guided.softmax(dim=-1)
    order = probs.argsort(descending=True)
    before = probs[order].cumsum(dim=-1) - probs[order]
    is_kept = before < 0.9 if "top_p" in shaping else torch.arange(size) < 50
    kept = torch.zeros(size, dtype=torch.float64).scatter(0, order, is_kept.double())
    want = probs * kept / (probs * kept).sum()
    assert chi_square_passes(np.bincount(drawn, minlength=size), want.numpy())
