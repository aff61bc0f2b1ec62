"""Laws of conversations as rows: what is learned is each answer and its end, behind what a pipeline shows of it."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from support.language_models import word_tokenizer
from support.masked_lms import wordpiece_tokenizer

from text_diffusers.data.chat_rows import ChatRows
from text_diffusers.data.chat_templates import ChatTemplate, with_chat_template
from text_diffusers.data.sources import find_conversations, load_conversations
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.pipelines.chat_inputs import encode_messages

WORDS = "the cat sat on a mat and looked at some dog while it was late for its train".split()
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|> {% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }} <|end|>{% endgeneration %} {% else %}{{ message.content }} <|end|> "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def turn(role, content, **more):
    return {"role": role, "content": content} | more


def learned(turns):
    """As `load_conversations` gives them."""
    return [entry | {"learned": entry["role"] == "assistant"} for entry in turns]


def long_chat(num_exchanges, num_words=2):
    turns = [turn("system", "w6")]
    for index in range(num_exchanges):
        turns.append(turn("user", f"w{7 + index} w8"))
        turns.append(turn("assistant", " ".join([f"w{8 + index}"] * num_words)))
    return turns


def byte_tokenizer():
    texts = [" ".join(WORDS), " ".join(reversed(WORDS))]
    return with_chat_template(train_tokenizer(texts * 9, vocab_size=300), "chatml")


def learned_ids(row):
    columns = zip(row["input_ids"], row["given"], row["attention_mask"], strict=True)
    return [token for token, given, real in columns if real and not given]


def real_ids(row):
    return [id for id, real in zip(row["input_ids"], row["attention_mask"], strict=True) if real]


def rows_of(turns, tokenizer, length=64, **settings):
    chats = Dataset.from_dict({"messages": [learned(turns)]})
    return list(ChatRows(ChatTemplate(tokenizer), length, **settings)(chats))


def tokenizers():
    chatml_of_words = with_chat_template(wordpiece_tokenizer(), "chatml")
    marked = word_tokenizer(template=MARKED)
    return {
        "words": word_tokenizer(),
        "marked": marked,
        "bytes": byte_tokenizer(),
        "wordpiece": chatml_of_words,
    }


@pytest.mark.parametrize("kind", ["words", "marked", "bytes", "wordpiece"])
@pytest.mark.parametrize("one_answer", [False, True])
def test_answers_and_their_ends_are_learned_behind_what_a_pipeline_shows(kind, one_answer):
    tokenizer = tokenizers()[kind]
    words = ["w7 w9", "w10", "w11", "w12 w13", "w14 w9"]
    if kind in ("bytes", "wordpiece"):
        words = ["the cat", "sat on", "a mat", "the dog", "late"]
    turns = [turn("system", words[0])]
    for question, answer in (words[1:3], words[3:5]):
        turns += [turn("user", question), turn("assistant", answer)]
    rows = rows_of(turns, tokenizer, length=128, one_answer=one_answer)
    assert len(rows) == (2 if one_answer else 1)

    # By the tokens of each answer alone, and the pipeline's own beginning of a reply
    end = ChatTemplate(tokenizer).end_token_id
    places = [2, 4]
    answers = [
        [*tokenizer(turns[place]["content"], add_special_tokens=False)["input_ids"], end]
        for place in places
    ]
    for row, wanted in zip(rows, answers if one_answer else [sum(answers, [])], strict=True):
        assert learned_ids(row) == wanted
    for row, place in zip(rows[::-1], places[::-1], strict=False):
        (shown,) = encode_messages(tokenizer, turns[:place])
        assert real_ids(row)[: len(shown)] == shown
        assert real_ids(row)[len(shown) :] == answers[places.index(place)]


def test_a_conversation_that_is_longer_than_a_row_goes_on_in_others_by_whole_exchanges():
    tokenizer = word_tokenizer()
    turns = long_chat(num_exchanges=11)
    system, *others = turns
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    length = len(whole) // 3
    for one_answer in (False, True):
        rows = rows_of(turns, tokenizer, length, one_answer=one_answer)
        texts = [tokenizer.decode(real_ids(row)) for row in rows]
        # Each answer is learned once, behind its question, the instruction and nothing that is cut.
        contents = [
            content
            for row in rows
            for content in tokenizer.decode(learned_ids(row)).split(" <|end|>")
            if content.strip()
        ]
        assert [content.strip() for content in contents] == [
            entry["content"] for entry in others if entry["role"] == "assistant"
        ]
        for text in texts:
            assert text.startswith("<|system|> w6 <|end|> <|user|>") or kind_of_system(text)
            assert text.endswith("<|end|>")
        assert len(rows) == (11 if one_answer else 4)


def kind_of_system(text):
    # The vocabulary has no token for the role.
    return "w6 <|end|> <|user|>" in text


@pytest.mark.parametrize("from_answer", [False, True])
def test_a_shared_row_holds_what_the_rows_alone_hold_each_up_to_the_end_of_a_block(from_answer):
    tokenizer = word_tokenizer()
    chats = Dataset.from_dict(
        {"messages": [learned(long_chat(1 + index % 3, 1 + index % 4)) for index in range(12)]}
    )
    settings = {"length": 64, "block_length": 4, "blocks_from_answer": from_answer}
    alone = ChatRows(ChatTemplate(tokenizer), **settings)(chats)
    shared = ChatRows(ChatTemplate(tokenizer), shares_rows=True, **settings)(chats)
    assert len(shared) < len(alone) / 2

    parts = []
    for row in shared:
        for number in range(1, max(row["segment_ids"]) + 1):
            columns = [i for i, segment in enumerate(row["segment_ids"]) if segment == number]
            assert columns == list(range(columns[0], columns[-1] + 1))
            cut = {name: [row[name][i] for i in columns] for name in row}
            parts.append((real_ids(cut), learned_ids(cut)))
            # What follows begins behind the block in which the last answer ends.
            begin = max(
                i
                for i, token in enumerate(cut["input_ids"])
                if token == tokenizer.convert_tokens_to_ids("<|assistant|>")
            )
            size = len(columns) - begin - 1 if from_answer else len(columns)
            assert size % 4 == 0 or columns[-1] == 63
    assert sorted(parts) == sorted((real_ids(row), learned_ids(row)) for row in alone)


def test_masks_stand_behind_an_answer_where_it_is_judged():
    tokenizer = word_tokenizer()
    settings = {"one_answer": True, "blanks": True}
    turns = [turn("user", "w7 w8"), turn("assistant", "w9")]
    mask, end = tokenizer.mask_token_id, ChatTemplate(tokenizer).end_token_id
    (row,) = rows_of(turns, tokenizer, length=16, **settings)
    shown = len(encode_messages(tokenizer, turns[:1])[0])
    assert real_ids(row)[shown:] == [9, end] + [mask] * (14 - shown)
    assert learned_ids(row) == [9, end]

    (row,) = rows_of(
        turns, tokenizer, length=16, block_length=4, blocks_from_answer=True, **settings
    )
    assert real_ids(row)[shown:] == [9, end, mask, mask]
    (row,) = rows_of(turns, tokenizer, length=16, block_length=4, fills_left=True, **settings)
    first = row["given"].index(False, row["attention_mask"].index(1))
    assert first % 4 == 0 and real_ids(row)[shown:] == [9, end, mask, mask]


def test_what_fits_into_no_row_is_left_out_and_said(caplog):
    tokenizer = word_tokenizer()
    turns = [turn("user", "w7"), turn("assistant", "w8 " * 30)]
    turns += [turn("user", "w7"), turn("assistant", "w9")]
    rows = rows_of(turns, tokenizer, length=20)
    assert [learned_ids(row)[:-1] for row in rows] == [[9]]
    assert "left out 1 of 2 answers" in caplog.text and "`--length 64`" in caplog.text
    with pytest.raises(ValueError, match="`dataset` must have an answer to learn, got none of 1"):
        rows_of(turns[:2], tokenizer, length=20)

    # Of a stream, what is left out of its first conversations is said before any row is asked for.
    caplog.clear()
    stream = Dataset.from_dict({"messages": [learned(turns)] * 3}).to_iterable_dataset()
    ChatRows(ChatTemplate(tokenizer), 20)(stream)
    assert "left out 3 of 6 answers in the first 3 conversations" in caplog.text

    # Neither can a name of a token be learned, nor what a template refuses.
    caplog.clear()
    strict = word_tokenizer(
        template="{% if messages[0].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
        + word_tokenizer().chat_template
    )
    chats = [turns[2:], [turn("system", "w6"), *turns[2:]], [turn("user", "<|pad|>"), *turns[3:]]]
    chats = Dataset.from_dict({"messages": [learned(chat) for chat in chats]})
    rows = ChatRows(ChatTemplate(strict), 20)(chats)
    assert len(rows) == 1
    assert "1 that the chat template refuses (no user)" in caplog.text
    assert "1 with the name of a special token" in caplog.text


@pytest.mark.parametrize("one_answer", [False, True])
def test_an_exchange_that_cannot_be_learned_takes_no_others_with_it(one_answer):
    tokenizer = word_tokenizer()
    turns = [turn("assistant", "w6")]  # to nothing that was asked
    for question, answer in (("w7", "w10"), ("<|pad|>", "w11"), ("w8", "w12")):
        turns += [turn("user", question), turn("assistant", answer)]
    rows = rows_of(turns, tokenizer, one_answer=one_answer)
    found = [learned_ids(row)[:-1] for row in rows]
    assert sorted(found) == [[10], [12]]


@pytest.mark.parametrize(
    "template, error",
    [
        (None, "`chat_template` is needed: the tokenizer has none"),
        ("{% for m in messages %}{{ m.content }} {% endfor %}", "must put a special token behind"),
        (
            "{{ messages | length }} {% for m in messages %}{{ m.content }} <|end|> {% endfor %}",
            "must write a conversation as it goes on, .* '1 w7",
        ),
        (
            "{% for m in messages %}<|user|> {% generation %}{{ m.content }} <|end|>{% endgeneration %} {% endfor %}",
            "must mark each answer .* of a conversation with 1 it marks 2",
        ),
    ],
)
def test_templates_that_cannot_be_learned_by_are_refused_by_name(template, error):
    tokenizer = word_tokenizer(template=template)
    with pytest.raises(ValueError, match=error):
        rows_of([turn("user", "w7"), turn("assistant", "w8")], tokenizer)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("form", ["messages", "conversations", "texts", "turns"])
@pytest.mark.parametrize("streaming", [False, True])
def test_all_forms_of_conversations_are_the_same_turns(form, suffix, streaming, tmp_path):
    question, answer = "How are you?", 'I am 7, "well".'
    records = {
        "messages": {"messages": [turn("user", question), turn("assistant", answer)]},
        "conversations": {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": answer},
            ]
        },
        "texts": {"prompt": question, "completion": answer},
        "turns": {
            "prompt": [turn("user", question)],
            "completion": [turn("assistant", answer)],
        },
    }
    rows = [records[form] | {"id": index} for index in range(3)]
    path = tmp_path / f"chats{suffix}"
    if suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        if form != "texts":
            pytest.skip("a table of commas holds no lists")
        lines = ['"How are you?","I am 7, ""well""."'] * 3
        path.write_text("prompt,completion\n" + "\n".join(lines))

    columns = find_conversations(str(path))
    chats = list(load_conversations(str(path), columns, streaming=streaming))
    assert [chat["messages"] for chat in chats] == [
        [
            {"role": "user", "content": question, "learned": False},
            {"role": "assistant", "content": answer, "learned": True},
        ]
    ] * 3


def test_only_a_completion_is_learned_and_texts_stay_texts(tmp_path):
    path = tmp_path / "mixed.jsonl"
    prompt = [turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    answer = [turn("assistant", "d"), turn("assistant", "e", weight=0)]
    path.write_text(json.dumps({"prompt": prompt, "completion": answer}))
    (chat,) = load_conversations(str(path), find_conversations(str(path)))
    assert [entry["learned"] for entry in chat["messages"]] == [False, False, False, True, False]

    path.write_text(json.dumps({"text": "a", "prompt": "b", "completion": "c"}))
    assert find_conversations(str(path)) == {}
    path.write_text(json.dumps({"dialog": prompt}))
    assert find_conversations(str(path), text_column="dialog") == {"messages": "dialog"}


@pytest.mark.parametrize(
    "record, error",
    [
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": ["a", "b"]}, "chats.jsonl, line 2: a conversation must be a list of turns"),
        ({"messages": [{"speaker": "a"}]}, 'line 2: a turn must have a "role" and a "content"'),
        ({"messages": [{"from": "alice", "value": "a"}]}, 'line 2: "from" must be one of'),
        ({"messages": [turn("user", 7)]}, "line 2: a turn must say a text, got '7'"),
        ({"messages": [turn("user", [{"type": "image"}])]}, "line 2: a turn must say a text"),
        ({"messages": [turn("user", "a")]}, None),
        ({"messages": []}, None),
    ],
)
def test_what_is_no_conversation_is_named_and_what_says_nothing_left_out(
    record, error, tmp_path, caplog
):
    good = {"messages": [turn("user", [{"type": "text", "text": "a"}]), turn("assistant", "b")]}
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    columns = find_conversations(str(path))
    if error is not None:
        with pytest.raises(ValueError, match=error):
            load_conversations(str(path), columns)
        return
    assert len(load_conversations(str(path), columns)) == 1
    assert "left out 1 of 2 rows" in caplog.text
