"""By what a checkpoint knows the data of its run."""

import hashlib
import json
from typing import Any

from datasets import Dataset, IterableDataset

# Rows of a block, and at most in all, that are read
DIGEST_BLOCK = 1_000
DIGESTED_ROWS = 200_000


def rows_digest(rows: Any) -> str:
    """SHA-256 of what rows hold: the same wherever they lie, and whenever and by whichever process they were made.

    Of more than `DIGESTED_ROWS` rows those are read that stand at even distances, in blocks; of a stream the first.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.digest import rows_digest
        >>> rows = Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]})
        >>> rows_digest(rows) == rows_digest(Dataset.from_list(list(rows)))
        True
        >>> rows_digest(rows) == rows_digest(rows.select([1, 0]))
        False
    """
    # 1. Which rows are read
    if isinstance(rows, IterableDataset):
        rows = Dataset.from_list(list(rows.take(DIGEST_BLOCK)))
    num_blocks = -(-len(rows) // DIGEST_BLOCK)
    stride = -(-num_blocks * DIGEST_BLOCK // DIGESTED_ROWS)
    table_rows = rows.with_format("arrow")

    # 2. One digest a column: how the rows are cut into blocks must not matter
    digests = {name: hashlib.sha256() for name in sorted(rows.column_names)}
    for block in range(0, num_blocks, stride):
        first = block * DIGEST_BLOCK
        table = table_rows[first : min(first + DIGEST_BLOCK, len(rows))]
        for name, digest in digests.items():
            digest.update(column_bytes(table[name]))

    # 3. All of them together
    columns = {name: digest.hexdigest() for name, digest in digests.items()}
    summary = json.dumps({"rows": len(rows), "columns": columns})
    return hashlib.sha256(summary.encode()).hexdigest()


def column_bytes(column: Any) -> bytes:
    """The values of an Arrow column, or of rows of them; numbers are 64 bits wide, whatever the file has."""
    values = column.combine_chunks()
    data = b""
    while hasattr(values, "value_lengths"):
        # Rows of other lengths may have the same values, one after the other.
        data += values.value_lengths().to_numpy(zero_copy_only=False).astype("<i8").tobytes()
        values = values.flatten()

    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind in "biu":
        return data + numbers.astype("<i8").tobytes()
    if numbers.dtype.kind == "f":
        return data + numbers.astype("<f8").tobytes()
    return data + json.dumps(values.to_pylist()).encode()
