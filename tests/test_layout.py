"""The layout: which room may import which, one class for one name, and single files for stock diffusers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from text_diffusers.hub.standalone import LOWER_ROOMS, in_order_of_use, room_of, standalone_source

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src/text_diffusers"
FOLDERS = {room: ROOT / room for room in ("schedulers", "pipelines", "space")} | {
    room: PACKAGE / room
    for room in (
        "common",
        "models",
        "losses",
        "guidance",
        "data",
        "evaluation",
        "training",
        "hub",
        "cli",
    )
}

# What each room may import of the package, beside itself; "" stands for the modules at the top, kernels and samplers.
LEAVES = tuple(LOWER_ROOMS)
ARROWS = {room: {*rooms} for room, rooms in LOWER_ROOMS.items()} | {
    "losses": {"common"},
    "guidance": {"common"},
    "data": {"common"},
    "evaluation": {*LEAVES, "losses", "data", ""},
    "training": {*LEAVES, "losses", "data", "evaluation", ""},
    "hub": {*LEAVES, "training", ""},
    "cli": {*FOLDERS, ""},
    "space": {*FOLDERS, ""} - {"cli"},
}
# Libraries that a leaf may import; the last two are what diffusers itself stands on.
STANDALONE = {
    "torch",
    "diffusers",
    "transformers",
    "typing_extensions",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "tqdm",
}
STANDALONE |= set(sys.stdlib_module_names)
BARE_NAMES = {"schedulers", "pipelines", "space", "training_scripts", "benchmarks", "tests"}
BARE_FOLDERS = ("schedulers", "pipelines", "space", "training_scripts", "benchmarks", "examples")
MOST_FILES = 18
LONGEST_FILE = 600


def modules_of(room):
    """`{dotted name: file}` of a room, without the files that only mark a package."""
    folder = FOLDERS[room]
    files = [file for file in sorted(folder.rglob("*.py")) if file.name != "__init__.py"]
    names = [".".join(file.relative_to(folder).with_suffix("").parts) for file in files]
    return {f"text_diffusers.{room}.{name}": file for name, file in zip(names, files, strict=True)}


def imported_modules(file):
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            modules.add(node.module)
    return modules


MODULES = {room: modules_of(room) for room in FOLDERS}
LEAF_MODULES = [name for room in LEAVES for name in MODULES[room]]


@pytest.mark.parametrize("room", FOLDERS)
def test_arrows_point_downwards(room):
    assert MODULES[room]
    for name, file in MODULES[room].items():
        imports = {
            module
            for module in imported_modules(file)
            if module.partition(".")[0] == "text_diffusers"
        }
        rooms = {
            module.split(".")[1]
            for module in imports
            if room_of(module) or module.split(".")[-1] in FOLDERS
        }
        rooms |= (
            {""}
            if {module for module in imports if not room_of(module)} - {"text_diffusers"}
            else set()
        )
        forbidden = rooms - ARROWS[room] - {room}
        assert not forbidden, f"{name} imports {sorted(forbidden)}"


@pytest.mark.parametrize("name", LEAF_MODULES)
def test_leaves_stand_on_the_libraries_of_stock_diffusers(name):
    file = MODULES[room_of(name)][name]
    allowed = (
        STANDALONE
        | {"text_diffusers"}
        | ({"vector_quantize_pytorch"} if "autoencoder_vq" in name else set())
    )
    assert {module.partition(".")[0] for module in imported_modules(file)} <= allowed


def test_rooms_are_not_imported_by_their_bare_names():
    for room in FOLDERS:
        for name, file in MODULES[room].items():
            assert (
                not {module.partition(".")[0] for module in imported_modules(file)} & BARE_NAMES
            ), name


def test_no_folder_is_crowded_and_no_file_is_long():
    for top in ("src", *BARE_FOLDERS):
        for folder in {file.parent for file in (ROOT / top).rglob("*.py")}:
            files = list(folder.glob("*.py"))
            assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files"
            for file in files:
                length = len(file.read_text(encoding="utf-8").splitlines())
                assert length <= LONGEST_FILE, f"{file} has {length} lines"


def test_rooms_are_one_package_with_one_class_a_name():
    import text_diffusers
    from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import (
        TextDiffusionPipeline,
    )
    from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

    assert text_diffusers.D3PMAbsorbingScheduler is D3PMAbsorbingScheduler
    assert text_diffusers.TextDiffusionPipeline is TextDiffusionPipeline
    assert D3PMAbsorbingScheduler.__module__ == "text_diffusers.schedulers.scheduling_d3pm"
    assert all(hasattr(text_diffusers, name) for name in text_diffusers.__all__)


def test_a_pipeline_inherits_from_diffusers_and_one_mixin():
    import text_diffusers
    from text_diffusers.common.subclasses import loaded_subclasses

    names = [name for name in text_diffusers.__all__ if name.endswith("Pipeline")]
    pipelines = [getattr(text_diffusers, name) for name in names]
    assert len(set(pipelines)) == len(names) >= 4
    for pipeline in pipelines:
        own = [
            parent for parent in pipeline.__mro__ if parent.__module__.startswith("text_diffusers.")
        ]
        assert len(own) <= 2, own
        children = {child.__module__.partition(".")[0] for child in loaded_subclasses(pipeline)}
        assert "text_diffusers" not in children


def test_earlier_names_of_pipelines_are_those_that_took_them_in():
    import text_diffusers
    from text_diffusers.pipelines.loading import RENAMED_PIPELINES

    for earlier, later in RENAMED_PIPELINES.items():
        assert getattr(text_diffusers, earlier) is getattr(text_diffusers, later)
    with pytest.raises(AttributeError, match="NoSuchPipeline"):
        text_diffusers.NoSuchPipeline  # noqa: B018


@pytest.mark.slow
def test_leaves_load_by_path_where_the_package_is_not_imported(tmp_path):
    """As stock diffusers loads a file beside the weights: in a process that cannot import text_diffusers.

    A module that another one imports stands in the file of that one.
    """
    inlined = {name for module in LEAF_MODULES for name in in_order_of_use(module)[:-1]}
    alone = [module for module in LEAF_MODULES if module not in inlined]
    for module in alone:
        file = tmp_path / f"alone_{module.replace('.', '_')}.py"
        file.write_text(standalone_source(module), encoding="utf-8")
    code = (
        "import sys, pathlib, importlib; sys.modules['text_diffusers'] = None; sys.path.insert(0, '.');"
        "[importlib.import_module(path.stem) for path in sorted(pathlib.Path().glob('alone_*.py'))]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("alone_*.py"))) == len(alone) > 15


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A package with two rooms, "here" above "common" and "there", into which a test writes modules."""
    for folder in ("like", "like/here", "like/there", "like/common"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("text_diffusers.hub.standalone.PACKAGE", "like")
    monkeypatch.setattr("text_diffusers.hub.standalone.LOWER_ROOMS", {"here": ("common",)})
    yield tmp_path / "like"
    for module in [name for name in sys.modules if name.partition(".")[0] == "like"]:
        del sys.modules[module]


def test_one_file_holds_each_module_once_before_its_users(house):
    (house / "common/a.py").write_text('"""A."""\nimport math\n\n# why\nBASE = math.e\n')
    (house / "here/b.py").write_text(
        '"""B."""\nfrom like.common.a import BASE\n\nDOUBLE = 2 * BASE\n'
    )
    (house / "here/c.py").write_text(
        '"""C."""\nfrom like.common.a import BASE\nfrom like.here.b import DOUBLE\n\nSUM = BASE + DOUBLE\n'
    )
    source = standalone_source("like.here.c")
    values = {}
    exec(source, values)
    assert values["SUM"] == 3 * values["math"].e
    assert values["__doc__"] == "C." and source.count("BASE =") == 1 and "# why\nBASE" in source


@pytest.mark.parametrize("line", ["from like.there.b import B", "from like.here.b import B as C"])
def test_what_cannot_stand_in_one_file_is_refused(house, line):
    (house / "here/a.py").write_text(f"{line}\n\nA = 1\n")
    (house / "here/b.py").write_text("B = 1\n")
    with pytest.raises(
        ValueError, match="must import from here and common, without renaming, got: from like"
    ):
        standalone_source("like.here.a")


def test_one_name_for_two_things_is_refused(house):
    (house / "here/a.py").write_text("from like.here.b import B\n\nlimit = B\n")
    (house / "here/b.py").write_text("limit = 2\nB = 1\n")
    with pytest.raises(ValueError, match="`limit` must be defined once"):
        standalone_source("like.here.a")
