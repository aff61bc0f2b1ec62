"""Laws of the classifier: soft tokens, padding, the clock, gradients to its inputs, round trip to disk.

A model over word embeddings also reads words off them, by Bayes' rule: against densities of torch.distributions.
"""

import pytest
import torch
from torch.distributions import Independent, Normal
from torch.nn.functional import one_hot

from text_diffusers import EmbeddingDDIMScheduler, TextClassifierModel

V, E, D, T = 40, 6, 32, 100
OF_EMBEDDINGS = {"embedding_dim": E, "num_train_timesteps": T, "vocab_size": None}
OF_EMBEDDINGS |= {"mask_token_id": None, "pad_token_id": None}
OF_WORDS = {"embedding_dim": E, "num_train_timesteps": T}


def make_classifier(**changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": V,
        "num_classes": 3,
        "hidden_size": D,
        "num_layers": 2,
        "num_attention_heads": 2,
    }
    model = TextClassifierModel(
        **sizes | {"max_length": 24, "mask_token_id": 39, "pad_token_id": 38} | changes
    )
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    if model.words_in is not None and model.config.num_train_timesteps == T:
        model.set_words(some_table(), EmbeddingDDIMScheduler(T).alphas_cumprod)
    return model.eval()


def some_table():
    """(V, E) embeddings of unequal norms."""
    return torch.randn(V, E, generator=torch.Generator().manual_seed(3))


def words(rows=3, length=9, seed=0):
    return torch.randint(0, 38, (rows, length), generator=torch.Generator().manual_seed(seed))


def latents(rows=3, length=9, seed=0):
    return torch.randn(rows, length, E, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_token", [False, True])
def test_one_hot_soft_tokens_are_tokens(per_token):
    model, ids = make_classifier(per_token=per_token), words()
    ids[0, 3:7] = 39
    soft = one_hot(ids, V).float() @ model.get_input_embeddings().weight
    assert torch.equal(model(inputs_embeds=soft, timestep=0.4).logits, model(ids, 0.4).logits)
    assert model(ids).logits.shape == ((3, 9, 3) if per_token else (3, 3))
    assert torch.equal(model(ids, 0.4, return_dict=False)[0], model(ids, 0.4).logits)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(
    "changes", [{}, OF_EMBEDDINGS, OF_WORDS], ids=["tokens", "embeddings", "words"]
)
def test_padding_and_other_rows_do_not_matter(per_token, changes):
    model = make_classifier(per_token=per_token, **changes)
    name, source = ("inputs_embeds", latents) if changes else ("input_ids", words)
    short, other = source(), source(3, 6, seed=1)
    padded, mask = (
        torch.cat([short, other], dim=1),
        (torch.arange(15) < torch.tensor([[9], [9], [15]])).long(),
    )
    times = torch.tensor([10.0, 50.0, 90.0]) / (1 if changes else T)
    together = model(**{name: padded}, timestep=times, attention_mask=mask).logits
    for row in (0, 1):
        alone = model(**{name: short[row : row + 1]}, timestep=times[row]).logits
        torch.testing.assert_close(
            together[row : row + 1, :9] if per_token else together[row : row + 1], alone
        )
    unmasked = model(**{name: padded}, timestep=times).logits
    assert (unmasked[:2] - together[:2]).abs().max() > 1e-3
    torch.testing.assert_close(unmasked[2], together[2])


@pytest.mark.parametrize("per_token", [False, True])
def test_batch_order_is_that_of_the_logits_and_positions_matter(per_token):
    model, ids = make_classifier(per_token=per_token), words(5)
    order, times = torch.tensor([3, 0, 4, 2, 1]), torch.linspace(0, 1, 5)
    torch.testing.assert_close(
        model(ids[order], times[order]).logits, model(ids, times).logits[order]
    )
    backwards = model(ids.flip(1), times).logits
    assert (
        (backwards.flip(1) if per_token else backwards) - model(ids, times).logits
    ).abs().max() > 1e-3


def test_a_text_of_masks_is_one_text_at_each_time():
    model, masks = make_classifier(), torch.full((2, 9), 39)
    both = model(masks, torch.tensor([1.0, 0.3])).logits
    assert both.isfinite().all() and (both[0] - both[1]).abs().max() > 1e-3
    timeless = make_classifier(time_conditioning=False)
    assert torch.equal(timeless(masks, 0.3).logits, timeless(masks).logits)


def test_the_clock_counts_shares_and_no_time_is_clean():
    short, long = (
        make_classifier(**OF_EMBEDDINGS | {"num_train_timesteps": steps}) for steps in (200, 2000)
    )
    at = lambda model, time: model(inputs_embeds=latents(), timestep=time).logits  # noqa: E731
    torch.testing.assert_close(at(short, 57), at(long, 570))
    torch.testing.assert_close(at(long, torch.tensor([57, 570, 0]))[1:2], at(long, 570)[1:2])
    assert (
        torch.equal(at(long, None), at(long, 0)) and (at(long, 57) - at(long, 0)).abs().max() > 1e-3
    )


@pytest.mark.parametrize(
    "changes", [{}, OF_EMBEDDINGS, OF_WORDS], ids=["tokens", "embeddings", "words"]
)
@pytest.mark.parametrize("time", [0.05, 0.3, 0.9])
def test_the_gradient_of_the_log_probability_reaches_the_inputs(changes, time):
    """Against central differences in float64."""
    model, width = make_classifier(**changes).double(), E if changes else D
    inputs = torch.randn(
        2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    time = time * (T if changes else 1)

    def log_prob(x):
        return model(inputs_embeds=x, timestep=time).logits.log_softmax(dim=-1)[:, 1]

    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(inputs).sum(), inputs)
    direction = torch.randn(
        inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        slope = (log_prob(inputs + 1e-5 * direction) - log_prob(inputs - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(dim=(1, 2)), slope, rtol=1e-5, atol=1e-8)
    assert gradient.abs().amax(dim=2).min() > 0


def test_the_gradient_goes_through_the_words():
    """All of it, where the network does not see the embeddings themselves."""
    model, inputs = make_classifier(**OF_WORDS), latents().requires_grad_()
    torch.nn.init.zeros_(model.proj_in.weight)
    (gradient,) = torch.autograd.grad(
        model(inputs_embeds=inputs, timestep=60).logits[:, 0].sum(), inputs
    )
    assert gradient.abs().amax(dim=2).min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_words_are_read_by_bayes_rule(dtype):
    """Rows at their own times, against the densities of the noisy embeddings of all words."""
    model, alphas = make_classifier(**OF_WORDS), EmbeddingDDIMScheduler(T).alphas_cumprod.double()
    model = model.to(dtype)
    times, ids = torch.tensor([0, 3, 30, 70, 98]), words(5)
    alpha, noise = (
        alphas[times, None, None],
        torch.randn(5, 9, E, generator=torch.Generator().manual_seed(5)),
    )
    table = some_table().double()
    noisy = (alpha.sqrt() * table[ids] + (1 - alpha).sqrt() * noise).to(dtype)  # (B, L, E)
    # (B, 1, V)
    clouds = Independent(
        Normal(alpha.sqrt().unsqueeze(-1) * table, (1 - alpha).sqrt().unsqueeze(-1)), 1
    )
    want = clouds.log_prob(noisy.double().unsqueeze(2)).softmax(dim=-1)
    got = model.word_probs(noisy, times)
    assert got.dtype == dtype and got.shape == (5, 9, V)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)
    assert want[2].max() < 0.999 and want[2].max() > 0.2  # neither end


def test_words_are_certain_at_the_least_noise_and_alike_at_the_most():
    """At a millionth of the variance log-likelihoods are millions, which float32 holds without overflow."""
    model, ids = make_classifier(**OF_WORDS), words()
    model.set_words(some_table(), torch.linspace(1 - 1e-6, 0, T, dtype=torch.float64))
    noisy = some_table()[ids] + 1e-3 * latents()
    torch.testing.assert_close(
        model.word_probs(noisy, 0), one_hot(ids, V).float(), rtol=0, atol=1e-6
    )
    assert torch.equal(model.word_probs(noisy), model.word_probs(noisy, 0))
    torch.testing.assert_close(model.word_probs(latents(), T - 1), torch.full((3, 9, V), 1 / V))
    table = torch.nn.functional.normalize(some_table(), dim=-1) * E**0.5
    model.set_words(table, EmbeddingDDIMScheduler(2000).alphas_cumprod[:: 2000 // T])
    clean = model.word_probs(table[ids], 0)
    assert (
        torch.equal(clean.argmax(dim=-1), ids) and clean.gather(2, ids.unsqueeze(-1)).min() > 0.999
    )
    assert model.word_probs(latents(), T - 1).sub(1 / V).abs().max() < 1 / V


def test_half_precision_reads_the_same_words():
    """Under autocast: a rounding error of one in 256 of a log-likelihood of thousands would be another word."""
    model, ids, table = make_classifier(**OF_WORDS), words(), 3 + some_table() / 10
    model.set_words(table, torch.linspace(1 - 1e-4, 0, T, dtype=torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.word_probs(table[ids], 0).argmax(dim=-1), ids)
    signal, power = model.evidence[:, 0]
    rounded = (
        signal * table[ids]
    ).bfloat16() @ table.bfloat16().T - power / 2 * table.square().sum(dim=-1)
    assert (rounded.argmax(dim=-1) != ids).any()


def test_the_network_is_shown_the_mean_of_its_vectors_of_words():
    """Certain words are seen as their own vectors, so the classifier is that of tokens with proj_in added."""
    model, ids = make_classifier(**OF_WORDS), words()
    model.set_words(some_table(), torch.linspace(1 - 1e-6, 0, T, dtype=torch.float64))
    of_tokens = make_classifier(num_train_timesteps=T)
    weights = {name: t for name, t in model.state_dict().items() if name in of_tokens.state_dict()}
    of_tokens.load_state_dict(weights | {"token_embedding.weight": model.words_in.weight})
    clean = some_table()[ids]
    soft = model.words_in(ids) + model.proj_in(clean)
    got = model(inputs_embeds=clean, timestep=0).logits
    torch.testing.assert_close(got, of_tokens(inputs_embeds=soft, timestep=0).logits)


def toy_batch(table, generator, rows=64, length=6):
    """Clean embeddings of texts of words of even or of odd ids, and which."""
    labels = torch.randint(0, 2, (rows,), generator=generator)
    ids = 2 * torch.randint(
        0, len(table) // 2, (rows, length), generator=generator
    ) + labels.unsqueeze(1)
    return table[ids], labels


@pytest.mark.slow
def test_words_of_random_embeddings_are_told_apart_in_few_steps():
    """Of 400 words in 16 dimensions; a network without words has yet to find out which is which."""
    table = (
        torch.nn.functional.normalize(
            torch.randn(400, 16, generator=torch.Generator().manual_seed(0)), dim=-1
        )
        * 4
    )
    scheduler, sizes = (
        EmbeddingDDIMScheduler(T),
        {"hidden_size": D, "num_layers": 1, "num_attention_heads": 2},
    )
    accuracies = {}
    for vocab_size in (400, None):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model = TextClassifierModel(vocab_size, embedding_dim=16, num_train_timesteps=T, **sizes)
        if vocab_size:
            model.set_words(table, scheduler.alphas_cumprod)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(100):
            clean, labels = toy_batch(table, generator)
            times = torch.randint(0, T, (64,), generator=generator)
            noisy = scheduler.add_noise(clean, torch.randn(clean.shape, generator=generator), times)
            loss = torch.nn.functional.cross_entropy(
                model(inputs_embeds=noisy, timestep=times).logits, labels
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        clean, labels = toy_batch(table, generator, rows=500)
        found = model.eval()(inputs_embeds=clean, timestep=0).logits.argmax(dim=-1)
        accuracies[vocab_size] = float((found == labels).float().mean())
    assert accuracies[400] > 0.95 and accuracies[None] < accuracies[400] - 0.1, accuracies


def test_an_untrained_classifier_knows_nothing():
    model = TextClassifierModel(
        V, num_classes=4, hidden_size=D, num_layers=1, num_attention_heads=2
    )
    assert torch.equal(model(words(), 0.5).logits, torch.zeros(3, 4))
    assert not hasattr(model, "evidence") and model.words_in is None
    model = TextClassifierModel(V, embedding_dim=E, num_train_timesteps=T)
    assert abs(float(model.words_in.weight.detach().std()) - 0.1) < 0.01
    assert torch.equal(model.word_probs(latents(), 5), torch.full((3, 9, V), 1 / V))


def test_gradient_checkpointing_computes_the_same():
    gradients = []
    for checkpointing in (False, True):
        model = make_classifier().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(words(), 0.5).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "changes",
    [{}, {"per_token": True, "labels": ["a", "b", "c"]}, OF_EMBEDDINGS, OF_WORDS],
    ids=str,
)
def test_a_saved_classifier_is_the_same(changes, tmp_path):
    model = make_classifier(**changes)
    model.save_pretrained(tmp_path)
    loaded = TextClassifierModel.from_pretrained(tmp_path)
    inputs = {"inputs_embeds": latents()} if "embedding_dim" in changes else {"input_ids": words()}
    time = 70 if "embedding_dim" in changes else 0.7
    assert torch.equal(
        loaded(**inputs, timestep=time).logits, model(**inputs, timestep=time).logits
    )
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in loaded.state_dict().items()
    )
    assert ("evidence" in loaded.state_dict()) == (changes is OF_WORDS)
    assert loaded.config.labels == changes.get("labels") and not loaded.training


def test_a_model_over_embeddings_needs_no_vocabulary():
    model = make_classifier(vocab_size=None, embedding_dim=E, mask_token_id=None, pad_token_id=None)
    assert (
        model(inputs_embeds=latents()).logits.shape == (3, 3)
        and model.get_input_embeddings() is None
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": None}, "`vocab_size` must be an integer of at least 1, got None"),
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2, got 1"),
        ({"labels": ["a"]}, "`labels` must be None or 3 names, one a class"),
        (
            {"embedding_dim": E},
            "`num_train_timesteps` must be an integer with both `embedding_dim` and `vocab_size`",
        ),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1, got 0"),
        (
            {"num_train_timesteps": 0},
            "`num_train_timesteps` must be None or an integer of at least 1, got 0",
        ),
        (
            {"num_attention_heads": 5},
            "`hidden_size` must be an even multiple of `num_attention_heads`",
        ),
        ({"pad_token_id": 40}, "`pad_token_id` must be in the vocabulary of 40, got 40"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**changes)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "Either `input_ids` or `inputs_embeds`"),
        (
            {"input_ids": words(), "inputs_embeds": torch.zeros(3, 9, D)},
            "Either `input_ids` or `inputs_embeds`",
        ),
        ({"input_ids": words(2, 25)}, r"length of 1 to `max_length`=24, got \(2, 25\)"),
        ({"inputs_embeds": torch.zeros(3, 9, E)}, r"`inputs_embeds` must be \(batch, length, 32\)"),
        (
            {"input_ids": words(), "timestep": torch.zeros(2)},
            r"`timestep` must be \(\) or \(3,\), one a row",
        ),
        (
            {"input_ids": words(), "attention_mask": torch.zeros(3, 9)},
            "with a real token in each row",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_classifier()(**inputs)
    if "input_ids" in inputs and len(inputs) == 1:
        with pytest.raises(
            ValueError, match="`inputs_embeds` must be given to a model with `embedding_dim`=6"
        ):
            make_classifier(**OF_WORDS)(words())


def test_words_that_do_not_fit_are_refused():
    table, alphas = some_table(), EmbeddingDDIMScheduler(T).alphas_cumprod
    for changes in ({}, OF_EMBEDDINGS):
        with pytest.raises(
            ValueError, match="`set_words` needs a model with `embedding_dim` and `vocab_size`"
        ):
            make_classifier(**changes).set_words(table, alphas)
        with pytest.raises(
            ValueError, match="`word_probs` needs a model with `embedding_dim` and `vocab_size`"
        ):
            make_classifier(**changes).word_probs(latents())
    model = make_classifier(**OF_WORDS)
    with pytest.raises(ValueError, match=r"`table` must be \(40, 6\) and finite, got \(6, 40\)"):
        model.set_words(table.T, alphas)
    with pytest.raises(ValueError, match=r"`table` must be \(40, 6\) and finite, got \(40, 6\)"):
        model.set_words(table * torch.inf, alphas)
    for wrong in (alphas[1:], alphas / alphas[0], alphas - 1):
        with pytest.raises(
            ValueError, match=r"`alphas_cumprod` must be \(100,\), at least 0 and below 1, got"
        ):
            model.set_words(table, wrong)
