"""Diffusion-LM and DiffuSeq as a `BertEmbeddingDenoiser`: their authors' numbers, texts, and what is refused.

The numbers are of their code at random weights; see the folders in `golden/published`.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PreTrainedTokenizerFast

from text_diffusers import BertEmbeddingDenoiser, DiffusionLMPipeline
from text_diffusers.hub.published.checkpoint import check_weights, load_weights, stored_tensors
from text_diffusers.hub.published.diffuseq import BERTS, embedding_config, read

FOLDER = Path(__file__).parents[2] / "golden/published"
FAMILIES = ("diffuseq", "diffusion_lm")
WORDS = [f"word{number}" for number in range(75)]

# Keys that the network, its clock or its noise depend on, beside the name of the BERT.
NEEDED = {
    "diffuseq": ("hidden_dim", "hidden_t_dim", "seq_len"),
    "diffusion_lm": ("in_channel", "out_channel", "image_size", "num_channels", "model_arch"),
}
NEEDED_BY_BOTH = (
    "vocab_size",
    "diffusion_steps",
    "noise_schedule",
    "predict_xstart",
    "rescale_timesteps",
)
BERT_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "layer_norm_eps",
    "vocab_size",
)


class Checkpoint(SimpleNamespace):
    """A folder of a family, with its model and what its authors' code computes from it."""

    def __init__(self, family):
        folder = FOLDER / family
        golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
        super().__init__(family=family, folder=folder, golden=golden)
        self.config = embedding_config(folder)
        self.stored = stored_tensors(folder)
        self.blueprint = read(self.config, self.stored, family)
        self.model = load_weights(self.blueprint, self.stored)
        self.scheduler = self.blueprint.scheduler(None)

    def read(self, **changes):
        return read(self.config | changes, self.stored, self.family)


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request):
    return Checkpoint(request.param)


@pytest.fixture(scope="module")
def diffuseq():
    return Checkpoint("diffuseq")


@pytest.fixture(scope="module")
def tokenizer():
    """Of 80 tokens, as many as the models know."""
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    special |= {"sep_token": "[SEP]", "mask_token": "[MASK]"}
    vocabulary = {word: place for place, word in enumerate([*special.values(), *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def pipeline_of(checkpoint, tokenizer):
    pipe = DiffusionLMPipeline(tokenizer, checkpoint.model, checkpoint.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Numbers


@torch.no_grad()
def test_estimates_and_logits_are_those_of_the_authors(checkpoint):
    for case in checkpoint.golden["forward"]:
        noisy = torch.tensor(case["inputs"]["x_t"])
        steps = torch.tensor(case["inputs"]["step"])
        estimate = checkpoint.model(noisy, steps).sample
        tolerance = checkpoint.golden["tolerance"]
        torch.testing.assert_close(estimate, torch.tensor(case["x_start"]), **tolerance)
        logits = checkpoint.model.logits(estimate)
        torch.testing.assert_close(logits, torch.tensor(case["logits"]), **tolerance)


@torch.no_grad()
def test_a_step_of_ddim_is_that_of_the_authors(diffuseq):
    """Rows are at different steps of 2000, so each is stepped by itself."""
    for case in diffuseq.golden["forward"]:
        noisy = torch.tensor(case["inputs"]["x_t"])
        for row, step in enumerate(case["inputs"]["step"]):
            diffuseq.scheduler.set_timesteps(timesteps=[step, step - 1])
            sample = noisy[row : row + 1]
            estimate = diffuseq.model(sample, step).sample
            found = diffuseq.scheduler.step(estimate, step, sample).prev_sample
            expected = torch.tensor(case["ddim_sample"][row])
            torch.testing.assert_close(found[0], expected, **diffuseq.golden["tolerance"])


# Texts


@torch.no_grad()
def test_a_pipeline_writes_the_same_after_saving_and_loading(checkpoint, tokenizer, tmp_path):
    pipe = pipeline_of(checkpoint, tokenizer)
    arguments = {"length": 6, "num_inference_steps": 5, "num_return_sequences": 2}
    texts = pipe(**arguments, generator=torch.Generator().manual_seed(1)).texts
    assert all(len(text.split()) == 6 for text in texts)

    pipe.save_pretrained(tmp_path)
    loaded = DiffusionLMPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert isinstance(loaded.denoiser, BertEmbeddingDenoiser)
    assert loaded(**arguments, generator=torch.Generator().manual_seed(1)).texts == texts


@torch.no_grad()
def test_the_source_stays_clean_in_front_of_what_is_written(diffuseq, tokenizer):
    pipe = pipeline_of(diffuseq, tokenizer)
    shown = []
    hook = diffuseq.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs[0]))
    sources = ["word1 word2 word3", "word7"]
    output = pipe(source=sources, length=4, num_inference_steps=5)
    hook.remove()

    assert len(shown) == 5
    for row, source in enumerate(sources):
        ids = tokenizer(source)["input_ids"]
        source_row = torch.tensor(
            [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id, tokenizer.sep_token_id]
        )
        clean = diffuseq.model.embed(source_row)
        for sample in shown:
            assert torch.equal(sample[row, : len(clean)], clean)
        # What stands behind it is written.
        assert not torch.equal(shown[0][row, len(clean)], shown[-1][row, len(clean)])
    assert [len(text.split()) for text in output.texts] == [4, 4]


def test_only_diffuseq_writes_from_a_source(tokenizer):
    pipe = pipeline_of(Checkpoint("diffusion_lm"), tokenizer)
    with pytest.raises(ValueError, match="`source` needs a denoiser with `partial_noising=True`"):
        pipe(source="word1")


# What is read


def test_rows_are_as_long_as_the_authors_made_them(checkpoint):
    """The encoders of these small ones have 40 positions, and published ones 512."""
    assert checkpoint.model.config.max_length == 40
    bert = checkpoint.config["bert_config"] | {"max_position_embeddings": 512}
    longer = checkpoint.read(bert_config=bert).build().config
    expected = {"diffuseq": 128, "diffusion_lm": 64}
    assert (longer.max_length, longer.num_positions) == (expected[checkpoint.family], 512)


def test_a_bert_by_name_has_the_sizes_of_transformers(checkpoint):
    base = BertConfig()
    sizes = BERTS["bert-base-uncased"]
    assert sizes.hidden_size == base.hidden_size
    assert sizes.num_layers == base.num_hidden_layers
    assert sizes.num_attention_heads == base.num_attention_heads
    assert sizes.feed_forward_size == base.intermediate_size
    assert (sizes.vocab_size, sizes.num_positions) == (
        base.vocab_size,
        base.max_position_embeddings,
    )
    assert sizes.norm_eps == base.layer_norm_eps

    config = {key: value for key, value in checkpoint.config.items() if key != "bert_config"}
    with torch.device("meta"):
        model = read(config, {}, "").build()
    assert (model.config.hidden_size, model.config.num_layers) == (768, 12)
    with pytest.raises(ValueError, match="`config_name` must be one of bert-base-uncased"):
        read(config | {"config_name": "roberta-base"}, {}, "")


def test_ids_of_bert_are_known_with_its_whole_vocabulary(diffuseq):
    assert diffuseq.blueprint.mask_token_id is None
    whole = diffuseq.read(vocab_size=30522)
    assert (whole.mask_token_id, whole.end_token_ids) == (103, [102])
    assert diffuseq.read(vocab_size=30522, vocab="vocab.json").mask_token_id is None


def test_embeddings_as_wide_as_the_encoder_have_no_projections_in_diffuseq(checkpoint):
    width = {"diffuseq": {"hidden_dim": 32}, "diffusion_lm": {"in_channel": 32, "out_channel": 32}}
    names = checkpoint.read(**width[checkpoint.family]).weights.keys()
    assert ("proj_in.0.weight" in names) == (checkpoint.family == "diffusion_lm")


def test_the_table_of_words_may_be_stored_once_or_twice(checkpoint, tmp_path):
    tensors = load_file(checkpoint.folder / "model.safetensors")
    for name in ("word_embedding.weight", "lm_head.weight"):
        once = {other: tensor for other, tensor in tensors.items() if other != name}
        save_file(once, tmp_path / "model.safetensors")
        stored = stored_tensors(tmp_path)
        model = load_weights(read(checkpoint.config, stored, ""), stored)
        expected = checkpoint.model.token_embedding.weight
        assert torch.equal(model.token_embedding.weight, expected)

    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    stored = stored_tensors(tmp_path)
    with pytest.raises(ValueError, match=r"`lm_head.weight` must be the same"):
        load_weights(read(checkpoint.config, stored, ""), stored)


# What is refused


def test_keys_that_the_network_depends_on_are_needed(checkpoint):
    for key in (*NEEDED[checkpoint.family], *NEEDED_BY_BOTH):
        config = {name: value for name, value in checkpoint.config.items() if name != key}
        # Without these it is of another family.
        if key in ("hidden_dim", "hidden_t_dim", "in_channel", "model_arch"):
            assert read(config, checkpoint.stored, "") is None
        else:
            with pytest.raises(ValueError, match=f"`{key}`"):
                read(config, checkpoint.stored, "")
        with pytest.raises(ValueError, match=f"`{key}`"):
            checkpoint.read(**{key: "something else"})

    for key in BERT_KEYS:
        bert = {name: v for name, v in checkpoint.config["bert_config"].items() if name != key}
        with pytest.raises(ValueError, match=f"`{key}`"):
            checkpoint.read(bert_config=bert)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_such_key": 1}, "no_such_key"),
        ({"emb_scale_factor": 2.0}, "`emb_scale_factor` must be 1.0"),
        ({"learn_sigma": True}, "`learn_sigma` must be False"),
        ({"timestep_respacing": "ddim50"}, "`timestep_respacing` must be ''"),
        ({"noise_schedule": "trunc_lin"}, "`noise_schedule` must be 'sqrt' or 'cosine'"),
        ({"predict_xstart": False}, "`predict_xstart` must be True"),
        ({"dropout": "none"}, "`dropout` must be a number"),
        ({"bert_config": {"hidden_act": "relu"}}, "`hidden_act` must be 'gelu'"),
        ({"bert_config": {"no_such_key": 1}}, "BERT|`hidden_size`"),
    ],
)
def test_other_networks_and_noises_are_refused(checkpoint, changes, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.read(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experiment_mode": "conditional_gen"}, "`experiment_mode` must be 'lm'"),
        ({"training_mode": "emb"}, "`training_mode` must be 'e2e'"),
        ({"model_arch": "conv-unet"}, "`model_arch` must be 'transformer'"),
        ({"logits_mode": 2}, "`logits_mode` must be 1"),
        ({"out_channel": 32}, "`out_channel` must be 16"),
    ],
)
def test_other_kinds_of_diffusion_lm_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint("diffusion_lm").read(**changes)


def test_every_tensor_is_needed_in_its_shape(checkpoint):
    stored = checkpoint.stored
    with torch.device("meta"):
        built = checkpoint.blueprint.build()

    def check(changed):
        # Without a model of its own for each of them
        blueprint = replace(read(checkpoint.config, changed, ""), build=lambda: built)
        check_weights(blueprint, changed)

    check(stored)
    for name, tensor in stored.items():
        if name == "position_ids":
            continue
        taller = replace(tensor, shape=(tensor.shape[0] + 1, *tensor.shape[1:]))
        changed = stored | {name: taller}
        with pytest.raises(ValueError, match=f"'{name}'"):
            check(changed)

        # Either of these is enough.
        if name in ("word_embedding.weight", "lm_head.weight"):
            continue
        missing = {other: stored[other] for other in stored if other != name}
        with pytest.raises(ValueError, match=f"'{name}'"):
            check(missing)

    extra = stored | {"mean_embed": stored["LayerNorm.weight"]}
    with pytest.raises(ValueError, match="'mean_embed'"):
        check(extra)


def test_other_checkpoints_are_not_theirs():
    assert read({"model_type": "bert", "hidden_size": 32}, {}, "") is None
