"""Contexts and continuations of lm-eval as rows of tokens, laid out as a pipeline writes them.

The end of a text is no part of a continuation. Where the model predicts the end it is left out, and a language model
has masks to write behind the continuation, as in `text_diffusers.evaluation.written_texts`. Where the pipeline puts
the end itself, since it draws lengths or its model is a masked LM, the end stands behind the continuation and costs
nothing.
"""

from collections.abc import Sequence
from typing import Any

from text_diffusers.common.plain_text import (
    call_tokenizer,
    encode_plain,
    holds_mask,
    quoted,
    special_names,
)
from text_diffusers.common.token_ids import end_ids, padding_id, start_ids
from text_diffusers.common.validation import require, require_int
from text_diffusers.evaluation.likelihood import label_ids
from text_diffusers.evaluation.written_texts import (
    WrittenText,
    num_blanks_behind,
    num_filled_up,
)
from text_diffusers.models.language_model import is_language_model, predicts_end, reading_of
from text_diffusers.pipelines.calls.labels import label_frames, shown_labels


def is_rendered(tokenizer: Any, text: str) -> bool:
    """Whether a text names special tokens of a tokenizer for chats, as a conversation does that its template wrote.

    Example:
        >>> from text_diffusers.data.chat_templates import with_chat_template
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.harness.rows import is_rendered
        >>> texts = ["the cat sat on the mat and looked at the dog", "she was late for a train and ran home"]
        >>> tokenizer = with_chat_template(train_tokenizer(texts * 9, vocab_size=300), "chatml")
        >>> turns = [{"role": "user", "content": "the cat"}]
        >>> text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        >>> is_rendered(tokenizer, text), is_rendered(tokenizer, "the cat")
        (True, False)
    """
    return bool(getattr(tokenizer, "chat_template", None) and special_names(tokenizer, text))


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, in which the names of special tokens are tokens only if a chat template wrote them.

    Raises:
        ValueError: if a conversation holds the mask, which would be filled in.
    """
    if not is_rendered(tokenizer, text):
        return encode_plain(tokenizer, [text])[0]
    if holds_mask(tokenizer, text):
        raise ValueError(
            f"`context` must not hold {tokenizer.mask_token} in a conversation, got {quoted(text)}."
        )
    return call_tokenizer(tokenizer, text)["input_ids"]


class ContinuationRows:
    """Lays out continuations of contexts in rows that a pipeline can be asked about.

    Args:
        pipe: a pipeline of tokens or of word embeddings.
        max_length: tokens of the longest row; by default the model's.
        class_label: by number or name, of a model that was trained with labels.

    Attributes:
        max_length: tokens of the longest row; of a pipeline that draws lengths, no more than its longest text has.
        start: ids before a text, those of a label included.
        puts_end: whether the pipeline puts the end of a text itself.
        end: ids behind a continuation, which are given.
        label: the number that the model is told beside a row; `None` for one that reads its label, or has none.

    Raises:
        ValueError: if an argument does not fit the pipeline.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.evaluation.harness.rows import ContinuationRows
        >>> rows = ContinuationRows(TextDiffusionPipeline.from_pretrained("four-voices"), class_label="chat")
        >>> context, continuation = [300, 301, 302], [303, 304]
        >>> row = rows.row(context, continuation)
        >>> row.tokens, len(row.given)  # the label between its ends, and the context
        ([303, 304], 6)
    """

    def __init__(self, pipe: Any, max_length: int | None = None, class_label: Any = None):
        self.tokenizer = pipe.tokenizer
        self.reading = reading_of(pipe.denoiser) if is_language_model(pipe.denoiser) else None
        require_int("max_length", max_length, 2, pipe.max_length, optional=True)

        # What stands before a text
        self.start = start_ids(self.tokenizer)
        label = None if class_label is None else label_ids(pipe, [class_label])
        prompts = shown_labels(pipe.denoiser, pipe.config)
        if prompts is not None:
            # Without a label a language model reads as many masks.
            numbers = [len(prompts)] if label is None else label
            self.start = label_frames(self.tokenizer, prompts, numbers)[0]
            label = None
        self.label = None if label is None else label[0]
        self.reads_label = prompts is not None and class_label is not None

        # What stands behind it
        histogram = pipe.config.lengths
        self.puts_end = bool(histogram) or not predicts_end(pipe.denoiser)
        self.end = end_ids(self.tokenizer) if self.puts_end else []

        self.max_length = max_length or pipe.max_length
        if histogram:
            longest = len(self.start) + len(histogram) - 1 + len(self.end)
            self.max_length = min(self.max_length, longest)

    def start_of(self, text: str) -> list[int]:
        """Ids before a context: a chat template has written its own."""
        if not is_rendered(self.tokenizer, text):
            return self.start
        if self.reads_label:
            raise ValueError(
                "`class_label` must be None for a conversation, before which the model reads no label."
            )
        return []

    def room_behind(self, start: Sequence[int]) -> int:
        """Tokens of the longest context and continuation together."""
        # Blocks that are counted from the end of the context are filled up on the left.
        padding = 0
        if self.reading is not None and num_filled_up(self.reading, 1):
            padding = (self.reading.block_length or 1) - 1
        return self.max_length - len(start) - len(self.end) - padding

    def row(
        self, context: list[int], tokens: list[int], start: list[int] | None = None
    ) -> WrittenText:
        """The row of a continuation; `truncated` says whether its context was cut, on the left.

        Args:
            context, tokens: ids of both.
            start: ids before the context, by default those of the pipeline.

        Raises:
            ValueError: if the continuation alone is too long, or has no token.
        """
        start = self.start if start is None else start
        room = self.room_behind(start)
        limit = f"of 1 to {room} tokens, which fit into the model's row"
        require(1 <= len(tokens) <= room, "continuation", limit, len(tokens))

        kept = context[max(0, len(context) - (room - len(tokens))) :]
        given = [*start, *kept]
        num_padding = num_filled_up(self.reading, len(given))
        num_before = num_padding + len(given)
        num_blanks = 0
        if self.reading is not None and not self.puts_end:
            num_blanks = num_blanks_behind(self.reading, num_before, len(tokens), self.max_length)
        return WrittenText(
            given=given,
            tokens=tokens,
            end=self.end,
            end_is_given=True,
            end_is_counted=False,
            length_nats=0.0,
            text="",
            truncated=len(kept) < len(context),
            padding=(padding_id(self.tokenizer),) * num_padding,
            blanks=(self.tokenizer.mask_token_id,) * num_blanks,
        )

    def windows(self, tokens: Sequence[int], prefix: Sequence[int] = ()) -> list[WrittenText]:
        """The rows of a whole text: each of its tokens counts in one of them.

        A row but the first begins with the token before it; the last one with as many as there is room for.

        Args:
            prefix: ids before the text.
        """
        room = self.room_behind(self.start)
        require(room >= 2, "max_length", "such that rows have room for two tokens of a text", room)
        rows = []
        first = 0
        while first < len(tokens):
            # What stands before the window, and how much of that is shown
            before = [*prefix, *tokens[:first]]
            num_shown = 1 if first else len(prefix)
            stop = min(len(tokens), first + room - num_shown)
            if first and stop == len(tokens):
                num_shown = min(first, room - (stop - first))
            rows.append(self.row(before[len(before) - num_shown :], list(tokens[first:stop])))
            first = stop
        return rows

    def cut_context(self, context: str, num_new: int) -> str:
        """The end of a context behind which so many new tokens fit; all of it where they do.

        Raises:
            ValueError: if there is no room for any of it.
        """
        start = self.start_of(context)
        room = self.room_behind(start) - num_new
        if room < 1:
            raise ValueError(
                f"`max_gen_toks` must leave room for a context in the {self.max_length} tokens of a row, got "
                f"{num_new}: pass `--gen_kwargs max_gen_toks={max(1, self.max_length // 2)}`."
            )

        kept = context
        surplus = len(encode_text(self.tokenizer, kept)) - room
        # Where a context begins elsewhere it may have a token more.
        while surplus > 0:
            kept = without_first_tokens(self.tokenizer, kept, surplus)
            surplus = len(encode_text(self.tokenizer, kept)) - room
        return kept


def without_first_tokens(tokenizer: Any, text: str, count: int) -> str:
    """A text without the characters of its first so many tokens, and at least without its first one."""
    options: dict[str, Any] = {"return_offsets_mapping": True}
    if not is_rendered(tokenizer, text):
        options["split_special_tokens"] = True
    offsets = call_tokenizer(tokenizer, text, **options)["offset_mapping"]
    begin = offsets[count][0] if count < len(offsets) else len(text)
    return text[max(1, begin) :]
