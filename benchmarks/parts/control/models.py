"""The trained models of benchmarks/control.py: those that write, and those that guide."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification

from parts.common.recipes import CORPORA  # noqa: F401 - names for `--dataset`
from parts.control.config import ControlConfig
from text_diffusers import DiffusionLMPipeline, TextClassifierModel, TextDiffusionPipeline
from text_diffusers.data.sources import load_documents
from text_diffusers.guidance.patterns import tag_tokens


def load_classifier(folder: str) -> Any:
    """A `TextClassifierModel`, or a classifier of transformers."""
    # diffusers, but not transformers, writes the name of the class into a configuration.
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if config.get("_class_name") == TextClassifierModel.__name__:
        return TextClassifierModel.from_pretrained(folder).eval()
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


LOADERS = {
    "model": TextDiffusionPipeline.from_pretrained,
    "classifier": load_classifier,
    "clean_classifier": load_classifier,
    "tagger": load_classifier,
    "embedding_model": DiffusionLMPipeline.from_pretrained,
    "embedding_classifier": load_classifier,
}


def load_models(options: ControlConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Load the models whose folders exist.

    Returns:
        models: by the name of their option; "token_tags" is what the tagger says of each token on average.
        missing: of the others, the option that must be given, such as "`--tagger`".
    """
    # 1. Models, or the reason why there is none
    models = {}
    missing = {}
    for name, load in LOADERS.items():
        folder = options.model_folder(name)
        if folder is None:
            missing[name] = f"`--{name}`"
        elif not Path(folder).exists():
            missing[name] = f"`--{name}` ({folder} is not there)"
        else:
            models[name] = load(folder)

    for name in {"model", "embedding_model"} & models.keys():
        models[name].set_progress_bar_config(disable=True)

    # 2. The options reshape the predictions of the model's own scheduler.
    if "model" in models:
        scheduler = models["model"].scheduler
        shape = {"temperature": options.temperature, "top_p": options.top_p}
        changes = {name: value for name, value in shape.items() if value is not None}
        models["model"].scheduler = type(scheduler).from_config(scheduler.config, **changes)

    # 3. Controls of patterns need the tags of single tokens, in the places in which they are common.
    if "model" in models and "tagger" in models:
        data = load_documents(options.dataset)
        count = min(options.num_tagged_texts, len(data))
        texts = list(data.select(range(count))["text"])
        longest = getattr(models["tagger"].config, "max_length", None)
        tokenizer = models["model"].tokenizer
        models["token_tags"] = tag_tokens(models["tagger"], tokenizer, texts, max_length=longest)
    return models, missing
