"""Whether guided texts are what they were asked to be, and what that costs: each control at scales 0, 1, 2, 3 and 5.

    python benchmarks/control.py --model runs/sentiment --classifier runs/classifier --tagger runs/tagger
    python benchmarks/control.py --model none --embedding_model runs/diffusion_lm \\
        --embedding_classifier runs/embedding_classifier

A control whose model is not there is left out. Scale 0 is the unguided model, whose texts are the same for all
controls of it. Text i of every control and scale has the same seed, and is asked to be the same at every scale.
A length is fixed, so all its scales but 0 are one.

- success: share of texts that are all they were asked to be, and its 95% interval (Wilson). Judges are not what
  guides, and learn from other texts: labels by TF-IDF and logistic regression, parts of speech by a linear tagger of
  words; words are searched for in the text, tokens are counted, and a length is right within 2 of them.
- parts met: where a text is asked for several things, such as tags of a pattern, the mean share that it has.
- generative perplexity under a language model, distinct n-grams of tokens, and self-BLEU of the first 100 texts:
  always of as many texts, but a control of length changes their lengths.
- "real texts" are held-out ones, cut to what the model can write; as success, the judge says they have their label.

Finished texts are files in `output_dir`; delete one to repeat it. The report is control.md, control.json and a plot.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from parts.common.options import run
from parts.common.recipes import CORPORA
from parts.common.results import (
    Record,
    as_json,
    check_settings,
    read_json,
    read_or_make,
    write_json,
)
from parts.common.texts import (
    PerplexityJudge,
    distinct_ngrams,
    tokens_of_real_texts,
    without_special_tokens,
)
from parts.control.cases import CASES, Batch, batches, usable_sentences, wishes_of
from parts.control.config import ControlConfig
from parts.control.judges import (
    Judges,
    TagJudge,
    Wish,
    judge_of_labels,
    met,
    split_words,
    wilson_interval,
)
from parts.control.models import load_models
from parts.control.report import REAL, UNGUIDED, report

from text_diffusers.data.sources import load_documents
from text_diffusers.data.tagged_text import load_tagged
from text_diffusers.evaluation.text_metrics import self_bleu
from text_diffusers.training.config import OptionParser

# Texts that show the accuracy of the judge of labels: at most the twentieth that the recipes hold out too.
HELD_OUT = 5_000
# Sentences that show the accuracy of the judge of tags: at most a fifth.
TAGGED_HELD_OUT = 4_000


# --- judges


def judge_of_tags(
    options: ControlConfig, tokenizer: Any
) -> tuple[TagJudge, list[tuple[str, ...]], str]:
    """The judge, patterns of held-out sentences, and a note on how often it finds them in these."""
    # Words and tags that neither the writer nor the tagger has seen
    if options.tagged_dataset is None:
        data = CORPORA["brown"](part="judge")
    else:
        data = load_tagged(options.tagged_dataset, "words", "tags")
    words = list(data["words"])
    tags = list(data["tags"])

    # It learns from the first sentences, and is measured on the others.
    num_held_out = max(1, min(TAGGED_HELD_OUT, len(words) // 5))
    cut = len(words) - num_held_out
    judge = TagJudge(words[:cut], tags[:cut], options.seed)
    accuracy = judge.accuracy(words[cut:], tags[cut:])

    # Texts of the model have no words of a corpus, only tokens: the judge must split these sentences itself.
    sentences = usable_sentences(words[cut:], tags[cut:], tokenizer, options)
    patterns = [pattern for _, pattern in sentences]
    judged = judge.tags([split_words(text) for text, _ in sentences])

    # This share is the best success that a control of patterns can have.
    pairs = zip(judged, patterns, strict=True)
    num_whole = sum(tuple(judged_tags) == pattern for judged_tags, pattern in pairs)
    note = (
        f"The judge of parts of speech tags {accuracy:.1%} of the words of held-out sentences as "
        f"their corpus does, and finds the whole pattern in {num_whole / len(patterns):.1%} of the "
        f"{len(patterns)} sentences with the patterns."
    )
    return judge, patterns, note


# --- texts


@dataclass
class Cell:
    """The texts of a control at a scale, asked to be as their wishes say; at scale 0 of the unguided model.

    Attributes:
        name: a key of `CASES`.
        wishes: one for each text.
    """

    options: ControlConfig
    name: str
    scale: float
    wishes: list[Wish]

    @property
    def path(self) -> Path:
        """The file of the texts; those at scale 0 belong to the model."""
        name = f"{self.name}-{self.scale:g}"
        if not self.scale:
            name = f"{UNGUIDED}-{CASES[self.name].needs[0]}"

        file_name = name.replace(",", "").replace(" ", "-")
        return self.options.folder / "texts" / f"{file_name}.json"

    @property
    def request(self) -> Record:
        """What the texts depend on: the folders of the models, and the wishes."""
        needs = CASES[self.name].needs
        if not self.scale:
            # The unguided texts of a model serve all of its controls.
            return {"models": [self.options.model_folder(needs[0])], "wishes": []}
        folders = [self.options.model_folder(need) for need in needs]
        return {"models": folders, "wishes": [asdict(wish) for wish in self.wishes]}

    def check(self, record: Record):
        """Refuse texts that were made from something else.

        Raises:
            ValueError: naming the file.
        """
        for name, value in as_json(self.request).items():
            if record[name] != value:
                others = f"{name} {record[name]}" if name == "models" else f"other {name}"
                raise ValueError(
                    f"`output_dir` must hold texts of what is asked for, got {self.path} of {others}: delete it."
                )

    def write(self, models: dict[str, Any]) -> Record:
        """Write the texts, in batches on which they do not depend."""
        case = CASES[self.name]
        pipe = models[case.needs[0]]
        num_texts = len(self.wishes)
        # Scale 0 asks for nothing, so that all its texts can be written together.
        wishes = self.wishes if self.scale else [Wish()] * num_texts

        # Batches are not in the order of the texts.
        tokens_by_place = {}
        started = time.perf_counter()
        for places in batches(wishes, self.options.batch_size):
            # Text i has the same noise in any batch, and at every scale.
            seeds = [self.options.seed * num_texts + place for place in places]
            arguments = {"num_return_sequences": len(places)}
            if self.scale:
                batch = Batch(models, [wishes[place] for place in places], self.scale)
                arguments |= case.arguments(batch)

            output = pipe(
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=self.options.num_inference_steps,
                output_type="tokens",
                **arguments,
            )
            written = without_special_tokens(output.tokens.tolist(), pipe.tokenizer)
            tokens_by_place.update(zip(places, written, strict=True))

        tokens = [tokens_by_place[place] for place in range(num_texts)]
        return {
            "control": self.name if self.scale else UNGUIDED,
            "scale": self.scale,
            "seconds": time.perf_counter() - started,
            **self.request,
            "texts": [text.strip() for text in pipe.tokenizer.batch_decode(tokens)],
            "tokens": tokens,
        }


def real_texts(options: ControlConfig) -> tuple[list[str], list[int]]:
    """The last labelled texts, held out by the recipes, in a random order, and their labels."""
    data = load_documents(options.dataset, label_column="label")
    num_held_out = min(HELD_OUT, len(data) // 20)
    count = min(len(data), max(options.num_texts, num_held_out))

    # Neighbours in the file may be of one film or one label.
    order = random.Random(f"{options.seed} real").sample(range(count), count)
    first = len(data) - count
    chosen = data.select([first + place for place in order])
    return list(chosen["text"]), list(chosen["label"])


def real_record(texts: Sequence[str], pipe: Any) -> Record:
    """Real texts, cut to what the model can write."""
    tokens = tokens_of_real_texts(texts, pipe)
    return {
        "control": REAL,
        "scale": None,
        "texts": pipe.tokenizer.batch_decode(tokens),
        "tokens": tokens,
    }


# --- figures


def with_fluency(path: Path, judge: PerplexityJudge | None) -> Record:
    """A finished file, with figures of fluency, which are added to it once."""
    record = read_json(path)
    figures = {}

    # Self-BLEU compares each text with all others, which takes time; it and the perplexity are kept.
    if "self_bleu" not in record:
        figures = distinct_ngrams(record["tokens"]) | {"self_bleu": self_bleu(record["texts"])}
    if judge is not None and record.get("judge") != judge.name:
        figures["generative_perplexity"] = judge.score(record["texts"]).perplexity
        figures["judge"] = judge.name

    if figures:
        write_json(path, record | figures)
    return record | figures


def with_success(record: Record, wishes: Sequence[Wish], judges: Judges) -> Record:
    """The record with the share of texts that are as wished, and its interval."""
    lengths = [len(row) for row in record["tokens"]]
    parts = met(wishes, record["texts"], lengths, judges)

    # A success is a text that meets all parts of its wish.
    successes = sum(map(all, parts))
    figures = {
        "success": successes / len(parts),
        "interval": wilson_interval(successes, len(parts)),
    }

    # Half of a long pattern is worth more than nothing; of a wish of one part this is the success again.
    if max(map(len, parts)) > 1:
        shares = [sum(text_parts) / len(text_parts) for text_parts in parts]
        figures["parts_met"] = sum(shares) / len(parts)
    return record | figures


def main(options: ControlConfig) -> list[Record]:
    """Write what is not finished, judge all of it and report."""
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)
    check_settings(options)

    # 1. Models, and the controls that they can be measured with
    # An error of the judge comes now, and not after the writing.
    perplexity_judge = options.perplexity_judge(load=True)
    models, missing = load_models(options)

    names = []
    left_out = []
    for name, case in CASES.items():
        missing_options = [missing[need] for need in case.needs if need in missing]
        if missing_options:
            left_out.append(f"Left out: {name}, for want of {' and '.join(missing_options)}.")
        else:
            names.append(name)

    print(*left_out, sep="\n", flush=True)
    if not names:
        raise ValueError(
            "`model` or `embedding_model` and `embedding_classifier` must be folders of trained models."
        )

    # 2. Judges, and notes on their accuracy
    texts, labels = real_texts(options)
    judges = Judges()
    judges.label, note = judge_of_labels(options.judge_dataset, texts, labels)
    notes = [note]

    # The tagged corpus is read only if there is a control of patterns.
    patterns = []
    if any(CASES[name].pattern for name in names):
        judges.tag, patterns, note = judge_of_tags(options, models["model"].tokenizer)
        notes.append(note)

    # 3. Real texts, cut to the length of the first control's model
    path = options.folder / "texts" / "real.json"
    pipe = models[CASES[names[0]].needs[0]]
    read_or_make(path, lambda: real_record(texts[: options.num_texts], pipe))

    # Their success is that of the judge, whose labels need not be theirs.
    wishes = [Wish(label=label) for label in labels[: options.num_texts]]
    records = [with_success(with_fluency(path, perplexity_judge), wishes, judges)]

    # 4. Texts of each control and scale
    for name in names:
        wishes = wishes_of(name, options, patterns)  # the same at every scale
        for scale in sorted(options.scales):
            cell = Cell(options, name, scale, wishes)
            read_or_make(cell.path, lambda cell=cell: cell.write(models))
            record = with_fluency(cell.path, perplexity_judge) | {"control": name, "scale": scale}
            cell.check(record)
            records.append(with_success(record, wishes, judges))
            print(f"{name}, scale {scale:g}: success {records[-1]['success']:.3f}", flush=True)

    report(options, records, [*notes, *left_out])
    return records


if __name__ == "__main__":
    run(main, OptionParser(ControlConfig, description=__doc__))
