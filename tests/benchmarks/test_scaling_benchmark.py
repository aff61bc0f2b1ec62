"""What scaling costs: FLOPs as torch counts them, planted laws found again, arithmetic by hand, runs that resume."""

import json
import math

import numpy as np
import pytest
import scaling
import torch
from parts.sampling.measuring import Size, random_model
from parts.scaling import (
    extrapolation,
    fits,
    flops,
    laws,
    losses,
    memory,
    processes,
    training,
    writing,
)
from parts.scaling.flops import Call, Network
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from text_diffusers import TextTransformerModel

# Trainings and processes take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

SIZE = Size(layers=3, width=16, heads=2, batch=3, length=12, vocab_size=40)


@pytest.fixture
def options(text_file, tmp_path):
    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "scaling"),
            "dataset": str(text_file),
            "sample_by": "line",
            "sizes": ["32x1", "64x1"],
            "budgets": [2e7, 4e7],
            "vocab_size": 300,
            "length": 12,
            "train_batch_size": 4,
            "held_out_rows": 6,
            "num_resamples": 20,
            "width": 16,
            "layers": 1,
            "heads": 2,
            "cost_vocab_size": 40,
            "cost_length": 16,
            "batch": 2,
            "steps": 4,
            "lengths": [8, 16],
            "step_counts": [1, 4],
            "batches": [1, 2],
            "widths": [8, 16],
            "block_rows": [16],
            "block_length": 8,
            "block_steps": 2,
            "repetitions": 1,
            "large_length": 16,
            "large_batch": 2,
        }
        return scaling.ScalingConfig(**settings | changes)

    return make


# --- FLOPs


def counted_by_torch(run):
    # The fused attention of CPUs is not among what torch counts; its two products are.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize("selected", [False, True])
def test_flops_of_a_forward_pass_and_of_a_step_are_those_that_torch_counts(conditioned, selected):
    model = random_model(SIZE, time_conditioning=conditioned).train()
    tokens = torch.randint(0, 40, (SIZE.batch, SIZE.length))
    # Rows ask for 2, 7 and 0 tokens.
    positions = torch.zeros_like(tokens, dtype=torch.bool)
    positions[0, 3:5] = True
    positions[1, 5:] = True
    inputs = {"positions": positions} if selected else {}

    with flops.noted_calls(model) as calls:
        forward = counted_by_torch(lambda: model(tokens, 0.3, **inputs))
        whole_step = counted_by_torch(lambda: model(tokens, 0.3, **inputs).logits.sum().backward())
    assert calls[0] == Call(3, 12, 12, 7 if selected else 12, 9 if selected else 36)
    network = Network.of(model)
    assert network.flops(calls[:1]) == forward
    # The time itself needs no gradient, so its first layer has one product less.
    first_layer = 2 * SIZE.batch * SIZE.width**2 if conditioned else 0
    assert network.flops(calls[:1], flops.PASSES_OF_A_STEP) - first_layer == whole_step


@pytest.mark.parametrize("block_length", [None, 4])
def test_flops_of_writing_are_those_that_torch_counts_and_calls_are_those_of_any_model(
    block_length,
):
    case = writing.Case("", SIZE, steps=3, block_length=block_length)
    model = writing.model_of(case)
    with flops.noted_calls(model) as calls, torch.no_grad():
        counted = counted_by_torch(writing.writer_of(case, model))
    assert Network.of(model).flops(calls) == counted

    # The smallest model makes the same calls, which are what larger ones are computed from.
    assert writing.calls_of_writing(case) == calls


def test_calls_of_training_do_not_depend_on_the_model(tmp_path):
    loop = training.random_loop(SIZE, str(tmp_path))
    step = training.step_of(loop)
    with flops.noted_calls(loop.unwrapped) as calls:
        step()
        step()
    assert training.calls_of_training(SIZE, num_steps=2) == calls
    with flops.noted_calls(loop.unwrapped) as calls:
        counted = counted_by_torch(step)
    assert counted == loop_flops(calls)


def loop_flops(calls):
    return Network(SIZE.width, SIZE.layers, SIZE.vocab_size).flops(calls, flops.PASSES_OF_A_STEP)


def test_dense_flops_are_twice_the_parameters_and_attention():
    width, layers, vocab_size, length = 64, 5, 1_000, 32
    matrices = 12 * layers * width**2 + width * vocab_size
    attention = 4 * layers * width * length
    assert Network(width, layers, vocab_size).dense_flops(length) == 2 * matrices + attention


# --- fits


def test_a_planted_power_law_is_found():
    compute = np.logspace(12, 18, 7)
    law = fits.fit_power_law(compute, 40 * compute**-0.07)
    np.testing.assert_allclose((law.scale, law.exponent), (40, 0.07), rtol=1e-9)
    with_floor = fits.fit_power_law_with_floor(compute, 1.5 + 900 * compute**-0.2)
    np.testing.assert_allclose((with_floor.floor, with_floor.exponent), (1.5, 0.2), rtol=2e-2)
    with pytest.raises(ValueError, match="`x` must hold two different numbers"):
        fits.fit_power_law([1, 1], [2, 3])


def test_the_planted_exponent_is_found_and_the_bootstrap_says_its_standard_error():
    generator = np.random.default_rng(1)
    row_tokens = [10] * 400
    records = []
    budgets = (1e12, 4e12, 1.6e13)
    for budget in budgets:
        for size, excess in (("best", 1.0), ("worse", 1.2)):
            nats = excess * 50 * budget**-0.08 * 10 + generator.normal(0, 3.0, 400)
            records.append(
                {
                    "size": size,
                    "budget": budget,
                    "flops": budget,
                    "parameters": 1_000,
                    "tokens": 5_000,
                    "nats_per_token": float(nats.sum() / 4_000),
                    "row_nats": nats.tolist(),
                    "row_tokens": row_tokens,
                }
            )
    options = scaling.ScalingConfig(num_resamples=400)
    frontier = laws.frontier_of(records, options)
    assert [mean["size"] for mean in frontier.best] == ["best"] * 3
    low, high = frontier.exponent
    assert low < frontier.law.exponent < high
    # Of independent errors the slope of three points, a factor of 4 apart, has this standard error.
    logs = [0.3 / 20 / (50 * budget**-0.08) for budget in (1e12, 1.6e13)]
    expected = math.hypot(*logs) / math.log(16)
    np.testing.assert_allclose((high - low) / (2 * 1.645), expected, rtol=0.25)
    assert abs(frontier.law.exponent - 0.08) < 4 * expected


def test_the_best_of_a_budget_is_the_one_with_the_least_loss_and_seeds_are_averaged():
    records = [
        {"size": size, "budget": 1.0, "flops": 1.0, "parameters": 5, "tokens": 5}
        | {"nats_per_token": nats, "row_nats": [nats], "row_tokens": [1]}
        for size, nats in (("a", 2.0), ("a", 4.0), ("b", 2.9), ("b", 2.9))
    ]
    frontier = laws.frontier_of(records, scaling.ScalingConfig(num_resamples=3))
    assert frontier.best[0]["size"] == "b" and frontier.law is None
    assert laws.means_over_seeds(records)[0]["nats_per_token"] == 3.0


# --- arithmetic of larger models


def test_the_arithmetic_of_one_row_by_hand():
    options = scaling.ScalingConfig(large_length=8, large_batch=1, large_vocab_size=100)
    large = extrapolation.LargeModel("tiny", width=16, layers=2, heads=2)
    # Every token is masked, in one step of 8.
    training_cost = extrapolation.training_of(large, options, [Call(1, 8, 8, 8, 8)])
    # Two blocks of 12 D^2 and a head of D V, two FLOPs each; attention of 4 L D a block; three passes
    per_token = 3 * (2 * (2 * 12 * 256 + 16 * 100) + 2 * 4 * 8 * 16)
    assert training_cost.flops_per_token == per_token
    # Blocks: matrices, two norms, those of queries and keys, biases; the last norm, embeddings and head
    parameters = 2 * (12 * 256 + 4 * 16 + 2 * 8 + 5 * 16) + 32 + 2 * 1_600
    assert training_cost.tokens == 20 * parameters
    seconds = per_token * 20 * parameters / (0.4 * 989e12)
    np.testing.assert_allclose(training_cost.gpu_days, [seconds / 86_400, seconds / 64_800])

    cost = extrapolation.memory_of(large, options, block_bytes=58, checkpointed_bytes=4)
    logits = 0.5 * 8 * 100 * 12
    np.testing.assert_allclose(cost.whole, 26 * parameters / 1e9)
    np.testing.assert_allclose(cost.zero2, (2 + 18 / 8) * parameters / 1e9)
    np.testing.assert_allclose(cost.activations, (58 * 8 * 16 * 2 + logits) / 1e9)
    np.testing.assert_allclose(cost.checkpointed, (8 * 16 * (4 * 2 + 58) + logits) / 1e9)

    # A row of 8 tokens in 4 steps of the whole row, two tokens each
    case = writing.Case("", Size(1, 4, 2, 1, 8, 8), 4)
    calls = [Call(1, 8, 8, 2, 2)] * 4
    written = extrapolation.writing_of(large, options, case, calls)
    one_call = 8 * (2 * 4 * 256) + (8 + 2) * (2 * 2 * 256 + 16 * 256 + 4 * 16 * 8)
    per_token = 4 * (one_call + 2 * 2 * 1_600) / 8
    assert written.flops_per_token == per_token and written.steps_per_token == 0.5
    np.testing.assert_allclose(written.tokens_a_day, 0.2 * 989e12 * 86_400 / per_token)


def test_larger_models_have_the_parameters_that_their_names_say():
    options = scaling.ScalingConfig()
    for large, expected in zip(
        extrapolation.LARGE_MODELS, (1e8, 3.5e8, 1e9, 3e9, 8e9), strict=True
    ):
        sizes = extrapolation.sizes_of(large, options)
        np.testing.assert_allclose(sizes.total, expected, rtol=0.05)
        assert sizes.total - sizes.linear - 2 * sizes.head < 1e-3 * sizes.total
        assert (large.width // large.heads) in (64, 128)


def test_a_checkpointed_block_keeps_its_input_alone():
    size = Size(layers=2, width=32, heads=2, batch=2, length=16, vocab_size=40)
    # A number between blocks is float32.
    assert memory.bytes_of_a_block(size, checkpointing=True) == 4
    # At least the inputs of six matrices in bfloat16, and both norms' inputs in float32
    assert 2 * (4 + 1 + 4) + 2 * 4 < memory.bytes_of_a_block(size) < 100


# --- end to end


def names_of(folder):
    """Finished figures, and when they were written."""
    files = folder.glob("results/*/*.json")
    return {f"{file.parent.name}/{file.stem}": file.stat().st_mtime_ns for file in files}


def test_losses_are_those_of_the_rows_and_finished_runs_are_not_made_again(
    options, monkeypatch, capsys
):
    config = options(parts=["loss"])
    scaling.main(config)
    runs = {
        f"loss/absorbing-{size}-{budget}-seed0"
        for size in ("32x1", "64x1")
        for budget in ("2e+07", "4e+07")
    }
    before = names_of(config.folder)
    assert set(before) == runs | {"loss/data"}
    for name in runs:
        record = json.loads((config.folder / f"results/{name}.json").read_text())
        # A budget is kept to within a step, or what a draw of masks changes.
        assert abs(record["flops"] / record["budget"] - 1) < 0.25 and record["cpu_seconds"] > 0
        assert record["flops"] < record["dense_flops"]
        nats = sum(record["row_nats"]) / sum(record["row_tokens"])
        np.testing.assert_allclose(record["nats_per_token"], nats, rtol=1e-3)
        assert 0 < nats < 20 and record["bits_per_character"] > 0

    shown = capsys.readouterr().out
    assert "| 8B |" in shown and "Least loss ~ C^-" in shown
    assert (config.folder / "scaling_loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(config.folder.glob("working*"))

    # A missing run is made alone; then whoever trains fails.
    missing = "loss/absorbing-32x1-2e+07-seed0"
    (config.folder / f"results/{missing}.json").unlink()
    scaling.main(config)
    after = names_of(config.folder)
    assert {name for name in after if after[name] != before[name]} == {missing}
    monkeypatch.setattr(losses, "Trainer", None)
    scaling.main(config)
    assert names_of(config.folder) == after
    with pytest.raises(ValueError, match="`length` must be 12, as in the runs of"):
        scaling.main(options(length=10))


def test_costs_are_measured_once_and_reported(options, monkeypatch, capsys):
    config = options(parts=["writing", "training"])
    scaling.main(config)
    before = names_of(config.folder)
    writing_names = {f"writing/{name}" for name in writing.SWEEPS}
    training_names = {f"training/{name}" for name in (*training.SWEEPS, "memory")}
    assert set(before) == writing_names | training_names
    for name in writing_names:
        for record in json.loads((config.folder / f"results/{name}.json").read_text()):
            forwards = record["seconds"] / record["steps"] / record["forward_seconds"]
            np.testing.assert_allclose(record["forwards"], forwards)
            rate = record["batch"] * record["length"] / record["seconds"]
            np.testing.assert_allclose(record["tokens_per_second"], rate)

    capsys.readouterr()
    picture = config.folder / "scaling_cost.png"
    picture.unlink()
    monkeypatch.setattr(writing, "measure_writing", None)
    monkeypatch.setattr(training, "measure_training", None)
    scaling.main(config)
    shown = capsys.readouterr().out
    assert "activations that a block keeps" in shown and "with checkpointing" in shown
    assert picture.read_bytes().startswith(b"\x89PNG") and names_of(config.folder) == before


@pytest.mark.parametrize("task", ["writing", "training"])
def test_two_processes_do_their_work_at_once(options, task):
    one, two = processes.measure_processes(options(), task)
    assert (one["value"], two["value"]) == (1, 2)
    # Two that write do so each; two that train share the rows of a step.
    tokens = {
        record["value"]: record["seconds"] * record["tokens_per_second"] for record in (one, two)
    }
    np.testing.assert_allclose(tokens[1], 32)
    np.testing.assert_allclose(tokens[2], 64 if task == "writing" else 32)
    assert one["cpu_seconds_per_token"] > 0 and two["cpu_seconds_per_token"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ["65x2"]}, "`sizes` must be WIDTHxLAYERS, the width a multiple of 32"),
        ({"sizes": ["64"]}, "`sizes` must be WIDTHxLAYERS"),
        ({"parts": ["speed"]}, "`parts` must be among"),
        ({"kernels": ["none_of_them"]}, "`kernels` must be among"),
        ({"budgets": []}, "`budgets` must be different numbers"),
        ({"utilisation": 0.0}, "`utilisation` must be above 0"),
        ({"repetitions": 0}, "`repetitions` must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, changes, message):
    with pytest.raises(ValueError, match=message):
        options(**changes)


def test_parameters_are_counted_with_and_without_embeddings():
    model = TextTransformerModel(
        vocab_size=50, hidden_size=16, num_layers=2, num_attention_heads=2, max_length=8
    )
    counted = flops.count_parameters(model)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    assert counted.total - counted.non_embedding == 2 * 50 * 16
