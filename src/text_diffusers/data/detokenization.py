"""Words that a corpus cut apart, as plain text."""

# Marks in ASCII, as the Penn treebank writes them, and as they are typeset
OPENING = {"(", "[", "{", "``", "$", "£", "‘", "“"}
CLOSING = {".", ",", ";", ":", "?", "!", "%", ")", "]", "}", "''", "’", "”", "..."}
ENDINGS = {"n't", "'s", "'re", "'ve", "'ll", "'d", "'m"}  # of words that some corpora cut
# The treebank's quotes, which say which side they are on
QUOTES = {"``": '"', "''": '"'}


def detokenise(words: list[str]) -> tuple[str, list[int]]:
    """Join words to plain text; closing marks stand close to what is before, opening ones to what is after them.

    Returns:
        `(text, owners)`: the text, and for each of its characters the index of the word to which it belongs. A space
        belongs to the word after it; the quotes `` and '' become ".

    Example:
        >>> from text_diffusers.data.detokenization import detokenise
        >>> text, owners = detokenise(["I", "do", "n't", "know", "."])
        >>> text
        "I don't know."
        >>> owners
        [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 4]
    """
    text = ""
    owners = []  # of each character so far
    for index, word in enumerate(words):
        closes = word in CLOSING or word.lower() in ENDINGS
        # No space at the beginning, before what closes, and after what opens
        tight = index == 0 or closes or words[index - 1] in OPENING
        piece = ("" if tight else " ") + QUOTES.get(word, word)

        text += piece
        owners += [index] * len(piece)
    return text, owners
