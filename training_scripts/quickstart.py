"""Load a trained pipeline, let it write and fill in, and draw how a text comes about.

python training_scripts/quickstart.py runs/quickstart
"""

import sys
from pathlib import Path

import torch

from text_diffusers import D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.evaluation.plots import plot_denoising

NUM_TEXTS = 8
TEMPERATURE = 0.7  # below 1, the model writes what it is surer of
INFILL = "i [MASK] [MASK] to the [MASK] yesterday"


def main(folder: str):
    pipe = TextDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    # The temperature belongs to the scheduler; everything else of its noise stays.
    pipe.scheduler = D3PMAbsorbingScheduler.from_config(
        pipe.scheduler.config, temperature=TEMPERATURE
    )
    print(f"\n{NUM_TEXTS} texts, at temperature {TEMPERATURE}:")
    written = pipe(num_return_sequences=NUM_TEXTS, generator=generator, return_history=True)
    for text in written.texts:
        print(f"  - {text}")

    # A prompt is a beginning that stays as it is.
    print("\nA text continued:")
    print(f"  {pipe('Hi! How are', generator=generator).texts[0]}")

    # Each mask is one token, which sees the text on both sides.
    print("\nA text filled in:")
    print(f"  {INFILL}\n  {pipe(text=INFILL, generator=generator).texts[0]}")

    # A text of about a line shows best.
    row = min(range(NUM_TEXTS), key=lambda index: abs(len(written.texts[index]) - 80))
    picture = plot_denoising(
        written.history, pipe.tokenizer, Path(folder, "denoising.png"), row=row
    )
    print(f"\nHow one of them was written, token by token: {picture}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python training_scripts/quickstart.py FOLDER_OF_A_TRAINED_PIPELINE")
    main(sys.argv[1])
