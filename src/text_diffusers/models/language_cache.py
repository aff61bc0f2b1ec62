"""Keys and values that a language model of transformers reads again: exact for blocks, approximate for whole rows.

Shapes: B batch, L sequence length, H heads, C head width, n tokens that are read, S tokens that can be seen.
"""

import torch
from torch import Tensor
from transformers import Cache

from text_diffusers.models.attention import BlockCache, wanted_tokens


class StaleCache:
    """Keys and values of whole rows as they were when a bidirectional model last read these in full.

    While `active` is `None` the model reads whole rows, and the cache keeps what it computes. Later calls read the
    active tokens only, and see the others as they were: an approximation (Fast-dLLM,
    https://arxiv.org/abs/2505.22618), since in a bidirectional model every token depends on every other.

    Args:
        active: (B, L) bool, the tokens that are read anew.

    Example:
        >>> import torch
        >>> from text_diffusers.models.language_cache import StaleCache
        >>> cache = StaleCache()
        >>> keys = values = torch.zeros(1, 2, 4, 8)
        >>> cache.extend(0, keys, values)[0].shape
        torch.Size([1, 2, 4, 8])
        >>> cache.active = torch.tensor([[False, True, False, True]])
        >>> cache.extend(0, keys[:, :, :2], values[:, :, :2])[0].shape
        torch.Size([1, 2, 6, 8])
    """

    def __init__(self, active: Tensor | None = None):
        self.active = active

        # Keys and values of each layer, (B, H, L, C) each.
        self._layers: list[tuple[Tensor, Tensor]] = []

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, S, C) keys and values to be seen: those given, (B, H, n, C), behind the stale ones of whole rows."""
        if self.active is None:
            # The first layer of a new reading.
            if layer == 0:
                self._layers = []
            self._layers.append((key, value))
            return key, value
        stale_key, stale_value = self._layers[layer]
        return torch.cat([stale_key, key], dim=2), torch.cat([stale_value, value], dim=2)

    def view(self, rows: Tensor) -> "StaleCache":
        """The cache of the rows that `rows`, bool (B,), chooses; what a whole reading of these stores stays in it."""
        chosen = StaleCache(None if self.active is None else self.active[rows])
        chosen._layers = [(keys[rows], values[rows]) for keys, values in self._layers]
        return chosen

    def with_active(self, active: Tensor) -> "StaleCache":
        """A cache of the same rows, of which other tokens (B, L) are read anew."""
        other = StaleCache(active)
        other._layers = self._layers
        return other

    def columns(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens to read, and what they see of rows in which `real` (B, L) is false at padding.

        Returns:
            (B, n) ids of the active tokens of each row, ascending, then of others where a row has fewer; and
            (B, 1, n, L + n) bool, true where attended: the stale tokens that are not active, and the active ones.
        """
        assert self.active is not None
        columns = wanted_tokens(self.active)  # (B, n)
        is_stale = real & ~self.active
        is_new = (real & self.active).gather(1, columns)
        visible = torch.cat([is_stale, is_new], dim=1)  # (B, L + n)
        return columns, visible[:, None, None, :].expand(-1, 1, columns.shape[1], -1)


class TransformersCache(Cache):
    """One of our caches in the place where a model of transformers expects its own."""

    def __init__(self, cache: BlockCache | StaleCache):
        super().__init__(layers=[])
        self.cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """(B, H, S, C) keys and values to be seen, of those given (B, H, n, C)."""
        return self.cache.extend(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        # Masks and position ids are always given, so nothing is counted from here.
        return 0
