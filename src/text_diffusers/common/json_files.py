"""Reading of JSON files that others may have written."""

import json
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds anything else than a JSON object.
    """
    if not file.is_file():
        raise OSError(f"`{file}` must be a file, but there is none.")

    # Deeply nested JSON ends in a RecursionError.
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"`{file}` cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{file}` must be JSON: {error}") from error

    if not isinstance(content, dict):
        raise ValueError(f"`{file}` must be a JSON object, got {type(content).__name__}.")
    return content
