"""A transformer that denoises word embeddings, and the way from words to embeddings and back.

Words are embedded (`embed`), Gaussian noise is removed from the embeddings (`forward`), and clean estimates are
rounded to words (`logits`, `round`), as in Diffusion-LM (https://arxiv.org/abs/2205.14217).

Shapes: B batch, L sequence length, E embedding width, D hidden width, V vocabulary size, K codes of a codebook.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.common.clean_estimate import PREDICTION_TYPES
from text_diffusers.common.validation import LONGEST_CLOCK, is_key, require
from text_diffusers.models.attention import NORM_EPS, real_tokens, rotary_of
from text_diffusers.models.checks import (
    check_config_types,
    check_shape,
    check_sizes,
    check_transformer_config,
)
from text_diffusers.models.text_lengths import last_tokens, require_length_model
from text_diffusers.models.transformer_blocks import (
    TextTransformerBlock,
    TransformerModel,
    init_weights,
    make_time_layers,
    word_evidence,
    zero_weights,
)

ROUNDINGS = ("head", "nearest", "codebook")

# Clean embeddings (B, L, E) to x_0 and x_t, (B, L, E) each.
Corruption = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass
class EmbeddingTransformerOutput(BaseOutput):
    """Prediction of the denoiser, and in training the embeddings it was made from.

    Attributes:
        sample: (B, L, E) the prediction: clean embeddings, noise or velocity, as `prediction_type` says.
        logits: (B, L, V) of the clean words, with `categorical_output`; in training of any model that predicts the
            "sample".
        clean, start, noisy: (B, L, E) in training: the embeddings, and what `corrupt` made of them.
        start_logits: (B, L, V) in training: words read off `start`.
        length_logits: (B, `max_length`) of 0, 1, 2, ... tokens behind each row, by a model that predicts lengths.
    """

    sample: Tensor
    logits: Tensor | None = None
    clean: Tensor | None = None
    start: Tensor | None = None
    noisy: Tensor | None = None
    start_logits: Tensor | None = None
    length_logits: Tensor | None = None


class EmbeddingTransformerModel(TransformerModel, PeftAdapterMixin):
    """Denoiser over word embeddings.

    Args:
        vocab_size: V, with all special tokens.
        embedding_dim: E, the space in which diffusion happens. Noise of one strength hides less the wider it is.
        hidden_size: D, width of the transformer.
        num_layers: number of transformer blocks.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        max_length: the longest sequence, in tokens; longer inputs are refused.
        num_train_timesteps: steps of the clock in which `timestep` counts.
        prediction_type: "sample" (clean embeddings), "epsilon" or "v_prediction".
        categorical_output: the clean estimate is the mean of the embeddings under predicted probabilities of the
            words (https://arxiv.org/abs/2211.15089); needs `prediction_type="sample"`. Once `set_noise` has been
            called, Bayes' rule tells what a noisy embedding says of its own word. It is added to the logits
            (https://arxiv.org/abs/2305.18619), so the network only learns what the other words say; and the network
            is shown it, as the mean of learned vectors of width D.
        self_conditioning: whether the network also sees its previous estimate (https://arxiv.org/abs/2208.04202).
        partial_noising: whether some embeddings may be given clean (https://arxiv.org/abs/2210.08933).
        num_classes: number of class labels; `None` takes none. Label `num_classes` means "no label".
        normalize_embeddings: scales each embedding to a root mean square of `embedding_scale`.
        embedding_scale: that of the noise is 1. The smaller, the more noise hides: 1 / F is the same as
            the noise factor F of Difformer (https://arxiv.org/abs/2212.09412).
        train_embeddings: whether the embeddings are learned, or stay as they were put in.
        rounding: how `round` finds words: "head" (largest logit), "nearest" (least distance) or "codebook" (the
            nearest of the vectors of `set_codebook`).
        codebook_size: K, with `rounding="codebook"`; by default V, one code a word.
        time_bins: in so many equal parts of the clock `time_density` says how often training draws its times; 0 if
            it draws all alike.
        dropout: probability, during training.
        mask_token_id, pad_token_id: never written.
        predicts_length: whether the model has a head that says how long a text from a source is, see `length_logits`;
            needs `partial_noising`.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import EmbeddingTransformerModel
        >>> model = EmbeddingTransformerModel(20, embedding_dim=4, hidden_size=8, num_layers=1, num_attention_heads=2)
        >>> words = torch.tensor([[3, 9, 7]])
        >>> noisy = model.embed(words) + 0.1
        >>> model(noisy, timestep=300).sample.shape
        torch.Size([1, 3, 4])
        >>> model.round(model.embed(words))
        tensor([[3, 9, 7]])
    """

    _supports_gradient_checkpointing = True
    # Read outside of their layers.
    _skip_layerwise_casting_patterns = ["token_embedding", "words_in"]

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int = 16,
        hidden_size: int = 256,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        max_length: int = 128,
        num_train_timesteps: int = 2000,
        prediction_type: str = "sample",
        categorical_output: bool = False,
        self_conditioning: bool = True,
        partial_noising: bool = False,
        num_classes: int | None = None,
        normalize_embeddings: bool = True,
        embedding_scale: float = 1.0,
        train_embeddings: bool = True,
        rounding: str = "head",
        codebook_size: int | None = None,
        time_bins: int = 0,
        dropout: float = 0.0,
        mask_token_id: int | None = None,
        pad_token_id: int | None = None,
        predicts_length: bool = False,
    ):
        super().__init__()
        self._check_config()

        # 1. What the transformer reads: noisy embeddings, and all that is known of them
        self.token_embedding = nn.Embedding(vocab_size, embedding_dim)
        # Noisy embeddings are projected; what else is known is added at the same width.
        self.proj_in = nn.Linear(embedding_dim, hidden_size)
        self.words_in = nn.Embedding(vocab_size, hidden_size) if categorical_output else None
        self.self_condition_in = None
        if self_conditioning:
            self.self_condition_in = nn.Linear(embedding_dim, hidden_size, bias=False)
        self.given_embedding = nn.Embedding(2, hidden_size) if partial_noising else None
        self.class_embedding = None
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.time_embedding = make_time_layers(hidden_size)

        # 2. The transformer and its heads
        self.blocks = nn.ModuleList(
            TextTransformerBlock(self.config, dropout, conditioned=True) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS, elementwise_affine=False)
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj_out = nn.Linear(hidden_size, embedding_dim)
        self.word_head = None
        if categorical_output:
            self.word_head = nn.Linear(hidden_size, vocab_size, bias=False)
        self.length_head = None
        if predicts_length:
            self.length_head = nn.Linear(hidden_size, max_length)

        # Outputs start at zero.
        self.apply(init_weights)
        zero_weights(self.modulation_out, self.proj_out, self.word_head, self.self_condition_in)
        zero_weights(self.length_head)

        # 3. Buffers, which are saved with the weights
        if not train_embeddings:
            # A buffer is saved like a weight, but no optimiser changes it.
            fixed = self.token_embedding.weight.detach()
            del self.token_embedding.weight
            self.token_embedding.register_buffer("weight", fixed)
        if categorical_output:
            # Until `set_noise`, noisy embeddings say nothing of their words.
            self.register_buffer("evidence", torch.zeros(2, num_train_timesteps))
        if time_bins:
            # Until training measures its losses, all times are alike.
            self.register_buffer("time_density", torch.ones(time_bins, dtype=torch.float64))
        if rounding == "codebook":
            # Zeros until `set_codebook`, which stand for the embeddings of the words, whatever these become.
            codes = torch.arange(codebook_size or vocab_size) % vocab_size
            self.register_buffer("codebook", torch.zeros(len(codes), embedding_dim))
            self.register_buffer("codebook_tokens", codes)

    def forward(
        self,
        sample: Tensor | None,
        timestep: float | Tensor,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        self_condition: Tensor | None = None,
        given: Tensor | None = None,
        input_ids: Tensor | None = None,
        corrupt: Corruption | None = None,
        return_dict: bool = True,
    ) -> EmbeddingTransformerOutput | tuple[Tensor]:
        """Predict the clean embeddings, the noise or the velocity.

        In training, pass `input_ids` and `corrupt` with `sample=None`: embedding, corruption and denoising are then
        one call, through which the gradients of all parameters go.

        Args:
            sample: (B, L, E) noisy embeddings.
            timestep: () or (B,) of the clock 0, ..., `num_train_timesteps` - 1.
            attention_mask: (B, L), 0 at padding.
            class_labels: (B,) ids; `None` is "no label".
            self_condition: (B, L, E) the previous clean estimate; `None`, as at the first step, is zeros.
            given: (B, L) bool, the embeddings that are clean, with `partial_noising`.
            input_ids: (B, L) words.
            corrupt: embeddings (B, L, E) -> `(start, noisy)`, each (B, L, E): x_0 and x_t of the embeddings.

        Raises:
            ValueError: if shapes, times or labels do not fit the model.
        """
        # 1. In training, make the noisy embeddings
        clean = None
        start = None
        start_logits = None
        if input_ids is not None and corrupt is not None:
            clean = self.embed(input_ids)
            start, sample = corrupt(clean)
            start_logits = self.logits(start)
        if sample is None:
            raise ValueError("`sample` must be given, or both `input_ids` and `corrupt`.")
        check_shape("sample", sample, self.config.max_length, self.config.embedding_dim)
        if given is not None and self.given_embedding is None:
            raise ValueError(
                "`given` was passed, but this model was built with `partial_noising=False`."
            )

        # 2. Embed what the network is shown
        x = self.proj_in(sample)  # (B, L, D)
        if self.words_in is not None:
            x = x + self._own_words(sample, timestep, given) @ self.words_in.weight
        if self.self_condition_in is not None:
            x = x + self.self_condition_in(
                torch.zeros_like(sample) if self_condition is None else self_condition
            )
        if self.given_embedding is not None:
            x = x + self.given_embedding(
                torch.zeros_like(x[..., 0]).long() if given is None else given.long()
            )

        # 3. Denoise
        condition = self.embed_clock(timestep, class_labels, x)  # (B, 1, D)
        rotary = rotary_of(x, self.config)
        real = real_tokens(attention_mask)
        mask = None if real is None else real[:, None, None]
        for block in self.blocks:
            x = self.run_block(block, x, rotary, mask, condition)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        x = self.norm_out(x) * (1 + scale) + shift
        prediction = self.proj_out(x)  # (B, L, E)

        # 4. Read off the words
        logits = None
        if self.word_head is not None:
            times = self._clock(timestep, sample).unsqueeze(1)
            logits = self.word_head(x) + self._word_logits(prediction, sample, times)
            # The mean of the embeddings of all words, by their probability
            prediction = self._without_special(logits).softmax(dim=-1) @ self.embedding_table()
        # In training, any clean estimate is held to its words.
        elif clean is not None and self.config.prediction_type == "sample":
            logits = self.logits(prediction)
        if not return_dict:
            return (prediction,)

        # 5. At its last token a row that is all source says how much is to follow
        length_logits = None
        if self.length_head is not None:
            length_logits = self.length_head(x[last_tokens(sample[..., 0], attention_mask)])
        return EmbeddingTransformerOutput(
            prediction, logits, clean, start, sample, start_logits, length_logits
        )

    def length_logits(
        self,
        source_ids: Tensor,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Ask how many tokens are to be written from each source, by its clean embeddings alone.

        Args:
            source_ids: (B, S) tokens "start source end" of each row, with padding on the right.
            attention_mask: (B, S), 0 at padding.
            class_labels: (B,) ids; `None` is "no label".

        Returns:
            (B, `max_length`) logits of 0, 1, 2, ... tokens.

        Raises:
            ValueError: if the model was built with `predicts_length=False`.
        """
        require_length_model(self.config)
        given = torch.ones_like(source_ids, dtype=torch.bool)
        output = self(self.embed(source_ids), 0, attention_mask, class_labels, given=given)
        return output.length_logits

    def embedding_table(self) -> Tensor:
        """(V, E) the clean embedding of every word."""
        weight = self.token_embedding.weight
        if not self.config.normalize_embeddings:
            return weight

        # Unit length times sqrt(E) is a root mean square of 1.
        return F.normalize(weight, dim=-1) * (
            self.config.embedding_scale * self.config.embedding_dim**0.5
        )

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, L, E) clean embeddings of words (B, L)."""
        return F.embedding(input_ids, self.embedding_table())

    def logits(self, clean: Tensor) -> Tensor:
        """(..., V) logits of words from clean embeddings (..., E), by the embeddings themselves, without a bias."""
        return F.linear(clean, self.embedding_table())

    @torch.no_grad()
    def round(self, clean: Tensor, excluded_ids: Sequence[int] | None = None) -> Tensor:
        """(...) ids of the words that clean estimates (..., E) are rounded to.

        Args:
            excluded_ids: ids that are not among them, by default padding and mask.

        Raises:
            ValueError: if the codebook has no others.
        """
        excluded = self._special_ids if excluded_ids is None else excluded_ids
        if self.config.rounding == "codebook":
            return self._round_by_codebook(clean, excluded)
        if self.config.rounding == "head":
            return without_ids(self.logits(clean), excluded).argmax(dim=-1)
        return self._nearest_ids(clean, excluded)

    def _round_by_codebook(self, clean: Tensor, excluded_ids: Sequence[int]) -> Tensor:
        codes = self.codebook_tokens
        excluded = torch.tensor(excluded_ids, dtype=codes.dtype, device=codes.device)
        is_excluded = torch.isin(codes, excluded)  # (K,)
        if is_excluded.all():
            raise ValueError(
                f"`codebook_tokens` must hold the id of a word, got none but the special ids {list(excluded_ids)}: "
                "pass others as `token_ids` to `set_codebook`."
            )
        scores = -distances(clean, self.codebook)
        return codes[scores.masked_fill(is_excluded, float("-inf")).argmax(dim=-1)]

    @property
    def codebook(self) -> Tensor:
        """(K, E) the vectors that are rounded to; until `set_codebook` the embeddings of their words as they are."""
        vectors = self._buffers.get("codebook")
        if vectors is None:
            raise AttributeError('`codebook` needs a model with `rounding="codebook"`.')
        # A loader may ask for its shape before there are any numbers.
        if vectors.is_meta or vectors.any():
            return vectors
        return self.embedding_table().detach()[self.codebook_tokens]

    @torch.no_grad()
    def nearest_words(self, clean: Tensor) -> Tensor:
        """(..., E) the nearest embeddings of words to clean estimates (..., E)."""
        return self.embed(self._nearest_ids(clean, self._special_ids))

    def _nearest_ids(self, clean: Tensor, excluded_ids: Sequence[int]) -> Tensor:
        # As the largest of the negative distances, so that ids can be excluded by -inf.
        scores = -distances(clean, self.embedding_table())
        return without_ids(scores, excluded_ids).argmax(dim=-1)

    def set_noise(self, alphas_cumprod: Tensor):
        """Tell a model with `categorical_output` the noise of its clock, `alphas_cumprod` (T,).

        Raises:
            ValueError: if the model has no such output, or there is not one value a timestep.
        """
        steps = self.config.num_train_timesteps
        if not self.config.categorical_output:
            raise ValueError("`set_noise` needs a model with `categorical_output=True`.")
        if (
            tuple(alphas_cumprod.shape) != (steps,)
            or not ((alphas_cumprod > 0) & (alphas_cumprod < 1)).all()
        ):
            raise ValueError(
                f"`alphas_cumprod` must be ({steps},) and between 0 and 1, got {tuple(alphas_cumprod.shape)}, "
                f"{float(alphas_cumprod.min())} to {float(alphas_cumprod.max())}."
            )
        self.evidence.copy_(word_evidence(alphas_cumprod))

    def set_codebook(self, vectors: Tensor, token_ids: Tensor):
        """Round to the nearest of `vectors` (K, E), which stand for the words `token_ids` (K,).

        Raises:
            ValueError: if the model does not round by a codebook, the shapes or ids do not fit, or none is of a word.
        """
        require(
            self.config.rounding == "codebook",
            "rounding",
            '"codebook" to set one',
            self.config.rounding,
        )
        shape = tuple(self.codebook.shape)
        if tuple(vectors.shape) != shape or tuple(token_ids.shape) != shape[:1]:
            raise ValueError(
                f"`vectors` and `token_ids` must be {shape} and {shape[:1]}, got {tuple(vectors.shape)}, "
                f"{tuple(token_ids.shape)}."
            )
        is_known = bool(((token_ids >= 0) & (token_ids < self.config.vocab_size)).all())
        require(is_known, "token_ids", f"in the vocabulary of {self.config.vocab_size}", token_ids)
        # Zeros stand for a codebook that was not set.
        require(bool(vectors.any()), "vectors", "others than zeros", vectors)
        special = torch.tensor(self._special_ids, dtype=token_ids.dtype, device=token_ids.device)
        has_word = bool((~torch.isin(token_ids, special)).any())
        require(has_word, "token_ids", "ids of words, not only of padding and mask", token_ids)
        # The buffer itself, in the place of which `codebook` may show the embeddings.
        buffer = self._buffers["codebook"]
        assert buffer is not None
        buffer.copy_(vectors)
        self.codebook_tokens.copy_(token_ids)

    @torch.no_grad()
    def _own_words(self, sample: Tensor, timestep: float | Tensor, given: Tensor | None) -> Tensor:
        """(B, L, V) probabilities of the words by their noisy embeddings alone; given ones have the least noise."""
        times = self._clock(timestep, sample).unsqueeze(1)
        if given is not None:
            times = times.masked_fill(given, 0)  # (B, L)

        # With a prediction of zeros, the noisy embedding alone decides.
        return self._without_special(
            self._word_logits(torch.zeros_like(sample), sample, times)
        ).softmax(dim=-1)

    def _clock(self, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """(B,) whole timesteps."""
        return torch.as_tensor(timestep, device=sample.device).round().long().expand(len(sample))

    def _word_logits(self, prediction: Tensor, sample: Tensor, times: Tensor) -> Tensor:
        """(B, L, V) logits of words by their embeddings, from the prediction and the noisy embeddings themselves.

        `times` are whole timesteps, (B, 1) or (B, L). As far as the log-likelihood (see `word_evidence`) is linear in
        e, it is one product with the prediction.
        """
        signal, power = self.evidence[:, times].unsqueeze(-1).to(sample.dtype)  # (B, 1 or L, 1)
        logits = self.logits(prediction + signal * sample)
        # Normalised embeddings all have the same |e|.
        if self.config.normalize_embeddings:
            return logits
        return logits - power / 2 * self.embedding_table().square().sum(dim=-1)

    @property
    def _special_ids(self) -> list[int]:
        """Padding and mask, as far as the model knows them."""
        ids = (self.config.mask_token_id, self.config.pad_token_id)
        return [token for token in ids if token is not None]

    def _without_special(self, scores: Tensor) -> Tensor:
        """Scores (..., V) with padding and mask made impossible."""
        return without_ids(scores, self._special_ids)

    def _check_config(self):
        config = self.config
        check_config_types(self)
        check_transformer_config(config, ["embedding_dim"])
        check_sizes(config, ["num_train_timesteps"], most=LONGEST_CLOCK)
        check_sizes(config, ["codebook_size"], least=0, optional=True)

        for name, choices in (("prediction_type", PREDICTION_TYPES), ("rounding", ROUNDINGS)):
            value = getattr(config, name)
            require(is_key(value, choices), name, f"one of {choices}", value, choices)
        if config.categorical_output and config.prediction_type != "sample":
            raise ValueError(
                f'`categorical_output` needs `prediction_type="sample"`, got {config.prediction_type!r}.'
            )
        if config.predicts_length and not config.partial_noising:
            raise ValueError("`predicts_length` needs `partial_noising=True`, got False.")
        if config.codebook_size is not None and (
            config.rounding != "codebook" or config.codebook_size < 1
        ):
            raise ValueError(
                '`codebook_size` must be at least 1 and needs `rounding="codebook"`, got '
                f"{config.codebook_size!r} with {config.rounding!r}."
            )

        steps = config.num_train_timesteps
        limit = f"between 0 and `num_train_timesteps`={steps}"
        require(0 <= config.time_bins <= steps, "time_bins", limit, config.time_bins)
        require(config.embedding_scale > 0, "embedding_scale", "above 0", config.embedding_scale)


def without_ids(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Scores (..., V) with some ids made impossible."""
    # The dtype of no id at all has to be given.
    excluded = torch.tensor(ids, device=scores.device, dtype=torch.long)
    return scores.index_fill(-1, excluded, float("-inf"))


def distances(points: Tensor, table: Tensor) -> Tensor:
    """(..., K) squared distances of points (..., E) to the rows of a table (K, E), without those of the points' norm.

    The norm is the same for all rows, so the nearest row stays the nearest.
    """
    return table.square().sum(dim=-1) - 2 * F.linear(points, table)
