"""Every model is held to the laws of `conformance_models`.

Shapes: B batch, L sequence length, D width, V vocabulary size.
"""

import torch
from diffusers.loaders import PeftAdapterMixin
from support.conformance_models import (
    AttentionTesterMixin,
    LoraTesterMixin,
    ModelCase,
    ModelTesterMixin,
    TorchCompileTesterMixin,
    TrainingTesterMixin,
)
from support.latent_models import SIZES as LATENT_SIZES
from support.latent_models import decoder_config, encoder_config

import text_diffusers
from text_diffusers import (
    AutoencoderTextLatentModel,
    AutoencoderVQTextModel,
    CodeTransformerModel,
    EmbeddingTransformerModel,
    LatentTransformerModel,
    PromptEncoderModel,
    TextClassifierModel,
    TextTransformerModel,
)

B, L, V = 2, 8, 20
SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "max_length": 16}
HALF = torch.full((B,), 0.5)
MASK = torch.tensor([[1] * L, [1] * (L - 3) + [0] * 3])
LABELS = torch.tensor([0, 1])


def ids(size=V, shape=(B, L)):
    return torch.randint(0, size, shape, generator=torch.Generator().manual_seed(0))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def text_case(inputs=None, reads_weights=False, **arguments):
    told = {"input_ids": ids(), "timestep": HALF} | (inputs or {})
    sizes = {"vocab_size": V} | SIZES | arguments
    return ModelCase(
        TextTransformerModel, sizes, lambda: dict(told), (B, L, V), reads_weights=reads_weights
    )


def latent_case():
    """An autoencoder whose encoder is frozen, and whose decoder is told the means of the latents."""
    parts = {
        "encoder_config": encoder_config(V),
        "decoder_config": decoder_config("gpt2", tie_word_embeddings=False),
    }
    encoder = AutoencoderTextLatentModel(**parts | LATENT_SIZES).encoder
    frozen = {f"encoder.{name}" for name, _ in encoder.named_parameters()}
    not_asked = {"decoder.no_latent", "decoder.no_word", "logvar_out.weight", "logvar_out.bias"}
    return ModelCase(
        AutoencoderTextLatentModel,
        parts | LATENT_SIZES,
        lambda: {"input_ids": ids(), "decoder_ids": ids(), "attention_mask": MASK},
        (B, L, V),
        unused=frozen | not_asked,
        reads_weights=True,
    )


CODES = {"num_context_codes": 6, "context_ratio": 2, "prompt_size": 16}
AUTOENCODER = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "window_length": L,
    "codebook_dim": 4,
}
ONE_LEVEL = {"coarse_ratio": None, "num_coarse_codes": None}
CASES = {
    "text": text_case(),
    "text_conditioned": text_case(
        {"class_labels": LABELS, "attention_mask": MASK}, time_conditioning=True, num_classes=2
    ),
    "text_tied": text_case(tie_embeddings=True, reads_weights=True),
    "text_blocks": text_case(block_length=4),
    "embedding": ModelCase(
        EmbeddingTransformerModel,
        {"vocab_size": V, "embedding_dim": 8} | SIZES,
        lambda: {
            "sample": normal(B, L, 8),
            "timestep": torch.tensor([3, 500]),
            "attention_mask": MASK,
        },
        (B, L, 8),
        unused={"token_embedding.weight", "self_condition_in.weight"},
        reads_weights=True,
    ),
    "embedding_words": ModelCase(
        EmbeddingTransformerModel,
        {"vocab_size": V, "embedding_dim": 8, "categorical_output": True, "num_classes": 2} | SIZES,
        lambda: (
            {"sample": normal(B, L, 8), "timestep": torch.tensor([3, 500]), "class_labels": LABELS}
            | {"self_condition": normal(B, L, 8).flip(0)}
        ),
        (B, L, 8),
        reads_weights=True,
    ),
    "code": ModelCase(
        CodeTransformerModel,
        {"vocab_size": 9} | CODES | SIZES,
        lambda: {
            "input_ids": ids(9),
            "context_ids": ids(6, (B, L // 2)),
            "prompt_states": normal(B, 3, 16),
            "prompt_mask": torch.ones(B, 3, dtype=torch.long),
        },
        (B, L, 9),
    ),
    "latent": ModelCase(
        LatentTransformerModel,
        {"latent_dim": 8, "num_latents": 3, "num_classes": 2, "prompt_size": 16}
        | {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2},
        lambda: {
            "sample": normal(B, 3, 8),
            "timestep": torch.tensor([3.5, 500.0]),
            "class_labels": LABELS,
            "prompt_states": normal(B, 4, 16),
            "prompt_mask": torch.tensor([[1] * 4, [0] * 4]),
            "self_condition": normal(B, 3, 8).flip(0),
        },
        (B, 3, 8),
    ),
    "classifier": ModelCase(
        TextClassifierModel,
        {"vocab_size": V, "num_classes": 3} | SIZES,
        lambda: {"input_ids": ids(), "timestep": HALF, "attention_mask": MASK},
        (B, 3),
    ),
    "classifier_embeddings": ModelCase(
        TextClassifierModel,
        {"embedding_dim": 8, "num_classes": 3, "num_train_timesteps": 2000} | SIZES,
        lambda: {"inputs_embeds": normal(B, L, 8), "timestep": torch.tensor([3, 500])},
        (B, 3),
    ),
    "prompt_encoder": ModelCase(
        PromptEncoderModel,
        {"vocab_size": V} | SIZES,
        lambda: {"input_ids": ids(), "attention_mask": MASK},
        (B, L, 32),
    ),
    "autoencoder": ModelCase(
        AutoencoderVQTextModel,
        {"vocab_size": V, "hidden_size": 32, "num_attention_heads": 2, "coarse_ratio": 2}
        | {"num_fine_codes": 7, "num_coarse_codes": 5}
        | AUTOENCODER,
        lambda: {"input_ids": ids()},
        (B, L, V),
        unused={"topic_out.weight", "topic_out.bias"},
        reads_weights=True,
    ),
    "autoencoder_fsq": ModelCase(
        AutoencoderVQTextModel,
        {
            "vocab_size": V,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "quantizer": "fsq",
            "fine_levels": [4, 4],
        }
        | {"num_fine_codes": 16}
        | ONE_LEVEL
        | AUTOENCODER,
        lambda: {"input_ids": ids()},
        (B, L, V),
        unused={
            "quantize_fine.layer.project_out.weight"
        },  # the codes of these weights are vectors of zeros
        reads_weights=True,
    ),
    "autoencoder_latent": latent_case(),
}
WITH_LORA = [name for name, case in CASES.items() if issubclass(case.model_class, PeftAdapterMixin)]


def test_every_model_is_held_to_them():
    public = {
        getattr(text_diffusers, name) for name in text_diffusers.__all__ if name.endswith("Model")
    }
    assert {case.model_class for case in CASES.values()} == public


class TestModels(ModelTesterMixin, TrainingTesterMixin, AttentionTesterMixin):
    cases = CASES
    few = ("text_conditioned", "autoencoder")


class TestModelsWithLora(LoraTesterMixin):
    cases = {name: CASES[name] for name in WITH_LORA}
    few = ("text",)


class TestCompiledModels(TorchCompileTesterMixin):
    cases = {name: CASES[name] for name in ("text_conditioned", "classifier", "prompt_encoder")}
