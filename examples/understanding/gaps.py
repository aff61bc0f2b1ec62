"""Sentences with gaps: a mask for a preposition, or behind every word for its part of speech."""

from collections.abc import Sequence

from text_diffusers.data.detokenization import QUOTES, detokenise

GAP = "[MASK]"
# The same in a source, where a mask would be no mask
SHOWN_GAP = "_"
PREPOSITION_TAG = "ADP"
# Nine in ten of the prepositions of the Brown corpus, each a single token of any tokenizer of some size
PREPOSITIONS = (
    "of in to for with on at by from into about through over between under against after without "
    "upon during before toward within around among across behind"
).split()


def preposition_places(words: Sequence[str], tags: Sequence[str]) -> list[int]:
    """Places of the prepositions of a sentence that can be gaps.

    A gap stands behind a word, with a space between: prepositions that begin a sentence, a quotation or a bracket are
    none, and neither are those that are not among `PREPOSITIONS`.

    Args:
        words, tags: of a sentence; prepositions have the tag "ADP".

    Example:
        >>> words = ["In", "spring", "she", "thought", "of", "him", "."]
        >>> preposition_places(words, ["ADP", "NOUN", "PRON", "VERB", "ADP", "PRON", "PUNCT"])
        [4]
    """
    places = []
    before = ""
    for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if tag == PREPOSITION_TAG and word in PREPOSITIONS and before[-1:].isalnum():
            places.append(place)
        before = word
    return places


def with_gap(words: Sequence[str], place: int, gap: str = GAP) -> str:
    """The plain text of a sentence in which one word is a gap.

    Example:
        >>> with_gap(["She", "thought", "of", "him", "."], 2)
        'She thought [MASK] him.'
    """
    text, _ = detokenise([*words[:place], gap, *words[place + 1 :]])
    return text


def tagged_text(words: Sequence[str], tags: Sequence[str]) -> str:
    """Each word, and behind it its tag: with `GAP` for every tag the question to which this is the answer.

    Raises:
        ValueError: if there is not one tag a word.

    Example:
        >>> tagged_text(["She", "sang"], [GAP] * 2)
        'She [MASK] sang [MASK]'
    """
    if len(words) != len(tags):
        raise ValueError(f"`tags` must be one for each of {len(words)} words, got {len(tags)}.")
    plain = [QUOTES.get(word, word) for word in words]
    return " ".join(f"{word} {tag}" for word, tag in zip(plain, tags, strict=True))
