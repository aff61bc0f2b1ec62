"""Whether the parts of a pipeline fit each other: perhaps no one program put together what is in a saved folder."""

from typing import Any

STEPPING = ("set_timesteps", "prior", "select", "step")


def check_words(tokenizer: Any, name: str, vocab_size: int):
    """Refuse a tokenizer with ids that the component `name`, of so many ids, does not know, or without a limit."""
    limit = tokenizer.model_max_length
    if not isinstance(limit, int | float) or isinstance(limit, bool):
        raise ValueError(f"`tokenizer` must have a number as `model_max_length`, got {limit!r}.")
    words, last = len(tokenizer), max(tokenizer.get_vocab().values(), default=-1)
    if max(words, last + 1) > vocab_size:
        ids = f"{words} tokens" + f" with ids up to {last}" * (last >= words)
        raise ValueError(f"`{name}` has `vocab_size`={vocab_size}, but the tokenizer has {ids}.")


def check_special_ids(tokenizer: Any, config: Any):
    """Refuse a denoiser whose configuration names other special tokens than the tokenizer."""
    for name in ("mask_token_id", "pad_token_id"):
        told, own = getattr(config, name, None), getattr(tokenizer, name)
        if told is not None and own is not None and told != own:
            raise ValueError(f"`denoiser` has `{name}`={told}, but the tokenizer's is {own}.")


def check_token_scheduler(scheduler: Any):
    lacking = [name for name in STEPPING if not hasattr(scheduler, name)]
    if lacking:
        raise ValueError(
            f"`scheduler` must be one for tokens, such as D3PMAbsorbingScheduler; {type(scheduler).__name__} has no "
            f"`{lacking[0]}`."
        )


def check_lengths(lengths: Any, longest: int):
    """Refuse what is no histogram of the lengths of texts, of which the longest has no more than `longest` tokens."""
    if lengths is None:
        return
    whole = isinstance(lengths, list | tuple) and all(type(count) is int and 0 <= count < 2**63 for count in lengths)
    if not whole or not any(lengths):
        text = repr(lengths)
        text = text if len(text) <= 80 else f"{text[:80]}..."
        raise ValueError(
            f"`lengths` must be None or a list with the number of texts of each length, not all of them 0, got {text}."
        )
    found = max(length for length, count in enumerate(lengths) if count)
    if found > longest:
        raise ValueError(f"`lengths` must not go beyond the {longest} tokens of a text of the denoiser, got {found}.")


def check_label_names(names: Any, num_classes: int | None):
    if names is None:
        return
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"`label_names` must be None or a list of strings, got {names!r}.")
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(f"`label_names` must be {num_classes}, one a label of the `denoiser`, got {names}.")
