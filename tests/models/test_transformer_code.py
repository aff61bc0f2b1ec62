"""Laws of the denoiser over codes: coarser codes stay with theirs, prompts enter by row, padding does not matter."""

import pytest
import torch

from text_diffusers import CodeTransformerModel

CODES, CONTEXT, RATIO, WIDTH = 20, 6, 4, 12


def make(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": CODES + 1,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_length": 32,
    }
    sizes |= {"num_context_codes": CONTEXT, "context_ratio": RATIO, "prompt_size": WIDTH}
    model = CodeTransformerModel(**sizes | changes)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def codes(rows=3, length=16, seed=0):
    return torch.randint(0, CODES + 1, (rows, length), generator=seeded(seed))


def context(rows=3, length=4, seed=1):
    return torch.randint(0, CONTEXT, (rows, length), generator=seeded(seed))


def prompt(rows=3, length=7, seed=2):
    return torch.randn(rows, length, WIDTH, generator=seeded(seed))


@pytest.fixture
def model():
    return make()


def test_positions_select_rows_of_the_same_logits(model):
    inputs = {"context_ids": context(), "prompt_states": prompt()}
    positions = torch.rand(3, 16, generator=seeded(1)) < 0.4
    every = model(codes(), **inputs).logits
    assert every.shape == (3, 16, CODES + 1)
    torch.testing.assert_close(
        model(codes(), positions=positions, **inputs).logits, every[positions]
    )
    assert model(codes(), positions=torch.zeros_like(positions)).logits.shape == (0, CODES + 1)
    assert torch.equal(model(codes(), return_dict=False, **inputs)[0], every)


def test_a_row_does_not_depend_on_who_shares_its_batch(model):
    rows, told, states = codes(rows=4), context(rows=4), prompt(rows=4)
    mask = torch.tensor([[1] * length + [0] * (7 - length) for length in (7, 0, 3, 5)])
    every = model(rows, context_ids=told, prompt_states=states, prompt_mask=mask).logits
    for row in range(4):
        one = slice(row, row + 1)
        alone = model(
            rows[one], context_ids=told[one], prompt_states=states[one], prompt_mask=mask[one]
        ).logits
        torch.testing.assert_close(alone, every[one], atol=1e-5, rtol=0)


def test_every_code_sees_every_other(model):
    base = model(codes(rows=1)).logits
    for position in (0, 15):
        changed = codes(rows=1)
        changed[0, position] = (changed[0, position] + 1) % CODES
        assert (model(changed).logits - base).abs().amax(dim=-1).min() > 1e-6


def test_codes_of_a_row_of_masks_know_their_places(model):
    """Rotary positions alone say nothing among equals."""
    logits = model(torch.full((1, 16), CODES)).logits[0]
    assert (torch.cdist(logits, logits) + torch.eye(16)).min() > 1e-3


def test_time_and_attention_mask_are_ignored(model):
    base = model(codes()).logits
    assert torch.equal(model(codes(), 0.3, torch.zeros(3, 16)).logits, base)


def test_no_context_is_context_that_is_not_told(model):
    dropped = torch.full((3, 4), CONTEXT)
    assert torch.equal(model(codes()).logits, model(codes(), context_ids=dropped).logits)
    assert (model(codes(), context_ids=context()).logits - model(codes()).logits).abs().max() > 1e-2
    half = context()
    half[:, 2:] = CONTEXT
    assert (model(codes(), context_ids=half).logits - model(codes()).logits).abs().max() > 1e-2


def test_a_coarser_code_enters_at_its_own_codes_only():
    """Without attention a code sees nothing else, so all that a coarser code changes is where it enters."""
    model, ratio = make(num_layers=1), RATIO
    for layer in model.blocks[0].block.attn.to_out:
        for parameter in layer.parameters():
            torch.nn.init.zeros_(parameter)
    rows, told = codes(), context()
    base = model(rows, context_ids=told).logits
    for place in range(4):
        changed = told.clone()
        changed[:, place] = (told[:, place] + 1) % CONTEXT
        moved = (model(rows, context_ids=changed).logits - base).abs().amax(dim=(0, 2)) > 1e-4
        assert moved.nonzero().flatten().tolist() == list(range(ratio * place, ratio * (place + 1)))
    # Equal codes of one coarser code are told apart by their place in it.
    same = torch.zeros_like(rows)
    entered = model(same, context_ids=told).logits[0, :ratio]
    assert (torch.cdist(entered, entered) + torch.eye(ratio)).min() > 1e-3


def test_without_a_prompt_is_a_prompt_that_is_not_seen(model):
    """Bit for bit, and whatever the states that are not seen are."""
    told, base = context(), model(codes(), context_ids=context()).logits
    for length in (1, 7, 40):
        unseen = model(
            codes(),
            context_ids=told,
            prompt_states=prompt(length=length),
            prompt_mask=torch.zeros(3, length),
        )
        assert torch.equal(unseen.logits, base)
    some = torch.tensor([[0] * 7, [1] * 7, [1] * 7])
    mixed = model(codes(), context_ids=told, prompt_states=prompt(), prompt_mask=some).logits
    assert torch.equal(mixed[0], base[0])
    assert (mixed[1:] - base[1:]).abs().amax(dim=(1, 2)).min() > 1e-2


def test_padding_of_a_prompt_does_not_matter(model):
    base = model(codes(), prompt_states=prompt()).logits
    assert torch.equal(
        model(codes(), prompt_states=prompt(), prompt_mask=torch.ones(3, 7)).logits, base
    )
    noise = 100 * prompt(length=5, seed=9)
    ones, zeros = torch.ones(3, 7, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    for states, mask in (((prompt(), noise), (ones, zeros)), ((noise, prompt()), (zeros, ones))):
        padded = model(
            codes(), prompt_states=torch.cat(states, dim=1), prompt_mask=torch.cat(mask, dim=1)
        ).logits
        torch.testing.assert_close(padded, base, atol=1e-5, rtol=0)
    unmasked = model(codes(), prompt_states=torch.cat([prompt(), noise], dim=1)).logits
    assert (unmasked - base).abs().max() > 1e-2


def test_a_new_model_takes_no_notice_of_its_prompt_and_learns_to():
    model = CodeTransformerModel(CODES + 1, 32, 2, 2, prompt_size=WIDTH)
    torch.nn.init.normal_(model.head.weight)
    assert torch.equal(model(codes(), prompt_states=prompt()).logits, model(codes()).logits)
    model(codes(), prompt_states=prompt()).logits.square().sum().backward()
    assert all(block.prompt.attn.to_out[0].weight.grad.abs().sum() > 0 for block in model.blocks)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = make().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        for told in ({}, {"context_ids": context(), "prompt_states": prompt()}):
            model(codes(), **told).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_dropout_is_training_only():
    model = make(dropout=0.5)
    base = model(codes()).logits
    assert torch.equal(model(codes()).logits, base)
    assert not torch.equal(model.train()(codes()).logits, base)


def test_half_precision_around_it_keeps_what_is_not_seen_out(model):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        base = model(codes()).logits
        unseen = model(
            codes(), prompt_states=prompt().bfloat16(), prompt_mask=torch.zeros(3, 7)
        ).logits
    assert torch.equal(base, unseen) and base.isfinite().all()
    half = make().bfloat16()
    assert (
        half(codes(), context_ids=context(), prompt_states=prompt()).logits.dtype == torch.bfloat16
    )


@pytest.mark.parametrize("changes", [{}, {"num_context_codes": None, "prompt_size": None}])
def test_a_saved_model_gives_the_same_logits(tmp_path, changes):
    model = make(**changes)
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if path.name != "config.json"] == [
        ".safetensors"
    ]
    told = {} if changes else {"context_ids": context(), "prompt_states": prompt()}
    assert torch.equal(
        CodeTransformerModel.from_pretrained(tmp_path)(codes(), **told).logits,
        model(codes(), **told).logits,
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 0}, "`vocab_size` must be an integer of at least 1, got 0"),
        ({"num_layers": 0}, "`num_layers`"),
        ({"max_length": True}, "`max_length`"),
        ({"context_ratio": 0}, "`context_ratio`"),
        ({"num_context_codes": 0}, "`num_context_codes` must be an integer of at least 1, got 0"),
        ({"prompt_size": -1}, "`prompt_size` must be an integer of at least 1, got -1"),
        ({"num_attention_heads": 3}, "`hidden_size` must be an even multiple"),
        ({"hidden_size": 6, "num_attention_heads": 2}, "even head width"),
        ({"feed_forward_ratio": 0}, "`feed_forward_ratio`"),
        ({"dropout": 1.0}, "`dropout` must be in \\[0, 1\\), got 1.0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    "inputs, message",
    [
        (
            {"input_ids": codes(length=36)},
            "`max_length`=32, a multiple of `context_ratio`=4, got \\(3, 36\\)",
        ),
        ({"input_ids": codes(length=15)}, "a multiple of `context_ratio`=4, got \\(3, 15\\)"),
        ({"input_ids": codes(length=0)}, "`input_ids`"),
        ({"input_ids": codes()[0]}, "`input_ids` must be \\(batch, length\\)"),
        ({"class_labels": torch.zeros(3)}, "`class_labels` must be None"),
        (
            {"context_ids": context(length=3)},
            "`context_ids` must be \\(3, 4\\) for `input_ids` \\(3, 16\\), got \\(3, 3\\)",
        ),
        ({"context_ids": context(rows=2)}, "`context_ids` must be \\(3, 4\\)"),
        (
            {"prompt_states": prompt()[..., :5]},
            "`prompt_states` must be \\(3, length, 12\\), got \\(3, 7, 5\\)",
        ),
        (
            {"prompt_states": prompt(rows=1)},
            "`prompt_states` must be \\(3, length, 12\\), got \\(1, 7, 12\\)",
        ),
        ({"prompt_states": prompt()[0]}, "`prompt_states`"),
        (
            {"prompt_states": prompt(), "prompt_mask": torch.ones(3, 6)},
            "`prompt_mask` must be that of `prompt_states`",
        ),
        (
            {"prompt_mask": torch.ones(3, 7)},
            "`prompt_mask` must be that of `prompt_states`, got \\(3, 7\\) for None",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": codes()} | inputs)


@pytest.mark.parametrize("told", [{"context_ids": context()}, {"prompt_states": prompt()}])
def test_what_a_model_was_not_built_to_take_is_refused(told):
    with pytest.raises(
        ValueError, match=f"`{next(iter(told))}` were given, but this model was built to take none"
    ):
        make(num_context_codes=None, prompt_size=None)(codes(), **told)
