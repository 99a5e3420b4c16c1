"""A network as a graph of operators in which every tensor that an integer backend keeps can be seen and rounded.

PyTorch hides some of them: attention and recurrent layers are single calls, transformer layers choose their kernels
while they run, and `training=self.training` is traced as a constant. All of it is written out, or bound to the mode.
"""

# pyright: reportMissingModuleSource=false
# PyTorch is optional: what of it is used is described in typings/torch

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from qatc.compiler.diagnostics import misused
from qatc.frontends.torch_qat.attention import Attention, Encoder, EncoderLayer, scaled_dot_product
from qatc.frontends.torch_qat.recurrent import Recurrent
from qatc.frontends.torch_qat.sizes import SizeTracer, evaluating

LONGEST: Final = 128  # steps of a recurrent layer that are written out; a longer one stays float
_RECURRENT: Final = (nn.RNN, nn.GRU, nn.LSTM)
_WATCHED: Final = (nn.MultiheadAttention, *_RECURRENT)


def trace(model: nn.Module, inputs: Sequence[Tensor], exclude: Sequence[str]) -> fx.GraphModule:
    """`model`, which is changed, as a graph; what lies in the modules `exclude` is left as it is.

    Raises:
        CompileError: QAT007 where torch.fx cannot trace it.
    """
    _write_out(model, _calls(model, inputs), exclude)
    _show_masks(model, inputs)
    parameters = list(inspect.signature(model.forward).parameters.values())[len(inputs) :]
    left_out = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    try:
        traced = fx.GraphModule(model, SizeTracer(inputs).trace(model, left_out))
    except (fx.proxy.TraceError, TypeError) as error:
        hint = "move what depends on the contents of tensors out of forward, or wrap it with torch.fx.wrap"
        raise misused(f"torch.fx cannot trace the model: {error}", hint) from error
    _drop_defaults(traced.graph, left_out)
    traced.graph.eliminate_dead_code()
    _bind_mode(traced)
    _settle_numbers(traced, inputs)
    _write_out_products(traced, inputs, exclude)
    traced.graph.lint()
    traced.recompile()
    return traced


def _drop_defaults(graph: fx.Graph, left_out: Mapping[str, object]) -> None:
    """Arguments that no example is given for keep their defaults; the tracer makes inputs of them, with assertions."""
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target).rpartition("_")[0] in left_out:
            for user in list(node.users):
                for assertion in list(user.users):
                    graph.erase_node(assertion)
                graph.erase_node(user)
            graph.erase_node(node)


def run(model: nn.Module, inputs: Sequence[Tensor], visit: Callable[[fx.Node, Any], None]) -> None:
    """Run a traced model once, in evaluation mode; `visit` sees every node and its result."""

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            visit(n, result)
            return result

    with evaluating(model):
        Watch(model).run(*inputs)


# -- modules --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Call:
    """The arguments of a module's call."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def _calls(model: nn.Module, inputs: Sequence[Tensor]) -> dict[nn.Module, list[_Call]]:
    """How the modules that are written out are called: shapes and masks that no tracer sees."""
    found: dict[nn.Module, list[_Call]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        found.setdefault(module, []).append(_Call(args, kwargs))

    watched = [m for m in model.modules() if isinstance(m, _WATCHED)]
    if not watched:
        return found
    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in watched]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it skips the hooks
    try:
        with evaluating(model):
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return found


def _write_out(model: nn.Module, calls: Mapping[nn.Module, Sequence[_Call]], exclude: Sequence[str]) -> None:
    """Replace attention, transformer layers and recurrent layers, innermost first."""
    done: dict[nn.Module, nn.Module] = {}
    for name, module in reversed(list(model.named_modules(remove_duplicate=False))):
        if not name or is_below([name], exclude):
            continue
        if module not in done:
            made = _written_out(module, calls.get(module, ()))
            done[module] = module if made is None else made.train(module.training)
        if done[module] is not module:
            set_module(model, name, done[module])


def _written_out(module: nn.Module, calls: Sequence[_Call]) -> nn.Module | None:
    kind = type(module)
    if kind is nn.MultiheadAttention:
        return _attention(module, calls)
    if kind is nn.TransformerEncoderLayer:
        return EncoderLayer(module) if isinstance(module.self_attn, Attention) else None
    if kind is nn.TransformerEncoder:
        return Encoder(module) if all(isinstance(layer, EncoderLayer) for layer in module.layers) else None
    return _recurrent(module, calls) if kind in _RECURRENT else None


def _attention(module: nn.Module, calls: Sequence[_Call]) -> Attention | None:
    if module.bias_k is not None or module.add_zero_attn:
        return None
    queries = [call.args[0] if call.args else call.kwargs["query"] for call in calls]
    return Attention(module) if all(query.ndim == 3 for query in queries) else None


def _show_masks(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Let attention see its masks once."""
    if any(isinstance(m, Attention) for m in model.modules()):
        with evaluating(model):
            model(*inputs)


def _recurrent(module: nn.Module, calls: Sequence[_Call]) -> Recurrent | None:
    inputs = [call.args[0] if call.args else call.kwargs["input"] for call in calls]
    if not inputs or module.proj_size or not all(isinstance(x, Tensor) and x.ndim == 3 for x in inputs):
        return None
    lengths = {int(x.shape[1 if module.batch_first else 0]) for x in inputs}
    given = {(call.args[1] if len(call.args) > 1 else call.kwargs.get("hx")) is not None for call in calls}
    if len(lengths) > 1 or max(lengths) > LONGEST or len(given) > 1:
        return None
    return Recurrent(module, lengths.pop(), given.pop())


# -- functions ------------------------------------------------------------------------------------------------------
class ByMode(nn.Module):
    """A function that is told whether it is used for training: dropout and the like."""

    def __init__(self, function: Callable[..., Any], bound: inspect.BoundArguments) -> None:
        super().__init__()
        self.function = function
        rest = {k: v for k, v in bound.arguments.items() if k != "training"}
        first, self.options = next(iter(rest)), rest
        self.first = first
        del self.options[first]

    def forward(self, x: Tensor) -> Any:
        """What the function makes of `x`."""
        return self.function(**{self.first: x}, **self.options, training=self.training)


def _bind_mode(traced: fx.GraphModule) -> None:
    """Let functions with `training=self.training` follow the model's mode, not the one that it was traced in."""
    for node in list(traced.graph.nodes):
        if node.op != "call_function" or not callable(node.target) or len(node.all_input_nodes) != 1:
            continue
        try:
            bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
        except (TypeError, ValueError):
            continue  # built in, without a signature: none of those has a mode
        bound.apply_defaults()
        if bound.arguments.get("training") is not traced.training or next(iter(bound.arguments.values())) not in (
            node.all_input_nodes
        ):
            continue
        name = f"{node.name}_by_mode"
        traced.add_module(name, ByMode(node.target, bound).train(traced.training))
        with traced.graph.inserting_before(node):
            node.replace_all_uses_with(traced.graph.call_module(name, (node.all_input_nodes[0],)))
        traced.graph.erase_node(node)


def _settle_numbers(traced: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Fractions that are computed from sizes, such as 1 / sqrt(size of a head), become constants."""
    seen: dict[fx.Node, Any] = {}
    run(traced, inputs, seen.__setitem__)
    for node, value in seen.items():
        if type(value) is float and node.op == "call_function":

            def settled(n: fx.Node, old: fx.Node = node, new: float = value) -> fx.Node | float:
                return new if n is old else n

            for user in list(node.users):
                user.args = fx.node.map_arg(user.args, settled)
                user.kwargs = fx.node.map_arg(user.kwargs, settled)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _write_out_products(traced: fx.GraphModule, inputs: Sequence[Tensor], exclude: Sequence[str]) -> None:
    """Write out `F.scaled_dot_product_attention`, whose scale and causal mask follow from shapes."""
    nodes = [n for n in traced.graph.nodes if n.target is F.scaled_dot_product_attention]
    if not nodes:
        return
    seen: dict[fx.Node, Any] = {}
    run(traced, inputs, seen.__setitem__)
    for node in nodes:
        if not is_in(node, exclude):
            _write_out_product(traced, node, seen)


def _write_out_product(traced: fx.GraphModule, node: fx.Node, seen: Mapping[fx.Node, Any]) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given.get("enable_gqa") or not isinstance(given.get("dropout_p", 0.0), float | int):
        return
    query, key, mask = seen[given["query"]], seen[given["key"]], given.get("attn_mask")
    boolean = isinstance(mask, fx.Node) and not seen[mask].is_floating_point()
    rate = float(given.get("dropout_p", 0.0))
    if rate:
        traced.add_module(f"{node.name}_dropout", nn.Dropout(rate))
    with traced.graph.inserting_before(node):
        if given.get("is_causal"):
            name, boolean = f"{node.name}_causal", True
            traced.register_buffer(name, torch.ones([query.shape[-2], key.shape[-2]]).tril().bool())
            mask = traced.graph.get_attr(name)

        tracer = fx.proxy.GraphAppendingTracer(traced.graph)

        def dropout(x: Any) -> Any:
            return standing_for(traced.graph.call_module(f"{node.name}_dropout", (x.node,))) if rate else x

        def standing_for(argument: Any) -> Any:
            return fx.Proxy(argument, tracer) if isinstance(argument, fx.Node) else argument

        q, k, v = (standing_for(given[name]) for name in ("query", "key", "value"))
        scale = given.get("scale") or float(query.shape[-1]) ** -0.5
        result: Any = scaled_dot_product(q, k, v, standing_for(mask), scale, boolean, dropout)
    node.replace_all_uses_with(result.node)
    for new in traced.graph.nodes:
        new.meta.setdefault("nn_module_stack", node.meta.get("nn_module_stack"))
    traced.graph.erase_node(node)


_RESHAPES: Final = frozenset({"view", "reshape", "unflatten", "flatten"})


def settle_shapes(traced: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Give every reshape the shape that it has for these inputs, -1 where the batch is; in place, before an export.

    PyTorch's exporters write chains of Shape, Gather and Concat instead, behind which nobody can tell a tensor's shape.
    """
    count = inputs[0].shape[0]
    more = [torch.cat([x, x.narrow(0, 0, 1)], 0) if x.shape[0] == count else x for x in inputs]
    shapes: list[dict[fx.Node, tuple[int, ...]]] = [{}, {}]
    for found, given in zip(shapes, (inputs, more), strict=True):

        def note(node: fx.Node, value: Any, found: dict[fx.Node, tuple[int, ...]] = found) -> None:
            if isinstance(value, Tensor) and kind_of(traced, node) in _RESHAPES:
                found[node] = tuple(value.shape)

        try:
            run(traced, given, note)
        except RuntimeError:  # a network for one size of batch alone: there is no other shape to learn from
            return
    for node, shape in shapes[0].items():
        free = [i for i, (one, other) in enumerate(zip(shape, shapes[1][node], strict=True)) if one != other]
        if len(free) == 1:
            settled = tuple(-1 if i in free else size for i, size in enumerate(shape))
            with traced.graph.inserting_before(node):
                node.replace_all_uses_with(traced.graph.call_method("reshape", (node.args[0], settled)))
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    traced.recompile()


_NAMES: Final[Mapping[Callable[..., Any], str]] = {
    operator.getitem: "getitem",
    F.max_pool1d: "max_pool1d",
    F.max_pool2d: "max_pool2d",
    F.max_pool3d: "max_pool3d",
}


def kind_of(model: fx.GraphModule, node: fx.Node) -> str:
    """What a node does, in one word: a function's, method's or module's class name."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return str(module.function.__name__) if isinstance(module, ByMode) else type(module).__name__
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function" and callable(node.target):
        return _NAMES.get(node.target) or str(getattr(node.target, "__name__", ""))
    return ""


def is_in(node: fx.Node, modules: Sequence[str]) -> bool:
    """Whether a node belongs to one of the modules."""
    stack: Mapping[str, object] = node.meta.get("nn_module_stack") or {}
    names = [*stack, *([str(node.target)] if node.op == "call_module" else [])]
    return is_below(names, modules)


def is_below(names: Iterable[str], modules: Sequence[str]) -> bool:
    """Whether one of the names is that of one of the modules, or of what lies in it."""
    return any(n == m or n.startswith(f"{m}.") for n in names for m in modules)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place `name` of a model."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
