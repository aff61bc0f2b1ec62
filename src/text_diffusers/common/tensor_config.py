"""Configurations that hold tensors, which are saved beside the JSON file instead of in it."""

import os
from pathlib import Path
from typing import Any

from diffusers.configuration_utils import ConfigMixin, FrozenDict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

TENSOR_FILE = "scheduler_tensors.safetensors"
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class TensorConfigMixin(ConfigMixin):
    """Saves the arguments named in `_tensor_arguments` to a safetensors file instead of the JSON file.

    They are part of `config`, so `from_config(scheduler.config)` works as usual.
    """

    _tensor_arguments: tuple[str, ...] = ()
    _internal_dict: Any

    def to_json_string(self) -> str:
        """The configuration as JSON, without its tensors."""
        # diffusers writes what is in `_internal_dict`, so the tensors are taken out for a moment.
        full = self._internal_dict
        plain = {name: value for name, value in full.items() if name not in self._tensor_arguments}
        self._internal_dict = FrozenDict(plain)
        try:
            return super().to_json_string()
        finally:
            self._internal_dict = full

    def save_config(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any
    ):
        """As in diffusers, with the tensors beside the configuration."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)

        # Safetensors holds contiguous tensors only.
        tensors = {}
        for name in self._tensor_arguments:
            if self._internal_dict[name] is not None:
                tensors[name] = self._internal_dict[name].contiguous()
        if tensors:
            save_file(tensors, folder / TENSOR_FILE)

        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, subfolder: str | None = None, **kwargs: Any
    ):
        """As in diffusers, with the tensors beside the configuration.

        Raises:
            ValueError: if the file of tensors is damaged or holds others than those of the class.
        """
        name = pretrained_model_name_or_path
        hub_options = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        tensors = load_tensors(name, subfolder, hub_options)

        # A tensor that the class does not take would fail far from its file.
        unknown = sorted(set(tensors) - set(cls._tensor_arguments))
        if unknown:
            raise ValueError(
                f"`{TENSOR_FILE}` must hold {cls._tensor_arguments} of a {cls.__name__}, got {unknown}."
            )

        # Arguments of the call count more than the file.
        loader: Any = super()
        return loader.from_pretrained(name, subfolder=subfolder, **tensors | kwargs)


def load_tensors(
    name: str | os.PathLike, subfolder: str | None, hub_options: dict[str, Any]
) -> dict[str, Tensor]:
    """The tensors beside a configuration in a folder or a Hub repository; none if there is no file of them.

    Raises:
        ValueError: if the file is damaged.
    """
    file = Path(name) / (subfolder or "") / TENSOR_FILE
    if not file.parent.is_dir():
        # A repository on the Hub, not a folder.
        try:
            file = Path(hf_hub_download(str(name), TENSOR_FILE, subfolder=subfolder, **hub_options))
        except EntryNotFoundError:
            return {}

    try:
        return load_file(file) if file.exists() else {}
    except SafetensorError as error:
        raise ValueError(f"`{file}` is damaged: {error}") from error
