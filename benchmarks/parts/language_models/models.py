"""Small Llamas that are read as diffusion models: with random weights, or trained to answer for a few minutes.

Shapes: B batch, L length, N masked positions, V vocabulary size.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from parts.conditional.turns import TRAINED, Turn, make_turns
from parts.sampling.measuring import plain_tokenizer
from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.data.rows import encode_texts
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.models import LanguageModelDenoiser, Reading, write_reading

# Tokens of a reply and of what fills it up; the longest reply has fewer.
REPLY_LENGTH = 36
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50

# Each turn of a conversation ends with the token that ends a text.
TEMPLATE = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a Llama with random weights, and of the rows that it writes."""

    width: int = 192
    layers: int = 6
    heads: int = 6
    length: int = 256
    vocab_size: int = 2_048


# Of the model that is trained; its vocabulary is that of its tokenizer.
TRAINED_SIZE = ModelSize(width=128, layers=4, heads=4, length=128, vocab_size=800)


@dataclass
class Trained:
    """A pipeline whose model was trained, and turns that it has not seen.

    Attributes:
        num_steps: of the training.
        nats: of a masked token of unseen replies.
    """

    pipe: TextDiffusionPipeline
    turns: list[Turn]
    num_steps: int
    nats: float


def llama(size: ModelSize, vocab_size: int, reading: Reading) -> Any:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=size.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    write_reading(config, reading)
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def random_pipe(size: ModelSize, block_length: int | None = None) -> TextDiffusionPipeline:
    """A pipeline of random weights, bidirectional or in blocks; no text ends early."""
    attention = "bidirectional" if block_length is None else "block"
    reading = Reading(attention, block_length, mask_token_id=size.vocab_size - 1)
    model = llama(size, size.vocab_size, reading)

    # Smaller weights would predict nearly the same everywhere.
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)

    # Prompts are words between spaces.
    tokenizer = plain_tokenizer(size.vocab_size)
    tokenizer.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    return greedy_pipe(model, tokenizer)


def greedy_pipe(model: Any, tokenizer: Any) -> TextDiffusionPipeline:
    """A pipeline without bars, whose steps commit equal parts of a block, the surest tokens first."""
    scheduler = ConfidenceScheduler(tokenizer.mask_token_id, temperature=0.0, quota="even")
    pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Training


def train(
    minutes: float, num_turns: int, size: ModelSize = TRAINED_SIZE, batch_size: int = 16
) -> Trained:
    """Train a bidirectional Llama to answer made-up questions, as LLaDA is trained, for so many minutes.

    A reply is filled up with end tokens, which the model learns too; its question is never masked.
    """
    turns = make_turns("en", TRAINED + num_turns)
    known = turns[:TRAINED]
    texts = [text for turn in known for text in (question_of(turn), turn.reply)]
    tokenizer = train_tokenizer(texts, size.vocab_size)
    tokenizer.chat_template = TEMPLATE

    end = tokenizer.eos_token_id
    reading = Reading(mask_token_id=tokenizer.mask_token_id, end_token_ids=[end])
    # Padding and mask stand behind the tokens of texts.
    model = llama(size, len(tokenizer), reading).train()
    denoiser = LanguageModelDenoiser(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))

    rng = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    rows = encode_turns(tokenizer, known)
    started = time.perf_counter()
    num_steps = 0
    progress = 0.0
    while progress < 1:
        # Warm up, then fall to zero over the minutes
        rate = LEARNING_RATE * min(1, (num_steps + 1) / WARMUP_STEPS) * (1 - progress)
        for group in optimizer.param_groups:
            group["lr"] = rate

        loss = masked_loss(denoiser, tokenizer, rng.choices(rows, k=batch_size), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        num_steps += 1
        progress = (time.perf_counter() - started) / (60 * minutes)

    model.eval()
    unseen = turns[TRAINED:]
    with torch.no_grad():
        seeded = torch.Generator().manual_seed(1)
        nats = masked_loss(denoiser, tokenizer, encode_turns(tokenizer, unseen), seeded)
    return Trained(greedy_pipe(model, tokenizer), unseen, num_steps, float(nats))


def question_of(turn: Turn) -> str:
    # The kind of customer determines the tone of the reply.
    return f"{turn.label}: {turn.question}"


def conversation_of(turn: Turn) -> list[dict[str, str]]:
    return [{"role": "user", "content": question_of(turn)}]


def encode_turns(tokenizer: Any, turns: Sequence[Turn]) -> list[tuple[list[int], list[int]]]:
    """`(question, reply)` of each turn in tokens; a reply is filled up to `REPLY_LENGTH`."""
    end = tokenizer.eos_token_id
    questions = encode_texts(tokenizer, [question_of(turn) for turn in turns])
    replies = encode_texts(tokenizer, [turn.reply for turn in turns])
    rows = []
    for question, reply in zip(questions, replies, strict=True):
        filling = [end] * (REPLY_LENGTH - len(reply))
        rows.append(([*question, end], [*reply, *filling]))
    return rows


def masked_loss(
    denoiser: Any,
    tokenizer: Any,
    rows: Sequence[tuple[list[int], list[int]]],
    generator: torch.Generator,
) -> Tensor:
    """Nats a masked token of the replies, at shares of masks that are spread evenly over the rows."""
    longest = max(len(question) + len(reply) for question, reply in rows)
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)  # (B, L)
    is_reply = torch.zeros_like(tokens, dtype=torch.bool)
    for index, (question, reply) in enumerate(rows):
        end = len(question) + len(reply)
        tokens[index, :end] = torch.tensor([*question, *reply])
        is_reply[index, len(question) : end] = True

    shares = (torch.arange(len(rows)) + torch.rand(1, generator=generator)) / len(rows)
    masked = is_reply & (torch.rand(tokens.shape, generator=generator) < shares.unsqueeze(1))
    noisy = tokens.masked_fill(masked, tokenizer.mask_token_id)
    real = (tokens != tokenizer.pad_token_id).long()
    logits = denoiser(noisy, attention_mask=real, positions=masked).logits  # (N, V)
    return F.cross_entropy(logits, tokens[masked])
