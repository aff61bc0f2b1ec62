"""What the team sells: the products of `catalogue.json`, and catalogues of shops that do not exist.

A name is a kind with a brand, "Tovira kettle" or "чайник «Товира»", and has three cases in Russian.

Example:
    >>> from catalogue import read_catalogue
    >>> read_catalogue()[0]["en"]["name"]
    'Tovira kettle'
"""

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

# The cases of a name; English has the first one only.
CASES = ("name", "genitive", "accusative")

Product = dict[str, Any]


@cache
def read_catalogue() -> list[Product]:
    return json.loads((HERE / "catalogue.json").read_text(encoding="utf-8"))["products"]


# Names in texts


def kinds_of(text: str) -> set[str]:
    """Ids of the catalogue's products whose kind a text names, in either language and in any case of Russian.

    Example:
        >>> sorted(kinds_of("The Brevola coffee maker, or a kettle? Нет, чайника нет."))
        ['coffee_maker', 'kettle']
    """
    forms = forms_of_kinds()
    # The longest first: a cat bed is no bed.
    names = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    return {forms[name] for name in re.findall(rf"\b(?:{names})\b", text)}


@cache
def forms_of_kinds() -> dict[str, str]:
    """The product's id for each form of the name of its kind, without the brand."""
    return {
        " ".join(word for word in own[case].split() if word.strip("«»").islower()): product["id"]
        for product in read_catalogue()
        for own in (product["en"], product["ru"])
        for case in CASES
        if case in own
    }


def misnamed_brands(text: str, facts: Sequence[str]) -> list[str]:
    """The brands of the facts that a text has without the kind of the product, or with another kind.

    Args:
        facts: strings with brands of the catalogue, or without.

    Example:
        >>> misnamed_brands("The Tovira kettle, and the Miksano toaster?", ["Tovira", "Miksano blender", "$45"])
        ['Miksano']
    """
    misnamed = []
    for word in re.findall(r"\w+", " ".join(facts)):
        names = names_of_brands().get(word)
        if names is None:
            continue

        # A sentence may begin with the kind.
        full_names = rf"\b(?:{'|'.join(map(re.escape, names))})"
        num_named = len(re.findall(full_names, text, re.IGNORECASE))
        if len(re.findall(rf"\b{word}\b", text)) > num_named:
            misnamed.append(word)
    return misnamed


@cache
def names_of_brands() -> dict[str, list[str]]:
    """All cases of the name of a product, by its brand."""
    return {
        own["brand"]: [own[case] for case in CASES if case in own]
        for product in read_catalogue()
        for own in (product["en"], product["ru"])
    }


# Catalogues of other shops

# Sounds of a made-up word: its syllables begin, go on and end with one of each.
SOUNDS = {
    "en": (
        "b c ch d f g h k l m n p r s t v w z bl br cr dr fl fr gl gr kl kr pl pr sh sk sl sm sp st str sw tr".split(),
        "a e i o u a e i o u y ai ea oo".split(),
        "l m n r s t b d k p ll mm nn rr ss tt zz nd nt rk rt sk st".split(),
    ),
    "ru": (
        "б в г д ж з к л м н п р с т ф х ч ш бл бр вл гл гр др зл кл кр пл пр ск сл см сп ст стр тр фл".split(),
        "а е и о у а е и о у я ю э ы".split(),
        "л м н р с т б д к п лл мм нн рр сс тт нд нт рк рт ск ст".split(),
    ),
}
# What a brand ends in, behind a vowel
LAST = {"en": ["", "", "n", "s", "x", "r"], "ru": ["", "", "н", "с", "кс", "р"]}
MIDDLE_ENDS = 0.4
# Of the products with a kind that is made up, and of these kinds those of two words
MADE_UP_KINDS = 0.2
TWO_WORDS = 0.3
# Endings of an adjective in the three cases of Russian
ADJECTIVES = {"masculine": ("ный", "ного", "ный"), "feminine": ("ная", "ной", "ную")}
# Hundredths of a price that are taken off it
DISCOUNTS = (5, 8, 10, 12, 15)


def varied_catalogue(language: str, rng: random.Random) -> list[Product]:
    """The products of the catalogue with brands and figures drawn anew, and a fifth of them as kinds of no shop.

    A model that always meets the same forty kinds learns them by heart, and takes a new one for one of them. What is
    sold out stays so.
    """
    return [varied_product(product, language, rng) for product in read_catalogue()]


def varied_product(product: Product, language: str, rng: random.Random) -> Product:
    own = product[language]
    brand = varied_brand(language, rng)
    names = {case: own[case].replace(own["brand"], brand) for case in CASES if case in own}
    if rng.random() < MADE_UP_KINDS:
        names = made_up_names(language, brand, rng)

    price = varied_price(language, rng)
    offer = price - max(1, price * rng.choice(DISCOUNTS) // 100)
    figures = {
        "stock": rng.randint(1, 60) if product["stock"] else 0,
        "delivery_days": rng.randint(1, 14),
        "warranty_years": rng.randint(1, 5),
    }
    return (
        product
        | figures
        | {language: own | names | {"brand": brand, "price": price, "offer": offer}}
    )


def made_up_names(language: str, brand: str, rng: random.Random) -> dict[str, str]:
    """The cases of the name of a product whose kind does not exist, and the gender of this kind.

    Example:
        >>> made_up_names("ru", "Товира", random.Random(1))["genitive"]
        'злэтеттного четта «Товира»'
    """
    has_two_words = rng.random() < TWO_WORDS
    stem = made_up_stem(language, rng)
    first_stem = made_up_stem(language, rng)
    if language == "en":
        kind = f"{first_stem} {stem}" if has_two_words else stem
        return {"name": f"{brand} {kind}", "gender": "singular"}

    gender = rng.choice(("masculine", "feminine"))
    nouns = declined(stem, gender)
    adjectives = [f"{first_stem}{ending} " for ending in ADJECTIVES[gender]]
    kinds = [
        f"{adjective if has_two_words else ''}{noun}"
        for adjective, noun in zip(adjectives, nouns, strict=True)
    ]
    names = {case: f"{kind} «{brand}»" for case, kind in zip(CASES, kinds, strict=True)}
    return names | {"gender": gender}


def declined(stem: str, gender: str) -> tuple[str, str, str]:
    """Nominative, genitive and accusative of a Russian noun that is no living being.

    Example:
        >>> declined("стол", "masculine"), declined("книг", "feminine")
        (('стол', 'стола', 'стол'), ('книга', 'книги', 'книгу'))
    """
    if gender == "masculine":
        return stem, f"{stem}а", stem
    genitive = "и" if stem[-1] in "гкхжчшщ" else "ы"
    return f"{stem}а", f"{stem}{genitive}", f"{stem}у"


def made_up_stem(language: str, rng: random.Random) -> str:
    """A word of one or two syllables that ends in a consonant and could be a noun."""
    begins, vowels, ends = SOUNDS[language]
    before = made_up_syllables(language, rng.randint(0, 1), rng)
    return before + rng.choice(begins) + rng.choice(vowels) + rng.choice(ends)


def varied_brand(language: str, rng: random.Random) -> str:
    """A word that could be a brand, and is none of the catalogue."""
    begins, vowels, _ = SOUNDS[language]
    while True:
        before = made_up_syllables(language, rng.randint(1, 2), rng)
        last = rng.choice(begins) + rng.choice(vowels) + rng.choice(LAST[language])
        brand = (before + last).capitalize()
        if brand not in names_of_brands():
            return brand


def made_up_syllables(language: str, count: int, rng: random.Random) -> str:
    begins, vowels, ends = SOUNDS[language]
    sounds = []
    for _ in range(count):
        end = rng.choice(ends) if rng.random() < MIDDLE_ENDS else ""
        sounds += [rng.choice(begins), rng.choice(vowels), end]
    return "".join(sounds)


def varied_price(language: str, rng: random.Random) -> int:
    """Small prices as often as large ones: from 9 to 1,500, and in Russian from 490 to 60,000, in tens."""
    if language == "en":
        return round(9 * (1_500 / 9) ** rng.random())
    return 10 * round(49 * (6_000 / 49) ** rng.random())
