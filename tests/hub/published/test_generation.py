"""A published checkpoint, loaded as a pipeline, writes what its authors' sampler writes, token for token."""

import json

import pytest
from support.published_checkpoints import GOLDEN, golden_numbers, numbered_tokenizer

from text_diffusers import ConfidenceScheduler
from text_diffusers.hub import load_published_pipeline

# Their names of what ours has as `order`.
DREAM_ORDERS = {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}
SDAR_ORDERS = {"sequential": "left_to_right", "low_confidence_dynamic": "confidence"}


def first_of(options, *names):
    return next((options[name] for name in names if name in options), None)


def cases(family):
    """The runs of a family: each with its prompts, without padding, and the id of the mask."""
    for case in golden_numbers(family)["generation"]:
        options = case["options"]
        masks = case.get("attention_mask") or [[1] * len(row) for row in case["prompt_ids"]]
        prompts = [
            [token for token, real in zip(row, mask, strict=True) if real]
            for row, mask in zip(case["prompt_ids"], masks, strict=True)
        ]
        mask_id = first_of(options, "mask_id", "mask_token_id") or 90
        # Editing is diffusers' own, see the tests of the scheduler.
        if "editing_threshold" not in options or options["editing_threshold"] > 1:
            yield case, prompts, mask_id


def arguments_of(family, case, prompts):
    """The call of the pipeline that is the run of their sampler."""
    options = case["options"]
    num_new = first_of(options, "gen_length", "max_new_tokens")
    block_length = first_of(options, "block_length", "block_size")
    steps = first_of(options, "steps", "denoising_steps")
    if family in ("sdar", "llada2"):
        # They fill the last block up; LLaDA2 cuts the result.
        num_new += -(len(prompts[0]) + num_new) % block_length
        return {"max_new_tokens": num_new, "num_inference_steps": steps or block_length}
    if case.get("sampler") == "bd3lm":
        return {"max_new_tokens": num_new, "num_inference_steps": steps * block_length // num_new}

    arguments = {"max_new_tokens": num_new, "num_inference_steps": steps}
    if block_length is not None and block_length < num_new:
        # Steps are those of all blocks together.
        steps = steps * block_length // num_new
        arguments |= {"block_length": block_length, "num_inference_steps": steps}
    if options.get("cfg_scale"):
        scale = options["cfg_scale"] + 1
        arguments |= {"guidance_scale": scale, "guide_by": "masked_prompt"}
    return arguments


def block_length_of(family, case):
    """Tokens of a block, for models that see no further; the configurations of two families do not say it."""
    options = case["options"]
    if case.get("sampler") == "bd3lm":
        return options["block_size"]
    return options["block_length"] if family == "llada2" else None


def new_tokens(row, prompt):
    """What stands behind the prompt, which may have padding before it."""
    start = next(place for place in range(len(row)) if row[place : place + len(prompt)] == prompt)
    return row[start + len(prompt) :]


def with_their_order(family, scheduler, options):
    changes = {}
    if family == "dream":
        changes["order"] = DREAM_ORDERS[options["alg"]]
    elif family == "sdar":
        # Their one token is certain, so that all confidences are 1.
        changes = {"temperature": options["temperature"], "top_k": options["top_k"]}
        changes["order"] = SDAR_ORDERS[options["remasking_strategy"]]
        if options["remasking_strategy"] == "low_confidence_dynamic":
            changes["threshold"] = options["confidence_threshold"]
    elif family == "llada2":
        changes["threshold"] = options["threshold"]
    return ConfidenceScheduler.from_config(scheduler.config, **changes)


@pytest.mark.parametrize(
    "family, num_cases",
    [
        ("llada", 4),
        ("illada", 4),
        ("dream", 4),
        ("a2d_qwen3", 5),
        ("sdar", 3),
        ("modernbert_mdlm", 2),
        ("llada2", 3),
    ],
)
def test_the_pipeline_writes_what_the_authors_sampler_writes(family, num_cases):
    config = json.loads((GOLDEN / family / "config.json").read_text())
    vocab_size = config["vocab_size"]
    compared = 0
    for case, prompts, mask_id in cases(family):
        end = config.get("eos_token_id", case["options"].get("eos_id"))
        names = {"eos_token": "<end>", "mask_token": "<mask>"}
        special = {end: "<end>", mask_id: "<mask>"}
        tokenizer = numbered_tokenizer(vocab_size, special, **names)
        block_length = block_length_of(family, case)
        pipe = load_published_pipeline(
            GOLDEN / family, tokenizer=tokenizer, block_length=block_length
        )
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = with_their_order(family, pipe.scheduler, case["options"])

        texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
        arguments = arguments_of(family, case, prompts)
        rows = pipe(texts, output_type="tokens", **arguments).tokens.tolist()
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            new = new_tokens(row, prompt)
            # Theirs may begin with padding, and go on behind the end of a text.
            expected = case["output_ids"][place]
            if family != "llada2":
                expected = new_tokens(expected, prompt)
            length = expected.index(end) + 1 if end in expected else len(expected)
            assert new[:length] == expected[:length], case["name"]
        compared += 1
    assert compared == num_cases


@pytest.mark.parametrize("family", ["diffugpt", "diffullama"])
def test_one_step_of_a_shifted_model_is_the_most_probable_token_everywhere(family):
    """As in the authors' sampler with one step and without chance, whose result leaves out the first token."""
    for case in golden_numbers(family)["generation"]:
        mask_id = case["options"]["mask_token_id"]
        tokenizer = numbered_tokenizer(80, {mask_id: "<mask>"}, mask_token="<mask>")
        pipe = load_published_pipeline(GOLDEN / family, tokenizer=tokenizer)
        pipe.set_progress_bar_config(disable=True)

        for row, known, expected in zip(
            case["prompt_ids"], case["src_mask"], case["output_ids"], strict=True
        ):
            prompt = " ".join(f"w{token}" for token in row[: sum(known)])
            sizes = {"length": len(row), "num_inference_steps": 1, "temperature": 0.0}
            tokens = pipe(prompt, output_type="tokens", **sizes).tokens[0].tolist()
            assert tokens[1:] == expected
