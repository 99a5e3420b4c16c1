"""Products that saturate on some processors: which those are, and their wide form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc.backends.onnx.saturation import wide_form
from qatc.backends.onnx.writer import Writer
from qatc.compiler.arithmetic import get_profile
from qatc.compiler.integer import Clamped, Conv, MatMul, Rescale
from qatc.compiler.quant import Array, QuantParams
from qatc.compiler.reference import execute
from qatc.compiler.runtime.processor import flattened
from tests.backends.emitting import Net, emitted, integers, run_model

pytestmark = pytest.mark.usefixtures("exact_runtime")


def _conv(
    weight: Array,
    x: QuantParams,
    seed: int,
    *,
    groups: int = 1,
    y: str = "uint8",
    bounds: tuple[int, int] | None = None,
) -> Net:
    """A 3x3 convolution of random integers, which `bounds` may clamp first."""
    dice = np.random.default_rng(seed)
    net = Net()
    a = net.input(integers(dice, x, (1, weight.shape[1] * groups, 6, 6)), x)
    w = net.constant(weight, QuantParams.per_tensor(0.01, 0, "int8"))
    size = x.scale[0] * 0.01
    out = QuantParams.per_tensor(size * 127 * weight[0].size / 8, 128 if y == "uint8" else 0, y)
    extra: dict[str, Any] = {"lo": bounds[0], "hi": bounds[1]} if bounds else {}
    shape = (1, len(weight), 6, 6)
    made = net.add(Conv, (a, w), out, shape, strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=groups,
                   acc_scale=(size,), **extra)  # fmt: skip
    net.graph.outputs = [made]
    net.graph.verify()
    return net


def _full(seed: int, shape: tuple[int, ...], most: int = 127) -> Array:
    weight = np.random.default_rng(seed).integers(-most, most + 1, shape).astype(np.int8)
    weight.reshape(-1)[0] = most
    return weight


def _chooses(net: Net) -> bool:
    return emitted(net.graph).wide is not None


BYTE = QuantParams.per_tensor(0.02, 100, "uint8")


@pytest.mark.parametrize(("x", "y"), [("uint8", "uint8"), ("int8", "int8"), ("int8", "uint8"), ("uint8", "int8")])
@pytest.mark.parametrize("exact", [True, False, None])
def test_both_forms_are_the_reference(x: str, y: str, exact: bool | None) -> None:
    """The wide form on every processor; the fast one, which is the model's own where it is exact, where it is."""
    net = _conv(_full(1, (8, 5, 3, 3)), QuantParams.per_tensor(0.02, 3, x), 2, y=y)
    model = emitted(net.graph).complete()
    expected = execute(net.graph, net.feeds, get_profile("onnx"))[net.graph.outputs[0]]
    (found,) = run_model(model if exact is None else flattened(model, exact=exact), net.feeds)
    if exact and (found != expected).any():
        (here,) = run_model(flattened(model), net.feeds)
        np.testing.assert_array_equal(here, expected)  # it saturates here, and is not what this processor takes
    else:
        np.testing.assert_array_equal(found, expected)


def test_the_wide_form_has_no_signed_product() -> None:
    model = emitted(
        _conv(_full(1, (8, 5, 3, 3)), QuantParams.per_tensor(0.02, 3, "int8"), 2, y="int8").graph
    ).complete()
    inferred = onnx.shape_inference.infer_shapes(flattened(model, exact=False), strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    (product,) = (n for n in inferred.graph.node if n.op_type == "QLinearConv")
    assert {kinds[product.input[i]] for i in (0, 3)} == {onnx.TensorProto.UINT8}


def test_the_weights_are_in_the_file_once() -> None:
    weight = _full(1, (64, 64, 3, 3))
    net = _conv(weight, BYTE, 2)
    assert len(emitted(net.graph).complete().SerializeToString()) < weight.nbytes * 1.2


@pytest.mark.parametrize("weights", ["int8", "uint8"])
def test_one_form_alone_has_no_choice(weights: str) -> None:
    emission = emitted(_conv(_full(1, (8, 5, 3, 3)), BYTE, 2).graph, weights=weights)
    assert {n.op_type for n in emission.complete().graph.node} == {"QLinearConv"}
    kinds = {t.name: t.data_type for t in emission.model.graph.initializer}
    assert kinds[emission.names["c0"]] == onnx.helper.np_dtype_to_tensor_dtype(np.dtype(weights))
    assert all(t.name in emission.model.graph.node[0].input for t in emission.model.graph.initializer)


@pytest.mark.parametrize("limit", ["_DEEP", "SPILL_AT"])
def test_what_would_take_long_to_load_is_written_in_the_exact_form_alone(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many operators, and large weights: loading an If takes quadratic time, and memory for both branches."""
    monkeypatch.setattr(f"qatc.backends.onnx.writer.{limit}", 0)
    monkeypatch.setattr("qatc.backends.onnx.saturation.SPILL_AT", 0)
    net = _conv(_full(1, (64, 64, 3, 3)), BYTE, 2)  # large enough for a temporary file
    emission = emitted(net.graph)
    assert emission.wide is None
    assert [t.data_type for t in emission.model.graph.initializer if len(t.dims) > 1] == [onnx.TensorProto.UINT8]
    expected = execute(net.graph, net.feeds, get_profile("onnx"))[net.graph.outputs[0]]
    (found,) = run_model(emission.complete(), net.feeds)
    np.testing.assert_array_equal(found, expected)


# -- which products may saturate --------------------------------------------------------------------------------------
def test_seven_bits_cannot() -> None:
    assert not _chooses(_conv(_full(3, (4, 4, 3, 3), 64), BYTE, 1))
    assert _chooses(_conv(_full(3, (4, 4, 3, 3), 65), BYTE, 1))


def test_half_the_range_of_activations_cannot() -> None:
    """`reduce_range`: the clamp of the convolution in front is the proof."""
    for high, chooses in ((127, False), (129, False), (130, True)):
        first = _conv(_full(3, (8, 4, 3, 3), 60), BYTE, 1, bounds=(0, high))
        made = first.graph.outputs[0]
        params = first.graph.params(made)
        w = first.constant(_full(4, (4, 8, 3, 3)), QuantParams.per_tensor(0.01, 0, "int8"), "second")
        first.graph.outputs = [
            first.add(Conv, (made, w), QuantParams.per_tensor(1.0, 128, "uint8"), (1, 4, 6, 6), strides=(1, 1),
                      pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, acc_scale=(params.scale[0] * 0.01,))
        ]  # fmt: skip
        assert _chooses(first) is chooses, high


@pytest.mark.parametrize(("zero", "chooses"), [(129, False), (130, True)])
def test_padding_may_be_larger_than_any_activation(zero: int, chooses: bool) -> None:
    """It holds the zero point, which lies outside of what is never positive."""
    net = Net()
    params = QuantParams.per_tensor(0.02, zero, "uint8")
    a = net.input(integers(np.random.default_rng(0), BYTE, (1, 8, 6, 6)), BYTE)
    below = net.add(Rescale, (a,), params, (1, 8, 6, 6), lo=0, hi=100)
    w = net.constant(_full(4, (4, 8, 3, 3)), QuantParams.per_tensor(0.01, 0, "int8"))
    net.graph.outputs = [
        net.add(Conv, (below, w), QuantParams.per_tensor(1.0, 128, "uint8"), (1, 4, 6, 6), strides=(1, 1),
                pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, acc_scale=(0.0002,))
    ]  # fmt: skip
    assert _chooses(net) is chooses


def test_depthwise_convolutions_cannot() -> None:
    net = _conv(_full(3, (16, 1, 3, 3)), BYTE, 1, groups=16)
    assert not _chooses(net)
    expected = execute(net.graph, net.feeds, get_profile("onnx"))[net.graph.outputs[0]]
    (found,) = run_model(emitted(net.graph).complete(), net.feeds)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("high", "chooses"), [(128, False), (129, True)])
def test_a_matrix_of_run_time_may_hold_any_byte(high: int, chooses: bool) -> None:
    """Shares of attention of 0 to 128 cannot saturate with any values."""
    dice = np.random.default_rng(0)
    shares, values = QuantParams.per_tensor(1 / 127, 0, "uint8"), QuantParams.per_tensor(0.1, 0, "int8")
    net = Net()
    left = _clamped(net, net.input(integers(dice, shares, (3, 6)), shares), shares, 0, high)
    right = net.input(integers(dice, values, (6, 4)), values)
    out = QuantParams.per_tensor(0.1, 128, "uint8")
    net.graph.outputs = [net.add(MatMul, (left, right), out, (3, 4), acc_scale=(0.1 / 127,))]
    assert _chooses(net) is chooses


@settings(max_examples=60)
@given(
    low=st.integers(-128, 127), span=st.integers(0, 255), at=st.integers(0, 255), reach=st.integers(0, 255),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_held_to_be_safe_is_safe(low: int, span: int, at: int, reach: int, seed: int) -> None:
    """No two products of a matrix that is left alone leave 16 bits, whichever two are added."""
    dice = np.random.default_rng(seed)
    weight = dice.integers(low, min(low + span, 127) + 1, (6, 4)).astype(np.int8)
    x = QuantParams.per_tensor(0.1, 0, "uint8")
    net = Net()
    raw = net.input(integers(dice, x, (3, 6)), x)
    clamped = _clamped(net, raw, x, at, min(at + reach, 255))
    w = net.constant(weight, QuantParams.per_tensor(0.01, 0, "int8"))
    out = QuantParams.per_tensor(0.5, 100, "uint8")
    net.graph.outputs = [net.add(MatMul, (clamped, w), out, (3, 4), acc_scale=(0.001,))]
    writer = Writer(net.graph)
    node = onnx.helper.make_node("QLinearMatMul", [clamped, "s", "xz", w, "s", "wz", "s", "xz"], ["y"])
    constants = {w: weight, "xz": np.uint8(0), "wz": np.int8(0)}
    ends = np.array([at, min(at + reach, 255)])[:, None] * weight.astype(np.int64).reshape(-1)
    worst = max(abs(2 * int(ends.max()) + 0.5), abs(2 * int(ends.min()) + 0.5))
    if wide_form(writer, [node], {k: np.asarray(v) for k, v in constants.items()}) is None:
        assert worst < 2**15
    else:
        assert worst > 2**15 or at + reach > 127  # not more careful than its bound needs


def _clamped(net: Net, name: str, params: QuantParams, lo: int, hi: int) -> str:
    assert issubclass(Rescale, Clamped)
    return net.add(Rescale, (name,), params, (3, 6), lo=lo, hi=hi)


def test_real_numbers_are_no_operands() -> None:
    """A constant of NaN that is moved (found by fuzzing)."""
    nodes = [onnx.helper.make_node("Transpose", ["c"], ["t"])]
    assert wide_form(Writer(Net().graph), nodes, {"c": np.full((2, 2), np.nan, np.float32)}) is None
