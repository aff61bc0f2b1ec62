"""Figures of held-out texts, the same in every recipe: the bound during training and at its end, and lengths.

What is counted is said by `text_diffusers.evaluation.written_texts`. Shapes: B written texts, L row length in tokens.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.token_ids import padding_id
from text_diffusers.data.rows import encode_texts
from text_diffusers.data.whole_texts import tokenize_whole_texts
from text_diffusers.evaluation.autoregression import (
    estimate_autoregressive_loss,
    next_token_metrics,
)
from text_diffusers.evaluation.estimates import BoundEstimate, count_tokens, counted_ids
from text_diffusers.evaluation.likelihood import (
    estimate_bound,
    evaluate_likelihood,
    length_distance,
    unigram_entropy,
)
from text_diffusers.evaluation.modules import evaluating
from text_diffusers.evaluation.written_texts import (
    WrittenText,
    pad_rows,
    padded_rows,
    predicted_length_nats,
    written_texts,
)
from text_diffusers.models.language_model import is_masked_lm, predicts_end
from text_diffusers.pipelines.calls.labels import label_frames
from text_diffusers.pipelines.text_lengths import length_model

# Random times a held-out text in the figures that a training leaves
BOUND_TIMES = 2


@dataclass
class ValidationRows:
    """Rows of which a bound is estimated in training, and how it becomes one per counted token.

    Attributes:
        rows: tokenized data set.
        tokenizer: of the rows.
        texts: what they are made of, if there is one text or pair in each.
        labels: of these texts, if they have any.
        predicts_length: whether the model says how long they are.
    """

    rows: Any
    tokenizer: Any
    texts: list[WrittenText] = field(default_factory=list)
    labels: list[int] | None = None
    predicts_length: bool = False

    def __post_init__(self):
        self.num_predicted = count_tokens(self.rows)
        if self.texts:
            self.num_counted = sum(len(text.counted) for text in self.texts)
            self.num_characters = sum(text.num_characters for text in self.texts)
        else:
            # Every token of a packed row is predicted.
            self.num_counted = self.num_predicted
            self.num_characters = count_characters(self.rows, self.tokenizer)

    def autoregressive_metrics(self, model: Any, **options: Any) -> dict[str, float]:
        """For trackers: what the weights of a model reach from token to token, see `next_token_metrics`.

        Args:
            model: for which `predicts_next` is true.
            options: of `estimate_autoregressive_loss`.
        """
        # Where the length is drawn the end is given, and is written here like any other token.
        rows = self.rows
        if self.texts:
            written = [text.next_token_row() for text in self.texts]
            rows = pad_rows(written, padding_id(self.tokenizer))
        nats = estimate_autoregressive_loss(model, rows, **options)
        return next_token_metrics(nats, self.num_counted, self.num_counted, self.num_characters)

    def metrics(self, estimate: BoundEstimate, model: Any) -> dict[str, float]:
        """For trackers: a bound in nats per predicted token as one per counted token, and in bits per character."""
        counted = self.counted(estimate, model)
        bits = counted.bound * self.num_counted / self.num_characters / math.log(2)
        return counted.metrics() | {"bits_per_character": bits}

    def counted(self, estimate: BoundEstimate, model: Any) -> BoundEstimate:
        """A bound of the rows under a model, in nats per predicted token, in nats per counted one."""
        length_nats = sum(text.length_nats for text in self.texts)
        if self.predicts_length:
            with evaluating(model):
                padding = padding_id(self.tokenizer)
                predicted = predicted_length_nats(model, self.texts, self.labels, padding)
            length_nats += float(predicted.sum())
        return estimate.recounted(
            self.num_predicted / self.num_counted, length_nats / self.num_counted
        )


def make_validation_rows(config: Any, data: Any, denoiser: Any) -> ValidationRows:
    """At most `config.validation_rows` held-out rows, spread over all of them.

    Rows of one text or pair each are those that the pipeline would write: where it draws lengths the end stands where
    it is put, and the length is paid for.

    Args:
        config: `TextTrainingConfig`.
        data: `TextData`.
        denoiser: that is trained.
    """
    # Packed rows are read as they are: every token of the stream counts. So are those that end with an answer.
    if config.packing or data.template is not None:
        rows = data.spread_validation_rows(config.validation_rows)
        return ValidationRows(rows, data.tokenizer)

    documents = texts_with_tokens(data.validation_documents, data.tokenizer)
    inputs = inputs_of(spread_rows(documents, config.validation_rows))
    labels = inputs.pop("class_labels", None)
    predicts_length = length_model(denoiser) is not None and "sources" in inputs

    # A language model reads its label in front of the text.
    frames = None
    if data.label_prompts is not None and "sources" not in inputs:
        if labels is None:
            labels = [len(data.label_prompts)] * len(inputs["texts"])
        frames = label_frames(data.tokenizer, data.label_prompts, labels)
        labels = None
    written = written_texts(
        data.tokenizer,
        **inputs,
        max_length=config.length,
        histogram=data.lengths,
        predicts_end=predicts_end(denoiser),
        predicts_length=predicts_length,
        cuts_texts=True,
        reading=getattr(denoiser, "reading", None),
        frames=frames,
        framed_sources=getattr(config, "adapts_language_model", False),
    )
    rows = padded_rows(written, padding_id(data.tokenizer), labels)
    return ValidationRows(rows, data.tokenizer, written, labels, predicts_length)


def spread_rows(rows: Any, most: int | None) -> Any:
    """At most so many rows or documents, spread over all of them: neighbours are alike. `None` is all."""
    stride = -(-len(rows) // (most or len(rows)))
    return rows.select(range(0, len(rows), stride))


def texts_with_tokens(documents: Any, tokenizer: Any) -> Any:
    """The documents whose texts have a token: a tokenizer may drop what is blank.

    Raises:
        ValueError: if there is none.
    """
    ids = encode_texts(tokenizer, list(documents["text"]))
    places = [index for index, text_ids in enumerate(ids) if text_ids]
    if not places:
        raise ValueError(
            f"`dataset` must have a held-out text with a token, got {len(documents):,} without."
        )
    return documents.select(places)


def inputs_of(documents: Any) -> dict[str, Any]:
    """The columns of documents as arguments of `evaluate_likelihood`."""
    names = {"text": "texts", "source": "sources", "label": "class_labels"}
    columns = [name for name in names if name in documents.column_names]
    return {names[name]: list(documents[name]) for name in columns}


def report_texts(config: Any, data: Any, pipe: Any, denoiser: Any = None) -> dict[str, float]:
    """`bound_metrics` of the held-out texts or pairs of a recipe with one a row, by `evaluate_likelihood`.

    Over a causal past also what the same weights reach from token to token, and in blocks of the other lengths that
    were trained.

    Args:
        config: `TextTrainingConfig`; at most its `report_rows` texts are read, if it has that option.
        data: `TextData`.
        pipe: the trained pipeline.
        denoiser: a masked LM that may also predict an unknown word, for texts that hold one.
    """
    documents = texts_with_tokens(data.validation_documents, pipe.tokenizer)
    num_blank = len(data.validation_documents) - len(documents)
    if num_blank:
        print(f"\n{num_blank:,} held-out texts have no token, and are left out of the bound")
    inputs = inputs_of(spread_rows(documents, getattr(config, "report_rows", None)))

    # No pipeline with a masked LM writes an unknown word, which would make the bound infinite.
    if is_masked_lm(pipe.denoiser):
        unknown = pipe.tokenizer.unk_token_id
        ids = encode_texts(pipe.tokenizer, inputs["texts"])
        num_unknown = sum(unknown in text_ids for text_ids in ids)
        if num_unknown:
            print(
                f"\n{num_unknown:,} of {len(ids):,} held-out texts have a word that the tokenizer does not know, "
                "which the bound takes for a word like others"
            )
        else:
            denoiser = None

    evaluate = partial(
        evaluate_likelihood,
        pipe,
        **inputs,
        num_times=BOUND_TIMES,
        max_length=config.length,
        seed=config.seed,
        denoiser=denoiser,
    )
    likelihood = evaluate()
    metrics = bound_metrics(
        likelihood.nats_per_token,
        likelihood.error_over_texts,
        likelihood.unigram_entropy,
        likelihood.num_tokens,
        likelihood.num_characters,
    )
    nats = likelihood.autoregressive_nats_per_token
    if nats is None:
        return metrics

    metrics |= causal_metrics(nats, likelihood.num_tokens, likelihood.num_characters)
    for length in config.block_lengths[1:]:
        other = evaluate(block_length=length)
        metrics |= block_metrics(length, other.nats_per_token, other.error_over_texts)
    return metrics


def report_causal_past(
    config: Any, denoiser: Any, scheduler: Any, rows: Any, counts: dict[str, float]
) -> dict[str, float]:
    """What weights over a causal past reach from token to token, and in blocks of the other lengths; also printed.

    Args:
        config: `AdaptationConfig` with `block_lengths`.
        rows: held-out rows, of which every token that is not given counts.
        counts: their `num_tokens` and `num_characters`.
    """
    nats = estimate_autoregressive_loss(denoiser, rows, seed=config.seed)
    metrics = causal_metrics(nats, int(counts["num_tokens"]), int(counts["num_characters"]))
    for length in config.block_lengths[1:]:
        other = denoiser.with_block_length(length)
        estimate = estimate_bound(other, scheduler, rows, seed=config.seed)
        metrics |= block_metrics(length, estimate.bound, estimate.standard_error)
    return metrics


def causal_metrics(nats: float, num_tokens: int, num_characters: int) -> dict[str, float]:
    """`next_token_metrics` of a loss in nats per counted token, also printed."""
    metrics = next_token_metrics(nats, num_tokens, num_tokens, num_characters)
    print(
        f"next tokens        {nats:.3f} nats per token, {metrics['ar_bits_per_character']:.3f} bits per character, by "
        "the same weights one token after the other"
    )
    return metrics


def block_metrics(length: int, bound: float, standard_error: float) -> dict[str, float]:
    """A bound in blocks of another length in nats per token, also printed."""
    print(f"blocks of {length:<9}{bound:.3f} +- {standard_error:.3f} nats per token")
    return {f"bound_in_blocks_of_{length}": bound}


def report_rows(
    estimate: BoundEstimate, rows: Any, documents: Any = None, tokenizer: Any = None
) -> dict[str, float]:
    """`bound_metrics` of held-out rows.

    Args:
        estimate: their bound in nats per counted token.
        documents: the texts of packed rows, of which every token counts; else their characters are those of the
            counted tokens, decoded by the `tokenizer`.
    """
    if documents is not None:
        num_characters = sum(len(text) + 1 for text in documents["text"])
    else:
        num_characters = count_characters(rows, tokenizer)
    return bound_metrics(
        estimate.bound,
        estimate.standard_error,
        unigram_entropy(rows),
        count_tokens(rows),
        num_characters,
    )


def report_labels(config: Any, data: Any, denoiser: Any, scheduler: Any) -> dict[str, float]:
    """Bits per character of the held-out texts of each label, of rows that hold texts of one label; also printed.

    Args:
        config: `TextTrainingConfig`.
        data: `TextData` with `label_prompts`.
    """
    metrics = {}
    names = data.label_names or data.label_prompts
    for label, name in enumerate(names):
        documents = data.validation_documents.filter(partial(has_label, label=label))
        if len(documents) == 0:
            continue
        rows: Any = tokenize_whole_texts(
            documents, data.tokenizer, config.length, config.packing, data.label_prompts
        )
        rows = spread_rows(rows, config.report_rows)
        estimate = estimate_bound(denoiser, scheduler, rows, seed=config.seed)
        num_characters = count_characters(rows, data.tokenizer)
        nats = estimate.bound * count_tokens(rows)
        bits = nats / num_characters / math.log(2)
        error = bits * estimate.standard_error / estimate.bound
        print(f"{name:<19}{bits:.3f} +- {error:.3f} bits per character, {len(rows):,} rows")
        metrics[f"bits_per_character/{name}"] = bits
    return metrics


def has_label(document: dict[str, Any], label: int) -> bool:
    return document["label"] == label


def bound_metrics(
    bound: float, standard_error: float, entropy: float, num_tokens: int, num_characters: int
) -> dict[str, float]:
    """The bound of a model on held-out text beside the entropy of the same tokens' frequencies, also printed.

    Args:
        bound, standard_error, entropy: in nats per counted token.
        num_tokens: that are counted: what the pipeline writes, ends included.
        num_characters: of the same texts, an end that is counted being one.
    """
    bits_per_character = bound * num_tokens / num_characters / math.log(2)
    print(
        f"\nvalidation bound   {bound:.3f} +- {standard_error:.3f} nats per token, {bits_per_character:.3f} bits per "
        "character"
    )
    print(f"unigram entropy    {entropy:.3f} nats per token, {entropy - bound:.3f} above the bound")
    print(f"counted            {num_tokens:,} tokens, {num_characters:,} characters, ends included")
    return {
        "bound": bound,
        "standard_error": standard_error,
        "bits_per_character": bits_per_character,
        "unigram_entropy": entropy,
        "gap": entropy - bound,
        "num_tokens": num_tokens,
        "num_characters": num_characters,
    }


def count_characters(rows: Any, tokenizer: Any) -> int:
    """Characters of the counted tokens of rows, each end, as any special token, being one."""
    special_ids = set(tokenizer.all_special_ids)
    num_characters = 0
    for ids in counted_ids(rows):
        # Texts that share a row are decoded apart: some decoders put a space between words.
        text_ids: list[int] = []
        for token in [*ids, None]:
            if token is not None and token not in special_ids:
                text_ids.append(token)
                continue
            num_characters += len(tokenizer.decode(text_ids)) if text_ids else 0
            num_characters += token is not None
            text_ids = []
    return num_characters


def length_metrics(
    tokens: Tensor, tokenizer: Any, data_lengths: list[int], drawn: bool
) -> dict[str, float]:
    """Compare the lengths of written texts, `tokens` (B, L), with those of the data, and print it.

    Args:
        drawn: whether the lengths come from a histogram, and not from the model.
    """
    # Written texts end in special tokens, which the data's lengths do not count either.
    special = torch.tensor(tokenizer.all_special_ids, device=tokens.device)
    lengths = (~torch.isin(tokens, special)).sum(dim=1).tolist()
    distance = length_distance(lengths, data_lengths)
    mean = sum(lengths) / len(lengths)
    mean_of_data = sum(data_lengths) / len(data_lengths)

    origin = "the stored histogram" if drawn else "the model's [EOS]"
    print(
        f"text lengths       {mean:.1f} tokens on average, data {mean_of_data:.1f}, Wasserstein distance "
        f"{distance:.1f}; from {origin}"
    )
    return {"length_distance": distance, "mean_length": mean, "mean_length_of_data": mean_of_data}
