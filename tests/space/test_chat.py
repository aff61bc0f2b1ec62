"""Laws of the chat tab: its replies are those of the pipeline, and the conversation is kept on the server."""

import gradio as gr
import pytest
import torch
from support.space_pages import CHATS, make_page, make_pipe

from text_diffusers.space.app import build
from text_diffusers.space.limits import Refusal
from text_diffusers.space.tabs import chat as chat_tab

SETTINGS = {"system": "", "length": 9, "steps": 5, "block": 0, "temperature": 0.8, "seed": 4}


def request(page, **changes):
    values = {"message": "w7 w8", "sampler": page.served.sampler} | SETTINGS | changes
    return chat_tab.ChatRequest(**values)


def reply_to(page, talk, **changes):
    """The conversation with its reply, and all states of that."""
    replies = []
    for reply in chat_tab.replies_to(page.served, talk, request(page, **changes)):
        replies.append((reply.text, reply.is_done))
    messages = [*talk.messages, {"role": "assistant", "content": replies[-1][0]}]
    return chat_tab.Talk(messages, talk.tries), replies


def asked_by_hand(page, messages, seed=4, **changes):
    options = {"max_new_tokens": 9, "num_inference_steps": 5, "temperature": 0.8} | changes
    generator = torch.Generator().manual_seed(seed)
    return page.served.pipe(messages=messages, generator=generator, **options).texts[0]


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize("kind", CHATS)
def test_replies_are_those_of_the_pipeline_to_the_whole_conversation(kind):
    page = make_page(kind)
    talk = None
    messages = [{"role": "system", "content": "w11"}]
    for message in ("w7 w8", "w9", "w10 w6"):
        talk = chat_tab.with_message(page.served, request(page, message=message, talk=talk))
        messages.append(user(message))
        talk, replies = reply_to(page, talk, system="w11")
        expected = asked_by_hand(page, messages)
        assert replies[-1] == (expected, True)
        messages.append({"role": "assistant", "content": expected})
    assert talk.messages == messages[1:]


def test_a_reply_settles_in_the_blocks_that_were_asked_for(monkeypatch):
    monkeypatch.setattr("text_diffusers.space.parts.running.FRAMES_A_SECOND", 1000)
    page = make_page("chat")
    talk = chat_tab.with_message(page.served, request(page))
    _, replies = reply_to(page, talk, block=3)
    mask = page.served.pipe.tokenizer.mask_token
    assert any(chat_tab.OPEN in text for text, _ in replies)
    assert all(mask not in text for text, _ in replies)
    assert replies[-1] == (asked_by_hand(page, [user("w7 w8")], block_length=3), True)


def test_another_try_is_drawn_from_another_seed_and_a_turn_without_a_reply_is_forgotten():
    page = make_page("chat")
    first, _ = reply_to(page, chat_tab.with_message(page.served, request(page)))
    again, replies = reply_to(page, chat_tab.without_reply(first))
    assert replies[-1][0] == asked_by_hand(page, [user("w7 w8")], seed=5)

    # A reply that was stopped leaves its turn, which can be tried again, or is dropped by the next message.
    stopped = chat_tab.Talk([*again.messages, user("w9")])
    assert chat_tab.without_reply(stopped).messages == stopped.messages
    talk = chat_tab.with_message(page.served, request(page, message="w10", talk=stopped))
    assert talk.messages == [*again.messages, user("w10")]


def test_a_reply_out_of_time_is_shown_and_not_kept():
    page = make_page("chat", seconds=0.0)
    talk = chat_tab.with_message(page.served, request(page))
    *_, reply = chat_tab.replies_to(page.served, talk, request(page, steps=40, length=40))
    assert reply.stopped and not reply.is_done and reply.steps == 1


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"message": "  "}, "error.empty"),
        ({"message": "x" * 601}, "error.long"),
        ({"message": "a <|mask|>"}, "error.mask"),
        ({"system": ["w7"]}, "error.text"),
        ({"message": "w7 " * 60}, "error.conversation"),
        ({"block": -1}, "error.range"),
        ({"length": 0}, "error.range"),
        ({"steps": 2.5}, "error.integer"),
        ({"sampler": "__class__"}, "error.choice"),
    ],
)
def test_what_is_beyond_the_limits_is_refused_before_the_model_runs(changes, key):
    page = make_page("chat")
    asked = request(page, **changes)
    with pytest.raises(Refusal) as refused:
        chat_tab.replies_to(page.served, chat_tab.with_message(page.served, asked), asked)
    assert refused.value.key == key


def test_there_is_nothing_to_try_again_before_the_first_message():
    with pytest.raises(Refusal) as refused:
        chat_tab.without_reply(None)
    assert refused.value.key == "error.silence"


def test_the_last_update_of_the_page_holds_the_reply_of_the_pipeline():
    """The function behind the button, as gradio calls it: chatbot, status, box and conversation."""
    pipe = make_pipe("chat")
    blocks = build(pipe, "a model")
    parts = {part.elem_id: part for part in blocks.blocks.values() if part.elem_id}
    (send,) = [
        function
        for function in blocks.fns.values()
        if (parts["chat-run"]._id, "click") in function.targets
    ]
    values = {"message": "w7", "length": 9, "steps": 5, "block": 0, "temperature": 0.0, "seed": 0}
    order = ["message", "system", "length", "steps", "block", "sampler", "temperature", "seed"]
    values |= {"system": "", "sampler": "own"}
    *_, last = send.fn(*[values[name] for name in order], None, "en")
    shown, status, box, talk, link, save, settings = last
    reply = pipe(messages=[user("w7")], max_new_tokens=9, num_inference_steps=5).texts[0]
    assert shown == talk.messages == [user("w7"), {"role": "assistant", "content": reply}]
    assert "steps" in status and box == ""
    assert link["link"].startswith("?tab=chat&message=w7&") and link["visible"]
    # What the file is made of: all that a visitor sees, and not the conversation before
    assert save["visible"] and settings["message"] == "w7" and "talk" not in settings


def test_the_bin_of_the_conversation_forgets_it_as_the_button_does():
    blocks = build(make_pipe("chat"), "a model")
    parts = {part.elem_id: part for part in blocks.blocks.values() if part.elem_id}
    forgetting = [
        function
        for function in blocks.fns.values()
        if {(parts["chat-clear"]._id, "click"), (parts["chat-texts"]._id, "clear")}
        & {*function.targets}
        and function.fn is not None
    ]
    assert len(forgetting) == 2
    for function in forgetting:
        assert function.fn() == ([], "", "", None) and len(function.outputs) == 4


def test_a_scheduler_with_settings_of_its_own_is_kept():
    """The first of the named samplers would write by other rules than the model was published with."""
    page = make_page("chat")
    assert page.served.sampler == "own" and page.served.own_temperature == 0.0
    own = page.served.with_sampler("own", 0.8).scheduler
    config = {"temperature": 0.8}
    assert dict(own.config) | config == dict(page.served.pipe.scheduler.config) | config


def test_a_model_without_a_template_has_no_chat():
    pipe = make_pipe("chat")
    pipe.tokenizer.chat_template = None
    tabs = [part.label for part in build(pipe).blocks.values() if isinstance(part, gr.Tab)]
    assert "Chat" not in tabs and "Write" in tabs
