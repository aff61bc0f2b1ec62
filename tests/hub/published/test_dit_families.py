"""MDLM, BD3-LM, SEDD, Duo, UDLM and GIDD as a `TextTransformerModel` and its schedulers: their authors' numbers.

The numbers are of their code at random weights; see the folders in `golden/published`. At their time t a token is
still itself with probability 1 - 0.999 t, but for GIDD; our linear schedule has the same at 0.999 t.

Shapes: B batch, L length, V vocabulary size.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow
from safetensors.torch import load_file, save_file

from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
from text_diffusers.hub.published import bd3lm, duo, gidd, mdlm, sedd, udlm
from text_diffusers.hub.published.checkpoint import check_weights, load_weights, stored_tensors
from text_diffusers.pipelines.guidance import ReverseStep, guided_log_reverse

FOLDER = Path(__file__).parents[2] / "golden/published"
READERS = {
    "mdlm": mdlm.read,
    "bd3lm": bd3lm.read,
    "sedd": sedd.read,
    "duo": duo.read,
    "udlm": udlm.read,
    "gidd": gidd.read,
}
FAMILIES = list(READERS)

# Probability that a token is still itself at time 1 of their linear noise.
LEFT = 1e-3

# Keys that the network or its noise depends on.
SIZES = ("vocab_size", "hidden_dim", "cond_dim", "n_blocks", "n_heads", "model_length")
NEEDED = {
    "mdlm": (*SIZES, "time_conditioning"),
    "bd3lm": (*SIZES, "adaln", "block_size"),
    "sedd": ("tokens", "graph.type", "noise.type", "model.type", "model.scale_by_sigma")
    + tuple(f"model.{key}" for key in ("hidden_size", "cond_dim", "n_blocks", "n_heads", "length")),
    "duo": SIZES,
    "udlm": (*SIZES, "cfg", "cfg_num_classes"),
    "gidd": ("hidden_size", "timestep_cond_dim", "num_hidden_layers", "num_attention_heads")
    + ("max_seq_len", "p_uniform"),
}


def config_of(family, **changes):
    return json.loads((FOLDER / family / "config.json").read_text()) | changes


def golden_of(family):
    return json.loads((FOLDER / family / "golden.json").read_text())


def load(family, folder=None, **changes):
    """The blueprint and the model of a folder, with changes to its configuration."""
    stored = stored_tensors(folder or FOLDER / family)
    blueprint = READERS[family](config_of(family, **changes), stored, family)
    return blueprint, load_weights(blueprint, stored)


def times_of(case):
    """() or (B,) times of a case, None if the network sees none."""
    times = case["inputs"].get("timesteps_t")
    if times is None:
        return None
    return torch.tensor(times[0] if len(times) == 1 else times)


def expected(case, name):
    """An expected output in float64."""
    return torch.tensor(case[name], dtype=torch.float64).view(case[f"{name}_shape"])


@torch.no_grad()
def predict(model, case):
    """The logits that a case asks for."""
    tokens = torch.tensor(case["inputs"]["input_ids"])
    mode = case.get("mode")
    if mode == "train":
        noisy, clean = tokens.chunk(2, dim=1)
        return model(noisy, clean_ids=clean).logits

    if mode == "cache":
        cache = model.new_cache()
        *finished, current = tokens.split(model.config.block_length, dim=1)
        for block in finished:
            model(block, cache=cache)
            cache.length += block.shape[1]
        return model(current, cache=cache).logits

    labels = case["inputs"].get("class_labels")
    labels = None if labels is None else torch.tensor(labels)
    return model(tokens, times_of(case), class_labels=labels).logits


def log_score(logits, case):
    """What the network of SEDD returns, of its raw output (B, L, V): log-ratios, 0 for the token that is there."""
    sigma = -torch.log1p(-(1 - LEFT) * times_of(case).double()).view(-1, 1, 1)
    scores = (
        logits - torch.log(torch.expm1(sigma)) - torch.log(torch.tensor(logits.shape[-1] - 1.0))
    )
    tokens = torch.tensor(case["inputs"]["input_ids"]).unsqueeze(-1)
    return scores.scatter(-1, tokens, 0.0)


def cases():
    return [
        pytest.param(family, number, id=f"{family}: {case['name']}")
        for family in FAMILIES
        for number, case in enumerate(golden_of(family)["forward"])
    ]


@pytest.fixture(scope="module")
def models():
    return {family: load(family)[1] for family in FAMILIES}


@pytest.mark.parametrize("family, number", cases())
def test_logits_are_those_of_the_authors_code(models, family, number):
    golden = golden_of(family)
    case = golden["forward"][number]
    logits = predict(models[family], case).double()
    name = "logits"
    if family == "sedd":
        logits = log_score(logits, case)
        name = "log_score"
    torch.testing.assert_close(logits, expected(case, name), **golden["tolerance"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_is_one_of_ours_on_disk(models, family, tmp_path):
    models[family].save_pretrained(tmp_path)
    loaded = TextTransformerModel.from_pretrained(tmp_path)
    for name, weight in models[family].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)
    for case in golden_of(family)["forward"]:
        # The same weights at another place of the memory may be multiplied in another order.
        torch.testing.assert_close(predict(loaded, case), predict(models[family], case))


@pytest.mark.parametrize("family", ["mdlm", "gidd"])
def test_weights_are_made_in_the_type_in_which_they_are_stored(family):
    """A fused weight of halves is the one of their float32 values, rounded once."""
    tensors = load_file(FOLDER / family / "model.safetensors")
    stored = stored_tensors(FOLDER / family)
    blueprint = READERS[family](config_of(family), stored, family)
    for weight in blueprint.weights.values():
        halves = [tensors[name].bfloat16() for name in weight.names]
        made = weight.make(*halves)
        assert made.dtype == torch.bfloat16
        exact = weight.make(*[half.float() for half in halves])
        assert torch.equal(made, exact.bfloat16())
        on_meta = weight.make(*[half.to("meta") for half in halves])
        assert (on_meta.shape, on_meta.dtype) == (made.shape, made.dtype)


def test_a_block_model_without_modulation_is_one_whose_modulation_does_nothing(tmp_path):
    tensors = load_file(FOLDER / "bd3lm/model.safetensors")
    plain = {name: tensor for name, tensor in tensors.items() if "adaLN" not in name}
    plain = {name: tensor for name, tensor in plain.items() if "sigma_map" not in name}
    for name, tensor in tensors.items():
        if "adaLN" in name:
            tensor.zero_()
        # Shift, scale and gate, twice: gates of 1.
        if "adaLN" in name and "blocks" in name and name.endswith("bias"):
            tensor.view(6, -1)[[2, 5]] = 1.0

    for folder, values in (("plain", plain), ("idle", tensors)):
        (tmp_path / folder).mkdir()
        save_file(values, tmp_path / folder / "model.safetensors")
    _, without = load("bd3lm", tmp_path / "plain", adaln=False)
    _, idle = load("bd3lm", tmp_path / "idle")
    for case in golden_of("bd3lm")["forward"]:
        torch.testing.assert_close(predict(without, case), predict(idle, case))


def test_masked_diffusion_that_sees_the_time_is_the_network_of_duo():
    _, timed = load("mdlm", FOLDER / "duo", **sizes_of_duo(), time_conditioning=True)
    golden = golden_of("duo")
    for case in golden["forward"]:
        logits = predict(timed, case).double()
        torch.testing.assert_close(logits, expected(case, "logits"), **golden["tolerance"])


def sizes_of_duo():
    return {
        key: config_of("duo")[key]
        for key in ("vocab_size", "hidden_dim", "cond_dim", "model_length")
    }


# Steps


def reverse(blueprint, case, row, logits, last=False):
    """(1, L, S) p(x_s | x_t) of one row of a case, of its logits (1, L, V); the last step ends at time 0."""
    start = case["inputs"]["timesteps_t"][row]
    end = start - case.get("dt", case.get("step_size"))
    times = [start] if last else [start, end]
    scheduler = blueprint.scheduler(blueprint.mask_token_id)
    scheduler.set_timesteps(timesteps=[(1 - LEFT) * time for time in times])
    tokens = torch.tensor(case["inputs"]["input_ids"])[row : row + 1]
    return scheduler.reverse_probs(logits, scheduler.timesteps[0], tokens)


def test_masked_steps_are_those_of_the_authors_sampler():
    """Of tokens that are no masks they copy the token, whatever the weights of the step are."""
    blueprint, _ = load("mdlm")
    for case in golden_of("mdlm")["forward"]:
        logits = expected(case, "logits")
        weights = expected(case, "q_xs")
        for row, tokens in enumerate(torch.tensor(case["inputs"]["input_ids"])):
            probs = reverse(blueprint, case, row, logits[row : row + 1])[0]
            masked = tokens == blueprint.mask_token_id
            want = weights[row] / weights[row].sum(dim=-1, keepdim=True)
            torch.testing.assert_close(probs[masked], want[masked], atol=1e-6, rtol=3e-5)
            assert (probs[~masked].gather(-1, tokens[~masked].unsqueeze(-1)) == 1).all()


@pytest.mark.parametrize("last", [False, True])
def test_scores_say_what_a_mask_is_revealed_as(models, last):
    """How often a mask is revealed is known; the network of SEDD estimates that as well, and is not asked here."""
    blueprint, _ = load("sedd")
    mask = blueprint.mask_token_id
    for case in golden_of("sedd")["forward"]:
        logits = predict(models["sedd"], case).double()
        weights = expected(case, "denoise_probs" if last else "analytic_probs")[..., :mask]
        for row, tokens in enumerate(torch.tensor(case["inputs"]["input_ids"])):
            probs = reverse(blueprint, case, row, logits[row : row + 1], last)[0]
            revealed = probs[..., :mask] / probs[..., :mask].sum(dim=-1, keepdim=True)
            want = weights[row] / weights[row].sum(dim=-1, keepdim=True)
            torch.testing.assert_close(revealed, want, atol=1e-6, rtol=1e-4)

            # The mask stays with the chance that the noise itself has.
            start = (1 - LEFT) * case["inputs"]["timesteps_t"][row]
            stays = 0.0 if last else 1 - (1 - LEFT) * case["step_size"] / start
            kept = probs[tokens == mask, mask]
            torch.testing.assert_close(kept, torch.full_like(kept, stays), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["duo", "udlm"])
def test_uniform_steps_are_those_of_the_authors_sampler(family):
    blueprint, _ = load(family)
    for case in golden_of(family)["forward"]:
        logits = expected(case, "logits")
        for name in {"q_xs", "q_denoise"} & case.keys():
            weights = expected(case, name)
            weights = weights / weights.sum(dim=-1, keepdim=True)
            for row in range(len(logits)):
                last = name == "q_denoise"
                probs = reverse(blueprint, case, row, logits[row : row + 1], last)[0]
                torch.testing.assert_close(probs, weights[row], atol=1e-6, rtol=3e-5)


def test_guided_steps_are_those_of_the_authors_sampler(models):
    blueprint, _ = load("udlm")
    case = next(case for case in golden_of("udlm")["forward"] if "q_xs_guided" in case)
    tokens = torch.tensor(case["inputs"]["input_ids"])
    with torch.no_grad():
        # The last class is "no class".
        labels = torch.full((len(tokens),), models["udlm"].config.num_classes)
        without = models["udlm"](tokens, times_of(case), class_labels=labels).logits.double()

    for row, start in enumerate(case["inputs"]["timesteps_t"]):
        scheduler = blueprint.scheduler(None)
        scheduler.set_timesteps(timesteps=[(1 - LEFT) * start, (1 - LEFT) * (start - case["dt"])])
        scale = torch.full((tokens.shape[1],), case["gamma"], dtype=torch.float64)
        step = ReverseStep(scheduler, float(scheduler.timesteps[0]), tokens[row], scale)
        weights = guided_log_reverse(step, expected(case, "logits")[row], without[row])
        want = expected(case, "q_xs_guided")[row]
        torch.testing.assert_close(weights.softmax(dim=-1), want, atol=1e-6, rtol=1e-4)


def test_steps_of_masks_and_random_tokens_are_those_of_the_authors_sampler():
    blueprint, _ = load("gidd")
    for case in golden_of("gidd")["forward"]:
        mask = case["logits_shape"][-1] - 1
        scheduler = blueprint.scheduler(mask)
        # Their times are finer than ours.
        finer = type(scheduler).from_config(scheduler.config, num_train_timesteps=10_000)
        finer.set_timesteps(timesteps=[case["inputs"]["timesteps_t"][0], case["s"][0]])
        tokens = torch.tensor(case["inputs"]["input_ids"])
        probs = finer.reverse_probs(expected(case, "logits"), finer.timesteps[0], tokens)
        weights = expected(case, "q_st")
        weights = weights / weights.sum(dim=-1, keepdim=True)
        torch.testing.assert_close(probs.double(), weights, atol=1e-6, rtol=3e-5)


def test_noise_without_random_tokens_is_absorbing():
    stored = stored_tensors(FOLDER / "gidd")
    blueprint = gidd.read(config_of("gidd", p_uniform=0.0), stored, "gidd")
    assert type(blueprint.scheduler(79)) is D3PMAbsorbingScheduler
    with pytest.raises(ValueError, match="`mask_token_id` must be an integer"):
        blueprint.scheduler(None)


# What is refused


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_of_one_family(family):
    stored = stored_tensors(FOLDER / family)
    config = config_of(family)
    readers = [name for name, read in READERS.items() if read(config, stored, "x") is not None]
    assert readers == [family]


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("mdlm", {"alibi": True}, "not understood here.*alibi"),
        ("mdlm", {"n_heads": 4.0}, "`n_heads` must be an integer of at least 1"),
        ("mdlm", {"time_conditioning": None}, "`time_conditioning` must be true or false"),
        ("bd3lm", {"cross_attn": False}, "`cross_attn` must be True"),
        ("bd3lm", {"causal": True}, "`causal` must be False"),
        ("bd3lm", {"time_conditioning": True}, "`time_conditioning` must be False"),
        ("bd3lm", {"block_size": 0}, "`block_size` must be an integer of at least 1"),
        ("duo", {"causal": True}, "`causal` must be False"),
        ("udlm", {"time_conditioning": False}, "`time_conditioning` must be True"),
        ("udlm", {"cfg_num_classes": -1}, "`cfg_num_classes` must be an integer of at least 1"),
        ("sedd", {"graph": {"type": "uniform"}}, "`type` must be 'absorb' .* SEDD \\(graph\\)"),
        ("sedd", {"noise": {"type": "geometric"}}, "`type` must be 'loglinear'"),
        ("sedd", {"noise": {}}, "must have `type`, but lacks it"),
        ("sedd", {"model": 3}, "`model` must be an object"),
        ("gidd", {"p_uniform": 1.0}, "`p_uniform` must be a number in \\[0, 1\\)"),
        ("gidd", {"hidden_act": "relu"}, "not understood here.*hidden_act"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(family, changes, message):
    stored = stored_tensors(FOLDER / family)
    with pytest.raises(ValueError, match=message):
        READERS[family](config_of(family, **changes), stored, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_the_network_depends_on_is_needed(family):
    stored = stored_tensors(FOLDER / family)
    for path in NEEDED[family]:
        config = config_of(family)
        group, _, key = path.rpartition(".")
        del (config[group] if group else config)[key]
        with pytest.raises(ValueError, match=f"`{key}`"):
            READERS[family](config, stored, family)


@pytest.mark.parametrize("family", mostly_slow(FAMILIES, fast=["mdlm", "sedd"]))
def test_tensors_that_are_missing_too_many_or_of_another_shape_are_refused(family):
    stored = stored_tensors(FOLDER / family)
    config = config_of(family)

    def refused(tensors, message):
        with pytest.raises(ValueError, match=message):
            check_weights(READERS[family](config, tensors, family), tensors)

    refused(stored | {"more.weight": stored[next(iter(stored))]}, "more.weight")
    for name, tensor in stored.items():
        # Tables need not be there, and blocks are alike.
        if any(part in name for part in ("rotary", "sampling_eps", "blocks.1")):
            continue
        refused({key: other for key, other in stored.items() if key != name}, name)
        # One row could be stretched to the others. The rows of GIDD's embedding are its vocabulary.
        if family != "gidd" or name != gidd.EMBEDDING:
            refused(stored | {name: replace(tensor, shape=(1, *tensor.shape[1:]))}, name)
