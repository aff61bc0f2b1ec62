"""A conversation with a pipeline: its turns, and replies as they settle."""

from collections.abc import Iterator
from typing import Any

from text_diffusers.cli.text_requests import Settings, TextRequest
from text_diffusers.cli.writer import Writer
from text_diffusers.common.plain_text import check_unicode, holds_mask


class Conversation:
    """A conversation with a pipeline whose tokenizer has a chat template.

    Each reply is drawn from a seed of its own, that of its place in the conversation.

    Args:
        pipe: any pipeline of texts that takes `messages`; it stays as it is.
        settings: of the writing.
        system: instruction that stands before the first turn.

    Attributes:
        messages: the turns so far, `{"role": ..., "content": ...}`, each of the user followed by its reply.

    Raises:
        ValueError: if the pipeline cannot chat, or a setting does not fit it.
    """

    def __init__(self, pipe: Any, settings: Settings, system: str | None = None):
        check_chat(pipe)
        self.writer = Writer(pipe, settings)
        self.system = system
        self.messages: list[dict[str, str]] = []

    @property
    def tokenizer(self) -> Any:
        return self.writer.pipe.tokenizer

    def clear(self):
        """Forget all turns; the instruction stays."""
        self.messages = []

    def reply(self, content: str) -> Iterator[str]:
        """Yield the reply to a turn of the user after every step; the last one is finished, and is then kept.

        A reply that is not read to its end is forgotten, with the turn that it was to.

        Raises:
            ValueError: if the turn does not fit the model or its template.
        """
        check_unicode("message", [content])
        if holds_mask(self.tokenizer, content):
            raise ValueError(
                f"`message` must not hold {self.tokenizer.mask_token}, the mask of the model."
            )
        instruction = [{"role": "system", "content": self.system}] if self.system else []
        turns = [*self.messages, {"role": "user", "content": content}]

        # Of a turn and its reply each, there are half as many places.
        request = TextRequest(len(self.messages) // 2, {"messages": instruction + turns})
        reply = ""
        for (reply,) in self.writer.stream([request]):
            yield reply
        self.messages = [*turns, {"role": "assistant", "content": reply}]


def check_chat(pipe: Any):
    """Refuse a pipeline that cannot chat.

    Raises:
        ValueError: that says what it can do instead.
    """
    takes_messages = "messages" in pipe.accepted_inputs
    if not takes_messages or not getattr(pipe.tokenizer, "chat_template", None):
        raise ValueError(
            "`model` must have a tokenizer with a chat template, and this one has none: give a beginning to "
            "`text-diffusers generate MODEL --prompt TEXT` instead."
        )
