"""Further training of a masked LM of transformers as an absorbing diffusion model: loading, checks and saving.

Its rows are "start text end" of one text each, as it knows them. Both ends are given, in training as in writing: a
masked LM was never asked for them, so a pipeline with it puts the end where its histogram of lengths says.
"""

from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from text_diffusers.models.language_model import MaskedLMDenoiser, ids_never_predicted, is_masked_lm
from text_diffusers.models.transformer_text import TextTransformerModel
from text_diffusers.pipelines.text_diffusion.pipeline_text_diffusion import TextDiffusionPipeline
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler
from text_diffusers.training.config import marked_options


def saved_pipeline(model_name_or_path: str) -> dict[str, Any] | None:
    """The `model_index.json` of a folder or Hub name, if that is a pipeline."""
    try:
        index: Any = TextDiffusionPipeline.load_config(model_name_or_path)
    except OSError:  # no such file there
        return None
    return index


def holds_masked_lm(model_name_or_path: str | None) -> bool:
    """Whether training starts from a masked LM, by itself or in a saved pipeline."""
    if model_name_or_path is None:
        return False
    # A folder without an index is a model by itself; the index says who made a pipeline's denoiser.
    index = saved_pipeline(model_name_or_path)
    return index is None or index["denoiser"][0] == "transformers"


def tokenizer_folder(model_name_or_path: str) -> dict[str, str]:
    """Where in `model_name_or_path` the tokenizer is, as arguments of `from_pretrained`."""
    return {} if saved_pipeline(model_name_or_path) is None else {"subfolder": "tokenizer"}


def check_masked_lm_options(config: Any):
    """Refuse options that a masked LM cannot be trained with.

    Raises:
        ValueError: naming the option.
    """
    if config.packing:
        raise ValueError(
            "`packing` must be off for a masked LM, `--packing false`: it is shown where each text begins and ends."
        )

    # What only the denoisers of this package can do
    for name in marked_options(config, "not_for", "masked_lm"):
        if getattr(config, name):
            raise ValueError(
                f"`{name}` cannot be used with a masked LM, got {getattr(config, name)!r}."
            )


def load_masked_lm(model_name_or_path: str, tokenizer: Any) -> tuple[MaskedLMDenoiser, Any]:
    """`(denoiser, scheduler)`, the weights in float32; a masked LM without a scheduler gets one of linear noise.

    Raises:
        ValueError: if the components disagree.
    """
    if saved_pipeline(model_name_or_path) is None:
        model = AutoModelForMaskedLM.from_pretrained(model_name_or_path, dtype=torch.float32)
        scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)
        pipe = TextDiffusionPipeline(tokenizer, model, scheduler)  # checks that they fit
    else:
        pipe = TextDiffusionPipeline.from_pretrained(model_name_or_path, dtype=torch.float32)
    return training_denoiser(pipe.denoiser, tokenizer), pipe.scheduler


def training_denoiser(model: Any, tokenizer: Any) -> Any:
    """A masked LM as a denoiser that may predict an unknown word, which texts may hold; any other as it is."""
    if not is_masked_lm(model):
        return model
    return MaskedLMDenoiser(
        model, ids_never_predicted(model, tokenizer, but=(tokenizer.unk_token_id,))
    )


def fresh_copy(denoiser: Any) -> Any:
    """A denoiser of the same configuration, with random weights, on the CPU."""
    architecture = (
        MaskedLMDenoiser if isinstance(denoiser, MaskedLMDenoiser) else TextTransformerModel
    )
    return architecture.from_config(denoiser.config)


def plain_model(denoiser: Any) -> Any:
    """The model for a pipeline: the masked LM itself, where training has a denoiser around it."""
    return denoiser.masked_lm if isinstance(denoiser, MaskedLMDenoiser) else denoiser
