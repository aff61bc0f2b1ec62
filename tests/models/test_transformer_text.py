"""Laws of the text transformer: rows do not see each other, padding does not matter, the head runs where asked."""

import pytest
import torch
from conftest import make_denoiser

from text_diffusers import TextTransformerModel


def batch(tokenizer, rows=3, length=9, seed=0):
    return torch.randint(
        0, len(tokenizer), (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def test_padding_changes_logits_by_less_than_1e_5(tokenizer, denoiser):
    short = batch(tokenizer, rows=1, length=9)
    padded = torch.full((1, 20), tokenizer.pad_token_id)
    padded[:, :9] = short
    mask = (torch.arange(20) < 9).long().unsqueeze(0)
    alone = denoiser(short).logits
    torch.testing.assert_close(
        denoiser(padded, attention_mask=mask).logits[:, :9], alone, atol=1e-5, rtol=0
    )
    shifted = torch.full((1, 20), tokenizer.pad_token_id)
    shifted[:, 11:] = short  # left padding: only distances between tokens count
    left = denoiser(shifted, attention_mask=mask.flip(1)).logits[:, 11:]
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)
    # Without the mask it does matter.
    assert (denoiser(padded).logits[:, :9] - alone).abs().max() > 1e-3


def test_a_row_does_not_depend_on_who_shares_its_batch(tokenizer, denoiser):
    rows = batch(tokenizer, rows=4)
    torch.testing.assert_close(
        denoiser(rows).logits[2:3], denoiser(rows[2:3]).logits, atol=1e-5, rtol=0
    )


def test_every_position_sees_every_other(tokenizer, denoiser):
    rows = batch(tokenizer, rows=1)
    base = denoiser(rows).logits
    for position in (0, 8):
        changed = rows.clone()
        changed[0, position] = (changed[0, position] + 1) % 256
        assert (denoiser(changed).logits - base).abs().amax(dim=-1).min() > 1e-6


@pytest.mark.parametrize("tied", [True, False])
def test_positions_select_rows_of_the_same_logits(tokenizer, tied):
    model = make_denoiser(tokenizer, tie_embeddings=tied)
    rows = batch(tokenizer)
    positions = torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    torch.testing.assert_close(
        model(rows, positions=positions).logits, model(rows).logits[positions]
    )
    assert model(rows, positions=torch.zeros_like(positions)).logits.shape == (0, len(tokenizer))
    assert isinstance(model(rows, return_dict=False), tuple)


def test_time_enters_by_row_and_not_at_all_at_initialisation(tokenizer):
    rows = batch(tokenizer, rows=2)
    fresh = TextTransformerModel(len(tokenizer), 32, 2, 2, time_conditioning=True).eval()
    torch.testing.assert_close(fresh(rows, 0.1).logits, fresh(rows, 0.9).logits)
    model = make_denoiser(tokenizer, time_conditioning=True)
    both = model(rows, torch.tensor([0.1, 0.9])).logits
    torch.testing.assert_close(both[1:], model(rows[1:], 0.9).logits, atol=1e-5, rtol=0)
    assert (model(rows, 0.1).logits - model(rows, 0.9).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="`timestep` is required"):
        model(rows)


def test_class_labels_enter_by_row_and_none_is_the_extra_label(tokenizer):
    model = make_denoiser(tokenizer, num_classes=3)
    rows = batch(tokenizer, rows=2)
    mixed = model(rows, class_labels=torch.tensor([0, 2])).logits
    torch.testing.assert_close(
        mixed[:1], model(rows[:1], class_labels=torch.tensor([0])).logits, atol=1e-5, rtol=0
    )
    unlabelled = model(rows, class_labels=torch.tensor([3, 3])).logits
    torch.testing.assert_close(model(rows).logits, unlabelled)
    assert (mixed - unlabelled).abs().max() > 1e-3
    with pytest.raises(ValueError, match="`class_labels` must be between 0 and 2"):
        model(rows, class_labels=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="`num_classes=None`"):
        make_denoiser(tokenizer)(rows, class_labels=torch.tensor([0, 0]))


def test_gradient_checkpointing_gives_the_same_gradients(tokenizer):
    rows, gradients = batch(tokenizer), []
    for checkpointing in (False, True):
        model = make_denoiser(tokenizer, time_conditioning=True).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(rows, 0.3).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_a_saved_model_gives_the_same_logits(tokenizer, denoiser, tmp_path):
    denoiser.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "config.json"] == [
        ".safetensors"
    ]
    loaded = TextTransformerModel.from_pretrained(tmp_path)
    rows = batch(tokenizer)
    assert torch.equal(loaded(rows).logits, denoiser(rows).logits)


def test_a_lora_adapter_changes_the_model_and_can_be_switched_off(tokenizer, denoiser):
    from peft import LoraConfig

    rows = batch(tokenizer)
    before = denoiser(rows).logits
    denoiser.add_adapter(
        LoraConfig(
            r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
        )
    )
    assert (denoiser(rows).logits - before).abs().max() > 1e-4
    denoiser.disable_adapters()
    torch.testing.assert_close(denoiser(rows).logits, before)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_attention_heads": 0},
            "`num_attention_heads` must be an integer of at least 1, got 0",
        ),
        ({"num_attention_heads": 3}, "`hidden_size` must be an even multiple"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "even head width"),
        ({"hidden_size": 32.0}, "`hidden_size` must be an integer"),
        ({"vocab_size": 0}, "`vocab_size`"),
        ({"num_layers": 0}, "`num_layers`"),
        ({"max_length": True}, "`max_length`"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"feed_forward_ratio": 0}, "`feed_forward_ratio`"),
        ({"num_classes": 0}, "`num_classes`"),
        ({"mask_token_id": 10}, "`mask_token_id` must be in the vocabulary of 10, got 10"),
        ({"pad_token_id": -1}, "`pad_token_id`"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TextTransformerModel(
            **{"vocab_size": 10, "hidden_size": 32, "num_attention_heads": 4, **changes}
        )


def test_a_sequence_beyond_max_length_is_refused(tokenizer, denoiser):
    with pytest.raises(ValueError, match="`max_length`=32, got \\(1, 33\\)"):
        denoiser(batch(tokenizer, rows=1, length=33))
