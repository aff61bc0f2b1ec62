"""Chat messages, alone and beside sentences of novels: short texts under permissive licences."""

import importlib.resources
import json
import random
import re
from collections.abc import Iterator

from datasets import Dataset

from corpora.austen import austen_chapters
from corpora.parts import split_sentences

TITLES = re.compile(r"\b(Mrs?|Dr|St|Messrs)\.")  # whose points end no sentence
# Addresses of mail, and seven digits or more, as in phone numbers
CONTACT = re.compile(r"\S+@\S+\.\w+|(?:\+?\d[\s().-]*){7,}")
# Marks of links, markup and code, and those that seldom stand in a message
UNUSUAL = re.compile(r"[^\w\s.,!?'\"():;/&%$+=-]|_")
# "Project*" corrects the message before it; "*hugs*" is no word that is said.
STARRED = re.compile(r"(?<!\S)(?:\*\S+|\S+\*|\*)(?!\S)")
MAX_TURN_WORDS = 100
MAX_LETTERS = 30
LINK = re.compile(r"https?:|www\.|\w\.(?:com|org|edu|net|ly)\b", re.IGNORECASE)
PROFANITY = re.compile(
    r"\b(?:\w*fuck\w*|\w*shit\w*|bitch\w*|cunt\w*|asshole\w*|bastard\w*|dick(?:head)?s?|piss\w*|whore\w*|slut\w*"
    r"|nigg\w+|fag(?:got)?s?|retard\w*|cock(?:sucker)?s?|puss(?:y|ies)|porn\w*|wank\w*|twat\w*)\b",
    re.IGNORECASE,
)


def chitchat_documents() -> Dataset:
    """The turns of the BYU Chit-Chat Challenge (PyPI `chitchat-dataset`, MIT), in order, one document each.

    Messages that look like contact data, and messages with profanity, are left out.

    Raises:
        ModuleNotFoundError: if the package is missing.
    """
    return Dataset.from_dict(
        {"text": [turn for turns in chitchat_conversations() for turn in turns]}
    )


def chitchat_conversations() -> Iterator[list[str]]:
    """The turns of each conversation, a turn being what one person wrote before the other answered."""
    try:
        file = importlib.resources.files("chitchat_dataset") / "dataset.json"
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`chitchat` needs `pip install chitchat-dataset==0.9.0` (extra `train`)."
        ) from error

    for conversation in json.loads(file.read_text(encoding="utf-8")).values():
        # A turn may be several messages, of which the clean ones are joined.
        turns = []
        for turn in conversation["messages"]:
            messages = [" ".join(message["text"].split()) for message in turn]
            clean = [
                text
                for text in messages
                if text and not CONTACT.search(text) and not PROFANITY.search(text)
            ]
            if clean:
                turns.append(" ".join(clean))
        yield turns


def clean_conversations() -> Iterator[list[str]]:
    """The conversations in which both wrote something, without corrections of words, and turns that are no chat."""
    for turns in chitchat_conversations():
        corrected = [" ".join(STARRED.sub(" ", turn).split()) for turn in turns]
        kept = [turn for turn in corrected if is_chat(turn)]
        if len(kept) > 1:
            yield kept


def is_chat(turn: str) -> bool:
    """Whether a turn has a letter, at most 100 words of usual lengths and marks, and no link or contact data."""
    words = turn.split()
    if not any(character.isalpha() for character in turn):
        return False
    if len(words) > MAX_TURN_WORDS or max(map(len, words)) > MAX_LETTERS:
        return False
    return not (UNUSUAL.search(turn) or LINK.search(turn) or CONTACT.search(turn))


def chitchat_messages() -> Dataset:
    """The conversations of `chitchat_documents` as `messages` of a user and an assistant, who take turns.

    Who wrote first is the user. A conversation of an odd number of turns is left without its last one, so that all end
    with an answer; those without an answer, and turns that are no chat (links, pasted pages), are left out.

    Raises:
        ModuleNotFoundError: if the package is missing.
    """
    rows = []
    for turns in clean_conversations():
        messages = []
        for index, turn in enumerate(turns[: len(turns) // 2 * 2]):
            role = "assistant" if index % 2 else "user"
            messages.append({"role": role, "content": turn})
        rows.append({"messages": messages})
    return Dataset.from_list(rows)


def chat_and_novels(seed: int = 0) -> Dataset:
    """Sentences of two styles with their `label`: 0 of chat messages, 1 of Jane Austen's novels.

    All have 3 to 16 words and occur once. Conversations and chapters come in a random order, each in one piece, so
    held-out sentences are of other ones.

    Raises:
        FileNotFoundError, ModuleNotFoundError: if either source is missing.
    """
    # The label is that of the whole conversation or chapter.
    pieces = [(0, conversation) for conversation in chitchat_conversations()]
    pieces += [(1, chapter.splitlines()) for chapter in austen_chapters()["text"]]
    random.Random(seed).shuffle(pieces)

    # A sentence that both styles have keeps its first place and gets its last label.
    labels = {}
    for label, texts in pieces:
        for text in texts:
            labels.update(dict.fromkeys(plain_sentences(text), label))
    return Dataset.from_dict({"text": list(labels), "label": list(labels.values())})


def plain_sentences(text: str) -> list[str]:
    """The sentences of 3 to 16 words, without quotation marks, which are seldom in pairs in so short a text."""
    without_titles = TITLES.sub(r"\1", text)
    return split_sentences(without_titles.replace('"', ""), min_words=3, max_words=16)
