"""What a whole sampling step costs, in units of a bare forward pass of the same model: `sampling.py --parts steps`.

One step from t = 0.5 of 64, random weights, all samplers in turn. A bare forward gives all logits, (B, L, V). "naive"
is the textbook step on all logits in float64, written out here. "all rows" is a step that needs a prediction at every
position: for the uniform kernel the last, from 0.5 to 0; for the absorbing one the only, from 1 to 0.

Shapes: B batch, L length, V vocabulary size, N selected positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speed.measuring import Size, interleaved, random_model, verdict
from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMHybridScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    FirstHittingScheduler,
    PredictorCorrectorAbsorbingScheduler,
    PredictorCorrectorUniformScheduler,
    ReMDMScheduler,
    TokenDDIMScheduler,
)
from text_diffusers.pipelines.guidance import guide

STEPS, TIME = 64, 0.5
GUIDANCE_SCALE = 2.0
# The most that a step may cost, at V = 8,192 and 50,258.
TARGETS = {
    "absorbing": (0.85, 0.50),
    "confidence, greedy": (0.95, 0.85),
    "uniform, all rows": (1.06, 1.20),
    "uniform plug-in, all rows": (1.06, 1.20),
    "absorbing, all rows": (1.10, 1.35),
    "guided absorbing": (1.05, 1.10),
}


@dataclass
class Case:
    """A line of the table: what to time, how often it calls the model, and what to do before, untimed."""

    run: Callable[[], Any]
    calls: int = 1
    forwards: int = 1  # per call, that the figure is in units of
    prepare: Callable[[], Any] = lambda: None


def naive_absorbing_step(model, tokens: Tensor, timestep: float, next_timestep: float, generator) -> Tensor:
    """(B, L): float64 Gumbel-max at every position, the masks being V - 1, then a choice of what to reveal."""
    logits = model(tokens, timestep).logits.double()
    mask = logits.shape[-1] - 1
    logits[..., mask] = -torch.inf
    noise = -torch.log(-torch.log(torch.rand(logits.shape, dtype=torch.float64, generator=generator)))
    clean = (logits + noise).argmax(dim=-1)
    reveal = torch.rand(tokens.shape, generator=generator) < (timestep - next_timestep) / timestep
    return torch.where((tokens == mask) & reveal, clean, tokens)


def naive_confidence_step(model, tokens: Tensor, timestep: float, next_timestep: float, generator) -> Tensor:
    """(B, L): float64 softmax and `multinomial` at every position, then the surest of the masks of each row."""
    logits = model(tokens, timestep).logits.double()
    mask = logits.shape[-1] - 1
    logits[..., mask] = -torch.inf
    probs = logits.softmax(dim=-1)
    clean = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(tokens.shape)
    confidence = probs.gather(-1, clean.unsqueeze(-1)).squeeze(-1).masked_fill(tokens != mask, -1.0)
    next_tokens = tokens.clone()
    for row, masks in enumerate((tokens == mask).sum(dim=1).tolist()):
        surest = confidence[row].topk(masks - round(masks * next_timestep / timestep)).indices
        next_tokens[row, surest] = clean[row, surest]
    return next_tokens


def naive_uniform_posterior(logits: Tensor, tokens: Tensor, alpha_t: float, alpha_s: float) -> Tensor:
    """p(x_s | x_t), (B, L, V), float64: Bayes' rule with the prediction in the place of x_0."""
    vocab_size, probs = logits.shape[-1], logits.double().softmax(dim=-1)
    kept = alpha_t / alpha_s
    likelihood = kept * torch.nn.functional.one_hot(tokens, vocab_size) + (1 - kept) / vocab_size
    joint = likelihood * (alpha_s * probs + (1 - alpha_s) / vocab_size)
    return joint / joint.sum(dim=-1, keepdim=True)


def naive_uniform_step(model, tokens: Tensor, timestep: float, next_timestep: float, generator) -> Tensor:
    """(B, L) of the linear noise schedule, from the whole posterior by `multinomial`."""
    posterior = naive_uniform_posterior(model(tokens, timestep).logits, tokens, 1 - timestep, 1 - next_timestep)
    return torch.multinomial(posterior.flatten(0, 1), 1, generator=generator).view(tokens.shape)


def selected_logits(model, tokens: Tensor, times: Tensor, positions: Tensor) -> Tensor:
    """(N, V) at the true `positions` (B, L), as TextDiffusionPipeline asks for them: rows without any are left out."""
    rows = positions.any(dim=1)
    if not rows.any():
        return torch.zeros(0, model.config.vocab_size)
    return model(tokens[rows], times[rows], positions=positions[rows]).logits


def select_first_step(model, scheduler, tokens: Tensor, timestep: float, generator) -> Tensor:
    """(B, L) next tokens, as TextDiffusionPipeline takes a step: positions are selected before the model runs."""
    positions = scheduler.select(timestep, tokens, generator)
    logits = selected_logits(model, tokens, scheduler.model_timesteps(timestep, tokens), positions)
    return scheduler.step(logits, timestep, tokens, positions=positions, generator=generator).prev_sample


def guided_step(
    model, scheduler, tokens: Tensor, unprompted: Tensor, timestep: float, generator, scale: float = GUIDANCE_SCALE
) -> Tensor:
    """(B, L): classifier-free guidance as in TextDiffusionCFGPipeline, from one batch of twice the rows."""
    positions = scheduler.select(timestep, tokens, generator)
    both, times = torch.cat([tokens, unprompted]), scheduler.model_timesteps(timestep, tokens).repeat(2)
    logits = selected_logits(model, both, times, positions.repeat(2, 1))  # (2N, V)
    cond, uncond = logits.chunk(2)
    guided = guide(cond, uncond, torch.full((len(cond),), scale))
    return scheduler.step(guided, timestep, tokens, positions=positions, generator=generator).prev_sample


def ring(vocab_size: int) -> dict[str, Tensor]:
    """`edges` and `rates` of a graph in which each token has two neighbours."""
    ids = torch.arange(vocab_size)
    after = (ids + 1) % vocab_size
    return {
        "edges": torch.stack([torch.cat([ids, after]), torch.cat([after, ids])]),
        "rates": torch.ones(len(ids) * 2),
    }


def absorbing_schedulers(vocab_size: int) -> dict[str, Any]:
    mask = vocab_size - 1
    return {
        "absorbing": D3PMAbsorbingScheduler(mask),
        "confidence, greedy": ConfidenceScheduler(mask, temperature=0.0),
        "confidence, temperature 1": ConfidenceScheduler(mask),
        "entropy": ConfidenceScheduler(mask, order="entropy"),
        "margin": ConfidenceScheduler(mask, order="margin"),
        "entropy-bounded": ConfidenceScheduler(mask, entropy_bound=1.0),
        "threshold": ConfidenceScheduler(mask, threshold=0.9),
        "ReMDM": ReMDMScheduler(mask),
        "ReMDM, by confidence": ReMDMScheduler(mask, remasking="confidence"),
    }


def uniform_schedulers(vocab_size: int) -> dict[str, Any]:
    """Also of other kernels whose noise is not, or not only, the mask."""
    schedulers = {
        "uniform": D3PMUniformScheduler(vocab_size),
        "uniform plug-in": D3PMUniformScheduler(vocab_size, reverse_rule="plug_in"),
        "token DDIM": TokenDDIMScheduler(vocab_size),
        "token DDIM, eta 1": TokenDDIMScheduler(vocab_size, eta=1.0),
        "hybrid": D3PMHybridScheduler(vocab_size - 1, vocab_size - 1),
        "neighbors (ring)": D3PMNeighborScheduler(vocab_size, **ring(vocab_size)),
    }
    if vocab_size & (vocab_size - 1) == 0:
        schedulers["bit flips"] = D3PMBitFlipScheduler(vocab_size)
    return schedulers


def corrector_case(model, scheduler, noisy: Tensor, generator) -> Case:
    """The corrector at t = 0.5 and the predictor step from there, both of which call the model."""

    def go_to_corrector():
        scheduler.set_timesteps(STEPS - 1)  # 32 predictor steps and the correctors between them
        nowhere, nothing = torch.zeros_like(noisy, dtype=torch.bool), torch.zeros(0, model.config.vocab_size)
        for timestep in scheduler.timesteps[: scheduler.timesteps.tolist().index(TIME)].tolist():
            scheduler.step(nothing, timestep, noisy, positions=nowhere)

    def both():
        for _ in range(2):
            select_first_step(model, scheduler, noisy, TIME, generator)

    return Case(both, calls=2, prepare=go_to_corrector)


def first_hitting_case(model, masked: Tensor, generator) -> Case:
    """One event a row, on clocks that start at t = 0.5 with as many steps as there are tokens to come."""
    scheduler = FirstHittingScheduler(model.config.vocab_size - 1)
    steps = 2 * masked.shape[1]
    return Case(
        lambda: select_first_step(model, scheduler, masked, TIME, generator),
        prepare=lambda: scheduler.set_timesteps(steps),
    )


def stepping(scheduler, num_steps: int) -> Any:
    scheduler.set_timesteps(num_steps)
    return scheduler


def all_cases(model, size: Size) -> dict[str, Case]:
    """The table's lines by name; the first is the bare forward."""
    vocab_size, generator = model.config.vocab_size, torch.Generator().manual_seed(0)
    mask, next_time = vocab_size - 1, TIME - 1 / STEPS
    clean = torch.randint(0, mask, (size.batch, size.length), generator=generator)
    absorbing, uniform = absorbing_schedulers(vocab_size), uniform_schedulers(vocab_size)
    masked = absorbing["absorbing"].add_noise(clean, TIME, generator)
    unprompted = masked.clone()
    unprompted[:, : size.length // 4] = mask
    everything_masked = torch.full_like(clean, mask)
    cases = {"bare forward": Case(lambda: model(masked, TIME).logits)}

    def add(name: str, step: Callable, *arguments: Any, forwards: int = 1):
        cases[name] = Case(lambda: step(model, *arguments, generator), forwards=forwards)

    add("naive absorbing", naive_absorbing_step, masked, TIME, next_time)
    add("naive confidence", naive_confidence_step, masked, TIME, next_time)
    for name, scheduler in absorbing.items():
        add(name, select_first_step, stepping(scheduler, STEPS), masked, TIME)
    cases["first hitting"] = first_hitting_case(model, masked, generator)
    predictor_corrector = PredictorCorrectorAbsorbingScheduler(mask)
    cases["predictor-corrector, absorbing"] = corrector_case(model, predictor_corrector, masked, generator)
    only = stepping(D3PMAbsorbingScheduler(mask), 1)
    add("absorbing, all rows", select_first_step, only, everything_masked, 1.0)
    guided = stepping(D3PMAbsorbingScheduler(mask), STEPS)
    add("guided absorbing", guided_step, guided, masked, unprompted, TIME, forwards=2)
    add("guided, all rows", guided_step, only, everything_masked, unprompted, 1.0, forwards=2)
    noisy = uniform["uniform"].add_noise(clean, TIME, generator)
    add("naive uniform", naive_uniform_step, noisy, TIME, next_time)
    for name, scheduler in uniform.items():
        add(name, select_first_step, stepping(scheduler, STEPS), noisy, TIME)
    for rule in ("marginal", "plug_in"):
        last = stepping(D3PMUniformScheduler(vocab_size, num_train_timesteps=2, reverse_rule=rule), 2)
        name = "uniform, all rows" if rule == "marginal" else "uniform plug-in, all rows"
        add(name, select_first_step, last, noisy, TIME)
    predictor_corrector = PredictorCorrectorUniformScheduler(vocab_size)
    cases["predictor-corrector, uniform"] = corrector_case(model, predictor_corrector, noisy, generator)
    return cases


@torch.no_grad()
def step_costs(vocab_sizes: list[int], repetitions: int, size: Size) -> Iterator[dict[str, Any]]:
    """Yield a line for each vocabulary size and sampler: CPU milliseconds of a call and the same in bare forwards."""
    for vocab_size in vocab_sizes:
        cases = all_cases(random_model(size, vocab_size), size)
        runs = {name: case.run for name, case in cases.items()}
        interleaved(runs, 1, lambda name, cases=cases: cases[name].prepare())  # warm-up
        seconds = interleaved(runs, repetitions, lambda name, cases=cases: cases[name].prepare())
        forward = seconds["bare forward"]
        for name, case in cases.items():
            ratio = seconds[name] / (case.calls * case.forwards * forward)
            target = dict(zip((8_192, 50_258), TARGETS.get(name, ()), strict=False)).get(vocab_size)
            milliseconds = round(1000 * seconds[name] / case.calls)
            line = {"V": vocab_size, "step": name, "CPU ms": milliseconds, "forwards": round(ratio, 3)}
            yield line | verdict(ratio, target)
