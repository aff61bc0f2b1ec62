"""Rows of joined texts: they are the stream, their characters are exact, and their bounds are those of the rows."""

import math

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_denoiser
from support.character_texts import character_tokenizer, ignorant_pipe
from support.embedding_pipes import make_embedding_pipe
from support.language_models import chat_pipe
from support.masked_lms import byte_level_tokenizer, wordpiece_tokenizer
from support.tokenizer_kinds import SlowTokenizer, llama_tokenizer, word_tokenizer

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextDiffusionPipeline
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.data.rows import encode_texts
from text_diffusers.evaluation import monte_carlo_bound
from text_diffusers.evaluation.embedding import embedding_row_bounds
from text_diffusers.evaluation.protocols import wrap_texts, wrapped_likelihood
from text_diffusers.evaluation.protocols.wrapped_rows import given_before_rows

TEXTS = ["the cat  sat. ", "", "A bird, é and 日本 sang 🎉", " she ran all the way"]


@pytest.fixture(scope="module")
def characters():
    return character_tokenizer(sorted(set("".join(SENTENCES))), eos_token="[EOS]")


@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("ends", [True, False])
def test_rows_are_the_stream_of_all_texts_in_order(tokenizer, ends, framed):
    end = end_ids(tokenizer)
    stream = []
    for ids in encode_texts(tokenizer, TEXTS):
        stream += [*ids, *(end if ends else [])]
    wrapped = wrap_texts(TEXTS, tokenizer, 7, ends=ends, framed=framed)
    room = 5 if framed else 7
    parts = [stream[first : first + room] for first in range(0, len(stream) - room + 1, room)]
    first = (start_ids(tokenizer) or end) if framed else []
    rows = [[*first, *part, *(end if framed else [])] for part in parts]
    assert [row["input_ids"] for row in wrapped.rows] == rows
    assert wrapped.num_dropped == len(stream) - room * len(parts)
    assert wrapped.num_rows_in_all == len(rows) and wrapped.num_tokens == 7 * len(rows)


@pytest.mark.parametrize(
    "make",
    [byte_level_tokenizer, wordpiece_tokenizer, word_tokenizer, llama_tokenizer],
)
def test_all_characters_of_texts_are_counted_once(make):
    tokenizer = make()
    tokenizer.add_special_tokens({"eos_token": "[END]"})
    # Rows of one token hold the whole stream; an end is a character.
    wrapped = wrap_texts(TEXTS, tokenizer, 1)
    assert wrapped.num_dropped == 0
    with_tokens = [
        text for text, ids in zip(TEXTS, encode_texts(tokenizer, TEXTS), strict=True) if ids
    ]
    assert wrapped.num_characters.sum() == sum(map(len, with_tokens)) + len(TEXTS)
    assert wrapped.num_bytes.sum() == sum(len(text.encode()) for text in with_tokens) + len(TEXTS)
    assert (wrapped.num_characters >= 0).all()


def test_rows_of_characters_hold_as_many_characters_as_tokens(characters):
    text = "".join(SENTENCES)
    wrapped = wrap_texts([text], characters, 16, ends=False)
    assert len(wrapped.rows) == len(text) // 16
    assert wrapped.num_characters.tolist() == [16] * len(wrapped.rows)
    joined = "".join(characters.decode(row["input_ids"]) for row in wrapped.rows)
    assert joined == text[: len(joined)] and wrapped.num_dropped == len(text) - len(joined)
    few = wrap_texts([text], characters, 16, ends=False, max_rows=4)
    places = [place * len(wrapped.rows) // 4 for place in range(4)]
    assert few.rows == [wrapped.rows[place] for place in places]
    assert few.num_rows_in_all == len(wrapped.rows)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_its_characters(characters):
    pipe = ignorant_pipe(characters)
    wrapped = wrap_texts(["".join(SENTENCES)], characters, 16, ends=False)
    found = wrapped_likelihood(pipe, wrapped, num_times=4)
    assert found.nats_per_token == pytest.approx(math.log(len(characters) - 1), rel=1e-6)
    assert found.bits_per_character == pytest.approx(math.log2(len(characters) - 1), rel=1e-6)
    assert found.num_characters == found.num_tokens == 16 * len(wrapped.rows)


@pytest.mark.parametrize("kernel", [D3PMAbsorbingScheduler, D3PMUniformScheduler])
def test_the_bound_is_the_sum_of_the_bounds_of_the_rows(tokenizer, kernel):
    argument = tokenizer.mask_token_id if kernel is D3PMAbsorbingScheduler else len(tokenizer)
    pipe = TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), kernel(argument))
    wrapped = wrap_texts(SENTENCES, tokenizer, 8)
    found = wrapped_likelihood(pipe, wrapped, num_times=4, seed=3, batch_size=5)
    rows = monte_carlo_bound(pipe.denoiser, pipe.scheduler, wrapped.rows, num_times=4, seed=3)
    np.testing.assert_allclose(found.per_text_nats, rows.nats, rtol=1e-5)
    assert found.nats_per_token == pytest.approx(float(rows.nats.sum()) / wrapped.num_tokens)
    assert found.standard_error == pytest.approx(
        float(rows.variance.sum().sqrt()) / wrapped.num_tokens, rel=1e-4
    )
    bits = float(rows.nats.sum()) / math.log(2)
    assert found.bits_per_character == pytest.approx(bits / wrapped.num_characters.sum())


def test_embeddings_have_bounds_of_rows_too(tokenizer):
    pipe = make_embedding_pipe(tokenizer, num_train_timesteps=50)
    wrapped = wrap_texts(SENTENCES, tokenizer, 8)
    found = wrapped_likelihood(pipe, wrapped, num_times=2)
    rows = embedding_row_bounds(pipe.denoiser, pipe.scheduler, wrapped.rows, num_times=2)
    np.testing.assert_allclose(found.per_text_nats, rows.nats, rtol=1e-5)


def test_a_language_model_reads_its_start_before_each_row():
    pipe = chat_pipe()
    given = given_before_rows(pipe)
    assert given == start_ids(pipe.tokenizer)
    texts = ["w1 w2 w3 w4", "w5 w6 w7"] * 3
    wrapped = wrap_texts(texts, pipe.tokenizer, 6, given=given)
    assert all(row["input_ids"][: len(given)] == given for row in wrapped.rows)
    assert wrapped.num_tokens == (6 - len(given)) * len(wrapped.rows)
    found = wrapped_likelihood(pipe, wrapped, num_times=2)
    assert found.num_tokens == wrapped.num_tokens and math.isfinite(found.nats_per_token)


def test_what_cannot_be_wrapped_is_refused_by_name(tokenizer, characters, pipe):
    with pytest.raises(ValueError, match="must fill a row of 900 tokens"):
        wrap_texts(SENTENCES, tokenizer, 900)
    with pytest.raises(ValueError, match="`length` must be an integer that leaves room"):
        wrap_texts(SENTENCES, tokenizer, 2, framed=True)
    without_end = character_tokenizer("abc ")
    with pytest.raises(ValueError, match="`ends` must be off"):
        wrap_texts(["abc"], without_end, 2)
    with pytest.raises(ValueError, match="`tokenizer` must be one of the library `tokenizers`"):
        wrap_texts(["abc"], SlowTokenizer(), 2)
    with pytest.raises(ValueError, match="`length` must be at most 32 tokens"):
        wrapped_likelihood(pipe, wrap_texts(SENTENCES * 9, tokenizer, 33))
    assert torch.is_grad_enabled()
