"""Exact laws of token schedulers on sources small enough to enumerate, and the checks that every one must pass.

Shapes: B batch, L sequence length, V vocabulary size, S = V^L states.
"""

import itertools

import numpy as np
import torch

from support.oracles import TableDenoiser, chi_square_passes, transition_matrix


def all_states(vocab_size: int, length: int) -> torch.Tensor:
    """(S, L) every sequence, in the order of counting."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


def counts_of(tokens: torch.Tensor, vocab_size: int) -> np.ndarray:
    """(S,) how often each sequence occurs among the rows of (B, L)."""
    counts = np.zeros((vocab_size,) * tokens.shape[1])
    np.add.at(counts, tuple(tokens.T.numpy()), 1)
    return counts.ravel()


def joint_kernel(by_position: torch.Tensor, states: torch.Tensor) -> np.ndarray:
    """(S, S) transition of whole sequences whose positions move independently, from (S, L, V)."""
    kernel = np.ones((len(states), len(states)))
    for position in range(states.shape[1]):
        kernel *= by_position[:, position].double().numpy()[:, states[:, position].numpy()]
    return kernel


def noisy_law(source, kernel: str, alpha: float) -> np.ndarray:
    """(S,) the exact q(x_t) of a source over all states, the mask being id K."""
    size = source.num_tokens + (kernel == "absorbing")
    matrix = transition_matrix(kernel, alpha, size, source.num_tokens)
    states = all_states(size, source.length).numpy()
    law = np.zeros(len(states))
    for sequence, prob in zip(source.sequences, source.probs, strict=True):
        law += prob * np.prod(matrix[sequence[None, :], states], axis=1)
    return law


def predictions_at(scheduler, source):
    """The exact denoiser of a source as a function of time; under "plug_in" the leave-one-out one."""
    if scheduler.corruption == "absorbing":
        table = source.masked_denoiser()
        return lambda t: table

    def uniform(t: float) -> torch.Tensor:
        alpha, size = float(scheduler.alpha(t)), source.num_tokens
        logits = source.uniform_denoiser(alpha)  # (V, ..., V, L, V)
        if scheduler.config.reverse_rule == "marginal":
            return logits
        seen = torch.tensor(
            transition_matrix("uniform", alpha, size)
        ).log()  # of q(x_t | x_0), symmetric
        states = all_states(size, source.length)
        return logits - seen[states].view(logits.shape)

    return uniform


def step_kernel(scheduler, source, timestep: float) -> np.ndarray:
    """(S, S) what the next step does to whole sequences, with the exact denoiser."""
    states = all_states(source.num_tokens + (scheduler.corruption == "absorbing"), source.length)
    logits = predictions_at(scheduler, source)(timestep)[tuple(states.T)]
    return joint_kernel(scheduler.reverse_probs(logits, timestep, states), states)


def output_law(scheduler, source, steps: int) -> np.ndarray:
    """(S,) the exact law of what `steps` steps write with the exact denoiser."""
    scheduler.set_timesteps(steps)
    states = all_states(source.num_tokens + (scheduler.corruption == "absorbing"), source.length)
    law = np.full(len(states), 1 / len(states))
    if scheduler.corruption == "absorbing":
        law = np.eye(len(states))[-1]
    for timestep in scheduler.timesteps.tolist():
        law = law @ step_kernel(scheduler, source, timestep)
        take_step(scheduler, timestep, states[-1:])
    return law


def take_step(scheduler, timestep: float, sample: torch.Tensor):
    """A step that is taken for the scheduler to count it."""
    size = scheduler.config.get("vocab_size") or scheduler.config.mask_token_id + 1
    return scheduler.step(torch.zeros(*sample.shape, size), timestep, sample).prev_sample


def divergence(source, law: np.ndarray) -> float:
    """KL(data || law) in nats a sequence, for a law over all states without the masked ones or with."""
    size = round(len(law) ** (1 / source.length))
    at = np.ravel_multi_index(tuple(source.sequences.T), (size,) * source.length)
    return float((source.probs * np.log(source.probs / law[at])).sum())


def draw(scheduler, source, steps: int, rows: int, seed: int = 0) -> torch.Tensor:
    """(rows, L) tokens written with the exact denoiser by the calls a pipeline makes."""
    generator = torch.Generator().manual_seed(seed)
    size = source.num_tokens + (scheduler.corruption == "absorbing")
    denoiser = TableDenoiser(predictions_at(scheduler, source), size)
    return sample_with(scheduler, denoiser, steps, (rows, source.length), generator)


def sample_with(scheduler, denoiser, steps: int, shape: tuple[int, int], generator) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    tokens = scheduler.prior(shape, generator)
    for timestep in scheduler.timesteps.tolist():
        positions = scheduler.select(timestep, tokens, generator)
        times = scheduler.model_timesteps(timestep, tokens)
        logits = denoiser(tokens, times, positions=positions).logits
        tokens = scheduler.step(
            logits, timestep, tokens, positions=positions, generator=generator
        ).prev_sample
    return tokens


def assert_steps_follow_reverse_probs(
    scheduler, logits, timestep, sample, rows: int = 8_000, dense: bool = False
):
    """Pearson's test of one step from a row `sample` (1, L) against `reverse_probs`; the step counts as taken."""
    generator = torch.Generator().manual_seed(11)
    want = scheduler.reverse_probs(logits, timestep, sample)[0]
    torch.testing.assert_close(want.sum(dim=-1), torch.ones_like(want[:, 0]))
    many, predictions = sample.expand(rows, -1), logits.expand(rows, -1, -1)
    if dense:
        drawn = scheduler.step(predictions, timestep, many, generator=generator).prev_sample
    else:
        positions = scheduler.select(timestep, many, generator)
        chosen = predictions[positions]
        drawn = scheduler.step(
            chosen, timestep, many, positions=positions, generator=generator
        ).prev_sample
    for position in range(sample.shape[1]):
        counts = np.bincount(drawn[:, position], minlength=want.shape[-1])
        assert chi_square_passes(counts, want[position].numpy()), (timestep, position)


def assert_inputs_are_kept_and_rows_are_their_own(make, vocab_size: int):
    """`make()` gives the scheduler; a row written alone is that row written among others, under list generators."""
    size, length = vocab_size, 4
    table = torch.randn(
        (size,) * length + (length, size), generator=torch.Generator().manual_seed(1)
    )
    written = []
    for seeds in ([5, 6, 7], [6]):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        written.append(
            sample_with(make(), TableDenoiser(table, size), 9, (len(seeds), length), generators)
        )
    assert torch.equal(written[0][1:2], written[1])

    scheduler = make()
    scheduler.set_timesteps(9)
    sample = scheduler.add_noise(torch.full((64, length), 1), 0.5, torch.Generator().manual_seed(2))
    logits = torch.randn(64, length, size, generator=torch.Generator().manual_seed(3))
    for timestep in scheduler.timesteps.tolist():
        before = sample.clone(), logits.clone()
        output = scheduler.step(
            logits, timestep, sample, generator=torch.Generator().manual_seed(4), return_dict=False
        )
        assert (
            isinstance(output, tuple)
            and torch.equal(sample, before[0])
            and torch.equal(logits, before[1])
        )


def assert_config_travels(scheduler, base, tmp_path, **own):
    """Saved and loaded, and swapped from the base scheduler by `from_config` and back."""
    cls = type(scheduler)
    scheduler.save_pretrained(tmp_path)
    loaded = cls.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in own} == own
    swapped = cls.from_config(base.config, **own)
    shared = set(base.config) - {"_use_default_values", "_class_name", "_diffusers_version"}
    assert all(swapped.config[name] == base.config[name] for name in shared)
    assert {name: swapped.config[name] for name in own} == own
    back = type(base).from_config(swapped.config)
    assert all(back.config[name] == base.config[name] for name in shared)
    assert cls in base.compatibles


def assert_pipeline_keeps_what_is_given(pipe, tokenizer):
    """Prompt and infilling: fixed tokens stay at every step, no mask is left, and batches do not mix."""
    mask, text = tokenizer.mask_token_id, "the [MASK] sat on [MASK] [MASK]"
    known = torch.tensor(tokenizer(text)["input_ids"])
    fixed, seen = known != mask, []
    filled = pipe(
        text=text,
        num_inference_steps=9,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=lambda _, i, t, tensors: seen.append(tensors["tokens"][0, 1:].clone()),
    )
    assert len(seen) == 9 and all(torch.equal(tokens[fixed], known[fixed]) for tokens in seen)
    assert not (filled.tokens == mask).any()

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    prompts = ["the cat", "a bird sang in the tree and", "she"]
    together = pipe(
        prompts, num_inference_steps=12, max_new_tokens=8, generator=generators(0, 1, 2)
    )
    assert not (together.tokens == mask).any()
    for seed, (prompt, whole) in enumerate(zip(prompts, together.texts, strict=True)):
        assert whole.startswith(prompt)
        alone = pipe(prompt, num_inference_steps=12, max_new_tokens=8, generator=generators(seed))
        assert alone.texts[0] == whole
