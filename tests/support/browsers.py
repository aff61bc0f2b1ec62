"""The browser of tests that need one."""

import os
import shutil

# Its path; none where there is no Chromium, and the tests are skipped.
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
