"""The forward process as text: noisy tokens in pieces that say whether they were kept, changed or masked."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from tokenizers.decoders import WordPiece
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.kernels import kernels_of, make_scheduler

# States of a token, in comparison with the clean text
KEPT = "kept"
CHANGED = "changed"
MASKED = "masked"
SPARE = "spare"
SPARE_SIGN = " \N{WHITE SQUARE}"  # of a state of the noise that is no word

# Pieces `(words, state)`, which together are a text
NoisyText = list[tuple[str, str]]


@torch.no_grad()
def corrupted_texts(
    pipe: Any, text: str, times: Sequence[float], kernel: str | None = None, seed: int = 0
) -> list[NoisyText]:
    """A text at each time of the forward process, as pieces `(words, state)`, whose words together are the text.

    The same random numbers are used at all times, so what is lost at one time is lost at all later ones.

    Args:
        pipe: of tokens, or of word embeddings, whose noisy embeddings are rounded to words.
        times: between 0, clean, and 1, pure noise.
        kernel: a key of `KERNELS`, over the tokens of the pipeline; by default the pipeline's own noise.
        seed: of the noise.

    Raises:
        ValueError: if an argument does not fit the pipeline.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.cli.noisy_text import corrupted_texts
        >>> pipe = TextDiffusionPipeline.from_pretrained("chat-and-novels")
        >>> corrupted_texts(pipe, "I think", times=[0, 1])
        [[('I think', 'kept')], [('[MASK] [MASK]', 'masked')]]
    """
    # 1. Check the inputs
    outside = [time for time in times if not 0 <= time <= 1]
    if outside:
        raise ValueError(
            f"`times` must be between 0, clean text, and 1, pure noise, got {outside[0]}."
        )

    # Codes are no words that could be shown, and embeddings have one kind of noise only.
    if pipe.kind == "codes":
        raise ValueError(
            "`model` must write words: the noise of a two-level pipeline is over codes."
        )
    if pipe.kind == "latents":
        raise ValueError(
            f"`model` must write words: the noise of a {type(pipe).__name__} is over latents."
        )
    if pipe.kind == "embeddings" and kernel is not None:
        raise ValueError(
            f"`kernel` must be left out: this pipeline noises embeddings, got {kernel!r}."
        )
    (token_ids,) = encode_plain(pipe.tokenizer, [text])
    if not token_ids:
        raise ValueError(f"`text` must hold at least one token, got {text!r}.")

    # 2. Choose the noise
    scheduler = pipe.scheduler
    mask_token_id = pipe.tokenizer.mask_token_id
    if kernel is not None:
        # A kernel may put its mask behind all tokens, where the tokenizer has none.
        config = kernels_of(pipe)
        scheduler = make_scheduler(kernel, config)
        mask_token_id = config.mask_token_id
    elif pipe.kind == "tokens" and not hasattr(scheduler, "corruption"):
        raise ValueError(
            f"`kernel` must be given: {type(scheduler).__name__} has no noise of its own."
        )

    # 3. Add it, at each time from the same seed
    tokens = torch.tensor([token_ids], device=pipe.device)  # (1, L)
    noisy_texts = []
    for time in times:
        # Drawn on the CPU, so that a seed shows the same noise on every device.
        generator = torch.Generator().manual_seed(seed)
        if pipe.kind == "embeddings":
            noisy = noisy_words(pipe, tokens, time, generator)
        else:
            noisy = scheduler.add_noise(tokens, float(time), generator=generator)
        noisy_texts.append(pieces(pipe.tokenizer, token_ids, noisy[0].tolist(), mask_token_id))
    return noisy_texts


def noisy_words(pipe: Any, tokens: Tensor, time: float, generator: torch.Generator) -> Tensor:
    """(1, L) words that noisy embeddings are rounded to at a share of the clock."""
    scheduler = pipe.scheduler

    # Timesteps count from 0, the first with noise; the clean text is before it.
    timestep = round(time * scheduler.config.num_train_timesteps) - 1
    if timestep < 0:
        return tokens

    # Rounding compares embeddings at the scale of clean ones.
    clean = pipe.denoiser.embed(tokens)  # (1, L, E)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = scheduler.add_noise(clean, noise, torch.tensor([timestep], device=clean.device))
    return pipe.denoiser.round(noisy / scheduler.alphas_cumprod[timestep].sqrt().to(noisy))


def pieces(tokenizer: Any, clean: list[int], noisy: list[int], mask_token_id: int) -> NoisyText:
    """The noisy text in runs of tokens of one state."""

    def state_of(pair: tuple[int, int]) -> str:
        clean_id, noisy_id = pair
        if noisy_id == mask_token_id:
            return MASKED
        if noisy_id >= len(tokenizer):  # such as a bit code that is of no word
            return SPARE
        return KEPT if noisy_id == clean_id else CHANGED

    # A run of masks, or of spare states, is shown sign by sign; other runs are decoded at once.
    signs = {MASKED: f" {tokenizer.mask_token}", SPARE: SPARE_SIGN}
    parts: NoisyText = []
    for state, run in groupby(zip(clean, noisy, strict=True), key=state_of):
        ids = [noisy_id for _, noisy_id in run]
        words = signs[state] * len(ids) if state in signs else with_space(tokenizer, ids)

        # Nothing stands before the first piece, so no space does.
        parts.append((words if parts else words.lstrip(), state))
    return parts


def with_space(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens with the space that goes before it."""
    text = tokenizer.decode(ids)

    # WordPiece has no spaces in its tokens; "##" marks one that continues a word.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(getattr(backend, "decoder", None), WordPiece):
        return text  # the space is in the token
    first = tokenizer.convert_ids_to_tokens(ids[:1])[0]
    return text.removeprefix("##") if first.startswith("##") else f" {text}"
