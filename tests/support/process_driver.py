"""One of several processes that train the loop of tests/support/crash_driver.py.

`process_driver.py FOLDER OPTIONS_AS_JSON`.

With ACCELERATE_USE_FSDP the plugin of FSDP2, which Accelerate passes over on CPUs, is made to see two GPUs and gets
two CPUs: sharding, gathering and resharding are the real ones, through gloo.

With the option "codebooks" it shows codebooks vectors instead, each process its rows of them.
"""

import json
import os
import sys
from pathlib import Path

if os.environ.get("ACCELERATE_USE_FSDP") == "true":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *arguments, **options: (
        "gloo",
        DistributedType.MULTI_GPU,
    )

import torch

from text_diffusers.models.autoencoder_vq_quantizer import TextQuantizer


def vectors_of_step(step: int) -> torch.Tensor:
    """(6, 8, 4) of all processes."""
    return torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(step))


def follow(rank: int, world: int, settings: dict, started: bool) -> list[dict]:
    """The codebook after each of four steps, as it is in this process."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 4,
        "num_codes": 8,
        "codebook_dim": 4,
        "decay": 0.8,
        "commitment_weight": 0.25,
    }
    quantizer = TextQuantizer(**sizes, rotation_trick=False, **settings).train()
    codebook = quantizer.layer._codebook
    if started:
        codebook.initted.fill_(True)
        codebook.embed_avg.copy_(codebook.embed)
    torch.manual_seed(1 + rank)  # each process has its own chance, as in training
    steps = []
    for step in range(4):
        quantizer(vectors_of_step(step)[rank::world].requires_grad_())
        steps.append(
            {"embed": codebook.embed[0].tolist(), "count": codebook.cluster_size[0].tolist()}
        )
    return steps


def follow_all(folder: Path, cases: dict):
    """Leaves the steps of all cases in `folder`."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group("gloo")
    found = {"world": world} | {name: follow(rank, world, **case) for name, case in cases.items()}
    folder.mkdir(exist_ok=True)
    Path(folder, f"result-{rank}.json").write_text(json.dumps(found))
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    if "codebooks" in options:
        follow_all(folder, options["codebooks"])
    else:
        from support.crash_driver import train

        train(folder, int(os.environ.get("WORLD_SIZE", "1")), options, dropout=0.0)
