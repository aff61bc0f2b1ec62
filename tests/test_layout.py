"""The house: who may import whom, and one class for one name."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STANDALONE = {"torch", "diffusers", "transformers"} | set(sys.stdlib_module_names)
LEAVES = [
    *sorted((ROOT / "schedulers").glob("*.py")),
    *sorted((ROOT / "pipelines").glob("*.py")),
    *sorted((ROOT / "src/text_diffusers/models").glob("*.py")),
]
TENSOR_LEAVES = [
    ROOT / "src/text_diffusers" / f"{name}.py" for name in ("losses", "noise", "checkpoints", "data", "initialization")
]
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
    assert len([path for path in LEAVES if path.name != "__init__.py"]) >= 3


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(ROOT)))
def test_schedulers_pipelines_and_models_run_alone(path):
    allowed = STANDALONE | ({"vector_quantize_pytorch"} if "autoencoder_vq" in path.name else set())
    assert {module.split(".")[0] for module in imported_modules(path)} <= allowed


@pytest.mark.parametrize("path", TENSOR_LEAVES, ids=lambda path: path.name)
def test_losses_and_data_import_nothing_of_the_package(path):
    assert not any(module.startswith("text_diffusers") for module in imported_modules(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_are_not_imported_by_their_bare_names(path):
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert not roots & {"schedulers", "pipelines", "training_scripts", "benchmarks", "space", "tests"}


def test_rooms_are_one_package_with_one_class_a_name():
    import text_diffusers
    from text_diffusers.pipelines.pipeline_text_diffusion import TextDiffusionPipeline
    from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler

    assert text_diffusers.D3PMAbsorbingScheduler is D3PMAbsorbingScheduler
    assert text_diffusers.TextDiffusionPipeline is TextDiffusionPipeline
    assert D3PMAbsorbingScheduler.__module__ == "text_diffusers.schedulers.scheduling_d3pm"
    assert all(hasattr(text_diffusers, name) for name in text_diffusers.__all__)


def test_leaves_load_by_path_where_the_package_is_not_imported(tmp_path):
    """As stock diffusers loads a file beside the weights: in a process that cannot import text_diffusers."""
    import subprocess

    for path in (p for p in LEAVES if p.name != "__init__.py"):
        code = (
            "import sys, importlib.util; sys.modules['text_diffusers'] = None;"
            f"spec = importlib.util.spec_from_file_location('alone', {str(path)!r});"
            "module = importlib.util.module_from_spec(spec); sys.modules['alone'] = module;"
            "spec.loader.exec_module(module)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
