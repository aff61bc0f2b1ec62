"""Chat: replies settle step by step, and can be tried again."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import gradio as gr

from text_diffusers.space.limits import LARGEST_SEED, Refusal, integer, one_of, text
from text_diffusers.space.parts import settings
from text_diffusers.space.parts.interface import KEPT_SECONDS, LIGHT, MODEL, Fields, Page
from text_diffusers.space.parts.links import LinkedTab
from text_diffusers.space.parts.running import generator, growing, steps_to_take
from text_diffusers.space.parts.saving import JsonButton
from text_diffusers.space.parts.served import Served
from text_diffusers.space.parts.texts import decimal, say

# A token that is still to be written
OPEN = "\N{LIGHT SHADE}"
DEFAULT_LENGTH = 64
DEFAULT_BLOCK = 32

# Turns `{"role": ..., "content": ...}`, as gradio and chat templates take them
Messages = list[dict[str, Any]]


@dataclass
class Talk:
    """A conversation: its turns, the last of which has no reply while one is written, and if it was stopped.

    Attributes:
        tries: how often the last turn was replied to before.
    """

    messages: Messages = field(default_factory=list)
    tries: int = 0


@dataclass
class Reply:
    """A reply that is being written.

    Attributes:
        text: so far; tokens that are open are shown as `OPEN`.
        steps: that were taken.
        is_done: whether it is finished.
        stopped: whether it ran out of time.
    """

    text: str = ""
    steps: int = 0
    seconds: float = 0.0
    is_done: bool = False
    stopped: bool = False


@dataclass
class ChatRequest:
    """Values of the tab, as the browser sends them, and the conversation so far."""

    message: str
    system: str
    length: float
    steps: float
    block: float
    sampler: str
    temperature: float
    seed: float
    talk: Talk | None = None


def build_chat_tab(page: Page):
    """Lay out the tab and connect it."""
    page.markdown("chat.lead", "lead")

    # Shown only: the conversation that counts is kept here, and not by the browser.
    shown = page.add(
        gr.Chatbot,
        {"label": "chat.conversation"},
        elem_id="chat-texts",
        feedback_options=None,
        buttons=["copy"],
    )
    status = gr.Markdown("", elem_id="chat-status", elem_classes="hint")
    talk = gr.State(None, time_to_live=KEPT_SECONDS)
    with gr.Row(elem_classes="buttons links"):
        link = page.link_button("chat")
        file = JsonButton(page, "chat", talk, asdict)
    box = page.add(
        gr.Textbox,
        {"label": "chat.message"},
        lines=1,
        max_lines=6,
        max_length=page.served.limits.characters,
        elem_id="chat-message",
    )
    with gr.Row(elem_classes="buttons"):
        send = page.button("chat.run", "chat-run", variant="primary")
        stop = page.button("stop", "chat-stop")
        retry = page.button("chat.retry", "chat-retry")
        clear = page.button("chat.clear", "chat-clear")
    fields = {"message": box, **chat_fields(page), "talk": talk}

    def show(asked: Talk, replies: Iterator[Reply], language: str) -> Iterator[tuple]:
        # The turn is kept at once, so that a reply which is stopped can be tried again.
        reply = Reply()
        messages = asked.messages
        for reply in replies:
            messages = [*asked.messages, {"role": "assistant", "content": reply.text}]
            yield messages, say("status.running", language, step=reply.steps), "", asked

        # Out of time, what there is stays in sight, and is no reply.
        kept = Talk(messages, asked.tries) if reply.is_done else asked
        yield messages, summary(reply, language), "", kept

    def answer(asked: ChatRequest, language: str) -> Iterator[tuple]:
        talk = with_message(page.served, asked)
        yield from show(talk, replies_to(page.served, talk, asked), language)

    def answer_again(asked: ChatRequest, language: str) -> Iterator[tuple]:
        talk = without_reply(asked.talk)
        yield from show(talk, replies_to(page.served, talk, asked), language)

    outputs = [shown, status, box, talk]
    look: dict[str, Any] = {"show_progress": "hidden"} | MODEL
    page.linked["chat"] = LinkedTab(
        ChatRequest,
        fields,
        lambda asked: replies_to(page.served, with_message(page.served, asked), asked),
    )
    # The address holds the message and the settings; it opens a new conversation.
    linked = {"link": ("chat", link), "save": file.save} | look
    running = page.on(send.click, answer, ChatRequest, fields, outputs, **linked)
    entered = page.on(box.submit, answer, ChatRequest, fields, outputs, **linked)
    again = page.on(retry.click, answer_again, ChatRequest, fields, outputs, **look)

    all_runs = [running, entered, again]
    page.stop(stop, all_runs)
    # Gradio's own bin in the corner forgets the conversation, too, and not only what is shown of it.
    for forget in (clear.click, shown.clear):
        forget(lambda: ([], "", "", None), None, outputs, cancels=all_runs, **LIGHT)


def chat_fields(page: Page) -> Fields:
    """Components for the settings of a `ChatRequest`."""
    served = page.served
    length = served.defaults.get("max_new_tokens", DEFAULT_LENGTH)
    block = served.defaults.get("block_length", DEFAULT_BLOCK)
    with page.more_settings("chat"):
        return {
            "system": page.add(
                gr.Textbox,
                {"label": "chat.system", "placeholder": "chat.system.placeholder"},
                max_length=served.limits.characters,
                elem_id="chat-system",
            ),
            "length": page.slider(
                "chat.length",
                low=1,
                high=served.longest,
                value=min(length, served.longest),
            ),
            "steps": settings.steps_slider(page),
            "block": page.slider(
                "chat.block",
                low=0,
                high=served.longest,
                value=min(block, served.longest),
                info="chat.block.info",
                visible=served.takes_blocks,
            ),
            "sampler": settings.sampler_dropdown(page),
            "temperature": settings.temperature_slider(page, info="chat.temperature.info"),
            "seed": settings.seed_number(page),
        }


def with_message(served: Served, asked: ChatRequest) -> Talk:
    """The conversation with the message of a request; one that had no reply is forgotten.

    Raises:
        Refusal: if the message is empty, or beyond its limits.
    """
    message = text("chat.message", asked.message, served.limits.characters)
    if not message:
        raise Refusal("error.empty", field="chat.message")
    messages = answered(asked.talk)
    return Talk([*messages, {"role": "user", "content": message}])


def without_reply(talk: Talk | None) -> Talk:
    """The conversation up to its last message, to be replied to once more.

    Raises:
        Refusal: if there is no message.
    """
    if talk is None or not talk.messages:
        raise Refusal("error.silence")
    is_answered = talk.messages[-1]["role"] == "assistant"
    messages = talk.messages[:-1] if is_answered else talk.messages
    return Talk(messages, talk.tries + 1)


def answered(talk: Talk | None) -> Messages:
    """The turns of a conversation that have a reply, and these."""
    messages = [] if talk is None else talk.messages
    return messages[:-1] if len(messages) % 2 else messages


def replies_to(served: Served, talk: Talk, asked: ChatRequest) -> Iterator[Reply]:
    """The reply to a conversation, as it settles.

    Raises:
        Refusal: if a value is beyond its limits, or the conversation is too long.
    """
    # 1. Check the values
    system = text("chat.system", asked.system, served.limits.characters)
    length = integer("chat.length", asked.length, 1, served.longest)
    steps = settings.accepted_steps(served, asked.steps)
    block = integer("chat.block", asked.block, 0, served.longest)
    sampler = one_of("sampler", asked.sampler, list(served.samplers))
    temperature = settings.accepted_temperature(asked.temperature)
    seed = settings.accepted_seed(asked.seed)

    # 2. The conversation, and how it is written on
    instruction = [{"role": "system", "content": system}] if system else []
    arguments = served.chat_arguments(instruction + talk.messages, length)
    # Without blocks, also where the model has some by default
    if served.takes_blocks:
        arguments["block_length"] = block or None

    # Other tries draw from other seeds.
    arguments["generator"] = generator((seed + talk.tries) % LARGEST_SEED)
    pipe = served.with_sampler(sampler, temperature)
    arguments["num_inference_steps"] = steps_to_take(served, pipe, sampler, steps, arguments)
    return written(pipe, arguments, served.limits.seconds)


def written(pipe: Any, arguments: dict[str, Any], seconds: float) -> Iterator[Reply]:
    """The reply of a call of the pipeline, as it settles in a thread of its own."""
    reply = Reply()
    start = time.monotonic()

    def work(expired: Callable[[], bool]):
        # The last of the texts is the finished one.
        for (state,) in pipe.stream(**arguments):
            reply.text = state.replace(pipe.tokenizer.mask_token, OPEN)
            reply.steps += 1
            reply.seconds = time.monotonic() - start
            if expired():
                reply.stopped = True
                return
        reply.is_done = True

    return growing(reply, work, seconds)


def summary(reply: Reply, language: str) -> str:
    """How long a reply took, or that it was stopped."""
    if reply.stopped:
        return say("status.stopped", language, step=reply.steps)
    seconds = decimal(reply.seconds, 1, language)
    return say("status.steps", language, seconds=seconds, steps=reply.steps)
