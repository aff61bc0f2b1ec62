"""A causal language model of transformers that writes a text behind a prefix, to which the latents become.

Shapes: B batch, K latents, E width of a latent, T tokens of a text, P tokens of a prompt, D width of the language
model's embeddings, V vocabulary size, N selected positions.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)

from text_diffusers.common.randomness import Generators, rand, row_generators
from text_diffusers.common.sampling import sample_tokens, token_weights
from text_diffusers.models.attention import wanted_tokens
from text_diffusers.models.language.calls import logits_at, takes_argument

# Of the vocabulary, beside which a token is told from others: merges come in the order of their frequency
COMMON_TOKENS = 4_096
# By how much cosines are larger as scores
COSINE_SCALE = 20.0


class PrefixDecoder(nn.Module):
    """A causal language model behind K embeddings.

    The state at the last of these embeddings predicts the first token of a text, that at the first token the second,
    and so on; the logits stand at the tokens that they predict.

    Args:
        config: of the language model, as transformers' configurations give it by `to_dict`.
        num_latents: K.
        latent_size: E.
    """

    def __init__(self, config: dict[str, Any], num_latents: int, latent_size: int):
        super().__init__()
        self.num_latents = num_latents
        settings = AutoConfig.for_model(**config)
        self.language_model: Any = AutoModelForCausalLM.from_config(
            settings, dtype=torch.get_default_dtype()
        )
        # How it ends and draws is said in each call, and not in what it was published with.
        self.language_model.generation_config = GenerationConfig()

        width = self.language_model.get_input_embeddings().weight.shape[1]
        self.prefix_in = nn.Linear(latent_size, width)
        self.places = nn.Parameter(torch.zeros(num_latents, width))
        # In place of a latent that the decoder is not told, and of a word
        self.no_latent = nn.Parameter(torch.zeros(width))
        self.no_word = nn.Parameter(torch.zeros(width))
        self.fit_prefix()

    @torch.no_grad()
    def fit_prefix(self):
        """Begin with a prefix that is as large as the embeddings of tokens are."""
        weight = self.language_model.get_input_embeddings().weight
        # Without weights, before they are loaded, there is nothing to be fitted to.
        if weight.is_meta:
            return
        size = float(weight.float().square().mean().sqrt())
        nn.init.normal_(self.prefix_in.weight, std=size * self.prefix_in.in_features**-0.5)
        nn.init.zeros_(self.prefix_in.bias)
        nn.init.normal_(self.places, std=size)

    @property
    def vocab_size(self) -> int:
        """V, of which some ids may have no token."""
        return self.language_model.get_input_embeddings().weight.shape[0]

    def prefix(
        self, latents: Tensor | None, batch_size: int, dropped: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) embeddings of latents (B, K, E).

        Args:
            latents: `None` is all of them dropped.
            batch_size: B.
            dropped: (B, K) bool, latents that the decoder is not told.
        """
        if latents is None:
            latents = self.places.new_zeros(
                batch_size, self.num_latents, self.prefix_in.in_features
            )
            dropped = torch.ones_like(latents[..., 0], dtype=torch.bool)
        if dropped is None:
            dropped = torch.zeros_like(latents[..., 0], dtype=torch.bool)
        told = self.prefix_in(latents.to(self.prefix_in.weight.dtype))  # (B, K, D)
        return torch.where(dropped.unsqueeze(-1), self.no_latent, told) + self.places

    def forward(
        self,
        latents: Tensor | None,
        decoder_ids: Tensor,
        decoder_mask: Tensor | None = None,
        dropped_latents: Tensor | None = None,
        hidden_words: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, V) logits of each token from the latents and the tokens before it, or (N, V) at `positions`.

        Args:
            latents: (B, K, E), or `None` for none.
            decoder_ids: (B, T).
            decoder_mask: (B, T), 0 at padding, wherever it stands; the logits there mean nothing.
            dropped_latents: (B, K) bool, latents that the decoder is not told.
            hidden_words: (B, T) bool, tokens that the decoder is asked for and does not see.
            positions: (B, T) bool; the head runs for these tokens only.
        """
        # 1. Real tokens to the front: what is behind them is not seen, as attention is causal
        real = torch.ones_like(decoder_ids, dtype=torch.bool)
        if decoder_mask is not None:
            real = decoder_mask.bool()
        order = wanted_tokens(real)  # (B, T')
        tokens = decoder_ids.masked_fill(~real, 0).gather(1, order)

        # 2. Prefix and words, of which the last predicts nothing
        words = self.language_model.get_input_embeddings()(tokens)  # (B, T', D)
        hidden = torch.zeros_like(real) if hidden_words is None else hidden_words
        no_word = self.no_word.to(words.dtype)
        words = torch.where(hidden.gather(1, order).unsqueeze(-1), no_word, words)
        prefix = self.prefix(latents, len(tokens), dropped_latents).to(words.dtype)
        inputs: dict[str, Any] = {"inputs_embeds": torch.cat([prefix, words[:, :-1]], dim=1)}
        if takes_argument(self.language_model, "use_cache"):
            inputs["use_cache"] = False

        # 3. Each token from the state before it
        wanted = torch.ones_like(real) if positions is None else positions
        rows, columns = wanted.nonzero(as_tuple=True)  # (N,)
        places = (real.long().cumsum(dim=1) - 1).clamp(min=0)[rows, columns]
        logits = logits_at(self.language_model, rows, self.num_latents - 1 + places, inputs)
        return logits.unflatten(0, decoder_ids.shape) if positions is None else logits

    def word_nats(self, latents: Tensor, decoder_ids: Tensor) -> Tensor:
        """(B, T) -log p of each token by the latents (B, K, E) alone, wherever in a text it stands, in nats.

        The vector of each latent in the prefix says by its cosine with their embeddings which tokens are likely, among
        the first of the vocabulary and the token itself; of K latents each is asked equally often. Embeddings learn
        nothing here. A prefix that says what words a text has is one that a language model can read at once
        (bag-of-words loss, https://arxiv.org/abs/1703.10960).
        """
        weight = self.language_model.get_input_embeddings().weight.detach()
        told = F.normalize(self.prefix_in(latents.to(self.prefix_in.weight.dtype)), dim=-1)

        # 1. Cosines with embeddings around their mean, which they have in common
        mean = weight.mean(dim=0, dtype=torch.float32)
        known = F.normalize(weight[:COMMON_TOKENS].float() - mean, dim=-1)  # (C, D)
        own = F.normalize(weight[decoder_ids].float() - mean, dim=-1)  # (B, T, D)
        scores_of_known = COSINE_SCALE * told.float() @ known.T  # (B, K, C)
        scores = COSINE_SCALE * torch.einsum("bkd,btd->bkt", told.float(), own)  # (B, K, T)

        # 2. A token that is not among the first counts beside them, so that a text does not depend on its batch.
        total = scores_of_known.logsumexp(dim=-1, keepdim=True).expand_as(scores)
        is_known = (decoder_ids < len(known)).unsqueeze(1)
        total = torch.where(is_known, total, torch.logaddexp(total, scores))
        return math.log(self.num_latents) - (scores - total).logsumexp(dim=1)

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor | None,
        prompt_ids: Tensor,
        prompt_mask: Tensor | None,
        max_new_tokens: int,
        end_token_ids: list[int],
        pad_token_id: int,
        draw: LogitsProcessor | None,
        suppressed_ids: list[int],
    ) -> Tensor:
        """(B, N) tokens behind the prefix and the prompt (B, P), by transformers' own `generate`.

        Args:
            prompt_mask: (B, P), 0 at padding, wherever it stands.
            end_token_ids: each ends a text; what follows is `pad_token_id`.
            draw: chooses tokens; `None` takes the likeliest.
            suppressed_ids: ids that are never written.
        """
        # 1. Prefix and prompt, padded on the left
        real = torch.ones_like(prompt_ids, dtype=torch.bool)
        if prompt_mask is not None:
            real = prompt_mask.bool()
        prefix = self.prefix(latents, len(prompt_ids))
        words = self.language_model.get_input_embeddings()(prompt_ids.masked_fill(~real, 0))
        embeddings = torch.cat([prefix.to(words.dtype), words], dim=1)  # (B, K + P, D)
        mask = torch.cat([torch.ones_like(prefix[..., 0], dtype=torch.bool), real], dim=1)
        order = mask.int().argsort(dim=1, stable=True)
        embeddings = embeddings.gather(1, order.unsqueeze(-1).expand_as(embeddings))
        mask = mask.gather(1, order)

        # 2. Write. A text that has ended is filled up by a token that the model knows.
        filling = end_token_ids[0] if end_token_ids else 0
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=end_token_ids or None,
            pad_token_id=filling,
            suppress_tokens=suppressed_ids or None,
        )
        tokens = self.language_model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask.long(),
            generation_config=settings,
            logits_processor=LogitsProcessorList([] if draw is None else [draw]),
        )

        # 3. Padding behind the first end
        is_end = torch.isin(tokens, torch.tensor(end_token_ids, device=tokens.device))
        has_ended = is_end.long().cumsum(dim=1) - is_end.long() > 0
        return tokens.masked_fill(has_ended, pad_token_id)


class RowDraws(LogitsProcessor):
    """Leaves the score of one token a row, drawn by the row's own generator: a text does not depend on its batch.

    Args:
        num_rows: texts that are written together.
        temperature, top_k, top_p: as in `token_weights`.
        generator: one for all, or one a row.
    """

    def __init__(
        self,
        num_rows: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
    ):
        self.shape = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self.generators = row_generators(generator, num_rows)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) in which all but the drawn tokens have -inf."""
        weights = token_weights(scores, **self.shape)
        uniform = rand((len(scores), 1), self.generators, scores.device).squeeze(1)
        drawn = sample_tokens(weights, uniform).unsqueeze(1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)
