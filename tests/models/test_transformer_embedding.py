"""Laws of the transformer over word embeddings: rows and padding, self-conditioning, given words, rounding."""

import pytest
import torch
from torch.nn.functional import normalize, pad

from text_diffusers import EmbeddingDDIMScheduler, EmbeddingTransformerModel

V, E = 40, 8


def make_model(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": V,
        "embedding_dim": E,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
    }
    model = EmbeddingTransformerModel(
        **sizes | {"max_length": 24, "mask_token_id": 39, "pad_token_id": 38} | changes
    )
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def noise(rows=3, length=9, seed=0):
    return torch.randn(rows, length, E, generator=torch.Generator().manual_seed(seed))


def words(rows=3, length=9, seed=0):
    return torch.randint(0, 38, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_padding_and_other_rows_do_not_matter_and_every_position_sees_every_other():
    model, sample = make_model(), noise()
    times = torch.tensor([5, 900, 1999])
    alone = model(sample[1:2], 900).sample
    padded = torch.cat([sample, noise(3, 6, seed=1)], dim=1)
    mask = (torch.arange(15) < 9).long().expand(3, 15)
    torch.testing.assert_close(model(padded, times, mask).sample[1:2, :9], alone, atol=1e-5, rtol=0)
    assert (model(padded, times).sample[1:2, :9] - alone).abs().max() > 1e-3
    changed = sample.clone()
    changed[1, 8] += 1
    assert (model(changed, times).sample[1] - model(sample, times).sample[1]).abs().amax(
        dim=-1
    ).min() > 1e-6


def test_the_network_sees_the_share_of_the_clock_and_not_its_length():
    short, long = make_model(num_train_timesteps=200), make_model(num_train_timesteps=2000)
    torch.testing.assert_close(short(noise(), 57).sample, long(noise(), 570).sample)
    assert (long(noise(), 57).sample - long(noise(), 570).sample).abs().max() > 1e-3


def test_no_earlier_estimate_is_zeros_and_at_first_none_matters():
    model, estimate = make_model(), noise(seed=2)
    torch.testing.assert_close(
        model(noise(), 7).sample, model(noise(), 7, self_condition=0 * estimate).sample
    )
    assert (
        model(noise(), 7).sample - model(noise(), 7, self_condition=estimate).sample
    ).abs().max() > 1e-3
    fresh = {
        "vocab_size": V,
        "embedding_dim": E,
        "hidden_size": 32,
        "num_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    with_it = EmbeddingTransformerModel(**fresh, categorical_output=True)
    without = EmbeddingTransformerModel(**fresh, categorical_output=True, self_conditioning=False)
    without.load_state_dict(
        {name: t for name, t in with_it.state_dict().items() if "self_condition" not in name}
    )
    torch.testing.assert_close(
        with_it(noise(), 7, self_condition=estimate).sample, without(noise(), 7).sample
    )


def test_training_is_embedding_corruption_and_denoising_in_one_call():
    model, ids, fixed = make_model(), words(), noise(seed=3)
    output = model(
        None, 300, input_ids=ids, corrupt=lambda clean: (clean + 0.1 * fixed, 0.5 * clean + fixed)
    )
    torch.testing.assert_close(output.clean, model.embed(ids))
    torch.testing.assert_close(output.start, output.clean + 0.1 * fixed)
    torch.testing.assert_close(output.noisy, 0.5 * output.clean + fixed)
    torch.testing.assert_close(output.sample, model(output.noisy, 300).sample)
    torch.testing.assert_close(output.start_logits, output.start @ model.embedding_table().T)
    torch.testing.assert_close(output.logits, output.sample @ model.embedding_table().T)
    sum(value.sum() for value in output.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("normalized", [True, False])
def test_embeddings_are_rows_of_the_table(normalized):
    model = make_model(normalize_embeddings=normalized)
    weight = model.token_embedding.weight
    table = normalize(weight, dim=-1) * E**0.5 if normalized else weight
    torch.testing.assert_close(model.embed(words()), table[words()])
    if normalized:
        torch.testing.assert_close(model.embed(words()).square().mean(dim=-1), torch.ones(3, 9))


def test_a_categorical_estimate_is_the_mean_embedding_of_its_words():
    model = make_model(categorical_output=True)
    output = model(noise(), 300)
    probabilities = output.logits.index_fill(-1, torch.tensor([38, 39]), -torch.inf).softmax(dim=-1)
    want = torch.einsum("blv,ve->ble", probabilities, model.embedding_table())
    torch.testing.assert_close(output.sample, want)
    # Inside the hull of unit embeddings.
    assert output.sample.square().mean(dim=-1).max() <= 1 + 1e-5


@pytest.mark.parametrize("normalized", [True, False])
def test_what_a_noisy_embedding_says_is_added_by_bayes_rule(normalized):
    """And shown to the network; one that says nothing is the exact posterior mean of equally frequent words."""
    alphas = EmbeddingDDIMScheduler(num_train_timesteps=50).alphas_cumprod
    model = make_model(
        categorical_output=True, num_train_timesteps=50, normalize_embeddings=normalized
    )
    model.set_noise(alphas)
    times, sample, table = torch.tensor([2, 20, 49]), noise(), model.embedding_table()
    alpha = alphas[times].view(3, 1, 1, 1).float()
    words = torch.distributions.Normal(alpha.sqrt() * table, (1 - alpha).sqrt())
    evidence = words.log_prob(sample.unsqueeze(2)).sum(dim=-1)  # (B, L, V)
    shown = model._own_words(sample, times, None)
    torch.testing.assert_close(
        shown, pad(evidence[..., :38].softmax(dim=-1), (0, 2)), atol=1e-5, rtol=1e-4
    )
    given = torch.arange(9).expand(3, 9) < 2
    least = model._own_words(sample, 0, None)
    torch.testing.assert_close(model._own_words(sample, times, given)[given], least[given])
    for layer in (model.proj_out, model.word_head):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    got = model(sample, times)
    torch.testing.assert_close(
        got.logits.log_softmax(-1), evidence.log_softmax(-1), atol=1e-3, rtol=1e-4
    )
    posterior = evidence[..., :38].softmax(dim=-1) @ table[:38]
    torch.testing.assert_close(got.sample, posterior, atol=1e-4, rtol=1e-4)


def test_noise_that_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match="`set_noise` needs a model with `categorical_output=True`"
    ):
        make_model().set_noise(torch.full((2000,), 0.5))
    for alphas in (torch.full((3,), 0.5), torch.ones(2000)):
        with pytest.raises(
            ValueError, match=r"`alphas_cumprod` must be \(2000,\) and between 0 and 1"
        ):
            make_model(categorical_output=True).set_noise(alphas)


@pytest.mark.parametrize("rounding", ["head", "nearest", "codebook"])
@pytest.mark.parametrize("normalized", [True, False])
def test_clean_embeddings_round_to_their_words(rounding, normalized):
    """The largest dot product finds them where all norms are equal; distances find them always."""
    model = make_model(rounding=rounding, normalize_embeddings=normalized)
    if rounding == "codebook":
        model.set_codebook(model.embedding_table().detach(), torch.arange(V))
    found = model.round(model.embed(words()))
    assert torch.equal(found, words()) == (normalized or rounding != "head")
    # Padding and mask are never written.
    assert model.round(100 * noise()).max() < 38
    assert model.round(model.embed(torch.tensor([[38, 39]]))).max() < 38


def test_a_codebook_that_was_not_set_is_that_of_the_words_as_they_are(tmp_path):
    model = make_model(rounding="codebook", normalize_embeddings=False)
    torch.nn.init.normal_(model.token_embedding.weight)
    assert torch.equal(model.codebook, model.embedding_table())
    assert torch.equal(model.round(model.embed(words())), words())

    model.save_pretrained(tmp_path)
    loaded = EmbeddingTransformerModel.from_pretrained(tmp_path)
    torch.nn.init.normal_(loaded.token_embedding.weight)
    assert torch.equal(loaded.codebook, loaded.embedding_table())
    with pytest.raises(ValueError, match="`token_ids` must be ids of words, not only of padding"):
        model.set_codebook(torch.randn(V, E), torch.full((V,), 38))
    with pytest.raises(ValueError, match="`codebook_tokens` must hold the id of a word"):
        make_model(rounding="codebook", codebook_size=1).round(noise(), excluded_ids=[0])


def test_nearest_words_agree_with_all_distances_and_are_idempotent():
    model, points = make_model(rounding="nearest", normalize_embeddings=False), noise()
    table = model.embedding_table()
    brute = torch.cdist(points, table[:38].expand(3, 38, E)).argmin(dim=-1)
    assert torch.equal(model.round(points), brute)
    snapped = model.nearest_words(points)
    assert torch.equal(snapped, table[brute]) and torch.equal(model.nearest_words(snapped), snapped)


def test_a_codebook_may_have_several_codes_a_word(tmp_path):
    model = make_model(rounding="codebook", codebook_size=3)
    codes = torch.zeros(3, E)
    codes[0, 0], codes[1, 0], codes[2, 0] = -4.0, 0.0, 4.0
    model.set_codebook(codes, torch.tensor([5, 11, 5]))
    model.save_pretrained(tmp_path)
    loaded = EmbeddingTransformerModel.from_pretrained(tmp_path)
    points = torch.zeros(1, 4, E)
    points[0, :, 0] = torch.tensor([-3.0, 1.0, 9.0, -1.5])
    assert loaded.round(points).tolist() == [[5, 11, 5, 11]]
    with pytest.raises(ValueError, match=r"must be \(3, 8\) and \(3,\), got \(2, 8\), \(3,\)"):
        model.set_codebook(codes[:2], torch.tensor([5, 11, 5]))
    with pytest.raises(ValueError, match="`token_ids` must be in the vocabulary of 40"):
        model.set_codebook(codes, torch.tensor([5, 11, 40]))
    with pytest.raises(ValueError, match="`rounding` must be \"codebook\" to set one, got 'head'"):
        make_model().set_codebook(codes, torch.tensor([5, 11, 5]))


def test_embeddings_that_stay_have_no_gradient_and_are_saved(tmp_path):
    model = make_model(train_embeddings=False)
    assert "token_embedding.weight" not in dict(model.named_parameters())
    model.token_embedding.weight.normal_()
    model.save_pretrained(tmp_path)
    loaded = EmbeddingTransformerModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.embedding_table(), model.embedding_table(), rtol=0, atol=0)
    torch.testing.assert_close(loaded(noise(), 300).sample, model(noise(), 300).sample)


def test_given_words_and_labels_matter_only_where_the_model_knows_them():
    model = make_model(partial_noising=True, num_classes=2)
    sample, given = noise(), torch.arange(9).expand(3, 9) < 4
    base = model(sample, 7).sample
    torch.testing.assert_close(
        model(sample, 7, given=torch.zeros(3, 9, dtype=torch.bool)).sample, base
    )
    assert (model(sample, 7, given=given).sample - base).abs().max() > 1e-3
    torch.testing.assert_close(model(sample, 7, class_labels=torch.tensor([2, 2, 2])).sample, base)
    assert (model(sample, 7, class_labels=torch.tensor([0, 1, 1])).sample - base).abs().max() > 1e-3
    with pytest.raises(
        ValueError,
        match="`given` was passed, but this model was built with `partial_noising=False`",
    ):
        make_model()(sample, 7, given=given)
    with pytest.raises(ValueError, match="`class_labels` must be between 0 and 1"):
        model(sample, 7, class_labels=torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="built with `num_classes=None`"):
        make_model()(sample, 7, class_labels=torch.tensor([0, 1, 1]))


def test_gradient_checkpointing_leaves_gradients_as_they_are():
    plain, saving = make_model(), make_model()
    saving.enable_gradient_checkpointing()
    for model in (plain, saving):
        model.train()(noise(), 7).sample.square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1, got 0"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "even multiple of `num_attention_heads`"),
        ({"prediction_type": "noise"}, "`prediction_type` must be one of .*, got 'noise'"),
        ({"rounding": "argmax"}, "`rounding` must be one of .*, got 'argmax'"),
        (
            {"categorical_output": True, "prediction_type": "epsilon"},
            'needs `prediction_type="sample"`',
        ),
        (
            {"codebook_size": 4},
            '`codebook_size` must be at least 1 and needs `rounding="codebook"`',
        ),
        (
            {"time_bins": 3000},
            "`time_bins` must be between 0 and `num_train_timesteps`=2000, got 3000",
        ),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"pad_token_id": 40}, "`pad_token_id` must be in the vocabulary of 40, got 40"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)


def test_inputs_that_do_not_fit_are_refused():
    model = make_model()
    for sample in (noise(1, 25), torch.zeros(3, 9, 4), torch.zeros(9, E)):
        with pytest.raises(ValueError, match=r"`sample` must be \(batch, length, 8\)"):
            model(sample, 7)
    with pytest.raises(
        ValueError, match="`sample` must be given, or both `input_ids` and `corrupt`"
    ):
        model(None, 7, input_ids=words())
