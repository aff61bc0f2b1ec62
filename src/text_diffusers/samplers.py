"""Samplers by name: the schedulers that can write with a trained pipeline, and pipelines that use them.

A new sampler is a scheduler in `schedulers/` and a line in one of the tables here, by which the command line and the
Space offer it.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from text_diffusers.common.validation import require
from text_diffusers.pipelines.calls.steps import written_together
from text_diffusers.pipelines.pipeline_base import TextPipeline
from text_diffusers.pipelines.scheduler_adapters import (
    SHAPING,
    STEP_SETTINGS,
    as_token_scheduler,
    scheduler_from_config,
    stock_class,
)
from text_diffusers.schedulers.few_steps.scheduling_even import EvenRevealScheduler
from text_diffusers.schedulers.latent.scheduling_flow import (
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
)
from text_diffusers.schedulers.latent.scheduling_score import (
    AnnealedLangevinScheduler,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
)
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

# Which tokens are written first, and among how many; of a `ConfidenceScheduler`
ORDERING = ("order", "window")


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

    Example:
        >>> absorbing = D3PMAbsorbingScheduler(mask_token_id=4)
        >>> sampler = replace(ABSORBING["confidence"], config=absorbing.config)
        >>> sampler.make(temperature=0.5).config.order
        'confidence'
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
        # Checked here, so that the message names what this sampler takes.
        for name, value in settings.items():
            if name not in self.settings:
                limit = (
                    f"takes {', '.join(self.settings)} only"
                    if self.settings
                    else "takes no settings"
                )
                raise ValueError(
                    f"`{name}` must be left out: {self.scheduler.__name__} {limit}, got {value!r}."
                )

        # An order that is asked for comes before that of the preset.
        preset = {name: value for name, value in self.preset.items() if name not in settings}
        return scheduler_from_config(self.scheduler, self.config, preset, **settings)


def by_order(order: str | None = None, **bound: float) -> dict[str, Any]:
    """Settings of a `ConfidenceScheduler` by an order alone, or by a bound on what is written at once."""
    # All of them are named, so that none is left over from the scheduler it takes the place of.
    return {
        "order": order,
        "threshold": None,
        "entropy_bound": None,
        "order_temperature": 0.0,
        "window": None,
    } | bound


def in_order(summary: str, preset: Mapping[str, Any], token_a_step: bool = False) -> Sampler:
    """A sampler by a `ConfidenceScheduler`, which also takes an order and a window."""
    return Sampler(
        ConfidenceScheduler,
        summary,
        preset,
        settings=(*SHAPING, *ORDERING),
        token_a_step=token_a_step,
    )


# Samplers by name, a table for each noise that they undo
ABSORBING = {
    "ancestral": Sampler(
        D3PMAbsorbingScheduler, "Reveals tokens at random times, as the model was trained."
    ),
    "even": Sampler(
        EvenRevealScheduler,
        "Reveals tokens far from each other together: good texts in few steps.",
    ),
    "first_hitting": Sampler(
        FirstHittingScheduler,
        "Reveals one token a step, at the very time at which it would be: no error from the number of steps.",
        token_a_step=True,
    ),
    "confidence": in_order("Writes the tokens that it is surest of first.", by_order("confidence")),
    "left_to_right": in_order(
        "Writes from the left to the right, like an autoregressive model.",
        by_order("left_to_right"),
        token_a_step=True,
    ),
    "entropy": in_order(
        "Writes first where there is the least to choose from.", by_order("entropy")
    ),
    "margin": in_order(
        "Writes first where the best token leads the second best by most.", by_order("margin")
    ),
    "threshold": in_order(
        "Writes every token at once that is more than 90% sure: fewer calls of the model.",
        by_order(threshold=0.9),
        token_a_step=True,
    ),
    "entropy_bound": in_order(
        "Writes as many tokens at once as an entropy of 0.1 nats allows: fewer calls of the model.",
        by_order(entropy_bound=0.1),
        token_a_step=True,
    ),
    "remdm": Sampler(ReMDMScheduler, "Takes some tokens back and writes them again."),
    "predictor_corrector": Sampler(
        PredictorCorrectorAbsorbingScheduler,
        "After each step, masks and rewrites some tokens at the same noise.",
    ),
}

# Uniform noise: no token tells whether it was replaced, so any of them may change at each step
UNIFORM = {
    "ancestral": Sampler(
        D3PMUniformScheduler, "Replaces random tokens step by step, as the model was trained."
    ),
    "ddim": Sampler(
        TokenDDIMScheduler,
        "Each token stays or takes its predicted value: no fresh noise.",
        {"eta": 0.0},
    ),
    "predictor_corrector": Sampler(
        PredictorCorrectorUniformScheduler,
        "After each step, draws some tokens again given all the others.",
    ),
}

# Gaussian noise: these draw no tokens, so nothing shapes their choice
EMBEDDINGS = {
    "ddim": Sampler(
        EmbeddingDDIMScheduler, "Deterministic steps from one noise to one text.", settings=()
    ),
    "ddpm": Sampler(
        EmbeddingDDPMScheduler,
        "Fresh noise at each step.",
        {"variance_type": "fixed_small"},
        settings=(),
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

# Samplers by score, for latents under noise of any path
SCORE = {
    "probability_flow": Sampler(
        ProbabilityFlowScheduler,
        "Deterministic steps of second order, with two calls of the model each.",
        {"solver_order": 2},
        settings=(),
    ),
    "reverse_sde": Sampler(
        ReverseSDEScheduler,
        "Runs the noise backwards, with fresh noise at each step.",
        {"stochasticity": 1.0},
        settings=(),
    ),
    "langevin": Sampler(
        AnnealedLangevinScheduler,
        "Langevin dynamics under less and less noise, which wants many steps.",
        settings=(),
    ),
}

# Latents on the straight path of flow, and under the noise of word embeddings
FLOW = {
    "euler": Sampler(
        LatentFlowEulerScheduler,
        "Deterministic steps along the velocity from one noise to one text.",
        settings=(),
    ),
    "heun": Sampler(
        LatentFlowHeunScheduler,
        "The same to second order, with two calls of the model each.",
        settings=(),
    ),
    **SCORE,
}
LATENTS = {**EMBEDDINGS, **SCORE}

# By the `corruption` of a scheduler; "embeddings" for models over word embeddings; "flow" and "latents" for those over
# latents, by their noise
TABLES = {
    "absorbing": ABSORBING,
    "uniform": UNIFORM,
    "embeddings": EMBEDDINGS,
    "flow": FLOW,
    "latents": LATENTS,
    # The schedulers for word embeddings do not step by a velocity of flow.
    "latents_by_flow": SCORE,
}

# The summary of a scheduler that is in none of the tables
OWN = "Draws from the reverse of the model's own noise."


def samplers_for(pipe: TextPipeline) -> dict[str, Sampler]:
    """The samplers of a pipeline by name: all that undo the noise which its model was trained with.

    None for pipelines that ask a scheduler for its noise only, as those of paraphrases do. Those of a pipeline with
    two levels are made for its fine codes; `with_sampler` gives each level its own.
    """
    if not pipe.draws_from_scheduler:
        return {}
    return samplers_of(pipe, pipe.scheduler_names[-1])


def samplers_of(pipe: TextPipeline, component: str) -> dict[str, Sampler]:
    """As `samplers_for`, of one component that holds a scheduler."""
    # A pipeline may be of two levels, each with a denoiser named like its scheduler.
    scheduler = getattr(pipe, component)
    denoiser = getattr(pipe, component.replace("scheduler", "denoiser"))

    # 1. The noise of the model, and what a stock scheduler of diffusers does not say of it
    if pipe.kind == "latents":
        kind = kind_of_latents(scheduler, denoiser)
        config = {"prediction_type": denoiser.config.prediction_type}
    elif hasattr(scheduler, "alphas_cumprod"):
        kind = "embeddings"
        config = {"prediction_type": getattr(denoiser.config, "prediction_type", "sample")}
    elif stock_class(scheduler) is None:
        kind = scheduler.corruption
        config = {}
    elif pipe.kind == "codes":
        # The mask of a denoiser of codes comes after all codes.
        kind = "absorbing"
        config = {"mask_token_id": denoiser.config.vocab_size - 1}
    else:
        adapter = as_token_scheduler(scheduler, pipe.tokenizer)
        kind = adapter.corruption
        # Of its two ids a scheduler takes the one that its noise is made of.
        if kind == "absorbing":
            config = {"mask_token_id": adapter.mask_token_id}
        else:
            config = {"vocab_size": adapter.vocab_size}

    # 2. Its samplers; a kernel without a table has its own reverse process alone.
    table = TABLES.get(kind) or {"ancestral": Sampler(type(scheduler), OWN)}
    return {
        name: replace(sampler, config={**scheduler.config, **config})
        for name, sampler in table.items()
    }


def kind_of_latents(scheduler: Any, denoiser: Any) -> str:
    """The table of the samplers that undo the noise of latents."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        return "flow"
    return "latents_by_flow" if denoiser.config.prediction_type == "flow" else "latents"


def current_sampler(pipe: TextPipeline) -> str | None:
    """The name under which `samplers_for` has the pipeline's own scheduler, if it has."""
    samplers = samplers_for(pipe)
    if not samplers:
        return None
    scheduler = getattr(pipe, pipe.scheduler_names[-1])
    for name, sampler in samplers.items():
        # Samplers of one class differ by their presets.
        has_preset = all(
            scheduler.config.get(key) == value for key, value in sampler.preset.items()
        )
        if type(scheduler) is sampler.scheduler and has_preset:
            return name
    return None


def with_sampler(pipe: Any, name: str | None = None, **settings: Any) -> Any:
    """A pipeline of the same models that writes by the sampler `name`; the given one stays as it is.

    Args:
        name: one of `samplers_for`; by default the pipeline's own scheduler, or "confidence" if an order or a window
            is asked for that it does not have.
        settings: of `Sampler.make`, such as `order="left_to_right"`; those that are left out stay.

    Raises:
        ValueError: if there is no such sampler for this pipeline, or it has no such setting.
    """
    # Refused by name here, before any scheduler is made.
    samplers = samplers_for(pipe)
    if name is not None and name not in samplers:
        limit = (
            f"one of {', '.join(samplers)}"
            if samplers
            else "left out, since this pipeline takes steps of its own"
        )
        require(False, "scheduler", limit, name, samplers)

    asked = [setting for setting in ORDERING if setting in settings]
    if name is None and asked:
        limit = "left out: only schedulers of absorbing noise have one"
        require("confidence" in samplers, asked[0], limit, settings[asked[0]])
        own = getattr(pipe, pipe.scheduler_names[-1])
        name = None if isinstance(own, ConfidenceScheduler) else "confidence"

    # A shallow copy: the models, which are large, are shared.
    changed = copy.copy(pipe)
    if name is None and not settings:
        return changed

    # A pipeline of two levels has a scheduler for each.
    for component in pipe.scheduler_names:
        sampler = (
            own_sampler(pipe, component) if name is None else samplers_of(pipe, component)[name]
        )
        setattr(changed, component, sampler.make(**settings))

    # What is asked for here comes before the pipeline's own defaults of its calls.
    defaults = pipe.generation_defaults
    if defaults.keys() & settings.keys():
        kept = {name: value for name, value in defaults.items() if name not in settings}
        changed.generation_defaults = kept
    return changed


def own_sampler(pipe: TextPipeline, component: str) -> Sampler:
    """The scheduler of a component as it is."""
    scheduler: Any = getattr(pipe, component)
    stock = stock_class(scheduler)

    # Schedulers of embeddings and latents, and of pipelines with steps of their own, draw no tokens to shape.
    is_continuous = hasattr(scheduler, "alphas_cumprod") or pipe.kind == "latents"
    if is_continuous or not pipe.draws_from_scheduler:
        settings = ()
    elif isinstance(scheduler, ConfidenceScheduler):
        settings = (*SHAPING, *ORDERING)
    else:
        settings = SHAPING if stock is None else STEP_SETTINGS[stock]
    return Sampler(type(scheduler), OWN, settings=settings, config=scheduler.config)


def most_steps(pipe: Any, given: Mapping[str, Any] | None = None) -> int:
    """As many steps as there can be tokens, or codes, to write at once; no more than the scheduler has.

    Args:
        given: the arguments of the call by their names, which may say how many tokens are written together.
    """
    scheduler = getattr(pipe, pipe.scheduler_names[-1])

    # All latents of a text are written at once, in as many steps as the clock has.
    if pipe.kind == "latents":
        return scheduler.config["num_train_timesteps"]

    # Fine codes are the longest sequence that is written.
    if pipe.kind == "codes":
        longest = pipe.fine_denoiser.config.max_length
    else:
        longest = written_together(pipe, given or {}) or pipe.max_length
    return min(longest, scheduler.config.get("num_train_timesteps") or longest)
