"""A Hugging Face Hub of this machine's own, for tests: what `huggingface_hub` asks, answered from memory.

It keeps model, dataset and Space repositories with branches and commits. As on the Hub, large files are uploaded by
the LFS protocol and downloaded by a redirect to another host, private repositories do not exist for strangers, and an
error has its name in `X-Error-Code`. Pull requests, tags and Xet storage are not kept. A client is a fresh process,
because it reads the Hub's address at import: see `hub_client.py`.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.hub_repositories import (
    COLORS,
    LARGE,
    Answer,
    Ask,
    File,
    Refusal,
    Repository,
    as_json,
    bad_color,
    check_owner,
    front_matter,
    part_of,
)

NAME = r"(?P<name>[\w.-]+/[\w.-]+?)"
API = rf"/api/(?P<kind>model|dataset|space)s/{NAME}"
FILES = rf"/(?:(?P<kind>dataset|space)s/)?{NAME}"
ROUTES = [
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("GET", r"/api/whoami-v2", "whoami"),
    ("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?", "info"),
    (
        "GET",
        r"/api/(?P<kind>model|dataset|space)s/(?P<name>[\w.-]+)(?:/revision/(?P<revision>[^/]+))?",
        "info",
    ),
    ("GET", rf"{API}/refs", "refs"),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", "tree"),
    ("POST", rf"{API}/branch/(?P<revision>[^/]+)", "branch"),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"{FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("POST", r"/_lfs/verify", "lfs_verify"),
    ("GET|HEAD", r"/_lfs/(?P<oid>[0-9a-f]{64})", "lfs_download"),
    ("GET|HEAD", rf"{FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


@dataclass(frozen=True)
class Request:
    """What a client asked: `path` with its query, whether a token came with it, and the status that it was given."""

    method: str
    path: str
    authorized: bool
    status: int
    range: str | None
    body: bytes


@dataclass
class Fault:
    """The next `times` requests of `method` whose path contains `path` get `status` instead of an answer.

    With `cut_after`, they get the answer, and the connection ends after so many bytes of its body; after 0 it ends
    before the answer, and the request has no effect.
    """

    method: str
    path: str
    times: int = 1
    status: int = 503
    cut_after: int | None = None


class LoopbackHub:
    """The Hub's state, its log of `requests`, and one method for each kind of request.

    Args:
        users: the name of the user of each token. A user may write to repositories of his own name only.
    """

    def __init__(self, users: Mapping[str, str]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}/_lfs"

    @contextmanager
    def serving(self):
        thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def asked(self, method: str, path: str) -> list[Request]:
        return [
            request
            for request in self.requests
            if request.method == method and path in request.path
        ]

    def fault_of(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def user_of(self, authorization: str | None) -> str | None:
        if authorization is None:
            return None
        user = self.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return user

    def visible(self, ask: "Ask") -> Repository:
        found = self.repositories.get((ask.kind, ask.name))
        if found is None or (found.private and ask.user != ask.name.split("/")[0]):
            raise Refusal(401 if ask.user is None else 404, "Repository not found", "RepoNotFound")
        return found

    def writable(self, ask: "Ask") -> Repository:
        found = self.visible(ask)
        check_owner(ask.user, ask.name)
        return found

    def create(self, ask: "Ask") -> Answer:
        wish = ask.json
        name = f"{wish.get('organization') or ask.user}/{wish['name']}"
        check_owner(ask.user, name)
        kind = wish.get("type") or "model"
        url = f"{self.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.repositories:
            return as_json(
                {"error": f"You already created this {kind} repo", "url": url}, status=409
            )
        if kind == "space" and wish.get("sdk") not in ("gradio", "docker", "static"):
            raise Refusal(400, "a Space must have an sdk")
        self.repositories[kind, name] = Repository(kind, name, wish.get("visibility") == "private")
        return as_json({"url": url, "name": name})

    def validate(self, ask: "Ask") -> Answer:
        try:
            card = front_matter(ask.json["content"])
        except ValueError as error:
            return as_json({"errors": [{"message": str(error)}], "warnings": []}, status=400)
        wrong = []
        if ask.json["repoType"] == "space":
            wrong += [
                f'"{key}" must be one of {COLORS}'
                for key in ("colorFrom", "colorTo")
                if bad_color(card, key)
            ]
            wrong += (
                [] if card.get("sdk") in ("gradio", "docker", "static") else ['"sdk" is missing']
            )
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        errors = [{"message": message} for message in wrong]
        return as_json({"errors": errors, "warnings": warnings}, status=400 if wrong else 200)

    def whoami(self, ask: "Ask") -> Answer:
        if ask.user is None:
            raise Refusal(401, "Invalid username or password.")
        return as_json(
            {"type": "user", "name": ask.user, "orgs": [], "auth": {"type": "access_token"}}
        )

    def info(self, ask: "Ask") -> Answer:
        found = self.visible(ask)
        oid = found.find(ask.revision)
        files = found.commits[oid]
        card = front_matter(files["README.md"].data.decode()) if "README.md" in files else {}
        siblings = [{"rfilename": path, **file.described()} for path, file in files.items()]
        facts = {
            "id": found.name,
            "sha": oid,
            "private": found.private,
            "siblings": siblings,
            "cardData": card,
        }
        kept = {
            key: card[key] for key in ("library_name", "pipeline_tag", "sdk", "tags") if key in card
        }
        return as_json(facts | kept)

    def refs(self, ask: "Ask") -> Answer:
        branches = self.visible(ask).branches.items()
        named = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in branches
        ]
        return as_json({"branches": named, "converts": [], "tags": []})

    def tree(self, ask: "Ask") -> Answer:
        found = self.visible(ask)
        files = found.commits[found.find(ask.revision)]
        inside = f"{ask.folder}/" if ask.folder else ""
        paths = [path for path in files if path.startswith(inside)]
        if inside and not paths:
            raise Refusal(404, f"{ask.folder} does not exist", "EntryNotFound")
        listed = [path for path in paths if ask.recursive or "/" not in path.removeprefix(inside)]
        folders = {
            inside + path.removeprefix(inside).split("/")[0] for path in paths if path not in listed
        }
        entries = [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            for path in sorted(folders)
        ]
        return as_json(
            entries + [{"type": "file", "path": path, **files[path].described()} for path in listed]
        )

    def branch(self, ask: "Ask") -> Answer:
        found = self.writable(ask)
        if ask.revision in found.branches:
            raise Refusal(409, "Reference already exists")
        found.branches[ask.revision] = found.find(ask.json.get("startingPoint"))
        return Answer()

    def preupload(self, ask: "Ask") -> Answer:
        found = self.writable(ask)
        files = found.commits[found.find(ask.revision)]
        answers = []
        for wish in ask.json["files"]:
            present = files[wish["path"]].oid if wish["path"] in files else None
            mode = "lfs" if wish["path"].endswith(LARGE) else "regular"
            answers.append(
                {"path": wish["path"], "uploadMode": mode, "shouldIgnore": False, "oid": present}
            )
        return as_json({"files": answers})

    def lfs_batch(self, ask: "Ask") -> Answer:
        self.writable(ask)
        objects = [{"oid": wish["oid"], "size": wish["size"]} for wish in ask.json["objects"]]
        for wish in objects:
            if wish["oid"] not in self.objects:
                upload = {"href": f"{self.storage}/{wish['oid']}"}
                wish["actions"] = {
                    "upload": upload,
                    "verify": {"href": f"{self.endpoint}/_lfs/verify"},
                }
        return as_json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, ask: "Ask") -> Answer:
        if hashlib.sha256(ask.body).hexdigest() != ask.oid:
            raise Refusal(400, "the sha256 of the content is another one")
        self.objects[ask.oid] = ask.body
        return Answer()

    def lfs_verify(self, ask: "Ask") -> Answer:
        if len(self.objects.get(ask.json["oid"], b"")) != ask.json["size"]:
            raise Refusal(404, "no such object of this size")
        return Answer()

    def lfs_download(self, ask: "Ask") -> Answer:
        if ask.oid not in self.objects:
            raise Refusal(404, "no such object")
        return part_of(self.objects[ask.oid], ask.range, {"ETag": f'"{ask.oid}"'})

    def commit(self, ask: "Ask") -> Answer:
        found = self.writable(ask)
        if "create_pr" in ask.query:
            raise Refusal(403, "pull requests are disabled")
        parent = found.find(ask.revision)
        if ask.revision not in found.branches:
            raise Refusal(400, f"{ask.revision} is not a branch")
        files = dict(found.commits[parent])
        header, *changes = (json.loads(line) for line in ask.body.splitlines())
        if header["value"].get("parentCommit", parent) != parent:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            self.apply(change["key"], change["value"], files)
        oid = found.commit(ask.revision, files, header["value"]["summary"])
        return as_json(
            {
                "commitUrl": f"{self.endpoint}/{found.name}/commit/{oid}",
                "commitOid": oid,
                "success": True,
            }
        )

    def apply(self, key: str, value: dict[str, Any], files: dict[str, File]):
        path = value["path"]
        if path.startswith("/") or {"..", ".git", ""} & set(path.rstrip("/").split("/")):
            raise Refusal(400, f"invalid path {path}")
        if key == "file":
            files[path] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise Refusal(400, f"{path} was not uploaded")
            files[path] = File(self.objects[value["oid"]], large=True)
        else:
            below = path.rstrip("/") + "/"
            gone = [
                name
                for name in files
                if name == path or (key == "deletedFolder" and name.startswith(below))
            ]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]

    def resolve(self, ask: "Ask") -> Answer:
        found = self.visible(ask)
        oid = found.find(ask.revision)
        commit = {"X-Repo-Commit": oid}
        if ask.path not in found.commits[oid]:
            raise Refusal(404, f"{ask.path} does not exist", "EntryNotFound", **commit)
        file = found.commits[oid][ask.path]
        if not file.large:
            return part_of(file.data, ask.range, commit | {"ETag": f'"{file.oid}"'})
        linked = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.data))}
        return Answer(
            status=302, headers=commit | linked | {"Location": f"{self.storage}/{file.oid}"}
        )


def handler_of(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with hub.lock:
                fault = hub.fault_of(self.command, self.path)
                refused = (
                    Answer(status=fault.status)
                    if fault is not None and fault.cut_after is None
                    else None
                )
                cut = fault.cut_after if fault is not None else None
                answer = refused or (Answer(status=0) if cut == 0 else self.answer(body))
                authorized = "Authorization" in self.headers
                seen = (
                    self.command,
                    self.path,
                    authorized,
                    answer.status,
                    self.headers.get("Range"),
                    body,
                )
                hub.requests.append(Request(*seen))
            self.send(answer, cut)

        do_HEAD = do_POST = do_PUT = do_GET

        def answer(self, body: bytes) -> Answer:
            url = urlsplit(self.path)
            try:
                user = hub.user_of(self.headers.get("Authorization"))
                ask = Ask(user, body, self.headers.get("Range"), parse_qs(url.query))
                for methods, pattern, name in ROUTES:
                    match = re.fullmatch(pattern, url.path)
                    if match is not None and self.command in methods.split("|"):
                        parts: dict[str, Any] = {
                            key: unquote(part) for key, part in match.groupdict().items() if part
                        }
                        return getattr(hub, name)(replace(ask, **parts))
                raise Refusal(404, f"no such endpoint: {self.command} {url.path}")
            except Refusal as error:
                return Answer(
                    json.dumps({"error": str(error)}).encode(), error.status, error.headers
                )

        def send(self, answer: Answer, cut: int | None):
            self.close_connection = cut is not None
            if cut == 0:
                return
            self.send_response(answer.status)
            for key, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body[:cut])

        def log_message(self, format: str, *args: Any):
            pass  # the log is `hub.requests`

    return Handler
