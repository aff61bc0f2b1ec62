"""An autoencoder of text with continuous latents: an encoder of transformers, and a causal language model as decoder.

The states of the encoder are pooled to K latents. The decoder is told them as a prefix and writes the text behind it,
token by token, so that a latent that no text has is still decoded to language (https://arxiv.org/abs/2212.09462).

Shapes: B batch, L tokens of the encoder, K latents, E width of a latent, T tokens of the decoder, P of a prompt, V its
vocabulary size, N selected positions.
"""

import json
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForTextEncoding
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from text_diffusers.common.randomness import Generators
from text_diffusers.common.validation import require, require_int, require_key, require_number
from text_diffusers.models.attention import wanted_tokens
from text_diffusers.models.checks import check_config_types, check_sizes, check_transformer_sizes
from text_diffusers.models.language.calls import language_model_length, takes_argument
from text_diffusers.models.latent.perceiver import LatentPerceiver
from text_diffusers.models.latent.prefix_decoder import PrefixDecoder, RowDraws
from text_diffusers.models.transformer_blocks import TransformerModel, init_weights

# How latents are kept smooth: by a variational posterior, or by noise of one size.
REGULARIZATIONS = ("kl", "noise")
MOST_LATENTS = 32

# Logarithms of variances are kept in this range, in which their exponentials and the divergence are finite numbers.
SMALLEST_LOGVAR = -20.0
LARGEST_LOGVAR = 10.0

# What a posterior's variance begins with: latents that tell much, so that the decoder learns to read them.
FIRST_LOGVAR = -4.0

# Entries of a configuration that say where a model came from, and nothing of how it is made
ORIGIN_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


@dataclass
class TextLatents(BaseOutput):
    """The posterior of the latents of texts.

    Attributes:
        latents: (B, K, E), its mean.
        logvar: (B, K, E), the logarithm of its variance; `None` where that is fixed.
    """

    latents: Tensor
    logvar: Any = None


@dataclass
class AutoencoderTextLatentOutput(BaseOutput):
    """Output of a training pass.

    Attributes:
        logits: (B, T, V), or (N, V) at the selected positions; `None` if no text was read.
        latents: (B, K, E), the mean of the posterior.
        logvar: (B, K, E), or `None`.
        word_nats: (B, T), as of `PrefixDecoder.word_nats`, if they were asked for.
    """

    # With defaults, as Accelerate makes outputs anew from a mapping in mixed precision.
    logits: Any = None
    latents: Any = None
    logvar: Any = None
    word_nats: Any = None


class AutoencoderTextLatentModel(TransformerModel):
    """Texts to K latents, and latents to texts.

    The encoder and the decoder are models of transformers, built from their configurations; their tokenizers may
    differ, and the caller brings both. A row of the decoder is a text as the language model reads it, with its start
    token if it has one; logits stand at the tokens that they predict.

    The prior of the latents is N(0, I). With "kl" their posterior is N(mean, exp(logvar)); with "noise" it is
    N(mean, noise_scale^2), and the mean of a latent has mean 0 and variance 1 over its entries.

    Args:
        encoder_config, decoder_config: of the models of transformers, as their `to_dict` gives them.
        num_latents: K, 1 to 32.
        latent_size: E.
        hidden_size: width of the perceiver that pools the encoder's states.
        num_layers: its blocks.
        num_attention_heads: its heads; the head width must be even.
        feed_forward_ratio: width of its feed-forward layers in units of `hidden_size`.
        regularization: "kl" or "noise".
        noise_scale: standard deviation of the posterior with "noise".
        train_encoder: whether the encoder learns; else it is never changed, and runs without gradients and dropout.
        reads_source: whether the decoder reads what a text is written from, too: "start source end" then stand before
            each text. The caller lays the rows out; here it is noted for whoever writes with the model.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, LlamaConfig
        >>> from text_diffusers import AutoencoderTextLatentModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> encoder = BertConfig(vocab_size=30, **sizes).to_dict()
        >>> decoder = LlamaConfig(vocab_size=20, **sizes).to_dict()
        >>> model = AutoencoderTextLatentModel(encoder, decoder, num_latents=2, latent_size=4, hidden_size=8).eval()
        >>> latents = model.encode(torch.tensor([[3, 7, 1]])).latents
        >>> latents.shape, model.decode_logits(latents, torch.tensor([[5, 6, 2]])).shape
        (torch.Size([1, 2, 4]), torch.Size([1, 3, 20]))
        >>> model.generate(latents, prompt_ids=torch.tensor([[5]]), max_new_tokens=4).shape
        torch.Size([1, 4])
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["decoder", "encoder"]  # read outside of their layers

    @register_to_config
    def __init__(
        self,
        encoder_config: dict,
        decoder_config: dict,
        num_latents: int = 8,
        latent_size: int = 64,
        hidden_size: int = 256,
        num_layers: int = 2,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        regularization: str = "kl",
        noise_scale: float = 0.1,
        train_encoder: bool = False,
        reads_source: bool = False,
    ):
        super().__init__()
        self._check_config()
        encoder_config = plain_settings(encoder_config)
        decoder_config = plain_settings(decoder_config)
        self.register_to_config(encoder_config=encoder_config, decoder_config=decoder_config)

        # 1. The encoder, and its states to latents
        self.encoder: Any = build_encoder(encoder_config)
        self.perceiver = LatentPerceiver(self.config, self.encoder.config.hidden_size)
        self.mean_out = nn.Linear(hidden_size, latent_size)
        self.logvar_out = None
        if regularization == "kl":
            self.logvar_out = nn.Linear(hidden_size, latent_size)
        for part in (self.perceiver, self.mean_out):
            part.apply(init_weights)
        if self.logvar_out is not None:
            nn.init.zeros_(self.logvar_out.weight)
            nn.init.constant_(self.logvar_out.bias, FIRST_LOGVAR)

        # 2. Latents to text
        self.decoder = PrefixDecoder(decoder_config, num_latents, latent_size)

        # 3. What diffusion models see of the latents: mean and standard deviation of each entry over a corpus
        self.register_buffer("latent_mean", torch.zeros(num_latents, latent_size))
        self.register_buffer("latent_std", torch.ones(num_latents, latent_size))
        self.latent_mean: Tensor
        self.latent_std: Tensor

        # 4. The longest texts, in tokens of either tokenizer; `None` where there is no limit
        self.longest_source = longest_input(self.encoder)
        self.longest_text = longest_input(self.decoder.language_model)
        if self.longest_text is not None:
            self.longest_text -= num_latents

        if not train_encoder:
            self.encoder.requires_grad_(False)

    # Building, saving and loading

    @classmethod
    def from_language_models(cls, encoder: Any, decoder: Any, **options: Any) -> Any:
        """An autoencoder with the weights of pretrained models, in float32; its other layers are new.

        Args:
            encoder: name on the Hub, folder or model of an encoder of transformers.
            decoder: the same of a causal language model.
            options: the other arguments of the constructor.
        """
        if isinstance(encoder, (str, PathLike)):
            auto_class = encoder_class(AutoConfig.from_pretrained(encoder))
            encoder = auto_class.from_pretrained(encoder, dtype=torch.float32)
        if isinstance(decoder, (str, PathLike)):
            decoder = AutoModelForCausalLM.from_pretrained(decoder, dtype=torch.float32)

        model = cls(encoder.config.to_dict(), decoder.config.to_dict(), **options)
        # Parts that are not read, such as BERT's pooler, are left behind.
        own_names = model.encoder.state_dict().keys()
        weights = {name: w for name, w in encoder.state_dict().items() if name in own_names}
        model.encoder.load_state_dict(weights)
        model.decoder.language_model.load_state_dict(decoder.state_dict())
        model.decoder.fit_prefix()
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **options: Any) -> Any:
        """As of any model of diffusers."""
        # Layers without weights would not know what is tied to each other, and loaded weights are not.
        options["low_cpu_mem_usage"] = False
        loaded = super().from_pretrained(pretrained_model_name_or_path, **options)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        for part in (model.encoder, model.decoder.language_model):
            part.tie_weights()
        return loaded

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As in torch, with each parameter once: tied ones under the first of their names."""
        state = super().state_dict(*arguments, **options)
        prefix = options.get("prefix", "")
        for name in self._further_names():
            state.pop(prefix + name, None)
        return state

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, with each parameter once or under all of its names."""
        first_names = self._further_names()
        own = dict(state_dict)
        for name, first in first_names.items():
            if first in own:
                own.setdefault(name, own[first])
        return super().load_state_dict(own, strict=strict, assign=assign)

    def _further_names(self) -> dict[str, str]:
        """The further names of tied parameters, and the first name of each."""
        names: dict[int, str] = {}
        further: dict[str, str] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            first = names.setdefault(id(parameter), name)
            if first != name:
                further[name] = first
        return further

    def train(self, mode: bool = True) -> Any:
        """As in torch; an encoder that does not learn stays in evaluation mode."""
        super().train(mode)
        if not self.config.train_encoder:
            self.encoder.eval()
        return self

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the perceiver; those of the language models are theirs."""
        return self.perceiver.blocks

    # Latents

    @apply_forward_hook
    def encode(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> TextLatents:
        """The posterior of the latents of texts.

        Args:
            input_ids: (B, L) tokens of the encoder's tokenizer.
            attention_mask: (B, L), 0 at padding, wherever it stands; padding never changes the latents.
        """
        states, mask = self.encode_states(input_ids, attention_mask)
        pooled = self.perceiver(states, None if mask.all() else mask, self.run_block)
        mean = self.mean_out(pooled)  # (B, K, E)
        if self.logvar_out is None:
            return TextLatents(nn.functional.layer_norm(mean, mean.shape[-1:]))
        logvar = self.logvar_out(pooled).clamp(SMALLEST_LOGVAR, LARGEST_LOGVAR)
        return TextLatents(mean, logvar)

    @apply_forward_hook
    def encode_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The states of the encoder, which are pooled to latents, and are what a denoiser is told of a source.

        Args:
            input_ids: (B, L) tokens of the encoder's tokenizer.
            attention_mask: (B, L), 0 at padding, wherever it stands.

        Returns:
            `(states, mask)`, (B, P, S) and (B, P) bool: the states of the real tokens in front, P of the longest text.
        """
        check_ids("input_ids", input_ids, "attention_mask", attention_mask)

        # Real tokens to the front, so that padding in front does not move them
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None and not attention_mask.bool().all():
            real = attention_mask.bool()
            order = wanted_tokens(real)
            input_ids = input_ids.masked_fill(~real, 0).gather(1, order)
            mask = real.gather(1, order)
        check_length("input_ids", input_ids.shape[1], self.longest_source)

        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask.long()}
        if takes_argument(self.encoder, "use_cache"):
            inputs["use_cache"] = False
        learns = self.config.train_encoder and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            states = self.encoder(**inputs)[0]
        return states, mask

    def sample(self, posterior: TextLatents, noise: Tensor) -> Tensor:
        """(B, K, E) latents drawn from a posterior by standard normal noise (B, K, E)."""
        if posterior.logvar is None:
            return posterior.latents + self.config.noise_scale * noise
        return posterior.latents + torch.exp(0.5 * posterior.logvar) * noise

    @apply_forward_hook
    def normalize(self, latents: Tensor) -> Tensor:
        """Latents (B, K, E) as diffusion models see them, each entry of mean 0 and variance 1 over the corpus."""
        return (latents - self.latent_mean) / self.latent_std

    @apply_forward_hook
    def denormalize(self, latents: Tensor) -> Tensor:
        """Latents (B, K, E) as the decoder reads them, from normalised ones."""
        return latents * self.latent_std + self.latent_mean

    def set_latent_statistics(self, mean: Tensor, std: Tensor):
        """Take the mean and the standard deviation (K, E) of each entry of the latents over a corpus.

        An entry that never varies keeps the deviation 1.
        """
        for name, values in (("mean", mean), ("std", std)):
            limit = f"{tuple(self.latent_mean.shape)}, finite numbers"
            is_table = values.shape == self.latent_mean.shape and bool(values.isfinite().all())
            require(is_table, name, limit, tuple(values.shape))
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(torch.where(std > 0, std, 1.0))

    # Text

    @apply_forward_hook
    def decode_logits(
        self,
        latents: Tensor | None,
        decoder_ids: Tensor,
        decoder_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, V) logits of each token from the latents and the tokens before it, or (N, V) at `positions`.

        Args:
            latents: (B, K, E), or `None` for a text that nothing is known of.
            decoder_ids: (B, T) tokens of the decoder's tokenizer.
            decoder_mask: (B, T), 0 at padding, wherever it stands; the logits there mean nothing.
            positions: (B, T) bool; the head runs for these tokens only.
        """
        check_ids("decoder_ids", decoder_ids, "decoder_mask", decoder_mask)
        check_length("decoder_ids", decoder_ids.shape[1], self.longest_text)
        self._check_latents(latents, len(decoder_ids))
        return self.decoder(latents, decoder_ids, decoder_mask, positions=positions)

    @apply_forward_hook
    def generate(
        self,
        latents: Tensor | None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        end_token_ids: list[int] | None = None,
        pad_token_id: int = 0,
        suppressed_ids: list[int] | None = None,
        generator: Generators = None,
    ) -> Tensor:
        """Write texts from latents; keys and values are kept, and a text does not depend on its batch.

        Args:
            latents: (B, K, E), or `None` for texts of nothing in particular, as many as there are prompts.
            prompt_ids: (B, P) tokens that the texts begin with, such as the start token of the decoder's tokenizer.
            prompt_mask: (B, P), 0 at padding, wherever it stands.
            max_new_tokens: tokens of a text behind its prompt, at most.
            do_sample: draw tokens; else each is the likeliest.
            temperature, top_k, top_p: of the draws, as in `token_weights`.
            end_token_ids: ids that end a text; by default none does.
            pad_token_id: stands behind the end of a text.
            suppressed_ids: ids that are never written; by default any may be.
            generator: of the draws, one for all or one a row.

        Returns:
            (B, N) tokens without the prompt, N at most `max_new_tokens`.

        Raises:
            ValueError: if an argument makes no sense, with its name and limit.
        """
        # 1. Check the inputs
        require_int("max_new_tokens", max_new_tokens, 1)
        require_number("temperature", temperature, 0)
        require_int("top_k", top_k, 1, optional=True)
        require_number("top_p", top_p, 0, 1, optional=True)
        if prompt_ids is None:
            require(latents is not None, "latents", "given without `prompt_ids`", latents)
            assert latents is not None
            prompt_ids = torch.zeros(len(latents), 0, dtype=torch.long, device=latents.device)
        check_ids("prompt_ids", prompt_ids, "prompt_mask", prompt_mask)
        longest = prompt_ids.shape[1] + max_new_tokens
        check_length("max_new_tokens` and `prompt_ids", longest, self.longest_text)
        self._check_latents(latents, len(prompt_ids))

        # 2. Write
        draw = None
        if do_sample:
            draw = RowDraws(len(prompt_ids), temperature, top_k, top_p, generator)
        return self.decoder.generate(
            latents,
            prompt_ids,
            prompt_mask,
            max_new_tokens,
            list(end_token_ids or []),
            pad_token_id,
            draw,
            list(suppressed_ids or []),
        )

    def forward(
        self,
        input_ids: Tensor,
        decoder_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_mask: Tensor | None = None,
        noise: Tensor | None = None,
        dropped_latents: Tensor | None = None,
        hidden_words: Tensor | None = None,
        positions: Tensor | None = None,
        reads_text: bool = True,
        tells_words: bool = False,
        return_dict: bool = True,
    ) -> AutoencoderTextLatentOutput | tuple:
        """Encode and decode, as training does; nothing is drawn here.

        Args:
            input_ids, attention_mask: (B, L), as in `encode`.
            decoder_ids, decoder_mask, positions: (B, T), as in `decode_logits`.
            noise: (B, K, E) standard normal numbers by which latents are drawn from their posterior; by default the
                decoder is told its mean.
            dropped_latents: (B, K) bool, latents that the decoder is not told.
            hidden_words: (B, T) bool, tokens that the decoder is asked for and does not see.
            reads_text: whether the decoder runs.
            tells_words: whether the latents are asked for the words of the text by themselves.
        """
        check_ids("decoder_ids", decoder_ids, "decoder_mask", decoder_mask)
        check_length("decoder_ids", decoder_ids.shape[1], self.longest_text)
        posterior = self.encode(input_ids, attention_mask)
        latents = posterior.latents if noise is None else self.sample(posterior, noise)
        logits = word_nats = None
        if reads_text:
            logits = self.decoder(
                latents, decoder_ids, decoder_mask, dropped_latents, hidden_words, positions
            )
        if tells_words:
            word_nats = self.decoder.word_nats(latents, decoder_ids)
        output = AutoencoderTextLatentOutput(logits, posterior.latents, posterior.logvar, word_nats)
        return output if return_dict else output.to_tuple()

    # Checks

    def _check_latents(self, latents: Tensor | None, batch_size: int):
        if latents is None:
            return
        shape = (batch_size, self.config.num_latents, self.config.latent_size)
        require(tuple(latents.shape) == shape, "latents", f"{shape}", tuple(latents.shape))

    def _check_config(self):
        config = self.config
        check_config_types(self)
        for name in ("encoder_config", "decoder_config"):
            settings = config[name]
            limit = "a configuration of transformers, with its `model_type`"
            require(isinstance(settings.get("model_type"), str), name, limit, settings)
        check_transformer_sizes(config, ["num_layers", "latent_size"])
        check_sizes(config, ["num_latents"], most=MOST_LATENTS)
        require_key("regularization", config.regularization, REGULARIZATIONS)
        require_number("noise_scale", config.noise_scale, 0)


def encoder_class(settings: Any) -> Any:
    """The class of transformers that loads the encoder of a configuration: of some models a half of what is saved."""
    has_own = type(settings) in MODEL_FOR_TEXT_ENCODING_MAPPING
    return AutoModelForTextEncoding if has_own else AutoModel


def build_encoder(config: dict[str, Any]) -> nn.Module:
    """An encoder of transformers with random weights, without a pooler, which is not read."""
    settings = AutoConfig.for_model(**config)
    encoder = encoder_class(settings).from_config(settings, dtype=torch.get_default_dtype())
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None
    return encoder


def plain_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration as it comes back from a file, without the place that its model came from."""
    settings = {name: value for name, value in config.items() if name not in ORIGIN_KEYS}
    return json.loads(json.dumps(settings))


def longest_input(model: Any) -> int | None:
    """The longest input of a model of transformers in tokens; `None` if its configuration knows no limit."""
    try:
        return language_model_length(model)
    except ValueError:  # positions that are relative, as those of T5
        return None


def check_length(name: str, length: int, limit: int | None):
    """Refuse more tokens than a language model has positions for."""
    require(limit is None or length <= limit, name, f"at most {limit} tokens", length)


def check_ids(name: str, ids: Tensor, mask_name: str, mask: Tensor | None):
    """Refuse tokens that are not (B, L), and a mask that is not theirs."""
    require(ids.ndim == 2, name, "(batch, length)", tuple(ids.shape))
    if mask is not None:
        limit = f"{tuple(ids.shape)} as `{name}`"
        require(mask.shape == ids.shape, mask_name, limit, tuple(mask.shape))
