"""Made-up turns of a sales team whose facts are known, in English and Russian, and how many facts a reply has right.

A question has a name, a product and a number, and comes from a kind of customer. The reply repeats the three and has
the tone of the kind. All else of it is one of three greetings and one of three wordings.
"""

import csv
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# The first turns are learned, the last are asked.
TRAINED = 5_700
ASKED = 200

# Letters of a product by which it is known in any case form of Russian.
STEM = 5


@dataclass(frozen=True)
class Language:
    """The words of which turns are made; `{n}` is the name, `{g}` or `{G}` the product, `{p}` and `{d}` the number.

    Attributes:
        names, products: of which a turn has one each.
        tones: what a reply says to each kind of customer.
        questions, answers: three wordings for each topic.
        greetings: three ways to begin a reply.
    """

    names: Sequence[str]
    products: Sequence[str]
    tones: dict[str, str]
    questions: dict[str, Sequence[str]]
    answers: dict[str, Sequence[str]]
    greetings: Sequence[str]


@dataclass(frozen=True)
class Turn:
    """A question and a reply to it, and what the reply must say.

    Example:
        >>> turn = make_turns("en", count=1, seed=0)[0]
        >>> facts_of(turn, turn.reply)["all"]
        True
    """

    question: str
    reply: str
    label: str
    name: str
    product: str
    number: int
    tone: str


LANGUAGES = {
    "en": Language(
        names="Anna Ivan Olga Peter Mary David Helen Simon Natalie Alex Julia Max Claire Oliver Irene Paul".split(),
        products=(
            "laptop printer monitor scanner server projector telephone tablet router heater kettle vacuum".split()
        ),
        tones={
            "new": "Nice to meet you",
            "regular": "Thank you for coming back to us",
            "unhappy": "We are very sorry",
        },
        questions={
            "price": (
                "How much is the {g}? The catalogue says {p} dollars.",
                "What does a {g} cost? I see {p} dollars, right?",
                "Please tell me the price: {g}, {p} dollars?",
            ),
            "delivery": (
                "When will the {g} come? You promised {d} days.",
                "Where is my {g}? It was to take {d} days.",
                "I have waited long for the {g}, you promised {d} days.",
            ),
            "repair": (
                "{G} broke down, what shall I do? The warranty is {d} years.",
                "{G} does not turn on, the warranty is {d} years.",
                "My {g} stopped working, the warranty is {d} years.",
            ),
        },
        answers={
            "price": (
                "{G} costs {p} dollars.",
                "The price of the {g} is {p} dollars.",
                "Yes, a {g} for {p} dollars is in stock.",
            ),
            "delivery": (
                "{G} is on its way, {d} days in all.",
                "We will bring the {g} in {d} days.",
                "Delivery takes {d} days, the {g} is packed.",
            ),
            "repair": (
                "We will replace the {g}, the warranty is {d} years.",
                "Send us a photo, we will mend the {g}, warranty {d} years.",
                "{G} will be repaired, warranty {d} years.",
            ),
        },
        greetings=("{n}, good morning!", "Hello, {n}!", "{n}, welcome!"),
    ),
    "ru": Language(
        names=(
            "Анна Иван Ольга Пётр Мария Дмитрий Елена Сергей Наталья Алексей Юлия Максим Светлана Олег Ирина Павел"
        ).split(),
        products=(
            "ноутбук принтер монитор сканер сервер проектор телефон планшет роутер кондиционер чайник пылесос"
        ).split(),
        tones={
            "новый": "Рады знакомству",
            "постоянный": "Спасибо, что вы снова с нами",
            "недовольный": "Приносим извинения",
        },
        questions={
            "price": (
                "Сколько стоит {g}? В каталоге {p} рублей.",
                "Почём {g}? Вижу цену {p} рублей, верно?",
                "Подскажите цену: {g}, {p} рублей?",
            ),
            "delivery": (
                "Когда привезут {g}? Обещали за {d} дня.",
                "Где мой {g}? Срок был {d} дня.",
                "Жду {g} уже давно, обещали {d} дня.",
            ),
            "repair": (
                "{G} сломался, что делать? Гарантия {d} года.",
                "{G} не включается, гарантия {d} года.",
                "Перестал работать {g}, гарантия {d} года.",
            ),
        },
        answers={
            "price": (
                "{G} стоит {p} рублей.",
                "Цена за {g} {p} рублей.",
                "Да, {g} за {p} рублей есть на складе.",
            ),
            "delivery": (
                "{G} уже в пути, срок {d} дня.",
                "Привезём {g} через {d} дня.",
                "Доставка займёт {d} дня, {g} уже собран.",
            ),
            "repair": (
                "Заменим {g} по гарантии, она {d} года.",
                "Пришлите фото, {g} починим, гарантия {d} года.",
                "{G} примем в ремонт, гарантия {d} года.",
            ),
        },
        greetings=("{n}, добрый день!", "Здравствуйте, {n}!", "{n}, приветствую!"),
    ),
}


def make_turns(language: str, count: int, seed: int = 7) -> list[Turn]:
    """So many turns in "en" or "ru", always the same for a seed."""
    words = LANGUAGES[language]
    rng = random.Random(seed)
    turns = []
    for _ in range(count):
        name = rng.choice(words.names)
        product = rng.choice(words.products)
        topic = rng.choice(list(words.questions))
        label = rng.choice(list(words.tones))
        price = rng.randrange(10, 100) * 100 + rng.choice([0, 50])
        duration = rng.randrange(2, 5)
        facts = {"n": name, "g": product, "G": product.capitalize(), "p": price, "d": duration}

        question = f"{name}. " + rng.choice(words.questions[topic]).format(**facts)
        greeting = rng.choice(words.greetings).format(**facts)
        answer = rng.choice(words.answers[topic]).format(**facts)
        turns.append(
            Turn(
                question=question,
                reply=f"{greeting} {words.tones[label]}. {answer}",
                label=label,
                name=name,
                product=product,
                number=price if topic == "price" else duration,
                tone=words.tones[label],
            )
        )
    return turns


def facts_of(turn: Turn, reply: str) -> dict[str, bool]:
    """Which facts of a turn a reply has right, and whether it has all of them."""
    facts = {
        "name": turn.name in reply,
        "product": turn.product[:STEM] in reply.lower(),
        # The number, and no other beside it
        "number": re.findall(r"\d+", reply) == [str(turn.number)],
        "tone": turn.tone in reply,
    }
    return facts | {"all": all(facts.values())}


def shares_of_facts(turns: Sequence[Turn], replies: Sequence[str]) -> dict[str, float]:
    """The share of replies that have each fact right."""
    results = [facts_of(turn, reply) for turn, reply in zip(turns, replies, strict=True)]
    return {name: sum(result[name] for result in results) / len(results) for name in results[0]}


def columns_of(turns: Sequence[Turn]) -> dict[str, list]:
    """The turns as columns of a table."""
    return {name: [asdict(turn)[name] for turn in turns] for name in asdict(turns[0])}


def write_table(file: Path, columns: dict[str, Sequence[str]]) -> Path:
    """Columns as a .csv file that a recipe reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file
