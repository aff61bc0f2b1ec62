"""Latents of a corpus, computed once: a file of their posteriors, and rows that a denoiser is trained on.

The file is named after the weights of the autoencoder and the texts in the tokens of its encoder, so that it is found
again by a run that is resumed and by any other, and never taken for the latents of other texts.

Shapes: N rows of the corpus, G of a step, B of a batch, K latents of a text, E width of a latent.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.config import HF_DATASETS_CACHE
from safetensors.torch import load_file, save_file
from torch import Tensor

from text_diffusers.common.progress import progress_bar
from text_diffusers.data.digest import DIGESTED_ROWS, rows_digest
from text_diffusers.data.latent_rows import ENCODER_COLUMNS, SOURCE_COLUMNS
from text_diffusers.data.rows import Batch, ShuffledRows, to_tensors

ENCODED_AT_ONCE = 64
ROWS_PER_LOOK = 10_000
# Columns of a row that a denoiser is told of, beside its latents
CONDITIONS = ("label", *SOURCE_COLUMNS)


@dataclass
class CachedLatents:
    """Posteriors of the latents of N texts.

    Attributes:
        latents: (N, K, E), their means.
        logvar: (N, K, E), the logarithms of their variances; `None` where these are fixed.
    """

    latents: Tensor
    logvar: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: list[int]) -> Batch:
        """The columns `latents` and, if there are any, `logvar` (B, K, E) of rows."""
        columns = {"latents": self.latents[indices]}
        if self.logvar is not None:
            columns["logvar"] = self.logvar[indices]
        return columns


def default_cache_folder() -> Path:
    """Beside what `datasets` keeps."""
    return Path(HF_DATASETS_CACHE, "text_latents")


def latents_digest(rows: Any, weights: str) -> str:
    """SHA-256 by which the latents of rows are known: of the weights' digest, and of all that the encoder reads."""
    texts = rows.select_columns(list(ENCODER_COLUMNS))
    digest = hashlib.sha256(weights.encode())
    # All rows, of which `rows_digest` reads so many at most.
    for first in range(0, len(texts), DIGESTED_ROWS):
        part = texts.select(range(first, min(first + DIGESTED_ROWS, len(texts))))
        digest.update(rows_digest(part).encode())
    return digest.hexdigest()


def cached_latents(
    autoencoder: Any, rows: Any, weights: str, folder: str | Path | None = None
) -> CachedLatents:
    """The posteriors of the latents of rows, from the file that holds them or computed and left in it.

    Args:
        autoencoder: an `AutoencoderTextLatentModel` in evaluation mode.
        rows: of `with_encoder_columns`, no stream.
        weights: digest of the weights of the autoencoder.
        folder: of such files; by default beside what `datasets` keeps.
    """
    # 1. As they were computed before
    folder = Path(folder or default_cache_folder())
    file = folder / f"{latents_digest(rows, weights)}.safetensors"
    if file.exists():
        return CachedLatents(**load_file(file))

    # 2. Computed. The file appears whole or not at all, whatever ends the program.
    found = computed_latents(autoencoder, rows)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    columns = {name: column for name, column in vars(found).items() if column is not None}
    try:
        save_file(columns, unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return found


@torch.no_grad()
def computed_latents(autoencoder: Any, rows: Any) -> CachedLatents:
    """The posteriors of the latents of rows; texts of about the same length are encoded together."""
    lengths = [np.asarray(part["encoder_mask"]).sum(axis=1) for part in masks_of(rows)]
    order = np.argsort(np.concatenate(lengths), kind="stable")
    texts = rows.select_columns(list(ENCODER_COLUMNS))
    device = next(autoencoder.parameters()).device

    columns: dict[str, Tensor] = {}
    bar = progress_bar(total=len(order), desc="latents", unit="texts")
    with bar:
        for first in range(0, len(order), ENCODED_AT_ONCE):
            indices = order[first : first + ENCODED_AT_ONCE].tolist()
            batch = to_tensors(texts[indices])
            posterior = autoencoder.encode(*(batch[name].to(device) for name in ENCODER_COLUMNS))
            for name in ("latents", "logvar"):
                values = getattr(posterior, name)
                if values is None:
                    continue
                if name not in columns:
                    columns[name] = torch.empty(len(order), *values.shape[1:])
                columns[name][indices] = values.float().cpu()
            bar.update(len(indices))
    return CachedLatents(**columns)


def masks_of(rows: Any) -> Any:
    """The masks of the encoder, some rows at a time."""
    return rows.select_columns("encoder_mask").with_format("numpy").iter(batch_size=ROWS_PER_LOOK)


def condition_columns(rows: Any) -> Any:
    """The columns of rows that a denoiser is told of beside latents; `None` if they have none."""
    names = [name for name in CONDITIONS if name in rows.column_names]
    return rows.select_columns(names) if names else None


class LatentRows(ShuffledRows):
    """Row batches of latents and of what a denoiser is told beside them, in the order of `ShuffledRows`.

    A batch has `latents` and maybe `logvar` (B, K, E), `label` (B,), `source_ids` and `source_mask` (B, P) if the rows
    have them, and an `attention_mask` (B, 1) of ones: losses are counted by the text.

    Args:
        rows: of `with_encoder_columns`, and with sources of `with_source_columns`.
        cache: their latents, or what else has a length and a `batch`.
        rows_per_step, seed: as in `ShuffledRows`.

    Raises:
        ValueError: if there are not as many latents as rows.

    Example:
        >>> import torch
        >>> from datasets import Dataset
        >>> from text_diffusers.data.latent_cache import CachedLatents, LatentRows
        >>> rows = Dataset.from_dict({"label": [0, 1, 1]})
        >>> order = LatentRows(rows, CachedLatents(torch.randn(3, 2, 4)), rows_per_step=2)
        >>> {name: tuple(column.shape) for name, column in order.batch(step=0).items()}
        {'latents': (2, 2, 4), 'attention_mask': (2, 1), 'label': (2,)}
    """

    def __init__(self, rows: Any, cache: Any, rows_per_step: int, seed: int = 0):
        super().__init__(rows, rows_per_step, seed)
        if len(cache) != len(rows):
            raise ValueError(f"`cache` must hold {len(rows)} rows as `rows`, got {len(cache)}.")
        self.cache = cache
        self._conditions = condition_columns(rows)

    def batch(self, step: int, wanted: range | list[int] | None = None) -> Batch:
        """The rows `wanted` (default: all) of the global batch of `step`."""
        return self.rows_at(
            self._indices(step, range(self.rows_per_step) if wanted is None else wanted)
        )

    def rows_at(self, indices: list[int]) -> Batch:
        """A batch of the rows of these numbers."""
        batch = self.cache.batch(indices)
        batch["attention_mask"] = torch.ones(len(indices), 1, dtype=torch.long)
        if self._conditions is not None:
            batch |= to_tensors(self._conditions[indices])
        return batch
