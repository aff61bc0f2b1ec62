"""The README's Python runs as written, in a folder that has a trained model where it expects one."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readmes_python_runs(block, pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {})
    assert capsys.readouterr().out.strip()


def test_every_file_in_the_tree_exists():
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL).group(1)
    for line in tree.splitlines():
        for name in re.split(r" · ", line.split("  ")[0]):
            assert (README.parent / name.strip()).exists(), name


def test_every_option_that_is_named_exists():

    path = README.parent / "training_scripts" / "train_d3pm.py"
    source = path.read_text() + (README.parent / "src/text_diffusers/training.py").read_text()
    commands = {"multi_gpu", "logdir", "help"}
    for option in set(re.findall(r"--([a-z_]+)", README.read_text(encoding="utf-8"))) - commands:
        assert re.search(rf"^    {option}: ", source, flags=re.MULTILINE), option
