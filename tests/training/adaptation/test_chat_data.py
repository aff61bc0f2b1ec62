"""Laws of learning conversations: rows that are shared, the ends of replies, and what a trained model answers."""

import json

import pytest
import torch
from datasets import Dataset
from support.language_models import make_language_model, word_tokenizer
from support.masked_lms import make_masked_lm
from support.recipes import load_script

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.data.chat_rows import ChatRows
from text_diffusers.data.chat_templates import ChatTemplate
from text_diffusers.data.rows import to_tensors, unknown_tokens
from text_diffusers.data.tokenizers import add_missing_tokens
from text_diffusers.evaluation.bounds import noisy_token_bound
from text_diffusers.models import LanguageModelDenoiser, Reading
from text_diffusers.training.adaptation.chat_data import expected_reading
from text_diffusers.training.adaptation.language_models import load_language_model
from text_diffusers.training.adaptation.starting_models import load_tokenizer

train_d3pm = load_script("train_d3pm")

MASK = 0
READINGS = {
    "bidirectional": Reading(attention="bidirectional", alignment="shifted", mask_token_id=MASK),
    "block": Reading(attention="block", block_length=4, mask_token_id=MASK),
    "causal past": Reading(
        attention="block", past="causal", block_length=4, alignment="shifted", mask_token_id=MASK
    ),
}


def conversations(count=9):
    chats = []
    for index in range(count):
        turns = [{"role": "user", "content": f"w{6 + index} w7", "learned": False}]
        answer = " ".join(f"w{10 + place}" for place in range(1 + index % 5))
        turns.append({"role": "assistant", "content": answer, "learned": True})
        chats.append(turns * (1 + index % 2))
    return Dataset.from_dict({"messages": chats})


def masked(batch):
    """Every other learned token of each conversation is masked, wherever it stands."""
    learned = unknown_tokens(batch)
    segments = batch.get("segment_ids", torch.zeros_like(batch["input_ids"]))
    hidden = torch.zeros_like(learned)
    for row in range(len(learned)):
        for segment in segments[row].unique():
            places = (learned[row] & (segments[row] == segment)).nonzero().flatten()
            hidden[row, places[::2]] = True
    return batch["input_ids"].masked_fill(hidden, MASK)


@torch.no_grad()
def nats(denoiser, batch):
    noisy = masked(batch)
    times = (
        torch.full(noisy.shape, 0.5)
        if denoiser.config.block_length
        else torch.full((len(noisy),), 0.5)
    )
    return noisy_token_bound(denoiser, D3PMAbsorbingScheduler(MASK), batch, noisy, times)


@pytest.mark.parametrize("kind", READINGS)
def test_the_loss_of_rows_that_are_shared_is_the_sum_of_that_of_the_conversations_alone(kind):
    template = ChatTemplate(word_tokenizer())
    denoiser = LanguageModelDenoiser(make_language_model(reading=READINGS[kind]))
    settings = {"length": 64, "block_length": 4}
    shared = to_tensors(ChatRows(template, shares_rows=True, **settings)(conversations())[:])
    alone = to_tensors(ChatRows(template, **settings)(conversations())[:])
    assert len(shared["input_ids"]) < len(alone["input_ids"]) == 9
    if kind == "causal past":
        # Blocks begin with the row, as they do where rows are shared.
        alone["segment_ids"] = torch.ones_like(alone["input_ids"])

    together, apart = nats(denoiser, shared), nats(denoiser, alone)
    assert (together > 0).sum() == (apart > 0).sum() > 20
    torch.testing.assert_close(together.sum(), apart.sum(), atol=1e-4, rtol=1e-5)
    # Token by token, in the order of the conversations
    torch.testing.assert_close(
        together[together > 0].sort().values, apart[apart > 0].sort().values, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", READINGS)
def test_a_token_that_is_planted_in_one_conversation_is_not_felt_in_another(kind):
    template = ChatTemplate(word_tokenizer())
    denoiser = LanguageModelDenoiser(make_language_model(reading=READINGS[kind]))
    rows = ChatRows(template, 64, block_length=4, shares_rows=True)(conversations())
    batch = {name: column[:1] for name, column in to_tensors(rows[:]).items()}
    planted = dict(batch)
    planted["input_ids"] = batch["input_ids"].clone()
    planted["input_ids"][0, 1] = 39  # in the first conversation's question
    before, after = nats(denoiser, batch), nats(denoiser, planted)
    others = batch["segment_ids"] != 1
    assert torch.equal(before[others], after[others])
    assert not torch.equal(before[~others], after[~others])


# How a model will be read


@pytest.mark.parametrize("attention", [None, "bidirectional", "block"])
@pytest.mark.parametrize("kind", ["masked LM", "causal LM"])
def test_rows_are_laid_out_for_the_reading_that_the_model_then_has(kind, attention, tmp_path):
    folder = tmp_path / "start"
    start(kind, folder)
    options = {"output_dir": str(tmp_path / "run"), "report_to": ["none"], "attention": attention}

    # First of the model by itself, and then of the pipeline that was made of it
    for saved in (False, True):
        config = train_d3pm.D3PMConfig(model_name_or_path=str(folder), **options)
        tokenizer = add_missing_tokens(load_tokenizer(str(folder)))
        denoiser, scheduler = load_language_model(str(folder), tokenizer, None, config.reading)
        for name in ("attention", "block_length", "past", "blocks_from"):
            expected = getattr(expected_reading(config), name)
            assert expected == getattr(denoiser.reading, name), (saved, name)
        folder = tmp_path / "pipeline"
        pipe = TextDiffusionPipeline(tokenizer, denoiser.language_model, scheduler)
        pipe.save_pretrained(folder)
        options["attention"] = None


# What is learned

TRAINED = [
    ["w6 w7", "w20 w21 w22"],
    ["w8", "w23", "w9 w10", "w24 w25 w26 w27 w28 w29"],
    ["w11 w12 w13", "w30 w31"],
]


def messages(chat):
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": said} for place, said in enumerate(chat)]


@pytest.fixture
def settings(tmp_path):
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": messages(chat)} for chat in TRAINED] * 8
    path.write_text("\n".join(map(json.dumps, rows)))
    return {
        "dataset": str(path),
        "output_dir": str(tmp_path / "run"),
        "length": 32,
        "max_train_steps": 300,
        "train_batch_size": 8,
        "learning_rate": 3e-3,
        "lr_warmup_steps": 10,
        "ema_decay": 0.9,
        "num_cpu_threads": 1,
        "num_samples": 1,
        "num_length_samples": 2,
        "validation_steps": 0,
        "checkpointing_steps": 0,
        "report_to": ["none"],
    }


def start(kind, folder):
    """A model with random weights, as its authors would publish it, and options that it needs."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer()
    if kind == "masked LM":
        model, tokenizer = make_masked_lm("bert", max_position_embeddings=160)
        tokenizer.add_tokens([f"w{index}" for index in range(6, 40)])
        model.resize_token_embeddings(len(tokenizer))
    else:
        # Without a mask, which training adds
        tokenizer = word_tokenizer(mask_token=None, pad_token="<|pad|>", eos_token="<|end|>")
        model = make_language_model(bos_token_id=4, eos_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = {
        "masked LM": {"chat_template": "chatml", "length": 96, "max_train_steps": 2500},
        "bidirectional": {"attention": "bidirectional"},
    }
    return {"model_name_or_path": str(folder)} | options.get(kind, {})


@pytest.mark.parametrize("kind", ["block", "bidirectional", "masked LM"])
@pytest.mark.slow
def test_a_model_answers_what_it_has_learned_alone_and_in_a_batch(kind, settings, tmp_path):
    config = train_d3pm.D3PMConfig(**settings | start(kind, tmp_path / "start"))
    losses = train_d3pm.main(config)
    assert losses[-1] < 0.1 * losses[0]

    pipe = TextDiffusionPipeline.from_pretrained(config.output_dir)
    pipe.set_progress_bar_config(disable=True)
    asked, wanted = [], []
    for chat in TRAINED:
        turns = messages(chat)
        for place in range(1, len(turns), 2):
            asked.append(turns[:place])
            wanted.append(turns[place]["content"])

    # More room than any answer needs, so that each ends by itself
    options = {"num_inference_steps": 24, "temperature": 0.0, "max_new_tokens": 16}
    alone = [pipe(messages=turns, **options).texts[0].strip() for turns in asked]
    assert alone == wanted
    together = pipe(messages=asked, **options).texts
    assert [text.strip() for text in together] == wanted

    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert 0 < metrics["bound"] < 0.5 and metrics["length_distance"] == 0
