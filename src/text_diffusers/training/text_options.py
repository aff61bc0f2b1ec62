"""The beginning of every recipe on text: its options of the data, and tokenizer and rows made by them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.labels import check_classes, number_labels
from text_diffusers.data.rows import (
    ROWS_PER_MAP,
    CroppedRows,
    GroupedRows,
    ShuffledRows,
    each_encoded,
    encode_texts,
    source_room,
    tokenize,
)
from text_diffusers.data.sources import load_documents, load_train_and_validation
from text_diffusers.data.tagged_text import load_tagged, name_tags, tagged_rows
from text_diffusers.data.tokenizers import (
    LOOKED_AT_TEXTS,
    add_missing_tokens,
    check_script,
    train_tokenizer,
)
from text_diffusers.data.whole_texts import has_start, tokenize_whole_texts
from text_diffusers.evaluation.estimates import counted_ids
from text_diffusers.evaluation.written_texts import smoothed_lengths
from text_diffusers.training.adaptation.starting_models import (
    kind_of_model,
    load_tokenizer,
    saved_label_names,
)
from text_diffusers.training.adaptation.vocabulary import pruned_tokenizer
from text_diffusers.training.config import TrainingConfig, option

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
        None, "column of class labels: integers from 0, or words, which become their names"
    )
    split: str = option("train", "split of a folder or a Hub data set")
    sample_by: str = option("line", "a text in a .txt file: line, paragraph or document")
    streaming: bool = option(False, "read as training goes, for very large data")
    max_train_samples: int | None = option(
        None,
        "texts, or conversations, to train on: the first of the data; default: all",
        limit="at least 1",
    )

    # Held-out texts
    validation_fraction: float = option(
        0.05, "share of the texts, the last, held out; or the folder's validation split"
    )
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
        None,
        "rows are also read in halves, quarters ... down to so many tokens",
        not_for="language_model",
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
        if self.label_column and self.packing and not self.packs_labels:
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

    @property
    def packs_labels(self) -> bool:
        """Whether texts of one label may share a row, behind a prompt that stands for it."""
        return False


def check_label_names(config: Any):
    """Refuse names of labels without a column of labels, and two labels of one name."""
    names = config.label_names
    if names is not None and not config.label_column:
        raise ValueError(f"`label_names` needs a `label_column`, got {names}.")
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"`label_names` must differ from each other, got {names}.")


@dataclass
class TextData:
    """The texts as training needs them.

    Attributes:
        tokenizer: of the rows.
        train_rows, validation_rows: tokenized data sets.
        validation_documents: the texts of `validation_rows`.
        num_classes: of the labels or tags; `None` without.
        label_names: of the labels, if they have any.
        label_prompts: texts that stand for the labels in rows, where the model knows no labels.
        lengths: how many training texts have 0, 1, 2, ... tokens, smoothed: what is drawn, and what a held-out text
            is charged for its length; `None` if rows are packed, streamed or pairs.
        template: the `ChatTemplate` of conversations; `None` of texts.
    """

    tokenizer: Any
    train_rows: Any
    validation_rows: Any
    validation_documents: Any
    num_classes: int | None
    lengths: list[int] | None
    label_names: list[str] | None = None
    label_prompts: list[str] | None = None
    template: Any = None

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
    label_names: Sequence[str] | None = None,
    known_classes: bool = False,
    whole_texts: bool = False,
    given_starts: bool = False,
    label_prompts: Sequence[str] | None = None,
) -> TextData:
    """Read the texts, train or load the tokenizer, and cut rows; the main process first, the others from its cache.

    Args:
        pretrained: a pipeline or model to train further, whose tokenizer is taken.
        given_ends: whether the model is shown where a text begins and ends.
        source_column: column of the texts that are given, to learn to write `text_column` from them.
        label_names: of the classes, in their order; by default words that are labels are in that of the alphabet. An
            empty list is of classes without names, of which labels must be the numbers.
        known_classes: whether the model has learned its classes before, so that texts may lack some.
        whole_texts: whether rows begin with a text, behind the start token and a prompt that stands for its label, as
            for language models, which know no labels.
        given_starts: whether rows of whole texts begin with the start token also where it is the one that ends them.
        label_prompts: these prompts; by default the names of the labels. Texts without labels stand behind the prompt
            that stands for none.

    Raises:
        ValueError: if the texts cannot be read, or a label is none of `label_names`, or no text is there to learn it.
    """
    # What the main process has made, the others find in the cache of `datasets`.
    with accelerator.main_process_first():
        # 1. Documents, and those that are held out
        load_split = partial(
            load_documents,
            config.dataset,
            text_column=config.text_column,
            label_column=config.label_column,
            sample_by=config.sample_by,
            streaming=config.streaming,
            source_column=source_column,
        )
        train, validation = load_train_and_validation(
            load_split,
            config.dataset,
            config.split,
            config.validation_fraction,
            config.validation_documents,
            config.max_train_samples,
        )

        # Labels from 0, and a text to learn each of them from
        num_classes = None
        names = None
        if config.label_column is not None:
            train, names = number_labels(train, label_names)
            validation, _ = number_labels(validation, names)
            num_classes = check_classes(train, validation, names, known_classes)

        # 2. The tokenizer, of targets and sources alike
        columns = ("text", "source") if source_column else ("text",)
        texts = (row[column] for row in islice(train, TOKENIZER_DOCUMENTS) for column in columns)
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)
        if accelerator.is_main_process:
            spread = spread_documents(train, LOOKED_AT_TEXTS)
            check_script(tokenizer, (row[column] for row in spread for column in columns))
            if source_column:
                tell_of_cut_sources(tokenizer, [row["source"] for row in spread], config.length)

        # 3. Rows of tokens
        prompts = None
        if whole_texts and num_classes is not None:
            numbers = [str(number) for number in range(num_classes)]
            prompts = list(label_prompts or names or numbers)
            if num_classes > len(prompts):
                raise ValueError(
                    f"`label_column` holds labels up to {num_classes - 1}; the model in `model_name_or_path` has "
                    f"{len(prompts)}."
                )
        elif whole_texts and source_column is None and label_prompts:
            prompts = list(label_prompts)
        make_rows = partial(
            tokenize,
            tokenizer=tokenizer,
            length=config.length,
            packing=config.packing,
            given_ends=given_ends,
        )
        begins = given_starts or has_start(tokenizer)
        if prompts or (whole_texts and config.packing and begins):
            make_rows = partial(
                tokenize_whole_texts,
                tokenizer=tokenizer,
                length=config.length,
                packing=config.packing,
                label_prompts=prompts,
            )
        validation_rows = make_rows(validation)
        if make_rows.func is tokenize_whole_texts:
            make_rows = partial(make_rows, fills_rows=True)
        train_rows = make_rows(train)

    # 4. The histogram of lengths, for models that do not predict where a text ends
    lengths = None
    if not config.packing and not config.streaming and not source_column and not prompts:
        counts = Counter(text_lengths(tokenizer, train, train_rows, config))
        lengths = smoothed_lengths([counts[n] for n in range(config.length - 1)])
        num_full = counts[config.length - 2]
        accelerator.print(f"{num_full:,} of {len(train):,} texts fill a row or are cut to it")
    return TextData(
        tokenizer,
        train_rows,
        validation_rows,
        validation,
        num_classes,
        lengths,
        label_names=names or None,
        label_prompts=prompts,
    )


def tell_of_cut_sources(tokenizer: Any, sources: Sequence[str], length: int):
    """Print how many sources are longer than the half of a row that they may take, if any is."""
    room = source_room(length)
    lengths = [len(ids) for ids in encode_texts(tokenizer, list(sources))]
    num_cut = sum(count > room for count in lengths)
    if num_cut:
        enough = 2 * (max(lengths) + 2)
        print(
            f"warning: {num_cut:,} of {len(lengths):,} sources have more than {room} tokens, half a row, and are cut; "
            f"`--length {enough}` keeps the longest of them whole"
        )


def kept_source(tokenizer: Any, source: str, length: int) -> str:
    """What the rows of training keep of a source."""
    (ids,) = encode_texts(tokenizer, [source])
    room = source_room(length)
    return source if len(ids) <= room else tokenizer.decode(ids[:room])


def known_label_names(config: Any) -> list[str] | None:
    """Names of the labels before the data is read: as configured, or of the pipeline that is trained further."""
    if kind_of_model(config.model_name_or_path) in ("pipeline", "language_pipeline"):
        return saved_label_names(config.model_name_or_path)
    return config.label_names


def chosen_label_names(config: Any, data: TextData) -> list[str] | None:
    """Names of the labels for a pipeline: those before, or the words that are labels in the data.

    Raises:
        ValueError: if the configured names are not as many as the labels of the data.
    """
    if config.label_names is not None and len(config.label_names) != data.num_classes:
        raise ValueError(
            f"`label_names` must name the {data.num_classes} labels of the data, got {config.label_names}."
        )
    return known_label_names(config) or data.label_names


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
        load_split = partial(load_tagged, config.dataset, words_column, tags_column)
        train, validation = load_train_and_validation(
            load_split,
            config.dataset,
            config.split,
            config.validation_fraction,
            max_train_samples=config.max_train_samples,
        )
        tag_ids, names = name_tags(
            tag for tags in chain(train["tags"], validation["tags"]) for tag in tags
        )

        # 2. The tokenizer, of plain text
        texts = (detokenise(row["words"])[0] for row in islice(train, TOKENIZER_DOCUMENTS))
        tokenizer = load_or_train_tokenizer(config, accelerator, pretrained, texts)
        if accelerator.is_main_process:
            spread = spread_documents(train, LOOKED_AT_TEXTS)
            check_script(tokenizer, (detokenise(row["words"])[0] for row in spread))
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
    prunes = getattr(config, "prune_vocabulary", False)
    trains_anew = getattr(config, "retrain_tokenizer", False)
    if pretrained and not trains_anew and not (prunes and reused):
        # A mistake in the name is one in the option that has it.
        options = {value: name for name, value in vars(config).items() if isinstance(value, str)}
        option = options.get(pretrained, "tokenizer")
        tokenizer = add_missing_tokens(load_tokenizer(pretrained, option))
        if prunes:
            num_before = len(tokenizer)
            tokenizer = pruned_tokenizer(tokenizer, texts)
            print(f"kept {len(tokenizer):,} of {num_before:,} tokens")
    elif config.tokenizer or reused:
        tokenizer = add_missing_tokens(load_tokenizer(config.tokenizer or str(folder)))
    else:
        tokenizer = train_tokenizer(texts, config.vocab_size)

    if accelerator.is_main_process:
        tokenizer.save_pretrained(folder)
    return tokenizer


def spread_documents(documents: Any, most: int) -> Any:
    """At most so many documents, spread over all of them; of a stream the first."""
    if isinstance(documents, IterableDataset):
        return documents.take(most)
    count = len(documents)
    return documents.select(range(0, count, -(-count // most)))


def text_lengths(
    tokenizer: Any, documents: Any, rows: Any, config: TextTrainingConfig
) -> list[int]:
    """Tokens of each text, or of each answer, as far as they fit into a row."""
    if "messages" in documents.column_names:
        return [len(ids) - 1 for ids in counted_ids(rows)]  # without the end
    paired = "source" in documents.column_names
    if not config.packing and not paired:  # a row is a text between two [EOS], or [CLS] and [SEP]
        return [sum(mask) - 2 for mask in rows["attention_mask"]]

    if paired:  # behind its source, before the last end
        rooms: Iterable[int] = [given.count(False) - 1 for given in rows["given"]]
    else:
        rooms = repeat(config.length - 1)
    ids = each_encoded(tokenizer, (row["text"] for row in documents))
    return [min(len(text), room) for text, room in zip(ids, rooms, strict=False)]


def row_order(config: TextTrainingConfig, rows: Any, per_step: int) -> ShuffledRows:
    """The order of training rows, `per_step` in a global batch; with `min_length` some steps show parts of them."""
    if config.min_length is None:
        # A stream comes as it comes, and packed rows are all full.
        grouped = (
            not config.packing
            and isinstance(rows, Dataset)
            and "attention_mask" in rows.column_names
        )
        order = GroupedRows if grouped else ShuffledRows
        return order(rows, per_step, config.seed)
    num_halvings = (config.length // config.min_length).bit_length() - 1
    return CroppedRows(rows, per_step, config.seed, num_halvings)


def rows_per_step(config: TrainingConfig, accelerator: Any) -> int:
    """Rows of the global batch: of all processes and accumulation steps."""
    return config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
