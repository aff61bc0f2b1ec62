"""The data of a recipe that learns conversations: which rows its model can learn, and how a model learns to reply."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from text_diffusers.common.token_ids import end_ids
from text_diffusers.data.chat_rows import ChatRows, split_into_exchanges
from text_diffusers.data.chat_templates import ChatTemplate, messages_of, with_chat_template
from text_diffusers.data.messages import Turn
from text_diffusers.data.sources import load_conversations, load_train_and_validation
from text_diffusers.data.tokenizers import LOOKED_AT_TEXTS, check_script
from text_diffusers.models.language_model import LanguageModelDenoiser, reading_of
from text_diffusers.models.reading import Reading, write_reading
from text_diffusers.training.adaptation.language_models import (
    DEFAULT_BLOCK_LENGTH,
    training_denoiser,
)
from text_diffusers.training.adaptation.starting_models import saved_reading
from text_diffusers.training.text_options import (
    TOKENIZER_DOCUMENTS,
    TextData,
    load_or_train_tokenizer,
    spread_documents,
)

# Replies to held-out questions that are written at most, and of which so many are shown
MOST_REPLIES = 16
SHOWN_REPLIES = 3
# Options that say something of texts, and nothing of conversations
TEXT_OPTIONS = ("label_column", "source_column", "min_length", "condition_dropout")


def prepare_chat_data(config: Any, accelerator: Any, columns: dict[str, str]) -> TextData:
    """Read conversations, make a tokenizer with a chat template, and cut rows; as `prepare_data`.

    Args:
        config: options of a recipe that trains a model further, or a new one.
        columns: from `find_conversations`.

    Raises:
        ValueError: if an option goes with texts only, or the conversations or the template cannot be learned.
    """
    for name in TEXT_OPTIONS:
        if getattr(config, name):
            raise ValueError(
                f"`{name}` goes with texts, and not with the conversations of `dataset`={config.dataset!r}, got "
                f"{getattr(config, name)!r}."
            )
    with accelerator.main_process_first():
        # 1. Conversations, and those that are held out
        load_split = partial(
            load_conversations, config.dataset, columns, streaming=config.streaming
        )
        train, validation = load_train_and_validation(
            load_split,
            config.dataset,
            config.split,
            config.validation_fraction,
            config.validation_documents,
            config.max_train_samples,
        )

        # 2. The tokenizer, and its template
        texts = texts_of_turns(islice(train, TOKENIZER_DOCUMENTS))
        tokenizer = load_or_train_tokenizer(config, accelerator, config.model_name_or_path, texts)
        with_chat_template(tokenizer, config.chat_template)
        template = ChatTemplate(tokenizer)
        if accelerator.is_main_process:
            check_script(tokenizer, contents(spread_documents(train, LOOKED_AT_TEXTS)))

        # 3. Rows
        to_learn, to_judge = chat_rows(config, template)
        train_rows: Any = to_learn(train)
        validation_rows = to_judge(validation)
    if not config.streaming:
        accelerator.print(
            f"{len(train):,} conversations in {len(train_rows):,} rows to learn, {len(validation):,} held out"
        )
    return TextData(
        tokenizer,
        train_rows,
        validation_rows,
        validation,
        num_classes=None,
        lengths=None,
        template=template,
    )


def texts_of_turns(conversations: Any) -> Iterator[str]:
    """What is said, behind who says it, as templates write it."""
    for conversation in conversations:
        for turn in conversation["messages"]:
            yield f"{turn['role']}\n{turn['content']}"


def contents(conversations: Any) -> Iterator[str]:
    for conversation in conversations:
        for turn in conversation["messages"]:
            yield turn["content"]


# Rows by the model


def chat_rows(config: Any, template: ChatTemplate) -> tuple[ChatRows, ChatRows]:
    """How conversations become rows to learn, and rows by which a model is judged."""
    reading = expected_reading(config)
    block_length = None
    if reading.block_length is not None:
        # Blocks of each length end where those of the longest do.
        lengths: list[int] = config.block_lengths or [reading.block_length]
        common = math.lcm(*lengths)
        block_length = common if common <= config.length else max(lengths)

    from_prompt = reading.blocks_from == "prompt"
    is_judged = ChatRows(
        template,
        config.length,
        one_answer=True,
        block_length=block_length,
        blocks_from_answer=reading.has_causal_past,
        blanks=config.kernel == "absorbing",
        fills_left=from_prompt,
    )
    one_answer = reading.attention == "bidirectional" or from_prompt
    is_learned = replace(
        is_judged,
        one_answer=one_answer,
        shares_rows=config.packing and config.adapts_language_model and not one_answer,
        blanks=False,
    )
    return is_learned, is_judged


def expected_reading(config: Any) -> Reading:
    """What tokens of the model see of each other that these options train, before it is there."""
    saved = {}
    if config.kind in ("pipeline", "language_pipeline"):
        saved = saved_reading(config.model_name_or_path)
    block_length = next(iter(config.block_lengths), saved.get("block_length"))

    # Denoisers of this package have blocks or none; language models are asked for them.
    attention = "bidirectional" if block_length is None else "block"
    if config.adapts_language_model:
        usual = "block" if config.kind == "causal_lm" else saved.get("attention", "bidirectional")
        attention = config.attention or usual
    has_blocks = attention == "block"
    return Reading(
        attention=attention,
        block_length=(block_length or DEFAULT_BLOCK_LENGTH) if has_blocks else None,
        past="causal" if has_blocks and config.reads_causal_past else "block",
        blocks_from=saved.get("blocks_from", "row"),
    )


# Models that reply


def with_reply_end(denoiser: Any, template: ChatTemplate, saves_model: bool = True) -> Any:
    """A denoiser that may end a reply with the token that its template puts there.

    Args:
        saves_model: whether the model is saved with its configuration, and not its adapters alone.

    Raises:
        ValueError: if that cannot be noted, or a denoiser of this package would end texts with another token than its
            tokenizer says.
    """
    tokenizer = template.tokenizer
    if not isinstance(denoiser, LanguageModelDenoiser):
        if template.end_token_id not in end_ids(tokenizer):
            raise ValueError(
                f"`chat_template` must end an answer with the tokenizer's own end of a text, got {template.end}."
            )
        return denoiser
    if template.end_token_id in denoiser.reading.end_token_ids:
        return denoiser
    if not saves_model:
        raise ValueError(
            f"`merge_lora` must be true: the model is still to learn that {template.end} ends a reply, which adapters "
            "alone cannot tell."
        )

    # A masked LM that said nothing of diffusion says from now on that it predicts its end.
    model = denoiser.language_model
    reading = reading_of(model)
    ends = sorted({*reading.end_token_ids, template.end_token_id})
    changes: dict[str, Any] = {"mask_token_id": tokenizer.mask_token_id, "end_token_ids": ends}
    write_reading(model.config, replace(reading, **changes))
    return training_denoiser(model, tokenizer)


# Questions


def first_questions(data: TextData, count: int, length: int) -> list[list[dict[str, str]]]:
    """Messages up to an answer of each of the first held-out conversations, which leave room in a row.

    Args:
        count: of conversations; so many are asked at most, and no more than `MOST_REPLIES`.
        length: tokens of a row.
    """
    questions = []
    for conversation in data.validation_documents:
        if len(questions) == min(count, MOST_REPLIES):
            break
        candidates = (
            messages
            for messages in questions_of(conversation["messages"])
            if num_tokens(messages, data.template) < length
        )
        questions += [messages for messages in islice(candidates, 1)]
    return questions


def questions_of(turns: Sequence[Turn]) -> Iterator[list[dict[str, str]]]:
    """The messages of each exchange up to an answer that is learned, behind the instruction of the conversation.

    Example:
        >>> from text_diffusers.training.adaptation.chat_data import questions_of
        >>> turns = [{"role": "user", "content": "Hi!", "learned": False}]
        >>> turns += [{"role": "assistant", "content": "Hello!", "learned": True}]
        >>> list(questions_of(turns))
        [[{'role': 'user', 'content': 'Hi!'}]]
    """
    system, exchanges = split_into_exchanges(turns)
    for exchange in exchanges:
        for place, turn in enumerate(exchange):
            if turn["learned"]:
                yield messages_of([*system, *exchange[:place]])


def print_replies(data: TextData, replies: Sequence[str], length: int):
    """Print the first of the replies to `first_questions`, each below its question."""
    questions = first_questions(data, len(replies), length)
    for messages, reply in list(zip(questions, replies, strict=True))[:SHOWN_REPLIES]:
        print(f"{messages[-1]['role']:<19}{messages[-1]['content']}")
        print(f"reply              {reply.strip()}")


def num_tokens(messages: list[dict[str, str]], template: ChatTemplate) -> int:
    ids = template.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    return len(ids)
