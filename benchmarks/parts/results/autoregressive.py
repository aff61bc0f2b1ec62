"""The yardstick of the table: a GPT-2 of the size of the small diffusion models, on the same rows.

Shapes: B batch, L row length, V vocabulary size.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from parts.common.cpu_clock import CpuClockLoop
from parts.common.recipes import QUIET, load_recipe
from parts.common.yardsticks import yardstick_config
from parts.results.config import ResultsConfig
from text_diffusers.common.token_ids import never_written
from text_diffusers.common.validation import require
from text_diffusers.data.rows import encode_texts, text_ends, unknown_tokens
from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.distances.figures import mean_figure
from text_diffusers.evaluation.text_metrics import token_entropy
from text_diffusers.training.runtime import make_accelerator
from text_diffusers.training.text_options import prepare_data, row_order

MOST_STEPS = 10_000_000
TEXTS_AT_ONCE = 50


class AutoregressiveTexts(nn.Module):
    """GPT-2 over rows "[EOS] text [EOS]", which pays for the text and its end.

    Args:
        config: of the GPT-2.

    Example:
        >>> config = GPT2Config(vocab_size=8, n_positions=4, n_embd=8, n_layer=1, n_head=1)
        >>> model = AutoregressiveTexts(config)
        >>> model(torch.tensor([[0, 3, 4, 0]]), torch.tensor([[False, True, True, True]])).shape
        torch.Size([1, 3])
    """

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.gpt2 = GPT2LMHeadModel(config)
        self.config = config.to_dict()

    def num_parameters(self) -> int:
        return self.gpt2.num_parameters()

    def forward(self, tokens: Tensor, counted: Tensor) -> Tensor:
        """(B, L - 1) nats of the tokens behind the first, 0 where they are not `counted` (B, L)."""
        logits = self.gpt2(tokens).logits[:, :-1]
        nats = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return nats * counted[:, 1:]


def train_autoregressive(settings: dict[str, Any]):
    """Train by the loop, the optimizer and the rows of the diffusion models; the folder takes model and tokenizer."""
    recipe = load_recipe()
    config = recipe.D3PMConfig(
        **QUIET
        | {"max_train_steps": MOST_STEPS, "checkpointing_steps": 0, "overwrite_output_dir": True}
        | settings
    )
    accelerator = make_accelerator(config)
    data = prepare_data(config, accelerator)
    set_seed(config.seed)
    end = text_ends(data.tokenizer)[1]
    sizes = ("length", "hidden_size", "num_layers", "num_attention_heads")
    gpt2 = yardstick_config(
        data.tokenizer,
        **{name: settings[name] for name in sizes},
        tie_word_embeddings=False,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = AutoregressiveTexts(gpt2)

    def loss_function(model, batch, uniform, generators):
        return model(batch["input_ids"], unknown_tokens(batch)).double().sum()

    order = row_order(config, data.train_rows, config.train_batch_size)
    loop = CpuClockLoop(config, accelerator, model, loss_function, order)
    loop.run()
    model.load_state_dict(loop.state.averages(), strict=False)
    model.gpt2.save_pretrained(config.output_dir)
    data.tokenizer.save_pretrained(config.output_dir)


@torch.no_grad()
def evaluate_autoregressive(
    folder: Path, options: ResultsConfig, texts_file: Path
) -> dict[str, Any]:
    """Its exact figures of the held-out texts; what it writes goes into `texts_file`."""
    torch.set_num_threads(1)
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = text_ends(tokenizer)[1]

    # 1. -log p of each text and its end
    texts = list(load_documents(str(options.texts_file("held_out")))["text"])
    encoded = encode_texts(tokenizer, texts)
    room = model.config.n_positions - 2
    num_long = sum(len(ids) > room for ids in encoded)
    limit = f"such that all texts have at most {room} tokens"
    require(num_long == 0, "most_characters", limit, f"{num_long} longer ones")
    nats = []
    num_tokens = 0
    for ids in encoded:
        row = torch.tensor([[end, *ids, end]])
        logits = model(row).logits[0, :-1]
        nats.append(float(F.cross_entropy(logits, row[0, 1:], reduction="sum")))
        num_tokens += len(ids) + 1
    num_characters = sum(len(text) + 1 for text in texts)

    # 2. Texts at temperature 1, from all of the vocabulary
    torch.manual_seed(0)
    started = time.process_time()
    written = []
    num_written = 0
    while len(written) < options.num_written:
        starts = torch.full((TEXTS_AT_ONCE, 1), end)
        rows = model.generate(
            starts,
            attention_mask=torch.ones_like(starts),
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            max_new_tokens=model.config.n_positions - 1,
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=[id for id in never_written(tokenizer) if id != end] or None,
        )
        num_written += int((rows != tokenizer.pad_token_id).sum()) - TEXTS_AT_ONCE
        written += tokenizer.batch_decode(rows, skip_special_tokens=True)
    seconds = time.process_time() - started
    written = written[: options.num_written]
    entropies = [token_entropy([ids]) for ids in encode_texts(tokenizer, written)]
    entropy = mean_figure(entropies)
    lines = (json.dumps({"text": text}) for text in written)
    texts_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "bits_per_character": sum(nats) / num_characters / math.log(2),
        "nats_per_token": sum(nats) / num_tokens,
        "num_parameters": model.num_parameters(),
        "tokens_per_second": num_written / seconds,
        # By its own tokens, which are those of the other models from scratch; the command had none of them
        "token_entropy": entropy.value,
        "token_entropy_error": entropy.standard_error,
    }
