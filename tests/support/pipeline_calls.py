"""The calls of a denoiser and of a callback, step by step."""

from types import SimpleNamespace

from torch import nn


class Calls(list):
    """The arguments and the prediction (`said`) of each call of a denoiser of embeddings, inside of a `with`."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def __enter__(self):
        names = ("sample", "timestep", "attention_mask", "class_labels")

        def keep(module, args, kwargs, output):
            inputs = dict(zip(names, args, strict=True))
            optional = {"given": None, "self_condition": None} | kwargs
            self.append(
                SimpleNamespace(**inputs, **optional, kwargs=kwargs, said=output.sample.detach())
            )

        self.hook = self.denoiser.register_forward_hook(keep, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.hook.remove()


class Recorder:
    """A callback that keeps the time of each step and the tensors that it was offered."""

    def __init__(self):
        self.times = []
        self.tensors = []

    def __call__(self, pipe, step, timestep, tensors):
        self.times.append(timestep)
        self.tensors.append({name: tensor.clone() for name, tensor in tensors.items()})
