"""What stands before a text when a pipeline writes it: a start, a label or a source, a prompt, or a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.common.validation import require
from text_diffusers.data.chat_templates import Chat, ChatTemplate
from text_diffusers.data.rows import encode_texts
from text_diffusers.pipelines.chat_inputs import conversations


@dataclass
class GivenTokens:
    """The tokens before a text.

    Attributes:
        ids: all of them.
        num_known: how many of them are the beginning of the text itself.
        truncated: whether what they are of was cut.
        text: ids of the text, where what stands before it decides how it is read.
        end: the tokens that end it, likewise.
    """

    ids: list[int]
    num_known: int = 0
    truncated: bool = False
    text: list[int] | None = None
    end: list[int] | None = None


def given_prompts(
    tokenizer: Any, prompts: Sequence[str], frames: Sequence[list[int]] | None = None
) -> list[GivenTokens]:
    """The start and prompt of each text; with `frames`, such as "start label end", these in the place of the start."""
    start = start_ids(tokenizer)
    given = []
    for index, known in enumerate(encode_texts(tokenizer, list(prompts))):
        beginning = start if frames is None else frames[index]
        given.append(GivenTokens([*beginning, *known], len(known)))
    return given


def given_sources(
    tokenizer: Any,
    sources: Sequence[str],
    source_ends: int = 1,
    room: int | None = None,
    needs_start: bool = False,
) -> list[GivenTokens]:
    """The source of each text between its start and ends.

    Args:
        source_ends: end tokens behind it.
        room: tokens to which a source is cut.
        needs_start: whether the end of the text before is the start of a tokenizer that has no other.
    """
    start = start_ids(tokenizer)
    ends = end_ids(tokenizer)
    if needs_start and not start:
        start = ends
    given = []
    for ids in encode_texts(tokenizer, list(sources)):
        is_cut = room is not None and len(ids) > room
        kept = ids[:room] if is_cut else ids
        given.append(GivenTokens([*start, *kept, *ends * source_ends], truncated=is_cut))
    return given


def given_messages(tokenizer: Any, messages: Any, texts: Sequence[str]) -> list[GivenTokens]:
    """The conversation before each text, which is a reply and ends as the tokenizer's template ends it.

    Args:
        messages: a conversation a text, or one for the only text, of turns `{"role": ..., "content": ...}`.

    Raises:
        ValueError: if there is not one a text, or the template cannot write one.

    Example:
        >>> from text_diffusers.data.chat_templates import with_chat_template
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.given_tokens import given_messages
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = with_chat_template(train_tokenizer(texts * 9, vocab_size=300), "chatml")
        >>> (given,) = given_messages(tokenizer, [{"role": "user", "content": "the cat"}], ["the dog"])
        >>> tokenizer.decode(given.text), tokenizer.decode(given.end)
        ('the dog', '[EOS]')
    """
    chats = conversations(messages)
    require(len(chats) == len(texts), "messages", f"one a text, {len(texts)}", len(chats))
    whole = []
    for turns, text in zip(chats, texts, strict=True):
        turns = [{**turn, "learned": False} for turn in turns]
        whole.append([*turns, {"role": "assistant", "content": text, "learned": True}])

    given = []
    for index, chat in enumerate(ChatTemplate(tokenizer).encode(whole)):
        if chat.reason is not None:
            raise ValueError(
                f"`messages[{index}]` and `texts[{index}]` must suit the tokenizer's chat template, but are a "
                f"conversation {chat.reason}."
            )
        given.append(before_answer(chat))
    return given


def before_answer(chat: Chat) -> GivenTokens:
    """What stands before the only answer of a conversation that is learned, and that answer."""
    ((_, start, stop),) = chat.answers
    return GivenTokens(
        chat.ids[:start], text=chat.ids[start : stop - 1], end=chat.ids[stop - 1 : stop]
    )


def refuse_two_conditions(**conditions: Any):
    """Raise a `ValueError` if more than one of the arguments that say what stands before the texts is given."""
    given = [name for name, values in conditions.items() if values is not None]
    if len(given) > 1:
        raise ValueError(
            f"`{given[1]}` excludes `{given[0]}`: what is written from either begins by itself."
        )
