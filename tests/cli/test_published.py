"""Laws of the commands on language models, published and saved: chat, convert, and what the others make of them."""

import json
import shutil

import pytest
import torch
from support.command_line import generators, refused, run
from support.embedding_pipes import make_embedding_pipe
from support.language_models import TEMPLATE, chat_pipe
from support.published_checkpoints import GOLDEN, numbered_tokenizer

from text_diffusers import TextDiffusionPipeline
from text_diffusers.cli.chat import terminal
from text_diffusers.cli.chat.conversation import Conversation
from text_diffusers.cli.text_requests import Settings, read_requests
from text_diffusers.cli.writer import text_seed

# Of a reply, on the command line and in Python
WORDS = ["--max-new-tokens", 8, "--steps", 4, "--temperature", 0.8, "--seed", 3]
OPTIONS = {"max_new_tokens": 8, "num_inference_steps": 4, "temperature": 0.8}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def reply_by_hand(pipe, messages, turn, **changes):
    generator = torch.Generator().manual_seed(text_seed(3, turn, 0))
    return pipe(messages=messages, generator=generator, **OPTIONS | changes).texts[0]


@pytest.fixture(scope="module")
def pipe():
    return chat_pipe()


@pytest.fixture(scope="module")
def model(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat") / "model"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint as its authors left it, with a tokenizer."""
    folder = tmp_path_factory.mktemp("published") / "llada"
    shutil.copytree(GOLDEN / "llada", folder)
    names = {"mask_token": "<m>", "eos_token": "<e>"}
    tokenizer = numbered_tokenizer(96, {90: "<m>", 3: "<e>"}, **names)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


# Chat


def test_a_conversation_is_that_of_the_pipeline_called_by_hand(pipe, model):
    found = run("chat", model, *WORDS, input="w7 w8\n\nw9\nw10 w6\n")
    messages = []
    for turn, content in enumerate(("w7 w8", "w9", "w10 w6")):
        messages.append(user(content))
        messages.append(assistant(reply_by_hand(pipe, messages, turn)))
    replies = [message["content"] for message in messages[1::2]]
    assert found.stdout.splitlines() == replies and len(set(replies)) == 3
    speeds = found.stderr.splitlines()
    assert len(speeds) == 3 and all(" tokens in 4 steps, " in line for line in speeds)


def test_commands_clear_the_conversation_set_the_instruction_and_end_it(pipe, model):
    lines = ["w7", "/clear", "w7", "/system w11 w12", "/clear", "w7", "/system", "/clear", "w7"]
    found = run("chat", model, *WORDS, input="\n".join([*lines, "/exit", "w9", ""]))
    plain = reply_by_hand(pipe, [user("w7")], 0)
    instruction = {"role": "system", "content": "w11 w12"}
    held = reply_by_hand(pipe, [instruction, user("w7")], 0)
    assert found.stdout.splitlines() == [plain, plain, held, plain] and plain != held
    found = run("chat", model, *WORDS, "--system", "w11 w12", input="w7\n")
    assert found.stdout.splitlines() == [held]


def test_chat_takes_the_options_of_the_pipeline(pipe, model):
    """Options may be spelt as arguments are in Python."""
    words = ["--block_length", 4, "--approximate_cache", "dual", "--suppress_tokens", "w17"]
    words += ["--min_new_tokens", 6, "--guidance_scale", 2, "--guide_by", "masked_prompt"]
    found = run("chat", model, *WORDS, "--num_inference_steps", 2, *words, input="w7\n")
    options = {"block_length": 4, "approximate_cache": "dual", "suppress_tokens": ["w17"]}
    options |= {"min_new_tokens": 6, "guidance_scale": 2.0, "guide_by": "masked_prompt"}
    expected = reply_by_hand(pipe, [user("w7")], 0, num_inference_steps=2, **options)
    assert found.stdout == expected + "\n" and "w17" not in expected


def test_a_reply_that_is_stopped_is_forgotten_and_the_conversation_goes_on(pipe, monkeypatch):
    settings = Settings(num_inference_steps=4, temperature=0.8, max_new_tokens=8, seed=3)
    conversation = Conversation(pipe, settings)
    states = conversation.reply("w9")
    assert pipe.tokenizer.mask_token in next(states)
    states.close()
    assert conversation.messages == []

    def interrupted(self, content):
        yield "w7"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Conversation, "reply", interrupted)
        terminal.answer(conversation, "w9")
    terminal.answer(conversation, "w7 w8")
    reply = reply_by_hand(pipe, [user("w7 w8")], 0)
    assert conversation.messages == [user("w7 w8"), assistant(reply)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("/shout", "There is no command /shout: /clear begins anew"),
        ("w7 <|mask|>", "`message` must not hold <|mask|>"),
        ("w7 " * 70, "must fit into the model's 64 tokens"),
    ],
)
def test_a_script_stops_at_a_line_that_is_refused(line, message, model):
    result = run("chat", model, *WORDS, input=f"{line}\nw7\n", code=2)
    assert message in result.stderr and not result.stdout


def test_a_person_is_told_what_is_wrong_and_goes_on(pipe, monkeypatch, capsys):
    lines = iter(["/shout", "w7 <|mask|>", "w7 w8", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    settings = Settings(num_inference_steps=4, temperature=0.8, max_new_tokens=8, seed=3)
    conversation = Conversation(pipe, settings)
    terminal.talk(conversation)
    shown = capsys.readouterr()
    assert "no command /shout" in shown.err and "must not hold <|mask|>" in shown.err
    assert len(conversation.messages) == 2 and conversation.messages[1]["content"] in shown.out


def test_models_that_cannot_chat_are_sent_to_generate(tmp_path):
    assert "`text-diffusers generate MODEL" in refused("chat", "chat-and-novels")


# Published checkpoints


def test_convert_says_what_it_read_and_the_folder_writes_the_same(published, tmp_path):
    folder = tmp_path / "converted"
    lines = run("convert", published, folder, "--dtype", "bfloat16").stdout.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[:4])
    saved = TextDiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    num_parameters = saved.denoiser.num_parameters()
    assert facts == {
        "family": "LLaDA",
        "licence": "unknown; ask where it was published",
        "parameters": f"{num_parameters:,}",
        "dtype": "bfloat16",
    }
    assert lines[-1].endswith(f'TextDiffusionPipeline.from_pretrained("{folder}")')
    words = ["--prompt", "w7 w8", "--dtype", "bfloat16", *WORDS]
    assert run("generate", published, *words).stdout == run("generate", folder, *words).stdout
    assert "`folder` must be new or empty" in refused("convert", published, folder)
    assert "must be no saved pipeline" in refused("convert", folder, tmp_path / "again")


def test_published_models_are_written_with_filled_in_and_evaluated(published, tmp_path):
    pipe = TextDiffusionPipeline.from_pretrained(published)
    pipe.set_progress_bar_config(disable=True)
    options = {"block_length": 4, "min_new_tokens": 3, "suppress_tokens": ["w72"]}
    words = ["--block-length", 4, "--min-new-tokens", 3, "--suppress-tokens", "w72"]
    found = run("generate", published, "--prompt", "w7 w8", *WORDS, *words).stdout
    (text,) = pipe(["w7 w8"], generator=generators(1, seed=3), **OPTIONS | options).texts
    assert found == text + "\n"

    found = run("infill", published, "w7 [MASK] w9", "--steps", 2).stdout
    assert found == pipe(text=["w7 <m> w9"], num_inference_steps=2).texts[0] + "\n"

    (tmp_path / "held_out.txt").write_text("w7 w8 w9\nw10 w11 w12\n")
    words = ["--dataset", tmp_path / "held_out.txt", "--num-times", 2, "--json"]
    assert json.loads(run("evaluate", published, *words).stdout)["nats_per_token"] > 0
    assert run("corrupt", published, "w7 w8", "--times", "1").stdout == "1.00  <m> <m>\n"
    assert "By default the model's own ConfidenceScheduler." in (
        run("generate", published, "--scheduler", "list").stdout
    )


def test_conversations_in_a_file_are_replied_to(pipe, model, tmp_path):
    messages = [[user("w7 w8")], [user("w9"), assistant("w10"), user("w6")]]
    lines = [json.dumps({"messages": conversation}) for conversation in messages]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    words = ["--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl"]
    run("generate", model, *words, *WORDS)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    texts = pipe(messages=messages, generator=generators(2, seed=3), **OPTIONS).texts
    assert [line["texts"] for line in found] == [[text] for text in texts]
    assert [line["messages"] for line in found] == messages

    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    with pytest.raises(ValueError, match=r'bad.jsonl, line 1: .*"role" and a "content"'):
        read_requests(tmp_path / "bad.jsonl")


@pytest.mark.parametrize(
    "words, message",
    [
        (["generate", "--dtype", "int3"], "`dtype` must be None, 'auto', or a floating-point type"),
        (["generate", "--approximate-cache", "dual"], "`approximate_cache` goes with"),
        (["generate", "--guide-by", "moon"], "`guide_by` must be"),
        (["generate", "--suppress-tokens", "moon"], "`suppress_tokens` must be tokens"),
        (["generate", "--min-new-tokens", 9, "--max-new-tokens", 4], "`min_new_tokens` must be"),
        (["publish", "ada/mine", "--license", "mit"], "becomes one by `convert"),
        (["convert", "new", "--family", "moon"], "`family` must be"),
    ],
)
def test_what_does_not_fit_a_published_model_is_refused_by_name(words, message, published):
    command, *rest = words
    assert message in refused(command, published, *rest)


def test_options_that_a_pipeline_does_not_take_are_refused_by_name(tokenizer, tmp_path):
    make_embedding_pipe(tokenizer).save_pretrained(tmp_path / "lm")
    for option in (["--block-length", 4], ["--min-new-tokens", 2], ["--suppress-tokens", "a"]):
        name = option[0].removeprefix("--").replace("-", "_")
        assert f"`{name}` must be left out" in refused("generate", tmp_path / "lm", *option)
    assert "`text-diffusers generate MODEL" in refused("chat", tmp_path / "lm")
