"""Coloured texts as pictures: the last state of a run as a PNG, its settling as a GIF.

The fonts are those that matplotlib brings, so that Latin, Greek and Cyrillic look the same on every machine.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageColor, ImageDraw, ImageFont

from text_diffusers.space.parts.pieces import Spans

FONTS = Path(matplotlib.get_data_path(), "fonts/ttf")
TEXT_FONT = "DejaVuSerif.ttf"
NOTE_FONT = "DejaVuSans.ttf"

# In pixels
WIDTH = 720
MARGIN = 24
TEXT_SIZE = 22
NOTE_SIZE = 15
LINE_HEIGHT = 36
NOTE_HEIGHT = 28
BOX_HEIGHT = 30  # of the colour behind a piece

INK = "#1d2430"
QUIET_INK = "#566070"
PAPER = "#ffffff"
STRENGTH = 0.45  # of a colour on paper, as on the page
NUM_COLORS = 64  # of a GIF, which keeps it small
FRAME_MILLISECONDS = 140
LAST_FRAME_MILLISECONDS = 3000

# A piece of a line: where it begins, its text and the name of its colour
Placed = tuple[float, str, str | None]


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / name), size)


def lines_of(spans: Spans, width: float) -> list[list[Placed]]:
    """Coloured pieces in lines of a width; a word is broken only if it is longer than a line.

    Args:
        width: in pixels.
    """
    letters = font(TEXT_FONT, TEXT_SIZE)
    lines: list[list[Placed]] = [[]]
    end = 0.0  # of the last line
    blanks: list[tuple[str, str | None]] = []  # before the next word
    for word in words_of(spans):
        written = "".join(text for text, _ in word)
        if written == "\n":
            lines.append([])
            end, blanks = 0.0, []
            continue
        if written.isspace():
            blanks = word
            continue

        # Blanks stay behind where a line ends.
        room = width - end - letters.getlength("".join(text for text, _ in blanks))
        if lines[-1] and letters.getlength(written) > room:
            lines.append([])
            end, blanks = 0.0, []
        for text, name in [*blanks, *word]:
            for part in fitting_parts(text, width, letters):
                if end and end + letters.getlength(part) > width:
                    lines.append([])
                    end = 0.0
                lines[-1].append((end, part, name))
                end += letters.getlength(part)
        blanks = []
    return lines


def words_of(spans: Spans) -> list[list[tuple[str, str | None]]]:
    """Words, blanks and ends of lines, each as the coloured parts that it is made of."""
    words: list[list[tuple[str, str | None]]] = []
    before = ""  # the kind of the part before
    for text, name in spans:
        for part in re.findall(r"\n|[^\S\n]+|\S+", text):
            kind = "end" if part == "\n" else "blank" if part.isspace() else "word"
            if kind == before != "end":
                words[-1].append((part, name))
            else:
                words.append([(part, name)])
            before = kind
    return words


def fitting_parts(text: str, width: float, letters: ImageFont.FreeTypeFont) -> list[str]:
    """A text in parts that are no wider than a line."""
    parts = [""]
    for character in text:
        if parts[-1] and letters.getlength(parts[-1] + character) > width:
            parts.append("")
        parts[-1] += character
    return parts


def draw(
    lines: Sequence[Sequence[Placed]], colors: dict[str, str], height: int, notes: Sequence[str]
) -> Image.Image:
    """A picture of lines with notes above and below them, and of the colours in their order.

    Args:
        colors: by name, as the spans have them.
        height: in lines.
        notes: above and below.
    """
    size = (WIDTH, 2 * MARGIN + 3 * NOTE_HEIGHT + height * LINE_HEIGHT)
    image = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(image)
    above, below = notes

    # 1. What it is, and what the colours say
    small = font(NOTE_FONT, NOTE_SIZE)
    pen.text((MARGIN, MARGIN), above, QUIET_INK, small)
    left = float(MARGIN)
    top = MARGIN + NOTE_HEIGHT
    for name, color in colors.items():
        right = left + small.getlength(name) + 12
        pen.rectangle((left, top, right, top + 20), fill=on_paper(color))
        pen.text((left + 6, top + 1), name, INK, small)
        left = right + 4

    # 2. The lines; a colour stands behind its piece and does not touch the line above
    letters = font(TEXT_FONT, TEXT_SIZE)
    top += NOTE_HEIGHT
    for line in lines:
        for left, text, name in line:
            place = (MARGIN + left, top)
            if name is not None:
                right = place[0] + letters.getlength(text) - 1
                box = (place[0], top, right, top + BOX_HEIGHT)
                pen.rectangle(box, fill=on_paper(colors[name]))
            pen.text((place[0], top + 1), text, INK, letters)
        top += LINE_HEIGHT

    pen.text((MARGIN, size[1] - MARGIN - NOTE_HEIGHT + 8), below, QUIET_INK, small)
    return image


def on_paper(color: str) -> tuple[int, ...]:
    """A colour as light as on the page, on which dark letters are read."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return tuple(round(STRENGTH * part + 255 * (1 - STRENGTH)) for part in (red, green, blue))


def as_png(spans: Spans, colors: dict[str, str], notes: Sequence[str]) -> bytes:
    """The bytes of a PNG of coloured pieces.

    Args:
        colors: by name, as the spans have them.
        notes: above and below the text.

    Example:
        >>> from text_diffusers.space.parts.drawing import as_png
        >>> as_png([("The", "1"), (" cat", "2")], {"1": "#440154", "2": "#fde725"}, ("mine", "2 steps"))[1:4]
        b'PNG'
    """
    lines = lines_of(spans, WIDTH - 2 * MARGIN)
    buffer = io.BytesIO()
    draw(lines, colors, len(lines), notes).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def as_gif(
    frames: Sequence[Spans], colors: dict[str, str], notes: Sequence[tuple[str, str]]
) -> bytes:
    """The bytes of a GIF with a frame for each state of the pieces; the last one stays for a while.

    Args:
        notes: above and below the text of each frame.
    """
    laid_out = [lines_of(spans, WIDTH - 2 * MARGIN) for spans in frames]
    height = max(len(lines) for lines in laid_out)
    images = []
    for lines, frame_notes in zip(laid_out, notes, strict=True):
        image = draw(lines, colors, height, frame_notes)
        images.append(image.quantize(NUM_COLORS, dither=Image.Dither.NONE))

    durations = [FRAME_MILLISECONDS] * (len(images) - 1) + [LAST_FRAME_MILLISECONDS]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=images[1:],
        duration=durations,
        loop=0,
        disposal=1,
    )
    return buffer.getvalue()
