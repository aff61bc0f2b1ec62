"""One definition of a counted token: recipes, `evaluate_likelihood` and the command line agree on the same texts."""

import itertools
import json
import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model, mostly_slow
from datasets import Dataset
from support.character_texts import character_tokenizer, ignorant_pipe
from support.oracles import MarkovSource, TableDenoiser
from support.recipes import load_script
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDPMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.cli.evaluation.text_bounds import evaluate_texts, report
from text_diffusers.data.rows import tokenize, unknown_tokens
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.evaluation.embedding import estimate_embedding_bound
from text_diffusers.evaluation.held_out import report_texts
from text_diffusers.evaluation.likelihood import (
    estimate_bound,
    evaluate_likelihood,
    unigram_entropy,
)
from text_diffusers.evaluation.row_bounds import monte_carlo_bound
from text_diffusers.evaluation.two_level import per_token
from text_diffusers.evaluation.written_texts import smoothed_lengths
from text_diffusers.training.tracking import CURVES_FILE, read_curves

SMALL = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "max_train_steps": 2,
    "train_batch_size": 4,
    "num_cpu_threads": 1,
    "num_length_samples": 0,
    "num_samples": 0,
    "checkpointing_steps": 0,
    "packing": False,
    "length": 32,
    "report_to": ["none"],
}
RECIPES = {
    "train_d3pm": ("D3PMConfig", {}),
    "train_diffusion_lm": ("DiffusionLMConfig", {"num_train_timesteps": 40}),
}
KINDS = ("plain", "label", "source")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A file of 60 pairs with labels; the last three are held out, of lengths that no other has."""
    rows = []
    for number in range(57):
        rows.append({"text": f"text {number} of many", "mood": number % 2, "before": f"n {number}"})
    for words in ("one", "one two three", "x " * 60):
        rows.append({"text": words, "mood": 1, "before": words[:80]})
    path = tmp_path_factory.mktemp("documents") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize(
    "recipe, kind",
    mostly_slow(
        itertools.product(RECIPES, KINDS),
        fast=[("train_d3pm", "source"), ("train_d3pm", "plain"), ("train_diffusion_lm", "label")],
    ),
)
def test_recipe_likelihood_and_command_line_agree_to_the_last_digit(
    recipe, kind, documents, tmp_path
):
    columns = {
        "label": {"label_column": "mood"},
        "source": {"source_column": "before", "label_column": "mood"},
    }.get(kind, {})
    name, changes = RECIPES[recipe]
    script = load_script(recipe)
    folder = tmp_path / "run"
    config = getattr(script, name)(
        dataset=str(documents), output_dir=str(folder), **SMALL, **changes, **columns
    )
    script.main(config)
    metrics = json.loads((folder / "metrics.json").read_text())

    # The texts that the recipe held out, read again
    texts = load_documents(
        str(documents),
        label_column=config.label_column,
        source_column=config.source_column,
    )
    _, held_out = split_documents(texts, config.validation_fraction)
    labels = list(held_out["label"]) if columns else None
    sources = list(held_out["source"]) if kind == "source" else None
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    likelihood = evaluate_likelihood(
        pipe,
        held_out["text"],
        class_labels=labels,
        sources=sources,
        num_times=2,
        max_length=config.length,
    )
    found = evaluate_texts(pipe, held_out["text"], labels, num_times=2, sources=sources)
    assert (
        metrics["bound"] == likelihood.nats_per_token == found.nats_per_token
        and metrics["bits_per_character"] == pytest.approx(likelihood.bits_per_character, rel=1e-12)
        and likelihood.bits_per_character == found.bits_per_character
        and metrics["unigram_entropy"] == likelihood.unigram_entropy == found.unigram_entropy
        and metrics["num_tokens"] == likelihood.num_tokens == found.num_tokens
        and metrics["standard_error"] == likelihood.error_over_texts
    )
    assert math.isfinite(metrics["bound"]) and likelihood.num_never_drawn == 0

    # What is counted is what rows of training count.
    rows = tokenize(held_out, pipe.tokenizer, config.length, packing=False)
    tokens = sum(int(unknown_tokens(batch).sum()) for batch in rows.with_format("torch").iter(1))
    assert metrics["num_tokens"] == tokens and likelihood.num_truncated == 1
    if kind != "source":
        cut = pipe.tokenizer.decode(rows[2]["input_ids"][1:-1])
        whole = sum(len(text) + 1 for text in held_out["text"][:2])
        assert likelihood.num_characters == whole + len(cut) + 1

    # The bound on the way is of the same tokens, by other draws.
    validation = read_curves(folder / CURVES_FILE)[-1]["validation"]
    error = math.hypot(validation["standard_error"], metrics["standard_error"])
    assert abs(validation["bound"] - metrics["bound"]) < 4 * error + 0.01
    assert validation["bits_per_character"] == pytest.approx(
        validation["bound"] * metrics["num_tokens"] / metrics["num_characters"] / math.log(2)
    )

    # ParaGuide has the bound of its denoiser.
    if kind == "source":
        paraguide = ParaGuidePipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler)
        again = evaluate_likelihood(
            paraguide,
            held_out["text"],
            class_labels=labels,
            sources=sources,
            num_times=2,
            max_length=config.length,
        )
        assert again.per_text_nats == likelihood.per_text_nats


def test_no_more_texts_are_reported_than_are_asked_for_and_those_are_spread(tokenizer):
    pipe = TextDiffusionPipeline(
        tokenizer, make_denoiser(tokenizer), D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    )
    texts = [" ".join(["the cat"] * size) for size in range(1, 7)]
    data = SimpleNamespace(validation_documents=Dataset.from_dict({"text": texts}))
    for most, wanted in ((None, texts), (6, texts), (3, texts[::2]), (4, texts[::2])):
        config = SimpleNamespace(length=32, seed=0, report_rows=most)
        metrics = report_texts(config, data, pipe)
        assert metrics["num_characters"] == sum(len(text) + 1 for text in wanted)


# Given a source or a prompt, against enumeration


class PairDenoiser(TableDenoiser):
    """Knows p(source, first, second) of letters: exact marginals of a reply of two letters, given what it is shown.

    A row is "<", the source, ">", two letters and ">"; the end it knows for certain.
    """

    def __init__(self, table, tokenizer):
        super().__init__(None, tokenizer.mask_token_id + 1)
        self.end = tokenizer.eos_token_id

        # The marginals of both letters by the source and what is shown of them, 3 standing for a mask
        self.marginals = torch.zeros(3, 4, 4, 2, 3, dtype=torch.float64)
        for source, first, second in itertools.product(range(3), range(4), range(4)):
            reply = torch.tensor(table[source])  # (3, 3)
            if first < 3:
                reply = reply * torch.eye(3)[first].unsqueeze(1)
            if second < 3:
                reply = reply * torch.eye(3)[second]
            self.marginals[source, first, second] = torch.stack(
                [reply.sum(dim=1), reply.sum(dim=0)]
            )

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        shape = (*input_ids.shape, self.config.vocab_size)
        logits = torch.full(shape, -torch.inf, dtype=torch.float64)
        logits[:, 5, self.end] = 0.0
        source, first, second = input_ids[:, [1, 3, 4]].clamp(max=3).unbind(dim=1)
        logits[:, 3:5, :3] = self.marginals[source, first, second].log()
        return SimpleNamespace(logits=logits[positions])


@pytest.fixture(scope="module")
def pairs():
    """`(pipeline, table, sources, replies)` of all texts of a joint distribution of three letters."""
    tokenizer = character_tokenizer("abc", bos_token="<", eos_token=">")
    table = np.random.default_rng(0).dirichlet(np.ones(27)).reshape(3, 3, 3)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(tokenizer, PairDenoiser(table, tokenizer), scheduler)
    texts = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
    return pipe, table, [text[0] for text in texts], [text[1:] for text in texts]


def test_the_bound_of_a_reply_given_its_source_is_its_conditional_likelihood(pairs):
    pipe, table, sources, replies = pairs
    want = -np.log(table / table.sum(axis=(1, 2), keepdims=True)).flatten()
    result = evaluate_likelihood(
        pipe, replies, sources=sources, full=True, num_noise=100, batch_size=1000
    )
    nats, errors = np.array(result.per_text_nats), np.array(result.per_text_errors)
    assert (np.abs(nats - want) < 4.5 * errors + 1e-6).all()
    weights = table.flatten()
    error = math.sqrt(weights**2 @ errors**2)
    assert abs(weights @ (nats - want)) < 3 * error and error < 0.02
    assert result.num_tokens == result.num_characters == 27 * 3  # two letters and the end


def test_a_length_that_the_model_predicts_costs_what_it_is_drawn_with(tokenizer):
    denoiser = make_denoiser(tokenizer, predicts_length=True)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler)
    sources = ["the cat", "a dog sat on the mat"]
    result = evaluate_likelihood(pipe, SENTENCES[:2], sources=sources, num_times=4)

    # The rows by hand, with the end in place, and the length among all that fit
    rows = []
    costs = []
    end = tokenizer.eos_token_id
    for text, source in zip(SENTENCES, sources, strict=False):
        given = [tokenizer.bos_token_id, *tokenizer(source)["input_ids"], end]
        ids = tokenizer(text)["input_ids"]
        row = [*given, *ids, end]
        is_given = [True] * len(given) + [False] * len(ids) + [True]
        rows.append({"input_ids": row, "attention_mask": [1] * len(row), "given": is_given})
        logits = denoiser.length_logits(torch.tensor([given]))[0].detach()
        room = denoiser.config.max_length - len(given) - 1
        costs.append(-float(logits[1 : room + 1].log_softmax(dim=0)[len(ids) - 1]))
    bounds = monte_carlo_bound(denoiser, scheduler, rows, num_times=4)
    want = bounds.nats + torch.tensor(costs, dtype=torch.float64)
    assert result.per_text_nats == pytest.approx(want.tolist(), rel=1e-5)
    counted = [sum(not given for given in row["given"]) + 1 for row in rows]
    assert result.num_tokens == sum(counted)


def test_conditions_that_a_pipeline_has_no_bound_for_are_refused_by_name(tokenizer, pairs):
    pipe, _, sources, replies = pairs
    with pytest.raises(ValueError, match="`sources` excludes `prompts`"):
        evaluate_likelihood(pipe, replies, sources=sources, prompts=sources)
    embeddings = DiffusionLMPipeline(
        tokenizer, make_embedding_model(tokenizer), EmbeddingDDPMScheduler()
    )
    with pytest.raises(ValueError, match="`sources` need a denoiser with `partial_noising=True`"):
        evaluate_likelihood(embeddings, "the cat", sources="a dog")
    with pytest.raises(ValueError, match="got TwoLevelVQ.*`estimate_two_level_bound`"):
        evaluate_likelihood(make_two_level(tokenizer), "the cat")
    with pytest.raises(ValueError, match=r"`label_names`, \[\], got 'chat'"):
        evaluate_likelihood(pipe, replies[:1], class_labels=["chat"])


# Lengths that are drawn


def test_a_length_that_is_never_drawn_makes_the_bound_infinite_and_says_so(caplog):
    tokenizer = character_tokenizer("ab", bos_token="<", eos_token=">")
    pipe = ignorant_pipe(tokenizer, lengths=[0, 3, 0, 1])
    with caplog.at_level(logging.WARNING):
        result = evaluate_likelihood(pipe, ["a", "ab", "aba"], full=True)
    assert result.nats_per_token == result.bits_per_character == result.perplexity == math.inf
    assert result.num_never_drawn == 1 and "1 of 3 texts" in caplog.text
    each = math.log(4)
    assert result.per_text_nats == pytest.approx(
        [each - math.log(3 / 4), math.inf, 3 * each - math.log(1 / 4)]
    )
    found = evaluate_texts(pipe, ["a", "ab"], num_times=2)
    assert found.record()["nats_per_token"] is None and found.num_never_drawn == 1
    assert "1 texts have a number of tokens" in report(found)


@pytest.mark.parametrize("counts", [[0, 0, 3, 0], [5, 1000, 0, 400], [0] * 127 + [7]])
def test_smoothed_lengths_draw_every_length_and_mostly_those_of_the_data(counts):
    smoothed = np.array(smoothed_lengths(counts))
    drawn = smoothed / smoothed.sum()
    frequencies = np.array(counts) / sum(counts)
    assert (smoothed[1:] > 0).all() and (smoothed[0] > 0) == (counts[0] > 0)
    assert np.abs(drawn - frequencies).sum() / 2 < 0.01


# Estimates


@pytest.mark.parametrize("num_times", [1, 2, 3])
def test_any_number_of_times_gives_the_bound_and_two_an_error(num_times):
    source = MarkovSource.golden()
    pipe = ignorant_pipe(character_tokenizer("abc"))
    texts = ["".join("abc"[token] for token in ids) for ids in source.sequences]
    scheduler = D3PMAbsorbingScheduler(3)
    result = evaluate_likelihood(pipe, texts, num_times=num_times)
    assert result.nats_per_token == pytest.approx(math.log(3))
    assert math.isnan(result.standard_error) == (num_times == 1)
    assert result.num_samples == 27 * num_times and math.isfinite(result.error_over_texts)

    # The mean over many rows of a bound that does depend on the draws
    denoiser = TableDenoiser(source.masked_denoiser(), 4)
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * 3} for ids in source.sequences]
    bounds = monte_carlo_bound(denoiser, scheduler, rows * 40, num_times, batch_size=2000)
    sums = bounds.nats.view(40, 27) @ torch.tensor(source.probs)
    assert abs(sums.mean() - source.entropy) < 4 * sums.std() / 40**0.5

    found = evaluate_texts(pipe, texts[:1], num_times=num_times)
    assert (found.standard_error is None) == (num_times == 1)
    assert ("unknown" in report(found)) == (num_times == 1)


def test_every_row_comes_equally_often_in_an_estimate(tokenizer, denoiser):
    """At one step everything is masked, so the bound of rows has no noise, whatever the batches."""
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id, num_train_timesteps=1)
    sizes = [3, 9, 5, 1, 7]
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 250, size=size).tolist() + [0] * (9 - size) for size in sizes]
    masks = [[1] * size + [0] * (9 - size) for size in sizes]
    given = [[place % 2 == 1 for place in range(9)] for _ in sizes]
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "given": given})
    exact = monte_carlo_bound(denoiser, scheduler, list(rows), num_times=1)
    tokens = 2 + 5 + 3 + 1 + 4
    for batch_size in (1, 3, 64):
        estimate = estimate_bound(denoiser, scheduler, rows, num_times=2, batch_size=batch_size)
        assert estimate.bound == pytest.approx(float(exact.nats.sum()) / tokens, rel=1e-5)
    with pytest.raises(ValueError, match="`num_times` must be an integer of at least 1, got 0"):
        estimate_bound(denoiser, scheduler, rows, num_times=0)

    # The same tokens in the entropy, and in a bound of codes
    counted = [
        token
        for row in rows
        for token, is_given, real in zip(
            *(row[n] for n in ("input_ids", "given", "attention_mask")), strict=True
        )
        if real and not is_given
    ]
    shares = np.unique(counted, return_counts=True)[1] / tokens
    assert unigram_entropy(rows) == pytest.approx(-(shares * np.log(shares)).sum())
    assert per_token(estimate, rows, rows).bound == pytest.approx(estimate.bound * 45 / tokens)


def test_the_bound_of_texts_over_embeddings_is_that_of_their_rows(tokenizer):
    """By hand: start and drawn end are known, and no text pays for the other."""
    model = make_embedding_model(tokenizer, num_train_timesteps=20, partial_noising=True)
    scheduler = EmbeddingDDPMScheduler(20)
    pipe = DiffusionLMPipeline(tokenizer, model, scheduler, lengths=[1] * 20)
    texts = SENTENCES[:2]
    full = evaluate_likelihood(pipe, texts, full=True, num_noise=10, batch_size=256)
    drawn = evaluate_likelihood(pipe, texts, num_times=100, batch_size=256)
    error = math.hypot(full.standard_error, drawn.standard_error)
    assert abs(full.nats_per_token - drawn.nats_per_token) < 4 * error
    assert error < 0.1 * full.nats_per_token

    columns = {"input_ids": [], "attention_mask": [], "given": []}
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        padding = [0] * (20 - len(ids))
        columns["input_ids"].append(
            [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]
        )
        columns["attention_mask"].append([1] * (len(ids) + 2) + padding)
        columns["given"].append([True] + [False] * len(ids) + [True] + [False] * len(padding))
    rows = Dataset.from_dict(columns)
    estimate = estimate_embedding_bound(model, scheduler, rows, num_times=100)
    num_ids = full.num_tokens - 2
    want = (estimate.bound * num_ids + 2 * math.log(20)) / full.num_tokens
    assert abs(full.nats_per_token - want) < 4 * (full.standard_error + estimate.standard_error)
