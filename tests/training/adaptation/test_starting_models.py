"""Laws of the models and tokenizers that training starts from: what a name stands for, what mistakes say."""

import pytest
from support.masked_lms import make_masked_lm
from transformers import GPT2Config, GPT2LMHeadModel, T5Config

from text_diffusers import TextDiffusionPipeline
from text_diffusers.training.adaptation.starting_models import (
    holds_language_model,
    knows_no_ends,
    load_tokenizer,
    saved_pipeline,
)


@pytest.fixture
def folders(tmp_path, pipe):
    masked_lm, tokenizer = make_masked_lm("bert")
    for part in (masked_lm, tokenizer):
        part.save_pretrained(tmp_path / "masked_lm")
    pipe.save_pretrained(tmp_path / "pipeline")
    sizes = {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes, **ends)).save_pretrained(tmp_path / "causal_lm")
    T5Config().save_pretrained(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_folders_and_shipped_models_are_what_they_are(folders):
    assert holds_language_model(str(folders / "masked_lm"))
    assert holds_language_model(str(folders / "causal_lm"))
    assert not holds_language_model(str(folders / "pipeline"))
    # Only a masked LM was never asked where a text ends.
    assert knows_no_ends(str(folders / "masked_lm"))
    assert not knows_no_ends(str(folders / "causal_lm"))
    assert not knows_no_ends(str(folders / "pipeline"))
    assert not holds_language_model("chat-and-novels")
    assert saved_pipeline("chat-and-novels")["label_names"] == ["chat", "novel"]
    assert saved_pipeline(str(folders / "masked_lm")) is None


def test_a_tokenizer_is_found_by_the_name_of_its_pipeline(folders, tokenizer):
    assert load_tokenizer(str(folders / "pipeline")).get_vocab() == tokenizer.get_vocab()
    assert load_tokenizer(str(folders / "pipeline" / "tokenizer")).mask_token == "[MASK]"
    shipped = TextDiffusionPipeline.from_pretrained("chat-and-novels").tokenizer
    assert load_tokenizer("chat-and-novels").get_vocab() == shipped.get_vocab()


@pytest.mark.parametrize("name", ["runs/mien", "./runs/mien", "a/b/c", "chat-and-novel", "gpt2"])
def test_a_typo_is_told_where_it_was_looked_for(name):
    for look_up, option in (
        (holds_language_model, "model_name_or_path"),
        (saved_pipeline, "model_name_or_path"),
        (load_tokenizer, "tokenizer"),
    ):
        with pytest.raises(ValueError) as refusal:
            look_up(name)
        message = str(refusal.value)
        assert message.startswith(f"`{option}`={name!r} is no folder here")
        assert "four-voices" in message and "Hub" in message and "packing" not in message


def test_folders_without_a_model_of_the_kind_are_refused(folders):
    with pytest.raises(ValueError, match="is a folder, but holds no model_index.json or config"):
        holds_language_model(str(folders / "empty"))
    with pytest.raises(ValueError, match="a causal LM, or a diffusion .* got t5"):
        holds_language_model(str(folders / "t5"))
    with pytest.raises(ValueError, match="got no model of transformers"):
        holds_language_model(str(folders / "pipeline" / "denoiser"))
    with pytest.raises(ValueError, match="is a folder, but holds no tokenizer"):
        load_tokenizer(str(folders / "empty"))
