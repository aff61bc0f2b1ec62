"""Laws of language models that become diffusion models: who sees whom, where new weights begin, how they are kept."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import mostly_slow
from support.language_models import chat_pipe, make_language_model, word_tokenizer
from support.masked_lms import SENTENCES, make_masked_lm, wordpiece_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.common.token_ids import end_ids
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.models import LanguageModelDenoiser
from text_diffusers.models.reading import Reading, read_config, write_reading
from text_diffusers.training.adaptation.language_models import (
    choose_attention,
    load_language_model,
    training_denoiser,
    writing_defaults,
)
from text_diffusers.training.adaptation.options import AdaptationConfig
from text_diffusers.training.adaptation.starting_models import kind_of_model, knows_no_ends
from text_diffusers.training.adaptation.vocabulary import FEWEST_OCCURRENCES, pruned_tokenizer

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
GPT2_SIZES = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
GPT_NEO_SIZES = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "attention_types": [[["global", "local"], 1]],
    "max_position_embeddings": 64,
}
BLOOM_SIZES = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "max_position_embeddings": 64}
# Architectures of transformers that show every token to every other when their configuration says so
OPENED = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "olmo2",
    "olmo3",
    "granite",
    "cohere2",
    "starcoder2",
    "gpt2",
    "gpt_neox",
    "opt",
    "exaone4",
    "helium",
    "ernie4_5",
)
# One of each way to hold positions and windows
FAST = ("llama", "gemma3_text", "phi", "gpt2", "gpt_neox", "opt")
# And those that stay causal whatever it says
CLOSED = ("stablelm", "nemotron", "mamba")


def save_causal_lm(folder, model_type):
    tokenizer = word_tokenizer()
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    sizes = GPT2_SIZES if model_type == "gpt2" else SIZES
    if model_type == "opt":
        sizes = SIZES | {"ffn_dim": 24, "word_embed_proj_dim": 16}
    if model_type == "gpt_neox":
        sizes = {name: size for name, size in SIZES.items() if name != "head_dim"}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **ids, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("model_type", mostly_slow(OPENED, fast=FAST))
def test_every_token_of_an_opened_model_feels_every_other(tmp_path, model_type):
    tokenizer = save_causal_lm(tmp_path, model_type)
    asked = {"attention": "bidirectional"}
    denoiser, _ = load_language_model(str(tmp_path), tokenizer, reading=asked)
    denoiser.eval()
    row = torch.tensor([[6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        logits = denoiser(row).logits
        for planted in range(row.shape[1]):
            other = row.clone()
            other[0, planted] = 20
            felt = (denoiser(other).logits != logits).any(dim=-1)[0]
            assert felt.all(), f"the token at {planted} is felt at {felt.tolist()}"

    # Stock transformers reads the saved model in the same way.
    denoiser.language_model.save_pretrained(tmp_path / "adapted")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "adapted").eval()
    with torch.no_grad():
        shifted = stock(row).logits[:, :-1]
    written = torch.isfinite(logits[:, 1:])
    torch.testing.assert_close(shifted[written], logits[:, 1:][written])


@pytest.mark.parametrize("model_type", CLOSED)
def test_models_that_stay_causal_are_refused_by_name(tmp_path, model_type):
    tokenizer = save_causal_lm(tmp_path, model_type)
    with pytest.raises(ValueError, match=f"(?i){model_type}"):
        load_language_model(str(tmp_path), tokenizer, reading={"attention": "bidirectional"})


@pytest.mark.parametrize(
    "model_type", mostly_slow([*OPENED, "stablelm", "nemotron"], fast=[*FAST, "stablelm"])
)
def test_causal_models_are_read_in_blocks_over_their_past_by_default(tmp_path, model_type):
    tokenizer = save_causal_lm(tmp_path, model_type)
    denoiser, _ = load_language_model(str(tmp_path), tokenizer)
    reading = read_config(denoiser.language_model.config)
    assert (reading.attention, reading.past) == ("block", "causal")
    assert tokenizer.bos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("model_type, sizes", [("gpt_neo", GPT_NEO_SIZES), ("bloom", BLOOM_SIZES)])
def test_models_without_masks_of_pairs_are_refused_by_name(tmp_path, model_type, sizes):
    tokenizer = word_tokenizer()
    config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ForCausalLM, which cannot be read in blocks"):
        load_language_model(str(tmp_path), tokenizer)


ENCODERS = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
    "modernbert": (ModernBertConfig, ModernBertModel),
}


def test_tokens_are_not_counted_for_a_model_with_a_head(tmp_path):
    model, tokenizer = make_masked_lm("bert")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    load_language_model(str(tmp_path), tokenizer, lambda: pytest.fail("tokens were counted"))


@pytest.mark.parametrize("model_type", ENCODERS)
def test_an_encoder_without_a_head_begins_at_the_frequencies(tmp_path, model_type):
    tokenizer = wordpiece_tokenizer()
    make_config, make_encoder = ENCODERS[model_type]
    sizes = {
        name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    }
    torch.manual_seed(0)
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id"), 0)
    config = make_config(vocab_size=len(tokenizer), intermediate_size=24, **sizes, **ids)
    encoder = make_encoder(config)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert kind_of_model(str(tmp_path)) == "masked_lm"
    assert knows_no_ends(str(tmp_path))

    rows = tokenizer(SENTENCES, add_special_tokens=False)["input_ids"]
    counts = torch.bincount(torch.tensor(sum(rows, [])), minlength=len(tokenizer))
    denoiser, _ = load_language_model(str(tmp_path), tokenizer, lambda: counts)
    model = denoiser.language_model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    before = encoder.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, before)

    # Its prediction of masks is that of the frequencies, to what small random states add to it.
    masks = torch.full((1, 5), tokenizer.mask_token_id)
    with torch.no_grad():
        logits = model.eval()(masks).logits[0, 0]
    frequencies = (counts + 1) / (counts + 1).sum()
    divergence = (frequencies * (frequencies.log() - logits.log_softmax(-1))).sum()
    assert 0 <= divergence < 0.1 * math.log(len(tokenizer))

    # It learns where texts end, and says so where it is saved.
    reading = read_config(model.config)
    assert reading.end_token_ids == [tokenizer.sep_token_id] and reading.alignment == "aligned"
    model.save_pretrained(tmp_path / "adapted")
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path / "adapted").eval()
    with torch.no_grad():
        torch.testing.assert_close(stock(masks).logits[0, 0], logits)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_a_masked_lm_keeps_its_head(tmp_path, model_type):
    masked_lm, tokenizer = make_masked_lm(model_type)
    masked_lm.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    counts = torch.ones(len(tokenizer))
    denoiser, _ = load_language_model(str(tmp_path), tokenizer, lambda: counts)
    kept = dict(denoiser.language_model.named_parameters())
    for name, parameter in masked_lm.named_parameters():
        assert torch.equal(kept[name], parameter), name


@pytest.mark.parametrize("vocabulary", ["retrained", "pruned"])
def test_a_pipeline_with_another_vocabulary_has_the_mask_and_the_ends_of_that(tmp_path, vocabulary):
    """A masked LM whose mask was among the first tokens, and a causal LM whose mask was the last one."""
    sentences = SENTENCES * FEWEST_OCCURRENCES
    if vocabulary == "retrained":
        model, old = make_masked_lm("bert")
        new = train_tokenizer(sentences, vocab_size=310)
        reading = Reading()
    else:
        old = train_tokenizer(sentences, vocab_size=320)
        new = pruned_tokenizer(old, sentences[:1] * FEWEST_OCCURRENCES)
        model = make_language_model(vocab_size=len(old))
        reading = Reading("block", 4, past="causal", alignment="shifted")
    ids = {"mask_token_id": old.mask_token_id, "end_token_ids": end_ids(old)}
    write_reading(model.config, replace(reading, **ids))
    scheduler = ConfidenceScheduler(old.mask_token_id, order="left_to_right")
    TextDiffusionPipeline(old, model, scheduler).save_pretrained(tmp_path)

    denoiser, scheduler = load_language_model(str(tmp_path), new)
    assert denoiser.reading.mask_token_id == new.mask_token_id != old.mask_token_id
    assert denoiser.reading.end_token_ids == [new.eos_token_id]
    hidden = scheduler.prior((1, 5))
    assert (
        hidden.tolist() == [[new.mask_token_id] * 5] and scheduler.config.order == "left_to_right"
    )

    # It predicts what it predicted, by the new ids.
    if vocabulary == "pruned":
        old_ids = old.convert_tokens_to_ids(new.convert_ids_to_tokens(range(len(new))))
        with torch.no_grad():
            want = training_denoiser(model, old)(torch.full((1, 5), old.mask_token_id)).logits
            got = denoiser.eval()(hidden).logits
        torch.testing.assert_close(got, want[..., old_ids])
        assert denoiser.language_model.generation_config.eos_token_id == new.eos_token_id

    pipe = TextDiffusionPipeline(new, denoiser.language_model, scheduler)
    pipe.save_pretrained(tmp_path / "adapted")
    pipe = TextDiffusionPipeline.from_pretrained(tmp_path / "adapted")
    pipe.set_progress_bar_config(disable=True)
    assert new.mask_token not in pipe("The cat", max_new_tokens=6).texts[0]


def test_saved_defaults_of_writing_stay_with_the_blocks_that_they_are_for(tmp_path):
    pipe = chat_pipe(attention="block", past="causal", block_length=4)
    pipe.generation_defaults = {"num_inference_steps": 3, "top_p": 0.5}
    pipe.save_pretrained(tmp_path)

    def defaults(**reading):
        denoiser, _ = load_language_model(str(tmp_path), pipe.tokenizer, reading=reading)
        return writing_defaults(denoiser, "language_pipeline", str(tmp_path), length=32)

    assert defaults() == defaults(block_length=4) == pipe.generation_defaults
    assert defaults(block_length=16)["num_inference_steps"] == 16
    assert defaults(attention="bidirectional")["num_inference_steps"] == 32


def test_what_is_trained_has_a_learning_rate_of_its_own(tmp_path):
    save_causal_lm(tmp_path, "llama")

    def rate(**options):
        settings = {"output_dir": "unused", "report_to": ["none"]} | options
        return AdaptationConfig(**settings).learning_rate

    assert rate() == 1e-3
    causal = {"model_name_or_path": str(tmp_path)}
    assert rate(**causal) < rate(**causal, lora_rank=4) < rate()
    assert rate(**causal, learning_rate=3e-3) == 3e-3
    with pytest.raises(ValueError, match="`attention` and `alignment` must be left out without"):
        rate(attention="causal")
    with pytest.raises(ValueError, match="`prune_vocabulary` and `retrain_tokenizer` need"):
        rate(prune_vocabulary=True)


def test_the_warm_up_is_a_tenth_of_a_short_budget_at_most(tmp_path):
    save_causal_lm(tmp_path, "llama")

    def warm_up(**options):
        settings = {"output_dir": "unused", "model_name_or_path": str(tmp_path)}
        config = AdaptationConfig(**settings, report_to=["none"], **options)
        config.settle_steps(num_rows=1_000, rows_per_step=8)
        return config.lr_warmup_steps

    assert warm_up() == 37
    assert warm_up(max_train_steps=5_000) == 100
    # How many steps minutes are is not known beforehand: the loop goes by the clock.
    assert warm_up(max_train_minutes=15) is None
    assert warm_up(max_train_minutes=15, lr_warmup_steps=20) == 20


def test_the_fastest_attention_for_training_changes_no_prediction():
    model = make_language_model("llama", Reading(attention="bidirectional"))
    denoiser = LanguageModelDenoiser(model)
    tokens = torch.arange(6, 22).reshape(2, 8)
    want = denoiser(tokens).logits

    on_cpu = SimpleNamespace(device=torch.device("cpu"), mixed_precision="bf16")
    choose_attention(denoiser, on_cpu, length=1024)
    assert model.config._attn_implementation == "sdpa"
    choose_attention(denoiser, on_cpu, length=64)
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(denoiser(tokens).logits, want, atol=1e-4, rtol=1e-4)
