"""Laws of the codebooks, against formulas in numpy: nearest codes, averages, gradients, dead codes, FSQ."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from text_diffusers.models.autoencoder_vq_quantizer import TextQuantizer

WIDTH, CODES = 12, 6


def make(quantizer="ema", codes=CODES, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"codebook_dim": 4, "decay": 0.9, "commitment_weight": 0.25}
    settings |= {"dead_code_threshold": 0.0, "rotation_trick": True}
    return TextQuantizer(quantizer, WIDTH, codes, **settings | changes)


def vectors(rows=5, length=8, seed=1):
    return torch.randn(rows, length, WIDTH, generator=torch.Generator().manual_seed(seed))


def started(*arguments, **changes):
    """A quantiser that has seen a batch."""
    quantizer = make(*arguments, **changes).train()
    quantizer(vectors(rows=20))
    return quantizer


def buffers(quantizer):
    return {name: buffer.clone() for name, buffer in quantizer.named_buffers()}


def assert_unchanged(quantizer, before):
    for name, buffer in quantizer.named_buffers():
        assert torch.equal(buffer, before[name]), name


def compared(quantizer, x):
    """(n, dim) float64 vectors as they are compared with the codes."""
    with torch.no_grad():
        return quantizer.layer.project_in(quantizer.norm(x)).flatten(0, 1).double().numpy()


def codebook(quantizer):
    return quantizer.layer.codebook.double().numpy().copy()


def nearest(points, book):
    return ((points[:, None] - book) ** 2).sum(-1).argmin(1)


@pytest.mark.parametrize("training", [False, True])
def test_a_vector_is_given_the_code_nearest_to_it(training):
    quantizer, x = started(codes=40).train(training), vectors(seed=2)
    points, book = compared(quantizer, x), codebook(quantizer)
    quantised, codes, loss = quantizer(x)
    expected = nearest(points, book)
    assert len(set(expected)) > 10
    np.testing.assert_array_equal(codes.flatten().numpy(), expected)
    out = torch.from_numpy(book[expected]).float()
    torch.testing.assert_close(
        quantised.flatten(0, 1), quantizer.layer.project_out(out), atol=1e-5, rtol=1e-5
    )
    distance = ((points - book[expected]) ** 2).mean()
    assert loss.item() == pytest.approx(0.25 * distance if training else 0.0, rel=1e-5)


def test_the_codebook_is_the_moving_average_of_its_vectors():
    quantizer, decay, epsilon = started(), 0.9, 1e-5
    state = quantizer.layer._codebook
    number, total = (
        state.cluster_size[0].double().numpy().copy(),
        state.embed_avg[0].double().numpy().copy(),
    )
    for step in range(4):
        x = vectors(rows=3, seed=10 + step)
        points = compared(quantizer, x)
        of_code = np.eye(CODES)[nearest(points, codebook(quantizer))]  # (n, K)
        quantizer(x)
        number = decay * number + (1 - decay) * of_code.sum(0)
        total = decay * total + (1 - decay) * of_code.T @ points
        smooth = (number + epsilon) / (number.sum() + CODES * epsilon) * number.sum()
        np.testing.assert_allclose(
            codebook(quantizer), total / smooth[:, None], rtol=1e-4, atol=1e-5
        )


def test_the_codebook_starts_by_k_means():
    """Of which a code is the mean of the vectors that are nearest to it."""
    quantizer, x = make(codes=4).train(), vectors(rows=8)
    quantizer(x)
    points, book = compared(quantizer, x), codebook(quantizer)
    of_code = nearest(points, book)
    for code in range(4):
        np.testing.assert_allclose(book[code], points[of_code == code].mean(0), atol=1e-4)


def test_before_training_codes_are_chance_and_stay():
    quantizer, x = make(codes=40).eval(), vectors()
    before, chance = buffers(quantizer), torch.get_rng_state()
    quantised, codes, _ = quantizer(x)
    assert len(codes.unique()) > 5 and torch.equal(quantised, quantizer.vectors(codes))
    assert_unchanged(quantizer, before)
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("kind", ["ema", "gumbel", "fsq"])
def test_codes_can_be_asked_for_in_training_without_chance_and_change(kind):
    quantizer = started(kind, [3, 4] if kind == "fsq" else 40, dead_code_threshold=0.5)
    x = vectors(seed=3)
    before, chance = buffers(quantizer), torch.get_rng_state()
    codes = quantizer.codes(x)
    assert quantizer.training and quantizer.layer.training
    assert_unchanged(quantizer, before)
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.equal(codes, quantizer.eval()(x)[1])


@pytest.mark.parametrize("copies", [1, 4])
def test_a_code_is_replaced_below_its_part_of_an_even_share_however_large_the_batch(copies):
    quantizer = started(dead_code_threshold=0.5)
    state, x = quantizer.layer._codebook, vectors(seed=4).repeat(copies, 1, 1)
    points, book = compared(quantizer, x), codebook(quantizer)
    even = 7.0 * copies  # of the batches before, of whatever size
    state.cluster_size[0] = even * torch.tensor([0.1, 0.45, 0.6, 1.0, 1.2, 2.65])
    state.embed_avg[0] = state.cluster_size[0, :, None] * state.embed[0]
    number, total = (
        state.cluster_size[0].double().numpy().copy(),
        state.embed_avg[0].double().numpy().copy(),
    )
    quantizer(x)
    of_code = np.eye(CODES)[nearest(points, book)]
    number = 0.9 * number + 0.1 * of_code.sum(0)
    total = 0.9 * total + 0.1 * of_code.T @ points
    dead = number < 0.5 * even
    assert 0 < dead.sum() < CODES
    replaced = codebook(quantizer)
    np.testing.assert_allclose(
        replaced[~dead], (total / number[:, None])[~dead], rtol=1e-4, atol=1e-5
    )
    for code in np.flatnonzero(dead):  # a vector of the batch with an even share
        assert np.abs(points - replaced[code]).max(1).min() < 1e-6
        assert state.cluster_size[0, code] == pytest.approx(even)
        np.testing.assert_allclose(
            state.embed_avg[0, code].numpy(), even * replaced[code], rtol=1e-5
        )


def test_without_a_threshold_no_code_is_replaced():
    quantizer = started()
    quantizer.layer._codebook.cluster_size[0, 2] = 1e-3
    quantizer.layer._codebook.embed_avg[0, 2] = 1e-3 * torch.full((4,), 50.0)
    quantizer.layer._codebook.embed[0, 2] = 50.0
    quantizer(vectors(seed=4))
    assert codebook(quantizer)[2] == pytest.approx([50.0] * 4, rel=0.02)


def gradients(quantizer, x, upstream):
    """`(normalised x, quantised, gradient)` (n, D), the gradient that of the normalised x."""
    kept = []
    handle = quantizer.norm.register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    quantised, *_ = quantizer(x.requires_grad_())
    handle.remove()
    (gradient,) = torch.autograd.grad((quantised * upstream).sum(), kept[0])
    return (
        value.detach().flatten(0, 1).double().numpy() for value in (kept[0], quantised, gradient)
    )


@pytest.mark.parametrize("kind, rotation", [("ema", True), ("ema", False), ("gumbel", True)])
def test_gradients_go_through_codes_by_rotation_or_straight(kind, rotation):
    """With codes as wide as the vectors there are no projections between the two."""
    quantizer = started(kind, codes=40, codebook_dim=WIDTH, rotation_trick=rotation)
    book, x = codebook(quantizer), vectors(seed=5)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    e, q, gradient = gradients(quantizer, x, upstream)
    reached = np.abs(q[:, None] - book).max(-1)
    assert reached.min(1).max() < 1e-5 and (reached.argmin(1) == nearest(e, book)).all() == (
        kind == "ema"
    )
    wanted = upstream.flatten(0, 1).double().numpy()
    if rotation and kind == "ema":
        lengths = np.linalg.norm(q, axis=1) / np.linalg.norm(e, axis=1)
        assert lengths.std() > 0.01
        np.testing.assert_allclose(
            np.linalg.norm(gradient, axis=1) / np.linalg.norm(wanted, axis=1), lengths, rtol=1e-4
        )
        for row, (one, other) in enumerate(zip(e, q, strict=True)):
            one, other = one / np.linalg.norm(one), other / np.linalg.norm(other)
            half = (one + other) / np.linalg.norm(one + other)
            turn = np.eye(WIDTH) - 2 * np.outer(half, half) + 2 * np.outer(other, one)
            np.testing.assert_allclose(
                gradient[row], lengths[row] * turn.T @ wanted[row], atol=1e-4
            )
    else:
        np.testing.assert_allclose(gradient, wanted, atol=1e-6)


def test_gumbel_draws_codes_by_the_softmax_of_their_distances():
    quantizer = started("gumbel")
    x = vectors(rows=1, length=1, seed=7)
    distances = np.sqrt(((compared(quantizer, x) - codebook(quantizer)) ** 2).sum(-1))
    probs = np.exp(-distances) / np.exp(-distances).sum()
    quantised, codes, _ = quantizer(x.expand(200, 100, WIDTH))
    assert chisquare(np.bincount(codes.flatten(), minlength=CODES), 20_000 * probs).pvalue > 1e-3
    drawn = quantizer.eval()(x.expand(2, 100, WIDTH))[1]
    assert (
        len(drawn.unique()) == 1
        and int(drawn[0, 0]) == nearest(compared(quantizer, x), codebook(quantizer))[0]
    )


def test_fsq_rounds_and_counts_in_mixed_radix():
    """Every code is reached, and each is one vector."""
    levels = np.array([4, 3, 5])
    quantizer, x = make("fsq", levels.tolist()).train(), vectors(rows=100, length=80)
    torch.nn.init.normal_(quantizer.layer.project_in.weight, std=1.5 * WIDTH**-0.5)
    assert quantizer.num_codes == 60
    quantised, codes, loss = quantizer(x)
    half, offset = (levels - 1) * (1 + 1e-3) / 2, np.where(levels % 2 == 0, 0.5, 0.0)
    steps = np.round(np.tanh(compared(quantizer, x) + np.arctanh(offset / half)) * half - offset)
    digits = steps + levels // 2
    assert digits.min() == 0 and (digits < levels).all()
    # Float32 rounds elsewhere.
    assert (codes.flatten().numpy() == digits @ np.array([1, 4, 12])).mean() > 0.999
    assert float(loss) == 0 and codes.dtype == torch.long and len(codes.unique()) == 60
    torch.testing.assert_close(quantizer.vectors(codes), quantised, atol=1e-5, rtol=0)
    every = torch.arange(60)[None]
    scaled = (every[0, :, None].numpy() // np.array([1, 4, 12]) % levels - levels // 2) / (
        levels // 2
    )
    expected = quantizer.layer.project_out(torch.from_numpy(scaled).float())
    torch.testing.assert_close(quantizer.vectors(every)[0], expected)
    assert (torch.cdist(expected, expected) + torch.eye(60)).min() > 1e-2


@pytest.mark.parametrize("kind", ["ema", "fsq"])
def test_half_precision_around_it_changes_no_code_and_no_average(kind):
    alike = []
    for enabled in (False, True):
        quantizer = started(kind, [8, 5, 5] if kind == "fsq" else 40)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            torch.manual_seed(0)
            alike.append((*quantizer(vectors(seed=3)), *quantizer.buffers()))
    for whole, half in zip(*alike, strict=True):
        assert torch.equal(whole, half)


@pytest.mark.parametrize("kind", ["ema", "gumbel", "fsq"])
def test_its_weights_may_be_of_half_precision(kind):
    quantizer = started(kind, [4, 3, 5] if kind == "fsq" else 40).eval().bfloat16()
    quantised, codes, _ = quantizer(vectors(seed=3).bfloat16())
    assert quantised.dtype == torch.bfloat16 and torch.equal(quantizer.vectors(codes), quantised)
