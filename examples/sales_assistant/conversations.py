"""Conversations of customers with a sales team, made of a catalogue and of phrases, so that the truth is known.

A conversation has a customer, a product, an intent and a tone. Its last turn is the reply of the team, and `facts`
are the strings that a right reply must contain: a price, a number in stock, a day of delivery, a name. All of them
are also in `note`, which is what a member of the team would see on the screen.

    question    is there one, and how soon?
    price       what does it cost?
    objection   too expensive: the reply offers a lower price, or speaks of the warranty
    complaint   something is wrong with it: the reply promises a replacement, or the money
    upsell      an order: the reply confirms it and suggests something else
    follow_up   the customer comes back to what was talked about

Every reply is an opening, a body and a closing, drawn from `phrases/<language>.json`. In a phrase, `<extra>` stands
for a phrase of that name, and `{price}` for a value. Words that agree with a product or a customer stand in the same
file with their forms, so that `{стоит}` becomes "стоят" for headphones.

Example:
    >>> from conversations import generate
    >>> record = generate("en", count=1, seed=0)[0]
    >>> all(fact in record["messages"][-1]["content"] for fact in record["facts"])
    True
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from catalogue import read_catalogue, varied_catalogue

from text_diffusers.common.validation import require_int, require_key

HERE = Path(__file__).parent

LANGUAGES = ("en", "ru")
TONES = ("formal", "friendly", "brief")
INTENTS = ("question", "price", "objection", "complaint", "upsell", "follow_up")

# What a right reply says, by the case of its intent; in all tones but the brief one also the name of the customer. A
# brand stands for the name of the product, of which Russian declines the rest.
FACTS = {
    "question": ("brand", "stock", "delivery"),
    "question.out": ("brand", "delivery"),
    "price": ("brand", "price"),
    "objection.offer": ("brand", "offer"),
    "objection.warranty": ("brand", "warranty"),
    "complaint.replace": ("brand", "delivery"),
    "complaint.refund": ("brand", "price"),
    "upsell": ("brand", "price", "other_brand", "other_price"),
    "follow_up": ("brand", "price", "stock"),
    "follow_up.out": ("brand", "price", "delivery"),
}

# What stands in the place of a brand where the whole name is always the same
NAMES = {"brand": "product", "other_brand": "other"}

# Products of which no training conversation speaks, and the share of the other pairs of a product and a body that are
# held out: see `held_out_part`.
HELD_OUT_PRODUCTS = ("toaster", "alarm_clock", "umbrella", "sleeping_bag")
HELD_OUT_SHARE = 0.04

# A conversation that was there before is drawn again, at most so many times as there are conversations.
MOST_DRAWS = 20

Record = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """Who asks what about which product, and the values that phrases may name.

    Attributes:
        case: a key of `FACTS`.
        product: an entry of the catalogue.
        is_returning: whether the customer has bought something before.
        values: strings by the names in phrases.
    """

    tone: str
    case: str
    product: dict[str, Any]
    is_returning: bool
    values: dict[str, str]

    @property
    def intent(self) -> str:
        return self.case.partition(".")[0]


def generate(language: str, count: int, seed: int = 0, varied: bool = False) -> list[Record]:
    """Different conversations: the same arguments, the same conversations.

    Args:
        language: "en" or "ru".
        varied: whether each conversation has a catalogue of its own, with the products of the true one, but other
            brands, prices, stock, delivery and warranty, and a fifth of the products as kinds that do not exist. A
            model that always meets the true ones learns the catalogue by heart, and does not read the note.

    Returns:
        Records with `language`, `customer` (`name` and `history`), `tone`, `intent`, `product`, `price`, `stock`,
        `delivery`, `other_product`, `other_price`, `note`, `messages`, `facts` and `held_out`.

    Raises:
        ValueError: if there is no such language, or there are not so many different conversations.
    """
    require_key("language", language, LANGUAGES)
    require_int("count", count, 1)
    writer = ConversationWriter(language)
    rng = random.Random(f"{language} {seed}{' varied' if varied else ''}")

    records: list[Record] = []
    seen = set()
    for _ in range(MOST_DRAWS * count):
        if varied:
            writer.products = varied_catalogue(language, rng)
        record = writer.write(rng)
        turns = tuple(turn["content"] for turn in record["messages"])
        if turns in seen:
            continue
        seen.add(turns)
        records.append(record)
        if len(records) == count:
            return records
    raise ValueError(f"`count` must be at most {len(records)}, which differ, got {count}.")


class ConversationWriter:
    """Draws conversations in one language."""

    def __init__(self, language: str):
        self.language = language
        self.phrases = read_phrases(language)
        self.products = read_catalogue()

    def write(self, rng: random.Random) -> Record:
        """One conversation, with its facts and the part of the data that it belongs to."""
        situation = self.draw_situation(rng)
        history = self.draw_history(situation, rng)

        # Each turn comes with the bodies of which it is made: their pairs with the product may be held out.
        messages = []
        bodies = []
        for role, symbol, case in self.draw_plan(situation, rng):
            if symbol == "reply":
                content, body = self.reply(situation, case, rng)
                bodies.append(body)
            else:
                content = self.say(symbol, situation, case, rng)
            messages.append({"role": role, "content": content})

        values = situation.values
        names = [*FACTS[situation.case]]
        if situation.tone != "brief":
            names.insert(0, "name")
        if self.language == "en":
            names = [NAMES[name] if name in NAMES else name for name in names]
        return {
            "language": self.language,
            "customer": {"name": values["name"], "history": history},
            "tone": situation.tone,
            "intent": situation.intent,
            "product": values["product"],
            "price": values["price"],
            "stock": situation.product["stock"],
            "delivery": values["delivery"],
            "other_product": values["other"] if situation.intent == "upsell" else "",
            "other_price": values["other_price"] if situation.intent == "upsell" else "",
            "note": self.note(situation, history),
            "messages": messages,
            "facts": [values[name] for name in names],
            "held_out": held_out_part(situation.product["id"], bodies),
        }

    # What a conversation is about

    def draw_situation(self, rng: random.Random) -> Situation:
        intent = rng.choice(INTENTS)
        tone = rng.choice(TONES)

        # Only what is there can be ordered.
        products = [product for product in self.products if product["stock"] or intent != "upsell"]
        product = rng.choice(products)
        case = draw_case(intent, product, rng)

        gender = rng.choice(("feminine", "masculine"))
        name = rng.choice(self.phrases["names"][gender])
        is_returning = rng.random() < 0.5
        past = rng.choice(self.others(product))
        companion = rng.choice(self.others(product, among=product["goes_with"]))

        values = {"name": name, "month": rng.choice(self.phrases["months"])}
        values |= self.words_of_product(product)
        values |= self.words_of_product(companion, prefix="other")
        values |= self.words_of_product(past, prefix="past")
        values |= {word: forms[gender] for word, forms in self.phrases["customer"].items()}
        return Situation(tone, case, product, is_returning, values)

    def others(self, product: dict[str, Any], among: Any = None) -> list[dict[str, Any]]:
        """Products beside this one; never those of which no training conversation may speak."""
        return [
            other
            for other in self.products
            if other["id"] not in (product["id"], *HELD_OUT_PRODUCTS)
            and (among is None or other["id"] in among)
        ]

    def words_of_product(self, product: dict[str, Any], prefix: str = "") -> dict[str, str]:
        """Names, figures and agreeing words of a product; those of another product have a prefix."""
        own = product[self.language]
        sayings = self.phrases["values"]
        is_tomorrow = product["delivery_days"] == 1

        words = {
            "brand": own["brand"],
            "price": self.money(own["price"]),
            "offer": self.money(own["offer"]),
            "stock": self.counted("stock", product["stock"]),
            "warranty": self.counted("warranty", product["warranty_years"]),
            "delivery": sayings["tomorrow"]
            if is_tomorrow
            else self.counted("delivery", product["delivery_days"]),
        }
        words |= {word: forms[own["gender"]] for word, forms in self.phrases["agreement"].items()}
        words = {f"{prefix}_{word}" if prefix else word: text for word, text in words.items()}

        # The name of a product, in the cases of Russian: {product}, {product_acc}, {other_acc} ...
        name = prefix or "product"
        return words | {
            name: own["name"],
            f"{name}_gen": own.get("genitive", own["name"]),
            f"{name}_acc": own.get("accusative", own["name"]),
        }

    def money(self, amount: int) -> str:
        sayings = self.phrases["values"]
        return sayings["price"].format(n=f"{amount:,}".replace(",", sayings["thousands"]))

    def counted(self, what: str, number: int) -> str:
        """A number and its noun, such as "3 дня"."""
        form = plural_form(self.language, number)
        return self.phrases["values"][what][form].format(n=number)

    def draw_history(self, situation: Situation, rng: random.Random) -> str:
        """What is known of the customer."""
        histories = self.phrases["history"]
        if situation.intent in histories:
            line = rng.choice(histories[situation.intent])
        elif situation.is_returning:
            line = rng.choice(histories["returning"])
        else:
            line = histories["new"]
        return line.format(**situation.values)

    def note(self, situation: Situation, history: str) -> str:
        """All facts of a conversation, and what the team has decided, in lines."""
        templates = self.phrases["note"]
        case = situation.case
        product = "product" if situation.product["stock"] else "product.out"

        lines = [templates["customer"], templates["tone"][situation.tone], templates[product]]
        for decision in ("offer", "warranty", "replace", "refund", "upsell"):
            if decision in case.split("."):
                lines.append(templates[decision])
        return "\n".join(lines).format(history=history, **situation.values)

    # What is said

    def draw_plan(self, situation: Situation, rng: random.Random) -> list[tuple[str, str, str]]:
        """Role, phrase and case of each turn; the phrase "reply" is an opening, a body and a closing."""
        case = situation.case
        price = [("user", "user.price", "price"), ("assistant", "reply", "price")]

        before: list[tuple[str, str, str]] = []
        if situation.intent == "objection":
            before = price
        elif situation.intent == "follow_up" and rng.random() < 0.5:
            thinking = ("user", "user.thinking", case)
            before = [*price, thinking, ("assistant", "body.wait", case)]

        symbol = f"user.{situation.intent}"
        if situation.intent == "complaint":
            symbol = f"{symbol}.{situation.product['material']}"
        return [*before, ("user", symbol, case), ("assistant", "reply", case)]

    def reply(self, situation: Situation, case: str, rng: random.Random) -> tuple[str, str]:
        """The text of a reply, and the body that it was made of, as it stands in the phrases."""
        body = rng.choice(self.lines(f"body.{case}", situation, case))
        parts = [
            rng.choice(self.lines("opening", situation, case)),
            body,
            rng.choice(self.lines("closing", situation, case)),
        ]
        return self.fill(" ".join(parts), situation, case, rng), body

    def say(self, symbol: str, situation: Situation, case: str, rng: random.Random) -> str:
        line = rng.choice(self.lines(symbol, situation, case))
        return self.fill(line, situation, case, rng)

    def lines(self, symbol: str, situation: Situation, case: str) -> list[str]:
        """The phrases of a name: those for the case, or else for a part of it, or else for all."""
        table = self.phrases[situation.tone]
        for part in (case, *case.split(".")):
            name = f"{symbol}.{part}"
            if name in table:
                return table[name]

        more = table.get(f"{symbol}.returning", []) if situation.is_returning else []
        return [*table[symbol], *more]

    def fill(self, line: str, situation: Situation, case: str, rng: random.Random) -> str:
        """A text of a phrase: with the phrases that it names, its values, and capitals after full stops."""
        while (named := re.search(r"<([\w.]+)>", line)) is not None:
            inner = rng.choice(self.lines(named[1], situation, case))
            line = line[: named.start()] + inner + line[named.end() :]

        text = " ".join(line.format(**situation.values).split())
        return re.sub(r"(^|[.!?] )([a-zа-яё])", lambda start: start[1] + start[2].upper(), text)


def draw_case(intent: str, product: dict[str, Any], rng: random.Random) -> str:
    """The key of `FACTS`: what the stock decides, and otherwise chance."""
    if intent in ("question", "follow_up"):
        return intent if product["stock"] else f"{intent}.out"
    cases = [case for case in FACTS if case.partition(".")[0] == intent]
    return rng.choice(cases)


def plural_form(language: str, number: int) -> str:
    """The form of a noun after a number, by the names that Unicode gives them.

    Example:
        >>> [plural_form("ru", number) for number in (1, 3, 5, 11, 22)]
        ['one', 'few', 'many', 'many', 'few']
    """
    if language == "en":
        return "one" if number == 1 else "other"
    if number % 10 == 1 and number % 100 != 11:
        return "one"
    if 2 <= number % 10 <= 4 and not 12 <= number % 100 <= 14:
        return "few"
    return "many"


def missing_facts(reply: str, facts: list[str]) -> list[str]:
    """The facts that a reply does not contain as words of their own.

    Example:
        >>> missing_facts("It is $145, and we have 12 in stock.", ["$145", "2 in stock", "$14"])
        ['2 in stock', '$14']
    """
    return [fact for fact in facts if not contains(reply, fact)]


def contains(reply: str, fact: str) -> bool:
    # "2 990 ₽" is no part of "12 990 ₽", nor "Anna" one of "Annabel".
    before = r"(?<!\w)(?<!\d[ ,.])" if fact[:1].isdigit() else r"(?<!\w)"
    after = r"(?!\w)(?![,.]\d)"
    return re.search(before + re.escape(fact) + after, reply) is not None


# The part of the data that is held out


def held_out_part(product_id: str, bodies: list[str]) -> str:
    """ "product" or "phrasing" for what is held out of training, "" for the rest.

    Of some products no training conversation speaks at all. Of the other products some bodies of replies are held out:
    training has the body with other products, and the product in other bodies, but never both together.
    """
    if product_id in HELD_OUT_PRODUCTS:
        return "product"
    if any(is_held_out(f"{product_id} {body}") for body in bodies):
        return "phrasing"
    return ""


def is_held_out(text: str) -> bool:
    """Whether a text is among the `HELD_OUT_SHARE` of all texts that its hash picks, whatever the others are."""
    digest = sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32


def split(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """The conversations to learn from, and those that are held out."""
    train = [record for record in records if not record["held_out"]]
    validation = [record for record in records if record["held_out"]]
    return train, validation


def with_note(record: Record) -> Record:
    """The same record, whose conversation begins with its note, as a turn of the system.

    A model that is to tell the truth has to be told it; without the note it can only guess.
    """
    turn = {"role": "system", "content": record["note"]}
    return record | {"messages": [turn, *record["messages"]]}


def as_pair(
    record: Record, facts: Sequence[str] | None = None, shown: str = "conversation"
) -> dict[str, Any]:
    """The same conversation as one text from another: the reply from the note, all turns before it, and the facts.

    Facts that stand once among a hundred other words take a small model hours to find. Those that are to be said
    therefore come last, in a line of their own.

    Args:
        facts: that the reply is to say; by default those of the record.
        shown: what stands before these facts: "conversation", the "products" by their names, or nothing, "facts".
            From short sources a model learns to copy, which it then does from long ones, too.

    Returns:
        `source`, `reply`, `tone`, `facts` and `note`.
    """
    *before, reply = record["messages"]
    say = read_phrases(record.get("language") or "en")["note"]["say"]
    wanted = ", ".join(record["facts"] if facts is None else facts)
    products = [record[key] for key in ("product", "other_product") if record.get(key)]
    lines = {
        "conversation": [record["note"], *(turn["content"] for turn in before)],
        "products": [", ".join(products)],
        "facts": [],
    }[shown]
    return {
        "source": "\n".join([*lines, say.format(facts=wanted)]),
        "reply": reply["content"],
        "tone": record["tone"],
        "facts": record["facts"],
        "note": record["note"],
    }


@cache
def read_phrases(language: str) -> dict[str, Any]:
    return json.loads((HERE / "phrases" / f"{language}.json").read_text(encoding="utf-8"))
