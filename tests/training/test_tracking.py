"""What the trackers are told: read back from the files that TensorBoard and an offline Weights & Biases run leave."""

import importlib.util
import json
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.tracking import check_trackers

SCRIPT = Path(__file__).parent.parent.parent / "training_scripts" / "train_d3pm.py"
LEVELS = [f"bound_by_noise/{0.05 + 0.1 * level:.2f}" for level in range(10)]
TRAINED = ["loss", "gradient_norm", "learning_rate", "tokens_per_second"]
VALIDATED = ["bound", "standard_error", "bound_without_ema", "ema_gap"]


@pytest.fixture
def train(text_file, tmp_path):
    spec = importlib.util.spec_from_file_location("train_d3pm", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_d3pm"] = module
    spec.loader.exec_module(module)
    sizes = {
        "vocab_size": 300,
        "length": 16,
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
    }
    settings = {
        "max_train_steps": 40,
        "train_batch_size": 4,
        "validation_steps": 20,
        "checkpointing_steps": 20,
    }
    files = {
        "dataset": str(text_file),
        "output_dir": str(tmp_path / "run"),
        "num_length_samples": 0,
    }

    def main(**changes):
        return module.main(
            module.D3PMConfig(**sizes | settings | files | {"num_cpu_threads": 1} | changes)
        )

    main.output = tmp_path / "run"
    return main


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars, texts = {}, {}
    for events in sorted(folder.rglob("events.out*")):
        accumulator = EventAccumulator(str(events)).Reload()
        for tag in accumulator.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend(
                (event.step, event.value) for event in accumulator.Scalars(tag)
            )
        for tag in accumulator.Tags()["tensors"]:
            texts.setdefault(tag, []).extend(accumulator.Tensors(tag))
    return scalars, texts


def test_tensorboard_shows_training_validation_noise_levels_and_samples(train):
    losses = train()
    scalars, texts = read_tensorboard(train.output / "logs")
    for name in TRAINED:
        assert [step for step, _ in scalars[f"training/{name}"]] == [10, 20, 30, 40]
    averages = np.array(losses).reshape(4, 10).mean(axis=1)
    np.testing.assert_allclose(
        [value for _, value in scalars["training/loss"]], averages, rtol=1e-5
    )
    for name in VALIDATED:
        assert [step for step, _ in scalars[f"validation/{name}"]] == [20, 40]
    bound, last = (scalars[f"validation/{name}"][-1][1] for name in ("bound", "bound_without_ema"))
    assert scalars["validation/ema_gap"][-1][1] == pytest.approx(last - bound, abs=1e-5)
    by_noise = [scalars[level][-1][1] for level in LEVELS]
    assert np.mean(by_noise) == pytest.approx(bound, rel=0.1)
    (tag,) = [tag for tag in texts if tag.startswith("samples")]
    table = texts[tag][-1].tensor_proto.string_val[0].decode()
    assert table.startswith("| | text |") and table.count("\n") == 5  # a heading and four texts
    assert any(train.output.rglob("hparams.yml"))


def test_a_resumed_run_writes_no_step_twice(train):
    train()
    newest = train.output / "checkpoints" / "step-00000040"
    (newest / "manifest.json").unlink()  # so that steps 21 to 40 are taken and told again
    train(resume_from_checkpoint="latest")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = (
        EventAccumulator(str(train.output / "logs" / "text-diffusers"))
        .Reload()
        .Scalars("training/loss")
    )
    assert [event.step for event in shown] == [10, 20, 30, 40]


def read_wandb(folder):
    """The records of an offline run, once it is closed: its writer is a process of its own, and may be late."""
    (file,) = [path for path in folder.rglob("*.wandb") if not path.parent.is_symlink()]
    for _ in range(600):
        records = parse_wandb(file)
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file}: no record of the end of the run in a minute.")


def parse_wandb(file):
    """Blocks of 32 KiB, in them pieces behind a checksum, a length and a kind."""
    from wandb.proto import wandb_internal_pb2

    data, position, piece, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32_768 - position % 32_768 < 7:
            position += 32_768 - position % 32_768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        body = data[position + 7 : position + 7 + length]
        if len(body) < length:  # still being written
            break
        piece = piece + body if kind in (3, 4) else body  # whole, first, middle, last
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(piece))
        position += 7 + length
    return records


@pytest.mark.slow
def test_wandb_works_offline_with_table_configuration_and_artifact(train, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(report_to=["tensorboard", "wandb"], project="mine")
    records = read_wandb(train.output / "logs")
    kinds = [record.WhichOneof("record_type") for record in records]
    run = records[kinds.index("run")].run
    assert run.project == "mine" and run.display_name == "run"
    configured = {item.key for record in records for item in record.config.update}
    assert {"learning_rate", "max_train_steps", "dataset", "schedule"} <= configured
    history = {}
    for items in (record.history.item for record in records if record.HasField("history")):
        values = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items
        }
        for name, value in values.items():
            history.setdefault(name, []).append((values["_step"], value))
    for name, events in read_tensorboard(train.output / "logs")[0].items():
        if name.startswith(("training/", "validation/", "bound_by_noise/")):
            assert history[name] == [
                (step, pytest.approx(value, rel=1e-5)) for step, value in events
            ], name
    assert [rows for _, rows in history["samples/nrows"]] == [4, 4]
    (model,) = [record.artifact for record in records if record.artifact.type == "model"]
    files = {entry.path for entry in model.manifest.contents}
    assert {
        "model_index.json",
        "metrics.json",
        "denoiser/diffusion_pytorch_model.safetensors",
    } <= files
    assert not any(path.startswith(("checkpoints", "logs")) for path in files)


def test_trackers_that_are_unknown_or_not_installed_are_refused(tmp_path):
    assert check_trackers(["none"]) == [] and check_trackers(["tensorboard"]) == ["tensorboard"]
    with pytest.raises(
        ValueError, match="`report_to` must name trackers among aim, .* or none; got 'tensorbord'"
    ):
        TrainingConfig(output_dir=str(tmp_path), report_to=["tensorbord"])
    with pytest.raises(ValueError, match="'clearml' is not installed"):
        TrainingConfig(output_dir=str(tmp_path), report_to=["tensorboard", "clearml"])
