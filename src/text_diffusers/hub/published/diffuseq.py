"""Diffusion-LM (https://arxiv.org/abs/2205.14217) and DiffuSeq (https://arxiv.org/abs/2210.08933).

Their checkpoints are a state dict beside `training_args.json`, in which the sizes of the encoder stand as no more than
the name of a BERT. The authors' pickles have to be converted to `model.safetensors`, the names staying as they are.

Shapes: D width of the encoder, E embedding width, V vocabulary size.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.json_files import read_object
from text_diffusers.common.validation import require_key, require_number
from text_diffusers.hub.published.blueprint import Blueprint, StoredTensor, Weight
from text_diffusers.hub.published.config_keys import ConfigReader
from text_diffusers.models.transformer_embedding_bert import BertEmbeddingDenoiser
from text_diffusers.schedulers.scheduling_ddim_embedding import EmbeddingDDIMScheduler

TRAINING_ARGS = "training_args.json"
BERT_CONFIG = "bert_config.json"

# Of the tokenizers of BERT.
BERT_MASK_TOKEN_ID = 103
BERT_END_TOKEN_ID = 102


@dataclass
class BertSizes:
    """The sizes of a BERT that matter here; the defaults are those that all published ones have."""

    hidden_size: int
    num_layers: int
    num_attention_heads: int
    feed_forward_size: int
    vocab_size: int
    num_positions: int = 512
    norm_eps: float = 1e-12


BERTS = {
    "bert-base-uncased": BertSizes(768, 12, 12, 3072, vocab_size=30522),
    "bert-base-cased": BertSizes(768, 12, 12, 3072, vocab_size=28996),
    "bert-large-uncased": BertSizes(1024, 24, 16, 4096, vocab_size=30522),
    "bert-large-cased": BertSizes(1024, 24, 16, 4096, vocab_size=28996),
}

# What a BERT must be, and what does not matter where only its encoder is used.
BERT_VALUES = {
    "architectures": (["BertForMaskedLM"], ["BertModel"], None),
    "hidden_act": ("gelu",),
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
}
BERT_IGNORED = {
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "pad_token_id",
    "type_vocab_size",
}

# Schedules by names that mean the same here; others of theirs have no counterpart.
SCHEDULES = ("sqrt", "cosine", "linear")

# Common to both; the variance is predicted by none of the published networks.
VALUES = {
    "emb_scale_factor": (1.0,),
    "learn_sigma": (False,),
    "timestep_respacing": ("",),
}
# Data, optimiser, losses, and the variance of their ancestral sampler; the name of a BERT and dropout are read apart.
IGNORED = {
    "batch_size",
    "checkpoint_path",
    "config_name",
    "data_dir",
    "dropout",
    "ema_rate",
    "eval_interval",
    "fp16_scale_growth",
    "gradient_clipping",
    "log_interval",
    "lr",
    "microbatch",
    "rescale_learned_sigmas",
    "resume_checkpoint",
    "save_interval",
    "schedule_sampler",
    "seed",
    "sigma_small",
    "use_fp16",
    "use_kl",
    "weight_decay",
}

DIFFUSEQ_VALUES = VALUES | {"use_plm_init": ("no", "bert")}
DIFFUSEQ_IGNORED = IGNORED | {"dataset", "learning_steps", "notes", "vocab"}

DIFFUSION_LM_VALUES = VALUES | {
    "class_cond": (False,),
    # Otherwise a second encoder reads a condition.
    "experiment_mode": ("lm",),
    "logits_mode": (1,),
    "model_arch": ("transformer",),
    "training_mode": ("e2e",),
}
# Much of it belongs to the network of images that the code was made from.
DIFFUSION_LM_IGNORED = IGNORED | {
    "attention_resolutions",
    "cache_mode",
    "commonGen_train",
    "config",
    "dataset_config_name",
    "dataset_name",
    "e2e_train",
    "experiment",
    "lr_anneal_steps",
    "modality",
    "model_name_or_path",
    "noise_level",
    "num_heads",
    "num_heads_upsample",
    "num_res_blocks",
    "padding_mode",
    "preprocessing_num_workers",
    "roc_train",
    "use_bert_tokenizer",
    "use_checkpoint",
    "use_scale_shift_norm",
    "wiki_train",
    "yelp_train",
}

# Stored names of the layers beside the encoder, by ours.
LAYERS = {
    "time_embedding.0": "time_embed.0",
    "time_embedding.2": "time_embed.2",
    "norm_in": "LayerNorm",
}
PROJECTIONS = {
    "proj_in.0": "input_up_proj.0",
    "proj_in.2": "input_up_proj.2",
    "proj_out.0": "output_down_proj.0",
    "proj_out.2": "output_down_proj.2",
}

# Of a layer of the encoder, with a weight and a bias each.
ENCODER_LAYERS = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)


def embedding_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint without a `config.json`, as `read` takes it.

    Args:
        folder: with `training_args.json`, and perhaps `bert_config.json`, which then stands under "bert_config".

    Raises:
        OSError: if the first is missing.
        ValueError: if a file is no object of JSON.
    """
    config = read_object(Path(folder) / TRAINING_ARGS)
    if (Path(folder) / BERT_CONFIG).exists():
        config["bert_config"] = read_object(Path(folder) / BERT_CONFIG)
    return config


def read(config: dict[str, Any], stored: dict[str, StoredTensor], name: str) -> Blueprint | None:
    """The blueprint of a checkpoint of Diffusion-LM or DiffuSeq, or `None` for one of another family.

    Raises:
        ValueError: if its configuration says what is not supported.
    """
    if {"in_channel", "model_arch"} <= config.keys():
        return read_diffusion_lm(config, stored)
    if {"hidden_dim", "hidden_t_dim"} <= config.keys():
        return read_diffuseq(config, stored)
    return None


def read_diffuseq(config: dict[str, Any], stored: dict[str, StoredTensor]) -> Blueprint:
    """The blueprint of a checkpoint of DiffuSeq: texts are written from a source, which stays clean."""
    reader = ConfigReader("DiffuSeq", config, DIFFUSEQ_VALUES, DIFFUSEQ_IGNORED)
    bert = read_bert(reader)
    embedding_dim = reader.integer("hidden_dim")
    arguments = {
        "embedding_dim": embedding_dim,
        "max_length": min(reader.integer("seq_len"), bert.num_positions),
        "time_dim": reader.integer("hidden_t_dim"),
        # Embeddings as wide as the encoder go into it as they are.
        "project_embeddings": embedding_dim != bert.hidden_size,
        "partial_noising": True,
        # Rows are "[CLS] source [SEP] [SEP] [CLS] target [SEP]".
        "source_ends": 2,
    }
    has_bert_words = config.get("vocab") == "bert"
    return embedding_blueprint(reader, bert, arguments, has_bert_words, stored, licence="mit")


def read_diffusion_lm(config: dict[str, Any], stored: dict[str, StoredTensor]) -> Blueprint:
    """The blueprint of a checkpoint of Diffusion-LM."""
    reader = ConfigReader("Diffusion-LM", config, DIFFUSION_LM_VALUES, DIFFUSION_LM_IGNORED)
    bert = read_bert(reader)
    embedding_dim = reader.integer("in_channel")
    reader.one_of("out_channel", (embedding_dim,))
    # Rows were images once.
    side = reader.integer("image_size")
    arguments = {
        "embedding_dim": embedding_dim,
        "max_length": min(side**2, bert.num_positions),
        "time_dim": reader.integer("num_channels"),
    }
    has_bert_words = config.get("use_bert_tokenizer") == "yes"
    return embedding_blueprint(
        reader, bert, arguments, has_bert_words, stored, licence="apache-2.0"
    )


def read_bert(reader: ConfigReader) -> BertSizes:
    """The sizes of the encoder, from its own configuration or by its name."""
    if not reader.has("bert_config"):
        name: Any = reader.config.get("config_name")
        require_key("config_name", name, BERTS)
        return BERTS[name]

    bert = ConfigReader("BERT", reader.mapping("bert_config"), BERT_VALUES, BERT_IGNORED)
    sizes = BertSizes(
        hidden_size=bert.integer("hidden_size"),
        num_layers=bert.integer("num_hidden_layers"),
        num_attention_heads=bert.integer("num_attention_heads"),
        feed_forward_size=bert.integer("intermediate_size"),
        vocab_size=bert.integer("vocab_size"),
        num_positions=bert.integer("max_position_embeddings"),
        norm_eps=bert.number("layer_norm_eps"),
    )
    bert.finish()
    return sizes


def embedding_blueprint(
    reader: ConfigReader,
    bert: BertSizes,
    arguments: dict[str, Any],
    has_bert_words: bool,
    stored: dict[str, StoredTensor],
    licence: str,
) -> Blueprint:
    """The blueprint of either family.

    Args:
        arguments: of `BertEmbeddingDenoiser`, those in which the families differ.
        has_bert_words: whether texts are in tokens of the BERT.
    """
    vocab_size = reader.integer("vocab_size")
    num_steps = reader.integer("diffusion_steps")
    schedule = reader.one_of("noise_schedule", SCHEDULES)
    dropout = reader.config.get("dropout", 0.0)
    require_number("dropout", dropout, 0, 1)
    # The network predicts clean embeddings, not the noise.
    reader.one_of("predict_xstart", (True,))

    # A row of the vocabulary of a BERT is the token of that number only if there are all of them.
    knows_ids = has_bert_words and vocab_size == bert.vocab_size
    mask_token_id = BERT_MASK_TOKEN_ID if knows_ids else None
    arguments = arguments | {
        "vocab_size": vocab_size,
        "hidden_size": bert.hidden_size,
        "num_layers": bert.num_layers,
        "num_attention_heads": bert.num_attention_heads,
        "feed_forward_size": bert.feed_forward_size,
        "num_positions": bert.num_positions,
        "norm_eps": bert.norm_eps,
        "num_train_timesteps": num_steps,
        "rescale_timesteps": reader.flag("rescale_timesteps"),
        "dropout": float(dropout),
        "mask_token_id": mask_token_id,
    }
    reader.finish()

    return Blueprint(
        family=reader.family,
        build=partial(BertEmbeddingDenoiser, **arguments),
        weights=weights_of(bert.num_layers, arguments.get("project_embeddings", True), stored),
        scheduler=partial(make_scheduler, num_steps, schedule),
        has_mask=False,
        # Whole numbers from 0 on.
        ignored=frozenset({"position_ids"}),
        mask_token_id=mask_token_id,
        end_token_ids=[BERT_END_TOKEN_ID] if knows_ids else [],
        licence=licence,
        pipeline="DiffusionLMPipeline",
    )


def make_scheduler(num_steps: int, schedule: str, mask_token_id: int | None):
    """DDIM with the noise of training; noise on embeddings has no mask."""
    return EmbeddingDDIMScheduler(num_steps, beta_schedule=schedule)


def weights_of(
    num_layers: int, project_embeddings: bool, stored: dict[str, StoredTensor]
) -> dict[str, Weight]:
    """For each entry of the state dict of `BertEmbeddingDenoiser`."""
    layers = LAYERS | PROJECTIONS if project_embeddings else dict(LAYERS)
    for layer in range(num_layers):
        for part in ENCODER_LAYERS:
            layers[f"encoder.layer.{layer}.{part}"] = f"input_transformers.layer.{layer}.{part}"

    weights = {
        "token_embedding.weight": table_of_words(stored),
        "head_bias": Weight(("lm_head.bias",)),
        "position_embedding.weight": Weight(("position_embeddings.weight",)),
    }
    for target, source in layers.items():
        for tensor in ("weight", "bias"):
            weights[f"{target}.{tensor}"] = Weight((f"{source}.{tensor}",))
    return weights


def table_of_words(stored: dict[str, StoredTensor]) -> Weight:
    """The embeddings of the words; the head is tied to them, and may be stored as well or instead."""
    names = [name for name in ("word_embedding.weight", "lm_head.weight") if name in stored]
    if len(names) == 2:
        return Weight(tuple(names), same_table)
    return Weight((names[0] if names else "word_embedding.weight",))


def same_table(words: Tensor, head: Tensor) -> Tensor:
    """(V, E) embeddings.

    Raises:
        ValueError: if the head is not tied to them.
    """
    is_tied = words.shape == head.shape
    # Without numbers only the shapes are known.
    if is_tied and not words.is_meta:
        is_tied = torch.equal(words, head)
    if not is_tied:
        raise ValueError(
            "`lm_head.weight` must be the same as `word_embedding.weight`, to which it is tied."
        )
    return words
