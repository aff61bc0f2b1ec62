"""Laws of TextDiffusionPipeline: seeds, batches, prompts, infilling, ends of texts, saving, and clear errors."""

import numpy as np
import pytest
import torch
from conftest import make_denoiser, mostly_slow
from support.oracles import MarkovSource, TableDenoiser, chi_square_passes

import text_diffusers
from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextDiffusionPipeline

PROMPTS = ["the cat", "a bird sang in the tree and", "she", "the dog sat on"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def uniform_pipe(tokenizer, **changes):
    scheduler = D3PMUniformScheduler(tokenizer.pad_token_id, **changes)
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer, time_conditioning=True), scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def both_kernels(pipe, tokenizer):
    return {"absorbing": pipe, "uniform": uniform_pipe(tokenizer)}


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_a_text_is_the_same_alone_and_in_a_batch_of_32(pipe, tokenizer, kernel):
    pipe = both_kernels(pipe, tokenizer)[kernel]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(32)]
    together = pipe(
        prompts, num_inference_steps=12, max_new_tokens=8, generator=[seeded(i) for i in range(32)]
    )
    for i in (0, 1, 5, 31):
        alone = pipe(prompts[i], num_inference_steps=12, max_new_tokens=8, generator=seeded(i))
        assert alone.texts[0] == together.texts[i]


def test_the_same_holds_for_blanks_up_to_the_models_length_and_for_infilling(pipe):
    together = pipe(PROMPTS, num_inference_steps=6, generator=[seeded(i) for i in range(4)]).texts
    assert [
        pipe(p, num_inference_steps=6, generator=seeded(i)).texts[0] for i, p in enumerate(PROMPTS)
    ] == together
    texts = ["the [MASK] sat", "[MASK] was late for the [MASK] and ran all the way"]
    filled = pipe(text=texts, num_inference_steps=6, generator=[seeded(0), seeded(1)]).texts
    assert filled[1] == pipe(text=texts[1], num_inference_steps=6, generator=seeded(1)).texts[0]


def test_a_seed_fixes_the_texts_and_the_first_does_not_depend_on_how_many(pipe):
    first = pipe(num_return_sequences=3, num_inference_steps=8, generator=seeded(0)).texts
    assert first == pipe(num_return_sequences=3, num_inference_steps=8, generator=seeded(0)).texts
    assert first[0] == pipe(num_inference_steps=8, generator=seeded(0)).texts[0]
    assert len(set(first)) == 3
    assert first != pipe(num_return_sequences=3, num_inference_steps=8, generator=seeded(1)).texts


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_forward_passes_are_at_most_the_steps_and_no_mask_is_left(pipe, tokenizer, steps):
    calls = []
    hook = pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    output = pipe(
        num_return_sequences=4, max_new_tokens=10, num_inference_steps=steps, generator=seeded(0)
    )
    hook.remove()
    assert 1 <= len(calls) <= steps
    assert not (output.tokens == tokenizer.mask_token_id).any()


def test_rows_and_steps_without_a_selected_position_cost_nothing(tokenizer):
    """Forward rows at T = 200, L = 8, against the expectation T (1 - (1 - 1/T)^L) of independent reveal times."""
    table = torch.zeros((1,))
    source_free = TableDenoiser(table, len(tokenizer))
    source_free.forward = lambda ids, *_, positions: counted(
        source_free, ids, positions, len(tokenizer)
    )
    pipe = TextDiffusionPipeline.__new__(TextDiffusionPipeline)
    TextDiffusionPipeline.__init__(
        pipe, tokenizer, source_free, D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    rows = 64
    pipe(
        num_return_sequences=rows,
        max_new_tokens=8,
        num_inference_steps=200,
        generator=seeded(0),
        output_type="tokens",
    )
    expected = 200 * (1 - (1 - 1 / 200) ** 8)
    assert abs(source_free.rows / rows - expected) < 0.3
    assert source_free.calls <= 200


def counted(model, input_ids, positions, vocab_size):
    model.calls, model.rows = model.calls + 1, model.rows + len(input_ids)
    logits = torch.zeros(int(positions.sum()), vocab_size)
    logits[:, :3] = -30.0  # no [EOS], which would end rows early
    return type("Output", (), {"logits": logits})()


def test_prompts_and_known_words_are_never_touched(pipe, tokenizer):
    for one in both_kernels(pipe, tokenizer).values():
        text = "the [MASK] sat on the [MASK]"
        ids = torch.tensor(tokenizer(text)["input_ids"])
        seen = []
        one(
            text=text,
            num_inference_steps=9,
            generator=seeded(0),
            callback_on_step_end=lambda _, i, t, kw, seen=seen: seen.append(
                kw["tokens"][0, 1:].clone()
            ),
        )
        known = ids != tokenizer.mask_token_id
        assert len(seen) == 9 and all(torch.equal(tokens[known], ids[known]) for tokens in seen)
    continued = pipe(PROMPTS, num_inference_steps=4, max_new_tokens=5, generator=seeded(0)).texts
    assert all(text.startswith(prompt) for text, prompt in zip(continued, PROMPTS, strict=True))


def test_a_mask_array_rewrites_the_marked_tokens(pipe, tokenizer):
    text = "the cat sat on the mat"
    ids = tokenizer(text)["input_ids"]
    mask = np.zeros(len(ids), dtype=bool)
    mask[2] = True
    written = (
        pipe(text=text, mask=mask, num_inference_steps=4, generator=seeded(3))
        .tokens[0, 1:]
        .tolist()
    )
    assert written[:2] == ids[:2] and written[3:] == ids[3:]
    with pytest.raises(ValueError, match="one value a token of `text`"):
        pipe(text=text, mask=[True])


def test_the_end_of_a_text_settles_its_row(pipe, tokenizer):
    """Once every token up to the first [EOS] is settled the row costs nothing more and the rest is padding."""
    output = pipe(
        num_return_sequences=64, num_inference_steps=64, generator=seeded(0), return_history=True
    )
    eos, pad, mask = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id
    ended = 0
    for row, text in zip(output.tokens.tolist(), output.texts, strict=True):
        generated = row[1:]
        if eos in generated:
            ended += 1
            end = generated.index(eos)
            assert set(generated[end + 1 :]) <= {pad}
            assert text == tokenizer.decode(generated[:end], skip_special_tokens=True)
    assert ended > 0
    last = output.history[-1][:, 1:]
    assert len(output.history) == 65 and (output.history[0][:, 1:] == mask).all()
    assert (last == mask).any() and not (
        output.tokens == mask
    ).any()  # frozen rows keep their masks after the end


def test_no_gap_is_filled_with_the_end_of_a_text(pipe, tokenizer):
    text = "the [MASK] sat" + " [MASK]" * 6
    for one in both_kernels(pipe, tokenizer).values():
        output = one(text=text, num_return_sequences=64, num_inference_steps=8, generator=seeded(0))
        assert not (output.tokens[:, 1:] == tokenizer.eos_token_id).any()

    # A text that is written from its start may end there.
    free = pipe(num_return_sequences=64, num_inference_steps=8, generator=seeded(0))
    assert (free.tokens[:, 1:] == tokenizer.eos_token_id).any()


def test_a_model_of_whole_texts_fills_in_whole_texts(tokenizer):
    """Exact for texts of one to three words: of those that begin with "the", only the ones of two words count."""
    the, cat, sat = tokenizer("the cat sat")["input_ids"]
    texts = {
        (the,): 0.1,
        (the, cat): 0.2,
        (the, sat): 0.1,
        (the, cat, sat): 0.05,
        (the, sat, cat): 0.55,
    }
    rows = {(*text, tokenizer.eos_token_id): prob for text, prob in texts.items()}

    class Exact(TableDenoiser):
        def forward(self, input_ids, *args, positions=None, **kwargs):
            probs = torch.zeros(*input_ids.shape, len(tokenizer), dtype=torch.float64)
            for number, ids in enumerate(input_ids.tolist()):
                for row, prob in rows.items():
                    pairs = list(zip(ids[1:], row, strict=False))
                    if all(known in (tokenizer.mask_token_id, true) for known, true in pairs):
                        for place, (_, true) in enumerate(pairs):
                            probs[number, 1 + place, true] += prob
            return type("Output", (), {"logits": probs.log()[positions]})()

    pipe = TextDiffusionPipeline(
        tokenizer,
        Exact(None, len(tokenizer)),
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
        lengths=[0, 10, 30, 60],
    )
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_return_sequences": 1000, "num_inference_steps": 4}
    filled = pipe(text="the [MASK]", **settings, generator=seeded(0)).texts
    counts = np.array([filled.count("the cat"), filled.count("the sat")])
    assert counts.sum() == 1000 and chi_square_passes(counts, np.array([2, 1]) / 3)

    # The same by a mask; and where the end has no room, as for a text that training has cut, all longer ones count.
    masked = pipe(text="the cat", mask=[0, 1], **settings, generator=seeded(0)).texts
    assert masked == filled
    pipe.denoiser.config.max_length = 3  # the start and two tokens
    cut = pipe(text="the [MASK]", **settings, generator=seeded(0)).texts
    counts = np.array([cut.count("the cat"), cut.count("the sat")])
    assert counts.sum() == 1000 and chi_square_passes(counts, np.array([0.25, 0.65]) / 0.9)


def test_texts_have_the_lengths_of_a_stored_histogram(tokenizer):
    lengths = [0, 0, 300, 0, 0, 700]
    denoiser = make_denoiser(tokenizer)
    pipe = TextDiffusionPipeline(
        tokenizer, denoiser, D3PMAbsorbingScheduler(tokenizer.mask_token_id), lengths
    )
    pipe.set_progress_bar_config(disable=True)
    rows = 2000
    tokens = pipe(
        num_return_sequences=rows, num_inference_steps=1, generator=seeded(0), output_type="tokens"
    ).tokens
    short = tokens[:, 4:].eq(tokenizer.pad_token_id).all(dim=1)  # start, 2 tokens, end
    assert tokens.shape[1] == 7 and (tokens[short, 3] == tokenizer.eos_token_id).all()
    assert chi_square_passes(
        np.array([short.sum(), rows - short.sum()]), np.array([0.3, 0.7]), level=1e-3
    )
    longer = pipe(
        "the cat sat", num_inference_steps=1, generator=seeded(1), output_type="tokens"
    ).tokens
    assert longer.shape[1] >= 1 + len(tokenizer("the cat sat")["input_ids"]) + 1
    with pytest.raises(ValueError, match="longest training text, 5 tokens"):
        pipe("the cat sat on the mat and looked at the dog")


def test_samples_follow_the_source_when_the_denoiser_is_exact(tokenizer):
    """The pipeline as a whole, prompt handling included, on an enumerable source."""
    source = MarkovSource.golden()
    size = source.num_tokens
    table = source.masked_denoiser()
    vocabulary = len(tokenizer)

    class Exact(TableDenoiser):
        def forward(self, input_ids, *args, positions=None, **kwargs):
            ids = input_ids[:, 1:]  # after the start token; ids 1..K stand for the source's 0..K-1
            pattern = torch.where(ids == tokenizer.mask_token_id, size, ids - 1)
            logits = torch.full((*input_ids.shape, vocabulary), -torch.inf, dtype=torch.float64)
            logits[:, 1:, 1 : size + 1] = table[tuple(pattern.T)][..., :size]
            return type("Output", (), {"logits": logits[positions]})()

    pipe = TextDiffusionPipeline(
        tokenizer, Exact(table, vocabulary), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        num_return_sequences=2000,
        max_new_tokens=3,
        num_inference_steps=50,
        generator=seeded(0),
        output_type="tokens",
    )
    tokens = output.tokens[:, 1:] - 1
    counts = [
        int((tokens == torch.tensor(sequence)).all(dim=1).sum()) for sequence in source.sequences
    ]
    assert sum(counts) == 2000 and chi_square_passes(np.array(counts), source.probs)


def test_stream_ends_with_the_text_of_the_call(pipe):
    frames = list(
        pipe.stream("the cat", max_new_tokens=8, num_inference_steps=10, generator=seeded(2))
    )
    final = pipe("the cat", max_new_tokens=8, num_inference_steps=10, generator=seeded(2)).texts
    assert len(frames) == 10 and frames[-1] == final
    assert "[MASK]" in frames[0][0] and all(frame[0].startswith("the cat") for frame in frames)
    masks = [frame[0].count("[MASK]") for frame in frames]
    assert masks == sorted(masks, reverse=True)


def test_a_callback_sees_each_step_and_may_change_the_tokens(pipe, tokenizer):
    letter = tokenizer("z")["input_ids"][0]

    def overwrite(pipe, step, timestep, tensors):
        assert 0 < timestep <= 1
        return {"tokens": torch.full_like(tensors["tokens"], letter)} if step == 2 else None

    output = pipe(
        max_new_tokens=4, num_inference_steps=3, generator=seeded(0), callback_on_step_end=overwrite
    )
    assert output.texts == ["zzzzz"]


def test_class_labels_reach_the_denoiser(tokenizer):
    pipe = TextDiffusionPipeline(
        tokenizer,
        make_denoiser(tokenizer, num_classes=2),
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
    )
    pipe.set_progress_bar_config(disable=True)
    settings = {"max_new_tokens": 10, "num_inference_steps": 5}
    mixed = pipe(class_labels=[0, 1], generator=[seeded(0), seeded(0)], **settings).texts
    assert mixed[0] != mixed[1]
    assert mixed[1] == pipe(class_labels=1, generator=seeded(0), **settings).texts[0]
    with pytest.raises(ValueError, match="`class_labels` must be between 0 and 1"):
        pipe(class_labels=7, **settings)
    with pytest.raises(ValueError, match="`class_labels` must be one or 1"):
        pipe("the", class_labels=[0, 1], **settings)


def test_schedulers_swap_by_from_config(pipe):
    pipe.scheduler = D3PMAbsorbingScheduler.from_config(
        pipe.scheduler.config, schedule="cosine", temperature=0.0
    )
    texts = pipe(
        num_return_sequences=2, max_new_tokens=6, num_inference_steps=6, generator=seeded(0)
    ).texts
    assert len(texts) == 2


def test_output_types(pipe):
    tokens = pipe(num_inference_steps=2, generator=seeded(0), output_type="tokens")
    assert tokens.texts is None and tokens.history is None and tokens.tokens.dtype == torch.long
    texts, ids, history = pipe(num_inference_steps=2, generator=seeded(0), return_dict=False)
    assert torch.equal(ids, tokens.tokens) and len(texts) == 1 and history is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": "a", "text": "b [MASK]"}, "exclude each other"),
        ({"prompt": 3}, "`prompt` must be a string or a list of strings, got 3"),
        ({"prompt": []}, "`prompt` must be"),
        ({"prompt": "the [MASK]"}, r"`prompt` must not hold \[MASK\]; give it as `text`"),
        ({"text": "nothing to fill in"}, r"`text` must hold \[MASK\]"),
        ({"mask": [True]}, "`mask` needs `text`"),
        ({"text": "a [MASK]", "max_new_tokens": 3}, "`max_new_tokens` goes with `prompt`"),
        ({"prompt": "the cat " * 40}, "must fit into the model's 32 tokens"),
        ({"max_new_tokens": 32}, r"32 tokens \(with the start token\), got 33"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer of at least 1, got 0"),
        ({"num_return_sequences": 0}, "`num_return_sequences`"),
        ({"num_inference_steps": 0}, "`num_inference_steps`"),
        ({"output_type": "np"}, '`output_type` must be "text" or "tokens"'),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, r"must be among \['tokens'\]"),
        (
            {"generator": [torch.Generator()], "num_return_sequences": 2},
            "`generator` must be one or 2",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_broken_weights_raise_instead_of_returning_the_prompt(pipe):
    with torch.no_grad():
        next(pipe.denoiser.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        pipe("the cat", num_inference_steps=2)


def test_components_that_disagree_are_refused(tokenizer, denoiser):
    with pytest.raises(ValueError, match="`mask_token_id`=3, but the tokenizer's is"):
        TextDiffusionPipeline(tokenizer, denoiser, D3PMAbsorbingScheduler(3))
    with pytest.raises(ValueError, match="`vocab_size`=256"):
        small = make_denoiser(tokenizer, vocab_size=256, mask_token_id=None, pad_token_id=None)
        TextDiffusionPipeline(tokenizer, small, D3PMAbsorbingScheduler(tokenizer.mask_token_id))


SCHEDULERS = sorted(
    name
    for name in text_diffusers.__all__
    if name.endswith("Scheduler")
    # Others are of other pipelines.
    and not name.startswith(("Block", "Embedding"))
    and ".latent." not in getattr(text_diffusers, name).__module__
)


def make_scheduler(name, tokenizer):
    words = tokenizer.pad_token_id  # the first id that is no word
    near = torch.stack([torch.arange(words - 1), torch.arange(1, words)])
    arguments = {
        "D3PMBitFlipScheduler": {
            "vocab_size": 256,
            "codes": torch.arange(256).flip(0),
            "num_train_timesteps": 8,
        },
        "D3PMHierarchicalScheduler": {
            "mask_token_id": tokenizer.mask_token_id,
            "vocab_size": len(tokenizer) + 4,
            "clusters": torch.arange(words) % 4,
        },
        "D3PMHybridScheduler": {
            "mask_token_id": tokenizer.mask_token_id,
            "vocab_size": words,
            "num_train_timesteps": 8,
        },
        "D3PMMatrixScheduler": {"vocab_size": words, "betas": [0.9] * 8, "num_train_timesteps": 8},
        "D3PMNeighborScheduler": {
            "vocab_size": words,
            "edges": torch.cat([near, near.flip(0)], dim=1),
            "rates": torch.full((2 * (words - 1),), 0.5),
            "num_train_timesteps": 8,
        },
    }
    uniform = {"vocab_size": words} if "Uniform" in name or "DDIM" in name else None
    absorbing = {"mask_token_id": tokenizer.mask_token_id}
    return getattr(text_diffusers, name)(**arguments.get(name) or uniform or absorbing)


@pytest.mark.parametrize("name", mostly_slow(SCHEDULERS, fast=SCHEDULERS[::2]))
def test_a_pipeline_with_any_scheduler_is_loaded_as_it_was_saved(tokenizer, tmp_path, name):
    scheduler = make_scheduler(name, tokenizer)
    # Clusters are ids behind those of the tokens.
    size = max(len(tokenizer), scheduler.config.get("vocab_size") or 0)
    denoiser = make_denoiser(
        tokenizer, vocab_size=size, time_conditioning=scheduler.corruption != "absorbing"
    )
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
    pipe.save_pretrained(tmp_path)
    loaded = TextDiffusionPipeline.from_pretrained(tmp_path)
    assert type(loaded.scheduler) is type(scheduler)
    texts = []
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
        settings = {
            "num_inference_steps": 8,
            "max_new_tokens": 6,
            "num_return_sequences": 3,
            "output_type": "tokens",
        }
        texts.append(each("the cat", generator=torch.Generator().manual_seed(0), **settings).tokens)
    assert torch.equal(*texts)
    assert not (texts[0] == tokenizer.mask_token_id).any()
    start = pipe.tokenizer(tokenizer.bos_token + "the cat", return_tensors="pt").input_ids[0]
    assert (texts[0][:, : len(start)] == start).all()
