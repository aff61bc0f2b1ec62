"""A rule that compresses a sentence: what it leaves out are whole phrases, and no word is changed.

1. A bracket with what is in it.
2. A prepositional phrase: prepositions, then what describes a noun, and the nouns; or prepositions and a pronoun.
3. Adverbs, but not "not" and what asks ("when", "where", "how"), and adjectives before a noun.
4. Commas that then stand side by side, or before another mark.

What stands behind a form of "to be" is what the sentence says, and stays: "She was in London", "It is good".
"""

import re
from collections.abc import Sequence

# A sentence as letters, one a word, so that phrases are patterns
LETTERS = {
    "NOUN": "N",
    "VERB": "V",
    "ADJ": "J",
    "ADV": "A",
    "PRON": "O",
    "DET": "D",
    "ADP": "P",
    "NUM": "M",
    "CONJ": "C",
    "PRT": "T",
    "PUNCT": ".",
    "X": "X",
}
# Words that are not what their tag says, for this rule
FORMS_OF_BE = "be am is are was were been being 's 're".split()
KEPT_ADVERBS = "not n't when where why how whenever wherever whether".split()
ASKING_PRONOUNS = "who whom whose which what that".split()
WORD_LETTERS = (
    dict.fromkeys(FORMS_OF_BE, "B")
    | dict.fromkeys(KEPT_ADVERBS, "K")
    | dict.fromkeys(ASKING_PRONOUNS, "W")
    | {"(": "(", ")": ")", ",": ","}
)

# Nouns with what describes them, "a long and dark night"; all of them that stand side by side
NOUN_PHRASE = r"[DJMAO]*(?:[C,]J+)*[NM]++"
# Behind a form of "to be" a phrase stays. Nouns behind an "and" belong to a phrase, unless they do something.
DROPPED_PHRASES = (
    r"\([^()]*\)",
    rf"(?<![BK])P+(?:{NOUN_PHRASE}(?:C{NOUN_PHRASE}(?![ABKTVW]))*|O)",
    r"(?<![BK])A+",
    r"(?<![BK])J+(?:[C,]J+)*(?=N)",
)
# What stands behind a word that stays, and behind one that goes
KEEP = "KEEP"
DROP = "DROP"

FEWEST_KEPT = 3  # words, marks aside
FEWEST_DROPPED = 2
VOWELS = "aeiou"


def kept_places(words: Sequence[str], tags: Sequence[str]) -> list[int]:
    """Places of the words that the rule keeps, in their order.

    Args:
        words, tags: of a sentence; the tags are the universal ones.

    Example:
        >>> words = ["The", "old", "man", "sat", "in", "the", "sun", "."]
        >>> tags = ["DET", "ADJ", "NOUN", "VERB", "ADP", "DET", "NOUN", "PUNCT"]
        >>> [words[place] for place in kept_places(words, tags)]
        ['The', 'man', 'sat', '.']
    """
    letters = "".join(
        WORD_LETTERS.get(word.lower(), LETTERS[tag]) for word, tag in zip(words, tags, strict=True)
    )

    # 1. Phrases. All patterns read the whole sentence, whatever others have dropped of it.
    kept = [True] * len(words)
    for pattern in DROPPED_PHRASES:
        for match in re.finditer(pattern, letters):
            for place in range(*match.span()):
                kept[place] = False

    # 2. Commas that separate nothing any more
    places = [place for place, is_kept in enumerate(kept) if is_kept]
    rest = "".join(letters[place] for place in places)
    idle = {
        place for match in re.finditer(r",,+|^,|,(?=\.)", rest) for place in range(*match.span())
    }
    return [place for index, place in enumerate(places) if index not in idle]


def compress(words: Sequence[str], tags: Sequence[str]) -> list[str] | None:
    """The words of the shorter sentence, or `None` where the rule gives no good one.

    That is where it drops the first word or all verbs, keeps or drops too little, or parts "a" or "an" from the word
    that it agreed with.
    """
    places = kept_places(words, tags)
    kept = [words[place] for place in places]
    is_word = [tags[place] != "PUNCT" for place in places]

    has_verb = any(tags[place] == "VERB" for place in places)
    is_short = sum(is_word) >= FEWEST_KEPT and len(words) - len(kept) >= FEWEST_DROPPED
    if places[:1] != [0] or not has_verb or not is_short or not articles_agree(kept):
        return None
    return kept


def marks_of(words: Sequence[str], kept: Sequence[int]) -> list[str]:
    """ "KEEP" or "DROP" for each word: compression as marks that stand behind the words of a sentence.

    Args:
        kept: places of the words that stay.

    Example:
        >>> marks_of(["The", "old", "man"], kept=[0, 2])
        ['KEEP', 'DROP', 'KEEP']
    """
    return [KEEP if place in kept else DROP for place in range(len(words))]


def articles_agree(words: Sequence[str]) -> bool:
    """Whether "a" and "an" stand before what they may stand before, by the letter with which it begins.

    Example:
        >>> articles_agree(["an", "man"]), articles_agree(["a", "man"])
        (False, True)
    """
    for article, word in zip(words, words[1:], strict=False):
        begins_with_vowel = word[:1].lower() in VOWELS
        if article.lower() in ("a", "an") and (article.lower() == "an") != begins_with_vowel:
            return False
    return True
