"""A judge of spelling and phrases: a character n-gram model, which has seen other texts of the same kind.

Witten-Bell smoothing (https://doi.org/10.1109/18.87000): behind a context h that was seen N(h) times, with T(h)
different characters, a character c that was seen n times behind it has probability
(n + T(h) p(c | h')) / (N(h) + T(h)), h' being h without its first character. Below the empty context stands the
uniform distribution over all characters, and one for those that were never seen.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

START = "\x02"
END = "\n"  # counts as a character, since a text that does not end well is worse


class CharacterJudge:
    """A character n-gram model.

    Args:
        texts: to learn from.
        order: n, characters of an n-gram.

    Example:
        >>> judge = CharacterJudge(["the cat sat", "the dog sat"], order=4)
        >>> judge.bits_per_character(["the cat"]) < judge.bits_per_character(["tac eht"])
        True
    """

    def __init__(self, texts: Iterable[str], order: int = 6):
        self.order = order
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            padded = self._padded(text)
            for place in range(order - 1, len(padded)):
                for length in range(order):
                    self.counts[padded[place - length : place]][padded[place]] += 1
        self.totals = {context: counter.total() for context, counter in self.counts.items()}
        self.num_characters = len(self.counts[""]) + 1

    def _padded(self, text: str) -> str:
        # A text is one line, so that only its end is one.
        line = " ".join(text.split())
        return START * (self.order - 1) + line + END

    def probability(self, context: str, character: str) -> float:
        """p(character | context), of a context of at most n - 1 characters."""
        probability = 1 / self.num_characters
        # From the shortest context to the longest that was seen
        for length in range(len(context) + 1):
            known = context[len(context) - length :]
            total = self.totals.get(known, 0)
            if not total:
                break
            counter = self.counts[known]
            num_kinds = len(counter)
            probability = (counter[character] + num_kinds * probability) / (total + num_kinds)
        return probability

    def bits(self, text: str) -> float:
        """Bits of a text and its end."""
        padded = self._padded(text)
        bits = 0.0
        for place in range(self.order - 1, len(padded)):
            context = padded[place - self.order + 1 : place]
            bits -= math.log2(self.probability(context, padded[place]))
        return bits

    def bits_per_character(self, texts: Sequence[str]) -> float:
        """Bits of all texts over their characters, each end being one."""
        num_characters = sum(len(self._padded(text)) - self.order + 1 for text in texts)
        return sum(self.bits(text) for text in texts) / num_characters
