"""Samplers at many steps, beside real texts and the decoder alone; and labels under guidance."""

from functools import partial
from typing import Any

from parts.common.results import Record, read_or_make
from parts.control.judges import judge_of_labels
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.data import UnseenTexts, cut_texts
from parts.latent.figures import embeddings, energy_distance, figures_of
from parts.latent.writing import decode, write_latents
from text_diffusers import TextDiffusionPipeline
from text_diffusers.data.labels import number_labels
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.evaluation.text_metrics import self_bleu
from text_diffusers.samplers import with_sampler

# Samplers of each noise that a model may have learned
SAMPLERS = {
    "flow": ("euler", "heun"),
    "betas": ("ddpm", "ddim", "dpm_solver"),
}
# Of second order, for few steps: more of them are not measured.
MOST_STEPS = {"heun": 50, "dpm_solver": 50}
# With which labels are followed
LABEL_STEPS = 50
REAL = "real texts, held out"
ALONE = "the decoder alone"
# Of draws by the decoder, without latents and with those of the first sampler
TEMPERATURES = (0.7, 1.0)


def load(folder: str) -> Any:
    """A pipeline without progress bars."""
    pipe: Any = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def yardsticks(pipe: Any, options: LatentBenchmarkConfig, unseen: UnseenTexts) -> list[Record]:
    """Real texts, and those that the decoder writes without any latents."""
    folder = options.folder / "samplers"
    real = read_or_make(
        folder / "real.json",
        lambda: {
            "texts": cut_texts(unseen.held_out["text"], pipe.tokenizer, options.max_new_tokens)
        },
    )
    records = [{"name": REAL, **real}]
    for temperature in TEMPERATURES:
        make = partial(alone_record, pipe, options, temperature)
        record = read_or_make(folder / f"alone-{temperature:g}.json", make)
        records.append({"name": f"{ALONE}, temperature {temperature:g}", **record})
    return records


def alone_record(pipe: Any, options: LatentBenchmarkConfig, temperature: float) -> Record:
    """Texts that the decoder writes without any latents."""
    texts, seconds = decode(pipe, options, None, temperature, count=options.num_texts)
    return {"texts": texts, "decoding_seconds": seconds / len(texts)}


def sampler_records(options: LatentBenchmarkConfig, unseen: UnseenTexts) -> list[Record]:
    """A line for each sampler and number of steps, greedy and, of the first at its best, with draws."""
    pipes = {"flow": load(options.flow)}
    if options.betas != "none":
        pipes["betas"] = load(options.betas)
    records = yardsticks(pipes["flow"], options, unseen)

    for noise, pipe in pipes.items():
        for sampler in SAMPLERS[noise]:
            writer = with_sampler(pipe, sampler)
            for steps in options.steps:
                if steps > MOST_STEPS.get(sampler, steps):
                    continue
                make = partial(sampler_record, writer, options, steps)
                file = options.folder / "samplers" / f"{sampler}-{steps}.json"
                record = read_or_make(file, make)
                records.append({"name": f"{sampler} ({noise})", "steps": steps, **record})
                print(f"{sampler}, {steps} steps", flush=True)

    # The same latents with draws of the decoder, as its own texts have
    for temperature in TEMPERATURES:
        make = partial(sampler_record, pipes["flow"], options, LABEL_STEPS, temperature)
        file = options.folder / "samplers" / f"drawn-{temperature:g}.json"
        name = f"euler (flow), temperature {temperature:g}"
        records.append({"name": name, "steps": LABEL_STEPS, **read_or_make(file, make)})

    real = embeddings(pipes["flow"], records[0]["texts"])
    for record in records:
        texts = record["texts"]
        record |= figures_of(texts, unseen.judge) | {"self_bleu": self_bleu(texts)}
        if record["name"] != REAL:
            record["distance"] = energy_distance(embeddings(pipes["flow"], texts), real)
    return records


def sampler_record(
    pipe: Any, options: LatentBenchmarkConfig, steps: int, temperature: float = 0.0
) -> Record:
    """Texts, and how long their latents and their words took."""
    latents, seconds = write_latents(pipe, options, options.num_texts, steps)
    texts, decoding = decode(pipe, options, latents, temperature)
    count = options.num_texts
    return {
        "texts": texts,
        "latent_seconds": seconds / count,
        "decoding_seconds": decoding / count,
    }


def label_records(options: LatentBenchmarkConfig, unseen: UnseenTexts) -> tuple[list[Record], str]:
    """A line for each scale of guidance to a label, and a note on the judge."""
    documents, _ = number_labels(load_documents(options.dataset, label_column="label"))
    _, held_out = split_documents(documents)
    judge, note = judge_of_labels(options.judge_dataset, held_out["text"], held_out["label"])

    pipe = load(options.flow)
    labels = [place % 2 for place in range(options.num_texts)]
    records = []
    for scale in sorted(options.scales):
        make = partial(label_record, pipe, options, labels, scale)
        record = read_or_make(options.folder / "labels" / f"scale-{scale:g}.json", make)

        texts = record["texts"]
        record |= {"scale": scale, "labels": labels, "followed": judge.accuracy(texts, labels)}
        record |= figures_of(texts, unseen.judge) | {"self_bleu": self_bleu(texts)}
        records.append(record)
        print(f"labels, scale {scale:g}: {record['followed']:.3f}", flush=True)
    return records, note


def label_record(
    pipe: Any, options: LatentBenchmarkConfig, labels: list[int], scale: float
) -> Record:
    """Texts with labels at a scale."""
    told = {"class_labels": labels, "guidance_scale": scale}
    latents, _ = write_latents(pipe, options, len(labels), LABEL_STEPS, **told)
    return {"texts": decode(pipe, options, latents, 0.0)[0]}
