"""The sales assistant: whatever its model would rather write, facts are right and no number is made up."""

import itertools
import random
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from support.browsers import CHROMIUM, faults_of
from support.sales import train_assistant

from text_diffusers import TextDiffusionPipeline

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "examples" / "sales_assistant"))

from assistant import SalesAssistant  # noqa: E402 - the path above
from catalogue import misnamed_brands, names_of_brands, read_catalogue  # noqa: E402
from conversations import (  # noqa: E402
    as_pair,
    generate,
    missing_facts,
)
from fact_patterns import (  # noqa: E402
    NUMBER,
    fact_pattern,
    has_exchanged_prices,
    unknown_amounts,
)
from page import CSS, WORDS, build, kept_parts, open_office, serve  # noqa: E402


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_pattern_matches_what_holds_all_facts_and_no_number_of_its_own(language):
    rng = random.Random(0)
    pairs = [as_pair(record) for record in generate(language, 300)]
    outcomes = Counter()
    for pair in pairs:
        facts = pair["facts"]
        pattern = fact_pattern(facts, pair["source"])
        known = " ".join([pair["source"], *facts])
        others = rng.choice(pairs)["facts"]
        for _ in range(8):
            words = pair["reply"].split(" ")
            place = rng.randrange(len(words))
            words[place : place + rng.randrange(3)] = rng.choice(
                [[], [rng.choice(facts)], [rng.choice(others)], [f"x{rng.choice(facts)}"], ["7,"]]
            )
            text = " ".join(words)
            # A sign of currency belongs to a number.
            is_whole = not re.search("[$₽]", re.sub(rf"[$]{NUMBER}|{NUMBER} ₽", "", text))
            is_known = not unknown_amounts(text, known)
            is_right = is_whole and is_known and not missing_facts(text, facts)
            is_right = is_right and not has_exchanged_prices(text, facts)
            assert bool(re.fullmatch(pattern, text)) == is_right, (facts, text)
            outcomes[is_right] += 1
        assert re.fullmatch(pattern, pair["reply"])
    assert min(outcomes.values()) > 500


def test_a_number_of_something_else_is_no_price():
    pattern = fact_pattern(["$26"], note="warranty 1 year, delivery in 2 days")
    assert re.fullmatch(pattern, "It is $26, with a warranty of 1 year.")
    assert not re.fullmatch(pattern, "It is $26, or $1 today.")
    assert not re.fullmatch(pattern, "It is $26, with a warranty of 2 years.")
    assert not re.fullmatch(pattern, "It is $26, with a warranty of 1 yearly.")
    assert unknown_amounts("1 day, 2 days, $2", "1 year, 2 days") == {"1day", "$2"}
    pattern = fact_pattern(["2 450 ₽"], note="гарантия 3 года, доставка через 2 дня")
    assert re.fullmatch(pattern, "Цена 2 450 ₽, гарантия 3 года.")
    assert not re.fullmatch(pattern, "Цена 2 450 ₽, а сегодня 3 ₽.")


@pytest.mark.parametrize("language", ["en", "ru"])
def test_two_products_never_have_each_others_price(language):
    """Replies to orders, whose two prices are exchanged by hand."""
    found = 0
    for record in generate(language, 600):
        pair = as_pair(record)
        if record["intent"] != "upsell" or record["price"] == record["other_price"]:
            continue
        pattern = fact_pattern(pair["facts"], pair["note"])
        assert re.fullmatch(pattern, pair["reply"])
        price, other = map(re.escape, (record["price"], record["other_price"]))
        exchanged = re.sub(
            f"{price}|{other}",
            lambda found, record=record: (
                record["other_price"] if found[0] == record["price"] else record["price"]
            ),
            pair["reply"],
        )
        assert missing_facts(exchanged, pair["facts"]) == []
        assert has_exchanged_prices(exchanged, pair["facts"])
        assert not re.fullmatch(pattern, exchanged)
        found += 1
    assert found > 50


@pytest.mark.parametrize(
    "fact",
    ["José", "Müller", "D’Arcy", "Anne-Marie", "O'Neil", "€45", "45 €", "£45", "990₽"]
    + ["3\u00a0990 ₽", "3\u202f990 ₽", "$45.90", "$1,299.00", "2,5 kg", "C++ (2nd)", "[a].*"],
)
def test_names_and_prices_of_all_kinds_can_be_said(fact):
    pattern = fact_pattern([fact, "Anna"])
    reply = f"Dear Anna, it is {fact}, yes."
    assert re.fullmatch(pattern, reply) and missing_facts(reply, [fact]) == []
    assert unknown_amounts(reply, [fact]) == set()
    assert not re.fullmatch(pattern, "Dear Anna, yes.")
    if fact[-1] != "]":
        assert not re.fullmatch(pattern, reply.replace(fact, f"{fact}x"))


def test_cents_are_a_part_of_a_price():
    pattern = fact_pattern(["$45.90"])
    for reply in ("It is $45.90, or $45 today.", "It is $45.90, or $90.", "$45.90 or $45.9"):
        assert not re.fullmatch(pattern, reply)
        assert unknown_amounts(reply, ["$45.90"])
    assert unknown_amounts("$4,590", ["$45.90"]) == {"$4590"}


def test_what_a_customer_says_is_no_price_of_the_team():
    facts, note = ["Kruston", "$38"], "Product: Kruston toaster, $38."
    reply = "The Kruston is $38, but you may have it for $20."
    assert re.fullmatch(fact_pattern(facts, f"{note} I saw it for $20!"), reply)
    assert not re.fullmatch(fact_pattern(facts, note), reply)
    assert unknown_amounts(reply, [note, *facts]) == {"$20"}
    # Without any fact the note is still all that may be said.
    assert not re.fullmatch(fact_pattern([], note), "It is $20.")
    assert re.fullmatch(fact_pattern([], note), "It is $38.")


@pytest.mark.parametrize(
    ("kept", "text", "is_there"),
    [
        (["is"], "This costs nothing.", False),
        (["is"], "This is it.", True),
        (["for $12"], "It is for $129.", False),
        (["for $12"], "It is for $12.", True),
        (["It is", "$12."], "It is for $12.", True),
        (["It is", "for"], "It is for $12.", True),
        (["for", "It is"], "It is for $12.", False),
        (["It is", "is for"], "It is for $12.", False),
    ],
)
def test_words_that_stay_are_words(kept, text, is_there):
    pattern = fact_pattern([], "$12, $129, $9", kept)
    assert bool(re.fullmatch(pattern, text)) == is_there


@pytest.mark.parametrize("order", itertools.permutations(["one", "two", "5 days", "5 000"]))
def test_facts_may_come_in_any_order(order):
    pattern = fact_pattern(["one", "two", "5 days", "5 000"])
    assert re.fullmatch(pattern, f"So {', '.join(order)}.")
    for fact in order:
        assert not re.fullmatch(pattern, f"So {', '.join(order)}.".replace(fact, "three"))


def test_forms_of_a_name_may_have_letters_and_numbers_of_their_own():
    pattern = fact_pattern(
        ["Nörval", "$9"], forms={"Nörval": ["café X200 «Nörval»", "cafés «Nörval»"]}
    )
    assert not re.fullmatch(pattern, "Café X200 «Nörval» and Nörvalda for $9.")
    assert re.fullmatch(pattern, "Café X200 «Nörval» for $9.")
    assert re.fullmatch(pattern, "$9 for the cafés «Nörval».")
    assert not re.fullmatch(pattern, "«Nörval» for $9.")
    assert not re.fullmatch(pattern, "Café X300 «Nörval» for $9.")


def test_a_name_is_never_said_by_half():
    """Of the replies of the team all are allowed, and none in which a name has lost its end or got another one."""
    forms = names_of_brands()
    num_changed = 0
    for record in generate("en", 200):
        pair = as_pair(record)
        pattern = fact_pattern(pair["facts"], pair["note"], forms=forms)
        assert re.fullmatch(pattern, pair["reply"]), pair["reply"]
        brand, _, kind = record["product"].partition(" ")
        for ending in (f" The {brand}!", f" The {brand}n {kind}!", f" {brand} {kind[:-1]}."):
            assert not re.fullmatch(pattern, pair["reply"] + ending), ending
        assert re.fullmatch(pattern, f"{pair['reply']} The {brand} {kind}!")
        num_changed += 1
    assert num_changed == 200


def test_a_name_stands_in_one_of_its_cases():
    """The replies of the team, with the brands of the facts; and the same replies with another kind, or without."""
    found = 0
    kinds = {own["ru"]["brand"]: own["ru"]["name"] for own in read_catalogue()}
    for record in generate("ru", 300):
        pair = as_pair(record)
        pattern = fact_pattern(pair["facts"], pair["note"], forms=names_of_brands())
        assert re.fullmatch(pattern, pair["reply"]), pair["reply"]
        brand = next(fact for fact in pair["facts"] if fact in kinds)
        for form in names_of_brands()[brand]:
            for wrong in (f"«{brand}»", f"кашпо «{brand}»", form.replace(brand, f"{brand}а")):
                changed = pair["reply"].replace(form, wrong)
                found += changed != pair["reply"]
                if changed != pair["reply"]:
                    assert not re.fullmatch(pattern, changed), changed
    assert found > 300


@pytest.fixture(scope="module", params=["en", "ru"])
def office(request, tmp_path_factory):
    """An assistant that has learned nothing, and its customers."""
    pairs = [as_pair(record) for record in generate(request.param, 240)]
    folder = train_assistant(pairs, tmp_path_factory.mktemp(request.param))
    office = open_office(folder, request.param)
    office.assistant.num_inference_steps = 8
    return office


@pytest.mark.slow
def test_a_model_that_has_learned_nothing_says_the_facts_and_no_other_number(office):
    assistant = office.assistant
    asked = [as_pair(record) for record in office.records[:8]]
    replies = assistant.write(
        [pair["source"] for pair in asked],
        [pair["tone"] for pair in asked],
        [pair["facts"] for pair in asked],
    )
    for pair, reply in zip(asked, replies, strict=True):
        assert missing_facts(reply, pair["facts"]) == []
        assert not misnamed_brands(reply, pair["facts"])
        assert not unknown_amounts(reply, f"{pair['source']} {' '.join(pair['facts'])}")
    varied = assistant.replies(asked[0]["source"], asked[0]["tone"], asked[0]["facts"], count=3)
    assert len(set(varied)) == 3


@pytest.mark.slow
def test_replies_that_do_not_read_as_those_of_training_come_last(tmp_path):
    source = "Tone: brief.\nIs the kettle there?"
    replies = ["Yes, it is in our shop near the station.", "We send it to you today."]
    pairs = [{"source": source, "reply": replies[n % 2], "tone": "brief"} for n in range(200)]
    learns = {"max_train_steps": 200, "learning_rate": 1e-2, "lr_warmup_steps": 10}
    learns |= {"length": 64, "vocab_size": 300}
    folder = train_assistant(pairs, tmp_path, **learns)
    assistant = SalesAssistant(TextDiffusionPipeline.from_pretrained(folder))

    mixed = [
        "Yes, it is in the you today.",
        "We the shop. in it is send",
        "We send it in it is today.",
    ]
    texts = [mixed[0], replies[1], mixed[1], "", replies[0], mixed[2]]
    ordered = assistant.surest_first(source, "brief", texts)
    assert set(ordered[:2]) == set(replies) and set(ordered[2:]) == set(mixed)


@pytest.mark.slow
def test_a_reply_is_written_anew_around_the_parts_that_stay(office):
    pair = as_pair(office.records[0])
    facts = pair["facts"]
    kept = [facts[-1], "and", facts[0]]
    for reply in office.assistant.replies(pair["source"], "brief", facts, 3, kept=kept):
        assert re.search(".*".join(map(re.escape, kept)), reply)
        assert missing_facts(reply, facts) == []


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: set CHROMIUM to its path")
@pytest.mark.parametrize("width", [1280, 375])
def test_in_the_browser_a_customer_gets_replies_and_one_of_them_is_rewritten(office, width):
    sync_api = pytest.importorskip("playwright.sync_api")
    words = WORDS[office.records[0]["language"]]
    page = build({office.records[0]["language"]: office})
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, css=CSS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = browser.new_page(viewport={"width": width, "height": 800})
        visit.set_default_timeout(60_000)
        visit.goto(address)

        # The first customer is there at once, with all facts ticked.
        visit.wait_for_function(
            f"document.body.innerText.includes({office.records[0]['facts'][0]!r})"
        )
        visit.get_by_role("button", name=words["write"]).click()
        visit.wait_for_selector("#replies input")
        replies = visit.locator("#replies label").all_inner_texts()
        assert all(missing_facts(reply, office.records[0]["facts"]) == [] for reply in replies)

        # One is chosen, and its first two words stay.
        visit.locator("#replies label").last.click()
        visit.wait_for_selector("#kept input")
        chosen = " ".join(replies[-1].split())
        kept = chosen.split()[:2]
        for place in range(len(kept)):
            visit.locator("#kept label").nth(place).click()
        visit.get_by_role("button", name=words["rewrite"]).click()
        visit.wait_for_function(
            f"!document.querySelector('#replies').innerText.includes({chosen!r})"
        )
        visit.wait_for_selector("#replies input")
        for reply in visit.locator("#replies label").all_inner_texts():
            assert (
                " ".join(kept) in reply and missing_facts(reply, office.records[0]["facts"]) == []
            )

        assert visit.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    page.close()


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium: set CHROMIUM to its path")
def test_the_page_has_no_serious_fault_for_keyboards_and_screen_readers(office):
    """In the visitor's language and, after a switch, in the other one, with replies on the page."""
    sync_api = pytest.importorskip("playwright.sync_api")
    own = office.records[0]["language"]
    (other,) = {"en", "ru"} - {own}
    # Both languages have the customers of one: the page does not care what they say.
    page = build({"en": office, "ru": office})
    _, address, _ = serve(page, prevent_thread_lock=True, quiet=True)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        visit = browser.new_page(locale=own, viewport={"width": 375, "height": 800})
        visit.set_default_timeout(60_000)
        visit.goto(address)
        for language in (own, other):
            words = WORDS[language]
            if language == other:
                visit.click(f"#language label:has-text('{language.upper()}')")
            visit.wait_for_function("l => document.documentElement.lang === l", arg=language)
            # A customer is opened without replies, those of the other language gone.
            visit.wait_for_selector("#facts input")
            visit.wait_for_selector("#replies input", state="detached")
            visit.get_by_role("button", name=words["write"]).click()
            visit.wait_for_selector("#replies input")
            visit.locator("#replies label").last.click()
            visit.wait_for_selector("#kept input")
            assert faults_of(visit) == [], language
        browser.close()
    page.close()


def test_words_that_follow_each_other_stay_together():
    assert kept_parts("Dear Anna, it is $129. it is", [4, 0, 1, 5]) == ["Dear Anna,", "$129. it"]
    assert kept_parts("Dear Anna", []) == []
