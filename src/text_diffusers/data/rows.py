"""Texts to rows of tokens: packing, padding, pairs, and the order of rows. Knows nothing of diffusion.

Packed rows cut the stream "document [EOS] document [EOS] ..." every L tokens; padded rows hold one document each,
"[EOS] document [EOS]", and padding. Shapes: L row length in tokens.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast

SHUFFLE_BUFFER = 10_000
ROWS_PER_MAP = 1_000
ROWS_PER_BATCH = 10_000
UNCUT_COLUMNS = ("label", "given", "prompt_ids", "prompt_mask")


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of plain text, in which "[MASK]" is six characters and not a token."""
    options: dict[str, Any] = {
        "add_special_tokens": False,
        "return_attention_mask": False,
        "split_special_tokens": True,
    }
    encoded: Any = tokenizer(texts, **options)
    return encoded["input_ids"]


def text_ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Ids of the tokens a text begins after and ends with: `[CLS]` and `[SEP]` where the tokenizer has no others.

    Raises:
        ValueError: if it has no token for the end.
    """
    end: Any = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise ValueError("`tokenizer` must have a token for the end of a text, `eos_token` or `sep_token`.")
    start: Any = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return end if start is None else start, end


def pack_rows(columns: dict[str, list], tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, list]:
    _, end = text_ends(tokenizer)
    stream = [token for ids in encode_texts(tokenizer, columns["text"]) for token in (*ids, end)]
    rows = [stream[i : i + length] for i in range(0, len(stream), length)]
    return pad_to_length(rows, tokenizer, length)


def one_row_each(columns: dict[str, list], tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, list]:
    start, end = text_ends(tokenizer)
    rows = [[start, *ids, end][:length] for ids in encode_texts(tokenizer, columns["text"])]
    return pad_to_length(rows, tokenizer, length) | labels_of(columns)


def one_framed_row_each(columns: dict[str, list], tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, list]:
    """As `one_row_each`, but a cut text ends too, and both ends are `given`."""
    start, end = text_ends(tokenizer)
    texts = [ids[: length - 2] for ids in encode_texts(tokenizer, columns["text"])]
    given = [[True] + [False] * len(ids) + [True] + [False] * (length - 2 - len(ids)) for ids in texts]
    return pad_to_length([[start, *ids, end] for ids in texts], tokenizer, length) | {"given": given}


def one_pair_each(columns: dict[str, list], tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, list]:
    """Rows "[EOS] source [EOS] text [EOS] ... [EOS]", the source `given`: the model writes where the text ends.

    A source may take half of the row; what is longer is cut, and so is a text that does not fit behind it.
    """
    start, end = text_ends(tokenizer)
    sources = [ids[: length // 2 - 2] for ids in encode_texts(tokenizer, columns["source"])]
    texts = encode_texts(tokenizer, columns["text"])
    rows = [[start, *source, end, *text, end] for source, text in zip(sources, texts, strict=True)]
    rows = [[*row[: length - 1], *[end] * (length - min(len(row), length - 1))] for row in rows]
    given = [[True] * (len(source) + 2) + [False] * (length - len(source) - 2) for source in sources]
    return pad_to_length(rows, tokenizer, length) | {"given": given} | labels_of(columns)


def labels_of(columns: dict[str, list]) -> dict[str, list]:
    return {"label": columns["label"]} if "label" in columns else {}


def pad_to_length(rows: list[list[int]], tokenizer: PreTrainedTokenizerFast, length: int) -> dict[str, list]:
    return {
        "input_ids": [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in rows],
    }


def tokenize(
    documents: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    packing: bool = True,
    given_ends: bool = False,
) -> Dataset | IterableDataset:
    """Rows of `input_ids` and `attention_mask`, `length` tokens each, packed or one document a row (see above).

    Packing keeps every token; a document longer than a padded row is cut. Labels need one document a row. With
    `given_ends`, for models that know where a text begins and ends, there is one document a row, without labels, and
    the column `given` is true at its first and last token. Documents with a `source` become rows of both, in which
    `given` is true at the source.

    Raises:
        ValueError: if labels or pairs are to be packed, or there is not a single row.
    """
    columns = documents.column_names or list(next(iter(documents), {}))
    if packing and "label" in columns:
        raise ValueError("`packing` must be off for labelled documents: a packed row holds several of them.")
    if packing and "source" in columns:
        raise ValueError("`packing` must be off for documents with a source: a row holds one pair.")
    make_rows = one_framed_row_each if given_ends else pack_rows if packing else one_row_each
    make_rows = one_pair_each if "source" in columns else make_rows
    to_rows = partial(make_rows, tokenizer=tokenizer, length=length)
    rows = documents.map(to_rows, batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)
    if isinstance(rows, Dataset) and len(rows) == 0:
        raise ValueError("`documents` must hold at least one text, got none.")
    return rows


def unknown_tokens(batch: dict[str, Tensor]) -> Tensor:
    """(B, L) bool: the tokens that are learned and counted, neither padding nor `given`."""
    real = batch["attention_mask"].bool()
    return real & ~batch["given"] if "given" in batch else real


def to_tensors(columns: dict[str, list]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(np.asarray(values)) for name, values in columns.items()}


def tensor_batches(rows: Dataset | IterableDataset, most: int) -> Iterator[dict[str, Tensor]]:
    """The first `most` rows, in order, in batches of tensors (rows, L)."""
    kept: Any = rows.take(most) if isinstance(rows, IterableDataset) else rows.select(range(min(most, len(rows))))
    for batch in kept.iter(batch_size=ROWS_PER_BATCH):
        yield to_tensors(batch)


class ShuffledRows:
    """Row batches as a pure function of (seed, step): the order of a resumed run is that of an uninterrupted one.

    Batches run on from one epoch into the next; no row is left out.

    Args:
        rows: the tokenized data set; one that streams is shuffled within a buffer and replayed to reach a step.
        rows_per_step: rows of the global batch, over all processes and accumulation steps.
        seed: of the order.
    """

    def __init__(self, rows: Dataset | IterableDataset, rows_per_step: int, seed: int = 0):
        self.rows: Any = rows
        self.rows_per_step, self.seed = rows_per_step, seed
        self._orders: dict[int, np.ndarray] = {}
        self._stream: Iterator[dict] | None = None
        self._next_step = 0

    def batch(self, step: int, wanted: range | list[int] | None = None) -> dict[str, Tensor]:
        """The rows `wanted` (default: all) of the global batch of `step`, as tensors (rows, L)."""
        wanted = range(self.rows_per_step) if wanted is None else wanted
        if isinstance(self.rows, IterableDataset):
            return self._streamed(step, wanted)
        indices = [self._index(step * self.rows_per_step + row) for row in wanted]
        return to_tensors(self.rows[indices])

    def describe(self, step: int, wanted: range | list[int]) -> str:
        """Where the rows `wanted` of a batch stand in the data, for a message."""
        positions = [step * self.rows_per_step + row for row in wanted]
        if isinstance(self.rows, IterableDataset):
            return f"rows {positions} of the shuffled stream"
        return f"rows {[self._index(position) for position in positions]} of the training data"

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, len(self.rows))
        if epoch not in self._orders:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return int(self._orders[epoch][offset])

    def _streamed(self, step: int, wanted: range | list[int]) -> dict[str, Tensor]:
        if self._stream is None or step < self._next_step:
            self._stream, self._next_step = self._endless_rows(), 0
        while self._next_step <= step:
            batch = [next(self._stream) for _ in range(self.rows_per_step)]
            self._next_step += 1
        return to_tensors({name: [batch[row][name] for row in wanted] for name in batch[0]})

    def _endless_rows(self) -> Iterator[dict]:
        shuffled = self.rows.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
        epoch = 0
        while True:
            shuffled.set_epoch(epoch)
            count = 0
            for count, row in enumerate(shuffled, start=1):  # noqa: B007
                yield row
            if not count:
                raise ValueError("`rows` must hold at least one row, got an empty stream.")
            epoch += 1


class CroppedRows(ShuffledRows):
    """Row batches that are whole in some steps, and in others one half, one quarter ... of the same place in each row.

    A step shows each row's part of 1 / 2^j with probability proportional to 2^j, so that each length gets equally many
    tokens. Which part, and at which place, depends on (seed, step) only. A row that ends before that place, as the
    last of packed texts may, shows its first part.

    Args:
        num_halvings: the most, j; 0 leaves all rows whole. Other arguments as in `ShuffledRows`.

    Raises:
        ValueError: when a batch is made, if it has a column that cannot be cut: labels, sources, prompts, or one whose
            length is not a multiple of 2^j.
    """

    def __init__(self, rows: Dataset | IterableDataset, rows_per_step: int, seed: int = 0, num_halvings: int = 0):
        super().__init__(rows, rows_per_step, seed)
        self.num_halvings = num_halvings

    def part(self, step: int) -> tuple[int, int]:
        """`(number, index)`: of how many equal parts of a row the step shows which one."""
        rng = np.random.default_rng([self.seed, step, 1])  # the order of an epoch is drawn from two numbers
        numbers = 2 ** np.arange(self.num_halvings + 1)
        number = int(rng.choice(numbers, p=numbers / numbers.sum()))
        return number, int(rng.integers(number))

    def batch(self, step: int, wanted: range | list[int] | None = None) -> dict[str, Tensor]:
        """As in `ShuffledRows`, but of every column (rows, L) only one part, (rows, L / number)."""
        batch = super().batch(step, wanted)
        most = 2**self.num_halvings
        for name, column in batch.items():
            if name in UNCUT_COLUMNS or column.ndim != 2 or column.shape[1] % most:
                raise ValueError(
                    f"Rows are cut into up to {most} equal parts; the column {name!r} {tuple(column.shape)} cannot be."
                )
        number, index = self.part(step)
        parts = {name: column.unflatten(1, (number, -1)) for name, column in batch.items()}  # (rows, parts, L / parts)
        filled = unknown_tokens({name: column[:, index] for name, column in parts.items()}).any(dim=1)
        places = torch.where(filled, index, 0)
        return {name: column[torch.arange(len(places)), places] for name, column in parts.items()}
