"""The controls that are measured: what they ask of texts, and the arguments of the pipeline that ask for it."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from parts.common.results import Record
from parts.control.config import ControlConfig
from parts.control.judges import Sentences, Wish, split_words
from text_diffusers.data.detokenization import detokenise
from text_diffusers.guidance.classifiers import ClassifierGuidance, CleanClassifierGuidance
from text_diffusers.guidance.controls import LengthControl, WordsControl
from text_diffusers.guidance.patterns import PatternControl

# Values of a token that the noise-aware classifier judges; all of the vocabulary would be too dear.
CANDIDATES = 20
# Different sets of words; texts with the same words are written together.
NUM_CHOICES = 20


@dataclass
class Batch:
    """Texts that are written together: the models by name, what is wished of each text, and the scale."""

    models: dict[str, Any]
    wishes: list[Wish]
    scale: float

    @property
    def labels(self) -> list[int | None]:
        return [wish.label for wish in self.wishes]


# --- controls of a batch


def noise_aware_classifier(batch: Batch) -> ClassifierGuidance:
    classifier = batch.models["classifier"]
    return ClassifierGuidance(classifier, batch.labels, batch.scale, "exact", candidates=CANDIDATES)


def clean_classifier(batch: Batch) -> CleanClassifierGuidance:
    return CleanClassifierGuidance(batch.models["clean_classifier"], batch.labels, batch.scale)


def classifier_of_embeddings(batch: Batch) -> ClassifierGuidance:
    return ClassifierGuidance(batch.models["embedding_classifier"], batch.labels, batch.scale)


def words_control(batch: Batch) -> WordsControl:
    # All texts of a batch have the same words: see `batches`.
    words = batch.wishes[0].words
    return WordsControl(batch.models["model"].tokenizer, words, batch.scale)


def length_control(batch: Batch) -> LengthControl:
    lengths = [wish.length or 0 for wish in batch.wishes]
    tokenizer = batch.models["model"].tokenizer
    return LengthControl(lengths, eos_token_id=tokenizer.eos_token_id)


def pattern_control(batch: Batch) -> PatternControl:
    patterns = [list(wish.pattern) for wish in batch.wishes]
    return PatternControl(batch.models["token_tags"], patterns, batch.scale)


# --- cases


@dataclass(frozen=True)
class Case:
    """A kind of control.

    Attributes:
        needs: models by name, the first of which writes.
        controls: of the pipeline, in the order in which they act.
        classifier_free: whether labels are arguments of the pipeline.
        label, length, pattern: whether a text is asked for one.
        num_words: how many words it must hold.
    """

    needs: tuple[str, ...]
    controls: tuple[Callable[[Batch], Any], ...] = ()
    classifier_free: bool = False
    label: bool = False
    num_words: int = 0
    length: bool = False
    pattern: bool = False

    @property
    def asks_for_label_only(self) -> bool:
        return self.label and not self.length

    def arguments(self, batch: Batch) -> Record:
        """Arguments of the pipeline that writes these texts."""
        arguments = {}
        # Each label is a row of the batch already.
        if self.classifier_free:
            arguments = {
                "class_labels": batch.labels,
                "guidance_scale": batch.scale,
                "num_return_sequences": 1,
            }
        if self.controls:
            arguments["controls"] = [make_control(batch) for make_control in self.controls]
        return arguments


# The table of docs/guidance.md has a block of lines for each.
CASES = {
    # A label, by three kinds of guidance over tokens
    "label, classifier-free": Case(("model",), classifier_free=True, label=True),
    "label, noise-aware classifier": Case(
        ("model", "classifier"), (noise_aware_classifier,), label=True
    ),
    "label, clean classifier": Case(("model", "clean_classifier"), (clean_classifier,), label=True),
    # Other properties of a text
    "two words": Case(("model",), (words_control,), num_words=2),
    "length": Case(("model",), (length_control,), length=True),
    "parts of speech": Case(("model", "tagger"), (pattern_control,), pattern=True),
    # Several at once
    "label, word and length": Case(
        ("model",),
        (length_control, words_control),
        classifier_free=True,
        label=True,
        num_words=1,
        length=True,
    ),
    # A label over word embeddings
    "label, classifier-free over embeddings": Case(
        ("embedding_model",), classifier_free=True, label=True
    ),
    "label, over embeddings": Case(
        ("embedding_model", "embedding_classifier"), (classifier_of_embeddings,), label=True
    ),
}


def wishes_of(name: str, options: ControlConfig, patterns: Sequence[tuple[str, ...]]) -> list[Wish]:
    """What the texts of a control are asked to be, at every scale."""
    case = CASES[name]

    # Random, but the same in every run: a finished file is compared with them.
    lengths = random.Random(f"{options.seed} {name}")
    choices = word_choices(options, case.num_words)

    wishes = []
    for number in range(options.num_texts):
        # Labels alternate, so that each choice of words is asked for with both.
        label = number % 2 if case.label else None
        choice = number // 2 if case.label else number

        length = lengths.randint(options.shortest, options.longest) if case.length else None
        pattern = patterns[number % len(patterns)] if case.pattern else ()
        words = choices[choice % NUM_CHOICES]
        wishes.append(Wish(label=label, words=words, length=length, pattern=pattern))
    return wishes


def word_choices(options: ControlConfig, count: int) -> list[tuple[str, ...]]:
    """`NUM_CHOICES` sets of `count` different words."""
    rng = random.Random(f"{options.seed} words {count}")
    # A set has no fixed order from run to run.
    words = sorted(set(options.words))
    return [tuple(rng.sample(words, count)) for _ in range(NUM_CHOICES)]


def batches(wishes: Sequence[Wish], size: int) -> Iterator[list[int]]:
    """Yield the places of at most `size` texts that must hold the same words, until all texts are in a batch."""
    places_of_words = defaultdict(list)
    for place, wish in enumerate(wishes):
        places_of_words[wish.words].append(place)

    for places in places_of_words.values():
        for first in range(0, len(places), size):
            yield places[first : first + size]


def usable_sentences(
    sentences: Sentences,
    tags: Sentences,
    tokenizer: Any,
    options: ControlConfig,
) -> list[tuple[str, tuple[str, ...]]]:
    """`(text, tags)` of sentences of a wanted length that a model can write with one token a word, in a random order.

    The words must also be those that a judge splits the text into.

    Raises:
        ValueError: if there are none.
    """
    usable = []
    for words, word_tags in zip(sentences, tags, strict=True):
        if not options.shortest <= len(words) <= options.longest:
            continue
        text = detokenise(list(words))[0]
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        # Then token i of the model, word i of the judge and tag i of the pattern are of the same word.
        if len(tokens) == len(words) and split_words(text) == list(words):
            usable.append((text, tuple(word_tags)))

    if not usable:
        raise ValueError(
            f"`tagged_dataset` must hold sentences of {options.shortest} to {options.longest} words that are one "
            f"token each, got none among {len(sentences)}."
        )
    random.Random(f"{options.seed} patterns").shuffle(usable)
    return usable
