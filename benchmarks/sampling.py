"""What a whole sampling step costs, in units of one bare forward pass of the same model, in one run.

    python benchmarks/sampling.py [--vocab_sizes 8192 50258] [--threads 1]

One step from t = 0.5 of 64 even steps, batch 8 x 128, random weights, CPU time. "naive" is the textbook step: logits
at all positions, float64 Gumbel noise over all of them, then a choice of what to reveal.

Shapes: B batch, L length, V vocabulary size.
"""

import argparse
import statistics
import time

import torch

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextTransformerModel

BATCH, LENGTH, STEPS, TIME = 8, 128, 64, 0.5


def naive_step(model, scheduler, tokens, timestep, generator):
    """(B, L) next tokens: dense logits, float64 Gumbel-max at every position, reveal some."""
    logits = model(tokens, timestep).logits.double()
    mask = scheduler.config.mask_token_id
    logits[..., mask] = -torch.inf
    noise = -torch.log(-torch.log(torch.rand(logits.shape, dtype=torch.float64, generator=generator)))
    clean = (logits + noise).argmax(dim=-1)
    reveal = torch.rand(tokens.shape, generator=generator) < 1 / STEPS / TIME
    return torch.where((tokens == mask) & reveal, clean, tokens)


def select_first_step(model, scheduler, tokens, timestep, generator):
    """(B, L) next tokens, as TextDiffusionPipeline takes a step: rows and positions are selected before the model."""
    positions = scheduler.select(timestep, tokens, generator)
    rows = positions.any(dim=1)
    if not rows.any():
        return tokens
    logits = model(tokens[rows], timestep, positions=positions[rows]).logits
    return scheduler.step(logits, timestep, tokens, positions=positions, generator=generator).prev_sample


@torch.no_grad()
def measure(vocab_size: int, repetitions: int) -> list[tuple[str, float]]:
    """`(name, CPU seconds)` of a bare forward and of each step, the median of interleaved repetitions."""
    torch.manual_seed(0)
    model = TextTransformerModel(vocab_size, hidden_size=512, num_layers=6, num_attention_heads=8).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    absorbing, uniform = D3PMAbsorbingScheduler(vocab_size - 1), D3PMUniformScheduler(vocab_size)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, vocab_size - 1, (BATCH, LENGTH), generator=generator)
    for scheduler in (absorbing, uniform):
        scheduler.set_timesteps(STEPS)
    masked, noisy = (scheduler.add_noise(clean, TIME, generator) for scheduler in (absorbing, uniform))
    cases = {
        "bare forward": lambda: model(masked, TIME).logits,
        "absorbing, naive": lambda: naive_step(model, absorbing, masked, TIME, generator),
        "absorbing": lambda: select_first_step(model, absorbing, masked, TIME, generator),
        "uniform": lambda: select_first_step(model, uniform, noisy, TIME, generator),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for repetition in range(repetitions + 1):
        for name, case in cases.items():
            started = time.process_time()
            case()
            if repetition:  # the first is warm-up
                seconds[name].append(time.process_time() - started)
    return [(name, statistics.median(values)) for name, values in seconds.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab_sizes", type=int, nargs="+", default=[8_192, 50_258])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s), batch {BATCH} x {LENGTH}, 6 layers, width 512")
    print(f"{'V':>8}  {'case':<20} {'CPU ms':>8}  {'forwards':>8}")
    for vocab_size in options.vocab_sizes:
        rows = measure(vocab_size, options.repetitions)
        for name, seconds in rows:
            print(f"{vocab_size:>8}  {name:<20} {1000 * seconds:>8.0f}  {seconds / rows[0][1]:>8.2f}")


if __name__ == "__main__":
    main()
