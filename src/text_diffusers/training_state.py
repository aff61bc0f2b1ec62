"""What training changes: the parameters, their average and the optimizer's moments, whole or in shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class TrainingState:
    """The parameters of `model` that require gradients, their buffers, average and moments, by name.

    Args:
        model: prepared and unwrapped; under FSDP2 its parameters are shards.
        optimizer: of these parameters.
        ema_decay: of the average.
    """

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, ema_decay: float):
        self.model, self.optimizer = model, optimizer
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = EMAModel(self.parameters.values(), decay=ema_decay, foreach=True)

    @contextmanager
    def averaged(self) -> Iterator[Any]:
        """The model with its averaged weights and in evaluation mode; afterwards it is as before."""
        self.ema.store(self.parameters.values())
        self.ema.copy_to(self.parameters.values())
        try:
            yield self.model.eval()
        finally:
            self.ema.restore(self.parameters.values())
            self.model.train()

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name, gathered from the shards; all processes call this."""
        return {name: whole(t) for name, t in zip(self.parameters, self.ema.shadow_params, strict=True)}

    def num_bytes(self) -> int:
        """An upper bound of what `tensors` takes on the disk."""
        return 4 * sum(p.numel() * p.element_size() for p in self.parameters.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything, gathered from the shards; all processes call this."""
        moments = {
            f"{name}/{key}": torch.as_tensor(value)
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
            if value is not None
        }
        groups = {"model": self.parameters, "buffers": dict(self.model.named_buffers()), "optimizer": moments}
        gathered = {group: {name: whole(t) for name, t in named.items()} for group, named in groups.items()}
        return gathered | {"ema": self.averages()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, dict[str, Tensor]]):
        """Take over what `tensors` returned.

        Raises:
            ValueError: if the model that is trained has other parameters.
        """
        saved = {name: tuple(tensor.shape) for name, tensor in tensors["model"].items()}
        here = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if saved != here:
            name = next(name for name in (*here, *saved) if saved.get(name) != here.get(name))
            raise ValueError(
                "`resume_from_checkpoint`: the checkpoint is of another model. "
                f"{name!r} has shape {here.get(name)} here and {saved.get(name)} there."
            )
        for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            fill(parameter, tensors["model"][name])
            fill(shadow, tensors["ema"][name])
        for name, buffer in self.model.named_buffers():
            fill(buffer, tensors["buffers"][name])
        fused = self.optimizer.param_groups[0]["fused"]  # then the number of steps is where the parameters are
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            parameter = self.parameters[name]
            if value.shape == parameter.shape:
                value = fill(torch.empty_like(parameter, dtype=value.dtype), value)
            self.optimizer.state[parameter][moment] = value.to(parameter.device) if fused else value


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(target: Tensor, values: Tensor) -> Tensor:
    """Copy whole `values` into `target`, a tensor or this process's shard of one."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements)
    return target.copy_(values)
