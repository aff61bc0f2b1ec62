"""The yardstick of replies: a GPT-2 of the same size, tokenizer, turns and minutes."""

import math
import random
import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from parts.common.yardsticks import yardstick_config
from text_diffusers.data.rows import encode_texts, text_ends

LEARNING_RATE = 1e-3
WARMUP_STEPS = 50
LEAST_RATE = 0.02  # share of the learning rate at the end
IGNORED = -100  # as a label of transformers
# Of the replies that are written, as in this benchmark's diffusion models
TEMPERATURE = 0.7
TOP_P = 0.9
MOST_NEW_TOKENS = 80


class Exchange(Protocol):
    """A question of a kind of customer, and the reply to it."""

    @property
    def question(self) -> str: ...

    @property
    def reply(self) -> str: ...

    @property
    def label(self) -> str: ...


class AutoregressiveReplies:
    """A language model that continues "kind: question [EOS]" by "reply [EOS]", and learns the reply alone.

    Args:
        tokenizer: of the diffusion model.
        hidden_size, num_layers, num_attention_heads, length: as of the diffusion model.
    """

    def __init__(
        self,
        tokenizer: Any,
        hidden_size: int,
        num_layers: int,
        num_attention_heads: int,
        length: int,
    ):
        self.tokenizer = tokenizer
        self.end = text_ends(tokenizer)[1]
        config = yardstick_config(
            tokenizer,
            # The kind of customer takes a few tokens more.
            2 * length,
            hidden_size,
            num_layers,
            num_attention_heads,
            bos_token_id=self.end,
            eos_token_id=self.end,
        )
        self.model = GPT2LMHeadModel(config)

    def encode(self, turns: Sequence[Exchange]) -> list[tuple[list[int], list[int]]]:
        """`(question, reply)` of each turn in tokens, the ends included."""
        questions = encode_texts(
            self.tokenizer, [f"{turn.label}: {turn.question}" for turn in turns]
        )
        replies = encode_texts(self.tokenizer, [turn.reply for turn in turns])
        return [
            ([*question, self.end], [*reply, self.end])
            for question, reply in zip(questions, replies, strict=True)
        ]

    def batch(self, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, mask and labels, (B, L) each, of rows padded on the right."""
        length = max(len(question) + len(reply) for question, reply in rows)
        tokens = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        labels = torch.full_like(tokens, IGNORED)
        for index, (question, reply) in enumerate(rows):
            end = len(question) + len(reply)
            tokens[index, :end] = torch.tensor([*question, *reply])
            mask[index, :end] = 1
            labels[index, len(question) : end] = torch.tensor(reply)
        return tokens, mask, labels

    def train(self, turns: Sequence[Exchange], minutes: float, batch_size: int, seed: int) -> int:
        """Train for so many minutes of the CPU, on one thread; returns the number of steps."""
        rng = random.Random(seed)
        rows = self.encode(turns)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01
        )
        start = time.process_time()
        steps = 0
        progress = 0.0
        while progress < 1:
            # Warm up, then fall along a cosine over the minutes
            warmup = min(1, (steps + 1) / WARMUP_STEPS)
            decay = max(LEAST_RATE, 0.5 * (1 + math.cos(math.pi * progress)))
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * warmup * decay

            tokens, mask, labels = self.batch(rng.choices(rows, k=batch_size))
            self.model(tokens, attention_mask=mask, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            steps += 1
            progress = (time.process_time() - start) / (60 * minutes)
        self.model.eval()
        return steps

    @torch.no_grad()
    def nats_per_token(self, turns: Sequence[Exchange]) -> float:
        """Negative log-likelihood of the replies given their questions, ends included."""
        nats = 0.0
        num_tokens = 0
        for row in self.encode(turns):
            tokens, mask, labels = self.batch([row])
            loss = self.model(tokens, attention_mask=mask, labels=labels).loss
            nats += float(loss) * len(row[1])
            num_tokens += len(row[1])
        return nats / num_tokens

    def reply(self, turns: Sequence[Exchange], seed: int) -> list[str]:
        """A reply to each question."""
        replies = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for question, _ in self.encode(turns):
                replies += self.continuations(
                    question, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P
                )
        return replies

    @torch.no_grad()
    def continuations(self, question: list[int], **options: Any) -> list[str]:
        """The texts that `generate` of transformers writes behind a question, by its options."""
        tokens = torch.tensor([question])
        written = self.model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=MOST_NEW_TOKENS,
            pad_token_id=self.tokenizer.pad_token_id,
            **options,
        )
        return self.tokenizer.batch_decode(written[:, len(question) :], skip_special_tokens=True)
