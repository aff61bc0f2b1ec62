"""Laws of a denoiser of blocks in a pipeline: the cache changes nothing, blocks are written in order and read once.

Shapes: B rows, L sequence length, K data tokens.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_denoiser, mostly_slow
from support.oracles import chi_square_passes

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    FirstHittingScheduler,
    PredictorCorrectorAbsorbingScheduler,
    ReMDMScheduler,
    TextDiffusionPipeline,
)

BLOCK = 4
PROMPTS = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"]  # 1 to 13 tokens


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def block_pipe(tokenizer, denoiser=None, **changes):
    denoiser = denoiser or make_denoiser(tokenizer, **{"block_length": BLOCK} | changes)
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tokenizer):
    return block_pipe(tokenizer)


class Calls:
    """What the denoiser is asked: rows, finished tokens in its cache, and new tokens, of each call."""

    def __init__(self, pipe, change_logits=None):
        self.rows, self.known, self.new = [], [], []
        self.change_logits = change_logits
        self.hook = pipe.denoiser.register_forward_hook(self, with_kwargs=True)

    def __call__(self, model, inputs, settings, output):
        cache = settings.get("cache")
        self.rows.append(len(inputs[0]))
        self.known.append(0 if cache is None else cache.length)
        self.new.append(inputs[0].shape[1])
        if self.change_logits is not None:
            rows = settings["positions"].nonzero()[:, 0]
            self.change_logits(output.logits, inputs[3][rows] if inputs[3] is not None else rows)


def with_and_without(pipe, *args, seeds=4, **settings):
    """The outputs with and without the cache, asserted to be the same."""
    outputs = []
    for use_cache in (True, False):
        pipe.use_cache = use_cache
        outputs.append(pipe(*args, generator=[seeded(i) for i in range(seeds)], **settings))
    pipe.use_cache = True
    assert torch.equal(outputs[0].tokens, outputs[1].tokens)
    return outputs[0]


KINDS_OF_DENOISERS = {
    "plain": {},
    "times": {"time_conditioning": True},
    "labels": {"num_classes": 4},
}


@pytest.mark.parametrize(
    "steps, kind",
    mostly_slow(
        itertools.product([1, 3, 9], KINDS_OF_DENOISERS),
        fast=[(1, "labels"), (3, "plain"), (3, "times")],
    ),
)
def test_tokens_with_the_cache_equal_those_without(tokenizer, steps, kind):
    changes = KINDS_OF_DENOISERS[kind]
    pipe = block_pipe(tokenizer, **changes)
    labels = {"class_labels": [0, 1, 2, 3]} if "num_classes" in changes else {}
    output = with_and_without(pipe, PROMPTS, num_inference_steps=steps, max_new_tokens=11, **labels)
    assert all(text.startswith(prompt) for text, prompt in zip(output.texts, PROMPTS, strict=True))
    assert not (output.tokens == tokenizer.mask_token_id).any()
    with_and_without(
        pipe, num_return_sequences=4, num_inference_steps=steps, **labels and {"class_labels": 2}
    )


@pytest.mark.parametrize(
    "sampler, changes",
    [
        (ConfidenceScheduler, {"temperature": 0.0}),
        (FirstHittingScheduler, {}),
        (PredictorCorrectorAbsorbingScheduler, {}),
        (ReMDMScheduler, {"remasking": "confidence", "eta": 0.5}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_sampler_writes_in_blocks(pipe, tokenizer, sampler, changes):
    pipe.scheduler = sampler.from_config(pipe.scheduler.config, **changes)
    output = with_and_without(pipe, PROMPTS, num_inference_steps=BLOCK, max_new_tokens=11)
    assert all(text.startswith(prompt) for text, prompt in zip(output.texts, PROMPTS, strict=True))
    assert not (output.tokens == tokenizer.mask_token_id).any()


def test_a_text_is_the_same_alone_and_in_a_batch(pipe):
    for settings in ({"max_new_tokens": 9}, {}):
        settings["num_inference_steps"] = 5
        together = pipe(PROMPTS * 3, generator=[seeded(i) for i in range(12)], **settings).texts
        for i in (0, 1, 6, 11):
            assert pipe(PROMPTS[i % 4], generator=seeded(i), **settings).texts[0] == together[i]


def test_gaps_are_filled_in_and_blocks_without_a_gap_take_no_step(pipe, tokenizer):
    texts = ["the [MASK] sat on the mat and looked at [MASK]", "[MASK] was late"]
    output = with_and_without(pipe, text=texts, seeds=2, num_inference_steps=3, return_history=True)
    for row, text, i in zip(output.tokens, texts, range(2), strict=True):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        known = ids != tokenizer.mask_token_id
        assert torch.equal(row[1 : 1 + len(ids)][known], ids[known])
        assert (
            pipe(text=text, num_inference_steps=3, generator=seeded(i)).texts[0] == output.texts[i]
        )
    gaps = {int(i) // BLOCK for text in texts for i in torch.tensor([0, *tokenizer(text)["input_ids"]]).eq(
        tokenizer.mask_token_id).nonzero()}  # fmt: skip
    blocks = -(-output.tokens.shape[1] // BLOCK)
    assert len(output.history) == 1 + 3 * len(gaps) and len(gaps) < blocks


@pytest.mark.parametrize("prompt, first", [(None, 0), ("a bird sang in the tree", 3)])
def test_a_finished_block_is_read_once_and_each_call_is_of_one_block(
    pipe, tokenizer, prompt, first
):
    if prompt is not None:
        assert 1 + len(tokenizer(prompt)["input_ids"]) == first * BLOCK + 1
    steps, calls = 3, Calls(pipe, lambda logits, _: logits[:, tokenizer.eos_token_id].fill_(-1e9))
    pipe(prompt, num_inference_steps=steps, generator=seeded(0))
    blocks = 32 // BLOCK - first
    assert blocks <= len(calls.new) <= steps * blocks
    ends = [known + new for known, new in zip(calls.known, calls.new, strict=True)]
    assert ends == sorted(ends) and len(set(ends)) == blocks and ends[-1] == 32
    read = 0
    for known, end in zip(calls.known, ends, strict=True):
        assert known == read or known == end - BLOCK
        read = end - BLOCK  # all before the current block is now in the cache, and not read again
    assert sum(calls.new) == BLOCK * (len(calls.new) + 32 // BLOCK - 1)


def test_rows_without_a_selected_position_are_not_computed_but_their_cache_is(pipe):
    """At 40 steps a block, most steps select in one of two rows at most."""
    calls = Calls(pipe)
    pipe.use_cache = True
    with_and_without(
        pipe, num_return_sequences=4, seeds=4, num_inference_steps=40, max_new_tokens=15
    )
    cached = calls.rows[: len(calls.rows) // 2]
    assert len(cached) * 2 == len(calls.rows) and sum(cached) < 2 * len(cached)


def test_writing_stops_when_all_rows_have_ended(tokenizer):
    """Label 1 ends at once and leaves the batch; label 0 never ends."""

    def change(logits, labels):
        logits[:, tokenizer.eos_token_id] = torch.where(labels == 1, 1e9, -1e9)

    pipe = block_pipe(tokenizer, num_classes=2)
    calls = Calls(pipe, change)
    output = pipe(
        class_labels=[1, 1], num_inference_steps=3, generator=seeded(0), return_history=True
    )
    assert output.texts == ["", ""] and len(output.history) == 1 + 3 and set(calls.known) == {0}
    calls.rows.clear(), calls.known.clear()
    labels = [1, 0, 1]
    mixed = pipe(
        class_labels=labels, num_inference_steps=3, generator=[seeded(i) for i in range(3)]
    )
    later = [rows for rows, known in zip(calls.rows, calls.known, strict=True) if known > 0]
    assert set(later) == {1} and len(later) > 7
    alone = pipe(class_labels=0, num_inference_steps=3, generator=seeded(1))
    assert mixed.texts == ["", alone.texts[0], ""] and torch.equal(mixed.tokens[1], alone.tokens[0])
    pipe.use_cache = False
    again = pipe(
        class_labels=labels, num_inference_steps=3, generator=[seeded(i) for i in range(3)]
    )
    assert torch.equal(again.tokens, mixed.tokens)


def test_stream_and_history_show_every_step(pipe, tokenizer):
    settings = {"num_inference_steps": 4, "max_new_tokens": 10}
    frames = list(pipe.stream("the cat", generator=seeded(2), **settings))
    output = pipe("the cat", generator=seeded(2), return_history=True, **settings)
    assert frames[-1] == output.texts and len(output.history) == len(frames) + 1
    assert "[MASK]" in frames[0][0] and all(frame[0].startswith("the cat") for frame in frames)
    for before, after in itertools.pairwise(output.history):
        changed = (before != after)[0].nonzero().flatten()
        assert len(set((changed // BLOCK).tolist())) <= 1  # one block at a time
        assert (before[0, changed] == tokenizer.mask_token_id).all()


def test_a_callback_that_changes_a_finished_block_changes_what_is_read(pipe, tokenizer):
    letter = tokenizer("z")["input_ids"][0]
    seen = []

    def overwrite(pipe, step, timestep, tensors):
        seen.append(timestep)
        tokens = tensors["tokens"].clone()
        tokens[:, 5] = letter
        return (
            {"tokens": tokens} if step == 7 else None
        )  # in the third block, of a token of the second

    calls = Calls(pipe)
    settings = {"num_inference_steps": 3, "max_new_tokens": 15, "callback_on_step_end": overwrite}
    settings["return_history"] = True
    pipe.denoiser.requires_grad_(False)
    Calls(pipe, lambda logits, _: logits[:, tokenizer.eos_token_id].fill_(-1e9))
    output = with_and_without(pipe, num_return_sequences=4, **settings)
    assert (output.tokens[:, 5] == letter).all()
    assert seen[:12] == pytest.approx([1, 2 / 3, 1 / 3] * 4)
    known = calls.known[: calls.known.index(12)]
    assert 4 in known[known.index(8) + 1 :]  # the second block was read again


class TableCache:
    """What the stand-in has read: the tokens themselves."""

    def __init__(self):
        self.length, self.tokens = 0, None

    def view(self, rows):
        chosen = TableCache()
        chosen.length, chosen.tokens = self.length, self.tokens[rows]
        return chosen

    def keep(self, rows):
        self.tokens = self.tokens[rows]


class BlockTable(torch.nn.Module):
    """Looks up p(token | finished tokens, block): `table` (K + 1, ..., K + 1, L, K), later blocks being masks.

    A call sees only its input and what its cache has kept of earlier calls. Ids 1..K stand for 0..K-1.
    """

    def __init__(self, table, tokenizer, block_length):
        super().__init__()
        self.table, self.mask = table, tokenizer.mask_token_id
        config = {"vocab_size": len(tokenizer), "max_length": 4, "block_length": block_length}
        self.config = type("Config", (), config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def new_cache(self, capacity):
        return TableCache()

    @property
    def device(self):
        return self.anchor.device

    def forward(self, input_ids, timestep, attention_mask, class_labels, positions, cache):
        start = 0 if cache is None else cache.length
        before = input_ids[:, :0] if start == 0 else cache.tokens[:, :start]
        seen = torch.cat([before, input_ids], dim=1)
        if cache is not None:
            cache.tokens = seen.clone()
        length, size = self.table.shape[-2], self.table.shape[-1]
        pattern = torch.full((len(seen), length), size)
        ids = seen[:, 1:]  # after the start token
        pattern[:, : ids.shape[1]] = torch.where(ids == self.mask, size, ids - 1)
        found = self.table[tuple(pattern.T)]  # (B, L, K)
        logits = torch.full((*seen.shape, self.config.vocab_size), -torch.inf, dtype=torch.float64)
        logits[:, 1:, 1 : size + 1] = found[:, : ids.shape[1]]
        return type("Output", (), {"logits": logits[:, start:][positions]})()


def block_wise_law(table, block_length, steps):
    """(K, ..., K) probabilities of the texts of block-wise ancestral sampling, by going through all its outcomes."""
    length, size = table.shape[-2], table.shape[-1]
    probs = torch.as_tensor(table).softmax(dim=-1).numpy()
    states = {(size,) * length: 1.0}
    for start in range(0, length + 1, block_length):
        block = [
            p for p in range(start - 1, start - 1 + block_length) if 0 <= p < length
        ]  # the start token is first
        for step in range(steps):
            reveal, reached = 1 / (steps - step), {}
            for state, weight in states.items():
                masked = [p for p in block if state[p] == size]
                for choice in itertools.product([False, True], repeat=len(masked)):
                    shown = [p for p, chosen in zip(masked, choice, strict=True) if chosen]
                    chance = (
                        weight * reveal ** len(shown) * (1 - reveal) ** (len(masked) - len(shown))
                    )
                    for values in itertools.product(range(size), repeat=len(shown)):
                        after, likely = list(state), chance
                        for position, value in zip(shown, values, strict=True):
                            after[position], likely = value, likely * probs[state][position, value]
                        reached[tuple(after)] = reached.get(tuple(after), 0.0) + likely
            states = reached
    law = np.zeros((size,) * length)
    for state, weight in states.items():
        if weight > 0:
            law[state] = weight
    return law


@pytest.mark.parametrize(
    "block_length, steps, use_cache",
    mostly_slow(
        [
            (*sizes, cached)
            for sizes in [(1, 1), (2, 1), (2, 3), (4, 2)]
            for cached in (True, False)
        ],
        fast=[(1, 1, True), (2, 3, False)],
    ),
)
def test_samples_follow_the_enumerated_law_of_block_wise_sampling(
    tokenizer, block_length, steps, use_cache
):
    table = torch.randn((4, 4, 4, 3, 3), generator=seeded(0), dtype=torch.float64) * 1.5
    pipe = block_pipe(tokenizer, BlockTable(table, tokenizer, block_length))
    pipe.use_cache = use_cache
    law, rows = block_wise_law(table, block_length, steps), 3000
    assert law.sum() == pytest.approx(1)
    settings = {"max_new_tokens": 3, "num_inference_steps": steps, "output_type": "tokens"}
    tokens = pipe(num_return_sequences=rows, generator=seeded(0), **settings).tokens[:, 1:] - 1
    counts = np.zeros_like(law)
    np.add.at(counts, tuple(tokens.T.numpy()), 1)
    assert chi_square_passes(counts, law)
    others = {(1, 1): (4, 2), (2, 1): (2, 3), (2, 3): (2, 1), (4, 2): (1, 1)}[block_length, steps]
    assert not chi_square_passes(
        counts, block_wise_law(table, *others)
    )  # the law tells these apart


def test_a_saved_pipeline_writes_the_same(pipe, tokenizer, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "max_new_tokens": 9}
    want = pipe("the cat", generator=seeded(4), **settings).tokens
    assert torch.equal(loaded("the cat", generator=seeded(4), **settings).tokens, want)
    assert loaded.denoiser.config.block_length == BLOCK


def test_the_progress_bar_counts_the_steps_of_all_blocks(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    pipe(num_inference_steps=2, max_new_tokens=9, generator=seeded(0))  # 10 tokens, three blocks
    assert "/6" in capsys.readouterr().err


def test_what_needs_a_denoiser_without_blocks_is_refused(pipe):
    with pytest.raises(ValueError, match="must fit into the model's 32 tokens"):
        pipe(max_new_tokens=32)
    with pytest.raises(ValueError, match="`controls` must be left out for a denoiser with blocks"):
        pipe(controls=lambda logits, state: logits)
    with pytest.raises(
        ValueError,
        match='`guide_by` must be "label" or "masked_prompt" for a denoiser with blocks.*got \'prompt\'',
    ):
        pipe("the cat", guidance_scale=2.0)


class GuidedDenoiser(torch.nn.Module):
    """A denoiser with blocks whose predictions are guided from within: two plain calls for each one."""

    def __init__(self, denoiser, scale):
        super().__init__()
        self.denoiser = denoiser
        self.scale = scale
        self.config = denoiser.config
        self.device = denoiser.device
        self.dtype = denoiser.dtype

    def forward(self, input_ids, timestep, attention_mask, class_labels, **options):
        no_label = torch.full_like(class_labels, self.config.num_classes)
        cond, uncond = (
            self.denoiser(input_ids, timestep, attention_mask, labels, **options).logits
            for labels in (class_labels, no_label)
        )
        return SimpleNamespace(logits=uncond + self.scale * (cond - uncond))


@pytest.mark.parametrize(
    "scale, use_cache",
    mostly_slow(
        itertools.product([0.0, 1.0, 2.5], [True, False]),
        fast=[(0.0, True), (1.0, True), (2.5, True), (2.5, False)],
    ),
)
def test_guidance_by_labels_is_that_of_a_denoiser_that_guides_itself(tokenizer, scale, use_cache):
    pipe = block_pipe(tokenizer, num_classes=2)
    pipe.use_cache = use_cache
    itself = block_pipe(tokenizer, GuidedDenoiser(pipe.denoiser, scale))
    itself.use_cache = False
    settings = {"class_labels": [0, 1], "num_inference_steps": 3, "max_new_tokens": 10}
    want = itself(["the cat", "she"], generator=seeded(0), **settings).tokens
    got = pipe(
        ["the cat", "she"], generator=seeded(0), guide_by="label", guidance_scale=scale, **settings
    ).tokens
    assert torch.equal(got, want)
    assert not torch.equal(want, itself(["the cat", "she"], generator=seeded(1), **settings).tokens)
