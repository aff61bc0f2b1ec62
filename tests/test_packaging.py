"""Laws of setup.py: what it claims of Python and of other packages is true of what is installed."""

import re
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parent.parent


def lowest_python():
    claim = re.search(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text())
    assert claim is not None
    return claim[1]


def installed_requirements():
    for line in requires("text-diffusers") or []:
        requirement = Requirement(line)
        try:
            yield requirement, metadata(requirement.name)
        except PackageNotFoundError:  # of an extra that is not installed here
            continue


def test_every_dependency_takes_the_oldest_python():
    python = lowest_python()
    refusing = {}
    for requirement, package in installed_requirements():
        needed = package["Requires-Python"]
        if needed and python not in SpecifierSet(needed):
            refusing[requirement.name] = needed
    assert not refusing


def test_tools_check_for_the_oldest_python():
    tools = (ROOT / "pyproject.toml").read_text()
    python = lowest_python()
    assert f'target-version = "py{python.replace(".", "")}"' in tools
    assert f'pythonVersion = "{python}"' in tools


def test_every_requirement_has_a_lowest_version():
    # `make lowest` installs these, and uses what is installed.
    for requirement, _ in installed_requirements():
        assert re.search("[>=]=", str(requirement.specifier)), requirement
