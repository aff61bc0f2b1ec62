from .discrete import (
    absorbing_bound,
    absorbing_weight,
    absorbing_weight_discrete,
    reconstruction_loss,
    uniform_bound,
    uniform_bound_discrete,
)
from .distillation import distillation_divergence
from .embedding import (
    DiffusionLMLoss,
    anchor_loss,
    diffusion_lm_loss,
    noisy_start,
    prediction_target,
    prior_kl,
    reconstruction,
    reparameterize,
    simple_loss,
    transition_kl,
)
from .hierarchical import hierarchical_bound, hierarchical_loss
from .latent import gaussian_kl, with_free_bits
from .time_density import TIME_DENSITIES, draw_times, loss_aware_density, warped_density

__all__ = [
    "TIME_DENSITIES",
    "DiffusionLMLoss",
    "absorbing_bound",
    "absorbing_weight",
    "absorbing_weight_discrete",
    "anchor_loss",
    "diffusion_lm_loss",
    "distillation_divergence",
    "draw_times",
    "gaussian_kl",
    "hierarchical_bound",
    "hierarchical_loss",
    "loss_aware_density",
    "noisy_start",
    "prediction_target",
    "prior_kl",
    "reconstruction",
    "reconstruction_loss",
    "reparameterize",
    "simple_loss",
    "transition_kl",
    "uniform_bound",
    "uniform_bound_discrete",
    "warped_density",
    "with_free_bits",
]
