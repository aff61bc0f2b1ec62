"""Laws of masked LMs as denoisers: transformers' own logits, text as they know it, batches, lengths, saving."""

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from conftest import mostly_slow
from datasets import Dataset
from support.masked_lms import SENTENCES, byte_level_tokenizer, make_masked_lm, wordpiece_tokenizer
from support.oracles import chi_square_passes

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler, TextDiffusionPipeline
from text_diffusers.data.rows import to_tensors, tokenize
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.models import LanguageModelDenoiser, Reading, StaleCache, write_reading
from text_diffusers.models.language.calls import HEADS
from text_diffusers.models.language_model import as_denoiser, language_model_length
from text_diffusers.training.adaptation.language_models import fresh_copy, training_denoiser

KINDS = ("bert", "roberta", "modernbert")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def make_pipe(kind, lengths=None, **changes):
    model, tokenizer = make_masked_lm(kind, **changes)
    pipe = TextDiffusionPipeline(
        tokenizer, model, D3PMAbsorbingScheduler(tokenizer.mask_token_id), lengths
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def possible(tokenizer, vocab_size):
    """(V,) bool: ids of tokens that are not special."""
    ids = torch.arange(vocab_size)
    return (ids < len(tokenizer)) & ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.parametrize("model_type", [*sorted(HEADS), "electra", "distilbert"])
@torch.no_grad()
def test_logits_at_selected_positions_are_those_of_the_whole_model(model_type):
    model, tokenizer = make_masked_lm(model_type)
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    positions = batch.attention_mask.bool() & (
        torch.rand(batch.input_ids.shape, generator=seeded(0)) < 0.4
    )
    whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    keep = possible(tokenizer, model.config.vocab_size)
    widths = []
    output_layer = model.get_output_embeddings()
    hook = output_layer.register_forward_hook(
        lambda *call: widths.append(call[2].shape[:-1].numel())
    )
    got = as_denoiser(model, tokenizer)(
        batch.input_ids, 0.5, batch.attention_mask, positions=positions
    ).logits
    hook.remove()
    torch.testing.assert_close(got[:, keep], whole[positions][:, keep], atol=1e-5, rtol=1e-5)
    assert (got[:, ~keep] == -torch.inf).all() and int((~keep).sum()) >= 8
    assert widths == [int(positions.sum())]


@pytest.mark.parametrize("model_type", [*sorted(HEADS), "mpnet", "distilbert"])
@torch.no_grad()
def test_a_token_has_the_position_that_the_model_gives_it_however_it_is_read(model_type):
    """Some count from 0, RoBERTa and its kin from 2. One block that holds all of a row is all of the row."""
    model, tokenizer = make_masked_lm(model_type)
    ids = tokenizer(SENTENCES[1], return_tensors="pt").input_ids
    want = model(input_ids=ids).logits
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    denoiser = LanguageModelDenoiser(model)
    segments = torch.zeros_like(ids)
    readings = {"in segments": denoiser(ids, segment_ids=segments).logits}
    if denoiser.takes_cache:
        cache = StaleCache()
        readings["behind a cache"] = denoiser(ids, cache=cache).logits
        cache.active = everywhere
        readings["read again"] = denoiser(ids, positions=everywhere, cache=cache).logits

    block = Reading("block", ids.shape[1], past="causal")
    write_reading(model.config, block)
    denoiser = LanguageModelDenoiser(model)
    readings["one block"] = denoiser(ids).logits
    readings["beside itself"] = denoiser(ids, clean_ids=ids).logits
    for name, logits in readings.items():
        torch.testing.assert_close(logits.view_as(want), want, atol=1e-4, rtol=1e-4, msg=name)


@torch.no_grad()
def test_logits_of_a_row_are_the_same_alone_and_padded_in_a_batch(kind):
    model, tokenizer = make_masked_lm(kind)
    batch = tokenizer([SENTENCES[0], " ".join(SENTENCES[1:3])], padding=True, return_tensors="pt")
    assert int(batch.attention_mask[0].sum()) < batch.input_ids.shape[1] - 3
    denoiser = as_denoiser(model, tokenizer)
    positions = batch.attention_mask.bool()
    together = denoiser(batch.input_ids, None, batch.attention_mask, positions=positions).logits
    alone_ids = tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    alone = denoiser(
        alone_ids, None, torch.ones_like(alone_ids), positions=torch.ones_like(alone_ids).bool()
    ).logits
    torch.testing.assert_close(together[: alone_ids.shape[1]], alone, atol=1e-5, rtol=1e-5)


def test_a_text_is_the_same_alone_and_in_a_batch(kind):
    pipe = make_pipe(kind)
    mask = pipe.tokenizer.mask_token
    texts = [f"The {mask} sat.", f"She was {mask} for the train and {mask} all the way."]
    filled = pipe(text=texts, num_inference_steps=5, generator=[seeded(0), seeded(1)]).texts
    assert [
        pipe(text=t, num_inference_steps=5, generator=seeded(i)).texts[0]
        for i, t in enumerate(texts)
    ] == filled
    prompts = ["The cat", "A bird sang in the tree and"]
    settings = {"max_new_tokens": 6, "num_inference_steps": 4}
    written = pipe(prompts, generator=[seeded(0), seeded(1)], **settings).texts
    assert [
        pipe(p, generator=seeded(i), **settings).texts[0] for i, p in enumerate(prompts)
    ] == written


def test_the_model_reads_what_its_own_tokenizer_makes_of_the_text(kind):
    """First step: the ids of `tokenizer(text)`, special tokens at both ends included, and no token of padding seen."""
    pipe = make_pipe(kind)
    tokenizer, seen = pipe.tokenizer, []
    pipe.denoiser.base_model.register_forward_pre_hook(
        lambda *call: seen.append(call[2]), with_kwargs=True
    )
    texts = [f"Paris is the {tokenizer.mask_token} of France.", f"The {tokenizer.mask_token}"]
    filled = pipe(text=texts, num_inference_steps=1, generator=seeded(0))
    want = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(seen[0]["input_ids"], want.input_ids)
    assert torch.equal(seen[0]["attention_mask"], want.attention_mask)
    blank = want.input_ids == tokenizer.mask_token_id
    assert torch.equal(filled.tokens[~blank], want.input_ids[~blank])
    pipe("The cat", max_new_tokens=3, num_inference_steps=1, generator=seeded(0))
    want = tokenizer("The cat" + tokenizer.mask_token * 3, return_tensors="pt").input_ids
    assert torch.equal(seen[1]["input_ids"], want)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, fast=["bert"]))
def test_a_filled_in_token_follows_the_masked_lm(kind):
    pipe = make_pipe(kind)
    tokenizer, rows = pipe.tokenizer, 3000
    text = f"Paris is the {tokenizer.mask_token} of France."
    encoded = tokenizer(text, return_tensors="pt")
    at = int((encoded.input_ids[0] == tokenizer.mask_token_id).nonzero())
    with torch.no_grad():
        logits = pipe.denoiser(
            **{name: encoded[name] for name in ("input_ids", "attention_mask")}
        ).logits[0, at]
    keep = possible(tokenizer, len(logits))
    probs = torch.where(keep, logits, -torch.inf).double().softmax(dim=-1)
    settings = {"num_return_sequences": rows, "num_inference_steps": 3, "output_type": "tokens"}
    drawn = pipe(text=text, generator=seeded(0), **settings).tokens[:, at]
    assert chi_square_passes(np.bincount(drawn, minlength=len(logits)), probs.numpy())


def test_special_tokens_are_never_written_however_much_the_model_likes_them(kind):
    pipe = make_pipe(kind)
    tokenizer = pipe.tokenizer
    special = torch.tensor(tokenizer.all_special_ids)
    pipe.denoiser.get_output_embeddings().register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, special, 1e4)
    )
    output = pipe(
        max_new_tokens=12, num_return_sequences=20, num_inference_steps=4, generator=seeded(0)
    )
    assert output.tokens.shape == (20, 14) and not torch.isin(output.tokens[:, 1:-1], special).any()
    ends = tokenizer("", return_tensors="pt").input_ids[0]
    assert torch.equal(output.tokens[:, [0, -1]], ends.expand(20, -1))
    assert not any(token in text for text in output.texts for token in tokenizer.all_special_tokens)


def test_a_masked_lm_must_be_told_the_length_or_draws_it_from_lengths(kind):
    with pytest.raises(
        ValueError, match="`max_new_tokens` must be given: a masked LM does not predict"
    ):
        make_pipe(kind)("The cat")
    pipe = make_pipe(kind, lengths=[0, 0, 300, 0, 0, 700])
    output = pipe(
        num_return_sequences=500, num_inference_steps=1, generator=seeded(0), output_type="tokens"
    ).tokens
    sizes = (output != pipe.tokenizer.pad_token_id).sum(dim=1)
    counts = np.array([int((sizes == n + 2).sum()) for n in (2, 5)])
    assert counts.sum() == 500 and chi_square_passes(counts, np.array([0.3, 0.7]), level=1e-3)
    end = tokenizer_end(pipe.tokenizer)
    assert (output.gather(1, sizes.unsqueeze(1) - 1) == end).all() and (
        (output == end).sum(dim=1) == 1
    ).all()


def tokenizer_end(tokenizer):
    return tokenizer("").input_ids[-1]


@pytest.mark.parametrize(
    "model_type, limit", [("bert", 20), ("roberta", 18), ("xlm-roberta", 18), ("modernbert", 20)]
)
def test_the_longest_text_is_what_the_position_embeddings_hold(model_type, limit):
    """RoBERTa's positions start after its padding id 1, so 20 embeddings are for 18 tokens."""
    pipe = make_pipe(model_type, max_position_embeddings=20)
    assert language_model_length(pipe.denoiser) == limit
    longest = pipe(
        max_new_tokens=limit - 2, num_inference_steps=2, generator=seeded(0), output_type="tokens"
    )
    assert longest.tokens.shape == (1, limit)
    with pytest.raises(
        ValueError, match=rf"must fit into the model's {limit} tokens .*, got {limit + 1}"
    ):
        pipe(max_new_tokens=limit - 1, num_inference_steps=2)


def test_what_a_masked_lm_cannot_do_is_refused_by_name():
    pipe = make_pipe("bert")
    with pytest.raises(
        ValueError, match="`class_labels` were given, but a language model takes no labels"
    ):
        pipe(max_new_tokens=2, class_labels=1, num_inference_steps=2)
    with pytest.raises(
        ValueError, match="`scheduler` must be of an absorbing kernel for a language model"
    ):
        TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, D3PMUniformScheduler(100))
    small, _ = make_masked_lm("bert", extra_ids=-1)
    with pytest.raises(ValueError, match="`denoiser` has `vocab_size`"):
        TextDiffusionPipeline(pipe.tokenizer, small, pipe.scheduler)
    with pytest.raises(ValueError, match="`prompt` must not hold"):
        pipe("The [MASK]", max_new_tokens=2)


@torch.no_grad()
def test_offloading_moves_the_model_before_it_is_called(kind):
    class Counting(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    pipe, hook = make_pipe(kind), Counting()
    add_hook_to_module(pipe.denoiser, hook)
    assert (
        pipe(max_new_tokens=4, num_inference_steps=1, generator=seeded(0)).texts and hook.calls == 1
    )


@torch.no_grad()
def test_the_bound_of_a_text_is_what_the_masked_lm_pays_for_its_hidden_words(kind):
    """Its weight times -log p of the hidden words, the ends standing where the tokenizer of the model puts them."""
    model, tokenizer = make_masked_lm(kind)
    settings = {"padding": "max_length", "truncation": True, "max_length": 30}
    texts = [*SENTENCES[1:3], "zebra \u4f60 cat", " ".join(SENTENCES)]
    encoded = tokenizer(texts, return_tensors="pt", **settings)
    ids, real = encoded.input_ids, encoded.attention_mask
    assert (tokenizer.unk_token_id in ids) == (kind != "roberta")  # bytes know every word
    batch = to_tensors(
        tokenize(Dataset.from_dict({"text": texts}), tokenizer, 30, False, given_ends=True)[:]
    )
    assert torch.equal(batch["input_ids"], ids) and torch.equal(batch["attention_mask"], real)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    times = torch.tensor([0.2, 0.5, 0.8, 1 - 1e-9], dtype=torch.float64)
    generators = [[seeded(i) for i in range(4)] for _ in range(2)]
    bounds = batch_bound(
        training_denoiser(model, tokenizer), scheduler, batch, times, generators[0]
    )
    noisy = scheduler.add_noise(ids, times, generators[1])
    assert (noisy[3] == tokenizer.mask_token_id).all()  # its ends too
    special = {tokenizer.pad_token_id, *tokenizer("").input_ids, tokenizer.mask_token_id}
    hidden = (noisy == tokenizer.mask_token_id) & ~torch.isin(ids, torch.tensor([*special]))
    logits = model(
        input_ids=torch.where(hidden, tokenizer.mask_token_id, ids), attention_mask=real
    ).logits
    keep = possible(tokenizer, logits.shape[-1])
    keep[tokenizer.unk_token_id] = True  # texts may hold unknown words
    log_probs = torch.where(keep, logits, -torch.inf).log_softmax(dim=-1)
    nats = -log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    want = torch.where(hidden, nats, 0.0).sum(dim=1) / times
    torch.testing.assert_close(bounds.double(), want.double(), atol=1e-4, rtol=1e-4)


def test_weights_go_into_a_model_of_the_same_config(kind):
    model, tokenizer = make_masked_lm(kind)
    denoiser = training_denoiser(model, tokenizer)
    weights = {name: parameter.detach() for name, parameter in denoiser.named_parameters()}
    copy = fresh_copy(denoiser)
    copy.load_state_dict(weights | dict(denoiser.named_buffers()))
    ids = tokenizer(SENTENCES[0], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(copy.eval()(ids).logits, denoiser.eval()(ids).logits)
    missing = next(iter(weights))
    with pytest.raises(ValueError, match=f"has no '{missing}'"):
        copy.load_state_dict({name: value for name, value in weights.items() if name != missing})


@pytest.mark.filterwarnings("error::FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients():
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tokenizer = wordpiece_tokenizer()
    gradients = []
    for saves_memory in (False, True):
        model, _ = make_masked_lm("bert", tokenizer, **no_dropout)
        denoiser = training_denoiser(model.train(), tokenizer)
        if saves_memory:
            denoiser.enable_gradient_checkpointing()
        layer = model.base_model.encoder.layer[0]
        calls = []
        layer.attention.register_forward_hook(lambda *call, seen=calls: seen.append(1))
        rows = tokenizer(SENTENCES, padding=True, return_tensors="pt")
        logits = denoiser(rows.input_ids, attention_mask=rows.attention_mask).logits
        logits[torch.isfinite(logits)].square().mean().backward()
        assert len(calls) == 1 + saves_memory
        gradients.append([parameter.grad for parameter in model.parameters()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_the_tokenizers_of_these_tests_are_of_the_two_kinds():
    bert, roberta = wordpiece_tokenizer(), byte_level_tokenizer()
    assert bert.bos_token_id is None and bert.eos_token_id is None and bert.pad_token_id == 0
    assert roberta.bos_token_id == roberta.cls_token_id == 0 and roberta.pad_token_id == 1
