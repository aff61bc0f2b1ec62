"""What every recipe on text begins with: its options of the data, and tokenizer and rows made by them.

Shapes: B written texts, L row length in tokens.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from text_diffusers.data.rows import CroppedRows, ShuffledRows, encode_texts, tensor_batches, tokenize, unknown_tokens
from text_diffusers.data.sources import MASK_TOKEN, PAD_TOKEN, load_documents, split_documents, train_tokenizer
from text_diffusers.evaluation.likelihood import BoundEstimate, length_distance, length_nats, unigram_entropy
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.masked_lm import tokenizer_folder

TOKENIZER_DOCUMENTS = 200_000


@dataclass
class TextTrainingConfig(TrainingConfig):
    """Options of every recipe that trains on text; those of any training are in `TrainingConfig`."""

    dataset: str = field(default="chitchat", metadata={"help": '"chitchat", a file, a folder, or a Hub data set'})
    text_column: str = field(default="text", metadata={"help": "column of the texts"})
    label_column: str | None = field(default=None, metadata={"help": "column of class labels, integers from 0"})
    split: str = field(default="train", metadata={"help": "split of a Hub data set"})
    sample_by: str = field(default="line", metadata={"help": "a text in a .txt file: line, paragraph or document"})
    streaming: bool = field(default=False, metadata={"help": "read as training goes, for very large data"})
    validation_fraction: float = field(default=0.05, metadata={"help": "share of the texts, the last, held out"})
    validation_documents: int = field(default=1_000, metadata={"help": "texts of a stream, the first, held out"})
    validation_rows: int = field(default=1_000, metadata={"help": "at most, of a validation during training"})
    tokenizer: str | None = field(default=None, metadata={"help": "folder or Hub name; default: trained on the data"})
    vocab_size: int = field(default=4_096, metadata={"help": "tokens of a trained byte-level BPE"})
    length: int = field(default=128, metadata={"help": "tokens in a row"})
    min_length: int | None = field(
        default=None, metadata={"help": "rows are also read in halves, quarters ... down to so many tokens"}
    )
    packing: bool = field(default=True, metadata={"help": "fill rows with text after text; off: one text a row"})
    num_samples: int = field(default=4, metadata={"help": "texts written and logged at each validation"})
    num_length_samples: int = field(default=256, metadata={"help": "texts written at the end to compare lengths"})

    def __post_init__(self):
        super().__post_init__()
        if self.validation_rows < 1:
            raise ValueError(f"`validation_rows` must be at least 1, got {self.validation_rows!r}.")
        if self.label_column and self.packing:
            raise ValueError("`label_column` needs `--packing false`: a packed row holds several texts.")
        if self.min_length is not None:
            halves = [self.length >> j for j in range(self.length.bit_length()) if self.length % 2**j == 0]
            if not self.packing or self.min_length not in halves:
                raise ValueError(
                    f"`min_length` needs `--packing true`, and must be `length`={self.length} halved any number of "
                    f"times, one of {halves}, got {self.min_length!r}."
                )


@dataclass
class TextData:
    """What training needs to know of the texts: rows of tokens, and of a conditional or padded model a little more."""

    tokenizer: Any
    train_rows: Any
    validation_rows: Any
    validation_documents: Any
    num_classes: int | None
    lengths: list[int] | None

    def spread_validation_rows(self, most: int) -> Any:
        """At most so many of the validation rows, spread over all of them: neighbours are alike."""
        count = len(self.validation_rows)
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
    with accelerator.main_process_first():
        documents = load_documents(
            *(config.dataset, config.text_column, config.label_column, config.split, config.sample_by),
            streaming=config.streaming,
            source_column=source_column,
        )
        train: Any
        train, validation = split_documents(documents, config.validation_fraction, config.validation_documents)
        columns = ("text", "source") if source_column else ("text",)
        texts = (row[column] for row in islice(train, TOKENIZER_DOCUMENTS) for column in columns)
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)
        train_rows = tokenize(train, tokenizer, config.length, config.packing, given_ends)
        validation_rows = tokenize(validation, tokenizer, config.length, config.packing, given_ends)
    num_classes = None if config.label_column is None else max(row["label"] for row in train) + 1
    lengths = None
    if not config.packing and not config.streaming and not source_column:
        counts = Counter(text_lengths(tokenizer, train, train_rows, config))
        lengths = [counts[n] for n in range(config.length - 1)]
        accelerator.print(f"{counts[config.length - 2]:,} of {len(train):,} texts fill a row or are cut to it")
    return TextData(tokenizer, train_rows, validation_rows, validation, num_classes, lengths)


def load_or_train_tokenizer(
    config: TextTrainingConfig, accelerator: Any, pretrained: str | None, texts: Iterable[str]
) -> Any:
    """The tokenizer of `pretrained`, the configured one, that of the run that is resumed, or one trained on `texts`.

    The main process saves it beside the run, from where the others take it; `texts` are read only to train.
    """
    folder = Path(config.output_dir) / "tokenizer"
    reused = not accelerator.is_main_process or (config.resume_from_checkpoint and folder.exists())
    if pretrained:
        tokenizer = complete(AutoTokenizer.from_pretrained(pretrained, **tokenizer_folder(pretrained)))
    elif config.tokenizer or reused:
        tokenizer = complete(AutoTokenizer.from_pretrained(config.tokenizer or str(folder)))
    else:
        tokenizer = train_tokenizer(texts, config.vocab_size)
    if accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    return tokenizer


def complete(tokenizer: Any) -> Any:
    """The tokenizer with tokens for padding and mask behind its own, if it lacks them, as GPT-2's does."""
    needed = {"pad_token": PAD_TOKEN, "mask_token": MASK_TOKEN}
    missing = {name: token for name, token in needed.items() if getattr(tokenizer, name) is None}
    if missing:
        tokenizer.add_special_tokens(missing)
        print(f"added to the tokenizer: {', '.join(missing.values())}")
    return tokenizer


def text_lengths(tokenizer: Any, documents: Any, rows: Any, config: TextTrainingConfig) -> list[int]:
    """Tokens of each text, as far as they fit into a row."""
    paired = "source" in documents.column_names
    if not config.packing and not paired:  # a row is a text between two [EOS], or [CLS] and [SEP]
        return [sum(mask) - 2 for mask in rows["attention_mask"]]
    rooms = [given.count(False) - 1 for given in rows["given"]] if paired else repeat(config.length - 1)
    ids = encode_texts(tokenizer, list(documents["text"]))
    return [min(len(text), room) for text, room in zip(ids, rooms, strict=False)]


def bound_metrics(
    estimate: BoundEstimate, rows: Any, lengths: list[int] | None, data_lengths: list[int]
) -> dict[str, float]:
    """What a model is worth on held-out `rows` beside the entropy of their token frequencies, also printed.

    Args:
        lengths: the model's histogram of lengths, whose cost is added, if it does not predict where a text ends.
    """
    bound, error = estimate.bound, estimate.standard_error
    if lengths:
        counted = sum(int(unknown_tokens(batch).sum()) for batch in tensor_batches(rows, len(rows)))
        bound += length_nats(lengths, data_lengths) / counted
    entropy = unigram_entropy(rows)
    print(f"\nvalidation bound   {bound:.3f} +- {error:.3f} nats per token")
    print(f"unigram entropy    {entropy:.3f} nats per token, {entropy - bound:.3f} above the bound")
    return {"bound": bound, "standard_error": error, "unigram_entropy": entropy, "gap": entropy - bound}


def refuse_parts_of_a_pipeline(
    config: Any, parts: tuple[str, ...], what: str = "pipeline", option: str = "model_name_or_path"
):
    """Refuse options that say how a pipeline, or `what`, is made where a saved one, the `option`, is trained with."""
    defaults = {part.name: part.default for part in fields(config)}
    changed = [name for name in parts if getattr(config, name) != defaults[name]]
    if getattr(config, option) and changed:
        raise ValueError(f"`{changed[0]}` belongs to the {what} in `{option}`; leave it out.")


def length_metrics(tokens: Tensor, tokenizer: Any, data_lengths: list[int], drawn: bool) -> dict[str, float]:
    """Compare the lengths of written texts, `tokens` (B, L), with those of the data, and print it.

    Args:
        drawn: whether the lengths come from a histogram, and not from the model.
    """
    special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
    lengths = (~torch.isin(tokens, special)).sum(dim=1).tolist()
    distance = length_distance(lengths, data_lengths)
    mean, mean_of_data = sum(lengths) / len(lengths), sum(data_lengths) / len(data_lengths)
    print(
        f"text lengths       {mean:.1f} tokens on average, data {mean_of_data:.1f}, Wasserstein distance "
        f"{distance:.1f}; from " + ("the stored histogram" if drawn else "the model's [EOS]")
    )
    return {"length_distance": distance, "mean_length": mean, "mean_length_of_data": mean_of_data}


def row_order(config: TextTrainingConfig, rows: Any, per_step: int) -> ShuffledRows:
    """The order of training rows, `per_step` in a global batch; with `min_length` some steps show parts of them."""
    if config.min_length is None:
        return ShuffledRows(rows, per_step, config.seed)
    return CroppedRows(rows, per_step, config.seed, num_halvings=(config.length // config.min_length).bit_length() - 1)


def rows_per_step(config: TrainingConfig, accelerator: Any) -> int:
    """Rows of the global batch."""
    return config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
