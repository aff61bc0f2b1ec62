"""What any model is held to: the laws that diffusers asks of its own under the same names, on random weights.

Zero-initialised layers would hide mistakes, so every case has random weights.
"""

import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from support.conformance_cases import CasesMixin, every_case

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FILE = "diffusion_pytorch_model.safetensors"
GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@dataclass
class ModelCase:
    """A model and what it is called with.

    Attributes:
        model_class, arguments: what is tested.
        inputs: makes what `forward` is called with.
        shape: of the first output.
        loss: of the output, differentiable.
        unused: names of parameters that this loss does not reach.
        reads_weights: whether weights are read outside of their layers, so that the model is on a device as a whole.
        tolerance: of half precision, in units of the largest output.
    """

    model_class: type
    arguments: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    shape: tuple[int, ...]
    loss: Callable[[Any], Tensor] = lambda output: first(output).float().square().mean()
    unused: set[str] = field(default_factory=set)
    reads_weights: bool = False
    tolerance: float = 0.1

    def make(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        model = self.model_class(**self.arguments)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        return model.eval()

    @torch.no_grad()
    def call(self, model: Any, dtype: torch.dtype = torch.float32, **more: Any) -> Tensor:
        """The first output."""
        return first(model(**as_dtype(self.inputs(), dtype), **more))


def first(output: Any) -> Tensor:
    return output[0]


def as_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {
        k: v.to(dtype) if isinstance(v, Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


class ModelTesterMixin(CasesMixin):
    """For a class whose `cases` are `ModelCase`s."""

    @every_case
    def test_from_save_pretrained(self, case, tmp_path):
        """Weights, buffers and configuration survive disk to the last bit, and so does the output."""
        model = case.make()
        model.save_pretrained(tmp_path)
        loaded = case.model_class.from_pretrained(tmp_path)
        assert [path.name for path in tmp_path.glob("*.safetensors")] == [FILE]
        assert not loaded.training
        assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
            k: v for k, v in model.config.items() if k[0] != "_"
        }
        for (name, tensor), (other_name, other) in zip(
            model.state_dict().items(), loaded.state_dict().items(), strict=True
        ):
            assert name == other_name
            assert tensor.dtype == other.dtype
            assert torch.equal(tensor, other)
        assert torch.equal(case.call(model), case.call(loaded))

    def test_from_save_pretrained_variant(self, case, tmp_path):
        """A variant has its own file; without its name there is no model."""
        model = case.make()
        model.save_pretrained(tmp_path, variant="fp16")
        assert (tmp_path / FILE.replace(".safetensors", ".fp16.safetensors")).exists()
        assert torch.equal(
            case.call(model), case.call(case.model_class.from_pretrained(tmp_path, variant="fp16"))
        )
        with pytest.raises(OSError, match="no file named"):
            case.model_class.from_pretrained(tmp_path)

    @pytest.mark.parametrize("name", DTYPES)
    def test_from_save_pretrained_dtype(self, case, tmp_path, name):
        """A model is loaded in the dtype that is asked for: every floating weight, and the output."""
        case.make().save_pretrained(tmp_path)
        model = case.model_class.from_pretrained(tmp_path, torch_dtype=DTYPES[name])
        assert model.dtype == DTYPES[name]
        assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {DTYPES[name]}

    @pytest.mark.parametrize("name", DTYPES)
    def test_from_pretrained_dtype_alias(self, case, tmp_path, name):
        """`dtype` is `torch_dtype`."""
        case.make().save_pretrained(tmp_path)
        one, other = (
            case.model_class.from_pretrained(tmp_path, **{key: DTYPES[name]})
            for key in ("dtype", "torch_dtype")
        )
        assert one.dtype == other.dtype == DTYPES[name]
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, its)

    @pytest.mark.parametrize("name", ["fp16", "bf16"])
    def test_from_save_pretrained_dtype_inference(self, case, tmp_path, name):
        """Half precision computes in half precision, and what full precision does up to its rounding."""
        model = case.make()
        exact = case.call(model)
        model.save_pretrained(tmp_path)
        half = case.model_class.from_pretrained(tmp_path, torch_dtype=DTYPES[name])
        output = case.call(half, DTYPES[name])
        assert output.dtype == DTYPES[name]
        assert (output.float() - exact).abs().max() < case.tolerance * exact.abs().max()
        assert torch.equal(output, case.call(model.to(DTYPES[name]), DTYPES[name]))

    def test_determinism(self, case):
        """Nothing is drawn and no input is changed outside of training."""
        model, inputs = case.make(), case.inputs()
        with torch.no_grad():
            outputs = [first(model(**inputs)) for _ in range(2)]
        assert torch.equal(*outputs)
        assert torch.equal(outputs[0], case.call(case.make()))
        for name, value in case.inputs().items():
            assert not isinstance(value, Tensor) or torch.equal(value, inputs[name])

    @every_case
    def test_output(self, case):
        """The output has its shape, is finite, and depends on the weights."""
        output = case.call(case.make())
        assert output.shape == case.shape
        assert torch.isfinite(output).all()
        assert not torch.allclose(output, case.call(case.make(seed=1)))

    def test_outputs_equivalence(self, case):
        """Without `return_dict` a tuple begins with the same."""
        model = case.make()
        with torch.no_grad():
            named, plain = model(**case.inputs()), model(**case.inputs(), return_dict=False)
        assert isinstance(plain, tuple)
        assert torch.equal(first(named), plain[0])

    @every_case
    def test_batch_is_singles(self, case):
        """A row of a batch is what it is alone."""
        model, inputs = case.make(), case.inputs()
        together = case.call(model)
        with torch.no_grad():
            for row in range(case.shape[0]):
                one = {
                    k: v[row : row + 1] if isinstance(v, Tensor) and v.ndim else v
                    for k, v in inputs.items()
                }
                torch.testing.assert_close(
                    first(model(**one))[0], together[row], atol=2e-5, rtol=1e-4
                )

    def test_getattr_is_correct(self, case):
        """Attributes are silent, entries of the configuration warn, and what is neither is said to be missing."""
        model = case.make()
        model.own_attribute = 5
        model.register_to_config(entry_of_config=7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert model.own_attribute == 5
            assert callable(model.save_pretrained)
        with pytest.warns(FutureWarning, match="entry_of_config"):
            assert model.entry_of_config == 7
        with pytest.raises(AttributeError, match="missing"):
            model.missing  # noqa: B018

    @pytest.mark.parametrize("variant", [None, "fp16"])
    def test_sharded_checkpoints(self, case, tmp_path, variant):
        """A model in parts is the model; the index counts its bytes."""
        model = case.make()
        size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        model.save_pretrained(tmp_path, max_shard_size=f"{max(1, size // 2000)}KB", variant=variant)
        index = json.loads(next(tmp_path.glob("*.index*.json")).read_text(encoding="utf-8"))
        parts = {path.name for path in tmp_path.glob("*.safetensors")}
        assert len(parts) > 1
        assert set(index["weight_map"].values()) == parts
        stored = {name: part for part in parts for name in load_file(tmp_path / part)}
        assert stored == index["weight_map"]
        assert torch.equal(
            case.call(model), case.call(case.model_class.from_pretrained(tmp_path, variant=variant))
        )

    def test_cpu_offload(self, case):
        """Weights that are only there while their layer, or the model, runs give the same output."""
        model = case.make()
        exact = case.call(model)
        whole = [case.model_class.__name__] if case.reads_weights else None
        offloaded = cpu_offload(
            copy.deepcopy(model), execution_device="cpu", preload_module_classes=whole
        )
        assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
        assert torch.equal(case.call(offloaded), exact)

    @pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
    def test_group_offloading(self, case, tmp_path, offload_type):
        """Weights on disk until their group runs give the same output."""
        if offload_type == "leaf_level" and case.reads_weights:
            pytest.skip("It reads weights outside of their layers.")
        model = case.make()
        exact = case.call(model)
        arguments = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
        place = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        model.enable_group_offload(
            **place, offload_type=offload_type, **arguments, offload_to_disk_path=str(tmp_path)
        )
        assert list(tmp_path.glob("*.safetensors"))
        assert torch.equal(case.call(model), exact)

    def test_layerwise_casting(self, case):
        """Weights stored in eight bits compute in full precision, and roughly the same."""
        model = case.make()
        exact = case.call(model)
        model.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )
        stored = {parameter.dtype for parameter in model.parameters()}
        assert torch.float8_e4m3fn in stored
        output = case.call(model)
        assert output.dtype == torch.float32
        assert not torch.equal(output, exact)
        correlation = torch.corrcoef(torch.stack([output.flatten(), exact.flatten()]))[0, 1]
        assert correlation > 0.95

    @pytest.mark.parametrize("device", [pytest.param("cuda", marks=GPU)])
    def test_model_parallelism(self, case, device):
        """On a GPU the output is that of the CPU."""
        model = case.make()
        exact = case.call(model)
        inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in case.inputs().items()}
        with torch.no_grad():
            output = first(model.to(device)(**inputs))
        torch.testing.assert_close(output.cpu(), exact, atol=1e-3, rtol=1e-3)


class TrainingTesterMixin(CasesMixin):
    """For a class whose `cases` are `ModelCase`s."""

    def step(self, case, model, **changes):
        torch.manual_seed(3)
        model.train()
        loss = case.loss(model(**case.inputs() | changes))
        loss.backward()
        return loss.detach()

    def gradients(self, model):
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    @every_case
    def test_training(self, case):
        """Every parameter has a gradient that is finite and not zero, and a small step along it lowers the loss."""
        model = case.make()
        loss = self.step(case, model)
        found = self.gradients(model)
        reached = {name for name, gradient in found.items() if gradient.any()}
        assert {name for name, _ in model.named_parameters()} - reached == case.unused
        assert all(torch.isfinite(gradient).all() for gradient in found.values())
        length = sum(float(gradient.square().sum()) for gradient in found.values())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in found:
                    parameter -= 1e-3 * float(loss) / length * found[name]
        with torch.no_grad():
            torch.manual_seed(3)
            assert case.loss(model(**case.inputs())) < loss

    def test_training_with_ema(self, case):
        """diffusers' moving average holds what its formula says, and is a model again."""
        model = case.make()
        ema = EMAModel(
            model.parameters(), decay=0.5, model_cls=case.model_class, model_config=model.config
        )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 1.0
        ema.step(model.parameters())
        share = 1 - ema.cur_decay_value
        ema.copy_to(model.parameters())
        for parameter, old in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(parameter.detach(), old + share)

    @every_case
    def test_gradient_checkpointing_equivalence(self, case):
        """Recomputing what was forgotten gives the same loss and gradients."""
        if not case.model_class._supports_gradient_checkpointing:
            with pytest.raises(ValueError, match="gradient checkpointing"):
                case.make().enable_gradient_checkpointing()
            return
        plain, checkpointed = case.make(), case.make()
        checkpointed.enable_gradient_checkpointing()
        assert torch.equal(self.step(case, plain), self.step(case, checkpointed))
        wanted, found = self.gradients(plain), self.gradients(checkpointed)
        assert wanted.keys() == found.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, msg=name)

    def test_gradient_checkpointing_is_applied(self, case):
        """With it every block runs twice, without it once."""
        if not case.model_class._supports_gradient_checkpointing:
            pytest.skip("It forgets nothing.")
        for enabled in (False, True):
            model, calls = case.make(), []
            (
                model.enable_gradient_checkpointing
                if enabled
                else model.disable_gradient_checkpointing
            )()
            assert model.is_gradient_checkpointing == enabled
            for block in model.blocks:
                block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            self.step(case, model)
            assert len(calls) == (1 + enabled) * len(model.blocks)

    def test_mixed_precision_training(self, case):
        """Under autocast, weights stay in full precision, and gradients point where they point without."""
        exact, mixed = case.make(), case.make()
        self.step(case, exact)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.step(case, mixed)
        assert torch.isfinite(loss)
        wanted, found = self.gradients(exact), self.gradients(mixed)
        assert {gradient.dtype for gradient in found.values()} == {torch.float32}
        flat = [
            torch.cat([gradients[name].flatten() for name in wanted])
            for gradients in (wanted, found)
        ]
        assert torch.cosine_similarity(*flat, dim=0) > 0.9


class LoraTesterMixin(CasesMixin):
    """For a class whose `cases` are `ModelCase`s whose model has `PeftAdapterMixin`."""

    targets = ("to_q", "to_k", "to_v", "to_out.0")

    def adapted(self, case, **changes):
        model = case.make()
        torch.manual_seed(2)
        settings = {
            "r": 2,
            "lora_alpha": 4,
            "target_modules": list(self.targets),
            "init_lora_weights": False,
        }
        model.add_adapter(LoraConfig(**settings | changes))
        return model.eval()

    @pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
    @every_case
    def test_save_load_lora_adapter(self, case, tmp_path, use_dora):
        """An adapter changes the output, is switched off and on, and survives disk."""
        model = self.adapted(case, use_dora=use_dora)
        base, with_adapter = case.call(case.make()), case.call(model)
        assert not torch.allclose(base, with_adapter, atol=1e-3)
        model.disable_lora()
        assert torch.equal(case.call(model), base)
        model.enable_lora()
        model.save_lora_adapter(tmp_path)
        loaded = case.make()
        loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        torch.testing.assert_close(case.call(loaded), with_adapter)
        loaded.unload_lora()
        assert torch.equal(case.call(loaded), base)

    def test_lora_wrong_adapter_name_raises_error(self, case, tmp_path):
        with pytest.raises(ValueError, match="no_such_adapter"):
            self.adapted(case).save_lora_adapter(tmp_path, adapter_name="no_such_adapter")

    def test_lora_adapter_metadata_is_loaded_correctly(self, case, tmp_path):
        """Rank, scale and layers are those of the file."""
        model = self.adapted(case, r=3, lora_alpha=12)
        model.save_lora_adapter(tmp_path)
        loaded = case.make()
        loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        for name in ("r", "lora_alpha", "target_modules"):
            assert getattr(next(iter(loaded.peft_config.values())), name) == getattr(
                model.peft_config["default"], name
            )

    def test_lora_fuse_unfuse(self, case):
        """Fused, the layers alone say the same; unfused, they are what they were."""
        model = self.adapted(case)
        with_adapter = case.call(model)
        model.fuse_lora()
        torch.testing.assert_close(case.call(model), with_adapter, atol=1e-4, rtol=1e-4)
        model.unfuse_lora()
        model.disable_lora()
        torch.testing.assert_close(case.call(model), case.call(case.make()), atol=1e-4, rtol=1e-4)

    def test_lora_fuse_nan(self, case):
        """Safe fusing refuses an adapter that is broken, and leaves the weights."""
        model = self.adapted(case)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.data.fill_(float("inf"))
        with pytest.raises(ValueError, match="NaN"):
            model.fuse_lora(safe_fusing=True)
        model.disable_lora()
        assert torch.equal(case.call(model), case.call(case.make()))

    @pytest.mark.filterwarnings("ignore")  # peft takes any LoRA bias for half a matrix
    def test_lora_B_bias(self, case):  # noqa: N802
        """A bias of the second factor counts."""
        model = self.adapted(case, lora_bias=True)
        biases = [
            p for name, p in model.named_parameters() if "lora_B" in name and name.endswith("bias")
        ]
        assert biases
        before = case.call(model)
        for bias in biases:
            bias.data.add_(1.0)
        assert not torch.allclose(case.call(model), before, atol=1e-3)

    def test_correct_lora_configs_with_different_ranks(self, case, tmp_path):
        """Layers with ranks of their own keep them on disk."""
        model = self.adapted(case, rank_pattern={"to_q": 5}, alpha_pattern={"to_q": 1})
        model.save_lora_adapter(tmp_path)
        loaded = case.make()
        loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
        ranks = {p.shape[0] for name, p in loaded.named_parameters() if "to_q.lora_A" in name}
        assert ranks == {5}
        torch.testing.assert_close(case.call(loaded), case.call(model))

    def test_lora_training_reaches_the_adapter_only(self, case):
        """Gradients go to the factors and leave the model alone."""
        model = self.adapted(case).train()
        case.loss(model(**case.inputs())).backward()
        trained = {
            name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()
        }
        assert trained
        assert all(".lora_" in name for name in trained)


class AttentionTesterMixin(CasesMixin):
    """For a class whose `cases` are `ModelCase`s whose model attends to itself."""

    def own(self, model):
        return [module for module in model.modules() if isinstance(module, AttentionModuleMixin)]

    def test_fuse_unfuse_qkv_projections(self, case):
        """One product for queries, keys and values gives what three do; unfusing leaves no trace."""
        model = case.make()
        exact, names = case.call(model), list(model.state_dict())
        model.fuse_qkv_projections()
        assert all(module.fused_projections for module in self.own(model))
        assert len(model.state_dict()) > len(names)
        for module in self.own(model):
            module.to_q.weight.data.fill_(float("nan"))  # no longer read
        torch.testing.assert_close(case.call(model), exact, atol=1e-4, rtol=1e-4)
        model = case.make()
        model.fuse_qkv_projections()
        model.unfuse_qkv_projections()
        assert list(model.state_dict()) == names
        assert torch.equal(case.call(model), exact)

    def test_get_set_processor(self, case):
        """Each attention calls the processor that it was given."""
        model = case.make()
        assert isinstance(model, AttentionMixin)
        exact, calls = case.call(model), []
        for module in self.own(model):
            processor = module.get_processor()

            def counted(*args, processor=processor, **kwargs):
                calls.append(1)
                return processor(*args, **kwargs)

            module.set_processor(counted)
            assert module.get_processor() is counted
        assert torch.equal(case.call(model), exact)
        assert len(calls) >= len(self.own(model)) > 0

    def test_attention_processor_dict(self, case):
        """Processors are named by their layers, and set by these names."""
        model = case.make()
        processors = {
            name: copy.copy(processor) for name, processor in model.attn_processors.items()
        }
        assert len(processors) >= len(self.own(model))
        model.set_attn_processor(dict(processors))
        assert model.attn_processors == processors

    def test_attention_processor_count_mismatch_raises_error(self, case):
        model = case.make()
        with pytest.raises(ValueError, match="number of processors"):
            model.set_attn_processor(
                model.attn_processors | {"one.more.processor": AttnProcessor()}
            )

    @pytest.fixture
    def same_backend_afterwards(self):
        """A model's choice of a backend becomes that of the process."""
        before, _ = _AttentionBackendRegistry.get_active_backend()
        yield before
        _AttentionBackendRegistry.set_active_backend(before)

    def test_set_attention_backend(self, case, same_backend_afterwards):
        """torch's own attention by name gives the same, a name that is none is refused."""
        model = case.make()
        exact = case.call(model)
        model.set_attention_backend("_native_math")
        assert {module.processor._attention_backend.value for module in self.own(model)} == {
            "_native_math"
        }
        torch.testing.assert_close(case.call(model), exact, atol=1e-4, rtol=1e-4)
        model.reset_attention_backend()
        with attention_backend(same_backend_afterwards):
            assert torch.equal(case.call(model), exact)
        with pytest.raises(ValueError, match="backend"):
            model.set_attention_backend("no_such_backend")


@pytest.mark.slow
class TorchCompileTesterMixin(CasesMixin):
    """For a class whose `cases` are `ModelCase`s."""

    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    def test_torch_compile_recompilation_and_graph_break(self, case):
        """One graph, compiled once, says the same."""
        model = case.make()
        exact = case.call(model)
        compiled = torch.compile(model, fullgraph=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(2):
                torch.testing.assert_close(case.call(compiled), exact, atol=1e-4, rtol=1e-4)

    def test_torch_compile_repeated_blocks(self, case):
        """Blocks that are alike are compiled once and say the same."""
        model = case.make()
        exact = case.call(model)
        model.compile_repeated_blocks(fullgraph=True)
        for _ in range(2):
            torch.testing.assert_close(case.call(model), exact, atol=1e-4, rtol=1e-4)

    def test_compile_works_with_aot(self, case):
        """An exported model says the same."""
        model = case.make()
        with torch.no_grad():
            exported = torch.export.export(model, args=(), kwargs=case.inputs(), strict=False)
        torch.testing.assert_close(
            case.call(exported.module()), case.call(model), atol=1e-4, rtol=1e-4
        )
