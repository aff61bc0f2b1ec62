"""Laws of other vocabularies: pruned ones change no text, no logit; new ones begin as the mean of what spells them."""

import json

import pytest
import torch
from support.masked_lms import (
    SENTENCES,
    byte_level_tokenizer,
    make_masked_lm,
    wordpiece_tokenizer,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from text_diffusers.common.plain_text import special_names
from text_diffusers.data.chat_templates import CHATML_MARKS
from text_diffusers.data.tokenizers import add_missing_tokens, train_tokenizer
from text_diffusers.training.adaptation.vocabulary import (
    FEWEST_OCCURRENCES,
    pruned_tokenizer,
    spellings,
    transfer_vocabulary,
    transferred,
)

KEPT_TEXTS = ["the cat sat on the mat", "she ran for the train"]
OTHER_TEXT = "Paris slept and a bird of France sang all the way."


def unigram_tokenizer():
    """As XLM-R's: pieces with scores, a mark before each word, unknown characters."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **names)


def word_end_tokenizer():
    """As GPT's first: a BPE whose tokens tell the end of a word, so that its alphabet has each letter twice."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES, OTHER_TEXT], trainer)
    names = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **names)


KINDS = {
    "wordpiece": wordpiece_tokenizer,
    "byte_level": byte_level_tokenizer,
    "unigram": unigram_tokenizer,
    "word_end": word_end_tokenizer,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_model_has_the_same_tokens_and_the_same_logits_on_them(kind):
    tokenizer = KINDS[kind]()
    pruned = pruned_tokenizer(tokenizer, KEPT_TEXTS * FEWEST_OCCURRENCES)
    assert len(pruned) < len(tokenizer)
    for name in ("mask_token", "pad_token", "cls_token", "sep_token"):
        assert getattr(pruned, name) == getattr(tokenizer, name)

    # Texts of kept tokens are the same, with the tokens around them; any other text is still spelt, by other tokens.
    for text in KEPT_TEXTS:
        before = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        assert pruned.convert_ids_to_tokens(pruned(text).input_ids) == before
    ids = pruned(OTHER_TEXT, add_special_tokens=False).input_ids
    assert pruned.unk_token_id not in ids
    whole = tokenizer.decode(tokenizer(OTHER_TEXT, add_special_tokens=False).input_ids)
    assert pruned.decode(ids) == whole

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    kept_ids = tokenizer.convert_tokens_to_ids(pruned.convert_ids_to_tokens(range(len(pruned))))
    old_ids = tokenizer(KEPT_TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(old_ids).logits[..., kept_ids]
        transfer_vocabulary(model, tokenizer, pruned)
        logits = model(pruned(KEPT_TEXTS[0], return_tensors="pt").input_ids).logits
    torch.testing.assert_close(logits, expected)
    assert model.config.vocab_size == len(pruned)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_what_is_special_in_a_tokenizer_is_special_once_it_is_pruned(tmp_path):
    """Also what has no role: who could write the end of a turn could speak for another."""
    tokenizer = wordpiece_tokenizer()
    tokenizer.add_tokens([*CHATML_MARKS], special_tokens=True)
    chatty = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        additional_special_tokens=[*CHATML_MARKS],
        **tokenizer.special_tokens_map,
    )
    pruned_tokenizer(chatty, KEPT_TEXTS * FEWEST_OCCURRENCES).save_pretrained(tmp_path)
    pruned = AutoTokenizer.from_pretrained(tmp_path)
    assert set(pruned.all_special_tokens) == {*tokenizer.special_tokens_map.values(), *CHATML_MARKS}
    for mark in CHATML_MARKS:
        assert special_names(pruned, f"the cat {mark} sat") == [mark]


def test_pieces_that_look_like_marks_of_another_kind_change_no_vector():
    tokenizer = unigram_tokenizer()
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    description["model"]["vocab"] += [["\u0120", -9.0], ["###", -9.0]]
    strayed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)), **tokenizer.special_tokens_map
    )
    pruned = pruned_tokenizer(strayed, KEPT_TEXTS * FEWEST_OCCURRENCES)
    names = pruned.convert_ids_to_tokens(range(len(pruned)))
    assert spellings(strayed, pruned) == [[strayed.convert_tokens_to_ids(name)] for name in names]


def test_new_tokens_begin_as_the_mean_of_what_spells_them():
    tokenizer = wordpiece_tokenizer()
    new = train_tokenizer(SENTENCES * 3, vocab_size=320)
    spelt = spellings(tokenizer, new)
    # Roles keep their vectors, whatever the tokens are called.
    assert spelt[new.mask_token_id] == [tokenizer.mask_token_id]
    assert spelt[new.pad_token_id] == [tokenizer.pad_token_id]
    assert spelt[new.eos_token_id] in ([tokenizer.sep_token_id], [tokenizer.cls_token_id])

    # A word is spelt as the old tokenizer spells it, capital letters as the small ones that it knows.
    word = new(" the", add_special_tokens=False).input_ids
    assert len(word) == 1 and spelt[word[0]] == tokenizer("the", add_special_tokens=False).input_ids
    assert all(tokenizer.unk_token_id not in ids for ids in spelt)

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))
    table = model.get_input_embeddings().weight.detach().clone()
    transfer_vocabulary(model, tokenizer, new)
    torch.testing.assert_close(
        model.get_input_embeddings().weight.detach(), transferred(table, spelt)
    )


def test_a_model_that_counts_positions_from_its_padding_keeps_the_id_of_that():
    model, tokenizer = make_masked_lm("roberta")
    new = train_tokenizer(SENTENCES * 3, vocab_size=320)
    with pytest.raises(ValueError, match="`retrain_tokenizer` .* its padding, 1, got .* is 320"):
        transfer_vocabulary(model, tokenizer, new)
    transfer_vocabulary(model, tokenizer, pruned_tokenizer(tokenizer, KEPT_TEXTS))


def test_tokenizers_that_cannot_be_pruned_are_refused_by_their_kind():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "tea": 1}, unk_token="[UNK]"))
    tokenizer = add_missing_tokens(
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    )
    with pytest.raises(ValueError, match="`prune_vocabulary` needs .* got one of WordLevel"):
        pruned_tokenizer(tokenizer, ["tea"])
