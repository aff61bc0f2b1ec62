"""What every pipeline of texts has in common: how it is loaded, its generators, and what it may be asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

from text_diffusers.common.json_files import read_object
from text_diffusers.common.randomness import row_seeds
from text_diffusers.common.validation import is_list
from text_diffusers.pipelines.loading import (
    HUB_ARGUMENTS,
    INDEX,
    installed_class,
    pipeline_folder,
    with_installed_classes,
)
from text_diffusers.pipelines.saved_files import check_finite, check_links, check_saved_pipeline, loading_error

logger = logging.get_logger(__name__)


class TextPipeline:
    """What a `DiffusionPipeline` that writes texts, each from a generator of its own, inherits beside it.

    It is none itself: in a file for the Hub, diffusers looks for the one class that is.
    """

    _callback_tensor_inputs: list[str] = []
    _output_types: tuple[str, ...] = ("text", "tokens")
    tokenizer: Any
    config: Any
    _get_signature_keys: Any
    progress_bar: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but the class that was saved if it is one that this one loads, and with installed classes.

        Code in a folder or repository is run only for a class that is not installed, and only if it is trusted.

        Args:
            pretrained_model_name_or_path: a folder, the name of a shipped model, or that of a Hub repository.
            kwargs: those of `DiffusionPipeline.from_pretrained`; weights are read from safetensors.

        Raises:
            OSError: if a file is missing or cannot be had.
            ValueError: if what is there is no pipeline that can be loaded, or would need code that is not trusted.
        """
        trusted = bool(kwargs.get("trust_remote_code"))
        if kwargs.get("custom_pipeline") is not None and not trusted:
            raise ValueError("`custom_pipeline` is code of others: it needs `trust_remote_code=True`.")
        where = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        folder = pipeline_folder(pretrained_model_name_or_path, trusted, **where)
        kwargs.setdefault("use_safetensors", True)
        try:
            if not trusted:
                check_links(folder, folder / INDEX)
            index = with_installed_classes(read_object(folder / INDEX))
            loader = cls._loader_of(index, trusted)
            if not trusted:
                check_saved_pipeline(folder, index, loader.__self__, kwargs, kwargs.get("variant"))
            pipe = loader(folder, **kwargs)
            check_finite(folder, {name: part for name, part in pipe.components.items() if name not in kwargs})
        except ImportError:
            raise
        except Exception as error:
            raise loading_error(folder, error) from error
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def _loader_of(cls, index: dict[str, Any], trusted: bool) -> Any:
        """The stock `from_pretrained` of the class that an index names."""
        name = index.get("_class_name")
        if isinstance(name, str):
            installed_class(name)  # imports it
            if name not in {child.__name__ for child in loaded_subclasses(TextPipeline)}:
                raise ValueError(f"`_class_name` must be a pipeline of texts that is imported, got {name!r}.")
            loadable = {child.__name__: child for child in cls._loadable_classes()}
            chosen: Any = loadable.get(name, cls)
            stock: Any = super(TextPipeline, chosen)
            return stock.from_pretrained
        if trusted:
            return DiffusionPipeline.from_pretrained
        raise ValueError(
            f"`_class_name` must be an installed class, got {name!r}: its code needs `trust_remote_code=True`."
        )

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any):
        """As in diffusers, which leaves models out whose class is in no type hint."""
        taken, _ = cls._get_signature_keys(cls)
        shared = {name: part for name, part in pipeline.components.items() if name in taken}
        maker: Any = super()
        return maker.from_pipe(pipeline, **shared | kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, **kwargs) -> Any:
        """As in diffusers, with the names of installed classes in the place of a repository's files."""
        stock: Any = super()
        loaded = stock.load_config(pretrained_model_name_or_path, **kwargs)
        if isinstance(loaded, tuple):
            return with_installed_classes(loaded[0]), *loaded[1:]
        return with_installed_classes(loaded)

    def save_pretrained(self, save_directory, safe_serialization: bool = True, **kwargs):
        """As in diffusers; weights are always written as safetensors."""
        if not safe_serialization:
            logger.warning("Weights are written as safetensors: `from_pretrained` reads no pickles.")
        stock: Any = super()
        stock.save_pretrained(save_directory, safe_serialization=True, **kwargs)

    @classmethod
    def _loadable_classes(cls) -> list[type]:
        """The classes whose folders this one loads as what they are."""
        return loaded_subclasses(cls)

    def _row_generators(self, generator, num_rows: int) -> list[torch.Generator]:
        """One generator a row, seeded by the next number of the row's own generator or of the shared one."""
        if is_list(generator) and len(generator) != num_rows:
            raise ValueError(f"`generator` must be one or {num_rows}, one a returned text, got {len(generator)}.")
        return [torch.Generator().manual_seed(seed) for seed in row_seeds(generator, num_rows)]

    def _check_output(self, output_type: str, callback_tensors: Sequence[str]):
        if output_type not in self._output_types:
            known = " or ".join(f'"{name}"' for name in self._output_types)
            raise ValueError(f"`output_type` must be {known}, got {output_type!r}.")
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )


def loaded_subclasses(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *loaded_subclasses(child))]
