"""The published sets: read from files with their columns, as plain text, and asked of the Hub by their names."""

import csv
import json

import pytest
from datasets import Dataset

from text_diffusers.evaluation.protocols import ZERO_SHOT_SETS, load_zero_shot_texts
from text_diffusers.evaluation.protocols.detokenizers import (
    clean_lm1b,
    clean_papers,
    clean_treebank,
    clean_wikitext,
)

RAW = ["one , two", "", "NA", 'it \'s " here " .']


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ZERO_SHOT_SETS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder"])
def test_a_set_is_read_from_files_with_its_column_and_every_line(name, kind, tmp_path):
    chosen = ZERO_SHOT_SETS[name]
    rows = [{chosen.column: text, "other": place} for place, text in enumerate(RAW)]
    if kind == "jsonl":
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    elif kind == "csv":
        with open(tmp_path / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [chosen.column, "other"])
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(tmp_path / f"{name}.parquet")
    else:
        for split in ("train", chosen.split):
            file = tmp_path / name / split / "0000.parquet"
            file.parent.mkdir(parents=True)
            part = rows if split == chosen.split else rows[:1]
            Dataset.from_list(part).to_parquet(file)
    clean = chosen.clean or (lambda text: text)
    assert load_zero_shot_texts(name, tmp_path) == [clean(text) for text in RAW]


def test_lines_of_a_text_file_are_texts_whatever_the_column(tmp_path):
    (tmp_path / "ptb.txt").write_text("a b\n\nNA\n")
    assert load_zero_shot_texts("ptb", tmp_path) == ["a b", "", "NA"]


@pytest.mark.parametrize(
    ("clean", "raw", "plain"),
    [
        (
            clean_wikitext,
            "= = A = = \n the 1 @,@ 000 year @-@ old ( big ) tree ; it 's N high . \n",
            "== A ==\nthe 1,000 year-old (big) tree; it's 1 high.\n",
        ),
        (clean_treebank, "the n N N N companies ' s \\/ <unk>", "the n 1 1 1 companies' s / ?"),
        (
            clean_lm1b,
            'He said : " no " ( see http : / / a.b ) !',
            'He said: "no" (see http://a.b)!',
        ),
        (clean_papers, "we use @xmath0 , [ 1 ] , and get N .", "we use @xmath0, [1], and get 1."),
    ],
)
def test_words_and_marks_are_joined_as_the_field_does(clean, raw, plain):
    assert clean(raw) == plain


@pytest.mark.parametrize("name", ["wikitext", "ptb"])
def test_without_the_hub_a_set_is_named_with_the_way_to_read_it_from_files(name):
    repository = ZERO_SHOT_SETS[name].repository
    with pytest.raises(FileNotFoundError, match=f"{repository}.*zero_shot_folder"):
        load_zero_shot_texts(name)


def test_what_is_not_there_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="`name` must be one of wikitext, lambada"):
        load_zero_shot_texts("wikitex", tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold ptb.jsonl"):
        load_zero_shot_texts("ptb", tmp_path)
    (tmp_path / "ptb.jsonl").write_text('{"words": "a b"}\n')
    with pytest.raises(ValueError, match="`ptb` must have the column 'sentence'"):
        load_zero_shot_texts("ptb", tmp_path)
