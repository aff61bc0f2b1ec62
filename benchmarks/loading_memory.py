"""What memory loading takes: the peak of a fresh process against the size of the checkpoint that it loads.

    python benchmarks/loading_memory.py [--size SIZE] [--num_shards N] [--dtype DTYPE]

The checkpoint has the layout of LLaDA, with random weights in bfloat16, in a temporary folder. Pages of files that are
mapped into memory count too. What the process holds before it loads, mostly torch, is subtracted. Linux only.
"""

import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from parts.common.options import run
from safetensors.torch import save_file

from text_diffusers.common.validation import require_int
from text_diffusers.hub import load_denoiser
from text_diffusers.training.config import OptionParser, check_options, option

BILLION = 10**9

# A head of LLaDA-8B, and as many tokens as give the embedding the share that it has there.
HEAD_WIDTH = 128
SIZES = {"d_model": 1024, "mlp_hidden_size": 3072, "vocab_size": 31_616}

# Of a layer, by their sizes; the embedding and the head are beside them.
SQUARE = ("q_proj", "k_proj", "v_proj", "attn_out")
NORMS = ("attn_norm", "ff_norm")

# What the fresh process runs.
LOAD = """
import sys
from loading_memory import load_and_measure
load_and_measure(*sys.argv[1:])
"""


@dataclass
class LoadingOptions:
    size: float = option(1.0, "of the checkpoint, in GB")
    num_shards: int = option(4, "files of the checkpoint", limit="at least 1")
    dtype: str = option("auto", "into which it is loaded; auto is as stored")

    def __post_init__(self):
        check_options(self)
        require_int("num_shards", self.num_shards, 1)


def main(options: LoadingOptions) -> dict[str, float]:
    """Print the size of the checkpoint, the peak, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        stored = write_checkpoint(Path(folder), options.size * BILLION, options.num_shards)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, folder, options.dtype],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    # The last line; libraries may print others.
    measured = json.loads(done.stdout.splitlines()[-1])
    measured = {"stored": stored / BILLION, **measured}
    measured["ratio"] = measured["peak"] / measured["weights"]
    for name, value in measured.items():
        print(f"{name:8} {value:.3f}" + ("" if name == "ratio" else " GB"))
    return measured


def write_checkpoint(folder: Path, size: float, num_shards: int) -> int:
    """Write a checkpoint of about `size` bytes, and return the size of its files."""
    width, inner, vocab_size = SIZES["d_model"], SIZES["mlp_hidden_size"], SIZES["vocab_size"]
    of_layer = 4 * width * width + 3 * width * inner
    num_layers = max(1, round((size / 2 - 2 * vocab_size * width) / of_layer))

    shapes = {"wte": (vocab_size, width), "ln_f": (width,), "ff_out": (vocab_size, width)}
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        shapes |= {f"{block}.{name}": (width, width) for name in SQUARE}
        shapes |= {f"{block}.{name}": (width,) for name in NORMS}
        shapes |= {f"{block}.{name}": (inner, width) for name in ("ff_proj", "up_proj")}
        shapes[f"{block}.ff_out"] = (width, inner)

    names = list(shapes)
    weight_map = {}
    per_shard = math.ceil(len(names) / num_shards)
    for shard in range(math.ceil(len(names) / per_shard)):
        file = f"model-{shard:05}.safetensors"
        tensors = {}
        for name in names[shard * per_shard : (shard + 1) * per_shard]:
            full_name = f"model.transformer.{name}.weight"
            tensors[full_name] = torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02
            weight_map[full_name] = file
        save_file(tensors, folder / file)

    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(llada_config(num_layers)))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def llada_config(num_layers: int) -> dict[str, object]:
    num_heads = SIZES["d_model"] // HEAD_WIDTH
    return {
        **SIZES,
        "model_type": "llada",
        "n_layers": num_layers,
        "n_heads": num_heads,
        "n_kv_heads": num_heads,
        "max_sequence_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "weight_tying": False,
        "activation_type": "silu",
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "layer_norm_type": "rms",
        "rope": True,
    }


def load_and_measure(folder: str, dtype: str):
    """Print as JSON what loading took in this process, in GB."""
    before = memory("VmRSS")
    denoiser = load_denoiser(folder, dtype)
    weights = sum(parameter.nbytes for parameter in denoiser.parameters())
    measured = {"before": before, "weights": weights, "peak": memory("VmHWM") - before}
    print(json.dumps({name: value / BILLION for name, value in measured.items()}))


def memory(entry: str) -> int:
    """Bytes of an entry of Linux on this process: `VmRSS` is what it holds now, `VmHWM` the most it has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == entry:
            return int(value.split()[0]) * 1024
    raise ValueError(f"`entry` must be one of /proc/self/status, got {entry!r}.")


if __name__ == "__main__":
    run(main, OptionParser(LoadingOptions))
