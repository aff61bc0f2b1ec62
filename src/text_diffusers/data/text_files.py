"""Lines of text files as people have them: byte-order marks, any line ends, and errors that name file and line."""

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

# The longer marks first: that of UTF-32 begins with that of UTF-16.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}
PEEKED_BYTES = 4_096


def encoding_of(path: Path) -> str:
    """The encoding that a byte-order mark tells, or UTF-8.

    Raises:
        ValueError: if there is no mark, and zero bytes as UTF-16 has them.
    """
    with open(path, "rb") as file:
        head = file.read(PEEKED_BYTES)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise ValueError(
            f"{path}, line 1: no text in UTF-8, since it holds zero bytes; if it is UTF-16, convert the file, for "
            "example with `iconv -f utf-16le -t utf-8`."
        )
    return "utf-8"


def read_lines(path: str | Path) -> Iterator[str]:
    r"""The lines of a file with their ends, "\n", "\r\n" or "\r"; a byte-order mark is no part of them.

    Other separators, such as U+2028, are characters of a text.

    Raises:
        ValueError: naming file and line, if the file is neither UTF-8 nor has the mark of its encoding.
    """
    path = Path(path)
    encoding = encoding_of(path)
    if not encoding.startswith("utf-8"):
        yield from io.StringIO(decode(path, encoding), newline="")
        return

    with open(path, "rb") as file:
        if encoding == "utf-8-sig":
            file.read(len(codecs.BOM_UTF8))

        # Line by line, so that a file of any size can be read, and a mistake has its line
        number = 1
        for line in file:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                    f"{error.start + 1}); convert the file from the encoding that it has, for example with "
                    "`iconv -f cp1251 -t utf-8`."
                ) from error
            lines = io.StringIO(text, newline="").readlines() if "\r" in text else [text]
            number += len(lines)
            yield from lines


def decode(path: Path, encoding: str) -> str:
    """The text of a whole file in an encoding with a byte-order mark."""
    content = path.read_bytes()
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="ignore")
        line = before.count("\n") + 1
        raise ValueError(
            f"{path}, line {line}: not {encoding.upper()}, as its first bytes say ({error.reason})."
        ) from error


def read_paragraphs(path: Path) -> Iterator[str]:
    r"""What stands between two empty lines; with `"\n"` for any line end."""
    paragraph: list[str] = []
    for line in read_lines(path):
        if not line.strip("\r\n") and paragraph:
            # The end of its last line belongs to the gap.
            yield "".join(paragraph)[:-1]
            paragraph = []
        else:
            paragraph.append(with_newline(line))
    yield "".join(paragraph)


def without_end(line: str) -> str:
    return line.rstrip("\r\n")


def with_newline(line: str) -> str:
    """A line with `"\\n"` for its end, if it has one."""
    text = without_end(line)
    return text if text == line else f"{text}\n"
