"""Laws of the clean estimate. Shapes: B batch, L sequence length, E embedding width."""

import pytest
import torch

from text_diffusers.common.clean_estimate import PREDICTION_TYPES, clean_estimate


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_clean_estimate_undoes_the_noise_with_one_level_and_with_one_a_row(prediction_type):
    clean, noise = torch.randn((2, 3, 4, 5), dtype=torch.float64).unbind()
    levels = torch.tensor([0.9, 0.5, 0.01], dtype=torch.float64)
    signal = levels.sqrt().view(3, 1, 1)
    sigma = (1 - levels).sqrt().view(3, 1, 1)
    noisy = signal * clean + sigma * noise
    predictions = {
        "sample": clean,
        "epsilon": noise,
        "v_prediction": signal * noise - sigma * clean,
    }

    prediction = predictions[prediction_type]
    estimate = clean_estimate(prediction_type, prediction, noisy, levels)
    torch.testing.assert_close(estimate, clean)
    for row, level in enumerate(levels.tolist()):
        alone = clean_estimate(prediction_type, prediction[row], noisy[row], level)
        torch.testing.assert_close(alone, clean[row])


def test_another_prediction_type_is_refused_by_name():
    with pytest.raises(
        ValueError, match="`prediction_type` must be one of sample, epsilon, .* got 'x0'"
    ):
        clean_estimate("x0", torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), 0.5)
