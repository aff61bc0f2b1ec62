"""A Markov chain of words and its exact denoiser, and models that learn sentences by heart.

Shapes: B rows, L row length, K words, V vocabulary size, N positions.
"""

from types import SimpleNamespace

import torch
from torch import nn

from support.language_models import word_tokenizer
from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.evaluation.row_bounds import collate
from text_diffusers.models.language_model import as_denoiser

FIRST_WORD = 6  # the id of "w6", behind the special tokens of `word_tokenizer`


class MarkovDenoiser(nn.Module):
    """Predicts each masked word of a row from all that are known, exactly, by forward and backward messages.

    A row is a text of the chain from its first column on; what is no word may be any.
    """

    def __init__(self, initial, transitions, vocab_size, max_length):
        super().__init__()
        self.initial = initial  # (K,)
        self.transitions = transitions  # (K, K)
        self.config = SimpleNamespace(
            vocab_size=vocab_size, max_length=max_length, num_classes=None
        )
        self.anchor = nn.Parameter(torch.zeros(1))

    @property
    def device(self):
        return self.anchor.device

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        num_words = len(self.initial)
        words = torch.arange(FIRST_WORD, FIRST_WORD + num_words)
        matches = (input_ids.unsqueeze(-1) == words).double()  # (B, L, K)
        is_known = matches.any(dim=-1, keepdim=True)
        evidence = torch.where(is_known, matches, 1.0)
        length = input_ids.shape[1]

        before = [self.initial.expand(len(input_ids), -1)]
        for column in range(length - 1):
            before.append((before[-1] * evidence[:, column]) @ self.transitions)
        behind = [torch.ones(len(input_ids), num_words, dtype=torch.float64)]
        for column in range(length - 1, 0, -1):
            behind.append((behind[-1] * evidence[:, column]) @ self.transitions.T)
        weights = torch.stack(before, dim=1) * torch.stack(behind[::-1], dim=1)  # (B, L, K)

        logits = torch.full(
            (*input_ids.shape, self.config.vocab_size), -torch.inf, dtype=torch.float64
        )
        logits[..., words] = weights.log()
        return SimpleNamespace(logits=logits if positions is None else logits[positions])


def markov_pipe(num_words=4, max_length=32, num_train_timesteps=None):
    """`(pipe, log_prob)`: the exact pipeline of a chain, and log p of ids as a function."""
    generator = torch.Generator().manual_seed(3)
    initial = torch.rand(num_words, generator=generator, dtype=torch.float64).softmax(dim=0)
    table = torch.rand(num_words, num_words, generator=generator, dtype=torch.float64)
    transitions = (5 * table).softmax(dim=1)

    tokenizer = word_tokenizer(
        num_words=FIRST_WORD + num_words, mask_token="<|mask|>", pad_token="<|pad|>"
    )
    denoiser = MarkovDenoiser(initial, transitions, len(tokenizer), max_length)
    scheduler = D3PMAbsorbingScheduler(
        tokenizer.mask_token_id, num_train_timesteps=num_train_timesteps
    )
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def log_prob(ids):
        words = [token - FIRST_WORD for token in ids]
        total = initial[words[0]].log()
        for first, second in zip(words, words[1:], strict=False):
            total = total + transitions[first, second].log()
        return float(total)

    return pipe, log_prob


def learn_by_heart(pipe, rows, num_steps=120, learning_rate=5e-3, copies=8):
    """Train the denoiser of a pipeline, from usual weights, on copies of the same few rows, as of `full_bound`.

    Returns:
        The bound at the end, in nats a row.
    """
    torch.manual_seed(0)
    for module in pipe.denoiser.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer)
    pipe.denoiser.train()
    optimizer = torch.optim.AdamW(pipe.denoiser.parameters(), lr=learning_rate)
    batch = collate(rows * copies)
    generators = [torch.Generator().manual_seed(row) for row in range(len(rows) * copies)]
    losses = []
    for _ in range(num_steps):
        uniform = torch.rand(len(rows) * copies)
        loss = batch_bound(denoiser, pipe.scheduler, batch, uniform, generators).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    pipe.denoiser.eval()
    return sum(losses[-10:]) / 10
