"""Conversations to rows of tokens, of which the answers are learned and all else is `given`.

A row holds whole exchanges, each a question and what answers it, behind the instruction of its conversation; a
conversation that is longer goes on in another row. It ends with the last answer that is learned, since nothing stands
behind an answer when it is written.

Models that write in blocks learn all answers of a row at once. A bidirectional model would see what was said after an
answer, so each of its rows ends with the one answer that is learned, as all rows do by which a model is judged.

Shapes: L row length in tokens.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from datasets import Dataset, Features, List, Value

from text_diffusers.data.chat_templates import Chat, ChatTemplate
from text_diffusers.data.local_files import log_once
from text_diffusers.data.messages import ANSWERING, Turn
from text_diffusers.data.rows import Columns, Rows

# Conversations in one call of `map`
CHATS_PER_MAP = 500
# So many characters of turns are shown to a tokenizer for each token of a row
CHARACTERS_PER_TOKEN = 5

ENOUGH = 0.95  # of the answers, that a longer row is to hold
ROUND_LENGTH = 64  # of which such a length is a multiple
SHOWN_REASONS = 3

Exchange = list[Turn]


@dataclass
class ChatRows:
    """How conversations become rows.

    Args:
        template: of the tokenizer.
        length: L.
        one_answer: whether each row ends with the only answer that is learned in it.
        block_length: tokens of a block, of a model that writes in blocks.
        blocks_from_answer: whether blocks are counted from where each answer begins, and not from the row's beginning.
        shares_rows: whether conversations share rows, each up to the end of a block, told apart by `segment_ids`.
        blanks: whether masks stand behind the answer as where it is written, up to the end of its block or of the row.
            In training they are put there at every step.
        fills_left: whether padding stands before a row, so that its answer begins a block.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.chat_rows import ChatRows
        >>> from text_diffusers.data.chat_templates import ChatTemplate, with_chat_template
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = with_chat_template(train_tokenizer(texts * 9, vocab_size=300), "chatml")
        >>> question = {"role": "user", "content": "the cat", "learned": False}
        >>> answer = {"role": "assistant", "content": "the dog", "learned": True}
        >>> chats = Dataset.from_dict({"messages": [[question, answer]]})
        >>> rows = ChatRows(ChatTemplate(tokenizer), length=64)(chats)
        >>> learned = [id for id, given in zip(rows[0]["input_ids"], rows[0]["given"]) if not given]
        >>> tokenizer.decode(learned, skip_special_tokens=True)
        'the dog'
    """

    template: ChatTemplate
    length: int
    one_answer: bool = False
    block_length: int | None = None
    blocks_from_answer: bool = False
    shares_rows: bool = False
    blanks: bool = False
    fills_left: bool = False

    def __call__(self, conversations: Rows) -> Rows:
        """Rows of `input_ids`, `attention_mask` and `given`, and `segment_ids` where they are shared.

        What is left out is counted and printed, of a stream among its first conversations.

        Raises:
            ValueError: if nothing is left, of a stream among the first, or the template cannot be learned by.
        """
        settings: dict[str, Any] = {"batched": True, "batch_size": CHATS_PER_MAP}
        names = conversations.column_names or list(next(iter(conversations), {}))
        parts = conversations.map(
            partial(encode_chats, rows=self), remove_columns=names, features=PARTS, **settings
        )
        if isinstance(parts, Dataset):
            report_left_out(parts, self.length)
        else:
            first_parts = Dataset.from_list(list(parts.take(CHATS_PER_MAP)), features=PARTS)
            report_left_out(
                first_parts, self.length, f" in the first {len(first_parts):,} conversations"
            )
        return parts.map(partial(lay_out_chats, rows=self), remove_columns=list(PARTS), **settings)

    @property
    def room(self) -> int:
        """The most tokens of a part of a conversation."""
        # Padding before it takes less than a block.
        return self.length - (self.block_length or 1) + 1 if self.fills_left else self.length


# The rows of each conversation before they are laid out: their tokens, where the answers stand in them, why answers
# are left out, and the tokens of each one that with its question fits into no row.
PARTS = Features(
    {
        "parts": List(List(Value("int32"))),
        "answers": List(List(List(Value("int32")))),
        "reasons": List(Value("string")),
        "needed": List(Value("int32")),
    }
)


# Parts of conversations


@dataclass
class Window:
    """Exchanges of a conversation that may become a row.

    Attributes:
        conversation: its number.
        system: the turns before its first exchange.
        exchanges: of the whole conversation.
        first, last: the exchanges of this window.
    """

    conversation: int
    system: list[Turn]
    exchanges: list[Exchange]
    first: int
    last: int

    @property
    def turns(self) -> list[Turn]:
        return self.system + sum(self.exchanges[self.first : self.last + 1], [])

    @property
    def num_learned(self) -> int:
        return sum(turn["learned"] for turn in self.turns)

    def exchange_of(self, turn: int) -> int:
        """The number of the exchange in which one of `turns` stands."""
        stop = len(self.system)
        for number in range(self.first, self.last + 1):
            stop += len(self.exchanges[number])
            if turn < stop:
                return number
        raise IndexError(turn)


def encode_chats(columns: Columns, rows: ChatRows) -> Columns:
    """The parts of each conversation, see `PARTS`."""
    conversations = columns["messages"]
    results: Columns = {name: [[] for _ in conversations] for name in PARTS}
    windows: list[Window] = []
    for number, turns in enumerate(conversations):
        system, exchanges = split_into_exchanges(turns)
        if rows.one_answer:
            windows += windows_of_answers(number, system, exchanges, rows.room)
        elif exchanges:
            windows.append(next_window(number, system, exchanges, 0, rows.room))

    # What did not fit comes again, in windows that begin or end elsewhere.
    take = take_one_answer if rows.one_answer else take_all_answers
    while windows:
        chats = rows.template.encode([window.turns for window in windows])
        following = []
        for window, chat in zip(windows, chats, strict=True):
            result = {name: values[window.conversation] for name, values in results.items()}
            following += take(window, chat, result, rows.room)
        windows = following
    return results


def split_into_exchanges(turns: Sequence[Turn]) -> tuple[list[Turn], list[Exchange]]:
    """The instruction before a conversation, and its exchanges: turns of others, and the answers to them.

    An answer that nothing was asked before is none to be learned.
    """
    system: list[Turn] = []
    exchanges: list[Exchange] = []
    for turn in turns:
        is_answer = turn["role"] == ANSWERING
        if not exchanges and turn["role"] in ("system", "developer"):
            system.append(turn)
        elif not exchanges:
            exchanges.append([turn | {"learned": False}])
        elif is_answer or exchanges[-1][-1]["role"] != ANSWERING:
            exchanges[-1].append(turn)
        else:
            exchanges.append([turn])
    return system, exchanges


def next_window(
    number: int, system: list[Turn], exchanges: list[Exchange], first: int, length: int
) -> Window:
    """As many exchanges from the first on as could fit into a row."""
    room = CHARACTERS_PER_TOKEN * length
    last = first
    while last + 1 < len(exchanges):
        room -= num_characters(exchanges[last])
        if room <= 0:
            break
        last += 1
    return Window(number, system, exchanges, first, last)


def windows_of_answers(
    number: int, system: list[Turn], exchanges: list[Exchange], length: int
) -> list[Window]:
    """For each answer that is learned a window that ends with it, and begins as early as could fit into a row."""
    windows = []
    for last, exchange in enumerate(exchanges):
        for place, turn in enumerate(exchange):
            if not turn["learned"]:
                continue
            # Of what stands before, nothing is learned here, and what stands behind is not there yet.
            ends_here = [*unlearned(exchange[:place]), turn]
            first = last
            room = CHARACTERS_PER_TOKEN * length - num_characters(ends_here)
            while first > 0 and room > 0:
                first -= 1
                room -= num_characters(exchanges[first])
            before = [unlearned(exchange) for exchange in exchanges[first:last]]
            windows.append(Window(number, system, [*before, ends_here], 0, last - first))
    return windows


def num_characters(turns: Sequence[Turn]) -> int:
    return sum(len(turn["content"]) for turn in turns)


def unlearned(turns: Sequence[Turn]) -> list[Turn]:
    return [turn | {"learned": False} for turn in turns]


def take_all_answers(
    window: Window, chat: Chat, result: dict[str, list], length: int
) -> list[Window]:
    """Note the exchanges of a window that fit into a row, as its part; returns the window behind them."""
    next_exchange = window.last + 1
    if chat.reason is not None and window.first < window.last:
        # One exchange may be to blame, and the others not.
        return [replace(window, last=window.first)]
    if chat.reason is not None:
        result["reasons"] += [chat.reason] * window.num_learned
    else:
        # Those that do not fit come again behind the next window's instruction, unless they are the first here.
        numbers = [window.exchange_of(turn) for turn, _, _ in chat.answers]
        unfit = [
            number
            for number, (_, _, stop) in zip(numbers, chat.answers, strict=True)
            if stop > length
        ]
        next_exchange = max(min(unfit, default=next_exchange), window.first + 1)
        fitting = []
        for number, (_, start, stop) in zip(numbers, chat.answers, strict=True):
            if number < next_exchange and stop <= length:
                fitting.append([start, stop])
            elif number < next_exchange:
                result["needed"].append(stop)
        add_part(result, chat, fitting)

    return windows_behind(replace(window, last=next_exchange - 1), length)


def windows_behind(window: Window, length: int) -> list[Window]:
    """The window of the exchanges behind those of a window, if there are any."""
    if window.last + 1 == len(window.exchanges):
        return []
    arguments = (window.conversation, window.system, window.exchanges)
    return [next_window(*arguments, first=window.last + 1, length=length)]


def take_one_answer(
    window: Window, chat: Chat, result: dict[str, list], length: int
) -> list[Window]:
    """Note the one answer of a window, if it fits into a row; else returns the window without its first exchange."""
    answers = [] if chat.reason is not None else chat.answers
    fitting = [[start, stop] for _, start, stop in answers if stop <= length]
    if not fitting and window.first < window.last:
        return [replace(window, first=window.first + 1)]
    if fitting:
        add_part(result, chat, fitting)
    elif chat.reason is not None:
        result["reasons"].append(chat.reason)
    else:
        result["needed"].append(chat.answers[0][2])
    return []


def add_part(result: dict[str, list], chat: Chat, answers: list[list[int]]):
    """Add a conversation up to the last of its `answers`, if there is one."""
    if answers:
        result["parts"].append(chat.ids[: answers[-1][1]])
        result["answers"].append(answers)


def report_left_out(parts: Dataset, length: int, where: str = ""):
    """Print how many answers are learned, and which are not.

    Args:
        where: the answers stand, if these are not all.

    Raises:
        ValueError: if none is.
    """
    # 1. Count
    num_learned = sum(len(answers) for row in parts["answers"] for answers in row)
    reasons = Counter(reason for row in parts["reasons"] for reason in row)
    needed = sorted(size for row in parts["needed"] for size in row)
    num_answers = num_learned + reasons.total() + len(needed)

    # 2. Say why
    notes = [f"{count:,} {reason}" for reason, count in reasons.most_common(SHOWN_REASONS)]
    if needed:
        enough = min(len(needed), max(1, math.ceil(ENOUGH * num_answers) - num_learned))
        longer = -(-needed[enough - 1] // ROUND_LENGTH) * ROUND_LENGTH
        notes.append(
            f"{len(needed):,} that with their question are longer than `length`={length}; `--length {longer}` holds "
            f"{ENOUGH:.0%}"
        )
    because = f": {'; '.join(notes)}" if notes else ""
    if num_learned == 0:
        raise ValueError(
            f"`dataset` must have an answer to learn, got none of {num_answers:,}{where}{because}."
        )
    if notes:
        log_once(
            f"left out {num_answers - num_learned:,} of {num_answers:,} answers{where}{because}."
        )


# Rows


@dataclass
class Segment:
    """A part of a conversation as it stands in a row; three lists of one length.

    Attributes:
        ids: tokens.
        given: whether each is not learned.
        real: whether each is no padding.
        missing: tokens up to the end of the last block.
    """

    ids: list[int]
    given: list[bool]
    real: list[int]
    missing: int = 0


def lay_out_chats(columns: Columns, rows: ChatRows) -> Columns:
    """Rows of the parts of conversations, see `PARTS`."""
    segments = []
    for parts, answers_of_parts in zip(columns["parts"], columns["answers"], strict=True):
        for ids, answers in zip(parts, answers_of_parts, strict=True):
            segments.append(make_segment(ids, answers, rows))
    if not rows.shares_rows:
        return columns_of([[segment] for segment in segments], rows)
    return columns_of(share_rows(segments, rows.length), rows)


def make_segment(ids: list[int], answers: list[list[int]], rows: ChatRows) -> Segment:
    """A part with its answers to be learned, and what stands before and behind it."""
    tokenizer = rows.template.tokenizer
    given = [True] * len(ids)
    for start, stop in answers:
        given[start:stop] = [False] * (stop - start)
    first = answers[0][0]
    # Without blocks a row is written as a whole, but where several share it nothing behind an answer is seen.
    size = rows.block_length or (1 if rows.shares_rows else rows.length)

    # 1. Padding before it
    num_before = -first % size if rows.fills_left else 0
    ids = [tokenizer.pad_token_id] * num_before + ids
    given = [True] * num_before + given
    real = [0] * num_before + [1] * (len(ids) - num_before)

    # 2. Masks behind it, up to the end of the block that the last answer ends in
    origin = num_before + answers[-1][0] if rows.blocks_from_answer else 0
    missing = min(-(len(ids) - origin) % size, rows.length - len(ids))
    if rows.blanks:
        ids = ids + [tokenizer.mask_token_id] * missing
        given = given + [True] * missing
        real = real + [1] * missing
        missing = 0
    return Segment(ids, given, real, missing)


def share_rows(segments: list[Segment], length: int) -> list[list[Segment]]:
    """The segments of each row: the longest first, each where it fits first; all but the last in whole blocks.

    Example:
        >>> from text_diffusers.data.chat_rows import Segment, share_rows
        >>> segments = [Segment([7] * size, [False] * size, [1] * size, -size % 4) for size in (3, 5, 2)]
        >>> [[len(segment.ids) for segment in row] for row in share_rows(segments, 10)]
        [[5, 2], [3]]
    """
    filled: list[list[Segment]] = []
    free: list[int] = []
    for segment in sorted(segments, key=lambda segment: -len(segment.ids)):
        size = len(segment.ids)
        row = next((row for row, room in enumerate(free) if room >= size), len(filled))
        if row == len(filled):
            filled.append([])
            free.append(length)
        filled[row].append(segment)
        free[row] -= size + segment.missing
    return filled


def columns_of(rows_of_segments: list[list[Segment]], rows: ChatRows) -> Columns:
    """The columns of rows that hold these segments."""
    pad_token_id = rows.template.tokenizer.pad_token_id
    names = ["input_ids", "attention_mask", "given"] + ["segment_ids"] * rows.shares_rows
    columns: Columns = {name: [] for name in names}
    for segments in rows_of_segments:
        row: Columns = {name: [] for name in names}
        for number, segment in enumerate(segments, start=1):
            is_last = number == len(segments)
            missing = segment.missing
            if is_last or not rows.shares_rows:
                missing = rows.length - len(row["input_ids"]) - len(segment.ids)
            row["input_ids"] += segment.ids + [pad_token_id] * missing
            row["attention_mask"] += segment.real + [0] * missing
            row["given"] += segment.given + [False] * missing
            if rows.shares_rows:
                row["segment_ids"] += [number] * (len(segment.ids) + missing)
        for name in names:
            columns[name].append(row[name])
    return columns
