"""Sets of texts on which the field evaluates models that were trained on others.

They are those of SEDD and MDLM (https://arxiv.org/abs/2310.16834, https://arxiv.org/abs/2406.07524), in their splits
and with their marks joined to the words again as there, so that figures of rows of joined texts compare.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from text_diffusers.common.validation import require_key
from text_diffusers.evaluation.protocols.detokenizers import (
    clean_lambada,
    clean_lm1b,
    clean_papers,
    clean_treebank,
    clean_wikitext,
)

# The Hub keeps a copy in Parquet of each set whose files a script made, which `datasets` does not run.
PARQUET_COPY = "hf://datasets/{repository}@refs/convert/parquet/{config}/{split}/*.parquet"
# Loaders of local files, and their options: "NA" is a text, and no missing number.
LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".txt": ("text", {}),
}


@dataclass(frozen=True)
class ZeroShotSet:
    """A published set of texts.

    Attributes:
        repository: of the Hub.
        config: of the repository; `None` if it has one only.
        split: that is evaluated.
        column: of the texts.
        clean: makes plain text of one in the form in which the set has it; `None` leaves it as it is.
        is_parquet_copy: whether it is read from the copy in Parquet that the Hub keeps.

    Example:
        >>> from text_diffusers.evaluation.protocols import ZERO_SHOT_SETS
        >>> ZERO_SHOT_SETS["ptb"].column
        'sentence'
    """

    repository: str
    config: str | None
    split: str
    column: str
    clean: Callable[[str], str] | None = None
    is_parquet_copy: bool = False


ZERO_SHOT_SETS = {
    # The validation texts of WikiText-2 are those of WikiText-103.
    "wikitext": ZeroShotSet(
        "Salesforce/wikitext", "wikitext-2-raw-v1", "validation", "text", clean_wikitext
    ),
    "lambada": ZeroShotSet("EleutherAI/lambada_openai", "default", "test", "text", clean_lambada),
    "ptb": ZeroShotSet(
        "ptb-text-only/ptb_text_only",
        "penn_treebank",
        "validation",
        "sentence",
        clean_treebank,
        is_parquet_copy=True,
    ),
    "lm1b": ZeroShotSet(
        "billion-word-benchmark/lm1b",
        "plain_text",
        "test",
        "text",
        clean_lm1b,
        is_parquet_copy=True,
    ),
    "ag_news": ZeroShotSet("fancyzhx/ag_news", None, "test", "text"),
    "pubmed": ZeroShotSet(
        "armanc/scientific_papers",
        "pubmed",
        "validation",
        "article",
        clean_papers,
        is_parquet_copy=True,
    ),
    "arxiv": ZeroShotSet(
        "armanc/scientific_papers",
        "arxiv",
        "validation",
        "article",
        clean_papers,
        is_parquet_copy=True,
    ),
}


def load_zero_shot_texts(name: str, folder: str | Path | None = None) -> list[str]:
    """The texts of a set as plain text, empty lines among them, which are ends by themselves when texts are joined.

    Args:
        name: a key of `ZERO_SHOT_SETS`.
        folder: read from it instead of the Hub: a file NAME.jsonl, .json, .parquet, .csv, .tsv or .txt with the column
            of the set, or a folder NAME of files of which those of the split have its name, or their folders have.

    Raises:
        ValueError: if there is no set of that name, or the files do not hold its column.
        FileNotFoundError: if there are no files, or the Hub cannot be reached.

    Example:
        >>> from pathlib import Path
        >>> from text_diffusers.evaluation.protocols import load_zero_shot_texts
        >>> _ = Path("ptb.jsonl").write_text('{"sentence": "it \\'s <unk> to pay $ N more"}\\n')
        >>> load_zero_shot_texts("ptb", folder=".")
        ["it's ? to pay $1 more"]
    """
    require_key("name", name, ZERO_SHOT_SETS)
    chosen = ZERO_SHOT_SETS[name]
    if folder is not None:
        documents = load_local(name, chosen, Path(folder))
    else:
        documents = load_from_hub(chosen)

    # A file of lines has one column, whatever the set calls its own.
    column = "text" if documents.column_names == ["text"] else chosen.column
    if column not in documents.column_names:
        raise ValueError(
            f"`{name}` must have the column {column!r}, got {list(documents.column_names)}."
        )
    texts = [text or "" for text in documents[column]]
    return texts if chosen.clean is None else [chosen.clean(text) for text in texts]


def load_local(name: str, chosen: ZeroShotSet, folder: Path) -> Any:
    """The documents of a set from files of a folder."""
    files = [folder / f"{name}{suffix}" for suffix in LOADERS]
    for file in sorted((folder / name).rglob("*")):
        if chosen.split in str(file.relative_to(folder / name)):
            files.append(file)
    found = [file for file in files if file.is_file() and file.suffix in LOADERS]
    if not found:
        raise FileNotFoundError(
            f"`zero_shot_folder` {str(folder)!r} must hold {name}.jsonl (or {', '.join([*LOADERS][1:])}), or a folder "
            f"{name} with files that have {chosen.split!r} in their names, or in those of their folders."
        )

    # Files of one kind belong together.
    suffix = found[0].suffix
    loader, options = LOADERS[suffix]
    same_kind = [str(file) for file in found if file.suffix == suffix]
    try:
        return load_dataset(loader, data_files={"set": same_kind}, split="set", **options)
    except DatasetsError as error:
        raise ValueError(f"{found[0]}: cannot be read: {error.__cause__ or error}") from error


def load_from_hub(chosen: ZeroShotSet) -> Any:
    """The documents of a set from the Hub."""
    try:
        if not chosen.is_parquet_copy:
            return load_dataset(chosen.repository, chosen.config, split=chosen.split)
        files = PARQUET_COPY.format(
            repository=chosen.repository, config=chosen.config, split=chosen.split
        )
        return load_dataset("parquet", data_files={chosen.split: files}, split=chosen.split)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"The set {chosen.repository!r} cannot be had from the Hub, and `zero_shot_folder` reads it from files: "
            f"{error}"
        ) from error
    except DatasetsError as error:
        raise ValueError(
            f"The set {chosen.repository!r} of the Hub cannot be read: {error.__cause__ or error}"
        ) from error
