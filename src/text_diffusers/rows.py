"""Earlier name of `text_diffusers.data.rows`, kept for programs that import it."""

from text_diffusers.data.rows import (
    CroppedRows,
    ShuffledRows,
    tensor_batches,
    tokenize,
    unknown_tokens,
)

__all__ = ["CroppedRows", "ShuffledRows", "tensor_batches", "tokenize", "unknown_tokens"]
