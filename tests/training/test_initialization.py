"""Embeddings from co-occurrence: similar neighbours, similar vectors; padding does not count."""

import pytest
import torch

from text_diffusers.training.initialization import cooccurrence_vectors


def test_tokens_with_the_same_neighbours_are_close():
    """0 and 1 stand in the same places of "x 2 3", 4 and 5 in those of "x 6 7"; the two pairs never meet."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(0, 2, (500, 1), generator=generator),
        torch.randint(4, 6, (500, 1), generator=generator),
    )
    ends = torch.tensor([[2, 3]]).expand(500, 2), torch.tensor([[6, 7]]).expand(500, 2)
    rows = torch.cat([torch.cat([first, ends[0]], dim=1), torch.cat([second, ends[1]], dim=1)])
    padded = torch.nn.functional.pad(
        rows, (0, 2), value=1
    )  # padding that would pull 1 towards itself
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(1000, 5)
    torch.manual_seed(0)
    vectors = cooccurrence_vectors(
        [{"input_ids": padded, "attention_mask": mask}], vocab_size=8, width=4
    )
    assert vectors.shape == (8, 4) and float(vectors.std()) == pytest.approx(1)
    alike = torch.nn.functional.cosine_similarity(
        vectors.unsqueeze(0), vectors.unsqueeze(1), dim=-1
    )
    assert alike[0, 1] > 0.95 and alike[4, 5] > 0.95
    assert alike[0, 4].abs() < 0.3 and alike[1, 5].abs() < 0.3


def test_more_columns_than_tokens_are_zero_and_too_many_tokens_are_refused():
    batch = {
        "input_ids": torch.tensor([[0, 1, 2, 2]]).repeat(100, 1),
        "attention_mask": torch.ones(100, 4),
    }
    vectors = cooccurrence_vectors([batch], vocab_size=3, width=8)
    assert vectors.shape == (3, 8) and not vectors[:, 3:].any() and vectors[:, :3].any()
    with pytest.raises(ValueError, match="`vocab_size` must be between 1 and 16384, got 50000"):
        cooccurrence_vectors([batch], vocab_size=50_000, width=8)
