"""Several candidates of each text, of which one is returned."""

from collections.abc import Callable

from text_diffusers.common.validation import require

Choose = Callable[[list[str]], int]


def check_choice(num_candidates: int, choose: Choose | None):
    """Raise a `ValueError` if there are several candidates and nothing that chooses among them."""
    require(choose is None or callable(choose), "choose", "a function of the candidates", choose)
    if num_candidates > 1 and choose is None:
        raise ValueError(
            f"`choose` must be given to pick one of {num_candidates} candidates, "
            "such as `text_diffusers.evaluation.text_metrics.minimum_bayes_risk`."
        )


def chosen_rows(
    texts: list[str] | None, num_rows: int, num_candidates: int, choose: Choose | None
) -> list[int]:
    """Indices of the rows to return, one of each `num_candidates` that stand next to each other.

    Args:
        texts: of all rows, as they would be returned; may be left out without a choice.

    Raises:
        ValueError: if `choose` returns no index of a candidate.
    """
    # Without a choice there is one candidate of each text.
    if num_candidates == 1 or choose is None or texts is None:
        return list(range(num_rows))

    rows = []
    for first in range(0, num_rows, num_candidates):
        # Candidates of a text stand next to each other.
        index = int(choose(texts[first : first + num_candidates]))
        if not 0 <= index < num_candidates:
            raise ValueError(
                f"`choose` must return an index below `num_candidates`={num_candidates}, got {index}."
            )
        rows.append(first + index)
    return rows
