"""The sampling benchmark measures what it says: right textbook steps, cases that do what they name, whole texts.

Shapes: B batch, L length, V vocabulary size.
"""

import itertools
import json
from dataclasses import replace

import pytest
import sampling
import torch
from parts.sampling import forward_passes, measuring, sampling_steps, tokens_per_second
from scipy.stats import chi2_contingency
from support.oracles import chi_square_passes

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, D3PMUniformScheduler

pytestmark = pytest.mark.slow

TINY = measuring.Size(layers=1, width=16, heads=2, batch=8, length=16, vocab_size=60)
VOCAB_SIZE, LENGTH, ROWS, STEPS, TIME = 5, 3, 4_000, 4, 0.5
MASK = VOCAB_SIZE - 1
HALF = (
    "entropy",
    "margin",
    "entropy-bounded",
    "threshold",
    "token DDIM, eta 1",
)  # of the positions are needed


@pytest.fixture(scope="module")
def model():
    model = measuring.random_model(measuring.Size(1, 8, 2, 1, LENGTH, VOCAB_SIZE))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def counts_at(tokens, position):
    return torch.bincount(tokens[:, position], minlength=VOCAB_SIZE).numpy()


class Calls:
    """What a model is called with: `positions`, None for all, and times."""

    def __init__(self, model):
        self.positions, self.times, self.rows = [], [], []
        self.hook = model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, module, args, kwargs):
        self.positions.append(kwargs.get("positions"))
        self.rows.append(len(args[0]))
        self.times.append(args[1])


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_textbook_steps_have_the_law_of_the_schedulers(model, kernel):
    if kernel == "absorbing":
        scheduler, naive = D3PMAbsorbingScheduler(MASK), sampling_steps.naive_absorbing_step
        tokens = torch.tensor([[MASK, 1, MASK]])
    else:
        scheduler = D3PMUniformScheduler(VOCAB_SIZE, reverse_rule="plug_in")
        naive, tokens = sampling_steps.naive_uniform_step, torch.tensor([[2, 1, 0]])
    scheduler.set_timesteps(STEPS)
    want = scheduler.reverse_probs(model(tokens, TIME).logits, TIME, tokens)[0]
    many, generator = tokens.expand(ROWS, -1), torch.Generator().manual_seed(1)
    drawn = naive(model, many, TIME, TIME - 1 / STEPS, generator)
    ours = sampling_steps.select_first_step(model, scheduler, many, TIME, generator)
    for position in range(LENGTH):
        assert chi_square_passes(counts_at(drawn, position), want[position].double().numpy())
        assert chi_square_passes(counts_at(ours, position), want[position].double().numpy())


@torch.no_grad()
def test_the_textbook_posterior_is_that_of_the_plug_in_rule(model):
    tokens = torch.tensor([[2, 1, 0]])
    scheduler = D3PMUniformScheduler(VOCAB_SIZE, reverse_rule="plug_in")
    scheduler.set_timesteps(STEPS)
    logits = model(tokens, TIME).logits
    got = sampling_steps.naive_uniform_posterior(logits, tokens, 1 - TIME, 1 - TIME + 1 / STEPS)
    torch.testing.assert_close(
        got, scheduler.reverse_probs(logits, TIME, tokens).double(), atol=1e-6, rtol=1e-5
    )


@torch.no_grad()
def test_the_textbook_confidence_step_has_the_law_of_the_scheduler(model):
    tokens = torch.full((ROWS, LENGTH), MASK)
    tokens[:, 1] = 2
    scheduler = ConfidenceScheduler(MASK)
    scheduler.set_timesteps(2)
    texts = []
    for step in (
        lambda generator: sampling_steps.naive_confidence_step(model, tokens, 0.5, 0.25, generator),
        lambda generator: sampling_steps.select_first_step(
            model, scheduler, tokens, 1.0, generator
        ),
    ):
        drawn = step(torch.Generator().manual_seed(3))
        assert ((drawn == MASK).sum(dim=1) == 1).all() and (drawn[:, 1] == 2).all()
        ids = drawn[:, 0] * VOCAB_SIZE + drawn[:, 2]
        texts.append(torch.bincount(ids, minlength=VOCAB_SIZE**2))
    table = torch.stack(texts)
    table = table[:, table.sum(dim=0) >= 10]
    assert table.shape[1] > 4 and chi2_contingency(table.numpy()).pvalue > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_is_the_stated_mixture_of_both_predictions(model, scale):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB_SIZE, (200, LENGTH), generator=generator)
    unprompted = tokens.clone()
    unprompted[:, 0] = MASK
    scheduler = D3PMAbsorbingScheduler(MASK)
    scheduler.set_timesteps(STEPS)
    got = sampling_steps.guided_step(
        model, scheduler, tokens, unprompted, TIME, torch.Generator().manual_seed(5), scale=scale
    )
    again = torch.Generator().manual_seed(5)
    positions = scheduler.select(TIME, tokens, again)
    cond, uncond = model(tokens, TIME).logits.double(), model(unprompted, TIME).logits.double()
    probs = cond.softmax(-1) ** scale * uncond.softmax(-1) ** (1 - scale)
    logits = probs.log()[positions]
    want = scheduler.step(logits, TIME, tokens, positions=positions, generator=again).prev_sample
    assert torch.equal(got, want) and not torch.equal(got, tokens)


@torch.no_grad()
def test_each_case_asks_for_the_predictions_that_its_name_says():
    size = replace(TINY, length=64, vocab_size=64)  # enough masks for a quota
    model = measuring.random_model(size)
    cases = sampling_steps.all_cases(model, size)
    assert set(sampling_steps.TARGETS) <= set(cases)
    calls = Calls(model)
    for name, case in cases.items():
        del calls.positions[:], calls.times[:], calls.rows[:]
        for _ in range(20):  # a step may select nothing
            case.prepare()
            case.run()
        asked = calls.positions
        if name == "bare forward" or name.startswith("naive"):
            assert asked == [None] * 20, name
        elif "all rows" in name or name in ("hybrid", "neighbors (ring)", "bit flips"):
            assert len(asked) == 20 and all(positions.all() for positions in asked), name
            assert set(calls.rows) == {size.batch * case.forwards}, name
        elif name.startswith("confidence") or name in HALF:
            shares = [positions.float().mean() for positions in asked]
            assert len(asked) == 20 and all(0.3 < share < 0.7 for share in shares), name
        elif name == "first hitting":
            assert (
                all((positions.sum(dim=1) == 1).all() for positions in asked) and len(asked) == 20
            )
        else:
            assert 0 < len(asked) <= 20 * case.calls, name
            assert (
                sum(int(positions.sum()) for positions in asked)
                < 20 * case.calls * size.batch * size.length / 4
            )
        if name.startswith("predictor-corrector"):
            assert all((times == TIME).all() for times in calls.times) and len(asked) > 20


def test_the_corrector_is_timed_with_the_predictor_after_it():
    model = measuring.random_model(replace(TINY, vocab_size=64))
    scheduler = sampling_steps.PredictorCorrectorUniformScheduler(64)
    noisy = torch.zeros(TINY.batch, TINY.length, dtype=torch.long)
    case = sampling_steps.corrector_case(model, scheduler, noisy, None)
    case.prepare()
    assert (
        scheduler._plan[scheduler._next_step] == (16, True)
        and scheduler._plan[scheduler._next_step + 1][1] is False
    )
    case.run()
    assert float(scheduler.timesteps[scheduler._next_step]) == pytest.approx(TIME - 1 / 32)


@pytest.mark.parametrize("steps, tokens", [(3, 2), (2, 4), (5, 1)])
def test_expected_steps_are_those_of_enumeration(steps, tokens):
    used = [len(set(times)) for times in itertools.product(range(steps), repeat=tokens)]
    assert forward_passes.expected_steps(steps, tokens) == pytest.approx(sum(used) / len(used))


def test_rows_are_counted_by_the_pipeline_and_are_as_many_as_expected():
    (line,) = forward_passes.row_counts(steps=[40], batches=[32], length=20)
    assert line["first hitting"] == 20
    assert line["expected"] == pytest.approx(40 * (1 - (1 - 1 / 40) ** 20), abs=0.05)
    # The number of occupied steps varies by less than that of 20 independent tokens.
    assert abs(line["rows per text"] - line["expected"]) < 4 * (20 * 0.25 / 32) ** 0.5
    assert line["expected"] < line["batch-wide cache (formula)"] <= 40
    (line,) = forward_passes.row_counts(steps=[4], batches=[2], length=20)
    assert line["first hitting"] == "-" and line["rows per text"] <= 4


def test_both_sides_write_every_token_and_have_as_many_parameters():
    calls = []
    parameters, write = tokens_per_second.autoregressive_writer(TINY)
    assert write().shape == (TINY.batch, TINY.length)
    for steps, block_length in ((4, None), (2, 8)):
        mine, write = tokens_per_second.diffusion_writer(TINY, steps, parameters, block_length)
        tokens = write()
        assert tokens.shape == (TINY.batch, TINY.length) and (tokens != 59).all()
        assert abs(mine - parameters) <= TINY.width * TINY.layers
        calls.append(tokens)
    assert not torch.equal(*calls)


def test_missing_tokens_and_masks_are_reported():
    def check(tokens, mask_token_id):
        return measuring.check_written(tokens, measuring.Size(batch=2, length=4), mask_token_id)

    check(torch.zeros(2, 4), 7)
    check(torch.full((2, 4), 7), None)
    for tokens in (torch.zeros(2, 3), torch.full((2, 4), 7)):
        with pytest.raises(RuntimeError, match="not all were written"):
            check(tokens, 7)


@torch.no_grad()
def test_autoregression_uses_its_cache_and_samples_from_the_whole_distribution(monkeypatch):
    made = []
    monkeypatch.setattr(
        tokens_per_second,
        "gpt2",
        lambda *sizes, gpt2=tokens_per_second.gpt2: made.append(gpt2(*sizes)) or made[0],
    )
    size = measuring.Size(layers=1, width=16, heads=2, batch=1_000, length=3, vocab_size=100)
    _, write = tokens_per_second.autoregressive_writer(size)
    lengths = []
    hook = made[0].register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    torch.manual_seed(0)
    tokens = write()
    hook.remove()
    assert lengths == [1] * size.length  # one token at each call
    want = made[0](torch.ones(1, 1, dtype=torch.long)).logits[0, -1].double().softmax(-1)
    assert chi_square_passes(torch.bincount(tokens[:, 0], minlength=100).numpy(), want.numpy())


@pytest.mark.parametrize("seconds, steps", [(1.0, 8), (2.0, 16), (5.0, 40), (2.5, 20)])
def test_break_even_lies_on_the_measured_line(seconds, steps):
    assert tokens_per_second.break_even_steps({16: 2.0, 32: 4.0}, seconds) == pytest.approx(steps)


def test_targets_are_judged_in_both_directions():
    assert measuring.verdict(0.9, 1.0) == {"target": "<= 1", "verdict": "met"}
    assert measuring.verdict(0.9, 1.0, at_least=True) == {"target": ">= 1", "verdict": "missed"}
    assert measuring.verdict(0.9, None) == {"target": "", "verdict": ""}


def test_the_command_prints_and_writes_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tokens_per_second, "SHORT", 8)
    monkeypatch.setattr(tokens_per_second, "LONG", 64)
    file = tmp_path / "tables.json"
    options = sampling.SamplingOptions(
        ["steps", "tokens"], [64], repetitions=1, quick=True, json=str(file)
    )
    sampling.main(options, size=measuring.Size(1, 16, 2, 2, 8, 50))
    first, *printed = capsys.readouterr().out.splitlines()
    assert first.startswith(f"torch {torch.__version__}, threads 1, load")
    tables = json.loads(file.read_text(encoding="utf-8"))
    assert tables["steps"][0]["step"] == "bare forward" and tables["steps"][0]["forwards"] == 1
    assert {(line["L"], line["B"]) for line in tables["tokens"]} == {(8, 1), (8, 2), (64, 1)}
    assert sum("autoregression wins above" in line["case"] for line in tables["tokens"]) == 3
    assert [line["case"] for line in tables["tokens"]].count("block-wise") == 1
    assert len(printed) >= len(tables["steps"]) + len(tables["tokens"])
