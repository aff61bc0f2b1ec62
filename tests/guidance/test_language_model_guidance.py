"""Controls of texts that a language model writes: words, lengths, and classifiers that share its tokenizer."""

import pytest
import torch
from support.language_models import chat_pipe

from text_diffusers import D3PMAbsorbingScheduler, TextClassifierModel
from text_diffusers.guidance import (
    ClassifierGuidance,
    CleanClassifierGuidance,
    LengthControl,
    WordsControl,
)

SIZES = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "max_length": 64}
QUESTIONS = [[{"role": "user", "content": f"w{8 + index} w20"}] for index in range(3)]


def write(pipe, controls, **settings):
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    settings = {"messages": QUESTIONS, "num_inference_steps": 6} | settings
    return pipe(controls=controls, generator=generators, **settings)


@pytest.fixture(params=["aligned", "shifted"])
def pipe(request):
    return chat_pipe(scheduler=D3PMAbsorbingScheduler(0), alignment=request.param)


def test_words_stand_in_replies_and_lengths_are_kept(pipe):
    for settings in ({}, {"block_length": 3}):
        texts = write(pipe, WordsControl(pipe.tokenizer, ["w33"]), max_new_tokens=6, **settings)
        assert all("w33" in text.split() for text in texts.texts)
    # The length is that of the reply, behind which the end is put.
    texts = write(pipe, LengthControl(9), suppress_tokens=[2, 3, 4, 5]).texts
    assert [len(text.split()) for text in texts] == [9] * 3


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ClassifierGuidance, {"scale": 3.0}),
        (ClassifierGuidance, {"scale": 3.0, "order": "exact"}),
        (CleanClassifierGuidance, {"scale": 3.0}),
    ],
    ids=["first", "exact", "clean"],
)
def test_a_classifier_of_the_tokenizer_guides_a_model_with_more_logits(pipe, kind, options):
    """The model has 44 logits for 40 tokens. What a classifier would say of the others changes nothing."""
    torch.manual_seed(0)
    small = TextClassifierModel(40, labels=["sad", "happy"], **SIZES).eval()
    large = TextClassifierModel(44, labels=["sad", "happy"], **SIZES).eval()
    for parameter in small.parameters():  # a classifier that has opinions
        torch.nn.init.normal_(parameter, std=0.5)
    weights = small.state_dict()
    for name, weight in large.state_dict().items():
        if weight.shape != weights[name].shape:
            weights[name] = torch.cat([weights[name], weight[40:]])
    large.load_state_dict(weights)

    settings = {"max_new_tokens": 5}
    guided = [
        write(pipe, kind(classifier, "happy", **options), **settings).tokens
        for classifier in (small, large)
    ]
    assert torch.equal(*guided)
    assert not torch.equal(guided[0], write(pipe, [], **settings).tokens)

    fewer = TextClassifierModel(39, labels=["sad", "happy"], **SIZES).eval()
    with pytest.raises(ValueError, match="`classifier` must have"):
        write(pipe, kind(fewer, "happy", **options), **settings)
