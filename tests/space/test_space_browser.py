"""The Space over HTTP and in a real browser: both languages, wide and narrow, hostile words, too many visitors."""

import concurrent.futures
import io
import json
import re
import threading
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest
from PIL import Image
from support.browsers import CHROMIUM, faults_of
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.space_pages import endpoint, make_pipe, running

from text_diffusers.space.parts.running import WORKER
from text_diffusers.space.parts.texts import TEXTS

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

TABS = ("write", "fill", "control", "compare", "corrupt", "laboratory")
# Of other models: of each tab the button, and what is there when it has done
OTHER_TABS = {
    "chat": {"chat": ("#chat-run", "#chat-json")},
    "two_levels": {"write": ("#write-run", "#write-json")},
    "latents": {
        "write": ("#write-run", "#write-json"),
        "between": ("#between-run", "#between-json"),
    },
}
FIRE = "window.__fired=1"
LABELS = ["calm", "loud"]
XSS = [
    f"<script>{FIRE}</script>",
    f"<img src=x onerror={FIRE}>",
    f"<svg onload={FIRE}>",
    f"<svg/onload={FIRE}//",
    f'"><img src=x onerror={FIRE}>',
    f"'><svg onload={FIRE}>",
    f"</textarea><img src=x onerror={FIRE}>",
    f"</span><script>{FIRE}</script>",
    f"</title><script>{FIRE}</script>",
    f"</style><img src=x onerror={FIRE}>",
    f"<iframe srcdoc='<script>parent.{FIRE}</script>'>",
    f"<iframe src=javascript:parent.{FIRE}>",
    f"<a href=javascript:{FIRE} autofocus onfocus={FIRE}>a</a>",
    f"[a](javascript:{FIRE})",
    f"![a](x){{onerror={FIRE}}}",
    f"<details open ontoggle={FIRE}>",
    f"<input autofocus onfocus={FIRE}>",
    f"<video><source onerror={FIRE}></video>",
    f"<audio src=x onerror={FIRE}>",
    f"<body onload={FIRE}>",
    f"<marquee onstart={FIRE}>",
    f"<object data=javascript:{FIRE}>",
    f"<embed src=javascript:{FIRE}>",
    f"<math><mtext><img src=x onerror={FIRE}></mtext></math>",
    f"<style>@keyframes x{{}}</style><b style=animation-name:x onanimationstart={FIRE}>",
    f"<form><button formaction=javascript:{FIRE} autofocus onfocus={FIRE}>",
    f"<template><img src=x onerror={FIRE}></template><img src=y onerror={FIRE}>",
    f"&lt;img src=x onerror={FIRE}&gt;",
    f"\\x3cimg src=x onerror={FIRE}\\x3e",
    f"<scr<script>ipt>{FIRE}</scr</script>ipt>",
    f"<img src=x one\u0000rror={FIRE}>".replace("\u0000", ""),
    f"${{{FIRE}}} {{{{{FIRE}}}}}",
    f"<noscript><p title='</noscript><img src=x onerror={FIRE}>'>",
]
BROAD, NARROW = {"width": 1200, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def address(tokenizer):
    with running(make_pipe("labelled", tokenizer)) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium: set CHROMIUM to its path")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser):
    """Opens a page, which must at the end have reported no error and asked no other machine for anything."""
    contexts, troubles = [], []

    def open_page(url, size=BROAD, locale="en-US", tolerated=(), motion="no-preference"):
        context = browser.new_context(viewport=size, locale=locale, reduced_motion=motion)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)

        def heard(message):
            if message.type == "error" and not any(text in message.text for text in tolerated):
                troubles.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: local(request.url) or troubles.append(request.url))
        page.goto(url)
        page.wait_for_selector("#tab-write-button")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def local(address):
    return re.match(r"(http://127\.0\.0\.1[:/]|data:|blob:)", address) is not None


def open_tab(page, name):
    page.click(f"#tab-{name}-button")
    page.wait_for_selector(f"#tab-{name}", state="visible")


def run_tab(page, name):
    """Click the tab's button and wait until its result is there."""
    open_tab(page, name)
    if name in ("write", "fill"):
        page.click(f"#{name}-run")
        page.wait_for_selector(f"#{name}-replay", state="visible")
    if name in ("control", "compare"):
        page.click(f"#{name}-run")
        page.wait_for_selector(
            "#control-texts td" if name == "control" else "#compare-texts ~ * img"
        )


def say_in(page, language, key):
    return TEXTS[key][("en", "ru").index(language)]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(BROAD, id="broad", marks=pytest.mark.slow),
        pytest.param(NARROW, id="narrow", marks=pytest.mark.slow),
    ],
)
def test_every_tab_works_in_both_languages_and_fits(size, address, visit):
    page = visit(address, size)
    for language, others in (("en", 1), ("ru", 0)):
        if language == "ru":
            page.click("#language label:nth-child(2)")
            page.wait_for_function("document.body.innerText.includes('Генерация')")
        for name in TABS:
            run_tab(page, name)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
            shown = page.inner_text("body")
            foreign = [
                key
                for key, words in TEXTS.items()
                if words[others] in shown and len(words[others]) > 6
            ]
            foreign = [key for key in foreign if words_only_in(key, others)]
            assert not foreign, (name, language)
            assert TEXTS[f"{name}.lead"][1 - others] in " ".join(shown.split())


def words_only_in(key, place):
    """Whether a text is in one language only, and not part of some text of the other."""
    return not any(TEXTS[key][place] in other[1 - place] for other in TEXTS.values())


def test_the_page_opens_in_the_language_of_the_browser(address, visit):
    page = visit(address, locale="ru-RU")
    page.wait_for_function("document.querySelector('#tab-write-button').innerText === 'Генерация'")
    page.wait_for_function("document.documentElement.lang === 'ru'")
    page.click("#language label:nth-child(1)")
    page.wait_for_function("document.documentElement.lang === 'en'")


@pytest.mark.slow
def test_a_text_is_replayed_from_noise(address, visit):
    page = visit(address)
    run_tab(page, "write")
    done = page.inner_text("#write-texts .textfield")
    page.locator("#write-replay input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_function(
        "document.querySelector('#write-texts .textfield').innerText.includes('·')"
    )
    page.keyboard.press("End")
    page.wait_for_function(
        "text => document.querySelector('#write-texts .textfield').innerText === text", arg=done
    )


def test_stop_ends_the_run(tokenizer, visit):
    with running(make_pipe("labelled", tokenizer), steps=20_000) as url:
        page = visit(url)
        page.click("#write-more")
        page.fill("#write-more input[type=number] >> nth=1", "20000")
        page.keyboard.press("Tab")
        page.click("#write-run")
        page.wait_for_function("/step \\d/.test(document.querySelector('#write-status').innerText)")
        workers = [thread for thread in threading.enumerate() if thread.name == WORKER]
        assert len(workers) == 1
        page.click("#write-stop")
        workers[0].join(20)
        assert not workers[0].is_alive()
        page.close()


@pytest.mark.slow
def test_sliding_the_time_masks_more(address, visit):
    page = visit(address)
    open_tab(page, "corrupt")
    page.locator("#corrupt-time input[type=range]").focus()
    page.keyboard.press("Home")
    count = (
        "document.querySelector('#corrupt-texts .textfield').innerText.split('[MASK]').length - 1"
    )
    page.wait_for_function(f"{count} === 0")
    page.keyboard.press("End")
    page.wait_for_function(f"{count} > 8")


@pytest.mark.parametrize("language", [pytest.param("en", marks=pytest.mark.slow), "ru"])
def test_errors_are_plain_words_in_the_language_chosen(language, address, visit):
    page = visit(address, locale={"en": "en-US", "ru": "ru-RU"}[language])
    title = TEXTS["tab.fill"][("en", "ru").index(language)]
    page.wait_for_function(
        "t => document.querySelector('#tab-fill-button').innerText === t", arg=title
    )
    open_tab(page, "fill")
    page.fill("#fill-text textarea", "no gap here")
    page.click("#fill-run")
    page.wait_for_selector(".toast-body")
    assert say_in(page, language, "error.gap") in page.inner_text(".toast-body")
    assert "Error" not in page.inner_text(".toast-body")


@pytest.mark.parametrize(
    "payloads",
    [pytest.param(XSS[:2], id="few"), pytest.param(XSS, id="all", marks=pytest.mark.slow)],
)
def test_hostile_words_stay_words(payloads, tokenizer, visit):
    """Typed in, as the title and as the names of labels: nothing runs and nothing is drawn of them."""
    pipe = make_pipe("labelled", tokenizer)
    pipe.register_to_config(label_names=XSS[1:3])
    with running(pipe, title=XSS[8] + XSS[1]) as url:
        page = visit(url)
        page.fill("#write-prompt textarea", "the cat")
        run_tab(page, "write")
        run_tab(page, "control")
        open_tab(page, "corrupt")
        for payload in payloads:
            page.fill("#corrupt-text textarea", payload)
            page.wait_for_timeout(60)
        open_tab(page, "fill")
        for payload in payloads:  # a gap for half of them, an error message for the others
            page.fill(
                "#fill-text textarea", payload[:20] + " ___" if XSS.index(payload) % 2 else payload
            )
            page.click("#fill-run")
            page.wait_for_timeout(60)
        open_tab(page, "control")
        words = "<img src=x onerror=__fired=1>"
        page.fill("#control-words textarea, #control-words input", words)
        page.click("#control-run")  # too long for the text, of which the error message says so
        page.wait_for_function(
            "w => document.querySelector('.toast-wrap').innerText.includes(w)", arg=words
        )
        assert page.evaluate("window.__fired") is None
        injected = "script:not([src]):not([type]), iframe, object, embed, marquee, math"
        injected += ", [onerror], [onload], [onfocus]"
        inside = page.evaluate(
            f"[...document.querySelectorAll('.gradio-container :is({injected})')].length"
        )
        assert inside == 0
        assert XSS[8] in page.inner_text("#title")
        page.close()


def join(url, number, data, session):
    body = {"data": data, "fn_index": number, "session_hash": session, "trigger_id": None}
    return httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=60)


def test_visitors_beyond_the_queue_are_turned_away(tokenizer):
    waiting = 4
    with running(make_pipe("labelled", tokenizer), waiting=waiting) as url:
        number = endpoint(url, "write-run")
        # In the order of the fields of the tab.
        data = ["the cat", -1, 20, 128, "ancestral", 1.0, 4, 0, "en"]
        with concurrent.futures.ThreadPoolExecutor(30) as pool:
            answers = list(
                pool.map(lambda visitor: join(url, number, data, f"s{visitor}"), range(30))
            )
        codes = [answer.status_code for answer in answers]
        assert set(codes) == {200, 503}
        assert waiting <= codes.count(200) <= 30 - waiting
        assert all(
            "Queue is full" in answer.text for answer in answers if answer.status_code == 503
        )
        assert httpx.get(url).status_code == 200


def test_nothing_of_the_machine_is_served(address):
    for path in ("file=/etc/passwd", "file=../../etc/passwd", "file=setup.py", "file/etc/passwd"):
        for prefix in ("", "gradio_api/"):
            answer = httpx.get(f"{address}/{prefix}{path}")
            assert answer.status_code in (400, 403, 404, 405), path
            assert "root:" not in answer.text and "setuptools" not in answer.text
    assert httpx.get(f"{address}/gradio_api/proxy=http://169.254.169.254/").status_code >= 400
    info = httpx.get(f"{address}/gradio_api/info").json()
    assert set(info["named_endpoints"]) == {"/write", "/fill"} and info["unnamed_endpoints"] == {}


def test_a_model_is_run_through_the_queue_only(address):
    body = {"data": [], "fn_index": endpoint(address, "write-run"), "session_hash": "s"}
    assert httpx.post(f"{address}/gradio_api/run/predict", json=body).status_code == 404


def test_foreign_pages_get_no_answer_they_may_read(address):
    answer = httpx.get(f"{address}/config", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in answer.headers
    large = {"files": ("large.bin", b"0" * 200_000)}
    assert httpx.post(f"{address}/gradio_api/upload", files=large).status_code == 413


SIZES = pytest.mark.parametrize("size", [BROAD, NARROW], ids=["broad", "narrow"])
LOCALES = pytest.mark.parametrize("locale", ["en-US", "ru-RU"])


def visit_in_language(visit, url, size, locale):
    """A page that has begun in the language of its visitor."""
    page = visit(url, size, locale, motion="reduce")
    page.wait_for_function("l => document.documentElement.lang === l", arg=locale[:2])
    return page


@SIZES
@LOCALES
def test_no_tab_has_a_serious_fault_for_keyboards_and_screen_readers(size, locale, address, visit):
    """With a result in each tab, and its settings unfolded."""
    page = visit_in_language(visit, address, size, locale)
    for name in TABS:
        run_tab(page, name)
        for drawer in page.query_selector_all(f"#{name}-more > button"):
            drawer.click()
        assert faults_of(page) == [], name


def make_other(kind, tokenizer):
    if kind == "latents":
        return make_latent_pipe(tokenizer, make_latent_denoiser(num_classes=2), label_names=LABELS)
    return make_pipe(kind, tokenizer)


@pytest.fixture(scope="module", params=["chat", "two_levels", "latents"])
def other(request, tokenizer):
    """The kind and the address of a model with tabs of its own."""
    with running(make_other(request.param, tokenizer)) as url:
        yield request.param, url


@pytest.mark.parametrize(
    ("size", "locale"), [(BROAD, "en-US"), (NARROW, "ru-RU")], ids=["en", "ru"]
)
def test_tabs_of_other_models_have_no_serious_fault_either(size, locale, other, visit):
    kind, url = other
    page = visit_in_language(visit, url, size, locale)
    for name, (run, result) in OTHER_TABS[kind].items():
        open_tab(page, name)
        if name == "chat":
            page.fill("#chat-message textarea", "w7 w8")
        for drawer in page.query_selector_all(f"#{name}-more > button"):
            drawer.click()
        page.click(run)
        page.wait_for_selector(result, state="visible")
        assert faults_of(page) == [], name


def test_every_control_of_the_first_screen_is_reached_by_the_keyboard(address, visit):
    page = visit(address)
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        place = "document.activeElement.closest('[id]')?.id"
        reached.append(page.evaluate(place))
    expected = ["language", "opening-again", "opening-open", "example-write", "example-fill"]
    expected += ["example-corrupt", "example-laboratory", "tab-write-button"]
    places = [reached.index(name) for name in expected]
    assert places == sorted(places)


def test_an_example_opens_its_tab_by_the_keyboard(address, visit):
    page = visit(address)
    page.locator("#example-fill").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#tab-fill", state="visible")
    page.wait_for_function("document.querySelector('#fill-text textarea').value.includes('door')")
    page.click("#fill-run")
    page.wait_for_selector("#fill-replay", state="visible")


# The first screen, addresses and files

COLOR_OF_LAST = "getComputedStyle(document.querySelector('#opening-text span:last-of-type')).color"
OPAQUE = "rgb(29, 36, 48)"


@pytest.mark.parametrize("size", [BROAD, NARROW], ids=["broad", "narrow"])
def test_the_first_screen_shows_a_text_that_settles_without_a_click(size, address, visit):
    page = visit(address, size)
    assert page.evaluate(COLOR_OF_LAST) != OPAQUE
    page.wait_for_function(f"{COLOR_OF_LAST} === '{OPAQUE}'", timeout=8000)
    place = page.locator("#opening-text").bounding_box()
    assert place["y"] + place["height"] < size["height"]

    page.click("#opening-again")
    assert page.evaluate(COLOR_OF_LAST) != OPAQUE
    page.wait_for_function(f"{COLOR_OF_LAST} === '{OPAQUE}'", timeout=8000)


def test_nothing_moves_for_a_visitor_who_wants_less_motion(address, visit):
    page = visit(address, motion="reduce")
    assert page.evaluate(COLOR_OF_LAST) == OPAQUE
    animations = "document.querySelector('#opening-text').getAnimations({subtree: true}).length"
    assert page.evaluate(animations) == 0
    assert not page.is_visible("#opening-again")


def test_the_settings_of_the_first_text_write_it_again(address, visit):
    page = visit(address)
    page.click("#opening-open")
    # One text of 20 tokens, which the tab does not begin with
    page.wait_for_function("document.querySelector('#write-more') !== null")
    page.click("#write-more")
    page.wait_for_function("document.querySelector('#write-more input[type=number]').value !== '0'")
    run_tab(page, "write")
    words = "".join(page.inner_text("#opening-text").split())
    assert "".join(page.inner_text("#write-texts .textfield").split()) == words


def test_the_link_of_a_run_gives_the_same_text_to_another_visitor(address, visit):
    page = visit(address)
    page.fill("#write-prompt textarea", "<b>a & Ω")
    page.click("#write-more")
    page.fill("#write-more input[type=number] >> nth=1", "9")
    page.keyboard.press("Tab")
    run_tab(page, "write")
    text = page.inner_text("#write-texts .textfield")
    link = page.get_attribute("#write-link", "href")
    assert link.startswith("?tab=write&") and "steps=9" in link

    other = visit(f"{address}/{link}", locale="ru-RU")
    other.wait_for_function("document.querySelector('#write-prompt textarea').value === '<b>a & Ω'")
    run_tab(other, "write")
    assert other.inner_text("#write-texts .textfield") == text


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("tab=corrupt&time=0&text=the+cat&kernel=uniform", "Изменено токенов: 0 из"),
        ("tab=laboratory&figure=eight&sampler=ddpm&steps=5", "после 5 из 5 вызовов"),
    ],
)
def test_a_tab_that_answers_at_once_opens_with_the_answer_to_its_address(
    query, shown, address, visit
):
    page = visit(f"{address}/?{query}", locale="ru-RU")
    page.wait_for_function(
        "shown => document.body.innerText.replaceAll('\\n', ' ').includes(shown)", arg=shown
    )
    page.wait_for_timeout(1500)  # in which nothing takes it away again
    assert shown in " ".join(page.inner_text("body").split())


@pytest.mark.parametrize(("locale", "language"), [("en-US", "en"), ("ru-RU", "ru")])
def test_an_address_that_does_not_fit_is_refused_in_words_and_changes_nothing(
    locale, language, address, visit
):
    page = visit(f"{address}/?tab=fill&text=a+___&steps=900", locale=locale)
    page.wait_for_selector("#notice [role=alert]")
    lead = say_in(page, language, "address.refused")
    page.wait_for_function("w => document.querySelector('#notice').innerText.includes(w)", arg=lead)
    assert "900" not in page.inner_text("#notice") and "128" in page.inner_text("#notice")
    assert page.is_visible("#tab-write") and not page.is_visible("#tab-fill")

    # The sentence follows the language switch.
    other = {"en": "ru", "ru": "en"}[language]
    page.click(f"#language label:nth-child({1 + (other == 'ru')})")
    words = say_in(page, other, "address.refused")
    page.wait_for_function(
        "w => document.querySelector('#notice').innerText.includes(w)", arg=words
    )


def test_hostile_addresses_stay_words(address, visit):
    for payload in XSS[:4]:
        for query in (
            {"tab": payload},
            {"tab": "write", payload: "1"},
            {"tab": "fill", "text": payload},
        ):
            page = visit(f"{address}/?{urlencode(query)}")
            page.wait_for_selector("#notice [role=alert]")
            assert page.evaluate("window.__fired") is None
            assert page.evaluate("document.querySelectorAll('#notice p > *').length") == 0
            page.close()


@pytest.mark.parametrize("kind", ["gif", "png", "json"])
def test_a_run_is_saved_without_a_file_of_the_server(kind, address, visit):
    page = visit(address)
    assert not page.is_visible(f"#write-{kind}")
    run_tab(page, "write")
    with page.expect_download() as download:
        page.click(f"#write-{kind}")
    content = Path(download.value.path()).read_bytes()
    assert download.value.suggested_filename.endswith(f"-write-0.{kind}")
    assert download.value.url.startswith("data:")
    if kind == "json":
        text = "".join(page.inner_text("#write-texts .textfield").split())
        assert "".join("".join(json.loads(content)["texts"]).split()) == text
    else:
        assert Image.open(io.BytesIO(content)).format == kind.upper()


def test_what_control_shows_is_saved_as_json(address, visit):
    page = visit(address)
    open_tab(page, "control")
    assert not page.is_visible("#control-json")
    run_tab(page, "control")
    with page.expect_download() as download:
        page.click("#control-json")
    content = json.loads(Path(download.value.path()).read_bytes())
    shown = page.locator("#control-texts td").all_inner_texts()
    assert [text["text"].split() for text in content["texts"]] == [one.split() for one in shown]
    assert content["settings"]["seed"] == 0 and content["tab"] == "control"


def test_the_laboratory_answers_to_the_keyboard(address, visit):
    page = visit(address)
    open_tab(page, "laboratory")
    points = "document.querySelector('#laboratory-ways .points').getAttribute('d')"
    before = page.evaluate(points)
    page.locator("#laboratory-way input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_function(f"before => {points} !== before", arg=before)
    assert "after 0 of" in page.inner_text("#laboratory-ways")

    page.locator("#laboratory-sampler input").nth(2).focus()
    page.keyboard.press("Space")
    page.wait_for_function(
        "document.querySelector('#laboratory-link')?.href.includes('sampler=dpm_solver')"
    )
