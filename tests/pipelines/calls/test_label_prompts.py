"""Labels of language models: a short prompt in the frame of a source; without a label, masks stand for it."""

import json

import pytest
import torch
from conftest import covering, mostly_slow
from support.language_models import chat_pipe, make_language_model, word_tokenizer

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading

MASK, PAD, END = 0, 1, 2
NAMES = ["chat", "novel", "speech"]
PROMPTS = ["w30", "w31 w32", "w33 w34 w35"]
PROMPT_IDS = [[30], [31, 32], [33, 34, 35]]
# Never written: mask, padding, and ids without a token.
EXCLUDED = [MASK, PAD, *range(40, 44)]
READINGS = ("bidirectional", "block", "causal past")


def labelled_pipe(attention="bidirectional", scheduler=None, **settings):
    kind = "block" if attention == "causal past" else attention
    pipe = chat_pipe(attention=kind, alignment="shifted", scheduler=scheduler)
    if attention == "causal past":
        reading = Reading(**pipe.denoiser.config.diffusion | {"past": "causal"})
        write_reading(pipe.denoiser.config, reading)
    settings = {"label_names": NAMES, "label_prompts": PROMPTS} | settings
    labelled = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, **settings)
    labelled.set_progress_bar_config(disable=True)
    return labelled


def first_rows(pipe, **call):
    """What the model reads in its first call."""
    seen = []
    handle = pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    try:
        pipe(max_new_tokens=2, num_inference_steps=1, **call)
    finally:
        handle.remove()
    return seen[0].tolist()


def framed(label):
    """The tokenizer has no start token, so the end of the text before is one."""
    ids = [MASK] if label is None else PROMPT_IDS[label]
    return [END, *ids, END]


@pytest.mark.parametrize(
    ("labels", "expected"), [("novel", 1), (2, 2), (None, None), (3, None)], ids=str
)
def test_a_row_is_start_label_end_and_prompt(labels, expected):
    pipe = labelled_pipe()
    for prompt, ids in ((None, []), ("w8 w9", [8, 9])):
        (row,) = first_rows(pipe, prompt=prompt, class_labels=labels)
        assert row == [*framed(expected), *ids, MASK, MASK]


def test_the_names_are_the_prompts_where_there_are_no_others():
    pipe = labelled_pipe(label_names=["w20", "w21"], label_prompts=None)
    assert pipe.label_names == ["w20", "w21"]
    assert first_rows(pipe, class_labels="w21") == [[END, 21, END, MASK, MASK]]
    unnamed = labelled_pipe(label_names=None)
    assert unnamed.label_names == [None] * 3
    assert first_rows(unnamed, class_labels=1) == [[*framed(1), MASK, MASK]]


@pytest.mark.parametrize("attention", mostly_slow(READINGS, fast=["bidirectional", "causal past"]))
def test_texts_and_tokens_are_returned_without_the_label(attention):
    pipe = labelled_pipe(attention)
    written = pipe(["w8 w9", "w10"], class_labels=["speech", None], max_new_tokens=3)
    assert [text.split()[0] for text in written.texts] == ["w8", "w10"]
    assert written.tokens[:, 0].tolist() == [8, 10]

    # What stands around a gap is returned as it was given.
    filled = pipe(text="w8  <|mask|> w9", class_labels="novel")
    assert filled.texts[0].startswith("w8  w") and filled.texts[0].endswith(" w9")


@pytest.mark.parametrize("attention, temperature", covering(READINGS, [0.0, 1.0]))
def test_a_text_does_not_depend_on_the_labels_of_its_batch(attention, temperature):
    scheduler = ConfidenceScheduler(MASK, temperature=temperature, order="left_to_right")
    pipe = labelled_pipe(attention, scheduler)
    labels = ["speech", None, "chat"]
    prompts = ["w8", "w9 w10 w11 w12", "w13 w14"]
    call = {"max_new_tokens": 6, "num_inference_steps": 6, "guidance_scale": 2.5}

    def generators(numbers):
        return [torch.Generator().manual_seed(seed) for seed in numbers]

    # Two texts of each prompt, which stand next to each other
    call["num_return_sequences"] = 2
    together = pipe(prompts, class_labels=labels, generator=generators(range(6)), **call).texts
    alone = []
    for index, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
        own = generators([2 * index, 2 * index + 1])
        alone += pipe(prompt, class_labels=[label], generator=own, **call).texts
    assert together == alone
    assert len(set(together)) == (3 if temperature == 0 else 6)


@pytest.mark.parametrize("attention", READINGS)
def test_guidance_compares_the_label_with_as_many_masks(attention):
    """One greedy step over the whole of a text that fits into one block, from the logits of both rows."""
    pipe = labelled_pipe(attention)
    denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
    rows = torch.tensor(
        [[*framed(2), 8, 9, 10] + [MASK] * 4, [END, *[MASK] * 3, END, 8, 9, 10] + [MASK] * 4]
    )
    logits = denoiser(rows, positions=rows.eq(MASK) & (torch.arange(12) > 7)).logits
    cond, uncond = logits.view(2, 4, -1)

    # The ends are left out, so that the text has four tokens.
    for scale in (0.0, 1.0, 3.0):
        guided = cond if scale == 1 else uncond + scale * (cond - uncond)
        guided = guided.masked_fill(guided.isnan(), -torch.inf)
        guided[:, [END, 3]] = -torch.inf
        written = pipe(
            "w8 w9 w10",
            class_labels="speech",
            guidance_scale=scale,
            num_inference_steps=1,
            max_new_tokens=4,
            suppress_tokens=[END, 3],
        )
        assert written.tokens[0, 3:].tolist() == guided.argmax(dim=-1).tolist()


def test_the_exact_cache_of_blocks_writes_what_full_passes_write():
    pipe = labelled_pipe("block")
    call = {"class_labels": ["speech", "chat"], "guidance_scale": 2.0, "max_new_tokens": 11}
    cached = pipe(["w8", "w9"], num_inference_steps=4, **call).texts
    pipe.use_cache = False
    assert pipe(["w8", "w9"], num_inference_steps=4, **call).texts == cached


@pytest.mark.parametrize("attention", READINGS)
def test_a_model_of_pairs_reads_a_source_in_the_same_frame(attention):
    pipe = labelled_pipe(attention, label_names=None, label_prompts=None, takes_source=True)
    assert first_rows(pipe, source="w8 w9") == [[END, 8, 9, END, MASK, MASK]]

    # Masks take its place, so the text stays where it is and guided blocks are possible.
    read = []
    handle = pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    pipe(source="w8 w9", guidance_scale=2.0, max_new_tokens=2, num_inference_steps=1)
    handle.remove()
    rows = torch.cat([rows[:, :4] for rows in read]).tolist()
    assert [END, 8, 9, END] in rows and [END, MASK, MASK, END] in rows


def test_settings_are_saved_and_loaded(tmp_path):
    pipe = labelled_pipe()
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.config.label_prompts == PROMPTS and loaded.label_names == NAMES
    call = {"class_labels": "novel", "max_new_tokens": 5, "num_inference_steps": 5}
    assert loaded("w8", **call).texts == pipe("w8", **call).texts

    # A folder that was saved before there were such settings has none.
    plain = chat_pipe()
    plain.save_pretrained(tmp_path / "plain")
    index = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    for name in ("label_prompts", "takes_source", "generation_defaults"):
        assert not index.pop(name)
    (tmp_path / "plain" / "model_index.json").write_text(json.dumps(index))
    earlier = TextDiffusionPipeline.from_pretrained(tmp_path / "plain")
    earlier.set_progress_bar_config(disable=True)
    call = {"max_new_tokens": 5, "num_inference_steps": 5}
    assert earlier("w8", **call).texts == plain("w8", **call).texts


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_prompts": ["w8", "w9"]}, "`label_prompts` must be 3, one a name in `label_names`"),
        ({"label_prompts": "w8"}, "`label_prompts` must be a list of strings"),
        ({"label_prompts": []}, "`label_prompts` must be a list of strings"),
        ({"label_prompts": ["w8", "w8", "w9"]}, "differ from each other in their tokens"),
        ({"label_prompts": ["w8", "", "w9"]}, "at least one token each"),
        ({"label_prompts": ["w8", "<|mask|>", "w9"]}, "`label_prompts` must not hold <|mask|>"),
        ({"takes_source": 1}, "`takes_source` must be True or False"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        labelled_pipe(**settings)


def test_conditions_that_the_model_cannot_be_shown_together_are_refused():
    pipe = labelled_pipe()
    turn = [{"role": "user", "content": "w8"}]
    with pytest.raises(ValueError, match="`class_labels` exclude `messages`"):
        pipe(messages=turn, class_labels="chat")
    with pytest.raises(ValueError, match="must be among the model's `label_names`"):
        pipe(class_labels="sermon")
    with pytest.raises(ValueError, match="`source` needs a denoiser that was trained with one"):
        pipe(source="w8")

    # A conversation by itself is what it would be without labels.
    plain = chat_pipe(alignment="shifted")
    call = {"max_new_tokens": 4, "num_inference_steps": 4}
    assert pipe(messages=turn, **call).texts == plain(messages=turn, **call).texts


def test_a_start_token_begins_the_row_where_the_tokenizer_has_one():
    tokenizer = word_tokenizer(
        mask_token="<|mask|>", pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|user|>"
    )
    model = make_language_model(reading=Reading(mask_token_id=MASK, end_token_ids=[END]))
    pipe = TextDiffusionPipeline(
        tokenizer, model, ConfidenceScheduler(MASK), label_names=NAMES, label_prompts=PROMPTS
    )
    pipe.set_progress_bar_config(disable=True)
    assert first_rows(pipe, prompt="w8", class_labels="novel") == [[4, 31, 32, END, 8, MASK, MASK]]
