"""Latent diffusion on models that write: samplers and steps, labels, varied replies, and replies with known facts.

    python benchmarks/latent.py
    python benchmarks/latent.py --parts facts --languages en --train_minutes 2 --prior_minutes 1

- memory: the peak while 64 texts of 30 tokens are written, beside a model that diffuses tokens.
- samplers: texts of each sampler at 1,000 to 2 steps, decoded by the likeliest tokens, beside real texts and the
  decoder alone. Seconds of latents and of words are apart.
- labels: share of texts that have the label they were asked for, at each scale of guidance.
- replies: several to each held-out context, by the decoder alone at several temperatures, by a CVAE with a Gaussian
  prior and by Dior-CVAE. Relevance is the mean cosine of a reply and its context in the encoder's embeddings.
- facts: the same on made-up turns that say what a reply must repeat; their small models are trained here.

The judge of words is a trigram model with Kneser-Ney smoothing on texts after those that the models learned from: no
language model judges what it wrote. Perplexity is by the word, marks and ends included, and an unknown word is paid
for by the letter. Labels are judged by TF-IDF and logistic regression on reviews that no model has seen. "Distance"
is the energy distance to held-out texts in the encoder's embeddings, 0 for texts of one kind. "Different" are the
different replies to a context over all of them.

Finished lines are files in `output_dir`; delete one to repeat it. The report is latent.md, latent.json, and a picture
for each curve.
"""

from typing import Any

import torch
from datasets import disable_progress_bars
from parts.common.options import run
from parts.common.results import check_settings, write_report
from parts.latent.config import LatentBenchmarkConfig
from parts.latent.data import conversation_texts, labelled_texts
from parts.latent.facts import fact_records
from parts.latent.memory import memory_records
from parts.latent.replies import reply_records
from parts.latent.report import (
    fact_part,
    label_part,
    memory_part,
    reply_part,
    sampler_part,
)
from parts.latent.samplers import label_records, sampler_records

from text_diffusers.training.config import OptionParser


def main(options: LatentBenchmarkConfig) -> dict[str, Any]:
    """Write what is not finished, judge all of it and report; returns the records of each part."""
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)
    disable_progress_bars()
    check_settings(options)

    sections = []
    figures: dict[str, Any] = {}
    # First, in forks of a process that has not computed anything
    if "memory" in options.parts:
        figures["memory"] = memory_records(options)
        sections.append(memory_part(figures["memory"]))
    if {"samplers", "labels"} & set(options.parts):
        unseen = labelled_texts(options)
        if "samplers" in options.parts:
            figures["samplers"] = sampler_records(options, unseen)
            sections.append(sampler_part(options, figures["samplers"]))
        if "labels" in options.parts:
            figures["labels"], note = label_records(options, unseen)
            sections.append(label_part(figures["labels"], note))
    if "replies" in options.parts:
        unseen = conversation_texts(options)
        figures["replies"] = reply_records(options, unseen)
        sources = list(unseen.held_out["source"])
        sections.append(reply_part(options, figures["replies"], sources))
    if "facts" in options.parts:
        for language in options.languages:
            records = fact_records(options, language)
            figures[f"facts_{language}"] = records
            sections.append(fact_part(language, records, options.num_replies))
    write_report(options.folder, "latent", "\n\n".join(sections), figures)
    return figures


if __name__ == "__main__":
    run(main, OptionParser(LatentBenchmarkConfig, description=__doc__))
