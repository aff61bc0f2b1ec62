"""Tagged words as rows of tokens, for classifiers of each token: plain text of the words, and a tag a token."""

from collections.abc import Iterable
from typing import Any

from datasets import Dataset, List, Value

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.rows import Columns, pad_to_length, text_ends
from text_diffusers.data.sources import load_columns

# The value that `cross_entropy` ignores
NO_TAG = -100  # of tokens that belong to no word
# Kinds of files whose columns can hold lists
LIST_SUFFIXES = (".json", ".jsonl", ".parquet")


def align_tags(offsets: list[tuple[int, int]], owners: list[int], tags: list[int]) -> list[int]:
    """One tag a token: that of the word in which it begins; `NO_TAG` for tokens without characters.

    Args:
        offsets: first character of each token, and the one after its last.
        owners: word of each character.
        tags: of the words.

    Example:
        >>> from text_diffusers.data.tagged_text import align_tags
        >>> align_tags([(0, 1), (1, 3), (3, 3)], owners=[0, 1, 1], tags=[7, 8])
        [7, 8, -100]
    """
    return [tags[owners[first]] if first < end else NO_TAG for first, end in offsets]


def tagged_rows(columns: Columns, tokenizer: Any, length: int, tag_ids: dict[Any, int]) -> Columns:
    """Rows "[EOS] text [EOS]" and padding of `length` tokens, and their `tags`, `NO_TAG` where no word is.

    `given` is true where no tag is, so what is counted are tags.
    """
    # 1. Plain text, and the word of each of its characters
    texts = []
    owners_of_texts = []
    for words in columns["words"]:
        text, owners = detokenise(words)
        texts.append(text)
        owners_of_texts.append(owners)
    encoded = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )

    # 2. A tag for each token, by the characters that it stands for
    tags = []
    for offsets, owners, names in zip(
        encoded["offset_mapping"], owners_of_texts, columns["tags"], strict=True
    ):
        word_tags = [tag_ids[name] for name in names]
        row = [NO_TAG, *align_tags(offsets, owners, word_tags)][:length]
        tags.append(row + [NO_TAG] * (length - len(row)))

    # 3. Rows, which are given where there is nothing to tag
    start, end = text_ends(tokenizer)
    rows = [[start, *ids, end][:length] for ids in encoded["input_ids"]]
    given = [[tag == NO_TAG for tag in row] for row in tags]
    return pad_to_length(rows, tokenizer, length) | {"tags": tags, "given": given}


def load_tagged(source: str, words_column: str, tags_column: str, split: str = "train") -> Dataset:
    """Documents with the columns `words` and `tags`, two lists of one length; empty ones are left out.

    Args:
        source: a name of `text_diffusers.data.sources.CORPORA`, a .json, .jsonl or .parquet file or a folder of them,
            or a Hub data set.
        words_column, tags_column: names in the source.
        split: of a Hub data set, or of a folder that has splits.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if the source has no such columns, or a document has not one tag a word.
    """
    # Every document is checked, so that the message can name the one that is wrong.
    columns = {"words": words_column, "tags": tags_column}
    documents = load_columns(source, columns, split=split, suffixes=LIST_SUFFIXES)
    all_numbers = True
    for number, (words, tags) in enumerate(zip(documents["words"], documents["tags"], strict=True)):
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise ValueError(
                f"`{source}`, document {number}: expected one tag a word, got {words!r} and {tags!r}."
            )
        all_numbers = all_numbers and all(str(tag).isdecimal() for tag in tags)

    # Files are read as text; tags that are numbers keep their order.
    if all_numbers:
        documents = documents.cast_column("tags", List(Value("int64")))
    return documents.filter(lambda row: len(row["words"]) > 0)


def name_tags(tags: Iterable[Any]) -> tuple[dict[Any, int], list[str] | None]:
    """`(ids, names)` of tags: strings are numbered in their order, integers from 0 stay and have no names.

    Raises:
        ValueError: if they are neither.

    Example:
        >>> from text_diffusers.data.tagged_text import name_tags
        >>> name_tags(["VERB", "NOUN", "VERB"])
        ({'NOUN': 0, 'VERB': 1}, ['NOUN', 'VERB'])
    """
    kinds = set(tags)

    # Strings by the alphabet, so that the same tags have the same numbers in any data.
    if all(isinstance(tag, str) for tag in kinds):
        names = sorted(kinds)
        return {name: number for number, name in enumerate(names)}, names

    if not all(isinstance(tag, int) and tag >= 0 for tag in kinds):
        raise ValueError(
            f"`tags_column` must hold strings, or integers from 0, got {sorted(kinds, key=str)}."
        )
    return {number: number for number in range(max(kinds) + 1)}, None
