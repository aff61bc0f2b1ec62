"""Laws of the head in chunks: the loss and the gradients of all logits at once, with one chunk of logits alive.

Shapes: B batch, L length, V vocabulary size, N positions, n positions of a chunk.
"""

import gc
import itertools

import pytest
import torch
from accelerate import Accelerator
from conftest import make_denoiser, mostly_slow, slow

from text_diffusers import D3PMAbsorbingScheduler, D3PMUniformScheduler
from text_diffusers.evaluation.bounds import predicted_positions, token_bound

KERNELS = ("absorbing", "uniform")


class Batch:
    """Corrupted rows, some of them in the first interval of time, and what the bound of the kernel is on a chunk."""

    def __init__(self, tokenizer, kernel, rows=5, length=7):
        words = tokenizer.mask_token_id
        mask, uniform = D3PMAbsorbingScheduler(words), D3PMUniformScheduler(words)
        scheduler = {"absorbing": mask, "uniform": uniform}[kernel]
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, words, (rows, length), generator=generator)
        # (B,), the first clamped
        self.times = scheduler.training_timesteps(torch.arange(rows) / rows)
        self.noisy = scheduler.add_noise(tokens, self.times, generator)  # (B, L)
        self.positions = predicted_positions(scheduler, self.noisy, torch.ones_like(tokens))
        self.targets, self.inputs = tokens[self.positions], self.noisy[self.positions]  # (N,)
        self.row_times = self.times[self.positions.nonzero()[:, 0]]
        self.scheduler = scheduler

    def loss(self, logits, chunk):
        times = self.row_times[chunk]
        return token_bound(
            self.scheduler, logits, self.targets[chunk], self.inputs[chunk], times
        ).sum()

    def logits(self, model):
        return model(self.noisy, self.times, positions=self.positions).logits  # (N, V)

    def dense_loss(self, model):
        return self.loss(self.logits(model), slice(None))

    def chunked_loss(self, model, chunk_size, loss_function=None):
        where = {"positions": self.positions, "chunk_size": chunk_size}
        return model(self.noisy, self.times, loss_function=loss_function or self.loss, **where).loss


def gradients(model, loss):
    """`(loss, gradients by name)` after a backward pass from a multiple of the loss, as a training loop takes it."""
    model.zero_grad()
    (loss / 3).backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def assert_same(got, expected):
    """Losses and gradients agree to 1e-5 of the largest gradient, in float64 to 1e-10 of each tensor's largest."""
    exact = expected[0].dtype == torch.float64
    tolerance = 1e-10 if exact else 1e-5
    torch.testing.assert_close(got[0], expected[0], rtol=tolerance, atol=0)
    assert got[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max() for gradient in expected[1].values() if gradient is not None)
    for name, gradient in expected[1].items():
        if gradient is None:
            assert got[1][name] is None, name
        else:
            scale = gradient.abs().max() if exact else largest
            assert (got[1][name] - gradient).abs().max() <= tolerance * scale, name


SIZES = [1, 3, "N", "more than N"]


@pytest.mark.parametrize(
    "kernel, head, chunk_size, dtype",
    mostly_slow(
        itertools.product(KERNELS, ["tied", "untied"], SIZES, [torch.float32, torch.float64]),
        fast=[
            ("absorbing", "untied", 1, torch.float64),
            ("absorbing", "tied", 3, torch.float32),
            ("uniform", "untied", 3, torch.float64),
            ("uniform", "tied", "N", torch.float64),
            ("absorbing", "untied", "more than N", torch.float32),
        ],
    ),
)
def test_loss_and_gradients_equal_those_of_all_logits_at_once(
    tokenizer, kernel, head, chunk_size, dtype
):
    batch = Batch(tokenizer, kernel)
    count = len(batch.targets)
    size = {"N": count, "more than N": count + 5}.get(chunk_size, chunk_size)
    model = (
        make_denoiser(
            tokenizer, tie_embeddings=head == "tied", time_conditioning=kernel == "uniform"
        )
        .train()
        .to(dtype)
    )
    expected = gradients(model, batch.dense_loss(model))
    assert all(gradient.abs().max() > 0 for gradient in expected[1].values())
    assert_same(gradients(model, batch.chunked_loss(model, size)), expected)


def logits_alive(vocab_size):
    """How many matrices of V columns exist."""
    return sum(
        type(x) is torch.Tensor and x.ndim == 2 and x.shape[1] == vocab_size
        for x in gc.get_objects()
    )


@pytest.mark.parametrize(
    "chunk_size, training", [slow(5, False), (5, True), slow(1000, False), slow(1000, True)]
)
def test_chunks_cover_each_position_once_and_one_chunk_of_logits_exists(
    tokenizer, denoiser, chunk_size, training
):
    batch = Batch(tokenizer, "absorbing")
    count, seen, before = len(batch.targets), [], logits_alive(len(tokenizer))

    def recording_loss(logits, chunk):
        assert logits.shape == (chunk.stop - chunk.start, len(tokenizer))
        assert logits.requires_grad == training
        # Nor does the gradient of the chunk before.
        assert logits_alive(len(tokenizer)) == before + 1
        seen.append(chunk)
        return batch.loss(logits, chunk)

    with torch.set_grad_enabled(training):
        batch.chunked_loss(denoiser, chunk_size, recording_loss)
    assert [index for chunk in seen for index in range(count)[chunk]] == list(range(count))
    assert max(chunk.stop - chunk.start for chunk in seen) == min(chunk_size, count)


def test_without_positions_the_chunks_run_over_all_of_them_in_order(tokenizer, denoiser):
    rows = Batch(tokenizer, "absorbing").noisy
    weights = torch.randn(rows.numel(), len(tokenizer), generator=torch.Generator().manual_seed(1))

    def loss(logits, chunk):
        return (weights[chunk] * logits.log_softmax(dim=-1)).sum()

    expected = gradients(denoiser, loss(denoiser(rows).logits.flatten(0, 1), slice(None)))
    got = denoiser(rows, loss_function=loss, chunk_size=4)
    assert got.logits is None
    assert_same(gradients(denoiser, got.loss), expected)
    assert torch.equal(
        denoiser(rows, loss_function=loss, chunk_size=4, return_dict=False)[0], got.loss
    )


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_no_position_costs_nothing_and_gives_every_parameter_a_gradient_of_zero(tokenizer, tied):
    """Also in the process of a group whose rows happen to hold no mask: the others wait for its gradients."""
    batch, model = Batch(tokenizer, "absorbing"), make_denoiser(tokenizer, tie_embeddings=tied)
    batch.positions = torch.zeros_like(batch.positions)
    loss, grads = gradients(model, batch.chunked_loss(model, 3))
    assert loss == 0
    assert all(gradient is not None and not gradient.any() for gradient in grads.values())


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_gradients_the_loss_is_the_same(tokenizer, kernel):
    batch, model = Batch(tokenizer, kernel), make_denoiser(tokenizer, time_conditioning=True)
    with torch.no_grad():
        got = batch.chunked_loss(model, 3)
        torch.testing.assert_close(got, batch.dense_loss(model), rtol=1e-5, atol=0)
    assert not got.requires_grad
    model.requires_grad_(False)
    assert torch.equal(batch.chunked_loss(model, 3), got)


@pytest.mark.parametrize("training", [True, False], ids=["gradients", "no gradients"])
def test_a_loss_in_float64_is_summed_in_float64(tokenizer, denoiser, training):
    batch = Batch(tokenizer, "absorbing")
    with torch.set_grad_enabled(training):
        loss = batch.chunked_loss(denoiser, 3, lambda *arguments: batch.loss(*arguments).double())
    assert loss.dtype == torch.float64
    if training:
        expected = gradients(denoiser, batch.dense_loss(denoiser))
        assert_same(gradients(denoiser, loss.float()), expected)


@pytest.mark.parametrize("frozen", ["head", "all but the head", "all but one layer"])
def test_a_frozen_part_gets_no_gradient_and_changes_no_other(tokenizer, frozen):
    batch, model = Batch(tokenizer, "absorbing"), make_denoiser(tokenizer)
    trained = {
        "head": lambda name: not name.startswith("head"),
        "all but the head": lambda name: name.startswith("head"),
        "all but one layer": lambda name: name.startswith("blocks.0.attn"),
    }[frozen]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained(name))
    expected = gradients(model, batch.dense_loss(model))
    assert {name for name, gradient in expected[1].items() if gradient is not None} == {
        name for name, _ in model.named_parameters() if trained(name)
    }
    assert_same(gradients(model, batch.chunked_loss(model, 3)), expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_autocast_and_half_weights_stay_close_to_float32(tokenizer, tied):
    """Nearly as close as all logits at once: sums over many chunks are kept in float32."""
    batch, model = (
        Batch(tokenizer, "absorbing", rows=40),
        make_denoiser(tokenizer, tie_embeddings=tied),
    )
    head = "token_embedding.weight" if tied else "head.weight"
    full = gradients(model, batch.dense_loss(model))

    def distances(half_loss):
        loss, grads = gradients(model, half_loss())
        assert all(grads[name].dtype == p.dtype for name, p in model.named_parameters())
        assert loss.dtype == torch.float32
        relative = (grads[head].float() - full[1][head]).norm() / full[1][head].norm()
        return abs(float(loss / full[0]) - 1), float(relative)

    with torch.autocast("cpu", torch.bfloat16):
        autocast = (
            distances(lambda: batch.dense_loss(model)),
            distances(lambda: batch.chunked_loss(model, 1)),
        )
    model.to(torch.bfloat16)
    half = (
        distances(lambda: batch.dense_loss(model)),
        distances(lambda: batch.chunked_loss(model, 1)),
    )
    for dense, chunked in (autocast, half):
        assert max(chunked) < 0.05
        assert chunked[1] < 1.25 * dense[1]


def test_autocast_leaves_no_weight_without_gradient_in_its_cache(tokenizer, denoiser):
    batch = Batch(tokenizer, "absorbing")
    with torch.autocast("cpu", torch.bfloat16):
        batch.chunked_loss(denoiser, 3)
        gradients(denoiser, batch.dense_loss(denoiser))
    assert denoiser.head.weight.grad.any()


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    batch, model = (
        Batch(tokenizer, "uniform"),
        make_denoiser(tokenizer, time_conditioning=True).train(),
    )
    expected = gradients(model, batch.dense_loss(model))
    model.enable_gradient_checkpointing()
    assert_same(gradients(model, batch.chunked_loss(model, 3)), expected)


def test_gradients_accumulate_over_micro_batches(tokenizer, denoiser):
    batches = [Batch(tokenizer, "absorbing", rows) for rows in (3, 5)]
    expected = gradients(denoiser, sum(batch.dense_loss(denoiser) for batch in batches))
    assert_same(
        gradients(denoiser, sum(batch.chunked_loss(denoiser, 3) for batch in batches)), expected
    )


def test_a_prepared_model_gives_its_loss_through_accelerate(tokenizer, denoiser):
    batch, accelerator = (
        Batch(tokenizer, "absorbing"),
        Accelerator(cpu=True, mixed_precision="bf16"),
    )
    expected = batch.dense_loss(denoiser).detach()
    loss = batch.chunked_loss(accelerator.prepare(denoiser), 3)
    accelerator.backward(loss)
    torch.testing.assert_close(loss.detach(), expected, rtol=0.02, atol=0)
    assert all(parameter.grad.any() for parameter in denoiser.parameters())


def test_a_second_backward_pass_is_refused(tokenizer, denoiser):
    loss = Batch(tokenizer, "absorbing").chunked_loss(denoiser, 3)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_cannot_run_in_chunks_is_refused(tokenizer, denoiser):
    from peft import LoraConfig

    batch = Batch(tokenizer, "absorbing")
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1, got 0"):
        batch.chunked_loss(denoiser, 0)
    denoiser.add_adapter(LoraConfig(r=2, target_modules=["head"]))
    with pytest.raises(ValueError, match="plain linear head, got <class 'peft"):
        batch.chunked_loss(denoiser, 3)
