"""Pooling: maxima are exact; averages are the reference's, but for those that ONNX Runtime sums up in floats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qatc import compile_model
from qatc.backends.onnx.pooling import MOST_SIZES
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Pool, Rescale
from qatc.compiler.quant import QuantParams
from qatc.compiler.reference.pooling import Windows
from tests.backends.emitting import UNSET, Net, Result, grid, integers, same
from tests.graphs import net

pytestmark = pytest.mark.usefixtures("exact_runtime")
BYTES = ["uint8", "int8"]


def pool(
    mode: str,
    shape: tuple[int, ...] = (2, 3, 9, 8),
    have: str = "uint8",
    want: str = "uint8",
    *,
    symbolic: bool = False,
    channels: bool = True,
    opset: int = 17,
    bounds: tuple[int, int] | None = None,
    seed: int = 0,
    **fields: Any,
) -> tuple[Net, str]:
    dice = np.random.default_rng(seed)
    net, own = Net(opset), grid(dice, have)
    out = own.as_dtype(want) if mode == "max" else grid(dice, want, own.scale[0] * float(dice.uniform(0.5, 1.5)))
    known = ("N", shape[1] if channels else "C", *(f"d{i}" for i in range(len(shape) - 2))) if symbolic else UNSET
    x = net.input(integers(dice, own, shape), own, known)  # type: ignore[arg-type]
    lo, hi = bounds or (out.qmin, out.qmax)
    return net, net.add(Pool, [x], out, mode=mode, lo=lo, hi=hi, **fields)


@pytest.mark.parametrize(("ends", "clips"), [((0, 127), 1), ((0, 90), 2)])
def test_maxima_of_what_lies_within_the_bounds_need_no_clip(ends: tuple[int, int], clips: int) -> None:
    """The first Clip bounds the tensor itself; what comes in as an input may be anything, whatever its range says."""
    byte, narrow = QuantParams.per_tensor(0.1, 0), QuantParams.per_tensor(0.1, 0, "uint8", 0, 127)
    dice, shape, counts = np.random.default_rng(0), (1, 2, 5, 5), list[int]()
    for bounded in (True, False):
        net = Net()
        x = net.input(integers(dice, byte, shape), byte if bounded else narrow)
        if bounded:
            x = net.add(Rescale, [x], narrow, shape, lo=0, hi=127)
        net.add(Pool, [x], narrow, mode="max", kernel=(2, 2), strides=(1, 1), pads=(0,) * 4, dilations=(1, 1),
                lo=ends[0], hi=ends[1])  # fmt: skip
        counts.append(same(net, net.graph.ops[-1].output)["auto"].ops["Clip"])
    assert counts == [clips, 1]


@pytest.mark.parametrize("mode", ["max", "average"])
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(
    "fields", [{}, {"keepdims": False}, {"kernel": (9, 8)}, {"bounds": (10, 60)}, {"opset": 18}], ids=str
)
def test_everything_at_once(mode: str, dtype: str, fields: dict[str, Any]) -> None:
    same(*pool(mode, have=dtype, want=dtype, **fields))


WINDOWS = st.fixed_dictionaries(
    {
        "kernel": st.lists(st.integers(1, 4), min_size=2, max_size=2),
        "strides": st.lists(st.integers(1, 3), min_size=2, max_size=2),
        "pads": st.lists(st.integers(0, 1), min_size=4, max_size=4),
        "ceil_mode": st.booleans(),
    }
)


def window(drawn: dict[str, Any]) -> dict[str, Any]:
    """Drawn lists as fields; ONNX wants padding smaller than the kernel."""
    pads = [min(p, drawn["kernel"][i % 2] - 1) for i, p in enumerate(drawn["pads"])]
    return {
        "kernel": tuple(drawn["kernel"]),
        "strides": tuple(drawn["strides"]),
        "pads": tuple(pads),
        "ceil_mode": drawn["ceil_mode"],
    }


@given(WINDOWS, st.booleans(), st.sampled_from(BYTES))
@settings(max_examples=40)
def test_maxima(drawn: dict[str, Any], symbolic: bool, dtype: str) -> None:
    results = same(*pool("max", have=dtype, want=dtype, symbolic=symbolic, **window(drawn)))
    if drawn["kernel"] != [9, 8]:
        assert "NhwcMaxPool" in results["auto"].ops  # MaxPool takes ninety times as long on bytes
        assert "MaxPool" in results["standard"].ops


@pytest.mark.parametrize("shape", [(2, 3, 17), (1, 2, 6, 7, 8)], ids=str)
def test_maxima_in_other_dimensions(shape: tuple[int, ...]) -> None:
    rank = len(shape) - 2
    same(*pool("max", shape, kernel=(3,) * rank, strides=(2,) * rank, pads=(1,) * 2 * rank))
    same(*pool("max", shape, kernel=(2,) * rank, dilations=(2,) * rank))


def check_average(net: Net, out: str) -> dict[str, Result]:
    """Bit-exact where it is a convolution, within one LSB of the reference where ONNX Runtime sums floats."""
    results = same(net, out, within=1)
    for result in results.values():
        if "QLinearConv" in result.ops:
            np.testing.assert_array_equal(result.found, result.expected)
    return results


@given(WINDOWS, st.booleans(), st.sampled_from(BYTES), st.sampled_from(BYTES), st.integers(0, 99))
@example(
    {"kernel": [4, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": True}, False, "uint8", "int8", 0
)  # 9 sizes
@settings(max_examples=60)
def test_averages(drawn: dict[str, Any], include: bool, have: str, want: str, seed: int) -> None:
    net, out = pool("average", have=have, want=want, seed=seed, count_include_pad=include, **window(drawn))
    (op,) = (op for op in net.graph.ops if isinstance(op, Pool))
    sizes = set(Windows(op, (9, 8)).counts(include).reshape(-1).tolist())
    results = check_average(net, out)
    assert ("QLinearAveragePool" in results["auto"].ops) == (len(sizes) > MOST_SIZES)


@given(WINDOWS, st.booleans())
@example({"kernel": [3, 3], "strides": [2, 2], "pads": [0] * 4, "ceil_mode": True}, True)  # overhanging
@settings(max_examples=30)
def test_averages_of_unknown_sizes(drawn: dict[str, Any], include: bool) -> None:
    """Where windows may differ in size, ONNX Runtime's own operator; where that is wrong, a diagnostic."""
    fields = window(drawn)
    case = pool("average", symbolic=True, count_include_pad=include, **fields)
    if fields["ceil_mode"] and max(fields["strides"]) > 1 and include and any(fields["pads"]):
        with pytest.raises(CompileError, match="QAT009"):
            same(*case)
        return
    check_average(*case)


@pytest.mark.parametrize("include", [False, True])
def test_averages_of_unknown_channels(include: bool) -> None:
    fields: dict[str, Any] = {"kernel": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": include}
    results = check_average(*pool("average", symbolic=True, channels=False, **fields))
    assert "QLinearAveragePool" in results["auto"].ops


@pytest.mark.parametrize("shape", [(2, 3, 17), (1, 2, 6, 7, 8)], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_averages_in_other_dimensions(shape: tuple[int, ...], ceil_mode: bool, include: bool) -> None:
    rank = len(shape) - 2
    fields = {"kernel": (3,) * rank, "strides": (2,) * rank, "pads": (1,) * 2 * rank}
    check_average(*pool("average", shape, ceil_mode=ceil_mode, count_include_pad=include, **fields))


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 4)], ids=str)
def test_averages_over_dilated_windows(kernel: tuple[int, int], include: bool) -> None:
    """ONNX Runtime's QLinearAveragePool has no dilations; its optimizer writes them all the same."""
    fields = {"kernel": kernel, "pads": (2, 2, 2, 2), "dilations": (2, 1), "count_include_pad": include}
    results = check_average(*pool("average", **fields))
    assert all("AveragePool" not in op for result in results.values() for op in result.ops)
    if not include:
        with pytest.raises(CompileError, match="dilations needs the input's spatial size"):
            same(*pool("average", symbolic=True, **fields))


def test_an_average_is_one_convolution() -> None:
    case = pool("average", kernel=(2, 2), strides=(2, 2))
    for result in check_average(*case).values():
        assert set(result.ops) == {"QLinearConv"}
    padded = pool("average", kernel=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1))
    assert check_average(*padded)["auto"].ops == {"QLinearConv": 3, "Where": 2}  # nine, six and four elements


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
@pytest.mark.parametrize("fields", [{}, {"kernel": (2, 3), "strides": (2, 1)}, {"keepdims": False}], ids=str)
def test_maxima_of_16_bits_go_through_floats(dtype: str, fields: dict[str, Any]) -> None:
    same(*pool("max", have=dtype, want=dtype, **fields))


@pytest.mark.parametrize("mode", ["average", "max"])
def test_windows_that_reach_too_far_leave_nothing(mode: str) -> None:
    """Rounded up, and in padding that counts, their number is worked out for every window: there is none."""
    fields = {"kernel": (10, 1), "strides": (1, 2), "ceil_mode": True, "count_include_pad": mode == "average"}
    same(*pool(mode, (2, 3, 9, 8), **fields))


@pytest.mark.parametrize("sizes", [[2, 4, 9], [2, 4, 3, 3], [2, 2, 3, 3, 2]])
def test_the_largest_of_a_tensor_of_any_rank(sizes: list[int], tmp_path: Path) -> None:
    """Where the rank is known at run time alone, all axes but the first two are meant, not the third and fourth."""
    text = net("(float[2,4,9] x, int64[K] sizes) => (float[] y)", "a = A(x)\nr = Reshape(a, sizes)\n"
               "m = GlobalMaxPool(r)\ny = A(m)")  # fmt: skip
    (tmp_path / "model.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    x = np.random.default_rng(0).normal(0, 20, (2, 4, 9)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "sizes.npy", np.asarray(sizes, np.int64))
    inputs = {name: str(tmp_path / f"{name}.npy") for name in ("x", "sizes")}
    found = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out", inputs=inputs)
    assert found.verification is not None
    assert found.verification.passed
