"""Laws of tokenizers whose padding and mask stand before the words, as BERT's: noise and texts of every kernel."""

import pytest
import torch
from conftest import make_denoiser
from diffusers import DiscreteDDIMScheduler
from support.masked_lms import byte_level_tokenizer, wordpiece_tokenizer

from text_diffusers import TextDiffusionPipeline
from text_diffusers.common.token_ids import never_written, noise_vocabulary
from text_diffusers.kernels import KERNELS, KernelConfig, make_scheduler
from text_diffusers.samplers import samplers_for, with_sampler

TOKENIZERS = {"wordpiece": wordpiece_tokenizer, "bytes": byte_level_tokenizer}


def make_pipe(kind, kernel="absorbing"):
    """A pipeline to whose denoiser all ids are equally likely."""
    tokenizer = TOKENIZERS[kind]()
    vectors = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    config = KernelConfig(
        mask_token_id=tokenizer.mask_token_id,
        num_tokens=noise_vocabulary(tokenizer),
        frequencies=lambda: torch.ones(len(tokenizer)),
        vectors=lambda: vectors,
        num_train_timesteps=30,
    )
    scheduler = make_scheduler(kernel, config)
    # States of the bit-flip kernel are a power of two.
    size = max(len(tokenizer), scheduler.config.get("vocab_size") or 0)
    denoiser = make_denoiser(tokenizer, vocab_size=size, time_conditioning=kernel != "absorbing")
    torch.nn.init.zeros_(denoiser.head.weight)
    return TextDiffusionPipeline(tokenizer, denoiser, scheduler)


def written_ids(pipe, **settings):
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "length": 24, "num_return_sequences": 12} | settings
    tokens = pipe(generator=torch.Generator().manual_seed(0), **settings).tokens
    return set(tokens.unique().tolist())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_kernel_writes_padding_or_masks(kind, kernel):
    pipe = make_pipe(kind, kernel)
    written = written_ids(pipe)
    assert written.isdisjoint(never_written(pipe.tokenizer))
    assert len(written) > 60  # of all others there are many


@pytest.mark.parametrize("kernel", ["absorbing", "uniform"])
def test_no_sampler_writes_them(kernel):
    pipe = make_pipe("wordpiece", kernel)
    for name in samplers_for(pipe):
        steps = {"num_inference_steps": 24} if name.startswith("first") else {}
        assert written_ids(with_sampler(pipe, name), **steps).isdisjoint(
            never_written(pipe.tokenizer)
        ), name


def test_a_stock_scheduler_of_uniform_noise_writes_none():
    pipe = make_pipe("wordpiece", "uniform")
    stock = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, DiscreteDDIMScheduler())
    assert written_ids(stock).isdisjoint(never_written(pipe.tokenizer))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_noise_is_drawn_from_all_ids_up_to_the_last_word(kind):
    tokenizer = TOKENIZERS[kind]()
    words = set(tokenizer.get_vocab().values()) - {*never_written(tokenizer)}
    assert noise_vocabulary(tokenizer) == max(words) + 1
