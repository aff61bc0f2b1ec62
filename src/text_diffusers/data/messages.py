"""Conversations as they are published, and as lists of turns of one form: who says what, and whether it is learned.

Three forms are known: a column `messages` of turns `{"role": ..., "content": ...}`; a column `conversations` of turns
`{"from": "human", "value": ...}` (ShareGPT); and the columns `prompt` and `completion`, texts or lists of turns, of
which only the completion is learned.
"""

from collections.abc import Mapping
from typing import Any

from text_diffusers.common.plain_text import check_unicode

ANSWERING = "assistant"  # the role whose turns are learned

# The columns of each form by their roles here, in the order in which they are looked for
FORMS = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "completion": "completion"},
)

# Who speaks where the key is "from"
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": ANSWERING,
    "chatgpt": ANSWERING,
    "model": ANSWERING,
    ANSWERING: ANSWERING,
    "system": "system",
}

# Of a text in the place of a list of turns
ROLES_OF_TEXTS = {"prompt": "user", "completion": ANSWERING}

Turn = dict[str, Any]


def conversation_columns(record: Mapping[str, Any], text_column: str = "text") -> dict[str, str]:
    """The columns of conversations by their roles, `messages`, or `prompt` and `completion`; none of other records.

    A column that is named by `text_column` counts first: a record that has it is a text, or a conversation if the
    column holds a list of turns.

    Args:
        record: the first of a data set.

    Example:
        >>> from text_diffusers.data.messages import conversation_columns
        >>> conversation_columns({"id": 7, "conversations": [{"from": "human", "value": "Hi!"}]})
        {'messages': 'conversations'}
        >>> conversation_columns({"text": "Hi!", "prompt": "Say hi.", "completion": "Hi!"})
        {}
    """
    if text_column in record:
        return {"messages": text_column} if holds_turns(record[text_column]) else {}
    for columns in FORMS:
        if all(column in record for column in columns.values()):
            return dict(columns)
    return {}


def holds_turns(value: Any) -> bool:
    """Whether a value is a list of turns."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def as_turns(value: Any, role: str, place: str) -> list[Turn] | None:
    """A conversation, or the half of one, in one form: turns `{"role": ..., "content": ..., "learned": ...}`.

    System turns without a text are left out.

    Args:
        role: of the column: "messages", "prompt" or "completion".
        place: file and line, or data set and row, for errors.

    Returns:
        The turns; `None` where there are none, or one of them has no text.

    Raises:
        ValueError: if the value is no conversation.

    Example:
        >>> from text_diffusers.data.messages import as_turns
        >>> as_turns("Hello!", "completion", "row 1")
        [{'role': 'assistant', 'content': 'Hello!', 'learned': True}]
        >>> [turn["role"] for turn in as_turns([{"from": "human", "value": "Hi"}], "messages", "row 1")]
        ['user']
    """
    if isinstance(value, str) and role in ROLES_OF_TEXTS:
        value = [{"role": ROLES_OF_TEXTS[role], "content": value}]
    if not value:
        return None
    if not holds_turns(value):
        raise ValueError(
            f'{place}: a conversation must be a list of turns {{"role": ..., "content": ...}} or '
            f'{{"from": ..., "value": ...}}, got {str(value)[:80]!r}.'
        )

    turns = []
    for entry in value:
        turn = as_turn(entry, role, place)
        if turn["content"].strip():
            turns.append(turn)
        elif turn["role"] != "system":
            return None
    return turns or None


def as_turn(entry: Any, role: str, place: str) -> Turn:
    """One turn in the form of `as_turns`.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: a turn must be an object, got {str(entry)[:80]!r}.")
    # Tables hold all keys of all rows, most of them empty.
    is_openai = entry.get("role") is not None
    speaker = entry.get("role") if is_openai else entry.get("from")
    content = entry.get("content") if is_openai else entry.get("value")
    if not isinstance(speaker, str):
        raise ValueError(
            f'{place}: a turn must have a "role" and a "content", or "from" and "value", got {str(entry)[:80]!r}.'
        )
    if not is_openai:
        if speaker not in SPEAKERS:
            raise ValueError(f'{place}: "from" must be one of {sorted(SPEAKERS)}, got {speaker!r}.')
        speaker = SPEAKERS[speaker]

    text = as_content(content, place)
    # An answer may be marked as one that is not learned.
    learned = speaker == ANSWERING and role != "prompt" and entry.get("weight") != 0
    return {"role": speaker, "content": text, "learned": learned}


def as_content(content: Any, place: str) -> str:
    """What a turn says, as one text; empty where it says nothing."""
    if content is None:
        return ""
    # Several parts, as where pictures may be among them
    if isinstance(content, list):
        parts: list[Any] = [
            part.get("text") if isinstance(part, dict) else part for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else content
    if not isinstance(content, str):
        raise ValueError(f"{place}: a turn must say a text, got {str(content)[:80]!r}.")
    try:
        check_unicode("content", [content])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return content


def has_answer(turns: list[Turn]) -> bool:
    """Whether a conversation has a turn that is learned."""
    return any(turn["learned"] for turn in turns)
