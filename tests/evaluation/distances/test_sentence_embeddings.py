"""Sentence embeddings against one text after the other, without padding."""

import pytest
import torch
from support.masked_lms import wordpiece_tokenizer
from transformers import BertConfig, BertModel

from text_diffusers.evaluation.distances import load_sentence_encoder, sentence_embeddings

TEXTS = ["a cat", "the dog looked at the cat on the mat", "", "[MASK] is text", "she ran"]


@pytest.fixture(scope="module")
def encoder():
    tokenizer = wordpiece_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    return BertModel(config).train(), tokenizer


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_an_embedding_is_the_mean_state_of_the_text_alone_however_batched(encoder, batch_size):
    model, tokenizer = encoder
    found = sentence_embeddings(TEXTS, *encoder, batch_size=batch_size)
    assert model.training
    model.eval()
    for text, embedding in zip(TEXTS, found, strict=True):
        read = tokenizer(text or ".", split_special_tokens=True, return_tensors="pt")
        assert tokenizer.mask_token_id not in read["input_ids"]
        with torch.no_grad():
            mean = model(**read).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(embedding, mean / mean.norm(), atol=1e-5, rtol=1e-5)
    model.train()


def test_a_long_text_is_read_to_its_limit_with_its_ends(encoder):
    model, tokenizer = encoder
    found = sentence_embeddings(["the cat sat on the mat"], *encoder, max_length=5)
    ids = tokenizer("the cat sat on the mat")["input_ids"]
    kept = torch.tensor([[*ids[:4], tokenizer.sep_token_id]])
    with torch.no_grad():
        mean = model.eval()(kept).last_hidden_state[0].mean(dim=0)
    model.train()
    torch.testing.assert_close(found[0], mean / mean.norm(), atol=1e-5, rtol=1e-5)


def test_an_encoder_is_opened_from_a_folder(encoder, tmp_path):
    for part in encoder:
        part.save_pretrained(tmp_path)
    found = sentence_embeddings(TEXTS, *load_sentence_encoder(str(tmp_path)))
    torch.testing.assert_close(found, sentence_embeddings(TEXTS, *encoder))
    with pytest.raises(OSError, match="`encoder` .*none' is no folder here"):
        load_sentence_encoder(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="`texts` must hold at least one text"):
        sentence_embeddings([], *encoder)
