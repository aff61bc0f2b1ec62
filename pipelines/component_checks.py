"""Whether the parts of a pipeline fit each other: perhaps no one program put together what is in a saved folder."""

from typing import Any

from text_diffusers.common.token_ids import end_ids, num_ids, start_ids
from text_diffusers.common.validation import is_int, is_list, require
from text_diffusers.models.language_model import (
    is_language_model,
    language_model_length,
    reading_of,
)
from text_diffusers.pipelines.scheduler_adapters import as_token_scheduler

# Called on a scheduler of tokens, or on the adapter of one of diffusers' own
SCHEDULER_METHODS = ("set_timesteps", "prior", "select", "step")


def longest_row(denoiser: Any) -> int:
    """The longest row that a denoiser can read, in tokens."""
    # Denoisers from elsewhere may name it as transformers does.
    if is_language_model(denoiser):
        return language_model_length(denoiser)
    return getattr(denoiser.config, "max_length", None) or denoiser.config.max_position_embeddings


def check_text_components(
    tokenizer: Any, denoiser: Any, max_length: int, lengths: Any, label_names: Any
):
    """Refuse a tokenizer, a denoiser, and the settings of a pipeline that do not fit each other.

    Args:
        max_length: the longest row in tokens.
        lengths: `lengths[n]` is the number of training texts with n tokens.
        label_names: a name for each class label.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError("`tokenizer` must have a mask token.")
    check_words(tokenizer, "denoiser", denoiser.config.vocab_size)

    # Denoisers keep the ids that they were trained with in their configuration.
    config = reading_of(denoiser) if is_language_model(denoiser) else denoiser.config
    check_special_ids(tokenizer, config)
    num_classes = getattr(denoiser.config, "num_classes", None)
    # The labels of a language model are those that have a name.
    if is_language_model(denoiser):
        num_classes = len(label_names) if is_list(label_names) else None
    check_label_names(label_names, num_classes)

    # Texts are counted without their start and end, which a row has room for.
    num_ends = len(start_ids(tokenizer)) + len(end_ids(tokenizer))
    check_lengths(lengths, max_length - num_ends)


def check_token_components(
    tokenizer: Any, denoiser: Any, scheduler: Any, lengths: Any, label_names: Any
):
    """Refuse the components of a pipeline over tokens if they do not fit each other."""
    check_text_components(tokenizer, denoiser, longest_row(denoiser), lengths, label_names)
    # The masks of the scheduler must be those that the tokenizer decodes.
    scheduled_mask = scheduler.config.get("mask_token_id")
    if scheduled_mask is not None and scheduled_mask != tokenizer.mask_token_id:
        raise ValueError(
            f"`scheduler` has `mask_token_id`={scheduled_mask}, but the tokenizer's is {tokenizer.mask_token_id}."
        )

    # Every id that noise can draw needs an embedding.
    vocab_size = denoiser.config.vocab_size
    noise_size = scheduler.config.get("vocab_size") or 0
    if noise_size > vocab_size:
        raise ValueError(
            f"`scheduler` has `vocab_size`={noise_size}, but the denoiser's is {vocab_size}."
        )

    # Clusters are told from tokens by their ids.
    first_cluster_id = getattr(scheduler, "first_cluster_id", None)
    if first_cluster_id is not None and first_cluster_id < num_ids(tokenizer):
        raise ValueError(
            f"`scheduler` has clusters from id {first_cluster_id} on, but the tokenizer has ids up to "
            f"{num_ids(tokenizer) - 1}."
        )

    token_scheduler = as_token_scheduler(scheduler, tokenizer)
    check_token_scheduler(token_scheduler)
    corruption = getattr(token_scheduler, "corruption", None)
    if is_language_model(denoiser) and corruption in ("uniform", "hierarchical"):
        raise ValueError(
            "`scheduler` must be of an absorbing kernel for a language model, which fills in masks only."
        )


def check_words(tokenizer: Any, name: str, vocab_size: int):
    """Refuse a tokenizer with ids that a component does not know, or without a limit.

    Args:
        name: of the component, such as "denoiser".
        vocab_size: ids that it knows.

    Example:
        >>> from types import SimpleNamespace
        >>> from text_diffusers.pipelines.component_checks import check_words
        >>> check_words(SimpleNamespace(model_max_length=None), "denoiser", 300)
        Traceback (most recent call last):
        ValueError: `tokenizer` must have a number as `model_max_length`, got None.
    """
    limit = tokenizer.model_max_length
    is_limit = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if not is_limit:
        raise ValueError(f"`tokenizer` must have a number as `model_max_length`, got {limit!r}.")

    # Ids may have gaps, so that the last one lies beyond the number of tokens.
    num_words = len(tokenizer)
    last_id = num_ids(tokenizer) - 1
    if max(num_words, last_id + 1) > vocab_size:
        id_range = f"{num_words} tokens"
        if last_id >= num_words:
            id_range += f" with ids up to {last_id}"
        raise ValueError(
            f"`{name}` has `vocab_size`={vocab_size}, but the tokenizer has {id_range}."
        )


def check_special_ids(tokenizer: Any, config: Any):
    """Refuse a denoiser whose configuration names other special tokens than the tokenizer."""
    for name in ("mask_token_id", "pad_token_id"):
        configured_id = getattr(config, name, None)
        token_id = getattr(tokenizer, name)
        if configured_id is not None and token_id is not None and configured_id != token_id:
            raise ValueError(
                f"`denoiser` has `{name}`={configured_id}, but the tokenizer's is {token_id}."
            )


def check_token_scheduler(scheduler: Any):
    """Refuse a scheduler that lacks a part of what pipelines over tokens call."""
    for method in SCHEDULER_METHODS:
        if not hasattr(scheduler, method):
            raise ValueError(
                f"`scheduler` must be one for tokens, such as D3PMAbsorbingScheduler; {type(scheduler).__name__} has "
                f"no `{method}`."
            )


def check_lengths(lengths: Any, longest: int):
    """Refuse what is no histogram of the lengths of texts.

    Args:
        lengths: `lengths[n]` is the number of texts with n tokens; `None` is none.
        longest: tokens of the longest text that can be written.
    """
    if lengths is None:
        return
    is_histogram = is_list(lengths) and all(is_count(count) for count in lengths) and any(lengths)
    limit = "None or a list with the number of texts of each length, not all of them 0"
    require(is_histogram, "lengths", limit, lengths)

    # A histogram may end in zeros, so only lengths that occur count.
    last_length = max(length for length, count in enumerate(lengths) if count)
    if last_length > longest:
        raise ValueError(
            f"`lengths` must not go beyond the {longest} tokens of a text of the denoiser, got {last_length}."
        )


def is_count(value: Any) -> bool:
    """Whether `value` is a number of texts, which a tensor of integers can hold."""
    return is_int(value, 0) and value < 2**63


def check_label_names(names: Any, num_classes: int | None):
    """Refuse names of class labels that are not one a label, each of them once."""
    if names is None:
        return
    are_strings = is_list(names) and all(isinstance(name, str) for name in names)
    require(are_strings, "label_names", "None or a list of strings", names)

    # A name asks for one label, so none may occur twice.
    if len(names) != num_classes or len(set(names)) != len(names):
        raise ValueError(
            f"`label_names` must be {num_classes}, one a label of the `denoiser`, got {names}."
        )
