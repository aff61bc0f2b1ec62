"""Laws of several processes: they train as one would; every test asserts how many there were."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from conftest import mostly_slow
from safetensors.torch import load_file
from support.masked_lms import make_masked_lm
from support.process_driver import vectors_of_step

from text_diffusers.training import runtime

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "training_scripts"
CONFIGS = sorted((SCRIPTS / "accelerate_configs").glob("*.yaml"))
DRIVER = str(Path(__file__).parent.parent / "support" / "process_driver.py")
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ACCELERATE = ["-m", "accelerate.commands.launch"]
SHARDS = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def run(tmp_path, *command, **environment):
    """Run Python with `command`, on CPUs and offline; returns what happened."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT / "tests"),
    }
    variables = (
        {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | settings | environment
    )
    words = [sys.executable, *map(str, command)]
    return subprocess.run(words, env=variables, capture_output=True, text=True, timeout=250)


def train(tmp_path, name, launcher, options, processes, **environment):
    """Results of the loop's processes, whose number is asserted."""
    folder = tmp_path / name
    done = run(tmp_path, *launcher, DRIVER, folder, json.dumps(options), **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [
        json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)
    ]
    assert not (folder / f"result-{processes}.json").exists()
    assert f"{processes} process(es) on cpu" in done.stdout
    return results


def assert_same(results, expected, tolerance):
    for result in results:
        np.testing.assert_allclose(result["losses"], expected["losses"], atol=tolerance, rtol=0)
        for (step, metrics), (expected_step, wanted) in zip(
            result["validated"], expected["validated"], strict=True
        ):
            assert step == expected_step
            np.testing.assert_allclose(metrics["bound"], wanted["bound"], atol=tolerance, rtol=0)
            np.testing.assert_allclose(
                metrics["bound_without_ema"], wanted["bound_without_ema"], atol=tolerance, rtol=0
            )
        for name, weights in result["weights"].items():
            np.testing.assert_allclose(weights, expected["weights"][name], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_ddp_and_fsdp2_train_validate_and_resume_as_one_process_does(tmp_path):
    options = {"checkpointing_steps": 5}
    (single,) = train(tmp_path, "single", [], options, 1)
    assert len(single["losses"]) == 8 and single["validated"]
    config = SCRIPTS / "accelerate_configs" / "cpu_two_processes.yaml"
    ddp = train(tmp_path, "ddp", [*ACCELERATE, "--config_file", config], options, 2)
    assert ddp[0]["type"] == "DistributedType.MULTI_CPU" and ddp[0]["digest"] == ddp[1]["digest"]
    assert_same(ddp, single, 1e-6)
    fsdp = train(tmp_path, "fsdp", TORCHRUN, options, 2, **SHARDS)
    assert (
        fsdp[0]["shards"]
        and fsdp[0]["type"] == "DistributedType.FSDP"
        and fsdp[0]["digest"] == fsdp[1]["digest"]
    )
    assert_same(fsdp, single, 1e-6)
    # From a checkpoint of shards, in shards again, and of shards in one process.
    saved = str(tmp_path / "fsdp" / "checkpoints" / "step-00000005")
    again = options | {"resume_from_checkpoint": saved}
    resumed = train(tmp_path, "fsdp-again", TORCHRUN, again, 2, **SHARDS)
    assert (
        resumed[0]["losses"] == fsdp[0]["losses"][5:] and resumed[0]["digest"] == fsdp[0]["digest"]
    )
    (alone,) = train(tmp_path, "alone", [], again, 1)
    np.testing.assert_allclose(alone["losses"], single["losses"][5:], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_language_model_in_shards_trains_as_one_process_does(text_file, tmp_path):
    """Layer by layer; its head is its embedding, also where both are in shards."""
    for part in make_masked_lm("bert"):
        part.save_pretrained(tmp_path / "bert")
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import json, os, sys; sys.path.insert(0, sys.argv[1]); import support.process_driver, train_d3pm\n"
        "from torch.distributed.fsdp import FSDPModule\n"
        "from text_diffusers.training.config import OptionParser\n"
        "loops, run = [], train_d3pm.TrainingLoop.run\n"
        "train_d3pm.TrainingLoop.run = lambda loop: loops.append(loop) or run(loop)\n"
        "config = OptionParser(train_d3pm.D3PMConfig).parse_args_into_dataclasses(sys.argv[2:])[0]\n"
        "losses, model = train_d3pm.main(config), loops[0].unwrapped\n"
        "gathered = [type(part).__name__ for part in model.modules() if isinstance(part, FSDPModule)]\n"
        "result = [os.environ.get('WORLD_SIZE', '1'), losses, gathered]\n"
        'file = config.output_dir + f\'/result-{os.environ.get("RANK", "0")}.json\'\n'
        "open(file, 'w').write(json.dumps(result))\n"
    )
    words = ["--model_name_or_path", tmp_path / "bert", "--dataset", text_file, "--length", 16]
    words += ["--max_train_steps", 4, "--lr_warmup_steps", 1, "--checkpointing_steps", 2]
    words += ["--report_to", "none", "--num_samples", 0, "--num_length_samples", 0]
    words += ["--validation_rows", 8, "--report_rows", 8, "--num_cpu_threads", 1]
    results = {}
    for launcher, world, rows, settings in (([], "1", 4, {}), (TORCHRUN, "2", 2, SHARDS)):
        folder = tmp_path / world
        options = [*words, "--output_dir", folder, "--train_batch_size", rows]
        done = run(tmp_path, *launcher, driver, SCRIPTS, *options, **settings)
        assert done.returncode == 0, done.stderr[-3000:]
        results[world] = json.loads((folder / "result-0.json").read_text())
        assert results[world][0] == world

    np.testing.assert_allclose(results["2"][1], results["1"][1], atol=1e-5)
    layers = ["FSDPBertLayer", "FSDPBertLayer"]
    assert sorted(results["2"][2]) == [*layers, "FSDPLanguageModelDenoiser"]
    # What is written is whole.
    names = ("model", "ema", "optimizer")
    for name in names:
        files = [f"{world}/checkpoints/step-00000002/{name}.safetensors" for world in results]
        one, two = (load_file(tmp_path / file) for file in files)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], atol=1e-4, rtol=1e-3)


@pytest.fixture
def recipe(text_file, tmp_path):
    options = {
        "dataset": text_file,
        "vocab_size": 300,
        "length": 16,
        "hidden_size": 32,
        "num_layers": 1,
    }
    options |= {
        "num_attention_heads": 2,
        "report_to": "none",
        "num_samples": 0,
        "num_length_samples": 0,
    }
    options |= {"checkpointing_steps": 0, "num_cpu_threads": 1, "max_train_steps": 50}

    def words(**changes):
        return [
            str(word)
            for name, value in (options | changes).items()
            for word in (f"--{name}", value)
        ]

    return words


RECIPES = {
    "train_d3pm.D3PMConfig": {},
    "train_diffusion_lm.DiffusionLMConfig": {
        "time_sampling": "time_warped",
        "timing_steps": 20,
        "packing": True,
    },
}


@pytest.mark.parametrize("name", mostly_slow(RECIPES, fast=[]))
def test_two_processes_of_a_recipe_train_like_one_with_the_same_global_batch(
    recipe, tmp_path, name
):
    """50 steps through torchrun and gloo, losses as far as float32 goes."""
    driver, module = tmp_path / "driver.py", name.partition(".")[0]
    driver.write_text(
        f"import json, os, sys; sys.path.insert(0, sys.argv[1]); import torch, {module}\n"
        "from text_diffusers.training.config import OptionParser\n"
        f"config = OptionParser({name}).parse_args_into_dataclasses(sys.argv[2:])[0]\n"
        f"losses, rank = {module}.main(config), os.environ.get('RANK', '0')\n"
        "world = int(os.environ.get('WORLD_SIZE', '1'))\n"
        "open(config.output_dir + f'/losses-{rank}.json', 'w').write(json.dumps([world, losses]))\n"
    )
    for launcher, folder, rows in (([], "one", 8), (TORCHRUN, "two", 4)):
        options = recipe(output_dir=tmp_path / folder, train_batch_size=rows, **RECIPES[name])
        done = run(tmp_path, *launcher, driver, SCRIPTS, *options)
        assert done.returncode == 0, done.stderr[-3000:]
    world, single = json.loads((tmp_path / "one" / "losses-0.json").read_text())
    assert world == 1 and len(single) == 50
    for rank in (0, 1):
        world, losses = json.loads((tmp_path / "two" / f"losses-{rank}.json").read_text())
        assert world == 2
        np.testing.assert_allclose(losses, single, atol=1e-6, rtol=5e-7)
    bounds = [
        json.loads((tmp_path / folder / "metrics.json").read_text())["bound"]
        for folder in ("one", "two")
    ]
    assert bounds[0] == pytest.approx(bounds[1], abs=1e-5)


CODEBOOKS = {
    "averages": {"settings": {"quantizer": "ema", "dead_code_threshold": 0.0}, "started": True},
    "k-means": {"settings": {"quantizer": "ema", "dead_code_threshold": 0.0}, "started": False},
    "ema": {"settings": {"quantizer": "ema", "dead_code_threshold": 0.9}, "started": False},
    "gumbel": {"settings": {"quantizer": "gumbel", "dead_code_threshold": 0.9}, "started": False},
}


@pytest.fixture(scope="module")
def codebooks(tmp_path_factory):
    """By number of processes, for each of them by case: `embed` (steps, codes, width) and `count` (steps, codes)."""
    found, folder = {}, tmp_path_factory.mktemp("codebooks")
    for world, launcher in ((1, []), (2, TORCHRUN)):
        done = run(
            folder, *launcher, DRIVER, folder / str(world), json.dumps({"codebooks": CODEBOOKS})
        )
        assert done.returncode == 0, done.stderr[-3000:]
        results = [
            json.loads((folder / str(world) / f"result-{rank}.json").read_text())
            for rank in range(world)
        ]
        assert all(result["world"] == world for result in results)
        found[world] = [
            {
                name: {k: np.array([step[k] for step in result[name]]) for k in ("embed", "count")}
                for name in CODEBOOKS
            }
            for result in results
        ]
    return found


def normalised_vectors(step):
    """(n, width) that all processes show the codebook, normalised as the quantiser does."""
    x = vectors_of_step(step).double().numpy().reshape(-1, 4)
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


@pytest.mark.slow
def test_two_processes_keep_the_codebook_of_one_with_the_whole_batch(codebooks):
    one, *two = (process["averages"] for process in (*codebooks[1], *codebooks[2]))
    assert np.abs(one["embed"][-1] - one["embed"][0]).max() > 0.1
    for process in two:
        np.testing.assert_allclose(process["embed"], one["embed"], atol=1e-5)
        np.testing.assert_allclose(process["count"], one["count"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["ema", "gumbel"])
def test_two_processes_start_a_codebook_and_replace_its_dead_codes_together(codebooks, quantizer):
    first, second = (process[quantizer] for process in codebooks[2])
    assert all(np.array_equal(first[key], second[key]) for key in first)
    owners, even = (
        [],
        len(normalised_vectors(0)) / 8,
    )  # an even share of the vectors of both, then of those so far
    for step, (book, count) in enumerate(zip(first["embed"], first["count"], strict=True)):
        points = normalised_vectors(step)
        distances = np.abs(points[:, None] - book).max(-1)  # (n, codes)
        fresh = distances.min(0) < 1e-5
        np.testing.assert_allclose(count[fresh], even, rtol=1e-5)
        assert (count > 0.9 * even - 1e-4).all()
        even = count.mean()
        owners += (distances.argmin(0)[fresh] // 8 % 2).tolist()
    assert set(owners) == {0, 1}


@pytest.mark.slow
def test_k_means_of_two_processes_is_that_of_all_vectors(codebooks):
    """Of which a code is the mean of the vectors of both that are nearest to it."""
    first, second = (process["k-means"] for process in codebooks[2])
    points, book = normalised_vectors(0), first["embed"][0]
    np.testing.assert_array_equal(book, second["embed"][0])
    nearest = ((points[:, None] - book) ** 2).sum(-1).argmin(1)
    means = np.array([points[nearest == code].mean(0) for code in range(8)])
    np.testing.assert_allclose(book, means, atol=1e-4)
    np.testing.assert_allclose(first["count"][0], np.bincount(nearest), atol=1e-4)


@pytest.mark.slow
def test_two_processes_of_the_autoencoder_recipe_have_one_model(recipe, tmp_path):
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import hashlib, json, os, sys; sys.path.insert(0, sys.argv[1]); import train_vq_autoencoder as recipe\n"
        "from text_diffusers.training.config import OptionParser\n"
        "config = OptionParser(recipe.AutoencoderConfig).parse_args_into_dataclasses(sys.argv[2:])[0]\n"
        "loops, run = [], recipe.TrainingLoop.run\n"
        "recipe.TrainingLoop.run = lambda loop: loops.append(loop) or run(loop)\n"
        "losses, digest = recipe.main(config), hashlib.sha256()\n"
        "for name, value in sorted(loops[0].unwrapped.state_dict().items()):\n"
        "    digest.update(name.encode() + value.numpy().tobytes())\n"
        "result = [int(os.environ['WORLD_SIZE']), losses, digest.hexdigest()]\n"
        "open(config.output_dir + f'/result-{os.environ[\"RANK\"]}.json', 'w').write(json.dumps(result))\n"
    )
    changes = {
        "max_train_steps": 8,
        "dead_code_threshold": 0.5,
        "train_batch_size": 4,
        "num_encoder_layers": 1,
    }
    options = recipe(output_dir=tmp_path / "run", **changes)
    place = options.index("--num_layers")
    done = run(tmp_path, *TORCHRUN, driver, SCRIPTS, *options[:place], *options[place + 2 :])
    assert done.returncode == 0, done.stderr[-3000:]
    (world, losses, digest), other = (
        json.loads((tmp_path / "run" / f"result-{rank}.json").read_text()) for rank in (0, 1)
    )
    assert world == 2 and len(losses) == 8 and other == [world, losses, digest]
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["coarse_perplexity"] >= 1


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_instead_of_two_is_noticed(recipe, tmp_path):
    script = SCRIPTS / "train_d3pm.py"
    done = run(
        tmp_path,
        *ACCELERATE,
        "--cpu",
        "--num_processes",
        "2",
        script,
        *recipe(output_dir=tmp_path / "run"),
    )
    assert done.returncode != 0
    assert (
        "was asked for `--num_processes`=2 and started 1" in done.stderr
        and "--multi_gpu" in done.stderr
    )


COMMANDS = {
    "/bin/python /bin/accelerate launch --num_processes 2 script.py --num_processes 7": 2,
    "python -m accelerate.commands.launch --num-processes=3 script.py": 3,
    "python -u -m accelerate.commands.accelerate_cli launch --cpu --num_processes=4 script.py": 4,
    "accelerate-launch --config_file CONFIG script.py": 8,
    "accelerate launch --config_file CONFIG --num_processes 5 script.py": 5,
    "accelerate launch script.py --num_processes 7": None,
    "torchrun --nproc_per_node 2 script.py": None,
    "python script.py launch --num_processes 2": None,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_number_a_launcher_was_asked_for_is_read_as_it_reads_it(command, monkeypatch):
    words = command.replace("CONFIG", "accelerate_configs/many_gpus.yaml").split()
    parent = SimpleNamespace(cmdline=lambda: words, cwd=lambda: str(SCRIPTS))
    monkeypatch.setattr(runtime.psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    monkeypatch.setattr(runtime, "default_config_file", "/nowhere/default_config.yaml")
    assert runtime.processes_asked_for() == COMMANDS[command]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_one_that_accelerate_takes(path):
    config = load_config_from_file(str(path))
    assert set(yaml.safe_load(path.read_text())) <= set(vars(config))
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == config.num_processes
    if "fsdp" in path.name:
        assert arguments.use_fsdp and int(arguments.fsdp_version) == 2
        assert arguments.fsdp_transformer_layer_cls_to_wrap is None  # the model says it
    assert arguments.use_deepspeed == ("deepspeed" in path.name)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("config", ["many_gpus", "fsdp2"])
def test_two_gpus_train_and_resume(recipe, tmp_path, config):
    launcher = [
        *ACCELERATE,
        "--config_file",
        SCRIPTS / "accelerate_configs" / f"{config}.yaml",
        "--num_processes",
        "2",
    ]
    for steps in (25, 50):  # the second run resumes the first
        changes = {
            "max_train_steps": steps,
            "checkpointing_steps": 25,
            "resume_from_checkpoint": "auto",
        }
        options = recipe(output_dir=tmp_path / "run", train_batch_size=4, **changes)
        done = run(tmp_path, *launcher, SCRIPTS / "train_d3pm.py", *options)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 process(es) on cuda" in done.stdout
    assert "at step 25" in done.stdout and (tmp_path / "run" / "model_index.json").is_file()
