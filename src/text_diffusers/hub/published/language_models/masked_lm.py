"""BERT, RoBERTa and their kin as transformers has them: masked language models, which write without further training.

A network that predicts hidden tokens from all others is a denoiser of absorbing diffusion, whatever it was trained
for, so that its configuration needs no word on how it is read.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.language_models.decoders import native_config, require_divisor
from text_diffusers.schedulers.scheduling_first_hitting import FirstHittingScheduler


@dataclass(frozen=True)
class Encoder:
    """The keys by which the configuration of a network of transformers says how large it is.

    Attributes:
        sizes: all that are integers.
        width: the one of them that the heads share.
        heads: the one that counts the heads.
        activation: the key of the activation function.
    """

    sizes: tuple[str, ...]
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    activation: str = "hidden_act"


BERT_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
ENCODERS = {
    "bert": Encoder(BERT_SIZES),
    "roberta": Encoder(BERT_SIZES),
    "xlm-roberta": Encoder(BERT_SIZES),
    "electra": Encoder((*BERT_SIZES, "embedding_size")),
    "albert": Encoder((*BERT_SIZES, "embedding_size")),
    "distilbert": Encoder(
        ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings"),
        width="dim",
        heads="n_heads",
        activation="activation",
    ),
}
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")

VALUES: dict[str, tuple[Any, ...]] = {
    "inner_group_num": (1,),
    "num_hidden_groups": (1,),
    "position_embedding_type": ("absolute",),
    "tie_weights_": (True,),
    "tie_word_embeddings": (True,),
}
# Of training, of parts of other tasks, and of tokens, which the tokenizer knows
IGNORED = (
    "_num_labels",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "bos_token_id",
    "classifier_dropout",
    "classifier_dropout_prob",
    "cls_token_id",
    "directionality",
    "down_scale_factor",
    "dropout",
    "eos_token_id",
    "gap_size",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "layers_to_keep",
    "mask_token_id",
    "net_structure_type",
    "num_labels",
    "num_memory_blocks",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "qa_dropout",
    "sep_token_id",
    "seq_classif_dropout",
    "sinusoidal_pos_embds",
    "summary_activation",
    "summary_last_dropout",
    "summary_type",
    "summary_use_proj",
)

# Tensors beside the network and its head: of other tasks, and what can be computed
IGNORED_TENSORS = re.compile(r"(.*\.)?((pooler|seq_relationship|sop_classifier)\..*|position_ids)")

# Names of weights in the oldest files of BERT
OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a masked language model with its head; `None` for another checkpoint."""
    model_type = config.get("model_type")
    if model_type not in ENCODERS or not is_masked(config):
        return None

    encoder = ENCODERS[model_type]
    config_class = CONFIG_MAPPING[model_type]
    family = config_class.__name__.removesuffix("Config")
    reader = ConfigReader(family, config, VALUES, IGNORED)
    entries: dict[str, Any] = {size: reader.integer(size) for size in encoder.sizes}
    require_divisor(encoder.heads, entries, encoder.width)
    entries[encoder.activation] = reader.one_of(encoder.activation, ACTIVATIONS)
    if reader.has("layer_norm_eps"):
        entries["layer_norm_eps"] = reader.number("layer_norm_eps")
    # RoBERTa counts positions from behind that of padding.
    if reader.has("pad_token_id"):
        entries["pad_token_id"] = reader.token_id("pad_token_id", entries["vocab_size"])
    reader.finish()

    native = native_config(config_class, family, **entries)
    weights = {entry_of(own): Weight((own,)) for own in stored if not is_ignored(own)}
    return Blueprint(
        family=family,
        build=partial(AutoModelForMaskedLM.from_config, native, trust_remote_code=False),
        weights=weights,
        scheduler=FirstHittingScheduler,
        ignored=frozenset(filter(is_ignored, stored)),
    )


def is_masked(config: Any) -> bool:
    """Whether a configuration names a class of a masked language model."""
    return names_class(config, "ForMaskedLM")


def names_class(config: Any, *endings: str) -> bool:
    """Whether a configuration names a class whose name ends so."""
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).endswith(endings) for name in names)


def is_ignored(name: str) -> bool:
    return IGNORED_TENSORS.fullmatch(name) is not None


def entry_of(name: str) -> str:
    """The name in the state dict of a stored tensor.

    Example:
        >>> entry_of("bert.embeddings.LayerNorm.gamma")
        'bert.embeddings.LayerNorm.weight'
    """
    module, _, own = name.rpartition(".")
    return f"{module}.{OLD_NAMES.get(own, own)}"
