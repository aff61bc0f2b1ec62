"""The part of a run that training changes: the parameters, their average and the optimizer's moments, maybe in shards.

A model in shards is one of FSDP2, each of whose processes holds a part of every parameter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from text_diffusers.pipelines.lora import has_lora

Named = dict[str, Tensor]


class TrainingState:
    """The parameters of `model` that require gradients, the buffers, averages and moments, by name.

    Args:
        model: prepared and unwrapped; under FSDP2 its parameters are shards.
        optimizer: of these parameters.
        ema_decay: of the averages.
        build: makes a model of the same architecture, with any weights, on the right device.

    Example:
        >>> import torch
        >>> from text_diffusers.training.state import TrainingState
        >>> model = torch.nn.Linear(2, 1)
        >>> state = TrainingState(model, torch.optim.AdamW(model.parameters()), ema_decay=0.9, build=lambda: None)
        >>> sorted(state.weights()), sorted(state.tensors())
        (['bias', 'weight'], ['buffers', 'ema', 'model', 'optimizer'])
    """

    def __init__(self, model: Any, optimizer: Any, ema_decay: float, build: Callable[[], Any]):
        self.model = model
        self.optimizer = optimizer
        self.build = build
        # Only these are averaged and saved: adapters are trained without the model below them.
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.sharded = any(isinstance(p, DTensor) for p in self.parameters.values())
        self.ema = EMAModel(self.stepped(), decay=ema_decay, foreach=True)

    def stepped(self) -> list[Any]:
        """The tensors that the optimizer steps, and of which averages are made."""
        return list(self.parameters.values())

    def update_averages(self):
        self.ema.step(self.stepped())

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """The model with its averaged weights, in evaluation mode; all processes call this.

        A model in shards is copied whole, so that a process may use it alone; another gets its averages for a while.
        """
        if self.sharded:
            yield self._whole_model(self.averages())
            return

        # The last weights are kept aside, and put back whatever happens.
        self.ema.store(self.parameters.values())
        self.ema.copy_to(self.parameters.values())
        try:
            yield self.model.eval()
        finally:
            self.ema.restore(self.parameters.values())
            self.model.train()

    @contextmanager
    def current(self) -> Iterator[Any]:
        """The same with the last weights."""
        yield self._whole_model(self.weights()) if self.sharded else self.model.eval()
        self.model.train()

    def _whole_model(self, weights: Named) -> Any:
        # Buffers are not sharded; each process has all of them.
        model = self.build()
        saved = model.state_dict().keys()  # without the buffers that a model computes for itself
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in saved}
        model.load_state_dict(weights | buffers)
        return model.eval()

    def weights(self, kept: bool = True) -> Named:
        """The weights by name, gathered from the shards; all processes call this.

        Args:
            kept: off for a process that only sends its parts; its tensors are empty then.
        """
        return {name: whole(parameter, kept) for name, parameter in self.parameters.items()}

    def averages(self, kept: bool = True) -> Named:
        """The averaged weights by name; as `weights`."""
        shadows = zip(self.parameters, self.ema.shadow_params, strict=True)
        return {name: whole(shadow, kept) for name, shadow in shadows}

    def moments(self, kept: bool = True) -> Named:
        """The optimizer's state as "name/moment"; as `weights`."""
        moments = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    moments[f"{name}/{key}"] = whole(torch.as_tensor(value), kept)
        return moments

    def num_bytes(self) -> int:
        """An upper bound of what `tensors` takes on the disk."""
        # Weights, averages and two moments
        return 4 * sum(p.numel() * p.element_size() for p in self.parameters.values())

    def tensors(self, kept: bool = True) -> dict[str, Named]:
        """Everything, for a checkpoint; all processes call this, and one of them keeps it."""
        return {
            "model": self.weights(kept),
            "buffers": dict(self.model.named_buffers()),
            "ema": self.averages(kept),
            "optimizer": self.moments(kept),
        }

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Named]):
        """Take over what `tensors` returned.

        Raises:
            ValueError: if the model that is trained has other parameters.
        """
        # 1. The checkpoint must be of this model
        shapes_there = {name: tuple(tensor.shape) for name, tensor in tensors["model"].items()}
        shapes_here = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        for name in (*shapes_here, *shapes_there):
            here = shapes_here.get(name)
            there = shapes_there.get(name)
            if here != there:
                raise ValueError(
                    "`resume_from_checkpoint`: the checkpoint is of another model. "
                    f"{name!r} has shape {here} here and {there} there."
                )

        # 2. Buffers, then all that belongs to parameters
        for name, buffer in self.model.named_buffers():
            buffer.copy_(tensors["buffers"][name])
        self._load_parameters(tensors)

    def _load_parameters(self, tensors: dict[str, Named]):
        # 1. Weights and their averages
        for (name, parameter), shadow in zip(
            self.parameters.items(), self.ema.shadow_params, strict=True
        ):
            parameter.copy_(part(tensors["model"][name], parameter))
            shadow.copy_(part(tensors["ema"][name], shadow))

        # 2. Moments; a fused optimizer has the number of its steps where the parameters are
        fused = self.optimizer.param_groups[0]["fused"]
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            parameter = self.parameters[name]
            if value.shape == parameter.shape:  # else it is the number of steps
                value = part(value, parameter)
            self.optimizer.state[parameter][moment] = value.to(parameter.device) if fused else value


def whole(tensor: Tensor, kept: bool = True) -> Tensor:
    """A tensor; if it is in shards, gathered from all processes, and then in the memory of the machine.

    Args:
        kept: off for an empty one.
    """
    detached: Any = tensor.detach()
    if not isinstance(tensor, DTensor):
        return detached
    # A GPU has room for one of them at a time, and maybe not for all.
    gathered = detached.full_tensor()
    return gathered.cpu() if kept else gathered.new_empty(0)


def part(values: Tensor, like: Tensor) -> Tensor:
    """This process's part of `values`, which every process has whole, if `like` is in shards; else all of them."""
    values = values.to(like.device)
    if not isinstance(like, DTensor):
        return values
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def make_state(
    accelerator: Any, model: Any, optimizer: Any, ema_decay: float, build: Callable[[], Any]
) -> Any:
    """The `TrainingState` of a model and optimizer prepared by Accelerate; arguments as there.

    Raises:
        ValueError: if adapters are to be trained in shards.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # Imported here, as DeepSpeed may not be installed.
        from text_diffusers.training.deepspeed import DeepSpeedState

        state = DeepSpeedState(model, optimizer, ema_decay, build)
    else:
        state = TrainingState(model, optimizer.optimizer, ema_decay, build)
    if state.sharded and has_lora(model):
        raise ValueError(
            "Adapters (`lora_rank`) cannot be trained in shards; they are small: use `--multi_gpu`."
        )
    return state
