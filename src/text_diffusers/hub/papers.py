"""The papers behind the parts of a pipeline: those that the docstrings of their classes and modules cite."""

import re
import sys
from typing import Any

from text_diffusers.models.language_model import uncompiled

ARXIV = re.compile(r"arxiv\.org/abs/(\d{4}\.\d{5})")

# By arXiv number, that is by date
TITLES = {
    "1703.10960": "Learning Discourse-level Diversity for Neural Dialog Models using Conditional Variational "
    "Autoencoders",
    "1906.00446": "Generating Diverse High-Fidelity Images with VQ-VAE-2",
    "1907.05600": "Generative Modeling by Estimating Gradients of the Data Distribution",
    "2006.11239": "Denoising Diffusion Probabilistic Models",
    "2010.02502": "Denoising Diffusion Implicit Models",
    "2011.13456": "Score-Based Generative Modeling through Stochastic Differential Equations",
    "2104.09864": "RoFormer: Enhanced Transformer with Rotary Position Embedding",
    "2105.05233": "Diffusion Models Beat GANs on Image Synthesis",
    "2107.03006": "Structured Denoising Diffusion Models in Discrete State-Spaces",
    "2202.04200": "MaskGIT: Masked Generative Image Transformer",
    "2205.14217": "Diffusion-LM Improves Controllable Text Generation",
    "2205.14987": "A Continuous Time Framework for Discrete Denoising Models",
    "2207.12598": "Classifier-Free Diffusion Guidance",
    "2208.04202": "Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning",
    "2209.03003": "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
    "2210.08933": "DiffuSeq: Sequence to Sequence Text Generation with Diffusion Models",
    "2211.01095": "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
    "2211.15089": "Continuous diffusion for categorical data",
    "2212.09412": "Empowering Diffusion Models on the Embedding Space for Text Generation",
    "2212.09462": "Latent Diffusion for Language Generation",
    "2212.09748": "Scalable Diffusion Models with Transformers",
    "2305.15025": "Dior-CVAE: Pre-trained Language Models and Diffusion Priors for Variational Dialog Generation",
    "2305.18619": "Likelihood-Based Diffusion Language Models",
    "2308.15459": "ParaGuide: Guided Diffusion Paraphrasers for Plug-and-Play Textual Style Transfer",
    "2310.16834": "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution",
    "2406.07524": "Simple and Effective Masked Diffusion Language Models",
    "2409.02908": "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate "
    "Categorical Sampling",
    "2410.17891": "Scaling Diffusion Language Models via Adaptation from Autoregressive Models",
    "2412.10193": "Simple Guidance Mechanisms for Discrete Diffusion Models",
    "2502.09992": "Large Language Diffusion Models",
    "2503.00307": "Remasking Discrete Diffusion Models with Inference-Time Scaling",
    "2503.04482": "Generalized Interpolating Discrete Diffusion",
    "2503.09573": "Block Diffusion: Interpolating Between Autoregressive and Diffusion Language Models",
    "2505.22618": "Fast-dLLM: Training-free Acceleration of Diffusion LLM by Enabling KV Cache and Parallel Decoding",
    "2505.24857": "Accelerated Sampling from Masked Diffusion Models via Entropy Bounded Unmasking",
    "2506.10892": "The Diffusion Duality",
    "2506.19037": "Plan for Speed: Dilated Scheduling for Masked Diffusion Language Models",
    "2508.15487": "Dream 7B: Diffusion Large Language Models",
    "2510.06303": "SDAR: A Synergistic Diffusion-AutoRegression Paradigm for Scalable Sequence Generation",
    "2510.08632": "Next Semantic Scale Prediction via Hierarchical Diffusion Language Models",
    "2512.15745": "LLaDA2.0: Scaling Up Diffusion Language Models to 100B",
    "2605.22765": "Uniform Diffusion Models Revisited: Leave-One-Out Denoiser and Absorbing State Reformulation",
}

# By what the names of published models begin with on the Hub
PUBLISHED = {
    "Dream-org/Dream-": "2508.15487",
    "GSAI-ML/LLaDA-": "2502.09992",
    "JetLM/SDAR-": "2510.06303",
    "diffusionfamily/diffugpt": "2410.17891",
    "diffusionfamily/diffullama": "2410.17891",
    "dvruette/gidd-": "2503.04482",
    "inclusionAI/LLaDA2.0-": "2512.15745",
    "kuleshov-group/bd3lm-": "2503.09573",
    "kuleshov-group/mdlm-": "2406.07524",
    "kuleshov-group/udlm-": "2412.10193",
    "louaaron/sedd-": "2310.16834",
    "s-sahoo/duo": "2506.10892",
}


def papers_of(*parts: Any) -> list[tuple[str, str]]:
    """`(arXiv number, title)` of the papers that the classes of these objects cite, in the order of the objects.

    The title is the number where it is not known.

    Example:
        >>> from text_diffusers import D3PMUniformScheduler
        >>> from text_diffusers.hub.papers import papers_of
        >>> papers_of(D3PMUniformScheduler(10))[0]
        ('2107.03006', 'Structured Denoising Diffusion Models in Discrete State-Spaces')
    """
    # A dict keeps the order, and each paper once.
    numbers: dict[str, None] = {}
    for part in parts:
        # A scheduler that extends another rests on its paper, too.
        for owner in type(uncompiled(part)).__mro__:
            module = owner.__module__
            if module.startswith("text_diffusers."):
                # The paper stands either at the head of the file or at the class.
                cited = f"{sys.modules[module].__doc__} {owner.__doc__}"
                numbers |= dict.fromkeys(ARXIV.findall(cited))
    return [(number, TITLES.get(number, f"arXiv:{number}")) for number in numbers]


def papers_of_published(name: str | None) -> list[tuple[str, str]]:
    """`(arXiv number, title)` of the paper of a model that others published, by its name on the Hub.

    Example:
        >>> from text_diffusers.hub.papers import papers_of_published
        >>> papers_of_published("GSAI-ML/LLaDA-8B-Instruct")
        [('2502.09992', 'Large Language Diffusion Models')]
    """
    beginnings = [beginning for beginning in PUBLISHED if str(name).startswith(beginning)]
    return [(PUBLISHED[beginning], TITLES[PUBLISHED[beginning]]) for beginning in beginnings]
