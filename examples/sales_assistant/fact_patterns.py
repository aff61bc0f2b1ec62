"""What a reply may say: a regular expression that all facts must match, and what a text says beyond them.

Amounts are what is written in digits: money, and other numbers with the noun behind them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

# Thousands apart and cents, as in "2 990 ₽", "$1,299" or "€45.90"; blanks may be narrow or not breaking
BLANKS = " \u00a0\u202f"
NUMBER = rf"[0-9]+(?:[{BLANKS},.][0-9]{{3}})*(?:[.,][0-9]{{1,2}})?(?![0-9])"
LETTER = "A-Za-zА-Яа-яЁё"
CURRENCIES = "$€£¥₽₴₸"
MONEY = rf"[{CURRENCIES}][{BLANKS}]?{NUMBER}|{NUMBER}[{BLANKS}]?[{CURRENCIES}]"
# Money, or a number with the word behind it, if there is one: "$1" is no part of "1 year", nor "2 days" of "2 years".
AMOUNT = re.compile(rf"{MONEY}|{NUMBER}(?:[ -][{LETTER}]+)?")
# What replies are written of, beside numbers: with all of Unicode an automaton has ten times as many states.
MARK = r" !-#%-/:-@\[-`{-~«»—–…№"
ANYTHING = r"(?:.|\n)*"
# Letters by which a name is told from other words
BEGINNING = 4


# A part of a pattern: a string, or several of which one is there
Part = str | Sequence[str]


def fact_pattern(
    facts: Sequence[str],
    note: str = "",
    kept: Sequence[str] = (),
    forms: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A regular expression of texts that hold all facts, in any order, and no amount that is not known.

    Known are the amounts of the facts and of the note, so that no price can be invented, and "2 days" does not become
    "2 years". Of two products with their prices, neither has the price of the other, see `ordered_facts`. A fact is
    there if `conversations.missing_facts` finds it.

    Args:
        facts: strings, such as names and prices.
        note: text whose amounts may be said.
        kept: strings that stand in the texts in this order, as words of their own, with anything between them.
        forms: what stands for a fact, such as the cases of a name, by the fact; one of them is there, and may begin a
            sentence. If a fact begins with such a key, as "Tovira kettle" with "Tovira", no other word begins like it.

    Example:
        >>> pattern = fact_pattern(["Anna", "$129"], note="warranty 2 years")
        >>> texts = ["Anna, it is $129.", "$129, Anna, and 2 years.", "Anna, $129, not $99.", "Only $129."]
        >>> [bool(re.fullmatch(pattern, text)) for text in texts]
        [True, True, False, False]
        >>> pattern = fact_pattern(["Товира"], forms={"Товира": ["чайник «Товира»", "чайника «Товира»"]})
        >>> texts = ["Чайник «Товира» ждёт.", "Цена чайника «Товира»", "Цена «Товира»"]
        >>> [bool(re.fullmatch(pattern, text)) for text in texts]
        [True, True, False]
    """
    forms = forms or {}

    # What may be said: known amounts, and letters
    said = [form for fact in facts for form in spellings(fact, forms)]
    amounts = sorted(
        {amount for text in (note, *facts, *said) for amount in AMOUNT.findall(text)},
        key=len,
        reverse=True,
    )
    sign = f"[{MARK}{LETTER}{other_letters(note, *facts, *said, *kept)}]"
    body = f"{sign}*"
    if amounts:
        known = "|".join(map(re.escape, amounts))
        # A noun ends where the next character is no letter.
        nouns = [re.escape(amount) for amount in amounts if amount[-1].isalpha()]
        others = [re.escape(amount) for amount in amounts if not amount[-1].isalpha()]
        between = [f"(?:{'|'.join(nouns)})[{MARK}]"] if nouns else []
        between += [f"(?:{'|'.join(others)}){sign}"] if others else []
        body = f"{sign}*(?:(?:{'|'.join(between)}){sign}*)*(?:{known})?"

    # What is said of several products comes in its order, which is one demand and not one for each part of it.
    ordered = ordered_facts(facts)
    singles = [[fact] for fact in dict.fromkeys(facts) if fact not in ordered]
    demands = [
        [spellings(fact, forms) for fact in demand] for demand in [*singles, ordered] if demand
    ]
    ahead = [f"(?={in_order(parts)})" for parts in demands]
    ahead += [f"(?!{in_order(pair)})" for pair in wrong_orders(facts)]
    ahead += [f"(?!{half_name(name)})" for name in names_told_apart(facts, forms)]
    if kept:
        ahead.append(f"(?={in_order(kept)})")
    return "".join(ahead) + body


def spellings(fact: str, forms: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """What may stand for a fact, also at the beginning of a sentence.

    Example:
        >>> spellings("Товира", {"Товира": ["чайник «Товира»"]}), spellings("$45", {})
        (['чайник «Товира»', 'Чайник «Товира»'], ['$45'])
    """
    own = forms.get(fact)
    if own is None:
        return [fact]
    return [*dict.fromkeys(spelt for form in own for spelt in (form, form[:1].upper() + form[1:]))]


def in_order(parts: Sequence[Part]) -> str:
    """A pattern of the beginnings of texts that have these parts in this order, each as words of its own."""
    pattern = ""
    for number, part in enumerate(parts):
        choices = [part] if isinstance(part, str) else part
        # A number that stands behind "5 " or before ".5" is a part of another one.
        is_number = any(choice[:1].isdigit() for choice in choices)
        if number == 0:
            before = r"[^\w ,.]|(?:^|\D)[ ,.]" if is_number else r"\W"
        else:
            # Behind the part before stands a mark, which may be all that is between them.
            pattern += r"(?:[^\w,.]|[,.]\W)"
            before = r"[^\w ,.]|\D[ ,.]" if is_number else r"\W"
            pattern += "[ ,.]?" if is_number else ""

        said = "|".join(map(re.escape, choices))
        pattern += f"(?:{ANYTHING}(?:{before}))?(?:{said})"
    return rf"{pattern}(?:[^\w,.]|[,.](?:\D|\Z)|\Z)"


def names_told_apart(facts: Sequence[str], forms: Mapping[str, Sequence[str]]) -> list[str]:
    """The facts that begin with a key of `forms` as no other word of the facts and of their forms begins.

    Example:
        >>> names_told_apart(["Anna", "Tovira kettle"], {"Tovira": ["Tovira kettle"]})
        ['Tovira kettle']
        >>> names_told_apart(["Сковора"], {"Сковора": ["сковорода «Сковора»"]})
        []
    """
    names = []
    for fact in facts:
        key, _, rest = fact.partition(" ")
        others = [rest, *(other for other in facts if other != fact)]
        words = re.findall(r"\w+", " ".join([*others, *forms.get(key, ())]).casefold())

        # Such a word could not be said if the beginning stood for the name.
        begins_alike = any(
            word.startswith(key[:BEGINNING].casefold()) and word != key.casefold() for word in words
        )
        if key in forms and len(key) > BEGINNING and not begins_alike:
            names.append(fact)
    return names


def half_name(name: str) -> str:
    """A pattern of the beginnings of texts in which a word begins like a name, and does not go on like it.

    Example:
        >>> texts = ["a Tovira kettle", "a Tovira", "a Tovirra", "a Tovira kettel", "To the kettle"]
        >>> [re.match(half_name("Tovira kettle"), text) is not None for text in texts]
        [False, True, True, True, False]
    """
    begun = name[:BEGINNING]
    rest = name[BEGINNING:]

    # Up to some sign as the name goes on, and there another one, or the end of the text
    others = [
        rf"{re.escape(rest[:place])}(?:[^{re.escape(sign)}]|\Z)" for place, sign in enumerate(rest)
    ]
    # Or all of the name, and more letters
    others.append(rf"{re.escape(rest)}\w")

    return rf"(?:{ANYTHING}\W)?{re.escape(begun)}(?:{'|'.join(others)})"


def other_letters(*texts: str) -> str:
    """Letters of these texts that are not in `LETTER`, and marks not in `MARK`, for a class of characters."""
    usual = re.compile(rf"[{MARK}{LETTER}{CURRENCIES}\s0-9]")
    return "".join(
        sorted({re.escape(one) for text in texts for one in text if not usual.match(one)})
    )


def priced_facts(facts: Sequence[str]) -> list[tuple[str, str]]:
    """The names among the facts with a price right behind them, which is theirs.

    Example:
        >>> priced_facts(["Maria", "Drizzano", "$26", "Rukkona", "$75"])
        [('Drizzano', '$26'), ('Rukkona', '$75')]
    """
    return [
        (name, price)
        for name, price in zip(facts, facts[1:], strict=False)
        if re.fullmatch(MONEY, price) and not AMOUNT.search(name)
    ]


def ordered_facts(facts: Sequence[str]) -> list[str]:
    """The facts that come one behind the other where there are several products; none of a single one.

    A reply speaks of one product behind the other: the price of the first stands before the name of the second, and
    that before its own price.

    Example:
        >>> ordered_facts(["Maria", "Drizzano", "$26", "Rukkona", "$75"])
        ['$26', 'Rukkona', '$75']
    """
    priced = priced_facts(facts)
    parts = [part for pair in priced for part in pair]
    # Products of one price cannot be taken for each other, nor what is named twice.
    is_plain = len(priced) > 1 and len(set(parts)) == len(parts)
    return parts[1:] if is_plain else []


def wrong_orders(facts: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of facts that must not stand in this order, since a price then seems to be that of another product.

    Example:
        >>> wrong_orders(["Drizzano", "$26", "Rukkona", "$75"])
        [('Rukkona', '$26'), ('$75', 'Rukkona')]
    """
    ordered = ordered_facts(facts)
    return [(second, first) for first, second in zip(ordered, ordered[1:], strict=False)]


def has_exchanged_prices(text: str, facts: Sequence[str]) -> bool:
    """Whether a price of a text seems to be that of another product than it is, see `ordered_facts`.

    Example:
        >>> facts = ["Drizzano", "$26", "Rukkona", "$75"]
        >>> has_exchanged_prices("Drizzano for $26, and the Rukkona for $75.", facts)
        False
        >>> has_exchanged_prices("Drizzano for $75, and the Rukkona for $26.", facts)
        True
    """
    return any(re.match(in_order(pair), text) is not None for pair in wrong_orders(facts))


def unknown_amounts(text: str, known: str | Iterable[str]) -> set[str]:
    """The amounts of a text that others do not have; "2 990 ₽" and "2990 ₽" are one.

    Args:
        known: a text, or several.

    Example:
        >>> sorted(unknown_amounts("2 years and 9 days, for $1,299", "9 days, 2 in stock, $1299"))
        ['2years']
    """
    known_texts = [known] if isinstance(known, str) else [*known]
    amounts = amounts_of([text])
    all_known = amounts_of(known_texts)
    # A number that is known by itself may have any noun.
    return {
        amount
        for amount in amounts - all_known
        if re.sub(f"[{LETTER}]+$", "", amount) not in all_known
    }


def amounts_of(texts: Iterable[str]) -> set[str]:
    """The amounts of texts, without what sets thousands apart or a noun from its number."""
    found = {amount for text in texts for amount in AMOUNT.findall(text)}
    whole = {re.sub(rf"[{BLANKS},.](?=[0-9]{{3}}(?![0-9]))", "", amount) for amount in found}
    return {re.sub(rf"[{BLANKS}-]", "", amount) for amount in whole}
