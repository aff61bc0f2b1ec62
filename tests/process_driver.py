"""One of several processes that train the loop of tests/crash_driver.py: `process_driver.py FOLDER OPTIONS_AS_JSON`.

With ACCELERATE_USE_FSDP the plugin of FSDP2, which Accelerate passes over on CPUs, is made to see two GPUs and gets
two CPUs: sharding, gathering and resharding are the real ones, through gloo.
"""

import json
import os
import sys
from pathlib import Path

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *arguments, **options: ("gloo", DistributedType.MULTI_GPU)

from crash_driver import train

if __name__ == "__main__":
    folder, options = sys.argv[1:]
    train(Path(folder), int(os.environ.get("WORLD_SIZE", "1")), json.loads(options), dropout=0.0)
