"""The base of every text pipeline: loading, saving, adapters, generators, streaming, and what it can be asked for."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.utils import logging
from torch import Tensor
from transformers import PreTrainedModel

from text_diffusers.common.json_files import read_object
from text_diffusers.common.progress import progress_bar
from text_diffusers.common.subclasses import loaded_subclasses
from text_diffusers.common.validation import as_plain, flat_list, is_list, require
from text_diffusers.models.language_model import is_language_model
from text_diffusers.pipelines.call_state import CallAttribute, CallScheduler, without_calls
from text_diffusers.pipelines.calls.generation_defaults import (
    CALL_SETTINGS,
    check_generation_defaults,
)
from text_diffusers.pipelines.guidance import set_guidance_scale
from text_diffusers.pipelines.loading import (
    HUB_ARGUMENTS,
    INDEX,
    NoPipelineError,
    check_finite,
    check_links,
    check_saved_pipeline,
    installed_class,
    is_checkpoint,
    load_published,
    loading_error,
    pipeline_folder,
    with_installed_classes,
)
from text_diffusers.pipelines.lora import (
    LORA_FILE,
    PEFT_FILE,
    check_adaptable,
    check_lora_weights,
    check_names,
    check_settings,
    check_untied,
    from_peft,
    has_lora,
    is_from_peft,
    load_into_language_model,
    peft_settings,
    refuse_compiled,
)
from text_diffusers.pipelines.row_limits import label_prompts_of
from text_diffusers.pipelines.text_batch import TextBatch
from text_diffusers.pipelines.text_endings import cut_texts, texts_of

logger = logging.get_logger(__name__)


def as_names(names: Any) -> Any:
    """Names as a list; a folder for the Hub holds them as {"0": name, ...}."""
    return list(names.values()) if isinstance(names, dict) else names


class TextPipeline(CogVideoXLoraLoaderMixin):
    """Mixin of a `DiffusionPipeline` that writes texts, each from a generator of its own.

    It is no `DiffusionPipeline` itself: in a file for the Hub, diffusers looks for the one class that is. LoRA is that
    of diffusers for pipelines with one transformer, which here is the `denoiser`.

    Several calls may be under way at once, in threads or as streams taken in turn: each writes what it would write
    alone. While a callback runs, the pipeline shows the call that it belongs to: `scheduler` is the call's own, and
    `_interrupt` and `_guidance_scale` are set for this call. Set elsewhere, they are set for all calls under way.

    What command line, Space, model card and evaluation ask of a pipeline, whatever its class:

    Attributes:
        kind: what it denoises, "tokens", "embeddings", "codes" or "latents".
        accepted_inputs: the arguments of its call that say what to write, such as "prompt", "text" and "source".
        scheduler_names: the components that hold a scheduler.
        draws_from_scheduler: whether its steps are those of the scheduler, so that another sampler can take its place.
        max_length: the longest row in tokens, with the start token.
        block_length: tokens of a block, for a denoiser that writes block by block.
        label_names: the name of each class label, `None` for one without a name; empty without labels.
        predicts_end: whether the model says where a text ends; else `max_new_tokens` must.
        generation_defaults: arguments of its call where a call gives none, such as `num_inference_steps`.
    """

    kind: str = "tokens"
    accepted_inputs: tuple[str, ...] = ()
    scheduler_names: tuple[str, ...] = ("scheduler",)
    draws_from_scheduler: bool = True
    block_length: int | None = None
    predicts_end: bool = True

    # Read by diffusers' loaders and callbacks, or by the methods below.
    _callback_tensor_inputs: list[str] = []
    _output_types: tuple[str, ...] = ("text", "tokens")
    _lora_loadable_modules = ["denoiser"]
    transformer_name = "denoiser"

    # Of a call; see `pipelines.call_state`.
    scheduler: Any = CallScheduler()
    _interrupt: Any = CallAttribute(default=False)
    _num_timesteps: Any = CallAttribute(default=0)
    _guidance_scale: Any = CallAttribute(default=1.0)

    # Of the `DiffusionPipeline` that this mixin is combined with.
    tokenizer: Any
    denoiser: Any
    config: Any
    _get_signature_keys: Any

    @property
    def max_length(self) -> int:
        raise NotImplementedError

    @property
    def generation_defaults(self) -> dict[str, Any]:
        # A folder holds them in the order of the alphabet.
        defaults = self.config.get("generation_defaults") or {}
        return {name: defaults[name] for name in CALL_SETTINGS if name in defaults}

    @generation_defaults.setter
    def generation_defaults(self, defaults: Mapping[str, Any] | None):
        check_generation_defaults(defaults)
        for name in defaults or {}:
            accepted = inspect.signature(type(self).__call__).parameters
            limit = f"arguments of {type(self).__name__}"
            require(name in accepted, "generation_defaults", limit, name)
        stock: Any = self
        stock.register_to_config(generation_defaults=None if defaults is None else dict(defaults))

    @property
    def label_names(self) -> list[str | None]:
        num_labels = self._num_labels or 0
        # Fewer names than labels leave the last labels without one.
        names = list(self.config.get("label_names") or [])
        return [*names[:num_labels], *[None] * (num_labels - len(names))]

    @property
    def _num_labels(self) -> int | None:
        """The number of labels; `None` where the model does not say."""
        if is_language_model(self.denoiser):
            prompts = label_prompts_of(self.config)
            return None if prompts is None else len(prompts)
        return getattr(self.denoiser.config, "num_classes", None)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """As in diffusers, but where there is no terminal a line every so often; see `set_progress_bar_config`."""
        require(
            iterable is not None or total is not None, "total", "a number without `iterable`", None
        )
        # Of several processes the first one shows it.
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        settings = {"disable": distributed and torch.distributed.get_rank() > 0}
        settings |= getattr(self, "_progress_bar_config", {})
        return progress_bar(iterable, total=total, **settings)

    @property
    def num_timesteps(self) -> int:
        """Steps of the call under way or the last one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback ended the call, which then returns what is written, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def guidance_scale(self) -> Any:
        """Scale of classifier-free guidance of the call under way or the last one, as it was given.

        A callback sets another one for the steps to come by `pipe._guidance_scale = ...`: a number, or one a text.
        """
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether a text of the call under way or the last one is guided, which scale 1 does not do."""
        return any(scale != 1 for scale in flat_list(as_plain(self._guidance_scale)))

    def _register_text_components(
        self, tokenizer: Any, denoiser: Any, scheduler: Any, lengths: Any, label_names: Any
    ) -> bool:
        """Register the components and settings of a pipeline with a denoiser; whether all components are there."""
        components = {"tokenizer": tokenizer, "denoiser": denoiser, "scheduler": scheduler}
        stock: Any = self
        stock.register_modules(**components)

        stock.register_to_config(lengths=lengths, label_names=as_names(label_names))

        # diffusers may load a pipeline with parts left out, which then cannot be checked.
        return None not in components.values()

    def _register_settings(self, label_prompts: Any, takes_source: Any, generation_defaults: Any):
        """Register the settings that only some pipelines have."""
        stock: Any = self
        require(isinstance(takes_source, bool), "takes_source", "True or False", takes_source)
        stock.register_to_config(label_prompts=as_names(label_prompts), takes_source=takes_source)
        self.generation_defaults = generation_defaults

    def __getstate__(self) -> dict[str, Any]:
        # For copies and pickles.
        return without_calls(vars(self))

    # Loading and saving

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline by installed classes.

        As in diffusers, but the class is the one that was saved if it is one that this one loads. Code in a folder or
        repository is run only for a class that is not installed, and only if it is trusted.

        A folder or repository that is no saved pipeline, but holds a diffusion language model as its authors published
        it, such as "GSAI-ML/LLaDA-8B-Instruct", is loaded into classes of transformers or of this package; none of its
        code is run.

        Args:
            pretrained_model_name_or_path: a folder, the name of a shipped model, or that of a Hub repository.
            kwargs: those of `DiffusionPipeline.from_pretrained`; weights are read from safetensors.

        Raises:
            OSError: if a file is missing or cannot be had.
            ValueError: if what is there is no pipeline that can be loaded, or would need code that is not trusted.
        """
        # 1. Find the folder: here, in the package, or a snapshot of the Hub
        trusted = bool(kwargs.get("trust_remote_code"))
        if kwargs.get("custom_pipeline") is not None and not trusted:
            raise ValueError(
                "`custom_pipeline` is code of others: it needs `trust_remote_code=True`."
            )
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        try:
            folder = pipeline_folder(pretrained_model_name_or_path, trusted, **hub_arguments)
            if not (folder / INDEX).exists() and is_checkpoint(folder):
                raise NoPipelineError(f"`{folder}` holds no {INDEX}.")
        # What is no saved pipeline may be a model that others published.
        except NoPipelineError:
            pipe = load_published(pretrained_model_name_or_path, **hub_arguments, **kwargs)
            if not cls._loads(type(pipe)):
                raise ValueError(
                    f"`{pretrained_model_name_or_path}` is loaded as a {type(pipe).__name__}, and not as the "
                    f"{cls.__name__} that was asked for."
                ) from None
            return pipe

        # Reading a pickle may run code, so weights are safetensors unless the caller objects.
        kwargs.setdefault("use_safetensors", True)

        # 2. Check the folder before the stock loader reads it, and its weights afterwards
        try:
            if not trusted:
                check_links(folder, folder / INDEX)
            index = with_installed_classes(read_object(folder / INDEX))
            loader = cls._loader_of(index, trusted)
            if not trusted:
                check_saved_pipeline(folder, index, loader.__self__, kwargs, kwargs.get("variant"))
            pipe = loader(folder, **kwargs)

            # Components that the caller passed were not read from this folder.
            check_finite(
                folder, {name: part for name, part in pipe.components.items() if name not in kwargs}
            )
        # The error of an optional dependency already says what to install.
        except ImportError:
            raise
        except Exception as error:
            raise loading_error(folder, error) from error

        # The name as it was given, rather than the folder of a snapshot.
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipe

    @classmethod
    def _loader_of(cls, index: dict[str, Any], trusted: bool) -> Any:
        """The stock `from_pretrained` of the class that an index names."""
        name = index.get("_class_name")
        if not isinstance(name, str):
            if trusted:
                return DiffusionPipeline.from_pretrained
            raise ValueError(
                f"`_class_name` must be an installed class, got {name!r}: its code needs `trust_remote_code=True`."
            )

        # A pipeline class of the user counts like an installed one, once it is imported.
        saved = installed_class(name) or {
            child.__name__: child for child in loaded_subclasses(TextPipeline)
        }.get(name)
        if saved is None or not issubclass(saved, TextPipeline):
            raise ValueError(
                f"`_class_name` must be a pipeline of texts that is imported, got {name!r}."
            )

        # diffusers' loader called on that class, past the `from_pretrained` above.
        chosen: Any = saved if cls._loads(saved) else cls
        stock: Any = super(TextPipeline, chosen)
        return stock.from_pretrained

    @classmethod
    def _loads(cls, saved: type) -> bool:
        """Whether folders of the class `saved` are loaded as what they are, and not as this class."""
        return issubclass(saved, cls)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """As in diffusers, which leaves models out whose class is in no type hint."""
        # All components that the constructor takes go over, whatever its type hints say.
        accepted, _ = cls._get_signature_keys(cls)
        shared = {name: part for name, part in pipeline.components.items() if name in accepted}
        stock: Any = super()
        return stock.from_pipe(pipeline, **shared | kwargs)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, with the names of installed classes in the place of a repository's files."""
        stock: Any = super()
        loaded = stock.load_config(pretrained_model_name_or_path, **kwargs)
        # With unused arguments or the commit asked for, the configuration comes first of several.
        if isinstance(loaded, tuple):
            return with_installed_classes(loaded[0]), *loaded[1:]
        return with_installed_classes(loaded)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, **kwargs: Any
    ):
        """As in diffusers; weights are always written as safetensors.

        Raises:
            ValueError: if the denoiser has LoRA layers, whose weights would be saved under other names.
        """
        denoiser = getattr(self, "denoiser", None)
        if denoiser is not None and has_lora(denoiser):
            raise ValueError(
                "`denoiser` has LoRA layers: call `fuse_lora()`, if wanted, and `unload_lora_weights()`."
            )
        if not safe_serialization:
            logger.warning(
                "Weights are written as safetensors: `from_pretrained` reads no pickles."
            )
        stock: Any = super()
        stock.save_pretrained(save_directory, safe_serialization=True, **kwargs)

    # Adapters

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | Path,
        denoiser_lora_layers: dict,
        denoiser_lora_adapter_metadata: dict,
    ):
        """Write `get_peft_model_state_dict(denoiser)` and `denoiser.peft_config["default"].to_dict()` to a folder."""
        # diffusers names its arguments by its own pipelines' component, the transformer.
        metadata: Any = {"transformer_lora_adapter_metadata": denoiser_lora_adapter_metadata}
        super().save_lora_weights(save_directory, denoiser_lora_layers, **metadata)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        **kwargs: Any,
    ):
        """Load an adapter from a folder, a Hub repo or a dict, whose alpha is taken to be the rank, and activate it.

        A folder holds what `save_lora_weights` writes, or the `adapter_model.safetensors` and `adapter_config.json` of
        peft. The denoiser may be of this package or a language model of transformers.

        Args:
            kwargs: those of diffusers: `weight_name`, `subfolder`, `revision`, `hotswap` and so on.

        Raises:
            ValueError: for pickled files, weights that do not fit, or while an adapter is fused.
        """
        check_adaptable(self)
        source = pretrained_model_name_or_path_or_dict
        # With a name given, diffusers does not look for files of other kinds.
        files = [kwargs.pop("weight_name")] if kwargs.get("weight_name") else [LORA_FILE, PEFT_FILE]
        for file in files:
            if not file.endswith(".safetensors"):
                raise ValueError(
                    f"`weight_name` must be a .safetensors file, never a pickled one, got {file!r}."
                )

        errors = []
        for file in files:
            arguments: Any = kwargs | {"weight_name": file, "use_safetensors": True}
            try:
                super().load_lora_weights(source, adapter_name, **arguments)
                break
            except OSError as error:
                errors.append(error)
        else:
            raise ValueError(
                f"`load_lora_weights` found no {' or '.join(files)} in {str(source)!r}: {errors[0]}"
            ) from errors[0]
        # New layers come with their dropout switched on.
        self.denoiser.train(self.denoiser.training)

    @classmethod
    def lora_state_dict(cls, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> Any:
        """As in diffusers; the settings of what peft wrote are read from the file beside it."""
        source = pretrained_model_name_or_path_or_dict
        loaded = super().lora_state_dict(source, **kwargs)
        check_names(loaded[0] if isinstance(loaded, tuple) else loaded)
        if isinstance(source, dict) or not kwargs.get("return_lora_metadata"):
            return loaded
        if not is_from_peft(loaded[0]):
            return loaded
        names = ("subfolder", *HUB_ARGUMENTS)
        return loaded[0], peft_settings(source, **{name: kwargs.get(name) for name in names})

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: dict[str, Tensor],
        transformer: Any,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        # diffusers' `load_lora_weights` comes here with the weights that it has read.
        if is_from_peft(state_dict):
            state_dict, metadata = from_peft(state_dict, metadata, transformer)
        check_lora_weights(state_dict, transformer)
        check_settings(metadata or {}, prefix="denoiser.")
        if not isinstance(transformer, PreTrainedModel):
            transformer.load_lora_adapter(
                state_dict, prefix="denoiser", metadata=metadata, **kwargs
            )
            return

        # A model on its way between devices cannot take new layers.
        require(not kwargs.pop("hotswap", False), "hotswap", "False for a language model", True)
        pipeline = kwargs.pop("_pipeline", None)
        on_cpu, in_sequence, _ = cls._optionally_disable_offloading(pipeline)
        load_into_language_model(transformer, state_dict, kwargs.get("adapter_name"), metadata)
        if on_cpu:
            pipeline.enable_model_cpu_offload()
        elif in_sequence:
            pipeline.enable_sequential_cpu_offload()

    def set_adapters(self, *args: Any, **kwargs: Any):
        check_adaptable(self)
        super().set_adapters(*args, **kwargs)

    def fuse_lora(self, components: Sequence[str] = ("denoiser",), **kwargs: Any):
        check_adaptable(self)
        check_untied(self.denoiser)
        super().fuse_lora(list(components), **kwargs)

    def unfuse_lora(self, components: Sequence[str] = ("denoiser",), **kwargs: Any):
        refuse_compiled(self.denoiser)
        super().unfuse_lora(list(components), **kwargs)

    def unload_lora_weights(self):
        refuse_compiled(self.denoiser)
        super().unload_lora_weights()

    def enable_lora(self):
        refuse_compiled(self.denoiser)
        super().enable_lora()

    def disable_lora(self):
        refuse_compiled(self.denoiser)
        super().disable_lora()

    def delete_adapters(self, adapter_names: Any):
        refuse_compiled(self.denoiser)
        super().delete_adapters(adapter_names)

    # Calls

    def texts_so_far(self, batch: TextBatch) -> list[str]:
        """The texts of a batch between two steps; tokens to come are shown as the mask token."""
        return texts_of(batch, self.tokenizer, self._revises_tokens, show_masks=True)

    def finished_texts(self, batch: TextBatch) -> list[str]:
        """The texts of a batch as they are returned: what was given, as it was given, and what was written."""
        return texts_of(batch, self.tokenizer, self._revises_tokens)

    def finished_tokens(self, batch: TextBatch) -> Tensor:
        """(B, L) tokens of a batch as they are returned, each text cut at its end."""
        return cut_texts(batch, self.tokenizer, self._revises_tokens)

    @property
    def _revises_tokens(self) -> bool:
        """Whether a token that was written may still change in a later step."""
        return True

    def call_back(
        self,
        callback: Callable | None,
        names: Sequence[str],
        batch: TextBatch,
        step: int,
        timestep: float,
    ):
        """Call `callback(pipe, step, timestep, tensors)`, and take the tensors that it returns."""
        if callback is None:
            return
        tensors = {name: self._callback_tensor(batch, name) for name in names}
        # A callback that changes nothing may return None.
        changed = callback(self, step, timestep, tensors) or {}
        self._accept_tensors(batch, changed)

    def take_guidance_scale(self, batch: TextBatch):
        """Guide the step that is due, and those to come, by the scale that a callback has set, if one has."""
        if self._guidance_scale is not batch.guidance_scale:
            self._accept_guidance_scale(batch, as_plain(self._guidance_scale))
            batch.guidance_scale = self._guidance_scale

    def _accept_guidance_scale(self, batch: TextBatch, guidance_scale: Any):
        set_guidance_scale(batch, guidance_scale)

    def _callback_tensor(self, batch: TextBatch, name: str) -> Tensor:
        return getattr(batch, name)

    def _accept_tensors(self, batch: TextBatch, changed: dict[str, Tensor]):
        batch.tokens = changed.get("tokens", batch.tokens)

    def _check_output(self, output_type: str, callback: Any, callback_tensors: Any):
        is_function = callback is None or callable(callback)
        require(is_function, "callback_on_step_end", "a function", callback)
        is_names = is_list(callback_tensors)
        limit = "a list of names"
        require(is_names, "callback_on_step_end_tensor_inputs", limit, callback_tensors)
        if output_type not in self._output_types:
            allowed = " or ".join(f'"{name}"' for name in self._output_types)
            raise ValueError(f"`output_type` must be {allowed}, got {output_type!r}.")
        unknown = [name for name in callback_tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )
