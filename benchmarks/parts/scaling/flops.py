"""FLOPs of `TextTransformerModel`, from the shapes of its calls.

A multiplication and an addition are two FLOPs. Counted are the products of matrices: the linear layers, the scores of
attention and its sums, and the head. Norms, rotations, softmax and look-ups are left out, as usual, and so is what a
sampler does with logits. A backward pass has two products for each of the forward pass, so a step of training is three
forward passes; a step that computes its activations anew is four.

The calls of a pipeline, or of training, do not depend on the weights. So those of a small model, noted by
`noted_calls`, say what a large one would compute.

Shapes: B batch, L tokens of the input, S tokens that are seen, D width, V vocabulary size, n tokens of each row that
go through the last block, N positions at which the head runs.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from text_diffusers import TextTransformerModel

PASSES_OF_A_STEP = 3
CHECKPOINTED_PASSES = 4


class Call(NamedTuple):
    """A call of a model.

    Attributes:
        rows: B.
        tokens: L.
        seen: S, with a cache more than L.
        asked: n, all L or the most wanted ones in a row.
        predicted: N, over all rows.
    """

    rows: int
    tokens: int
    seen: int
    asked: int
    predicted: int

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> "Call":
        """From the arguments of a model."""
        rows, tokens = input_ids.shape
        earlier = 0 if cache is None else cache.length
        asked = tokens
        predicted = rows * tokens
        if positions is not None:
            # Rows with fewer positions are filled up to the largest number, which is at least one.
            asked = max(1, int(positions.sum(dim=1).max()))
            predicted = int(positions.sum())
        return cls(rows, tokens, earlier + tokens, asked, predicted)


class Network(NamedTuple):
    """What of a `TextTransformerModel` decides its FLOPs; `conditioned` if it is told the time."""

    width: int
    layers: int
    vocab_size: int
    feed_forward_ratio: float = 4.0
    conditioned: bool = False

    @classmethod
    def of(cls, model: Any) -> "Network":
        config = model.config
        return cls(
            config.hidden_size,
            config.num_layers,
            config.vocab_size,
            config.feed_forward_ratio,
            config.time_conditioning,
        )

    def forward_flops(self, call: Call) -> int:
        """FLOPs of a forward pass.

        Example:
            >>> network = Network(width=2, layers=1, vocab_size=10)
            >>> network.forward_flops(Call(rows=1, tokens=1, seen=1, asked=1, predicted=1))
            144
        """
        width = self.width
        square = 2 * width * width  # of a token in a linear layer of D x D
        feed_forward = 4 * width * int(width * self.feed_forward_ratio)
        all_tokens = call.rows * call.tokens
        asked_tokens = call.rows * call.asked

        # 1. A block: keys and values of all tokens; queries, attention, output and feed-forward of those that go on
        through = (self.layers - 1) * all_tokens + asked_tokens
        blocks = 2 * square * self.layers * all_tokens
        blocks += (2 * square + feed_forward + 4 * width * call.seen) * through

        # 2. Time layers, and the modulation of each block and of the last norm, once a row
        condition = 0
        if self.conditioned:
            condition = call.rows * square * (2 + 6 * self.layers + 2)

        # 3. The head
        return blocks + condition + 2 * width * self.vocab_size * call.predicted

    def flops(self, calls: Iterable[Call], passes: int = 1) -> int:
        """FLOPs of all calls, each with so many passes."""
        return passes * sum(self.forward_flops(call) for call in calls)

    def dense_flops(self, length: int) -> float:
        """FLOPs of a token of a row of `length` in a forward pass that predicts all of them: 2 N and attention."""
        return self.forward_flops(Call(1, length, length, length, length)) / length


@contextmanager
def noted_calls(model: Any) -> Iterator[list[Call]]:
    """The calls of a model, in a list that grows while the context lasts."""
    calls = []

    def note(module: Any, inputs: tuple, named: dict[str, Any]):
        tokens = inputs[0] if inputs else named["input_ids"]
        calls.append(Call.of(tokens, named.get("positions"), named.get("cache")))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


class Parameters(NamedTuple):
    """Parameters of a model: all of them, and those in matrices through which each token goes, without the head."""

    total: int
    non_embedding: int


def count_parameters(model: Any) -> Parameters:
    """Parameters of a model with a head of its own."""
    total = model.num_parameters()
    tables = model.token_embedding.weight.numel() + model.head.weight.numel()
    return Parameters(total, total - tables)


def on_no_device(**settings: Any) -> TextTransformerModel:
    """A model of any size whose weights take no memory."""
    with torch.device("meta"):
        return TextTransformerModel(**settings)
