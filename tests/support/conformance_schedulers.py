"""What any scheduler is held to: the laws that diffusers asks of its own under the same names, and those of texts.

Shapes: B batch, L sequence length, V logits.
"""

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

STEPS = 8
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@dataclass
class SchedulerCase:
    """A scheduler and what one step of it takes.

    Attributes:
        scheduler_class, arguments: what is tested.
        sample: (B, L) tokens or (B, L, E) embeddings as they are in the middle of the way.
        model_output: (B, L, V) or (B, L, E).
        betas: arguments under which the noise is given number by number, and where these numbers are found.
        step_arguments: what `step` needs beyond.
        other: a second setting of the scheduler that its steps depend on.
        least_steps: as many steps it needs for the sample.
        draws: whether a step draws anything.
        counts_up: whether steps are told by their number, as some of diffusers' schedulers are.
        over_tokens: else over embeddings.
        order: of the solver.
        calls: from the number of steps to that of calls of the model.
    """

    scheduler_class: type
    arguments: dict[str, Any]
    sample: Tensor
    model_output: Tensor
    betas: tuple[dict[str, Any], str] | None = None
    step_arguments: dict[str, Any] = field(default_factory=dict)
    other: dict[str, Any] = field(default_factory=dict)
    least_steps: int = 1
    draws: bool = True
    counts_up: bool = False
    over_tokens: bool = True
    order: int = 1
    calls: Callable[[int], int] = lambda steps: steps

    def make(self, **changes: Any) -> Any:
        scheduler = self.scheduler_class(**self.arguments | changes)
        scheduler.set_timesteps(STEPS)
        return scheduler

    def step(
        self,
        scheduler: Any,
        index: int = 0,
        rows: slice = slice(None),
        generator: Any = 0,
        **more: Any,
    ) -> Any:
        """The step number `index` of some rows; an integer is the seed of one generator for all."""
        if isinstance(generator, int):
            generator = torch.Generator().manual_seed(generator)
        timestep = index if self.counts_up else scheduler.timesteps[index]
        inputs = self.model_output[rows], timestep, self.sample[rows]
        return scheduler.step(*inputs, generator=generator, **self.step_arguments | more)

    def run(self, scheduler: Any) -> Tensor:
        """(steps, B, L) or (steps, B, L, E), what comes out of each step, the model saying the same at each."""
        generator, sample, samples = torch.Generator().manual_seed(1), self.sample, []
        for index in range(len(scheduler.timesteps)):
            timestep = index if self.counts_up else scheduler.timesteps[index]
            arguments = {"generator": generator} | self.step_arguments
            sample = scheduler.step(self.model_output, timestep, sample, **arguments).prev_sample
            samples.append(sample)
        return torch.stack(samples)


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what diffusers notes for itself, tensors as lists."""
    return {
        k: v.tolist() if isinstance(v, Tensor) else v
        for k, v in config.items()
        if not k.startswith("_")
    }


def asks_for_more(compatible: type, config: dict[str, Any]) -> bool:
    """Whether a scheduler has an argument without default that the configuration does not give."""
    parameters = list(inspect.signature(compatible.__init__).parameters.values())[1:]
    return any(
        p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD and p.name not in config
        for p in parameters
    )


class SchedulerCommonTest:
    """For a class with a fixture `case`, a `SchedulerCase`."""

    def test_from_save_pretrained(self, case, tmp_path):
        """A saved scheduler steps as the one that is loaded."""
        scheduler = case.make(**case.other)
        scheduler.save_pretrained(tmp_path)
        loaded = case.scheduler_class.from_pretrained(tmp_path)
        loaded.set_timesteps(STEPS)
        assert torch.equal(case.run(loaded), case.run(scheduler))

    def test_from_pretrained(self, case, tmp_path):
        """A configuration on disk is the configuration that was saved, and has its class."""
        scheduler = case.make(**case.other)
        scheduler.save_pretrained(tmp_path)
        loaded = case.scheduler_class.from_pretrained(tmp_path)
        assert public(loaded.config) == public(scheduler.config)
        assert (
            case.scheduler_class.load_config(tmp_path)["_class_name"]
            == case.scheduler_class.__name__
        )

    @pytest.mark.parametrize("setting", ["as it is", "other"])
    def test_over_configs(self, case, setting):
        """Its own and another setting survive disk and `from_config`; the steps depend on them."""
        if not case.other:
            pytest.skip("It has no setting that steps depend on.")
        scheduler = case.make(**case.other if setting == "other" else {})
        again = case.scheduler_class.from_config(scheduler.config)
        again.set_timesteps(STEPS)
        result = case.run(scheduler)
        assert torch.equal(result, case.run(again))
        unlike = case.make(**{} if setting == "other" else case.other)
        assert not torch.equal(result, case.run(unlike))

    @pytest.mark.parametrize("more_steps", [0, 1, 4])
    def test_over_forward(self, case, tmp_path, more_steps):
        """Any number of steps is what a loaded scheduler takes too; the last ends at clean samples."""
        scheduler = case.make()
        scheduler.save_pretrained(tmp_path)
        loaded = case.scheduler_class.from_pretrained(tmp_path)
        steps = case.least_steps + more_steps
        for each in (scheduler, loaded):
            each.set_timesteps(steps)
            assert len(each.timesteps) == case.calls(steps)
        result = case.run(scheduler)
        assert torch.equal(result, case.run(loaded))
        mask = scheduler.config.get("mask_token_id", case.step_arguments.get("mask_token_id"))
        if case.over_tokens and mask is not None:
            assert not (result[-1] == mask).any()

    def test_compatibles(self, case):
        """It is one of its compatibles; each of ours, and stock's that it extends, gives its configuration back."""
        scheduler = case.make()
        assert case.scheduler_class in scheduler.compatibles
        for compatible in scheduler.compatibles:
            related = compatible.__module__.startswith("text_diffusers") or issubclass(
                case.scheduler_class, compatible
            )
            if not related or asks_for_more(compatible, scheduler.config):
                continue
            other = compatible.from_config(scheduler.config)
            back = public(case.scheduler_class.from_config(other.config).config)
            asked = inspect.signature(case.scheduler_class.__init__).parameters
            ours = {
                name: value for name, value in public(scheduler.config).items() if name in asked
            }
            assert {name: back[name] for name in ours} == ours, compatible

    def test_step_shape(self, case):
        """A step keeps shape and dtype, leaves its inputs alone, and does not need a fresh scheduler."""
        scheduler = case.make()
        before = case.sample.clone(), case.model_output.clone()
        for index in (0, 1):
            stepped = case.step(scheduler, index).prev_sample
            assert stepped.shape == case.sample.shape
            assert stepped.dtype == case.sample.dtype
        assert torch.equal(case.sample, before[0])
        assert torch.equal(case.model_output, before[1])
        if case.over_tokens:
            assert ((stepped >= 0) & (stepped < case.model_output.shape[-1])).all()

    def test_scheduler_outputs_equivalence(self, case):
        """A tuple has the fields of the output, in their order."""
        named = case.step(case.make())
        plain = case.step(case.make(), return_dict=False)
        assert isinstance(plain, tuple)
        assert len(plain) == len(named.to_tuple())
        for one, other in zip(plain, named.to_tuple(), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(named.prev_sample, plain[0])

    def test_scheduler_public_api(self, case):
        """What pipelines rely on: a grid of the length that is asked for, from noise to clean, and refusals."""
        scheduler = case.make()
        assert scheduler.order == case.order
        if not case.counts_up:
            assert scheduler.init_noise_sigma == 1
            assert scheduler.scale_model_input(case.sample, scheduler.timesteps[0]) is case.sample
            assert (scheduler.timesteps.diff() <= 0).all()
            for refused in (0, -1, 2.5):
                with pytest.raises(ValueError, match="num_inference_steps"):
                    scheduler.set_timesteps(refused)
            with pytest.raises(ValueError, match="timestep"):
                case.make().step(case.model_output, 1e6, case.sample)
        scheduler.set_timesteps(3, device="cpu")
        assert len(scheduler.timesteps) == case.calls(3)
        assert scheduler.timesteps.device.type == "cpu"

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
    def test_add_noise_device(self, case, device):
        """Noise is added where the sample is, in its dtype: little at the start, all at the end."""
        scheduler = case.make()
        if not hasattr(scheduler, "add_noise") or case.counts_up:
            pytest.skip("It adds no noise.")
        clean = case.sample.to(device)
        if case.over_tokens:
            words = min(
                case.model_output.shape[-1],
                scheduler.config.get("vocab_size") or case.model_output.shape[-1],
            )
            clean = torch.arange(clean.numel(), device=device).view(clean.shape) % (words - 1)
            near, far = (
                scheduler.add_noise(clean, t, torch.Generator().manual_seed(0)) for t in (0.0, 1.0)
            )
            assert torch.equal(near, clean)
            assert not torch.equal(far, clean)
        else:
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5)).to(clean)
            steps = scheduler.config.num_train_timesteps
            first, last = (torch.full((len(clean),), t, device=device) for t in (0, steps - 1))
            near, far = (
                scheduler.add_noise(clean, noise, first),
                scheduler.add_noise(clean, noise, last),
            )
            assert (near - clean).abs().max() < (far - clean).abs().max()
            torch.testing.assert_close(far, noise, atol=0.5, rtol=0)
        for noisy in (near, far):
            assert (noisy.shape, noisy.dtype, noisy.device.type) == (
                clean.shape,
                clean.dtype,
                device,
            )

    def test_deprecated_kwargs(self, case):
        """An `__init__` takes names that are not in its signature only if they are deprecated."""
        parameters = inspect.signature(case.scheduler_class.__init__).parameters.values()
        takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        assert takes_any == bool(case.scheduler_class._deprecated_kwargs)
        with pytest.raises(TypeError):
            case.scheduler_class(**case.arguments, no_such_argument=1)

    def test_trained_betas(self, case, tmp_path):
        """Noise that is given number by number is what is saved, loaded and used."""
        if case.betas is None:
            pytest.skip("Its noise has no numbers of its own.")
        arguments, name = case.betas
        scheduler = case.scheduler_class(**case.arguments | arguments)
        scheduler.save_pretrained(tmp_path)
        loaded = case.scheduler_class.from_pretrained(tmp_path)
        given = torch.as_tensor(arguments[name], dtype=torch.float64)
        torch.testing.assert_close(
            torch.tensor(loaded.config[name], dtype=torch.float64), given, rtol=0, atol=0
        )
        if name == "schedule":
            times = torch.linspace(0, 1, len(given), dtype=torch.float64)
            torch.testing.assert_close(loaded.alpha(times), given)
        elif case.over_tokens:
            times = torch.arange(len(given) + 1, dtype=torch.float64) / len(given)
            torch.testing.assert_close(loaded.alpha(times)[1:], (1 - given).cumprod(0))
        else:
            torch.testing.assert_close(loaded.betas, given, rtol=0, atol=0)
            torch.testing.assert_close(loaded.alphas_cumprod, (1 - given).cumprod(0))

    def test_getattr_is_correct(self, case):
        """Attributes are silent, entries of the configuration warn, and what is neither is said to be missing."""
        scheduler = case.make()
        scheduler.own_attribute = 5
        scheduler.register_to_config(entry_of_config=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert scheduler.own_attribute == 5
            assert scheduler.save_pretrained == getattr(scheduler, "save_pretrained")  # noqa: B009
        with pytest.warns(FutureWarning, match="entry_of_config"):
            assert scheduler.entry_of_config == 7
        with pytest.raises(
            AttributeError, match=f"'{type(scheduler).__name__}' object has no attribute 'missing'"
        ):
            scheduler.missing  # noqa: B018

    def test_determinism(self, case):
        """A generator decides everything, `set_timesteps` starts anew, and a copy goes its own way."""
        scheduler = case.make()
        first = case.run(scheduler)
        scheduler.set_timesteps(STEPS)
        assert torch.equal(first, case.run(scheduler))
        scheduler.set_timesteps(STEPS)
        fork = copy.deepcopy(scheduler)
        assert torch.equal(case.run(fork), case.run(scheduler))

    def test_list_of_generators(self, case):
        """A row with a generator of its own does not depend on the others."""
        if case.counts_up:
            pytest.skip("It takes one generator.")

        def seeded():
            return [torch.Generator().manual_seed(seed) for seed in range(len(case.sample))]

        together = case.step(case.make(), generator=seeded()).prev_sample
        for row, generator in enumerate(seeded()):
            alone = case.step(
                case.make(), rows=slice(row, row + 1), generator=[generator]
            ).prev_sample
            assert torch.equal(alone[0], together[row])
        if case.draws:
            with pytest.raises(ValueError, match="generator"):
                case.step(case.make(), generator=seeded()[:1])
