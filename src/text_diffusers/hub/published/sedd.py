"""SEDD, score entropy (https://arxiv.org/abs/2310.16834): louaaron/sedd-small and sedd-medium.

The network says how much more probable each token is than the mask that stands in its place. Under absorbing noise
these ratios are in proportion to the probabilities of the clean tokens, so that its output, before the authors
subtract the same number from all entries, are logits of clean tokens.
"""

from typing import Any

from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.hub.published.ddit import DiffusionTransformer, absorbing_scheduler, read_sizes

# The configuration is that of a training run, and its other groups say how it went.
GROUPS = ("model", "graph", "noise")
SIZES = {
    "hidden_size": "hidden_size",
    "condition_size": "cond_dim",
    "num_layers": "n_blocks",
    "num_attention_heads": "n_heads",
    "max_length": "length",
}

# Values that make another network or another noise. Sigma has bounds under another noise only.
VALUES = {
    "model": {"type": "ddit", "scale_by_sigma": True},
    "graph": {"type": "absorb"},
    "noise": {"type": "loglinear"},
}
IGNORED = {
    "model": ("name", "dropout"),
    "graph": ("file", "report_all"),
    "noise": ("sigma_min", "sigma_max"),
}


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of SEDD, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not understood.
    """
    if "model_type" in config or not all(group in config for group in GROUPS):
        return None
    reader = ConfigReader("SEDD", config)
    # The absorbing state is one more than the tokens.
    mask_token_id = reader.integer("tokens")
    sizes = {"vocab_size": mask_token_id + 1, "mask_token_id": mask_token_id}

    for group in GROUPS:
        entries = ConfigReader(f"SEDD ({group})", reader.mapping(group), ignored=IGNORED[group])
        for key, value in VALUES[group].items():
            entries.one_of(key, (value,))
        if group == "model":
            sizes |= read_sizes(entries, SIZES)
        entries.finish()

    network = DiffusionTransformer(sizes, time_input="sigma")
    return network.blueprint(
        "SEDD",
        stored,
        absorbing_scheduler,
        mask_token_id=mask_token_id,
    )
