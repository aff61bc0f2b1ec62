"""Tagged words as rows of tokens, for classifiers of each token: plain text of the words, and a tag a token."""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.rows import ROWS_PER_MAP, pad_to_length, text_ends
from text_diffusers.data.sources import BUILDERS, CORPORA, check_file, find_files, split_documents
from text_diffusers.training.text_options import (
    TOKENIZER_DOCUMENTS,
    TextData,
    TextTrainingConfig,
    load_or_train_tokenizer,
)

NO_TAG = -100  # of tokens that belong to no word
LIST_BUILDERS = ("json", "parquet")


def align_tags(offsets: list[tuple[int, int]], owners: list[int], tags: list[int]) -> list[int]:
    """One tag a token: that of the word in which it begins; `NO_TAG` for tokens without characters.

    Args:
        offsets: first character of each token, and the one after its last.
        owners: word of each character.
        tags: of the words.
    """
    return [tags[owners[first]] if first < end else NO_TAG for first, end in offsets]


def tagged_rows(columns: dict[str, list], tokenizer: Any, length: int, tag_ids: dict[Any, int]) -> dict[str, list]:
    """Rows "[EOS] text [EOS]" and padding of `length` tokens, and their `tags`, `NO_TAG` where no word is.

    `given` is true where no tag is, so what is counted are tags.
    """
    start, end = text_ends(tokenizer)
    plain = [detokenise(words) for words in columns["words"]]
    options = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True}
    encoded = tokenizer([text for text, _ in plain], **options)
    tags = []
    for (_, owners), offsets, names in zip(plain, encoded["offset_mapping"], columns["tags"], strict=True):
        found = align_tags(offsets, owners, [tag_ids[name] for name in names])[: length - 1]
        tags.append([NO_TAG, *found, *[NO_TAG] * (length - 1 - len(found))])
    rows = [[start, *ids, end][:length] for ids in encoded["input_ids"]]
    given = [[tag == NO_TAG for tag in row] for row in tags]
    return pad_to_length(rows, tokenizer, length) | {"tags": tags, "given": given}


def load_tagged(source: str, words_column: str, tags_column: str, split: str = "train") -> Dataset:
    """Documents with the columns `words` and `tags`, two lists of one length; empty ones are left out.

    Args:
        source: a name of `text_diffusers.data.sources.CORPORA`, a .jsonl or .parquet file or a folder of them, or a Hub data set.
        words_column, tags_column: names in the source.
        split: of a Hub data set.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if the source has no such columns, or a document has not one tag a word.
    """
    path = Path(source).expanduser()
    if source in CORPORA:
        documents = CORPORA[source]()
    elif path.exists() or path.suffix in BUILDERS or source.startswith((".", "/", "~")):
        files = find_files(path)
        builder = BUILDERS[files[0].suffix]
        if builder not in LIST_BUILDERS:
            raise ValueError(f"`dataset` must be .jsonl or .parquet to hold words and tags, got {source!r}.")
        for file in files:
            check_file(file, words_column, tags_column)
        documents = load_dataset(builder, data_files=[str(file) for file in files], split="train")
    else:
        documents = load_dataset(source, split=split)
    for column in (words_column, tags_column):
        if column not in documents.column_names:
            raise ValueError(f"`{source}` has no column {column!r}; it has {documents.column_names}.")
    documents = documents.select_columns([words_column, tags_column])
    renamed = {old: new for old, new in ((words_column, "words"), (tags_column, "tags")) if old != new}
    documents = documents.rename_columns(renamed)
    for number, (words, tags) in enumerate(zip(documents["words"], documents["tags"], strict=True)):
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise ValueError(f"`{source}`, document {number}: expected one tag a word, got {words!r} and {tags!r}.")
    return documents.filter(lambda row: len(row["words"]) > 0)


def name_tags(found: Iterable[Any]) -> tuple[dict[Any, int], list[str] | None]:
    """`(ids, names)` of tags: strings are numbered in their order, integers from 0 stay and have no names.

    Raises:
        ValueError: if they are neither.
    """
    kinds = set(found)
    if all(isinstance(tag, str) for tag in kinds):
        names = sorted(kinds)
        return {name: number for number, name in enumerate(names)}, names
    if not all(isinstance(tag, int) and tag >= 0 for tag in kinds):
        raise ValueError(f"`tags_column` must hold strings, or integers from 0, got {sorted(kinds, key=str)}.")
    return {number: number for number in range(max(kinds) + 1)}, None


def prepare_tagged_data(
    config: TextTrainingConfig, accelerator: Any, pretrained: str | None, words_column: str, tags_column: str
) -> tuple[TextData, list[str] | None]:
    """Tagged rows, and the names of the tags if they are strings; as `prepare_data`, one text a row.

    Raises:
        ValueError: if the tokenizer does not tell which characters a token stands for.
    """
    with accelerator.main_process_first():
        documents = load_tagged(config.dataset, words_column, tags_column, config.split)
        tag_ids, names = name_tags(tag for tags in documents["tags"] for tag in tags)
        train: Any
        train, validation = split_documents(documents, config.validation_fraction)
        texts = (detokenise(row["words"])[0] for row in islice(train, TOKENIZER_DOCUMENTS))
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)
        if not tokenizer.is_fast:
            raise ValueError("`tokenizer` must be a fast one: tags need the characters of each token.")
        settings = {"tokenizer": tokenizer, "length": config.length, "tag_ids": tag_ids}
        train_rows, validation_rows = (
            part.map(partial(tagged_rows, **settings), batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)
            for part, columns in ((train, train.column_names), (validation, validation.column_names))
        )
    return TextData(tokenizer, train_rows, validation_rows, validation, len(tag_ids), None), names
