"""Loading of pipelines from folders and the Hub by installed classes, and checks of what a folder holds.

A repository may bring its own classes as files for stock diffusers. A name in its index that the installed package
has means the package's class; the files are not even downloaded, unless `trust_remote_code=True`.

The stock loaders take as much memory as a configuration asks for, leave out weights that are missing, follow links out
of the folder, and do not say which component they failed at. The checks here come before them.
"""

import inspect
import sys
import traceback
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from text_diffusers.common.json_files import read_object

# Names that diffusers gives to the files of a saved pipeline.
INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model"

# Files of a component that are downloaded; code comes only if it is trusted.
DATA_FILES = ("json", "safetensors", "txt", "model")

# Arguments of `from_pretrained` that are those of a download.
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")

# Configurations of checkpoints that are no pipelines.
CHECKPOINT_CONFIGS = ("config.json", "training_args.json")

# Numbers of layers in configurations of transformers, each of which has weights.
DEPTH_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")

# The folder in the package with the models that come with it.
SHIPPED = "shipped"

# Pipelines of the first edition, and the ones that took them in.
RENAMED_PIPELINES = {
    "GuidedDiffusionLMPipeline": "DiffusionLMPipeline",
    "TextBlockDiffusionPipeline": "TextDiffusionPipeline",
    "TextDiffusionCFGPipeline": "TextDiffusionPipeline",
    "TokenParaGuidePipeline": "ParaGuidePipeline",
}


class NoPipelineError(OSError):
    """What was asked for holds no index, so it is no saved pipeline; it may be a checkpoint of another kind."""


# Installed classes


def installed_class(name: Any) -> type | None:
    """The public class of that name in the package this file belongs to; none where the file stands alone."""
    if not isinstance(name, str):
        return None

    # The package may also have a module or function of that name.
    member = getattr(installed_package(), RENAMED_PIPELINES.get(name, name), None)
    return member if isinstance(member, type) else None


def installed_package() -> Any:
    # A file that stands alone in a repository has no package above it.
    return sys.modules.get(__name__.partition(".")[0])


def with_installed_classes(index: dict[str, Any]) -> dict[str, Any]:
    """An index in which every `[file or module, class]` names the module of the installed class, if there is one."""
    result = {}
    for key, entry in index.items():
        # Components are pairs of library and class; other entries are settings.
        if isinstance(entry, (list, tuple)) and len(entry) == 2:
            installed = installed_class(entry[1])
            if installed is not None and key == "_class_name":
                entry = installed.__name__
            elif installed is not None:
                entry = [installed.__module__, installed.__name__]
        result[key] = entry

    # A plain name may be that of a pipeline which is now part of another.
    class_name = result.get("_class_name")
    if isinstance(class_name, str):
        result["_class_name"] = RENAMED_PIPELINES.get(class_name, class_name)
    return result


# Folders


def pipeline_folder(name: Any, trust_remote_code: bool, **hub_arguments: Any) -> Path:
    """The folder `name`, or else the shipped model of that name, or else a snapshot of that Hub repository.

    Args:
        trust_remote_code: also download the repository's code.
        hub_arguments: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download` of the Hub.

    Raises:
        OSError: if there is neither, or its files cannot be had.
        ValueError: if it can be no repository's name, or the repository's index is none.
    """
    # As in diffusers, a folder here comes before a repository of the same name.
    if Path(name).is_dir():
        return Path(name)
    shipped = shipped_folder(str(name))
    if shipped is not None:
        return shipped

    try:
        # The index comes first: it says which files are needed.
        folder = Path(snapshot_download(str(name), allow_patterns=[INDEX], **hub_arguments))
        kinds = (*DATA_FILES, "py") if trust_remote_code else DATA_FILES
        files = files_of(folder / INDEX, kinds)
        # The commit of the index, whatever is pushed meanwhile.
        hub_arguments["revision"] = folder.name
        return Path(snapshot_download(str(name), allow_patterns=files, **hub_arguments))
    except HFValidationError as error:
        raise ValueError(
            f"`{name}` is no folder here, and cannot be the name of a repository: {error}"
        ) from error
    except NoPipelineError:
        raise
    except OSError as error:
        raise OSError(
            f"`{name}` is no folder here and cannot be had from the Hub: {error}"
        ) from error


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder without an index holds a model by itself, with its weights beside a configuration."""
    has_config = any((folder / name).is_file() for name in CHECKPOINT_CONFIGS)
    # Weights of other kinds are refused with what is to be done about them.
    return has_config and any(any(folder.glob(kind)) for kind in ("*.safetensors", "*.bin"))


def load_published(name: Any, **kwargs: Any) -> Any:
    """The pipeline of a checkpoint that others published, which is no saved pipeline.

    Args:
        kwargs: those of `from_pretrained`.

    Raises:
        OSError: if this file stands alone, without the package that knows such checkpoints.
        ValueError: if the checkpoint is of no family that is known.
    """
    if installed_class("TextDiffusionPipeline") is None:
        raise NoPipelineError(
            f"`{name}` holds no {INDEX}; checkpoints of others are loaded by the package text-diffusers."
        )
    # By name, since this room stands below the one that knows published checkpoints.
    module = import_module(f"{installed_package().__name__}.hub.published.pipeline")
    try:
        return module.load_published_pipeline(name, **kwargs)
    except OSError as error:
        raise OSError(
            f"`{name}` holds no {INDEX}, so it is no saved pipeline, and no model that can be loaded: {error}"
        ) from error


def shipped_folder(name: str) -> Path | None:
    """The folder of a model that comes with the installed package."""
    package_file = getattr(installed_package(), "__file__", None)
    if package_file is None:
        return None
    folder = Path(package_file).parent / SHIPPED / name
    # A name with slashes must not lead out of the folder.
    is_inside = folder.parent.name == SHIPPED
    if not is_inside or not (folder / INDEX).is_file():
        return None

    # An editable installation in strict mode holds links to the files of the repository.
    return (folder / INDEX).resolve().parent


def files_of(index: Path, kinds: tuple[str, ...]) -> list[str]:
    """Patterns of the files that the components of an index consist of."""
    if not index.is_file():
        raise NoPipelineError(f"it holds no {INDEX}, so it is no pipeline.")

    patterns = [INDEX]

    # Each component has a folder by its name, and a pair in the index.
    for name, entry in read_object(index).items():
        if isinstance(entry, list) and name != "_class_name":
            patterns += [f"{name}/*.{kind}" for kind in kinds]
    if "py" in kinds:
        patterns.append("*.py")
    return patterns


# What a folder must hold


def check_saved_pipeline(
    folder: Path,
    index: dict[str, Any],
    pipeline: Any,
    given: Collection[str] = (),
    variant: str | None = None,
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
    # Optional components may be missing, and those that the caller passes are not read.
    required, _ = pipeline._get_signature_keys(pipeline)
    optional = set(pipeline._optional_components)
    for name in sorted({*required, *optional} - {*given}):
        entry = index.get(name)
        if name in optional and entry in (None, [None, None], (None, None)):
            continue

        parts = entry if isinstance(entry, (list, tuple)) else []
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"`{folder / INDEX}` must name module and class of `{name}`, which a {pipeline.__name__} "
                f"expected, got {entry!r}."
            )
        module, class_name = parts
        check_links(folder, folder / name)
        check_component(folder / name, module, class_name, variant)


def check_links(folder: Path, part: Path):
    """Refuse links out of the folder, but those of the Hub's cache: who made it could show files of the reader."""
    homes = [folder.resolve()]

    # Snapshots of the Hub's cache are links to `blobs` beside them.
    if folder.parent.name == "snapshots":
        homes.append(folder.parent.parent.resolve() / "blobs")

    for path in (part, *part.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
            raise ValueError(
                f"`{path}` is a link out of the folder: put the file itself there if you trust it."
            )


def check_component(part: Path, module: str, class_name: str, variant: str | None):
    """Refuse the folder of a component whose configuration is not one of its class."""
    if not part.is_dir():
        raise OSError(f"`{part}` must be the folder of a component, but there is none.")

    # A tokenizer's configuration, for one, has no signature to be compared with.
    component = getattr(sys.modules.get(module), class_name, None)
    if isinstance(component, type) and issubclass(component, PreTrainedModel):
        check_transformers_weights(part, component, variant)
    if (
        not isinstance(component, type)
        or not issubclass(component, ConfigMixin)
        or not component.config_name
    ):
        return

    file = part / component.config_name
    config = read_object(file)
    if config.get("_class_name", class_name) != class_name:
        raise ValueError(
            f"`{file}` must be of a {class_name}, as in the index, got {config['_class_name']!r}."
        )

    # Tensors of a scheduler lie in a file of their own.
    tensors = getattr(component, "_tensor_arguments", ())
    signature = inspect.signature(component).parameters
    parameters = {name: value for name, value in signature.items() if name not in tensors}
    takes_any = any(value.kind is value.VAR_KEYWORD for value in parameters.values())
    missing = [
        name
        for name, value in parameters.items()
        if value.default is value.empty and name not in config
    ]
    if missing and not takes_any:
        raise ValueError(
            f"`{file}` must hold the arguments of a {class_name}, but lacks {missing}."
        )

    # Quantised weights have other shapes and types than those of their model.
    is_ours = component.__module__.partition(".")[0] == __name__.partition(".")[0]
    if is_ours and issubclass(component, ModelMixin) and "quantization_config" not in config:
        arguments = {name: config[name] for name in parameters if name in config}
        check_weights(part, component, arguments, variant)


def check_transformers_weights(part: Path, model: Any, variant: str | None):
    """Refuse weights that are not those of a model of transformers, which else fills up what is missing at random."""
    config = read_object(part / "config.json")
    if "quantization_config" in config or variant is not None:
        return
    stored = {}
    for file in sorted(part.glob("*.safetensors")):
        stored.update(tensors_of(file))
    depths = {name: config[name] for name in DEPTH_KEYS if name in config}
    check_depths(part / "config.json", depths, len(stored))

    # On the meta device nothing is read but names, shapes and types.
    try:
        loaded, report = model.from_pretrained(
            part, output_loading_info=True, device_map="meta", local_files_only=True
        )
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`{part}` does not hold the weights of a {model.__name__}: {error}"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or []))
        if names:
            raise ValueError(
                f"`{part}` must hold the weights of a {model.__name__}, got {len(names)} "
                f"{kind.replace('_', ' ')}: {names[:3]}."
            )

    numbers = {name for name, value in loaded.named_parameters() if value.is_floating_point()}
    integers = [name for name in sorted(numbers & stored.keys()) if not stored[name][1]]
    if integers:
        raise ValueError(f"`{part}` must hold numbers in {integers[0]!r}, got integers.")


def check_depths(file: Path, depths: dict[str, Any], num_stored: int):
    """Refuse a configuration with more layers than there are weights: very many would take forever to build."""
    deepest = max((size for size in depths.values() if type(size) is int), default=0)
    if num_stored and deepest > num_stored:
        raise ValueError(f"`{file}` asks for {deepest} layers, but there are {num_stored} weights.")


def check_weights(part: Path, model: Any, config: dict[str, Any], variant: str | None):
    """Refuse weights that are not those of the configuration, from their names, shapes and types alone."""
    stored = {}
    for file in weight_files(part, variant):
        stored.update(tensors_of(file))
    if not stored:
        return  # the loader says which file it misses

    depths = {name: size for name, size in config.items() if name.endswith("_layers")}
    check_depths(part / model.config_name, depths, len(stored))
    try:
        # On the meta device a model has names, shapes and types, and no numbers.
        with torch.device("meta"):
            expected = model(**config).state_dict()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            f"`{part / model.config_name}` describes no {model.__name__}: {error}"
        ) from error

    missing = [name for name in expected if name not in stored]
    if missing:
        raise ValueError(
            f"`{part}` lacks {len(missing)} of the weights that its configuration asks for: {missing[:3]}."
        )
    kinds = {True: "numbers", False: "integers"}
    for name, tensor in expected.items():
        shape, is_float = stored[name]
        if shape != tuple(tensor.shape) or is_float != tensor.is_floating_point():
            raise ValueError(
                f"`{part}` must hold {kinds[tensor.is_floating_point()]} {tuple(tensor.shape)} in `{name}`, as its "
                f"configuration asks for, got {kinds[is_float]} {shape}."
            )


def weight_files(part: Path, variant: str | None) -> list[Path]:
    """The safetensors files that are loaded for a component; none if there are none."""
    # As in diffusers, weights without the variant serve where there are none of it.
    endings = (f".{variant}", "") if variant else ("",)
    for ending in endings:
        index = part / f"{WEIGHTS}.safetensors.index{ending}.json"
        if index.exists():
            shards = read_object(index).get("weight_map")
            names = list(shards.values()) if isinstance(shards, dict) else []
            # A path instead of a name could lead out of the folder.
            if not names or not all(
                isinstance(name, str) and Path(name).name == name for name in names
            ):
                raise ValueError(
                    f"`{index}` must have a `weight_map` from weights to names of files beside it."
                )
            return [part / name for name in sorted(set(names))]

        single_file = part / f"{WEIGHTS}{ending}.safetensors"
        if single_file.exists():
            return [single_file]
    return []


def tensors_of(file: Path) -> Iterator[tuple[str, tuple[tuple[int, ...], bool]]]:
    """Each tensor of a safetensors file: its name, its shape, and whether it holds floating-point numbers."""
    try:
        # Only the header is read, and no tensor.
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
        if not isinstance(model, torch.nn.Module):
            continue
        for name, weight in model.state_dict().items():
            if not all(map(is_finite, plain_tensors(weight))):
                raise ValueError(f"`{folder / part}` holds NaN or infinite numbers in `{name}`.")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers only, as far as torch can tell."""
    # torch cannot look for NaN in types of one byte.
    if tensor.is_meta or not tensor.is_floating_point() or tensor.element_size() == 1:
        return True
    return bool(torch.isfinite(tensor).all())


def plain_tensors(weight: Any) -> Iterator[torch.Tensor]:
    """The tensors that a weight consists of: itself, or integers and scales of a quantised one."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None:
        yield weight
        return
    # The weight of torchao is a tensor without most of a tensor's functions.
    names, _ = flatten()
    for name in names:
        yield from plain_tensors(getattr(weight, name))


def loading_error(folder: Path, error: Exception) -> Exception:
    """An error of a stock loader as one that names the folder and the component."""
    # The stock loader names no component, but the frame of its function has the name.
    frames = [
        frame
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "load_sub_model"
    ]
    is_clear = isinstance(error, ValueError | OSError)
    if is_clear and not frames:
        return error

    component = str(frames[0].f_locals.get("name", "")) if frames else ""
    message = str(error) if is_clear else f"{type(error).__name__}: {error}"
    # Callers may tell missing files from wrong ones.
    kind = OSError if isinstance(error, OSError) else ValueError
    return kind(f"`{folder / component}` cannot be loaded: {message}")
