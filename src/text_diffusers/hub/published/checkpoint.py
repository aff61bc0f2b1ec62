"""Published weights: what is stored, whether it is what a model needs, and how it gets there.

The header of a safetensors file has the names, shapes and types of its tensors, so that a checkpoint is refused before
memory is taken. Then one tensor after the other is read into its place; there never are two copies of the model.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import torch
from accelerate import (
    dispatch_model,
    infer_auto_device_map,
    init_empty_weights,
)
from accelerate.utils import check_device_map, get_balanced_memory
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from text_diffusers.common.json_files import read_object
from text_diffusers.common.validation import require
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.pipelines.loading import check_links

# Names that transformers gives to the files of weights.
SINGLE_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

# Automatic placements of accelerate.
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")

# Names of entries that say how many of something there are, each of which has stored weights.
COUNTS = re.compile(r"(n|num)_(hidden_)?(layers?|blocks)|(n|num)_(routed_)?experts")


# What is stored


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name, from the headers of its files alone.

    Raises:
        OSError: if a file is missing.
        ValueError: if a file is damaged, or the weights are pickled.
    """
    names = [SINGLE_FILE]
    placed: dict[str, str] = {}
    if not (folder / SINGLE_FILE).exists() and (folder / WEIGHTS_INDEX).exists():
        check_links(folder, folder / WEIGHTS_INDEX)
        names = shard_names(folder / WEIGHTS_INDEX)
        placed = read_object(folder / WEIGHTS_INDEX)["weight_map"]
    elif not (folder / SINGLE_FILE).exists():
        raise missing_weights(folder)

    stored: dict[str, StoredTensor] = {}
    for name in names:
        check_links(folder, folder / name)
        for tensor_name, tensor in read_header(folder / name).items():
            if tensor_name in stored:
                raise ValueError(
                    f"`{folder}` must hold each tensor once, but {tensor_name!r} is also in `{name}`."
                )
            stored[tensor_name] = tensor

    for tensor_name, name in placed.items():
        is_there = tensor_name in stored and Path(stored[tensor_name].file).name == name
        if not is_there:
            raise ValueError(
                f"`{folder / WEIGHTS_INDEX}` says that {tensor_name!r} is in `{name}`, but it is not."
            )
    return stored


def missing_weights(folder: Path) -> Exception:
    """The error of a folder without safetensors, which says what to do about pickles."""
    pickles = sorted(path.name for kind in PICKLES for path in folder.glob(kind))
    if not pickles:
        return OSError(
            f"`{folder}` holds neither {SINGLE_FILE} nor {WEIGHTS_INDEX}. Weights that were published as "
            "pickles, such as pytorch_model.bin, must be converted to safetensors first."
        )
    return ValueError(
        f"`{folder}` holds its weights as pickles, {pickles[:3]}, and reading these may run code: convert them to "
        f"{SINGLE_FILE} first, with `torch.load(file, weights_only=True)` and `safetensors.torch.save_file`."
    )


def shard_names(index: Path) -> list[str]:
    """The files that an index names."""
    weight_map = read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []

    # A path instead of a name could lead out of the folder.
    are_names = all(isinstance(name, str) and Path(name).name == name for name in names)
    if not names or not are_names:
        raise ValueError(
            f"`{index}` must have a `weight_map` from tensors to names of files beside it."
        )
    return sorted(set(names))


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file."""
    if not file.is_file():
        raise OSError(f"`{file}` must be a file of weights, but there is none.")
    try:
        # Sizes and places are checked on opening.
        with safe_open(file, framework="pt"), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"`{file}` is damaged: {error}") from error
    except OSError as error:
        raise OSError(f"`{file}` cannot be read: {error}") from error

    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            offset = 8 + length + entry["data_offsets"][0]
            tensors[name] = StoredTensor(tuple(entry["shape"]), entry["dtype"], str(file), offset)
    return tensors


def check_counts(config: Any, stored: Mapping[str, StoredTensor]):
    """Refuse a configuration that asks for more layers or experts than there are tensors.

    Even without memory for weights, very many layers would take forever to build.
    """
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        is_count = isinstance(value, int) and COUNTS.fullmatch(str(key)) is not None
        limit = f"a number of which each has weights, and there are {len(stored)} tensors"
        require(not is_count or value <= len(stored), str(key), limit, value)
        check_counts(value, stored)


# Whether it is what the model needs


def check_weights(blueprint: Blueprint, stored: Mapping[str, StoredTensor]) -> list[list[str]]:
    """Refuse a checkpoint that does not give the model of its configuration, from names, shapes and types alone.

    Returns:
        For each parameter that is tied, all of its names in the state dict.

    Raises:
        ValueError: that names the tensor, or says what is wrong with the configuration.
    """
    # On the meta device a model has names, shapes and types, and no numbers.
    try:
        with torch.device("meta"):
            model = blueprint.build()
    except Exception as error:
        raise ValueError(
            f"The configuration of {blueprint.family} describes no model: {error}"
        ) from error
    expected = model.state_dict(keep_vars=True)
    tied_names = names_of_tied(expected)

    # Each parameter needs a weight under one of its names.
    twins = {name: names for names in tied_names for name in names}
    for name in expected:
        if not any(twin in blueprint.weights for twin in twins.get(name, [name])):
            raise ValueError(
                f"The weights of {blueprint.family} must have {name!r} of a {type(model).__name__}, which no stored "
                "tensor is read into."
            )

    for name, weight in blueprint.weights.items():
        if name not in expected:
            raise ValueError(f"A {type(model).__name__} must have a weight {name!r}, but has none.")
        check_weight(blueprint.family, name, weight, expected[name], stored)

    used = {part for weight in blueprint.weights.values() for part in weight.names}
    extra = sorted(stored.keys() - used - blueprint.ignored)
    if extra:
        raise ValueError(
            f"The weights of {blueprint.family} must have no other tensors than its configuration asks for, got "
            f"{len(extra)}: {extra[:3]}."
        )
    return tied_names


def names_of_tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each tensor that has several."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def check_weight(
    family: str, name: str, weight: Weight, expected: Tensor, stored: Mapping[str, StoredTensor]
):
    """Refuse stored tensors of which an entry of the state dict cannot be made."""
    parts = []
    for part in weight.names:
        if part not in stored:
            raise ValueError(
                f"The weights of {family} must have {part!r}, but lack it: its configuration asks for it."
            )
        dtype = TYPES.get(stored[part].dtype)
        require(dtype is not None, part, f"stored as one of {', '.join(TYPES)}", stored[part].dtype)
        parts.append(torch.empty(stored[part].shape, dtype=dtype, device="meta"))

    shapes = ", ".join(f"{part!r} {stored[part].shape}" for part in weight.names)
    try:
        made = weight.make(*parts)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"The weights of {family} must fit its configuration, but {shapes} give no {name!r}: {error}"
        ) from error

    if made.shape != expected.shape:
        raise ValueError(
            f"The weights of {family} must fit its configuration, but {shapes} give {tuple(made.shape)} for {name!r}, "
            f"which has {tuple(expected.shape)}."
        )
    if made.is_floating_point() != expected.is_floating_point():
        kinds = {True: "numbers", False: "integers"}
        raise ValueError(
            f"The weights of {family} must have {kinds[expected.is_floating_point()]} in {shapes}, got "
            f"{kinds[made.is_floating_point()]}."
        )


# How it gets there


def load_weights(
    blueprint: Blueprint,
    stored: Mapping[str, StoredTensor],
    dtype: torch.dtype | None = None,
    device_map: Any = None,
) -> Any:
    """The model of a checkpoint, with its weights.

    Args:
        dtype: of floating-point weights; by default that in which most of the numbers are stored.
        device_map: a device, `{name of a module: device}`, or "auto", "balanced" or "sequential" as in accelerate; by
            default the CPU.

    Raises:
        ValueError: if the weights do not fit, are no finite numbers, or do not fit into memory.
    """
    tied_names = check_weights(blueprint, stored)
    if dtype is None:
        dtype = stored_type(blueprint, stored)

    # Parameters without memory; buffers that are not stored, such as rotary frequencies, have their numbers.
    with init_empty_weights(include_buffers=False):
        model = blueprint.build()
    for names in tied_names:
        share(model, names[0], names[1:])
    devices = placement(model, device_map, dtype)

    is_float32 = stays_float32(model, dtype)
    reader = TensorReader(stored)
    with reader:
        # In the order of the files; weights that are parts of one stored tensor follow each other.
        for name, weight in sorted(
            blueprint.weights.items(), key=lambda item: reader.place(item[1])
        ):
            tensor = reader.read(weight)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32 if is_float32(name) else dtype)
            check_numbers(weight, tensor)
            set_tensor(model, name, tensor.to(device_of(name, devices)))
    for names in tied_names:
        first, *copies = [name for name in names if name in blueprint.weights]
        refuse_other_copies(model, blueprint.family, first, copies)
        share(model, first, [name for name in names if name != first])

    move_buffers(model, devices)
    if isinstance(model, PreTrainedModel):
        # As transformers does on loading.
        entries: Any = model.config
        entries.dtype = dtype
    model.eval()
    if len(set(devices.values())) > 1:
        return dispatch_model(
            model, devices, skip_keys=getattr(model, "_skip_keys_device_placement", None)
        )
    return model


def refuse_other_copies(model: Any, family: str, name: str, copies: list[str]):
    """Refuse stored copies of a tied weight that are not that weight: sharing would lose them."""
    state = model.state_dict()
    for copy in copies:
        if not torch.equal(state[name], state[copy].to(state[name].device)):
            raise ValueError(
                f"The weights of {family} must have the same numbers in {name!r} and {copy!r}, which its "
                "configuration ties, but they differ."
            )


def stored_type(blueprint: Blueprint, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The floating-point type in which most of the numbers are stored."""
    sizes: Counter[torch.dtype] = Counter()
    for weight in blueprint.weights.values():
        for name in weight.names:
            sizes[TYPES[stored[name].dtype]] += math.prod(stored[name].shape)
    floating = {dtype: size for dtype, size in sizes.items() if dtype.is_floating_point}
    return max(floating, key=lambda dtype: floating[dtype], default=torch.float32)


def stays_float32(model: Any, dtype: torch.dtype) -> Any:
    """Whether an entry of the state dict stays in float32, as its class says, whatever the other weights are."""
    modules: set[str] = set()
    if dtype in (torch.float16, torch.bfloat16):
        modules |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    # As in transformers, these are only in danger of overflows.
    if dtype == torch.float16:
        modules |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    pattern = re.compile(
        "|".join(rf"(^|\.){re.escape(module)}($|\.)" for module in modules) or "$^"
    )
    return lambda name: pattern.search(name) is not None


class TensorReader:
    """Reads stored tensors into memory of their own, for as long as it is open.

    Files are read rather than mapped: pages of a mapped file count as memory in use, beside the copy that is made of
    them, and weights that were views of a file would change with it.
    """

    def __init__(self, stored: Mapping[str, StoredTensor]):
        self.stored = stored
        self._files: dict[str, BinaryIO] = {}
        self._opened = ExitStack()
        # Weights may be parts of one stored tensor, which is read once for all of them.
        self._names: tuple[str, ...] = ()
        self._parts: list[Tensor] = []

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *error: Any):
        self._opened.close()

    def place(self, weight: Weight) -> tuple[str, int]:
        """Where the first of a weight's tensors lies."""
        first = self.stored[weight.names[0]]
        return first.file, first.offset

    def read(self, weight: Weight) -> Tensor:
        """What a weight makes of its tensors, in memory that nothing else has."""
        is_repeated = weight.names == self._names
        if not is_repeated:
            self._parts = []
            self._parts = [self._tensor(self.stored[name]) for name in weight.names]
            self._names = weight.names
        made = weight.make(*self._parts).contiguous()

        storages = {part.untyped_storage().data_ptr() for part in self._parts}
        is_view = made.untyped_storage().data_ptr() in storages
        is_whole = made.untyped_storage().nbytes() == made.nbytes
        return made.clone() if is_view and (is_repeated or not is_whole) else made

    def _tensor(self, stored: StoredTensor) -> Tensor:
        tensor = torch.empty(stored.shape, dtype=TYPES[stored.dtype])
        if tensor.numel() == 0:
            return tensor

        if stored.file not in self._files:
            self._files[stored.file] = self._opened.enter_context(open(stored.file, "rb"))
        file = self._files[stored.file]
        file.seek(stored.offset)
        count = file.readinto(tensor.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportAttributeAccessIssue]
        if count != tensor.nbytes:
            raise ValueError(f"`{stored.file}` is damaged: it ends within a tensor.")
        return tensor


def check_numbers(weight: Weight, tensor: Tensor):
    """Refuse weights that are no numbers: attention may turn them into zeros, and so into text."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # Both are NaN if one of the numbers is; no tensor of truth values is made.
    low, high = torch.aminmax(tensor.detach())
    if not math.isfinite(low.item()) or not math.isfinite(high.item()):
        raise ValueError(
            f"{', '.join(map(repr, weight.names))} must hold finite numbers in {tensor.dtype}, got NaN or infinity."
        )


def set_tensor(model: nn.Module, name: str, tensor: Tensor):
    """Put a tensor in the place of a parameter or buffer."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    parameter = module._parameters.get(leaf)
    if parameter is None:
        module._buffers[leaf] = tensor
    else:
        module._parameters[leaf] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def share(model: nn.Module, name: str, others: Iterable[str]):
    """Make the entries `others` of the state dict the parameter `name`."""
    path, _, leaf = name.rpartition(".")
    parameter = getattr(model.get_submodule(path), leaf)
    for other in others:
        path, _, leaf = other.rpartition(".")
        setattr(model.get_submodule(path), leaf, parameter)


# Devices


def placement(model: Any, device_map: Any, dtype: torch.dtype) -> dict[str, Any]:
    """The device of each module, `{"": device}` for one device."""
    if device_map is None:
        return {"": "cpu"}
    if isinstance(device_map, str) and device_map in AUTOMATIC:
        devices = automatic_placement(model, device_map, dtype)
    elif isinstance(device_map, dict):
        devices = dict(device_map)
    elif isinstance(device_map, (str, int, torch.device)) and not isinstance(device_map, bool):
        devices = {"": device_map}
    else:
        limit = f"a device, a dictionary of devices, or one of {', '.join(AUTOMATIC)}"
        require(False, "device_map", limit, device_map)
        raise AssertionError

    if "disk" in devices.values():
        raise ValueError(
            f"`device_map` must have devices with memory, got {device_map!r}, which leaves weights on disk: convert "
            "the checkpoint to a folder of its own first, which transformers and diffusers can offload."
        )
    try:
        check_device_map(model, devices)
        for device in set(devices.values()):
            # Whether there is such a device shows when it is used.
            torch.empty(0, device=device)
        return devices
    except (ValueError, RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"`device_map` cannot be {device_map!r}: {error}") from error


def automatic_placement(model: Any, kind: str, dtype: torch.dtype) -> dict[str, Any]:
    whole_modules = list(getattr(model, "_no_split_modules", None) or [])
    max_memory = None
    if kind != "sequential":
        max_memory = get_balanced_memory(
            model,
            dtype=dtype,
            low_zero=kind == "balanced_low_0",
            no_split_module_classes=whole_modules,
        )
    return dict(
        infer_auto_device_map(
            model, max_memory=max_memory, dtype=dtype, no_split_module_classes=whole_modules
        )
    )


def device_of(name: str, devices: Mapping[str, Any]) -> Any:
    """The device of the innermost module around an entry of the state dict that has one."""
    while name not in devices:
        if not name:
            raise AssertionError("checked before")
        name = name.rpartition(".")[0]
    return devices[name]


def move_buffers(model: nn.Module, devices: Mapping[str, Any]):
    """Put the buffers that are not stored where their modules are."""
    for path, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None:
                name = f"{path}.{leaf}" if path else leaf
                module._buffers[leaf] = buffer.to(device_of(name, devices))
