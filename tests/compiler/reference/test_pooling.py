"""Pooling against ONNX Runtime's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qatc.compiler.budget import limited
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Pool
from qatc.compiler.quant import QuantParams, dtype_range
from qatc.compiler.reference.pooling import Windows
from tests.compiler.reference.nets import EXACT, MS, Net, integers, random_params, related

CEIL = "ceil padded"
POOLS: Mapping[str, dict[str, Any]] = {
    "plain": {"kernel": (3, 3)},
    "stride": {"kernel": (2, 2), "strides": (2, 2)},
    "padded": {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    "uneven": {"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 0, 1)},
    "include padding": {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "count_include_pad": True},
    "ceil": {"kernel": (3, 3), "strides": (2, 2), "ceil_mode": True},
    CEIL: {"kernel": (4, 3), "strides": (3, 3), "pads": (1, 1, 1, 1), "ceil_mode": True},
    "whole": {"kernel": (9, 11)},
}


def pool_net(x: np.ndarray, params: QuantParams, out: QuantParams, **attrs: Any) -> Net:
    net = Net()
    net.feed("x", x, params)
    net.out("y", out)
    net.add(Pool("p", ("x",), ("y",), lo=out.qmin, hi=out.qmax, **attrs))
    return net


def skip_unless_runtime_pools_as_onnx(case: str) -> None:
    if case == CEIL and tuple(int(n) for n in onnxruntime.__version__.split(".")[:2]) <= (1, 20):
        pytest.skip("this ONNX Runtime keeps windows that begin in the padding after the input")


def onnx_pool_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    names = {"kernel": "kernel_shape"}
    return {names.get(k, k): int(v) if isinstance(v, bool) else v for k, v in attrs.items()}


def averaged(dtype: str) -> Iterator[tuple[np.ndarray, QuantParams, QuantParams]]:
    """Random tensors and grids; every fourth time exact values lie on rounding boundaries."""
    rng = np.random.default_rng(14)
    for trial in range(12):
        params = random_params(rng, dtype)
        # The last: every odd sum over the whole input is a tie but for float32 errors.
        halves = QuantParams.per_tensor(float(np.float32(params.scale[0] * 2 / 99)), 7, dtype)
        tied = QuantParams.per_tensor(related(params.scale[0], 1 + trial), 7, dtype)
        out = [params, random_params(rng, dtype), tied, halves][trial % 4]
        x = integers(rng, dtype, (2, 5, 9, 11))
        if out is halves:
            x = (params.zero_point[0] + rng.integers(-1, 2, x.shape)).clip(*dtype_range(dtype)).astype(dtype)
        yield x, params, out


def scalars(params: QuantParams) -> list[Any]:
    return [np.float32(params.scale[0]), np.dtype(params.dtype).type(params.zero_point[0])]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", ["plain", "stride", "include padding"])
def test_average_pooling_is_a_convolution_with_ones_bit_for_bit(run_op, exact_runtime, dtype, case):
    """What the `onnx` backend writes: weights of one, each worth 1 / count."""
    kernel = POOLS[case]["kernel"]
    for x, params, out in averaged(dtype):
        ones, weight = (
            np.ones((5, 1, *kernel), np.int8),
            np.float32(params.scale[0] / np.prod(kernel) / params.scale[0]),
        )
        inputs = [x, *scalars(params), ones, weight, np.int8(0), *scalars(out)]
        attrs = {k: v for k, v in onnx_pool_attrs(POOLS[case]).items() if k != "count_include_pad"}
        (expected,) = run_op("QLinearConv", inputs, [dtype], {**attrs, "group": 5})
        net = pool_net(x, params, out, mode="average", **POOLS[case])
        np.testing.assert_array_equal(net.run()["y"], expected)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("case", POOLS)
def test_average_pooling_is_qlinearaveragepool_but_for_ties(run_op, exact_runtime, dtype, case):
    """That operator sums floats: one LSB apart, and only where the exact value is within float error of a boundary."""
    skip_unless_runtime_pools_as_onnx(case)
    for x, params, out in averaged(dtype):
        inputs = [x, *scalars(params), *scalars(out)]
        (found,) = run_op("QLinearAveragePool", inputs, [dtype], onnx_pool_attrs(POOLS[case]), domain=MS)
        net = pool_net(x, params, out, mode="average", **POOLS[case])
        ours = net.run()["y"].astype(np.int64)
        apart = np.flatnonzero(ours != found)
        assert np.abs(ours - found).max() <= 1
        fine = QuantParams.per_tensor(out.scale[0] / 256, 0, "int32")
        exact = pool_net(x, params, fine, mode="average", **POOLS[case]).run(EXACT)["y"].reshape(-1)[apart]
        np.testing.assert_allclose(np.abs(exact % 256 - 128), 0, atol=1)  # half an LSB, in units of 1 / 256


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("shape", [(2, 70, 7, 7), (1, 50, 83), (1, 3, 2, 5, 9), (1, 40, 11, 15), (1, 1, 300, 301)])
def test_global_pooling_is_qlinearglobalaveragepool_bit_for_bit(run_op, exact_runtime, dtype, shape):
    rng = np.random.default_rng(15)
    kind = np.dtype(dtype).type
    for trial in range(12):
        params = random_params(rng, dtype)
        out = params if trial % 3 else random_params(rng, dtype, 0.005, 0.02)
        x = integers(rng, dtype, shape)
        if trial % 3 == 2:  # small odd sums are ties but for float32 errors
            size = np.prod(shape[2:])
            out = QuantParams.per_tensor(float(np.float32(params.scale[0] * 2 / size)), 7, dtype)
            x = (params.zero_point[0] + (rng.random(shape) < 2 / size)).clip(*dtype_range(dtype)).astype(dtype)
        inputs = [
            x,
            np.float32(params.scale[0]),
            kind(params.zero_point[0]),
            np.float32(out.scale[0]),
            kind(out.zero_point[0]),
        ]
        (expected,) = run_op("QLinearGlobalAveragePool", inputs, [dtype], {"channels_last": 0}, domain=MS)
        np.testing.assert_array_equal(pool_net(x, params, out, mode="average").run()["y"], expected)
        flat = pool_net(x, params, out, mode="average", keepdims=False).run()["y"]
        np.testing.assert_array_equal(flat, expected.reshape(shape[:2]))


@pytest.mark.parametrize("case", [*POOLS, "dilated", "one axis", "three axes", "too far", "nothing"])
def test_max_pooling_is_maxpool(run_op, case):
    skip_unless_runtime_pools_as_onnx(case)
    more: Mapping[str, dict[str, Any]] = {
        "dilated": {"kernel": (2, 3), "dilations": (3, 2), "pads": (1, 2, 1, 2)},
        "one axis": {"kernel": (3,), "strides": (2,), "pads": (1, 1), "ceil_mode": True},
        "three axes": {"kernel": (2, 2, 2), "strides": (1, 2, 2), "ceil_mode": True},
        "too far": {"kernel": (10, 3), "strides": (2, 1)},  # one row less than the window: it counts as one
        "nothing": {"kernel": (10, 3)},
    }
    attrs = {k: v for k, v in {**POOLS, **more}[case].items() if k != "count_include_pad"}
    rng = np.random.default_rng(16)
    shape = {"one axis": (2, 3, 20), "three axes": (1, 2, 5, 6, 7)}.get(case, (2, 5, 9, 11))
    for dtype in ("uint8", "int8"):
        x = integers(rng, dtype, shape)
        params = QuantParams.per_tensor(0.1, 5, dtype)
        (expected,) = run_op("MaxPool", [x], [dtype], onnx_pool_attrs(attrs))
        np.testing.assert_array_equal(pool_net(x, params, params, mode="max", **attrs).run()["y"], expected)
    everything = pool_net(x, params, params, mode="max", keepdims=False).run()["y"]
    np.testing.assert_array_equal(everything, x.reshape(*x.shape[:2], -1).max(axis=-1))


def test_means_of_windows_that_reach_too_far():
    x, params = np.full((1, 1, 2, 3), 7, np.uint8), QuantParams.per_tensor(1.0, 0)
    made = [pool_net(x, params, params, mode="average", kernel=(3, 2), strides=s).run()["y"] for s in ((2, 1), (1, 1))]
    np.testing.assert_array_equal(made[0], np.full((1, 1, 1, 2), 7))
    assert made[1].shape == (1, 1, 0, 2)
    with pytest.raises(ValueError, match="is larger than the input"):
        pool_net(x, params, params, mode="average", kernel=(4, 2)).run()


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("case", ["padded", "uneven", "ceil", CEIL])
def test_window_means_divide_by_what_onnx_says(run_op, case, include):
    skip_unless_runtime_pools_as_onnx(case)
    rng = np.random.default_rng(17)
    x, params = integers(rng, "uint8", (1, 2, 9, 11)), QuantParams.per_tensor(1.0, 20)
    attrs = {**POOLS[case], "count_include_pad": include}
    out = QuantParams.per_tensor(2.0**-6, 0, "int16")
    result = pool_net(x, params, out, mode="average", **attrs).run(EXACT)["y"]
    names = onnx_pool_attrs(attrs)
    (expected,) = run_op("AveragePool", [x.astype(np.float32) - 20], [np.float32], names)
    np.testing.assert_allclose(result / 64, expected, atol=1 / 64)


def test_windows_are_counted_within_memory() -> None:
    """A pad of 2^30 makes as many windows, of an image of four elements."""
    op = Pool(
        name="pool", inputs=("x",), outputs=("y",), lo=0, hi=255, mode="average", kernel=(3, 3),
        pads=(2**30, 0, 0, 1), count_include_pad=True,
    )  # fmt: skip
    with pytest.raises(CompileError, match="QAT011"), limited("1GiB"):
        Windows(op, (2, 2)).counts(include_pad=True)
