"""Word embeddings that are trained with squared error alone fall together; each remedy keeps them apart."""

import itertools

import pytest
import torch
from conftest import mostly_slow, slow

from text_diffusers.evaluation.embedding import embedding_health
from text_diffusers.losses.embedding import (
    anchor_loss,
    diffusion_lm_loss,
    noisy_start,
    prediction_target,
)
from text_diffusers.models.transformer_embedding import EmbeddingTransformerModel
from text_diffusers.schedulers.embedding_noise import embedding_betas

WORDS, WIDTH, STEPS = 12, 8, 200
ALPHAS = (1 - embedding_betas("sqrt", STEPS)).cumprod(dim=0)
SIGMA_0 = float((1 - ALPHAS[0]).sqrt())


def tables_before_and_after(remedy, normalize, steps=150):
    """(V, E) embeddings around a training on random words, with squared error and at most one remedy."""
    torch.manual_seed(0)
    sizes = {"embedding_dim": WIDTH, "hidden_size": 32, "num_layers": 1, "num_attention_heads": 2}
    settings = {
        "self_conditioning": False,
        "normalize_embeddings": normalize,
        "train_embeddings": remedy != "frozen",
    }
    model = EmbeddingTransformerModel(WORDS, num_train_timesteps=STEPS, **sizes | settings)
    torch.nn.init.normal_(model.token_embedding.weight)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=2e-2, weight_decay=0.0
    )
    before = model.embedding_table().detach().clone()
    for _ in range(steps):
        ids, times = torch.randint(WORDS, (64, 4)), torch.randint(STEPS, (64,))
        noise = torch.randn(2, 64, 4, WIDTH)
        alpha = ALPHAS[times]

        def corrupt(clean, noise=noise, alpha=alpha):
            start = noisy_start(clean, ALPHAS[0], noise[0])
            signal, sigma = (
                values.float().view(-1, 1, 1) for values in (alpha.sqrt(), (1 - alpha).sqrt())
            )
            return start, signal * start + sigma * noise[1]

        output = model(None, times, input_ids=ids, corrupt=corrupt)
        target = prediction_target(
            "sample", output.start, output.clean, noise[1], alpha, first=times == 0
        )
        terms = diffusion_lm_loss(
            output.sample, target, output.start_logits, ids, output.start, ALPHAS[-1]
        )
        loss = terms.mse
        if remedy == "rounding":
            loss = loss + terms.rounding
        if remedy == "anchor":
            loss = loss + anchor_loss(output.logits, ids, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return before, model.embedding_table().detach()


@pytest.mark.parametrize("normalize", [True, slow(False)])
def test_squared_error_alone_makes_words_one(normalize):
    """Alone it is least where there is nothing to tell apart; with the remedies it may not get there."""
    before, after = (embedding_health(table) for table in tables_before_and_after(None, normalize))
    assert before["nearest_distance"] > 8 * SIGMA_0
    assert after["nearest_distance"] < SIGMA_0 / 2


@pytest.mark.parametrize(
    "remedy, normalize",
    mostly_slow(
        itertools.product(["rounding", "anchor", "frozen"], [True, False]),
        fast=[("rounding", True)],
    ),
)
def test_each_remedy_keeps_words_apart(remedy, normalize):
    before, after = tables_before_and_after(remedy, normalize)
    assert torch.pdist(after).min() > 4 * SIGMA_0
    assert embedding_health(after)["effective_rank"] > WIDTH / 2
    assert torch.equal(before, after) == (remedy == "frozen")
