"""Examples to click, in the language that the model writes."""

from dataclasses import dataclass

from text_diffusers.space.parts.served import Served


@dataclass(frozen=True)
class Examples:
    """Texts for the boxes of the tabs, those of one language.

    Attributes:
        beginnings: of texts; the first two stand where there is little room.
        gaps: texts with gaps, as the tab Fill in reads them.
        whole: texts to be corrupted.
        sources: texts to reply to.
        ends: two pairs of texts that something lies between; one pair a box.
    """

    beginnings: tuple[str, ...]
    gaps: tuple[str, ...]
    whole: tuple[str, ...]
    sources: tuple[str, ...]
    ends: tuple[tuple[str, ...], tuple[str, ...]]


ENGLISH = Examples(
    beginnings=("I think", "She was", "Do you like", "The old house"),
    gaps=("The ___ was [2] and I ___ it.", "She [3] the door.", "I think [4]."),
    whole=(
        "She walked slowly down to the sea and looked at the boats.",
        "I think we should all go to the cinema tonight.",
    ),
    sources=("Hi! How was your day?", "Do you like music?"),
    ends=(
        ("I went to the park today.", "She was late."),
        ("Do you like music?", "I am so happy!"),
    ),
)
RUSSIAN = Examples(
    beginnings=("Я думаю", "Она была", "Вы любите", "Старый дом"),
    gaps=("Этот ___ был [2], и я его ___.", "Она [3] дверь.", "Я думаю, [4]."),
    whole=(
        "Она медленно спустилась к морю и посмотрела на лодки.",
        "По-моему, вечером нам всем надо пойти в кино.",
    ),
    sources=("Привет! Как прошёл день?", "Ты любишь музыку?"),
    ends=(
        ("Сегодня я ходил в парк.", "Она опоздала."),
        ("Ты любишь музыку?", "Как же я рад!"),
    ),
)


def examples_for(served: Served) -> Examples:
    """Russian examples for a model that writes Russian, and English ones for all others."""
    return RUSSIAN if served.writes_russian else ENGLISH
