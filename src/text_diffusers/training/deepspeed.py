"""The state of a run under DeepSpeed's ZeRO-1 and ZeRO-2: whole weights to compute with, flat fp32 parts to step.

Each process steps its part of every group of the optimizer; the parts end anywhere in a parameter. DeepSpeed finds a
parameter's fragment of the weights and, by a key, of any tensor that is laid out like them: moments and averages.
"""

from collections.abc import Callable
from typing import Any

import torch
from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor

from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.state import Named, TrainingState

AVERAGE = "average"
STEPS = "step"
BYTES = 16  # of a weight, its average and two moments, all of them fp32


class DeepSpeedState(TrainingState):
    """A `TrainingState` whose averages and moments are laid out like DeepSpeed's parts.

    Args:
        optimizer: Accelerate's wrapper of DeepSpeed's ZeRO optimizer.
    """

    def __init__(self, model: Any, optimizer: Any, ema_decay: float, build: Callable[[], Any]):
        self.zero = optimizer.optimizer
        super().__init__(model, self.zero.optimizer, ema_decay, build)
        self.sharded = True  # as far as the loop is concerned: nobody may step or evaluate alone

        # Flat part of each parameter
        self.part_of = {}
        for flat, group in zip(self.stepped(), self.zero.bit16_groups, strict=True):
            self.part_of |= dict.fromkeys(group, flat)

    def stepped(self) -> list[Any]:
        """This process's flat fp32 parts, one for each group of the optimizer."""
        return self.zero.single_partition_of_fp32_groups

    def weights(self, kept: bool = True) -> Named:
        return {
            name: kept_part(safe_get_full_fp32_param(parameter), kept)
            for name, parameter in self.parameters.items()
        }

    def averages(self, kept: bool = True) -> Named:
        self._link()
        return {
            name: kept_part(safe_get_full_optimizer_state(parameter, AVERAGE), kept)
            for name, parameter in self.parameters.items()
        }

    def moments(self, kept: bool = True) -> Named:
        self._link()
        moments = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[self.part_of[parameter]].items():
                if key == STEPS:  # a number, the same for all parameters of a part
                    moments[f"{name}/{key}"] = value.clone()
                elif value is not None:
                    moment = safe_get_full_optimizer_state(parameter, key)
                    moments[f"{name}/{key}"] = kept_part(moment, kept)
        return moments

    def num_bytes(self) -> int:
        return BYTES * sum(parameter.numel() for parameter in self.parameters.values())

    def _load_parameters(self, tensors: dict[str, Named]):
        # Make room for the moments, which are there only after a first step.
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            flat = self.part_of[self.parameters[name]]
            state = self.optimizer.state[flat]
            if moment == STEPS:
                state[moment] = value.to(flat.device, copy=True)
            elif moment not in state:
                state[moment] = torch.zeros_like(flat)
        self._link()

        # Each process takes its fragments out of the whole tensors.
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, tensors["model"][name])
            safe_set_full_optimizer_state(parameter, tensors["ema"][name], AVERAGE)
        for key, value in tensors["optimizer"].items():
            name, moment = key.rsplit("/", 1)
            if moment != STEPS:
                safe_set_full_optimizer_state(self.parameters[name], value, moment)
        self.zero.update_lp_params()  # the weights to compute with, from all processes' parts

    def _link(self):
        """Tell DeepSpeed, which knows only of moments, and of these only since the first step, where to look."""
        shadows = dict(zip(self.stepped(), self.ema.shadow_params, strict=True))
        for parameter, flat in self.part_of.items():
            fragment = parameter._hp_mapping
            if fragment is not None:  # else it is in the parts of others
                fragment.set_optim_state_fragment(
                    flat, self.optimizer.state[flat] | {AVERAGE: shadows[flat]}
                )


def kept_part(gathered: Tensor, kept: bool) -> Tensor:
    """A gathered tensor in the memory of the machine, or nothing of it; see `TrainingState.weights`."""
    return gathered.cpu() if kept else gathered.new_empty(0)


def set_up(plugin: Any, config: TrainingConfig, mixed_precision: str):
    """Make DeepSpeed's engine, by Accelerate's `plugin`, divide, clip and step as the loop expects of an optimizer.

    Raises:
        ValueError: if a setting would keep the state where checkpoints do not find it.
    """
    if plugin.zero_stage not in (1, 2):
        raise ValueError(
            f"`zero_stage` of DeepSpeed must be 1 or 2, got {plugin.zero_stage}; for weights in shards use FSDP2."
        )
    if plugin.offload_optimizer_device != "none":
        raise ValueError(
            f"`offload_optimizer_device` of DeepSpeed must be none, got {plugin.offload_optimizer_device}."
        )
    if mixed_precision == "fp16":
        raise ValueError(
            "`mixed_precision` must be no or bf16 with DeepSpeed, whose loss scale is not saved, got fp16."
        )

    plugin.deepspeed_config.update(
        train_micro_batch_size_per_gpu=config.train_batch_size,
        gradient_accumulation_steps=1,  # the loop's
        gradient_clipping=config.max_grad_norm,
    )
