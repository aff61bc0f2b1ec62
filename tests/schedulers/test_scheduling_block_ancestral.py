"""Laws of ancestral sampling in diffusers' own LLaDA2Pipeline: what is written, and that all of it is.

Shapes: K data tokens, L length of a block.
"""

import itertools

import numpy as np
import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from support.oracles import MarkovSource, chi_square_passes
from transformers import LlamaConfig, LlamaForCausalLM

from text_diffusers.schedulers.scheduling_block_ancestral import BlockAncestralScheduler

ROWS = 8_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class TableModel(torch.nn.Module):
    """The exact prediction of masked tokens of a source, whose mask has id K."""

    dtype = torch.float64
    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table, self.calls = table, 0

    def forward(self, input_ids, attention_mask, position_ids):
        self.calls += 1
        return type("Output", (), {"logits": self.table[tuple(input_ids.unbind(dim=1))]})


def stock_pipe(model, scheduler):
    pipe = LLaDA2Pipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def enumerated(source, num_steps):
    """{sequence: probability} of the reverse chain of the absorbing kernel, the step i revealing 1 / (n - i)."""
    mask, length = source.num_tokens, source.length
    table = source.masked_denoiser().exp().numpy()
    state = {(mask,) * length: 1.0}
    for step in range(num_steps):
        following = {}
        for x_t, mass in state.items():
            choices = []
            for position, token in enumerate(x_t):
                reveal = 1 / (num_steps - step)
                revealed = {k: reveal * table[x_t][position, k] for k in range(mask)} | {
                    mask: 1 - reveal
                }
                choices.append(revealed if token == mask else {token: 1.0})
            for x_s in itertools.product(*choices):
                probability = mass * np.prod(
                    [choice[token] for choice, token in zip(choices, x_s, strict=True)]
                )
                following[x_s] = following.get(x_s, 0.0) + probability
        state = following
    return state


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_the_stock_pipeline_writes_what_enumeration_says(num_steps):
    source = MarkovSource.golden()
    pipe = stock_pipe(TableModel(source.masked_denoiser()), BlockAncestralScheduler())
    sizes = {
        "gen_length": source.length,
        "block_length": source.length,
        "num_inference_steps": num_steps,
    }
    settings = {
        "temperature": 1.0,
        "mask_token_id": source.num_tokens,
        "output_type": "seq",
        "generator": seeded(0),
    }
    empty = torch.zeros(ROWS, 0, dtype=torch.long)
    written = pipe(input_ids=empty, editing_threshold=None, **sizes, **settings).sequences
    counts = [int((written == torch.tensor(s)).all(dim=1).sum()) for s in source.sequences]
    exact = enumerated(source, num_steps)
    probs = [
        exact.get(tuple(int(token) for token in sequence), 0.0) for sequence in source.sequences
    ]
    assert sum(counts) == ROWS and sum(probs) == pytest.approx(1)
    assert chi_square_passes(np.array(counts), np.array(probs))
    assert pipe.model.calls == num_steps


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0, "top_p": 0.9}, {"sampling_method": "greedy"}]
)
def test_a_language_model_fills_every_mask_and_keeps_the_prompt(settings):
    """With the defaults of the stock pipeline too, which asks for editing and a threshold."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=2, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight[39] *= 50  # would like to write masks
    pipe = stock_pipe(model, BlockAncestralScheduler())
    prompts = torch.randint(39, (5, 6), generator=seeded(1))
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append(tensors["block_x"].clone())
        return tensors

    output = pipe(
        input_ids=prompts,
        gen_length=18,
        block_length=8,
        num_inference_steps=4,
        mask_token_id=39,
        generator=seeded(2),
        output_type="seq",
        callback_on_step_end=watch,
        **settings,
    )
    assert output.sequences.shape == (5, 18) and not (output.sequences == 39).any()
    assert all(torch.equal(tokens[:, :6], prompts) for tokens in seen)
    for before, after in itertools.pairwise(seen):
        settled = before != 39
        assert torch.equal(before[settled], after[:, : before.shape[1]][settled])


def test_a_step_leaves_its_inputs_alone_and_says_what_it_revealed():
    scheduler = BlockAncestralScheduler(block_length=6)
    scheduler.set_timesteps(3)
    logits, sample = torch.randn(50, 6, 9, generator=seeded(0)), torch.full((50, 6), 8)
    sample[:, 0] = 3
    kept = logits.clone(), sample.clone()
    output = scheduler.step(
        logits, 0, sample, mask_token_id=8, temperature=1.0, generator=seeded(1)
    )
    assert torch.equal(logits, kept[0]) and torch.equal(sample, kept[1])
    assert torch.equal(output.transfer_index, output.prev_sample != sample)
    assert not output.transfer_index[:, 0].any() and not output.editing_transfer_index.any()
    probs = (
        logits[..., :8]
        .softmax(dim=-1)
        .gather(-1, output.prev_sample.clamp(max=7).unsqueeze(-1))
        .squeeze(-1)
    )
    torch.testing.assert_close(output.sampled_probs, torch.where(output.transfer_index, probs, 0.0))
    late = scheduler.step(logits, 3, sample, mask_token_id=8)
    assert torch.equal(late.prev_sample, sample) and not late.transfer_index.any()
    same = scheduler.step(
        logits, 0, sample, mask_token_id=8, temperature=1.0, generator=seeded(1), return_dict=False
    )
    assert torch.equal(same[0], output.prev_sample) and len(same) == 6


def test_it_swaps_with_the_stock_scheduler_by_from_config(tmp_path):
    ours = BlockAncestralScheduler.from_config(BlockRefinementScheduler(block_length=7).config)
    assert ours.config.block_length == 7
    ours.save_pretrained(tmp_path)
    assert BlockAncestralScheduler.from_pretrained(tmp_path).config.block_length == 7
