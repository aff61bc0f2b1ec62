"""Conversations as token rows, by the chat template of a tokenizer."""

from collections.abc import Sequence
from typing import Any

from text_diffusers.common.plain_text import check_unicode, holds_mask, special_names
from text_diffusers.common.validation import is_list
from text_diffusers.pipelines.text_batch import Row

# One turn, {"role": "user", "content": "Hello!"}.
Message = dict[str, Any]


def encode_messages(
    tokenizer: Any, messages: Sequence[Message] | Sequence[Sequence[Message]]
) -> list[Row]:
    """Token ids of each conversation, up to where the reply begins.

    Args:
        messages: a conversation, or a list of several.

    Raises:
        ValueError: if the tokenizer has no chat template, or a conversation is none or does not suit the template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "`messages` needs a tokenizer with a chat template; this one has none, so give a `prompt`."
        )
    rows = []
    for conversation in conversations(messages):
        # A mask in what was said would be filled in, and other special tokens would end its turn.
        for message in conversation:
            names = special_names(tokenizer, message["content"])
            if holds_mask(tokenizer, message["content"]):
                names.append(tokenizer.mask_token)
            if names:
                raise ValueError(
                    f"`messages` must not hold {names[0]}, a special token of the tokenizer."
                )
        # Templates call errors of their own, for turns out of order and roles that they do not know.
        try:
            ids = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:
            raise ValueError(
                f"`messages` do not suit the tokenizer's chat template: {error}"
            ) from error
        if tokenizer.mask_token_id in ids:
            raise ValueError(
                f"`messages` must not hold {tokenizer.mask_token}, got {conversation!r}."
            )
        rows.append(list(ids))
    return rows


def conversations(messages: Any) -> list[list[Message]]:
    """The conversations of `messages`, one or a list of several.

    Raises:
        ValueError: if they are neither.

    Example:
        >>> conversations([{"role": "user", "content": "Hello!"}])
        [[{'role': 'user', 'content': 'Hello!'}]]
    """
    is_one = is_list(messages) and len(messages) > 0 and isinstance(messages[0], dict)
    several = [messages] if is_one else messages
    if not is_list(several) or not several:
        raise ValueError(
            f'`messages` must be a list of turns {{"role": ..., "content": ...}}, or a list of such lists, '
            f"got {messages!r}."
        )

    for conversation in several:
        if not is_list(conversation) or not conversation:
            raise ValueError(f"`messages` must hold lists of turns, got {conversation!r}.")
        for message in conversation:
            is_turn = isinstance(message, dict) and all(
                isinstance(message.get(key), str) for key in ("role", "content")
            )
            if not is_turn:
                raise ValueError(
                    '`messages` must be turns with a "role" and a "content", both strings, '
                    f"got {message!r}."
                )
            check_unicode("messages", [message["role"], message["content"]])
    return [list(conversation) for conversation in several]
