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
        # Its blocks begin behind the padding of its prompts.
        if case.get("sampler") != "bd3lm":
            yield case, prompts, mask_id


def arguments_of(family, case, prompts):
    """The call of the pipeline that is the run of their sampler."""
    options = case["options"]
    num_new = first_of(options, "gen_length", "max_new_tokens")
    block_length = first_of(options, "block_length", "block_size")
    steps = first_of(options, "steps", "denoising_steps")
    if family == "sdar":
        # They fill the last block up.
        num_new = len(case["output_ids"][0]) - len(prompts[0])
        return {"max_new_tokens": num_new, "num_inference_steps": steps}

    arguments = {"max_new_tokens": num_new, "num_inference_steps": steps}
    if block_length is not None and block_length < num_new:
        # Steps are those of all blocks together.
        steps = steps * block_length // num_new
        arguments |= {"block_length": block_length, "num_inference_steps": steps}
    if options.get("cfg_scale"):
        scale = options["cfg_scale"] + 1
        arguments |= {"guidance_scale": scale, "guide_by": "masked_prompt"}
    return arguments


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
    return ConfidenceScheduler.from_config(scheduler.config, **changes)


@pytest.mark.parametrize(
    "family, num_cases", [("llada", 4), ("illada", 4), ("dream", 4), ("a2d_qwen3", 3), ("sdar", 3)]
)
def test_the_pipeline_writes_what_the_authors_sampler_writes(family, num_cases):
    config = json.loads((GOLDEN / family / "config.json").read_text())
    end, vocab_size = config["eos_token_id"], config["vocab_size"]
    compared = 0
    for case, prompts, mask_id in cases(family):
        names = {"eos_token": "<end>", "mask_token": "<mask>"}
        special = {end: "<end>", mask_id: "<mask>"}
        tokenizer = numbered_tokenizer(vocab_size, special, **names)
        pipe = load_published_pipeline(GOLDEN / family, tokenizer=tokenizer)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = with_their_order(family, pipe.scheduler, case["options"])

        texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
        arguments = arguments_of(family, case, prompts)
        rows = pipe(texts, output_type="tokens", **arguments).tokens.tolist()
        for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            # Theirs may begin with padding, and go on behind the end of a text.
            num_pads = len(case["prompt_ids"][place]) - len(prompt)
            expected = case["output_ids"][place][num_pads:]
            new = expected[len(prompt) :]
            length = len(prompt) + (new.index(end) + 1 if end in new else len(new))
            assert row[:length] == expected[:length], case["name"]
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
