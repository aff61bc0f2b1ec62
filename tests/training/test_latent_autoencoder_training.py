"""The step of the autoencoder with continuous latents: free bits, what is dropped, and that latents are learned."""

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from support.latent_models import decoder_config, encoder_config, make_autoencoder, padded

from text_diffusers import AutoencoderTextLatentModel
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import to_tensors
from text_diffusers.evaluation import evaluate_latents
from text_diffusers.losses import gaussian_kl, with_free_bits
from text_diffusers.models.latent.prefix_decoder import COMMON_TOKENS
from text_diffusers.training.steps.latent_autoencoder import (
    LatentDropout,
    LatentLossWeights,
    latent_autoencoder_loss,
)

TEXTS = [[1, 3, 4, 5, 2], [1, 6, 7, 8, 9, 2], [1, 10, 2]]


def make_batch(texts=TEXTS):
    ids, mask = padded(texts)
    given = torch.zeros_like(ids, dtype=torch.bool)
    given.scatter_(1, mask.argmax(dim=1, keepdim=True), True)
    columns = {"input_ids": ids, "attention_mask": mask, "given": given}
    return columns | {"encoder_ids": ids + 5, "encoder_mask": mask}


def generators_of(count):
    return row_noise(seed=0, step=0, num_rows=count)[1]


def test_the_loss_is_the_bound_with_latents_that_the_generators_draw():
    model = make_autoencoder()
    batch = make_batch()
    loss = latent_autoencoder_loss(model, batch, LatentDropout(), generators_of(3))

    expected = 0.0
    for row, text in enumerate(TEXTS):
        posterior = model.encode(torch.tensor([text]) + 5)
        generator = [generators_of(3)[row]]
        noise = LatentDropout().draw(model.config, 1, 6, generator)["noise"]
        ids = torch.tensor([text])
        logits = model.decode_logits(model.sample(posterior, noise), ids)[0, 1:]
        expected += F.cross_entropy(logits, ids[0, 1:], reduction="sum")
        expected += gaussian_kl(posterior.latents, posterior.logvar).sum()
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)


def test_below_the_floor_the_divergence_has_no_gradient_and_above_its_own():
    mean = torch.tensor([0.0, 0.1, 2.0, -3.0], requires_grad=True)
    logvar = torch.tensor([0.0, -0.1, 0.5, -2.0], requires_grad=True)
    kl = gaussian_kl(mean, logvar)
    torch.testing.assert_close(
        kl.detach(),
        torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, (0.5 * logvar).exp()),
            torch.distributions.Normal(0.0, 1.0),
        ).detach(),
    )
    with_free_bits(kl, 0.5).sum().backward()
    assert torch.equal(mean.grad, torch.tensor([0.0, 0.0, 2.0, -3.0]))
    assert torch.equal(logvar.grad[:2], torch.zeros(2)) and (logvar.grad[2:] != 0).all()

    # In a step: with a floor that nothing reaches, the encoder's half learns by reconstruction alone.
    gradients = []
    for weights in (
        LatentLossWeights(free_bits=1e6),
        LatentLossWeights(kl=0.0),
        LatentLossWeights(),
    ):
        model = make_autoencoder()
        latent_autoencoder_loss(
            model, make_batch(), LatentDropout(), generators_of(3), weights
        ).backward()
        gradients.append(model.mean_out.weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.allclose(gradients[0], gradients[2], rtol=0.1)


def test_shares_of_what_is_dropped_are_those_that_are_asked_for_and_each_row_has_its_own():
    config = make_autoencoder(num_latents=8).config
    dropout = LatentDropout(memory_dropout=0.5, text_dropout=0.2, word_dropout=0.3)
    drawn = dropout.draw(config, 2_000, 30, generators_of(2_000))
    without_any = drawn["dropped_latents"].all(dim=1).float().mean()
    assert float(without_any) == pytest.approx(0.2 + 0.8 * 0.5**8, abs=0.03)
    assert float(drawn["dropped_latents"].float().mean()) == pytest.approx(0.6, abs=0.02)
    assert float(drawn["hidden_words"].float().mean()) == pytest.approx(0.3, abs=0.01)
    assert abs(float(drawn["noise"].mean())) < 0.01
    assert float(drawn["noise"].std()) == pytest.approx(1, abs=0.01)

    alone = dropout.draw(config, 1, 12, generators_of(2_000)[7:8])
    for name, values in alone.items():
        assert torch.equal(values[0], drawn[name][7][: len(values[0])])
    nothing = LatentDropout().draw(config, 3, 30, generators_of(3))
    assert not nothing["dropped_latents"].any() and not nothing["hidden_words"].any()


def test_with_all_memory_dropped_the_loss_does_not_depend_on_the_latents():
    model = make_autoencoder(regularization="noise")
    dropout = LatentDropout(memory_dropout=1.0)
    batch = make_batch()
    loss = latent_autoencoder_loss(model, batch, dropout, generators_of(3))
    other = batch | {"encoder_ids": batch["encoder_ids"].flip(0)}
    assert torch.equal(loss, latent_autoencoder_loss(model, other, dropout, generators_of(3)))
    loss.backward()
    assert not model.mean_out.weight.grad.any()
    assert not torch.equal(
        loss, latent_autoencoder_loss(model, batch, LatentDropout(), generators_of(3))
    )


def test_memory_is_dropped_by_chance_in_training_and_by_nothing_else():
    """The fault of Dior-CVAE's code: it kept 69% where 50% were meant, and dropped in evaluation too."""
    dropout = LatentDropout(memory_dropout=0.5)
    config = make_autoencoder(num_latents=16).config
    dropped = dropout.draw(config, 1_000, 4, generators_of(1_000))["dropped_latents"]
    # Within four standard errors of 16,000 coins
    assert abs(float(dropped.float().mean()) - 0.5) < 4 * 0.5 / 16_000**0.5

    # The model has no coin of its own: in training and in evaluation it is told what it is told.
    model = make_autoencoder()
    batch = make_batch()
    told = {"input_ids": batch["encoder_ids"], "attention_mask": batch["encoder_mask"]}
    told |= {"decoder_ids": batch["input_ids"], "decoder_mask": batch["attention_mask"]}
    with torch.no_grad():
        means = model.encode(batch["encoder_ids"], batch["encoder_mask"]).latents
        plain = model.decode_logits(means, batch["input_ids"], batch["attention_mask"])
        real = batch["attention_mask"].bool()
        for mode in (True, False):
            logits = model.train(mode)(**told).logits
            torch.testing.assert_close(logits[real], plain[real])


def test_of_a_source_nothing_is_learned_and_the_text_is_written_behind_it():
    model = make_autoencoder(reads_source=True)
    sources = [[1, 13, 14, 2], [1, 2], [1, 15, 2]]
    rows = [source + text[1:] for source, text in zip(sources, TEXTS, strict=True)]
    batch = make_batch()
    length = max(map(len, rows))
    batch["input_ids"] = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = [[1] * len(row) + [0] * (length - len(row)) for row in rows]
    given = [[True] * len(one) + [False] * (length - len(one)) for one in sources]
    batch |= {"attention_mask": torch.tensor(mask), "given": torch.tensor(given)}
    loss = latent_autoencoder_loss(
        model, batch, LatentDropout(), generators_of(3), LatentLossWeights(kl=0.0)
    )

    expected = 0.0
    with torch.no_grad():
        for place, (source, row) in enumerate(zip(sources, rows, strict=True)):
            read = batch["encoder_ids"][place : place + 1]
            posterior = model.encode(read, batch["encoder_mask"][place : place + 1])
            noise = LatentDropout().draw(model.config, 1, 9, [generators_of(3)[place]])["noise"]
            ids = torch.tensor([row])
            logits = model.decode_logits(model.sample(posterior, noise), ids)[0, len(source) :]
            expected += F.cross_entropy(logits, ids[0, len(source) :], reduction="sum")
    torch.testing.assert_close(loss.detach(), expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    "regularization, num_steps", [("noise", 120), pytest.param("kl", 250, marks=pytest.mark.slow)]
)
def test_texts_are_learned_by_their_latents_and_not_without(regularization, num_steps):
    """Random texts, of which a language model can know nothing before it is told."""
    torch.manual_seed(0)
    words = torch.randint(3, 12, (24, 4))
    start, end = torch.full((24, 1), 1), torch.full((24, 1), 2)
    ids = torch.cat([start, words, end], dim=1)
    columns = {
        "input_ids": ids.tolist(),
        "attention_mask": torch.ones_like(ids).tolist(),
        "given": (torch.arange(6) == 0).expand(24, -1).tolist(),
        "encoder_ids": ids.tolist(),
        "encoder_mask": torch.ones_like(ids).tolist(),
    }
    rows = Dataset.from_dict(columns)

    sizes = {"hidden_size": 32, "intermediate_size": 64}
    model = AutoencoderTextLatentModel(
        encoder_config(vocab_size=12, **sizes),
        decoder_config(vocab_size=12, **sizes),
        num_latents=4,
        latent_size=8,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        regularization=regularization,
        train_encoder=True,
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    dropout = LatentDropout(text_dropout=0.1, word_dropout=0.1)
    batch = to_tensors(rows[:])
    for step in range(num_steps):
        generators = row_noise(seed=0, step=step, num_rows=24)[1]
        loss = latent_autoencoder_loss(
            model, batch, dropout, generators, LatentLossWeights(kl=1e-3)
        )
        optimizer.zero_grad()
        (loss / 120).backward()
        optimizer.step()

    class Words:
        """Tokens as numbers."""

        pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

        def batch_decode(self, rows, skip_special_tokens):
            return [" ".join(str(token) for token in row if token > 2) for row in rows.tolist()]

    found = evaluate_latents(model, rows, Words(), num_texts=24)
    chance = torch.tensor(9.0).log() * 4 / 5  # of nine words, in four of five tokens
    assert found.cross_entropy < 0.3 * chance
    assert found.without_latents > 0.5 * chance
    assert found.other_latents > found.without_latents
    assert found.exact_match > 0.5


@torch.no_grad()
def test_words_that_latents_tell_are_a_mixture_of_distributions_by_cosine():
    model = make_autoencoder()
    decoder = model.decoder
    latents = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(decoder.vocab_size).expand(2, -1)
    nats = decoder.word_nats(latents, ids)  # (B, V)
    torch.testing.assert_close(nats.neg().exp().sum(dim=1), torch.ones(2))

    table = decoder.language_model.get_input_embeddings().weight
    table = table - table.mean(dim=0)
    for row in range(2):
        mixture = torch.zeros(decoder.vocab_size)
        for vector in decoder.prefix_in(latents[row]):
            cosines = F.cosine_similarity(vector[None], table)
            mixture += F.softmax(20 * cosines, dim=0) / 3
        torch.testing.assert_close(nats[row], -mixture.log(), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_rare_word_counts_beside_the_common_ones_and_not_beside_those_of_its_batch():
    sizes = {"vocab_size": COMMON_TOKENS + 40}
    model = make_autoencoder(decoder_config=decoder_config(**sizes))
    latents = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    rare = torch.tensor([[COMMON_TOKENS + 3, 5, COMMON_TOKENS + 30]]).expand(2, -1)
    together = model.decoder.word_nats(latents, rare)
    alone = model.decoder.word_nats(latents[:1], rare[:1, :1])
    torch.testing.assert_close(together[:1, :1], alone, atol=1e-5, rtol=1e-5)

    # The first tokens are a distribution by themselves; a rare one takes its share beside them.
    common = model.decoder.word_nats(latents, torch.arange(COMMON_TOKENS).expand(2, -1))
    torch.testing.assert_close(common.neg().exp().sum(dim=1), torch.ones(2), atol=1e-4, rtol=0)
    assert float(together.min()) > 0


def test_words_alone_are_learned_without_the_decoder_and_told_by_the_latents():
    model = make_autoencoder(train_encoder=True, regularization="noise").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batch = make_batch()
    losses = []
    for step in range(60):
        generators = row_noise(seed=0, step=step, num_rows=3)[1]
        weights = LatentLossWeights(words=0.1)
        loss = latent_autoencoder_loss(
            model, batch, LatentDropout(), generators, weights, words_only=True
        )
        optimizer.zero_grad()
        loss.backward()
        # Nothing is left without a gradient, for which other processes would wait.
        assert all(w.grad is not None for w in model.parameters() if w.requires_grad)
        blocks = model.decoder.language_model.model.layers
        assert all(not w.grad.any() for w in blocks.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    # The words of a text, in any order: log 2, 3 and 5 nats a token at best
    best = sum(len(set(text[1:])) * math.log(len(set(text[1:]))) for text in TEXTS)
    assert best < losses[-1] < 0.5 * (losses[0] + best)


def test_words_are_weighed_beside_the_text():
    model = make_autoencoder()
    batch = make_batch()
    losses = [
        latent_autoencoder_loss(
            model, batch, LatentDropout(), generators_of(3), LatentLossWeights(words=weight)
        )
        for weight in (0.0, 1.0, 3.0)
    ]
    assert float(losses[1]) > float(losses[0])
    torch.testing.assert_close(losses[2] - losses[0], 3 * (losses[1] - losses[0]))
