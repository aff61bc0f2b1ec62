"""Laws of what the autoencoder is trained by: the mistakes it is shown, its loss, and what its codes keep of texts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from scipy.stats import binomtest, chisquare

from text_diffusers import AutoencoderVQTextModel
from text_diffusers.data.code_rows import full_rows
from text_diffusers.evaluation import reconstruction
from text_diffusers.evaluation.reconstruction import (
    Reconstruction,
    evaluate_reconstruction,
    reconstructions,
)
from text_diffusers.training.steps.autoencoder import CodeNoise, autoencoder_loss

VOCAB, END, MASK = 50, 48, 49
SILENT = CodeNoise(input_masking=0.0, fine_dropout=0.0, code_corruption=0.0)


def make(two=True, **changes):
    torch.manual_seed(0)
    levels = (
        {"coarse_ratio": 4, "num_coarse_codes": 10}
        if two
        else {"coarse_ratio": None, "num_coarse_codes": None}
    )
    sizes = {
        "hidden_size": 32,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_attention_heads": 2,
    }
    sizes |= {"num_fine_codes": 24, "codebook_dim": 8, "window_length": 16, "mask_token_id": MASK}
    model = AutoencoderVQTextModel(VOCAB, **sizes | levels | changes).train()
    model(torch.randint(0, END, (20, 16)))
    return model.eval()


def generators(rows, first=0):
    return [torch.Generator().manual_seed(first + row) for row in range(rows)]


def padded_batch(rows=6, length=16, seed=1):
    tokens = torch.randint(0, END, (rows, length), generator=torch.Generator().manual_seed(seed))
    lengths = torch.arange(rows) * 3 % length + 1
    mask = (torch.arange(length) < lengths.unsqueeze(1)).long()
    return {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}


def data_set(batch):
    return Dataset.from_dict({name: column.tolist() for name, column in batch.items()})


@pytest.mark.parametrize("two", [True, False])
def test_mistakes_come_at_their_rates(two):
    noise, config = (
        CodeNoise(input_masking=0.3, fine_dropout=0.2, code_corruption=0.1),
        make(two).config,
    )
    drawn = noise.draw(config, torch.Size([1000, 16]), generators(1000))
    assert set(drawn) == {"hidden", "wrong_fine"} | (
        {"without_fine", "wrong_coarse"} if two else set()
    )
    assert drawn["hidden"].shape == (1000, 16)
    rates = [(drawn["hidden"], 0.3), (drawn["wrong_fine"] >= 0, 0.1)]
    levels = {"wrong_fine": (8, 24)}
    if two:
        rates += [(drawn["without_fine"], 0.2), (drawn["wrong_coarse"] >= 0, 0.1)]
        levels |= {"wrong_coarse": (2, 10)}
    for happened, rate in rates:
        assert binomtest(int(happened.sum()), happened.numel(), rate).pvalue > 1e-3
        again = happened.reshape(
            len(happened), -1
        ).double()  # of one place as of the other: none depends on others
        assert (
            binomtest(
                int((again[:, 0] * again[:, -1]).sum()), 1000, rate ** (1 + (again.shape[1] > 1))
            ).pvalue
            > 1e-3
        )
    for name, (length, number) in levels.items():
        wrong = drawn[name]
        assert wrong.shape == (1000, length) and wrong.dtype == torch.long and wrong.min() == -1
        assert chisquare(np.bincount(wrong[wrong >= 0], minlength=number)).pvalue > 1e-3


def test_mistakes_of_a_row_are_its_generators():
    noise, config = CodeNoise(0.3, 0.5, 0.3), make().config
    every = noise.draw(config, torch.Size([5, 16]), generators(5))
    for row in range(5):
        alone = noise.draw(config, torch.Size([1, 16]), generators(1, first=row))
        assert all(
            torch.equal(values[row : row + 1], alone[name]) for name, values in every.items()
        )
    assert len({tuple(row.tolist()) for row in every["hidden"]}) == 5


@pytest.mark.parametrize("two", [True, False])
def test_the_loss_without_mistakes_is_the_cross_entropy_of_the_counted_tokens(two):
    model, batch = make(two), padded_batch()
    tokens, counted = full_rows(batch, END), batch["attention_mask"].bool()
    assert (
        torch.equal(tokens[counted], batch["input_ids"][counted])
        and (tokens[~counted] == END).all()
    )
    codes = model.encode(tokens)
    log_probs = torch.log_softmax(model.decode(codes.fine, codes.coarse).double(), dim=-1)
    wanted = -log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)[counted].sum()
    loss = autoencoder_loss(model, batch, SILENT, generators(6), END)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert autoencoder_loss(model, batch, CodeNoise(), generators(6), END).item() != pytest.approx(
        wanted.item(), 1e-3
    )


def test_the_losses_of_quantisers_and_topics_count_as_often_as_there_are_tokens():
    batch, losses = padded_batch(), []
    for weight in (0.0, 0.5):
        model = make(commitment_weight=weight).train()
        losses.append(autoencoder_loss(model, batch, SILENT, generators(6), END).item())
    output, count = (
        make(commitment_weight=0.5).train()(full_rows(batch, END)),
        int(batch["attention_mask"].sum()),
    )
    loss = output.commitment_loss.item()
    assert loss > 1e-3 and losses[1] - losses[0] == pytest.approx(loss * count, rel=1e-3)
    topics = [
        autoencoder_loss(make(), batch, SILENT, generators(6), END, weight).item()
        for weight in (0.0, 0.3)
    ]
    topic_loss = make()(full_rows(batch, END)).topic_loss.item()
    assert topic_loss > 1 and topics[1] - topics[0] == pytest.approx(
        0.3 * topic_loss * count, rel=1e-4
    )


def test_usage_and_perplexity_are_those_of_the_frequencies():
    fine, coarse = torch.tensor([5, 0, 3, 2, 0]), torch.tensor([4, 4, 4, 0])
    metrics = Reconstruction(1.5, 0.5, 2.5, 0.25, fine, coarse).metrics()
    shares = fine.numpy()[fine.numpy() > 0] / 10
    assert metrics["fine_perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert metrics["coarse_perplexity"] == pytest.approx(3) and metrics["coarse_usage"] == 0.75
    assert metrics["fine_usage"] == pytest.approx(0.6)
    assert {
        name: metrics[name]
        for name in ("cross_entropy", "accuracy", "coarse_cross_entropy", "coarse_accuracy")
    } == {
        "cross_entropy": 1.5,
        "accuracy": 0.5,
        "coarse_cross_entropy": 2.5,
        "coarse_accuracy": 0.25,
    }
    single = Reconstruction(1.5, 0.5, None, None, fine, None).metrics()
    assert set(single) == {"cross_entropy", "accuracy", "fine_usage", "fine_perplexity"}


@pytest.mark.parametrize("at_once", [1, 4, 64])
@pytest.mark.parametrize("two", [True, False])
def test_a_reconstruction_is_that_of_the_counted_tokens_in_batches_of_any_size(
    two, at_once, monkeypatch
):
    model, batch = make(two), padded_batch(rows=11)
    monkeypatch.setattr(reconstruction, "EVALUATED_AT_ONCE", at_once)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = evaluate_reconstruction(model, data_set(batch), END)
    tokens, counted = full_rows(batch, END), batch["attention_mask"].bool()
    codes = model.encode(tokens)
    decodings = {"": model.decode(codes.fine, codes.coarse)}
    if two:
        decodings["coarse_"] = model.decode(None, codes.coarse)
    for name, logits in decodings.items():
        nats = F.cross_entropy(logits[counted].double(), tokens[counted])
        assert getattr(found, f"{name}cross_entropy") == pytest.approx(nats.item(), rel=1e-5)
        hits = (logits.argmax(-1) == tokens)[counted].double().mean()
        assert getattr(found, f"{name}accuracy") == pytest.approx(hits.item())
    np.testing.assert_array_equal(
        found.fine_counts, np.bincount(codes.fine.flatten(), minlength=24)
    )
    if two:
        np.testing.assert_array_equal(
            found.coarse_counts, np.bincount(codes.coarse.flatten(), minlength=10)
        )
    else:
        assert found.coarse_counts is found.coarse_cross_entropy is found.coarse_accuracy is None
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("two", [True, False])
def test_texts_are_shown_beside_what_codes_keep_of_them(tokenizer, two):
    torch.manual_seed(0)
    levels = {} if two else {"coarse_ratio": None, "num_coarse_codes": None}
    model = AutoencoderVQTextModel(
        len(tokenizer), hidden_size=32, num_attention_heads=2, **levels
    ).eval()
    ids = tokenizer("the cat sat on the mat").input_ids[:8]
    batch = {"input_ids": torch.tensor([ids + [tokenizer.pad_token_id] * (16 - len(ids))])}
    batch["attention_mask"] = (torch.arange(16) < len(ids)).long().unsqueeze(0)
    shown = reconstructions(model, tokenizer, data_set(batch), 3, tokenizer.eos_token_id)
    names = ["text", "both levels", "coarse alone"] if two else ["text", "codes"]
    assert [line.partition(": ")[0] for line in shown] == names
    assert shown[0] == f"text: {tokenizer.decode(ids)}"
    tokens = full_rows(batch, tokenizer.eos_token_id)
    codes = model.encode(tokens)
    decoded = model.decode(codes.fine, codes.coarse).argmax(-1)[0]
    assert shown[1] == f"{names[1]}: {tokenizer.decode(decoded, skip_special_tokens=True)}"
