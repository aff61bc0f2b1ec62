"""Texts that are being written on codes: their plans, prompts and lengths, and whether a request for them fits.

Shapes: B rows, L tokens of a row, F fine and C coarse codes of a row, P prompt tokens, E width of the prompt's states.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.randomness import row_seeds
from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import check_strings, is_list, is_number
from text_diffusers.models.language_model import masked_lm_length
from text_diffusers.pipelines.text_batch import encode_prompts, lay_out
from text_diffusers.pipelines.two_level_vq.levels import CodeCanvas, CodeCondition

FINE_CODES = ("diffusion", "one_shot")


@dataclass
class Drafts:
    """The texts of a call: what each is written on and from, and what has become of it.

    Attributes:
        prompts: B lists of token ids, which may be empty.
        coarse, fine: canvases as they are before anything is written; `coarse` is `None` with one level.
        plan: (B, C) coarse codes; `None` with one level.
        fine_codes: (B, F).
        tokens: (B, L) without what the row has beyond the longest text that was asked for.
        texts: B strings.
        accepted: whether each text may be returned as it is.
    """

    prompts: list[list[int]]
    coarse: CodeCanvas | None
    fine: CodeCanvas
    plan: Tensor | None
    fine_codes: Tensor
    tokens: Tensor
    texts: list[str]
    accepted: list[bool]

    def refused(self) -> list[int]:
        """The rows whose text is not accepted, as none is before it is written."""
        return [row for row, accepted in enumerate(self.accepted) if not accepted]


def in_three(generator: torch.Generator) -> list[torch.Generator]:
    """Generators of a plan, of fine codes and of tokens, so that none of them depends on what the others draw."""
    return [torch.Generator().manual_seed(seed) for seed in row_seeds(generator, 3)]


def plan_rows(plan: Any, mask_id: int, device: torch.device) -> Tensor:
    """(texts, C) coarse codes, with the mask where they are to be written.

    Raises:
        ValueError: if `plan` has another shape, or ids that are no codes.
    """
    try:
        codes = torch.as_tensor(plan)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`plan` must be (texts, codes) integers, as many codes a text, got {plan!r}.") from error
    if codes.ndim != 2 or not codes.numel() or codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"`plan` must be (texts, codes) integers, got {tuple(codes.shape)} of {codes.dtype}.")
    codes = codes.to(device, torch.long)
    codes = codes.masked_fill(codes == -1, mask_id)
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high > mask_id:
        raise ValueError(
            f"`plan` must hold codes from 0 to {mask_id - 1}, or -1 or {mask_id} where they are to be written, "
            f"got {low} to {high}."
        )
    return codes


def texts_asked_for(sizes: dict[str, int], scales: dict[str, Any]) -> int:
    """The number of texts before repeats, from arguments that hold one or as many, and scales of guidance.

    Raises:
        ValueError: if the arguments disagree.
    """
    count = max([*sizes.values(), *(len(scale) for scale in scales.values() if is_list(scale))])
    for name, size in sizes.items():
        if size not in (1, count):
            raise ValueError(f"`{name}` must be one or {count}, one a text, got {size}.")
    return count


def longest_text(autoencoder: Any, limit: int) -> int:
    """The most tokens whose full row has no more than `limit`; 0 if there are none."""
    return next((length for length in range(limit, 0, -1) if autoencoder.full_length(length) <= limit), 0)


def text_lengths(autoencoder: Any, limit: int, max_new_tokens: int | None, plan_length: int | None) -> tuple[int, int]:
    """Tokens of the longest text, and of the row that it is written in, at most `limit`.

    Raises:
        ValueError: if there is no such row.
    """
    if plan_length is None:
        longest = longest_text(autoencoder, limit)
        max_new_tokens = max_new_tokens or longest
        if max_new_tokens > longest:
            raise ValueError(
                f"`max_new_tokens` must be at most {longest}, what the denoisers can write, got {max_new_tokens}."
            )
        return max_new_tokens, autoencoder.full_length(max_new_tokens)
    length = plan_length * autoencoder.code_length
    if max_new_tokens is not None and autoencoder.full_length(max_new_tokens) != length:
        needed = autoencoder.full_length(max_new_tokens) // autoencoder.code_length
        raise ValueError(
            f"`plan` must have {needed} codes a text for `max_new_tokens`={max_new_tokens}, got {plan_length}."
        )
    if autoencoder.full_length(length) != length or length > limit:
        raise ValueError(
            f"`plan` must stand for whole rows of the autoencoder, of at most {limit} tokens, got {plan_length} codes "
            f"of {autoencoder.code_length} tokens each."
        )
    return max_new_tokens or length, length


def prompt_ids(tokenizer: Any, prompt: str | list[str] | None) -> list[list[int]]:
    """Token ids of each prompt, without a start, as a prompt may come from within a text; one of none without any."""
    prompts = [prompt] if isinstance(prompt, str) else prompt or [""]
    start = len(start_ids(tokenizer))
    return [ids[start:] for ids in encode_prompts(tokenizer, prompts)]


def read_prompts(
    encoder: Any, prompts: list[list[int]], keep_last: bool, pad_token_id: int, device: torch.device
) -> CodeCondition:
    """What the encoder makes of prompts; of one that is too long it reads the last tokens if these are to be kept.

    An encoder whose config has no limit, such as that of T5, takes any length.

    Raises:
        ValueError: if a prompt is longer than it takes.
    """
    longest = max(len(ids) for ids in prompts)
    if not longest:
        return CodeCondition()
    limit = getattr(encoder.config, "max_length", None)
    if limit is None and hasattr(encoder.config, "max_position_embeddings"):
        limit = masked_lm_length(encoder)
    if limit is not None and longest > limit and not keep_last:
        raise ValueError(f"`prompt` must fit into the prompt encoder's {limit} tokens, got {longest}: shorten it.")
    rows: list[list[int | None]] = [[*row[-(limit or longest) :]] for row in prompts]
    ids, _, real = lay_out(rows, pad_token_id, device)
    some = real.any(dim=1)
    read = encoder(input_ids=ids[some], attention_mask=real[some]).last_hidden_state
    states = read.new_zeros(len(ids), *read.shape[1:])
    states[some] = read
    return CodeCondition(prompt_states=states, prompt_mask=real)


def check_request(
    counts: dict[str, int],
    prompt: Any,
    max_new_tokens: int | None,
    fine_codes: str,
    temperature: float,
    top_p: float | None,
    text_filter: Any,
):
    """Whether the arguments of a call make sense by themselves; `counts` are those of at least 1.

    Raises:
        ValueError: if one does not.
    """
    if max_new_tokens is not None:
        counts = counts | {"max_new_tokens": max_new_tokens}
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1, got {value!r}.")
    if prompt is not None:
        check_strings("prompt", prompt)
    if fine_codes not in FINE_CODES:
        raise ValueError(f"`fine_codes` must be one of {FINE_CODES}, got {fine_codes!r}.")
    if not is_number(temperature) or not 0 <= temperature < float("inf"):
        raise ValueError(f"`temperature` must be a finite number of at least 0, got {temperature!r}.")
    if top_p is not None and (not is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"`top_p` must be None or a number in (0, 1], got {top_p!r}.")
    if text_filter is not None and not callable(text_filter):
        raise ValueError(f"`text_filter` must be a function of a text, got {text_filter!r}.")
