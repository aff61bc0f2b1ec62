"""As far as `huggingface_hub` can see, the loopback Hub is one, with its calls and with its commands."""

import sys

import pytest
from support.hub_client import STRANGER, TOKEN, USERS, Client
from support.loopback_hub import Fault, LoopbackHub

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

WEIGHTS = bytes(range(256)) * 4096  # one MiB


@pytest.fixture
def hub():
    with LoopbackHub(USERS).serving() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub.endpoint, tmp_path / "home")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder" / "part").mkdir(parents=True)
    (tmp_path / "folder" / "README.md").write_text(
        "---\nlicense: mit\nlibrary_name: x\n---\nA card.\n"
    )
    (tmp_path / "folder" / "part" / "weights.safetensors").write_bytes(WEIGHTS)
    return tmp_path / "folder"


def publish(client, folder, name="ada/model", **environment):
    """Creates a repository and uploads the folder; returns the id of the commit."""
    code = """
    from huggingface_hub import HfApi
    api = HfApi()
    api.create_repo(sys.argv[1], exist_ok=True)
    tell(commit=api.upload_folder(repo_id=sys.argv[1], folder_path=sys.argv[2]).oid)
    """
    return client.run(code, name, folder, **environment)["commit"]


@pytest.mark.parametrize(
    "kind",
    ["model", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dataset", "space"))],
)
def test_what_was_uploaded_comes_back_and_is_had_offline_afterwards(hub, client, folder, kind):
    code = """
    from pathlib import Path
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    kind, folder = sys.argv[1:]
    api = HfApi()
    made = api.create_repo("ada/thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    again = refused(api.create_repo, "ada/thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    same = api.create_repo("ada/thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None, exist_ok=True)
    (Path(folder) / "README.md").write_text("---\\nsdk: gradio\\ncolorFrom: blue\\n---\\n")
    commit = api.upload_folder(repo_id="ada/thing", folder_path=folder, repo_type=kind)
    info = api.repo_info("ada/thing", repo_type=kind, files_metadata=True)
    snapshot = Path(snapshot_download("ada/thing", repo_type=kind))
    file = Path(hf_hub_download("ada/thing", "part/weights.safetensors", repo_type=kind))
    tell(urls=[made, same], again=again, user=api.whoami()["name"], sha=[commit.oid, info.sha, snapshot.name],
         listed=sorted(api.list_repo_files("ada/thing", repo_type=kind)), file=str(file),
         sizes={one.rfilename: one.size for one in info.siblings}, sdk=getattr(info, "sdk", None))
    """
    told = client.run(code, kind, folder)
    prefix = "" if kind == "model" else f"{kind}s/"
    assert told["urls"] == [f"{hub.endpoint}/{prefix}ada/thing"] * 2
    assert "409" in told["again"]["text"]
    assert told["user"] == "ada"
    assert told["listed"] == [".gitattributes", "README.md", "part/weights.safetensors"]
    assert told["sizes"]["part/weights.safetensors"] == len(WEIGHTS)
    assert len(set(told["sha"])) == 1
    assert (
        open(told["file"], "rb").read()
        == WEIGHTS
        == hub.repository("ada/thing", kind).files()["part/weights.safetensors"]
    )
    asked = len(hub.requests)
    offline = """
    from huggingface_hub import hf_hub_download, snapshot_download
    tell(folder=snapshot_download("ada/thing", repo_type=sys.argv[1]),
         file=hf_hub_download("ada/thing", "README.md", repo_type=sys.argv[1]))
    """
    told = client.run(offline, kind, HF_HUB_OFFLINE="1")
    assert open(told["file"]).read().startswith("---\nsdk: gradio")
    assert len(hub.requests) == asked


def test_every_revision_keeps_its_files(hub, client, folder):
    first = publish(client, folder)
    code = """
    from pathlib import Path
    from huggingface_hub import HfApi, hf_hub_download
    api = HfApi()
    api.create_branch("ada/model", branch="try/one")
    again = refused(api.create_branch, "ada/model", branch="try/one")
    upload = dict(repo_id="ada/model", path_in_repo="part/words.txt", revision="try/one")
    second = api.upload_file(path_or_fileobj=b"second", **upload).oid
    third = api.upload_file(path_or_fileobj=b"third", parent_commit=second, **upload).oid
    stale = refused(api.upload_file, path_or_fileobj=b"fourth", parent_commit=second, **upload)
    api.delete_file("README.md", repo_id="ada/model", revision="try/one")
    words = [Path(hf_hub_download("ada/model", "part/words.txt", revision=name)).read_text()
             for name in (second, third, "try/one")]
    api.delete_folder("part", repo_id="ada/model", revision="try/one")
    tell(again=again, stale=stale, words=words, first=api.list_repo_files("ada/model", revision=sys.argv[1]),
         listed=api.list_repo_files("ada/model", revision="try/one"), main=api.list_repo_files("ada/model"),
         refs=[branch.name for branch in api.list_repo_refs("ada/model").branches],
         pull=refused(api.upload_file, path_or_fileobj=b"x", create_pr=True, repo_id="ada/model", path_in_repo="x"),
         unknown=refused(api.list_repo_files, "ada/model", revision="none"),
         missing=refused(hf_hub_download, "ada/model", "none.txt"))
    """
    told = client.run(code, first)
    assert told["words"] == ["second", "third", "third"]
    assert told["listed"] == [".gitattributes"]
    assert (
        sorted(told["main"])
        == sorted(told["first"])
        == [".gitattributes", "README.md", "part/weights.safetensors"]
    )
    assert told["refs"] == ["main", "try/one"]
    assert (
        "409" in told["again"]["text"]
        and "412" in told["stale"]["text"]
        and "403" in told["pull"]["text"]
    )
    assert "RevisionNotFoundError" in told["unknown"]["kinds"]
    assert "EntryNotFoundError" in told["missing"]["kinds"]


def test_a_private_repository_exists_for_its_owner_only(hub, client, tmp_path):
    code = """
    from huggingface_hub import HfApi
    HfApi().create_repo("ada/secret", private=True)
    HfApi().upload_file(path_or_fileobj=b"words", repo_id="ada/secret", path_in_repo="words.txt")
    tell(private=HfApi().model_info("ada/secret").private)
    """
    assert client.run(code) == {"private": True}
    look = """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    api = HfApi()
    tell(info=refused(api.model_info, "ada/secret"), file=refused(hf_hub_download, "ada/secret", "words.txt"),
         snapshot=refused(snapshot_download, "ada/secret"), who=refused(api.whoami),
         write=refused(api.upload_file, path_or_fileobj=b"x", repo_id="ada/secret", path_in_repo="x"),
         create=refused(api.create_repo, "ada/other"))
    """
    for token, status in ((None, 401), (STRANGER, 404), ("hf_noUsersToken", 401)):
        told = Client(hub.endpoint, tmp_path / f"home-of-{token}", token).run(look)
        wanted = "HfHubHTTPError" if token == "hf_noUsersToken" else "RepositoryNotFoundError"
        assert all(wanted in told[name]["kinds"] for name in ("info", "file", "snapshot", "write"))
        assert hub.asked("GET", "/api/models/ada/secret")[-1].status == status
        assert (told["who"] is None) == (token == STRANGER)
        assert told["create"] is not None
    told = client.run(look)
    assert [name for name, error in told.items() if error is not None] == []


def test_a_download_that_is_cut_is_resumed_where_it_ended(hub, client, folder):
    (folder / "part" / "weights.safetensors").write_bytes(WEIGHTS * 11)
    publish(client, folder)
    hub.faults += [
        Fault("GET", "/_lfs/", cut_after=len(WEIGHTS) * 10 + 5)
    ]  # the client keeps parts of 10 MiB
    code = """
    from huggingface_hub import hf_hub_download
    tell(file=hf_hub_download("ada/model", "part/weights.safetensors"))
    """
    assert open(client.run(code)["file"], "rb").read() == WEIGHTS * 11
    asked = hub.asked("GET", "/_lfs/")
    assert [(request.range, request.status) for request in asked] == [
        (None, 200),
        (f"bytes={len(WEIGHTS) * 10}-", 206),
    ]


@pytest.mark.slow
def test_uploads_survive_refusals_and_a_lost_connection(hub, client, folder):
    hub.faults += [Fault("PUT", "/_lfs/", times=2), Fault("POST", "/preupload/", cut_after=0)]
    publish(client, folder)
    assert [request.status for request in hub.asked("PUT", "/_lfs/")] == [503, 503, 200]
    assert [request.status for request in hub.asked("POST", "/preupload/")] == [0, 200]
    assert hub.repository("ada/model").files()["part/weights.safetensors"] == WEIGHTS


def test_content_of_another_checksum_is_not_kept(hub, client):
    code = """
    from huggingface_hub.utils import get_session
    url = sys.argv[1] + "/_lfs/" + "0" * 64
    tell(status=get_session().put(url, content=b"something else").status_code)
    """
    assert client.run(code, hub.endpoint) == {"status": 400}
    assert hub.objects == {}


def test_a_card_that_the_hub_cannot_read_is_refused_before_any_upload(hub, client, folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    code = """
    from huggingface_hub import HfApi
    HfApi().create_repo("ada/model")
    tell(error=refused(HfApi().upload_folder, repo_id="ada/model", folder_path=sys.argv[1]))
    """
    assert "Invalid metadata in README.md" in client.run(code, folder)["error"]["text"]
    assert hub.objects == {} and hub.asked("POST", "/commit/") == []


def test_the_commands_of_the_hub_work_and_storage_sees_no_token(hub, client, folder, tmp_path):
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    for command in (
        ["upload", "ada/cli", folder],
        ["download", "ada/cli", "--local-dir", tmp_path / "got"],
    ):
        done = client.start([*hf, *command])
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "got" / "part" / "weights.safetensors").read_bytes() == WEIGHTS
    elsewhere = hub.asked("PUT", "/_lfs/") + hub.asked("GET", "/_lfs/")
    assert len(elsewhere) == 2 and not any(request.authorized for request in elsewhere)
    assert all(request.authorized for request in hub.requests if "ada/cli" in request.path)
    assert not any(
        TOKEN.encode() in request.body or TOKEN in request.path for request in hub.requests
    )
