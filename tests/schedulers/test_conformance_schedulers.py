"""Every scheduler is held to the laws of `SchedulerCommonTest`.

Shapes: B batch, L sequence length, E embedding width, V vocabulary size.
"""

import pytest
import torch
from support.conformance_schedulers import STEPS, SchedulerCase, SchedulerCommonTest

import text_diffusers
from text_diffusers import (
    AnnealedLangevinScheduler,
    LatentFlowEulerScheduler,
    LatentFlowHeunScheduler,
    ProbabilityFlowScheduler,
    ReverseSDEScheduler,
)

B, L, E, V = 3, 16, 8, 16
MASK = V - 1
GREEDY = {"temperature": 0.0}
NEAR = torch.stack([torch.arange(V - 1), torch.arange(1, V)])
NEIGHBORS = {
    "edges": torch.cat([NEAR, NEAR.flip(0)], dim=1),
    "rates": torch.full((2 * (V - 1),), 0.5),
}
SCHEDULE = [1.0, 0.8, 0.3, 0.0]
TOKENS = torch.randint(0, MASK, (B, L), generator=torch.Generator().manual_seed(0))
LOGITS = torch.randn((B, L, V), generator=torch.Generator().manual_seed(1))


def token_case(name, arguments, other=None, betas="schedule", **changes):
    """Over tokens; where there is a mask, a quarter of the sample are masks."""
    masked = "mask_token_id" in arguments or "mask_token_id" in changes.get("step_arguments", {})
    sample = TOKENS.clone()
    if masked:
        sample[:, ::4] = MASK
    given = ({"schedule": SCHEDULE}, "schedule") if betas == "schedule" else betas
    return SchedulerCase(
        getattr(text_diffusers, name),
        arguments,
        sample,
        LOGITS,
        given,
        other=other or GREEDY,
        **changes,
    )


def embedding_case(name, other, **arguments):
    betas = torch.linspace(0.01, 0.5, 8, dtype=torch.float64).tolist()
    given = {"num_train_timesteps": 8, "beta_schedule": "custom", "trained_betas": betas}
    sample, prediction = torch.randn(
        (2, B, L, E), generator=torch.Generator().manual_seed(0)
    ).unbind()
    noisy = "DDPM" in name or arguments.get("algorithm_type") == "sde-dpmsolver++"
    return SchedulerCase(
        getattr(text_diffusers, name),
        {"num_train_timesteps": 100} | arguments,
        sample,
        prediction,
        (given, "trained_betas"),
        other=other,
        draws=noisy,
        over_tokens=False,
    )


def latent_case(scheduler_class, other, has_betas=False, **changes):
    """On the straight path, or with betas."""
    case = embedding_case("EmbeddingDDIMScheduler", other)
    case.scheduler_class = scheduler_class
    if not has_betas:
        case.betas = None
    else:
        case.arguments |= {"beta_schedule": "cosine"}
    for field, value in changes.items():
        setattr(case, field, value)
    return case


def heun_calls(steps):
    return 2 * steps - 1


ABSORBING, UNIFORM = {"mask_token_id": MASK}, {"vocab_size": V}
IN_STEPS = {"vocab_size": V, "num_train_timesteps": 12}
CLUSTERED = {"mask_token_id": MASK, "vocab_size": V + 3, "clusters": torch.arange(MASK) % 3}
JUMPS = torch.full((V, V), 1 / V, dtype=torch.float64)
BETAS = [0.2, 0.4, 0.5, 0.6, 0.7, 0.9]
MATRIX = ({"num_train_timesteps": 6, "betas": BETAS}, "betas")
EPSILON = {"prediction_type": "epsilon"}
SAMPLE = {"prediction_type": "sample"}
CASES = {
    "absorbing": token_case("D3PMAbsorbingScheduler", ABSORBING),
    "absorbing_in_steps": token_case(
        "D3PMAbsorbingScheduler", ABSORBING | {"num_train_timesteps": 12}, {"top_k": 1}
    ),
    "uniform": token_case("D3PMUniformScheduler", UNIFORM),
    "uniform_plug_in": token_case("D3PMUniformScheduler", UNIFORM | {"reverse_rule": "plug_in"}),
    "bit_flip": token_case("D3PMBitFlipScheduler", IN_STEPS),
    "bit_flip_codes": token_case(
        "D3PMBitFlipScheduler", IN_STEPS | {"codes": torch.arange(V).flip(0)}
    ),
    "hierarchical": token_case("D3PMHierarchicalScheduler", CLUSTERED),
    "hierarchical_in_steps": token_case(
        "D3PMHierarchicalScheduler", CLUSTERED | {"num_train_timesteps": 12, "cluster_power": 4.0}
    ),
    "hybrid": token_case(
        "D3PMHybridScheduler", IN_STEPS | {"vocab_size": MASK, "mask_token_id": MASK}
    ),
    "matrix_gaussian": token_case(
        "D3PMMatrixScheduler", IN_STEPS | {"beta_end": 0.5}, betas=MATRIX
    ),
    "matrix_band": token_case(
        "D3PMMatrixScheduler",
        IN_STEPS | {"kernel": "band", "bandwidth": 3, "beta_end": 0.9},
        betas=MATRIX,
    ),
    "matrix_given": token_case(
        "D3PMMatrixScheduler",
        IN_STEPS | {"kernel": "matrix", "transitions": JUMPS, "beta_end": 0.9},
        betas=MATRIX,
    ),
    "neighbors": token_case("D3PMNeighborScheduler", IN_STEPS | NEIGHBORS),
    "confidence": token_case("ConfidenceScheduler", ABSORBING, {"order": "random"}),
    "even": token_case("EvenRevealScheduler", ABSORBING, {"temperature": 0.5}),
    "first_hitting": token_case(
        "FirstHittingScheduler", ABSORBING, {"temperature": 0.5}, least_steps=L // 4
    ),
    "remdm": token_case("ReMDMScheduler", ABSORBING, {"eta": 0.5}),
    "remdm_confidence": token_case(
        "ReMDMScheduler", ABSORBING | {"remasking": "confidence", "eta": 0.9}, {"eta": 0.0}
    ),
    "token_ddim": token_case("TokenDDIMScheduler", UNIFORM, {"eta": 1.0}),
    "corrector_absorbing": token_case(
        "PredictorCorrectorAbsorbingScheduler", ABSORBING, {"corrector_length": 2.0}
    ),
    "corrector_uniform": token_case(
        "PredictorCorrectorUniformScheduler", UNIFORM, {"corrector_steps": 0}
    ),
    "ddim": embedding_case("EmbeddingDDIMScheduler", EPSILON),
    "ddpm": embedding_case("EmbeddingDDPMScheduler", {"variance_type": "fixed_large"}),
    "dpm_solver": embedding_case("EmbeddingDPMSolverScheduler", EPSILON),
    "dpm_solver_sde": embedding_case(
        "EmbeddingDPMSolverScheduler", EPSILON, algorithm_type="sde-dpmsolver++"
    ),
    "block_ancestral": token_case(
        "BlockAncestralScheduler",
        {"block_length": L, "num_inference_steps": STEPS},
        betas=None,
        step_arguments={"mask_token_id": MASK, "temperature": 1.0},
        counts_up=True,
    ),
}
CASES["block_ancestral"].other = {}  # what its steps depend on is told to each of them

CASES |= {
    "flow_euler": latent_case(LatentFlowEulerScheduler, SAMPLE),
    "flow_heun": latent_case(LatentFlowHeunScheduler, {"shift": 2.0}, order=2, calls=heun_calls),
    "probability_flow": latent_case(ProbabilityFlowScheduler, SAMPLE, order=2, calls=heun_calls),
    "probability_flow_betas": latent_case(
        ProbabilityFlowScheduler, EPSILON, has_betas=True, order=2, calls=heun_calls
    ),
    "reverse_sde": latent_case(ReverseSDEScheduler, {"stochasticity": 0.5}, draws=True),
    "reverse_sde_betas": latent_case(ReverseSDEScheduler, EPSILON, has_betas=True, draws=True),
    "langevin": latent_case(AnnealedLangevinScheduler, {"step_size": 0.1}, draws=True),
    "langevin_betas": latent_case(
        AnnealedLangevinScheduler, {"predictor": True}, has_betas=True, draws=True
    ),
}


def test_every_scheduler_is_held_to_them():
    public = {
        getattr(text_diffusers, name)
        for name in text_diffusers.__all__
        if name.endswith("Scheduler")
    }
    assert {case.scheduler_class for case in CASES.values()} == public


class TestSchedulers(SchedulerCommonTest):
    @pytest.fixture(params=CASES)
    def case(self, request):
        return CASES[request.param]
