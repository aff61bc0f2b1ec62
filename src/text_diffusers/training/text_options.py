"""The beginning of every recipe on text: its options of the data, and tokenizer and rows made by them.

Shapes: B written texts, L row length in tokens.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.rows import (
    ROWS_PER_MAP,
    CroppedRows,
    ShuffledRows,
    encode_texts,
    tensor_batches,
    tokenize,
    unknown_tokens,
)
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.data.tagged_text import load_tagged, name_tags, tagged_rows
from text_diffusers.data.tokenizers import add_missing_tokens, train_tokenizer
from text_diffusers.evaluation.likelihood import (
    BoundEstimate,
    length_distance,
    length_nats,
    unigram_entropy,
)
from text_diffusers.training.config import TrainingConfig, option
from text_diffusers.training.masked_lm import tokenizer_folder

TOKENIZER_DOCUMENTS = 200_000


@dataclass
class TextTrainingConfig(TrainingConfig):
    """Options of every recipe that trains on text; those of any training are in `TrainingConfig`.

    Raises:
        ValueError: if a value is outside its range, or options do not go together.

    Example:
        >>> from text_diffusers.training.text_options import TextTrainingConfig
        >>> TextTrainingConfig(output_dir="runs/mine", length=64, min_length=16, report_to=["none"]).packing
        True
    """

    # The texts
    dataset: str = option("chitchat", '"chitchat", a file, a folder, or a Hub data set')
    text_column: str = option("text", "column of the texts")
    label_column: str | None = option(
        None, "column of class labels, integers from 0", not_for="masked_lm"
    )
    split: str = option("train", "split of a Hub data set")
    sample_by: str = option("line", "a text in a .txt file: line, paragraph or document")
    streaming: bool = option(False, "read as training goes, for very large data")

    # Held-out texts
    validation_fraction: float = option(0.05, "share of the texts, the last, held out")
    validation_documents: int = option(1_000, "texts of a stream, the first, held out")
    validation_rows: int = option(
        1_000,
        "at most, of a validation during training",
        limit="at least 1",
        may_change_on_resume=True,
    )

    # Tokens and rows
    tokenizer: str | None = option(
        None, "folder or Hub name; default: trained on the data", part_of="pipeline"
    )
    vocab_size: int = option(4_096, "tokens of a trained byte-level BPE", part_of="pipeline")
    length: int = option(128, "tokens in a row")
    min_length: int | None = option(
        None, "rows are also read in halves, quarters ... down to so many tokens"
    )
    packing: bool = option(True, "fill rows with text after text; off: one text a row")

    # Texts that the model writes
    num_samples: int = option(
        4, "texts written and logged at each validation", may_change_on_resume=True
    )
    num_length_samples: int = option(
        256, "texts written at the end to compare lengths", may_change_on_resume=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.label_column and self.packing:
            raise ValueError(
                "`label_column` needs `--packing false`: a packed row holds several texts."
            )
        if self.min_length is None:
            return

        # `length`, and its halves as long as they are whole numbers
        halves = [
            self.length >> j for j in range(self.length.bit_length()) if self.length % 2**j == 0
        ]
        if not self.packing or self.min_length not in halves:
            raise ValueError(
                f"`min_length` needs `--packing true`, and must be `length`={self.length} halved any number of "
                f"times, one of {halves}, got {self.min_length!r}."
            )


@dataclass
class TextData:
    """The texts as training needs them.

    Attributes:
        tokenizer: of the rows.
        train_rows, validation_rows: tokenized data sets.
        validation_documents: the texts of `validation_rows`.
        num_classes: of the labels or tags; `None` without.
        lengths: how many training texts have 0, 1, 2, ... tokens; `None` if rows are packed, streamed or pairs.
    """

    tokenizer: Any
    train_rows: Any
    validation_rows: Any
    validation_documents: Any
    num_classes: int | None
    lengths: list[int] | None

    def spread_validation_rows(self, most: int) -> Any:
        """At most so many of the validation rows, spread over all of them: neighbours are alike."""
        count = len(self.validation_rows)
        # Every n-th, n rounded up
        return self.validation_rows.select(range(0, count, -(-count // most)))


def prepare_data(
    config: TextTrainingConfig,
    accelerator: Any,
    pretrained: str | None = None,
    given_ends: bool = False,
    source_column: str | None = None,
) -> TextData:
    """Read the texts, train or load the tokenizer, and cut rows; the main process first, the others from its cache.

    Args:
        pretrained: a pipeline or model to train further, whose tokenizer is taken.
        given_ends: whether the model is shown where a text begins and ends.
        source_column: column of the texts that are given, to learn to write `text_column` from them.
    """
    # What the main process has made, the others find in the cache of `datasets`.
    with accelerator.main_process_first():
        # 1. Documents, and those that are held out
        documents = load_documents(
            config.dataset,
            text_column=config.text_column,
            label_column=config.label_column,
            split=config.split,
            sample_by=config.sample_by,
            streaming=config.streaming,
            source_column=source_column,
        )
        train: Any
        train, validation = split_documents(
            documents, config.validation_fraction, config.validation_documents
        )

        # 2. The tokenizer, of targets and sources alike
        columns = ("text", "source") if source_column else ("text",)
        texts = (row[column] for row in islice(train, TOKENIZER_DOCUMENTS) for column in columns)
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)

        # 3. Rows of tokens
        make_rows = partial(
            tokenize,
            tokenizer=tokenizer,
            length=config.length,
            packing=config.packing,
            given_ends=given_ends,
        )
        train_rows = make_rows(train)
        validation_rows = make_rows(validation)

    # 4. The labels that there are, from 0 to the largest
    num_classes = None
    if config.label_column is not None:
        num_classes = max(row["label"] for row in train) + 1

    # 5. The histogram of lengths, for models that do not predict where a text ends
    lengths = None
    if not config.packing and not config.streaming and not source_column:
        counts = Counter(text_lengths(tokenizer, train, train_rows, config))
        lengths = [counts[n] for n in range(config.length - 1)]
        accelerator.print(f"{lengths[-1]:,} of {len(train):,} texts fill a row or are cut to it")
    return TextData(tokenizer, train_rows, validation_rows, validation, num_classes, lengths)


def prepare_tagged_data(
    config: TextTrainingConfig,
    accelerator: Any,
    pretrained: str | None,
    words_column: str,
    tags_column: str,
) -> tuple[TextData, list[str] | None]:
    """Tagged rows, and the names of the tags if they are strings; as `prepare_data`, one text a row.

    Raises:
        ValueError: if the tokenizer does not tell which characters a token stands for.
    """
    with accelerator.main_process_first():
        # 1. Documents, their tags, and those that are held out
        documents = load_tagged(config.dataset, words_column, tags_column, config.split)
        tag_ids, names = name_tags(tag for tags in documents["tags"] for tag in tags)
        train: Any
        train, validation = split_documents(documents, config.validation_fraction)

        # 2. The tokenizer, of plain text
        texts = (detokenise(row["words"])[0] for row in islice(train, TOKENIZER_DOCUMENTS))
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)
        if not tokenizer.is_fast:
            raise ValueError(
                "`tokenizer` must be a fast one: tags need the characters of each token."
            )

        # 3. Rows of tokens and tags
        make_rows = partial(tagged_rows, tokenizer=tokenizer, length=config.length, tag_ids=tag_ids)
        options = {
            "batched": True,
            "batch_size": ROWS_PER_MAP,
            "remove_columns": train.column_names,
        }
        train_rows = train.map(make_rows, **options)
        validation_rows = validation.map(make_rows, **options)
    return TextData(
        tokenizer, train_rows, validation_rows, validation, len(tag_ids), lengths=None
    ), names


def load_or_train_tokenizer(
    config: TextTrainingConfig, accelerator: Any, pretrained: str | None, texts: Iterable[str]
) -> Any:
    """The tokenizer of `pretrained`, the configured one, that of the run that is resumed, or one trained on `texts`.

    The main process saves it beside the run, from where the others take it; `texts` are read only to train.
    """
    # Other processes, and a run that is resumed, find the tokenizer beside the run.
    folder = Path(config.output_dir) / "tokenizer"
    reused = not accelerator.is_main_process or (config.resume_from_checkpoint and folder.exists())
    if pretrained:
        tokenizer = add_missing_tokens(
            AutoTokenizer.from_pretrained(pretrained, **tokenizer_folder(pretrained))
        )
    elif config.tokenizer or reused:
        tokenizer = add_missing_tokens(
            AutoTokenizer.from_pretrained(config.tokenizer or str(folder))
        )
    else:
        tokenizer = train_tokenizer(texts, config.vocab_size)

    if accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    return tokenizer


def text_lengths(
    tokenizer: Any, documents: Any, rows: Any, config: TextTrainingConfig
) -> list[int]:
    """Tokens of each text, as far as they fit into a row."""
    paired = "source" in documents.column_names
    if not config.packing and not paired:  # a row is a text between two [EOS], or [CLS] and [SEP]
        return [sum(mask) - 2 for mask in rows["attention_mask"]]

    if paired:  # behind its source, before the last end
        rooms: Iterable[int] = [given.count(False) - 1 for given in rows["given"]]
    else:
        rooms = repeat(config.length - 1)
    ids = encode_texts(tokenizer, list(documents["text"]))
    return [min(len(text), room) for text, room in zip(ids, rooms, strict=False)]


def bound_metrics(
    estimate: BoundEstimate, rows: Any, lengths: list[int] | None, data_lengths: list[int]
) -> dict[str, float]:
    """The bound of a model on held-out `rows` beside the entropy of their token frequencies, also printed.

    Args:
        estimate: the bound of these rows, in nats per token.
        lengths: the model's histogram of lengths, whose cost is added, if it does not predict where a text ends.
        data_lengths: tokens of the held-out texts.
    """
    bound = estimate.bound
    # The bound counts tokens of text; the end of a text is paid for by the histogram.
    if lengths:
        counted = sum(int(unknown_tokens(batch).sum()) for batch in tensor_batches(rows, len(rows)))
        bound += length_nats(lengths, data_lengths) / counted
    entropy = unigram_entropy(rows)

    print(f"\nvalidation bound   {bound:.3f} +- {estimate.standard_error:.3f} nats per token")
    print(f"unigram entropy    {entropy:.3f} nats per token, {entropy - bound:.3f} above the bound")
    return {
        "bound": bound,
        "standard_error": estimate.standard_error,
        "unigram_entropy": entropy,
        "gap": entropy - bound,
    }


def length_metrics(
    tokens: Tensor, tokenizer: Any, data_lengths: list[int], drawn: bool
) -> dict[str, float]:
    """Compare the lengths of written texts, `tokens` (B, L), with those of the data, and print it.

    Args:
        drawn: whether the lengths come from a histogram, and not from the model.
    """
    # Written texts end in special tokens, which the data's lengths do not count either.
    special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
    lengths = (~torch.isin(tokens, special)).sum(dim=1).tolist()
    distance = length_distance(lengths, data_lengths)
    mean = sum(lengths) / len(lengths)
    mean_of_data = sum(data_lengths) / len(data_lengths)

    origin = "the stored histogram" if drawn else "the model's [EOS]"
    print(
        f"text lengths       {mean:.1f} tokens on average, data {mean_of_data:.1f}, Wasserstein distance "
        f"{distance:.1f}; from {origin}"
    )
    return {"length_distance": distance, "mean_length": mean, "mean_length_of_data": mean_of_data}


def row_order(config: TextTrainingConfig, rows: Any, per_step: int) -> ShuffledRows:
    """The order of training rows, `per_step` in a global batch; with `min_length` some steps show parts of them."""
    if config.min_length is None:
        return ShuffledRows(rows, per_step, config.seed)
    num_halvings = (config.length // config.min_length).bit_length() - 1
    return CroppedRows(rows, per_step, config.seed, num_halvings)


def rows_per_step(config: TrainingConfig, accelerator: Any) -> int:
    """Rows of the global batch: of all processes and accumulation steps."""
    return config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
