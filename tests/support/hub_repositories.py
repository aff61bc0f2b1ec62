"""What the loopback Hub keeps and says: repositories of files, requests as it reads them, answers and refusals."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE = (".safetensors", ".bin", ".png", ".gif")
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE
).encode()
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass
class Answer:
    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **headers}
        self.headers |= {"X-Error-Code": code} if code else {}


@dataclass(frozen=True)
class File:
    data: bytes
    large: bool = False

    @property
    def oid(self) -> str:
        """What git calls a small file, and the LFS protocol a large one."""
        if self.large:
            return hashlib.sha256(self.data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    def described(self) -> dict[str, Any]:
        large = {
            "lfs": {"oid": self.oid, "sha256": self.oid, "size": len(self.data), "pointerSize": 130}
        }
        return {
            "size": len(self.data),
            "oid": self.oid[:40],
            "blobId": self.oid[:40],
            **(large if self.large else {}),
        }


class Repository:
    """Commits are whole trees by their ids; branches are ids of commits."""

    def __init__(self, kind: str, name: str, private: bool):
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, dict[str, File]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {".gitattributes": File(GITATTRIBUTES)}, "initial commit")

    def commit(self, branch: str, files: dict[str, File], message: str) -> str:
        tree = "".join(f"{path} {files[path].oid}\n" for path in sorted(files))
        parents = self.branches.get(branch), len(self.commits)
        oid = hashlib.sha1(
            f"{self.kind} {self.name} {parents} {message}\n{tree}".encode()
        ).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.messages.append(message)
        return oid

    def find(self, revision: str | None) -> str:
        oid = self.branches.get(revision or "main", revision)
        if oid not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.data for path, file in self.commits[self.find(revision)].items()}


@dataclass
class Ask:
    """A request as the methods of `LoopbackHub` read it: its user, body and range, and the parts of its path."""

    user: str | None
    body: bytes
    range: str | None
    query: dict[str, list[str]]
    kind: str = "model"
    name: str = ""
    revision: str = ""
    folder: str = ""
    path: str = ""
    oid: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def recursive(self) -> bool:
        return self.query.get("recursive", ["false"])[0].lower() == "true"


def check_owner(user: str | None, name: str):
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    if user != name.split("/")[0]:
        raise Refusal(403, f"You don't have the rights to write to {name}")


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the first two lines of `---`; empty if there is none."""
    match = re.match(r"---\r?\n(.*?)\r?\n---\s", text + "\n", re.DOTALL)
    try:
        card = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise ValueError(f"YAML Metadata Error: {error}") from error
    if not isinstance(card, dict):
        raise ValueError("YAML Metadata Error: must be a mapping")
    return card


def bad_color(card: dict[str, Any], key: str) -> bool:
    return key in card and card[key] not in COLORS


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})


def part_of(data: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    """All of `data`, or the bytes that a Range header wants."""
    headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    if match is None:
        return Answer(data, headers=headers)
    first, last = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if first > last:
        raise Refusal(416, "Range Not Satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
    return Answer(
        data[first : last + 1],
        206,
        headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"},
    )
