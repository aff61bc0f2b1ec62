"""Laws of the autoencoder of text: windows, both levels, what training passes do to codes, and its gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from text_diffusers import AutoencoderVQTextModel

VOCAB, MASK = 50, 49
SIZES = {
    "hidden_size": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "num_attention_heads": 2,
    "num_fine_codes": 24,
    "num_coarse_codes": 10,
    "codebook_dim": 8,
    "window_length": 16,
    "mask_token_id": MASK,
}
COUNTS = ("num_decoder_layers", "num_attention_heads", "num_fine_codes", "num_coarse_codes")
KINDS = {
    "ema": {},
    "gumbel": {"quantizer": "gumbel"},
    "fsq": {"quantizer": "fsq", "fine_levels": [5, 4, 3], "coarse_levels": [3, 4]},
    "patches alone": {"num_encoder_layers": 0},
    "one level": {"coarse_ratio": None, "num_coarse_codes": None},
}


def texts(rows=4, length=32, seed=0):
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def make(kind="ema", seed=0, **changes):
    """A model whose codebooks have seen a batch, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoencoderVQTextModel(VOCAB, **SIZES | KINDS[kind] | changes).train()
    model(texts(rows=8, length=model.full_length(32), seed=100))
    return model.eval()


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.fixture(params=KINDS)
def model(request):
    return make(request.param)


def test_codes_of_a_window_depend_on_its_tokens_only(model):
    tokens = texts()
    codes, first, second = (
        model.encode(tokens),
        model.encode(tokens[:, :16]),
        model.encode(tokens[:, 16:]),
    )
    assert torch.equal(codes.fine, torch.cat([first.fine, second.fine], dim=1))
    assert codes.fine.shape == (4, 16) and len(codes.fine.unique()) > 5
    if codes.coarse is not None:
        assert torch.equal(codes.coarse, torch.cat([first.coarse, second.coarse], dim=1))
        assert codes.coarse.shape == (4, 4)
    logits = model.decode(codes.fine, codes.coarse)
    parts = [model.decode(part.fine, part.coarse) for part in (first, second)]
    assert logits.shape == (4, 32, VOCAB)
    torch.testing.assert_close(logits, torch.cat(parts, dim=1), atol=1e-5, rtol=0)
    changed = codes.fine.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 24
    torch.testing.assert_close(
        model.decode(changed, codes.coarse)[:, :16], logits[:, :16], atol=1e-5, rtol=0
    )
    assert (model.decode(changed, codes.coarse)[:, 16:] - logits[:, 16:]).abs().amax(
        dim=(1, 2)
    ).min() > 1e-3


def test_a_training_pass_without_mistakes_decodes_the_codes_that_encode_finds(model):
    tokens = texts()
    codes, output = model.encode(tokens), model(tokens)
    assert torch.equal(output.codes.fine, codes.fine)
    if codes.coarse is not None:
        assert torch.equal(output.codes.coarse, codes.coarse)
    torch.testing.assert_close(
        model.decode(codes.fine, codes.coarse), output.logits, atol=1e-5, rtol=1e-5
    )
    logits, loss, topic_loss, listed = model(tokens, return_dict=False)
    assert (
        torch.equal(logits, output.logits)
        and torch.equal(listed.fine, codes.fine)
        and loss.shape == ()
    )
    assert torch.equal(topic_loss, output.topic_loss)


def test_encoding_in_training_mode_changes_nothing(model):
    tokens, before = texts(), buffers(model)
    expected, chance = model.encode(tokens), torch.get_rng_state()
    codes = model.train().encode(tokens)
    assert torch.equal(codes.fine, expected.fine) and torch.equal(torch.get_rng_state(), chance)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not codes.fine.requires_grad
    model(tokens)
    moved = [
        name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])
    ]
    assert bool(moved) == (model.config.quantizer != "fsq")


def test_hidden_tokens_are_masks_to_the_encoder():
    model, tokens = make(), texts()
    hidden = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    masked = model(tokens.masked_fill(hidden, MASK))
    assert torch.equal(model(tokens, hidden=hidden).logits, masked.logits)
    assert not torch.equal(model(tokens).codes.fine, masked.codes.fine)


def test_rows_without_fine_codes_are_decoded_from_coarse_codes_alone():
    model, tokens = make(), texts(rows=3)
    without = torch.tensor([True, False, True])
    output, plain = model(tokens, without_fine=without), model(tokens)
    alone = model.decode(None, plain.codes.coarse)
    torch.testing.assert_close(output.logits[without], alone[without], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits[1], plain.logits[1], atol=1e-5, rtol=1e-5)
    assert (output.logits[0] - plain.logits[0]).abs().max() > 1e-2
    wrong = torch.zeros_like(plain.codes.fine)
    again = model(tokens, without_fine=without, wrong_fine=wrong).logits
    assert torch.equal(again[without], output.logits[without]) and not torch.equal(
        again[1], output.logits[1]
    )


def test_the_decoder_is_given_wrong_codes_where_there_are_any(model):
    tokens = texts()
    codes, noise = model.encode(tokens), torch.Generator().manual_seed(2)
    given, wrong = {}, {}
    for level in ("fine", "coarse"):
        if codes.get(level) is None:
            given[level] = None
            continue
        number = getattr(model.config, f"num_{level}_codes")
        chosen = torch.rand(codes[level].shape, generator=noise) < 0.4
        random = torch.randint(0, number, codes[level].shape, generator=noise)
        given[level] = torch.where(chosen, random, codes[level])
        wrong[f"wrong_{level}"] = random.masked_fill(~chosen, -1)
    output = model(tokens, **wrong)
    # The mistakes are the decoder's, not the encoder's.
    assert torch.equal(output.codes.fine, codes.fine)
    torch.testing.assert_close(
        output.logits, model.decode(given["fine"], given["coarse"]), atol=1e-5, rtol=1e-5
    )
    assert (output.logits - model(tokens).logits).abs().max() > 1e-2
    none = {name: torch.full_like(values, -1) for name, values in wrong.items()}
    assert torch.equal(model(tokens, **none).logits, model(tokens).logits)


def cross_entropy(logits, tokens):
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


@pytest.mark.parametrize("rotation", [True, False])
def test_coarse_codes_learn_what_they_change_in_the_text_when_fine_codes_are_kept(rotation):
    """Autograd through a training pass against differences of `decode`, whose codes stay as they are."""
    model, tokens = make(rotation_trick=rotation).train(), texts()
    book = buffers(model)
    output = model(tokens)
    (gradient,) = torch.autograd.grad(cross_entropy(output.logits, tokens), model.coarse_out.bias)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(book[name])
        direction, size = (
            torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3)),
            1e-2,
        )
        ends = []
        for sign in (1, -1):
            model.coarse_out.bias += sign * size * direction
            logits = model.decode(output.codes.fine, output.codes.coarse)
            ends.append(float(cross_entropy(logits, tokens)))
            model.coarse_out.bias -= sign * size * direction
    slope = (ends[0] - ends[1]) / (2 * size)
    assert abs(slope) > 1e-3 and float(gradient @ direction) == pytest.approx(slope, rel=2e-2)


def test_the_topic_loss_is_how_badly_each_coarse_code_alone_tells_the_tokens_of_its_window():
    model, tokens = make(), texts()
    output = model(tokens, hidden=torch.arange(32) % 5 == 0)
    vectors = model.quantize_coarse.vectors(output.codes.coarse)  # (B, 4, D)
    x = model.norm_out(model.topic_out(vectors)).detach().double().numpy()
    logits = x @ model.token_embedding.weight.detach().double().numpy().T / np.sqrt(32)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats = [
        -log_probs[row, code, token]
        for row in range(4)
        for code in range(4)
        for token in tokens[row, 16 * (code // 2) : 16 * (code // 2 + 1)].tolist()
    ]
    assert output.topic_loss.item() == pytest.approx(np.mean(nats), rel=1e-5)
    assert make("one level")(tokens).topic_loss.item() == 0


def test_both_levels_teach_the_encoder():
    model, tokens = make(commitment_weight=0.0).train(), texts()
    plain = cross_entropy(model(tokens).logits, tokens)
    for layer in (
        model.coarse_in,
        model.coarse_encoder,
        model.quantize_coarse,
        model.quantize_fine,
        model.encoder,
    ):
        found = torch.autograd.grad(plain, list(layer.parameters()), retain_graph=True)
        assert sum(float(gradient.abs().sum()) for gradient in found) > 1e-3
    alone = cross_entropy(
        model(tokens, without_fine=torch.ones(4, dtype=torch.bool)).logits, tokens
    )
    fine = list(model.quantize_fine.parameters())
    found = torch.autograd.grad(alone, fine, retain_graph=True, allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in found)
    (reached,) = torch.autograd.grad(alone, model.patch_in.weight)
    assert reached.abs().sum() > 1e-3


@pytest.mark.slow
def test_training_gives_the_texts_back():
    torch.manual_seed(0)
    model = AutoencoderVQTextModel(VOCAB, **SIZES | {"num_fine_codes": 64, "decay": 0.9}).train()
    optimizer, data = torch.optim.AdamW(model.parameters(), lr=3e-3), texts(rows=8)
    before = cross_entropy(model.eval()(data).logits, data).item()
    for _ in range(80):
        output = model.train()(data)
        optimizer.zero_grad()
        (cross_entropy(output.logits, data) + output.commitment_loss).backward()
        optimizer.step()
    codes = model.eval().encode(data)
    assert cross_entropy(model.decode(codes.fine, codes.coarse), data).item() < 0.5 * before


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_has_the_same_codes_and_goes_on_in_training_alike(kind, tmp_path):
    model, tokens = make(kind), texts()
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    loaded = AutoencoderVQTextModel.from_pretrained(tmp_path)
    assert (
        dict(loaded.config).items()
        >= {name: value for name, value in model.config.items() if not name.startswith("_")}.items()
    )
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(loaded.named_buffers())[name]), name
    codes, again = model.encode(tokens), loaded.encode(tokens)
    assert torch.equal(codes.fine, again.fine)
    logits = model.decode(codes.fine, codes.coarse)
    assert torch.equal(loaded.decode(again.fine, again.coarse), logits)
    for one in (model, loaded):
        torch.manual_seed(1)
        one.train()(tokens)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, dict(loaded.named_buffers())[name]), name
    half = AutoencoderVQTextModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    codes = half.encode(tokens)
    assert half.decode(codes.fine, codes.coarse).dtype == torch.bfloat16


def test_numbers_of_codes_follow_from_levels():
    model = make("fsq")
    assert (model.config.num_fine_codes, model.config.num_coarse_codes) == (60, 12)
    assert make("one level").config.num_coarse_codes is None


@pytest.mark.parametrize("kind, code", [("ema", 8), ("one level", 2)])
def test_the_full_length_is_the_least_that_is_taken(kind, code):
    model = make(kind)
    assert model.code_length == code

    def taken(length):
        try:
            return model.encode(texts(rows=1, length=length)).fine.shape == (1, length // 2)
        except ValueError as error:
            assert f"`window_length`=16 if they are more than that, got {length}" in str(error)
            return False

    lengths = [length for length in range(1, 66) if taken(length)]
    for length in range(1, 65):
        assert model.full_length(length) == min(one for one in lengths if one >= length)


@pytest.mark.parametrize(
    "changes, message",
    [
        *(({name: 0}, f"`{name}` must be an integer of at least 1, got 0") for name in COUNTS),
        (
            {"num_encoder_layers": -1},
            "`num_encoder_layers` must be an integer of at least 0, got -1",
        ),
        ({"vocab_size": 0}, "`vocab_size`"),
        ({"num_coarse_layers": 0}, "`num_coarse_layers`"),
        (
            {"num_coarse_codes": None},
            "`num_coarse_codes` must be an integer of at least 1, got None",
        ),
        ({"patch_length": 0}, "`patch_length`"),
        ({"coarse_ratio": 0}, "`coarse_ratio`"),
        ({"codebook_dim": 2.0}, "`codebook_dim`"),
        ({"feed_forward_ratio": 0}, "`feed_forward_ratio`"),
        ({"num_attention_heads": 3}, "`hidden_size` must be an even multiple"),
        ({"quantizer": "nearest"}, "`quantizer` must be one of .*, got 'nearest'"),
        (
            {"window_length": 12},
            "`window_length` must be a multiple of 8, the tokens of a code, got 12",
        ),
        ({"window_length": 0}, "`window_length`"),
        (
            {"fine_levels": [5, 5]},
            '`fine_levels` must be given with `quantizer` "fsq" and not otherwise',
        ),
        (KINDS["fsq"] | {"fine_levels": None}, "`fine_levels` must be given with"),
        (KINDS["fsq"] | {"coarse_levels": None}, "`coarse_levels` must be given with"),
        (
            KINDS["fsq"] | {"fine_levels": []},
            "`fine_levels` must be a list of integers of at least 3, got \\[\\]",
        ),
        (
            KINDS["fsq"] | {"fine_levels": 8},
            "`fine_levels` must be a list of integers of at least 3, got 8",
        ),
        (
            KINDS["fsq"] | {"coarse_levels": [5, 2]},
            "`coarse_levels` must be a list of integers of at least 3",
        ),
        (KINDS["fsq"] | KINDS["one level"], "`coarse_levels` must be given with"),
        ({"decay": 1.0}, "`decay` must be at least 0, below 1, got 1.0"),
        ({"decay": float("nan")}, "`decay`"),
        ({"commitment_weight": -0.1}, "`commitment_weight` must be at least 0, got -0.1"),
        ({"dead_code_threshold": -1}, "`dead_code_threshold`"),
        ({"mask_token_id": VOCAB}, "`mask_token_id` must be in the vocabulary of 50, got 50"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderVQTextModel(**{"vocab_size": VOCAB} | SIZES | changes)


def test_codes_that_do_not_fit_are_refused():
    model, single = make(), make("one level")
    codes = model.encode(texts())
    for pair in ((codes.fine, None), (None, None)):
        with pytest.raises(ValueError, match="`coarse` codes are needed, and `fine` ones may be"):
            model.decode(*pair)
    for pair in ((None, codes.coarse), (codes.fine, codes.coarse), (None, None)):
        with pytest.raises(ValueError, match="`fine` codes are needed, and no other"):
            single.decode(*pair)
    for fine in (codes.fine[:, :8], codes.fine[:3]):
        with pytest.raises(ValueError, match="`fine` must have 4 codes for each of `coarse`, got"):
            model.decode(fine, codes.coarse)
    for level, number in (("fine", 24), ("coarse", 10)):
        for code in (-1, number):
            bad = dict(codes) | {level: torch.full_like(codes[level], code)}
            with pytest.raises(
                ValueError,
                match=f"`{level}` must be \\(batch, length\\) codes from 0 to {number - 1}",
            ):
                model.decode(**bad)
    with pytest.raises(
        ValueError, match="must be a multiple of 8, and of `window_length`=16 .*, got 24"
    ):
        model.decode(codes.fine[:, :12], codes.coarse[:, :3])
    with pytest.raises(ValueError, match="`input_ids` must be \\(batch, length\\), got \\(32,\\)"):
        model.encode(texts()[0])
    with pytest.raises(ValueError, match="`hidden` needs a model with a `mask_token_id`"):
        make(mask_token_id=None)(texts(), hidden=torch.ones(4, 32, dtype=torch.bool))


def test_the_default_sizes_make_a_model_of_about_a_million_parameters():
    model = AutoencoderVQTextModel(VOCAB)
    assert model.code_length == 8 and 1e6 < model.num_parameters() < 2e6


def test_the_decoder_sees_the_sum_of_what_both_levels_say_of_a_patch():
    model = make()
    seen = []
    model.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    codes = model.encode(texts(length=16))
    model.decode(codes.fine, codes.coarse)
    book = model.quantize_coarse.layer.codebook[codes.coarse].numpy()  # (B, 2, dim)
    for layer in (model.quantize_coarse.layer.project_out, model.coarse_out):
        book = book @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    detail = model.quantize_fine.vectors(codes.fine).detach().numpy()  # (B, 8, D)
    np.testing.assert_allclose(
        seen[-1].detach().numpy(), book.reshape(4, 8, 32) + detail, atol=1e-5
    )
    coarse, fine = model.code_vectors("coarse"), model.code_vectors("fine")
    assert coarse.shape == (10, 4, 32) and fine.shape == (24, 1, 32)
    parts = coarse[codes.coarse].flatten(1, 2) + fine[codes.fine].squeeze(2)
    torch.testing.assert_close(seen[-1], parts, atol=1e-5, rtol=1e-5)
    assert make("one level").code_vectors("fine").shape == (24, 1, 32)
