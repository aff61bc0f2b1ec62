"""Texts to rows of tokens: packing, padding, pairs, and the order of rows. Knows nothing of diffusion.

Packed rows cut the stream "document [EOS] document [EOS] ..." every L tokens; padded rows hold one document each,
"[EOS] document [EOS]", or a pair, "[EOS] source [EOS] document [EOS]", and padding. What is never written, the start
and the source, is `given`. Shapes: B rows of a batch, L row length in tokens.
"""

import ctypes
import os
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import end_ids, start_ids

# Characters that a tokenizer is shown at once
CHARACTERS_AT_ONCE = 1_000_000
# Rows of a stream among which the order is drawn, and rows in one call of `map` and of `iter`
SHUFFLE_BUFFER = 10_000
ROWS_PER_MAP = 1_000
ROWS_PER_BATCH = 10_000
# Batches among which rows are sorted by length
BATCHES_PER_GROUP = 50
# Columns that belong to a whole row, and say nothing of one half of it
UNCUT_COLUMNS = ("label", "given", "prompt_ids", "prompt_mask", "segment_ids")

Rows = Dataset | IterableDataset
Columns = dict[str, list]
Batch = dict[str, Tensor]


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Token ids of plain text, in which "[MASK]" is six characters and not a token."""
    # Special tokens come from the kind of row, and never from the text.
    return encode_plain(tokenizer, texts)


def each_encoded(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Iterator[list[int]]:
    """As `encode_texts`, one text after the other."""
    for portion in portions(texts):
        yield from encode_texts(tokenizer, portion)


def portions(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists, each as many as a tokenizer is shown at once.

    A tokenizer takes some 50 bytes of memory for a byte of text, so it is shown only as much as it takes to keep it
    busy.
    """
    portion: list[str] = []
    num_characters = 0
    for text in texts:
        portion.append(text)
        num_characters += len(text)
        if num_characters >= CHARACTERS_AT_ONCE:
            yield portion
            portion = []
            num_characters = 0
            return_freed_memory()
    if portion:
        yield portion


def return_freed_memory():
    """Give free memory back to the system: the C library keeps it in small pieces until it is told to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # as in glibc
        trim(0)


def text_ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Ids of the tokens a text begins after and ends with: `[CLS]` and `[SEP]` where the tokenizer has no others.

    Raises:
        ValueError: if it has no token for the end.
    """
    # Without a token for the start, a text begins after the end of the one before.
    ends = end_ids(tokenizer)
    if not ends:
        raise ValueError(
            "`tokenizer` must have a token for the end of a text, `eos_token` or `sep_token`."
        )
    return (start_ids(tokenizer) or ends)[0], ends[0]


def pack_rows(columns: Any, tokenizer: PreTrainedTokenizerFast, length: int) -> pyarrow.Table:
    """The stream of all texts, an end token after each, cut every `length` tokens.

    Args:
        columns: an Arrow table, of which one text at a time becomes a string, or lists.
    """
    _, end = text_ends(tokenizer)
    texts = columns["text"]
    if isinstance(columns, pyarrow.Table):
        texts = (text.as_py() for text in texts)

    # 1. All tokens, four bytes each: in lists of numbers they would take ten times as much memory
    stream = array("i")
    for ids in each_encoded(tokenizer, texts):
        stream.extend(ids)
        stream.append(end)

    # 2. The last row of a map is short: rows do not run on from one map into the next
    missing = -len(stream) % length
    padding: Any = tokenizer.pad_token_id
    stream.extend([padding] * missing)
    tokens = np.frombuffer(stream, dtype=np.int32)
    mask = np.ones(len(tokens), dtype=np.int8)
    mask[len(tokens) - missing :] = 0

    # 3. Lists that all have one length
    starts = np.arange(0, len(tokens) + 1, length, dtype=np.int32)
    return pyarrow.table(
        {
            "input_ids": pyarrow.ListArray.from_arrays(starts, tokens),
            "attention_mask": pyarrow.ListArray.from_arrays(starts, mask),
        }
    )


def one_row_each(columns: Columns, tokenizer: PreTrainedTokenizerFast, length: int) -> Columns:
    """Rows "[EOS] text [EOS]", cut to `length` tokens, the start `given`: it is the same in every row."""
    start, end = text_ends(tokenizer)
    # A text that is cut has no end, since it does not end there.
    rows = [
        [start, *ids[:length], end][:length] for ids in each_encoded(tokenizer, columns["text"])
    ]
    given = [[True] + [False] * (length - 1) for _ in rows]
    return pad_to_length(rows, tokenizer, length) | {"given": given} | labels_of(columns)


def one_framed_row_each(
    columns: Columns, tokenizer: PreTrainedTokenizerFast, length: int
) -> Columns:
    """As `one_row_each`, but a cut text ends too, and both ends are `given`."""
    start, end = text_ends(tokenizer)
    rows = []
    given = []
    for ids in each_encoded(tokenizer, columns["text"]):
        row = [start, *ids[: length - 2], end]  # both ends stay
        rows.append(row)
        given.append([True] + [False] * (len(row) - 2) + [True] + [False] * (length - len(row)))
    return pad_to_length(rows, tokenizer, length) | {"given": given}


def source_room(length: int) -> int:
    """Tokens of a source in a row: with the tokens around it, it takes half of the row at most."""
    return max(0, length // 2 - 2)


def one_pair_each(columns: Columns, tokenizer: PreTrainedTokenizerFast, length: int) -> Columns:
    """Rows "[EOS] source [EOS] text [EOS]", the source `given`.

    A source may take half of the row; what is longer is cut, and so is a text that does not fit behind it.
    """
    start, end = text_ends(tokenizer)
    sources = each_encoded(tokenizer, columns["source"])
    texts = each_encoded(tokenizer, columns["text"])
    rows = []
    given = []
    for source, text in zip(sources, texts, strict=True):
        # The source and the tokens around it are given.
        frame = [start, *source[: source_room(length)], end]
        rows.append([*[*frame, *text][: length - 1], end])  # the end stays
        given.append([True] * len(frame) + [False] * (length - len(frame)))
    return pad_to_length(rows, tokenizer, length) | {"given": given} | labels_of(columns)


def labels_of(columns: Columns) -> Columns:
    return {"label": columns["label"]} if "label" in columns else {}


def pad_to_length(
    rows: list[list[int]], tokenizer: PreTrainedTokenizerFast, length: int
) -> Columns:
    """The columns `input_ids` and `attention_mask` of rows of at most `length` tokens."""
    padded = []
    masks = []
    for row in rows:
        missing = length - len(row)
        padded.append(row + [tokenizer.pad_token_id] * missing)
        masks.append([1] * len(row) + [0] * missing)
    return {"input_ids": padded, "attention_mask": masks}


def tokenize(
    documents: Rows,
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    packing: bool = True,
    given_ends: bool = False,
) -> Rows:
    """Rows of `input_ids` and `attention_mask`, `length` tokens each, packed or one document a row (see above).

    Packing keeps every token; a document longer than a padded row is cut. Labels need one document a row. With
    `given_ends`, for models that know where a text begins and ends, there is one document a row, without labels, and
    the column `given` is true at its first and last token. Documents with a `source` become rows of both, in which
    `given` is true at the source.

    Raises:
        ValueError: if labels or pairs are to be packed, or there is not a single row.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.rows import tokenize
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> rows = tokenize(Dataset.from_dict({"text": ["the cat", "the dog"]}), tokenizer, length=32)
        >>> len(rows), rows.column_names, len(rows[0]["input_ids"])
        (1, ['input_ids', 'attention_mask'], 32)
    """
    # A stream may not know its columns before it is read.
    columns = documents.column_names or list(next(iter(documents), {}))
    if packing and "label" in columns:
        raise ValueError(
            "`packing` must be off for labelled documents: a packed row holds several of them."
        )
    if packing and "source" in columns:
        raise ValueError("`packing` must be off for documents with a source: a row holds one pair.")

    # The kind of row
    if "source" in columns:
        make_rows = one_pair_each
    elif given_ends:
        make_rows = one_framed_row_each
    else:
        make_rows = pack_rows if packing else one_row_each
    make_rows = partial(make_rows, tokenizer=tokenizer, length=length)

    # A table is read piece by piece, where lists would hold all texts of a map at once.
    if make_rows.func is pack_rows:
        documents = documents.with_format("arrow")
    rows = documents.map(make_rows, batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)
    rows = rows.with_format(None)
    if isinstance(rows, Dataset) and len(rows) == 0:
        raise ValueError("`documents` must hold at least one text, got none.")
    return rows


def unknown_tokens(batch: Batch) -> Tensor:
    """(B, L) bool: the tokens that are learned and counted, neither padding nor `given`."""
    real = batch["attention_mask"].bool()
    return real & ~batch["given"] if "given" in batch else real


def to_tensors(columns: Columns) -> Batch:
    return {name: torch.as_tensor(np.asarray(values)) for name, values in columns.items()}


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {name: column.to(device) for name, column in batch.items()}


def trimmed(batch: Batch) -> Batch:
    """The batch without the columns behind the last token of all rows.

    Example:
        >>> import torch
        >>> from text_diffusers.data.rows import trimmed
        >>> batch = {"attention_mask": torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]), "label": torch.tensor([3, 7])}
        >>> {name: column.tolist() for name, column in trimmed(batch).items()}
        {'attention_mask': [[1, 0], [0, 1]], 'label': [3, 7]}
    """
    # Texts that share a row have padding between them.
    columns = batch["attention_mask"].bool().any(dim=0)
    width = int((columns.cumsum(dim=0) * columns).argmax()) + 1
    # Labels have no second axis.
    return {
        name: column[:, :width] if column.ndim == 2 else column for name, column in batch.items()
    }


def tensor_batches(rows: Rows, most: int) -> Iterator[Batch]:
    """The first `most` rows, in order, in batches of tensors (B, L)."""
    if isinstance(rows, IterableDataset):
        first_rows: Any = rows.take(most)
    else:
        first_rows = rows.select(range(min(most, len(rows))))
    for batch in first_rows.iter(batch_size=ROWS_PER_BATCH):
        yield to_tensors(batch)


class ShuffledRows:
    """Row batches as a pure function of (seed, step): the order of a resumed run is that of an uninterrupted one.

    Batches run on from one epoch into the next; no row is left out.

    Args:
        rows: the tokenized data set; one that streams is shuffled within a buffer and replayed to reach a step.
        rows_per_step: rows of the global batch, over all processes and accumulation steps.
        seed: of the order.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.rows import ShuffledRows
        >>> order = ShuffledRows(Dataset.from_dict({"input_ids": [[1, 2], [3, 4], [5, 6]]}), rows_per_step=2)
        >>> order.batch(step=0)["input_ids"].shape
        torch.Size([2, 2])
        >>> order.batch(step=7)["input_ids"].equal(order.batch(step=7)["input_ids"])
        True
    """

    def __init__(self, rows: Rows, rows_per_step: int, seed: int = 0):
        self.rows: Any = rows
        self.rows_per_step = rows_per_step
        self.seed = seed

        self._orders: dict[int, np.ndarray] = {}  # of the last two epochs
        self._stream: Iterator[dict] | None = None
        self._next_step = 0  # of the stream

    def batch(self, step: int, wanted: range | list[int] | None = None) -> Batch:
        """The rows `wanted` (default: all) of the global batch of `step`, as tensors (B, L)."""
        if wanted is None:
            wanted = range(self.rows_per_step)
        if isinstance(self.rows, IterableDataset):
            return self._streamed(step, wanted)
        return to_tensors(self.rows[self._indices(step, wanted)])

    def describe(self, step: int, wanted: range | list[int]) -> str:
        """Where the rows `wanted` of a batch stand in the data, for a message."""
        if isinstance(self.rows, IterableDataset):
            return (
                f"rows {[step * self.rows_per_step + row for row in wanted]} of the shuffled stream"
            )
        return f"rows {self._indices(step, wanted)} of the training data"

    def _indices(self, step: int, wanted: range | list[int]) -> list[int]:
        return [self._index(step * self.rows_per_step + row) for row in wanted]

    def _index(self, position: int) -> int:
        """The row at a position of the endless order."""
        epoch, offset = divmod(position, len(self.rows))
        if epoch not in self._orders:
            # A batch may begin in the epoch before, whose order is still needed.
            self._orders = {old: rows for old, rows in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][offset])

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch in a random order."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))

    def _streamed(self, step: int, wanted: range | list[int]) -> Batch:
        # A stream goes forwards only: an earlier step begins it anew, a later one skips what is before.
        if self._stream is None or step < self._next_step:
            self._stream = self._endless_rows()
            self._next_step = 0
        while self._next_step <= step:
            batch = [next(self._stream) for _ in range(self.rows_per_step)]
            self._next_step += 1
        return to_tensors({name: [batch[row][name] for row in wanted] for name in batch[0]})

    def _endless_rows(self) -> Iterator[dict]:
        # The buffer is filled in another order in each epoch.
        shuffled = self.rows.shuffle(seed=self.seed, buffer_size=SHUFFLE_BUFFER)
        epoch = 0
        while True:
            shuffled.set_epoch(epoch)
            empty = True
            for row in shuffled:
                empty = False
                yield row
            if empty:
                raise ValueError("`rows` must hold at least one row, got an empty stream.")
            epoch += 1


class GroupedRows(ShuffledRows):
    """Row batches whose rows are of about the same length, so that little of a batch is padding.

    The order is random, but within every few batches rows are sorted by their lengths, and these batches are then
    shuffled, as are the rows in each. Arguments as in `ShuffledRows`; `rows` cannot be a stream.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.rows import GroupedRows
        >>> masks = [[1, 1, 1, 1], [1, 0, 0, 0]] * 4
        >>> order = GroupedRows(Dataset.from_dict({"attention_mask": masks}), rows_per_step=4)
        >>> sorted(order.batch(step)["attention_mask"].sum().item() for step in range(2))
        [4, 16]
    """

    def __init__(self, rows: Dataset, rows_per_step: int, seed: int = 0):
        super().__init__(rows, rows_per_step, seed)
        masks: Any = rows.select_columns("attention_mask").with_format("numpy")
        lengths = [
            np.asarray(batch["attention_mask"]).sum(axis=1)
            for batch in masks.iter(batch_size=ROWS_PER_BATCH)
        ]
        self.lengths = np.concatenate(lengths)

    def _order(self, epoch: int) -> np.ndarray:
        order = super()._order(epoch)
        # Of three numbers; the order itself is drawn from two.
        rng = np.random.default_rng([self.seed, epoch, 2])

        # The first rows belong to a batch that began in the epoch before.
        first = -epoch * len(order) % self.rows_per_step
        groups = [order[:first]]
        rows_per_group = self.rows_per_step * BATCHES_PER_GROUP
        for start in range(first, len(order), rows_per_group):
            group = order[start : start + rows_per_group]
            group = group[np.argsort(self.lengths[group], kind="stable")]

            # The last batch of an epoch may be short, and stays the last.
            batches = np.array_split(
                group, range(self.rows_per_step, len(group), self.rows_per_step)
            )
            short = [batches.pop()] if len(batches[-1]) < self.rows_per_step else []
            groups += [rng.permutation(batches[place]) for place in rng.permutation(len(batches))]
            groups += short
        return np.concatenate(groups)


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

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.rows import CroppedRows
        >>> rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]], "attention_mask": [[1, 1, 1, 1]]})
        >>> order = CroppedRows(rows, rows_per_step=1, num_halvings=1)
        >>> sorted({order.batch(step)["input_ids"].shape[1] for step in range(20)})
        [2, 4]
    """

    def __init__(self, rows: Rows, rows_per_step: int, seed: int = 0, num_halvings: int = 0):
        super().__init__(rows, rows_per_step, seed)
        self.num_halvings = num_halvings

    def part(self, step: int) -> tuple[int, int]:
        """`(number, index)`: of how many equal parts of a row the step shows which one."""
        # Of three numbers; the order of an epoch is drawn from two.
        rng = np.random.default_rng([self.seed, step, 1])
        numbers = 2 ** np.arange(self.num_halvings + 1)
        number = int(rng.choice(numbers, p=numbers / numbers.sum()))
        return number, int(rng.integers(number))

    def batch(self, step: int, wanted: range | list[int] | None = None) -> Batch:
        """As in `ShuffledRows`, but of every column (B, L) only one part, (B, L / number)."""
        # 1. Every column must fall into the largest number of parts
        batch = super().batch(step, wanted)
        most = 2**self.num_halvings
        for name, column in batch.items():
            if name in UNCUT_COLUMNS or column.ndim != 2 or column.shape[1] % most:
                raise ValueError(
                    f"Rows are cut into up to {most} equal parts; the column {name!r} {tuple(column.shape)} cannot be."
                )

        # 2. The parts of this step
        number, index = self.part(step)
        parts = {
            name: column.unflatten(1, (number, -1)) for name, column in batch.items()
        }  # (B, number, L / number)

        # 3. One part of each row; the first, where a row has nothing but padding at the place
        filled = parts["attention_mask"][:, index].bool().any(dim=1)  # (B,)
        places = torch.where(filled, index, 0)
        rows = torch.arange(len(places))
        return {name: column[rows, places] for name, column in parts.items()}
