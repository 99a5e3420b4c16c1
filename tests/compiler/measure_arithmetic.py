"""Prints the tables of docs/arithmetic.md: how often profiles and ONNX Runtime differ from exact rounding.

python tests/compiler/measure_arithmetic.py
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from qatc.compiler.arithmetic import PROFILES  # noqa: E402
from qatc.compiler.quant import QuantParams  # noqa: E402

_spec = importlib.util.spec_from_file_location("helpers", Path(__file__).with_name("conftest.py"))
_helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_helpers)
run_op = _helpers.run_one_op

TRIALS, SIZE = 1000, 4096
Measure = Callable[[np.random.Generator, bool], Iterator[tuple[str, np.ndarray, np.ndarray]]]


def grid(rng: np.random.Generator, scale: float | None = None) -> QuantParams:
    return QuantParams.per_tensor(rng.uniform(0.01, 0.1) if scale is None else scale, int(rng.integers(0, 256)))


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


def scalars(params: QuantParams) -> list:
    return [np.float32(params.scale[0]), np.uint8(params.zero_point[0])]


def quantized(real: np.ndarray, out: QuantParams) -> np.ndarray:
    return run_op("QuantizeLinear", [real, *scalars(out)], [np.uint8])[0]


def convolution(rng, related):
    x_params = grid(rng)
    out = grid(rng, x_params.scale[0] * 5 if related else rng.uniform(0.5, 2.0))
    acc = rng.integers(-40000, 40000, SIZE).astype(np.int32)
    scale = out.scale[0] / (10 * rng.integers(20, 60)) if related else rng.uniform(1e-4, 1e-3)
    exact = PROFILES["exact"].requantize(acc, [scale], out, 0, 255, 0)
    for name in ("onnx", "tflite", "tosa"):
        yield name, PROFILES[name].requantize(acc, [scale], out, 0, 255, 0), exact


def elementwise(op):
    def measure(rng, related):
        a_params = grid(rng)
        b_params = grid(rng, a_params.scale[0] * rng.integers(1, 8) / 4 if related else None)
        factor = float(b_params.scale[0] * 40) if op == "Mul" else 1.0
        out = grid(rng, factor * (a_params.scale[0] * rng.integers(1, 12) / 3 if related else rng.uniform(0.02, 0.2)))
        a, b = integers(rng, (SIZE,)), integers(rng, (SIZE,))
        arguments = (op, [(a, a_params), (b, b_params)], out, 0, 255)
        exact = PROFILES["exact"].elementwise(*arguments)
        for name in ("onnx", "tflite", "tosa"):
            yield name, PROFILES[name].elementwise(*arguments), exact
        reals = [
            run_op("DequantizeLinear", [q, *scalars(p)], [np.float32])[0] for q, p in ((a, a_params), (b, b_params))
        ]
        yield "float Q/DQ", quantized(run_op(op, reals, [np.float32], fed=(0, 1))[0], out), exact

    return measure


def average(windowed):
    def measure(rng, related):
        params = grid(rng)
        out = params if related else grid(rng)
        x = integers(rng, (1, 16, 16, 16))
        if windowed:
            views = [x[..., i : 15 + i, j : 15 + j] for i in range(2) for j in range(2)]
            count = 4
        else:
            x = x[..., :7, :7].repeat(8, axis=1)
            count = 49
            views = [x[..., i : i + 1, j : j + 1] for i in range(7) for j in range(7)]
        centered = [v.astype(np.int64) - params.zero_point[0] for v in views]
        exact = PROFILES["exact"].average(sum(centered), count, params, out, 0, 255)
        for name in ("onnx", "tflite", "tosa"):
            profile = PROFILES[name]
            yield name, profile.average(sum(centered), count, params, out, 0, 255, windowed=windowed), exact
        (real,) = run_op("DequantizeLinear", [x, *scalars(params)], [np.float32])
        attrs = {"kernel_shape": [2, 2] if windowed else [7, 7]}
        yield "float Q/DQ", quantized(run_op("AveragePool", [real], [np.float32], attrs)[0], out), exact

    return measure


def rescale(rng, related):
    params = grid(rng)
    out = grid(rng, params.scale[0] * rng.integers(1, 12) / 6 if related else None)
    q = np.arange(256, dtype=np.uint8)
    exact = PROFILES["exact"].rescale(q, params, out, 0, 255)
    for name in ("onnx", "tflite", "tosa"):
        yield name, PROFILES[name].rescale(q, params, out, 0, 255), exact


MEASURES = {
    "Conv, MatMul": convolution,
    "Add": elementwise("Add"),
    "Mul": elementwise("Mul"),
    "average pooling": average(True),
    "global average pooling": average(False),
    "Concat, Rescale": rescale,
}
COLUMNS = ("onnx", "tflite", "tosa", "float Q/DQ")


def share(differ: int, total: int) -> str:
    if not total or not differ:
        return "0" if total else ""
    percent = 100 * differ / total
    return f"{percent:.2g} %" if percent >= 0.01 else f"{differ / total * 1e6:.1f} ppm"


def main() -> None:
    print(f"| operator | scales | {' | '.join(COLUMNS)} |")
    print("|---" * (len(COLUMNS) + 2) + "|")
    worst = 0
    for title, measure in MEASURES.items():
        for related in (False, True):
            differ, total = dict.fromkeys(COLUMNS, 0), dict.fromkeys(COLUMNS, 0)
            rng = np.random.default_rng(2)
            for _ in range(TRIALS):
                for name, found, exact in measure(rng, related):
                    difference = np.abs(found.astype(np.int64) - exact.astype(np.int64))
                    differ[name] += int(np.count_nonzero(difference))
                    total[name] += difference.size
                    worst = max(worst, int(difference.max()))
            cells = [share(differ[c], total[c]) for c in COLUMNS]
            print(f"| {title} | {'related' if related else 'unrelated'} | {' | '.join(cells)} |")
    print(f"\nLargest difference: {worst} LSB.")


if __name__ == "__main__":
    main()
