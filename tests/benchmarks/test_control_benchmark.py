"""The benchmark of control: complete, resumable, and its judges know nothing of what guides."""

import json
import random
from pathlib import Path

import control
import pytest
import torch
from conftest import SENTENCES, make_denoiser
from parts.control import cases as control_cases
from parts.control import judges as control_judges
from parts.control import models as control_models
from parts.control import report as control_report
from scipy.stats import binomtest
from transformers import GPT2Config, GPT2LMHeadModel

from text_diffusers import (
    D3PMAbsorbingScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    TextClassifierModel,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer

pytestmark = pytest.mark.slow

Wish, met = control_judges.Wish, control_judges.met

TAGS = {"NOUN": "cat mat dog bird tree train way", "DET": "the a all", "ADP": "on at in for while"}
TAG_OF = {word: tag for tag, words in TAGS.items() for word in words.split()}
LENGTHS = [0] * 7 + [2, 3, 1, 2]  # of 7 to 10 tokens
SCALES = [0, 1, 3]


@pytest.fixture(scope="module")
def words_tokenizer():
    return train_tokenizer(SENTENCES * 2, vocab_size=326)  # its words are single tokens


def make_classifier(tokenizer, **changes):
    torch.manual_seed(1)
    sizes = {
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 32,
        "vocab_size": len(tokenizer),
    }
    model = TextClassifierModel(**sizes | changes)
    torch.nn.init.normal_(model.head.weight)
    return model.eval()


@pytest.fixture
def options(words_tokenizer, tmp_path):
    """Options of a run with tiny models of every kind, random but for their words."""
    tokenizer, folders = words_tokenizer, {}

    def save(name, model):
        folders[name] = str(tmp_path / name)
        model.save_pretrained(folders[name])

    denoiser = make_denoiser(tokenizer, num_classes=2)
    noise = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
    save("model", TextDiffusionPipeline(tokenizer, denoiser, noise, LENGTHS))
    save("classifier", make_classifier(tokenizer))
    save("tagger", make_classifier(tokenizer, per_token=True, num_classes=4, labels=[*TAGS, "X"]))
    ids = {"mask_token_id": tokenizer.mask_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {
        "embedding_dim": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_length": 16,
    }
    sizes |= {"num_classes": 2}
    model = EmbeddingTransformerModel(len(tokenizer), num_train_timesteps=100, **sizes, **ids)
    torch.nn.init.normal_(model.proj_out.weight)
    save(
        "embedding_model",
        DiffusionLMPipeline(tokenizer, model, EmbeddingDDIMScheduler(100), LENGTHS),
    )
    reads = {"embedding_dim": 8, "num_train_timesteps": 100, "vocab_size": None}
    save("embedding_classifier", make_classifier(tokenizer, **reads))
    labelled, tagged = tmp_path / "labelled.jsonl", tmp_path / "tagged.jsonl"
    rows = [
        {"text": text, "label": int("bird" in text or "she" in text)} for text in SENTENCES * 10
    ]
    labelled.write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"words": (words := text.split()[:8]), "tags": [TAG_OF.get(w, "X") for w in words]}
        for text in SENTENCES
    ]
    tagged.write_text("\n".join(map(json.dumps, rows * 10)))

    def make(**changes):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "judge": "none",
            "scales": SCALES,
            "num_texts": 6,
        }
        settings |= {
            "num_inference_steps": 4,
            "words": ["cat", "dog", "bird"],
            "shortest": 7,
            "longest": 12,
        }
        data = {
            "dataset": str(labelled),
            "judge_dataset": str(labelled),
            "tagged_dataset": str(tagged),
        }
        return control.ControlConfig(**folders | settings | data | changes)

    return make


@pytest.fixture
def language_judge(words_tokenizer, monkeypatch):
    """A causal LM that is random but small."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(words_tokenizer), n_embd=16, n_layer=1, n_head=2)
    )
    monkeypatch.setattr(
        "parts.common.texts.load_judge", lambda name, cache: (model, words_tokenizer)
    )


def test_every_control_is_written_once_judged_and_reported(
    options, language_judge, capsys, monkeypatch
):
    records = control.main(options(judge="smollm2"))
    cells = {(record["control"], record["scale"]): record for record in records}
    assert cells.keys() == {("real texts", None)} | {
        (name, scale) for name in control_cases.CASES for scale in SCALES
    }
    unguided = {name: cells[name, 0]["texts"] for name in control_cases.CASES}
    over_tokens, over_embeddings = unguided["length"], unguided["label, over embeddings"]
    assert over_tokens != over_embeddings
    for name, texts in unguided.items():
        assert texts == (over_embeddings if name.endswith("over embeddings") else over_tokens)
    for scale in (1, 3):
        assert cells["length", scale]["success"] == 1
        assert cells["two words", scale]["parts_met"] == 1
        assert cells["label, word and length", scale]["parts_met"] >= 2 / 3
        lengths = [len(row) for row in cells["parts of speech", scale]["tokens"]]
        assert lengths == [
            len(wish["pattern"]) for wish in cells["parts of speech", scale]["wishes"]
        ]
    assert {len(row) for row in cells["length", 0]["tokens"]} <= {7, 8, 9, 10}
    assert (
        cells["label, noise-aware classifier", 3]["texts"]
        != cells["label, noise-aware classifier", 1]["texts"]
    )
    assert all(
        record["generative_perplexity"] > 1 and 0 <= record["self_bleu"] <= 100
        for record in records
    )
    folder = Path(options().output_dir)
    printed = capsys.readouterr().out
    assert (folder / "control.md").read_text() in printed
    assert "length: right within 2 tokens, at scale 3: 1.000, target at least 0.99: met." in printed
    assert (
        "label, classifier-free: generative perplexity over that of scale 1, at scale 3" in printed
    )
    assert (folder / "control.png").stat().st_size > 20_000
    assert len(json.loads((folder / "control.json").read_text())["records"]) == len(records)
    for function in (
        "control.Cell.write",
        "control.self_bleu",
        "parts.common.texts.generative_perplexity",
    ):
        monkeypatch.setattr(function, lambda *_: pytest.fail("it was done again"))
    again = control.main(options(judge="smollm2"))
    assert [record["success"] for record in again] == [record["success"] for record in records]


def test_controls_without_their_models_are_left_out_by_name(options, tmp_path, capsys):
    gone = {
        "classifier": str(tmp_path / "gone"),
        "tagger": "none",
        "embedding_model": None,
        "scales": [1],
    }
    records = control.main(options(**gone))
    left = {record["control"] for record in records}
    assert left == {
        "real texts",
        "label, classifier-free",
        "two words",
        "length",
        "label, word and length",
    }
    report = (tmp_path / "out" / "control.md").read_text()
    assert "Left out: parts of speech, for want of `--tagger`." in report
    assert (
        f"Left out: label, clean classifier, for want of `--clean_classifier` ({tmp_path / 'gone'} is"
        in report
    )
    assert "No plot" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`model` or `embedding_model`"):
        control.main(options(**gone | {"model": None}))


def test_texts_of_other_options_or_models_are_refused(options, tmp_path):
    few = {"scales": [3], "tagger": None, "embedding_model": None}
    control.main(options(**few))
    control.main(options(**few | {"scales": [0, 3], "batch_size": 2}))
    with pytest.raises(ValueError, match="`seed` must be 0, as in the runs"):
        control.main(options(**few | {"seed": 1}))
    (tmp_path / "classifier").rename(tmp_path / "other")
    with pytest.raises(
        ValueError, match="`output_dir` must hold .*label-noise-aware-classifier-3.json of models"
    ):
        control.main(options(**few | {"classifier": str(tmp_path / "other")}))


@pytest.mark.parametrize(
    "name", ["label, classifier-free", "label, word and length", "parts of speech"]
)
def test_a_text_does_not_depend_on_those_it_is_written_with(options, name):
    models, _ = control_models.load_models(options())
    patterns = [
        ("DET", "NOUN", "X", "ADP", "DET", "NOUN", "X"),
        ("DET", "NOUN", "X", "ADP", "DET", "NOUN", "X", "X"),
    ]
    wishes = control_cases.wishes_of(name, options(), patterns)
    cells = [control.Cell(options(batch_size=n), name, 3, wishes) for n in (1, 4, 50)]
    texts = [cell.write(models)["texts"] for cell in cells]
    assert texts[0] == texts[1] == texts[2] and len(set(texts[0])) > 1


def test_shape_of_the_scheduler_is_that_of_the_options_or_the_models(options):
    plain, _ = control_models.load_models(options())
    shaped, _ = control_models.load_models(options(temperature=0.5, top_p=0.9))
    plain_config, shaped_config = plain["model"].scheduler.config, shaped["model"].scheduler.config
    assert (plain_config.temperature, plain_config.top_p) == (1.0, None)
    assert (shaped_config.temperature, shaped_config.top_p) == (0.5, 0.9)


def test_tokens_are_tagged_in_the_first_texts_of_the_data(options, words_tokenizer):
    all_texts, _ = control_models.load_models(options())
    first_only, _ = control_models.load_models(options(num_tagged_texts=1))
    all_tags, first_tags = all_texts["token_tags"], first_only["token_tags"]
    words = {words_tokenizer.decode(i).strip() for i in first_tags.whole_words.any(dim=0).nonzero()}
    assert words and words <= set(SENTENCES[0].split())
    assert (first_tags.whole_words <= all_tags.whole_words).all()
    assert all_tags.labels == [*TAGS, "X"]
    without, _ = control_models.load_models(options(model=None))
    assert "token_tags" not in without


def test_wishes_are_the_same_at_every_call_and_of_all_kinds(options):
    config = options(num_texts=40)
    for name in control_cases.CASES:
        wishes = control_cases.wishes_of(name, config, [("DET",), ("NOUN", "X")])
        assert wishes == control_cases.wishes_of(name, config, [("DET",), ("NOUN", "X")])
        assert len(wishes) == 40 and len(set(wishes)) > 1
        if name.startswith("label"):
            assert sum(wish.label for wish in wishes) == 20
    combined = control_cases.wishes_of("label, word and length", config, [])
    assert {len(wish.words) for wish in combined} == {1}
    lengths = {wish.length for wish in combined}
    assert lengths <= set(range(7, 13)) and len(lengths) > 3
    places = [place for batch in control_cases.batches(combined, 3) for place in batch]
    assert sorted(places) == list(range(40))
    assert all(
        len({combined[p].words for p in batch}) == 1 for batch in control_cases.batches(combined, 3)
    )


def test_met_counts_each_part_of_a_wish():
    wishes = [
        Wish(words=("cat", "dog"), length=5),
        Wish(length=5),
        Wish(words=("a b",)),
        Wish(words=("cat",)),
    ]
    texts = ["the cat and dogs", "", "x a b.", "Cat, concat"]
    found = met(wishes, texts, [7, 8, 3, 3], control_judges.Judges())
    assert found == [[True, False, True], [False], [True], [False]]
    with pytest.raises(ValueError, match="`judges` must have one of labels"):
        met([Wish(label=0)], ["a"], [1], control_judges.Judges())
    with pytest.raises(ValueError, match="`judges` must have one of tags"):
        met([Wish(pattern=("X",))], ["a"], [1], control_judges.Judges())


def test_the_judge_of_labels_learns_words_and_pairs():
    rng = random.Random(0)
    fillers = "the film was it and so on".split()

    def draw(label):
        words = rng.choices(fillers, k=5)
        words.insert(rng.randrange(6), ["good not bad", "bad not good"][label])
        return " ".join(words)

    labels = [i % 2 for i in range(400)]
    judge = control_judges.label_judge([draw(label) for label in labels], labels)
    texts = [draw(label) for label in labels]
    assert judge.accuracy(texts, labels) > 0.98
    assert judge.accuracy(texts, [1 - label for label in labels]) < 0.02
    found = met(
        [Wish(label=1), Wish(label=1)],
        ["it was bad not good", "it was good not bad"],
        [5, 5],
        judges_of(judge),
    )
    assert found == [[True], [False]]


def test_a_text_succeeds_if_all_parts_of_its_wish_are_met():
    record = {"texts": ["a cat", "a dog", "cat dog", ""], "tokens": [[1, 2], [1, 3], [2, 3], []]}
    found = control.with_success(record, [Wish(words=("cat", "dog"))] * 4, control_judges.Judges())
    assert (found["success"], found["parts_met"]) == (0.25, 0.5)
    assert found["interval"] == control_judges.wilson_interval(1, 4)
    single = control.with_success(record, [Wish(length=4)] * 4, control_judges.Judges())
    assert single["success"] == 0.75 and "parts_met" not in single


def judges_of(label=None, tag=None):
    return control_judges.Judges(label, tag)


def test_the_judge_of_tags_uses_endings_and_neighbours_of_unknown_words():
    rng = random.Random(0)

    def sentence(stems):
        """ "the" comes before nouns and "to" before verbs, which look alike; after both, adverbs end in "ly"."""
        words, tags = [], []
        for _ in range(4):
            first, tag = rng.choice([("the", "NOUN"), ("to", "VERB")])
            end, after = rng.choice([("ly", "ADV"), ("ous", "ADJ")])
            words += [first, rng.choice(stems), rng.choice(stems) + end]
            tags += ["X", tag, after]
        return words, tags

    stems = ["".join(rng.choices("abcdefghijk", k=4)) for _ in range(400)]
    known, unknown = ([sentence(part) for _ in range(300)] for part in (stems[:300], stems[300:]))
    judge = control_judges.TagJudge(*zip(*known, strict=True))
    pairs = [
        pair for words, tags in unknown for pair in zip(judge.tags([words])[0], tags, strict=True)
    ]
    assert sum(own == tag for own, tag in pairs) / len(pairs) > 0.97
    words, tags = unknown[0]
    text = " ".join(words)
    longer, shorter = (*tags, "X"), tuple(tags[:-2])
    found = met(
        [Wish(pattern=p) for p in (tuple(tags), longer, shorter)],
        [text] * 3,
        [1] * 3,
        judges_of(tag=judge),
    )
    assert [sum(row) for row in found] == [12, 12, 10]
    assert [len(row) for row in found] == [12, 13, 12]
    assert judge.tags([[], ["the"]])[0] == []


def test_words_are_split_and_found_whole():
    assert control_judges.split_words("It's 1,000 well-made films, isn't it?") == [
        "It's", "1,000", "well-made", "films", ",", "isn't", "it", "?",
    ]  # fmt: skip
    assert control_judges.holds_word("A cat.", "cat") and not control_judges.holds_word(
        "A category", "cat"
    )
    assert not control_judges.holds_word("concat", "cat") and not control_judges.holds_word(
        "A Cat", "cat"
    )
    assert control_judges.shape("Mid-1990s") == "Aa-0a"


def test_usable_sentences_are_of_single_tokens(options, words_tokenizer):
    rows = [
        "the cat sat on the mat and",
        "the cat sat",
        "the zebra sat on the mat and",
        "the cat sat on the dog ,",
    ]
    sentences = [row.split() for row in rows]
    found = control_cases.usable_sentences(
        sentences, [["X"] * len(row) for row in sentences], words_tokenizer, options()
    )
    texts = {text for text, _ in found}
    assert "the cat sat on the mat and" in texts and texts <= {rows[0], "the cat sat on the dog,"}
    for text, tags in found:
        assert len(words_tokenizer(text, add_special_tokens=False)["input_ids"]) == len(tags) == 7
    with pytest.raises(ValueError, match="`tagged_dataset` must hold sentences of 7 to 12 words"):
        control_cases.usable_sentences(sentences[1:3], [["X"]] * 2, words_tokenizer, options())


@pytest.mark.parametrize("successes,trials", [(0, 10), (7, 10), (198, 200), (200, 200), (1, 1)])
def test_the_interval_is_wilsons(successes, trials):
    want = binomtest(successes, trials).proportion_ci(method="wilson")
    assert control_judges.wilson_interval(successes, trials) == pytest.approx(
        (want.low, want.high), abs=1e-12
    )
    with pytest.raises(ValueError, match="`successes` must be between"):
        control_judges.wilson_interval(trials + 1, trials)


def test_targets_are_met_or_missed_by_their_figures():
    def record(name, scale, success, perplexity):
        return {
            "control": name,
            "scale": scale,
            "success": success,
            "generative_perplexity": perplexity,
        }

    name = "label, classifier-free"
    lines = control_report.findings(
        [record(name, 0, 0.5, 90), record(name, 1, 0.7, 100), record(name, 3, 0.85, 151)]
    )
    assert [line.rpartition(" ")[2] for line in lines] == ["met.", "met.", "missed."]
    lines = control_report.findings(
        [record(name, 0, 0.65, 90), record(name, 1, 0.7, 100), record(name, 3, 0.84, 150)]
    )
    assert [line.rpartition(" ")[2] for line in lines] == ["missed.", "missed.", "met."]
    assert control_report.findings([record("length", 3, 0.98, 1)])[0].endswith(
        "0.980, target at least 0.99: missed."
    )
    assert (
        control_report.findings([record(name, 1, 0.9, 100), record("two words", 3, 1.0, 1)]) == []
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"scales": []},
        {"scales": [1, 1]},
        {"scales": [-1]},
        {"num_texts": 1},
        {"batch_size": 0},
        {"num_tagged_texts": 0},
        {"longest": 6},
        {"words": ["cat"]},
        {"judge_dataset": None},
        {"judge": "gpt4"},
    ],
)
def test_options_that_make_no_sense_are_refused(options, changes):
    with pytest.raises(ValueError, match=f"`{next(iter(changes))}` must be"):
        options(**changes)
