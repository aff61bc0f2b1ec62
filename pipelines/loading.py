"""Loading of pipelines from folders and the Hub by the classes that are installed, never by a repository's own code.

A repository may bring its own classes as files for stock diffusers. Here a name in its index that the installed
package has means the package's class; the files are not even downloaded, unless `trust_remote_code=True`.
"""

import sys
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from text_diffusers.common.json_files import read_object

INDEX = "model_index.json"
DATA_FILES = ("json", "safetensors", "txt", "model")
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
SHIPPED = "shipped"


def installed_class(name: Any) -> type | None:
    """The public class of that name in the package this file belongs to; none where the file stands alone."""
    found = getattr(installed_package(), name, None) if isinstance(name, str) else None
    return found if isinstance(found, type) else None


def installed_package() -> Any:
    return sys.modules.get(__name__.partition(".")[0])


def with_installed_classes(index: dict[str, Any]) -> dict[str, Any]:
    """An index in which every `[file or module, class]` names the module of the installed class, if there is one."""
    result = {}
    for key, value in index.items():
        if isinstance(value, (list, tuple)) and len(value) == 2:
            found = installed_class(value[1])
            if found is not None:
                value = found.__name__ if key == "_class_name" else [found.__module__, found.__name__]
        result[key] = value
    return result


def pipeline_folder(name: Any, trust_remote_code: bool, **where) -> Path:
    """The folder `name`, or else the shipped model of that name, or else a snapshot of that Hub repository.

    Args:
        trust_remote_code: also download the repository's code.
        where: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub.

    Raises:
        OSError: if there is neither, or its files cannot be had.
        ValueError: if it can be no repository's name, or the repository's index is none.
    """
    if Path(name).is_dir():
        return Path(name)
    shipped = shipped_folder(str(name))
    if shipped is not None:
        return shipped
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[INDEX], **where))
        files = files_of(folder / INDEX, (*DATA_FILES, "py") if trust_remote_code else DATA_FILES)
        where["revision"] = folder.name  # the commit of the index, whatever is pushed meanwhile
        return Path(snapshot_download(str(name), allow_patterns=files, **where))
    except HFValidationError as error:
        raise ValueError(f"`{name}` is no folder here, and cannot be the name of a repository: {error}") from error
    except OSError as error:
        raise OSError(f"`{name}` is no folder here and cannot be had from the Hub: {error}") from error


def shipped_folder(name: str) -> Path | None:
    """The folder of a model that comes with the installed package."""
    file = getattr(installed_package(), "__file__", None)
    folder = Path(file).parent / SHIPPED / name if file else None
    return folder if folder and folder.parent.name == SHIPPED and (folder / INDEX).is_file() else None


def files_of(index: Path, kinds: tuple[str, ...]) -> list[str]:
    """Patterns of the files that the components of an index consist of."""
    if not index.is_file():
        raise OSError(f"it holds no {INDEX}, so it is no pipeline.")
    content = read_object(index)
    components = [name for name, value in content.items() if isinstance(value, list) and name != "_class_name"]
    return [
        INDEX,
        *(f"{name}/*.{kind}" for name in components for kind in kinds),
        *(["*.py"] if "py" in kinds else []),
    ]
