"""Calls of one pipeline that are under way at once: each writes what it writes alone, and owns what callbacks set."""

import copy
import itertools
import pickle
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from conftest import SENTENCES, make_denoiser, make_embedding_model, slow
from support.latent_pipes import make_latent_denoiser, make_latent_pipe
from support.two_level_pipes import make_two_level

from text_diffusers import (
    D3PMAbsorbingScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    ParaGuidePipeline,
    TextDiffusionPipeline,
)
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.samplers import ABSORBING, EMBEDDINGS, FLOW, LATENTS, UNIFORM, with_sampler

TOKENIZER = train_tokenizer(SENTENCES, vocab_size=300)
WORDS = min(TOKENIZER.mask_token_id, TOKENIZER.pad_token_id)

# Three calls that differ in whatever a call may be told: steps, prompts, labels, scales, lengths
LABELLED = [
    {"class_labels": 0, "max_new_tokens": 5, "num_inference_steps": 7},
    {"class_labels": [1, 0], "guidance_scale": 3.0, "max_new_tokens": 6, "num_inference_steps": 9},
    {"prompt": "the cat", "class_labels": 1, "length": 7, "num_inference_steps": 6},
]
SHAPED = [*LABELLED[:2], LABELLED[2] | {"temperature": 0.5}]
SOURCES = [
    {"source": "the cat sat", "max_new_tokens": 5, "num_inference_steps": 4},
    {"source": ["the dog", "a bird sang"], "length": 4, "num_inference_steps": 6},
    {"source": "she was late", "max_new_tokens": 6, "num_inference_steps": 5, "strength": 0.0},
]
CODES = [
    {"prompt": "the cat", "num_inference_steps": (3, 2)},
    {"prompt": ["a bird", "she"], "guidance_scale": (3.0, 2.0), "num_inference_steps": (2, 5)},
    {"prompt": "the dog", "max_new_tokens": 6, "num_inference_steps": 4, "temperature": 0.7},
]
LATENT_CALLS = [
    {"source": "the cat", "max_new_tokens": 6, "num_inference_steps": 7},
    {"class_labels": [1, 0], "guidance_scale": 3.0, "num_inference_steps": 9, "temperature": 0.7},
    {"prompt": "the dog", "source": "she", "max_new_tokens": 5, "num_inference_steps": 6},
]
STOCK_TOKENS = {
    "block_refinement": diffusers.BlockRefinementScheduler,
    "discrete_ddim": diffusers.DiscreteDDIMScheduler,
    "stock_entropy_bound": diffusers.EntropyBoundScheduler,
}
STOCK_EMBEDDINGS = {
    "unipc": diffusers.UniPCMultistepScheduler,
    "deis": diffusers.DEISMultistepScheduler,
    "stock_dpm": diffusers.DPMSolverMultistepScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
}


@dataclass
class Case:
    """A pipeline, a sampler, and calls of it that differ in their arguments."""

    kind: str
    sampler: str
    requests: list[dict[str, Any]]

    def make(self) -> Any:
        pipe = MAKERS[self.kind](self.sampler)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def over_tokens(sampler: str, **sizes: Any) -> TextDiffusionPipeline:
    denoiser = make_denoiser(TOKENIZER, num_classes=2, **sizes)
    if sampler in STOCK_TOKENS:
        return TextDiffusionPipeline(TOKENIZER, denoiser, STOCK_TOKENS[sampler]())
    if sampler == "neighbors":
        table = torch.randn(WORDS, 4, generator=seeded(0))
        scheduler = D3PMNeighborScheduler.from_embeddings(table, 3, num_train_timesteps=20)
        return TextDiffusionPipeline(TOKENIZER, denoiser, scheduler)

    scheduler = D3PMAbsorbingScheduler(TOKENIZER.mask_token_id)
    if sampler.startswith("uniform_"):
        scheduler = D3PMUniformScheduler(WORDS)
    pipe = TextDiffusionPipeline(TOKENIZER, denoiser, scheduler)
    return with_sampler(pipe, sampler.removeprefix("uniform_"))


def over_embeddings(sampler: str) -> DiffusionLMPipeline:
    denoiser = make_embedding_model(
        TOKENIZER, num_classes=2, self_conditioning=True, prediction_type="epsilon"
    )
    config = EmbeddingDDIMScheduler(prediction_type="epsilon").config
    if sampler in STOCK_EMBEDDINGS:
        scheduler = STOCK_EMBEDDINGS[sampler].from_config(config)
        return DiffusionLMPipeline(TOKENIZER, denoiser, scheduler)
    pipe = DiffusionLMPipeline(TOKENIZER, denoiser, EmbeddingDDIMScheduler.from_config(config))
    return with_sampler(pipe, sampler)


def paraphrases(sampler: str) -> ParaGuidePipeline:
    if sampler == "ddim":
        denoiser = make_embedding_model(TOKENIZER, partial_noising=True)
        return ParaGuidePipeline(TOKENIZER, denoiser, EmbeddingDDIMScheduler())
    denoiser = make_denoiser(TOKENIZER)
    return ParaGuidePipeline(TOKENIZER, denoiser, D3PMAbsorbingScheduler(TOKENIZER.mask_token_id))


def over_latents(prediction_type: str, sampler: str) -> Any:
    denoiser = make_latent_denoiser(
        prediction_type=prediction_type, num_classes=2, self_conditioning=True
    )
    return with_sampler(make_latent_pipe(TOKENIZER, denoiser), sampler)


MAKERS = {
    "tokens": over_tokens,
    "blocks": lambda sampler: over_tokens(sampler, block_length=4),
    "embeddings": over_embeddings,
    "paraphrases": paraphrases,
    "two_levels": lambda sampler: with_sampler(make_two_level(TOKENIZER), sampler),
    "flow": lambda sampler: over_latents("flow", sampler),
    "latents": lambda sampler: over_latents("epsilon", sampler),
}
TOKEN_SAMPLERS = [
    *ABSORBING,
    *[f"uniform_{name}" for name in UNIFORM],
    "neighbors",
    *STOCK_TOKENS,
]
CASES = [
    *[Case("tokens", name, SHAPED if name in ABSORBING else LABELLED) for name in TOKEN_SAMPLERS],
    *[Case("blocks", name, LABELLED) for name in ("ancestral", "first_hitting", "confidence")],
    *[Case("embeddings", name, LABELLED) for name in (*EMBEDDINGS, *STOCK_EMBEDDINGS)],
    *[Case("paraphrases", name, SOURCES) for name in ("ancestral", "ddim")],
    *[Case("two_levels", name, CODES) for name in ("ancestral", "remdm", "predictor_corrector")],
    *[Case("flow", name, LATENT_CALLS) for name in FLOW],
    *[Case("latents", name, LATENT_CALLS) for name in LATENTS],
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Some with a state of their own
FAST = {
    "tokens": ("first_hitting", "confidence", "uniform_ancestral", "block_refinement"),
    "blocks": (),
    "embeddings": ("dpm_solver",),
    "paraphrases": ("ancestral",),
    "two_levels": ("ancestral",),
    "flow": (),
    "latents": ("dpm_solver",),
}


def name_of(case: Case) -> str:
    return f"{case.kind}-{case.sampler}"


@pytest.fixture
def eager_threads():
    """Threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize(
    "case",
    [case if case.sampler in FAST[case.kind] else slow(case) for case in CASES],
    ids=name_of,
)
def test_calls_under_way_at_once_write_what_they_write_alone(case, eager_threads):
    """In threads, as streams taken in turn, and as a stream that goes on after other calls."""
    alone = [
        case.make()(**request, generator=seeded(seed)).texts
        for seed, request in enumerate(case.requests)
    ]
    pipe = case.make()

    # Streams in turn, each until its end; the first one is begun before the others.
    begun = pipe.stream(**case.requests[0], generator=seeded(0))
    next(begun)
    streams = [pipe.stream(**r, generator=seeded(seed)) for seed, r in enumerate(case.requests)]
    last = [None] * len(streams)
    for frames in itertools.zip_longest(*streams):
        last = [frame or before for frame, before in zip(frames, last, strict=True)]
    assert last == alone
    assert list(begun)[-1] == alone[0]

    # More threads than requests, so that some have the same steps and others do not.
    def write(number):
        seed = number % len(case.requests)
        return pipe(**case.requests[seed], generator=seeded(seed)).texts

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(4))) == [*alone, alone[0]]


def test_what_a_callback_sets_concerns_its_own_call(eager_threads):
    """Each of four calls ends after a step of its own, and sees its own scale, steps and scheduler."""
    pipe = Case("tokens", "ancestral", []).make()
    steps_of = defaultdict(list)

    def write(number):
        num_steps = 10 + number

        def callback(pipe, step, timestep, tensors):
            steps_of[number].append(step)
            assert pipe.num_timesteps == len(pipe.scheduler.timesteps) == num_steps
            assert pipe.guidance_scale == 2.0 + number
            pipe._interrupt = step == number

        return pipe(
            class_labels=1,
            guidance_scale=2.0 + number,
            max_new_tokens=8,
            num_inference_steps=num_steps,
            callback_on_step_end=callback,
        )

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert steps_of == {number: list(range(number + 1)) for number in range(4)}


def test_outside_of_a_call_its_attributes_are_those_of_all_calls_under_way():
    """As a button that stops what is being written; later calls begin anew."""
    pipe = Case("tokens", "ancestral", []).make()
    streams = [pipe.stream(max_new_tokens=8, num_inference_steps=9) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert pipe.num_timesteps == 9 and not pipe.interrupt

    # Copies have no calls under way.
    for other in (copy.copy(pipe), copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        other._interrupt = True
    assert all(len(next(stream)) == 1 for stream in streams)

    pipe._interrupt = True
    assert [list(stream) for stream in streams] == [[], []]
    assert len(list(pipe.stream(max_new_tokens=8, num_inference_steps=3))) == 3


def test_a_scheduler_shows_the_grid_of_the_last_step_and_keeps_its_settings():
    pipe = Case("tokens", "ancestral", []).make()
    scheduler = pipe.scheduler
    config = dict(scheduler.config)

    def warm(pipe, step, timestep, tensors):
        assert len(pipe.scheduler.timesteps) == 6
        assert pipe.scheduler.config.temperature == 0.5

    pipe(max_new_tokens=4, num_inference_steps=6, temperature=0.5, callback_on_step_end=warm)

    def cool(pipe, step, timestep, tensors):
        assert pipe.scheduler is not scheduler
        pipe.scheduler.register_to_config(temperature=0.0)

    pipe(max_new_tokens=4, num_inference_steps=5, callback_on_step_end=cool)
    assert pipe.scheduler is scheduler and len(scheduler.timesteps) == 5
    assert dict(scheduler.config) == config

    # Of another one that is put in its place, a stream that is under way takes no notice.
    request = {"max_new_tokens": 4, "num_inference_steps": 5}
    expected = pipe(**request, generator=seeded(3)).texts
    stream = pipe.stream(**request, generator=seeded(3))
    next(stream)
    pipe.scheduler = D3PMUniformScheduler(WORDS)
    assert list(stream)[-1] == expected
    assert pipe.config.scheduler[1] == "D3PMUniformScheduler"
