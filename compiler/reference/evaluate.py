"""One ONNX operator on arrays: numpy for what only moves elements, onnx.reference for the rest.

Movement operators run on the stored integers, whatever they stand for. Verification passes ONNX Runtime instead of this
evaluator; this one needs nothing but onnx and is its own witness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np

from qatc.compiler.diagnostics import CompileError, fail
from qatc.compiler.integer import Pool
from qatc.compiler.model.protos import domain_of
from qatc.compiler.quant import Array
from qatc.compiler.reference.moves import MOVES, Call
from qatc.compiler.reference.pooling import maxima
from qatc.compiler.reference.resize import resize_nearest

if TYPE_CHECKING:
    from onnx import AttributeProto


class OnnxEvaluator(Protocol):
    """Runs one ONNX operator.

    `inputs` are arrays, None for an absent optional one; `attrs` hold Python numbers, strings, lists or arrays by
    attribute name; the result has `n_outputs` arrays. `fixed` are the places of inputs that the model holds: some
    kernels add in another order then.
    """

    def __call__(
        self,
        op_type: str,
        domain: str,
        opset: int,
        inputs: Sequence[Array | None],
        attrs: Mapping[str, Any],
        n_outputs: int,
        *,
        fixed: frozenset[int] = frozenset(),
    ) -> list[Array]:
        """Evaluate `op_type` of `domain` at version `opset`."""
        ...


@np.errstate(all="ignore")  # infinity and NaN are what the operators mean; they are told where they are quantized
def evaluate_onnx(
    op_type: str,
    domain: str,
    opset: int,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any],
    n_outputs: int,
    *,
    fixed: frozenset[int] = frozenset(),
) -> list[Array]:
    """The default `OnnxEvaluator`.

    Raises:
        CompileError: QAT302 when neither numpy nor onnx.reference can run the operator on these inputs.
    """
    call = Call(list(inputs), attrs, n_outputs, opset)
    fast = None if domain_of(domain) else _FAST.get(op_type)
    try:
        results = None if fast is None else fast(call)
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise _refused(op_type, domain, error, "its inputs do not fit it") from error
    if results is None:
        return _onnx_reference(op_type, domain, call)
    return [np.asarray(result, order="C") for result in results]


# -- onnx.reference ---------------------------------------------------------------------------------------------------
def _onnx_reference(op_type: str, domain: str, call: Call) -> list[Array]:
    from onnx import helper, shape_inference
    from onnx.reference import ReferenceEvaluator

    names = ["" if value is None else f"i{index}" for index, value in enumerate(call.inputs)]
    outputs = [f"o{index}" for index in range(call.n_outputs)]
    node = helper.make_node(op_type, names, outputs, domain=domain)
    node.attribute.extend(_attribute(name, value) for name, value in call.attrs.items())
    feeds = {name: value for name, value in zip(names, call.inputs, strict=True) if value is not None}
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph([node], op_type, typed, [helper.make_empty_tensor_value_info(o) for o in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, call.opset)])
    try:
        # Operators that are functions of others need the types of their inputs.
        evaluator = ReferenceEvaluator(shape_inference.infer_shapes(model))
        results: Sequence[Any] = evaluator.run(None, feeds)  # type: ignore[assignment]  # a dict only if asked for
    except Exception as error:  # whatever the evaluator's own code raises
        raise _refused(op_type, domain, error, "install onnxruntime, or keep to ai.onnx operators") from error
    return [np.asarray(result) for result in results]


def _refused(op_type: str, domain: str, error: Exception, hint: str) -> CompileError:
    return fail("QAT302", f"{domain or 'ai.onnx'}.{op_type} cannot be evaluated: {error}", hint=hint)


def _attribute(name: str, value: Any) -> AttributeProto:
    from onnx import helper, numpy_helper

    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(cast(Array, value)))
    if isinstance(value, np.generic):
        return helper.make_attribute(name, value.item())
    return helper.make_attribute(name, value)


# -- numpy -----------------------------------------------------------------------------------------------------------
def _shape(call: Call) -> list[Array]:
    return [np.array(call.x.shape, np.int64)[slice(call.attr("start", 0), call.attrs.get("end"))]]


def _cast(call: Call) -> list[Array] | None:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(call.attr("to", 0))
    if dtype.kind not in "biuf" or call.x.dtype.kind not in "biuf":
        return None
    return [call.x.astype(dtype)]


def _pad(call: Call) -> list[Array] | None:
    pads, mode = call.ints("pads", 1) or [], call.text("mode", "constant")
    axes = call.ints("axes", 3) or list(range(call.x.ndim))
    if mode not in ("constant", "reflect", "edge", "wrap"):
        return None
    x, widths = call.x, [(0, 0)] * call.x.ndim
    for before, after, axis in zip(pads, pads[len(axes) :], axes, strict=False):
        widths[axis] = (max(before, 0), max(after, 0))  # negative ones crop
        kept = slice(max(-before, 0), x.shape[axis] + min(after, 0))
        x = x[(slice(None),) * (axis % x.ndim) + (kept,)]
    if mode != "constant":
        return [np.pad(x, widths, mode=mode)]  # type: ignore[call-overload]  # checked above
    value = call.optional(2)
    fill = call.attrs.get("value", 0) if value is None else value.reshape(-1)[0]
    return [np.pad(x, widths, constant_values=fill)]


def _resize(call: Call) -> list[Array] | None:
    if call.opset < 11 or call.text("mode", "nearest") != "nearest" or call.attrs.get("axes") is not None:
        return None
    if call.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    return resize_nearest(
        call.x,
        call.optional(2),
        call.optional(3),
        call.text("coordinate_transformation_mode", "half_pixel"),
        call.text("nearest_mode", "round_prefer_floor"),
    )


def _max_pool(call: Call) -> list[Array] | None:
    """Where windows lie is pooling.py's to say: onnx.reference is wrong where pads differ from axis to axis."""
    attrs = call.attrs
    if (
        call.n_outputs > 1
        or call.x.dtype.kind not in "iuf"
        or call.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    ):
        return None
    kernel, strides, pads, dilations = (
        tuple(attrs.get(name, ())) for name in ("kernel_shape", "strides", "pads", "dilations")
    )
    ceil = bool(call.attr("ceil_mode", 0))
    pool = Pool("MaxPool", (), (), "max", kernel, strides, pads, dilations, ceil, lo=0, hi=0)
    return [maxima(pool, call.x)]


def _arithmetic(function: Callable[[Array, Array], Array]) -> Callable[[Call], list[Array] | None]:
    def run(call: Call) -> list[Array] | None:
        return [function(call.x, call.array(1))] if call.x.dtype.kind == "f" else None

    return run


_FAST: Final[dict[str, Callable[[Call], list[Array] | None]]] = {
    **MOVES,
    "Add": _arithmetic(np.add),
    "Cast": _cast,
    "Div": _arithmetic(np.divide),
    "Identity": lambda call: [call.x],
    "MaxPool": _max_pool,
    "Mul": _arithmetic(np.multiply),
    "Pad": _pad,
    "Relu": lambda call: [np.maximum(call.x, call.x.dtype.type(0))],
    "Resize": _resize,
    "Shape": _shape,
    "Sub": _arithmetic(np.subtract),
}
