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

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import qat as qat_modules
from torch.ao.nn.intrinsic import qat as fused_modules

from qatc.frontends.torch_qat.recipes import Recipe, Widths
from qatc.frontends.torch_qat.tracing import is_in, kind_of, run, set_module

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
        "Grid",
    }
)  # fmt: skip
_BATCH_NORMS: Final = frozenset({"BatchNorm1d", "BatchNorm2d", "BatchNorm3d"})
_SOFTMAX: Final = frozenset({"softmax", "Softmax", "Softmax2d", "log_softmax", "LogSoftmax"})
_FLOAT: Final = -2  # a parameter that stays as it is
_VALUE: Final = -1  # one that is rounded like any result
_HIDDEN: Final = -1e4  # scores as low as this are masked
_UNIT: Final = frozenset({"softmax", "sigmoid", "hardsigmoid", "Softmax", "Softmax2d", "Sigmoid", "Hardsigmoid"})
_LINEAR: Final = frozenset({"linear", "conv1d", "conv2d", "conv3d"})  # functions: weights second, biases third
_TRANSPOSED_CONV: Final = frozenset({"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"})
_PRODUCTS: Final = frozenset({"matmul", "mm", "bmm"})
_OPERANDS: Final = {"weight": 1, "other": 1, "mat2": 1, "bias": 2}  # of those
_NORMS: Final = frozenset({"layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "prelu"})
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
        seen = _look(self.model, example_inputs)
        self.floats, self.rank = set(seen.rank) - seen.unbounded, seen.rank
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
        if self._carries(node) or self._role(node) == _FLOAT:
            return False
        reader = next(iter(node.users))
        alone = len(node.users) == 1 and reader.all_input_nodes[0] is node and not self._excluded(reader)
        return not (alone and self._fuses(node, kind_of(self.model, reader)))

    def _role(self, node: fx.Node) -> int:
        """What functions take a parameter for: weights, and then the axis of their channels; `_FLOAT`; or `_VALUE`."""
        if node.op != "get_attr":
            return _VALUE
        found: set[int] = set()
        for user in node.users:
            kind = kind_of(self.model, user)
            place = _place(user, node)
            if kind in _NORMS or (kind in _LINEAR | _TRANSPOSED_CONV and place > 1):
                found.add(_FLOAT)
            elif place == 1 and kind in _LINEAR | _TRANSPOSED_CONV:
                found.add(0 if kind in _LINEAR else 1)
            elif place == 1 and kind in _PRODUCTS and self.rank[node] == 2:
                found.add(1)
            else:
                found.add(_VALUE)
        return found.pop() if len(found) == 1 else _VALUE

    def _fuses(self, node: fx.Node, reader: str) -> bool:
        """Whether the node's raw result exists only inside an operator, which its only reader joins."""
        if node.op not in ("call_module", "call_function", "call_method") or self._carries(node):
            return False
        if reader in _BATCH_NORMS:  # they have channels of their own: only sums of products can take them in
            layers = node.op == "call_module" and _is_quantized(self.model.get_submodule(str(node.target)))
            return layers or kind_of(self.model, node) in _LINEAR | _TRANSPOSED_CONV
        return reader in _FUSED_BEHIND and kind_of(self.model, node) not in _CONCAT

    def _carries(self, node: fx.Node) -> bool:
        """Whether the node moves rounded values without changing them."""
        kind = kind_of(self.model, node)
        if kind in ("interpolate", "Upsample"):
            mode = node.kwargs.get("mode", "nearest")
            if node.op == "call_module":
                mode = self.model.get_submodule(str(node.target)).mode
            return mode in _NEAREST
        return kind in _CARRIERS

    def _excluded(self, node: fx.Node) -> bool:
        return is_in(node, self.exclude)

    # -- sharing ------------------------------------------------------------------------------------------------------
    def _group(self, node: fx.Node) -> fx.Node:
        while node in self.groups:
            node = self.groups[node]
        return node

    def _share(self, places: set[fx.Node]) -> None:
        """Concatenated tensors share the quantizer of the result; so do clamps of tensors that others read too, and
        all that one `Grid` is called on.
        """
        grids: dict[str, fx.Node] = {}
        for node in self.nodes:
            if kind_of(self.model, node) == "Grid" and node in places:
                first = grids.setdefault(str(node.target), node)
                if self._group(first) is not self._group(node):
                    self.groups[self._group(node)] = self._group(first)
        for node in self.nodes:
            kind = kind_of(self.model, node)
            if node not in places or kind not in _CONCAT | {"relu", "ReLU", "relu6", "ReLU6", "amax"}:
                continue
            for source in node.all_input_nodes:
                origin = self._origin(source, places)
                if origin is not None and self._group(origin) is not self._group(node):
                    if kind_of(self.model, origin) in _UNIT:
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
        unit = kind_of(self.model, node) in _UNIT
        _, bits = _widths(self.bits, str(node.target) if node.op == "call_module" else "")
        role = self._role(node)
        if role >= 0:
            widths = _widths(self.bits, str(node.target))
            factory = self.recipe.weight(widths[0], role)
        else:
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
            if kinds is None or not norm.affine or self._called_often(source) or self._called_often(node):
                continue
            pair = kinds[0](layer, norm)
            pair.qconfig = self.recipe.qconfig(_widths(self.bits, name))
            pair.train(layer.training)
            fused = kinds[1].from_float(pair)
            fused.padding = layer.padding  # torch.ao takes the word "same" for four numbers
            fused._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice
            set_module(self.model, name, fused)
            node.replace_all_uses_with(source)
            self.model.graph.erase_node(node)
            set_module(self.model, str(node.target), nn.Identity())

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
                set_module(self.model, name, quantized)
            elif isinstance(layer, (*_ALONE, *_TRANSPOSED)) and not _is_quantized(layer):
                # behind what computes the weight, as weight normalization does
                quantizer = self.recipe.weight(widths[0], axis=1 if isinstance(layer, _TRANSPOSED) else 0)()
                nn.utils.parametrize.register_parametrization(layer, "weight", quantizer, unsafe=True)


def _place(reader: fx.Node, node: fx.Node) -> int:
    """Which operand of a function a node is, by its place or its name; 0 in a list of tensors."""
    named = next((name for name, operand in reader.kwargs.items() if operand is node), "")
    return next((i for i, operand in enumerate(reader.args) if operand is node), _OPERANDS.get(named, 0))


def has_hooked_weight(layer: nn.Module) -> bool:
    """Whether a hook computes the layer's weight before each call, as the older form of weight normalization does."""
    owned = "weight" in layer._parameters or nn.utils.parametrize.is_parametrized(layer, "weight")
    return isinstance(layer, (*_ALONE, *_TRANSPOSED)) and not owned


def _is_quantized(layer: nn.Module) -> bool:
    if hasattr(layer, "weight_fake_quant"):
        return True
    given = layer.parametrizations.weight if nn.utils.parametrize.is_parametrized(layer, "weight") else ()
    return any(hasattr(each, "fake_quant_enabled") for each in given)  # weight_norm is one as well


def weights_left_float(model: fx.GraphModule, exclude: Sequence[str]) -> list[str]:
    """The layers that multiply by matrices which no quantizer rounds, as "name (kind)"."""
    found: dict[str, None] = {}
    for node in model.graph.nodes:
        if node.op == "call_module" and not is_in(node, exclude):
            layer = model.get_submodule(str(node.target))
            matrices = any(p.ndim > 1 for p in layer.parameters())
            if matrices and not _is_quantized(layer) and not isinstance(layer, nn.Embedding):
                found[f"{node.target} ({type(layer).__name__})"] = None
    return list(found)


def _widths(bits: Mapping[str, Widths], name: str) -> tuple[int, int]:
    """(weights, activations) of a module: the entry of the longest name that it is or lies in."""
    fitting = [key for key in bits if not key or name == key or name.startswith(f"{key}.")]
    found = bits[max(fitting, key=len)] if fitting else 8
    return found if isinstance(found, tuple) else (found, 8)


@dataclass(frozen=True)
class _Seen:
    """The nodes with a float tensor as their result, with its rank, and those of them that no grid can hold."""

    rank: dict[fx.Node, int]
    unbounded: set[fx.Node]


def _look(model: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> _Seen:
    """Run the model once. Masks hold minus infinity, or numbers that stand for it: scores that were masked are for
    Softmax alone to read, and a grid that reached so far would have no step left for the others.
    """
    seen = _Seen({}, set())

    def visit(node: fx.Node, value: Any) -> None:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
            return
        seen.rank[node] = value.ndim
        lowest = float(value.amin())
        into_softmax = bool(node.users) and all(kind_of(model, user) in _SOFTMAX for user in node.users)
        if not math.isfinite(float(value.abs().amax())) or (into_softmax and lowest <= _HIDDEN):
            seen.unbounded.add(node)

    run(model, inputs, visit)
    return seen
