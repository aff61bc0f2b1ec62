"""One of the processes of tests/training/test_deepspeed.py: `deepspeed_driver.py FOLDER RUNS`.

RUNS is JSON with options by name.

Each run leaves its losses, the digest of its state and its weights, last and averaged, in a folder of its name.
Options beside those of the loop: `zero_stage`; `dropout`; `poison`, the step from which the last process has a loss of
NaN with finite gradients.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState
from conftest import SENTENCES, make_denoiser
from datasets import Dataset

from text_diffusers import D3PMAbsorbingScheduler
from text_diffusers.data.rows import ShuffledRows, tokenize
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import end_training, make_accelerator

GLOBAL_ROWS = 16


def digest(tensors: dict) -> str:
    found = hashlib.sha256()
    for group, named in sorted(tensors.items()):
        for name, tensor in sorted(named.items()):
            found.update(
                f"{group}/{name}{tuple(tensor.shape)}{tensor.dtype}".encode()
                + tensor.numpy().tobytes()
            )
    return found.hexdigest()


def train(folder: Path, options: dict):
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    poison, dropout = options.pop("poison", None), options.pop("dropout", 0.0)
    os.environ["ACCELERATE_DEEPSPEED_ZERO_STAGE"] = str(options.pop("zero_stage", 2))
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300)
    rows = tokenize(Dataset.from_dict({"text": SENTENCES * 30}), tokenizer, length=8)
    settings = {"max_train_steps": 20, "lr_warmup_steps": 2, "ema_decay": 0.9, "num_cpu_threads": 1}
    settings |= {"validation_steps": 0, "checkpointing_steps": 0, "report_to": ["none"]}
    rows_each = GLOBAL_ROWS // processes // options.get("gradient_accumulation_steps", 1)
    config = TrainingConfig(
        output_dir=str(folder), train_batch_size=rows_each, **settings | options
    )
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == processes
    scheduler, validated = D3PMAbsorbingScheduler(tokenizer.mask_token_id), {}

    def loss_function(model, batch, uniform, generators):
        loss = batch_bound(model, scheduler, batch, uniform, generators).sum()
        last = accelerator.process_index == processes - 1
        return loss + torch.nan if poison is not None and loop.step >= poison and last else loss

    def evaluate(model) -> dict[str, float]:  # alone on each process, as a recipe may
        assert not model.training and next(model.parameters()).dtype == torch.float32
        return {
            "bound": estimate_bound(model, scheduler, rows.select(range(20)), batch_size=8).bound
        }

    loop = TrainingLoop(
        config=config,
        accelerator=accelerator,
        model=make_denoiser(
            tokenizer, hidden_size=18, num_attention_heads=3, max_length=8, dropout=dropout
        ),
        loss_function=loss_function,
        rows=ShuffledRows(rows, GLOBAL_ROWS, seed=0),
        evaluate=evaluate,
        on_validation=lambda step, metrics: validated.update(metrics),
    )
    losses, error = [], None
    try:
        losses = loop.run()
    except FloatingPointError as stopped:
        error = str(stopped)
    tensors, rank = loop.state.tensors(), accelerator.process_index
    with loop.state.averaged() as model:
        np.savez(
            folder / f"averaged-{rank}.npz",
            **{name: p.detach().numpy() for name, p in model.named_parameters()},
        )
    np.savez(
        folder / f"weights-{rank}.npz",
        **{name: tensor.numpy() for name, tensor in tensors["model"].items()},
    )
    result = {"losses": losses, "digest": digest(tensors), "error": error, "validated": validated}
    result |= {"type": accelerator.distributed_type.value, "processes": processes}
    (folder / f"result-{rank}.json").write_text(json.dumps(result))
    return accelerator


if __name__ == "__main__":
    for name, options in json.loads(sys.argv[2]).items():
        AcceleratorState._reset_state()  # the process group stays
        GradientState._reset_state()
        accelerator = train(Path(sys.argv[1], name), options)
    end_training(accelerator)
