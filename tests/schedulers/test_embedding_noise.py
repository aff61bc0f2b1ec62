"""What the schedulers for word embeddings share: noise, seeds, grids, and swaps with stock schedulers."""

import math
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from support.gaussian_chains import embedding_cases, prediction_of, sample
from support.oracles import assert_golden, chi_square_passes

from text_diffusers import (
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
)
from text_diffusers.common.randomness import randn
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES, embedding_betas

OURS = [EmbeddingDDIMScheduler, EmbeddingDDPMScheduler, EmbeddingDPMSolverScheduler]
STOCK = [
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "case", embedding_cases("diffusion_lm", "dlm_schedule"), ids=lambda case: case["name"]
)
def test_schedules_equal_the_golden_numbers(case):
    inputs, indices = case["inputs"], case["inputs"]["indices"]
    betas = embedding_betas(inputs["schedule"], inputs["T"])
    assert_golden(betas[indices], case["outputs"]["betas"], case)
    scheduler = EmbeddingDDIMScheduler(inputs["T"], inputs["schedule"])
    assert_golden(scheduler.alphas_cumprod[indices], case["outputs"]["alphas_cumprod"], case)


def test_sigmoid_schedule_is_a_sigmoid_of_the_remaining_signal():
    alphas = (1 - embedding_betas("sigmoid", 200)).cumprod(dim=0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for t in (0, 40, 99, 180, 198):
        u = (t + 1) / 200
        want = (sigmoid(3) - sigmoid(-3 + 6 * u)) / (sigmoid(3) - sigmoid(-3))
        assert alphas[t].item() == pytest.approx(want, rel=1e-9)
    stock = DDPMScheduler(200, beta_schedule="sigmoid").alphas_cumprod
    assert (alphas - stock).abs().max() > 0.1


@pytest.mark.parametrize("name", sorted(EMBEDDING_SCHEDULES))
@pytest.mark.parametrize("steps", [1, 2, 10, 200, 2000])
def test_noise_grows_with_time(name, steps):
    betas = embedding_betas(name, steps)
    assert betas.shape == (steps,) and betas.dtype == torch.float64
    assert ((betas > 0) & (betas < 1)).all()


def test_first_numbers_of_a_row_do_not_depend_on_length_or_batch():
    for width in (1, 5, 16, 20):
        alone = randn((1, 3, width), [torch.Generator().manual_seed(7)], CPU, torch.float32)
        pair = [torch.Generator().manual_seed(seed) for seed in (1, 7)]
        both = randn((2, 9, width), pair, CPU, torch.float32)
        assert torch.equal(both[1, :3], alone[0])
        assert not torch.equal(both[0], both[1])
    # What torch does by itself, and why rows are drawn in whole blocks.
    long, short = (
        torch.randn(count, 5, generator=torch.Generator().manual_seed(7)) for count in (9, 4)
    )
    assert not torch.equal(long[:4], short)


@pytest.mark.parametrize("width", [3, 16, 21])
def test_noise_of_row_generators_is_standard_normal(width):
    generators = [torch.Generator().manual_seed(seed) for seed in range(40)]
    noise = randn((40, 30, width), generators, CPU, torch.float32)
    edges = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5])
    inside = torch.cat([torch.zeros(1), torch.special.ndtr(edges), torch.ones(1)]).diff()
    counts = torch.bincount(torch.bucketize(noise.flatten(), edges), minlength=6)
    assert chi_square_passes(counts.numpy(), inside.numpy())
    lag = (noise[:, :-1] * noise[:, 1:]).mean() * math.sqrt(noise[:, 1:].numel())
    assert abs(lag) < 5
    # The same generators go on to other numbers.
    assert not torch.equal(randn((40, 30, width), generators, CPU, torch.float32), noise)


def test_one_generator_draws_what_torch_draws():
    def generator():
        return torch.Generator().manual_seed(3)

    assert torch.equal(
        randn((2, 5, 6), generator(), CPU, torch.float32),
        torch.randn(2, 5, 6, generator=generator()),
    )
    half = randn((2, 5, 6), generator(), CPU, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, torch.randn(2, 5, 6, generator=generator()).bfloat16())
    with pytest.raises(ValueError, match="3 rows, got 2"):
        randn((3, 5, 6), [generator(), generator()], CPU, torch.float32)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("schedule", sorted(EMBEDDING_SCHEDULES))
@pytest.mark.parametrize("num_train_timesteps", [200, 1000, 2000])
def test_every_number_of_steps_yields_that_many_distinct_timesteps(
    ours, schedule, num_train_timesteps
):
    scheduler = ours(num_train_timesteps, schedule)
    lambdas = 0.5 * (scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)).log()
    first = num_train_timesteps - 1
    if ours is EmbeddingDPMSolverScheduler:
        first = int((lambdas >= -5.1).nonzero().max())
    assert scheduler.timesteps[0] == first
    for count in range(1, 101):
        scheduler.set_timesteps(count)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps == count
        assert scheduler.timesteps[0] == first and scheduler.timesteps[-1] >= 0
        assert (scheduler.timesteps.diff() < 0).all()
        if first == num_train_timesteps - 1 and num_train_timesteps % count == 0:
            stock = DDIMScheduler(num_train_timesteps, timestep_spacing="trailing")
            stock.set_timesteps(count)
            assert torch.equal(scheduler.timesteps, stock.timesteps)


def test_stock_grid_misses_steps_where_noise_is_clipped():
    ours = EmbeddingDPMSolverScheduler(2000, "cosine")
    stock = DPMSolverMultistepScheduler.from_config(ours.config)
    counts = []
    for count in range(1, 1001):
        stock.set_timesteps(count)
        counts.append(len(stock.timesteps) == count)
    assert not all(counts)


def test_stock_grid_falls_below_zero_where_its_float_step_ends_early():
    stock = DDIMScheduler(200, timestep_spacing="trailing")
    stock.set_timesteps(199)
    assert len(stock.timesteps) == 200 and stock.timesteps[-1] == -1
    ours = EmbeddingDDIMScheduler(200)
    ours.set_timesteps(199)
    assert torch.equal(ours.timesteps, stock.timesteps[:-1])


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("count", [1, 4, 30, 40, 150, 200])
def test_spacings_are_those_of_stock(spacing, count):
    stock = DDIMScheduler(200, timestep_spacing=spacing)
    stock.set_timesteps(count)
    for ours in OURS[:2]:
        scheduler = ours(200, timestep_spacing=spacing)
        scheduler.set_timesteps(count)
        assert torch.equal(scheduler.timesteps, stock.timesteps)


@pytest.mark.parametrize("ours", OURS)
def test_wrong_grids_are_refused(ours):
    scheduler = ours(20, "cosine")
    for count in (0, -1, 21, 2.0, True):
        with pytest.raises(
            ValueError, match=f"`num_inference_steps` must be in 1 to .*, got {count}"
        ):
            scheduler.set_timesteps(count)
    for timesteps in ([], [20, 3], [3, 3], [3, 5], [3, -1]):
        with pytest.raises(ValueError, match="`timesteps` must be descending"):
            scheduler.set_timesteps(timesteps=timesteps)
    for both in ({}, {"num_inference_steps": 2, "timesteps": [3, 1]}):
        with pytest.raises(ValueError, match="`num_inference_steps` or `timesteps`"):
            scheduler.set_timesteps(**both)
    scheduler.set_timesteps(timesteps=[15, 7, 2])
    assert scheduler.timesteps.tolist() == [15, 7, 2]
    with pytest.raises(ValueError, match="`timestep` must be one of the 3 `timesteps`, got 8"):
        scheduler.step(torch.zeros(1, 1, 1), 8, torch.zeros(1, 1, 1))


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("ours", OURS)
def test_stock_schedulers_take_our_noise_and_give_it_back(ours, stock):
    scheduler = ours(200, "sqrt", prediction_type="v_prediction", clamp_steps=3)
    swapped = stock.from_config(scheduler.config)
    torch.testing.assert_close(
        swapped.alphas_cumprod, scheduler.alphas_cumprod.float(), atol=1e-6, rtol=1e-5
    )
    assert (
        swapped.config.prediction_type == "v_prediction"
        and swapped.config.num_train_timesteps == 200
    )
    assert swapped.config.timestep_spacing == "trailing"
    assert not swapped.config.clip_sample and not swapped.config.thresholding
    swapped.set_timesteps(10)
    back = ours.from_config(swapped.config)
    assert torch.equal(back.alphas_cumprod, scheduler.alphas_cumprod)
    assert back.config.clamp_steps == 3 and back.config.beta_schedule == "sqrt"


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("other", OURS)
def test_our_schedulers_swap_with_each_other(ours, other):
    scheduler = ours(
        100, "cosine", prediction_type="epsilon", timestep_spacing="linspace", clamp_steps=1
    )
    swapped = other.from_config(scheduler.config)
    assert torch.equal(swapped.alphas_cumprod, scheduler.alphas_cumprod)
    names = ("prediction_type", "timestep_spacing", "clamp_steps", "beta_schedule", "trained_betas")
    assert all(swapped.config[name] == scheduler.config[name] for name in names)


@pytest.mark.parametrize("stock", STOCK)
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(
    "noise", [{}, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2"}]
)
def test_our_schedulers_take_the_noise_of_stock_ones(ours, stock, noise, tmp_path):
    scheduler = stock(num_train_timesteps=500, **noise)
    scheduler.save_pretrained(tmp_path)
    for swapped in (ours.from_config(scheduler.config), ours.from_pretrained(tmp_path)):
        want = (1 - scheduler.betas.double()).cumprod(dim=0)
        torch.testing.assert_close(swapped.alphas_cumprod, want, atol=1e-5, rtol=1e-3)
        assert swapped.config.prediction_type == "epsilon"
        assert not swapped.config.clip_sample and not swapped.config.thresholding


def clipping_schedulers():
    for ours in OURS:
        yield pytest.param(ours(50), id=f"{ours.__name__}")
        for stock, arguments in [
            (DDIMScheduler, {"clip_sample": True}),
            (DDPMScheduler, {"clip_sample": True, "thresholding": True}),
            (DPMSolverMultistepScheduler, {"thresholding": True}),
        ]:
            clips = stock(num_train_timesteps=50, prediction_type="sample", **arguments)
            yield pytest.param(
                ours.from_config(clips.config), id=f"{ours.__name__} from {stock.__name__}"
            )
            yield pytest.param(
                stock.from_config(ours(50).config), id=f"{stock.__name__} from {ours.__name__}"
            )


@pytest.mark.parametrize("scheduler", clipping_schedulers())
def test_clean_estimates_outside_the_unit_box_are_not_clipped(scheduler):
    clean = torch.tensor([[[3.0, -2.0], [0.5, 40.0]]])
    assert not scheduler.config.clip_sample and not scheduler.config.thresholding
    scheduler.set_timesteps(5)
    noisy = torch.ones_like(clean)
    for timestep in scheduler.timesteps:
        noisy = scheduler.step(clean, timestep, noisy).prev_sample
    torch.testing.assert_close(noisy, clean)


@pytest.mark.parametrize("ours", OURS)
def test_saved_schedulers_load_with_the_same_float64_noise(ours, tmp_path):
    scheduler = ours(300, "sqrt", prediction_type="epsilon", clamp_steps=2)
    scheduler.save_pretrained(tmp_path)
    loaded = ours.from_pretrained(tmp_path)
    assert (
        torch.equal(loaded.betas, scheduler.betas) and loaded.alphas_cumprod.dtype == torch.float64
    )
    assert loaded.config.trained_betas == embedding_betas("sqrt", 300).tolist()
    ignored = {"_class_name", "_diffusers_version"}
    assert {k: v for k, v in loaded.config.items() if k not in ignored} == {
        k: v for k, v in scheduler.config.items() if k not in ignored
    }
    assert (
        sys.modules[ours.__module__].SchedulerMixin is SchedulerMixin
    )  # by which a pipeline recognises it


@pytest.mark.parametrize("kind", [np.array, torch.DoubleTensor, tuple])
def test_betas_may_be_an_array(kind, tmp_path):
    settings = {"num_train_timesteps": 2, "beta_schedule": "custom"}
    scheduler = EmbeddingDDIMScheduler(**settings, trained_betas=kind([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path)
    loaded = EmbeddingDDIMScheduler.from_pretrained(tmp_path)
    assert (
        loaded.betas.tolist()
        == scheduler.betas.tolist()
        == EmbeddingDDIMScheduler(**settings, trained_betas=[0.1, 0.3]).betas.tolist()
    )


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_schedule": "cosine"}, "`trained_betas` must be those of `beta_schedule`='cosine'"),
        (
            {"num_train_timesteps": 30},
            "`trained_betas` must be `num_train_timesteps`=30 long, got 40",
        ),
        ({"beta_schedule": "line"}, "`beta_schedule` must be one of"),
        ({"beta_schedule": "custom", "trained_betas": None}, "`trained_betas` must be given"),
        (
            {"beta_schedule": "custom", "trained_betas": [1.0] * 40},
            "`trained_betas` must be between 0 and 1",
        ),
        (
            {"beta_schedule": "linear", "trained_betas": None, "beta_start": 0.1},
            "`beta_end` must be given",
        ),
        (
            {
                "beta_schedule": "sigmoid",
                "trained_betas": None,
                "beta_start": 1e-4,
                "beta_end": 0.02,
            },
            "`beta_start` must be None for 'sigmoid'",
        ),
        ({"num_train_timesteps": 0, "trained_betas": None}, "`num_train_timesteps` must be"),
        ({"prediction_type": "flow_prediction"}, "`prediction_type` must be one of"),
        ({"clamp_steps": -1}, "`clamp_steps` must be"),
        ({"timestep_spacing": "even"}, "`timestep_spacing` must be"),
        ({"rescale_betas_zero_snr": True}, "`rescale_betas_zero_snr` must be False"),
    ],
)
def test_contradictory_configurations_are_refused(ours, changes, words):
    config = dict(ours(40, "sqrt").config) | {"_class_name": "Other"}
    with pytest.raises(ValueError, match=words):
        ours.from_config(config | changes)


def test_other_noise_is_taken_when_it_is_asked_for():
    sqrt = EmbeddingDDIMScheduler(40, "sqrt").config
    cosine = EmbeddingDDIMScheduler.from_config(sqrt, beta_schedule="cosine", trained_betas=None)
    assert torch.equal(cosine.betas, embedding_betas("cosine", 40))
    betas = [0.5, 0.25, 0.125]
    custom = EmbeddingDDIMScheduler(3, "custom", betas)
    assert custom.betas.tolist() == betas
    assert EmbeddingDPMSolverScheduler.from_config(custom.config).betas.tolist() == betas


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_follows_its_definition(ours, dtype):
    scheduler = ours(100, "sqrt")
    clean, noise = torch.randn(2, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([2, 50, 99])
    level = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    noisy = scheduler.add_noise(clean, noise, timesteps)
    assert noisy.dtype == dtype
    want = level.sqrt() * clean.double() + (1 - level).sqrt() * noise.double()
    torch.testing.assert_close(noisy.double(), want, atol=tolerance, rtol=tolerance)
    assert torch.equal(scheduler.add_noise(clean, noise, torch.tensor(50))[1], noisy[1])


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("prediction_type", ["sample", "epsilon", "v_prediction"])
def test_clean_estimate_of_the_true_prediction_is_the_clean_sample(ours, prediction_type):
    scheduler = ours(100, "cosine", prediction_type=prediction_type)
    clean, noise = torch.randn(
        2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    for timestep in scheduler.timesteps[::9]:
        noisy = scheduler.add_noise(clean, noise, timestep)
        predicted = prediction_of(prediction_type, clean, noisy, scheduler.alphas_cumprod[timestep])
        estimate = scheduler.step(predicted, timestep, noisy).pred_original_sample
        torch.testing.assert_close(estimate, clean, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_step_keeps_dtype_and_inputs(ours, dtype):
    scheduler = ours(100)
    scheduler.set_timesteps(4)
    noisy = start = torch.ones(2, 3, 4, dtype=dtype)
    predicted = torch.full_like(noisy, 0.3)
    for timestep in scheduler.timesteps:
        output = scheduler.step(predicted, timestep, noisy)
        noisy = output.prev_sample
        assert noisy.dtype == output.pred_original_sample.dtype == dtype
    assert (start == 1).all() and torch.equal(predicted, torch.full_like(start, 0.3))
    assert torch.equal(noisy, predicted)  # the last step ends at the clean estimate
    scheduler.set_timesteps(4)
    as_tuple = scheduler.step(predicted, scheduler.timesteps[0], start, return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], predicted)


def nearest_integer(clean):
    return clean.round()


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("clamp_steps", [0, 1, 3])
def test_only_the_last_steps_clamp(ours, clamp_steps):
    scheduler = ours(100, clamp_steps=clamp_steps)
    scheduler.set_timesteps(6)
    noisy = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 3, 4)
    rounded = []
    for timestep in scheduler.timesteps:
        predicted = 0.7 * noisy + 0.2
        output = scheduler.step(predicted, timestep, noisy, round_function=nearest_integer)
        rounded.append(torch.equal(output.pred_original_sample, predicted.round()))
        assert rounded[-1] or torch.equal(output.pred_original_sample, predicted)
        noisy = output.prev_sample
    assert rounded == [False] * (6 - clamp_steps) + [True] * clamp_steps
    assert torch.equal(noisy, noisy.round()) == (clamp_steps > 0)


@pytest.mark.parametrize("ours", OURS)
def test_clamping_what_is_rounded_changes_nothing(ours):
    words = torch.tensor([[[1.0, -2.0], [3.0, 0.0]]], dtype=torch.float64)
    noisy = torch.randn(1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = []
    for clamp_steps in (0, 5):
        scheduler = ours(100, clamp_steps=clamp_steps)
        scheduler.set_timesteps(5)
        arguments = {
            "round_function": nearest_integer,
            "generator": torch.Generator().manual_seed(1),
        }
        ends.append(sample(scheduler, noisy, denoise=lambda noisy, alpha_bar: words, **arguments))
    assert torch.equal(*ends) and torch.equal(ends[0], words)


@pytest.mark.parametrize("ours", OURS)
def test_clamping_needs_a_round_function(ours):
    scheduler = ours(100, clamp_steps=1)
    with pytest.raises(ValueError, match="`round_function` must be given for `clamp_steps`=1"):
        scheduler.step(torch.zeros(1, 1, 1), scheduler.timesteps[0], torch.zeros(1, 1, 1))


STOCHASTIC = [
    pytest.param(EmbeddingDDIMScheduler(100), {"eta": 1.0}, id="ddim"),
    pytest.param(EmbeddingDDPMScheduler(100), {}, id="ddpm"),
    pytest.param(
        EmbeddingDPMSolverScheduler(100, algorithm_type="sde-dpmsolver++"), {}, id="dpmsolver"
    ),
]


@pytest.mark.parametrize(("scheduler", "arguments"), STOCHASTIC)
def test_a_row_alone_is_the_row_of_a_batch(scheduler, arguments):
    noise = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(6)
    together = sample(
        scheduler,
        noise,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
        **arguments,
    )
    for row, length in enumerate((7, 4, 2)):
        scheduler.set_timesteps(6)
        generator = [torch.Generator().manual_seed(row)]
        alone = sample(scheduler, noise[row : row + 1, :length], generator=generator, **arguments)
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-6, rtol=1e-6)
    assert not torch.equal(together, sample(scheduler, noise, **arguments))


@pytest.mark.parametrize(("scheduler", "arguments"), STOCHASTIC)
def test_noise_is_drawn_or_given(scheduler, arguments):
    scheduler.set_timesteps(6)
    timestep, clean, noisy = scheduler.timesteps[0], torch.zeros(2, 3, 4), torch.ones(2, 3, 4)
    given = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    drawn = scheduler.step(
        clean, timestep, noisy, generator=torch.Generator().manual_seed(5), **arguments
    )
    scheduler.set_timesteps(6)
    used = scheduler.step(clean, timestep, noisy, variance_noise=given, **arguments)
    assert torch.equal(drawn.prev_sample, used.prev_sample)
    with pytest.raises(
        ValueError, match="`generator` must be None where `variance_noise` is given"
    ):
        scheduler.step(
            clean, timestep, noisy, generator=torch.Generator(), variance_noise=given, **arguments
        )
