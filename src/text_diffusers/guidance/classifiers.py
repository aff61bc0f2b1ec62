"""Controls that ask a classifier or an encoder: of noisy text, of the clean text that is predicted, and of its style.

Shapes: B rows, L sequence length, V vocabulary size, S states of a token, N open tokens, C classes, D and E widths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.guidance.controls import Control
from text_diffusers.guidance.soft_text import (
    check,
    check_reader,
    check_rows,
    check_vocabulary,
    is_finite,
    is_index,
    label_names,
    read_soft_text,
    shown_rows,
    time_argument,
    token_embedding,
)

ROWS_AT_A_TIME = 128
ORDERS = ("first", "exact")


class LabelControl(Control):
    """What the controls by labels share.

    Args:
        classifier: in evaluation mode; its parameters and their gradients are left as they are.
        labels: the wanted class of each text, or of all, an id or one of the classifier's names; a text whose label is
            None is not guided.
    """

    def __init__(self, classifier: Any, labels: Any, scale: float = 1.0, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, start, stop)
        check_reader("classifier", classifier)
        self.classifier = classifier
        given = labels.tolist() if isinstance(labels, Tensor) else labels
        self._for_all = isinstance(given, str) or not isinstance(given, Sequence)
        names = label_names(classifier)
        rows: list = [given] if self._for_all else list(given)
        self.labels = [names.index(label) if label in names else label for label in rows]
        usable = bool(self.labels) and all(label is None or is_index(label, 0) for label in self.labels)
        check(usable, "labels", f"class ids of at least 0, None, or among the names {names}", labels)

    def acts(self, logits: Tensor, state: Any) -> bool:
        return super().acts(logits, state) and any(label is not None for label in self.labels)

    def label_log_probs(self, logits: Tensor, labels: list[int | None]) -> Tensor:
        """(B,) log-probabilities of the labels from the logits (B, C) of a classifier; 0 without a label."""
        largest = max((label for label in labels if label is not None), default=0)
        check(logits.ndim == 2, "classifier", "of whole texts, with logits (B, C)", tuple(logits.shape))
        check(largest < logits.shape[-1], "labels", f"below the {logits.shape[-1]} classes", largest)
        wanted = torch.tensor([label or 0 for label in labels], device=logits.device)
        guided = torch.tensor([label is not None for label in labels], device=logits.device)
        chosen = logits.log_softmax(dim=-1).gather(1, wanted.unsqueeze(1)).squeeze(1)
        return torch.where(guided, chosen, 0.0)

    def labels_of(self, num_rows: int) -> list[int | None]:
        """The label of each row."""
        if self._for_all:
            return self.labels * num_rows
        check_rows("labels", len(self.labels), num_rows)
        return self.labels


class ClassifierGuidance(LabelControl):
    """Guidance by a classifier of noisy text, D-CBG (https://arxiv.org/abs/2412.10193).

    It tilts p(x_s | x_t): each value v of an open token gains `log p(label | x_t with that token set to v, t)`, less
    that of x_t, every token on its own. Staying what it is, as a mask may, gains nothing.

    Args:
        classifier: noise-aware, such as `TextClassifierModel`: `classifier(input_ids=..., attention_mask=...,
            timestep=...).logits` (B, C), also of `inputs_embeds`; `timestep` is left out if it does not take it. One
            over word embeddings serves `latent_log_prob` only.
        order: "first" replaces the gain by its first-order expansion at x_t, one gradient for all values; "exact" asks
            the classifier for each value.
        candidates: with "exact", only the likeliest values of each token are asked for, so many of them; the others
            gain what the first order says. `None` asks for all.

    Raises:
        ValueError: if an argument is out of its range, or the vocabulary is smaller than that of the text.
    """

    acts_on = "posterior"

    def __init__(
        self,
        classifier: Any,
        labels: Any,
        scale: float = 1.0,
        order: str = "first",
        candidates: int | None = None,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(classifier, labels, scale, start, stop)
        check(order in ORDERS, "order", f"one of {ORDERS}", order)
        usable = candidates is None or order == "exact" and is_index(candidates, 1)
        check(usable, "candidates", 'None, or with order="exact" an integer of at least 1', candidates)
        self.order, self.candidates = order, candidates

    def tilt(self, logits: Tensor, state: Any) -> Tensor:
        """(N, S) gains of the values of the open tokens, for log p(x_s | x_t) (N, S); 0 for the present value."""
        size = token_embedding("classifier", self.classifier).weight.shape[0]
        check_vocabulary("classifier", size, max(logits.shape[-1], int(state.tokens.max()) + 1))
        check_vocabulary("logits", logits.shape[-1], int(state.tokens[state.open].max()) + 1)
        if self.order == "exact" and self.candidates is None:
            return self._exact(torch.ones_like(logits, dtype=torch.bool), torch.zeros_like(logits), state)
        first = self._first_order(logits.shape[-1], state)
        if self.candidates is None:
            return first
        likeliest = logits.topk(min(self.candidates, logits.shape[-1]), dim=-1).indices
        asked = torch.zeros_like(logits, dtype=torch.bool).scatter(1, likeliest, True)
        return self._exact(asked, first, state)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of the labels, of soft noisy text (B, L, V) at the time of `state`."""
        size = token_embedding("classifier", self.classifier).weight.shape[0]
        check_vocabulary("classifier", size, probs.shape[-1], exactly=True)
        logits = read_soft_text(self.classifier, probs, state, state.timestep).logits
        return self.label_log_probs(logits, self.labels_of(len(probs)))

    def latent_log_prob(self, latents: Tensor, timestep: float | Tensor, attention_mask: Tensor) -> Tensor:
        """(B,) log-probability of the labels, differentiable in noisy word embeddings (B, L, E)."""
        inputs = {"inputs_embeds": latents, "attention_mask": attention_mask.long()}
        logits = self.classifier(**inputs, **time_argument(self.classifier, timestep, latents)).logits
        return self.label_log_probs(logits, self.labels_of(len(latents)))

    def _first_order(self, num_values: int, state: Any) -> Tensor:
        """(N, S) gradient at the one-hot rows of x_t, less that of the present value."""
        weight = self.classifier.get_input_embeddings().weight.detach()
        present = state.tokens[state.open]  # (N,)
        with torch.enable_grad():
            embeds = weight[state.tokens].requires_grad_()  # (B, L, D)
            shown, real = shown_rows(embeds, state.starts, state.attention_mask)
            times = time_argument(self.classifier, state.timestep, embeds)
            logits = self.classifier(inputs_embeds=shown, attention_mask=real, **times).logits
            total = self.label_log_probs(logits, self.labels_of(len(embeds))).sum()
            (gradient,) = torch.autograd.grad(total, embeds)
        slopes = gradient[state.open] @ weight.T  # (N, V)
        return (slopes - slopes.gather(1, present.unsqueeze(1)))[:, :num_values]

    @torch.no_grad()
    def _exact(self, asked: Tensor, others: Tensor, state: Any) -> Tensor:
        """(N, S) gains of the values that are `asked` for (N, S), and `others` (N, S) elsewhere."""
        row_of, place_of = state.open.nonzero().unbind(dim=1)  # (N,)
        present = state.tokens[state.open].unsqueeze(1)
        guided = [label is not None for label in self.labels_of(len(state.tokens))]
        asked = (asked & torch.tensor(guided, device=asked.device)[row_of].unsqueeze(1)).scatter(1, present, False)
        gains = others.scatter(1, present, 0.0)
        all_rows = torch.arange(len(state.tokens), device=asked.device)
        now = torch.cat([self._noisy_log_probs(state.tokens[r], r, state) for r in all_rows.split(ROWS_AT_A_TIME)])
        for block in asked.nonzero().split(ROWS_AT_A_TIME):
            which, value = block.unbind(dim=1)
            rows = row_of[which]
            neighbours = state.tokens[rows]
            neighbours[torch.arange(len(rows), device=rows.device), place_of[which]] = value
            gains[which, value] = (self._noisy_log_probs(neighbours, rows, state) - now[rows]).to(gains.dtype)
        return gains

    def _noisy_log_probs(self, tokens: Tensor, rows: Tensor, state: Any) -> Tensor:
        """(n,) log-probabilities of the labels, of tokens (n, L) in the place of some rows (n,) of the texts."""
        starts, labels = (
            [values[row] for row in rows.tolist()] for values in (state.starts, self.labels_of(len(state.tokens)))
        )
        shown, real = shown_rows(tokens, starts, state.attention_mask[rows])
        times = time_argument(self.classifier, state.timestep, shown)
        return self.label_log_probs(self.classifier(input_ids=shown, attention_mask=real, **times).logits, labels)


class CleanClassifierGuidance(LabelControl):
    """Guidance of predicted clean text by any classifier that shares the tokenizer, which need not know of noise.

    The classifier reads soft text, as in ParaGuide (https://arxiv.org/abs/2308.15459): the mean embeddings of the
    predicted tokens.

    Args:
        classifier: a transformers sequence classifier, or `TextClassifierModel`, which is told that the text is clean.
        temperature: divides the logits of the soft text; below 1 it is closer to a text of tokens.
        steps: number of gradients, each of `scale / steps` and at the logits that the one before it led to.

    Raises:
        ValueError: if an argument is out of its range, or the vocabularies differ.
    """

    def __init__(
        self,
        classifier: Any,
        labels: Any,
        scale: float = 1.0,
        temperature: float = 1.0,
        steps: int = 1,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(classifier, labels, scale, start, stop)
        check(is_finite(temperature) and temperature > 0, "temperature", "a number above 0", temperature)
        check(is_index(steps, 1), "steps", "an integer of at least 1", steps)
        self.temperature, self.num_gradients = float(temperature), steps

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of the labels, of soft clean text (B, L, V)."""
        size = token_embedding("classifier", self.classifier).weight.shape[0]
        check_vocabulary("classifier", size, probs.shape[-1], exactly=True)
        logits = read_soft_text(self.classifier, probs, state).logits
        return self.label_log_probs(logits, self.labels_of(len(probs)))


class StyleGuidance(Control):
    """Text in a given style: the cosine of its features with a style vector takes the place of a log-probability.

    Features are the mean over the tokens of what an encoder says of them. The cosine moves between -1 and 1 only, so
    the scale is to be larger than that of other controls.

    Args:
        encoder: of transformers, with `last_hidden_state` (B, L, D), in evaluation mode; it shares the tokenizer.
        target: the style, (D,), or (B, D), one a text; see `style_vector`.

    Raises:
        ValueError: if an argument is out of its range, or the vocabularies or the widths differ.
    """

    def __init__(self, encoder: Any, target: Tensor, scale: float = 1.0, start: float = 0.0, stop: float = 1.0):
        super().__init__(scale, start, stop)
        check_reader("encoder", encoder)
        usable = target.ndim in (1, 2) and bool(target.isfinite().all()) and bool((target.norm(dim=-1) > 0).all())
        check(usable, "target", "finite and not 0, of shape (D,) or (B, D)", tuple(target.shape))
        self.encoder, self.target = encoder, target

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) cosines of soft text (B, L, V) with the style."""
        size = token_embedding("encoder", self.encoder).weight.shape[0]
        check_vocabulary("encoder", size, probs.shape[-1], exactly=True)
        _, real = shown_rows(state.tokens, state.starts, state.attention_mask)
        features = mean_features(read_soft_text(self.encoder, probs, state), real)
        width = features.shape[-1]
        check(
            self.target.shape[-1] == width, "target", f"of the {width} features of the encoder", self.target.shape[-1]
        )
        if self.target.ndim == 2:
            check_rows("target", len(self.target), len(features))
        return torch.cosine_similarity(features, self.target.to(features), dim=-1)


def mean_features(output: Any, real: Tensor) -> Tensor:
    """(B, D) mean of an encoder's `last_hidden_state` over the tokens that are `real` (B, L)."""
    features, weights = output.last_hidden_state, real.unsqueeze(-1)
    return (features * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def style_vector(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(D,) mean features of texts, the `target` of `StyleGuidance`; each after the start token, as texts are written.

    Raises:
        ValueError: if there are no texts.
    """
    check(len(texts) > 0 and not isinstance(texts, str), "texts", "a list of at least one text", texts)
    check_reader("encoder", encoder)
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    total = []
    for first in range(0, len(texts), ROWS_AT_A_TIME):
        rows = tokenizer(list(texts[first : first + ROWS_AT_A_TIME]))["input_ids"]
        rows = [row if start is None or row[:1] == [start] else [start, *row] for row in rows]
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(encoder.device)
        real = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True).to(ids)
        total.append(mean_features(encoder(input_ids=ids, attention_mask=real), real))
    return torch.cat(total).mean(dim=0)
