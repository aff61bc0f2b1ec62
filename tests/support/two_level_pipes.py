"""Tiny pipelines over codes, and the exact law of what they write, by enumeration.

Shapes: n codes of a row, K codes, whose mask has id K.
"""

import itertools
from collections import defaultdict

import numpy as np
import torch
from transformers import BertConfig, BertModel

from text_diffusers import (
    AutoencoderVQTextModel,
    CodeTransformerModel,
    D3PMAbsorbingScheduler,
    PromptEncoderModel,
    TwoLevelVQDiffusionPipeline,
)

WIDTH = 16
SIZES = {"hidden_size": WIDTH, "num_attention_heads": 2}


def randomised(model, std):
    """The model with random weights and codebooks: zero-initialised layers would hide mistakes."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    for name, codebook in model.named_buffers():
        if name.endswith("_codebook.embed"):
            torch.nn.init.normal_(codebook)
    return model.eval()


def make_two_level(
    tokenizer,
    *,
    two=True,
    prompts="own",
    num_codes=(5, 7),
    patch_length=2,
    window_length=8,
    max_row=16,
    prompt_begins_text=False,
    num_layers=2,
):
    """A pipeline whose rows have `max_row` tokens at most; `prompts` are read by an encoder of its "own" or "bert"."""
    torch.manual_seed(0)
    num_coarse, num_fine = num_codes
    sizes = SIZES | {"prompt_size": WIDTH if prompts else None, "num_layers": num_layers}
    autoencoder = AutoencoderVQTextModel(
        len(tokenizer),
        patch_length=patch_length,
        coarse_ratio=2 if two else None,
        num_fine_codes=num_fine,
        num_coarse_codes=num_coarse if two else None,
        codebook_dim=4,
        window_length=window_length,
        num_encoder_layers=1,
        num_decoder_layers=2,
        **SIZES,
    )
    context = {"num_context_codes": num_coarse, "context_ratio": 2} if two else {}
    fine = CodeTransformerModel(
        num_fine + 1, max_length=max_row // patch_length, **sizes, **context
    )
    coarse = (
        CodeTransformerModel(num_coarse + 1, max_length=max_row // patch_length // 2, **sizes)
        if two
        else None
    )
    encoder = None
    if prompts == "own":
        encoder = PromptEncoderModel(len(tokenizer), max_length=8, **SIZES)
    if prompts == "bert":
        layers = {"num_hidden_layers": 1, "intermediate_size": 32, "max_position_embeddings": 8}
        encoder = BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES, **layers))
    randomised(autoencoder, std=0.5)
    for name, parameter in autoencoder.named_parameters():
        if name.endswith("bias"):  # biases, and not the codes, would say what is written
            torch.nn.init.zeros_(parameter)
    models = [
        None if model is None else randomised(model, std=0.3) for model in (fine, coarse, encoder)
    ]
    for model in (fine, coarse):
        for name, parameter in model.named_parameters() if model is not None else ():
            if ".prompt." in name:  # what a prompt says must show
                torch.nn.init.normal_(parameter, std=0.8)
    pipe = TwoLevelVQDiffusionPipeline(
        tokenizer,
        autoencoder,
        models[0],
        D3PMAbsorbingScheduler(num_fine),
        models[1],
        D3PMAbsorbingScheduler(num_coarse) if two else None,
        models[2],
        prompt_begins_text,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Calls:
    """What a model was asked."""

    def __init__(self, model):
        self.inputs = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.inputs.append((args, kwargs)), with_kwargs=True
        )

    @property
    def rows(self):
        return [len(args[0]) for args, _ in self.inputs]


def patterns(num_codes: int, length: int) -> np.ndarray:
    """((K + 1)^n, n) every row of codes and masks."""
    return np.array(list(itertools.product(range(num_codes + 1), repeat=length)))


@torch.no_grad()
def guided_tables(denoiser, length: int, scale: float, condition: dict) -> dict:
    """Probabilities (n, K) of clean codes for each pattern, guided; `condition` has one row."""
    num_codes = denoiser.config.vocab_size - 1
    rows = torch.tensor(patterns(num_codes, length))
    told = {name: value.expand(len(rows), *value.shape[1:]) for name, value in condition.items()}
    cond, uncond = (
        denoiser(rows, **told).logits.double().numpy(),
        denoiser(rows).logits.double().numpy(),
    )
    logits = (uncond + scale * (cond - uncond))[..., :num_codes]
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return dict(zip(map(tuple, rows.tolist()), probs, strict=True))


def ancestral_law(tables: dict, length: int, num_steps: int, start: tuple | None = None) -> dict:
    """Probability of each row at the end of the absorbing chain with a linear schedule."""
    num_codes = next(iter(tables.values())).shape[1]
    law = {start or (num_codes,) * length: 1.0}
    for step in range(num_steps):
        reveal = 1 / (num_steps - step)
        after = defaultdict(float)
        for row, mass in law.items():
            choices = []
            for place, code in enumerate(row):
                if code != num_codes:
                    choices.append([(code, 1.0)])
                    continue
                written = [(k, reveal * tables[row][place, k]) for k in range(num_codes)]
                choices.append(written + [(num_codes, 1 - reveal)] * (reveal < 1))
            for picked in itertools.product(*choices):
                after[tuple(code for code, _ in picked)] += mass * np.prod(
                    [share for _, share in picked]
                )
        law = after
    return law


def one_at_a_time_law(tables: dict, length: int) -> dict:
    """Probability of each row if codes are revealed singly, in random order."""
    num_codes = next(iter(tables.values())).shape[1]
    law = {(num_codes,) * length: 1.0}
    for left in range(length, 0, -1):
        after = defaultdict(float)
        for row, mass in law.items():
            for place in (i for i, code in enumerate(row) if code == num_codes):
                for code in range(num_codes):
                    after[(*row[:place], code, *row[place + 1 :])] += (
                        mass / left * tables[row][place, code]
                    )
        law = after
    return law


@torch.no_grad()
def prompt_condition(pipe, prompt: str | None) -> dict:
    """What a denoiser is told of a prompt, read by itself."""
    if prompt is None:
        return {}
    ids = pipe.tokenizer([prompt], add_special_tokens=False, return_tensors="pt")
    states = pipe.prompt_encoder(ids["input_ids"], ids["attention_mask"]).last_hidden_state
    return {"prompt_states": states, "prompt_mask": ids["attention_mask"]}


def law_of_codes(pipe, lengths, steps, scales, prompt=None, law_of=ancestral_law) -> dict:
    """Probability of each (plan, fine codes), for `lengths`, `steps` and `scales` of both levels."""
    told = prompt_condition(pipe, prompt)
    more = [[count] if law_of is ancestral_law else [] for count in steps]
    plans = law_of(
        guided_tables(pipe.coarse_denoiser, lengths[0], scales[0], told), lengths[0], *more[0]
    )
    joint = {}
    for plan, mass in plans.items():
        tables = guided_tables(
            pipe.fine_denoiser, lengths[1], scales[1], told | {"context_ids": torch.tensor([plan])}
        )
        for fine, share in law_of(tables, lengths[1], *more[1]).items():
            joint[plan, fine] = mass * share
    return joint


def counts_of(plan, fine, law: dict) -> np.ndarray:
    """How often each key of the law was drawn."""
    drawn = [(tuple(a), tuple(b)) for a, b in zip(plan.tolist(), fine.tolist(), strict=True)]
    places = {key: place for place, key in enumerate(law)}
    return np.bincount([places[key] for key in drawn], minlength=len(law))
