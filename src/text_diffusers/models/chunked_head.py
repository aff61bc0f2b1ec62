"""The loss of a language-model head whose logits never exist all at once.

Shapes: D width, V vocabulary size, N selected positions, n positions of a chunk.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SIZE = 128  # rows of logits that live at once when the head is trained in chunks

LossFunction = Callable[[Tensor, slice], Tensor]


class ChunkedHeadLoss(torch.autograd.Function):
    """Sum of a loss over chunks of the head's logits, of which only one chunk exists at any time.

    The gradients of a chunk are taken and added up as soon as its loss is known. The result is a scalar, so all that
    is left to the backward pass is to multiply them by the gradient of that scalar: nothing is computed twice. Liger
    (https://arxiv.org/abs/2410.10989) fuses the cross-entropy with the head in this way; here the loss may be any.
    A head with a bias (V,) gives it as the last argument.

    Example:
        >>> import torch
        >>> from text_diffusers.models import ChunkedHeadLoss
        >>> x = torch.ones(5, 4, requires_grad=True)
        >>> loss = ChunkedHeadLoss.apply(x, torch.ones(3, 4), lambda logits, chunk: logits.sum(), 2)
        >>> loss.backward()
        >>> loss, x.grad[0]
        (tensor(60., grad_fn=<ChunkedHeadLossBackward>), tensor([3., 3., 3., 3.]))
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        loss_function: LossFunction,
        chunk_size: int,
        bias: Tensor | None = None,
    ) -> Tensor:
        """() sum of `loss_function(x[chunk] @ weight.T + bias, chunk)`; x (N, D), weight (V, D), bias (V,)."""
        # Here autocast casts nothing: its cache would keep a weight without gradient.
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x_cast = x.to(dtype)
        weight_cast = weight.to(dtype)
        bias_cast = None if bias is None else bias.to(dtype)

        total_dtype = torch.promote_types(dtype, torch.float32)
        total = torch.zeros((), dtype=total_dtype, device=x.device)
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        grad_x = torch.zeros_like(x) if needs_x else None
        grad_weight = torch.zeros_like(weight, dtype=total_dtype) if needs_weight else None
        grad_bias = None
        if bias is not None and ctx.needs_input_grad[4]:
            grad_bias = torch.zeros_like(bias, dtype=total_dtype)

        for chunk in chunks(len(x), chunk_size):
            # The logits have no name here, so that they are gone when their gradient (n, V) is used.
            loss, grad = loss_and_gradient(
                F.linear(x_cast[chunk], weight_cast, bias_cast), chunk, loss_function
            )
            total = total + loss  # in float64 if the loss is
            if grad_x is not None:
                grad_x[chunk] = grad @ weight_cast
            if grad_weight is not None and dtype == total_dtype:
                grad_weight.addmm_(grad.T, x_cast[chunk])  # into the sum, without a second (V, D)
            elif grad_weight is not None:
                grad_weight += grad.T @ x_cast[chunk]
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0, dtype=total_dtype)
            del grad  # before the next chunk's logits

        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.to(bias.dtype)
        ctx.save_for_backward(grad_x, grad_weight, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        # In place: a second backward pass, which would find the gradients scaled already, is refused by autograd.
        grad_x, grad_weight, grad_bias = ctx.saved_tensors
        for grad in (grad_x, grad_weight, grad_bias):
            if grad is not None:
                grad.mul_(grad_output)
        return grad_x, grad_weight, None, None, grad_bias


def chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def loss_and_gradient(
    logits: Tensor, chunk: slice, loss_function: LossFunction
) -> tuple[Tensor, Tensor]:
    """The loss of a chunk and its gradient (n, V)."""
    with torch.enable_grad():
        loss = loss_function(logits.requires_grad_(), chunk)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]
