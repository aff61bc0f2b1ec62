"""What training changes: the parameters, their average and the optimizer's moments, whole or in shards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


class TrainingState:
    """The parameters of `model` that require gradients, the buffers, averages and moments, by name.

    Args:
        model: prepared and unwrapped; under FSDP2 its parameters are shards.
        optimizer: of these parameters.
        ema_decay: of the averages.
        build: makes a model of the same architecture, with any weights, on the right device.
    """

    def __init__(self, model: Any, optimizer: Any, ema_decay: float, build: Callable[[], Any]):
        self.model, self.optimizer, self.build = model, optimizer, build
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.sharded = any(isinstance(p, DTensor) for p in self.parameters.values())
        self.ema = EMAModel(self.stepped(), decay=ema_decay, foreach=True)

    def stepped(self) -> list[Any]:
        """What the optimizer steps, and what averages are made of."""
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

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, gathered from the shards; all processes call this."""
        return {name: whole(parameter) for name, parameter in self.parameters.items()}

    def averages(self) -> dict[str, Tensor]:
        """The averaged weights by name, gathered from the shards; all processes call this."""
        return {name: whole(t) for name, t in zip(self.parameters, self.ema.shadow_params, strict=True)}

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's state as "name/moment", gathered from the shards; all processes call this."""
        return {
            f"{name}/{key}": whole(torch.as_tensor(value))
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
            if value is not None
        }

    def num_bytes(self) -> int:
        """An upper bound of what `tensors` takes on the disk."""
        return 4 * sum(p.numel() * p.element_size() for p in self.parameters.values())

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything, for a checkpoint; all processes call this."""
        buffers = dict(self.model.named_buffers())
        return {"model": self.weights(), "buffers": buffers, "ema": self.averages(), "optimizer": self.moments()}

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
        for name, buffer in self.model.named_buffers():
            buffer.copy_(tensors["buffers"][name])
        self._load_parameters(tensors)

    def _load_parameters(self, tensors: dict[str, dict[str, Tensor]]):
        for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
            parameter.copy_(part(tensors["model"][name], parameter))
            shadow.copy_(part(tensors["ema"][name], shadow))
        fused = self.optimizer.param_groups[0]["fused"]  # then the number of steps is where the parameters are
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            parameter = self.parameters[name]
            if value.shape == parameter.shape:
                value = part(value, parameter)
            self.optimizer.state[parameter][moment] = value.to(parameter.device) if fused else value

    def _whole_model(self, weights: dict[str, Tensor]) -> Any:
        model = self.build()
        kept = model.state_dict().keys()  # without the buffers that a model computes for itself
        buffers = {name: buffer for name, buffer in self.model.named_buffers() if name in kept}
        model.load_state_dict(weights | buffers)
        return model.eval()


def whole(tensor: Tensor) -> Tensor:
    detached: Any = tensor.detach()
    return detached.full_tensor() if isinstance(tensor, DTensor) else detached


def part(values: Tensor, like: Tensor) -> Tensor:
    """This process's part of `values`, which every process has whole, if `like` is in shards; else all of them."""
    values = values.to(like.device)
    if not isinstance(like, DTensor):
        return values
    return distribute_tensor(values, like.device_mesh, like.placements, src_data_rank=None)


def make_state(accelerator: Any, model: Any, optimizer: Any, ema_decay: float, build: Callable[[], Any]) -> Any:
    """The `TrainingState` of a model and optimizer prepared by Accelerate; arguments as there."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from text_diffusers.training.deepspeed import DeepSpeedState

        state = DeepSpeedState(model, optimizer, ema_decay, build)
    else:
        state = TrainingState(model, optimizer.optimizer, ema_decay, build)
    if state.sharded and hasattr(model, "peft_config"):
        raise ValueError("Adapters (`lora_rank`) cannot be trained in shards; they are small: use `--multi_gpu`.")
    return state
