"""Laws of text by two levels of codes: what each writes, guidance, plans, filters, ends, saving, and clear errors."""

import sys

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import make_denoiser, mostly_slow, slow
from diffusers import BlockRefinementScheduler, DiffusionPipeline, DiscreteDDIMScheduler
from support.oracles import chi_square_passes
from support.two_level_pipes import (
    Calls,
    counts_of,
    law_of_codes,
    make_two_level,
    one_at_a_time_law,
)
from transformers import T5Config, T5EncoderModel

from text_diffusers import (
    CodeTransformerModel,
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    FirstHittingScheduler,
    ReMDMScheduler,
    TextDiffusionPipeline,
    TwoLevelVQDiffusionPipeline,
)
from text_diffusers.common.token_ids import never_written
from text_diffusers.hub.standalone import standalone_source

PROMPTS = ["the cat", "the bird sat", "", "the dog"]
STEPS = {"num_inference_steps": 3}
KERNELS = {
    "absorbing": D3PMAbsorbingScheduler,
    "first_hitting": FirstHittingScheduler,
    # A row of masks looks alike everywhere: without noise, rounding would rank candidates that tie.
    "confidence": lambda mask: ConfidenceScheduler(mask, order_temperature=1.0),
    "remdm": lambda mask: ReMDMScheduler(mask, eta=0.3),
    "block_refinement": lambda mask: BlockRefinementScheduler(),
}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def everything(output):
    return (
        output.texts,
        output.tokens.tolist(),
        output.plan.tolist(),
        output.fine_codes.tolist(),
        output.accepted,
    )


@pytest.fixture
def pipe(tokenizer):
    return make_two_level(tokenizer)


@pytest.fixture
def small(tokenizer):
    """Two coarse codes of 2, and four fine codes of 2, in rows of two windows: few enough to enumerate."""
    return make_two_level(tokenizer, num_codes=(2, 2), patch_length=1, window_length=2, max_row=4)


# What is written


@pytest.mark.parametrize(
    "prompt, scales",
    [slow(None, (1.0, 1.0)), slow("the cat", (1.0, 1.0)), ("the cat", (2.5, 1.7))],
)
def test_plan_and_fine_codes_follow_the_enumerated_chains(small, prompt, scales):
    law = law_of_codes(small, (2, 4), (2, 3), scales, prompt)
    assert sum(law.values()) == pytest.approx(1)
    output = small(
        prompt,
        num_inference_steps=(2, 3),
        guidance_scale=scales,
        num_return_sequences=4_000,
        generator=seeded(0),
        output_type="tokens",
    )
    counts = counts_of(output.plan, output.fine_codes, law)
    assert chi_square_passes(counts, list(law.values()))
    others = law_of_codes(small, (2, 4), (2, 3), (1.0, 1.0), "the cat" if prompt is None else None)
    assert not chi_square_passes(
        counts, list(others.values())
    )  # a law that forgets prompt and guidance


def test_first_hitting_writes_one_code_at_a_time_at_each_level(small):
    small.coarse_scheduler, small.fine_scheduler = (
        FirstHittingScheduler(2),
        FirstHittingScheduler(2),
    )
    law = law_of_codes(small, (2, 4), (2, 4), (1.0, 1.0), "a bird", one_at_a_time_law)
    output = small(
        "a bird", num_inference_steps=(2, 4), num_return_sequences=2_000, generator=seeded(0)
    )
    assert chi_square_passes(counts_of(output.plan, output.fine_codes, law), list(law.values()))
    message = "At the fine level, `num_inference_steps` must be at least 4, one for each token"
    with pytest.raises(ValueError, match=message):
        small(num_inference_steps=(2, 3))


def test_detail_of_a_given_plan_follows_its_own_chain(small):
    plan = (1, 0)
    law = law_of_codes(small, (2, 4), (2, 3), (1.0, 1.0))
    given = {key: mass for key, mass in law.items() if key[0] == plan}
    output = small(
        plan=[plan], num_inference_steps=3, num_return_sequences=2_000, generator=seeded(0)
    )
    weights = np.array(list(given.values()))
    assert chi_square_passes(
        counts_of(output.plan, output.fine_codes, given), weights / weights.sum()
    )


def test_decoding_a_few_rows_at_a_time_writes_the_same(small, monkeypatch):
    arguments = {"num_return_sequences": 5, "temperature": 1.0, "output_type": "tokens"}
    together = small(generator=seeded(0), **arguments).tokens
    calls = []
    monkeypatch.setattr(
        "text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq.DECODED_AT_ONCE",
        2 * together.shape[1],
    )
    decode = small.autoencoder.decode
    monkeypatch.setattr(
        small.autoencoder,
        "decode",
        lambda fine, coarse: calls.append(len(fine)) or decode(fine, coarse),
    )
    assert torch.equal(small(generator=seeded(0), **arguments).tokens, together)
    assert calls == [2, 2, 1]


@pytest.mark.slow
def test_what_passes_a_filter_has_the_law_of_what_is_written_given_that_it_passes(small):
    law = law_of_codes(small, (2, 4), (2, 2), (1.0, 1.0))
    keys = list(law)
    logits = small.autoencoder.decode(
        torch.tensor([fine for _, fine in keys]), torch.tensor([plan for plan, _ in keys])
    )
    logits[..., never_written(small.tokenizer)] = -torch.inf
    texts = small.tokenizer.batch_decode(logits.argmax(dim=-1), skip_special_tokens=True)
    assert len(set(texts)) > 3
    some = set(sorted(set(texts))[::2])
    output = small(
        num_inference_steps=2,
        text_filter=some.__contains__,
        max_attempts=2,
        num_return_sequences=3_000,
        generator=seeded(0),
    )
    passing = {
        key: mass for key, text, mass in zip(keys, texts, law.values(), strict=True) if text in some
    }
    chance = sum(passing.values())
    passed = torch.tensor(output.accepted)
    expected = np.array([1 - (1 - chance) ** 2, (1 - chance) ** 2])
    assert chi_square_passes([int(passed.sum()), int((~passed).sum())], expected)
    counts = counts_of(output.plan[passed], output.fine_codes[passed], passing)
    assert chi_square_passes(counts, np.array(list(passing.values())) / chance)
    assert all(
        (text in some) == accepted
        for text, accepted in zip(output.texts, output.accepted, strict=True)
    )


def test_one_shot_is_the_likeliest_code_everywhere_by_one_call(pipe):
    calls = Calls(pipe.fine_denoiser)
    output = pipe(
        "the cat", fine_codes="one_shot", guidance_scale=(1.0, 2.0), generator=seeded(0), **STEPS
    )
    assert calls.rows == [2]
    told = {"context_ids": output.plan} | {
        name: value[:1] for name, value in calls.inputs[0][1].items() if name.startswith("prompt")
    }
    masks = torch.full((1, 8), 7)
    cond, uncond = pipe.fine_denoiser(masks, **told).logits, pipe.fine_denoiser(masks).logits
    assert torch.equal(output.fine_codes, (uncond + 2 * (cond - uncond))[..., :7].argmax(dim=-1))
    pipe.fine_scheduler = ConfidenceScheduler(7, temperature=0.0)
    again = pipe("the cat", plan=output.plan, guidance_scale=(1.0, 2.0), num_inference_steps=1)
    assert torch.equal(again.fine_codes, output.fine_codes)


@pytest.mark.slow
def test_decoder_is_greedy_at_temperature_0_and_draws_from_its_softmax_at_1(pipe):
    codes = {"plan": [[1, 2, 3, 4]], "fine_codes": "one_shot"}
    output = pipe(**codes, generator=seeded(0))
    logits = pipe.autoencoder.decode(output.fine_codes, output.plan)
    logits[..., never_written(pipe.tokenizer)] = -torch.inf
    ends = (output.tokens == pipe.tokenizer.eos_token_id).any()
    assert torch.equal(output.tokens, logits.argmax(dim=-1)) and not ends
    for temperature, top_p in ((0.5, None), (1.0, 0.6)):
        probs = (logits[0].double() / temperature).softmax(dim=-1).detach().numpy()
        if top_p is not None:
            for row in probs:
                order = np.argsort(-row)
                row[order[np.searchsorted(np.cumsum(row[order]), top_p) + 1 :]] = 0
                row /= row.sum()
        drawn = pipe(
            **codes,
            temperature=temperature,
            top_p=top_p,
            num_return_sequences=2_000,
            generator=seeded(1),
        )
        assert chi_square_passes(
            np.bincount(drawn.tokens[:, 0], minlength=probs.shape[1]), probs[0]
        )
        still = (drawn.tokens[:, :9] != pipe.tokenizer.eos_token_id).all(dim=1)
        law = probs[9].copy()  # the second window
        assert chi_square_passes(np.bincount(drawn.tokens[still, 9], minlength=len(law)), law)


# Guidance


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, ["absorbing", "remdm"]))
def test_scale_1_is_the_conditional_model_and_0_has_no_prompt_to_the_last_bit(pipe, kernel):
    pipe.coarse_scheduler, pipe.fine_scheduler = KERNELS[kernel](5), KERNELS[kernel](7)
    steps = {"num_inference_steps": (4, 8), "num_return_sequences": 3}
    coarse, fine = Calls(pipe.coarse_denoiser), Calls(pipe.fine_denoiser)
    want = everything(pipe("the cat", generator=seeded(0), **steps))
    calls = coarse.rows.copy(), fine.rows.copy()
    assert everything(pipe("the cat", generator=seeded(0), guidance_scale=1.0, **steps)) == want
    assert (coarse.rows, fine.rows) == (calls[0] * 2, calls[1] * 2)
    assert max(coarse.rows) == max(fine.rows) == 3
    without = pipe(generator=seeded(0), **steps)
    assert everything(without) != want
    free = pipe("the cat", generator=seeded(0), guidance_scale=(0.0, 1.0), **steps)
    assert torch.equal(free.plan, without.plan)
    free = pipe(plan=[[0, 1, 2, 3]], guidance_scale=(1.0, 0.0), generator=seeded(0), **steps)
    other = pipe("a bird", plan=[[4, 4, 0, 0]], guidance_scale=0.0, generator=seeded(0), **steps)
    assert torch.equal(free.fine_codes, other.fine_codes)  # neither prompt nor plan
    assert max(coarse.rows) == max(fine.rows) == 3


def test_both_predictions_come_from_one_call_and_differ_in_what_they_are_told(pipe):
    coarse, fine = Calls(pipe.coarse_denoiser), Calls(pipe.fine_denoiser)
    output = pipe(
        ["the cat", "a bird sang"], guidance_scale=(2.0, 3.0), generator=seeded(0), **STEPS
    )
    for calls, limit in ((coarse, 3), (fine, 3)):
        assert 0 < len(calls.inputs) <= limit
        for args, kwargs in calls.inputs:
            codes, asked, mask = args[0], kwargs["positions"], kwargs["prompt_mask"]
            half = len(codes) // 2
            assert torch.equal(codes[:half], codes[half:]) and torch.equal(
                asked[:half], asked[half:]
            )
            assert asked.any(dim=1).all()  # rows without positions are left out
            assert mask[:half].any(dim=1).all() and not mask[half:].any()
    context = fine.inputs[0][1]["context_ids"]
    assert all(row in output.plan.tolist() for row in context[: len(context) // 2].tolist())
    assert (context[len(context) // 2 :] == 5).all()


# Rows


@pytest.mark.parametrize(
    "kernel", ["absorbing", slow("first_hitting"), "confidence", slow("remdm")]
)
def test_a_row_is_the_same_alone_and_in_a_batch(pipe, kernel):
    pipe.coarse_scheduler, pipe.fine_scheduler = KERNELS[kernel](5), KERNELS[kernel](7)
    plan = torch.tensor([[-1, -1, -1, -1], [0, -1, 3, 5], [-1, 2, -1, -1], [1, 2, 3, 4]])
    scales = ([1.0, 2.5, 1.0, 0.0], [3.0, 1.0, 2.0, 0.5])
    write = {"num_inference_steps": (4, 8), "temperature": 0.7, "max_new_tokens": 14}
    write |= {"text_filter": lambda text: len(text) % 3 == 0, "max_attempts": 4}
    generators = [seeded(i) for i in range(4)]
    together = pipe(PROMPTS, plan=plan, guidance_scale=scales, generator=generators, **write)
    for i, prompt in enumerate(PROMPTS):
        own_scales = (scales[0][i], scales[1][i])
        alone = pipe(
            prompt, plan=plan[i : i + 1], guidance_scale=own_scales, generator=seeded(i), **write
        )
        assert alone.texts == [together.texts[i]] and alone.accepted == [together.accepted[i]]
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.equal(alone.plan[0], together.plan[i])
        assert torch.equal(alone.fine_codes[0], together.fine_codes[i])


def test_an_empty_prompt_is_none(pipe):
    assert everything(pipe("", generator=seeded(0), **STEPS)) == everything(
        pipe(generator=seeded(0), **STEPS)
    )


def test_prompts_and_plans_pair_up(pipe):
    one = pipe("the cat", num_return_sequences=3, generator=seeded(0), **STEPS)
    assert one.plan.shape == (3, 4) and one.fine_codes.shape == (3, 8) and len(one.texts) == 3
    again = pipe("the cat", plan=one.plan, generator=seeded(0), **STEPS)
    assert everything(again) == everything(one)
    two = pipe(["the cat", "the dog"], plan=one.plan[:1], num_return_sequences=2, **STEPS)
    assert two.plan.tolist() == one.plan[:1].tolist() * 4
    assert pipe(guidance_scale=(1.0, [1.0, 2.0]), **STEPS).plan.shape == (2, 4)


# Plans


def test_a_plan_that_is_kept_needs_no_coarse_denoiser_and_the_seed_then_writes_the_same_text(pipe):
    first = pipe("the cat", generator=seeded(0), temperature=1.0, **STEPS)
    calls = Calls(pipe.coarse_denoiser)
    again = pipe("the cat", plan=first.plan, generator=seeded(0), temperature=1.0, **STEPS)
    assert not calls.inputs and everything(again) == everything(first)
    other = pipe("the cat", plan=first.plan.tolist(), generator=seeded(1), **STEPS)
    assert not calls.inputs and torch.equal(other.plan, first.plan)
    assert not torch.equal(other.fine_codes, first.fine_codes)


@pytest.mark.parametrize("kernel", mostly_slow(KERNELS, ["first_hitting", "block_refinement"]))
def test_a_plan_that_is_edited_keeps_exactly_what_is_given(pipe, kernel):
    pipe.coarse_scheduler = KERNELS[kernel](5)
    plan = torch.randint(5, (6, 4), generator=seeded(0))
    hidden = torch.rand(6, 4, generator=seeded(1)) < 0.5
    edited = torch.where(
        hidden, torch.where(torch.rand(6, 4, generator=seeded(2)) < 0.5, -1, 5), plan
    )
    before = edited.clone()
    output = pipe(plan=edited, num_inference_steps=(6, 2), generator=seeded(3))
    assert torch.equal(edited, before)
    assert torch.equal(output.plan[~hidden], plan[~hidden])
    assert (output.plan >= 0).all() and (output.plan < 5).all()
    assert not torch.equal(output.plan[hidden], plan[hidden])


def test_one_level_writes_fine_codes_only(tokenizer):
    pipe = make_two_level(tokenizer, two=False)
    arguments = {"prompt": ["the cat", "the dog"], "guidance_scale": 2.0}
    output = pipe(num_inference_steps=4, generator=seeded(0), **arguments)
    same = pipe(num_inference_steps=(9, 4), generator=seeded(0), **arguments)
    assert torch.equal(output.tokens, same.tokens)  # the steps of the fine level count
    assert (
        output.plan is None and output.fine_codes.shape == (2, 8) and output.tokens.shape == (2, 16)
    )
    assert pipe.scheduler_names == ("fine_scheduler",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"guidance_scale": 2.0},
            "At the fine level, `guidance_scale` must be 1 without a `prompt` that the fine denoiser is told",
        ),
        (
            {"guidance_scale": (1.0, 2.0)},
            r"`guidance_scale` must be a number .*: there is one level only, got \(1.0, 2.0\)",
        ),
        ({"plan": [[0, 1, 2, 3]]}, "`plan` must be None: there is one level only"),
    ],
)
def test_one_level_refuses_what_is_of_two(tokenizer, arguments, message):
    pipe = make_two_level(tokenizer, two=False)
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


# Ends of texts


@pytest.mark.parametrize(
    "max_new_tokens, length", [(1, 4), (3, 4), (5, 8), (8, 8), (9, 16), (15, 16), (None, 16)]
)
def test_limits_are_exact_where_rows_are_longer(pipe, max_new_tokens, length):
    whole = pipe(plan=[[1, 2, 3, 4][: length // 4]], fine_codes="one_shot")
    output = pipe(plan=whole.plan, max_new_tokens=max_new_tokens, fine_codes="one_shot")
    assert output.fine_codes.shape == (1, length // 2)
    assert torch.equal(output.tokens, whole.tokens[:, :max_new_tokens])
    assert pipe(max_new_tokens=max_new_tokens, **STEPS).tokens.shape == (1, max_new_tokens or 16)


def test_a_text_ends_at_its_first_eos(pipe, tokenizer):
    end, pad, words = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        tokenizer("the cat sat" * 4)["input_ids"],
    )
    rows = torch.tensor([[*words[:3], end, *words[:4]], [end, *words[:6], end], words[:8]])
    logits = torch.nn.functional.one_hot(rows, len(tokenizer)).float()
    logits[..., never_written(tokenizer)] = 2.0  # the mask and padding are not written
    pipe.autoencoder.decode = lambda fine, coarse: logits
    output = pipe(num_return_sequences=3, max_new_tokens=8, **STEPS)
    want = [[*words[:3], end, *[pad] * 4], [end, *[pad] * 7], words[:8]]
    assert output.tokens.tolist() == want
    assert output.texts == [tokenizer.decode(words[:3]), "", tokenizer.decode(words[:8])]


@pytest.mark.parametrize("begins", [False, True])
def test_texts_are_returned_with_the_prompt_they_continue(tokenizer, begins):
    pipe = make_two_level(tokenizer, prompt_begins_text=begins)
    seen = []
    output = pipe(
        "the cat", text_filter=lambda text: seen.append(text) or True, generator=seeded(0), **STEPS
    )
    written = tokenizer.decode(output.tokens[0], skip_special_tokens=True)
    ids = tokenizer("the cat")["input_ids"]
    whole = tokenizer.decode([*ids, *output.tokens[0].tolist()], skip_special_tokens=True)
    assert output.texts == seen == [whole if begins else written]
    assert output.texts[0].startswith("the cat") == begins


def test_the_last_tokens_of_a_long_beginning_are_read(tokenizer):
    pipe = make_two_level(tokenizer, prompt_begins_text=True)
    text = " ".join(["she was late for the train and ran"] * 2)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > 8
    calls = Calls(pipe.prompt_encoder)
    output = pipe(text, generator=seeded(0), **STEPS)
    assert calls.inputs[0][1]["input_ids"].tolist() == [ids[-8:]]
    assert output.texts[0].startswith(text)
    pipe.register_to_config(prompt_begins_text=False)
    with pytest.raises(
        ValueError, match=f"`prompt` must fit into the prompt encoder's 8 tokens, got {len(ids)}"
    ):
        pipe(text)


def test_an_encoder_without_a_limit_reads_prompts_of_any_length(pipe, tokenizer):
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "d_ff": 16}
    encoder = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    other = TwoLevelVQDiffusionPipeline(**pipe.components | {"prompt_encoder": encoder})
    other.set_progress_bar_config(disable=True)
    calls, text = Calls(encoder), " ".join(["cat"] * 60)
    assert other([text, "the cat"], **STEPS).plan.shape == (2, 4)
    read = calls.inputs[0][1]["attention_mask"].sum(dim=1).tolist()
    assert read == [len(tokenizer(prompt)["input_ids"]) for prompt in (text, "the cat")]


# Filters


def test_a_filter_has_refused_texts_written_again_and_leaves_the_others(pipe):
    write = {"num_return_sequences": 6, "generator": None} | STEPS
    plain = pipe(**write | {"generator": seeded(0)})
    asked, rows = [], Calls(pipe.coarse_denoiser)
    fine = set(plain.texts[::2])

    def text_filter(text):
        asked.append(text)
        return text in fine

    output = pipe(**write | {"generator": seeded(0)}, text_filter=text_filter, max_attempts=3)
    assert asked[:6] == plain.texts
    kept = [i for i, text in enumerate(plain.texts) if text in fine]
    assert 0 < len(kept) < 6
    for i in kept:
        assert output.texts[i] == plain.texts[i] and output.accepted[i]
        assert torch.equal(output.tokens[i], plain.tokens[i]) and torch.equal(
            output.plan[i], plain.plan[i]
        )
        assert torch.equal(output.fine_codes[i], plain.fine_codes[i])
    refused = [i for i in range(6) if i not in kept]
    assert any(not torch.equal(output.plan[i], plain.plan[i]) for i in refused)
    assert max(rows.rows[-2:]) <= len(refused)
    assert output.accepted == [text in fine for text in output.texts]


def test_a_filter_that_refuses_everything_is_asked_as_often_as_told(pipe):
    asked = []
    output = pipe(
        text_filter=lambda text: asked.append(text),
        max_attempts=4,
        generator=seeded(0),
        output_type="tokens",
        **STEPS,
    )
    assert (
        len(asked) == 4
        and len(set(asked)) > 1
        and output.accepted == [False]
        and output.texts is None
    )
    assert pipe(**STEPS).accepted == [True]


# Steps and callbacks


def test_callbacks_see_and_change_the_codes_of_each_level(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((pipe.level, step, timestep, tuple(tensors["codes"].shape)))
        if pipe.level == "coarse" and step == 2:
            return {"codes": torch.full_like(tensors["codes"], 3)}

    output = pipe(num_inference_steps=(3, 2), callback_on_step_end=callback, generator=seeded(0))
    steps = [("coarse", i, pytest.approx(1 - i / 3), (1, 4)) for i in range(3)]
    assert seen == steps + [("fine", i, pytest.approx(1 - i / 2), (1, 8)) for i in range(2)]
    assert (output.plan == 3).all() and pipe.num_timesteps == 5
    with pytest.raises(
        ValueError, match="`coarse_scheduler` or the callback must leave coarse codes only"
    ):
        pipe(
            callback_on_step_end=lambda pipe, step, timestep, tensors: {
                "codes": torch.full_like(tensors["codes"], 5)
            }
        )
    with pytest.raises(
        ValueError,
        match=r"`callback_on_step_end` must return coarse codes of \(1, 4\), got \(1, 3\)",
    ):
        pipe(
            callback_on_step_end=lambda pipe, step, timestep, tensors: {
                "codes": tensors["codes"][:, 1:]
            }
        )


@pytest.mark.parametrize("begins", [False, True])
def test_a_stream_has_a_frame_a_step_and_shows_finished_texts_only(tokenizer, begins):
    pipe = make_two_level(tokenizer, prompt_begins_text=begins)
    prompts = ["the cat", "a bird sang"]
    write = {"num_inference_steps": (2, 3), "temperature": 1.0}
    plain = pipe(prompts, generator=seeded(0), **write)
    frames = list(pipe.stream(prompts, generator=seeded(0), **write))
    assert frames == [prompts if begins else ["", ""]] * 5 + [plain.texts]

    # What a filter refused is not shown, what it let pass stays.
    def text_filter(text):
        return text != plain.texts[0]

    again = pipe(prompts, text_filter=text_filter, generator=seeded(0), **write)
    frames = list(pipe.stream(prompts, text_filter=text_filter, generator=seeded(0), **write))
    assert plain.texts[0] not in {frame[0] for frame in frames}
    assert frames[5:-1] == [["the cat" if begins else "", plain.texts[1]]] * 5
    assert frames[-1] == again.texts and again.accepted == [True, True]


def test_a_stream_without_steps_has_its_texts_at_once(tokenizer):
    pipe = make_two_level(tokenizer, two=False)
    frames = list(pipe.stream("the cat", fine_codes="one_shot"))
    assert frames == [pipe("the cat", fine_codes="one_shot").texts] and pipe.num_timesteps == 0


def test_adapters_need_a_denoiser_of_that_name(pipe):
    for adapt in (pipe.load_lora_weights, pipe.set_adapters):
        with pytest.raises(
            ValueError, match="`denoiser` must be a component .*VQDiffusionPipeline has none"
        ):
            adapt("folder")


def test_what_others_ask_of_a_pipeline(pipe):
    assert pipe.kind == "codes" and pipe.label_names == [] and pipe.block_length is None
    assert pipe.scheduler_names == ("coarse_scheduler", "fine_scheduler")
    assert {"prompt", "plan"} <= set(pipe.accepted_inputs)
    assert pipe.max_length == 16 and pipe(**STEPS).tokens.shape == (1, 16)
    assert {name: level.longest_row for name, level in pipe.levels.items()} == {
        "coarse": 16,
        "fine": 16,
    }


def test_output_types_and_tuples(pipe):
    output = pipe(generator=seeded(0), output_type="tokens", **STEPS)
    texts, tokens, plan, fine, accepted = pipe(generator=seeded(0), return_dict=False, **STEPS)
    assert output.texts is None and len(texts) == 1 and accepted == [True]
    assert (
        torch.equal(output.tokens, tokens)
        and torch.equal(output.plan, plan)
        and torch.equal(output.fine_codes, fine)
    )
    assert tokens.dtype == plan.dtype == fine.dtype == torch.long


def test_a_denoiser_of_tokens_can_write_codes(pipe, tokenizer):
    """Any denoiser fits that has as many ids and is told nothing."""
    model = make_denoiser(tokenizer, vocab_size=6, max_length=4, mask_token_id=5, pad_token_id=None)
    parts = pipe.components | {"coarse_denoiser": model}
    other = TwoLevelVQDiffusionPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    output = other("the cat", generator=seeded(0), **STEPS)
    assert output.plan.shape == (1, 4)
    with pytest.raises(
        ValueError, match="`guidance_scale` must be 1 without a `prompt` that the coarse"
    ):
        other("the cat", guidance_scale=(2.0, 1.0))


# Saving


def test_a_saved_pipeline_keeps_its_setting_and_its_schedulers(tokenizer, tmp_path):
    pipe = make_two_level(tokenizer, prompt_begins_text=True)
    pipe.fine_scheduler = ConfidenceScheduler.from_config(
        pipe.fine_scheduler.config, order="margin"
    )
    pipe.save_pretrained(tmp_path)
    loaded = TwoLevelVQDiffusionPipeline.from_pretrained(tmp_path)
    assert loaded.config.prompt_begins_text
    assert isinstance(loaded.fine_scheduler, ConfidenceScheduler)
    assert isinstance(loaded.coarse_scheduler, D3PMAbsorbingScheduler)


def test_text_pipelines_are_still_loaded_as_what_they_are(tokenizer, tmp_path):
    plain = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    plain.save_pretrained(tmp_path)
    assert type(TextDiffusionPipeline.from_pretrained(tmp_path)) is TextDiffusionPipeline
    with pytest.raises(ValueError, match="expected"):
        TwoLevelVQDiffusionPipeline.from_pretrained(tmp_path)


@pytest.mark.slow
def test_stock_diffusers_finds_the_pipeline_in_its_one_file(tokenizer, tmp_path, monkeypatch):
    """It takes the one class of a file that is a `DiffusionPipeline`, and refuses a file with several."""
    monkeypatch.setattr(
        "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", sys.path.copy())
    kernel = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipes = [
        make_two_level(tokenizer),
        TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), kernel),
    ]
    arguments = {"max_new_tokens": 8, "output_type": "tokens"}
    for pipe in pipes:
        module = type(pipe).__module__
        name = module.rpartition(".")[2]
        file = tmp_path / name / f"{name}.py"
        pipe.save_pretrained(file.parent)
        file.write_text(standalone_source(module), encoding="utf-8")
        loaded = DiffusionPipeline.from_pretrained(
            file.parent, custom_pipeline=str(file), trust_remote_code=True
        )
        assert type(loaded).__name__ == type(pipe).__name__ and type(loaded) is not type(pipe)
        again = loaded(generator=seeded(0), **arguments).tokens
        assert torch.equal(again, pipe(generator=seeded(0), **arguments).tokens)


def test_sequential_offloading_writes_the_same(pipe):
    """As `enable_sequential_cpu_offload` does it, which needs an accelerator."""
    want = everything(pipe("the cat", generator=seeded(0), **STEPS))
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and name not in pipe._exclude_from_cpu_offload:
            cpu_offload(part, torch.device("cpu"))
    assert everything(pipe("the cat", generator=seeded(0), **STEPS)) == want


# Errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"plan": [1, 2, 3, 4]},
            r"`plan` must be \(texts, codes\) integers, .* got \[1, 2, 3, 4\]",
        ),
        ({"plan": [[0.5] * 4]}, "`plan` must be .* integers, .*got"),
        ({"plan": [[]]}, "`plan` must be .* integers, .*got"),
        ({"plan": [[0, 1, 2, 3], [0]]}, "`plan` must be .* integers, as many codes a text, got"),
        ({"plan": "0123"}, "`plan` must be .* integers, as many codes a text, got '0123'"),
        (
            {"plan": [[0, 1, 2, 6]]},
            "`plan` must hold codes from 0 to 4, or -1 or 5 where .* got 0 to 6",
        ),
        ({"plan": [[0, -2, 2, 3]]}, "`plan` must hold codes .* got -2 to 3"),
        (
            {"plan": [[0, 1, 2]]},
            "`plan` must stand for whole rows of the autoencoder, of at most 16 tokens, got 3",
        ),
        ({"plan": [[0] * 6]}, "`plan` must stand for whole rows"),
        (
            {"plan": [[0, 1, 2, 3]], "max_new_tokens": 7},
            "`plan` must have 2 codes a text for `max_new_tokens`=7, got 4",
        ),
        (
            {"prompt": PROMPTS, "plan": [[0, 1, 2, 3]] * 3},
            "`plan` must be one or 4, one a text, got 3",
        ),
        (
            {"guidance_scale": 2.0},
            "At the coarse level, `guidance_scale` must be 1 without a `prompt`",
        ),
        (
            {"prompt": PROMPTS, "guidance_scale": (1.0, [1.0, 2.0])},
            "At the fine level, `guidance_scale` must be one or 4, one a text, got 2",
        ),
        (
            {"prompt": "the cat", "guidance_scale": (float("nan"), 1.0)},
            "At the coarse level, `guidance_scale` must be finite numbers, got nan",
        ),
        (
            {"guidance_scale": (1.0, 1.0, 2.0)},
            r"`guidance_scale` must be one value for both levels or a pair \(coarse, fine\), got",
        ),
        (
            {"prompt": " ".join(["cat"] * 30)},
            "`prompt` must fit into the prompt encoder's 8 tokens, got ",
        ),
        ({"prompt": 3}, "`prompt` must be a string or a list of strings, got 3"),
        ({"prompt": []}, "`prompt` must be a string or a list"),
        ({"prompt": "the [MASK]"}, r"`prompt` must not hold \[MASK\]"),
        (
            {"max_new_tokens": 17},
            "`max_new_tokens` must be at most 16, what the denoisers can write, got 17",
        ),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be None or an integer of at least 1, got 0"),
        (
            {"num_inference_steps": (0, 8)},
            "At the coarse level, `num_inference_steps` must be an integer of at least 1, got 0",
        ),
        (
            {"num_inference_steps": (8, True)},
            "At the fine level, `num_inference_steps` must be an integer of at least 1, got True",
        ),
        (
            {"num_inference_steps": (32,)},
            r"`num_inference_steps` must be one value for both levels or a pair \(coarse, fine\), got \(32,\)",
        ),
        (
            {"num_inference_steps": [32, 8]},
            r"`num_inference_steps` must be an integer .*, got \[32, 8\]",
        ),
        ({"num_return_sequences": 1.5}, "`num_return_sequences` must be an integer"),
        ({"max_attempts": 0}, "`max_attempts` must be an integer of at least 1, got 0"),
        ({"fine_codes": "greedy"}, "`fine_codes` must be one of diffusion, one_shot, got 'greedy'"),
        ({"temperature": -1.0}, "`temperature` must be a number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, "`temperature` must be a number"),
        (
            {"temperature": 1.0, "top_p": 0.0},
            r"`top_p` must be None or a number in \(0, 1\], got 0.0",
        ),
        ({"top_p": 1.5}, "`top_p` must be None or a number"),
        ({"text_filter": "no"}, "`text_filter` must be a function of a text, got 'no'"),
        ({"generator": [None, None]}, "`generator` must be one or 1, one a returned text, got 2"),
        ({"output_type": "latent"}, '`output_type` must be "text" or "tokens", got'),
        (
            {"callback_on_step_end_tensor_inputs": ["tokens"]},
            "must be among .'codes'., got .'tokens'.",
        ),
    ],
)
def test_bad_requests_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_a_pipeline_without_an_encoder_takes_no_prompt(tokenizer):
    with pytest.raises(
        ValueError, match="`prompt` must be None or empty: this pipeline has no `prompt_encoder`"
    ):
        make_two_level(tokenizer, prompts=None)("the cat")


def test_empty_prompts_are_none(tokenizer):
    """So that texts that depend on their own seeds can be written in a batch."""
    pipe = make_two_level(tokenizer, prompts=None)

    def write(**arguments):
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        return pipe(generator=generators, num_inference_steps=2, **arguments).texts

    assert write(prompt=["", ""]) == write(num_return_sequences=2)


def test_more_steps_than_were_trained_are_refused_by_the_name_of_the_level(pipe):
    pipe.fine_scheduler = D3PMAbsorbingScheduler(7, num_train_timesteps=4)
    message = (
        "At the fine level, `num_inference_steps` must be between 1 and `num_train_timesteps`=4"
    )
    with pytest.raises(ValueError, match=f"{message}, got 5"):
        pipe(num_inference_steps=(2, 5))


@pytest.mark.parametrize("name", ["coarse_denoiser", "fine_denoiser", "autoencoder"])
@pytest.mark.parametrize("fine_codes", ["diffusion", "one_shot"])
def test_predictions_that_are_not_finite_are_refused(pipe, name, fine_codes):
    for parameter in getattr(pipe, name).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinite"):
        pipe(fine_codes=fine_codes, **STEPS)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"coarse_denoiser": None},
            "`coarse_denoiser` must be given: the autoencoder has two levels",
        ),
        ({"coarse_scheduler": None}, "`coarse_scheduler` must be given"),
        (
            {"fine_scheduler": D3PMUniformScheduler(7)},
            "`fine_scheduler` must be a token scheduler of absorbing noise",
        ),
        (
            {"coarse_scheduler": DiscreteDDIMScheduler()},
            "`coarse_scheduler` must be a token scheduler of absorbing",
        ),
        (
            {"fine_scheduler": D3PMAbsorbingScheduler(6)},
            "`fine_scheduler` must have `mask_token_id`=7, .* got 6",
        ),
        (
            {"coarse_scheduler": D3PMAbsorbingScheduler(7)},
            "`coarse_scheduler` must have `mask_token_id`=5",
        ),
    ],
)
def test_components_that_disagree_are_refused(pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        TwoLevelVQDiffusionPipeline(**pipe.components | changes)
    for name, part in changes.items():
        setattr(pipe, name, part)
    with pytest.raises(ValueError, match=message):
        pipe(**STEPS)


def test_models_of_other_sizes_are_refused(tokenizer, pipe):
    others = {
        "codes": make_two_level(tokenizer, num_codes=(4, 8)),
        "one level": make_two_level(tokenizer, two=False),
        "prompts": make_two_level(tokenizer, prompts=None),
    }
    cases = [
        (
            "codes",
            "coarse_denoiser",
            "`coarse_denoiser` must have `vocab_size`=6, the 5 coarse codes .* got 5",
        ),
        (
            "codes",
            "fine_denoiser",
            "`fine_denoiser` must have `vocab_size`=8, the 7 fine codes .* got 9",
        ),
        ("codes", "autoencoder", "`coarse_denoiser` must have `vocab_size`=5"),
        (
            "one level",
            "autoencoder",
            "`coarse_denoiser` must be None: the autoencoder has one level",
        ),
        ("one level", "fine_denoiser", "`fine_denoiser` must have `num_context_codes`=5, got None"),
    ]
    for kind, name, message in cases:
        with pytest.raises(ValueError, match=message):
            TwoLevelVQDiffusionPipeline(**pipe.components | {name: others[kind].components[name]})
    short = CodeTransformerModel(**pipe.fine_denoiser.config | {"max_length": 1})
    with pytest.raises(
        ValueError, match="`autoencoder` needs rows of 4 tokens, but the denoisers' .* allows 2"
    ):
        TwoLevelVQDiffusionPipeline(**pipe.components | {"fine_denoiser": short})
    told_nothing = others["prompts"].components | {"prompt_encoder": pipe.prompt_encoder}
    with pytest.raises(
        ValueError, match="`prompt_encoder` has `hidden_size`=16, .* got none that does"
    ):
        TwoLevelVQDiffusionPipeline(**told_nothing)
