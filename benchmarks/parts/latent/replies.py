"""Varied replies: several to each context, by the decoder alone at several temperatures and by priors of latents."""

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from parts.common.results import Record, read_or_make
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.data import UnseenTexts
from parts.latent.figures import embeddings, figures_of
from parts.latent.samplers import load
from parts.latent.writing import decode, write_latents
from text_diffusers.evaluation.text_metrics import self_bleu

STEPS = 50
# Of the diffusion prior's guidance to the context
GUIDANCE = (1.0, 2.0)


class ReplyWriter:
    """A pipeline with latents of its own for replies, written once, and only if a line wants them.

    Args:
        pipe: by a prior with a scheduler or without.
        told: what its prior is told of all replies; `None` is the decoder alone, which has no latents.
    """

    def __init__(self, pipe: Any, options: LatentBenchmarkConfig, told: Record | None):
        self.pipe = pipe
        self.options = options
        self.told = told

    @cached_property
    def latents(self) -> Tensor | None:
        """(N, K, E) one for each reply."""
        if self.told is None:
            return None
        num_steps = None if self.pipe.scheduler is None else STEPS
        count = len(self.told["source"])
        return write_latents(self.pipe, self.options, count, num_steps, **self.told)[0]

    def write(self, sources: Sequence[str], temperature: float) -> Record:
        """Replies to sources, one from each latent."""
        texts, seconds = decode(
            self.pipe, self.options, self.latents, temperature, sources, len(sources)
        )
        return {"texts": texts, "decoding_seconds": seconds / len(texts)}


def reply_records(options: LatentBenchmarkConfig, unseen: UnseenTexts) -> list[Record]:
    """A line for each system and temperature; real replies first."""
    sources = list(unseen.held_out["source"])
    repeated = [source for source in sources for _ in range(options.num_replies)]
    told = {"source": repeated}

    # 1. Systems
    diffusion = load(options.diffusion_replies)
    writers = {"the decoder alone": ReplyWriter(diffusion, options, None)}
    for scale in GUIDANCE:
        guided = told | {"guidance_scale": scale}
        writers[f"Dior-CVAE, guidance {scale:g}"] = ReplyWriter(diffusion, options, guided)
    gaussian = load(options.gaussian_replies)
    writers["CVAE, Gaussian prior"] = ReplyWriter(gaussian, options, told)

    # 2. Replies
    records: list[Record] = [{"name": "real replies", "texts": list(unseen.held_out["text"])}]
    for name, writer in writers.items():
        is_alone = writer.told is None
        for temperature in options.temperatures if is_alone else options.latent_temperatures:
            file = options.folder / "replies" / f"{file_name(name)}-{temperature:g}.json"
            record = read_or_make(file, partial(writer.write, repeated, temperature))

            records.append({"name": name, "temperature": temperature, **record})
            print(f"{name}, temperature {temperature:g}", flush=True)

    # 3. Whether they belong to the context, are language, and differ
    contexts = embeddings(diffusion, sources)  # (contexts, width)
    for record in records:
        texts = record["texts"]
        count = len(texts) // len(sources)

        told_texts = embeddings(diffusion, texts)
        of_texts = contexts.repeat_interleave(count, dim=0)
        record["relevance"] = float((told_texts * of_texts).sum(dim=-1).mean())

        record |= figures_of(texts, unseen.judge)
        # Of real replies there is one to each context.
        record["self_bleu"] = None
        if count > 1:
            record |= variety(texts, count)
    return records


def file_name(name: str) -> str:
    """A name as that of a file."""
    return name.replace(",", "").replace(" ", "-").lower()


def variety(texts: Sequence[str], count: int) -> Record:
    """How much the `count` replies to one context differ: self-BLEU among them, and different ones over all."""
    groups = [texts[first : first + count] for first in range(0, len(texts), count)]
    likeness = [self_bleu(group) for group in groups]
    different = [len(set(group)) / count for group in groups]
    return {
        "self_bleu": sum(likeness) / len(groups),
        "different": sum(different) / len(groups),
    }
