"""Training of two-level diffusion's denoisers: their prompt encoders, and prompts and plans that are partly hidden.

A plan is the coarse codes of a row, from which its fine codes are written.

Shapes: B batch, L codes of a row, C coarse codes of a row, P prompt tokens.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from text_diffusers.common.randomness import rand
from text_diffusers.data.rows import Batch
from text_diffusers.models.language_model import language_model_length
from text_diffusers.models.prompt_encoder import PromptEncoderModel
from text_diffusers.training.checkpoints import weights_digest

AUTOENCODER_FILE = "autoencoder.sha256"


def read_prompt_encoder(source: Any) -> Any:
    """A `PromptEncoderModel` or an encoder of transformers, in evaluation mode, from a folder or a Hub name.

    Raises:
        ValueError: if it is a model of transformers that cannot be called as an encoder of so many tokens at most.
    """
    # A model of this package says so in its configuration.
    file = Path(source, "config.json")
    if (
        file.exists()
        and json.loads(file.read_text()).get("_class_name") == PromptEncoderModel.__name__
    ):
        encoder: Any = PromptEncoderModel.from_pretrained(source)
        return encoder.eval()

    # Any other is left to transformers, which does not say how many tokens every architecture takes.
    encoder = AutoModel.from_pretrained(source, dtype=torch.float32)
    config = encoder.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(
        config, "max_position_embeddings"
    ):
        raise ValueError(
            "`prompt_encoder` must be an encoder alone, with `max_position_embeddings`, such as BERT, "
            f"got {type(encoder).__name__}."
        )
    return encoder.eval()


def load_prompt_encoder(source: Any, tokenizer: Any, prompt_length: int) -> Any:
    """As `read_prompt_encoder`, for prompts of so many tokens.

    Raises:
        ValueError: if it has fewer tokens than the tokenizer, or takes no prompts of so many.
    """
    encoder = read_prompt_encoder(source)
    if encoder.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"`prompt_encoder` must have a vocabulary of at least {len(tokenizer)}, that of the autoencoder's "
            f"tokenizer, got {encoder.config.vocab_size}."
        )

    # Some models of transformers have positions that are of no token.
    if isinstance(encoder, PromptEncoderModel):
        limit = encoder.config.max_length
    else:
        limit = language_model_length(encoder)
    if prompt_length > limit:
        raise ValueError(
            f"`prompt_length` must be at most {limit} for this prompt encoder, got {prompt_length}."
        )
    return encoder


def same_prompt_encoder(one: Any, other: Any) -> bool:
    """Whether the prompt encoders of two sources have the same weights; a pooler, which is not read, may differ."""
    first = read_prompt_encoder(one).state_dict()
    second = read_prompt_encoder(other).state_dict()
    names = {name for name in first.keys() | second.keys() if "pooler" not in name}
    return all(
        name in first and name in second and torch.equal(first[name], second[name])
        for name in names
    )


def check_autoencoder_of(folder: Path, autoencoder: Any):
    """Refuse a stage that was trained, in `folder`, on the codes of an autoencoder with other weights."""
    file = folder / AUTOENCODER_FILE
    if file.exists() and file.read_text().strip() != weights_digest(autoencoder):
        raise ValueError(
            f"`autoencoder` is another one than {str(folder)!r} was trained with, whose codes mean something else: "
            "choose another `output_dir`, or `--stage all --overwrite_output_dir true`."
        )


def note_autoencoder(folder: Path, autoencoder: Any):
    """Write the digest of the autoencoder on whose codes a stage is trained, for `check_autoencoder_of`."""
    # By their weights: a path may hold another autoencoder tomorrow.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUTOENCODER_FILE).write_text(weights_digest(autoencoder) + "\n")


# What a step of training is shown


def shown_prompts(
    batch: Batch, generators: list[torch.Generator], dropout: float, suffixes: bool
) -> Batch:
    """A batch in which some rows have lost their prompts, and the others may have lost their beginnings.

    Args:
        batch: `prompt_ids` and `prompt_mask` (B, P), or without prompts, when it is returned as it is; not changed.
        generators: one a row, of which each gives one number if there is something to draw.
        dropout: share of rows without a prompt.
        suffixes: whether a prompt of m tokens is cut to its last 1, 2, ... or m, each as likely.
    """
    if "prompt_ids" not in batch or not (dropout or suffixes):
        return batch
    ids = batch["prompt_ids"]  # (B, P)
    lengths = batch["prompt_mask"].sum(dim=1)  # (B,)
    coins = rand((len(ids), 2), generators, ids.device)

    # The last tokens of a prompt move to its beginning.
    shown = ((coins[:, 1] * lengths).long() + 1).minimum(lengths) if suffixes else lengths
    places = torch.arange(ids.shape[1], device=ids.device)
    origins = (places + (lengths - shown).unsqueeze(1)).clamp(max=ids.shape[1] - 1)  # (B, P)
    shown = torch.where(coins[:, 0] < dropout, 0, shown)
    # The mask hides what is behind them, and all of a prompt that is dropped.
    mask = (places < shown.unsqueeze(1)).to(batch["prompt_mask"].dtype)
    return batch | {"prompt_ids": ids.gather(1, origins), "prompt_mask": mask}


def shown_plans(
    batch: Batch,
    generators: list[torch.Generator],
    corruption: float,
    dropout: float,
    num_codes: int | None,
) -> Batch:
    """A batch in which some coarse codes are random ones, and some rows are told neither these nor their prompt.

    Guidance of the fine codes compares with a prediction that is told neither.

    Args:
        batch: `context_ids` (B, C), or without coarse codes, when it is returned as it is; not changed.
        generators: one a row, of which each gives one number if there is something to draw.
        corruption: share of coarse codes in whose place stands any code, each as likely.
        dropout: share of rows whose coarse codes are all `num_codes`, "not told", and whose `prompt_mask` is 0.
        num_codes: of the coarse codebook.

    Raises:
        ValueError: if there is something to draw and no `num_codes`.
    """
    if "context_ids" not in batch or not (corruption or dropout):
        return batch
    if num_codes is None:
        raise ValueError(
            "`num_codes` must be given where there are coarse codes to change, got None."
        )

    # One draw a row: its coin, and two numbers a code, for whether it is wrong and which it is then
    plans: Any = batch["context_ids"]
    count = plans.shape[1]
    numbers = rand((len(plans), 1 + 2 * count), generators, plans.device)
    coins, chances, choices = numbers.split([1, count, count], dim=1)
    plans = torch.where(chances < corruption, (choices * num_codes).long(), plans)

    # A row without a plan has no prompt either.
    untold = coins < dropout  # (B, 1)
    changed = {"context_ids": torch.where(untold, num_codes, plans)}
    if "prompt_mask" in batch:
        changed["prompt_mask"] = batch["prompt_mask"].masked_fill(untold, 0)
    return batch | changed
