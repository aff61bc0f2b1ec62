"""Given text comes back as it was given, whatever the tokenizer makes of it."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import make_denoiser, make_embedding_model
from support.tokenizer_kinds import TOKENIZERS, SlowTokenizer, word_tokenizer

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.data.rows import encode_texts
from text_diffusers.guidance import WordsControl
from text_diffusers.pipelines.row_limits import RowLimits
from text_diffusers.pipelines.text_batch import encode_prompts, encode_sources
from text_diffusers.pipelines.text_gaps import encode_gaps
from text_diffusers.pipelines.text_inputs import encode_negatives
from text_diffusers.pipelines.two_level_vq.code_inputs import prompt_ids

AWKWARD = [
    "A cat.\n\nThe dog",
    "x  y \t z ",
    " the cat",
    "I \N{PARTY POPPER}\N{PARTY POPPER} cats e\u0301te\u0301 été",
    "Γειά σου, Κόσμε! Привет 今天",
    "the [EOS] and [PAD], [UNK] <s> </s> <|endoftext|> [SEP]",
    "don't 'quote' ; \ufb01n\u200bal\u00a0end",
]
# "_" is a mask, by itself or beside others.
GAPS = [
    "The cat\n_ on the\n_.",
    "_ _ the _ _ _ again.",
    "_",
    "I_ed it__",
    "x  _  y\t_",
    "\N{PARTY POPPER}_Γειά _ e\u0301_ [EOS] _ [PAD]_<|endoftext|>",
]


@pytest.fixture(params=TOKENIZERS)
def kind(request):
    return request.param


@pytest.fixture
def tokenizer(kind):
    return TOKENIZERS[kind]()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def token_pipe(tokenizer, **changes):
    sizes = {"hidden_size": 8, "num_layers": 1, "max_length": 300}
    denoiser = make_denoiser(tokenizer, **sizes | changes)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    return quiet(TextDiffusionPipeline(tokenizer, denoiser, scheduler))


def embedding_pipe(tokenizer, kind=DiffusionLMPipeline, **changes):
    sizes = {"hidden_size": 8, "num_layers": 1, "max_length": 300, "partial_noising": True}
    denoiser = make_embedding_model(tokenizer, **sizes | changes)
    return quiet(kind(tokenizer, denoiser, EmbeddingDDIMScheduler()))


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def holds(text, pieces):
    """Whether a text is made of the given pieces, in their order, with whatever was written between them."""
    first, *middle, last = pieces
    place = len(first)
    for piece in middle:
        found = text.find(piece, place)
        if found < 0:
            return False
        place = found + len(piece)
    return text.startswith(first) and text[place:].endswith(last)


def test_a_text_without_what_was_written_is_the_given_text(tokenizer):
    mask = tokenizer.mask_token
    pipe = token_pipe(tokenizer)
    settings = {"num_inference_steps": 3, "num_return_sequences": 3}
    gaps = [text.replace("_", mask) for text in GAPS]
    filled = pipe(text=gaps, generator=seeded(*range(18)), **settings).texts
    for index, text in enumerate(filled):
        assert holds(text, gaps[index // 3].split(mask)), (gaps[index // 3], text)

    texts = pipe(AWKWARD, max_new_tokens=4, generator=seeded(*range(21)), **settings).texts
    for index, text in enumerate(texts):
        assert text.startswith(AWKWARD[index // 3])


def test_a_stream_keeps_what_is_given_and_ends_with_the_texts(tokenizer):
    mask = tokenizer.mask_token
    pipe = token_pipe(tokenizer)
    for arguments, pieces in (
        ({"text": [text.replace("_", mask) for text in GAPS]}, [text.split("_") for text in GAPS]),
        ({"prompt": AWKWARD, "max_new_tokens": 4}, [[prompt, ""] for prompt in AWKWARD]),
    ):
        arguments |= {"num_inference_steps": 3}
        frames = list(pipe.stream(**arguments, generator=seeded(*range(len(pieces)))))
        assert frames[-1] == pipe(**arguments, generator=seeded(*range(len(pieces)))).texts
        for frame in frames:
            for text, given in zip(frame, pieces, strict=True):
                assert holds(text, given)


def test_characters_of_tokens_that_are_not_marked_come_back(tokenizer, kind):
    """Every second token or so is written anew; which characters it stands for is the tokenizer's word."""
    if kind == "slow":
        return  # it tells none, see below
    pipe = token_pipe(tokenizer)
    for text in AWKWARD:
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        mask = torch.rand(len(encoded["input_ids"]), generator=seeded(0)[0]) < 0.5
        mask[0] = True
        pieces = [""]
        spans = [
            span for span, marked in zip(encoded["offset_mapping"], mask, strict=True) if marked
        ]
        for place, letter in enumerate(text):
            if any(first <= place < end for first, end in spans):
                pieces.append("")
            else:
                pieces[-1] += letter
        written = pipe(text=text, mask=mask, num_inference_steps=2, generator=seeded(0)).texts[0]
        # Accents that a tokenizer drops go with their letter.
        assert holds(written, [piece.removeprefix("\u0301") for piece in pieces])


class Writes(torch.nn.Module):
    """A denoiser that writes given tokens, one after the other."""

    def __init__(self, tokenizer, ids):
        super().__init__()
        self.ids, self.size = ids, len(tokenizer)
        self.config = SimpleNamespace(vocab_size=self.size, max_length=64)
        self.mask = tokenizer.mask_token_id
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, input_ids, timestep=None, attention_mask=None, labels=None, positions=None):
        logits = torch.zeros(*input_ids.shape, self.size)
        for place, token in zip(
            (input_ids == self.mask).nonzero().tolist(), self.ids, strict=False
        ):
            logits[*place, token] = 99.0
        return SimpleNamespace(logits=logits[positions])


def filled(tokenizer, text, pieces):
    """`text` filled in with tokens."""
    ids = tokenizer.convert_tokens_to_ids(pieces)
    pipe = token_pipe(tokenizer)
    pipe.denoiser = Writes(tokenizer, ids)
    return pipe(text=text.replace("_", tokenizer.mask_token), num_inference_steps=1).texts[0]


@pytest.mark.parametrize(
    "kind, text, pieces, expected",
    [
        ("ours", "x _ y", ["Ġthe"], "x the y"),
        ("ours", "x\n_.", ["Ġthe"], "x\nthe."),
        ("ours", "x_y", ["Ġthe"], "x they"),
        ("ours", "a _ _", ["Ġthe", "Ġcat"], "a the cat"),
        ("ours", "a __", ["Ġc", "a"], "a ca"),
        ("ours", "a _ _.", ["Ã", "©"], "a  é."),  # the bytes of one character
        ("ours", "a __.", ["Ã", "©"], "a é."),
        ("uncased", "The _ SAT", ["cat"], "The cat SAT"),
        ("uncased", "THE __.", ["c", "##a"], "THE ca."),
        ("uncased", "Ω _, _", ["cat", "."], "Ω cat, ."),
        ("words", "A  _ Sat", ["cat"], "A  cat Sat"),
        ("llama", "x _ y", ["▁a"], "x a y"),
        ("llama", "_ y", ["▁a"], "a y"),
        ("gpt2", "x _ y", ["the"], "x the y"),
        ("gpt2", "x _ y", ["Ġthe"], "x the y"),
    ],
)
def test_no_blank_is_doubled_or_lost_beside_what_is_written(kind, text, pieces, expected):
    tokenizer = TOKENIZERS[kind]()
    assert tokenizer.unk_token_id is None or tokenizer.unk_token_id not in (
        tokenizer.convert_tokens_to_ids(pieces)
    )
    assert filled(tokenizer, text, pieces) == expected


def special_ids(tokenizer):
    return {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}


@pytest.mark.parametrize("kind", ["ours", "uncased", "roberta", "llama", "slow"], indirect=True)
def test_names_of_special_tokens_are_text_wherever_they_are_written(tokenizer):
    names = [name for name in tokenizer.all_special_tokens if name != tokenizer.mask_token]
    text = f"a {' b '.join(names)} cat"
    (trained_on,) = encode_texts(tokenizer, [text])
    assert special_ids(tokenizer).isdisjoint(trained_on)
    start, end = start_ids(tokenizer), end_ids(tokenizer)
    assert encode_prompts(tokenizer, [text]) == [start + trained_on]
    limits = RowLimits(max_length=64)
    assert encode_negatives(tokenizer, text, 1, False, limits) == [start + trained_on]
    assert encode_negatives(tokenizer, text, 1, True, limits) == [start + trained_on + end]
    assert encode_sources(tokenizer, text) == [start + trained_on + end]
    assert prompt_ids(tokenizer, text) == [trained_on]
    row = encode_gaps(tokenizer, f"{text} {tokenizer.mask_token}", None)[0][0]
    assert row[-1] is None and special_ids(tokenizer).isdisjoint(row[len(start) : -1])
    # None of the characters is lost, unless the tokenizer does not know them.
    read = tokenizer.decode(trained_on).replace(" ", "").lower()
    assert read == text.replace(" ", "").lower() or tokenizer.unk_token_id in trained_on


@pytest.mark.parametrize("make_pipe", [token_pipe, embedding_pipe])
def test_prompts_with_names_of_special_tokens_begin_the_text(make_pipe):
    pipe = make_pipe(TOKENIZERS["ours"]())
    prompts = ["[PAD] hello", "I think [EOS] you"]
    texts = pipe(prompts, max_new_tokens=3, num_inference_steps=2, generator=seeded(0, 1)).texts
    assert [text[: len(prompt)] for text, prompt in zip(texts, prompts, strict=True)] == prompts
    control = WordsControl(pipe.tokenizer, ["[EOS]"])
    written = pipe(controls=control, length=12, num_inference_steps=4, generator=seeded(0)).texts[0]
    assert "[EOS]" in written or pipe.kind == "embeddings"  # over embeddings words are a wish


class UnsplitTokenizer(SlowTokenizer):
    def _tokenize(self, text, **kwargs):
        return text.split()


@pytest.mark.parametrize("make", [lambda: word_tokenizer(splits_marks=False), UnsplitTokenizer])
def test_names_that_a_tokenizer_cannot_take_for_text_are_refused(make):
    tokenizer = make()
    pipe = token_pipe(tokenizer)
    for name in ("prompt", "text"):
        text = "[MASK] the [EOS] cat" if name == "text" else "the [EOS] cat"
        with pytest.raises(ValueError, match=rf"`{name}` must not hold \[EOS\], a special token"):
            pipe(**{name: text}, num_inference_steps=2)
    with pytest.raises(ValueError, match=r"must not hold \[EOS\]"):
        encode_texts(tokenizer, ["the cat", "the [EOS] cat"])


@pytest.mark.parametrize("name", ["prompt", "text", "source", "negative_prompt"])
def test_half_an_emoji_is_refused_by_the_name_of_its_argument(name):
    half = "Hi [MASK] \ud83d" if name == "text" else "Hi \ud83d"
    arguments = {name: half}
    if name == "negative_prompt":
        arguments |= {"prompt": "a", "guidance_scale": 2.0}
    pipe = token_pipe(TOKENIZERS["ours"]())
    with pytest.raises(
        ValueError, match=rf"`{name}` must be valid Unicode, .* '\\ud83d' as character"
    ):
        pipe(**arguments, num_inference_steps=2)
    with pytest.raises(ValueError, match="`words` must be valid Unicode"):
        WordsControl(pipe.tokenizer, "Hi \ud83d")


def test_a_mask_of_the_text_that_is_not_marked_is_refused():
    pipe = token_pipe(TOKENIZERS["ours"]())
    ids = pipe.tokenizer("the cat [MASK] sat", add_special_tokens=False)["input_ids"]
    mask = [place == 0 for place in range(len(ids))]
    with pytest.raises(ValueError, match=r"`mask` must be true at every \[MASK\] of `text`"):
        pipe(text="the cat [MASK] sat", mask=mask)
    mask = [token == pipe.tokenizer.mask_token_id for token in ids]
    settings = {"num_inference_steps": 2}
    same = pipe(text="the cat [MASK] sat", mask=mask, generator=seeded(0), **settings)
    assert same.texts == pipe(text="the cat [MASK] sat", generator=seeded(0), **settings).texts


def test_a_slow_tokenizer_tells_its_characters_by_decoding():
    pipe = token_pipe(SlowTokenizer())
    mask = [place in (1, 4) for place in range(6)]
    assert holds(pipe(text="abc ab", mask=mask, num_inference_steps=2).texts[0], ["a", "c ", "b"])
    with pytest.raises(ValueError, match="`mask` must be left out: this tokenizer does not tell"):
        pipe(text="abc Ωb", mask=mask, num_inference_steps=2)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "words without an end"])
@pytest.mark.parametrize(
    "make_pipe", [token_pipe, embedding_pipe, partial(embedding_pipe, kind=ParaGuidePipeline)]
)
def test_without_a_padding_token_texts_are_the_same_alone_and_in_a_batch(kind, make_pipe):
    if kind in TOKENIZERS:
        tokenizer = TOKENIZERS[kind]()
    else:
        tokenizer = word_tokenizer()
        tokenizer.pad_token = tokenizer.eos_token = None
    pipe = make_pipe(tokenizer)
    mask = tokenizer.mask_token
    short, long = "the cat", "the cat sat on the mat"
    ways = {
        "prompt": {"prompt": [short, long], "max_new_tokens": 4},
        "text": {"text": [f"{short} {mask}", f"{long} {mask} {mask}"]},
        "source": {"source": [short, long], "max_new_tokens": 4},
    }
    for name, arguments in ways.items():
        if name not in pipe.accepted_inputs:
            continue
        settings = {key: value for key, value in arguments.items() if key != name}
        settings |= {"num_inference_steps": 3}
        together = pipe(**{name: arguments[name]}, generator=seeded(0, 1), **settings)
        alone = [
            pipe(**{name: text}, generator=seeded(seed), **settings)
            for seed, text in enumerate(arguments[name])
        ]
        assert together.texts == [output.texts[0] for output in alone]
        *_, last = pipe.stream(**{name: arguments[name]}, generator=seeded(0, 1), **settings)
        assert last == together.texts
        # What fills the shorter row is no word.
        for row, output in zip(together.tokens, alone, strict=True):
            length = output.tokens.shape[1]
            assert torch.equal(row[:length], output.tokens[0])
            assert set(row[length:].tolist()) <= {*tokenizer.all_special_ids}


@pytest.mark.parametrize("rounding", ["head", "nearest", "codebook"])
@pytest.mark.parametrize("ids", [{}, {"mask_token_id": None, "pad_token_id": None}])
def test_no_rounding_writes_a_token_that_cannot_be_written(rounding, ids):
    """Also by a model that was not told which tokens these are, with more words than its tokenizer has."""
    tokenizer = TOKENIZERS["ours"]()
    pipe = embedding_pipe(tokenizer, rounding=rounding, vocab_size=len(tokenizer) + 60, **ids)
    settings = {"num_return_sequences": 40, "max_new_tokens": 9, "num_inference_steps": 2}
    tokens = pipe(output_type="tokens", generator=seeded(*range(40)), **settings).tokens[:, 1:]
    cut = tokens == tokenizer.pad_token_id
    ended = (tokens == tokenizer.eos_token_id).cumsum(dim=1) > 0
    assert ((tokens < min(tokenizer.pad_token_id, tokenizer.mask_token_id)) | (cut & ended)).all()
