r"""Where fake quantizers go: behind every float tensor that an integer backend keeps, and behind no other.

    input -> FQ -> Conv+BN (weights FQ) -> Relu -> FQ -> MaxPool -> Conv+BN -> FQ -\
                                            \\------------------- Conv+BN -> FQ -> Add -> Relu -> FQ

- Data movement (reshape, transpose, slicing, max pooling, nearest resize) carries rounded values on: no quantizer.
- Batch norm and clamps fuse into what they follow: the quantizer comes behind them, not between.
- What is concatenated shares one quantizer with the result, so that concatenation is data movement too.
- Everything else that yields a float tensor gets one: the input, sums, products, averages, functions, and the output.

PyTorch's own FX quantizer works from lists of patterns and leaves out what is on none (SiLU, GELU, LayerNorm, `@`).
Its fake quantizers, observers and QAT modules are what is used here; the rule above replaces its lists.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import qat as qat_modules
from torch.ao.nn.intrinsic import qat as fused_modules

from qatc.frontends.torch_qat.recipes import Recipe, Widths

INPUT_QUANTIZERS: Final = "qatc_input_quantizers"  # in the model's meta: layer -> the quantizer of what it reads
_CARRIERS: Final = frozenset(
    {
        "view", "reshape", "permute", "transpose", "contiguous", "flatten", "unflatten", "squeeze", "unsqueeze",
        "expand", "expand_as", "repeat", "chunk", "split", "unbind", "getitem", "detach", "clone", "t", "movedim",
        "swapaxes", "roll", "flip", "narrow", "select", "dropout", "max_pool1d", "max_pool2d", "max_pool3d",
        "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "to", "float", "boolean_dispatch", "pad",
        "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "Flatten", "Unflatten", "MaxPool1d", "MaxPool2d",
        "MaxPool3d", "PixelShuffle", "PixelUnshuffle", "ChannelShuffle", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d",
        "ConstantPad1d", "ConstantPad2d", "UpsamplingNearest2d", "stop_gradient", "amax",
    }
)  # fmt: skip
_FUSED_BEHIND: Final = frozenset(
    {
        "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "ReLU", "ReLU6", "Hardtanh",
        "BatchNorm1d", "BatchNorm2d", "BatchNorm3d",
    }
)  # fmt: skip
_UNIT: Final = frozenset({"softmax", "sigmoid", "hardsigmoid", "Softmax", "Softmax2d", "Sigmoid", "Hardsigmoid"})
_CONCAT: Final = frozenset({"cat", "concat", "concatenate", "stack"})
_NEAREST: Final = frozenset({"nearest", "nearest-exact"})
_WITH_BN: Final[Mapping[tuple[type, type], tuple[Any, Any]]] = {
    (nn.Conv1d, nn.BatchNorm1d): (intrinsic.ConvBn1d, fused_modules.ConvBn1d),
    (nn.Conv2d, nn.BatchNorm2d): (intrinsic.ConvBn2d, fused_modules.ConvBn2d),
    (nn.Conv3d, nn.BatchNorm3d): (intrinsic.ConvBn3d, fused_modules.ConvBn3d),
}
_ALONE: Final[Mapping[type, Any]] = {
    nn.Conv1d: qat_modules.Conv1d,
    nn.Conv2d: qat_modules.Conv2d,
    nn.Conv3d: qat_modules.Conv3d,
    nn.Linear: qat_modules.Linear,
}
_TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass
class Placement:
    """Places fake quantizers in a traced model, which it changes.

    Attributes:
        model: the traced model.
        recipe: which quantizers.
        exclude: names of modules that stay float, with all that is in them.
        bits: bit widths by module name: of the weights, or (weights, activations); "" is the whole model.
    """

    model: fx.GraphModule
    recipe: Recipe
    exclude: Sequence[str] = ()
    bits: Mapping[str, Widths] = field(default_factory=dict[str, Widths])

    def run(self, example_inputs: Sequence[torch.Tensor]) -> None:
        """Place them all; the model's code is written anew."""
        self.floats = _float_nodes(self.model, example_inputs)
        self._fuse_batch_norm()
        self._weights()
        self.nodes = list(self.model.graph.nodes)
        self.groups: dict[fx.Node, fx.Node] = {}
        places = [n for n in self.nodes if self._needs_quantizer(n)]
        self._share(set(places))
        origins = self._origins(set(places))
        modules: dict[fx.Node, str] = {}
        for node in places:
            group = self._group(node)
            if group not in modules:
                modules[group] = self._add_quantizer(group)
            self._insert(node, modules[group])
        self.model.meta[INPUT_QUANTIZERS] = {layer: modules[group] for layer, group in origins.items()}
        self.model.graph.lint()
        self.model.recompile()

    # -- which tensors ------------------------------------------------------------------------------------------------
    def _needs_quantizer(self, node: fx.Node) -> bool:
        if node not in self.floats or node.op == "output" or not node.users:
            return False
        if self._excluded(node) and all(self._excluded(user) for user in node.users):
            return False
        if self._carries(node):
            return False
        readers = list(node.users)
        fused = len(readers) == 1 and _kind(self.model, readers[0]) in _FUSED_BEHIND and readers[0].args[0] is node
        return not (fused and self._computes(node) and not self._excluded(readers[0]))

    def _computes(self, node: fx.Node) -> bool:
        """Whether the node's raw result exists only inside an operator, so that a clamp or batch norm can join it."""
        return node.op in ("call_module", "call_function", "call_method") and not self._carries(node)

    def _carries(self, node: fx.Node) -> bool:
        """Whether the node moves rounded values without changing them."""
        kind = _kind(self.model, node)
        if kind in ("interpolate", "Upsample"):
            mode = node.kwargs.get("mode", "nearest")
            if node.op == "call_module":
                mode = self.model.get_submodule(str(node.target)).mode
            return mode in _NEAREST
        return kind in _CARRIERS

    def _excluded(self, node: fx.Node) -> bool:
        stack: Mapping[str, object] = node.meta.get("nn_module_stack") or {}
        names = list(stack)
        if node.op == "call_module":
            names.append(str(node.target))
        return any(n == e or n.startswith(f"{e}.") for n in names for e in self.exclude)

    # -- sharing ------------------------------------------------------------------------------------------------------
    def _group(self, node: fx.Node) -> fx.Node:
        while node in self.groups:
            node = self.groups[node]
        return node

    def _share(self, places: set[fx.Node]) -> None:
        """Concatenated tensors share the quantizer of the result; so do clamps of tensors that others read too."""
        for node in self.nodes:
            kind = _kind(self.model, node)
            if node not in places or kind not in _CONCAT | {"relu", "ReLU", "relu6", "ReLU6", "amax"}:
                continue
            for source in node.all_input_nodes:
                origin = self._origin(source, places)
                if origin is not None and self._group(origin) is not self._group(node):
                    if _kind(self.model, origin) in _UNIT:
                        continue
                    self.groups[self._group(origin)] = self._group(node)

    def _origin(self, node: fx.Node, places: set[fx.Node]) -> fx.Node | None:
        """The node whose quantizer rounded what `node` carries."""
        while node not in places:
            if not self._carries(node) or not node.all_input_nodes:
                return None
            node = node.all_input_nodes[0]
        return node

    def _origins(self, places: set[fx.Node]) -> dict[str, fx.Node]:
        """Layer with weights -> the group whose quantizer rounds what it reads; only where that is one."""
        found: dict[str, set[fx.Node | None]] = {}
        for node in self.nodes:
            if node.op == "call_module" and _is_quantized(self.model.get_submodule(str(node.target))):
                origin = self._origin(node.all_input_nodes[0], places)
                found.setdefault(str(node.target), set()).add(None if origin is None else self._group(origin))
        return {name: g for name, groups in found.items() if len(groups) == 1 for g in groups if g is not None}

    # -- quantizers ---------------------------------------------------------------------------------------------------
    def _add_quantizer(self, node: fx.Node) -> str:
        name = f"fq_{node.name}"
        unit = _kind(self.model, node) in _UNIT
        _, bits = _widths(self.bits, str(node.target) if node.op == "call_module" else "")
        factory = self.recipe.unit_interval() if unit and bits == 8 else self.recipe.activation(bits)
        self.model.add_module(name, factory())
        return name

    def _insert(self, node: fx.Node, module: str) -> None:
        inside = self._excluded(node)
        users = [user for user in node.users if not (inside and self._excluded(user))]
        with self.model.graph.inserting_after(node):
            rounded = self.model.graph.call_module(module, (node,))
        for user in users:
            user.replace_input_with(node, rounded)

    def _fuse_batch_norm(self) -> None:
        modules = dict(self.model.named_modules())
        for node in list(self.model.graph.nodes):
            if node.op != "call_module" or self._excluded(node) or not node.all_input_nodes:
                continue
            source = node.all_input_nodes[0]
            if source.op != "call_module" or len(source.users) != 1 or self._excluded(source):
                continue
            name = str(source.target)
            layer, norm = modules[name], modules[str(node.target)]
            kinds = _WITH_BN.get((type(layer), type(norm)))
            if kinds is None or self._called_often(source) or self._called_often(node):
                continue
            pair = kinds[0](layer, norm)
            pair.qconfig = self.recipe.qconfig(_widths(self.bits, name))
            pair.train(layer.training)
            _set_module(self.model, name, kinds[1].from_float(pair))
            node.replace_all_uses_with(source)
            self.model.graph.erase_node(node)
            _set_module(self.model, str(node.target), nn.Identity())

    def _called_often(self, node: fx.Node) -> bool:
        return sum(n.op == "call_module" and n.target == node.target for n in self.model.graph.nodes) > 1

    def _weights(self) -> None:
        """The layers without batch norm; one that is called twice is replaced once."""
        for node in self.model.graph.nodes:
            if node.op != "call_module" or self._excluded(node):
                continue
            name = str(node.target)
            layer = self.model.get_submodule(name)
            widths = _widths(self.bits, name)
            replacement = _ALONE.get(type(layer))
            if replacement is not None:
                layer.qconfig = self.recipe.qconfig(widths)
                quantized = replacement.from_float(layer)
                quantized.train(layer.training)
                _set_module(self.model, name, quantized)
            elif isinstance(layer, _TRANSPOSED) and not nn.utils.parametrize.is_parametrized(layer):
                quantizer = self.recipe.weight(widths[0], axis=1)()
                nn.utils.parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)


def _is_quantized(layer: nn.Module) -> bool:
    return hasattr(layer, "weight_fake_quant") or nn.utils.parametrize.is_parametrized(layer, "weight")


def _widths(bits: Mapping[str, Widths], name: str) -> tuple[int, int]:
    """(weights, activations) of a module: the entry of the longest name that it is or lies in."""
    fitting = [key for key in bits if not key or name == key or name.startswith(f"{key}.")]
    found = bits[max(fitting, key=len)] if fitting else 8
    return found if isinstance(found, tuple) else (found, 8)


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


_NAMES: Final[Mapping[Callable[..., Any], str]] = {
    operator.getitem: "getitem",
    F.max_pool1d: "max_pool1d",
    F.max_pool2d: "max_pool2d",
    F.max_pool3d: "max_pool3d",
}


def _kind(model: fx.GraphModule, node: fx.Node) -> str:
    """What a node does, in one word: a function's, method's or module's class name."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function" and callable(node.target):
        return _NAMES.get(node.target) or str(getattr(node.target, "__name__", ""))
    return ""


def _float_nodes(model: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> set[fx.Node]:
    """The nodes whose result is a float tensor, seen by running the model once."""
    found: set[fx.Node] = set()

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                found.add(n)
            return result

    training = model.training
    model.eval()
    with torch.no_grad():
        Watch(model).run(*inputs)
    model.train(training)
    return found
