"""Models to train further: where they are, and language models of transformers as absorbing diffusion models.

The rows of a masked LM are "start text end" of one text each, as it knows them. Both ends are given, in training as
in writing: it was never asked for them, so a pipeline with it puts the end where its histogram of lengths says.

A causal LM becomes a bidirectional one whose predictions stay shifted: the state before a token predicts it, as the
model was taught (DiffuLLaMA, https://arxiv.org/abs/2410.17891). It gets a mask token, whose vector begins as the mean
of all embeddings.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
)

from text_diffusers.common.json_files import read_object
from text_diffusers.common.token_ids import end_ids
from text_diffusers.models.language_model import (
    LanguageModelDenoiser,
    ids_never_predicted,
    is_language_model,
    is_masked_lm,
)
from text_diffusers.models.reading import Reading, write_reading
from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.pipelines.loading import INDEX, shipped_folder
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler
from text_diffusers.training.config import marked_options

MODEL_CONFIG = "config.json"  # of a transformers model


def saved_pipeline(model_name_or_path: str) -> dict[str, Any] | None:
    """The `model_index.json` of a folder, a shipped model or a Hub name, if that is a pipeline; `None` if a model.

    Raises:
        ValueError: if there is neither.
    """
    if file_of(model_name_or_path, INDEX) is not None:
        index: Any = TextDiffusionPipeline.load_config(
            local_folder(model_name_or_path) or model_name_or_path
        )
        return index

    # Without an index it is a model by itself, which has a configuration.
    if file_of(model_name_or_path, MODEL_CONFIG) is None:
        raise not_found("model_name_or_path", model_name_or_path, f"{INDEX} or {MODEL_CONFIG}")
    return None


def saved_label_names(model_name_or_path: str) -> list[str]:
    """The names of the class labels of a saved pipeline; none for a model by itself, or without names."""
    names = (saved_pipeline(model_name_or_path) or {}).get("label_names") or []
    # Stock diffusers has them by their numbers.
    return list(names.values()) if isinstance(names, dict) else list(names)


def local_folder(name: str) -> Path | None:
    """The folder `name`, or that of the shipped model of this name; `None` for what may be on the Hub."""
    return Path(name) if Path(name).is_dir() else shipped_folder(name)


def file_of(name: str, file: str) -> Path | None:
    """A file of a folder, a shipped model or a Hub repository, or `None` if there is none or it cannot be had."""
    folder = local_folder(name)
    if folder is not None:
        return folder / file if (folder / file).is_file() else None
    try:
        return Path(hf_hub_download(name, file))
    except (
        OSError,
        EntryNotFoundError,
        HFValidationError,
    ):  # the last: no repository can have the name
        return None


def not_found(option: str, name: str, wanted: str, reason: str | None = None) -> ValueError:
    """The error of a name that stands for nothing, which says where it was looked for, and for what."""
    if local_folder(name) is not None:
        because = f": {reason}" if reason else "."
        return ValueError(f"`{option}`={name!r} is a folder, but holds no {wanted}{because}")
    return ValueError(
        f"`{option}`={name!r} is no folder here, no model that comes with this package, such as chat-and-novels, and "
        f"no repository of the Hub with a {wanted} that can be reached from here."
    )


def holds_language_model(model_name_or_path: str | None) -> bool:
    """Whether training starts from a language model of transformers, by itself or in a saved pipeline.

    Raises:
        ValueError: if there is no model of this name, or one of another kind.
    """
    if model_name_or_path is None:
        return False
    # A folder without an index is a model by itself; the index says who made a pipeline's denoiser.
    index = saved_pipeline(model_name_or_path)
    if index is not None:
        return index["denoiser"][0] == "transformers"

    try:
        architecture = AutoConfig.from_pretrained(model_name_or_path)
    except ValueError:  # a part of a pipeline, or of another library
        architecture = None
    known = {*MODEL_FOR_MASKED_LM_MAPPING, *MODEL_FOR_CAUSAL_LM_MAPPING}
    if type(architecture) not in known:
        kind = getattr(architecture, "model_type", "no model of transformers")
        raise ValueError(
            f"`model_name_or_path`={model_name_or_path!r} must be a saved pipeline, a masked LM or a causal LM, got "
            f"{kind}. A diffusion language model that others published becomes a saved pipeline by `text-diffusers "
            "convert`."
        )
    return True


def knows_no_ends(model_name_or_path: str | None) -> bool:
    """Whether training starts from a masked LM, which was never asked where a text begins and ends.

    Raises:
        ValueError: as `holds_language_model`.
    """
    if not holds_language_model(model_name_or_path):
        return False
    assert model_name_or_path is not None
    index = saved_pipeline(model_name_or_path)
    if index is None:
        return type(AutoConfig.from_pretrained(model_name_or_path)) in MODEL_FOR_MASKED_LM_MAPPING
    # What says how it is read, says also how its texts end.
    config = file_of(model_name_or_path, f"denoiser/{MODEL_CONFIG}")
    return config is None or "diffusion" not in read_object(config)


def load_tokenizer(name: str, option: str = "tokenizer") -> Any:
    """The tokenizer of a folder, a shipped model or a Hub name, by itself or of a saved pipeline.

    Args:
        option: with which it was asked for.

    Raises:
        ValueError: if there is none.
    """
    # A pipeline has it in a folder of its own.
    place = {"subfolder": "tokenizer"} if file_of(name, INDEX) else {}
    try:
        return AutoTokenizer.from_pretrained(local_folder(name) or name, **place)
    except Exception as error:  # whatever a library meets in damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise not_found(option, name, "tokenizer", reason) from error


def check_language_model_options(config: Any):
    """Refuse options that a language model of transformers cannot be trained with.

    Raises:
        ValueError: naming the option.
    """
    if config.packing and knows_no_ends(config.model_name_or_path):
        raise ValueError(
            "`packing` must be off for a masked LM, `--packing false`: it is shown where each text begins and ends."
        )

    # What only the denoisers of this package can do
    for name in marked_options(config, "not_for", "language_model"):
        if getattr(config, name):
            raise ValueError(
                f"`{name}` cannot be used with a language model of transformers, got {getattr(config, name)!r}."
            )


def load_language_model(
    model_name_or_path: str, tokenizer: Any
) -> tuple[LanguageModelDenoiser, Any]:
    """`(denoiser, scheduler)`, the weights in float32; a model without a scheduler gets one of linear noise.

    Raises:
        ValueError: if the components disagree.
    """
    if saved_pipeline(model_name_or_path) is None:
        is_masked = knows_no_ends(model_name_or_path)
        auto_class = AutoModelForMaskedLM if is_masked else AutoModelForCausalLM
        model = auto_class.from_pretrained(model_name_or_path, dtype=torch.float32)
        if not is_masked:
            adapt(model, tokenizer)
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
        pipe = TextDiffusionPipeline(tokenizer, model, scheduler)  # checks that they fit
    else:
        pipe = TextDiffusionPipeline.from_pretrained(model_name_or_path, dtype=torch.float32)
    return training_denoiser(pipe.denoiser, tokenizer), pipe.scheduler


def adapt(model: Any, tokenizer: Any):
    """Make a causal LM one that is read as a bidirectional diffusion model, in place.

    Args:
        tokenizer: with a mask token, which may lie behind the model's vocabulary.
    """
    num_known = model.config.vocab_size
    if len(tokenizer) > num_known:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[num_known:] = layer.weight[:num_known].mean(dim=0)
    write_reading(
        model.config,
        Reading(
            alignment="shifted",
            mask_token_id=tokenizer.mask_token_id,
            end_token_ids=end_ids(tokenizer),
        ),
    )


def training_denoiser(model: Any, tokenizer: Any) -> Any:
    """A language model as a denoiser; a masked LM may also predict an unknown word, which texts may hold."""
    if not is_language_model(model):
        return model
    but = (tokenizer.unk_token_id,) if is_masked_lm(model) else ()
    return LanguageModelDenoiser(model, ids_never_predicted(model, tokenizer, but))


def fresh_copy(denoiser: Any) -> Any:
    """A denoiser of the same configuration, with random weights, on the CPU."""
    architecture = (
        LanguageModelDenoiser
        if isinstance(denoiser, LanguageModelDenoiser)
        else TextTransformerModel
    )
    return architecture.from_config(denoiser.config)


def plain_model(denoiser: Any) -> Any:
    """The model for a pipeline: the language model itself, where training has a denoiser around it."""
    return denoiser.language_model if isinstance(denoiser, LanguageModelDenoiser) else denoiser
