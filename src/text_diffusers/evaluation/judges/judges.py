"""Judges by their names: language models of transformers, and word n-grams that learn from a file.

Shapes: N texts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.judges.word_ngrams import WordNgramJudge
from text_diffusers.evaluation.text_metrics import JUDGES, load_judge, text_nats

WORDS = "words:"
# Sizes by which the weights of two models can be told apart
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
# An adapted model has a few tokens more, such as a mask, or fewer where its vocabulary was cut to its texts.
SHARED_VOCABULARY = 0.99


class Judge(Protocol):
    """Says how probable texts are.

    Attributes:
        unit: what its nats are counted by, such as "token of the judge".
    """

    unit: str

    def text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`(nats, counts)` (N,): -log p of each text, in float64, and the units that count in it."""
        ...


class LanguageModelJudge:
    """A causal language model that judges texts as `generative_perplexity` does.

    Args:
        model: any transformers causal LM.
        tokenizer: its tokenizer.
        batch_size: texts in one call of the model.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.judges import LanguageModelJudge
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2))
        >>> nats, counts = LanguageModelJudge(model, tokenizer).text_nats(texts)
        >>> nats.shape, counts.dtype
        (torch.Size([2]), torch.int64)
    """

    unit = "token of the judge"

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 8):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def text_nats(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """`(nats, counts)` (N,); what is beyond the longest row that the model takes is not judged."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
        return text_nats(texts, self.model, self.tokenizer, self.batch_size, longest)


def load_named_judge(name: str, device: str | torch.device | None = None) -> Judge:
    """The judge of a name.

    Args:
        name: "words:FILE", a word n-gram with interpolated Kneser-Ney smoothing that learns from the texts of a file,
            a folder or a Hub data set; a name of `load_judge`, "smollm2"; or else a causal language model, by its
            folder or its repository on the Hub.
        device: where a language model computes.

    Raises:
        OSError: if there is none, or it cannot be had.
        ValueError: if it is no causal language model, or its texts cannot be read.
        ModuleNotFoundError: if a package is missing, with what to install.

    Example:
        >>> from pathlib import Path
        >>> from text_diffusers.evaluation.judges import load_named_judge
        >>> _ = Path("texts.txt").write_text("the cat sat\\nthe dog sat\\n")
        >>> load_named_judge("words:texts.txt").unit
        'word'
    """
    if name.startswith(WORDS):
        source = name.removeprefix(WORDS)
        if not source:
            raise ValueError(f"`judge` must name a file behind {WORDS!r}, got {name!r}.")
        return WordNgramJudge(load_documents(source)["text"])
    model: Any
    try:
        if name in JUDGES and not Path(name).exists():
            model, tokenizer = load_judge(name)
        else:
            model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
    except OSError as error:
        # The error of transformers does not always say what it looked for.
        raise OSError(
            f"`judge` {name!r} is no folder here, and cannot be had from the Hub: {error}"
        ) from error
    return LanguageModelJudge(model.to(device or "cpu").eval(), tokenizer)


def shares_origin(model: Any, tokenizer: Any, judge: Judge) -> bool:
    """Whether a judge seems to be the model that it judges, or the one that this was made from.

    It does where both are of one architecture, one size and one vocabulary: weights that were trained further are
    others.

    Args:
        model: a denoiser.
        tokenizer: its tokenizer.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation.judges import LanguageModelJudge, shares_origin
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2))
        >>> shares_origin(model, tokenizer, LanguageModelJudge(model, tokenizer))
        True
    """
    if not isinstance(judge, LanguageModelJudge):
        return False
    own = getattr(model, "config", None)
    other = judge.model.config
    if getattr(own, "model_type", None) != other.model_type:
        return False
    if any(getattr(own, size, None) != getattr(other, size, None) for size in SIZES):
        return False

    # Of two vocabularies with the same words, one was cut or enlarged.
    words = set(tokenizer.get_vocab())
    judge_words = set(judge.tokenizer.get_vocab())
    smaller = min(len(words), len(judge_words))
    return len(words & judge_words) >= SHARED_VOCABULARY * smaller
