"""Laws of texts that pipelines write under structure controls: every text matches, and their law is exact.

Whether a text is right is judged by `re` on what the pipeline returns. Shapes: B rows, L length, V vocabulary size.
"""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from conftest import make_denoiser, mostly_slow
from support.character_texts import character_tokenizer
from support.oracles import TableDenoiser, chi_square_passes
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    FirstHittingScheduler,
    TextDiffusionPipeline,
    TextTransformerModel,
)
from text_diffusers.guidance import ChoiceControl, LengthControl, RegexControl, WordsControl
from text_diffusers.samplers import ABSORBING
from text_diffusers.schedulers.scheduling_predictor_corrector import (
    PredictorCorrectorAbsorbingScheduler,
)
from text_diffusers.schedulers.scheduling_remdm import ReMDMScheduler

PATTERN = r"(the|a) [a-z]{2,5}( [0-9]{1,2})?[.!]"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def samplers(mask_token_id):
    """Every scheduler of absorbing noise, in the variants that differ in how tokens are chosen."""
    absorbing = D3PMAbsorbingScheduler(mask_token_id)
    named = {
        name: sampler.scheduler.from_config(absorbing.config, **sampler.preset)
        for name, sampler in ABSORBING.items()
        if getattr(sampler.scheduler, "takes_drawn", False)
    }
    return named | {
        "first hitting": FirstHittingScheduler(mask_token_id),
        "remasking": ReMDMScheduler(mask_token_id, eta=0.4),
        "remasking by confidence": ReMDMScheduler(mask_token_id, remasking="confidence", eta=1.0),
        "corrected": PredictorCorrectorAbsorbingScheduler(mask_token_id),
        "greedy": ConfidenceScheduler(mask_token_id, temperature=0.0),
        "entropy": ConfidenceScheduler(mask_token_id, order="entropy", temperature=0.7, top_k=20),
        "nucleus": D3PMAbsorbingScheduler(mask_token_id, top_p=0.8, temperature=1.3),
        "sure ones": ConfidenceScheduler(mask_token_id, threshold=0.3),
        "bounded entropy": ConfidenceScheduler(mask_token_id, entropy_bound=0.5, quota=None),
    }


@pytest.mark.parametrize(
    "name",
    mostly_slow(samplers(0), fast=["ancestral", "confidence", "remasking by confidence", "greedy"]),
)
def test_every_text_of_every_sampler_matches(pipe, name):
    """The model is random, and its texts would hardly ever match."""
    pipe.scheduler = samplers(pipe.tokenizer.mask_token_id)[name]
    control = RegexControl(pipe.tokenizer, PATTERN)
    output = pipe(
        ["the cat ", "she "],
        controls=control,
        max_new_tokens=14,
        num_inference_steps=16 if "hitting" in name or name == "first_hitting" else 5,
        num_return_sequences=4,
        generator=seeded(),
    )
    for text, prompt in zip(output.texts, ["the cat "] * 4 + ["she "] * 4, strict=True):
        assert re.fullmatch(PATTERN, text.removeprefix(prompt)), text


PROBS = [0.1, 0.2, 0.3, 0.25, 0.15]


class Product(TableDenoiser):
    """Independent letters, of which the later ones in the alphabet come more often at later places."""

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        places = positions.nonzero()[:, 1].double().unsqueeze(1)
        logits = torch.tensor([*PROBS, 0.2, 0.2], dtype=torch.float64).log()
        rising = 0.2 * places * torch.arange(7)
        return type("Output", (), {"logits": logits + rising})()

    @staticmethod
    def log_probs(length):
        rising = 0.2 * torch.arange(length).double().unsqueeze(1) * torch.arange(5)
        return (torch.tensor(PROBS, dtype=torch.float64).log() + rising).log_softmax(dim=-1)


LAWS = {
    "one step": (lambda mask: D3PMAbsorbingScheduler(mask), 1),
    "three steps": (lambda mask: D3PMAbsorbingScheduler(mask), 3),
    "a token a step": (lambda mask: FirstHittingScheduler(mask), 4),
    "remasking": (lambda mask: ReMDMScheduler(mask, eta=0.5), 6),
    "corrected": (lambda mask: PredictorCorrectorAbsorbingScheduler(mask), 5),
}


@pytest.mark.parametrize("name", mostly_slow(LAWS, fast=["one step"]))
def test_texts_of_independent_tokens_have_the_exact_conditional_law(name):
    """Of independent tokens, a step that draws some given the language leaves the law of the rest what it is."""
    pattern = r"(ab|c)*[de]{1,2}|a.*a"
    make, num_steps = LAWS[name]
    tokenizer = character_tokenizer("abcde", pad_token="[PAD]")
    mask = tokenizer.mask_token_id
    pipe = TextDiffusionPipeline(tokenizer, Product(None, mask + 1), make(mask))
    pipe.set_progress_bar_config(disable=True)

    num_texts = 1_000
    output = pipe(
        length=4,
        controls=RegexControl(tokenizer, pattern),
        num_inference_steps=num_steps,
        num_return_sequences=num_texts,
        generator=seeded(1),
    )
    log_probs = Product.log_probs(4)
    texts = ["".join(letters) for letters in itertools.product("abcde", repeat=4)]
    law = {
        text: math.exp(sum(float(log_probs[i, "abcde".index(c)]) for i, c in enumerate(text)))
        for text in texts
        if re.fullmatch(pattern, text)
    }
    total = sum(law.values())
    counts = dict.fromkeys(law, 0)
    for text in output.texts:
        counts[text] += 1
    wanted = np.array(list(law.values())) / total
    assert chi_square_passes(list(counts.values()), wanted)


def test_a_text_depends_on_its_own_generator_only(pipe):
    control = RegexControl(pipe.tokenizer, PATTERN)
    settings = {"controls": control, "max_new_tokens": 14, "num_inference_steps": 4}
    seeds = [seeded(seed) for seed in range(3)]
    together = pipe(["the ", "a bird", "she"], generator=seeds, **settings).texts
    alone = [
        pipe(prompt, generator=seeded(seed), **settings).texts[0]
        for seed, prompt in enumerate(["the ", "a bird", "she"])
    ]
    assert together == alone


def test_each_text_may_have_its_own_pattern(pipe):
    patterns = [r"cat[0-9]+", PATTERN, r"(no|yes)"]
    control = RegexControl(pipe.tokenizer, patterns)
    output = pipe(
        ["", "", ""], controls=control, max_new_tokens=14, num_inference_steps=4, generator=seeded()
    )
    for text, pattern in zip(output.texts, patterns, strict=True):
        assert re.fullmatch(pattern, text)


def test_a_prompt_is_part_of_the_match_if_asked_for(pipe):
    pattern = r"The cat .{3}s\."
    control = RegexControl(pipe.tokenizer, pattern, with_prompt=True)
    output = pipe("The c", controls=control, max_new_tokens=14, generator=seeded())
    assert re.fullmatch(pattern, output.texts[0])
    with pytest.raises(ValueError, match=r"`pattern` must have a match .* 'A dog' is given"):
        pipe("A dog", controls=control, max_new_tokens=14)


def test_what_is_filled_in_makes_the_whole_text_match(pipe):
    pattern = r"The (cat|dog|bird|mat)[a-z ]* on \S+ [0-9]\."
    control = RegexControl(pipe.tokenizer, pattern)
    text = "The [MASK][MASK] on [MASK][MASK] [MASK]."
    output = pipe(text=text, controls=control, num_return_sequences=6, generator=seeded())
    for filled in output.texts:
        assert re.fullmatch(pattern, filled), filled
    with pytest.raises(ValueError, match=r"`pattern` must have a match .* 'A ' .* is given"):
        pipe(text="A [MASK] on [MASK] [MASK].", controls=control)


def test_a_fixed_length_is_kept_and_a_text_may_end_where_it_matches(pipe):
    tokenizer = pipe.tokenizer
    control = RegexControl(tokenizer, r"(the cat )+")
    output = pipe(length=12, controls=control, num_inference_steps=4, generator=seeded())
    assert re.fullmatch(r"(the cat )+", output.texts[0])
    assert len(output.tokens[0]) >= 13
    controls = [LengthControl(9), RegexControl(tokenizer, r"[a-d]+")]
    output = pipe(controls=controls, num_inference_steps=4, generator=seeded())
    assert re.fullmatch("[a-d]+", output.texts[0])
    control = RegexControl(tokenizer, r"[a-z ]+")
    output = pipe(controls=control, max_new_tokens=20, num_return_sequences=8, generator=seeded())
    assert all(re.fullmatch("[a-z ]+", text) for text in output.texts)
    assert len({len(text) for text in output.texts}) > 1


def test_words_are_held_within_the_pattern(pipe):
    controls = [
        WordsControl(pipe.tokenizer, "cat"),
        RegexControl(pipe.tokenizer, r"(the [a-z]{3} ?){3}"),
    ]
    output = pipe(
        controls=controls,
        max_new_tokens=12,
        num_inference_steps=12,
        num_return_sequences=8,
        generator=seeded(),
    )
    assert all(re.fullmatch(r"(the [a-z]{3} ?){3}", text) for text in output.texts)
    assert sum("cat" in text for text in output.texts) >= 6


def test_windows_are_written_one_after_the_other(pipe):
    control = RegexControl(pipe.tokenizer, PATTERN)
    output = pipe(
        controls=control,
        max_new_tokens=14,
        block_length=4,
        num_inference_steps=2,
        num_return_sequences=4,
        generator=seeded(),
    )
    assert all(re.fullmatch(PATTERN, text) for text in output.texts)


def test_guidance_and_structure_go_together(tokenizer):
    denoiser = make_denoiser(tokenizer, num_classes=2)
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        class_labels=[0, 1],
        guidance_scale=3.0,
        controls=ChoiceControl(tokenizer, ["the cat", "a dog!"]),
        max_new_tokens=8,
        num_inference_steps=3,
        generator=seeded(),
    )
    assert set(output.texts) <= {"the cat", "a dog!"}


@pytest.mark.parametrize("kind", mostly_slow(["words", "uncased", "llama", "metaspace"], ["llama"]))
def test_texts_of_other_tokenizers_match(kind):
    from support.tokenizer_kinds import TOKENIZERS

    tokenizer = TOKENIZERS[kind]()
    pipe = TextDiffusionPipeline(
        tokenizer,
        make_denoiser(tokenizer, pad_token_id=tokenizer.pad_token_id or 0),
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
    )
    pipe.set_progress_bar_config(disable=True)
    for prompt in ("", "the cat", "the cat "):
        pattern = r" ?[a-z]+( [a-z]+){1,3}"
        output = pipe(
            prompt,
            controls=RegexControl(tokenizer, pattern),
            max_new_tokens=8,
            num_inference_steps=4,
            num_return_sequences=6,
            generator=seeded(),
        )
        for text in output.texts:
            assert re.fullmatch(pattern, text.removeprefix(prompt)), (prompt, text)


@pytest.mark.parametrize(
    "scheduler, arguments, reason",
    [
        (None, {"suppress_tokens": None}, r"`suppress_tokens` must leave a text"),
        (None, {"min_new_tokens": 9}, r"`min_new_tokens` must leave a text"),
        (None, {"max_new_tokens": 1}, r"`pattern` must have a match .* 2 tokens at least"),
        ("uniform", {}, r"`controls` that draw tokens together, .* absorbing noise"),
    ],
)
def test_calls_that_leave_no_match_are_refused(pipe, scheduler, arguments, reason):
    tokenizer = pipe.tokenizer
    if scheduler is not None:
        pipe.scheduler = D3PMUniformScheduler(len(tokenizer) - 2)
    control = RegexControl(tokenizer, r"the cat")
    if "suppress_tokens" in arguments:
        # A word is spelled otherwise, as long as there are its letters.
        arguments = {
            "suppress_tokens": [i for token, i in tokenizer.get_vocab().items() if "c" in token]
        }
    settings = {"max_new_tokens": 12, "num_inference_steps": 2} | arguments
    with pytest.raises(ValueError, match=reason):
        pipe(controls=control, generator=seeded(), **settings)


def test_two_patterns_at_once_are_refused(pipe):
    control = RegexControl(pipe.tokenizer, "a+")
    with pytest.raises(ValueError, match="`controls` must have one that draws tokens at most"):
        pipe(controls=[control, control], max_new_tokens=4)


@pytest.mark.parametrize("shaping", [{"temperature": 0.7}, {"top_p": 0.9}])
def test_whole_words_are_shaped_from_the_first_on(shaping):
    """The first word has no space before it, and is read by edges of its own; by the others nothing matches."""
    words = ["[PAD]", "[MASK]", "[UNK]", "[EOS]", "yes", "no", "please"]
    backend = Tokenizer(models.WordLevel({word: id for id, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]", "unk_token": "[UNK]"}
    ends = {"bos_token": "[EOS]", "eos_token": "[EOS]", "clean_up_tokenization_spaces": False}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names, **ends)
    model = TextTransformerModel(
        len(words), hidden_size=8, num_layers=1, num_attention_heads=2, max_length=8
    )
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(tokenizer, model.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    control = RegexControl(tokenizer, "(yes|no)( please)+")
    texts = pipe(
        controls=control,
        max_new_tokens=3,
        num_inference_steps=2,
        num_return_sequences=8,
        generator=seeded(0),
        **shaping,
    ).texts
    assert all(re.fullmatch("(yes|no)( please)+", text) for text in texts)
    assert {text.split()[0] for text in texts} == {"yes", "no"}
