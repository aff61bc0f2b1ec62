"""How far a student's prediction of a token is from that of its teacher, in nats.

Shapes: N positions, V vocabulary size.
"""

import math

import torch
from torch import Tensor

from text_diffusers.common.precision import at_least_float32
from text_diffusers.common.validation import require_key

DIVERGENCES = ("forward", "reverse", "jensen_shannon")

# Of a token that cannot be; its probability is 0 in every precision, and differences stay numbers.
LEAST_LOG_PROB = -1e4


def distillation_divergence(
    logits: Tensor, teacher_log_probs: Tensor, divergence: str = "forward"
) -> Tensor:
    """Divergence of two predictions at each position, 0 where they agree.

    "forward" is KL(teacher || student): the student covers all that its teacher may say. "reverse" is
    KL(student || teacher): it keeps to what its teacher would say too. "jensen_shannon" lies between them.

    Args:
        logits: (N, V) of the student; -inf at tokens that it never writes.
        teacher_log_probs: (N, V) log-probabilities of the teacher; -inf at tokens that it never writes.
        divergence: one of `DIVERGENCES`.

    Returns:
        (N,) nats.

    Raises:
        ValueError: if there is no such divergence.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import distillation_divergence
        >>> teacher = torch.tensor([[0.5, 0.5]]).log()
        >>> distillation_divergence(torch.tensor([[0.0, 0.0]]), teacher)
        tensor([0.])
        >>> distillation_divergence(torch.tensor([[0.75, 0.25]]).log(), teacher)  # log(4 / 3) / 2
        tensor([0.1438])
    """
    require_key("divergence", divergence, DIVERGENCES)
    student = at_least_float32(logits).log_softmax(dim=-1).clamp(min=LEAST_LOG_PROB)
    teacher = teacher_log_probs.to(student).clamp(min=LEAST_LOG_PROB)
    if divergence == "forward":
        return relative_entropy(teacher, student)
    if divergence == "reverse":
        return relative_entropy(student, teacher)

    middle = torch.logaddexp(student, teacher) - math.log(2)
    return (relative_entropy(teacher, middle) + relative_entropy(student, middle)) / 2


def relative_entropy(log_probs: Tensor, others: Tensor) -> Tensor:
    """(N,) KL(p || q) in nats, from the logarithms (N, V) of both."""
    return (log_probs.exp() * (log_probs - others)).sum(dim=-1)
