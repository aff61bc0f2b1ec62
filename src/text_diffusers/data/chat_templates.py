"""Chat templates in training: conversations as token ids, their answers marked, and templates for those without.

A template may mark the answers itself, by `{% generation %}`. Any other is asked how it writes what stands before an
answer; this must be how the whole conversation begins, since a reply is written behind it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from text_diffusers.common.plain_text import (
    TOKENIZER_LOCK,
    call_tokenizer,
    holds_mask,
    special_names,
)
from text_diffusers.common.token_ids import end_ids
from text_diffusers.data.messages import ANSWERING, Turn

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")

CHATML = "chatml"
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")

# Words of a conversation that shows how a template ends an answer
PROBE_ANSWER = "qzanswerzq"
PROBE_QUESTION = "qzquestionzq"

SHOWN = 30  # characters of a rendering, in a message


@dataclass
class Chat:
    """A conversation as token ids.

    Args:
        ids: of the whole conversation.
        answers: `(turn, start, stop)` of each answer that is learned: the index of its turn, and its tokens, the end
            of the turn being the last of them.
        reason: why it cannot be learned; `None` if it can.
    """

    ids: list[int] = field(default_factory=list)
    answers: list[tuple[int, int, int]] = field(default_factory=list)
    reason: str | None = None


class UnsuitedError(ValueError):
    """A conversation does not suit its template."""


class ChatTemplate:
    """The chat template of a tokenizer, as training uses it.

    Args:
        tokenizer: with a chat template.

    Attributes:
        end, end_token_id: the token that the template puts behind an answer, which ends a reply.

    Raises:
        ValueError: if the tokenizer has no template, or one that puts no token of its own behind an answer.

    Example:
        >>> from text_diffusers.data.chat_templates import ChatTemplate, with_chat_template
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = with_chat_template(train_tokenizer(texts * 9, vocab_size=300), "chatml")
        >>> template = ChatTemplate(tokenizer)
        >>> turns = [{"role": "user", "content": "the cat", "learned": False}]
        >>> turns += [{"role": "assistant", "content": "the dog", "learned": True}]
        >>> (chat,) = template.encode([turns])
        >>> turn, start, stop = chat.answers[0]
        >>> tokenizer.decode(chat.ids[start:stop])
        'the dog[EOS]'
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "`chat_template` is needed: the tokenizer has none, and conversations are written by one. Give a file "
                f"with a Jinja template, `--chat_template FILE`, or `--chat_template {CHATML}`."
            )
        self.tokenizer = tokenizer
        self.has_marks = bool(GENERATION_MARK.search(str(tokenizer.chat_template)))
        self.end, self.end_token_id = self._find_end()

    def _find_end(self) -> tuple[str, int]:
        """The token behind an answer, by name and id, in a conversation that goes on after it."""
        turns = [
            {"role": "user", "content": PROBE_QUESTION},
            {"role": ANSWERING, "content": PROBE_ANSWER},
            {"role": "user", "content": PROBE_QUESTION},
        ]
        rest = self.render(turns).partition(PROBE_ANSWER)[2].lstrip()
        names = {str(token): id for id, token in self.tokenizer.added_tokens_decoder.items()}
        names |= {
            token: self.tokenizer.convert_tokens_to_ids(token)
            for token in self.tokenizer.all_special_tokens
        }
        ends = [name for name in names if name and rest.startswith(name)]
        if not ends:
            raise ValueError(
                "`chat_template` must put a special token behind an answer, which a reply ends with, but goes on with "
                f"{rest[:20]!r}. Take another template: `--chat_template FILE`, or `--chat_template {CHATML}`."
            )
        end = max(ends, key=len)
        return end, names[end]

    def render(self, turns: Sequence[Turn], begins_reply: bool = False) -> str:
        """A conversation as text; if asked for, up to where a reply begins.

        Raises:
            UnsuitedError: if it does not suit the template.
        """
        # Templates call errors of their own, for turns out of order and roles that they do not know.
        try:
            return self.tokenizer.apply_chat_template(
                messages_of(turns), add_generation_prompt=begins_reply, tokenize=False
            )
        except Exception as error:
            raise UnsuitedError(f"that the chat template refuses ({error})") from error

    def encode(self, conversations: Sequence[Sequence[Turn]]) -> list[Chat]:
        """The token ids of conversations, and where the answers stand that are learned.

        What stands before an answer is what the model is shown when it replies. A conversation that cannot be learned
        says why.

        Args:
            conversations: turns as of `as_turns`.

        Raises:
            ValueError: if the template writes the beginning of a conversation otherwise when more of it is there.
        """
        # 1. As text, the whole and up to each answer
        chats = []
        rendered: list[tuple[str, list[str]]] = []
        for turns in conversations:
            chat = Chat(reason=self._refusal(turns))
            texts: tuple[str, list[str]] = ("", [])
            if chat.reason is None:
                try:
                    texts = self._rendered(turns)
                except UnsuitedError as error:
                    chat.reason = str(error)
            chats.append(chat)
            rendered.append(texts)

        # 2. As tokens, all at once; of the beginnings only what stands behind the last end of a turn
        wholes = [whole for whole, _ in rendered]
        tails = [self._tail(text) for _, beginnings in rendered for text in beginnings]
        ids_of = self._tokens_of([*wholes, *tails])
        for turns, chat, (whole, beginnings) in zip(conversations, chats, rendered, strict=True):
            if chat.reason is not None:
                continue
            chat.ids = list(ids_of[whole])
            if self.has_marks:
                starts = self._marked_starts(turns)
            else:
                starts = [self._start(chat.ids, text, ids_of) for text in beginnings]
            self._note_answers(chat, turns, starts)
        return chats

    def _note_answers(self, chat: Chat, turns: Sequence[Turn], starts: Sequence[int | None]):
        """Note where the answers that are learned, which begin at `starts`, stand in the tokens of a conversation.

        Raises:
            ValueError: if one has no end.
        """
        learned = [index for index, turn in enumerate(turns) if turn["learned"]]
        for index, start in zip(learned, starts, strict=True):
            if start is None:
                chat.reason = "that share a token with what stands before them"
                return
            # It ends with the first end, since no content holds one.
            if self.end_token_id not in chat.ids[start:]:
                raise ValueError(
                    f"`chat_template` must end each answer with {self.end}, as it does in the midst of a conversation."
                )
            stop = chat.ids.index(self.end_token_id, start) + 1
            chat.answers.append((index, start, stop))

    def _tokens_of(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The token ids of texts."""
        distinct = list(dict.fromkeys(text for text in texts if text))
        rows = call_tokenizer(self.tokenizer, distinct)["input_ids"] if distinct else []
        return {"": []} | dict(zip(distinct, rows, strict=True))

    def _tail(self, beginning: str) -> str:
        """What stands behind the last end of a turn."""
        return beginning.rpartition(self.end)[2]

    def _start(
        self, ids: Sequence[int], beginning: str, ids_of: dict[str, list[int]]
    ) -> int | None:
        """The first token behind the beginning of a conversation; `None` if its tokens are not how the whole begins.

        Tokens do not reach across the end of a turn, so those behind it tell.

        Args:
            ids: of the whole.
            ids_of: tokens of the text behind the last end.
        """
        place = 0
        for _ in range(beginning.count(self.end)):
            place = ids.index(self.end_token_id, place) + 1
        tail = ids_of[self._tail(beginning)]
        start = place + len(tail)
        if ids[place:start] == tail:
            return start

        # Some tokenizers read a text otherwise where it stands alone.
        whole = self._tokens_of([beginning])[beginning]
        return len(whole) if ids[: len(whole)] == whole else None

    def _refusal(self, turns: Sequence[Turn]) -> str | None:
        """Why a conversation cannot be written by the template: a name in it would be read as a token."""
        for turn in turns:
            if special_names(self.tokenizer, turn["content"]) or holds_mask(
                self.tokenizer, turn["content"]
            ):
                return "with the name of a special token"
        return None

    def _rendered(self, turns: Sequence[Turn]) -> tuple[str, list[str]]:
        """The whole conversation as text, and if answers are not marked its beginnings up to each that is learned.

        Raises:
            UnsuitedError: if it does not suit the template.
            ValueError: if a beginning is not how the whole begins.
        """
        whole = self.render(turns)
        if self.has_marks:
            return whole, []

        beginnings = []
        for index, turn in enumerate(turns):
            if not turn["learned"]:
                continue
            beginning = self.render(turns[:index], begins_reply=True)
            if not whole.startswith(beginning):
                raise ValueError(
                    "`chat_template` must write a conversation as it goes on, but what it writes before an answer is "
                    f"another thing once the answer is there: {difference(whole, beginning)}. Take another template: "
                    f"`--chat_template FILE`, or `--chat_template {CHATML}`."
                )
            beginnings.append(beginning)
        return whole, beginnings

    def _marked_starts(self, turns: Sequence[Turn]) -> list[int | None]:
        """The first token of each answer that is learned, by the marks of the template.

        Raises:
            ValueError: if it does not mark each answer.
        """
        with TOKENIZER_LOCK:
            encoded = self.tokenizer.apply_chat_template(
                messages_of(turns), return_dict=True, return_assistant_tokens_mask=True
            )
        marks = [0, *encoded["assistant_masks"]]
        starts = [place for place in range(len(marks) - 1) if marks[place + 1] and not marks[place]]
        answers = [turn for turn in turns if turn["role"] == ANSWERING]
        if len(starts) != len(answers):
            raise ValueError(
                "`chat_template` must mark each answer by `{% generation %}`, but of a conversation with "
                f"{len(answers)} it marks {len(starts)}."
            )
        return [start for start, turn in zip(starts, answers, strict=True) if turn["learned"]]


def messages_of(turns: Sequence[Turn]) -> list[dict[str, str]]:
    """Turns as templates know them."""
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def difference(whole: str, beginning: str) -> str:
    """Where two texts that should begin alike part."""
    place = next(
        (
            place
            for place, (first, second) in enumerate(zip(whole, beginning, strict=False))
            if first != second
        ),
        min(len(whole), len(beginning)),
    )
    return f"{whole[place : place + SHOWN]!r} instead of {beginning[place : place + SHOWN]!r}"


# Tokenizers without a template


def with_chat_template(tokenizer: Any, template: str | None) -> Any:
    """A tokenizer with a chat template in the place of its own, in place; `None` leaves it as it is.

    Args:
        template: "chatml", or a file with a Jinja template.

    Raises:
        ValueError: if there is no such file.
    """
    if template is None:
        return tokenizer
    if template == CHATML:
        tokenizer.chat_template = chatml(tokenizer)
        return tokenizer
    if not Path(template).is_file():
        raise ValueError(
            f"`chat_template` must be {CHATML} or a file with a Jinja template, got {template!r}."
        )
    tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
    return tokenizer


def chatml(tokenizer: Any) -> str:
    """ChatML by the tokens that a tokenizer has.

    Without a token for the end of a turn it is the tokenizer's end of a text; without one for the beginning, that is
    written in characters.

    Raises:
        ValueError: if the tokenizer has no token that ends a text.
    """
    begin, end = CHATML_MARKS
    if end not in tokenizer.get_vocab():
        ids = end_ids(tokenizer)
        if not ids:
            raise ValueError(
                f"`chat_template` {CHATML} needs a tokenizer with {end} or a token for the end of a text."
            )
        end = tokenizer.convert_ids_to_tokens(ids[0])
    return (
        "{% for message in messages %}"
        f"{{{{ '{begin}' + message['role'] + '\\n' + message['content'] + '{end}' + '\\n' }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{begin}assistant\\n' }}}}{{% endif %}}"
    )
