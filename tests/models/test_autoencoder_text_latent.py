"""Laws of the autoencoder with continuous latents: padding, batches, the frozen encoder, writing, the bound."""

import itertools
import json
import math

import pytest
import torch
from support.latent_models import (
    DECODER_VOCAB,
    SIZES,
    decoder_config,
    encoder_config,
    make_autoencoder,
    padded,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from text_diffusers import AutoencoderTextLatentModel
from text_diffusers.losses import gaussian_kl

KINDS = {
    "kl": {},
    "noise": {"regularization": "noise"},
    "gpt2": {"model_type": "gpt2"},
    "one latent": {"num_latents": 1},
}
SOURCES = [[3, 4, 5, 6, 7], [8, 9], [10, 11, 12]]
TEXTS = [[1, 3, 4, 5], [1, 6, 7, 8, 9, 2], [1, 10]]


@pytest.fixture(params=KINDS)
def model(request):
    return make_autoencoder(**KINDS[request.param])


@torch.no_grad()
def test_padding_and_the_other_rows_change_neither_latents_nor_logits(model):
    latents = model.encode(*padded(SOURCES)).latents
    assert latents.shape == (3, model.config.num_latents, model.config.latent_size)
    ids, mask = padded(TEXTS)
    logits = model.decode_logits(latents, ids, mask)
    assert logits.shape == (*ids.shape, DECODER_VOCAB)

    for row, (source, text) in enumerate(zip(SOURCES, TEXTS, strict=True)):
        alone = model.encode(torch.tensor([source])).latents
        torch.testing.assert_close(alone[0], latents[row], atol=1e-5, rtol=1e-5)
        for more in ({"left": 3}, {"right": 2}):
            moved = model.encode(*padded([source], **more)).latents
            torch.testing.assert_close(moved, alone, atol=1e-6, rtol=1e-6)

        expected = model.decode_logits(alone, torch.tensor([text]))[0]
        torch.testing.assert_close(logits[row][mask[row].bool()], expected, atol=1e-5, rtol=1e-5)
        more_ids, more_mask = padded([text], left=2, right=3)
        moved = model.decode_logits(alone, more_ids, more_mask)[more_mask.bool()]
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)
    assert (latents[0] - latents[1]).abs().max() > 0.05


@torch.no_grad()
def test_a_logit_is_of_the_token_at_its_place_and_sees_latents_and_the_tokens_before(model):
    latents = model.encode(*padded(SOURCES)).latents
    ids = torch.tensor([[1, 3, 4, 5]] * 3)
    logits = model.decode_logits(latents, ids)
    for place in range(4):
        changed = ids.clone()
        changed[:, place] = 11
        moved = (model.decode_logits(latents, changed) - logits).abs().amax(dim=(0, 2))
        assert (moved[: place + 1] < 1e-6).all() and (moved[place + 1 :] > 1e-4).all()
    # The first token is told by the latents alone, and by each of them.
    for number in range(model.config.num_latents):
        changed = latents.clone()
        changed[:, number] += 1
        assert (model.decode_logits(changed, ids) - logits).abs().amax(dim=(1, 2)).min() > 1e-4

    positions = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool()
    some = model.decode_logits(latents, ids, positions=positions)
    torch.testing.assert_close(some, logits[positions], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_the_decoder_is_the_language_model_behind_the_prefix(model):
    """By transformers itself, of embeddings that are put together by hand."""
    latents = model.encode(*padded(SOURCES)).latents
    decoder = model.decoder
    told = latents @ decoder.prefix_in.weight.T + decoder.prefix_in.bias + decoder.places
    ids = torch.tensor([[1, 3, 4, 5]] * 3)
    words = decoder.language_model.get_input_embeddings()(ids)
    output = decoder.language_model(inputs_embeds=torch.cat([told, words], dim=1)).logits
    expected = output[:, model.config.num_latents - 1 : -1]
    torch.testing.assert_close(model.decode_logits(latents, ids), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_its_latents_a_text_depends_on_none_and_hidden_words_are_not_seen(model):
    ids, mask = padded(TEXTS)
    sources, source_mask = padded(SOURCES)
    dropped = torch.ones(3, model.config.num_latents, dtype=torch.bool)
    told = {"decoder_ids": ids, "attention_mask": source_mask, "decoder_mask": mask}
    without = model(sources, **told, dropped_latents=dropped).logits
    other = model(sources.flip(0), **told | {"attention_mask": source_mask.flip(0)}).logits
    assert torch.equal(without, model(sources + 1, **told, dropped_latents=dropped).logits)
    real = mask.bool()
    torch.testing.assert_close(without[real], model.decode_logits(None, ids, mask)[real])
    assert (other - model(sources, **told).logits).abs().max() > 1e-3

    ids = torch.tensor([[1, 3, 4, 5]] * 3)
    hidden = torch.tensor([[0, 1, 0, 0]] * 3).bool()
    told = {"attention_mask": source_mask, "hidden_words": hidden}
    logits = model(sources, ids, **told).logits
    ids[:, 1] = 12
    torch.testing.assert_close(model(sources, ids, **told).logits, logits, atol=0, rtol=0)


def test_a_frozen_encoder_never_changes_and_a_trained_one_does():
    for trained in (False, True):
        model = make_autoencoder(train_encoder=trained).train()
        assert model.encoder.training == trained
        before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=0.1, weight_decay=0.1)
        ids, mask = padded(TEXTS)
        output = model(*padded(SOURCES)[:1], ids, decoder_mask=mask)
        output.logits.square().mean().backward()
        optimizer.step()
        same = [torch.equal(before[name], v) for name, v in model.encoder.state_dict().items()]
        assert all(same) != trained
        assert (model.perceiver.queries.weight.grad != 0).any()


def test_gradient_checkpointing_reaches_the_blocks_of_the_decoder():
    model = make_autoencoder().train()
    model.enable_gradient_checkpointing()
    calls = []
    layer = model.decoder.language_model.model.layers[0]
    layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model(torch.tensor(SOURCES[:1]), torch.tensor(TEXTS[:1])).logits.sum().backward()
    assert len(calls) == 2


@torch.no_grad()
def test_dropout_of_a_frozen_encoder_is_off_in_training():
    model = make_autoencoder().train()
    latents = [model.encode(*padded(SOURCES)).latents for _ in range(2)]
    assert torch.equal(*latents)


@torch.no_grad()
def test_a_saved_folder_holds_all_and_gives_the_same_numbers(model, tmp_path):
    mean = torch.randn(model.latent_mean.shape)
    model.set_latent_statistics(mean, torch.rand(mean.shape))
    model.save_pretrained(tmp_path)
    loaded, report = AutoencoderTextLatentModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name

    assert {p.requires_grad for p in loaded.encoder.parameters()} == {False}

    # Tied to each other, also in what is loaded
    language_model = loaded.decoder.language_model
    assert language_model.get_output_embeddings().weight is (
        language_model.get_input_embeddings().weight
    )
    ids, mask = padded(TEXTS)
    outputs = [one(*padded(SOURCES)[:1], ids, decoder_mask=mask) for one in (model, loaded)]
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    # Parameters by the names that training has for them
    again = AutoencoderTextLatentModel.from_config(model.config).eval()
    again.load_state_dict(model.state_dict() | dict(model.named_parameters()))
    assert torch.equal(
        again.encode(*padded(SOURCES)).latents, model.encode(*padded(SOURCES)).latents
    )


@torch.no_grad()
def test_weights_of_pretrained_models_are_taken_over(tmp_path):
    encoder = AutoModel.from_config(AutoConfig.for_model(**encoder_config()))
    decoder = AutoModelForCausalLM.from_config(AutoConfig.for_model(**decoder_config()))
    encoder.save_pretrained(tmp_path / "encoder")
    decoder.save_pretrained(tmp_path / "decoder")
    models = [
        AutoencoderTextLatentModel.from_language_models(*pair, **SIZES).eval()
        for pair in ((encoder, decoder), (tmp_path / "encoder", str(tmp_path / "decoder")))
    ]
    for model in models:
        inputs = {"input_ids": torch.tensor(SOURCES[:1])}
        states = model.encoder(**inputs)[0]
        torch.testing.assert_close(states, encoder.eval()(**inputs)[0])
        for name, value in decoder.state_dict().items():
            assert torch.equal(model.decoder.language_model.state_dict()[name], value)
        # A prefix as large as the embeddings of words
        told = model.decoder.prefix(torch.randn(64, 3, 4), 64).std()
        size = decoder.get_input_embeddings().weight.std()
        assert 1 < told / size < 2
        # Nothing says where they came from.
        assert str(tmp_path) not in json.dumps(model.config)


@torch.no_grad()
def test_texts_are_the_likeliest_tokens_and_a_text_is_the_same_alone_and_in_a_batch(model):
    latents = model.encode(*padded(SOURCES)).latents
    prompts, mask = padded(TEXTS)
    written = model.generate(latents, prompts, mask, max_new_tokens=5)
    assert written.shape == (3, 5)
    for row, text in enumerate(TEXTS):
        # Without a cache, token by token
        tokens = list(text)
        for _ in range(5):
            longer = torch.tensor([[*tokens, 0]])
            tokens.append(int(model.decode_logits(latents[row : row + 1], longer)[0, -1].argmax()))
        assert written[row].tolist() == tokens[len(text) :]
        alone = model.generate(latents[row : row + 1], torch.tensor([text]), max_new_tokens=5)
        assert torch.equal(alone[0], written[row])

    def draws(chosen, **more):
        generators = [torch.Generator().manual_seed(row) for row in chosen]
        settings = {"do_sample": True, "temperature": 1.5, "top_p": 0.9, "max_new_tokens": 6}
        return model.generate(
            latents[chosen], prompts[chosen], mask[chosen], generator=generators, **settings | more
        )

    drawn = draws([0, 1, 2])
    for row in range(3):
        assert torch.equal(draws([row])[0], drawn[row])
    assert torch.equal(draws([0, 1, 2], temperature=0.0)[:, :5], written)


@torch.no_grad()
def test_drawn_tokens_have_the_probabilities_of_the_model():
    model = make_autoencoder(std=0.2)
    latents = model.encode(torch.tensor(SOURCES[:1])).latents.expand(4_000, -1, -1)
    drawn = model.generate(
        latents, max_new_tokens=1, do_sample=True, generator=torch.Generator().manual_seed(0)
    )
    logits = model.decode_logits(latents[:1], torch.zeros(1, 1, dtype=torch.long))
    expected = 4_000 * logits[0, 0].softmax(dim=-1)
    counts = torch.bincount(drawn[:, 0], minlength=DECODER_VOCAB)
    chi_square = float(((counts - expected).square() / expected).sum())
    assert chi_square < 43.8  # 0.1% of the distribution with 19 degrees of freedom


@torch.no_grad()
def test_a_text_ends_at_its_first_end_and_is_padded_behind_it(model):
    latents = model.encode(*padded(SOURCES)).latents
    full = model.generate(latents, max_new_tokens=6)
    end = int(full[0, 2])
    ended = model.generate(latents, max_new_tokens=6, end_token_ids=[end], pad_token_id=99)
    for row, tokens in zip(ended.tolist(), full.tolist(), strict=True):
        length = tokens.index(end) + 1 if end in tokens else 6
        assert row[:length] == tokens[:length][: len(row)]
        assert set(row[length:]) <= {99}


@torch.no_grad()
def test_normalised_latents_come_back(model):
    latents = model.encode(*padded(SOURCES)).latents
    std = latents.std(dim=0, correction=0)
    std[0, 0] = 0.0  # an entry that never varies
    model.set_latent_statistics(latents.mean(dim=0), std)
    normal = model.normalize(latents)
    torch.testing.assert_close(model.denormalize(normal), latents)
    torch.testing.assert_close(normal.mean(dim=0), torch.zeros_like(std), atol=1e-5, rtol=0)
    spread = normal.std(dim=0, correction=0).flatten()[1:]
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-4, rtol=0)
    assert float(model.latent_std[0, 0]) == 1


# The bound, by quadrature

WORDS = 4
GRID = torch.linspace(-14, 14, 6_001, dtype=torch.float64)


@pytest.fixture(scope="module")
def line():
    """A model of texts of two words out of four, with a single latent of one entry, and its p(x | z) on a grid."""
    torch.set_default_dtype(torch.float64)
    try:
        decoder = decoder_config("gpt2", vocab_size=WORDS)
        model = make_autoencoder(decoder_config=decoder, num_latents=1, latent_size=1, std=0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    texts = torch.tensor(list(itertools.product(range(WORDS), repeat=2)))
    log_probs = []
    with torch.no_grad():
        for text in texts:
            ids = text.expand(len(GRID), -1)
            scores = model.decode_logits(GRID[:, None, None], ids).log_softmax(dim=-1)
            log_probs.append(scores.gather(2, ids.unsqueeze(-1)).sum(dim=(1, 2)))
    return model, texts, torch.stack(log_probs)  # (16, grid)


def integral(values):
    return torch.trapezoid(values, GRID)


def log_normal(mean, std):
    return -0.5 * ((GRID - mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)


@torch.no_grad()
def test_the_bound_is_above_minus_log_p_by_the_divergence_of_the_true_posterior(line):
    model, texts, log_probs = line
    prior = log_normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    evidence = integral((log_probs + prior).exp())  # (16,), p(x)
    assert float(evidence.sum()) == pytest.approx(1, abs=1e-8)

    posterior = model.encode(texts + 5)
    assert posterior.latents.dtype == torch.float64
    for row in range(len(texts)):
        mean = posterior.latents[row].squeeze()
        std = (0.5 * posterior.logvar[row].squeeze()).exp()
        log_q = log_normal(mean, std)
        kl = gaussian_kl(posterior.latents[row], posterior.logvar[row]).sum()
        assert float(kl) == pytest.approx(float(integral(log_q.exp() * (log_q - prior))), abs=1e-8)

        bound = -integral(log_q.exp() * log_probs[row]) + kl
        log_p = evidence[row].log()
        gap = integral(log_q.exp() * (log_q - (log_probs[row] + prior - log_p)))
        assert bound + log_p >= -1e-9
        assert float(bound + log_p) == pytest.approx(float(gap), abs=1e-7)
        assert gap > 1e-4  # the encoder knows nothing of the decoder


# What is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_latents": 0}, "`num_latents` must be an integer of at least 1, got 0"),
        ({"num_latents": 33}, "`num_latents` must be an integer of at most 32, got 33"),
        ({"latent_size": 2.5}, "`latent_size` must be an integer, got 2.5"),
        ({"regularization": "l2"}, "`regularization` must be one of kl, noise, got 'l2'"),
        ({"noise_scale": -1.0}, "`noise_scale` must be a number of at least 0, got -1.0"),
        ({"hidden_size": 15}, "`hidden_size` must be an even multiple"),
        ({"encoder_config": {}}, "`encoder_config` must be a configuration of transformers"),
        ({"decoder_config": "gpt2"}, "`decoder_config` must be a mapping, got 'gpt2'"),
    ],
)
def test_models_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_autoencoder(**changes)


def test_inputs_that_make_no_sense_are_refused():
    model = make_autoencoder()
    latents = torch.zeros(2, 3, 4)
    ids = torch.ones(2, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"`input_ids` must be \(batch, length\), got \(5,\)"):
        model.encode(ids[0])
    with pytest.raises(ValueError, match=r"`attention_mask` must be \(2, 5\) as `input_ids`"):
        model.encode(ids, ids[:1])
    with pytest.raises(ValueError, match=r"`latents` must be \(2, 3, 4\), got \(2, 3, 5\)"):
        model.decode_logits(torch.zeros(2, 3, 5), ids)
    with pytest.raises(ValueError, match="`latents` must be given without `prompt_ids`, got None"):
        model.generate(None)
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer of at least 1"):
        model.generate(latents, max_new_tokens=0)
    with pytest.raises(ValueError, match="`max_new_tokens` and `prompt_ids` must be at most 61"):
        make_autoencoder("gpt2").generate(latents, max_new_tokens=62)
    with pytest.raises(ValueError, match="`input_ids` must be at most 64 tokens, got 65"):
        model.encode(ids[:, :1].expand(-1, 65))
    with pytest.raises(ValueError, match="`top_p` must be None or a number in"):
        model.generate(latents, do_sample=True, top_p=1.5)
    with pytest.raises(ValueError, match="`std` must be"):
        model.set_latent_statistics(torch.zeros(3, 4), torch.zeros(3))


# States of the encoder, and ids that are not written


@torch.no_grad()
def test_states_are_those_of_the_encoder_with_real_tokens_in_front():
    model = make_autoencoder()
    ids, mask = padded(SOURCES, left=2, right=1)
    states, real = model.encode_states(ids, mask)
    lengths = [len(source) for source in SOURCES]
    assert states.shape == (3, max(lengths), model.encoder.config.hidden_size)
    assert real.dtype == torch.bool and real.sum(dim=1).tolist() == lengths
    for row, source in enumerate(SOURCES):
        expected = model.encoder(torch.tensor([source]))[0][0]
        assert real[row, : len(source)].all()
        torch.testing.assert_close(states[row, : len(source)], expected, atol=1e-5, rtol=1e-5)

    # Latents are what is pooled of them, and nothing else.
    pooled = model.mean_out(model.perceiver(states, real, model.run_block))
    torch.testing.assert_close(pooled, model.encode(ids, mask).latents)


def test_suppressed_ids_are_never_written():
    model = make_autoencoder()
    latents = torch.randn(16, 3, 4, generator=torch.Generator().manual_seed(0))
    for draws in (False, True):
        free = model.generate(latents, max_new_tokens=8, do_sample=draws, temperature=2.0)
        most = int(free.flatten().mode().values)
        kept = model.generate(
            latents, max_new_tokens=8, do_sample=draws, temperature=2.0, suppressed_ids=[most]
        )
        assert most in free and most not in kept


def test_whether_the_decoder_reads_a_source_is_saved(tmp_path):
    make_autoencoder(reads_source=True).save_pretrained(tmp_path)
    assert AutoencoderTextLatentModel.from_pretrained(tmp_path).config.reads_source is True
    with pytest.raises(ValueError, match="`reads_source` must be"):
        make_autoencoder(reads_source=1)
