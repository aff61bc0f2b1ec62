"""Denoisers whose predictions are exact, of words, of embeddings and of tokens, for laws of whole pipelines.

Shapes: B rows, L sequence length, E embedding width, V vocabulary size, K words.
"""

from types import SimpleNamespace

import torch
from torch import nn

from support.gaussian_chains import gaussian_denoiser, prediction_of
from text_diffusers import EmbeddingDDIMScheduler


class ExactEmbeddings(nn.Module):
    """A denoiser of the words with the ids 1 to K, whose embeddings are the ends of the axes in 3 dimensions."""

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, num_words, vocab_size, prediction_type="sample", **config):
        super().__init__()
        ends = torch.cat([torch.eye(3), -torch.eye(3)]).double()
        self.words = 3**0.5 * ends[:num_words]  # (K, 3)
        self.alphas_cumprod = EmbeddingDDIMScheduler().alphas_cumprod.double()
        defaults = {
            "max_length": 128,
            "num_train_timesteps": 2000,
            "num_classes": None,
            "self_conditioning": False,
            "partial_noising": False,
        }
        settings = defaults | config
        self.config = SimpleNamespace(
            vocab_size=vocab_size, prediction_type=prediction_type, **settings
        )

    def embed(self, input_ids):
        table = torch.zeros(self.config.vocab_size, 3, dtype=torch.float64)
        table[1 : len(self.words) + 1] = self.words
        return table[input_ids]

    def round(self, clean):
        return torch.cdist(clean, self.words).argmin(dim=-1) + 1

    def nearest_words(self, clean):
        return self.embed(self.round(clean))


class ExactDenoiser(ExactEmbeddings):
    """E[x_0 given x_t] of independent pairs of words from a table of probabilities, by Bayes' rule over all pairs.

    A row is start, pairs, end. With `partial_noising`, a given word is taken for certain.
    """

    def __init__(self, table, vocab_size, prediction_type="sample", **config):
        super().__init__(len(table), vocab_size, prediction_type, **config)
        self.table = table

    def forward(self, sample, timestep, attention_mask=None, class_labels=None, given=None):
        alpha_bar = self.alphas_cumprod[int(timestep)]
        noisy = sample[:, 1:-1, None]  # (B, L - 2, 1, 3)
        errors = (noisy - alpha_bar.sqrt() * self.words).square().sum(dim=-1)
        likelihood = -errors / (2 * (1 - alpha_bar))
        if given is not None:
            exact = -1e6 * (noisy - self.words).square().sum(dim=-1)
            likelihood = torch.where(given[:, 1:-1, None], exact, likelihood)

        likelihood = likelihood.unflatten(1, (-1, 2))  # (B, pairs, 2, K)
        joint = (
            likelihood[..., 0, :, None] + likelihood[..., 1, None, :] + self.table.log()
        )  # (B, pairs, K, K)
        joint = joint.flatten(2).softmax(dim=-1).view_as(joint)
        marginals = torch.stack([joint.sum(dim=3), joint.sum(dim=2)], dim=2)  # (B, pairs, 2, K)
        clean = torch.zeros_like(sample)
        clean[:, 1:-1] = marginals.flatten(1, 2) @ self.words
        return SimpleNamespace(
            sample=prediction_of(self.config.prediction_type, clean, sample, alpha_bar)
        )


class ExactWords(ExactEmbeddings):
    """Independent words of given frequencies, by Bayes' rule, with the logits of their probabilities."""

    def __init__(self, probs, vocab_size):
        super().__init__(len(probs), vocab_size, partial_noising=True)
        self.probs = probs

    def logits(self, clean):
        raise AssertionError("probabilities of words are not to be read off the clean estimate")

    def forward(self, sample, timestep, attention_mask=None, class_labels=None, given=None):
        alpha_bar = self.alphas_cumprod[int(timestep)]
        errors = (
            (sample.unsqueeze(-2) - alpha_bar.sqrt() * self.words).square().sum(dim=-1)
        )  # (B, L, K)
        log_probs = (self.probs.log() - errors / (2 * (1 - alpha_bar))).log_softmax(dim=-1)
        logits = torch.full(
            (*sample.shape[:2], self.config.vocab_size), -torch.inf, dtype=torch.float64
        )
        logits[..., 1 : len(self.words) + 1] = log_probs
        return SimpleNamespace(sample=log_probs.exp() @ self.words, logits=logits)


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] of embeddings that are independent N(MEAN, STD^2)."""

    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, vocab_size, prediction_type):
        super().__init__()
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            prediction_type=prediction_type,
            max_length=64,
            num_train_timesteps=1000,
            num_classes=None,
            self_conditioning=False,
            partial_noising=False,
            mask_token_id=None,
        )
        self.alphas_cumprod = EmbeddingDDIMScheduler(1000, "cosine").alphas_cumprod

    def embed(self, input_ids):
        return torch.zeros(*input_ids.shape, 16, dtype=torch.float64)

    def round(self, clean):
        return torch.zeros(clean.shape[:-1], dtype=torch.long)

    nearest_words = round

    def forward(self, sample, timestep, attention_mask=None, class_labels=None):
        alpha_bar = self.alphas_cumprod[int(timestep)]
        clean = gaussian_denoiser(sample, alpha_bar)
        return SimpleNamespace(
            sample=prediction_of(self.config.prediction_type, clean, sample, alpha_bar)
        )


class Rewritten(nn.Module):
    """A denoiser of clean embeddings that predicts noise or velocity instead."""

    def __init__(self, denoiser, prediction_type):
        super().__init__()
        self.denoiser = denoiser
        self.config = SimpleNamespace(**{**denoiser.config, "prediction_type": prediction_type})
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.alphas_cumprod = EmbeddingDDIMScheduler().alphas_cumprod
        for name in ("embed", "round", "nearest_words", "logits"):
            setattr(self, name, getattr(denoiser, name))

    def forward(self, sample, timestep, attention_mask=None, class_labels=None, **more):
        clean = self.denoiser(sample, timestep, attention_mask, class_labels, **more).sample
        alpha_bar = self.alphas_cumprod[int(timestep)]
        prediction = prediction_of(
            self.config.prediction_type, clean.double(), sample.double(), alpha_bar
        )
        return SimpleNamespace(sample=prediction.to(sample.dtype))


class TokenTable(nn.Module):
    """A denoiser of the texts behind a source of one token: `predict(text (B, L), time) -> (B, L, n)` of ids below n.

    The text begins at the fourth token of a row and has `length` of them.
    """

    def __init__(self, predict, length, vocab_size):
        super().__init__()
        self.predict = predict
        self.length = length
        self.config = SimpleNamespace(vocab_size=vocab_size, max_length=64, num_classes=None)
        self.anchor = nn.Parameter(torch.zeros(1))

    @property
    def device(self):
        return self.anchor.device

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        logits = torch.full(
            (*input_ids.shape, self.config.vocab_size), -torch.inf, dtype=torch.float64
        )
        prediction = self.predict(input_ids[:, 3 : 3 + self.length], float(timestep[0]))
        logits[:, 3 : 3 + self.length, : prediction.shape[-1]] = prediction
        return SimpleNamespace(logits=logits[positions])
