"""Reflow: pairs are what the pipeline writes, and a model that learns them needs fewer steps."""

import pytest
import torch
from datasets import Dataset
from support.latent_models import make_autoencoder
from support.latent_pipes import make_latent_denoiser, make_latent_pipe

from text_diffusers import LatentFlowEulerScheduler, LatentTransformerModel
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.latent_cache import CachedLatents, LatentRows
from text_diffusers.training.steps.latents import LatentLoss
from text_diffusers.training.steps.reflow import LatentPairs, flow_from, latent_pairs


def test_a_pair_is_noise_and_what_the_pipeline_writes_of_it(tokenizer):
    denoiser = make_latent_denoiser(num_classes=2, prompt_size=None, self_conditioning=True)
    pipe = make_latent_pipe(tokenizer, denoiser)
    labels = [0, 1, 1, 0, 1]
    rows = Dataset.from_dict({"label": labels})
    pairs = latent_pairs(pipe.autoencoder, denoiser, rows, num_steps=4, seed=3)
    assert len(pairs) == 5
    assert abs(float(pairs.noise.mean())) < 0.4 and 0.6 < float(pairs.noise.std()) < 1.4

    # The pipeline begins with the same noise, which a callback puts into the first step.
    output = pipe(
        class_labels=labels,
        num_inference_steps=4,
        output_type="latents",
        return_history=True,
        generator=torch.Generator().manual_seed(0),
    )
    own_noise = pipe.autoencoder.normalize(output.history[0])
    written = flow_from(denoiser, own_noise, {"label": torch.tensor(labels)}, num_steps=4)
    torch.testing.assert_close(
        pipe.autoencoder.denormalize(written), output.latents, atol=1e-4, rtol=1e-4
    )
    told = {"label": torch.tensor(labels)}
    made = flow_from(denoiser, pairs.noise, told, num_steps=4)
    torch.testing.assert_close(
        pairs.latents, pipe.autoencoder.denormalize(made), atol=1e-5, rtol=1e-5
    )


def learned(model, cache, num_steps, batch_size=64):
    """The model after so many steps over latents or pairs."""
    autoencoder = make_autoencoder(num_latents=1, latent_size=2)
    rows = LatentRows(Dataset.from_dict({"n": range(len(cache))}), cache, batch_size)
    loss = LatentLoss(LatentFlowEulerScheduler(), model, self_conditioning=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(num_steps):
        batch = rows.batch(step)
        latents = {"latents": autoencoder.normalize(batch["latents"])}
        uniform, generators = row_noise(seed=0, step=step, num_rows=batch_size)
        shown = latents | {name: batch[name] for name in ("noise",) if name in batch}
        value = loss(model, shown, loss.draw_times(uniform), generators).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


@pytest.mark.slow
def test_after_a_reflow_one_step_ends_nearer_to_the_texts():
    """Latents at the corners of a square, between whose means a single step of plain flow ends."""
    torch.manual_seed(0)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    cache = CachedLatents(corners.repeat(256, 1).view(-1, 1, 2))
    model = LatentTransformerModel(
        2,
        num_latents=1,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        prediction_type="flow",
        self_conditioning=False,
    )
    learned(model, cache, num_steps=400)
    noise = torch.randn(512, 1, 2, generator=torch.Generator().manual_seed(9))

    def misses(num_steps):
        written = flow_from(model, noise, {}, num_steps)[:, 0]
        return float(torch.cdist(written, corners).amin(dim=1).mean())

    before, best = misses(1), misses(50)
    assert best < 0.25 < before
    pairs = LatentPairs(flow_from(model, noise, {}, 50), noise)
    learned(model, pairs, num_steps=400)
    assert misses(1) < 0.6 * before
