"""Variational bounds of discrete diffusion, in nats, one value a token.

Every function takes what a training step has at the positions that count, flattened over the batch, and returns the
bound's integrand (N,), unreduced: its mean over times drawn by `training_timesteps`, divided by the number of tokens,
corrupted or not, bounds -log p(x_0) in nats per token. All schedules end at exactly alpha(1) = 0, so there is no prior
term; the discrete step next to the data is the reconstruction term.

Shapes: N positions, V vocabulary size. Alphas and weights are (N,), those of the row each position is in.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.precision import at_least_float32


def reconstruction_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(x_0 | x_t), cross-entropy on the clean tokens.

    Args:
        logits: (N, V) predictions of the clean tokens.
        targets: (N,) clean tokens.

    Returns:
        (N,) nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import reconstruction_loss
        >>> reconstruction_loss(torch.zeros(2, 4), torch.tensor([0, 3]))  # log(4) each
        tensor([1.3863, 1.3863])
    """
    return F.cross_entropy(at_least_float32(logits), targets, reduction="none")


def absorbing_weight(alpha_t: Tensor, alpha_derivative: Tensor) -> Tensor:
    """-alpha' / (1 - alpha), the continuous-time weight (N,) of a masked token; 1 / t for the linear schedule."""
    return -alpha_derivative / (1 - alpha_t)


def absorbing_weight_discrete(alpha_t: Tensor, alpha_s: Tensor, num_timesteps: int) -> Tensor:
    """T (alpha_s - alpha_t) / (1 - alpha_t), the weight (N,) of a masked token on the grid of T steps."""
    return num_timesteps * (alpha_s - alpha_t) / (1 - alpha_t)


def absorbing_bound(logits: Tensor, targets: Tensor, weight: Tensor, mask_token_id: int) -> Tensor:
    """Bound of the absorbing kernel at masked positions, the mask being impossible; all other positions cost nothing.

    In continuous time or on a grid, according to the weight.

    Args:
        logits: (N, V) predictions at the N masked positions.
        targets: (N,) clean tokens.
        weight: (N,) from `absorbing_weight` or `absorbing_weight_discrete`.
        mask_token_id: excluded from the prediction.

    Returns:
        (N,) nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import absorbing_bound, absorbing_weight
        >>> weight = absorbing_weight(torch.tensor([0.5]), torch.tensor([-1.0]))
        >>> absorbing_bound(torch.zeros(1, 5), torch.tensor([2]), weight, mask_token_id=4)  # 2 log(4)
        tensor([2.7726])
    """
    loss = reconstruction_loss(without_mask(logits, mask_token_id), targets)
    return weight.to(loss) * loss


def without_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """The logits with the mask made impossible, out of place ("SUBS", https://arxiv.org/abs/2406.07524)."""
    last = logits.shape[-1] - 1
    # A mask behind all words is cut off, which copies nothing.
    if mask_token_id == last:
        return logits[..., :last]
    return logits.index_fill(-1, torch.tensor(mask_token_id, device=logits.device), float("-inf"))


def uniform_bound(
    logits: Tensor,
    targets: Tensor,
    noisy: Tensor,
    alpha_t: Tensor,
    alpha_derivative: Tensor,
    reverse_rule: str = "marginal",
) -> Tensor:
    """Continuous-time bound of the uniform kernel: the divergence of the rates of two jump processes.

    With r_y the true rate to token y in units of beta / V, beta = -alpha' / alpha, and r'_y that of the model, the
    integrand is beta / V times the sum over y != x_t of r log(r / r') - r + r'. "plug_in" is the bound of UDLM
    (https://arxiv.org/abs/2412.10193); "marginal" is that of the reverse process with x_0 summed out.

    Args:
        logits: (N, V) predictions of the clean tokens; V is the range of the noise.
        targets, noisy: (N,) clean and corrupted tokens.
        alpha_t, alpha_derivative: (N,) at the time of `noisy`.
        reverse_rule: "marginal" or "plug_in", as in the sampler.

    Returns:
        (N,) nats.

    Example:
        >>> import torch
        >>> from text_diffusers.losses import uniform_bound
        >>> token = torch.tensor([2])
        >>> sure = torch.tensor([[0.0, 0.0, 50.0, 0.0]])
        >>> uniform_bound(sure, token, token, torch.tensor([0.5]), torch.tensor([-1.0])).abs() < 1e-5
        tensor([True])
    """
    vocab_size = logits.shape[-1]
    log_probs = at_least_float32(logits).log_softmax(dim=-1)
    rate = (-alpha_derivative / alpha_t / vocab_size).to(log_probs)  # beta / V
    # A jump to x_0 is 1 + gain times as likely.
    gain = (vocab_size * alpha_t / (1 - alpha_t)).to(log_probs)

    # The model's rate to y is (base + gain p_y) / normaliser; `total` is its sum over y != x_t.
    log_current = entries(log_probs, noisy)
    p_current = log_current.exp()
    p_other = -torch.expm1(log_current)
    if reverse_rule == "plug_in":
        base = torch.ones_like(gain)
        log_normaliser = torch.log1p(gain * p_current)
        total = ((vocab_size - 1) + gain * p_other) / (1 + gain * p_current)
    else:
        base = p_other + p_current / (1 + gain)
        log_normaliser = torch.zeros_like(gain)
        total = (vocab_size - 1) * base + gain * p_other

    # Logarithms of the model's rates: to x_0, and summed over all y != x_t.
    rates = base.unsqueeze(1) + gain.unsqueeze(1) * log_probs.exp()  # (N, V), not normalised
    log_rates = torch.log(rates)
    log_target = entries(log_rates, targets) - log_normaliser
    log_total = log_rates.sum(dim=1) - entries(log_rates, noisy)
    log_total = log_total - (vocab_size - 1) * log_normaliser

    low = 1 / (1 + gain)  # the true rate to every y where x_t is clean
    clean = -(vocab_size - 1) * low * (torch.log1p(gain) + 1) - low * log_total + total
    corrupted = (
        (1 + gain) * (torch.log1p(gain) - log_target - 1)
        - (vocab_size - 2)
        - log_total
        + log_target
        + total
    )
    return rate * torch.where(noisy == targets, clean, corrupted)


def uniform_bound_discrete(
    logits: Tensor,
    targets: Tensor,
    noisy: Tensor,
    alpha_t: Tensor,
    alpha_s: Tensor,
    num_timesteps: int,
    reverse_rule: str = "marginal",
) -> Tensor:
    """T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of the uniform kernel on the grid of T steps.

    Args:
        logits, targets, noisy, alpha_t, reverse_rule: as in `uniform_bound`.
        alpha_s: (N,) one step nearer to the data.
        num_timesteps: T.

    Returns:
        (N,) nats.
    """
    probs = at_least_float32(logits).softmax(dim=-1)
    # The true posterior is that of a prediction without doubt.
    certain = F.one_hot(targets, probs.shape[-1]).to(probs)
    true = uniform_posterior(certain, noisy, alpha_t, alpha_s, reverse_rule="plug_in")
    model = uniform_posterior(probs, noisy, alpha_t, alpha_s, reverse_rule=reverse_rule)
    return num_timesteps * (torch.xlogy(true, true) - torch.xlogy(true, model)).sum(dim=-1)


def uniform_posterior(
    probs: Tensor, noisy: Tensor, alpha_t: Tensor, alpha_s: Tensor, reverse_rule: str
) -> Tensor:
    """p(x_s | x_t) (N, V) from predicted x_0 (N, V), x_t (N,) and alphas (N,), as likelihood times prior."""
    alpha_t = alpha_t.unsqueeze(1)
    alpha_s = alpha_s.unsqueeze(1)
    vocab_size = probs.shape[-1]
    current = F.one_hot(noisy, vocab_size).to(probs)

    def corrupt(tokens: Tensor, alpha: Tensor) -> Tensor:
        # One product with the transition matrix, which is symmetric; 1 - alpha is taken in float64.
        total = tokens.sum(dim=-1, keepdim=True)
        return alpha.to(probs) * tokens + ((1 - alpha) / vocab_size).to(probs) * total

    likelihood = corrupt(current, alpha_t / alpha_s)  # q(x_t | x_s)

    # x_0 summed out, each by p(x_0 | x_t) / q(x_t | x_0)
    if reverse_rule == "marginal":
        return likelihood * corrupt(probs / corrupt(current, alpha_t), alpha_s)

    # The prediction in the place of x_0
    joint = likelihood * corrupt(probs, alpha_s)
    return joint / joint.sum(dim=-1, keepdim=True)


def entries(values: Tensor, tokens: Tensor) -> Tensor:
    """(N,) of values (N, V), those at `tokens` (N,)."""
    return values.gather(1, tokens.unsqueeze(1)).squeeze(1)
