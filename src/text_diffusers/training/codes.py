"""What the denoisers of two-level diffusion learn from: rows of codes, with prompts and plans that are partly hidden.

Shapes: B batch, L tokens of a row, n codes of a row, C coarse codes of a row, P prompt tokens.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from text_diffusers.common.randomness import rand
from text_diffusers.common.validation import require
from text_diffusers.data.rows import ROWS_PER_MAP, text_ends
from text_diffusers.models.language_model import masked_lm_length
from text_diffusers.models.prompt_encoder import PromptEncoderModel
from text_diffusers.training.checkpoints import weights_digest

LEVELS = ("coarse", "fine")
ENCODED_AT_ONCE = 64
AUTOENCODER_FILE = "autoencoder.sha256"


class PromptedDenoiser(nn.Module):
    """A denoiser of codes and the encoder of the prompts it is told, as one model to train and to bound.

    Args:
        denoiser: a `CodeTransformerModel`.
        prompt_encoder: a `PromptEncoderModel` or an encoder of transformers; `None` without prompts.
        train_prompt_encoder: off keeps its weights, and its dropout out.
    """

    def __init__(self, denoiser: Any, prompt_encoder: Any = None, train_prompt_encoder: bool = True):
        super().__init__()
        self.denoiser = denoiser
        self.prompt_encoder: Any = prompt_encoder
        self.frozen = prompt_encoder is not None and not train_prompt_encoder
        if self.frozen:
            self.prompt_encoder.requires_grad_(False).eval()

    @property
    def config(self) -> Any:
        return self.denoiser.config

    def train(self, mode: bool = True) -> "PromptedDenoiser":
        super().train(mode)
        if self.frozen:
            self.prompt_encoder.eval()
        return self

    def enable_gradient_checkpointing(self):
        self.denoiser.enable_gradient_checkpointing()

    def forward(
        self,
        input_ids: Tensor,
        timestep: Any = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        context_ids: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Any:
        """As the denoiser, with tokens of prompts `prompt_ids` (B, P) in place of their states.

        Raises:
            ValueError: if there are prompts and no encoder.
        """
        prompts = {}
        if prompt_ids is not None:
            if self.prompt_encoder is None or prompt_mask is None:
                raise ValueError("`prompt_ids` need a `prompt_encoder` and a `prompt_mask`.")
            none = prompt_mask.sum(dim=1, keepdim=True) == 0  # some encoders cannot read an empty prompt
            states = self.prompt_encoder(input_ids=prompt_ids, attention_mask=prompt_mask | none).last_hidden_state
            prompts = {"prompt_states": states, "prompt_mask": prompt_mask}
        inputs = input_ids, timestep, attention_mask, class_labels, positions
        return self.denoiser(*inputs, context_ids=context_ids, **prompts)


def read_prompt_encoder(source: Any) -> Any:
    """A `PromptEncoderModel` or an encoder of transformers, in evaluation mode, from a folder or a Hub name.

    Raises:
        ValueError: if it is a model of transformers that cannot be called as an encoder of so many tokens at most.
    """
    file = Path(source, "config.json")
    if file.exists() and json.loads(file.read_text()).get("_class_name") == PromptEncoderModel.__name__:
        own: Any = PromptEncoderModel.from_pretrained(source)
        return own.eval()
    encoder = AutoModel.from_pretrained(source, dtype=torch.float32)
    config = encoder.config
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "max_position_embeddings"):
        raise ValueError(
            "`prompt_encoder` must be an encoder alone, with `max_position_embeddings`, such as BERT, "
            f"got {type(encoder).__name__}."
        )
    return encoder.eval()


def load_prompt_encoder(source: Any, tokenizer: Any, prompt_length: int) -> Any:
    """As `read_prompt_encoder`, for prompts of so many tokens.

    Raises:
        ValueError: if it has fewer tokens than the tokenizer, or takes no prompts of so many.
    """
    encoder = read_prompt_encoder(source)
    if encoder.config.vocab_size < len(tokenizer):
        raise ValueError(
            f"`prompt_encoder` must have a vocabulary of at least {len(tokenizer)}, that of the autoencoder's "
            f"tokenizer, got {encoder.config.vocab_size}."
        )
    own = isinstance(encoder, PromptEncoderModel)
    limit = encoder.config.max_length if own else masked_lm_length(encoder)
    if prompt_length > limit:
        raise ValueError(f"`prompt_length` must be at most {limit} for this prompt encoder, got {prompt_length}.")
    return encoder


def same_prompt_encoder(one: Any, other: Any) -> bool:
    """Whether the prompt encoders of two sources have the same weights; a pooler, which is not read, may differ."""
    first, second = (
        {name: value for name, value in read_prompt_encoder(source).state_dict().items() if "pooler" not in name}
        for source in (one, other)
    )
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def check_autoencoder_of(folder: Path, autoencoder: Any):
    """Refuse a stage that was trained, in `folder`, on the codes of an autoencoder with other weights."""
    file = folder / AUTOENCODER_FILE
    if file.exists() and file.read_text().strip() != weights_digest(autoencoder):
        raise ValueError(
            f"`autoencoder` is another one than {str(folder)!r} was trained with, whose codes mean something else: "
            "choose another `output_dir`, or `--stage all --overwrite_output_dir true`."
        )


def note_autoencoder(folder: Path, autoencoder: Any):
    """Write down of whose codes a stage is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUTOENCODER_FILE).write_text(weights_digest(autoencoder) + "\n")


# Rows


def text_rows(rows: Any, tokenizer: Any, length: int, prompt_length: int | None = None, packed: bool = True) -> Any:
    """Rows of text without padding: `input_ids` and `attention_mask` (L), and prompts `prompt_ids`, `prompt_mask` (P).

    A row is followed by as many ends as are missing; the mask is 1 at the tokens that are counted, the text and its
    first end.

    Args:
        rows: from `tokenize`. Packed ones have L + P tokens, of which the first P are the prompt. Padded ones have
            L + 1, of which the first is where the text begins. Pairs have a prompt that is their source, cut to P.
        length: L.
        prompt_length: P; `None` has no prompts.
        packed: whether several texts share a row.
    """
    options = {"tokenizer": tokenizer, "length": length, "prompt_length": prompt_length, "packed": packed}
    columns = [
        name for name in ("input_ids", "attention_mask", "given") if name in (rows.column_names or next(iter(rows)))
    ]
    return rows.map(partial(text_columns, **options), batched=True, batch_size=ROWS_PER_MAP, remove_columns=columns)


def text_columns(
    columns: dict[str, list], tokenizer: Any, length: int, prompt_length: int | None, packed: bool
) -> dict[str, list]:
    """The columns of `text_rows`; a row that holds no text after its prompt is left out."""
    end, pad = text_ends(tokenizer)[1], tokenizer.pad_token_id
    found: dict[str, list] = {"input_ids": [], "attention_mask": []}
    found |= {} if prompt_length is None else {"prompt_ids": [], "prompt_mask": []}
    for place, (row, real) in enumerate(zip(columns["input_ids"], columns["attention_mask"], strict=True)):
        row = row[: sum(real)]
        if "given" in columns:  # "[EOS] source [EOS] text [EOS] ... [EOS]"
            start = sum(columns["given"][place])
            prompt, text = row[1 : start - 1], row[start:]
            text = text[: text.index(end) + 1]
        else:
            start = prompt_length or 0 if packed else 1
            prompt, text = row[:start], row[start:]
        if not text:
            continue
        text = text[:length]
        found["input_ids"].append(text + [end] * (length - len(text)))
        found["attention_mask"].append([1] * len(text) + [0] * (length - len(text)))
        if prompt_length is not None:
            prompt = prompt[:prompt_length]
            found["prompt_ids"].append(prompt + [pad] * (prompt_length - len(prompt)))
            found["prompt_mask"].append([1] * len(prompt) + [0] * (prompt_length - len(prompt)))
    return found


def code_rows(autoencoder: Any, rows: Any, level: str) -> Any:
    """The codes of rows of text, as rows that a denoiser is trained on and bounded by.

    Args:
        autoencoder: an `AutoencoderVQTextModel` in evaluation mode.
        rows: from `text_rows`, of a length that the autoencoder takes.
        level: "coarse" or "fine".

    Returns:
        Rows of `input_ids` (n), `attention_mask` (n) of ones, the prompts if there are any, and with two levels for
        fine codes `context_ids` (C), the coarse ones.

    Raises:
        ValueError: if the level is unknown, or coarse and the autoencoder has one level.
    """
    known = LEVELS if autoencoder.config.coarse_ratio is not None else LEVELS[1:]
    require(level in known, "level", f"one of {known} for this autoencoder", level)
    encode = partial(code_columns, autoencoder=autoencoder, level=level)
    return rows.map(encode, batched=True, batch_size=ENCODED_AT_ONCE)


def code_columns(columns: dict[str, list], autoencoder: Any, level: str) -> dict[str, list]:
    device = next(autoencoder.parameters()).device
    codes = autoencoder.encode(torch.tensor(columns["input_ids"], device=device))
    found = {"input_ids": codes[level].tolist(), "attention_mask": torch.ones_like(codes[level]).tolist()}
    if level == "fine" and codes.coarse is not None:
        found["context_ids"] = codes.coarse.tolist()
    return found


# What a step of training is shown


def shown_prompts(
    batch: dict[str, Tensor], generators: list[torch.Generator], dropout: float, suffixes: bool
) -> dict[str, Tensor]:
    """A batch in which some rows have lost their prompts, and the others may have lost their beginnings.

    Args:
        batch: `prompt_ids` and `prompt_mask` (B, P), or without prompts, when it is returned as it is; not changed.
        generators: one a row, of which each gives one number if there is something to draw.
        dropout: share of rows without a prompt.
        suffixes: whether a prompt of m tokens is cut to its last 1, 2, ... or m, each as likely.
    """
    if "prompt_ids" not in batch or not (dropout or suffixes):
        return batch
    ids, lengths = batch["prompt_ids"], batch["prompt_mask"].sum(dim=1)  # (B, P), (B,)
    coins = rand((len(ids), 2), generators, ids.device)
    kept = ((coins[:, 1] * lengths).long() + 1).minimum(lengths) if suffixes else lengths
    places = torch.arange(ids.shape[1], device=ids.device)
    origins = (places + (lengths - kept).unsqueeze(1)).clamp(max=ids.shape[1] - 1)  # (B, P)
    told = torch.where(coins[:, 0] < dropout, 0, kept)
    mask = (places < told.unsqueeze(1)).to(batch["prompt_mask"].dtype)
    return batch | {"prompt_ids": ids.gather(1, origins), "prompt_mask": mask}


def shown_plans(
    batch: dict[str, Tensor],
    generators: list[torch.Generator],
    corruption: float,
    dropout: float,
    num_codes: int | None,
) -> dict[str, Tensor]:
    """A batch in which some coarse codes are random ones, and some rows are told neither these nor their prompt.

    Guidance of the fine codes compares with a prediction that is told neither.

    Args:
        batch: `context_ids` (B, C), or without coarse codes, when it is returned as it is; not changed.
        generators: one a row, of which each gives one number if there is something to draw.
        corruption: share of coarse codes in whose place stands any code, each as likely.
        dropout: share of rows whose coarse codes are all `num_codes`, "not told", and whose `prompt_mask` is 0.
        num_codes: of the coarse codebook.
    """
    if "context_ids" not in batch or not (corruption or dropout):
        return batch
    if num_codes is None:
        raise ValueError("`num_codes` must be given where there are coarse codes to change, got None.")
    plans: Any = batch["context_ids"]
    count = plans.shape[1]
    coins, chances, choices = rand((len(plans), 1 + 2 * count), generators, plans.device).split(
        [1, count, count], dim=1
    )
    plans = torch.where(chances < corruption, (choices * num_codes).long(), plans)
    untold = coins < dropout  # (B, 1)
    changed = {"context_ids": torch.where(untold, num_codes, plans)}
    if "prompt_mask" in batch:
        changed["prompt_mask"] = batch["prompt_mask"].masked_fill(untold, 0)
    return batch | changed
