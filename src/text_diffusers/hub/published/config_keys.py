"""Reading of a published configuration in which every key must be understood.

A key that is passed over may change the network, and a default that fills in for a missing one may be another than its
authors'. So a family says which keys it reads, which ones must have a certain value, and which ones do not matter.
"""

from collections.abc import Collection, Mapping
from typing import Any

from text_diffusers.common.validation import is_int, is_list, is_number, require

# A value that may not be left out.
NEEDED: Any = object()

# Entries of every configuration of transformers, now or in earlier versions, that say nothing of the network.
INERT_KEYS = frozenset(
    {
        "_attn_implementation_autoset",
        "_from_model_config",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "id2label",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "prefix",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
        # of the generation of text from left to right
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)

# Entries of every configuration of transformers that would make another network.
INERT_VALUES: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
}


class ConfigReader:
    """Reads a configuration key by key, and knows which keys nobody has read.

    Args:
        family: its name for people, such as "LLaDA".
        config: the parsed `config.json`.
        values: the values that a key may have, for keys which make another network otherwise; one that is missing has
            one of these by its authors' default.
        ignored: keys that do not matter for what the network computes.

    Raises:
        ValueError: if a key of `values` has another value.

    Example:
        >>> reader = ConfigReader("LLaDA", {"n_layers": 2, "alibi": False}, values={"alibi": (False,)})
        >>> reader.integer("n_layers")
        2
        >>> reader.finish()
    """

    def __init__(
        self,
        family: str,
        config: Mapping[str, Any],
        values: Mapping[str, tuple[Any, ...]] | None = None,
        ignored: Collection[str] = (),
    ):
        self.family = family
        self.config = config
        self._understood = {*INERT_KEYS, *ignored}
        for key, accepted in {**INERT_VALUES, **(values or {})}.items():
            self.one_of(key, accepted, default=accepted[0])

    def one_of(self, key: str, accepted: tuple[Any, ...], default: Any = NEEDED) -> Any:
        """The value of a key, which must be one of `accepted`."""
        value = self._value(key, default)
        # To Python `False` is 0 and 1 is `True`, and they do not mean the same in a configuration.
        is_accepted = any(type(value) is type(other) and value == other for other in accepted)
        limit = " or ".join(repr(other) for other in accepted)
        self._require(is_accepted, key, limit, value)
        return value

    def integer(self, key: str, low: int = 1, default: Any = NEEDED) -> int:
        value = self._value(key, default)
        self._require(is_int(value, low), key, f"an integer of at least {low}", value)
        return value

    def number(self, key: str, default: Any = NEEDED) -> float:
        """A positive number."""
        value = self._value(key, default)
        self._require(is_number(value) and value > 0, key, "a number above 0", value)
        return float(value)

    def flag(self, key: str, default: Any = NEEDED) -> bool:
        value = self._value(key, default)
        self._require(isinstance(value, bool), key, "true or false", value)
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._value(key, NEEDED)
        self._require(isinstance(value, dict), key, "an object", value)
        return value

    def strings(self, key: str) -> list[str]:
        value = self._value(key, NEEDED)
        are_strings = is_list(value) and all(isinstance(entry, str) for entry in value)
        self._require(are_strings, key, "a list of strings", value)
        return list(value)

    def token_id(self, key: str, vocab_size: int) -> int | None:
        """An id of the vocabulary; `None` where there is no such key."""
        value = self._value(key, None)
        is_id = value is None or (is_int(value, 0) and value < vocab_size)
        self._require(is_id, key, f"None or an id below {vocab_size}", value)
        return value

    def token_ids(self, key: str, vocab_size: int) -> list[int]:
        """Ids of the vocabulary: those of a list, or the only one."""
        value = self._value(key, None)
        ids = list(value) if is_list(value) else [] if value is None else [value]
        are_ids = all(is_int(token, 0) and token < vocab_size for token in ids)
        self._require(are_ids, key, f"None or ids below {vocab_size}", value)
        return ids

    def has(self, key: str) -> bool:
        """Whether the key is there, and not null."""
        return self.config.get(key) is not None

    def finish(self):
        """Refuse keys that were not read.

        Raises:
            ValueError: if there are any, with their names.
        """
        unknown = sorted(map(str, self.config.keys() - self._understood))
        if unknown:
            raise ValueError(
                f"The configuration of {self.family} must have no keys that are not understood here, since they may "
                f"change what the network computes, got {unknown}."
            )

    def _value(self, key: str, default: Any) -> Any:
        self._understood.add(key)
        if key in self.config:
            return self.config[key]
        if default is NEEDED:
            raise ValueError(f"The configuration of {self.family} must have `{key}`, but lacks it.")
        return default

    def _require(self, condition: bool, key: str, limit: str, value: Any):
        require(condition, key, f"{limit} in the configuration of {self.family}", value)
