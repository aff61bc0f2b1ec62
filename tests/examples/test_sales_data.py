"""The data of the sales assistant: what a reply says is true, and nothing that is held out is in the training part."""

import json
import re
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "sales_assistant"
sys.path.append(str(FOLDER))

from catalogue import (  # noqa: E402 - the path above leads to them
    ADJECTIVES,
    CASES,
    declined,
    misnamed_brands,
    read_catalogue,
)
from conversations import (  # noqa: E402
    FACTS,
    HELD_OUT_PRODUCTS,
    INTENTS,
    LANGUAGES,
    TONES,
    ConversationWriter,
    generate,
    held_out_part,
    missing_facts,
    plural_form,
    read_phrases,
    split,
    with_note,
)
from data_files import check_record, completed, conversations_to_ask, read_records, write_records  # noqa: E402
from make_data import DataOptions, main, paths_of  # noqa: E402

from text_diffusers.data.sources import (  # noqa: E402
    find_conversations,
    load_conversations,
    load_train_and_validation,
)

COUNT = 3000
TURNS = [{"role": "user", "content": "How much?"}, {"role": "assistant", "content": "It is $45."}]


@pytest.fixture(scope="module", params=LANGUAGES)
def records(request):
    return generate(request.param, COUNT, seed=0)


def reply_of(record):
    return record["messages"][-1]["content"]


# What is written


def test_every_reply_contains_all_its_facts(records):
    for record in records:
        assert len(record["facts"]) >= 2
        assert not missing_facts(reply_of(record), record["facts"]), record


def test_a_note_holds_all_facts_of_the_reply(records):
    for record in records:
        assert all(fact in record["note"] for fact in record["facts"]), record
        assert with_note(record)["messages"][0] == {"role": "system", "content": record["note"]}


def test_facts_are_those_of_the_catalogue(records):
    """Read from the catalogue again, in another way than they were written."""
    by_name = {entry[records[0]["language"]]["name"]: entry for entry in read_catalogue()}
    for record in records:
        entry = by_name[record["product"]]
        own = entry[record["language"]]
        assert digits(record["price"]) == str(own["price"])
        assert record["stock"] == entry["stock"]
        assert digits(record["delivery"]) in ("", str(entry["delivery_days"]))
        assert {own["brand"], own["name"]} & {*record["facts"]}

        figures = {digits(fact) for fact in record["facts"]} - {""}
        true = [own["price"], own["offer"]]
        true += [entry[name] for name in ("stock", "delivery_days", "warranty_years")]
        if record["intent"] == "upsell":
            true.append(by_name[record["other_product"]][record["language"]]["price"])
        assert figures <= set(map(str, true)), record


def digits(text):
    return re.sub(r"\D", "", text)


def test_a_conversation_takes_turns_and_ends_with_the_reply(records):
    for record in records:
        roles = [turn["role"] for turn in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(turn["content"].strip() == turn["content"] != "" for turn in record["messages"])
    combinations = {(record["tone"], record["intent"]) for record in records}
    assert combinations == set(product(TONES, INTENTS))


def test_the_name_is_said_in_all_tones_but_the_brief_one(records):
    for record in records:
        assert (record["customer"]["name"] in record["facts"]) == (record["tone"] != "brief")


def test_nothing_of_the_phrases_is_left_over(records):
    for record in records:
        texts = [turn["content"] for turn in record["messages"]]
        for text in [*texts, record["note"], record["customer"]["history"]]:
            assert not re.search(r"[{}<>_]|  |\s[.,!?]", text), text
            assert text[0] == text[0].upper() or text in record["customer"]["history"]
            if record["language"] == "ru":
                assert not re.search("[A-Za-z]", text), text
            else:
                assert text.isascii(), text


def test_replies_differ(records):
    first = [reply_of(record) for record in records[:1000]]
    assert len(set(first)) >= 985
    conversations = {json.dumps(record["messages"]) for record in records}
    assert len(conversations) == COUNT


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reply_can_be_phrased_in_hundreds_of_ways(language):
    """Whatever the product and the customer; in the brief tone in a hundred."""
    for tone, case in product(TONES, FACTS):
        table = read_phrases(language)[tone]
        ways = 1
        for symbol in ("opening", "body", "closing"):
            names = [f"{symbol}.{part}" for part in (case, *case.split("."))] + [symbol]
            ways *= len(set(next(table[name] for name in names if name in table)))
        assert ways >= (100 if tone == "brief" else 180), (tone, case)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_body_names_what_a_right_reply_contains(language):
    """By the phrases themselves, whatever is drawn of them."""
    phrases = read_phrases(language)
    for tone, (case, facts) in product(TONES, FACTS.items()):
        for body in phrases[tone][f"body.{case}"]:
            for fact in facts:
                if fact.endswith("brand"):
                    name = "other" if fact == "other_brand" else "product"
                    pattern = rf"\{{{name}(_acc|_gen)?\}}"
                else:
                    pattern = rf"\{{{fact}\}}"
                assert re.search(pattern, body), (tone, case, fact, body)


def test_both_languages_have_the_same_phrases_and_products_agree_in_every_word():
    tables = [read_phrases(language) for language in LANGUAGES]
    for tone in TONES:
        assert tables[0][tone].keys() == tables[1][tone].keys()
    for language, table in zip(LANGUAGES, tables, strict=True):
        genders = {entry[language]["gender"] for entry in read_catalogue()}
        for forms in table["agreement"].values():
            assert forms.keys() >= genders


def test_numbers_take_their_russian_forms():
    forms = {number: plural_form("ru", number) for number in range(1, 130)}
    assert {number for number in forms if forms[number] == "one"} == {
        *(1, 21, 31, 41, 51, 61, 71, 81, 91, 101, 121)
    }
    assert [forms[number] for number in (2, 4, 12, 14, 22, 112)] == [
        *("few", "few", "many", "many", "few", "many")
    ]
    delivery = {record["delivery"] for record in generate("ru", 500)}
    assert {"завтра", "через 2 дня", "через 5 дней"} <= delivery


def test_the_catalogue_is_whole():
    catalogue = read_catalogue()
    ids = {entry["id"] for entry in catalogue}
    assert len(catalogue) == len(ids) == 40 and ids > set(HELD_OUT_PRODUCTS)
    for language in LANGUAGES:
        assert len({entry[language]["brand"] for entry in catalogue}) == 40
        for entry in catalogue:
            assert entry[language]["brand"] in entry[language]["name"]
            assert 0 < entry[language]["offer"] < entry[language]["price"]
    for entry in catalogue:
        companions = {*entry["goes_with"]} - {*HELD_OUT_PRODUCTS}
        assert companions and companions <= ids - {entry["id"]}


# Facts are words of their own.


@pytest.mark.parametrize(
    "reply, fact, is_there",
    [
        ("Цена — 12 990 ₽.", "2 990 ₽", False),
        ("Цена — 2 990 ₽.", "2 990 ₽", True),
        ("It is $45.", "$45", True),
        ("It is $45.50.", "$45", False),
        ("It is $1,145.", "145", False),
        ("There are 14 in stock.", "4 in stock", False),
        ("Жанна, здравствуйте!", "Анна", False),
        ("Анна, здравствуйте!", "Анна", True),
    ],
)
def test_a_fact_is_not_found_within_another(reply, fact, is_there):
    assert (missing_facts(reply, [fact]) == []) == is_there


# Parts


def test_what_is_held_out_is_nowhere_in_the_training_part(records):
    train, validation = split(records)
    assert 0.08 < len(validation) / COUNT < 0.25 and len(train) + len(validation) == COUNT

    language = records[0]["language"]
    brands = [
        entry[language]["brand"] for entry in read_catalogue() if entry["id"] in HELD_OUT_PRODUCTS
    ]
    for record in train:
        text = json.dumps(record, ensure_ascii=False)
        assert not any(brand in text for brand in brands)
    assert {record["held_out"] for record in validation} == {"product", "phrasing"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_pairs_of_a_product_and_a_body_are_never_learned(language, monkeypatch):
    """By the replies as the writer makes them, of all turns."""
    made = []
    make_reply = ConversationWriter.reply

    def noted(self, situation, *arguments):
        text, body = make_reply(self, situation, *arguments)
        made.append((text, (situation.product["id"], body)))
        return text, body

    monkeypatch.setattr(ConversationWriter, "reply", noted)
    train, validation = split(generate(language, 4000, seed=1))
    pairs = dict(made)
    learned = {pairs[text] for record in train for text in assistant_texts(record)}
    asked = {
        pairs[text]
        for record in validation
        if record["held_out"] == "phrasing"
        for text in assistant_texts(record)
    }

    # A conversation of several turns also has pairs that are not held out.
    new = asked - learned
    assert len(new) > 50
    for record in validation:
        if record["held_out"] == "phrasing":
            assert any(pairs[text] in new for text in assistant_texts(record))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_body_is_learned_with_most_products(language):
    """So that no sentence of the validation part is new."""
    ids = [entry["id"] for entry in read_catalogue()]
    for tone, case in product(TONES, FACTS):
        for body in read_phrases(language)[tone][f"body.{case}"]:
            learned = [name for name in ids if not held_out_part(name, [body])]
            assert len(learned) >= 30, body


def assistant_texts(record):
    waiting = {
        line for tone in TONES for line in read_phrases(record["language"])[tone]["body.wait"]
    }
    texts = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
    return [text for text in texts if text not in waiting]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_catalogue_cannot_be_learned_by_heart(language, tmp_path):
    """Training conversations share most of their kinds of products with it, but neither brands nor figures."""
    main(DataOptions(language=language, count=700, output=str(tmp_path)))
    train, held_out = (read_records(path) for path in paths_of(str(tmp_path)))
    entries = [entry[language] for entry in read_catalogue()]
    brands = {entry["brand"] for entry in entries}
    names = {entry["name"] for entry in entries}
    kinds = {without_brand(name) for name in names}

    products = [record["product"] for record in train]
    assert len(set(products)) > 0.9 * len(train) and not names & set(products)
    # A fifth of the kinds are made up, and hardly one of them is there twice.
    made_up = [kind for kind in map(without_brand, products) if kind not in kinds]
    assert 0.15 < len(made_up) / len(train) < 0.25
    assert len(set(made_up)) > 0.8 * len(made_up)
    for record in train:
        assert not missing_facts(reply_of(record), record["facts"])
        assert not any(re.search(rf"\b{brand}\b", str(record)) for brand in brands)
    assert {record["product"] for record in held_out} <= names

    # A kind of product says next to nothing of its price.
    prices = [int(digits(record["price"])) for record in train if "sold out" not in record["note"]]
    assert max(prices) > 50 * min(prices) and len(set(prices)) > 300


def test_made_up_kinds_are_declined_as_the_catalogue_declines_its_own():
    """The nouns and adjectives of the catalogue whose declension is the common one, written by hand."""
    found = 0
    for entry in read_catalogue():
        own = entry["ru"]
        *adjectives, noun = without_brand(own["name"]).split()
        gender = own["gender"]
        regular = noun.endswith("а") if gender == "feminine" else noun[-1] not in "аеёийоуьыэюя"
        if (
            gender not in ADJECTIVES
            or not regular
            or any(word[-3:] not in ("ный", "ная") for word in adjectives)
        ):
            continue
        stems = [word[:-3] for word in adjectives]
        nouns = declined(noun.removesuffix("а"), gender)
        for number, case in enumerate(CASES):
            kind = [*(stem + ADJECTIVES[gender][number] for stem in stems), nouns[number]]
            # "кошелёк" loses its vowel.
            if noun not in ("кошелёк", "мешок"):
                assert without_brand(own[case]) == " ".join(kind)
                found += 1
    assert found > 60


def test_a_brand_with_another_kind_is_found(records):
    """The kind of the product, replaced by one of another product, or left out."""
    entries = {entry[records[0]["language"]]["brand"]: entry for entry in read_catalogue()}
    changed = 0
    for record in records:
        text, facts = reply_of(record), record["facts"]
        assert not misnamed_brands(text, facts)
        assert not misnamed_brands(text.replace(record["product"], ""), facts)
        brand = next(brand for brand in entries if brand in record["product"])
        name = record["product"]
        for other in (brand, name.replace(without_brand(name), "кашпо")):
            wrong = text.replace(name, other)
            assert (misnamed_brands(wrong, facts) == [brand]) == (name in text)
        changed += name in text
    assert changed > 100


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_source_ends_with_the_facts_and_every_second_to_learn_from_is_short(language, tmp_path):
    main(DataOptions(language=language, count=300, output=str(tmp_path), pairs=True))
    train, held_out = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in paths_of(str(tmp_path))
    )
    for place, pair in enumerate(train + held_out):
        *before, last = pair["source"].split("\n")
        assert last.partition(": ")[2] == ", ".join(pair["facts"]) + "."
        assert not missing_facts(pair["reply"], pair["facts"])
        if place >= len(train) or place % 2 == 0:
            assert len(before) >= 4
        elif place % 4 == 1:
            assert not before
        else:
            # The brands of the products are among the facts.
            assert len(before) == 1
            named = [fact for fact in pair["facts"] if fact in before[0]]
            assert len(named) == len(before[0].split(", "))


def without_brand(name):
    return " ".join(word for word in name.split() if word.strip("«»").islower())


# Files


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_files_give_back_what_was_written(records, tmp_path, suffix):
    path = tmp_path / f"sales{suffix}"
    write_records(records[:200], path)
    assert read_records(path) == records[:200]


@pytest.mark.parametrize("output", ["sales.jsonl", "sales.csv", "sales"])
def test_the_same_seed_writes_the_same_files(output, tmp_path, capsys):
    for folder, seed in (("one", 7), ("two", 7), ("three", 8)):
        main(
            DataOptions(language="ru", count=300, seed=seed, output=str(tmp_path / folder / output))
        )
    one, two, three = (
        [path.read_bytes() for path in sorted((tmp_path / folder).rglob("sales*.*"))]
        or [path.read_bytes() for path in sorted((tmp_path / folder / "sales").iterdir())]
        for folder in ("one", "two", "three")
    )
    assert one == two and len(one) == 2
    assert all(mine != other for mine, other in zip(one, three, strict=True))
    assert capsys.readouterr().out.count("conversations") == 6


def test_recipes_read_the_folder_as_conversations_with_their_split(tmp_path):
    main(DataOptions(language="en", count=300, output=str(tmp_path / "sales"), note=True))
    source = str(tmp_path / "sales")
    columns = find_conversations(source)
    assert columns == {"messages": "messages"}
    train, validation = load_train_and_validation(
        partial(load_conversations, source, columns), source
    )
    written = read_records(tmp_path / "sales" / "train.jsonl")
    assert len(train) == len(written) and 240 <= len(train) < 300 - len(validation) / 2


def test_a_table_of_questions_and_replies_is_enough(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "question;reply;customer_name;order;stock\n"
        'How much?;"It is $45; tomorrow.";Anna;A-7;3\nAnd now?;Yes.;;;\n',
        encoding="utf-8",
    )
    first, second = read_records(path)
    assert first["messages"][-1] == {"role": "assistant", "content": "It is $45; tomorrow."}
    assert first["customer"] == {"name": "Anna", "history": ""} and first["stock"] == 3
    assert second["facts"] == [] and second["product"] == ""


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"messages": None}, "`messages`"),
        ({"messages": TURNS[:1]}, "`messages` must end with a reply of the assistant"),
        ({"messages": "Hi"}, "`messages` must be JSON"),
        ({"messages": [{"role": "user"}]}, "`messages` must end with a reply"),
        ({"messages": [3]}, "`messages`: a conversation must be a list of turns"),
        (
            {"tone": "formall"},
            "`tone` must be one of formal, friendly, brief, got 'formall'; did you mean",
        ),
        ({"intent": "buy"}, "`intent` must be one of question, price"),
        ({"language": "de"}, "`language` must be one of en, ru, got 'de'."),
        ({"stock": "many"}, "`stock` must be a number of pieces, got 'many'."),
        ({"stock": -1}, "`stock` must be a number of pieces, got -1."),
        ({"price": 45}, "`price` must be a text, got 45."),
        ({"facts": ["$54"]}, "`facts` must stand in the reply, which lacks '$54'."),
        ({"facts": "$45"}, "`facts` must be JSON"),
        ({"facts": [45]}, "`facts` must be a list of strings"),
        ({"customer": "Anna"}, "`customer` must be an object"),
    ],
    ids=lambda value: "-".join(map(str, value.items()))[:30] if isinstance(value, dict) else "",
)
def test_rows_that_do_not_fit_are_refused_by_line_and_column(changes, message, tmp_path):
    row = {"messages": TURNS, **changes}
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"messages": TURNS}) + "\n\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError) as error:
        read_records(path)
    assert str(error.value).startswith(f"{path}, line 3") and message in str(error.value)


def test_a_column_that_looks_misspelt_is_warned_of(tmp_path, caplog):
    path = tmp_path / "mine.jsonl"
    row = {"messages": TURNS, "prise": "$45", "order": "A-7"}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(row)}\n")
    assert read_records(path)[0]["price"] == ""
    assert caplog.messages == [f"{path}: `prise` is not read; did you mean `price`?"]


def test_a_row_without_a_conversation_and_other_files_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="row 1: `messages` must be there, or `question` and `reply`."
    ):
        check_record({"price": "$45"}, "row 1")
    with pytest.raises(ValueError, match="must end in .jsonl or .csv"):
        read_records(tmp_path / "mine.xlsx")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="holds no conversation"):
        read_records(tmp_path / "empty.jsonl")
    (tmp_path / "bad.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"bad.jsonl, line 1: the line must be JSON"):
        read_records(tmp_path / "bad.jsonl")


def test_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="`language` must be one of"):
        DataOptions(language="eng")
    with pytest.raises(ValueError, match="`output` must end in .jsonl or .csv, or be a folder"):
        DataOptions(output="sales.txt")
    with pytest.raises(ValueError, match="`count` must be an integer of at least 1"):
        generate("en", 0)


# A company's own


def test_conversations_of_a_company_become_pairs(tmp_path):
    """Of a table with a question, a reply and a price; the second line has no more than a conversation."""
    head = "question;reply;customer_name;product;price;stock;num_messages\n"
    rows = ["How much?;It is €45.90, Zoë.;Zoë;Kettle;€45.90;3.0;7", "And when?;Soon.;;;;;"]
    rows += [f"Question {number}?;Answer {number}.;;;;;" for number in range(200)]
    source = tmp_path / "mine.csv"
    source.write_text("\ufeff" + head + "\n".join(rows), encoding="utf-8")
    main(DataOptions(input=str(source), output=str(tmp_path / "pairs"), pairs=True))
    parts = [
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in paths_of(str(tmp_path / "pairs"))
    ]
    assert len(parts[0]) + len(parts[1]) == 202 and 1 <= len(parts[1]) < 30
    pairs = {pair["reply"]: pair for part in parts for pair in part}
    pair = pairs["It is €45.90, Zoë."]
    assert pair["note"] == "Customer: Zoë.\nProduct: Kettle, €45.90, 3."
    assert pair["facts"] == ["Zoë", "€45.90"]
    assert pair["source"].endswith("Say: Zoë, €45.90.")
    assert pairs["Soon."]["facts"] == [] and pairs["Soon."]["note"] == ""


def test_the_assistant_is_asked_about_conversations_of_a_file(tmp_path):
    """Each in its language."""
    path = tmp_path / "mine.csv"
    path.write_text(
        "question,reply,language,tone,price\nHow much?,It is $45.,en,brief,$45\n"
        "Сколько?,Стоит 45 ₽.,ru,,45 ₽\nAnd now?,Yes.,,,\n",
        encoding="utf-8",
    )
    english = conversations_to_ask("en", str(path))
    assert [record["tone"] for record in english] == ["brief", ""]
    assert [record["facts"] for record in english] == [["$45"], []]
    (russian,) = conversations_to_ask("ru", str(path))[:1]
    assert russian["note"] == "Товар: 45 ₽."

    path.write_text("question,reply,language\nHow much?,It is $45.,en\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`conversations` must hold some with language 'ru'"):
        conversations_to_ask("ru", str(path))


def test_what_is_nothing_in_json_is_left_out(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"question": "How much?", "reply": "It is $45.", "price": None, "facts": None}
    row["customer"] = {"name": None, "history": "new"}
    path.write_text("\ufeff" + json.dumps(row), encoding="utf-8")
    (record,) = read_records(path)
    assert record["price"] == "" and record["facts"] == []
    assert record["customer"] == {"name": "", "history": "new"}
    assert completed(record, "ru")["note"] == "Клиент: new."


def test_a_file_in_another_encoding_is_named(tmp_path):
    texts = {
        "mine.csv": "question,reply\nСколько?,Много.",
        "mine.jsonl": '{"question": "Сколько?", "reply": "Много."}',
    }
    for name, text in texts.items():
        path = tmp_path / name
        path.write_bytes(text.encode("cp1251"))
        with pytest.raises(ValueError, match=f"{name}, line [12]: not UTF-8 .*iconv"):
            read_records(path)
