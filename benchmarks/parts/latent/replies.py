"""Varied replies: several to each context, by the decoder alone at several temperatures and by priors of latents."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from parts.common.results import Record, read_or_make
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.data import UnseenTexts
from parts.latent.figures import embeddings, figures_of
from parts.latent.samplers import load
from parts.latent.writing import decode, text_record, write_latents
from text_diffusers.evaluation.text_metrics import self_bleu

STEPS = 50
# Of the diffusion prior's guidance to the context
GUIDANCE = (1.0, 2.0)


def reply_records(options: LatentBenchmarkConfig, unseen: UnseenTexts) -> list[Record]:
    """A line for each system and temperature; real replies first."""
    sources = list(unseen.held_out["source"])
    repeated = [source for source in sources for _ in range(options.num_replies)]
    diffusion = load(options.diffusion_replies)
    gaussian = load(options.gaussian_replies)

    # 1. Latents of each way to draw them
    drawn: dict[str, Any] = {"the decoder alone": (diffusion, None)}
    for scale in GUIDANCE:
        latents, _ = write_latents(
            diffusion, options, len(repeated), STEPS, source=repeated, guidance_scale=scale
        )
        drawn[f"Dior-CVAE, guidance {scale:g}"] = (diffusion, latents)
    latents, _ = write_latents(gaussian, options, len(repeated), None, source=repeated)
    drawn["CVAE, Gaussian prior"] = (gaussian, latents)

    # 2. Replies
    records: list[Record] = [{"name": "real replies", "texts": list(unseen.held_out["text"])}]
    for name, (pipe, latents) in drawn.items():
        alone = latents is None
        for temperature in options.temperatures if alone else options.latent_temperatures:
            file = options.folder / "replies" / f"{file_name(name)}-{temperature:g}.json"
            make = partial(written, pipe, options, latents, temperature, repeated)
            record = read_or_make(file, make)
            records.append({"name": name, "temperature": temperature, **record})
            print(f"{name}, temperature {temperature:g}", flush=True)

    # 3. Whether they belong to the context, are language, and differ
    contexts = embeddings(diffusion, sources)
    for record in records:
        texts = record["texts"]
        count = len(texts) // len(sources)
        told = embeddings(diffusion, [text or "." for text in texts])
        places = [place // count for place in range(len(texts))]
        record["relevance"] = float((told * contexts[places]).sum(dim=-1).mean())
        record |= figures_of(texts, unseen.judge) | {"self_bleu": None}
        if count > 1:
            groups = [texts[first : first + count] for first in range(0, len(texts), count)]
            record |= variety(groups)
    return records


def file_name(name: str) -> str:
    """A name as that of a file."""
    return name.replace(",", "").replace(" ", "-").lower()


def written(
    pipe: Any,
    options: LatentBenchmarkConfig,
    latents: Any,
    temperature: float,
    sources: Sequence[str],
) -> Record:
    """Replies to sources from latents, or from none."""
    texts, seconds = decode(pipe, options, latents, temperature, sources, len(sources))
    return text_record(texts, decoding_seconds=seconds / len(texts))


def variety(groups: Sequence[Sequence[str]]) -> Record:
    """How much the replies to one context differ: self-BLEU among them, and different ones over all."""
    likeness = [self_bleu(group) for group in groups]
    different = [len(set(group)) / len(group) for group in groups]
    return {
        "self_bleu": sum(likeness) / len(groups),
        "different": sum(different) / len(groups),
    }
