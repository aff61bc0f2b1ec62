"""Laws of guided text diffusion: both ends of the scale, one call a step, exact laws of what is written, no leaks."""

import copy

import numpy as np
import pytest
import torch
from conftest import make_denoiser, mostly_slow, slow
from support.label_tables import LabelTable, Tilt
from support.masked_lms import make_masked_lm
from support.oracles import chi_square_passes

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMHierarchicalScheduler,
    D3PMHybridScheduler,
    D3PMUniformScheduler,
    ReMDMScheduler,
    TextDiffusionPipeline,
)

KERNELS = ["absorbing", "confidence", "remdm", "uniform", "hybrid", "hierarchical"]
WRITE = {"num_inference_steps": 6, "max_new_tokens": 8}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_scheduler(kernel, tokenizer):
    mask, words = tokenizer.mask_token_id, tokenizer.pad_token_id
    return {
        "absorbing": lambda: D3PMAbsorbingScheduler(mask),
        "confidence": lambda: ConfidenceScheduler(mask),
        "remdm": lambda: ReMDMScheduler(mask, eta=0.3),
        "uniform": lambda: D3PMUniformScheduler(words, reverse_rule="plug_in"),
        "hybrid": lambda: D3PMHybridScheduler(mask, words),
        "hierarchical": lambda: D3PMHierarchicalScheduler(
            mask, len(tokenizer) + 4, torch.arange(words) // 75
        ),
    }[kernel]()


@pytest.fixture
def make_pipes(tokenizer):
    """`(plain, guided)` pipelines with the same components."""

    def make(kernel="absorbing", **changes):
        if kernel == "hierarchical":
            changes["vocab_size"] = len(tokenizer) + 4
        parts = (
            tokenizer,
            make_denoiser(
                tokenizer, num_classes=2, time_conditioning=True, max_length=64, **changes
            ),
        )
        pipes = [cls(*parts, make_scheduler(kernel, tokenizer)) for cls in CLASSES]
        for pipe in pipes:
            pipe.set_progress_bar_config(disable=True)
        return pipes

    return make


CLASSES = (TextDiffusionPipeline, TextDiffusionPipeline)


class Calls:
    """What a denoiser was asked."""

    def __init__(self, denoiser):
        self.inputs = []
        denoiser.register_forward_pre_hook(
            lambda _, args, kwargs: self.inputs.append((args, kwargs)), with_kwargs=True
        )

    @property
    def rows(self):
        return [len(args[0]) for args, _ in self.inputs]


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["absorbing", "uniform"]))
def test_scale_1_is_the_conditional_model_and_0_the_unconditional_one_to_the_last_bit(
    make_pipes, kernel
):
    plain, guided = make_pipes(kernel)
    calls = Calls(plain.denoiser)
    want = plain(
        "the cat", class_labels=1, generator=seeded(0), num_return_sequences=3, **WRITE
    ).tokens
    forwards = calls.rows.copy()
    got = guided(
        "the cat",
        class_labels=1,
        generator=seeded(0),
        num_return_sequences=3,
        guidance_scale=1.0,
        **WRITE,
    )
    assert torch.equal(got.tokens, want)
    assert calls.rows[len(forwards) :] == forwards  # as many calls, of as many rows
    want = plain("the cat", generator=seeded(0), num_return_sequences=3, **WRITE).tokens
    got = guided(
        "the cat",
        class_labels=1,
        generator=seeded(0),
        num_return_sequences=3,
        guidance_scale=0.0,
        **WRITE,
    )
    assert torch.equal(got.tokens, want)
    assert max(calls.rows) == 3


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["confidence", "hybrid"]))
def test_both_predictions_of_a_step_come_from_one_call_and_every_step_sees_the_condition(
    make_pipes, kernel
):
    _, guided = make_pipes(kernel)
    calls = Calls(guided.denoiser)
    guided(class_labels=[0, 1], guidance_scale=3.0, generator=seeded(0), **WRITE)
    assert 0 < len(calls.rows) <= WRITE["num_inference_steps"]
    for args, _ in calls.inputs:
        labels = args[3].tolist()
        assert len(labels) % 2 == 0
        half = len(labels) // 2
        assert set(labels[:half]) <= {0, 1} and set(labels[half:]) == {2}


def test_an_unconditional_row_holds_the_same_new_tokens_behind_another_beginning(
    make_pipes, tokenizer
):
    _, guided = make_pipes()
    calls = Calls(guided.denoiser)
    beginning, negative = "the cat sat", "a bird"
    guided(
        beginning,
        negative_prompt=negative,
        class_labels=1,
        guidance_scale=2.0,
        generator=seeded(0),
        **WRITE,
    )
    ids = [len(tokenizer(text)["input_ids"]) + 1 for text in (beginning, negative)]
    for args, kwargs in calls.inputs:
        tokens, real, labels, asked = args[0], args[2], args[3], kwargs["positions"]
        rows = [row[mask.bool()] for row, mask in zip(tokens, real, strict=True)]
        assert torch.equal(rows[0][ids[0] :], rows[1][ids[1] :])
        assert tokenizer.decode(rows[1][1 : ids[1]]) == negative
        assert torch.equal(asked[0].nonzero() - ids[0], asked[1].nonzero() - ids[1])
        assert labels.tolist() == [1, 2]


def test_what_guidance_is_by_can_be_chosen(make_pipes, tokenizer):
    _, guided = make_pipes()
    start = tokenizer.bos_token_id
    for guide_by, label, prompted in (
        ("label", 2, True),
        ("prompt", 1, False),
        ("both", 2, False),
        (None, 2, True),
    ):
        calls = Calls(guided.denoiser)
        guided(
            "the cat",
            class_labels=1,
            guide_by=guide_by,
            guidance_scale=2.0,
            generator=seeded(0),
            **WRITE,
        )
        args, _ = calls.inputs[0]
        cond, uncond = (
            row[real.bool()].tolist() for row, real in zip(args[0], args[2], strict=True)
        )
        assert args[3].tolist() == [1, label]
        prompt = tokenizer("the cat")["input_ids"]
        assert cond[: len(prompt) + 1] == [start, *prompt]
        assert (uncond[: len(prompt) + 1] == [start, *prompt]) == prompted
        assert len(uncond) == 9 + (len(prompt) if prompted else 0)


def test_guidance_by_the_prompt_is_free_of_the_label_table(make_pipes):
    _, guided = make_pipes()
    one = guided("the cat", guidance_scale=2.0, generator=seeded(0), **WRITE).tokens
    other = guided(
        "the cat", guidance_scale=2.0, guide_by="prompt", generator=seeded(0), **WRITE
    ).tokens
    assert torch.equal(one, other)
    assert not torch.equal(one, guided("the cat", generator=seeded(0), **WRITE).tokens)


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["remdm", "uniform"]))
def test_rows_of_any_scale_label_and_length_do_not_leak_into_each_other(make_pipes, kernel):
    _, guided = make_pipes(kernel)
    prompts = ["the cat", "a bird sang in the tree", "she", "the dog sat"]
    labels, scales, negatives = (
        [0, 1, None, 1],
        [1.0, 3.0, 2.0, 0.0],
        ["she was late", "", "a", "the"],
    )
    together = guided(
        prompts,
        class_labels=labels,
        guidance_scale=scales,
        negative_prompt=negatives,
        generator=[seeded(i) for i in range(4)],
        **WRITE,
    )
    for i, prompt in enumerate(prompts):
        request = {
            "class_labels": [labels[i]],
            "guidance_scale": scales[i],
            "negative_prompt": negatives[i],
        }
        assert guided(prompt, generator=seeded(i), **request, **WRITE).texts == [together.texts[i]]


def written(scheduler, table, tokenizer, steps, controls=None, scale=2.5, rows=3_000):
    """(rows,) texts of one token."""
    pipe = TextDiffusionPipeline(tokenizer, LabelTable(table, tokenizer), scheduler)
    pipe.set_progress_bar_config(disable=True)
    request = {
        "class_labels": 0,
        "guidance_scale": scale,
        "controls": controls,
        "generator": seeded(1),
    }
    tokens = pipe(
        num_return_sequences=rows, num_inference_steps=steps, max_new_tokens=1, **request
    ).tokens
    return tokens[:, 1].numpy()


def tables(size):
    generator = seeded(5)
    return torch.randn(2, size, generator=generator)


def test_absorbing_guidance_writes_the_product_of_powers_of_both_predictions(tokenizer):
    table, scale = tables(6), 2.5
    drawn = written(
        D3PMAbsorbingScheduler(tokenizer.mask_token_id), table, tokenizer, steps=4, scale=scale
    )
    cond, uncond = table.log_softmax(dim=-1)
    want = (scale * cond + (1 - scale) * uncond).softmax(dim=-1)
    assert chi_square_passes(np.bincount(drawn, minlength=6), want.numpy())
    assert not chi_square_passes(np.bincount(drawn, minlength=6), cond.exp().numpy())


@pytest.mark.parametrize("tilted", [slow(False), True])
def test_uniform_guidance_is_on_posteriors_and_writes_what_a_dense_chain_of_them_does(
    tokenizer, tilted
):
    size, steps, scale = 6, 3, 2.5
    table, scheduler = tables(size), D3PMUniformScheduler(size, reverse_rule="plug_in")
    control = Tilt(torch.linspace(-1, 1, size), "posterior")
    drawn = written(scheduler, table, tokenizer, steps, [control] if tilted else None, scale)
    law = np.full(size, 1 / size)
    probs = table.softmax(dim=-1).double().numpy()
    for i in range(steps):
        alpha_t, alpha_s = i / steps, (i + 1) / steps
        logs = []
        for predicted in probs:  # Bayes' rule on dense matrices, the prediction in the place of x_0
            between = alpha_t / alpha_s * np.eye(size) + (1 - alpha_t / alpha_s) / size
            until = alpha_s * predicted + (1 - alpha_s) / size
            joint = between * until[:, None]  # [x_s, x_t]
            logs.append(np.log(joint / joint.sum(axis=0)))
        guided = logs[1] + scale * (logs[0] - logs[1])
        guided += np.linspace(-1, 1, size)[:, None] * tilted
        kernel = np.exp(guided) / np.exp(guided).sum(axis=0)
        law = kernel @ law
    assert chi_square_passes(np.bincount(drawn, minlength=size), law)


def test_a_posterior_control_changes_how_fast_masks_are_revealed(tokenizer):
    """D-CBG on p(x_s | x_t), whose mask counts too: the tilt of the words in sum moves mass from and to it."""
    size, steps = 6, 4
    table, tilt = tables(size), torch.linspace(-2, 2, size)
    control, half = Tilt(tilt, "posterior"), None
    pipe = TextDiffusionPipeline(
        tokenizer, LabelTable(table, tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    request = {"num_return_sequences": 4_000, "num_inference_steps": steps, "max_new_tokens": 1}
    history = pipe(
        class_labels=0, controls=control, generator=seeded(0), return_history=True, **request
    ).history
    half = history[1][:, 1]
    words = table[0].softmax(dim=-1) / steps  # a quarter of the masks is revealed
    weights = torch.cat([words * tilt.exp(), torch.tensor([1 - 1 / steps])])
    counts = np.bincount(
        half.masked_fill(half == tokenizer.mask_token_id, size), minlength=size + 1
    )
    assert chi_square_passes(counts, (weights / weights.sum()).numpy())


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, fast=["absorbing", "hybrid"]))
def test_controls_of_predictions_see_every_open_token_and_are_obeyed(make_pipes, tokenizer, kernel):
    _, guided = make_pipes(kernel)
    forbidden = list(range(0, len(tokenizer), 2))

    class Odd:
        states = []

        def __call__(self, logits, state):
            self.states.append(state)
            assert len(logits) == int(state.open.sum())
            assert not (state.open & state.settled).any()
            return logits.index_fill(1, torch.tensor(forbidden), -torch.inf)

    control = Odd()
    tokens = guided(
        "the cat",
        class_labels=0,
        guidance_scale=2.0,
        controls=control,
        generator=seeded(0),
        **WRITE,
    )
    new = tokens.tokens[0, len(tokenizer("the cat")["input_ids"]) + 1 :]
    new = new[new != tokenizer.pad_token_id]
    if kernel in (
        "absorbing",
        "confidence",
        "remdm",
        "hierarchical",
    ):  # uniform noise can stay where it is
        assert (new % 2 == 1).all()
    assert [state.progress for state in control.states] == sorted(
        state.progress for state in control.states
    )
    assert control.states[0].progress < 1 and control.states[-1].last == (
        control.states[-1].progress > 0.8
    )
    assert control.states[0].starts == [1]


def test_a_control_of_ones_own_acts_between_its_start_and_stop(make_pipes):
    _, guided = make_pipes()

    class Late:
        start, stop, seen = 0.5, 0.75, []

        def __call__(self, logits, state):
            self.seen.append(state.progress)
            return logits

    control = Late()
    guided(controls=control, num_inference_steps=8, max_new_tokens=60, generator=seeded(0))
    assert control.seen == [0.5, 0.625]


def test_a_control_that_plans_lengths_gives_them(make_pipes, tokenizer):
    _, guided = make_pipes()

    class Plan:
        def plan_lengths(self, generators):
            return [5, 3]

        def __call__(self, logits, state):
            return logits.index_fill(1, torch.tensor([tokenizer.eos_token_id]), -torch.inf)

    tokens = guided(
        ["", "the"], controls=[Plan()], num_inference_steps=4, generator=seeded(0)
    ).tokens
    words = ~torch.isin(tokens, torch.tensor(tokenizer.all_special_ids))
    assert words.sum(dim=1).tolist() == [5, 3]


def test_guidance_acts_between_start_and_stop_only(make_pipes):
    _, guided = make_pipes()
    calls = Calls(guided.denoiser)
    scheduler = guided.scheduler
    guided(class_labels=1, guidance_scale=2.0, guidance_interval=(0.5, 0.75), num_inference_steps=8,
           max_new_tokens=60, generator=seeded(0))  # fmt: skip
    by_time = {round(float(args[1][0]), 3): len(args[0]) for args, _ in calls.inputs}
    assert [by_time[round(t, 3)] for t in scheduler.timesteps.tolist()] == [1, 1, 1, 1, 2, 2, 1, 1]


def test_the_callers_arguments_are_left_as_they_are(make_pipes):
    _, guided = make_pipes("uniform")
    request = {
        "prompt": ["the cat", "she"],
        "class_labels": [0, None],
        "negative_prompt": ["a", "the"],
        "guidance_scale": [2.0, 1.5],
        "controls": [],
    }
    before = copy.deepcopy(request)
    guided(**request, generator=seeded(0), **WRITE)
    assert request == before


def test_a_source_is_seen_but_not_returned(make_pipes, tokenizer):
    _, guided = make_pipes()
    calls = Calls(guided.denoiser)
    request = {"guidance_scale": 2.0, "num_inference_steps": 1, "max_new_tokens": 8}
    output = guided(source=["the cat sat", "she"], generator=seeded(0), **request)
    args, _ = calls.inputs[0]
    source = tokenizer("the cat sat")["input_ids"]
    end = tokenizer.eos_token_id
    assert args[0][0, : len(source) + 2].tolist() == [end, *source, end]
    assert args[0][2, :2].tolist() == [end, end]  # an empty source
    assert output.tokens.shape[1] == WRITE["max_new_tokens"]
    alone = guided(source="she", guidance_scale=2.0, generator=seeded(0), **WRITE)
    assert (
        alone.texts[0]
        == guided(source=["she"], guidance_scale=2.0, generator=[seeded(0)], **WRITE).texts[0]
    )


def test_streams_end_with_the_text(make_pipes):
    _, guided = make_pipes()
    request = {"prompt": "the cat", "class_labels": 1, "guidance_scale": 3.0, **WRITE}
    frames = list(guided.stream(generator=seeded(0), **request))
    assert len(frames) == WRITE["num_inference_steps"]
    assert frames[-1] == guided(generator=seeded(0), **request).texts


def test_a_masked_lm_is_guided_by_the_prompt():
    masked_lm, tokenizer = make_masked_lm("bert")
    parts = tokenizer, masked_lm, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    plain, guided = (cls(*parts) for cls in CLASSES)
    for pipe in (plain, guided):
        pipe.set_progress_bar_config(disable=True)
    want = plain("the cat", generator=seeded(0), **WRITE).tokens
    assert torch.equal(guided("the cat", generator=seeded(0), **WRITE).tokens, want)
    assert len(guided("the cat", guidance_scale=4.0, generator=seeded(0), **WRITE).texts) == 1


def test_a_saved_pipeline_comes_back_as_what_it_was(make_pipes, tmp_path):
    plain, guided = make_pipes("uniform")
    guided.save_pretrained(tmp_path / "guided")
    plain.save_pretrained(tmp_path / "plain")
    again = TextDiffusionPipeline.from_pretrained(tmp_path / "guided")
    assert type(again) is TextDiffusionPipeline
    assert type(TextDiffusionPipeline.from_pretrained(tmp_path / "plain")) is TextDiffusionPipeline
    again.set_progress_bar_config(disable=True)
    request = {"class_labels": 1, "guidance_scale": 3.0, **WRITE}
    assert (
        again(generator=seeded(0), **request).texts == guided(generator=seeded(0), **request).texts
    )


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"guidance_scale": 3.0}, "`guidance_scale` must be 1 without a condition"),
        ({"class_labels": 0, "guide_by": "prompt"}, "`guide_by`='prompt' needs"),
        ({"prompt": "the", "guide_by": "label"}, "`guide_by`='label' needs"),
        ({"class_labels": 0, "guide_by": "words"}, "`guide_by` must be one of"),
        ({"class_labels": [0], "guidance_scale": [1.0, 2.0]}, "`guidance_scale` must be one or 1"),
        (
            {"class_labels": 0, "guidance_interval": (0, 1.5)},
            "`guidance_interval` must be two shares",
        ),
        ({"source": "a", "prompt": "b"}, "`source` excludes"),
        ({"text": "a [MASK]", "negative_prompt": "b"}, "`negative_prompt` goes with"),
        ({"prompt": ["a", "b"], "negative_prompt": ["c"]}, "`negative_prompt` must be one or 2"),
        ({"controls": 7}, "`controls` must be controls"),
        ({"class_labels": 3}, "`class_labels` must be .*between 0 and 1"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors_name_the_argument(make_pipes, request_, message):
    _, guided = make_pipes()
    with pytest.raises(ValueError, match=message):
        guided(num_inference_steps=4, **request_)


def test_what_a_scheduler_cannot_do_is_said_before_any_work(make_pipes):
    _, guided = make_pipes("confidence")
    with pytest.raises(
        ValueError, match="need a scheduler that draws from it.*got ConfidenceScheduler"
    ):
        guided(controls=Tilt(torch.zeros(2), "posterior"))
    plan = type(
        "Plan", (), {"plan_lengths": lambda self, g: [3], "__call__": lambda self, x, s: x}
    )()
    with pytest.raises(ValueError, match="exclude `text`, `length` and `max_new_tokens`"):
        guided(controls=plan, max_new_tokens=3)
