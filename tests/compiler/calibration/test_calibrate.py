"""Calibration: histograms, the methods against ONNX Runtime's and plain searches, and what data may look like."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from qatc.compiler.budget import SMALLEST, limited
from qatc.compiler.calibration.calibrate import calibrate, read_data
from qatc.compiler.calibration.histogram import METHODS, Histogram, entropy, grid_of, minmax, mse, percentile
from qatc.compiler.diagnostics import CompileError, Diagnostics, Severity
from qatc.compiler.package.samples import npy_bytes
from qatc.compiler.quant import dtype_range
from qatc.compiler.result import Port
from qatc.compiler.simulation import Simulation

PORT = Port("x", "float32", ("N", 3))


def histogram(*batches: np.ndarray) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.add(batch)
    return seen


# -- histograms -----------------------------------------------------------------------------------------------------
@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), batches=st.integers(1, 5))
def test_a_growing_histogram_counts_what_numpy_counts(seed, batches):
    rng = np.random.default_rng(seed)
    data = [rng.normal(rng.uniform(-3, 3), 10.0 ** rng.integers(-2, 3), 500).astype(np.float32) for _ in range(batches)]
    seen, values = histogram(*data), np.concatenate(data)
    assert (seen.low, seen.high) == (values.min(), values.max())
    assert seen.counts.sum() == values.size
    edges = np.linspace(-seen.limit, seen.limit, seen.counts.size + 1)
    expected, found = np.histogram(values, edges)[0].cumsum(), seen.counts.cumsum()
    late = np.concatenate([[0], expected[:-1]])  # a value on an edge may fall on either side of it
    early = np.concatenate([expected[1:], [values.size]])
    assert ((found >= late) & (found <= early)).all()


def test_zeros_alone_and_nothing_at_all():
    seen = histogram(np.zeros(10, np.float32))
    assert grid_of(minmax(seen, grid_of)).scale == (1.0,)
    for method in METHODS.values():
        low, high = method(seen, grid_of)
        assert (low, high) == (0, 0)
    later = histogram(np.zeros(10, np.float32), np.array([-2.0, 4.0], np.float32))
    assert later.counts.sum() == 12
    assert (later.low, later.high) == (-2, 4)
    assert histogram(np.zeros(0, np.float32)).counts.sum() == 0


# -- grids ------------------------------------------------------------------------------------------------------------
@given(
    low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6),
    dtype=st.sampled_from(["uint8", "int8", "int16", "uint16", "int4"]), symmetric=st.booleans(),
)  # fmt: skip
def test_a_grid_covers_its_range_and_zero(low, high, dtype, symmetric):
    span = (min(low, high), max(low, high))
    grid = grid_of(span, dtype, symmetric=symmetric)
    qmin, qmax = dtype_range(dtype)
    assert grid.dequantize(np.array(grid.zero_point[0])) == 0
    step = grid.scale[0]
    reach = (step * (qmin - grid.zero_point[0]), step * (qmax - grid.zero_point[0]))
    assert reach[0] <= span[0] + step
    assert reach[1] >= span[1] - step
    if symmetric:
        assert grid.zero_point[0] == (0 if qmin < 0 else (qmax + 1) // 2)
    elif span[0] >= 0:
        assert grid.zero_point[0] == qmin  # a Relu's range starts at zero


# -- methods ----------------------------------------------------------------------------------------------------------
def relu_data(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(0, 1, 200_000), 0).astype(np.float32)


def test_percentile_cuts_the_far_ends():
    values = np.random.default_rng(1).normal(0, 1, 500_000).astype(np.float32)
    low, high = percentile(histogram(values), grid_of)
    assert abs(low - np.quantile(values, 0.00005)) < 0.02
    assert abs(high - np.quantile(values, 0.99995)) < 0.02
    positive = relu_data()
    low, high = percentile(histogram(positive), grid_of)
    assert low == 0
    assert abs(high - np.quantile(positive, 0.9999)) < 0.02


def test_mean_square_error_is_smaller_than_with_the_extremes():
    rng = np.random.default_rng(2)
    values = rng.standard_t(3, 100_000).astype(np.float32)
    seen = histogram(values)

    def error(span: tuple[float, float]) -> float:
        return float(np.mean((grid_of(span).fake_quantize(values).astype(np.float64) - values) ** 2))

    best = error(mse(seen, grid_of))
    assert best < 0.9 * error(minmax(seen, grid_of))
    low, high = seen.low, seen.high
    assert all(best <= 1.01 * error((low * share, high * share)) for share in np.linspace(0.02, 1, 50))


def test_entropy_is_onnx_runtimes():
    from onnxruntime.quantization.calibrate import HistogramCollector

    rng = np.random.default_rng(3)
    draws = (rng.normal(0.3, 2, 100_000), rng.laplace(0, 1, 100_000), rng.lognormal(0, 1, 100_000), rng.random(9_999))
    for values in (v.astype(np.float32) for v in draws):
        seen = histogram(values)
        collector = HistogramCollector(
            method="entropy", symmetric=False, num_bins=2048, num_quantized_bins=128, percentile=99.99, scenario="same"
        )
        edges = np.linspace(-seen.limit, seen.limit, 2049, dtype=np.float32)
        counts, _ = np.histogram(values, edges)
        theirs = collector.get_entropy_threshold(
            (counts, edges, np.float32(seen.low), np.float32(seen.high), np.float32(seen.limit)), 128
        )
        ours = entropy(seen, grid_of)
        span = seen.high - seen.low
        assert abs(ours[0] - float(theirs[0])) < 0.1 * span
        assert abs(ours[1] - float(theirs[1])) < 0.1 * span


# -- over a model -----------------------------------------------------------------------------------------------------
def two_times(shape: list[object]) -> Simulation:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Add", ["r", "r"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return Simulation(model, "net")


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_inner_tensors(tmp_path: Path, method):
    data = np.random.default_rng(0).normal(0, 1, (500, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", data)
    found = calibrate(two_times(["N", 3]), ["x", "r", "y"], read_data(tmp_path / "x.npy", [PORT]), method)
    assert list(found) == ["x", "r", "y"]
    assert found["x"].zero_point[0] > 50
    assert found["r"].zero_point[0] == 0
    assert found["r"].dtype == "uint8"
    assert found["y"].scale[0] == pytest.approx(2 * found["r"].scale[0], rel=0.02)
    if method == "minmax":
        assert found["r"].scale[0] == np.float32(data.max() / np.float32(255))
    again = calibrate(two_times(["N", 3]), ["x", "r", "y"], read_data(tmp_path / "x.npy", [PORT]), method)
    assert again == found


def test_a_range_of_zeros_alone_is_told(tmp_path: Path):
    """Its step would be made up: of the inputs below only those that a Relu lets through tell anything."""
    np.save(tmp_path / "x.npy", np.array([[-2.0, -0.5, -1.0]], np.float32))
    findings = Diagnostics()
    calibrate(two_times(["N", 3]), ["x", "r", "y"], read_data(tmp_path / "x.npy", [PORT]), findings=findings)
    (told,) = findings
    assert (told.code, told.severity) == ("QAT207", Severity.WARNING)
    assert told.message == "the calibration data leave 2 tensors zero throughout (r, y): their range is a guess"


def test_batches_do_not_matter(tmp_path: Path):
    data = np.random.default_rng(0).normal(0, 1, (40, 3)).astype(np.float32)
    np.save(tmp_path / "whole.npy", data)
    whole = calibrate(two_times(["N", 3]), ["y"], read_data(tmp_path / "whole.npy", [PORT]))
    single = calibrate(two_times([1, 3]), ["y"], read_data(tmp_path / "whole.npy", [Port("x", "float32", (1, 3))]))
    assert whole == single


def test_signed_and_symmetric_grids(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([[-2.0, 0.5, 1.0]], np.float32))
    data = read_data(tmp_path / "x.npy", [PORT])
    found = calibrate(two_times(["N", 3]), ["x"], data, dtype="int8", symmetric=True)
    assert found["x"].zero_point == (0,)
    assert found["x"].scale[0] == np.float32(2 / 127)


def test_unknown_methods_are_usage_errors(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((1, 3), np.float32))
    with pytest.raises(CompileError) as caught:
        calibrate(two_times(["N", 3]), ["x"], read_data(tmp_path / "x.npy", [PORT]), "percentiles")
    assert caught.value.exit_code == 2
    assert caught.value.diagnostics[0].code == "QAT007"
    assert "did you mean percentile" in (caught.value.diagnostics[0].hint or "")


def test_data_that_overflow_are_said(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.full((1, 3), 3e38, np.float32))
    with pytest.raises(CompileError) as caught:
        calibrate(two_times(["N", 3]), ["y"], read_data(tmp_path / "x.npy", [PORT]))
    assert (caught.value.diagnostics[0].code, caught.value.diagnostics[0].tensor) == ("QAT008", "y")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", METHODS)
def test_a_first_batch_of_next_to_nothing(method: str):
    """Its limit has no reciprocal in float32; zeros were counted as the lowest value."""
    seen = Histogram()
    seen.add(np.array([0, 1e-42, -1e-45], np.float32))
    seen.add(np.linspace(-1, 1, 100_000, dtype=np.float32))
    low, high = METHODS[method](seen, grid_of)
    assert -1 <= low < -0.9
    assert 0.9 < high <= 1
    assert int(seen.counts.sum()) == 100_003


# -- data -------------------------------------------------------------------------------------------------------------
TWO = (Port("a", "float32", ("N", 2)), Port("b", "int64", ("N",)))


def shapes(path: Path, ports: tuple[Port, ...] | list[Port], **options: object) -> list[dict[str, tuple[int, ...]]]:
    return [{n: a.shape for n, a in feeds.items()} for feeds in read_data(path, ports, **options)]


def test_samples_along_the_first_axis_come_in_batches(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((35, 3), np.float32))
    assert [s["x"][0] for s in shapes(tmp_path / "x.npy", [PORT])] == [16, 16, 3]
    fixed = [Port("x", "float32", (5, 3))]
    assert [s["x"] for s in shapes(tmp_path / "x.npy", fixed)] == [(5, 3)] * 7


def test_large_samples_come_one_by_one(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((3, 3, 700, 700), np.float32))
    found = shapes(tmp_path / "x.npy", [Port("x", "float32", ("N", 3, 700, 700))])
    assert found == [{"x": (1, 3, 700, 700)}] * 3


def test_one_sample_and_one_more_axis(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros(3, np.float64))
    assert shapes(tmp_path / "x.npy", [PORT]) == [{"x": (1, 3)}]
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 3), np.float32))
    assert shapes(tmp_path / "x.npy", [PORT]) == [{"x": (4, 3)}] * 2


def test_several_inputs_and_a_folder(tmp_path: Path):
    np.savez(tmp_path / "one.npz", a=np.zeros((3, 2), np.float32), b=np.zeros(3, np.int32))
    np.savez(tmp_path / "two.npz", np.zeros((2, 2), np.float32), np.zeros(2, np.int64))
    found = shapes(tmp_path, TWO)
    assert found == [{"a": (3, 2), "b": (3,)}, {"a": (2, 2), "b": (2,)}]
    (first, *_) = read_data(tmp_path, TWO)
    assert first["b"].dtype == np.int64
    data = read_data(tmp_path, TWO)
    assert len(list(data)) == len(list(data)) == 2  # can be read again


def complaint(path: Path, ports: tuple[Port, ...] | list[Port]) -> str:
    with pytest.raises(CompileError) as caught:
        list(read_data(path, ports))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "QAT008"
    return f"{diagnostic.message} / {diagnostic.hint}"


def test_what_does_not_fit_is_said_with_what_is_expected(tmp_path: Path):
    def saved(array: np.ndarray) -> Path:
        np.save(tmp_path / "x.npy", array)
        return tmp_path / "x.npy"

    assert "dimension 1 is 4, not 3" in complaint(saved(np.zeros((2, 4), np.float32)), [PORT])
    assert "float32 [N, 3]" in complaint(saved(np.zeros((2, 4), np.float32)), [PORT])
    assert "the rank is 5, not 2" in complaint(saved(np.zeros((1, 1, 1, 1, 3), np.float32)), [PORT])
    assert "the element type is not float32" in complaint(saved(np.zeros((2, 3), np.int32)), [PORT])
    assert "NaN" in complaint(saved(np.full((2, 3), np.nan, np.float32)), [PORT])
    fixed = [Port("x", "float32", (4, 3))]
    for empty in (np.zeros((0, 3), np.float32), np.zeros((0, 4, 3), np.float32)):
        assert "it has no samples" in complaint(saved(empty), [PORT])
        assert "it has no samples" in complaint(saved(empty), fixed)
    assert "it has no samples" in complaint(saved(np.zeros(0, np.float32)), [Port("x", "float32", ())])
    assert "no multiple of the batch, 4" in complaint(saved(np.zeros((6, 3), np.float32)), fixed)
    nothing = [Port("x", "float32", (0, 3))]
    assert "no multiple of the batch, 0" in complaint(saved(np.zeros((6, 3), np.float32)), nothing)
    assert "2 inputs: a, b" in complaint(saved(np.zeros((6, 3), np.float32)), TWO)


def test_wrong_names_and_counts(tmp_path: Path):
    np.savez(tmp_path / "x.npz", a=np.zeros((3, 2), np.float32), c=np.zeros(3, np.int64))
    assert "holds the arrays a, c; the model's inputs are a, b" in complaint(tmp_path / "x.npz", TWO)
    np.savez(tmp_path / "x.npz", a=np.zeros((3, 2), np.float32), b=np.zeros(2, np.int64))
    assert "different numbers of batches (a: 3, b: 2)" in complaint(tmp_path / "x.npz", TWO)


def test_files_that_cannot_be_read(tmp_path: Path):
    assert "nothing.npy does not exist" in complaint(tmp_path / "nothing.npy", [PORT])
    assert "/dev/null is no regular file" in complaint(Path("/dev/null"), [PORT])
    assert "has no .npy" in complaint(tmp_path, [PORT])
    (tmp_path / "x.npy").write_bytes(b"no array")
    assert "cannot read" in complaint(tmp_path / "x.npy", [PORT])
    (tmp_path / "x.npz").write_bytes(b"no archive")
    assert "cannot read" in complaint(tmp_path / "x.npz", [PORT])
    (tmp_path / "x.txt").write_text("1 2 3")
    assert "neither an .npy" in complaint(tmp_path / "x.txt", [PORT])
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    assert "cannot read" in complaint(tmp_path / "objects.npy", [PORT])  # never unpickled


@pytest.mark.parametrize(
    "header", ["{'descr': '<f4', 'fortran_order': False, 'shape': (3,3", "[" * 3000, "{", "{'descr': 7}", "lambda: 0"]
)
def test_hostile_headers(header: str, tmp_path: Path):
    body = (header + "\n").encode()
    data = b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body
    (tmp_path / "x.npy").write_bytes(data)
    assert "cannot read" in complaint(tmp_path / "x.npy", [PORT])
    with ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    assert "cannot read" in complaint(tmp_path / "x.npz", [PORT])


def test_hostile_archives(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.zeros((64, 3), np.float32))
    whole = (tmp_path / "x.npz").read_bytes()
    encrypted = bytearray(whole)
    encrypted[whole.rindex(b"PK\x01\x02") + 8] |= 1
    damaged = bytearray(whole)
    damaged[200] ^= 0xFF  # the checksum is wrong
    unknown = bytearray(whole)
    unknown[whole.rindex(b"PK\x01\x02") + 10] = 77  # a compression that nobody knows
    for data in (whole[:100], whole[:-10], encrypted, damaged, unknown):
        (tmp_path / "y.npz").write_bytes(bytes(data))
        assert "cannot read" in complaint(tmp_path / "y.npz", [PORT])


def test_a_header_that_promises_too_much(tmp_path: Path):
    data = npy_bytes(np.zeros((4, 3), np.float32)).replace(b"(4, 3), }        ", b"(99999999, 3), } ")
    with ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    assert "does not fit the 48 bytes" in complaint(tmp_path / "x.npz", [PORT])


def test_members_that_are_no_arrays(tmp_path: Path):
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), np.float32))
    with ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("README.txt", b"how these came to be")
    assert shapes(tmp_path / "x.npz", [PORT]) == [{"x": (2, 3)}]
    with ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x", b"bare bytes")
    assert "holds the arrays (none); the model's inputs are x" in complaint(tmp_path / "x.npz", [PORT])


@pytest.mark.filterwarnings("error")
def test_headers_of_python_2(tmp_path: Path):
    data = npy_bytes(np.ones((2, 3), np.float32)).replace(b"(2, 3), }  ", b"(2L, 3L), }")
    (tmp_path / "x.npy").write_bytes(data)
    with ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data)
    assert shapes(tmp_path, [PORT]) == [{"x": (2, 3)}] * 2


def test_suffixes_in_any_letter_case(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    (tmp_path / "x.npy").rename(tmp_path / "X.NPY")
    assert shapes(tmp_path / "X.NPY", [PORT]) == shapes(tmp_path, [PORT]) == [{"x": (2, 3)}]


def test_an_archive_asks_before_it_is_unpacked(tmp_path: Path):
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1 << 22, 3), np.float32))
    assert (tmp_path / "x.npz").stat().st_size < 1 << 17
    with pytest.raises(CompileError) as caught, limited(SMALLEST):
        list(read_data(tmp_path / "x.npz", [PORT]))
    assert caught.value.diagnostics[0].code == "QAT011"
    assert "unpacking x.npz would take 48 MiB" in caught.value.diagnostics[0].message


def test_an_unknown_shape_needs_pinning(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    open_port = [Port("x", "float32", None)]
    with pytest.raises(CompileError) as caught:
        list(read_data(tmp_path / "x.npy", open_port))
    assert caught.value.diagnostics[0].code == "QAT009"
    assert shapes(tmp_path / "x.npy", open_port, shapes={"x": (2, 3)}) == [{"x": (2, 3)}] * 2
