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


def reconstruction_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p(x_0 | x_t), cross-entropy on the clean tokens: logits (N, V), targets (N,) -> (N,)."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none")


def without_mask(logits: Tensor, mask_token_id: int) -> Tensor:
    """The logits with the mask made impossible, out of place ("SUBS", https://arxiv.org/abs/2406.07524)."""
    last = logits.shape[-1] - 1
    if mask_token_id == last:
        return logits[..., :last]
    return logits.index_fill(-1, torch.tensor(mask_token_id, device=logits.device), float("-inf"))


def absorbing_weight(alpha_t: Tensor, alpha_derivative: Tensor) -> Tensor:
    """-alpha' / (1 - alpha), the continuous-time weight of a masked token; 1 / t for the linear schedule."""
    return -alpha_derivative / (1 - alpha_t)


def absorbing_weight_discrete(alpha_t: Tensor, alpha_s: Tensor, num_timesteps: int) -> Tensor:
    """T (alpha_s - alpha_t) / (1 - alpha_t), the weight of a masked token on the grid of T steps."""
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
    """
    loss = reconstruction_loss(without_mask(logits, mask_token_id), targets)
    return weight.to(loss) * loss


def absorbing_bound_discrete(
    logits: Tensor, targets: Tensor, alpha_t: Tensor, alpha_s: Tensor, num_timesteps: int, mask_token_id: int
) -> Tensor:
    """T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) at masked positions, where the network may also predict the mask.

    This is D3PM's bound (https://arxiv.org/abs/2107.03006); with the mask impossible it equals `absorbing_bound`.
    """
    log_probs = logits.log_softmax(dim=-1)
    p_mask = log_probs[:, mask_token_id].exp()
    reveal = ((alpha_s - alpha_t) / (1 - alpha_t)).to(log_probs)
    odds_t, odds_s = ((alpha / (1 - alpha)).to(log_probs) for alpha in (alpha_t, alpha_s))
    log_target = log_probs.gather(1, targets.unsqueeze(1)).squeeze(1)
    # Where alpha_s = 1 nothing stays masked: the odds are infinite and their factor is 0.
    stays = torch.where(alpha_s < 1, (1 - reveal) * torch.log1p(p_mask * odds_s.nan_to_num(posinf=0.0)), 0.0)
    return num_timesteps * (torch.log1p(p_mask * odds_t) - reveal * log_target - stays)


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
    """
    vocab_size = logits.shape[-1]
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    alpha, rate = alpha_t.to(log_probs), (-alpha_derivative / alpha_t / vocab_size).to(log_probs)
    gain = (vocab_size * alpha_t / (1 - alpha_t)).to(log_probs)  # a jump to x_0 is 1 + gain times as likely
    log_current = log_probs.gather(1, noisy.unsqueeze(1)).squeeze(1)
    p_current, p_other = log_current.exp(), -torch.expm1(log_current)
    if reverse_rule == "plug_in":
        base, log_normaliser = torch.ones_like(alpha), torch.log1p(gain * p_current)
        total = ((vocab_size - 1) + gain * p_other) / (1 + gain * p_current)
    else:
        base, log_normaliser = p_other + p_current / (1 + gain), torch.zeros_like(alpha)
        total = (vocab_size - 1) * base + gain * p_other
    log_rates = torch.log(base.unsqueeze(1) + gain.unsqueeze(1) * log_probs.exp())  # (N, V), before the normaliser
    log_target = log_rates.gather(1, targets.unsqueeze(1)).squeeze(1) - log_normaliser
    log_total = log_rates.sum(dim=1) - log_rates.gather(1, noisy.unsqueeze(1)).squeeze(1)
    log_total = log_total - (vocab_size - 1) * log_normaliser  # over all y != x_t
    low = 1 / (1 + gain)  # the true rate to every y where x_t is clean
    clean = -(vocab_size - 1) * low * (torch.log1p(gain) + 1) - low * log_total + total
    corrupted = (1 + gain) * (torch.log1p(gain) - log_target - 1) - (vocab_size - 2) - log_total + log_target + total
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
    """T KL(q(x_s | x_t, x_0) || p(x_s | x_t)) of the uniform kernel; arguments as in `uniform_bound`, (N,) nats."""
    probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    alphas = alpha_t.unsqueeze(1), alpha_s.unsqueeze(1)
    true = uniform_posterior(F.one_hot(targets, probs.shape[-1]).to(probs), noisy, *alphas, reverse_rule="plug_in")
    model = uniform_posterior(probs, noisy, *alphas, reverse_rule=reverse_rule)
    return num_timesteps * (torch.xlogy(true, true) - torch.xlogy(true, model)).sum(dim=-1)


def uniform_posterior(probs: Tensor, noisy: Tensor, alpha_t: Tensor, alpha_s: Tensor, reverse_rule: str) -> Tensor:
    """p(x_s | x_t) (N, V) from predicted x_0 (N, V), x_t (N,) and alphas (N, 1), as likelihood times prior."""
    vocab_size = probs.shape[-1]
    current = F.one_hot(noisy, vocab_size).to(probs)

    def corrupt(tokens: Tensor, kept: Tensor) -> Tensor:  # one product with the transition matrix, which is symmetric
        total = tokens.sum(dim=-1, keepdim=True)
        return kept.to(probs) * tokens + ((1 - kept) / vocab_size).to(probs) * total  # 1 - kept in float64

    likelihood = corrupt(current, alpha_t / alpha_s)  # q(x_t | x_s)
    if reverse_rule == "marginal":
        return likelihood * corrupt(probs / corrupt(current, alpha_t), alpha_s)
    joint = likelihood * corrupt(probs, alpha_s)
    return joint / joint.sum(dim=-1, keepdim=True)


def log_scores_from_logits(logits: Tensor, noisy: Tensor, alpha_t: Tensor, mask_token_id: int | None = None) -> Tensor:
    """log q_t(y) / q_t(x_t) for every token y, as a model of x_0 predicts it, x_0 summed out.

    Absorbing kernel: log p(x_0 = y) - log(exp(sigma) - 1) with sigma = -log alpha, the mask being impossible. Uniform
    kernel: log of the sum over k of p(x_0 = k) q_t(y | k) / q_t(x_t | k).

    Args:
        logits: (N, V) predictions of the clean tokens; V is the range of the noise of the uniform kernel.
        noisy: (N,) corrupted tokens.
        alpha_t: (N,) above 0 and below 1, at the time of `noisy`.
        mask_token_id: of the absorbing kernel; `None` is the uniform kernel.

    Returns:
        (N, V); of the absorbing kernel they hold where `noisy` is the mask, where its own entry is -inf.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask_token_id is not None:
        mask = torch.tensor(mask_token_id, device=logits.device)
        log_probs = logits.index_fill(-1, mask, float("-inf")).log_softmax(dim=-1)
        return log_probs + torch.log(alpha_t / (1 - alpha_t)).to(log_probs).unsqueeze(1)
    probs = logits.softmax(dim=-1)
    noise = ((1 - alpha_t) / probs.shape[-1]).unsqueeze(1)  # q_t(y | k), y != k
    current = noisy.unsqueeze(1)
    odds = probs / noise.to(probs)
    odds = odds.scatter(1, current, probs.gather(1, current) / (alpha_t.unsqueeze(1) + noise).to(probs))
    return torch.log(noise.to(probs) * odds.sum(dim=1, keepdim=True) + alpha_t.unsqueeze(1).to(probs) * odds)


def score_entropy(
    log_score: Tensor,
    targets: Tensor,
    noisy: Tensor,
    alpha_t: Tensor,
    alpha_derivative: Tensor,
    mask_token_id: int | None = None,
) -> Tensor:
    """Diffusion-weighted denoising score entropy of SEDD (https://arxiv.org/abs/2310.16834).

    The integrand -alpha' / alpha times the sum over y != x_t of Q(x_t, y) (exp(s_y) - r_y s_y + r_y (log r_y - 1)),
    with r_y = q_t(y | x_0) / q_t(x_t | x_0). The rates Q of the process are 1 from a token to the mask, or 1 / V from
    any token to any other.

    With `log_scores_from_logits` this is `absorbing_bound` in continuous time, and `uniform_bound` under the marginal
    rule. Training has no option for it: it would be the same loss.

    Args:
        log_score: (N, V) log-ratios s_y of probabilities at the time of `noisy`; the entry of x_t is ignored.
        targets, noisy: (N,) clean and corrupted tokens.
        alpha_t, alpha_derivative: (N,) at the time of `noisy`; alpha above 0 and below 1.
        mask_token_id: of the absorbing kernel, where only masked tokens cost something; `None` is the uniform kernel.

    Returns:
        (N,) nats.
    """
    log_score = log_score.to(torch.promote_types(log_score.dtype, torch.float32))
    vocab_size, current = log_score.shape[-1], noisy.unsqueeze(1)
    speed = -alpha_derivative / alpha_t
    others = log_score.scatter(1, current, float("-inf")).exp().sum(dim=1)
    log_target = log_score.gather(1, targets.unsqueeze(1)).squeeze(1)
    if mask_token_id is not None:
        ratio = alpha_t / (1 - alpha_t)
        masked = noisy == mask_token_id
        constant, ratio = (ratio * (torch.log(ratio) - 1)).to(others), ratio.to(others)
        entropy = others - ratio * log_target.masked_fill(~masked, 0.0) + constant
        return speed.to(others) * entropy.masked_fill(~masked, 0.0)
    log_ratio = torch.log1p(vocab_size * alpha_t / (1 - alpha_t))  # of a token that is x_0 to one that is not
    ratio = log_ratio.exp()
    sum_others = log_score.scatter(1, current, 0.0).sum(dim=1)
    low = (-log_ratio - 1) / ratio
    clean = others - sum_others / ratio.to(others) + ((vocab_size - 1) * low).to(others)
    high = ratio * (log_ratio - 1) - (vocab_size - 2)
    corrupted = others - (sum_others - log_target) - ratio.to(others) * log_target + high.to(others)
    return (speed / vocab_size).to(others) * torch.where(noisy == targets, clean, corrupted)
