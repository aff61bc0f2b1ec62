"""What any pipeline is held to: the laws that diffusers asks of its own under the same names, and those of texts."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from support.conformance_cases import CasesMixin, every_case
from text_diffusers import TextDiffusionPipeline

CALL = {"num_return_sequences", "generator", "output_type", "return_dict", "callback_on_step_end"}
CALL |= {"callback_on_step_end_tensor_inputs"}


@dataclass
class PipelineCase:
    """A pipeline and what it is called with.

    Attributes:
        pipeline_class: what is tested.
        make: a pipeline with random weights, the same each time.
        inputs: of a call that returns one text.
        batches: inputs that are given as lists for several texts, with their values.
        changes: the tensor that a callback may change.
        num_timesteps: steps of a call.
        optional: components that may be left out, and the inputs that then are.
    """

    pipeline_class: type
    make: Callable[[], Any]
    inputs: dict[str, Any]
    batches: dict[str, list]
    changes: str
    num_timesteps: int
    optional: tuple[dict[str, None], dict[str, Any]] | None = None
    guidance: dict[str, Any] = field(default_factory=dict)

    def write(self, pipe: Any, seed: int | list[int] = 0, **more: Any) -> Tensor:
        """(B, L) tokens."""
        seeds = [
            torch.Generator().manual_seed(each)
            for each in (seed if isinstance(seed, list) else [seed])
        ]
        generator = seeds if isinstance(seed, list) else seeds[0]
        return pipe(**self.inputs | {"generator": generator, "output_type": "tokens"} | more).tokens


def state(pipe: Any) -> dict[str, Tensor]:
    """All weights of a pipeline by component and name."""
    models = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    return {
        f"{name}.{key}": value
        for name, part in models.items()
        for key, value in part.state_dict().items()
    }


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


class PipelineTesterMixin(CasesMixin):
    """For a class whose `cases` are `PipelineCase`s."""

    def load(self, case, folder, **arguments):
        return quiet(case.pipeline_class.from_pretrained(folder, **arguments))

    @every_case
    def test_save_load_local(self, case, tmp_path):
        """A saved pipeline writes what the loaded one writes; its files are safetensors, whatever was asked for."""
        pipe = case.make()
        pipe.save_pretrained(tmp_path, safe_serialization=False)
        assert not [*tmp_path.rglob("*.bin"), *tmp_path.rglob("*.pt")]
        loaded = self.load(case, tmp_path)
        assert type(loaded) is case.pipeline_class
        assert torch.equal(case.write(pipe), case.write(loaded))
        general = quiet(TextDiffusionPipeline.from_pretrained(tmp_path))
        assert type(general) is case.pipeline_class

    @every_case
    def test_pipeline_call_signature(self, case):
        """What every pipeline takes is optional, and the defaults are those of diffusers."""
        parameters = inspect.signature(case.pipeline_class.__call__).parameters
        assert CALL <= {name for name, p in parameters.items() if p.default is not p.empty}
        assert set(case.inputs) <= set(parameters)
        assert parameters["return_dict"].default is True
        assert parameters["num_return_sequences"].default == 1
        assert parameters["callback_on_step_end"].default is None
        assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())

    def test_inference_batch_consistent(self, case):
        """A batch of n has n texts."""
        pipe = case.make()
        count = len(next(iter(case.batches.values())))
        assert len(case.write(pipe, list(range(count)), **case.batches)) == count

    @every_case
    def test_inference_batch_single_identical(self, case):
        """A text of a batch is what it is alone, with its own generator."""
        pipe = case.make()
        count = len(next(iter(case.batches.values())))
        together = case.write(pipe, list(range(count)), **case.batches)
        for row in range(count):
            alone = case.write(
                pipe, [row], **{name: values[row] for name, values in case.batches.items()}
            )[0]
            shorter = min(len(alone), together.shape[1])
            assert torch.equal(alone[:shorter], together[row, :shorter])
            assert set(together[row, shorter:].tolist()) <= {pipe.tokenizer.pad_token_id}

    def test_dict_tuple_outputs_equivalent(self, case):
        """A tuple has the fields of the output, in their order."""
        outputs = []
        for return_dict in (True, False):
            generator = torch.Generator().manual_seed(0)
            outputs.append(case.make()(**case.inputs, generator=generator, return_dict=return_dict))
        named, plain = outputs
        assert isinstance(plain, tuple)
        fields = list(inspect.signature(type(named)).parameters)
        assert plain[: len(fields)][0] == named.texts == getattr(named, fields[0])
        assert torch.equal(plain[1], named.tokens)
        assert len(plain) == len(fields)

    def test_components_function(self, case):
        """`components` makes the pipeline anew, sharing all of it."""
        pipe = case.make()
        expected = (
            set(inspect.signature(case.pipeline_class.__init__).parameters)
            - {"self"}
            - set(pipe.config)
        )
        registered, _ = case.pipeline_class._get_signature_keys(case.pipeline_class)
        assert set(pipe.components) == set(registered)
        assert expected <= set(registered) | {"self"}
        again = quiet(case.pipeline_class(**pipe.components))
        assert all(again.components[name] is part for name, part in pipe.components.items())
        assert torch.equal(case.write(pipe), case.write(again))

    def test_from_pipe_consistent_config(self, case):
        """`from_pipe` keeps components and configuration."""
        pipe = case.make()
        again = quiet(case.pipeline_class.from_pipe(pipe))
        assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
            k: v for k, v in pipe.config.items() if k[0] != "_"
        }
        assert torch.equal(case.write(pipe), case.write(again))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
    def test_half_precision_inference_no_nan(self, case, dtype):
        """In half precision it writes words, and no masks."""
        pipe = case.make().to(dtype)
        tokens = case.write(pipe)
        assert pipe.dtype == dtype
        assert tokens.shape == case.write(case.make()).shape
        assert not (tokens == pipe.tokenizer.mask_token_id).any()

    def test_save_load_float16(self, case, tmp_path):
        """Half precision survives disk."""
        pipe = case.make().to(torch.float16)
        pipe.save_pretrained(tmp_path)
        loaded = self.load(case, tmp_path, torch_dtype=torch.float16)
        for name, value in state(loaded).items():
            assert value.dtype == state(pipe)[name].dtype
        assert torch.equal(case.write(pipe), case.write(loaded))

    def test_save_load_optional_components(self, case, tmp_path):
        """What may be left out is left out on disk too; nothing else may be."""
        if case.optional is None:
            assert not case.pipeline_class._optional_components
            return
        left_out, inputs = case.optional
        pipe = quiet(case.pipeline_class(**case.make().components | left_out))
        assert set(left_out) <= set(case.pipeline_class._optional_components)
        pipe.save_pretrained(tmp_path)
        loaded = self.load(case, tmp_path)
        assert all(getattr(loaded, name) is None for name in left_out)
        assert torch.equal(case.write(pipe, **inputs), case.write(loaded, **inputs))

    def test_to_device(self, case):
        """Every model moves, and the pipeline says where it is."""
        pipe = case.make().to("meta")
        assert {value.device.type for value in state(pipe).values()} == {"meta"}
        assert pipe.device.type == "meta"

    def test_to_dtype(self, case):
        """Every model changes its dtype, as a whole."""
        pipe = case.make()
        assert {value.dtype for value in state(pipe).values() if value.is_floating_point()} == {
            torch.float32
        }
        pipe.to(dtype=torch.float16)
        models = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
        assert {p.dtype for model in models for p in model.parameters()} == {torch.float16}

    def test_torch_dtype_dict(self, case, tmp_path):
        """A dtype for each component, and one for the others."""
        pipe = case.make()
        pipe.save_pretrained(tmp_path)
        names = [name for name, part in pipe.components.items() if isinstance(part, nn.Module)]
        loaded = self.load(
            case, tmp_path, torch_dtype={names[-1]: torch.bfloat16, "default": torch.float16}
        )
        dtypes = {name: getattr(loaded, name).dtype for name in names}
        assert dtypes == dict.fromkeys(names, torch.float16) | {names[-1]: torch.bfloat16}

    def test_dtype_alias(self, case, tmp_path):
        """`dtype` is `torch_dtype`."""
        case.make().save_pretrained(tmp_path)
        assert self.load(case, tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16

    @every_case
    def test_num_return_sequences(self, case):
        """n texts for each prompt, next to each other; the first is that of n = 1."""
        pipe = case.make()
        one, three = case.write(pipe), case.write(pipe, num_return_sequences=3)
        assert len(three) == 3 * len(one)
        shorter = min(one.shape[1], three.shape[1])
        assert torch.equal(three[0, :shorter], one[0, :shorter])
        for refused in (0, 1.5):
            with pytest.raises(ValueError, match="num_return_sequences"):
                case.write(pipe, num_return_sequences=refused)

    @every_case
    def test_generators(self, case):
        """The same seed writes the same, another writes something else; there is one generator or one a text."""
        pipe = case.make()
        first = case.write(pipe, num_return_sequences=4)
        assert torch.equal(first, case.write(pipe, num_return_sequences=4))
        other = case.write(pipe, 1, num_return_sequences=4)
        assert first.shape != other.shape or not torch.equal(first, other)
        with pytest.raises(ValueError, match="generator"):
            case.write(pipe, [0, 1, 2])

    def test_cfg(self, case):
        """Guidance at scale 1 is none; a larger scale writes something else."""
        if not case.guidance:
            pytest.skip("This case is written without guidance.")
        pipe = case.make()
        plain = {name: 1.0 for name in case.guidance}
        without = {k: v for k, v in case.inputs.items() if k not in case.guidance}
        tokens = [
            case.write(pipe, **settings, num_return_sequences=4)
            for settings in (plain, case.guidance)
        ]
        generator = torch.Generator().manual_seed(0)
        unset = pipe(
            **without, generator=generator, output_type="tokens", num_return_sequences=4
        ).tokens
        assert torch.equal(tokens[0], unset)
        assert tokens[0].shape != tokens[1].shape or not torch.equal(*tokens)

    @every_case
    def test_callback_inputs(self, case):
        """A callback is called after every step, gets exactly what it asks for, and all that is offered is there."""
        pipe, seen = case.make(), []

        def callback(pipe, step, timestep, tensors):
            seen.append((step, set(tensors)))
            assert all(isinstance(value, Tensor) and len(value) == 1 for value in tensors.values())
            return tensors

        plain = case.write(pipe)
        offered = pipe._callback_tensor_inputs
        for names in ([], offered[:1], offered):
            seen.clear()
            arguments = {
                "callback_on_step_end": callback,
                "callback_on_step_end_tensor_inputs": names,
            }
            assert torch.equal(
                case.write(pipe, **arguments), plain
            )  # what it gives back as it was changes nothing
            assert len(seen) == case.num_timesteps
            assert all(got == set(names) for _, got in seen)
        with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
            case.write(
                pipe,
                callback_on_step_end=callback,
                callback_on_step_end_tensor_inputs=["no_such_tensor"],
            )

    @every_case
    def test_callback_changes_tensor(self, case):
        """What a callback puts in the place of a tensor is what the text is made of."""
        pipe = case.make()

        def callback(pipe, step, timestep, tensors):
            return {case.changes: torch.zeros_like(tensors[case.changes])}

        arguments = {
            "callback_on_step_end": callback,
            "callback_on_step_end_tensor_inputs": [case.changes],
        }
        changed = [case.write(pipe, seed, **arguments) for seed in (0, 1)]
        assert not torch.equal(changed[0], case.write(pipe))
        assert torch.equal(*changed)

    def test_callback_interrupt(self, case):
        """A callback may end the call, and the next is not affected."""
        pipe, steps = case.make(), []
        whole = case.write(pipe)

        def callback(pipe, step, timestep, tensors):
            assert pipe.num_timesteps == case.num_timesteps
            steps.append(step)
            pipe._interrupt = step == 1
            return {}

        case.write(pipe, callback_on_step_end=callback)
        assert steps == [0, 1]
        assert pipe.interrupt
        assert torch.equal(case.write(pipe), whole)

    def test_progress_bar(self, case, capsys):
        """The bar shows as many steps as there are, and what a user set for it is kept."""
        pipe = case.make()
        pipe.set_progress_bar_config(disable=False, desc="writing")
        case.write(pipe)
        shown = capsys.readouterr().err
        assert "writing" in shown or "codes" in shown
        pipe.set_progress_bar_config(disable=True)
        case.write(pipe)
        assert capsys.readouterr().err == ""
        assert pipe._progress_bar_config["disable"] is True

    def test_serialization_with_variants(self, case, tmp_path):
        """A variant is in the names of all weights."""
        pipe = case.make()
        pipe.save_pretrained(tmp_path, variant="fp16")
        index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
        files = list(tmp_path.rglob("*.safetensors"))
        weights = [file for file in files if "scheduler" not in file.parent.name]
        assert {file.parent.name for file in weights} == {
            name for name, part in pipe.components.items() if isinstance(part, nn.Module)
        }
        assert all(".fp16." in file.name for file in weights)
        assert all(file.parent.name in index for file in files)

    def test_loading_with_variants(self, case, tmp_path):
        """The weights of a variant are loaded to the last bit."""
        pipe = case.make()
        pipe.save_pretrained(tmp_path, variant="fp16")
        loaded = state(self.load(case, tmp_path, variant="fp16"))
        assert all(torch.equal(value, loaded[name]) for name, value in state(pipe).items())

    def test_loading_with_incorrect_variants_raises_error(self, case, tmp_path):
        case.make().save_pretrained(tmp_path)
        with pytest.raises((ValueError, OSError), match="fp16"):
            self.load(case, tmp_path, variant="fp16")

    def test_layerwise_casting_inference(self, case):
        """Models stored in eight bits write texts."""
        pipe = case.make()
        for part in pipe.components.values():
            if hasattr(part, "enable_layerwise_casting"):
                part.enable_layerwise_casting(
                    storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
                )
        assert torch.float8_e4m3fn in {value.dtype for value in state(pipe).values()}
        assert not (case.write(pipe) == pipe.tokenizer.mask_token_id).any()

    def test_sequential_cpu_offload_forward_pass(self, case):
        """With weights that are loaded layer by layer it writes the same, twice."""
        plain = case.write(case.make())
        pipe = case.make()
        for (
            name,
            part,
        ) in (
            pipe.components.items()
        ):  # as `enable_sequential_cpu_offload`, which wants an accelerator
            if isinstance(part, nn.Module) and name not in pipe._exclude_from_cpu_offload:
                cpu_offload(part, torch.device("cpu"))
        for _ in range(2):
            assert torch.equal(case.write(pipe), plain)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_model_cpu_offload_forward_pass(self, case):
        """With models that are loaded one after the other it writes the same, twice, and leaves the device empty."""
        plain = case.write(case.make().to("cuda")).cpu()
        pipe = case.make()
        pipe.enable_model_cpu_offload()
        for _ in range(2):
            assert torch.equal(case.write(pipe).cpu(), plain)
        assert {value.device.type for value in state(pipe).values()} == {"cpu"}
