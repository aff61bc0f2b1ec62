"""How a language model of transformers is read as a denoiser; it is written down in the model's own configuration.

The entry `diffusion` of a configuration survives saving, so a folder that transformers wrote says all that a denoiser
of its weights needs. transformers itself reads `is_causal`: with `False` it lets every token see every other.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers import PreTrainedConfig

from text_diffusers.common.validation import is_int, is_list, require, require_key

ATTENTIONS = ("bidirectional", "causal", "block")
ALIGNMENTS = ("aligned", "shifted")
BLOCK_STARTS = ("row", "prompt")
PASTS = ("block", "causal")


@dataclass
class Reading:
    """How the predictions of a language model are read.

    Args:
        attention: "bidirectional", every token sees every other; "causal", those before it; or "block", its own block
            and all blocks before it.
        block_length: tokens of a block, with "block" attention.
        past: how the blocks before are read, with "block" attention: "block", as blocks; or "causal", token by token,
            as autoregressive models were taught. Such a past knows no blocks, so that one model may write in blocks
            of any length; these begin behind the prompt, and stock transformers writes token by token with the same
            weights.
        blocks_from: "row", blocks are counted from the first token of a row; or "prompt", from the end of the prompt,
            whose first block is then filled up with padding on its left.
        alignment: "aligned", the state at a position predicts the token there; or "shifted", the state at position
            i - 1 predicts token i, as in models that were autoregressive. The first token is then read off its own
            state.
        mask_token_id: the token that stands for one that is to be written.
        end_token_ids: the tokens that end a text, each of which the model may write.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> from transformers import LlamaConfig
        >>> from text_diffusers.models.reading import Reading, read_config, write_reading
        >>> config = LlamaConfig()
        >>> write_reading(config, Reading(alignment="shifted", mask_token_id=811))
        >>> config.is_causal, read_config(config).alignment
        (False, 'shifted')
    """

    attention: str = "bidirectional"
    block_length: int | None = None
    past: str = "block"
    blocks_from: str = "row"
    alignment: str = "aligned"
    mask_token_id: int | None = None
    end_token_ids: list[int] = field(default_factory=list)

    def __post_init__(self):
        require_key("attention", self.attention, ATTENTIONS)
        require_key("alignment", self.alignment, ALIGNMENTS)
        require_key("blocks_from", self.blocks_from, BLOCK_STARTS)
        has_blocks = self.attention == "block"
        is_length = is_int(self.block_length, 1) if has_blocks else self.block_length is None
        limit = "an integer of at least 1" if has_blocks else 'None without `attention="block"`'
        require(is_length, "block_length", limit, self.block_length)
        require_key("past", self.past, PASTS)
        limit = '"block" without `attention="block"`'
        require(has_blocks or self.past == "block", "past", limit, self.past)

        is_mask = self.mask_token_id is None or is_int(self.mask_token_id, 0)
        require(is_mask, "mask_token_id", "None or an id", self.mask_token_id)
        ends = self.end_token_ids
        are_ends = is_list(ends) and all(is_int(end, 0) for end in ends)
        require(are_ends, "end_token_ids", "a list of ids", ends)

    @property
    def has_causal_past(self) -> bool:
        """Whether each block is written over a past that is read token by token."""
        return self.past == "causal"

    @property
    def begins_behind_prompt(self) -> bool:
        """Whether the first block that is written begins behind the prompt."""
        return self.has_causal_past or self.blocks_from == "prompt"

    @property
    def is_causal(self) -> bool:
        """Whether the tokens of a text see those before them only, where nobody asks for a block."""
        return self.attention == "causal" or self.has_causal_past


def read_config(config: Any) -> Reading | None:
    """The reading that a configuration of transformers holds; `None` if it says nothing of diffusion.

    Raises:
        ValueError: if it says something else than a `Reading` has.
    """
    entry = getattr(config, "diffusion", None)
    if entry is None:
        return None
    require(isinstance(entry, dict), "diffusion", "a dictionary in the configuration", entry)

    known = {part.name for part in fields(Reading)}
    unknown = sorted(entry.keys() - known)
    if unknown:
        raise ValueError(
            f"`diffusion` in the configuration must have no other keys than {sorted(known)}, got {unknown}."
        )
    reading = Reading(**entry)
    check_reading(config, reading)
    return reading


def check_reading(config: Any, reading: Reading):
    """Refuse a reading that contradicts the rest of its configuration."""
    is_causal = reading.is_causal
    limit = f'{is_causal} with `attention`="{reading.attention}" and `past`="{reading.past}"'
    require(getattr(config, "is_causal", is_causal) == is_causal, "is_causal", limit, not is_causal)

    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is None:
        return
    for name, ids in (
        ("mask_token_id", [reading.mask_token_id or 0]),
        ("end_token_ids", reading.end_token_ids),
    ):
        are_known = all(token < vocab_size for token in ids)
        require(are_known, name, f"below the {vocab_size} of the vocabulary", ids)
    if reading.mask_token_id in reading.end_token_ids:
        raise ValueError(
            f"`end_token_ids` must not hold the mask, {reading.mask_token_id}, got {reading.end_token_ids}."
        )


def write_reading(config: PreTrainedConfig, reading: Reading):
    """Write a reading into a configuration of transformers, in place."""
    entries: Any = config
    entries.diffusion = asdict(reading)
    # Read by transformers, which makes a causal mask, or none.
    entries.is_causal = reading.is_causal
