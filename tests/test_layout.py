"""The house: who may import whom, and one class for one name."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from text_diffusers.hub.standalone import standalone_source

ROOT = Path(__file__).parent.parent
# The last two are what diffusers itself stands on.
STANDALONE = {"torch", "diffusers", "transformers", "safetensors", "huggingface_hub"} | set(sys.stdlib_module_names)
ROOMS = {
    "text_diffusers.schedulers": ROOT / "schedulers",
    "text_diffusers.pipelines": ROOT / "pipelines",
    "text_diffusers.models": ROOT / "src/text_diffusers/models",
}
LEAVES = [path for folder in ROOMS.values() for path in sorted(folder.glob("*.py"))]
MODULES = [f"{room}.{path.stem}" for room, folder in ROOMS.items() for path in sorted(folder.glob("[!_]*.py"))]
TENSOR_LEAVES = [
    ROOT / "src/text_diffusers" / f"{name}.py"
    for name in ("losses", "embedding_losses", "noise", "checkpoints", "corpus_parts", "rows", "initialization")
]
CORPUS_FILES = {  # what the files that read texts import of the package
    "corpus_parts": set(),
    "long_texts": {"corpus_parts"},
    "chat": {"corpus_parts", "long_texts"},
    "corpora": {"chat", "corpus_parts", "long_texts"},
    "data": {"corpora"},
}
GUIDANCE_LEAVES = ("guidance", "classifier_guidance", "pattern_control", "soft_text", "word_automaton")
SOURCES = [*LEAVES, *sorted((ROOT / "src").rglob("*.py"))]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def test_there_are_leaves_to_check():
    assert len(MODULES) >= 3


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(ROOT)))
def test_schedulers_pipelines_and_models_import_their_own_room_only(path):
    allowed = STANDALONE | ({"vector_quantize_pytorch"} if "autoencoder_vq" in path.name else set())
    room = next(room for room, folder in ROOMS.items() if path.parent == folder)
    others = {module for module in imported_modules(path) if module.rpartition(".")[0] != room}
    assert {module.split(".")[0] for module in others} <= allowed


@pytest.mark.parametrize("path", TENSOR_LEAVES, ids=lambda path: path.name)
def test_losses_and_rows_import_nothing_of_the_package(path):
    assert not {module for module in imported_modules(path) if module.startswith("text_diffusers")}


@pytest.mark.parametrize("name", CORPUS_FILES)
def test_data_and_corpora_import_each_other_only(name):
    modules = imported_modules(ROOT / f"src/text_diffusers/{name}.py")
    own = {module.rpartition(".")[2] for module in modules if module.startswith("text_diffusers")}
    assert own == CORPUS_FILES[name]


@pytest.mark.parametrize("name", GUIDANCE_LEAVES)
def test_controls_import_no_pipeline_and_no_model(name):
    own = {module for module in imported_modules(ROOT / f"src/text_diffusers/{name}.py") if "text_diffusers" in module}
    assert own <= {f"text_diffusers.{leaf}" for leaf in GUIDANCE_LEAVES}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_not_imported_by_their_bare_names(path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & {"schedulers", "pipelines", "training_scripts", "benchmarks", "space", "tests"}


def test_rooms_are_one_package_with_one_class_a_name():
    import text_diffusers
    from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
    from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

    assert text_diffusers.D3PMAbsorbingScheduler is D3PMAbsorbingScheduler
    assert text_diffusers.TextDiffusionPipeline is TextDiffusionPipeline
    assert D3PMAbsorbingScheduler.__module__ == "text_diffusers.schedulers.scheduling_d3pm"
    assert all(hasattr(text_diffusers, name) for name in text_diffusers.__all__)


def test_leaves_load_by_path_where_the_package_is_not_imported(tmp_path):
    """As stock diffusers loads a file beside the weights: in a process that cannot import text_diffusers."""
    for module in MODULES:
        file = tmp_path / f"alone_{module.rpartition('.')[2]}.py"
        file.write_text(standalone_source(module), encoding="utf-8")
    code = (
        "import sys, pathlib, importlib; sys.modules['text_diffusers'] = None; sys.path.insert(0, '.');"
        "[importlib.import_module(path.stem) for path in sorted(pathlib.Path().glob('alone_*.py'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("alone_*.py"))) == len(MODULES)


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A package with two rooms, into which a test writes modules."""
    for folder in ("text_diffusers_like", "text_diffusers_like/here", "text_diffusers_like/there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("text_diffusers.hub.standalone.PACKAGE", "text_diffusers_like")
    yield tmp_path / "text_diffusers_like"
    for module in [name for name in sys.modules if name.startswith("text_diffusers_like")]:
        del sys.modules[module]


def test_one_file_holds_each_room_mate_once_before_its_users(room):
    start = "from text_diffusers_like.here."
    (room / "here/a.py").write_text('"""A."""\nimport math\n\n# why\nBASE = math.e\n')
    (room / "here/b.py").write_text(f'"""B."""\n{start}a import BASE\n\nDOUBLE = 2 * BASE\n')
    (room / "here/c.py").write_text(f'"""C."""\n{start}a import BASE\n{start}b import DOUBLE\n\nSUM = BASE + DOUBLE\n')
    source = standalone_source("text_diffusers_like.here.c")
    values = {}
    exec(source, values)
    assert values["SUM"] == 3 * values["math"].e
    assert values["__doc__"] == "C." and source.count("BASE =") == 1 and "# why\nBASE" in source


@pytest.mark.parametrize(
    "line", ["from text_diffusers_like.there.b import B", "from text_diffusers_like.here.b import B as C"]
)
def test_what_cannot_stand_in_one_file_is_refused(room, line):
    (room / "here/a.py").write_text(f"{line}\n\nA = 1\n")
    (room / "here/b.py").write_text("B = 1\n")
    with pytest.raises(ValueError, match="own room, without renaming, got: from text_diffusers_like"):
        standalone_source("text_diffusers_like.here.a")


def test_one_name_for_two_things_is_refused(room):
    (room / "here/a.py").write_text("from text_diffusers_like.here.b import B\n\nlimit = B\n")
    (room / "here/b.py").write_text("limit = 2\nB = 1\n")
    with pytest.raises(ValueError, match="`limit` must be defined once"):
        standalone_source("text_diffusers_like.here.a")
