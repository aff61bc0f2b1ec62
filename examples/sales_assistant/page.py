"""The assistant in the browser: pick a customer, get five replies, keep the words that are good, rewrite the rest.

    python examples/sales_assistant/page.py --model_en runs/assistant_en --model_ru runs/assistant_ru

opens http://127.0.0.1:7860. Either model may be left out: the page then speaks the other language only. The customers
are made up, or those of a file: `--conversations mine.csv`.
"""

from dataclasses import dataclass, field
from typing import Any

import gradio as gr
import torch
from assistant import DRAWS, SalesAssistant, usual_texts
from conversations import LANGUAGES, TONES, Record, as_pair
from data_files import conversations_to_ask

from text_diffusers import TextDiffusionPipeline
from text_diffusers.space.parts.interface import TELL_LANGUAGE, preferred_language
from text_diffusers.space.parts.look import HEAD, theme
from text_diffusers.training.config import check_options, option
from text_diffusers.training.recipes import run

NUM_CUSTOMERS = 24
NUM_REPLIES = 5
# Of the noise of which a text is made
SEEDS = 1_000_000
# What the pipeline says of texts that do not fit
TOO_LONG = ("`pattern` must have a match", "`min_new_tokens` must be at most")

WORDS = {
    "en": {
        "title": "# A sales assistant\nA model of text diffusion offers five replies. Each holds the facts that you "
        "tick, and no number that the note does not have.",
        "language": "Language",
        "customer": "Customer",
        "chat": "Conversation",
        "note": "What the team sees",
        "tone": "Tone",
        "strength": "How much of it (0 is none, 1 is what was learned)",
        "facts": "Facts that every reply must hold",
        "write": "Write five replies",
        "replies": "Replies",
        "kept": "Words of the chosen reply that stay",
        "rewrite": "Rewrite the rest",
        "no_reply": "Choose a reply first.",
        "no_place": "No reply can hold all of this: keep fewer words.",
        "tones": {"formal": "formal", "friendly": "friendly", "brief": "brief"},
    },
    "ru": {
        "title": "# Помощник отдела продаж\nМодель текстовой диффузии предлагает пять ответов. В каждом есть "
        "отмеченные факты и нет ни одного числа, которого не было бы в записке.",
        "language": "Язык",
        "customer": "Клиент",
        "chat": "Разговор",
        "note": "Записка для менеджера",
        "tone": "Тон",
        "strength": "Сила тона (0 — без тона, 1 — как при обучении)",
        "facts": "Факты, которые должны быть в каждом ответе",
        "write": "Написать пять ответов",
        "replies": "Ответы",
        "kept": "Какие слова выбранного ответа оставить",
        "rewrite": "Переписать остальное",
        "no_reply": "Сначала выберите ответ.",
        "no_place": "Всё это в один ответ не поместится: оставьте меньше слов.",
        "tones": {"formal": "официальный", "friendly": "дружеский", "brief": "краткий"},
    },
}

CSS = """
.gradio-container { max-width: 900px !important; margin: 0 auto !important; }
.gradio-container p, .gradio-container label, .gradio-container span { overflow-wrap: anywhere; }
#replies .wrap { flex-direction: column; }
#kept .wrap { gap: .3rem; }
#kept label { padding: .25rem .5rem; }
/* Gradio's bin, which would empty the conversation and which no parameter hides */
#chat .icon-button-wrapper { display: none; }
"""


@dataclass
class Office:
    """What the page needs in one language: the assistant and its customers."""

    assistant: SalesAssistant
    records: list[Record] = field(default_factory=list)

    @property
    def customers(self) -> list[tuple[str, int]]:
        """Name and last words of each customer, and their number."""
        return [
            (": ".join(filter(None, [record["customer"]["name"], last_words(record)])), number)
            for number, record in enumerate(self.records)
        ]


@dataclass
class Request:
    """What a visitor wants.

    Attributes:
        customer: the number of one.
        tone, strength: a label, or none, and how much of it.
        facts: that each reply must hold.
        seed: of the first reply.
        parts: of a reply, which stay.
    """

    customer: int
    tone: str | None
    strength: float
    facts: list[str]
    seed: int
    parts: list[str] = field(default_factory=list)


def last_words(record: Record) -> str:
    """What the customer says before the reply, if there is anything."""
    return "".join(turn["content"] for turn in record["messages"][-2:-1])


def open_office(folder: str, language: str, conversations: str = "") -> Office:
    """The model of a folder, and customers: all of a file, or made-up ones of all intents, new to the model."""
    records = conversations_to_ask(language, conversations)
    texts = usual_texts(records, conversations)
    if not conversations:
        # One of each intent and product
        kinds: dict[tuple[str, str], Record] = {}
        for record in records:
            kinds.setdefault((record["intent"], record["product"]), record)
        records = [*kinds.values()][:NUM_CUSTOMERS]
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    return Office(SalesAssistant(pipe, texts=texts), records)


def build(offices: dict[str, Office]) -> gr.Blocks:
    """The page.

    Args:
        offices: of each language that it speaks, in the order of the switch.
    """
    first = next(iter(offices))
    words = WORDS[first]
    # A long list is one to search in.
    is_long = any(len(office.records) > NUM_CUSTOMERS for office in offices.values())
    with gr.Blocks(title="text-diffusers: sales assistant", analytics_enabled=False) as page:
        languages = [(name.upper(), name) for name in offices]
        language = gr.Radio(
            languages,
            value=first,
            label=words["language"],
            show_label=False,
            visible=len(offices) > 1,
            elem_id="language",
        )
        title = gr.Markdown(words["title"])
        customer = gr.Dropdown(
            offices[first].customers, value=0, label=words["customer"], filterable=is_long
        )
        chat = gr.Chatbot(label=words["chat"], height="auto", buttons=[], elem_id="chat")
        note = gr.Textbox(label=words["note"], lines=4, interactive=False)
        tone = gr.Radio(tones_of(first), label=words["tone"])
        strength = gr.Slider(0, 3, value=1, step=0.5, label=words["strength"])
        facts = gr.CheckboxGroup([], label=words["facts"], elem_id="facts")
        write = gr.Button(words["write"], variant="primary")
        replies = gr.Radio([], label=words["replies"], elem_id="replies")
        kept = gr.CheckboxGroup([], label=words["kept"], elem_id="kept")
        rewrite = gr.Button(words["rewrite"])
        # Of the next press's first reply: each press writes other replies.
        seed = gr.State(0)

        def language_of(request: gr.Request) -> str:
            """That of the visitor's browser, if the page speaks it."""
            preferred = preferred_language(request)
            return preferred if preferred in offices else first

        def words_of(name: str) -> list[Any]:
            """All words of the page, and the first customer, in another language."""
            own = WORDS[name]
            return [
                gr.Radio(label=own["language"]),
                own["title"],
                gr.Dropdown(offices[name].customers, value=0, label=own["customer"]),
                gr.Chatbot(label=own["chat"]),
                gr.Textbox(label=own["note"]),
                gr.Radio(tones_of(name), label=own["tone"]),
                gr.Slider(label=own["strength"]),
                gr.CheckboxGroup(label=own["facts"]),
                own["write"],
                gr.Radio(label=own["replies"]),
                gr.CheckboxGroup(label=own["kept"]),
                own["rewrite"],
            ]

        def conversation(name: str, number: int) -> list[Any]:
            """What is known of a customer; nothing is written yet."""
            record = offices[name].records[number]
            return [
                record["messages"][:-1],
                record["note"],
                record["tone"] or None,
                gr.CheckboxGroup(record["facts"], value=record["facts"]),
                gr.Radio([], value=None),
                gr.CheckboxGroup([], value=[]),
            ]

        def write_replies(
            name: str, number: int, wanted: str | None, scale: float, ticked: list[str], first: int
        ) -> list[Any]:
            request = Request(number, wanted, scale, ticked, first)
            return [*replies_to(offices[name], name, request), first + DRAWS * NUM_REPLIES]

        def rewrite_reply(
            name: str,
            number: int,
            wanted: str | None,
            scale: float,
            ticked: list[str],
            chosen: str | None,
            places: list[int],
            first: int,
        ) -> list[Any]:
            if not chosen:
                raise gr.Error(WORDS[name]["no_reply"], print_exception=False)
            request = Request(number, wanted, scale, ticked, first, kept_parts(chosen, places))
            return [*replies_to(offices[name], name, request), first + DRAWS * NUM_REPLIES]

        everything = [language, title, customer, chat, note, tone, strength, facts, write, replies]
        everything += [kept, rewrite]
        shown = [chat, note, tone, facts, replies, kept]
        settings = [language, customer, tone, strength, facts]
        written = [replies, kept, seed]
        opened = page.load(language_of, None, language)
        for language_is_known in (opened.then, language.input):
            language_is_known(None, language, None, js=TELL_LANGUAGE)
            worded = language_is_known(words_of, language, everything)
            worded.then(conversation, [language, customer], shown)
        customer.change(conversation, [language, customer], shown)
        write.click(write_replies, [*settings, seed], written)
        replies.change(words_to_keep, replies, kept)
        rewrite.click(rewrite_reply, [*settings, replies, kept, seed], written)
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def serve(page: gr.Blocks, **more: Any) -> Any:
    """`page.launch` with the looks of the page, and nothing of Gradio's own that has no translation."""
    return page.launch(theme=theme(), css=CSS, head=HEAD, footer_links=[], **more)


def tones_of(language: str) -> list[tuple[str, str]]:
    return [(WORDS[language]["tones"][tone], tone) for tone in TONES]


def replies_to(office: Office, language: str, request: Request) -> list[Any]:
    """Five replies to choose from, and no words of any of them yet."""
    record = office.records[request.customer]
    # In their own order, whatever was ticked last: a price stands behind the name of its product.
    facts = [fact for fact in record["facts"] if fact in request.facts]
    try:
        texts = office.assistant.replies(
            as_pair(record, facts)["source"],
            request.tone,
            facts,
            NUM_REPLIES,
            request.seed % SEEDS,
            request.parts,
            request.strength,
            record["note"],
        )
    except ValueError as error:
        # Facts and parts are too long for a row of the model; all else is a fault.
        if not str(error).startswith(TOO_LONG):
            raise
        raise gr.Error(WORDS[language]["no_place"], print_exception=False) from None
    return [gr.Radio(texts, value=None), gr.CheckboxGroup([], value=[])]


def words_to_keep(reply: str | None) -> Any:
    """The words of a reply by their places, so that a word that comes twice can be told apart."""
    words = (reply or "").split()
    return gr.CheckboxGroup([(word, place) for place, word in enumerate(words)], value=[])


def kept_parts(reply: str, places: list[int]) -> list[str]:
    """The words at `places`, those that follow each other as one part.

    Example:
        >>> kept_parts("Dear Anna, it is $129.", [0, 1, 4])
        ['Dear Anna,', '$129.']
    """
    words = reply.split()
    parts: list[list[str]] = []
    last = None
    for place in sorted(places):
        if last is None or place != last + 1:
            parts.append([])
        parts[-1].append(words[place])
        last = place
    return [" ".join(part) for part in parts]


@dataclass
class PageOptions:
    """Options of the page."""

    model_en: str = option("", "folder of the English model; empty for none")
    model_ru: str = option("", "folder of the Russian model; empty for none")
    conversations: str = option(
        "", "a .jsonl or .csv file with the columns of data_files.py; empty for made-up customers"
    )
    host: str = option("127.0.0.1", "0.0.0.0 lets other machines in")
    port: int = option(7860, "of the page", limit="at least 1")

    def __post_init__(self):
        check_options(self)
        if not self.model_en and not self.model_ru:
            raise ValueError("`model_en` or `model_ru` must be the folder of a model, got neither.")


def main(options: PageOptions):
    torch.set_grad_enabled(False)
    folders = {"en": options.model_en, "ru": options.model_ru}
    offices = {
        language: open_office(folders[language], language, options.conversations)
        for language in LANGUAGES
        if folders[language]
    }
    serve(build(offices), server_name=options.host, server_port=options.port)


if __name__ == "__main__":
    run(main, PageOptions)
