"""Seeded changes of the files of a saved pipeline, as a careless or a hostile hand makes them."""

import json
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from support.hostile_values import CLASSES, KEYS, VALUES

INDEX = "model_index.json"
SECRET = "the-secret-of-another-folder"
PAYLOAD = "import pathlib\npathlib.Path({marker!r}).touch()\n"


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


class Scene:
    """A saved pipeline to be changed, what lies outside its folder, and a seeded source of choices."""

    def __init__(self, folder: Path, outside: Path, draw: random.Random):
        self.folder, self.outside, self.draw = folder, outside, draw
        self.marker = outside / "marker"

    def files(self, suffix: str = "") -> list[Path]:
        return sorted(path for path in self.folder.rglob(f"*{suffix}") if path.is_file())

    def file(self, suffix: str = "") -> Path:
        """The index as often as all other files of a kind: everything begins with it."""
        index = self.folder / INDEX
        found = self.files(suffix)
        return index if index in found and self.draw.random() < 0.2 else self.draw.choice(found)


def edit(path: Path, changes: dict[str, Any]):
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8"
    )


def spots(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """The paths to all values in parsed JSON but the whole."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield (*at, key)
        yield from spots(inner, (*at, key))


def neighbours(value: Any) -> list[Any]:
    """Values that are close to one, and wrong."""
    if isinstance(value, bool):
        return [not value, int(value), str(value)]
    if isinstance(value, int | float):
        return [
            value + 1,
            value - 1,
            -value,
            value * 2,
            value * 1000,
            float(value),
            value + 0.5,
            str(value),
            [value],
        ]
    if isinstance(value, str):
        return [value + "x", value[:-1], value.upper(), [value], f"../{value}", value * 100]
    if isinstance(value, list):
        return [
            value[:-1],
            value * 2,
            value[::-1],
            [value],
            [*value, None],
            dict(enumerate(value)),
            [str(v) for v in value],
        ]
    return [[value], str(value)]


def change_json(scene: Scene) -> str:
    """One change of one value, or of the keys."""
    path, draw = scene.file(".json"), scene.draw
    document = json.loads(path.read_text(encoding="utf-8"))
    found = list(spots(document))
    top = [spot for spot in found if len(spot) == 1]
    spot = draw.choice(top if draw.random() < 0.5 else found)
    holder = document
    for key in spot[:-1]:
        holder = holder[key]
    name, value = spot[-1], holder[spot[-1]]
    kind = draw.choice(
        [
            "delete",
            "rename",
            "value",
            "value",
            "value",
            "near",
            "near",
            "near",
            "add",
            "twice",
            "class",
        ]
    )
    if kind == "class" and not (isinstance(value, list) and path.name == INDEX):
        kind = "near"
    if kind == "delete":
        del holder[name]
    elif kind in ("value", "near", "class"):
        holder[name] = draw.choice(
            {"value": VALUES, "near": neighbours(value), "class": CLASSES}[kind]
        )
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{name}_"] = holder.pop(name)
    elif kind == "add":
        key, added = draw.choice(list(KEYS.items()))
        document[key] = added
        spot = (key,)
    text = json.dumps(document, indent=2)
    if kind == "twice":
        again = json.dumps({str(top[0][0]): draw.choice(VALUES)})
        text = (
            f"{again[:-1]}, {text.lstrip()[1:]}"
            if draw.random() < 0.5
            else f"{text.rstrip()[:-1]}, {again[1:]}"
        )
    path.write_text(text, encoding="utf-8")
    return f"{kind} {'.'.join(map(str, spot))} in {path.relative_to(scene.folder)}: {text_of(holder, name)}"


def text_of(holder: Any, name: Any) -> str:
    try:
        return repr(holder[name])[:80]
    except (KeyError, IndexError):
        return "-"


def nest(scene: Scene) -> str:
    """JSON too deep for a recursive reader."""
    path, depth = scene.file(".json"), scene.draw.choice([150, 2_000, 100_000])
    opened, closed = scene.draw.choice([("[", "]"), ('{"a":', "}")])
    inner = f"{opened * depth}1{closed * depth}"
    path.write_text(inner if scene.draw.random() < 0.5 else f'{{"_class_name": {inner}}}')
    return f"nesting of {depth} in {path.relative_to(scene.folder)}"


def change_bytes(scene: Scene) -> str:
    path, draw = scene.file(), scene.draw
    data = bytearray(path.read_bytes())
    place = (
        draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 400))
    )
    kind = draw.choice(
        ["truncate", "flip", "empty", "garbage", "bom", "utf8", "zeros", "append", "utf16", "cut"]
    )
    if kind == "truncate":
        data = data[:place]
    elif kind == "flip":
        data[place] ^= 1 << draw.randrange(8)
    elif kind in ("empty", "garbage", "zeros"):
        data = {"empty": b"", "garbage": draw.randbytes(1000), "zeros": bytes(len(data))}[kind]
    elif kind == "bom":
        data = b"\xef\xbb\xbf" + data
    elif kind == "utf8":
        data[place:place] = b"\xff\xfe\xc3("
    elif kind == "utf16":
        data = data.decode("latin-1").encode("utf-16")
    elif kind == "cut":
        del data[place : place + draw.randrange(1, 100)]
    else:
        data += draw.randbytes(100)
    path.write_bytes(data)
    return f"{kind} at {place} of {path.relative_to(scene.folder)}"


def change_header(scene: Scene) -> str:
    """One change of what a safetensors file says of its tensors, which stay as they are."""
    path, draw = scene.file(".safetensors"), scene.draw
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    tensor = header[name]
    kind = draw.choice(
        ["length", "offsets", "dtype", "shape", "delete", "rename", "twice", "metadata", "type"]
    )
    length = None
    if kind == "length":
        length = draw.choice([0, 1, size - 1, size + 1, 2**31, 2**62, 2**64 - 1])
    elif kind == "offsets":
        start, end = tensor["data_offsets"]
        tensor["data_offsets"] = draw.choice(
            [[end, start], [0, 10**18], [-1, end], [start, end + 4], [start], "all", [0.5, end]]
        )
    elif kind == "dtype":
        tensor["dtype"] = draw.choice(
            ["F64", "F16", "I32", "I64", "BOOL", "F8_E4M3", "U8", "X", 5, None]
        )
    elif kind == "shape":
        shape = tensor["shape"]
        tensor["shape"] = draw.choice(
            [[*shape, 1], shape[::-1], [0], [2**40, 2**40], [-1], [s * 2 for s in shape], [], "x"]
        )
    elif kind == "delete":
        del header[name]
    elif kind == "rename":
        header[draw.choice([f"{name}.x", "", "../x", "__class__"])] = header.pop(name)
    elif kind == "twice":
        header[f"{name}_twin"] = tensor
    elif kind == "metadata":
        header["__metadata__"] = draw.choice(
            [{}, {"format": "np"}, {"format": 5}, [], {"format": "pt", "a": "b" * 10**6}]
        )
    else:
        header[name] = draw.choice([None, [], 5, {}])
    encoded = json.dumps(header).encode()
    path.write_bytes(
        (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + body
    )
    return f"{kind} of {name} in the header of {path.relative_to(scene.folder)}: {str(header.get(name))[:80]}"


def change_tensor(scene: Scene) -> str:
    """One tensor of other numbers, of another shape or type, gone, or one more."""
    path, draw = scene.file(".safetensors"), scene.draw
    tensors = load_file(path)
    name = draw.choice(list(tensors))
    old = tensors[name]
    kind = draw.choice(
        [
            "nan",
            "inf",
            "huge",
            "negative",
            "longer",
            "shorter",
            "flat",
            "int",
            "half",
            "gone",
            "more",
            "scalar",
        ]
    )
    if kind in ("nan", "inf", "huge", "negative"):
        value = {"nan": float("nan"), "inf": float("inf"), "huge": 3e38, "negative": -1}[kind]
        whole = not old.is_floating_point() and kind != "negative"
        tensors[name] = torch.full_like(old, 2**31 - 1 if whole else value)
    elif kind == "longer":
        tensors[name] = torch.cat([old, old]) if old.ndim else old.expand(2).clone()
    elif kind == "shorter":
        tensors[name] = old[:-1].clone() if old.ndim else old
    elif kind == "flat":
        tensors[name] = old.flatten()
    elif kind in ("int", "half"):
        tensors[name] = old.to(torch.int32 if kind == "int" else torch.float16)
    elif kind == "gone":
        del tensors[name]
    elif kind == "more":
        tensors["one_more.weight"] = old.clone()
    else:
        tensors[name] = torch.zeros(())
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{kind} {name} in {path.relative_to(scene.folder)}"


def change_file(scene: Scene) -> str:
    """A file or a component that is gone, a folder, another's, or a link."""
    path, draw = scene.file(), scene.draw
    kind = draw.choice(["gone", "folder", "other", "link", "device", "loop", "component", "plain"])
    described = f"{kind} in place of {path.relative_to(scene.folder)}"
    if kind in ("component", "plain"):
        path = (
            path.parent
            if path.parent != scene.folder
            else draw.choice(scene.files(".json")[:-1]).parent
        )
        if path == scene.folder:
            path = scene.folder / "tokenizer"
        shutil.rmtree(path)
        if kind == "plain":
            path.write_text("a file")
        return f"{kind} in place of {path.name}"
    other = draw.choice(scene.files(path.suffix)).read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "other":
        path.write_bytes(other)
    elif kind != "gone":
        target = {"link": scene.outside / "secret.json", "device": "/dev/zero", "loop": path}[kind]
        path.symlink_to(target)
    return described


def add_code(scene: Scene) -> str:
    """A pickle or a Python file that creates the marker if it is run, where a loader may look for one."""
    draw = scene.draw
    folders = sorted(path for path in scene.folder.iterdir() if path.is_dir())
    folder = draw.choice(folders)
    if draw.random() < 0.5:
        names = [
            "diffusion_pytorch_model.bin",
            "pytorch_model.bin",
            "tokenizer.model",
            "vocab.pkl",
            "scheduler.bin",
        ]
        path = folder / draw.choice(names)
        path.write_bytes(pickle.dumps(Touch(scene.marker)))
        if draw.random() < 0.7:
            for weights in folder.glob("*.safetensors"):
                weights.unlink()
        return f"pickle {path.relative_to(scene.folder)}"
    index = scene.folder / INDEX
    names = json.loads(index.read_text())
    where, name = draw.choice(
        [(scene.folder, "pipeline"), (folder, "evil"), (folder, "modeling"), (scene.folder, "evil")]
    )
    code = (
        PAYLOAD.format(marker=str(scene.marker))
        + "from diffusers import *\nclass Evil(DiffusionPipeline): pass\n"
    )
    (where / f"{name}.py").write_text(code)
    if where == folder:
        names[folder.name] = [name, "Evil"]
    else:
        names["_class_name"] = draw.choice([[name, "Evil"], name, "Evil"])
    index.write_text(json.dumps(names))
    return f"code {(where / name).relative_to(scene.folder)}.py, named in the index"


def add_shards(scene: Scene) -> str:
    """An index of shards that points elsewhere, in place of the weights."""
    draw = scene.draw
    path = draw.choice(
        [path for path in scene.files(".safetensors") if path.name.startswith("diffusion")]
    )
    secret = draw.choice(
        [
            "../../outside/secret.safetensors",
            str(scene.outside / "secret.safetensors"),
            path.name,
            "x",
            5,
            None,
        ]
    )
    names = list(load_file(path))
    index = draw.choice(
        [
            {"metadata": {}, "weight_map": dict.fromkeys(names, secret)},
            {"weight_map": [secret]},
            {},
            [],
            {"metadata": {"total_size": -1}, "weight_map": {}},
        ]
    )
    if draw.random() < 0.8:
        path.unlink()
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    return f"shards of {path.parent.name}: {str(index)[-80:]}"


# The third column says how often a kind is drawn.
KINDS: dict[Callable[[Scene], str], int] = {
    change_json: 10,
    change_tensor: 3,
    change_header: 3,
    change_bytes: 3,
    change_file: 2,
    add_code: 1,
    add_shards: 1,
    nest: 1,
}


def mutate(scene: Scene) -> str:
    """Change the scene's folder, and say how."""
    return scene.draw.choices(list(KINDS), list(KINDS.values()))[0](scene)
