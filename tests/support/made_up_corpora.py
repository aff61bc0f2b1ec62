"""Files of corpora in their own formats, of a few made-up texts."""

import json
import struct
import zlib
from pathlib import Path


def r_record(strings: list[str | None], version: int = 3, kind: int = 16) -> bytes:
    """A vector of strings as R saves it in an .rdb file, after "R Internals", section 1.8; `None` is NA."""
    encoding = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    content = (
        b"X\n"
        + struct.pack(">iii", version, 0x30402, 0x30500)
        + encoding
        + struct.pack(">Ii", kind, len(strings))
    )
    for string in strings:
        spelt = (string or "").encode()
        content += struct.pack(">Ii", 0x40009, -1 if string is None else len(spelt)) + spelt
    return struct.pack(">I", len(content)) + zlib.compress(content)


def write_sword_module(folder: Path, verses: dict[tuple[str, int, int], str]):
    """A module of uncompressed text ("RawText"): texts one after another, and an index of offset and size."""
    from pysword.books import BibleStructure

    structure = BibleStructure("kjv")
    texts = folder / "modules/texts/made_up"
    texts.mkdir(parents=True)
    (folder / "mods.d").mkdir()
    (folder / "mods.d/made_up.conf").write_text(
        "[MadeUp]\nDataPath=./modules/texts/made_up/\nModDrv=RawText\nEncoding=UTF-8\nVersification=KJV\nLang=en\n"
    )
    for testament in ("ot", "nt"):
        places = {
            structure.ref_to_indicies(books=book, chapters=chapter, verses=verse)[testament][
                0
            ]: text.encode()
            for (book, chapter, verse), text in verses.items()
            if structure.ref_to_indicies(books=book, chapters=chapter, verses=verse).get(testament)
        }
        body, index = b"", b""
        for place in range(max(places, default=0) + 1):
            text = places.get(place, b"")
            index += struct.pack("<IH", len(body), len(text))
            body += text
        (texts / testament).write_bytes(body)
        (texts / f"{testament}.vss").write_bytes(index)


def write_conversations(folder: Path, conversations: list[list[list[str]]]):
    """A package `chitchat_dataset` in `folder`: conversations of turns of messages."""
    package = folder / "chitchat_dataset"
    package.mkdir()
    (package / "__init__.py").write_text("")
    content = {}
    for number, turns in enumerate(conversations):
        messages = [[{"text": text} for text in turn] for turn in turns]
        content[str(number)] = {"messages": messages}
    (package / "dataset.json").write_text(json.dumps(content))


def gettext_catalog(translations: dict[str, str]) -> bytes:
    """A .mo file, after "GNU gettext utilities", section 10.3."""
    originals = sorted(translations)
    tables_end = 28 + 16 * len(originals)
    body = b""
    tables = []
    for texts in (originals, [translations[original] for original in originals]):
        for text in texts:
            encoded = text.encode()
            tables.append((len(encoded), tables_end + len(body)))
            body += encoded + b"\0"
    header = struct.pack("<7I", 0x950412DE, 0, len(originals), 28, 28 + 8 * len(originals), 0, 0)
    return header + b"".join(struct.pack("<2I", *entry) for entry in tables) + body
