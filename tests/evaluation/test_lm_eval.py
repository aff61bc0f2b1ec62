"""Laws of pipelines as a model of lm-eval: log-likelihoods of known distributions, common noise, and texts."""

import itertools
import json
import math

import pytest
import torch
from conftest import make_denoiser
from support.embedding_pipes import make_embedding_pipe
from support.language_models import chat_pipe, make_language_model, word_tokenizer
from support.markov_texts import markov_pipe
from support.masked_lms import make_masked_lm
from support.two_level_pipes import make_two_level

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMUniformScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.evaluation.given_tokens import given_messages
from text_diffusers.models import Reading

pytest.importorskip("lm_eval", reason="lm-eval comes with text-diffusers[eval]")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.model import CachingLM  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from text_diffusers.evaluation.harness.model import TextDiffusersLM  # noqa: E402
from text_diffusers.evaluation.harness.writing import cut_before, seed_of  # noqa: E402

MASK, END, START = 0, 2, 4
CAUSAL = Reading(
    attention="block",
    past="causal",
    block_length=2,
    alignment="shifted",
    mask_token_id=MASK,
    end_token_ids=[END],
)
QUESTION = [{"role": "user", "content": "w8 w9"}]


def asked(kind, *arguments, document=None):
    """Requests of one task: the choices of one document, or each of its own."""
    requests = []
    for number, values in enumerate(arguments):
        name = number if document is None else document
        metadata = ("task", number, 1)
        requests.append(Instance(kind, {"question": name}, values, number, metadata))
    return requests


def log_likelihoods(lm, *pairs, **options):
    requests = asked("loglikelihood", *pairs, **options)
    return [value for value, _ in lm.loglikelihood(requests, disable_tqdm=True)]


def texts_of(lm, *pairs):
    return lm.generate_until(asked("generate_until", *pairs), disable_tqdm=True)


def masked_lm_pipe(**settings):
    model, tokenizer = make_masked_lm("bert")
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(tokenizer, model, scheduler, **settings)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def causal_pipe(model_type="qwen2"):
    tokenizer = word_tokenizer(
        mask_token="<|mask|>", pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|user|>"
    )
    model = make_language_model(model_type, CAUSAL)
    pipe = TextDiffusionPipeline(tokenizer, model, D3PMAbsorbingScheduler(MASK))
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Log-likelihoods


@pytest.mark.parametrize(
    "options", [{"num_times": 1024}, {"full": True, "num_noise": 256}], ids=["monte_carlo", "full"]
)
def test_under_an_exact_model_the_log_likelihood_is_that_of_the_distribution(options):
    """Its bound is tight: -log p, in whatever order the tokens are revealed."""
    pipe, log_prob = markov_pipe()
    lm = TextDiffusersLM(pipe, batch_size=256, **options)
    pairs = {
        ("w6 w7", " w8 w9 w6"): log_prob([6, 7, 8, 9, 6]) - log_prob([6, 7]),
        ("", "w9 w9"): log_prob([9, 9]),
        # Blanks at the end of a context belong to the continuation.
        ("w7 ", "w8"): log_prob([7, 8]) - log_prob([7]),
    }
    found = log_likelihoods(lm, *pairs)
    for exact, value, record in zip(pairs.values(), found, lm.records, strict=True):
        assert value == pytest.approx(exact, abs=4.5 * record.error + 1e-9)
        assert record.error < 0.2


def test_windows_of_a_text_add_up_to_the_whole_of_a_markov_chain():
    """Each window but the first is given the word before it at least, on which alone its first word depends."""
    pipe, log_prob = markov_pipe()
    ids = [6, 7, 8, 9, 6, 6, 6, 7, 8, 8, 9]
    text = " ".join(f"w{token}" for token in ids)
    for max_length in (2, 4, 5, 11, None):
        lm = TextDiffusersLM(pipe, max_length=max_length, full=True, num_noise=64, batch_size=256)
        requests = asked("loglikelihood_rolling", (text,))
        (value,) = lm.loglikelihood_rolling(requests, disable_tqdm=True)
        (record,) = lm.records
        assert value == pytest.approx(log_prob(ids), abs=4.5 * record.error + 1e-6)
        assert record.error < 0.5

    lm = TextDiffusersLM(pipe)
    assert lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("",)), True) == [0.0]


def test_a_masked_lm_reads_a_continuation_between_its_ends_as_the_bound_does():
    pipe = masked_lm_pipe()
    lm = TextDiffusersLM(pipe, num_times=512, batch_size=256)
    (value,) = log_likelihoods(lm, ("the cat", " sat on"))
    got = evaluate_likelihood(pipe, [" sat on"], prompts=["the cat"], num_times=512)
    error = (got.per_text_errors[0] ** 2 + lm.records[0].error ** 2) ** 0.5
    assert -value == pytest.approx(got.per_text_nats[0], abs=4.5 * error) and error < 0.5

    row = lm.layout.row(lm.tok_encode("the cat"), lm.tok_encode(" sat"))
    ids = pipe.tokenizer("the cat sat")["input_ids"]
    assert row.row()["input_ids"] == ids and row.counted == row.tokens


def test_an_end_that_the_model_predicts_is_no_part_of_a_continuation():
    """Masks stand where it would, as the pipeline has them there; where lengths are drawn it is given."""
    pipe = chat_pipe(attention="block", alignment="shifted")
    row = TextDiffusersLM(pipe).layout.row([8, 9], [10, 11, 12])
    assert row.row()["input_ids"] == [8, 9, 10, 11, 12, MASK, MASK, MASK]
    assert row.row()["given"] == [True] * 2 + [False] * 3 + [True] * 3

    drawn = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, lengths=[1] * 8)
    layout = TextDiffusersLM(drawn).layout
    assert layout.row([8, 9], [10, 11, 12]).row()["input_ids"] == [8, 9, 10, 11, 12, END]
    assert layout.max_length == 7 + 1  # no text is longer, and each has an end


def test_token_by_token_it_is_the_log_probability_of_stock_transformers():
    pipe = causal_pipe()
    lm = TextDiffusersLM(pipe, likelihood="autoregressive")
    excluded = [MASK, pipe.tokenizer.pad_token_id, *range(40, 44)]
    pairs = [("w8 w9", " w10 w11 w12"), ("", "w13 w20")]
    for (context, continuation), value in zip(pairs, log_likelihoods(lm, *pairs), strict=True):
        given = [START, *lm.tok_encode(context)]
        row = given + lm.tok_encode(continuation)
        with torch.no_grad():
            logits = pipe.denoiser(input_ids=torch.tensor([row])).logits[0, :-1]
        logits[:, excluded] = -torch.inf
        log_probs = logits.log_softmax(dim=-1).gather(1, torch.tensor(row[1:])[:, None])
        exact = float(log_probs[len(given) - 1 :].sum())
        assert value == pytest.approx(exact, rel=1e-4)
    assert all(record.error == 0 for record in lm.records)


def test_choices_of_one_document_have_common_noise():
    """Equal continuations differ by nothing, and others by less than they would with noise of their own."""
    pipe, log_prob = markov_pipe()
    pairs = [("w6 w7", " w8 w9 w6 w7"), ("w6 w7", " w9 w9 w9 w8")]
    first, again = log_likelihoods(TextDiffusersLM(pipe), pairs[0], pairs[0], document=0)
    assert first == again

    shared = []
    apart = []
    for seed in range(40):
        lm = TextDiffusersLM(pipe, num_times=8, seed=seed, greedy=False)
        one, other = log_likelihoods(lm, *pairs, document=0)
        shared.append(one - other)
        apart.append(one - log_likelihoods(lm, pairs[1], document=1)[0])
    shared, apart = torch.tensor(shared), torch.tensor(apart)
    assert shared.std() < 0.7 * apart.std()
    exact = log_prob([6, 7, 8, 9, 6, 7]) - log_prob([6, 7, 9, 9, 9, 8])
    assert float(shared.mean()) == pytest.approx(exact, abs=4.5 * float(shared.std()) / 40**0.5)


@pytest.mark.parametrize("make", [masked_lm_pipe, causal_pipe, chat_pipe])
def test_what_is_answered_depends_neither_on_the_batch_nor_on_the_order(make):
    pipe = make()
    words = ["w8", "w9 w10", "w11 w12 w13", "w14"]
    pairs = [(f"w{6 + size}", f" {word}") for size, word in enumerate(words)]
    writing = [(context, {"max_gen_toks": 3 + size % 2}) for size, (context, _) in enumerate(pairs)]
    answers = []
    for batch_size, order in ((1, 1), (3, -1)):
        lm = TextDiffusersLM(pipe, num_times=4, batch_size=batch_size, num_inference_steps=2)
        requests = asked("loglikelihood", *pairs)[::order]
        scored = lm.loglikelihood(requests, disable_tqdm=True)[::order]
        written = lm.generate_until(asked("generate_until", *writing)[::order], True)[::order]
        answers.append((scored, written))

    (scored, written), (scored_again, written_again) = answers
    for (value, greedy), (again, greedy_again) in zip(scored, scored_again, strict=True):
        assert value == pytest.approx(again, rel=1e-4) and greedy == greedy_again
    assert written == written_again


# Greedy continuations


def test_what_a_masked_lm_writes_greedily_is_greedy_and_nothing_else_is():
    """In as many steps as tokens, by the scheduler that reveals what the model is most certain of."""
    pipe = masked_lm_pipe()
    tokenizer = pipe.tokenizer
    writer = TextDiffusionPipeline(
        tokenizer, pipe.denoiser, ConfidenceScheduler(tokenizer.mask_token_id, temperature=0.0)
    )
    writer.set_progress_bar_config(disable=True)
    options = {"max_new_tokens": 3, "num_inference_steps": 3, "output_type": "tokens"}
    tokens = writer("the cat", **options).tokens[0].tolist()
    context = tokens[1 : 1 + len(tokenizer("the cat", add_special_tokens=False)["input_ids"])]
    written = tokens[1 + len(context) : -1]
    assert len(written) == 3

    lm = TextDiffusersLM(pipe, num_times=2)
    others = [[*written[:place], 9, *written[place + 1 :]] for place in range(3)]
    requests = [(("", ""), context, ids) for ids in [written, *others]]
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True] + [ids == written for ids in others]


def test_a_block_of_one_token_is_greedy_like_stock_transformers():
    """Blocks of one are written from the left: so is the continuation that `generate` writes, token by token."""
    pipe = causal_pipe()
    row = [START, 8, 9]
    excluded = [MASK, pipe.tokenizer.pad_token_id, *range(40, 44)]
    for _ in range(4):
        with torch.no_grad():
            logits = pipe.denoiser(input_ids=torch.tensor([row])).logits[0, -1]
        logits[excluded] = -torch.inf
        row.append(int(logits.argmax()))

    lm = TextDiffusersLM(pipe, likelihood="autoregressive")
    wrong = [*row[3:6], 9 if row[6] != 9 else 10]
    found = lm._loglikelihood_tokens([(("w8", ""), [8, 9], row[3:]), (("w8", ""), [8, 9], wrong)])
    assert [greedy for _, greedy in found] == [True, False]


def test_the_greedy_tokens_of_blocks_are_those_that_the_pipeline_writes():
    """In blocks of two, in as many steps; the same tokens in another order are not."""
    pipe = causal_pipe()
    lm = TextDiffusersLM(pipe, num_times=2)
    scheduler = ConfidenceScheduler(MASK, temperature=0.0)
    writer = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, scheduler)
    writer.set_progress_bar_config(disable=True)
    options = {"max_new_tokens": 4, "num_inference_steps": 2, "output_type": "tokens"}
    num_asked = 0
    for first, second in itertools.product(range(8, 16), range(8, 11)):
        tokens = writer(f"w{first} w{second}", **options).tokens[0, -4:].tolist()
        # A text that ends is no continuation.
        if min(tokens) < 6:
            continue
        candidates = [tokens, tokens[::-1], [tokens[1], tokens[0], *tokens[2:]]]
        requests = [(("w8", ""), [first, second], ids) for ids in candidates]
        found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
        assert [greedy for _, greedy in found] == [ids == tokens for ids in candidates]
        num_asked += 1
    assert num_asked > 3


def test_noise_that_is_no_mask_has_no_greedy_continuation(tokenizer, caplog):
    scheduler = D3PMUniformScheduler(vocab_size=len(tokenizer))
    pipe = TextDiffusionPipeline(tokenizer, make_denoiser(tokenizer), scheduler)
    lm = TextDiffusersLM(pipe, num_times=2)
    with caplog.at_level("WARNING"):
        ((value, greedy),) = lm.loglikelihood(asked("loglikelihood", ("the", " cat")), True)
    assert math.isfinite(value) and not greedy
    assert "`is_greedy` is false of all continuations" in caplog.text


# Contexts


def test_a_context_that_is_too_long_is_cut_on_the_left_and_counted(pipe, caplog):
    lm = TextDiffusersLM(pipe, num_times=4, max_length=12)
    tail = lm.tok_encode("sat on the mat and looked at the dog")[-9:]
    long = [*lm.tok_encode("she was late for the train and"), *tail]
    requests = [(("", ""), context, [40, 41]) for context in (long, tail)]
    instances = asked("loglikelihood", ("a", "b"), ("c", "d"), document=0)
    with caplog.at_level("WARNING"):
        found = lm._loglikelihood_tokens(requests, disable_tqdm=True, instances=instances)
    assert found[0] == found[1]
    assert [record.is_cut for record in lm.records] == [True, False]
    assert "task: 1 of 2 contexts were cut on the left" in caplog.text
    with pytest.raises(ValueError, match="`continuation` must be of 1 to 11 tokens"):
        lm._loglikelihood_tokens([(("", ""), [], [40] * 12)])


def test_a_cut_context_keeps_the_characters_of_its_last_tokens(pipe):
    lm = TextDiffusersLM(pipe)
    context = "she was late for the train and ran all the way " * 3
    kept = lm.layout.cut_context(context, num_new=8)
    size = len(lm.tok_encode(kept))
    assert context.endswith(kept) and 1 < size <= 32 - 1 - 8
    assert lm.tok_encode(context)[-size:] == lm.tok_encode(kept)


def test_a_conversation_is_read_as_messages_are():
    """A chat template has written its special tokens, which other texts have as characters only."""
    pipe = chat_pipe()
    lm = TextDiffusersLM(pipe)
    context = lm.apply_chat_template(QUESTION)
    (given,) = given_messages(pipe.tokenizer, QUESTION, ["w13"])
    row = lm.layout.row(lm.tok_encode(context), [13], lm.layout.start_of(context))
    assert row.given == given.ids

    arguments = {"max_gen_toks": 6, "num_inference_steps": 3}
    (text,) = texts_of(lm, (context, arguments))
    # Nothing is drawn at random, so the seed makes no difference.
    reply = pipe(messages=QUESTION, max_new_tokens=6, num_inference_steps=3, temperature=0.0)
    assert [text] == reply.texts
    with pytest.raises(ValueError, match="must not hold <|mask|> in a conversation"):
        lm.tok_encode(context + " <|mask|>")


# Texts


def test_a_text_is_that_of_the_pipeline_behind_its_context(pipe):
    lm = TextDiffusersLM(pipe)
    arguments = {"max_gen_toks": 6, "num_inference_steps": 4, "do_sample": True, "until": []}
    requests = asked("generate_until", ("the cat", arguments), ("the cat", arguments))
    asked_twice = lm.generate_until(requests, disable_tqdm=True)
    documents = [[request.task_name, request.doc_id] for request in requests]
    numbers = [0, int(documents[0] == documents[1])]
    seeds = [
        seed_of(0, document, "the cat", arguments, number)
        for document, number in zip(documents, numbers, strict=True)
    ]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    texts = pipe(
        ["the cat"] * 2, max_new_tokens=6, num_inference_steps=4, generator=generators
    ).texts
    assert asked_twice == [text.removeprefix("the cat") for text in texts]
    # Copies that draw differ, and those that do not are one.
    assert asked_twice[0] != asked_twice[1]
    likeliest = texts_of(lm, *[("the cat", {"max_gen_toks": 6, "num_inference_steps": 4})] * 2)
    assert likeliest[0] == likeliest[1]


def test_a_text_is_cut_before_the_first_of_the_strings_that_end_it(pipe):
    assert cut_before("ab\nQ: c", ["Q:", "\n"]) == "ab"
    assert cut_before("ab", ["Q:"]) == cut_before("ab", []) == "ab"

    lm = TextDiffusersLM(pipe, num_inference_steps=4)
    (whole,) = texts_of(lm, ("the cat", {"max_gen_toks": 8}))
    end = whole[len(whole) // 2]
    (cut,) = texts_of(lm, ("the cat", {"max_gen_toks": 8, "until": [end]}))
    assert end not in cut


def test_a_sampler_and_a_label_are_those_that_were_asked_for(tokenizer):
    denoiser = make_denoiser(tokenizer, num_classes=2)
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    pipe = TextDiffusionPipeline(tokenizer, denoiser, scheduler, label_names=["quiet", "loud"])
    lm = TextDiffusersLM(pipe, class_label="loud", scheduler="confidence", num_times=64)
    # The confidence scheduler draws no order, so at temperature 0 nothing is random.
    (text,) = texts_of(lm, ("the cat", {"max_gen_toks": 4, "num_inference_steps": 4}))
    writer = TextDiffusionPipeline(
        tokenizer, denoiser, ConfidenceScheduler(tokenizer.mask_token_id, temperature=0.0)
    )
    writer.set_progress_bar_config(disable=True)
    options = {"max_new_tokens": 4, "num_inference_steps": 4}
    assert "the cat" + text == writer("the cat", class_labels=1, **options).texts[0]

    values = [
        log_likelihoods(TextDiffusersLM(pipe, class_label=label, num_times=64), ("the", " cat"))[0]
        for label in (None, 0, "loud")
    ]
    assert len(set(values)) == 3
    assert values[2] == log_likelihoods(lm, ("the", " cat"))[0]


# The cache, and refusals


def test_a_cache_gives_the_same_answers_and_asks_the_model_nothing(pipe, tmp_path):
    calls = []
    handle = pipe.denoiser.register_forward_hook(lambda *_: calls.append(1))
    lm = CachingLM(TextDiffusersLM(pipe, num_times=4), str(tmp_path / "cache.db"))
    kinds = {
        "loglikelihood": [("the cat", " sat"), ("", "a bird")],
        "loglikelihood_rolling": [("the cat sat",)],
        "generate_until": [("the cat", {"max_gen_toks": 4, "until": ["."]})],
    }
    answers = {kind: getattr(lm, kind)(asked(kind, *args)) for kind, args in kinds.items()}
    num_calls = len(calls)
    again = {kind: getattr(lm, kind)(asked(kind, *args)) for kind, args in kinds.items()}
    handle.remove()
    assert again == answers and len(calls) == num_calls > 0


def test_lm_eval_knows_the_model_by_its_name(pipe, tmp_path):
    assert get_model("text_diffusers") is TextDiffusersLM
    pipe.save_pretrained(tmp_path / "model")
    arguments = {"pretrained": str(tmp_path / "model"), "num_times": 16, "dtype": "float32"}
    # Of few times a short text may have the same noise, and no error.
    # lm-eval passes what its own command line has as strings.
    loaded = TextDiffusersLM.create_from_arg_obj(arguments, {"batch_size": "3", "device": "cpu"})
    pair = ("the cat", " sat on")
    (value,) = log_likelihoods(TextDiffusersLM(pipe, num_times=16), pair)
    assert log_likelihoods(loaded, pair) == [pytest.approx(value, rel=1e-6)]
    settings = loaded.get_model_info()
    assert settings["scoring"]["num_times"] == 16 and loaded.batch_size == 3
    assert settings["errors_of_noise"]["task"]["mean_error"] == loaded.records[0].error > 0


def test_records_are_written_beside_the_results(pipe, tmp_path):
    lm = TextDiffusersLM(pipe, num_times=1, records_file=str(tmp_path / "records.jsonl"))
    values = log_likelihoods(lm, ("the cat", " sat"), ("the dog", " ran"))
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [-record["nats"] for record in records] == values
    # A single draw says nothing of others.
    assert [record["error"] for record in records] == [None, None]


def test_a_pipeline_without_a_likelihood_is_refused_by_name(tokenizer):
    embeddings = make_embedding_pipe(tokenizer)
    embeddings.denoiser.register_to_config(partial_noising=True)
    steered = ParaGuidePipeline(tokenizer, embeddings.denoiser, embeddings.scheduler)
    for pipe, name in ((make_two_level(tokenizer), "TwoLevelVQ"), (steered, "ParaGuide")):
        lm = TextDiffusersLM(pipe)
        for kind, args in (("loglikelihood", ("a", "b")), ("loglikelihood_rolling", ("a",))):
            with pytest.raises(ValueError, match=f"`pipe|pretrained` must .*{name}"):
                getattr(lm, kind)(asked(kind, args), disable_tqdm=True)
        with pytest.raises(ValueError, match=f"`pretrained` must be a pipeline of .*{name}"):
            texts_of(lm, ("a", {}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "`batch_size` must be an integer of at least 1, got 'auto'"),
        ({"max_batch_size": 8}, "`max_batch_size` must be None"),
        ({"pretrained": None}, "`pretrained` must be a folder"),
        ({"likelihood": "exact"}, "`likelihood` must be one of bound, autoregressive"),
        ({"likelihood": "autoregressive"}, '`likelihood` must be "bound" for a model whose past'),
        ({"num_times": 0}, "`num_times` must be an integer of at least 1"),
        ({"max_length": 99}, "`max_length` must be None or an integer from 2 to 32"),
        ({"class_label": 1}, "class_label"),
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        lm = TextDiffusersLM(**{"pretrained": pipe} | arguments)
        log_likelihoods(lm, ("the cat", " sat"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_gen_toks": 31}, "`max_gen_toks` must leave room .* got 31: pass `--gen_kwargs max"),
        ({"max_gen_toks": 0}, "`max_gen_toks` must be an integer of at least 1"),
        ({"repetition_penalty": 1.2}, "got repetition_penalty=1.2"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_settings_of_a_task_that_the_pipeline_does_not_take_are_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        texts_of(TextDiffusersLM(pipe), ("the cat", {"max_gen_toks": 4} | arguments))


def test_conversations_need_a_template_and_turns_that_suit_it(pipe):
    with pytest.raises(ValueError, match="`apply_chat_template` needs a tokenizer with a chat"):
        TextDiffusersLM(pipe).apply_chat_template(QUESTION)
    chat = TextDiffusersLM(chat_pipe())
    assert chat.chat_template(True) == chat.tokenizer.chat_template
    other = TextDiffusersLM(chat_pipe())
    other.tokenizer.chat_template += " "
    names = {lm.tokenizer_name for lm in (chat, other)}
    assert len(names) == 2 and not any("/" in name for name in names)


def test_every_pair_of_lengths_has_a_row_that_fits():
    """Contexts and continuations of all lengths, in rows with blocks that are counted from the prompt."""
    pipe = chat_pipe(attention="block", alignment="shifted")
    pipe.denoiser.config.diffusion["blocks_from"] = "prompt"
    layout = TextDiffusersLM(pipe, max_length=16).layout
    for num_given, num_tokens in itertools.product(range(20), range(1, 14)):
        row = layout.row([8] * num_given, [9] * num_tokens)
        ids = row.row()["input_ids"]
        assert len(ids) <= 16 and len(row.tokens) == num_tokens
        assert (len(row.padding) + len(row.given)) % 4 == 0
        assert row.truncated == (num_given > 13 - num_tokens)
