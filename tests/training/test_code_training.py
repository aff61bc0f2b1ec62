"""Laws of what code denoisers learn from: rows of full codes, what is hidden from them, and the bound of texts."""

import itertools
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import chisquare
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, T5Config, T5Model

from text_diffusers import (
    AutoencoderVQTextModel,
    CodeTransformerModel,
    D3PMAbsorbingScheduler,
    PromptEncoderModel,
    TwoLevelVQDiffusionPipeline,
)
from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.code_rows import code_rows, text_rows
from text_diffusers.data.rows import encode_texts, to_tensors, tokenize
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.evaluation.likelihood import BoundEstimate, estimate_bound
from text_diffusers.evaluation.two_level import (
    decoder_cross_entropy,
    estimate_two_level_bound,
    per_token,
    with_plans_of_others,
)
from text_diffusers.models.prompted_denoiser import PromptedDenoiser
from text_diffusers.training.steps.codes import (
    load_prompt_encoder,
    shown_plans,
    shown_prompts,
)

V, FINE, COARSE = 4, 3, 2  # sizes small enough to go through all texts of two tokens


def randomized(model, std=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(std=std, generator=generator)
    return model.eval()


def make_autoencoder(seed=0, **changes):
    sizes = {"vocab_size": V, "hidden_size": 8, "num_encoder_layers": 1, "num_decoder_layers": 2}
    sizes |= {
        "num_attention_heads": 2,
        "patch_length": 1,
        "coarse_ratio": 2,
        "window_length": 2,
        "codebook_dim": 4,
    }
    torch.manual_seed(seed)
    model = AutoencoderVQTextModel(
        **sizes | {"num_fine_codes": FINE, "num_coarse_codes": COARSE} | changes
    )
    model.train()(
        torch.tensor(all_texts()["input_ids"][:])
    )  # the codebooks begin with the first batch
    return model.eval()


def make_denoiser(num_codes, seed=0, **changes):
    sizes = {"hidden_size": 8, "num_layers": 1, "num_attention_heads": 2, "max_length": 8}
    return randomized(CodeTransformerModel(num_codes + 1, **sizes | changes), std=0.6, seed=seed)


def make_pipe(tokenizer=None, autoencoder=None, prompt_size=None, prompt_encoder=None):
    autoencoder = autoencoder or make_autoencoder()
    two = autoencoder.config.coarse_ratio is not None
    told = {"num_context_codes": COARSE, "context_ratio": 2} if two else {}
    parts = {
        "tokenizer": tokenizer,
        "autoencoder": autoencoder,
        "fine_denoiser": make_denoiser(FINE, seed=1, prompt_size=prompt_size, **told),
        "fine_scheduler": D3PMAbsorbingScheduler(FINE),
        "prompt_encoder": prompt_encoder,
    }
    if two:
        parts["coarse_denoiser"] = make_denoiser(COARSE, seed=2, prompt_size=prompt_size)
        parts["coarse_scheduler"] = D3PMAbsorbingScheduler(COARSE)
    return TwoLevelVQDiffusionPipeline(**parts)


def all_texts(length=2):
    texts = [list(text) for text in itertools.product(range(V), repeat=length)]
    return Dataset.from_dict({"input_ids": texts, "attention_mask": [[1] * length for _ in texts]})


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + 7 * row) for row in range(count)]


# Rows


def test_packed_rows_are_a_prompt_and_the_text_after_it(tokenizer):
    texts = Dataset.from_dict({"text": [f"number {i} of some texts" for i in range(30)]})
    packed = tokenize(texts, tokenizer, length=12)
    rows = text_rows(packed, tokenizer, length=8, prompt_length=4)
    end = tokenizer.eos_token_id
    for row, whole in zip(rows, packed, strict=False):
        real = whole["input_ids"][: sum(whole["attention_mask"])]
        assert row["prompt_ids"] + row["input_ids"][: sum(row["attention_mask"])] == real
        assert (
            row["prompt_mask"] == [1] * 4
            and len(row["input_ids"]) == len(row["attention_mask"]) == 8
        )
        assert set(row["input_ids"][sum(row["attention_mask"]) :]) <= {end}
    assert len(rows) == len(packed) - (sum(packed[-1]["attention_mask"]) <= 4)
    assert tokenizer.pad_token_id not in set(sum(rows["input_ids"][:], []))


def test_a_row_without_text_after_its_prompt_is_left_out(tokenizer):
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    columns = {"input_ids": [[5, 6, 7, 8], [5, 6, end, pad], [5, end, pad, pad]]}
    columns["attention_mask"] = [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    rows = text_rows(Dataset.from_dict(columns), tokenizer, length=2, prompt_length=2)
    assert rows["input_ids"][:] == [[7, 8], [end, end]] and rows["attention_mask"][:] == [
        [1, 1],
        [1, 0],
    ]


def test_rows_of_one_text_begin_with_it_and_count_one_end(tokenizer):
    texts = ["the cat", "the dog sat on the cat and the cat was not happy"]
    padded = tokenize(Dataset.from_dict({"text": texts}), tokenizer, length=9, packing=False)
    rows, end = text_rows(padded, tokenizer, length=8, packed=False), tokenizer.eos_token_id
    for row, ids in zip(rows, encode_texts(tokenizer, texts), strict=True):
        full = [*ids, end, *[end] * 8][:8]
        assert row["input_ids"] == full and sum(row["attention_mask"]) == min(8, len(ids) + 1)
        assert "prompt_ids" not in row


def test_pairs_become_a_prompt_and_a_text(tokenizer):
    pairs = {
        "text": ["the cat sat", "a bird sang in the tree"],
        "source": ["dog", "she was late for the train"],
    }
    rows = text_rows(
        tokenize(Dataset.from_dict(pairs), tokenizer, length=40, packing=False),
        tokenizer,
        8,
        5,
        packed=False,
    )
    texts, sources = (encode_texts(tokenizer, pairs[name]) for name in ("text", "source"))
    for row, text, source in zip(rows, texts, sources, strict=True):
        end = tokenizer.eos_token_id
        assert row["input_ids"] == [*text, *[end] * 9][:8]
        assert sum(row["attention_mask"]) == min(8, len(text) + 1)
        assert (
            row["prompt_ids"][: sum(row["prompt_mask"])] == source[:5]
            and len(row["prompt_ids"]) == 5
        )


def test_code_rows_are_the_codes_of_the_autoencoder(tmp_path):
    rows = Dataset.from_dict(
        all_texts(4).to_dict() | {"prompt_ids": [[1, 2]] * 256, "prompt_mask": [[1, 1]] * 256}
    )
    rows.save_to_disk(tmp_path)
    rows = Dataset.load_from_disk(tmp_path)  # from a file, so that mapped rows are cached
    for seed in (0, 1):
        autoencoder = make_autoencoder(seed)  # a cache must not confuse the two
        codes = autoencoder.encode(torch.tensor(rows["input_ids"][:]))
        fine, coarse = code_rows(autoencoder, rows, "fine"), code_rows(autoencoder, rows, "coarse")
        assert (
            fine["input_ids"][:] == codes.fine.tolist()
            and fine["context_ids"][:] == codes.coarse.tolist()
        )
        assert (
            coarse["input_ids"][:] == codes.coarse.tolist()
            and "context_ids" not in coarse.column_names
        )
        assert (
            fine["attention_mask"][:] == [[1] * 4] * 256
            and coarse["attention_mask"][:] == [[1] * 2] * 256
        )
        assert fine["prompt_ids"][:] == rows["prompt_ids"][:] and len(codes.fine.unique(dim=0)) > 3
    stream = code_rows(autoencoder, rows.to_iterable_dataset(), "fine")
    assert [row["input_ids"] for row in stream] == codes.fine.tolist()


def test_levels_and_lengths_that_do_not_exist_are_refused():
    one = make_autoencoder(coarse_ratio=None, num_coarse_codes=None)
    assert "context_ids" not in code_rows(one, all_texts(), "fine").column_names
    with pytest.raises(ValueError, match="`level` must be one of .*'fine'.*got 'coarse'"):
        code_rows(one, all_texts(), "coarse")
    with pytest.raises(ValueError, match="multiple of 2"):
        code_rows(make_autoencoder(), all_texts(3), "fine")


def test_plans_of_others_are_a_permutation_that_leaves_none_in_place():
    plans = [[i, i + 1] for i in range(7)]
    rows = Dataset.from_dict({"input_ids": [[i] for i in range(7)], "context_ids": plans})
    shuffled = with_plans_of_others(rows)
    assert (
        sorted(shuffled["context_ids"][:]) == plans
        and shuffled["input_ids"][:] == rows["input_ids"][:]
    )
    assert all(mine != other for mine, other in zip(plans, shuffled["context_ids"][:], strict=True))


# What a step of training is shown


def prompts(count=4000, length=5):
    ids = torch.arange(10, 10 + length).expand(count, length)
    return {
        "input_ids": torch.zeros(count, 2),
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
    }


def test_prompts_are_dropped_and_cut_to_suffixes_of_each_length_alike():
    batch = prompts()
    shown = shown_prompts(batch, generators(4000), dropout=0.25, suffixes=True)
    kept = shown["prompt_mask"].sum(dim=1)
    counts = np.bincount(kept, minlength=6)
    assert chisquare(counts, 4000 * np.array([0.25, *[0.15] * 5])).pvalue > 1e-4
    for row in range(200):
        mask = shown["prompt_mask"][row].bool()
        assert torch.equal(mask, torch.arange(5) < kept[row])
        assert torch.equal(
            shown["prompt_ids"][row][mask], batch["prompt_ids"][row][5 - kept[row] :]
        )
    assert shown["input_ids"] is batch["input_ids"] and (batch["prompt_mask"] == 1).all()


def test_whole_prompts_stay_whole_and_short_ones_are_cut_within_themselves():
    batch = prompts(300)
    batch["prompt_mask"] = (torch.arange(5) < torch.arange(300).remainder(6).unsqueeze(1)).long()
    whole = shown_prompts(batch, generators(300), dropout=0.5, suffixes=False)
    told = whole["prompt_mask"].any(dim=1)
    assert torch.equal(whole["prompt_mask"][told], batch["prompt_mask"][told])
    assert torch.equal(whole["prompt_ids"], batch["prompt_ids"]) and 0.3 < told.float().mean() < 0.6
    cut = shown_prompts(batch, generators(300), dropout=0.0, suffixes=True)
    kept, lengths = cut["prompt_mask"].sum(dim=1), batch["prompt_mask"].sum(dim=1)
    assert ((kept >= 1) | (lengths == 0)).all() and (kept <= lengths).all()
    last = cut["prompt_ids"].gather(1, (kept - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    assert torch.equal(last[lengths > 0], 9 + lengths[lengths > 0])


def test_wrong_and_hidden_plans_come_at_their_rates_and_independently():
    count, codes, length = 3000, 6, 4
    batch = {"context_ids": torch.zeros(count, length, dtype=torch.long)}
    shown = shown_plans(batch, generators(count), corruption=0.3, dropout=0.2, num_codes=codes)[
        "context_ids"
    ]
    hidden = (shown == codes).all(dim=1)
    assert torch.equal(hidden, (shown == codes).any(dim=1))
    assert abs(hidden.float().mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / count)
    seen = shown[~hidden]
    expected = seen.numel() * np.array([0.7 + 0.3 / codes, *[0.3 / codes] * (codes - 1)])
    assert chisquare(np.bincount(seen.flatten(), minlength=codes), expected).pvalue > 1e-4
    wrong = (seen != 0).long().sum(dim=1)  # of independent places: binomial
    share = 0.3 * (codes - 1) / codes
    binomial = [
        math.comb(length, k) * share**k * (1 - share) ** (length - k) for k in range(length + 1)
    ]
    assert (
        chisquare(np.bincount(wrong, minlength=length + 1), len(seen) * np.array(binomial)).pvalue
        > 1e-4
    )


def test_rows_without_a_plan_have_no_prompt_and_others_lose_theirs_by_a_coin_of_their_own():
    count = 4000
    batch = prompts(count) | {"context_ids": torch.zeros(count, 3, dtype=torch.long)}
    rows = generators(count)
    batch = shown_prompts(batch, rows, dropout=0.3, suffixes=True)
    batch = shown_plans(batch, rows, corruption=0.1, dropout=0.3, num_codes=5)
    no_prompt, no_plan = batch["prompt_mask"].sum(dim=1) == 0, batch["context_ids"][:, 0] == 5
    table = [
        int((no_prompt == a).logical_and(no_plan == b).sum())
        for a in (True, False)
        for b in (True, False)
    ]
    assert table[2] == 0  # a prompt and no plan
    assert (
        chisquare([table[0], table[1], table[3]], count * np.array([0.3, 0.21, 0.49])).pvalue > 1e-4
    )


def test_a_row_is_shown_the_same_alone_and_in_a_batch():
    batch = prompts(6) | {"context_ids": torch.arange(18).view(6, 3)}

    def shown(batch, rows):
        batch = shown_prompts(batch, rows, dropout=0.4, suffixes=True)
        return shown_plans(batch, rows, corruption=0.5, dropout=0.3, num_codes=20)

    together = shown(batch, generators(6))
    for row in range(6):
        alone = shown(
            {name: column[row : row + 1] for name, column in batch.items()},
            generators(6)[row : row + 1],
        )
        assert all(torch.equal(alone[name][0], together[name][row]) for name in batch)


def test_nothing_to_hide_draws_nothing():
    batch = prompts(2) | {"context_ids": torch.zeros(2, 3, dtype=torch.long)}
    rows = generators(2)
    states = [generator.get_state() for generator in rows]
    assert shown_prompts(batch, rows, dropout=0.0, suffixes=False) is batch
    assert shown_plans(batch, rows, corruption=0.0, dropout=0.0, num_codes=4) is batch
    plain = {"input_ids": batch["input_ids"]}
    assert (
        shown_prompts(plain, rows, 0.5, True) is plain
        and shown_plans(plain, rows, 0.5, 0.5, 4) is plain
    )
    assert all(
        torch.equal(generator.get_state(), state)
        for generator, state in zip(rows, states, strict=True)
    )


# The model


@pytest.fixture(params=["own", "bert"])
def prompt_encoder(request):
    if request.param == "own":
        return randomized(
            PromptEncoderModel(12, 8, num_layers=1, num_attention_heads=2, max_length=6), std=0.5
        )
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return randomized(
        BertModel(BertConfig(vocab_size=12, max_position_embeddings=6, **sizes)), std=0.5
    )


def test_a_prompt_is_told_and_an_empty_one_is_none(prompt_encoder):
    model = PromptedDenoiser(make_denoiser(FINE, prompt_size=8), prompt_encoder)
    codes, ids = (
        torch.tensor([[3, 1], [0, 3], [3, 3]]),
        torch.tensor([[1, 2, 3], [4, 5, 0], [6, 7, 8]]),
    )
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
    logits = model(codes, prompt_ids=ids, prompt_mask=mask).logits
    none = model(codes).logits
    torch.testing.assert_close(logits[2], none[2], rtol=0, atol=1e-6)
    assert (logits[:2] - none[:2]).abs().amax(dim=(1, 2)).min() > 1e-3
    other = ids.clone()
    other[1, 2] = 9  # behind the prompt
    torch.testing.assert_close(model(codes, prompt_ids=other, prompt_mask=mask).logits, logits)
    states = prompt_encoder(input_ids=ids[:1], attention_mask=mask[:1]).last_hidden_state
    want = model.denoiser(codes[:1], prompt_states=states, prompt_mask=mask[:1]).logits
    torch.testing.assert_close(logits[:1], want)


def test_a_frozen_prompt_encoder_has_no_gradients_and_no_dropout():
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    encoder = BertModel(BertConfig(vocab_size=12, hidden_dropout_prob=0.5, **sizes))
    model = PromptedDenoiser(
        make_denoiser(FINE, prompt_size=8), encoder, train_prompt_encoder=False
    ).train()
    inputs = {"prompt_ids": torch.tensor([[1, 2]]), "prompt_mask": torch.tensor([[1, 1]])}
    logits = model(torch.tensor([[3, 3]]), **inputs).logits
    assert torch.equal(model(torch.tensor([[3, 3]]), **inputs).logits, logits)
    logits.sum().backward()
    assert (
        all(p.grad is None for p in encoder.parameters())
        and model.denoiser.head.weight.grad is not None
    )
    assert model.denoiser.training and not encoder.training
    with pytest.raises(ValueError, match="`prompt_ids` need a `prompt_encoder`"):
        PromptedDenoiser(make_denoiser(FINE))(torch.tensor([[3, 3]]), **inputs)


def test_an_encoder_of_other_tokens_or_shorter_prompts_is_refused(tokenizer, tmp_path):
    sizes = {"num_layers": 1, "num_attention_heads": 2}
    PromptEncoderModel(12, 8, max_length=6, **sizes).save_pretrained(tmp_path / "small")
    with pytest.raises(
        ValueError, match=f"`prompt_encoder` must have a vocabulary of at least {len(tokenizer)}"
    ):
        load_prompt_encoder(tmp_path / "small", tokenizer, 6)
    PromptEncoderModel(len(tokenizer), 8, max_length=6, **sizes).save_pretrained(tmp_path / "short")
    assert load_prompt_encoder(tmp_path / "short", tokenizer, 6).config.max_length == 6
    with pytest.raises(
        ValueError, match="`prompt_length` must be at most 6 for this prompt encoder, got 7"
    ):
        load_prompt_encoder(tmp_path / "short", tokenizer, 7)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = RobertaConfig(max_position_embeddings=10, intermediate_size=8, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(
        tmp_path / "roberta"
    )  # whose first two positions are of no token
    assert load_prompt_encoder(tmp_path / "roberta", tokenizer, 8).config.hidden_size == 8
    with pytest.raises(
        ValueError, match="`prompt_length` must be at most 8 for this prompt encoder, got 9"
    ):
        load_prompt_encoder(tmp_path / "roberta", tokenizer, 9)
    sizes = {
        "vocab_size": len(tokenizer),
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    T5Model(T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    with pytest.raises(
        ValueError, match="`prompt_encoder` must be an encoder alone, .* got T5Model"
    ):
        load_prompt_encoder(tmp_path / "t5", tokenizer, 6)


# The bound


def log_probs(denoiser, codes, context=None):
    """Log-probabilities of clean codes, (n, number of codes), by a denoiser that is shown `codes`, a list."""
    inputs = {} if context is None else {"context_ids": torch.tensor([context])}
    logits = denoiser(torch.tensor([codes]), **inputs).logits[0].double()
    return logits[:, :-1].log_softmax(dim=-1)


def by_order(denoiser, codes, context=None):
    """Log-probability of `codes` written in each of the orders, by an any-order model."""
    mask, totals = denoiser.config.vocab_size - 1, []
    for order in itertools.permutations(range(len(codes))):
        shown, total = [mask] * len(codes), 0.0
        for place in order:
            total += float(log_probs(denoiser, shown, context)[place, codes[place]])
            shown[place] = codes[place]
        totals.append(total)
    return np.array(totals)


@torch.no_grad()
def exact(pipe, context_of=None):
    """`{text: (coarse, fine, decoder bounds)}` and `{text: p(text)}` of all texts of two tokens, by enumeration."""
    bounds, probs = {}, {}
    plans = [[code] for code in range(COARSE)]
    details = [list(codes) for codes in itertools.product(range(FINE), repeat=2)]
    coarse = {tuple(plan): by_order(pipe.coarse_denoiser, plan) for plan in plans}
    fine = {
        (*p, *d): by_order(pipe.fine_denoiser, d, p) for p in [*plans, [COARSE]] for d in details
    }
    words = {
        (*p, *d): pipe.autoencoder.decode(torch.tensor([d]), torch.tensor([p]))[0]
        .double()
        .log_softmax(dim=-1)
        for p in plans
        for d in details
    }
    for index, text in enumerate(itertools.product(range(V), repeat=2)):
        codes = pipe.autoencoder.encode(torch.tensor([text]))
        plan, detail = tuple(codes.coarse[0].tolist()), tuple(codes.fine[0].tolist())
        told = plan if context_of is None else context_of(index, plan)
        spoken = sum(float(words[plan + detail][place, token]) for place, token in enumerate(text))
        bounds[text] = -coarse[plan].mean(), -fine[told + detail].mean(), -spoken
        probs[text] = sum(
            np.exp(coarse[tuple(p)]).mean()
            * np.exp(fine[(*p, *d)]).mean()
            * math.exp(
                sum(float(words[(*p, *d)][place, token]) for place, token in enumerate(text))
            )
            for p in plans
            for d in details
        )
    return bounds, probs


def test_the_terms_bound_the_likelihood_of_every_text_and_leave_no_probability_over():
    pipe = make_pipe()
    bounds, probs = exact(pipe)
    assert sum(probs.values()) == pytest.approx(1)
    totals = {text: sum(terms) for text, terms in bounds.items()}
    assert 0 < sum(math.exp(-nats) for nats in totals.values()) <= 1
    assert all(totals[text] >= -math.log(probs[text]) for text in probs)
    codes = pipe.autoencoder.encode(torch.tensor(list(probs)))
    assert (
        len(codes.fine.unique(dim=0)) > 2 and len(codes.coarse.unique(dim=0)) == 2
    )  # the codes are not all one


@pytest.mark.slow
def test_the_report_estimates_the_terms():
    pipe, rows = make_pipe(), all_texts()
    pipe.fine_denoiser.context_embedding.weight.data *= (
        3  # what plans say matters more than the noise of an estimate
    )
    plans = [tuple(plan) for plan in code_rows(pipe.autoencoder, rows, "coarse")["input_ids"]]
    told = {
        "fine": None,
        "fine_with_shuffled_plans": lambda index, plan: plans[(index + 8) % 16],
        "fine_without_plans": lambda index, plan: (COARSE,),
    }
    exactly = {
        name: np.mean(list(exact(pipe, of)[0].values()), axis=0) / 2 for name, of in told.items()
    }
    bounds = [estimate_two_level_bound(pipe, rows, num_times=40, seed=seed) for seed in range(10)]
    coarse, _, decoder = exactly["fine"]  # nats per token
    for name, nats in {
        "coarse": coarse,
        **{name: terms[1] for name, terms in exactly.items()},
    }.items():
        found = np.array([getattr(one, name) for one in bounds])
        assert found.mean() == pytest.approx(nats, abs=4 * found.std(ddof=1) / len(found) ** 0.5), (
            name
        )
    bound = bounds[0]
    assert bound.decoder == pytest.approx(decoder, rel=1e-5)
    codes = code_rows(pipe.autoencoder, rows, "fine")
    untold = codes.remove_columns("context_ids").add_column("context_ids", [[COARSE]] * 16)
    for name, told_rows in (
        ("fine_with_shuffled_plans", with_plans_of_others(codes)),
        ("fine_without_plans", untold),
    ):
        estimate = estimate_bound(
            PromptedDenoiser(pipe.fine_denoiser), pipe.fine_scheduler, told_rows, num_times=40
        )
        assert getattr(bound, name) == pytest.approx(estimate.bound, rel=1e-6)
        assert abs(getattr(bound, name) - bound.fine) > 1e-3
    assert bound.total.bound == bound.coarse + bound.fine + bound.decoder
    printed = bound.table()
    assert (
        f"{bound.decoder:.3f}" in printed
        and f"{bound.fine_with_shuffled_plans:.3f} with" in printed
    )
    assert set(bound.metrics()) == {
        *("coarse_bound", "fine_bound", "decoder_cross_entropy"),
        *("fine_bound_with_shuffled_plans", "fine_bound_without_plans"),
    }


@pytest.mark.slow
def test_the_standard_error_covers_repeated_reports():
    pipe, rows = make_pipe(), all_texts()
    reports = [
        estimate_two_level_bound(pipe, rows, num_times=8, batch_size=16, seed=seed)
        for seed in range(8)
    ]
    spread = np.std([report.total.bound for report in reports])
    assert spread < 1.5 * np.mean([report.standard_error for report in reports])


def test_one_level_has_no_plans():
    pipe = make_pipe(autoencoder=make_autoencoder(coarse_ratio=None, num_coarse_codes=None))
    bound = estimate_two_level_bound(pipe, all_texts(), num_times=2)
    assert (
        bound.coarse is None
        and bound.fine_with_shuffled_plans is None
        and bound.fine_without_plans is None
    )
    assert bound.total.bound == bound.fine + bound.decoder
    assert (
        set(bound.metrics()) == {"fine_bound", "decoder_cross_entropy"}
        and "another text" not in bound.table()
    )


def test_bounds_depend_on_prompts(prompt_encoder):
    pipe = make_pipe(prompt_size=8, prompt_encoder=prompt_encoder)
    rows = all_texts().to_dict()
    told = [
        Dataset.from_dict(rows | {"prompt_ids": [[token, 2]] * 16, "prompt_mask": [[1, 1]] * 16})
        for token in (1, 5)
    ]
    bounds = [estimate_two_level_bound(pipe, one, num_times=4) for one in told]
    assert bounds[0].coarse != bounds[1].coarse and bounds[0].fine != bounds[1].fine
    assert bounds[0].decoder == bounds[1].decoder
    assert bounds[0].fine_without_plans == bounds[1].fine_without_plans  # nor are prompts told


def test_only_counted_tokens_cost_and_divide():
    autoencoder, rows = make_autoencoder(), all_texts().to_dict()
    rows["attention_mask"] = [[1, index % 2] for index in range(16)]
    rows = Dataset.from_dict(rows)
    tokens = torch.tensor(rows["input_ids"][:])
    codes = autoencoder.encode(tokens)
    logs = autoencoder.decode(codes.fine, codes.coarse).detach().double().log_softmax(dim=-1)
    nats = -logs.gather(2, tokens.unsqueeze(2)).squeeze(2) * torch.tensor(rows["attention_mask"][:])
    found = decoder_cross_entropy(autoencoder, rows)
    assert (
        found.bound == pytest.approx(float(nats.sum()) / 24, rel=1e-5)
        and 0 < found.standard_error < 2
    )
    fine = code_rows(autoencoder, rows, "fine")
    scaled = per_token(BoundEstimate(3.0, 0.3, [1.0, 2.0]), fine, rows)  # 32 codes, 24 tokens
    assert scaled.bound == pytest.approx(4) and scaled.standard_error == pytest.approx(0.4)
    assert scaled.by_noise == pytest.approx([4 / 3, 8 / 3])


def test_a_constant_cross_entropy_has_no_error():
    autoencoder = make_autoencoder()
    for parameter in autoencoder.norm_out.parameters():
        parameter.data.zero_()  # all tokens are as likely
    found = decoder_cross_entropy(autoencoder, all_texts())
    assert found.bound == pytest.approx(math.log(V)) and found.standard_error == pytest.approx(
        0, abs=1e-6
    )


def test_the_mean_loss_of_a_batch_is_the_bound_of_its_rows():
    """Training and report integrate the same: over a fine grid of times they agree."""
    pipe, scheduler = make_pipe(), D3PMAbsorbingScheduler(FINE)
    rows = code_rows(pipe.autoencoder, all_texts(), "fine")
    batch, sums = to_tensors(rows[:]), []
    model = PromptedDenoiser(pipe.fine_denoiser)
    with torch.no_grad():
        for step in range(300):
            uniform, noise = row_noise(0, step, 16)
            sums.append(
                float(batch_bound(model, scheduler, batch, uniform.roll(step), noise).sum()) / 32
            )
    estimate = estimate_bound(model, scheduler, rows, num_times=300)
    error = np.hypot(np.std(sums) / 300**0.5, estimate.standard_error)
    assert np.mean(sums) == pytest.approx(estimate.bound, abs=4 * error)
