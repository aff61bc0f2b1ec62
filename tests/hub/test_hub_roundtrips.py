"""Pipelines go to the Hub and come back, to this package and to stock diffusers: same seed, same tokens.

Each fixture is one machine with a cache of its own; what it was told is checked by the tests below it.
"""

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import make_denoiser
from support.hub_client import STRANGER, TOKEN, USERS, Client, written
from support.hub_repositories import File, Repository
from support.loopback_hub import Fault, LoopbackHub
from support.two_level_pipes import make_two_level

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline

# The way to a Hub and back takes several processes, each of which imports everything.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tokenizer, tmp_path_factory):
    """The Hub, three saved pipelines, and the tokens that each writes here."""
    folder = tmp_path_factory.mktemp("world")
    absorbing = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    labelled = make_denoiser(tokenizer, num_classes=2, hidden_size=16)
    pipes = {
        "plain": TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), absorbing),
        "labelled": TextDiffusionPipeline(
            tokenizer, labelled, absorbing, label_names=["calm", "loud"]
        ),
        "two_level": make_two_level(tokenizer),
    }
    for name, pipe in pipes.items():
        pipe.save_pretrained(folder / name)
    tokens = {name: written(pipe) for name, pipe in pipes.items()}
    assert tokens["plain"] != tokens["labelled"]
    with LoopbackHub(USERS).serving() as hub:
        yield SimpleNamespace(hub=hub, folder=folder, tokens=tokens, clients=[])


def machine(world, name, token: str | None = TOKEN):
    world.clients.append(Client(world.hub.endpoint, world.folder / f"home-of-{name}", token))
    return world.clients[-1]


@pytest.fixture(scope="module")
def pushed(world):
    """What the author was told; the storage refuses the first two uploads."""
    world.hub.faults.append(Fault("PUT", "/_lfs/", times=2))
    code = """
    from text_diffusers import TextDiffusionPipeline
    from text_diffusers.hub.export import push_space, push_to_hub
    plain, labelled, two_level = (
        TextDiffusionPipeline.from_pretrained(f"{sys.argv[1]}/{name}") for name in ("plain", "labelled", "two_level"))
    card = "---\\nlicense: mit\\n---\\nOf a card.\\n"
    urls = [push_to_hub(plain, "ada/text", card, commit_message="The first"),
            push_to_hub(labelled, "ada/text", revision="labels"),
            push_to_hub(two_level, "ada/secret", private=True)]
    push_to_hub(plain, "ada/text", card, commit_message="The same")
    tell(space=refused(lambda: urls.append(push_space("ada/demo", "ada/text"))), urls=urls,
         others=refused(push_to_hub, plain, "bob/text"),
         stranger=refused(push_to_hub, plain, "ada/text", token=sys.argv[2]),
         unnamed=refused(push_to_hub, plain, "a/b/c"))
    """
    told = machine(world, "author").run(code, world.folder, STRANGER)
    plant(world.hub, world.folder / "ran")
    world.hub.repositories["model", "ada/words"] = Repository("model", "ada/words", private=False)
    return told


def plant(hub, marker):
    """The repository "ada/planted": that of `ada/text`, but each of its Python files leaves a mark when it is run."""
    files = {}
    for path, data in hub.repository("ada/text").files().items():
        mark = f"\nopen({str(marker)!r}, 'a').close()\n".encode() if path.endswith(".py") else b""
        files[path] = File(data + mark, large=path.endswith(".safetensors"))
    hub.repositories["model", "ada/planted"] = Repository("model", "ada/planted", private=False)
    hub.repository("ada/planted").commit("main", files, "planted")


@pytest.fixture(scope="module")
def loaded(world, pushed):
    """What a reader with this package was told, who has no token but those that he gives by hand."""
    code = """
    from text_diffusers import TextDiffusionPipeline
    load = TextDiffusionPipeline.from_pretrained
    plain, labelled = load("ada/text"), load("ada/text", revision="labels")
    told = dict(
        classes=[type(plain).__name__, type(labelled).__name__],
        modules=[type(part).__module__ for part in (plain, plain.denoiser, plain.scheduler)],
        plain=written(plain), labelled=written(labelled),
        elsewhere=written(load("ada/text", cache_dir="other")),
        cached=written(load("ada/text", local_files_only=True)), planted=written(load("ada/planted")),
        absent=[refused(load, name) for name in ("ada/words", "ada/none", "none")],
        unknown=refused(load, "ada/text", revision="none"),
        custom=[refused(load, "ada/text", custom_pipeline=name) for name in ("one_step_unet", "ada/planted")],
        private=refused(load, "ada/secret"), stranger=refused(load, "ada/secret", token=sys.argv[2]))
    told["secret"] = written(load("ada/secret", token=sys.argv[1]))
    tell(**told)
    """
    start = len(world.hub.requests)
    reader = machine(world, "reader", token=None)
    told = reader.run(code, TOKEN, STRANGER)
    return told | {
        "home": reader.home,
        "requests": world.hub.requests[start:],
        "ran": (world.folder / "ran").exists(),
    }


@pytest.fixture(scope="module")
def offline(world, loaded):
    """What the same reader was told without a network."""
    code = """
    from text_diffusers import TextDiffusionPipeline
    load = TextDiffusionPipeline.from_pretrained
    tell(plain=written(load("ada/text")), elsewhere=written(load("ada/text", cache_dir="other")),
         labelled=written(load("ada/text", revision="labels")), secret=written(load("ada/secret")),
         never=refused(load, "ada/never"))
    """
    start = len(world.hub.requests)
    told = machine(world, "reader", token=None).run(code, HF_HUB_OFFLINE="1")
    return told | {"requests": world.hub.requests[start:]}


@pytest.fixture(scope="module")
def stock(world, pushed, loaded):
    """What a user of stock diffusers was told who has no such package, but the author's token."""
    code = """
    import os
    blocked = PackageOnlyFrom()
    from diffusers import DiffusionPipeline
    marker, load = sys.argv[1], DiffusionPipeline.from_pretrained
    told = dict(blocked=refused(__import__, PACKAGE), untrusted=refused(load, "ada/planted"))
    told["ran"] = os.path.exists(marker)
    plain = load("ada/text", trust_remote_code=True)
    labelled = load("ada/text", revision="labels", trust_remote_code=True)
    told |= dict(plain=written(plain), labelled=written(labelled), module=type(plain).__module__,
                 secret=written(load("ada/secret", trust_remote_code=True)))
    plain.save_pretrained("saved")
    load("ada/planted", trust_remote_code=True)
    tell(ran_with_trust=os.path.exists(marker), **told)
    """
    user = machine(world, "user")
    return user.run(code, world.folder / "ran") | {"saved": user.home / "saved"}


def test_a_push_says_where_it_went_and_tries_again_when_storage_refuses(world, pushed):
    hub = world.hub
    assert pushed["urls"][:3] == [
        f"{hub.endpoint}/{name}" for name in ("ada/text", "ada/text", "ada/secret")
    ]
    assert [request.status for request in hub.asked("PUT", "/_lfs/")].count(503) == 2
    assert hub.repository("ada/text").files()["README.md"].endswith(b"Of a card.\n")
    assert hub.repository("ada/secret").private and not hub.repository("ada/text").private


@pytest.mark.parametrize(
    ("name", "revision", "num_models"),
    [("ada/text", "main", 1), ("ada/text", "labels", 1), ("ada/secret", "main", 4)],
)
def test_weights_as_safetensors_one_file_a_class_and_a_card_are_there_and_nothing_else(
    world, pushed, name, revision, num_models
):
    found = world.hub.repository(name)
    files = found.commits[found.find(revision)]
    kinds = {Path(path).suffix for path in files if path != ".gitattributes"}
    assert kinds == {".json", ".safetensors", ".py", ".md"}
    assert [file.large for path, file in files.items() if path.endswith(".safetensors")] == [
        True
    ] * num_models
    index = json.loads(files["model_index.json"].data)
    named = {
        f"{key}/{value[0]}.py"
        for key, value in index.items()
        if isinstance(value, list) and key != "_class_name"
    }
    code = {path for path in files if path.endswith(".py")}
    assert code - named == {f"{index['_class_name'][0]}.py"}


def test_what_is_there_already_makes_no_commit(world, pushed):
    assert world.hub.repository("ada/text").messages.count("The first") == 1
    assert "The same" not in world.hub.repository("ada/text").messages


def test_refusals_of_the_hub_reach_the_author(world, pushed):
    assert "403" in pushed["others"]["text"]
    assert pushed["stranger"] is not None and "bob/text" not in {
        name for _, name in world.hub.repositories
    }
    assert "ValueError" in pushed["unnamed"]["kinds"] and "a/b/c" in pushed["unnamed"]["text"]


def test_a_default_card_is_made_of_what_the_hub_reads(world, pushed):
    text = world.hub.repository("ada/text").files("labels")["README.md"].decode()
    card = yaml.safe_load(text.split("---")[1])
    assert card["library_name"] == "diffusers" and card["pipeline_tag"] == "text-generation"


def test_installed_classes_load_it_by_name_and_write_the_same(world, loaded):
    assert loaded["plain"] == loaded["elsewhere"] == loaded["cached"] == world.tokens["plain"]
    assert loaded["classes"][0] == "TextDiffusionPipeline"
    assert {module.partition(".")[0] for module in loaded["modules"]} == {"text_diffusers"}
    assert list((loaded["home"] / "other").glob("models--ada--text/snapshots/*/model_index.json"))


def test_a_revision_is_the_one_that_was_asked_for(world, loaded):
    assert loaded["classes"][1] == "TextDiffusionPipeline"
    assert loaded["labelled"] == world.tokens["labelled"]
    assert "OSError" in loaded["unknown"]["kinds"] and "none" in loaded["unknown"]["text"]


def test_no_file_of_code_is_downloaded_or_run_without_trust(world, loaded):
    fetched = [request.path for request in loaded["requests"] if "/resolve/" in request.path]
    assert any(path.endswith(".json") for path in fetched) and not any(
        path.endswith(".py") for path in fetched
    )
    assert loaded["planted"] == world.tokens["plain"]
    assert not list((loaded["home"] / "huggingface").rglob("*.py"))
    assert not loaded["ran"]


def test_custom_pipelines_need_trust(loaded):
    for error in loaded["custom"]:
        assert "ValueError" in error["kinds"] and "`custom_pipeline`" in error["text"]


def test_a_private_repository_needs_its_owners_token(world, loaded):
    for error in (loaded["private"], loaded["stranger"]):
        assert "OSError" in error["kinds"] and "ada/secret" in error["text"]
    assert loaded["secret"] == world.tokens["two_level"]


def test_a_repository_that_is_no_pipeline_or_not_there_is_refused_by_name(loaded):
    for error, name in zip(loaded["absent"], ("ada/words", "ada/none", "none"), strict=True):
        assert "OSError" in error["kinds"] and f"`{name}`" in error["text"]


def test_what_was_loaded_once_is_had_without_a_network(world, offline):
    assert offline["requests"] == []
    assert offline["plain"] == offline["elsewhere"] == world.tokens["plain"]
    assert (
        offline["labelled"] == world.tokens["labelled"]
        and offline["secret"] == world.tokens["two_level"]
    )
    assert "OSError" in offline["never"]["kinds"] and "ada/never" in offline["never"]["text"]


def test_stock_diffusers_without_the_package_writes_the_same(world, stock):
    assert "ModuleNotFoundError" in stock["blocked"]["kinds"]
    assert stock["module"].startswith("diffusers_modules.")
    assert stock["plain"] == world.tokens["plain"] and stock["labelled"] == world.tokens["labelled"]
    assert stock["secret"] == world.tokens["two_level"]


def test_stock_diffusers_runs_the_code_with_trust_only(stock):
    assert (
        "ValueError" in stock["untrusted"]["kinds"]
        and "trust_remote_code" in stock["untrusted"]["text"]
    )
    assert not stock["ran"] and stock["ran_with_trust"]


def test_what_stock_diffusers_saves_again_is_loaded_by_installed_classes(world, stock):
    assert written(TextDiffusionPipeline.from_pretrained(stock["saved"])) == world.tokens["plain"]


def test_a_space_serves_the_model_it_was_made_for_from_nothing_but_what_was_uploaded(world, pushed):
    code = """
    import os, runpy, threading, time, urllib.request
    from huggingface_hub import snapshot_download
    folder = snapshot_download("ada/demo", repo_type="space", local_dir="space")
    PackageOnlyFrom(folder)

    def look():
        while True:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/config").read()
            except OSError:
                time.sleep(0.2)
                continue
            modules = dict(sys.modules).items()
            files = [module.__file__ for name, module in modules if name.partition(".")[0] == PACKAGE]
            tell(title=json.loads(page)["title"], here=len(files), top=os.listdir(folder),
                 elsewhere=[file for file in files if not file.startswith(folder)])
            sys.stdout.flush()
            os._exit(0)

    threading.Thread(target=look, daemon=True).start()
    runpy.run_path(f"{folder}/app.py", run_name="__main__")
    """
    assert pushed["space"] is None and pushed["urls"][3] == f"{world.hub.endpoint}/spaces/ada/demo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = machine(world, "space", token=None).run(code, port, GRADIO_SERVER_PORT=port)
    assert told["title"] == "text"
    assert told["here"] > 10 and told["elsewhere"] == []
    assert {"app.py", "requirements.txt", "README.md", "text_diffusers"} <= set(told["top"])
    card = yaml.safe_load(
        world.hub.repository("ada/demo", "space").files()["README.md"].decode().split("---")[1]
    )
    assert card["sdk"] == "gradio" and card["app_file"] == "app.py" and "ada/text" in card["models"]


def test_the_command_publishes_what_is_loaded_by_name(world, pushed, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "strangers").write_text(STRANGER)
    code = """
    from text_diffusers import TextDiffusionPipeline
    from text_diffusers.cli.app import app
    command = ["publish", f"{sys.argv[1]}/labelled", "ada/shown", "--license", "mit", "--dataset-name", "some/texts"]
    ends = []
    for token in sys.argv[2:]:
        try:
            app([*command, "--space", "ada/stage", "--token-file", token])
        except SystemExit as end:
            ends.append(end.code)
    tell(ends=ends, tokens=written(TextDiffusionPipeline.from_pretrained("ada/shown")))
    """
    publisher = machine(world, "publisher", token=None)
    told = publisher.run(code, world.folder, tmp_path / "strangers", tmp_path / "token")
    assert told == {"ends": [2, 0], "tokens": world.tokens["labelled"]}
    output, errors = publisher.transcript[-2:]
    assert output.splitlines()[:-1] == [
        f"{world.hub.endpoint}/{name}" for name in ("ada/shown", "spaces/ada/stage")
    ]
    assert [
        line
        for line in errors.splitlines()
        if line.startswith("text-diffusers: ") and "403" in line
    ]
    assert STRANGER not in output + errors
    card = yaml.safe_load(
        world.hub.repository("ada/shown").files()["README.md"].decode().split("---")[1]
    )
    assert card["license"] == "mit" and card["datasets"] == ["some/texts"]


def test_the_token_is_seen_in_the_header_of_requests_only(world, pushed, loaded):
    """Of all clients so far: not in what they said, raised, kept in a cache or uploaded."""
    hub, canary = world.hub, TOKEN.encode()
    assert any(request.authorized for request in hub.requests)
    assert not any(canary in request.body or TOKEN in request.path for request in hub.requests)
    stored = [
        data
        for found in hub.repositories.values()
        for files in found.commits.values()
        for data in files.values()
    ]
    assert stored and not any(canary in file.data for file in stored)
    said = [text for client in world.clients for text in client.transcript]
    assert any("ada/secret" in text for text in said) and not any(TOKEN in text for text in said)
    kept = [Path(root, name) for root, _, names in os.walk(world.folder) for name in names]
    assert any("ada--secret" in str(path) for path in kept)
    assert [path for path in kept if path.is_file() and canary in path.read_bytes()] == []
