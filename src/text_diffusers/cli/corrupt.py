"""The forward process in a terminal: what noise makes of a text."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from tokenizers.decoders import WordPiece

from text_diffusers.kernels import kernels_of, make_scheduler
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline

KEPT, CHANGED, MASKED, SPARE = "kept", "changed", "masked", "spare"
SPARE_SIGN = " \N{WHITE SQUARE}"  # of a state of the noise that is no word
NoisyText = list[tuple[str, str]]


@torch.no_grad()
def corrupted_texts(
    pipe: Any, text: str, times: Sequence[float], kernel: str | None = None, seed: int = 0
) -> list[NoisyText]:
    """What a text looks like at each time, as pieces `(string, state)`; the strings together are the text.

    The same random numbers are used at all times, so what is lost at one time is lost at all later ones.

    Args:
        pipe: of tokens, or of word embeddings, whose noisy embeddings are rounded to words.
        times: between 0, clean, and 1, pure noise.
        kernel: a key of `KERNELS`, over the tokens of the pipeline; by default the pipeline's own noise.
        seed: of the noise.

    Raises:
        ValueError: if an argument does not fit the pipeline.
    """
    outside = [time for time in times if not 0 <= time <= 1]
    if outside:
        raise ValueError(
            f"`times` must be between 0, clean text, and 1, pure noise, got {outside[0]}."
        )
    if isinstance(pipe, TwoLevelVQDiffusionPipeline):
        raise ValueError(
            "`model` must write words: the noise of a two-level pipeline is over codes."
        )
    ids = pipe.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"`text` must hold at least one token, got {text!r}.")
    tokens, mask = torch.tensor([ids], device=pipe.device), pipe.tokenizer.mask_token_id
    if hasattr(pipe.scheduler, "alphas_cumprod"):
        if kernel is not None:
            raise ValueError(
                f"`kernel` must be left out: this pipeline noises embeddings, got {kernel!r}."
            )
        noisy = [noisy_words(pipe, tokens, time, seed) for time in times]
    else:
        scheduler = pipe.scheduler
        if kernel is not None:
            config = kernels_of(pipe)
            scheduler, mask = make_scheduler(kernel, config), config.mask_token_id
        if not hasattr(scheduler, "corruption"):
            raise ValueError(
                f"`kernel` must be given: {type(scheduler).__name__} has no noise of its own."
            )
        sources = [torch.Generator().manual_seed(seed) for _ in times]
        noisy = [
            scheduler.add_noise(tokens, float(time), generator=source)
            for time, source in zip(times, sources, strict=True)
        ]
    return [pieces(pipe.tokenizer, ids, row[0].tolist(), mask) for row in noisy]


def noisy_words(pipe: Any, tokens: torch.Tensor, time: float, seed: int) -> torch.Tensor:
    """(1, L) words that noisy embeddings are rounded to at a share of the clock."""
    scheduler, generator = pipe.scheduler, torch.Generator().manual_seed(seed)
    timestep = round(time * scheduler.config.num_train_timesteps) - 1
    if timestep < 0:
        return tokens
    clean = pipe.denoiser.embed(tokens)
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    noisy = scheduler.add_noise(clean, noise, torch.tensor([timestep], device=clean.device))
    return pipe.denoiser.round(noisy / scheduler.alphas_cumprod[timestep].sqrt().to(noisy))


def pieces(tokenizer: Any, clean: list[int], noisy: list[int], mask: int) -> NoisyText:
    """The noisy text, in which `mask` is the id of the mask, in runs of tokens of one state."""

    def state(pair: tuple[int, int]) -> str:
        before, after = pair
        if after == mask:
            return MASKED
        if after >= len(tokenizer):
            return SPARE
        return KEPT if after == before else CHANGED

    parts = []
    for name, run in groupby(zip(clean, noisy, strict=True), key=state):
        ids = [after for _, after in run]
        signs = {MASKED: f" {tokenizer.mask_token}", SPARE: SPARE_SIGN}
        text = signs[name] * len(ids) if name in signs else spaced(tokenizer, ids)
        parts.append((text if parts else text.lstrip(), name))
    return parts


def spaced(tokenizer: Any, ids: list[int]) -> str:
    """The text of tokens with the space that goes before it."""
    text = tokenizer.decode(ids)
    if not isinstance(
        getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None), WordPiece
    ):
        return text  # the space is in the token
    first = tokenizer.convert_ids_to_tokens(ids[:1])[0]
    return text.removeprefix("##") if first.startswith("##") else f" {text}"
