"""What a folder must hold before a pipeline is loaded from it: components that are what its index and they say.

The stock loaders take as much memory as a configuration asks for, leave out weights that are missing, follow links out
of the folder, and do not say which component they failed at.
"""

import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open

from text_diffusers.common.json_files import read_object
from text_diffusers.pipelines.loading import INDEX

WEIGHTS = "diffusion_pytorch_model"


def check_saved_pipeline(
    folder: Path, index: dict[str, Any], pipeline: Any, given: Collection[str] = (), variant: str | None = None
):
    """Refuse a folder that cannot be the one of a pipeline.

    Args:
        index: that of the folder, in which installed classes have their modules.
        pipeline: the class to be loaded.
        given: names of components that are not to be loaded from there.
        variant: of the weights.

    Raises:
        OSError: if a file is missing.
        ValueError: if anything else is wrong, with the name of the file, and what is wrong with it.
    """
    needed, _ = pipeline._get_signature_keys(pipeline)
    optional = set(pipeline._optional_components)
    for name in sorted({*needed, *optional} - {*given}):
        entry = index.get(name)
        if name in optional and entry in (None, [None, None], (None, None)):
            continue
        if not (isinstance(entry, list | tuple) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            raise ValueError(
                f"`{folder / INDEX}` must name module and class of `{name}`, which a {pipeline.__name__} "
                f"expected, got {entry!r}."
            )
        check_links(folder, folder / name)
        check_component(folder / name, *entry, variant=variant)


def check_links(folder: Path, part: Path):
    """Refuse links out of the folder, but those of the Hub's cache: who made it could show files of the reader."""
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent.resolve() / "blobs")
    for path in (part, *part.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
            raise ValueError(f"`{path}` is a link out of the folder: put the file itself there if you trust it.")


def check_component(part: Path, module: str, class_name: str, variant: str | None):
    if not part.is_dir():
        raise OSError(f"`{part}` must be the folder of a component, but there is none.")
    found = getattr(sys.modules.get(module), class_name, None)
    if not (isinstance(found, type) and issubclass(found, ConfigMixin) and found.config_name):
        return
    file = part / found.config_name
    config = read_object(file)
    if config.get("_class_name", class_name) != class_name:
        raise ValueError(f"`{file}` must be of a {class_name}, as in the index, got {config['_class_name']!r}.")
    tensors = getattr(found, "_tensor_arguments", ())
    parameters = {name: value for name, value in inspect.signature(found).parameters.items() if name not in tensors}
    lacking = [name for name, value in parameters.items() if value.default is value.empty and name not in config]
    if lacking and not any(value.kind is value.VAR_KEYWORD for value in parameters.values()):
        raise ValueError(f"`{file}` must hold the arguments of a {class_name}, but lacks {lacking}.")
    own = found.__module__.partition(".")[0] == __name__.partition(".")[0]
    if own and issubclass(found, ModelMixin) and "quantization_config" not in config:
        check_weights(part, found, {name: config[name] for name in parameters if name in config}, variant)


def check_weights(part: Path, model: Any, config: dict[str, Any], variant: str | None):
    """Refuse weights that are not those of the configuration, from their names, shapes and types alone."""
    held = {name: tensor for file in weight_files(part, variant) for name, tensor in tensors_of(file)}
    if not held:
        return  # the loader says which file it misses
    deepest = max((size for name, size in config.items() if name.endswith("_layers") and type(size) is int), default=0)
    if deepest > len(held):
        raise ValueError(f"`{part / model.config_name}` asks for {deepest} layers, but there are {len(held)} weights.")
    try:
        with torch.device("meta"):
            wanted = model(**config).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"`{part / model.config_name}` describes no {model.__name__}: {error}") from error
    lacking = [name for name in wanted if name not in held]
    if lacking:
        raise ValueError(
            f"`{part}` lacks {len(lacking)} of the weights that its configuration asks for: {lacking[:3]}."
        )
    for name, tensor in wanted.items():
        shape, is_float = held[name]
        if shape != tuple(tensor.shape) or is_float != tensor.is_floating_point():
            kinds = {True: "numbers", False: "integers"}
            raise ValueError(
                f"`{part}` must hold {kinds[tensor.is_floating_point()]} {tuple(tensor.shape)} in `{name}`, as its "
                f"configuration asks for, got {kinds[is_float]} {shape}."
            )


def weight_files(part: Path, variant: str | None) -> list[Path]:
    """The safetensors files that are loaded for a component; none if there are none."""
    for ending in (f".{variant}", "") if variant else ("",):
        index = part / f"{WEIGHTS}.safetensors.index{ending}.json"
        if index.exists():
            shards = read_object(index).get("weight_map")
            names = list(shards.values()) if isinstance(shards, dict) else []
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError(f"`{index}` must have a `weight_map` from weights to names of files beside it.")
            return [part / name for name in sorted(set(names))]
        if (part / f"{WEIGHTS}{ending}.safetensors").exists():
            return [part / f"{WEIGHTS}{ending}.safetensors"]
    return []


def tensors_of(file: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], bool]]]:
    """Each tensor of a safetensors file: its name, its shape, and whether it holds floating-point numbers."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                tensor = opened.get_slice(name)
                yield name, (tuple(tensor.get_shape()), "F" in tensor.get_dtype())
    except SafetensorError as error:
        raise ValueError(f"`{file}` is damaged: {error}") from error
    except OSError as error:
        raise OSError(f"`{file}` cannot be read: {error}") from error


def check_finite(folder: Path, components: dict[str, Any]):
    """Refuse weights that are no numbers: attention may turn them into zeros, and so into text.

    Raises:
        ValueError: that names the component and the weights.
    """
    for part, model in components.items():
        for name, tensor in model.state_dict().items() if isinstance(model, torch.nn.Module) else ():
            read = not tensor.is_meta and tensor.is_floating_point() and tensor.element_size() > 1
            if read and not torch.isfinite(tensor).all():
                raise ValueError(f"`{folder / part}` holds NaN or infinite numbers in `{name}`.")


def loading_error(folder: Path, error: Exception) -> Exception:
    """An error of a stock loader as one that names the folder and the component."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "load_sub_model"]
    clear = isinstance(error, ValueError | OSError)
    if clear and not frames:
        return error
    where = folder / str(frames[0].f_locals.get("name", "")) if frames else folder
    said = str(error) if clear else f"{type(error).__name__}: {error}"
    return (OSError if isinstance(error, OSError) else ValueError)(f"`{where}` cannot be loaded: {said}")
