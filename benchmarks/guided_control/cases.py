"""The controls that are measured: what they ask of texts, and the arguments of the pipeline that ask for it."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from guided_control.config import ControlConfig
from guided_control.judges import Wish, split_words
from text_diffusers import TextClassifierModel, TextDiffusionCFGPipeline
from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.sources import load_documents
from text_diffusers.guidance.classifiers import ClassifierGuidance, CleanClassifierGuidance
from text_diffusers.guidance.controls import LengthControl, WordsControl
from text_diffusers.guidance.patterns import PatternControl, TokenTags, tag_tokens
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm_guided import GuidedDiffusionLMPipeline

CANDIDATES = 20  # values of a token for which the noise-aware classifier is asked
NUM_CHOICES = 20  # different sets of words: texts with the same words are written together
Arguments = dict[str, Any]


@dataclass
class Models:
    """What was loaded, and `token_tags`, what the tagger says of each token; `None` is not there."""

    model: Any = None
    classifier: Any = None
    clean_classifier: Any = None
    tagger: Any = None
    embedding_model: Any = None
    embedding_classifier: Any = None
    token_tags: Any = None


@dataclass(frozen=True)
class Case:
    """A control.

    Attributes:
        needs: fields of `Models`, the first of which writes.
        wish: `(options, i, rng)` to what text i is asked to be; patterns are filled in where `patterned`.
        arguments: `(models, wishes, scale)` to arguments of the pipeline that writes these texts.
    """

    needs: tuple[str, ...]
    wish: Callable[[ControlConfig, int, random.Random], Wish]
    arguments: Callable[[Models, list[Wish], float], Arguments]
    patterned: bool = False


def label_wish(options: ControlConfig, i: int, rng: random.Random) -> Wish:
    return Wish(label=i % 2)


def words_wish(options: ControlConfig, i: int, rng: random.Random) -> Wish:
    return Wish(words=word_choices(options, 2)[i % NUM_CHOICES])


def length_wish(options: ControlConfig, i: int, rng: random.Random) -> Wish:
    return Wish(length=rng.randint(options.shortest, options.longest))


def combined_wish(options: ControlConfig, i: int, rng: random.Random) -> Wish:
    words = word_choices(options, 1)[i // 2 % NUM_CHOICES]
    return Wish(label=i % 2, words=words, length=rng.randint(options.shortest, options.longest))


def word_choices(options: ControlConfig, count: int) -> list[tuple[str, ...]]:
    rng = random.Random(f"{options.seed} words {count}")
    return [tuple(rng.sample(sorted(set(options.words)), count)) for _ in range(NUM_CHOICES)]


def classifier_free(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    labels = [wish.label for wish in wishes]
    return {"class_labels": labels, "guidance_scale": scale, "num_return_sequences": 1}


def noise_aware(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    labels = [wish.label for wish in wishes]
    return {"controls": ClassifierGuidance(models.classifier, labels, scale, "exact", candidates=CANDIDATES)}


def off_the_shelf(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    return {"controls": CleanClassifierGuidance(models.clean_classifier, [wish.label for wish in wishes], scale)}


def must_contain(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    return {"controls": WordsControl(models.model.tokenizer, wishes[0].words, scale)}


def of_length(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    eos = models.model.tokenizer.eos_token_id
    return {"controls": LengthControl([wish.length or 0 for wish in wishes], eos_token_id=eos)}


def of_pattern(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    patterns = [list(wish.pattern) for wish in wishes]
    return {"controls": PatternControl(models.token_tags, patterns, scale)}


def combined(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    controls = [of_length(models, wishes, scale)["controls"], must_contain(models, wishes, scale)["controls"]]
    return classifier_free(models, wishes, scale) | {"controls": controls}


def over_embeddings(models: Models, wishes: list[Wish], scale: float) -> Arguments:
    return {"controls": ClassifierGuidance(models.embedding_classifier, [wish.label for wish in wishes], scale)}


CASES = {
    "label, classifier-free": Case(("model",), label_wish, classifier_free),
    "label, noise-aware classifier": Case(("model", "classifier"), label_wish, noise_aware),
    "label, clean classifier": Case(("model", "clean_classifier"), label_wish, off_the_shelf),
    "two words": Case(("model",), words_wish, must_contain),
    "length": Case(("model",), length_wish, of_length),
    "parts of speech": Case(("model", "tagger"), lambda *_: Wish(), of_pattern, patterned=True),
    "label, word and length": Case(("model",), combined_wish, combined),
    "label, classifier-free over embeddings": Case(("embedding_model",), label_wish, classifier_free),
    "label, over embeddings": Case(("embedding_model", "embedding_classifier"), label_wish, over_embeddings),
}


def wishes_of(name: str, options: ControlConfig, patterns: Sequence[tuple[str, ...]]) -> list[Wish]:
    """What the texts of a control are asked to be, at every scale."""
    case, rng = CASES[name], random.Random(f"{options.seed} {name}")
    if case.patterned:
        return [Wish(pattern=patterns[i % len(patterns)]) for i in range(options.num_texts)]
    return [case.wish(options, i, rng) for i in range(options.num_texts)]


def batches(wishes: Sequence[Wish], size: int) -> Iterator[list[int]]:
    """Places of at most `size` texts that must hold the same words."""
    places = defaultdict(list)
    for place, wish in enumerate(wishes):
        places[wish.words].append(place)
    for same in places.values():
        yield from (same[first : first + size] for first in range(0, len(same), size))


def load_models(options: ControlConfig) -> tuple[Models, dict[str, str]]:
    """The models that are there, and of the others the option that is to be given: "`--tagger`"."""
    loaders = {
        "model": TextDiffusionCFGPipeline.from_pretrained,
        "classifier": load_classifier,
        "clean_classifier": load_classifier,
        "tagger": load_classifier,
        "embedding_model": GuidedDiffusionLMPipeline.from_pretrained,
        "embedding_classifier": load_classifier,
    }
    models, missing = Models(), {}
    for name, load in loaders.items():
        folder = options.folder(name)
        if folder is None or not Path(folder).exists():
            missing[name] = f"`--{name}`" + ("" if folder is None else f" ({folder} is not there)")
        else:
            setattr(models, name, load(folder))
    for pipe in (models.model, models.embedding_model):
        if pipe is not None:
            pipe.set_progress_bar_config(disable=True)
    if models.model is not None:
        shaped = {"temperature": options.temperature, "top_p": options.top_p}
        changes = {name: value for name, value in shaped.items() if value is not None}
        models.model.scheduler = type(models.model.scheduler).from_config(models.model.scheduler.config, **changes)
    if models.model is not None and models.tagger is not None:
        models.token_tags = tags_of_tokens(models, options)
    return models, missing


def tags_of_tokens(models: Models, options: ControlConfig) -> TokenTags:
    """What the tagger says of each token of the first texts of `dataset`."""
    data = load_documents(options.dataset)
    texts = data.select(range(min(options.num_tagged_texts, len(data))))["text"]
    longest = getattr(models.tagger.config, "max_length", None)
    return tag_tokens(models.tagger, models.model.tokenizer, list(texts), max_length=longest)


def load_classifier(folder: str) -> Any:
    """A `TextClassifierModel`, or a classifier of transformers."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    ours = config.get("_class_name") == TextClassifierModel.__name__
    return (TextClassifierModel if ours else AutoModelForSequenceClassification).from_pretrained(folder).eval()


def usable_sentences(
    sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], tokenizer: Any, options: ControlConfig
) -> list[tuple[str, tuple[str, ...]]]:
    """`(text, tags)` of sentences of a wanted length that a model can write with one token a word, in a random order.

    The words must also be those that a judge splits the text into.

    Raises:
        ValueError: if there are none.
    """
    found = []
    for words, row in zip(sentences, tags, strict=True):
        if options.shortest <= len(words) <= options.longest:
            text = detokenise(list(words))[0]
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(tokens) == len(words) and split_words(text) == list(words):
                found.append((text, tuple(row)))
    if not found:
        raise ValueError(
            f"`tagged_dataset` must hold sentences of {options.shortest} to {options.longest} words that are one "
            f"token each, got none among {len(sentences)}."
        )
    random.Random(f"{options.seed} patterns").shuffle(found)
    return found
