"""A Gaussian mixture, fitted by expectation-maximisation; scikit-learn does the work.

E: how much each Gaussian answers for each point. M: mean and covariance of each over the points it answers for.

Shapes: N points, K Gaussians.
"""

import math

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from laboratory.base import PointModel


class MixtureModel(PointModel):
    """K Gaussians with weights and covariances of their own.

    Args:
        num_components: K.
    """

    density_kind = "exact"
    weights: Tensor
    means: Tensor
    covariances: Tensor

    def __init__(self, num_components: int = 16):
        super().__init__()
        self.register_buffer("weights", torch.full((num_components,), 1 / num_components))
        self.register_buffer("means", torch.zeros(num_components, 2))
        self.register_buffer("covariances", torch.eye(2).repeat(num_components, 1, 1))

    def fit(self, points: Tensor, budget: int, batch_size: int) -> int:
        """EM until the likelihood stands still, which is long before the budget is spent."""
        seed = int(torch.randint(2**31, ()))
        fitted = GaussianMixture(len(self.weights), random_state=seed).fit(points.numpy())
        self.weights.copy_(torch.as_tensor(fitted.weights_))
        self.means.copy_(torch.as_tensor(fitted.means_))
        self.covariances.copy_(torch.as_tensor(fitted.covariances_))
        return fitted.n_iter_

    def sample(self, count: int) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True)
        factors = torch.linalg.cholesky(self.covariances)[which]  # (N, 2, 2)
        noise = torch.randn(count, 2, 1)
        return self.means[which] + (factors @ noise).squeeze(2)

    def log_density(self, points: Tensor) -> Tensor:
        factors = torch.linalg.cholesky(self.covariances)
        centred = points[:, None, :, None] - self.means[:, :, None]  # (N, K, 2, 1)
        whitened = torch.linalg.solve_triangular(factors, centred, upper=False)
        squares = whitened.square().sum(dim=(2, 3))  # (N, K)
        log_scales = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        log_kernels = -squares / 2 - log_scales - math.log(2 * math.pi)
        return (log_kernels + self.weights.log()).logsumexp(dim=1)
