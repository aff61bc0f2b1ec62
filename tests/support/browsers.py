"""The browser of tests that need one, and what it finds wrong for keyboards and screen readers."""

import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

# Its path; none where there is no Chromium, and the tests are skipped.
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

AXE = "axe-core@4.14.1"


@cache
def axe_script() -> str:
    """The script of axe-core, which checks what keyboards and screen readers need; skips the test without it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm to fetch axe-core with")
    with TemporaryDirectory() as folder:
        fetch = [npm, "pack", "--silent", AXE]
        if subprocess.run(fetch, cwd=folder, capture_output=True, timeout=120).returncode:
            pytest.skip(f"npm cannot fetch {AXE}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
            return archive.extractfile("package/axe.min.js").read().decode()


def faults_of(page: Any) -> list[tuple[str, str]]:
    """Serious faults of what a page shows: the rule of axe and the HTML of the element."""
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(axe_script())
    # Colours and drawers come to rest.
    page.wait_for_timeout(500)
    report = page.evaluate("axe.run()")
    # Without it, nothing was looked at.
    assert len(report["passes"]) > 15
    faults = [fault for fault in report["violations"] if fault["impact"] in ("serious", "critical")]
    # Labels that name two things are only "incomplete" to axe.
    faults += [each for each in report["incomplete"] if each["id"] == "duplicate-id-aria"]
    return [(fault["id"], node["html"]) for fault in faults for node in fault["nodes"]]
