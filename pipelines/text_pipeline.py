"""What every pipeline of texts has in common: how it is loaded, its generators, and what it may be asked for."""

from collections.abc import Sequence
from typing import Any

import torch

from text_diffusers.pipelines.stock_schedulers import row_seeds
from text_diffusers.pipelines.text_canvas import is_list

HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


class TextPipeline:
    """What a `DiffusionPipeline` that writes texts, each from a generator of its own, inherits beside it.

    It is none itself: in a file for the Hub, diffusers looks for the one class that is.
    """

    _callback_tensor_inputs: list[str] = []
    _output_types: tuple[str, ...] = ("text", "tokens")
    tokenizer: Any
    config: Any
    progress_bar: Any
    load_config: Any

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """As in diffusers, but returns the class that was saved if it is one that this one loads."""
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        index: Any = cls.load_config(pretrained_model_name_or_path, **where)
        loadable = {child.__name__: child for child in cls._loadable_classes()}
        chosen: Any = loadable.get(index["_class_name"], cls)
        loader: Any = super(TextPipeline, chosen)
        return loader.from_pretrained(pretrained_model_name_or_path, **kwargs)

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
