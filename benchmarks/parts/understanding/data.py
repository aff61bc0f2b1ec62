"""The texts of `examples/understanding`, wherever a benchmark is started."""

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "understanding"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))

from compression import KEEP  # noqa: E402 - the path above leads to them
from gaps import GAP, PREPOSITIONS, tagged_text  # noqa: E402
from task_data import make_task, read_rows  # noqa: E402

__all__ = ["GAP", "KEEP", "PREPOSITIONS", "make_task", "read_rows", "tagged_text"]
