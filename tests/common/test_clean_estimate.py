"""Laws of the clean estimate, and of predictions converted into each other.

Shapes: B batch, L sequence length, E embedding width."""

import pytest
import torch

from text_diffusers.common.clean_estimate import (
    PREDICTION_PARTS,
    PREDICTION_TYPES,
    NoiseLevel,
    clean_estimate,
    convert_prediction,
    prediction_of,
)


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


LEVELS = {
    "straight": NoiseLevel(
        *(torch.tensor(v, dtype=torch.float64) for v in ([0.9, 0.5], [0.1, 0.5]))
    ),
    "betas": NoiseLevel(*(torch.tensor(v, dtype=torch.float64) for v in ([0.8, 0.6], [0.6, 0.8]))),
}


@pytest.mark.parametrize("path", LEVELS)
@pytest.mark.parametrize("source", PREDICTION_PARTS)
@pytest.mark.parametrize("target", PREDICTION_PARTS)
def test_a_prediction_is_converted_to_any_other_and_back(path, source, target):
    clean, noise = torch.randn((2, 2, 3, 4), dtype=torch.float64).unbind()
    level = LEVELS[path]
    signal, sigma = (part.view(2, 1, 1) for part in level)
    noisy = signal * clean + sigma * noise
    truth = {
        "sample": clean,
        "epsilon": noise,
        "v_prediction": signal * noise - sigma * clean,
        "flow": noise - clean,
    }
    assert torch.equal(prediction_of(source, clean, noise, level), truth[source])
    converted = convert_prediction(truth[source], noisy, level, source, target)
    torch.testing.assert_close(converted, truth[target])
    # Of any prediction, true or not
    wrong = torch.randn_like(clean)
    there = convert_prediction(wrong, noisy, level, source, target)
    torch.testing.assert_close(convert_prediction(there, noisy, level, target, source), wrong)
    # The same by plain numbers, a row at a time
    plain = NoiseLevel(float(level.signal[1]), float(level.sigma[1]))
    alone = convert_prediction(wrong[1:], noisy[1:], plain, source, target)
    torch.testing.assert_close(alone, there[1:])


def test_conversion_agrees_with_the_clean_estimate_of_word_embeddings():
    noisy, prediction = torch.randn((2, 2, 3, 4), dtype=torch.float64).unbind()
    for prediction_type in PREDICTION_TYPES:
        got = convert_prediction(prediction, noisy, LEVELS["betas"], prediction_type, "sample")
        alpha_bar = LEVELS["betas"].signal ** 2
        torch.testing.assert_close(
            got, clean_estimate(prediction_type, prediction, noisy, alpha_bar)
        )


@pytest.mark.parametrize("source, level", [("epsilon", (0.0, 1.0)), ("sample", (1.0, 0.0))])
def test_a_prediction_that_says_what_the_input_says_is_refused(source, level):
    zeros = torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match="`prediction_type` must say more than x_t does"):
        convert_prediction(zeros, zeros, NoiseLevel(*level), source, "flow")
