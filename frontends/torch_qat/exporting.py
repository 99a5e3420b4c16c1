"""A trained model as an ONNX file that states its ranges.

PyTorch's exporters write what the fake quantizers compute, and lose some of it: fused fake quantizers have no ONNX
form, the dynamo exporter drops quant_min and quant_max, the legacy one refuses every range but three and writes scales
of shape [1]. So every fake quantizer is replaced by a stateless module that writes

    x -> QuantizeLinear(scale, zero_point) [-> Clip(qmin, qmax)] -> DequantizeLinear

with scalar parameters, the Clip where the range is not the type's. Batch norm is folded into the weights as training
simulated it, before they are rounded. Biases are rounded to multiples of (input scale x weight scale), the int32 that
integer arithmetic adds: what is exported is then what is deployed, but for float errors at rounding boundaries.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import onnx
import torch
from torch import nn
from torch.ao.nn import qat as qat_modules
from torch.ao.nn.intrinsic import qat as fused_modules

from qatc.compiler.diagnostics import misused
from qatc.frontends.torch_qat.placement import INPUT_QUANTIZERS
from qatc.frontends.torch_qat.recipes import LearnedFakeQuantize
from qatc.frontends.torch_qat.tracing import settle_shapes

_FULL: Final = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
_FOLDED: Final[tuple[tuple[Any, Any, bool], ...]] = (
    (fused_modules.ConvBnReLU1d, qat_modules.Conv1d, True),
    (fused_modules.ConvBnReLU2d, qat_modules.Conv2d, True),
    (fused_modules.ConvBnReLU3d, qat_modules.Conv3d, True),
    (fused_modules.ConvBn1d, qat_modules.Conv1d, False),
    (fused_modules.ConvBn2d, qat_modules.Conv2d, False),
    (fused_modules.ConvBn3d, qat_modules.Conv3d, False),
)
_FINE: Final = 200  # steps; on the coarser grids of fewer bits, rounding biases would cost accuracy
_MIN_OPSET: Final = 13  # per-channel QuantizeLinear


class _Round(torch.autograd.Function):
    """Rounding onto a grid; in ONNX the pair of Q and DQ."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int, axis: int
    ) -> torch.Tensor:
        if axis < 0:
            return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.int(), low, high)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point.int(), axis, low, high)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any, low: int, high: int, axis: int) -> Any:
        """The ONNX nodes."""
        options = {} if axis < 0 else {"axis_i": axis}
        container = torch.int8 if low < 0 else torch.uint8
        integers = g.op("QuantizeLinear", x, scale, zero_point, **options)
        if (low, high) != _FULL[container]:
            bounds = [g.op("Constant", value_t=torch.tensor(b, dtype=container)) for b in (low, high)]
            integers = g.op("Clip", integers, *bounds)
        return g.op("DequantizeLinear", integers, scale, zero_point, **options).setType(x.type())


class Rounding(nn.Module):
    """A fake quantizer that is trained: scale and zero point are constants.

    `scale` is float32 and `zero_point` int8 or uint8, both of shape [] (per tensor) or [channels] along `axis`.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int, axis: int = -1) -> None:
        super().__init__()
        container = torch.int8 if low < 0 else torch.uint8
        shape: tuple[int, ...] = (-1,) if axis >= 0 else ()
        self.register_buffer("scale", scale.detach().float().reshape(shape).clone())
        self.register_buffer("zero_point", zero_point.detach().round().to(container).reshape(shape).clone())
        self.low, self.high, self.axis = low, high, axis

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` on the grid, same shape."""
        result: torch.Tensor = _Round.apply(x, self.scale, self.zero_point, self.low, self.high, self.axis)
        return result


def export(
    model: nn.Module,
    path: str | Path,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor,
    *,
    opset: int = 17,
    dynamic_batch: bool = True,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
) -> Path:
    """Write a fake-quantized model as FP32 ONNX with Q/DQ that state every range.

    Takes what `prepare_qat` made, and as well what torch.ao's `prepare_qat`, `prepare_qat_fx` and `prepare_qat_pt2e`
    make. The model itself is not changed.

    Args:
        model: trained; it is exported in evaluation mode.
        path: the file to write.
        example_inputs: the arguments of one call, float32 of the shapes to export.
        opset: 13 or later.
        dynamic_batch: whether the first dimension of inputs and outputs stays symbolic (`batch`).
        input_names: names of the inputs; `input` or `input_0`, ... where left out.
        output_names: names of the outputs, likewise.

    Returns:
        `path`.

    Raises:
        CompileError: QAT007 where the opset is too old or the model has no fake quantization.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    if opset < _MIN_OPSET:
        raise misused(f"opset {opset} has no per-channel quantization", f"use opset {_MIN_OPSET} or later")
    stateless = stateless_copy(model)
    if not any(isinstance(module, Rounding) for module in stateless.modules()):
        raise misused("the model has no fake quantization to export", "make it with prepare_qat, then train it")
    with torch.no_grad():
        results: torch.Tensor | Sequence[torch.Tensor] = stateless(*inputs)
    count = 1 if isinstance(results, torch.Tensor) else len(results)
    if dynamic_batch and isinstance(stateless, torch.fx.GraphModule) and INPUT_QUANTIZERS in stateless.meta:
        settle_shapes(stateless, inputs)
    names_in = list(input_names) or _numbered("input", len(inputs))
    names_out = list(output_names) or _numbered("output", count)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own age and of shapes that it traces
        torch.onnx.export(
            stateless,
            inputs,
            str(path),
            opset_version=opset,
            dynamo=False,
            input_names=names_in,
            output_names=names_out,
            dynamic_axes={name: {0: "batch"} for name in (*names_in, *names_out)} if dynamic_batch else None,
        )
    _tidy(Path(path))
    return Path(path)


def stateless_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose fake quantizers are `Rounding` modules, batch norm folded into the weights."""
    training = [module for module in model.modules() if module.training]
    result = copy.deepcopy(model)
    if isinstance(result, torch.fx.GraphModule) and not training:
        pass  # exported programs refuse eval(); they are in it or not
    else:
        result.eval()
    _replace(result, _folded)
    _compute_weights(result)
    _replace(result, _rounding)
    for layer, quantizer in getattr(model, "meta", {}).get(INPUT_QUANTIZERS, {}).items():
        _round_bias(result.get_submodule(layer), result.get_submodule(quantizer))
    return result


def _compute_weights(model: nn.Module) -> None:
    """Make weights parameters that are computed and then rounded, so that the file has no trace of how."""
    for layer in [m for m in model.modules() if nn.utils.parametrize.is_parametrized(m, "weight")]:
        quantizer = layer.parametrizations.weight[-1]
        if len(layer.parametrizations.weight) > 1 and _is_quantizer(quantizer):
            nn.utils.parametrize.remove_parametrizations(layer, "weight")  # what is rounded rounds to itself
            nn.utils.parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)


def _round_bias(layer: nn.Module, given: nn.Module) -> None:
    """Move a layer's bias onto the grid of its accumulator, where that is fine: with weights of eight bits."""
    grid: nn.Module = (
        layer.weight_fake_quant if hasattr(layer, "weight_fake_quant") else layer.parametrizations.weight[-1]
    )
    if layer.bias is None or not isinstance(grid, Rounding) or not isinstance(given, Rounding):
        return
    if grid.high - grid.low < _FINE:
        return
    step = given.scale * grid.scale
    if step.ndim:  # the channels of transposed convolutions are those of each group
        step = step.repeat(layer.bias.numel() // step.numel())
    layer.bias.data = torch.round(layer.bias.data / step) * step


def strip_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode without any fake quantizer: the float model, batch norm folded into the weights."""
    result = copy.deepcopy(model).eval()
    _replace(result, _folded)
    _replace(result, lambda module: nn.Identity() if _is_quantizer(module) else None)
    return result


def _replace(module: nn.Module, rule: Callable[[nn.Module], nn.Module | None], done: Any = None) -> None:
    """Replace children by what `rule` makes of them; a shared child by one shared replacement."""
    done = {} if done is None else done
    for name, child in list(module.named_children()):
        if id(child) not in done:
            replacement = rule(child)
            done[id(child)] = child if replacement is None else replacement
            if replacement is None:
                _replace(child, rule, done)
        if done[id(child)] is not child:
            module._modules[name] = done[id(child)]


def _is_quantizer(module: nn.Module) -> bool:
    return all(hasattr(module, a) for a in ("scale", "zero_point", "fake_quant_enabled", "activation_post_process"))


def _rounding(module: nn.Module) -> nn.Module | None:
    if not _is_quantizer(module):
        return None
    if int(module.fake_quant_enabled[0]) == 0:
        return nn.Identity()
    if isinstance(module, LearnedFakeQuantize):
        module.settle()
    scale, zero_point = module.scale, module.zero_point
    if isinstance(module.activation_post_process, torch.ao.quantization.FixedQParamsObserver):
        scale, zero_point = module.calculate_qparams()
    observer = module.activation_post_process
    axis = int(module.ch_axis) if scale.numel() > 1 or getattr(module, "is_per_channel", False) else -1
    return Rounding(scale, zero_point, int(observer.quant_min), int(observer.quant_max), axis)


def _folded(module: nn.Module) -> nn.Module | None:
    """A QAT convolution with batch norm, as a convolution on the weights that its fake quantizer sees."""
    for kind, plain, relu in _FOLDED:
        if type(module) is not kind:
            continue
        norm = module.bn
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        zero = torch.zeros_like(norm.running_mean)
        bias = (zero if module.bias is None else module.bias) - norm.running_mean
        shape = (module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding)
        result = plain(
            *shape, module.dilation, module.groups, bias=True, padding_mode=module.padding_mode, qconfig=module.qconfig
        )
        result.weight = nn.Parameter(module.weight * factor.reshape(-1, *[1] * (module.weight.ndim - 1)))
        result.bias = nn.Parameter(bias * factor + norm.bias)
        result.weight_fake_quant = module.weight_fake_quant
        result.eval()
        return nn.Sequential(result, nn.ReLU()) if relu else result
    return None


def _tidy(path: Path) -> None:
    """Give weights the names that they have in the model, and see that the file is valid."""
    loaded = onnx.ModelProto.FromString(path.read_bytes())
    for node in loaded.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = _plain_name(name)
    for tensor in loaded.graph.initializer:
        tensor.name = _plain_name(tensor.name)
    content = loaded.SerializeToString(deterministic=True)
    onnx.checker.check_model(content)  # pyright: ignore[reportUnknownMemberType]
    path.write_bytes(content)


def _plain_name(name: str) -> str:
    return name.replace(".parametrizations.weight.original", ".weight")


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
