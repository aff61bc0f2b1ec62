"""Laws of classifier-free guidance as a function of two predictions, against golden numbers and the definition."""

import math

import pytest
import torch
from support.oracles import assert_golden, float64, golden_cases

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.pipelines.guidance import (
    as_controls,
    check_interval,
    guide,
    planned_lengths,
    scales_by_row,
)

GOLDEN = golden_cases("cfg", "dcfg")


def scheduler_of(inputs):
    if inputs["kernel"] == "absorbing":
        return D3PMAbsorbingScheduler(inputs["mask_id"])
    return D3PMUniformScheduler(inputs["vocab_size"], reverse_rule="plug_in")


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_guided_posteriors_equal_the_golden_numbers(case):
    inputs = case["inputs"]
    scheduler = scheduler_of(inputs)
    for row, (t, s) in enumerate(zip(inputs["t"], inputs["s"], strict=True)):
        scheduler._grid = torch.tensor([t, s], dtype=torch.float64)
        scheduler.timesteps = scheduler._grid[:1]
        sample = torch.tensor(inputs["xt"][row : row + 1])
        cond, uncond = (
            float64(inputs[name][row : row + 1]) for name in ("logits_cond", "logits_uncond")
        )
        scale = torch.full((sample.numel(),), float(inputs["gamma"]), dtype=torch.float64)
        if inputs["kernel"] == "absorbing":
            guided = guide(cond.flatten(0, 1), uncond.flatten(0, 1), scale).view(cond.shape)
            got = scheduler.reverse_probs(guided, t, sample)
        else:
            logs = [
                scheduler.reverse_probs(logits, t, sample).log().flatten(0, 1)
                for logits in (cond, uncond)
            ]
            got = guide(*logs, scale).softmax(dim=-1).view(cond.shape)
        assert_golden(got, case["outputs"]["p_reverse"][row : row + 1], case)


def test_guidance_is_its_definition_and_exact_at_both_ends():
    cond, uncond = torch.randn(7, 11), torch.randn(7, 11)
    scale = torch.tensor([0.0, 1.0, 0.3, 2.0, -1.5, 7.0, 1.0])
    guided = guide(cond, uncond, scale)
    torch.testing.assert_close(guided, uncond + scale.unsqueeze(1) * (cond - uncond))
    assert torch.equal(guided[0], uncond[0])
    assert torch.equal(guided[[1, 6]], cond[[1, 6]])


def test_constants_of_a_row_do_not_matter_so_that_logits_need_no_normalisation():
    cond, uncond, scale = (
        torch.randn(5, 9).double(),
        torch.randn(5, 9).double(),
        torch.full((5,), 2.5),
    )
    want = guide(cond.log_softmax(dim=-1), uncond.log_softmax(dim=-1), scale).softmax(dim=-1)
    torch.testing.assert_close(guide(cond + 3, uncond - 5, scale).softmax(dim=-1), want)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_tokens_that_cannot_be_are_no_numbers_for_nobody(scale):
    excluded = -math.inf
    cond = torch.tensor([[0.0, excluded, 1.0, excluded]])
    uncond = torch.tensor([[1.0, 2.0, excluded, excluded]])
    guided = guide(cond, uncond, torch.tensor([scale]))
    if scale == 0:
        assert torch.equal(guided, uncond)
    else:
        assert guided.tolist() == [[pytest.approx(1 - scale), excluded, 1.0, excluded]]


def test_inputs_are_not_changed():
    cond, uncond = torch.randn(2, 3), torch.randn(2, 3)
    before = cond.clone(), uncond.clone()
    guide(cond, uncond, torch.tensor([2.0, 0.0]))
    assert torch.equal(cond, before[0]) and torch.equal(uncond, before[1])


def test_arguments_that_make_no_sense_are_named():
    with pytest.raises(ValueError, match="`guidance_scale` must be one or 3, one a text, got 2"):
        scales_by_row([1.0, 2.0], 3, 1)
    with pytest.raises(ValueError, match="`guidance_scale` must be finite numbers, got nan"):
        scales_by_row(math.nan, 3, 1)
    with pytest.raises(ValueError, match="0 <= start <= stop <= 1, got \\(0.5, 0.2\\)"):
        check_interval((0.5, 0.2))
    with pytest.raises(ValueError, match="`controls` must be controls.*got 'positive'"):
        as_controls(["positive"])
    control = type(
        "Plan", (), {"plan_lengths": lambda self, generators: [3], "__call__": lambda self, x, s: x}
    )()
    with pytest.raises(ValueError, match="fix the length of a text once, got 2"):
        planned_lengths([control, control], [torch.Generator()])
    assert scales_by_row([1, 2.5], 2, 2) == [1.0, 1.0, 2.5, 2.5]
