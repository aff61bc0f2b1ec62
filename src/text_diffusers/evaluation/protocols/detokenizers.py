"""Plain text of sets whose words and marks stand apart, by the rules that published zero-shot figures were made with.

A rule is applied to all of a text before the next one, so that their order matters. They are rules of thumb, such as
" N " for a number that the Penn treebank left out, and they are kept as the field has them: another rule is another
figure.
"""

import re
from collections.abc import Sequence

# Either of plain strings, or of a regular expression and what takes its place
Rule = tuple[str | re.Pattern[str], str]

# WikiText: numbers, marks, brackets, headings
WIKITEXT_RULES: list[Rule] = [
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), r"/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
# The Penn treebank: words that were cut, numbers and rare words that were left out
TREEBANK_RULES: list[Rule] = [
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    # Each second one of a line of N is found at a time.
    *[(" N ", " 1 ")] * 10,
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
]
# One Billion Words: addresses, marks, quotes
LM1B_RULES: list[Rule] = [
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" \'(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" \!$"), "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    (re.compile(r"\" ([^\"]+) \""), r'"\1"'),
    (re.compile(r"\' ([^\']+) \'"), r"'\1'"),
    (re.compile(r"\( ([^\(\)]+) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]+) \]"), r"[\1]"),
    ("$ ", "$"),
    ("£ ", "£"),
]
# LAMBADA: typeset quotes
LAMBADA_RULES: list[Rule] = [("“", '"'), ("”", '"')]


def apply_rules(text: str, rules: Sequence[Rule]) -> str:
    """A text to which all rules were applied, one after the other.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import apply_rules
        >>> apply_rules("a , b", [(" , ", ", "), ("b", "c")])
        'a, c'
    """
    for pattern, replacement in rules:
        if isinstance(pattern, str):
            text = text.replace(pattern, replacement)
        else:
            text = pattern.sub(replacement, text)
    return text


def clean_wikitext(text: str) -> str:
    """A line of WikiText as plain text.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import clean_wikitext
        >>> clean_wikitext(" = = Game @-@ play = = \\n")
        ' == Game-play ==\\n'
    """
    return apply_rules(text, WIKITEXT_RULES)


def clean_treebank(text: str) -> str:
    """A sentence of the Penn treebank as plain text.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import clean_treebank
        >>> clean_treebank("they do n't pay $ N million")
        "they don't pay $1 million"
    """
    return apply_rules(text, TREEBANK_RULES)


def clean_lm1b(text: str) -> str:
    """A sentence of One Billion Words as plain text.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import clean_lm1b
        >>> clean_lm1b("It 's here , he said .")
        "It's here, he said."
    """
    return apply_rules(text, LM1B_RULES)


def clean_lambada(text: str) -> str:
    """A passage of LAMBADA with plain quotes, on a line of its own.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import clean_lambada
        >>> clean_lambada("“yes,” she said ")
        '\\n"yes," she said'
    """
    return "\n" + apply_rules(text, LAMBADA_RULES).strip()


def clean_papers(text: str) -> str:
    """An article of arXiv or PubMed as plain text.

    Example:
        >>> from text_diffusers.evaluation.protocols.detokenizers import clean_papers
        >>> clean_papers("we find ( see below ) that it holds .")
        'we find (see below) that it holds.'
    """
    return clean_lm1b(clean_wikitext(text))
