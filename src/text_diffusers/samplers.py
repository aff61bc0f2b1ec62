"""Samplers by name: the schedulers that can write with a trained pipeline, and pipelines that use them."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from text_diffusers.pipelines.paraguide.pipeline_paraguide import ParaGuidePipeline
from text_diffusers.pipelines.paraguide.pipeline_paraguide_tokens import TokenParaGuidePipeline
from text_diffusers.pipelines.scheduler_adapters import STEP_SETTINGS, as_token_scheduler, stock_class
from text_diffusers.pipelines.two_level_vq.pipeline_two_level_vq import TwoLevelVQDiffusionPipeline
from text_diffusers.schedulers.scheduling_confidence import ConfidenceScheduler
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.schedulers.scheduling_ddim_embedding import EmbeddingDDIMScheduler
from text_diffusers.schedulers.scheduling_ddim_token import TokenDDIMScheduler
from text_diffusers.schedulers.scheduling_ddpm_embedding import EmbeddingDDPMScheduler
from text_diffusers.schedulers.scheduling_dpmsolver_embedding import EmbeddingDPMSolverScheduler
from text_diffusers.schedulers.scheduling_first_hitting import FirstHittingScheduler
from text_diffusers.schedulers.scheduling_predictor_corrector import (
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
)
from text_diffusers.schedulers.scheduling_remdm import ReMDMScheduler

SHAPING = ("temperature", "top_k", "top_p")
PARAPHRASES = (ParaGuidePipeline, TokenParaGuidePipeline)
SCHEDULERS = ("scheduler", "coarse_scheduler", "fine_scheduler")  # the components that hold one


@dataclass(frozen=True)
class Sampler:
    """A scheduler that can take the place of a pipeline's own.

    Attributes:
        scheduler: its class.
        summary: what it does, in a line for people.
        preset: the settings that make it what its name says.
        settings: the names that `make` takes.
        token_a_step: whether it wants as many steps as there are tokens to write; `most_steps` are always enough.
        config: of the scheduler that it takes the place of.
    """

    scheduler: type
    summary: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = SHAPING
    token_a_step: bool = False
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def make(self, **settings: Any) -> Any:
        """The scheduler with the noise of the one that it takes the place of, and its settings unless given here.

        Raises:
            ValueError: if it has no such setting, or a value is out of its range.
        """
        unknown = [name for name in settings if name not in self.settings]
        if unknown:
            known = f"takes {', '.join(self.settings)} only" if self.settings else "takes no settings"
            raise ValueError(
                f"`{unknown[0]}` must be left out: {self.scheduler.__name__} {known}, got {settings[unknown[0]]!r}."
            )
        build: Any = self.scheduler
        made = build.from_config(dict(self.config), **self.preset, **settings)
        if stock_class(made) is not None:  # it takes them at each step, from its configuration
            made.register_to_config(**settings)
        return made


def by_order(order: str | None = None, **bound: float) -> dict[str, Any]:
    return {"order": order, "threshold": None, "entropy_bound": None, "order_temperature": 0.0} | bound


ABSORBING = {
    "ancestral": Sampler(D3PMAbsorbingScheduler, "Reveals tokens at random times, as the model was trained."),
    "first_hitting": Sampler(
        FirstHittingScheduler,
        "Reveals one token a step, at the very time at which it would be: no error from the number of steps.",
        token_a_step=True,
    ),
    "confidence": Sampler(
        ConfidenceScheduler, "Writes the tokens that it is surest of first.", by_order("confidence")
    ),
    "entropy": Sampler(
        ConfidenceScheduler, "Writes first where there is the least to choose from.", by_order("entropy")
    ),
    "margin": Sampler(
        ConfidenceScheduler, "Writes first where the best token leads the second best by most.", by_order("margin")
    ),
    "threshold": Sampler(
        ConfidenceScheduler,
        "Writes every token at once that is more than 90% sure: fewer calls of the model.",
        by_order(threshold=0.9),
        token_a_step=True,
    ),
    "entropy_bound": Sampler(
        ConfidenceScheduler,
        "Writes as many tokens at once as an entropy of 0.1 nats allows: fewer calls of the model.",
        by_order(entropy_bound=0.1),
        token_a_step=True,
    ),
    "remdm": Sampler(ReMDMScheduler, "Takes some tokens back and writes them again."),
    "predictor_corrector": Sampler(
        PredictorCorrectorAbsorbingScheduler, "After each step, masks and rewrites some tokens at the same noise."
    ),
}
UNIFORM = {
    "ancestral": Sampler(D3PMUniformScheduler, "Replaces random tokens step by step, as the model was trained."),
    "ddim": Sampler(
        TokenDDIMScheduler, "Each token stays or takes its predicted value: no fresh noise.", {"eta": 0.0}
    ),
    "predictor_corrector": Sampler(
        PredictorCorrectorUniformScheduler, "After each step, draws some tokens again given all the others."
    ),
}
EMBEDDINGS = {
    "ddim": Sampler(EmbeddingDDIMScheduler, "Deterministic steps from one noise to one text.", settings=()),
    "ddpm": Sampler(
        EmbeddingDDPMScheduler, "Fresh noise at each step.", {"variance_type": "fixed_small"}, settings=()
    ),
    "dpm_solver": Sampler(
        EmbeddingDPMSolverScheduler,
        "Solves the same equation as ddim to second order, in fewer steps.",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
        settings=(),
    ),
    "sde_dpm_solver": Sampler(
        EmbeddingDPMSolverScheduler,
        "Second order with fresh noise.",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
        settings=(),
    ),
}
TABLES = {"absorbing": ABSORBING, "uniform": UNIFORM, "embeddings": EMBEDDINGS}
OWN = "Draws from the reverse of the model's own noise."


def samplers_for(pipe: Any) -> dict[str, Sampler]:
    """The samplers of a pipeline by name: all that undo the noise which its model was trained with.

    None for pipelines of paraphrases, which ask a scheduler for its noise only. Those of a pipeline with two levels
    are made for its fine codes; `with_sampler` gives each level its own.
    """
    if isinstance(pipe, PARAPHRASES):
        return {}
    return samplers_of(pipe, "fine_scheduler" if isinstance(pipe, TwoLevelVQDiffusionPipeline) else "scheduler")


def samplers_of(pipe: Any, component: str) -> dict[str, Sampler]:
    """As `samplers_for`, of one component."""
    scheduler = getattr(pipe, component)
    if hasattr(scheduler, "alphas_cumprod"):
        kind, more = "embeddings", {"prediction_type": pipe.denoiser.config.prediction_type}
    elif stock_class(scheduler) is None:
        kind, more = scheduler.corruption, {}
    elif component == "scheduler":
        adapter = as_token_scheduler(scheduler, pipe.tokenizer)
        kind, more = adapter.corruption, {"mask_token_id": adapter.mask_token_id, "vocab_size": adapter.vocab_size}
    else:
        denoiser = getattr(pipe, component.replace("scheduler", "denoiser"))
        kind, more = "absorbing", {"mask_token_id": denoiser.config.vocab_size - 1}
    table = TABLES.get(kind) or {"ancestral": Sampler(type(scheduler), OWN)}
    return {name: replace(sampler, config={**scheduler.config, **more}) for name, sampler in table.items()}


def current_sampler(pipe: Any) -> str | None:
    """The name under which `samplers_for` has the pipeline's own scheduler, if it has."""
    for name, sampler in samplers_for(pipe).items():
        component = next(name for name in reversed(SCHEDULERS) if getattr(pipe, name, None) is not None)
        own = getattr(pipe, component)
        if type(own) is sampler.scheduler and all(
            own.config.get(key) == sampler.preset[key] for key in sampler.preset
        ):
            return name
    return None


def with_sampler(pipe: Any, name: str | None = None, **settings: Any) -> Any:
    """A pipeline of the same models that writes by the sampler `name`; the given one stays as it is.

    Args:
        name: one of `samplers_for`; by default the pipeline's own scheduler.
        settings: of `Sampler.make`; those that are left out stay.

    Raises:
        ValueError: if there is no such sampler for this pipeline, or it has no such setting.
    """
    known = samplers_for(pipe)
    if name is not None and name not in known:
        offered = f"one of {', '.join(known)}" if known else "left out, since this pipeline takes steps of its own"
        raise ValueError(f"`scheduler` must be {offered}, got {name!r}.")
    changed = copy.copy(pipe)
    if name is None and not settings:
        return changed
    for component in SCHEDULERS:
        own = getattr(pipe, component, None)
        if own is not None:
            sampler = own_sampler(pipe, component) if name is None else samplers_of(pipe, component)[name]
            setattr(changed, component, sampler.make(**settings))
    return changed


def own_sampler(pipe: Any, component: str) -> Sampler:
    """The scheduler of a component as it is."""
    own: Any = getattr(pipe, component)
    stock = stock_class(own)
    shaping = SHAPING if stock is None else STEP_SETTINGS[stock]
    if hasattr(own, "alphas_cumprod") or not samplers_for(pipe):
        shaping = ()
    return Sampler(type(own), OWN, settings=shaping, config=own.config)


def most_steps(pipe: Any) -> int:
    """As many steps as there can be tokens, or codes, to write at once; no more than the scheduler has."""
    if isinstance(pipe, TwoLevelVQDiffusionPipeline):
        longest, scheduler = pipe.fine_denoiser.config.max_length, pipe.fine_scheduler
    else:
        longest, scheduler = getattr(pipe.denoiser.config, "block_length", None) or pipe._max_length, pipe.scheduler
    return min(longest, scheduler.config.get("num_train_timesteps") or longest)
