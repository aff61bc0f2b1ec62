"""Lengths that a model says itself: drawn as it predicts them, among those that are allowed."""

import pytest
import torch

from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_lengths import length_log_probs


def test_lengths_are_those_of_the_model_among_what_fits_and_is_asked_for():
    probs = torch.tensor([[0.0, 0.4, 0.3, 0.2, 0.1]])
    tokens = torch.zeros(1, 3, dtype=torch.long)
    sources = TextBatch(tokens=tokens, editable=tokens.bool(), attention_mask=tokens + 1)

    def lengths(rooms, least):
        log_probs = length_log_probs(lambda *batch: probs.log(), sources, rooms=rooms, least=least)
        return log_probs.exp().tolist()[0]

    assert lengths([9], 0) == pytest.approx([0, 0.4, 0.3, 0.2, 0.1])
    assert lengths([3], 2) == pytest.approx([0, 0, 0.6, 0.4, 0])
    with pytest.raises(ValueError, match="`min_new_tokens` must be at most 3, .* got 4"):
        lengths([3], 4)
