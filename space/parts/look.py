"""Looks of the page: fonts of the visitor's own machine, one accent colour, and tables that fit a phone."""

import gradio as gr

# One hue, from the lightest to the darkest as Gradio numbers them
ACCENT = gr.themes.Color(
    name="pine",
    c50="#eef7f6",
    c100="#d5ebe8",
    c200="#acd7d2",
    c300="#7bbcb6",
    c400="#4a9d97",
    c500="#2b827d",
    c600="#1f6f6b",
    c700="#1a5a57",
    c800="#174846",
    c900="#143b3a",
    c950="#0a2322",
)


def two_columns() -> tuple[gr.Column, gr.Column]:
    """Columns of a tab, for its inputs and its results; they stand one below the other on a phone."""
    # Widths are shares of the row; under `min_width` the columns wrap.
    with gr.Row(equal_height=False):
        inputs = gr.Column(scale=2, min_width=260)
        results = gr.Column(scale=3, min_width=260)
    return inputs, results


def theme() -> gr.themes.Base:
    """Gradio's soft theme with less of it: no shadows, thin borders, quiet labels."""
    # System fonts only: fonts of others would be loaded from their servers.
    soft = gr.themes.Soft(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    )
    return soft.set(
        body_background_fill="#f6f7f8",
        body_text_color_subdued="#566070",
        body_text_color_subdued_dark="#a9b2c0",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_border_width_dark="0px",
        block_label_text_color="#566070",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="#3d4756",
        block_title_text_weight="500",
        block_title_padding="0",
        input_border_width="1px",
        input_border_color="#d5dae1",
        input_shadow="none",
        checkbox_label_shadow="none",
        checkbox_label_border_width="1px",
        checkbox_label_border_color="#d5dae1",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_shadow="none",
        button_secondary_shadow="none",
        button_secondary_border_color="#d5dae1",
        button_border_width="1px",
    )


CSS = """
:root { --cell-open: #dfe2e7; --reading: Georgia, "Iowan Old Style", "Times New Roman", serif; }
.dark { --cell-open: #3a4150; }
.gradio-container { max-width: 1120px !important; margin: 0 auto !important; }
.gradio-container p, .gradio-container label { overflow-wrap: anywhere; }
#top { align-items: flex-start; flex-wrap: nowrap; }
#title { min-width: 0 !important; padding: 0; }
#title .html-container { padding: 0 !important; }
#title h1 { font-size: 1.55rem; font-weight: 650; margin: 0; overflow-wrap: anywhere; }
#title p { margin: .2rem 0 0; color: var(--body-text-color-subdued); font-size: .9rem; }
#language { min-width: 0 !important; width: auto !important; flex: 0 0 auto; }
#language .wrap { flex-wrap: nowrap; gap: .3rem; }
#language label { padding: .2rem .6rem; font-size: .82rem; }
/* Out of sight, but not out of reach of the keyboard */
#language input { position: absolute; opacity: 0; width: 1px; height: 1px; }
#language label:focus-within, a:focus-visible, button:focus-visible { outline: 2px solid #2b827d;
  outline-offset: 2px; }
#language span { margin: 0; }
.lead { max-width: 46rem; }
.lead p { font-size: 1.02rem; }
.hint p { color: var(--body-text-color-subdued); font-size: .86rem; }
.buttons { gap: .5rem; }
.buttons button { min-width: 0 !important; }
.chips .label { font-weight: 400; font-size: .82rem; }
.chips .label svg { display: none; }
.reading .textfield, #write-texts textarea { font: 1.12rem/2 var(--reading); overflow-wrap: anywhere; }
.reading .textfield { background: #fff; color: #1d2430; min-height: 6rem; padding: .7rem .9rem; border-radius: 8px; }
/* The white space between the elements of tokens is not that of the text. */
.reading .token-container, .reading .token-container > span { font-size: 0; white-space: nowrap; margin: 0 !important;
  padding: 0 !important; }
.reading .token-container .text {
  font-size: 1.12rem; white-space: pre-wrap; color: #1d2430 !important; background: inherit;
  margin: 0 !important; padding: .16rem 0 !important; border-radius: 3px;
}
.reading .legend { gap: 4px; flex-wrap: wrap; }
.reading .legend-item { font-size: .72rem; font-weight: 500; padding: 0 6px; color: #1d2430; }
.dark .reading .legend { background: #fff; padding: 4px 6px; border-radius: 6px; }
#opening { gap: .5rem; }
#opening .html-container, #notice .html-container { padding: 0 !important; }
#opening-text, #notice { padding: 0 !important; }
#gallery { gap: .5rem; flex-wrap: wrap; align-items: center; }
#gallery > :first-child { flex: 0 0 auto; width: auto; min-width: 0 !important; }
.buttons .sm, .sm.link { font-size: .86rem; }
.link { align-self: flex-start; flex: 0 0 auto; width: auto !important; }
.dark .tab-container button.selected { color: #7bbcb6; }
#opening .buttons button, #gallery button, .links button, .links a { flex: 0 0 auto; width: auto;
  min-width: 0 !important; }
#laboratory-noise .html-container, #laboratory-ways .html-container { padding: 0 !important; }
.settling { font: 1.2rem/1.9 var(--reading); background: #fff; color: #1d2430; margin: 0; padding: .7rem .9rem;
  border-radius: 8px; white-space: pre-line; overflow-wrap: anywhere; }
.settling span { color: #1d2430; background: color-mix(in srgb, var(--color) 45%, white); border-radius: 3px;
  padding: .16rem 0; -webkit-box-decoration-break: clone; box-decoration-break: clone; }
#notice p { border-left: 4px solid #b3402a; background: var(--block-background-fill); padding: .6rem .9rem;
  margin: 0; }
table.grid { width: 100%; border-collapse: collapse; table-layout: fixed; background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary) !important; }
table.grid thead, table.grid tbody, table.grid tr { border: 0 !important; }
table.grid th, table.grid td { padding: .55rem .7rem !important; text-align: left; vertical-align: top;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; overflow-wrap: anywhere; }
table.grid tr > th:first-child { width: 4.4rem; }
table.grid th { color: var(--body-text-color-subdued); font-weight: 600; font-size: .85rem; line-height: 1.7; }
table.grid td { font: 1rem/1.5 var(--reading); }
table.grid mark { background: #bfe3d6; color: inherit; border-radius: 3px; padding: 0 .1em; }
.dark table.grid mark { background: #1d5a4d; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: .7rem; }
.card { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: .7rem .9rem;
  background: var(--block-background-fill); overflow-wrap: anywhere; }
.card header { font-size: .78rem; }
.card header span { color: var(--body-text-color-subdued); }
.card header b { display: block; font-size: .92rem; font-weight: 600; }
.card p { font: 1rem/1.5 var(--reading); margin: .4rem 0 0; }
.plane { margin: 0; }
.plane svg { display: block; width: 100%; max-width: 420px; background: #fff; border-radius: 8px; }
.plane path { fill: none; stroke-linecap: round; stroke-linejoin: round; }
.plane .figure { stroke: #c3c9d2; stroke-width: .07; }
.plane .ways { stroke: #1f6f6b; stroke-width: .018; opacity: .5; }
.plane .points { stroke: #1f6f6b; stroke-width: .07; }
.plane figcaption { color: var(--body-text-color-subdued); font-size: .86rem; margin-top: .5rem; max-width: 420px; }
#plan-cells, #detail-cells { padding: .6rem .8rem; }
.cells { display: flex; flex-wrap: wrap; gap: 3px; padding: .3rem 0; min-height: 1.2rem; }
.cells i { width: 15px; height: 15px; border-radius: 3px; }
#detail-cells .cells i { width: 9px; height: 9px; border-radius: 2px; }
@media (max-width: 640px) {
  .gradio-container .main.app { padding: .7rem !important; }
  #top { flex-direction: column; gap: .6rem; }
  .tab-container button { padding: 0 .4rem !important; font-size: .84rem; }
  table.grid th, table.grid td { padding: .45rem .4rem !important; }
  table.grid tr > th:first-child { width: 3.4rem; }
  table.grid th { font-size: .76rem; }
  .buttons .sm, .sm.link { font-size: .81rem; }
  .settling { font-size: 1.1rem; }
}
"""
# Gradio's style sheet above is for what is inside the page, and its messages are titled "Error" in any language. The
# steps of an animation have no place in it.
HEAD = """<style>
.toast-title { display: none !important; }
@keyframes settle { from { color: transparent; background: #dfe2e7; } }
@media (prefers-reduced-motion: no-preference) { .settling.playing span { animation: settle .35s both; } }
@media (prefers-reduced-motion: reduce) { #opening-again { display: none !important; } }
</style>"""
