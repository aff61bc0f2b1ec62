"""Selected positions and attention of causal LMs of transformers, by architecture.

Shapes: B batch, L sequence length, N selected positions, V vocabulary size.
"""

import pytest
import torch
from support.language_models import make_language_model

from text_diffusers.models import LanguageModelDenoiser, Reading

# Of several makers, with what they do to their logits: biases, scales, caps.
ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {},
    "gpt_neox": {},
    "gemma": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "final_logit_softcapping": 2.0,
        "sliding_window": 4,
    },
    "mistral": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 4},
    "phi": {},
    "phi3": {},
    "olmo": {},
    "olmo2": {},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.5},
    "falcon": {},
    "starcoder2": {},
}


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_the_head_runs_at_the_asked_positions_and_says_what_the_whole_model_says(
    model_type, alignment
):
    reading = Reading(alignment=alignment, mask_token_id=4)
    model = make_language_model(model_type, reading, **ARCHITECTURES[model_type])
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(6, 40, (3, 9), generator=generator)  # (B, L)
    positions = torch.rand(tokens.shape, generator=generator) < 0.3
    positions[0, 0] = True

    whole = model(input_ids=tokens).logits  # (B, L, V)
    rows, columns = positions.nonzero(as_tuple=True)
    if alignment == "shifted":
        columns = (columns - 1).clamp(min=0)

    num_states = []
    model.get_output_embeddings().register_forward_hook(
        lambda layer, inputs, output: num_states.append(output.shape[:-1].numel())
    )
    logits = LanguageModelDenoiser(model)(tokens, positions=positions).logits  # (N, V)

    torch.testing.assert_close(logits, whole[rows, columns])
    assert num_states == [int(positions.sum())]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_a_bidirectional_reading_sees_all_tokens_but_padding(model_type):
    """Without padding transformers makes no mask, so an attention that is causal by itself would go unnoticed."""
    sizes = {
        name: size for name, size in ARCHITECTURES[model_type].items() if name != "sliding_window"
    }
    model = make_language_model(model_type, Reading(mask_token_id=4), **sizes)
    tokens = torch.randint(6, 40, (1, 6), generator=torch.Generator().manual_seed(0))
    every_pair = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    want = model(input_ids=tokens, attention_mask=every_pair).logits

    denoiser = LanguageModelDenoiser(model)
    torch.testing.assert_close(denoiser(tokens).logits, want, atol=1e-4, rtol=1e-4)

    padded = torch.cat([tokens, tokens[:, :3]], dim=1)
    real = torch.tensor([[1] * 6 + [0] * 3])
    logits = denoiser(padded, attention_mask=real).logits[:, :6]
    torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)
