"""Imports that the pages of the first edition showed: each still works, and gives what now stands elsewhere."""

from importlib import import_module
from importlib.util import find_spec

import pytest

# Earlier module, the names it was shown with, and where each of them stands.
SHOWN = [
    (
        "text_diffusers.classifier_guidance",
        "ClassifierGuidance",
        "text_diffusers.guidance.classifiers",
    ),
    (
        "text_diffusers.classifier_guidance",
        "CleanClassifierGuidance",
        "text_diffusers.guidance.classifiers",
    ),
    ("text_diffusers.classifier_guidance", "StyleGuidance", "text_diffusers.guidance.classifiers"),
    ("text_diffusers.classifier_guidance", "style_vector", "text_diffusers.guidance.classifiers"),
    ("text_diffusers.guidance", "Control", "text_diffusers.guidance.controls"),
    ("text_diffusers.guidance", "LengthControl", "text_diffusers.guidance.controls"),
    ("text_diffusers.guidance", "WordsControl", "text_diffusers.guidance.controls"),
    ("text_diffusers.pattern_control", "PatternControl", "text_diffusers.guidance.patterns"),
    ("text_diffusers.pattern_control", "TokenTags", "text_diffusers.guidance.patterns"),
    ("text_diffusers.pattern_control", "tag_tokens", "text_diffusers.guidance.patterns"),
    ("text_diffusers.evaluation", "evaluate_likelihood", "text_diffusers.evaluation.likelihood"),
    ("text_diffusers.text_metrics", "minimum_bayes_risk", "text_diffusers.evaluation.text_metrics"),
    ("text_diffusers.hub", "push_space", "text_diffusers.hub.export"),
    ("text_diffusers.hub", "push_to_hub", "text_diffusers.hub.export"),
    ("text_diffusers.hub", "save_with_code", "text_diffusers.hub.export"),
    ("text_diffusers.model_card", "model_card", "text_diffusers.hub.model_card"),
    ("text_diffusers.data", "load_documents", "text_diffusers.data.sources"),
    ("text_diffusers.data", "train_tokenizer", "text_diffusers.data.tokenizers"),
    ("text_diffusers.rows", "tokenize", "text_diffusers.data.rows"),
    ("text_diffusers.pipelines.guided_steps", "guide", "text_diffusers.pipelines.guidance"),
    ("text_diffusers.samplers", "samplers_for", "text_diffusers.samplers"),
    ("text_diffusers.samplers", "with_sampler", "text_diffusers.samplers"),
]


@pytest.mark.parametrize("module, name, home", SHOWN, ids=lambda value: value.rpartition(".")[2])
def test_an_import_of_the_first_edition_gives_what_now_stands_elsewhere(module, name, home):
    shown = getattr(import_module(module), name)
    assert callable(shown)
    assert shown.__module__ == home


@pytest.mark.parametrize("room", ["data", "guidance", "evaluation", "hub"])
def test_every_public_name_of_a_room_can_be_imported(room):
    package = import_module(f"text_diffusers.{room}")
    for name in package.__all__:
        assert callable(getattr(package, name))


@pytest.mark.parametrize("room", ["data", "guidance", "evaluation", "hub"])
def test_no_public_name_of_a_room_is_that_of_one_of_its_modules(room):
    """Importing the module would put it in the place of the function."""
    package = import_module(f"text_diffusers.{room}")
    assert not [name for name in package.__all__ if find_spec(f"{package.__name__}.{name}")]
