"""The pipeline behind the page: its kind and samplers, and how much it may be asked to write."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from text_diffusers.common.plain_text import encode_plain, holds_mask
from text_diffusers.models.language_model import is_language_model, reading_of
from text_diffusers.pipelines.calls.labels import label_frames, shown_labels
from text_diffusers.pipelines.calls.steps import defaults_in_force
from text_diffusers.pipelines.chat_inputs import encode_messages
from text_diffusers.pipelines.latent_diffusion.latent_components import reads_prompts
from text_diffusers.samplers import (
    Sampler,
    current_sampler,
    own_sampler,
    samplers_for,
    with_sampler,
)
from text_diffusers.space.limits import Limits, Refusal

# A start and an end token stand around a text.
ENDS_AROUND = 2

# Letters that tell what a model writes, and how many tokens are asked about it
CYRILLIC = re.compile("[А-Яа-яЁё]")
LATIN = re.compile("[A-Za-z]")
TOKENS_READ = 4000

# The pipeline's scheduler as it is, where it is none of the named samplers
OWN = "own"


@dataclass
class Served:
    """A pipeline with the title and the limits of its page.

    Raises:
        ValueError: if the pipeline only writes from a source, as those of paraphrases do.
    """

    pipe: Any
    title: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self):
        # Better at the start of the Space than at the first request
        if "prompt" not in getattr(self.pipe, "accepted_inputs", ()):
            raise ValueError(
                "`pipe` must write without a source, over tokens, word embeddings, codes or latents, got "
                f"{type(self.pipe).__name__}."
            )

    @property
    def kind(self) -> str:
        """What the model writes: "tokens", "blocks" of them, "embeddings", "codes" or "latents"."""
        # Blocks are predicted one at a time, which rules out what needs the whole text.
        return self.pipe.kind if self.pipe.block_length is None else "blocks"

    @property
    def guides_by_prompt(self) -> bool:
        """Whether guidance can strengthen the beginning of a text."""
        # Embeddings are guided by a source instead; without its beginning, a text would stand in other blocks.
        return self.kind == "tokens" or self.guides_by_masks

    @cached_property  # which many tokens are read for
    def writes_russian(self) -> bool:
        """Whether more tokens have Cyrillic letters than Latin ones; of a large vocabulary some are read."""
        tokenizer = self.pipe.tokenizer
        stride = max(1, len(tokenizer) // TOKENS_READ)
        texts = tokenizer.batch_decode([[token] for token in range(0, len(tokenizer), stride)])
        cyrillic = sum(CYRILLIC.search(text) is not None for text in texts)
        return cyrillic > sum(LATIN.search(text) is not None for text in texts)

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether guidance can lead away from another beginning."""
        return self.kind == "tokens"

    @property
    def takes_words(self) -> bool:
        """Whether a text can be held to words, which needs all of it at once."""
        # Over a causal past a call with such a control writes all of a text in one block.
        return self.kind != "blocks" or self.pipe.has_causal_past

    @property
    def chats(self) -> bool:
        """Whether the model can be talked to."""
        takes_messages = "messages" in self.pipe.accepted_inputs
        return takes_messages and bool(getattr(self.pipe.tokenizer, "chat_template", None))

    @property
    def guides_by_masks(self) -> bool:
        """Whether guidance can compare the beginning of a text with masks in its place."""
        # To a language model a text without its beginning is another text; masks keep the places.
        return self.kind in ("tokens", "blocks") and is_language_model(self.pipe.denoiser)

    @property
    def takes_steps(self) -> bool:
        """Whether the model writes step by step, which a Gaussian prior of latents does not."""
        return bool(self.pipe.scheduler_names)

    @property
    def takes_source(self) -> bool:
        """Whether a model over latents can be given a text to write from."""
        if self.kind != "latents":
            return False
        return reads_prompts(self.pipe.denoiser) or self.pipe.autoencoder.config.reads_source

    @property
    def more_ends(self) -> list[int]:
        """Tokens that end a text beside the tokenizer's own."""
        denoiser = self.pipe.denoiser
        return reading_of(denoiser).end_token_ids if is_language_model(denoiser) else []

    @property
    def takes_blocks(self) -> bool:
        """Whether a visitor may choose how many tokens are written together."""
        scheduler = self.pipe.scheduler if self.kind == "tokens" else None
        return getattr(scheduler, "corruption", None) == "absorbing"

    @cached_property  # asked for at every request
    def samplers(self) -> dict[str, Sampler]:
        named = samplers_for(self.pipe)
        if not named or current_sampler(self.pipe) is not None:
            return named
        # Published models have settings of their own, which no name stands for.
        return {OWN: own_sampler(self.pipe, self.pipe.scheduler_names[-1]), **named}

    @property
    def sampler(self) -> str:
        """The name of the pipeline's own sampler."""
        # A model without steps has none.
        return current_sampler(self.pipe) or next(iter(self.samplers), OWN)

    @property
    def takes_window(self) -> bool:
        """Whether a sampler can be kept to the first open tokens."""
        return any("window" in sampler.settings for sampler in self.samplers.values())

    @property
    def own_window(self) -> int | None:
        """The window of the pipeline's own scheduler, if it has one."""
        return getattr(self.pipe, self.pipe.scheduler_names[-1]).config.get("window")

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings with which the pipeline writes where nobody asks for others."""
        return self.defaults_for({})

    def defaults_for(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a call with the arguments `given`."""
        return defaults_in_force(self.pipe, given)

    @property
    def own_temperature(self) -> float | None:
        """The temperature that a model is to be sampled at, if it is another one than its own."""
        if self.kind == "codes":
            return None
        if "temperature" in self.defaults:
            return self.defaults["temperature"]
        temperature = self.pipe.scheduler.config.get("temperature")
        return None if temperature == 1 else temperature

    @property
    def has_temperature(self) -> bool:
        return any("temperature" in sampler.settings for sampler in self.samplers.values())

    @property
    def room(self) -> int:
        """Tokens of a text that fit into a row of the model."""
        # Rows of codes stand for the text alone.
        if self.kind == "codes":
            return self.pipe.max_length
        return max(1, self.pipe.max_length - self.longest_label - ENDS_AROUND)

    @cached_property
    def longest_label(self) -> int:
        """The most tokens that stand for a label before a text, with the end behind them; 0 where none do."""
        prompts = shown_labels(self.pipe.denoiser, self.pipe.config)
        if prompts is None:
            return 0
        frames = label_frames(self.pipe.tokenizer, prompts, range(len(prompts)))
        return max(len(frame) for frame in frames) - 1

    @property
    def longest(self) -> int:
        """The most tokens that a visitor may ask for."""
        # The limit of the page, or that of the model if it is shorter
        return max(1, min(self.limits.length, self.room))

    @property
    def most_steps(self) -> int:
        """The most steps that a visitor may ask for, and every scheduler can take."""
        # A model with two levels has two schedulers, and the shorter one decides.
        most = self.limits.steps
        for name in self.pipe.scheduler_names:
            # Continuous time knows no number of steps.
            most = min(most, getattr(self.pipe, name).config.get("num_train_timesteps") or most)
        return most

    def with_sampler(
        self, name: str, temperature: float | None = None, window: int | None = None
    ) -> Any:
        """A copy of the pipeline with another sampler, without progress bar.

        Args:
            temperature: of samplers that have one.
            window: of samplers that have one; 0 is all tokens.
        """
        # A setting that the sampler does not have would be an error.
        settings: dict[str, Any] = {}
        if temperature is not None and "temperature" in self.samplers[name].settings:
            settings["temperature"] = temperature
        if window is not None and "window" in self.samplers[name].settings:
            settings["window"] = window or None

        pipe = with_sampler(self.pipe, None if name == OWN else name, **settings)
        # A bar for each visitor would fill the log.
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def prompt_arguments(self, prompt: str, length: int) -> dict[str, Any]:
        """Arguments of a call that continues `prompt` by `length` tokens, or for 0 up to where the model ends it.

        Raises:
            Refusal: if the prompt holds a mask or leaves no room, or there is no length for a model that needs one.
        """
        # 1. Without a prompt there is only the length, if one is asked for.
        if not length and not self.pipe.predicts_end:
            raise Refusal("error.length")
        if not prompt:
            return {"max_new_tokens": length} if length else {}

        # 2. The prompt must leave room for at least one token.
        tokenizer = self.pipe.tokenizer
        if holds_mask(tokenizer, prompt):
            raise Refusal("error.mask", field="prompt", mask=tokenizer.mask_token)
        (ids,) = encode_plain(tokenizer, [prompt], "prompt")
        if len(ids) >= self.room:
            raise Refusal("error.tokens", field="prompt", limit=self.room, got=len(ids))

        # A length that does not fit behind the prompt is shortened.
        arguments: dict[str, Any] = {"prompt": prompt}
        if length:
            arguments["max_new_tokens"] = min(length, self.room - len(ids))
        return arguments

    def chat_arguments(self, messages: list[dict[str, str]], length: int) -> dict[str, Any]:
        """Arguments of a call that replies to a conversation by at most `length` tokens.

        Raises:
            Refusal: if the conversation holds a mask or leaves no room.
        """
        tokenizer = self.pipe.tokenizer
        if any(holds_mask(tokenizer, message["content"]) for message in messages):
            raise Refusal("error.mask", field="chat.message", mask=tokenizer.mask_token)
        (ids,) = encode_messages(tokenizer, [messages])

        # What a model of blocks reads may be filled up to a whole block.
        room = self.room - (self.pipe.block_length or 1) + 1
        if len(ids) >= room:
            raise Refusal("error.conversation", limit=room, got=len(ids))
        return {"messages": messages, "max_new_tokens": min(length, room - len(ids))}
