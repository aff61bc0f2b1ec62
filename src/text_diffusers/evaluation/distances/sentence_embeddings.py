"""Embeddings of texts: the mean state of a sentence encoder of transformers, of norm 1.

Shapes: N texts, B batch, S tokens of a text, E width of an embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoTokenizer

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.validation import require_int
from text_diffusers.evaluation.modules import device_of, evaluating

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# Tokens of a text that are read, as sentence encoders are trained
MOST_TOKENS = 256
EMPTY_TEXT = "."


def load_sentence_encoder(
    name: str = DEFAULT_ENCODER, device: str | torch.device | None = None
) -> tuple[Any, Any]:
    """`(model, tokenizer)` of an encoder, from a folder or the Hub.

    Args:
        name: folder or repository of any encoder of transformers whose mean state stands for a text.
        device: where to compute.

    Raises:
        OSError: if there is none, or it cannot be had.
    """
    try:
        model: Any = AutoModel.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        # The error of transformers does not always say what it looked for.
        raise OSError(
            f"`encoder` {name!r} is no folder here, and cannot be had from the Hub: {error}"
        ) from error
    return model.to(device or "cpu").eval(), tokenizer


@torch.no_grad()
def sentence_embeddings(
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    batch_size: int = 32,
    max_length: int = MOST_TOKENS,
) -> Tensor:
    """(N, E) float32 mean of the last states of each text over its tokens, scaled to norm 1, on the CPU.

    An empty text is read as a single full stop. The result does not depend on the batch size, but for rounding.

    Args:
        texts: strings.
        model: any encoder of transformers; put into evaluation mode for the call.
        tokenizer: its tokenizer.
        batch_size: texts in one call of the model; those of about one length go together.
        max_length: tokens of a text beyond it are not read.

    Raises:
        ValueError: if there is no text, or an argument is out of its range.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.distances import sentence_embeddings
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        >>> model = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes))
        >>> sentence_embeddings(texts, model, tokenizer).shape
        torch.Size([2, 16])
    """
    require_int("batch_size", batch_size, 1)
    require_int("max_length", max_length, 3)
    if not len(texts):
        raise ValueError("`texts` must hold at least one text, got none.")

    # The encoder's own ends stay, whatever is cut between them.
    limit = min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)
    rows = encode_plain(tokenizer, [text or EMPTY_TEXT for text in texts], "texts", with_ends=True)
    num_ends = tokenizer.num_special_tokens_to_add()
    rows = [cut_row(row, limit, behind=1 if num_ends > 1 else 0) for row in rows]

    # Texts of about one length share a batch.
    device = device_of(model)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    embeddings = []
    with evaluating(model):
        for first in range(0, len(order), batch_size):
            ids = [torch.tensor(rows[place]) for place in order[first : first + batch_size]]
            tokens = pad_sequence(ids, batch_first=True).to(device)  # (B, S)
            mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
            states = model(input_ids=tokens, attention_mask=mask).last_hidden_state  # (B, S, E)

            weights = mask.unsqueeze(-1).to(states.dtype)
            means = (states * weights).sum(dim=1) / weights.sum(dim=1)
            embeddings.append(F.normalize(means.float(), dim=-1).cpu())

    # Back to the order of the texts
    places = torch.tensor(order)
    return torch.cat(embeddings)[places.argsort()]


def cut_row(row: list[int], limit: int, behind: int) -> list[int]:
    """A row of at most `limit` tokens, of which the last `behind` are those of the whole row.

    Example:
        >>> from text_diffusers.evaluation.distances.sentence_embeddings import cut_row
        >>> cut_row([101, 5, 6, 7, 102], limit=4, behind=1)
        [101, 5, 6, 102]
    """
    if len(row) <= limit:
        return row
    return [*row[: limit - behind], *row[len(row) - behind :]]
