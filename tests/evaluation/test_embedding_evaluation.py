"""Estimates of models over word embeddings against exact values of sources whose denoiser is known."""

import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import slow
from datasets import Dataset
from scipy.stats import norm
from support.oracles import float64
from support.word_sources import WordSource, cosine_alphas

from text_diffusers.evaluation.embedding import (
    bound_terms,
    denoise,
    embedding_health,
    estimate_embedding_bound,
    rounding_accuracy,
    time_distribution,
)
from text_diffusers.evaluation.plots import plot_rounding
from text_diffusers.losses.embedding import reconstruction
from text_diffusers.models.transformer_embedding import EmbeddingTransformerModel
from text_diffusers.schedulers.scheduling_ddpm_embedding import EmbeddingDDPMScheduler

SOURCE = WordSource([0.5, 0.3, 0.2], [[-1.2], [0.1], [1.4]])
STEPS = 20
ALPHAS = cosine_alphas(STEPS)


def ddpm(alphas=ALPHAS):
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    return EmbeddingDDPMScheduler(len(alphas), beta_schedule="custom", trained_betas=betas.tolist())


class ExactDenoiser(EmbeddingTransformerModel):
    """Knows the words' probabilities: its prediction is the posterior mean, in any of the prediction types."""

    def __init__(self, source=SOURCE, alphas=ALPHAS, **changes):
        sizes = {
            "hidden_size": 4,
            "num_layers": 1,
            "num_attention_heads": 1,
            "self_conditioning": False,
        }
        table = {"normalize_embeddings": False, "embedding_dim": source.table.shape[1]}
        settings = {"num_train_timesteps": len(alphas), "categorical_output": True} | changes
        super().__init__(len(source.probs), **sizes | table | settings)
        self.source, self.alphas = source, alphas
        self.token_embedding.weight.data.copy_(source.table)

    def forward(self, sample, timestep, input_ids=None, corrupt=None, **ignored):
        clean = self.embed(input_ids)
        start, noisy = corrupt(clean)
        alpha = self.alphas[timestep].view(-1, 1, 1)
        log_posterior = self.source.log_posterior(noisy, alpha)
        mean = (log_posterior.exp() @ self.source.table).to(noisy)
        signal, sigma = alpha.sqrt().to(noisy), (1 - alpha).sqrt().to(noisy)
        noise = (noisy - signal * mean) / sigma
        prediction = {
            "sample": mean,
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * mean,
        }
        logits = log_posterior if self.config.categorical_output else None
        outputs = {"clean": clean, "start": start, "noisy": noisy, "logits": logits}
        return SimpleNamespace(sample=prediction[self.config.prediction_type], **outputs)


# The bound


@pytest.mark.parametrize("end", ["noise", slow("half")])
def test_the_estimated_bound_and_its_tenths_are_those_of_integration(end):
    alphas = ALPHAS if end == "noise" else float64(np.linspace(0.8, 0.5, STEPS))
    steps, prior = SOURCE.exact_steps(alphas)
    rows, model = SOURCE.rows(count=3000, length=4), ExactDenoiser(alphas=alphas)
    bound, error, by_noise = estimate_embedding_bound(model, ddpm(alphas), rows, num_times=4)
    exact = float(steps.sum()) + prior
    assert abs(bound - exact) < 3.5 * error and error < 0.02
    assert bound > SOURCE.entropy and np.mean(by_noise) == pytest.approx(bound)
    tenths = steps.view(10, 2).sum(dim=1) * 10
    tenths[-1] += 10 * prior
    np.testing.assert_allclose(by_noise, tenths, rtol=0.25, atol=0.02)


@pytest.mark.parametrize("shortest", [slow(8), 1])
def test_the_standard_error_is_the_spread_over_other_rows_and_other_noise(shortest):
    model, scheduler = ExactDenoiser(), ddpm()
    estimates = [
        estimate_embedding_bound(
            model, scheduler, SOURCE.rows(320, 8, seed, shortest), batch_size=32, seed=seed
        )
        for seed in range(40)
    ]
    bounds, errors = np.array(estimates, dtype=object)[:, :2].astype(float).T
    # With 40 draws a ratio of 1 lies in (0.75, 1.3) with probability 0.98; the errors are estimates too.
    assert 0.7 < bounds.std(ddof=1) / np.sqrt(np.mean(errors**2)) < 1.4
    steps, prior = SOURCE.exact_steps(ALPHAS)
    assert abs(bounds.mean() - float(steps.sum()) - prior) < 3.5 * bounds.std(ddof=1) / math.sqrt(
        40
    )


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_bound_does_not_depend_on_how_the_estimate_is_expressed(prediction_type):
    rows = SOURCE.rows(64, 3)
    got, want = (
        estimate_embedding_bound(
            ExactDenoiser(prediction_type=kind, categorical_output=False), ddpm(), rows
        )
        for kind in (prediction_type, "sample")
    )
    assert got.bound == pytest.approx(want.bound, rel=1e-4)


def test_without_categorical_output_words_are_read_off_the_estimate():
    model = ExactDenoiser(categorical_output=False)
    batch = {"input_ids": torch.tensor([[0, 1, 2, 2]]), "attention_mask": torch.ones(1, 4)}
    times, generators = torch.tensor([0]), [torch.Generator().manual_seed(0)]
    denoised = denoise(model, batch, times, ALPHAS, [torch.Generator().manual_seed(0)])
    steps, _ = bound_terms(model, batch, times, ALPHAS, generators)
    logits = denoised.estimate @ SOURCE.table.float().T
    torch.testing.assert_close(
        steps, reconstruction(logits, batch["input_ids"]).sum(dim=1).double()
    )


@pytest.mark.parametrize(
    "alphas", [ALPHAS, cosine_alphas(1), cosine_alphas(2), ddpm().alphas_cumprod]
)
def test_every_timestep_can_be_drawn(alphas):
    probs = time_distribution(alphas)
    assert (
        probs.shape == alphas.shape and (probs > 0).all() and float(probs.sum()) == pytest.approx(1)
    )


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 16,
    }
    model = EmbeddingTransformerModel(
        12, num_train_timesteps=STEPS, **sizes | {"pad_token_id": 11} | changes
    )
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_rows(count=8, length=6, padding=0, given=0):
    words = torch.randint(11, (count, length), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([words, torch.full((count, padding), 11)], dim=1)
    real = (torch.arange(length + padding) < length).long().expand(count, -1)
    columns = {"input_ids": padded, "attention_mask": real}
    if given:
        columns["given"] = (torch.arange(length + padding) < given).expand(count, -1)
    return Dataset.from_dict({name: values.tolist() for name, values in columns.items()})


@pytest.mark.parametrize(
    "changes", [{}, {"partial_noising": True}, {"prediction_type": "v_prediction"}]
)
def test_padding_neither_counts_nor_matters(changes):
    model, scheduler = make_model(**changes), ddpm()
    short, padded = (
        estimate_embedding_bound(
            model, scheduler, random_rows(padding=padding, given=2), batch_size=4
        )
        for padding in (0, 5)
    )
    assert short.bound == pytest.approx(padded.bound, rel=1e-4)


def test_given_words_are_clean_and_free_for_a_model_that_can_be_given():
    batch = {
        name: torch.tensor(values)
        for name, values in random_rows(4, given=2, padding=1).to_dict().items()
    }
    times = torch.tensor([0, 5, 12, 19])

    def generators():
        return [torch.Generator().manual_seed(i) for i in range(4)]

    model = make_model(partial_noising=True)
    seen = []
    model.proj_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    denoised = denoise(model, batch, times, ALPHAS, generators())
    known = batch["given"] | ~batch["attention_mask"].bool()
    for noisy in (denoised.noisy, *seen):
        assert torch.equal((noisy == model.embed(batch["input_ids"])).all(dim=-1), known)
    inputs = {"attention_mask": batch["attention_mask"], "given": batch["given"]}
    first = model(denoised.noisy, times, **inputs).sample
    again = model(denoised.noisy, times, **inputs, self_condition=first).sample
    torch.testing.assert_close(denoised.estimate, again)
    steps, prior = bound_terms(model, batch, times, ALPHAS, generators())
    bare = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole = bound_terms(model, bare, times, ALPHAS, generators())
    assert (prior < 0.8 * whole[1]).all() and not torch.allclose(steps, whole[0])

    # Another model is shown them as noisy as the rest, and nobody pays for them either.
    deaf = make_model(partial_noising=False)
    noisy, all_noisy = (denoise(deaf, b, times, ALPHAS, generators()).noisy for b in (batch, bare))
    assert torch.equal(noisy, all_noisy)
    steps, prior = bound_terms(deaf, batch, times, ALPHAS, generators())
    all_steps, all_priors = bound_terms(deaf, bare, times, ALPHAS, generators())
    assert (prior < 0.8 * all_priors).all() and (steps < all_steps).all()


def test_bound_of_given_rows_is_per_token_that_counts():
    model = make_model(partial_noising=True, self_conditioning=False)
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(
        model.proj_out.bias
    )  # estimates 0 whatever it sees: each token costs the same, alone
    bounds = [
        estimate_embedding_bound(model, ddpm(), random_rows(400, given=given)) for given in (0, 3)
    ]
    for bound in bounds:
        steps = (
            0.5 * (ALPHAS / (1 - ALPHAS)).diff().abs() * 8
        )  # all embeddings have the squared length 8
        exact = float(steps.sum()) + math.log(12)
        assert bound.bound == pytest.approx(exact, abs=3.5 * bound.standard_error + 0.01)


def test_a_model_with_self_conditioning_sees_its_own_estimate_of_the_same_noise():
    model = make_model(self_conditioning=True)
    batch = {name: torch.tensor(values) for name, values in random_rows(4).to_dict().items()}
    times = torch.tensor([0, 5, 12, 19])
    denoised = denoise(
        model, batch, times, ALPHAS, [torch.Generator().manual_seed(i) for i in range(4)]
    )
    first = model(denoised.noisy, times).sample
    second = model(denoised.noisy, times, self_condition=first).sample
    torch.testing.assert_close(denoised.estimate, second)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(denoised.logits, model.logits(second))


def test_labels_reach_the_model():
    model = make_model(num_classes=2)
    rows = random_rows()
    bounds = [
        estimate_embedding_bound(model, ddpm(), rows.add_column("label", [label] * len(rows))).bound
        for label in (0, 1)
    ]
    assert bounds[0] != pytest.approx(bounds[1], rel=1e-3)


def test_dropout_is_off_and_the_mode_of_the_model_comes_back():
    model = make_model(dropout=0.5).train()
    bounds = [estimate_embedding_bound(model, ddpm(), random_rows()).bound for _ in range(2)]
    assert bounds[0] == bounds[1] and model.training


class OneOfTwo:
    """One of two processes that are threads; `reduce` adds up what both bring."""

    def __init__(self, rank, parts, barrier):
        self.process_index, self.num_processes, self.parts, self.barrier = rank, 2, parts, barrier

    def reduce(self, values):
        self.parts[self.process_index] = values
        self.barrier.wait()
        total = self.parts[0] + self.parts[1]
        self.barrier.wait()
        return total


def test_processes_share_the_batches_and_agree():
    model, rows = ExactDenoiser(), SOURCE.rows(100, 3)
    alone = estimate_embedding_bound(model, ddpm(), rows, batch_size=20)
    parts, barrier, results = [None, None], threading.Barrier(2, timeout=60), [None, None]

    def run(rank):
        accelerator = OneOfTwo(rank, parts, barrier)
        results[rank] = estimate_embedding_bound(
            model, ddpm(), rows, batch_size=20, accelerator=accelerator
        )

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result.bound == pytest.approx(alone.bound) and result.by_noise == pytest.approx(
            alone.by_noise
        )
        assert result.standard_error == pytest.approx(alone.standard_error)


def test_a_scheduler_of_another_clock_is_refused():
    scheduler = ddpm(cosine_alphas(30))
    with pytest.raises(
        ValueError,
        match="`scheduler` must be one with the model's `num_train_timesteps`=20, got 30",
    ):
        estimate_embedding_bound(make_model(), scheduler, random_rows())
    with pytest.raises(ValueError, match="`scheduler` must be one with"):
        rounding_accuracy(make_model(), scheduler, random_rows(), [3])


def test_rows_without_a_token_to_count_are_refused():
    model = make_model(partial_noising=True)
    rows = random_rows(given=6)
    with pytest.raises(
        ValueError, match="`rows` must be rows with a token that is neither padding nor given"
    ):
        estimate_embedding_bound(model, ddpm(), rows)
    with pytest.raises(
        ValueError, match="`rows` must be rows with a token that is neither padding nor given"
    ):
        rounding_accuracy(model, ddpm(), rows, [3])


# Rounding


def test_rounding_accuracies_are_those_of_the_normal_distribution():
    source = WordSource([0.8, 0.2], [[2.0], [0.5]])
    model = ExactDenoiser(source, rounding="nearest")
    rows = source.rows(2500, 4)
    share = float((torch.tensor(rows["input_ids"]) == 0).double().mean())
    results = rounding_accuracy(model, ddpm(), rows, [0, 9, 15], batch_size=500)
    for result, timestep in zip(results, [0, 9, 15], strict=True):
        alpha = float(ALPHAS[timestep])
        halfway = 0.75 * math.sqrt(alpha / (1 - alpha))  # in standard deviations of the noise
        nearest = norm.cdf(halfway)
        shift = math.log(4) / (2 * halfway)  # the more frequent word wins until the odds are even
        best = share * norm.cdf(halfway + shift) + (1 - share) * norm.cdf(halfway - shift)
        assert result.timestep == timestep and result.noise_level == pytest.approx(
            math.sqrt(1 - alpha)
        )
        assert result.input_accuracy == pytest.approx(
            nearest, abs=4 * math.sqrt(nearest * (1 - nearest) / 10_000)
        )
        assert result.model_accuracy == pytest.approx(
            best, abs=4 * math.sqrt(best * (1 - best) / 10_000)
        )
    assert results[2].model_accuracy > results[2].input_accuracy + 0.05


def test_given_words_do_not_raise_the_rounding_accuracy():
    rows = random_rows(200, given=3, padding=2)
    results = [
        rounding_accuracy(make_model(partial_noising=partial), ddpm(), rows, [19])[0].input_accuracy
        for partial in (True, False)
    ]
    assert results == pytest.approx(
        [1 / 11, 1 / 11], abs=0.06
    )  # all noise: one of the words that are not padding


@pytest.mark.parametrize("timestep", [-1, STEPS])
def test_timesteps_off_the_clock_are_refused(timestep):
    with pytest.raises(ValueError, match=f"`timesteps` must be between 0 and 19, got {timestep}"):
        rounding_accuracy(make_model(), ddpm(), random_rows(), [3, timestep])


def test_the_picture_shows_both_accuracies(tmp_path):
    from PIL import Image

    results = rounding_accuracy(ExactDenoiser(), ddpm(), SOURCE.rows(50, 4), [19, 0, 9])
    flat = [result._replace(model_accuracy=0.0) for result in results]
    pictures = [
        plot_rounding(values, tmp_path / f"{i}.png")
        for i, values in enumerate((results, results[::-1], flat))
    ]
    first, reordered, changed = (
        np.asarray(Image.open(picture).convert("RGB")) for picture in pictures
    )
    assert (
        first.shape[0] > 300
        and np.array_equal(first, reordered)
        and not np.array_equal(first, changed)
    )
    with pytest.raises(ValueError, match="`accuracies` must hold at least one timestep, got none"):
        plot_rounding([], tmp_path / "none.png")


# Embeddings


def test_health_of_a_simplex_is_known():
    """V orthogonal rows of length r lie r sqrt(2) apart, and centred they fill V - 1 dimensions evenly."""
    rotation = torch.linalg.qr(torch.randn(9, 9, generator=torch.Generator().manual_seed(0)))[0]
    health = embedding_health(3 * rotation[:5])
    assert health == pytest.approx(
        {"norm": 3, "nearest_distance": 3 * 2**0.5, "effective_rank": 4}, rel=1e-5
    )


def test_nearest_distance_is_the_mean_over_words():
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    assert embedding_health(table)["nearest_distance"] == pytest.approx((1 + 1 + 4) / 3)


def test_health_tells_a_line_and_a_point_from_a_cloud():
    cloud = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    line = cloud[:, :1] * torch.ones(6)
    assert embedding_health(line)["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert 5.5 < embedding_health(cloud)["effective_rank"] <= 6
    point = embedding_health(torch.ones(7, 4))
    assert point == {"norm": 2.0, "nearest_distance": 0.0, "effective_rank": 0.0}


def test_health_needs_two_words():
    with pytest.raises(
        ValueError, match=r"`table` must be \(V, E\) with at least two rows, got \(1, 4\)"
    ):
        embedding_health(torch.ones(1, 4))
