"""The recipe of the autoencoder with continuous latents end to end: models, adapters, and resumed runs."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.latent_models import decoder_config, encoder_config
from support.recipes import load_script
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from text_diffusers import AutoencoderTextLatentModel
from text_diffusers.evaluation import latent_statistics
from text_diffusers.training.loop import TrainingLoop

recipe = load_script("train_text_autoencoder")


@pytest.fixture
def config(text_file, tmp_path):
    def make(**changes):
        settings = {
            "dataset": str(text_file),
            "output_dir": str(tmp_path / "run"),
            "vocab_size": 300,
            "length": 24,
            "model_size": 16,
            "model_layers": 1,
            "num_latents": 2,
            "latent_size": 4,
            "hidden_size": 16,
            "num_layers": 1,
            "num_attention_heads": 2,
            "max_train_steps": 3,
            "train_batch_size": 8,
            "num_cpu_threads": 1,
            "num_samples": 1,
            "validation_rows": 4,
            "report_rows": 4,
            "num_rewritten": 2,
            "statistics_rows": 20,
        }
        return recipe.TextAutoencoderConfig(**settings | changes)

    return make


@pytest.fixture
def pretrained(tmp_path, tokenizer):
    """Folders of an encoder and a decoder with random weights, as transformers saves them."""
    torch.manual_seed(1)
    folders = {}
    for name, auto_class, settings in (
        ("encoder", AutoModel, encoder_config(vocab_size=len(tokenizer))),
        ("decoder", AutoModelForCausalLM, decoder_config("gpt2", vocab_size=len(tokenizer))),
    ):
        folder = tmp_path / name
        auto_class.from_config(AutoConfig.for_model(**settings)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders[name] = str(folder)
    return folders


@pytest.fixture
def pairs(tmp_path):
    """A file of texts, each with a source and some with a long one."""
    words = (
        "the cat sat on a mat and dog looked at bird sang in tree she was late for train".split()
    )
    random = np.random.default_rng(0)
    lines = []
    for number in range(60):
        text = " ".join(random.choice(words, 4))
        source = " ".join(random.choice(words, 2 + number % 9))
        lines.append(json.dumps({"text": text, "source": source}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def loaded(options):
    return AutoencoderTextLatentModel.from_pretrained(options.output_dir, subfolder="autoencoder")


def test_three_steps_give_an_autoencoder_with_small_models_of_its_own(config):
    options = config(gradient_accumulation_steps=2, ema_decay=0.5, regularization="kl")
    losses = recipe.main(options)
    assert len(losses) == 3 and all(np.isfinite(losses))
    model = loaded(options)
    tokenizer = AutoTokenizer.from_pretrained(Path(options.output_dir, "tokenizer"))
    assert model.decoder.vocab_size == len(tokenizer) and model.config.train_encoder
    assert Path(options.output_dir, "encoder_tokenizer").is_dir()
    latents = model.encode(torch.tensor([[5, 6, 7]])).latents
    assert model.generate(latents, max_new_tokens=3).shape == (1, 3)
    assert (model.latent_std != 1).any() and (model.latent_mean != 0).any()

    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    wanted = {"cross_entropy", "without_latents", "other_latents", "bound", "kl", "active_units"}
    assert wanted | {"exact_match", "unigram_entropy"} <= metrics.keys()
    assert metrics["bound"] >= metrics["kl"]


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}, {"regularization": "kl"}], ids=str)
def test_pretrained_models_are_learned_on_and_a_frozen_encoder_stays(config, pretrained, changes):
    options = config(**pretrained, encoder_length=20, ema_decay=0.0, **changes)
    assert options.learning_rate == (5e-4 if "lora_rank" in changes else 2e-4)
    recipe.main(options)
    model = loaded(options)
    encoder = AutoModel.from_pretrained(pretrained["encoder"])
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name

    decoder = AutoModelForCausalLM.from_pretrained(pretrained["decoder"])
    before = decoder.state_dict()
    after = model.decoder.language_model.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    # Adapters leave embeddings and norms as they are.
    assert changed and ("transformer.wte.weight" in changed) == ("lora_rank" not in changes)
    metrics = json.loads(Path(options.output_dir, "metrics.json").read_text())
    assert ("bound" in metrics) == ("regularization" in changes)


def test_rounded_weights_are_learned_on_and_what_is_saved_is_not_rounded(
    config, pretrained, tmp_path
):
    options = config(
        **pretrained,
        lora_rank=2,
        quantization="bf16",
        mixed_precision="bf16",
        ema_decay=0.0,
        words_share=0.5,
        validation_steps=2,
    )
    recipe.main(options)
    after = loaded(options).decoder.language_model.state_dict()
    before = AutoModelForCausalLM.from_pretrained(pretrained["decoder"]).state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(value.dtype == torch.float32 for value in after.values())
    # Adapters reach linear layers alone, and little of these.
    assert changed and all(name.endswith("weight") for name in changed)
    assert "transformer.wte.weight" not in changed
    for name in changed:
        torch.testing.assert_close(after[name], before[name], atol=0.05, rtol=0.05)


def test_a_decoder_knows_each_token_that_its_tokenizer_has_been_given(
    config, pretrained, tokenizer
):
    # As of a language model that never had a mask, the last token here
    known = len(tokenizer) - 1
    settings = AutoConfig.for_model(**decoder_config("gpt2", vocab_size=known))
    before = AutoModelForCausalLM.from_config(settings)
    before.save_pretrained(pretrained["decoder"])
    options = config(**pretrained, lora_rank=2)
    recipe.main(options)
    model = loaded(options)
    assert model.decoder.vocab_size == len(tokenizer)
    words = model.decoder.language_model.get_input_embeddings().weight
    assert torch.equal(words[:known], before.get_input_embeddings().weight)


def test_the_saved_model_is_the_trained_one_with_the_statistics_of_its_texts(config, monkeypatch):
    loops = []
    run = TrainingLoop.run
    monkeypatch.setattr(TrainingLoop, "run", lambda self: loops.append(self) or run(self))
    options = config(ema_decay=0.0)
    recipe.main(options)
    model = loaded(options)
    for name, value in loops[0].unwrapped.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-6, rtol=1e-6)
    mean, std = latent_statistics(model, loops[0].rows.rows, options.statistics_rows)
    torch.testing.assert_close(model.latent_mean, mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.latent_std, std, atol=1e-5, rtol=1e-4)


def test_with_sources_the_decoder_reads_them_and_the_encoder_does_not(config, pairs, monkeypatch):
    loops = []
    run = TrainingLoop.run
    monkeypatch.setattr(TrainingLoop, "run", lambda self: loops.append(self) or run(self))
    options = config(dataset=pairs, source_column="source", source_length=8, condition_dropout=0.5)
    assert all(np.isfinite(recipe.main(options)))
    model = loaded(options)
    assert model.config.reads_source and model.longest_text == options.row_length == 24 + 8 - 1

    # Half of the rows of a step have lost their source, and nothing of their text.
    tokenizer = AutoTokenizer.from_pretrained(Path(options.output_dir, "tokenizer"))
    shown = []
    monkeypatch.setattr(
        recipe, "latent_autoencoder_loss", lambda model, batch, *rest: shown.append(batch)
    )
    (loop,) = loops
    lost = 0
    for step in range(10):
        batch = loop.rows.batch(step)
        (part, uniform, generators), *_ = loop._micro_batches(batch, 1)
        loop.loss_function(model, part, uniform, generators)
        before, after = (rows["attention_mask"].bool() for rows in (batch, shown[-1]))
        for row in range(len(before)):
            ids = shown[-1]["input_ids"][row][after[row] & ~shown[-1]["given"][row]]
            text = batch["input_ids"][row][before[row] & ~batch["given"][row]]
            assert torch.equal(ids, text)
            read = batch["encoder_ids"][row][batch["encoder_mask"][row].bool()]
            assert tokenizer.decode(read, skip_special_tokens=True) == tokenizer.decode(
                text, skip_special_tokens=True
            )
            lost += int(shown[-1]["given"][row].sum()) == 2
    assert 25 <= lost <= 55  # of 80


def tensors_of(folder):
    """Every tensor of the last checkpoint and the saved model, by file and name."""
    saved = sorted(Path(folder, "checkpoints").iterdir())[-1]
    files = [*saved.glob("*.safetensors"), *Path(folder, "autoencoder").glob("*.safetensors")]
    return {
        f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()
    }


def test_a_run_that_is_stopped_resumes_to_the_last_digit(config, tmp_path, monkeypatch):
    settings = {"max_train_steps": 5, "lr_warmup_steps": 1, "num_samples": 0, "num_rewritten": 0}
    straight = recipe.main(config(output_dir=str(tmp_path / "a"), **settings))
    stopped = []
    step = TrainingLoop.train_step

    def signalled(loop):
        if loop.step == 2:
            signal.raise_signal(signal.SIGTERM)
        result = step(loop)
        stopped.append(result[0])
        return result

    monkeypatch.setattr(TrainingLoop, "train_step", signalled)
    with pytest.raises(SystemExit):
        recipe.main(config(output_dir=str(tmp_path / "b"), **settings))
    monkeypatch.setattr(TrainingLoop, "train_step", step)
    resumed = recipe.main(
        config(output_dir=str(tmp_path / "b"), **settings, resume_from_checkpoint="latest")
    )
    assert stopped + resumed == straight and len(stopped) == 3
    expected, found = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"packing": True}, "`packing` must be false"),
        ({"label_column": "mood"}, "`label_column` is not used by an autoencoder"),
        ({"lora_rank": 2}, "`lora_rank` needs a `decoder` to adapt, got 2"),
        ({"quantization": "bf16"}, "`quantization` needs a `lora_rank`"),
        ({"words_share": 1.0}, "`words_share` must be in .*, got 1.0"),
        ({"train_encoder": True}, "`train_encoder` goes with an `encoder`"),
        ({"decoder": "some/model", "tokenizer": "other"}, "`tokenizer` is that of the `decoder`"),
        ({"memory_dropout": 1.5}, "`memory_dropout` must be between 0 and 1, got 1.5"),
        ({"free_bits": -0.1}, "`free_bits` must be at least 0, got -0.1"),
        ({"regularization": "l2"}, "`regularization` must be one of"),
        ({"source_length": 9}, "`source_length` needs a `source_column`, got 9"),
        ({"source_column": "source", "source_length": 2}, "`source_length` must be .* at least 3"),
        ({"condition_dropout": 1.0}, "`condition_dropout` must be in"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_latents": 40}, "`num_latents` must be an integer of at most 32"),
        ({"hidden_size": 15}, "`hidden_size` must be an even multiple"),
        (
            {"encoder_length": 65},
            "`encoder_length` asks for 65 tokens of .*, which takes at most 64",
        ),
        ({"length": 63}, "`length` asks for 65 tokens of .*, which takes at most 64"),
        (
            {"source_column": "source", "source_length": 40},
            "`length` asks for 65 tokens of .*, which takes at most 64",
        ),
    ],
)
def test_models_that_make_no_sense_are_refused_before_the_texts_are_read(
    config, pretrained, changes, message, monkeypatch
):
    monkeypatch.setattr(recipe, "prepare_latent_data", None)
    with pytest.raises(ValueError, match=message):
        recipe.main(config(**pretrained | changes))
