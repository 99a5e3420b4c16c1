"""One ONNX operator on arrays: numpy for what only moves elements, onnx.reference for the rest.

Movement operators run on the stored integers, whatever they stand for. `verify.py` passes ONNX Runtime instead of this
evaluator; this one needs nothing but onnx and is its own witness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np

from qatc.compiler.diagnostics import fail
from qatc.compiler.quant import Array
from qatc.compiler.reference.resize import resize_nearest

if TYPE_CHECKING:
    from onnx import AttributeProto


class OnnxEvaluator(Protocol):
    """Runs one ONNX operator.

    `inputs` are arrays, None for an absent optional one; `attrs` hold Python numbers, strings, lists or arrays by
    attribute name; the result has `n_outputs` arrays.
    """

    def __call__(
        self,
        op_type: str,
        domain: str,
        opset: int,
        inputs: Sequence[Array | None],
        attrs: Mapping[str, Any],
        n_outputs: int,
    ) -> list[Array]:
        """Evaluate `op_type` of `domain` at version `opset`."""
        ...


def evaluate_onnx(
    op_type: str,
    domain: str,
    opset: int,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any],
    n_outputs: int,
) -> list[Array]:
    """The default `OnnxEvaluator`.

    Raises:
        CompileError: QAT302 when neither numpy nor onnx.reference can run the operator.
    """
    fast = _FAST.get(op_type) if domain in ("", "ai.onnx") else None
    if fast is not None:
        results = fast(_Call(list(inputs), attrs, n_outputs, opset))
        if results is not None:
            return results
    return _onnx_reference(op_type, domain, opset, inputs, attrs, n_outputs)


# -- onnx.reference ---------------------------------------------------------------------------------------------------
def _onnx_reference(
    op_type: str,
    domain: str,
    opset: int,
    inputs: Sequence[Array | None],
    attrs: Mapping[str, Any],
    n_outputs: int,
) -> list[Array]:
    from onnx import helper, shape_inference
    from onnx.reference import ReferenceEvaluator

    names = ["" if value is None else f"i{index}" for index, value in enumerate(inputs)]
    outputs = [f"o{index}" for index in range(n_outputs)]
    node = helper.make_node(op_type, names, outputs, domain=domain)
    node.attribute.extend(_attribute(name, value) for name, value in attrs.items())
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph([node], op_type, typed, [helper.make_empty_tensor_value_info(o) for o in outputs])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)])
    try:
        # Operators that are functions of others need the types of their inputs.
        evaluator = ReferenceEvaluator(shape_inference.infer_shapes(model))
        results: Sequence[Any] = evaluator.run(None, feeds)  # type: ignore[assignment]  # a dict only if asked for
    except Exception as error:  # whatever the evaluator's own code raises
        raise fail(
            "QAT302",
            f"{domain or 'ai.onnx'}.{op_type} cannot be evaluated: {error}",
            hint="install onnxruntime, or keep to ai.onnx operators",
        ) from error
    return [np.asarray(result) for result in results]


def _attribute(name: str, value: Any) -> AttributeProto:
    from onnx import helper, numpy_helper

    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(cast(Array, value)))
    if isinstance(value, np.generic):
        return helper.make_attribute(name, value.item())
    return helper.make_attribute(name, value)


# -- numpy -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Call:
    """The arguments of one evaluation."""

    inputs: list[Array | None]
    attrs: Mapping[str, Any]
    n_outputs: int
    opset: int

    @property
    def x(self) -> Array:
        """The first input."""
        return self.array(0)

    def array(self, index: int) -> Array:
        """An input that must be there; ValueError when it is not."""
        value = self.optional(index)
        if value is None:
            raise ValueError(f"input {index} is missing")
        return value

    def optional(self, index: int) -> Array | None:
        """An input, or None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, name: str, index: int) -> list[int] | None:
        """Integers that older opsets hold in attribute `name`, newer ones in an input; None when neither is given."""
        value = self.optional(index) if self.attrs.get(name) is None else np.asarray(self.attrs[name])
        return None if value is None else [int(v) for v in value.reshape(-1)]

    def attr(self, name: str, default: int) -> int:
        """An integer attribute."""
        return int(self.attrs.get(name, default))

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        value = self.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


def _reshape(call: _Call) -> list[Array]:
    shape = call.ints("shape", 1) or []
    if not call.attr("allowzero", 0):
        shape = [call.x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return [call.x.reshape(shape)]


def _transpose(call: _Call) -> list[Array]:
    return [np.ascontiguousarray(np.transpose(call.x, call.attrs.get("perm")))]


def _flatten(call: _Call) -> list[Array]:
    axis = call.attr("axis", 1)
    split = axis + call.x.ndim if axis < 0 else axis
    rows = int(np.prod(call.x.shape[:split], dtype=np.int64))
    return [call.x.reshape(rows, -1 if call.x.size else int(np.prod(call.x.shape[split:], dtype=np.int64)))]


def _squeeze(call: _Call) -> list[Array]:
    axes = call.ints("axes", 1)
    return [np.squeeze(call.x, None if axes is None else tuple(axes))]


def _unsqueeze(call: _Call) -> list[Array]:
    return [np.expand_dims(call.x, tuple(call.ints("axes", 1) or ()))]


def _slice(call: _Call) -> list[Array]:
    starts, ends = call.ints("starts", 1) or [], call.ints("ends", 2) or []
    axes = call.ints("axes", 3) or list(range(len(starts)))
    steps = call.ints("steps", 4) or [1] * len(starts)
    index = [slice(None)] * call.x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Python agrees with ONNX but for a start before the first element, which ONNX moves there.
        index[axis] = slice(max(start, -call.x.shape[axis]), end, step)
    return [np.ascontiguousarray(call.x[tuple(index)])]


def _gather(call: _Call) -> list[Array]:
    return [np.take(call.x, call.array(1), axis=call.attr("axis", 0))]


def _gather_elements(call: _Call) -> list[Array]:
    indices, axis = call.array(1), call.attr("axis", 0)
    place = list(np.ogrid[tuple(slice(n) for n in indices.shape)])  # where an element lies, in all axes but one
    place[axis] = indices
    return [call.x[tuple(place)]]


def _concat(call: _Call) -> list[Array]:
    return [np.concatenate([call.array(i) for i in range(len(call.inputs))], axis=call.attr("axis", 0))]


def _split(call: _Call) -> list[Array]:
    axis = call.attr("axis", 0)
    sizes = call.ints("split", 1)
    if sizes is None:
        size = -(-call.x.shape[axis] // call.n_outputs)
        cuts = [min(i * size, call.x.shape[axis]) for i in range(1, call.n_outputs)]
    else:
        cuts = np.cumsum(sizes)[:-1].tolist()
    return [np.ascontiguousarray(part) for part in np.split(call.x, cuts, axis=axis)]


def _shape(call: _Call) -> list[Array]:
    return [np.array(call.x.shape, np.int64)[slice(call.attr("start", 0), call.attrs.get("end"))]]


def _expand(call: _Call) -> list[Array]:
    shape = np.broadcast_shapes(call.x.shape, tuple(call.ints("shape", 1) or ()))
    return [np.ascontiguousarray(np.broadcast_to(call.x, shape))]


def _cast(call: _Call) -> list[Array] | None:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(call.attr("to", 0))
    if dtype.kind not in "biuf" or call.x.dtype.kind not in "biuf":
        return None
    return [call.x.astype(dtype)]


def _pad(call: _Call) -> list[Array] | None:
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
    return [np.ascontiguousarray(np.pad(x, widths, constant_values=fill))]


def _resize(call: _Call) -> list[Array] | None:
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


def _arithmetic(function: Callable[[Array, Array], Array]) -> Callable[[_Call], list[Array] | None]:
    def run(call: _Call) -> list[Array] | None:
        return [function(call.x, call.array(1))] if call.x.dtype.kind == "f" else None

    return run


_FAST: Final[dict[str, Callable[[_Call], list[Array] | None]]] = {
    "Add": _arithmetic(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _arithmetic(np.divide),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Identity": lambda call: [call.x],
    "Mul": _arithmetic(np.multiply),
    "Pad": _pad,
    "Relu": lambda call: [np.maximum(call.x, call.x.dtype.type(0))],
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": lambda call: [np.where(call.x, call.array(1), call.array(2))],
}
