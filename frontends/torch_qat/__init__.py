"""Quantization-aware training in PyTorch, in three lines, so that the compiler finds every range it needs.

    model = prepare_qat(model, example_inputs, recipe="default")
    ...                                  # train as before; freeze(model) for the last epochs
    export(model, "model.onnx", example_inputs)

The extra `torch` brings PyTorch; nothing else in qatc imports this.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn

from qatc.compiler.diagnostics import CompileError, Diagnostic
from qatc.compiler.target import load_target
from qatc.frontends.torch_qat.exporting import Rounding, export, stateless_copy, strip_copy
from qatc.frontends.torch_qat.placement import Placement, has_hooked_weight, weights_left_float
from qatc.frontends.torch_qat.recipes import RECIPES, LearnedFakeQuantize, Recipe, Widths, recipe_named
from qatc.frontends.torch_qat.tracing import trace

__all__ = [
    "RECIPES",
    "LearnedFakeQuantize",
    "Recipe",
    "Rounding",
    "export",
    "freeze",
    "prepare_qat",
    "stateless_copy",
    "strip_copy",
]


def prepare_qat(
    model: nn.Module,
    example_inputs: Sequence[torch.Tensor] | torch.Tensor,
    target: str = "onnx",
    recipe: str = "default",
    exclude: Sequence[str] = (),
    bits: Mapping[str, Widths] | None = None,
) -> fx.GraphModule:
    """A copy of `model` with fake quantizers, ready to be trained on.

    Every tensor that the target's integer network keeps is quantized: inputs, outputs, residual sums, concatenations,
    averages, functions. Convolutions and their batch norms become one layer whose folded weights are rounded.
    Attention and recurrent layers (of up to 128 steps) are written out, so that they become integers as well; a warning
    names the layers whose weights stay float.

    Args:
        model: float, traceable by torch.fx; it is not changed.
        example_inputs: the arguments of one call; they set the first ranges.
        target: what it will be compiled for (a name of `qatc targets` or a TOML file); "default" is its recipe.
        recipe: "default", or one of `RECIPES`.
        exclude: names of modules that stay float.
        bits: widths of weights, or (weights, activations), by module name ("" for all); 8 where left out.

    Raises:
        CompileError: QAT007 (exit code 2) for unknown names and widths, batch norm without statistics, weights that
            hooks compute, and where torch.fx cannot trace the model; QAT305 for an unknown target.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    described = load_target(target)
    chosen = recipe_named(described.recipe if recipe == "default" else recipe)
    widths = dict(bits or {})
    known = {name for name, _ in model.named_modules()}
    wrong = [Diagnostic("QAT007", f"the model has no module {n!r}") for n in (*exclude, *widths) if n not in known]
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is None:
            hint = "make it with track_running_stats=True, its default"
            wrong.append(Diagnostic("QAT007", f"the batch norm {name!r} keeps no statistics to deploy", hint=hint))
        if has_hooked_weight(module):
            hint = "normalize it with torch.nn.utils.parametrizations.weight_norm or spectral_norm"
            wrong.append(Diagnostic("QAT007", f"a hook computes the weight of {name!r}", hint=hint))
    if wrong:
        raise CompileError(wrong, 2)
    traced = trace(copy.deepcopy(model), inputs, exclude)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that reduce_range is old; the guide's recipe has it
        Placement(traced, chosen, tuple(exclude), widths).run(inputs)
    traced.eval()
    left = weights_left_float(traced, exclude)
    if left:
        warnings.warn(f"these stay float: {', '.join(left)}; exclude them to say that it is meant", stacklevel=2)
    with torch.no_grad():
        traced(*inputs)  # the first ranges, and the shapes of per-channel scales, before an optimizer sees them
    return traced.train()


def freeze(model: nn.Module) -> None:
    """End the search for ranges: observers stop, batch norm keeps its statistics; weights may still be trained.

    For the last epochs, and before accuracy is measured.
    """
    for module in model.modules():
        if hasattr(module, "disable_observer"):
            module.disable_observer()
        if hasattr(module, "freeze_bn_stats"):
            module.freeze_bn_stats()
