"""Text to token rows: sources, tokenizer training, packing, padding and the order of rows. Knows nothing of diffusion.

A document is one text. Packed rows cut the stream "document [EOS] document [EOS] ..." every L tokens; padded rows hold
one document each, "[EOS] document [EOS]", and padding. Shapes: L row length in tokens.
"""

import csv
import importlib.resources
import json
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerFast

EOS_TOKEN, PAD_TOKEN, MASK_TOKEN = "[EOS]", "[PAD]", "[MASK]"
BUILDERS = {".txt": "text", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
VOCABULARY_LIMITS = (300, 65_536)
SHUFFLE_BUFFER = 10_000
ROWS_PER_MAP = 1_000
ROWS_PER_BATCH = 10_000

CONTACT = re.compile(r"\S+@\S+\.\w+|(?:\+?\d[\s().-]*){7,}")
PROFANITY = re.compile(
    r"\b(?:\w*fuck\w*|\w*shit\w*|bitch\w*|cunt\w*|asshole\w*|bastard\w*|dick(?:head)?s?|piss\w*|whore\w*|slut\w*"
    r"|nigg\w+|fag(?:got)?s?|retard\w*|cock(?:sucker)?s?|puss(?:y|ies)|porn\w*|wank\w*|twat\w*)\b",
    re.IGNORECASE,
)


def load_documents(
    source: str,
    text_column: str = "text",
    label_column: str | None = None,
    split: str = "train",
    sample_by: str = "line",
    streaming: bool = False,
    source_column: str | None = None,
) -> Dataset | IterableDataset:
    """Documents of a source as a data set with the column `text` and, if asked for, `label` and `source`.

    Args:
        source: "chitchat", a file or folder of .txt, .jsonl, .csv or .parquet files, or the name of a Hub data set.
        text_column, label_column: names in the source; labels must be integers from 0.
        split: split of a Hub data set.
        sample_by: what one document of a .txt file is: "line", "paragraph" or "document" (the whole file).
        streaming: reads as it goes, for what does not fit on the disk or in memory.
        source_column: name in the source of the texts that `text` is to be written from.

    Raises:
        FileNotFoundError: if a path does not exist or holds no such file.
        ValueError: naming file and line, if a file is empty, not UTF-8 or lacks the column.
    """
    if source == "chitchat":
        return chitchat_documents()
    path = Path(source)
    if path.exists() or path.suffix in BUILDERS or source.startswith((".", "/", "~")):
        files = find_files(path.expanduser())
        builder = BUILDERS[files[0].suffix]
        for file in files:
            check_file(file, text_column, label_column, source_column)
        options: dict[str, Any] = {"sample_by": sample_by} if builder == "text" else {}
        names = [str(file) for file in files]
        options |= {"data_files": names, "split": "train", "streaming": streaming}
        documents = load_dataset(builder, **options)
    else:
        documents = load_dataset(source, split=split, streaming=streaming)
        columns = documents.column_names or [text_column]
        for column in filter(None, (text_column, label_column, source_column)):
            if column not in columns:
                raise ValueError(f"`{source}` has no column {column!r}; it has {columns}.")
    roles = {"text": text_column, "label": label_column, "source": source_column}
    renamed = {column: role for role, column in roles.items() if column}
    documents = documents.rename_columns({old: new for old, new in renamed.items() if old != new})
    documents = documents.select_columns(list(renamed.values()))
    return documents.filter(lambda row: bool(row["text"] and row["text"].strip()))


def chitchat_documents() -> Dataset:
    """The turns of the BYU Chit-Chat Challenge (PyPI `chitchat-dataset`, MIT), in order, one document each.

    Messages that look like contact data, and messages with profanity, are left out.
    """
    try:
        file = importlib.resources.files("chitchat_dataset") / "dataset.json"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("`chitchat` needs `pip install chitchat-dataset==0.9.0` (extra `train`).") from error
    conversations = json.loads(file.read_text(encoding="utf-8"))
    texts = []
    for conversation in conversations.values():
        for turn in conversation["messages"]:
            messages = [" ".join(message["text"].split()) for message in turn]
            kept = [m for m in messages if m and not CONTACT.search(m) and not PROFANITY.search(m)]
            if kept:
                texts.append(" ".join(kept))
    return Dataset.from_dict({"text": texts})


def find_files(path: Path) -> list[Path]:
    """The data files at `path`, a file or a folder, all of one kind, sorted."""
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist.")
    candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in candidates if p.suffix in BUILDERS]
    if not files:
        raise FileNotFoundError(f"`{path}` holds no file that ends in {', '.join(BUILDERS)}.")
    kinds = sorted({p.suffix for p in files})
    if len(kinds) > 1:
        raise ValueError(f"`{path}` mixes {', '.join(kinds)}; name one file, or a folder of one kind.")
    return files


def check_file(path: Path, *names_of_columns: str | None):
    """Raise a ValueError that names the file and line if it is empty, not UTF-8, or lacks a column."""
    columns = [column for column in names_of_columns if column]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_schema(path).names
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"{path}: no column {missing[0]!r}; it has {names}.")
        return
    number, blank = 0, True
    for number, line in enumerate(utf8_lines(path), start=1):
        blank = blank and not line.strip()
        if path.suffix == ".csv" and number == 1:
            names = next(csv.reader([line]), [])
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"{path}, line 1: no column {missing[0]!r}; it has {names}.")
        if path.suffix == ".jsonl" and line.strip():
            check_json_line(path, number, line, columns)
    if blank or (path.suffix == ".csv" and number < 2):
        raise ValueError(f"{path}, line {max(number, 1)}: the file holds no text.")


def check_json_line(path: Path, number: int, line: str, columns: list[str]):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(record, dict) or any(column not in record for column in columns):
        raise ValueError(f"{path}, line {number}: expected an object with {columns}, got {line.strip()[:80]!r}.")


def utf8_lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte, position = line[error.start], error.start + 1
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x} at position {position}); "
                    "convert the file, for example with `iconv -t utf-8`."
                ) from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens of data, `[EOS]` among them, then `[PAD]` and `[MASK]`.

    `[EOS]` separates documents, so it is also the token a text begins after (`bos_token`). Padding and mask have the
    last two ids: the first `vocab_size` are what text consists of. `[MASK]` takes in the space before it.

    Raises:
        ValueError: if `vocab_size` is outside its limits, or the texts are too few for it.
    """
    low, high = VOCABULARY_LIMITS
    if not low <= vocab_size <= high:
        raise ValueError(f"`vocab_size` must be between {low} and {high}, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"`vocab_size` must be at most {tokenizer.get_vocab_size()} for this text, which has no more repeated "
            f"pairs to merge; got {vocab_size}."
        )
    tokenizer.add_special_tokens([PAD_TOKEN, AddedToken(MASK_TOKEN, lstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=AddedToken(MASK_TOKEN, lstrip=True, special=True),
        clean_up_tokenization_spaces=False,
    )


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
    labels = {"label": columns["label"]} if "label" in columns else {}
    return pad_to_length(rows, tokenizer, length) | labels


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
    return pad_to_length(rows, tokenizer, length) | {"given": given}


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


def split_documents(
    documents: Dataset | IterableDataset, validation_fraction: float = 0.05, validation_documents: int = 1_000
) -> tuple[Dataset | IterableDataset, Dataset]:
    """`(train, validation)`: the last documents are held out, so neighbouring texts do not leak across.

    Of a stream, whose length is unknown, the first `validation_documents` are held out and kept in memory.
    """
    if isinstance(documents, IterableDataset):
        train = documents.skip(validation_documents)
        if next(iter(train), None) is None:
            raise ValueError(
                f"`validation_documents`={validation_documents} leaves no text of this stream to train on."
            )
        return train, Dataset.from_list(list(documents.take(validation_documents)))
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1, exclusive, got {validation_fraction!r}.")
    held_out = max(1, round(len(documents) * validation_fraction))
    if held_out >= len(documents):
        raise ValueError(f"`documents` must hold at least 2 texts, to hold one out, got {len(documents)}.")
    cut = len(documents) - held_out
    return documents.select(range(cut)), documents.select(range(cut, len(documents)))
