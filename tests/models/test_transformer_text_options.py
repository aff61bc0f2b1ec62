"""Laws of the options that make a text transformer the network of other authors.

Shapes: B batch, L sequence length, C width of the condition, V vocabulary size.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from support.conformance_models import (
    AttentionTesterMixin,
    ModelCase,
    ModelTesterMixin,
    TrainingTesterMixin,
)
from torch import nn

from text_diffusers import TextTransformerModel

V = 11
SIZES = {"vocab_size": V, "hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}
OPTIONS = {
    "qk_norm": False,
    "head_bias": True,
    "norm_eps": 1e-5,
    "condition_size": 6,
    "frequency_embedding_size": 20,
    "time_input": "sigma",
    "silu_before_sum": True,
}
TOKENS = torch.randint(0, V, (3, 7), generator=torch.Generator().manual_seed(0))
TIMES = torch.tensor([0.1, 0.6, 1.0])


def make(**options):
    """A model with random weights, also where they would be zero at first."""
    torch.manual_seed(0)
    model = TextTransformerModel(**SIZES | options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


class TestModelWithAllOptions(ModelTesterMixin, TrainingTesterMixin, AttentionTesterMixin):
    cases = {
        "all": ModelCase(
            TextTransformerModel,
            SIZES | OPTIONS | {"time_conditioning": True, "num_classes": 2},
            lambda: {
                "input_ids": TOKENS,
                "timestep": TIMES,
                "class_labels": torch.tensor([0, 1, 2]),
            },
            (3, 7, V),
        )
    }


@pytest.mark.parametrize(
    "time_input, values",
    [
        ("steps", 1000 * TIMES),
        ("fraction", TIMES),
        ("sigma", torch.tensor([-math.log(1 - 0.999 * time) for time in TIMES.tolist()])),
    ],
)
@pytest.mark.parametrize("silu_before_sum", [False, True])
def test_the_condition_is_made_of_the_time_and_the_label_as_written(
    time_input, values, silu_before_sum
):
    """What the first block is given, against the formula."""
    options = {"time_input": time_input, "silu_before_sum": silu_before_sum}
    sizes = {"condition_size": 6, "frequency_embedding_size": 20}
    model = make(time_conditioning=True, num_classes=2, **options, **sizes)
    labels = torch.tensor([0, 1, 2])
    conditions = []
    model.blocks[0].modulation.register_forward_pre_hook(
        lambda layer, inputs: conditions.append(inputs[0])
    )
    with torch.no_grad():
        model(TOKENS, TIMES, class_labels=labels)

        angles = values.unsqueeze(1) * 10_000.0 ** (-torch.arange(10) / 10)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        first, _, second = model.time_embedding
        time = F.linear(
            F.silu(F.linear(waves, first.weight, first.bias)), second.weight, second.bias
        )
        label = model.class_embedding.weight[labels]
        want = F.silu(time) + F.silu(label) if silu_before_sum else F.silu(time + label)
    assert conditions[0].shape == (3, 1, 6)
    torch.testing.assert_close(conditions[0].squeeze(1), want, atol=2e-5, rtol=2e-5)


def test_the_bias_of_the_head_is_added_to_every_logit():
    model = make(head_bias=True)
    plain = make()
    state = model.state_dict()
    bias = state.pop("head.bias")
    plain.load_state_dict(state)
    torch.testing.assert_close(model(TOKENS).logits, plain(TOKENS).logits + bias)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_head_with_a_bias_is_trained_in_chunks_as_at_once(frozen):
    """Also where nothing but the bias is trained."""
    model = make(head_bias=True).double()
    if frozen:
        model.requires_grad_(False)
        model.head.bias.requires_grad_(True)
    targets = TOKENS.flip(0).flatten()

    def loss(logits, chunk):
        return F.cross_entropy(logits, targets[chunk], reduction="sum")

    gradients = []
    for chunk_size in (None, 4):
        model.zero_grad()
        if chunk_size is None:
            total = loss(model(TOKENS).logits.flatten(0, 1), slice(None))
        else:
            total = model(TOKENS, loss_function=loss, chunk_size=chunk_size).loss
        (total / 3).backward()
        gradients.append([total.detach(), *[p.grad for p in model.parameters() if p.requires_grad]])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)

    with torch.no_grad():
        total = model(TOKENS, loss_function=loss, chunk_size=4).loss
    torch.testing.assert_close(total, gradients[0][0])


def test_without_options_a_model_is_what_it_was():
    """No names are added to the weights, and a configuration that says nothing of the options gives the same."""
    model = make(time_conditioning=True, num_classes=2)
    config = {key: value for key, value in model.config.items() if key not in OPTIONS}
    older = TextTransformerModel.from_config(config).eval()
    assert older.state_dict().keys() == model.state_dict().keys()
    older.load_state_dict(model.state_dict())
    assert torch.equal(older(TOKENS, TIMES).logits, model(TOKENS, TIMES).logits)
    assert "blocks.0.attn.norm_q.weight" in model.state_dict()
    assert "head.bias" not in model.state_dict()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"norm_eps": 0.0}, "`norm_eps` must be above 0 and at most 1, got 0.0"),
        ({"norm_eps": "small"}, "`norm_eps` must be a finite number"),
        ({"qk_norm": 1}, "`qk_norm` must be true or false"),
        ({"condition_size": 0}, "`condition_size` must be None or an integer of at least 1"),
        ({"frequency_embedding_size": 7}, "`frequency_embedding_size` must be None or even, got 7"),
        ({"time_input": "clock"}, "`time_input` must be one of steps, fraction, sigma"),
        ({"head_bias": True, "tie_embeddings": True}, "`head_bias` must be False"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TextTransformerModel(**SIZES | changes)
