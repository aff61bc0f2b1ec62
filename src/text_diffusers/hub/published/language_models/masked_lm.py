"""BERT, RoBERTa and other masked language models, as transformers has them, which write without further training.

A network that predicts hidden tokens from all others is a denoiser of absorbing diffusion, whatever it was trained
for, so that its configuration needs no word on how it is read.
"""

import re
from functools import partial
from typing import Any

from transformers import AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.language_models.decoders import native_config
from text_diffusers.schedulers.scheduling_first_hitting import FirstHittingScheduler

# What stands beside the network and its head: parts of other tasks, and what can be computed
IGNORED = re.compile(r"(.*\.)?((pooler|seq_relationship|sop_classifier)\..*|position_ids)")

# Of old files, which the oldest BERTs are stored in
OLD_NAMES = {"gamma": "weight", "beta": "bias"}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a masked language model with its head; `None` for another checkpoint."""
    model_type = config.get("model_type")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or not is_masked(config):
        return None

    family = str(config["architectures"][0])
    entries = {key: value for key, value in config.items() if key not in ("auto_map", "model_type")}
    native = native_config(CONFIG_MAPPING[model_type], family, **entries)
    weights = {entry_of(own): Weight((own,)) for own in stored if not IGNORED.fullmatch(own)}
    return Blueprint(
        family=family,
        build=partial(AutoModelForMaskedLM.from_config, native, trust_remote_code=False),
        weights=weights,
        scheduler=FirstHittingScheduler,
        ignored=frozenset(own for own in stored if IGNORED.fullmatch(own)),
    )


def is_masked(config: Any) -> bool:
    """Whether a configuration names a class of a masked language model."""
    names = config.get("architectures") or []
    return any(str(name).endswith("ForMaskedLM") for name in names)


def entry_of(name: str) -> str:
    """The name in the state dict of a stored tensor.

    Example:
        >>> entry_of("bert.embeddings.LayerNorm.gamma")
        'bert.embeddings.LayerNorm.weight'
    """
    module, _, own = name.rpartition(".")
    return f"{module}.{OLD_NAMES.get(own, own)}"
