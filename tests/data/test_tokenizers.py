"""Laws of tokenizers: training takes long lines without loss, and what a tokenizer does not know is noticed."""

import json
import logging

import pytest
from conftest import SENTENCES
from support.masked_lms import wordpiece_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from text_diffusers.cli.evaluation.text_bounds import evaluate_texts
from text_diffusers.data.tokenizers import (
    LONGEST_WORD,
    check_script,
    train_tokenizer,
    unknown_share,
)
from text_diffusers.training.text_options import TextTrainingConfig, prepare_data

GREEK = ["Καλημέρα, τι κάνεις σήμερα;", "Ο καιρός είναι πολύ καλός."] * 20


def parts(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def unigram_tokenizer():
    """As T5's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60,
        special_tokens=["<pad>", "</s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def forgetful_tokenizer():
    """It leaves out what it does not know."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=60))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


# Training


def test_ordinary_texts_give_the_merges_of_the_plain_trainer():
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["[EOS]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*SENTENCES, *GREEK]
    plain.train_from_iterator(texts, trainer)
    ours = parts(train_tokenizer(texts, 320))
    assert ours["model"]["merges"] == json.loads(plain.to_str())["model"]["merges"]
    assert ours["pre_tokenizer"] == json.loads(plain.to_str())["pre_tokenizer"]


def test_a_line_without_spaces_is_learned_in_pieces_and_read_whole():
    line = "abcdefghij" * LONGEST_WORD
    pieces = [line[first : first + LONGEST_WORD] for first in range(0, len(line), LONGEST_WORD)]
    of_the_line = train_tokenizer([line, *SENTENCES], 300)
    of_the_pieces = train_tokenizer([*pieces, *SENTENCES], 300)
    assert parts(of_the_line)["model"] == parts(of_the_pieces)["model"]
    assert of_the_line.decode(of_the_line(line)["input_ids"]) == line


# Tokens that are not known


@pytest.mark.parametrize("make", [wordpiece_tokenizer, unigram_tokenizer, forgetful_tokenizer])
def test_another_script_is_unknown_to_a_tokenizer_without_bytes(make):
    tokenizer = make()
    assert unknown_share(tokenizer, SENTENCES) < 0.1
    assert unknown_share(tokenizer, GREEK) > 0.5
    with pytest.raises(ValueError, match="script of the texts: .*% of the tokens"):
        check_script(tokenizer, GREEK)


def test_bytes_know_every_script_and_nothing_is_said(tokenizer, caplog):
    assert unknown_share(tokenizer, [*GREEK, "🙂 e\u0301"]) == 0
    check_script(tokenizer, GREEK)
    assert not caplog.records


def test_the_share_is_that_of_the_unknown_tokens(caplog):
    tokenizer = wordpiece_tokenizer()
    texts = [*SENTENCES, "Καλημέρα"]
    ids = [id for text in texts for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
    share = ids.count(tokenizer.unk_token_id) / len(ids)
    assert unknown_share(tokenizer, texts) == pytest.approx(share)
    with caplog.at_level(logging.WARNING):
        check_script(tokenizer, texts)
    assert f"{100 * share:.2g}% of the tokens" in caplog.text


@pytest.fixture
def greek_config(tmp_path):
    wordpiece_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "greek.txt").write_text("\n".join(GREEK), encoding="utf-8")
    return {
        "output_dir": str(tmp_path / "run"),
        "tokenizer": str(tmp_path / "tokenizer"),
        "dataset": str(tmp_path / "greek.txt"),
        "length": 16,
        "report_to": ["none"],
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_recipes_refuse_texts_that_the_tokenizer_does_not_know(greek_config, streaming):
    from text_diffusers.training.runtime import make_accelerator

    config = TextTrainingConfig(**greek_config, streaming=streaming, validation_documents=5)
    with pytest.raises(ValueError, match="`tokenizer` must know the script"):
        prepare_data(config, make_accelerator(config))


def test_an_evaluation_refuses_them_too(pipe):
    pipe.tokenizer = wordpiece_tokenizer()
    with pytest.raises(ValueError, match="`tokenizer` must know the script"):
        evaluate_texts(pipe, GREEK)
