"""What a whole sampling step costs, in units of a bare forward pass of the same model: `sampling.py --parts steps`.

One step from t = 0.5 of 64, random weights, all samplers in turn. A bare forward gives all logits, (B, L, V). "naive"
is the textbook step on all logits in float64, written out here. "all rows" is a step that needs a prediction at every
position: for the uniform kernel the last, from 0.5 to 0; for the absorbing one the only, from 1 to 0.

Shapes: B batch, L length, V vocabulary size, N selected positions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from parts.common.results import Record
from parts.common.sampling_step import select_first_step, selected_logits
from parts.sampling.measuring import Size, interleaved, random_model, verdict
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

# A step in the middle: half of the positions are masks.
STEPS = 64
TIME = 0.5
NEXT_TIME = TIME - 1 / STEPS
GUIDANCE_SCALE = 2.0
BARE_FORWARD = "bare forward"
# The most that a step may cost, by vocabulary size.
TARGETS = {
    "absorbing": {8_192: 0.85, 50_258: 0.50},
    "confidence, greedy": {8_192: 0.95, 50_258: 0.85},
    "uniform, all rows": {8_192: 1.06, 50_258: 1.20},
    "uniform plug-in, all rows": {8_192: 1.06, 50_258: 1.20},
    "absorbing, all rows": {8_192: 1.10, 50_258: 1.35},
    "guided absorbing": {8_192: 1.05, 50_258: 1.10},
}


# --- textbook steps


def naive_absorbing_step(
    model,
    tokens: Tensor,
    timestep: float,
    next_timestep: float,
    generator,
) -> Tensor:
    """(B, L): float64 Gumbel-max at every position, the masks being V - 1, then a choice of what to reveal."""
    logits = model(tokens, timestep).logits.double()  # (B, L, V)
    mask = logits.shape[-1] - 1
    logits[..., mask] = -torch.inf

    # The argmax of logits with Gumbel noise is a sample of their softmax.
    uniform = torch.rand(logits.shape, dtype=torch.float64, generator=generator)
    clean = (logits - torch.log(-torch.log(uniform))).argmax(dim=-1)  # (B, L)

    # A mask is revealed with the share of the remaining time that the step takes.
    reveal_prob = (timestep - next_timestep) / timestep
    reveal = torch.rand(tokens.shape, generator=generator) < reveal_prob
    return torch.where((tokens == mask) & reveal, clean, tokens)


def naive_confidence_step(
    model,
    tokens: Tensor,
    timestep: float,
    next_timestep: float,
    generator,
) -> Tensor:
    """(B, L): float64 softmax and `multinomial` at every position, then the surest of the masks of each row."""
    logits = model(tokens, timestep).logits.double()
    mask = logits.shape[-1] - 1
    logits[..., mask] = -torch.inf

    probs = logits.softmax(dim=-1)  # (B, L, V)
    clean = torch.multinomial(probs.flatten(0, 1), 1, generator=generator)
    clean = clean.view(tokens.shape)  # (B, L)

    # Confidence is the probability of the token that was drawn.
    confidence = probs.gather(-1, clean.unsqueeze(-1)).squeeze(-1)  # (B, L)
    confidence = confidence.masked_fill(tokens != mask, -1.0)

    next_tokens = tokens.clone()
    num_masks_of_rows = (tokens == mask).sum(dim=1).tolist()
    for row, num_masks in enumerate(num_masks_of_rows):
        # Masks stay in proportion to the time.
        num_left = round(num_masks * next_timestep / timestep)
        surest = confidence[row].topk(num_masks - num_left).indices
        next_tokens[row, surest] = clean[row, surest]
    return next_tokens


def naive_uniform_posterior(
    logits: Tensor,
    tokens: Tensor,
    alpha_t: float,
    alpha_s: float,
) -> Tensor:
    """p(x_s | x_t), (B, L, V), float64: Bayes' rule with the prediction in the place of x_0."""
    vocab_size = logits.shape[-1]
    probs = logits.double().softmax(dim=-1)  # (B, L, V)

    # p(x_t | x_s): between s and t a token stays, or becomes any other.
    survival = alpha_t / alpha_s
    likelihood = survival * F.one_hot(tokens, vocab_size) + (1 - survival) / vocab_size

    # p(x_s), the noise of s added to the prediction
    joint = likelihood * (alpha_s * probs + (1 - alpha_s) / vocab_size)
    return joint / joint.sum(dim=-1, keepdim=True)


def naive_uniform_step(
    model,
    tokens: Tensor,
    timestep: float,
    next_timestep: float,
    generator,
) -> Tensor:
    """(B, L) of the linear noise schedule, from the whole posterior by `multinomial`."""
    logits = model(tokens, timestep).logits
    posterior = naive_uniform_posterior(logits, tokens, 1 - timestep, 1 - next_timestep)
    next_tokens = torch.multinomial(posterior.flatten(0, 1), 1, generator=generator)
    return next_tokens.view(tokens.shape)


# --- steps of the pipelines


def guided_step(
    model,
    scheduler,
    tokens: Tensor,
    unprompted: Tensor,
    timestep: float,
    generator,
    scale: float = GUIDANCE_SCALE,
) -> Tensor:
    """(B, L): classifier-free guidance as in `TextDiffusionPipeline`, from one batch of twice the rows."""
    positions = scheduler.select(timestep, tokens, generator)

    # Both predictions are needed at the same positions.
    both = torch.cat([tokens, unprompted])  # (2B, L)
    times = scheduler.model_timesteps(timestep, tokens).repeat(2)
    logits = selected_logits(model, both, times, positions.repeat(2, 1))  # (2N, V)

    cond, uncond = logits.chunk(2)
    guided = guide(cond, uncond, torch.full((len(cond),), scale))
    return scheduler.step(
        guided, timestep, tokens, positions=positions, generator=generator
    ).prev_sample


# --- samplers


def absorbing_schedulers(vocab_size: int) -> dict[str, Any]:
    """Samplers whose noise is the mask, the last id."""
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
    """Samplers of the uniform kernel, and of other kernels whose noise is not, or not only, the mask."""
    schedulers = {
        "uniform": D3PMUniformScheduler(vocab_size),
        "uniform plug-in": D3PMUniformScheduler(vocab_size, reverse_rule="plug_in"),
        "token DDIM": TokenDDIMScheduler(vocab_size),
        "token DDIM, eta 1": TokenDDIMScheduler(vocab_size, eta=1.0),
        "hybrid": D3PMHybridScheduler(vocab_size - 1, vocab_size - 1),
        "neighbors (ring)": ring_scheduler(vocab_size),
    }
    # Bits of the ids can flip only where every number of so many bits is a token.
    if vocab_size & (vocab_size - 1) == 0:
        schedulers["bit flips"] = D3PMBitFlipScheduler(vocab_size)
    return schedulers


def ring_scheduler(vocab_size: int) -> D3PMNeighborScheduler:
    """The neighbour kernel on a graph in which each token has two neighbours."""
    ids = torch.arange(vocab_size)
    after = (ids + 1) % vocab_size
    sources = torch.cat([ids, after])
    targets = torch.cat([after, ids])
    edges = torch.stack([sources, targets])  # (2, 2V), each edge both ways
    rates = torch.ones(edges.shape[1])
    return D3PMNeighborScheduler(vocab_size, edges=edges, rates=rates)


def in_steps(scheduler: Any, num_steps: int) -> Any:
    """The scheduler, set to that number of steps."""
    scheduler.set_timesteps(num_steps)
    return scheduler


# --- the lines of the table


@dataclass
class Case:
    """A line of the table.

    Attributes:
        run: what is timed.
        calls: how often it calls the model.
        forwards: bare forward passes that a call is compared with.
        prepare: what is done before, untimed.
    """

    run: Callable[[], Any]
    calls: int = 1
    forwards: int = 1
    prepare: Callable[[], Any] = lambda: None


def corrector_case(
    model,
    scheduler,
    noisy: Tensor,
    generator,
) -> Case:
    """The corrector at t = 0.5 and the predictor step from there, both of which call the model."""

    def go_to_corrector():
        # 32 predictor steps and the correctors between them
        scheduler.set_timesteps(STEPS - 1)

        # Its steps must be taken in order, so those before are taken without a change.
        nowhere = torch.zeros_like(noisy, dtype=torch.bool)
        no_logits = torch.zeros(0, model.config.vocab_size)
        timesteps = scheduler.timesteps.tolist()
        for timestep in timesteps[: timesteps.index(TIME)]:
            scheduler.step(no_logits, timestep, noisy, positions=nowhere)

    def correct_and_predict():
        # Both steps begin at the same time, the corrector first.
        for _ in range(2):
            select_first_step(model, scheduler, noisy, TIME, generator)

    return Case(correct_and_predict, calls=2, prepare=go_to_corrector)


def first_hitting_case(model, masked: Tensor, generator) -> Case:
    """One event a row, on clocks that start at t = 0.5 with as many steps as there are tokens to come."""
    scheduler = FirstHittingScheduler(model.config.vocab_size - 1)
    num_steps = 2 * masked.shape[1]
    return Case(
        lambda: select_first_step(model, scheduler, masked, TIME, generator),
        prepare=lambda: scheduler.set_timesteps(num_steps),
    )


def all_cases(model, size: Size) -> dict[str, Case]:
    """The table's lines by name; the first is the bare forward."""
    vocab_size = model.config.vocab_size
    mask = vocab_size - 1
    generator = torch.Generator().manual_seed(0)
    cases = {}

    # All samplers draw from the same generator, and see the same noisy rows.
    def add(
        name: str,
        step: Callable,
        *arguments: Any,
        forwards: int = 1,
    ):
        cases[name] = Case(lambda: step(model, *arguments, generator), forwards=forwards)

    # 1. Absorbing noise
    absorbing = absorbing_schedulers(vocab_size)
    clean = torch.randint(0, mask, (size.batch, size.length), generator=generator)  # (B, L)
    masked = absorbing["absorbing"].add_noise(clean, TIME, generator)  # (B, L)
    cases[BARE_FORWARD] = Case(lambda: model(masked, TIME).logits)
    add("naive absorbing", naive_absorbing_step, masked, TIME, NEXT_TIME)
    add("naive confidence", naive_confidence_step, masked, TIME, NEXT_TIME)

    for name, scheduler in absorbing.items():
        add(name, select_first_step, in_steps(scheduler, STEPS), masked, TIME)

    # These two have clocks of their own, which are set before each call.
    cases["first hitting"] = first_hitting_case(model, masked, generator)
    predictor_corrector = PredictorCorrectorAbsorbingScheduler(mask)
    cases["predictor-corrector, absorbing"] = corrector_case(
        model, predictor_corrector, masked, generator
    )

    # 2. All rows, the dearest step
    only_step = in_steps(D3PMAbsorbingScheduler(mask), 1)
    all_masked = torch.full_like(clean, mask)  # (B, L)

    # 3. Guidance by a prompt of a quarter of the row, which the unconditional half of the batch does not see
    unprompted = masked.clone()
    unprompted[:, : size.length // 4] = mask
    guided = in_steps(D3PMAbsorbingScheduler(mask), STEPS)
    add("absorbing, all rows", select_first_step, only_step, all_masked, 1.0)
    add("guided absorbing", guided_step, guided, masked, unprompted, TIME, forwards=2)
    add("guided, all rows", guided_step, only_step, all_masked, unprompted, 1.0, forwards=2)

    # 4. Uniform noise and its like
    uniform = uniform_schedulers(vocab_size)
    noisy = uniform["uniform"].add_noise(clean, TIME, generator)  # (B, L)
    add("naive uniform", naive_uniform_step, noisy, TIME, NEXT_TIME)
    for name, scheduler in uniform.items():
        add(name, select_first_step, in_steps(scheduler, STEPS), noisy, TIME)

    # The last step, from 0.5 to 0, may change every position.
    for name, rule in {"uniform": "marginal", "uniform plug-in": "plug_in"}.items():
        scheduler = D3PMUniformScheduler(vocab_size, num_train_timesteps=2, reverse_rule=rule)
        last_step = in_steps(scheduler, 2)
        add(f"{name}, all rows", select_first_step, last_step, noisy, TIME)

    predictor_corrector = PredictorCorrectorUniformScheduler(vocab_size)
    cases["predictor-corrector, uniform"] = corrector_case(
        model, predictor_corrector, noisy, generator
    )
    return cases


@torch.no_grad()
def step_costs(vocab_sizes: list[int], repetitions: int, size: Size) -> Iterator[Record]:
    """Yield a line for each vocabulary size and sampler: CPU milliseconds of a call and the same in bare forwards."""
    for vocab_size in vocab_sizes:
        model = random_model(replace(size, vocab_size=vocab_size))
        cases = all_cases(model, size)
        runs = {name: case.run for name, case in cases.items()}

        def prepare(name: str, cases: dict[str, Case] = cases):
            cases[name].prepare()

        # The first turn allocates.
        interleaved(runs, 1, prepare)
        seconds = interleaved(runs, repetitions, prepare)

        for name, case in cases.items():
            ratio = seconds[name] / (case.calls * case.forwards * seconds[BARE_FORWARD])
            line = {
                "V": vocab_size,
                "step": name,
                "CPU ms": round(1000 * seconds[name] / case.calls),
                "forwards": round(ratio, 3),
            }
            target = TARGETS.get(name, {}).get(vocab_size)
            yield line | verdict(ratio, target)
