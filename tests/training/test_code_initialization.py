"""Denoisers that begin with codebooks: their embeddings are an image of what the decoder reads."""

import pytest
import torch

from text_diffusers import AutoencoderVQTextModel, CodeTransformerModel
from text_diffusers.training.initialization import start_from_codebooks

FINE, COARSE, RATIO = 9, 6, 2


def autoencoder(**changes):
    torch.manual_seed(0)
    sizes = {
        "num_fine_codes": FINE,
        "num_coarse_codes": COARSE,
        "coarse_ratio": RATIO,
        "window_length": 8,
    }
    model = AutoencoderVQTextModel(20, 16, num_attention_heads=2, codebook_dim=4, **sizes | changes)
    for name, codebook in model.named_buffers():
        if name.endswith("_codebook.embed"):
            torch.nn.init.normal_(codebook)
    return model.eval()


def fine_denoiser(width, **told):
    told = told or {"num_context_codes": COARSE, "context_ratio": RATIO}
    return CodeTransformerModel(FINE + 1, width, num_layers=1, num_attention_heads=2, **told)


@pytest.mark.parametrize("width", [16, 32])
@torch.no_grad()
def test_code_and_plan_together_are_an_image_of_what_the_decoder_reads(width):
    """A rotation keeps all distances, so those of sums of embeddings are those of the decoder's inputs, scaled."""
    encoder, denoiser = autoencoder(), fine_denoiser(width)
    start_from_codebooks(denoiser, encoder, "fine")
    fine, coarse = torch.randint(FINE, (5, 4)), torch.randint(COARSE, (5, 2))
    read = []
    handle = encoder.decoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    encoder.decode(fine, coarse)
    handle.remove()
    embedded = denoiser.code_embedding(fine) + denoiser._context(fine, coarse)
    true, found = (torch.pdist(x.flatten(0, 1)) for x in (read[0], embedded))
    torch.testing.assert_close(found / found.mean(), true / true.mean(), rtol=1e-4, atol=1e-5)
    spread = (
        denoiser.code_embedding.weight[:FINE].var()
        + denoiser.context_embedding.weight[:COARSE].var()
    )
    assert spread == pytest.approx(1.0, rel=1e-4)


@torch.no_grad()
def test_what_no_codebook_has_stays_as_it_was():
    encoder, denoiser, other = autoencoder(), fine_denoiser(16), fine_denoiser(16)
    other.load_state_dict(denoiser.state_dict())
    start_from_codebooks(denoiser, encoder, "fine")
    assert torch.equal(
        denoiser.code_embedding.weight[FINE], other.code_embedding.weight[FINE]
    )  # the mask
    assert torch.equal(
        denoiser.context_embedding.weight[COARSE], other.context_embedding.weight[COARSE]
    )
    assert torch.equal(denoiser.head.weight[FINE], other.head.weight[FINE])
    assert all(
        torch.equal(a, b)
        for a, b in zip(denoiser.blocks.parameters(), other.blocks.parameters(), strict=True)
    )


@torch.no_grad()
def test_coarse_codes_and_one_level_begin_with_their_own_vectors():
    encoder = autoencoder()
    coarse = CodeTransformerModel(COARSE + 1, 16, num_layers=1, num_attention_heads=2)
    start_from_codebooks(coarse, encoder, "coarse")
    vectors = encoder.code_vectors("coarse").mean(dim=1)
    torch.testing.assert_close(coarse.code_embedding.weight[:COARSE], vectors / vectors.std())
    one = autoencoder(coarse_ratio=None, num_coarse_codes=None)
    fine = CodeTransformerModel(FINE + 1, 16, num_layers=1, num_attention_heads=2)
    start_from_codebooks(fine, one, "fine")
    vectors = one.code_vectors("fine")[:, 0]
    torch.testing.assert_close(fine.code_embedding.weight[:FINE], vectors / vectors.std())
