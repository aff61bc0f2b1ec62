"""Input handling of `TwoLevelVQDiffusionPipeline`: its arguments checked, plans, prompts and lengths of rows.

Shapes: C coarse codes of a row, P prompt tokens, E width of the prompt's states.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import (
    check_strings,
    is_list,
    is_number,
    require,
    require_int,
    require_key,
    require_number,
)
from text_diffusers.models.language_model import language_model_length
from text_diffusers.pipelines.text_batch import Row, encode_prompts, lay_out
from text_diffusers.pipelines.two_level_vq.levels import errors_of_level

# In the order of writing, and of the pairs (coarse, fine).
LEVEL_NAMES = ("coarse", "fine")

# Ways to write the fine codes: step by step, or all by one call.
FINE_CODES = ("diffusion", "one_shot")


@dataclass
class CodeInputs:
    """The arguments of a call that say what is written; see `TwoLevelVQDiffusionPipeline.__call__`.

    Raises:
        ValueError: if one is out of its range.

    Example:
        >>> from text_diffusers.pipelines.two_level_vq.code_inputs import CodeInputs
        >>> CodeInputs(num_inference_steps=(32, 0))
        Traceback (most recent call last):
        ValueError: At the fine level, `num_inference_steps` must be an integer of at least 1, got 0.
    """

    prompt: str | list[str] | None = None
    plan: Any = None
    max_new_tokens: int | None = None
    num_inference_steps: int | tuple[int, int] = (32, 8)
    guidance_scale: Any = 1.0
    fine_codes: str = "diffusion"
    temperature: float = 0.0
    top_p: float | None = None
    text_filter: Callable[[str], bool] | None = None
    max_attempts: int = 3
    num_return_sequences: int = 1

    def __post_init__(self):
        if self.prompt is not None:
            check_strings("prompt", self.prompt)

        # How much is written, and how often
        for name in ("max_attempts", "num_return_sequences"):
            require_int(name, getattr(self, name), 1)
        require_int("max_new_tokens", self.max_new_tokens, 1, optional=True)

        # With one level, the steps of the coarse one are those of none, but must be a number.
        for level, num_steps in self.steps.items():
            with errors_of_level(level):
                require_int("num_inference_steps", num_steps, 1)

        # How the decoder and the filter are asked
        require_key("fine_codes", self.fine_codes, FINE_CODES)
        require_number("temperature", self.temperature, 0)
        # A nucleus without any mass would hold no token.
        is_mass = is_number(self.top_p, 0, 1) and self.top_p != 0
        require(self.top_p is None or is_mass, "top_p", "None or a number in (0, 1]", self.top_p)
        is_filter = self.text_filter is None or callable(self.text_filter)
        require(is_filter, "text_filter", "a function of a text", self.text_filter)

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each level."""
        return by_level("num_inference_steps", self.num_inference_steps)

    @property
    def scales(self) -> dict[str, Any]:
        """Scale of guidance of each level, one or one a text."""
        return by_level("guidance_scale", self.guidance_scale)

    def refuse_two_levels(self):
        """Raise a `ValueError` if an argument is for a plan, which a pipeline with one level has not."""
        require(self.plan is None, "plan", "None: there is one level only", self.plan)
        is_pair = isinstance(self.guidance_scale, tuple)
        limit = "a number or a list with one a text: there is one level only"
        require(not is_pair, "guidance_scale", limit, self.guidance_scale)

    def num_texts(self, num_prompts: int, num_plans: int) -> int:
        """The number of texts before repeats, from arguments that hold one or as many.

        Raises:
            ValueError: if the prompts and plans disagree.
        """
        lists = [scale for scale in self.scales.values() if is_list(scale)]
        # The longest argument says how many texts there are; single values are for all of them.
        count = max(num_prompts, num_plans, *map(len, lists))
        for name, size in (("prompt", num_prompts), ("plan", num_plans)):
            if size not in (1, count):
                raise ValueError(f"`{name}` must be one or {count}, one a text, got {size}.")
        return count


def by_level(name: str, value: Any) -> dict[str, Any]:
    """The value of an argument for each level: a tuple is a pair (coarse, fine), anything else is for both.

    Example:
        >>> from text_diffusers.pipelines.two_level_vq.code_inputs import by_level
        >>> by_level("guidance_scale", (2.0, [1.0, 3.0]))
        {'coarse': 2.0, 'fine': [1.0, 3.0]}
    """
    # A list holds one value a text, so only a tuple is a pair of levels.
    pair = value if isinstance(value, tuple) else (value, value)
    limit = "one value for both levels or a pair (coarse, fine)"
    require(len(pair) == len(LEVEL_NAMES), name, limit, value)
    return dict(zip(LEVEL_NAMES, pair, strict=True))


def plan_rows(plan: Any, mask_id: int, device: torch.device) -> Tensor:
    """(texts, C) coarse codes, with the mask where they are to be written.

    Raises:
        ValueError: if `plan` has another shape, or ids that are no codes.
    """
    try:
        codes = torch.as_tensor(plan)
    except (TypeError, ValueError, RuntimeError):
        codes = torch.zeros(0)  # such as rows of different lengths

    # Booleans would pass for the codes 0 and 1.
    is_table = codes.ndim == 2 and codes.numel() > 0
    is_integer = not codes.is_floating_point() and codes.dtype != torch.bool
    require(is_table and is_integer, "plan", "(texts, codes) integers, as many codes a text", plan)

    # What is to be written may be marked by -1, which does not depend on the number of codes.
    codes = codes.to(device, torch.long)
    codes = codes.masked_fill(codes == -1, mask_id)
    low = int(codes.min())
    high = int(codes.max())
    if low < 0 or high > mask_id:
        raise ValueError(
            f"`plan` must hold codes from 0 to {mask_id - 1}, or -1 or {mask_id} where they are to be written, "
            f"got {low} to {high}."
        )
    return codes


def longest_text(autoencoder: Any, limit: int) -> int:
    """The most tokens whose full row has no more than `limit`; 0 if there are none."""
    # Full rows only grow with the text, so the first that fits is the longest.
    for length in range(limit, 0, -1):
        if autoencoder.full_length(length) <= limit:
            return length
    return 0


def text_lengths(
    autoencoder: Any, limit: int, max_new_tokens: int | None, plan: Tensor | None
) -> tuple[int, int]:
    """Tokens of the longest text, and of the row that it is written in.

    Args:
        limit: the longest text that can be written.
        plan: (texts, C) coarse codes, which fix the length of a row.

    Raises:
        ValueError: if there is no such row.
    """
    # Without a plan, the length of the text decides on that of the row.
    if plan is None:
        max_new_tokens = max_new_tokens or limit
        if max_new_tokens > limit:
            raise ValueError(
                f"`max_new_tokens` must be at most {limit}, what the denoisers can write, got {max_new_tokens}."
            )
        return max_new_tokens, autoencoder.full_length(max_new_tokens)

    # With a plan, its number of codes is the length of the row.
    num_codes = plan.shape[1]
    length = num_codes * autoencoder.code_length
    if max_new_tokens is not None and autoencoder.full_length(max_new_tokens) != length:
        needed = autoencoder.full_length(max_new_tokens) // autoencoder.code_length
        raise ValueError(
            f"`plan` must have {needed} codes a text for `max_new_tokens`={max_new_tokens}, got {num_codes}."
        )
    if autoencoder.full_length(length) != length or length > limit:
        raise ValueError(
            f"`plan` must stand for whole rows of the autoencoder, of at most {limit} tokens, got {num_codes} codes "
            f"of {autoencoder.code_length} tokens each."
        )
    return max_new_tokens or length, length


def prompt_ids(tokenizer: Any, prompt: str | list[str] | None) -> list[Row]:
    """Token ids of each prompt, without a start, as a prompt may come from within a text; one of none without any."""
    prompts = [prompt] if isinstance(prompt, str) else prompt or [""]
    # `encode_prompts` puts the start token before each prompt.
    num_starts = len(start_ids(tokenizer))
    return [ids[num_starts:] for ids in encode_prompts(tokenizer, prompts)]


def read_prompts(
    encoder: Any, prompts: list[Row], keep_last: bool, *, pad_token_id: int, device: torch.device
) -> dict[str, Tensor]:
    """The condition that prompts are: `prompt_states` (texts, P, E) and `prompt_mask` (texts, P); empty without any.

    An encoder whose config has no limit, such as that of T5, takes any length.

    Args:
        keep_last: of a prompt that is too long, read the last tokens.

    Raises:
        ValueError: if a prompt is longer than the encoder takes.
    """
    longest = max(len(ids) for ids in prompts)
    if not longest:
        return {}

    # Encoders of ours have `max_length`, those of transformers a number of positions.
    limit = getattr(encoder.config, "max_length", None)
    if limit is None and hasattr(encoder.config, "max_position_embeddings"):
        limit = language_model_length(encoder)
    if limit is not None and longest > limit:
        if not keep_last:
            raise ValueError(
                f"`prompt` must fit into the prompt encoder's {limit} tokens, got {longest}: shorten it."
            )
        prompts = [ids[-limit:] for ids in prompts]

    # An empty prompt is none: its states are never looked at, and not computed.
    batch = lay_out(prompts, pad_token_id, device)
    mask = batch.attention_mask
    has_prompt = mask.any(dim=1)
    output = encoder(input_ids=batch.tokens[has_prompt], attention_mask=mask[has_prompt])
    encoded = output.last_hidden_state
    states = encoded.new_zeros(len(mask), *encoded.shape[1:])  # (texts, P, E)
    states[has_prompt] = encoded
    return {"prompt_states": states, "prompt_mask": mask}
