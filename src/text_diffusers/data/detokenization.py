"""Words that a corpus cut apart, as plain text."""

OPENING = {"(", "[", "{", "``", "$", "£", "‘", "“"}
CLOSING = {".", ",", ";", ":", "?", "!", "%", ")", "]", "}", "''", "’", "”", "..."}
ENDINGS = {"n't", "'s", "'re", "'ve", "'ll", "'d", "'m"}  # of words that some corpora cut
QUOTES = {"``": '"', "''": '"'}


def detokenise(words: list[str]) -> tuple[str, list[int]]:
    """`(text, owners)`: words as plain text, and for each of its characters the index of the word it belongs to.

    Closing marks follow without a space and opening ones take none after them; the quotes `` and '' become ". A space
    belongs to the word after it.
    """
    text, owners = "", []
    for index, word in enumerate(words):
        tight = index == 0 or word in CLOSING or word.lower() in ENDINGS or words[index - 1] in OPENING
        piece = ("" if tight else " ") + QUOTES.get(word, word)
        text += piece
        owners += [index] * len(piece)
    return text, owners
