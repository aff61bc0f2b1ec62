"""Laws of diffusers' discrete schedulers in our pipeline: their own loops by hand, and exact enumeration.

Shapes: K data tokens, L length, S = K^L sequences.
"""

import itertools

import numpy as np
import pytest
import torch
from conftest import slow
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler
from support.language_models import chat_pipe
from support.masked_lms import make_masked_lm
from support.oracles import (
    MarkovSource,
    TableDenoiser,
    bayes_posterior,
    chi_square_passes,
    transition_matrix,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextDiffusionPipeline
from text_diffusers.pipelines.scheduler_adapters import StockTokenScheduler

STOCK = {
    "block": lambda: BlockRefinementScheduler(),
    "ddim": lambda: DiscreteDDIMScheduler(),
    "entropy": lambda: EntropyBoundScheduler(entropy_bound=2.0),
}
LETTERS = 2_000


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def letter_pipe(table, scheduler, num_tokens=3):
    """A pipeline over K letters, without start and end token, whose predictions are looked up."""
    vocabulary = {letter: i for i, letter in enumerate("abcdefgh"[:num_tokens])}
    vocabulary |= {"[PAD]": num_tokens, "[MASK]": num_tokens + 1}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="[PAD]", mask_token="[MASK]"
    )
    pipe = TextDiffusionPipeline(tokenizer, TableDenoiser(table, num_tokens + 2), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def written(pipe, sequences, **settings):
    """(S,) how often each sequence is written."""
    length = sequences.shape[1]
    settings |= {"output_type": "tokens", "max_new_tokens": length, "generator": seeded(0)}
    tokens = pipe(num_return_sequences=LETTERS, **settings).tokens
    counts = np.array([int((tokens == torch.tensor(s)).all(dim=1).sum()) for s in sequences])
    assert counts.sum() == LETTERS
    return counts


@pytest.fixture
def source():
    return MarkovSource(
        [0.6, 0.3, 0.1], [[0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.3, 0.3, 0.4]], length=2
    )


def reverse_chain(source, num_steps):
    """(S,) exact distribution after the reverse chain of the uniform kernel, alpha = 1 - t, x_0 being summed out."""
    size = source.num_tokens
    state = np.full(len(source.sequences), 1 / len(source.sequences))
    for step in range(num_steps):
        alpha_t, alpha_s = step / num_steps, (step + 1) / num_steps
        between, until = (
            transition_matrix("uniform", a, size) for a in (alpha_t / alpha_s, alpha_s)
        )
        clean = source.uniform_denoiser(alpha_t).exp().numpy()
        following = np.zeros_like(state)
        for x_t, mass in zip(source.sequences, state, strict=True):
            rows = [
                sum(
                    clean[tuple(x_t)][i, k]
                    * bayes_posterior(between, until, x_t[i], np.eye(size)[k])
                    for k in range(size)
                )
                for i in range(source.length)
            ]
            following += mass * np.prod(
                [row[source.sequences[:, i]] for i, row in enumerate(rows)], axis=0
            )
        state = following
    return state


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 4])
def test_discrete_ddim_writes_what_our_uniform_scheduler_writes(source, num_steps):
    """Both follow the enumerated reverse chain, with the exact denoiser of each time."""
    exact = reverse_chain(source, num_steps)
    assert 0.5 * np.abs(exact - source.probs).sum() > 0.01  # few steps are not yet the source
    for scheduler in (DiscreteDDIMScheduler(), D3PMUniformScheduler(source.num_tokens)):
        pipe = letter_pipe(lambda t: source.uniform_denoiser(1 - t), scheduler)
        assert chi_square_passes(
            written(pipe, source.sequences, num_inference_steps=num_steps), exact
        )


@pytest.mark.parametrize("num_steps", [1, slow(2)])
def test_the_entropy_bound_accepts_what_enumeration_says_and_leaves_no_noise(source, num_steps):
    temperature, bound = 0.7, 0.0  # the surest position, and those without entropy
    states = [tuple(x) for x in itertools.product(range(source.num_tokens), repeat=source.length)]
    state = dict.fromkeys(states, 1 / len(states))
    for step in range(num_steps):
        table = (source.uniform_denoiser(step / num_steps) / temperature).softmax(dim=-1).numpy()
        following = dict.fromkeys(states, 0.0)
        for x_t, mass in state.items():
            probs = table[x_t].copy()  # (L, K)
            entropy = -(probs * np.log(probs)).sum(axis=1)
            if step < num_steps - 1:
                probs[entropy > entropy.min()] = 1 / source.num_tokens
            for x_s in states:
                following[x_s] += mass * np.prod([probs[i, token] for i, token in enumerate(x_s)])
        state = following
    scheduler = EntropyBoundScheduler(entropy_bound=bound, t_max=temperature, t_min=temperature)
    pipe = letter_pipe(lambda t: source.uniform_denoiser(1 - t), scheduler)
    counts = written(pipe, source.sequences, num_inference_steps=num_steps)
    assert chi_square_passes(counts, np.array([state[tuple(s)] for s in source.sequences]))


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.05}, {"threshold": 0.3, "editing_threshold": 0.02}]
)
@torch.no_grad()
def test_greedy_block_refinement_equals_the_loop_of_diffusers_by_hand(pipe, tokenizer, settings):
    texts = ["the [MASK] [MASK] on the [MASK] and [MASK]", "the" + " [MASK]" * 8 + " train"]
    torch.manual_seed(5)
    for parameter in pipe.denoiser.parameters():  # a model that changes its mind
        torch.nn.init.normal_(parameter, std=0.6)
    pipe.scheduler = BlockRefinementScheduler(**settings)
    pipe.scheduler.register_to_config(temperature=0.0)
    mask, num_steps, edits = tokenizer.mask_token_id, 5, 0
    output = pipe(text=texts, num_inference_steps=num_steps, return_history=True)
    for row, text in enumerate(texts):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        block = (ids == mask)[0]
        by_hand = BlockRefinementScheduler(**settings)
        by_hand.set_timesteps(num_steps, block_length=int(block.sum()))
        for step in range(num_steps):
            logits = pipe.denoiser(ids).logits[:, block]
            logits[..., mask] = -torch.inf
            stepped = by_hand.step(logits, step, ids[:, block], mask_token_id=mask)
            edits += int(stepped.editing_transfer_index.sum())
            ids[:, block] = stepped.prev_sample
            assert torch.equal(output.history[step + 1][row, : ids.shape[1]], ids[0])
        assert not (ids == mask).any()
    assert (edits > 0) == ("editing_threshold" in settings)


@pytest.mark.parametrize("kind", ["bidirectional", "block"])
def test_editing_stops_with_the_first_step_that_changes_nothing(kind):
    """The tokens are those of all steps, one stable row leaves the others, and the model is asked less often."""
    pipe = chat_pipe(attention=kind)
    pipe.scheduler = BlockRefinementScheduler(threshold=0.3, editing_threshold=0.35)
    pipe.scheduler.register_to_config(temperature=0.0)
    asked = []
    pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    prompts = [f"w{8 + index} w{20 + index}" for index in range(6)]
    settings = {"max_new_tokens": 12, "num_inference_steps": 24, "suppress_tokens": [2, 3]}
    tokens = pipe(prompts, **settings).tokens
    num_asked, num_rows = len(asked), sum(asked)

    def forget(self, tokens, prev_sample, positions):
        self.stable_rows = None

    asked.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StockTokenScheduler, "_note_stable_rows", forget)
        assert torch.equal(pipe(prompts, **settings).tokens, tokens)
    assert num_asked <= len(asked) and num_rows < 0.8 * sum(asked)


def test_block_refinement_predicts_the_mask_where_it_is_allowed_to():
    """LLaDA2.0 was sampled so: a mask that is predicted takes its share of the probability, and stays one."""
    logits = torch.tensor([[[1.0, 3.0, 4.0], [0.0, 5.0, 0.0]]])  # (B = 1, L = 2, V), 2 is the mask
    for allowed, want in ((False, [1, 1]), (True, [2, 1])):
        scheduler = BlockRefinementScheduler(threshold=0.5)
        scheduler.register_to_config(temperature=0.0, allow_mask=allowed)
        adapter = StockTokenScheduler(scheduler, mask_token_id=2, vocab_size=2)
        adapter.set_timesteps(2)
        step = adapter.step(logits, 1.0, torch.tensor([[2, 2]]))
        assert step.prev_sample.tolist() == [want]


@pytest.mark.slow
def test_block_refinement_samples_from_the_prediction_unless_told_otherwise(source):
    """A single token at temperature 1 by default, 0.5 if the config says so, and the most probable at 0."""
    table = torch.log(
        torch.tensor([[[0.5, 0.3, 0.2, 0.0, 0.0]]])
    )  # (1, L = 1, V), whatever the input
    sequences = np.arange(3)[:, None]
    for temperature, power in ((None, 1), (0.5, 2)):
        pipe = letter_pipe(table.expand(5, 1, 5), BlockRefinementScheduler())
        if temperature is not None:
            pipe.scheduler.register_to_config(temperature=temperature)
        exact = np.array([0.5, 0.3, 0.2]) ** power
        assert chi_square_passes(
            written(pipe, sequences, num_inference_steps=1), exact / exact.sum()
        )
    pipe.scheduler.register_to_config(temperature=0.0)
    assert written(pipe, sequences, num_inference_steps=1).tolist() == [LETTERS, 0, 0]


@pytest.mark.parametrize("name", STOCK)
def test_a_text_is_the_same_alone_and_in_a_batch_and_prompts_stay(pipe, name):
    pipe.scheduler = STOCK[name]()
    prompts = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"]
    settings = {"num_inference_steps": 5, "max_new_tokens": 7}
    together = pipe(prompts, generator=[seeded(i) for i in range(4)], **settings)
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=seeded(i), **settings)
        assert alone.texts[0] == together.texts[i] and alone.texts[0].startswith(prompt)
    assert not (together.tokens == pipe.tokenizer.mask_token_id).any()
    assert len(set(pipe(num_return_sequences=3, generator=seeded(0), **settings).texts)) == 3


@pytest.mark.parametrize("name", STOCK)
def test_the_model_is_told_the_time_of_the_linear_schedule(pipe, name):
    told = []
    pipe.denoiser.register_forward_pre_hook(lambda module, args: told.append(args[1].clone()))
    pipe.scheduler = STOCK[name]()
    steps = []
    settings = {
        "num_inference_steps": 5,
        "callback_on_step_end": lambda *call: steps.append(call[2]),
    }
    pipe(text="the [MASK] [MASK] [MASK] [MASK] [MASK]", generator=seeded(0), **settings)
    want = [1.0, 0.8, 0.6, 0.4, 0.2]
    assert steps == pytest.approx(want) and [float(t[0]) for t in told] == pytest.approx(want)


@pytest.mark.parametrize("name", ["ddim", "entropy"])
def test_uniform_noise_is_of_the_tokens_of_text(pipe, tokenizer, name):
    pipe.scheduler = STOCK[name]()
    history = pipe(
        num_return_sequences=50, num_inference_steps=3, generator=seeded(0), return_history=True
    ).history
    assert all(
        int(tokens.max()) < min(tokenizer.mask_token_id, tokenizer.pad_token_id)
        for tokens in history
    )
    first = np.bincount(history[0][:, 1:].flatten(), minlength=tokenizer.pad_token_id)
    assert chi_square_passes(first, np.full(len(first), 1 / len(first)))


@pytest.mark.parametrize("name", STOCK)
def test_a_pipeline_with_a_stock_scheduler_is_saved_and_loaded(pipe, tmp_path, name):
    pipe.scheduler = STOCK[name]()
    if name != "entropy":
        pipe.scheduler.register_to_config(temperature=0.3)
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    settings = {"num_inference_steps": 4, "max_new_tokens": 8}
    texts = [p("the cat", generator=seeded(1), **settings).texts for p in (pipe, loaded)]
    assert texts[0] == texts[1]
    if name != "entropy":
        assert loaded.scheduler.config.temperature == 0.3


def test_a_masked_lm_under_block_refinement():
    model, tokenizer = make_masked_lm("bert")
    pipe = TextDiffusionPipeline(tokenizer, model, BlockRefinementScheduler())
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        max_new_tokens=9, num_return_sequences=5, num_inference_steps=4, generator=seeded(0)
    )
    assert not torch.isin(output.tokens[:, 1:-1], torch.tensor(tokenizer.all_special_ids)).any()
    for scheduler in (D3PMUniformScheduler(100), DiscreteDDIMScheduler()):
        with pytest.raises(ValueError, match="must be of an absorbing kernel for a language model"):
            TextDiffusionPipeline(tokenizer, model, scheduler)


@pytest.mark.parametrize("kind", STOCK)
def test_grids_and_ids_are_those_of_even_steps_and_integers(kind):
    logits = torch.zeros(2, 3, 5)
    adapter = StockTokenScheduler(STOCK[kind](), mask_token_id=4, vocab_size=4)
    adapter.set_timesteps(np.int64(2))
    assert adapter.timesteps.tolist() == [1.0, 0.5]
    tokens = adapter.prior((2, 3), [seeded(0), seeded(1)])
    steps = [
        adapter.step(logits, 1.0, ids, generator=seeded(2)).prev_sample
        for ids in (tokens, tokens.int())
    ]
    assert steps[1].dtype == torch.int32 and torch.equal(steps[0], steps[1].long())
    with pytest.raises(ValueError, match="`timesteps` must be None, since .* even steps"):
        adapter.set_timesteps(timesteps=[1.0, 0.3])
    with pytest.raises(ValueError, match="`sample` must be a tensor of token ids"):
        adapter.step(logits, 1.0, tokens.float())


def test_what_the_pipeline_cannot_do_is_refused_by_name(pipe):
    pipe.scheduler = DiscreteDDIMScheduler(corrector_steps=2)
    with pytest.raises(ValueError, match="`corrector_steps` must be 0 in this pipeline.*got 2"):
        pipe(num_inference_steps=2)
    with torch.no_grad():
        next(pipe.denoiser.parameters()).fill_(float("nan"))
    for make in STOCK.values():
        pipe.scheduler = make()
        with pytest.raises(ValueError, match="NaN or infinite logits"):
            pipe("the cat", num_inference_steps=2)
    pipe.scheduler = D3PMAbsorbingScheduler(pipe.tokenizer.mask_token_id)  # ours again
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        pipe("the cat", num_inference_steps=2)
