"""Controls by a classifier or an encoder: of noisy text, of the clean text that is predicted, and of its style.

Shapes: B rows, L sequence length, V vocabulary size, S states of a token, N open tokens, C classes, D and E widths.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import is_int, is_number, require
from text_diffusers.guidance.controls import Control, for_each_text
from text_diffusers.guidance.readers import (
    check_reader,
    label_names,
    pad_rows,
    read,
    read_soft_text,
    shown_rows,
    token_embedding,
)
from text_diffusers.guidance.vocabulary import check_vocabulary

ROWS_AT_A_TIME = 128
ORDERS = ("first", "exact")


class LabelControl(Control):
    """Base of the controls by labels of a classifier.

    Args:
        classifier: in evaluation mode; its parameters and their gradients are left as they are.
        labels: the wanted class of each text, or of all, an id or one of the classifier's names; a text whose label is
            None is not guided.
        scale, start, stop: as in `Control`.
    """

    reads_noise = False

    def __init__(
        self,
        classifier: Any,
        labels: Any,
        scale: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(scale, start, stop)
        check_reader("classifier", classifier)
        self.classifier = classifier

        # Names become ids; one label alone is that of all texts.
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        self._shared = isinstance(labels, str) or not isinstance(labels, Sequence)
        names = label_names(classifier)
        text_labels: Any = [labels] if self._shared else labels
        self.labels: list[int | None] = [
            names.index(label) if label in names else label for label in text_labels
        ]
        are_labels = bool(self.labels) and all(
            label is None or is_int(label, 0) for label in self.labels
        )
        require(
            are_labels,
            "labels",
            f"class ids of at least 0, None, or among the names {names}",
            labels,
        )

    def acts(self, logits: Tensor, state: Any) -> bool:
        return super().acts(logits, state) and any(label is not None for label in self.labels)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of the labels, of soft text (B, L, V), clean or at the time of `state`."""
        timestep = state.timestep if self.reads_noise else None
        output = read_soft_text("classifier", self.classifier, probs, state, timestep)
        return self.label_log_probs(output.logits, self.labels_of(probs))

    def label_log_probs(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) log-probabilities of the labels (B,) from the logits (B, C) of a classifier; 0 without a label."""
        require(
            logits.ndim == 2,
            "classifier",
            "of whole texts, with logits (B, C)",
            tuple(logits.shape),
        )
        num_classes = logits.shape[-1]
        largest = max(label or 0 for label in self.labels)
        require(largest < num_classes, "labels", f"below the {num_classes} classes", largest)

        wanted = labels.clamp(min=0).unsqueeze(1)  # (B, 1)
        chosen = logits.log_softmax(dim=-1).gather(1, wanted).squeeze(1)
        return torch.where(labels >= 0, chosen, 0.0)

    def labels_of(self, texts: Tensor) -> Tensor:
        """(B,) class ids of the texts (B, ...), -1 where there is no label."""
        # A tensor, since its rows are picked: None becomes -1.
        labels = for_each_text("labels", self.labels, len(texts), self._shared)
        return torch.tensor(
            [-1 if label is None else label for label in labels], device=texts.device
        )


class ClassifierGuidance(LabelControl):
    """Guidance by a classifier of noisy text, D-CBG (https://arxiv.org/abs/2412.10193).

    It tilts p(x_s | x_t): each value v of an open token gains `log p(label | x_t with that token set to v, t)`, less
    that of x_t, every token on its own. Staying what it is, as a mask may, gains nothing.

    Args:
        classifier: noise-aware, such as `TextClassifierModel`: `classifier(input_ids=..., attention_mask=...,
            timestep=...).logits` (B, C), also of `inputs_embeds`; `timestep` is left out if it does not take it. One
            over word embeddings serves `latent_log_prob` only.
        labels, scale: as in `LabelControl`.
        order: "first" replaces the gain by its first-order expansion at x_t, one gradient for all values; "exact" asks
            the classifier for each value.
        candidates: with "exact", only the likeliest values of each token are asked for, so many of them; the others
            gain what the first order says. `None` asks for all.
        start, stop: as in `Control`.

    Raises:
        ValueError: if an argument is out of its range, or the vocabulary is smaller than that of the text.

    Example:
        >>> from text_diffusers import TextClassifierModel
        >>> from text_diffusers.guidance import ClassifierGuidance
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> classifier = TextClassifierModel(50, labels=["sad", "happy"], **sizes).eval()
        >>> control = ClassifierGuidance(classifier, "happy", scale=2.0)  # for pipe(controls=control)
        >>> control.labels
        [1]
    """

    acts_on = "posterior"
    reads_noise = True

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
        require(order in ORDERS, "order", f"one of {ORDERS}", order)
        is_number_of_values = candidates is None or (order == "exact" and is_int(candidates, 1))
        limit = 'None, or with order="exact" an integer of at least 1'
        require(is_number_of_values, "candidates", limit, candidates)
        self.order = order
        self.candidates = candidates

    def tilt(self, logits: Tensor, state: Any) -> Tensor:
        """(N, S) gains of the values of the open tokens, for log p(x_s | x_t) (N, S); 0 for the present value."""
        # The kernel may have fewer states than the classifier has tokens, and more only if these are never written:
        # language models may have logits of ids that no token has.
        vocab_size = len(token_embedding("classifier", self.classifier).weight)
        num_unused = 0
        if torch.isneginf(logits[:, vocab_size:]).all():
            num_unused = max(logits.shape[-1] - vocab_size, 0)
            logits = logits[:, :vocab_size]
        num_values = logits.shape[-1]
        check_vocabulary("classifier", vocab_size, max(num_values, int(state.tokens.max()) + 1))
        check_vocabulary("logits", num_values, int(state.tokens[state.open].max()) + 1)
        return F.pad(self._gains(logits, state), (0, num_unused))

    def _gains(self, logits: Tensor, state: Any) -> Tensor:
        """(N, S) gains of the values of the open tokens, all of which the classifier knows."""
        num_values = logits.shape[-1]
        if self.order == "exact" and self.candidates is None:
            every_value = torch.ones_like(logits, dtype=torch.bool)
            return self._exact(every_value, torch.zeros_like(logits), state)

        # The likeliest values are asked for; what is left has the first order.
        first_order = self._first_order(num_values, state)
        if self.candidates is None:
            return first_order
        likeliest = logits.topk(min(self.candidates, num_values), dim=-1).indices
        asked = torch.zeros_like(logits, dtype=torch.bool).scatter(1, likeliest, True)
        return self._exact(asked, first_order, state)

    def latent_log_prob(
        self, latents: Tensor, timestep: float | Tensor, attention_mask: Tensor
    ) -> Tensor:
        """(B,) log-probability of the labels, differentiable in noisy word embeddings (B, L, E)."""
        output = read(self.classifier, latents, attention_mask.long(), timestep)
        return self.label_log_probs(output.logits, self.labels_of(latents))

    def _first_order(self, num_values: int, state: Any) -> Tensor:
        """(N, S) gradient at the one-hot rows of x_t, less that of the present value."""
        weight = self.classifier.get_input_embeddings().weight.detach()
        with torch.enable_grad():
            # A one-hot row v moves the embedding by row v of the weight: one gradient serves all values.
            embeds = weight[state.tokens].requires_grad_()  # (B, L, D)
            shown, real = shown_rows(embeds, state.starts, state.attention_mask)
            output = read(self.classifier, shown, real, state.timestep)
            total = self.label_log_probs(output.logits, self.labels_of(embeds)).sum()
            (gradient,) = torch.autograd.grad(total, embeds)

        slopes = gradient[state.open] @ weight.T  # (N, V)
        present = state.tokens[state.open].unsqueeze(1)  # (N, 1)
        return (slopes - slopes.gather(1, present))[:, :num_values]

    @torch.no_grad()
    def _exact(self, asked: Tensor, others: Tensor, state: Any) -> Tensor:
        """(N, S) gains of the values that are `asked` for (N, S), and `others` (N, S) elsewhere."""
        device = asked.device
        open_rows, open_places = state.open.nonzero().unbind(dim=1)  # (N,)
        present = state.tokens[state.open].unsqueeze(1)  # (N, 1)
        guided = self.labels_of(state.tokens) >= 0
        asked = (asked & guided[open_rows].unsqueeze(1)).scatter(1, present, False)
        gains = others.scatter(1, present, 0.0)

        # log p(label | x_t) of the texts as they are
        scores = []
        for rows in torch.arange(len(state.tokens), device=device).split(ROWS_AT_A_TIME):
            scores.append(self._noisy_log_probs(state.tokens[rows], rows, state))
        present_scores = torch.cat(scores)  # (B,)

        # and of their neighbours, which differ from them in one token
        for block in asked.nonzero().split(ROWS_AT_A_TIME):
            which, value = block.unbind(dim=1)  # (n,) index of an open token, and its value
            rows = open_rows[which]
            neighbours = state.tokens[rows]  # a copy of its text for each value
            neighbours[torch.arange(len(rows), device=device), open_places[which]] = value
            gain = self._noisy_log_probs(neighbours, rows, state) - present_scores[rows]
            gains[which, value] = gain.to(gains.dtype)
        return gains

    def _noisy_log_probs(self, tokens: Tensor, rows: Tensor, state: Any) -> Tensor:
        """(n,) log-probabilities of the labels, of tokens (n, L) in the place of some rows (n,) of the texts."""
        labels = self.labels_of(state.tokens)[rows]  # (n,)
        starts = [state.starts[row] for row in rows.tolist()]
        shown, real = shown_rows(tokens, starts, state.attention_mask[rows])
        output = read(self.classifier, shown, real, state.timestep)
        return self.label_log_probs(output.logits, labels)


class CleanClassifierGuidance(LabelControl):
    """Guidance of predicted clean text by any classifier that shares the tokenizer, which need not know of noise.

    The classifier reads soft text, as in ParaGuide (https://arxiv.org/abs/2308.15459): the mean embeddings of the
    predicted tokens.

    Args:
        classifier: a transformers sequence classifier, or `TextClassifierModel`, which is told that the text is clean.
        labels, scale: as in `LabelControl`.
        temperature: divides the logits of the soft text; below 1 it is closer to a text of tokens.
        steps: number of gradients, each of `scale / steps` and at the logits that the one before it led to.
        start, stop: as in `Control`.

    Raises:
        ValueError: if an argument is out of its range, or the vocabularies differ.

    Example:
        >>> from text_diffusers import TextClassifierModel
        >>> from text_diffusers.guidance import CleanClassifierGuidance
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> classifier = TextClassifierModel(50, num_classes=3, **sizes).eval()
        >>> control = CleanClassifierGuidance(classifier, [2, None], steps=3)  # two texts, one of them guided
        >>> control.labels
        [2, None]
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
        require(
            is_number(temperature) and temperature > 0,
            "temperature",
            "a number above 0",
            temperature,
        )
        require(is_int(steps, 1), "steps", "an integer of at least 1", steps)
        self.temperature = float(temperature)
        self.num_gradients = steps


class StyleGuidance(Control):
    """Text in a given style: the cosine of its features with a style vector takes the place of a log-probability.

    Features are the mean of an encoder's states over the tokens. The cosine moves between -1 and 1 only, so the scale
    is to be larger than that of other controls.

    Args:
        encoder: of transformers, with `last_hidden_state` (B, L, D), in evaluation mode; it shares the tokenizer.
        target: the style, (D,), or (B, D), one a text; see `style_vector`.
        scale, start, stop: as in `Control`.

    Raises:
        ValueError: if an argument is out of its range, or the vocabularies or the widths differ.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertModel
        >>> from text_diffusers.guidance import StyleGuidance
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        >>> encoder = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
        >>> control = StyleGuidance(encoder, torch.ones(16), scale=20.0)  # for pipe(controls=control)
    """

    def __init__(
        self,
        encoder: Any,
        target: Tensor,
        scale: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(scale, start, stop)
        check_reader("encoder", encoder)
        is_finite = target.ndim in (1, 2) and bool(target.isfinite().all())
        is_style = is_finite and bool((target.norm(dim=-1) > 0).all())
        require(
            is_style, "target", "finite and not 0, of shape (D,) or (B, D)", tuple(target.shape)
        )
        self.encoder = encoder
        self.target = target

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) cosines of soft text (B, L, V) with the style."""
        output = read_soft_text("encoder", self.encoder, probs, state)
        _, real = shown_rows(state.tokens, state.starts, state.attention_mask)
        features = mean_features(output, real)  # (B, D)

        width = features.shape[-1]
        target_width = self.target.shape[-1]
        require(
            target_width == width, "target", f"of the {width} features of the encoder", target_width
        )
        if self.target.ndim == 2:
            for_each_text("target", self.target, len(features))
        return torch.cosine_similarity(features, self.target.to(features), dim=-1)


def mean_features(output: Any, real: Tensor) -> Tensor:
    """(B, D) mean of an encoder's `last_hidden_state` over the tokens that are `real` (B, L)."""
    weights = real.unsqueeze(-1)
    return (output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def style_vector(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(D,) mean features of texts, the `target` of `StyleGuidance`; each after the start token, as texts are written.

    Raises:
        ValueError: if there are no texts.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.guidance import style_vector
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        >>> encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
        >>> style_vector(encoder, tokenizer, texts).shape
        torch.Size([16])
    """
    require(
        len(texts) > 0 and not isinstance(texts, str), "texts", "a list of at least one text", texts
    )
    check_reader("encoder", encoder)
    start = start_ids(tokenizer)

    features = []
    for first in range(0, len(texts), ROWS_AT_A_TIME):
        rows = []
        part = texts[first : first + ROWS_AT_A_TIME]
        for ids in encode_plain(tokenizer, part, "texts", with_ends=True):
            # Some tokenizers put the start token themselves.
            has_start = ids[: len(start)] == start
            rows.append(torch.tensor(ids if has_start else start + ids))
        tokens, real = pad_rows(rows, encoder.device)
        features.append(mean_features(read(encoder, tokens, real), real))
    return torch.cat(features).mean(dim=0)
