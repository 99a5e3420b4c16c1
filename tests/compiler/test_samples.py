"""Sample inputs: generated ones, the user's own, and what is said where they do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.graph import Node, QuantGraph, Variable
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import Port
from qatc.compiler.samples import generate, index_limits, load

GRID = QuantParams.per_tensor(0.5, 10, "uint8", 0, 100)
IMAGE = Port("image", "float32", ("N", 3, 8, 8), GRID)
TOKENS = Port("tokens", "int64", ("N", 16))


def test_samples_are_reproducible_and_differ():
    first, second = generate([IMAGE, TOKENS], 2, seed=7)
    again = generate([IMAGE, TOKENS], 2, seed=7)
    assert all((a[n] == b[n]).all() for a, b in zip((first, second), again, strict=True) for n in a)
    assert (first["image"] != second["image"]).any()
    assert (generate([IMAGE], 1, seed=8)[0]["image"] != first["image"]).any()
    assert (generate([IMAGE], 1, seed=7)[0]["image"] == first["image"]).all()  # whatever the other inputs are


def test_a_float_input_fills_its_grids_range():
    (sample,) = generate([IMAGE])
    image = sample["image"]
    assert (image.dtype, image.shape) == (np.float32, (1, 3, 8, 8))
    assert -5 <= image.min() < 0 < 40 < image.max() <= 45
    (plain,) = generate([Port("x", "float16", (2, 4000))])
    assert plain["x"].dtype == np.float16
    assert abs(plain["x"].astype(np.float32).std() - 1) < 0.05


def test_integer_inputs_stay_legal():
    ports = [
        TOKENS,
        Port("q", "int8", (1, 500), QuantParams.per_tensor(1.0, 0, "int8", -7, 7)),
        Port("m", "bool", (9,)),
    ]
    (sample,) = generate(ports, limits={"tokens": 5})
    assert 0 <= sample["tokens"].min() <= sample["tokens"].max() < 5
    assert (sample["q"].min(), sample["q"].max()) == (-7, 7)
    assert sample["m"].dtype == np.bool_


def test_symbolic_dimensions_need_pinning_but_for_the_batch():
    ports = [Port("a", "float32", ("N", 3, "height", None)), Port("b", "float32", None)]
    with pytest.raises(CompileError) as caught:
        generate(ports)
    first, second = caught.value.diagnostics
    assert (first.code, second.code) == ("QAT009", "QAT009")
    assert "height" in first.message
    assert "-s a=1,3,<number>,<number>" in (first.hint or "")
    (sample,) = generate(ports, shapes={"a": (2, 3, 4, 5), "b": (6,)})
    assert (sample["a"].shape, sample["b"].shape) == ((2, 3, 4, 5), (6,))
    assert generate([Port("s", "float32", ("N", "N"))])[0]["s"].shape == (1, 1)
    assert generate([Port("s", "float32", ())])[0]["s"].shape == ()


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("params", [None, GRID])
def test_a_sample_without_dimensions_is_an_array(dtype, params):
    """ONNX Runtime takes no NumPy scalars."""
    value = generate([Port("s", dtype, (), params)])[0]["s"]
    assert isinstance(value, np.ndarray)
    assert (value.dtype, value.shape) == (np.dtype(dtype), ())


@pytest.mark.parametrize("shape", [(1, 4), (1, 3, 8), (0, 3, 8, 8)])
def test_pinned_shapes_must_fit(shape):
    with pytest.raises(CompileError) as caught:
        generate([IMAGE], shapes={"image": shape})
    assert caught.value.diagnostics[0].code == "QAT007"


def test_indices_are_limited_by_the_table_they_index():
    ids, wide = Variable("ids", TensorProto.INT32, ["N", 4]), Variable("wide", TensorProto.INT64, ["N", 4])
    rows = Variable("rows", TensorProto.FLOAT, ["N", 4, 8])
    graph = QuantGraph([Node("Cast", "cast", {"to": TensorProto.INT64}, [ids], [wide])], [ids], [rows])
    table = graph.constant("table", np.zeros((30, 8), np.float32))
    graph.insert("Gather", [table, wide], [rows], attrs={"axis": 0})
    assert index_limits(graph) == {"ids": 30}
    graph.nodes[-1].attrs["axis"] = 7  # which the table does not have: ONNX Runtime tells it
    assert index_limits(graph) == {}


def test_the_users_own_files(tmp_path: Path):
    for index in range(2):
        np.save(tmp_path / f"image{index}.npy", np.full((1, 3, 8, 8), index, np.float64))
        np.save(tmp_path / f"tokens{index}.npy", np.full((1, 16), index, np.int32))
    files = [(name, tmp_path / f"{name}{index}.npy") for index in range(2) for name in ("image", "tokens")]
    samples = load([IMAGE, TOKENS], files)
    assert [int(s["image"][0, 0, 0, 0]) for s in samples] == [0, 1]
    assert samples[0]["image"].dtype == np.float32
    assert samples[0]["tokens"].dtype == np.int64


def test_a_file_without_dimensions_stays_without(tmp_path: Path):
    np.save(tmp_path / "s.npy", np.float64(0.5))
    (sample,) = load([Port("s", "float32", ())], [("s", tmp_path / "s.npy")])
    assert (sample["s"].dtype, sample["s"].shape) == (np.float32, ())


def test_files_that_do_not_fit_are_all_named(tmp_path: Path):
    np.save(tmp_path / "small.npy", np.zeros((1, 3, 4, 8), np.float32))
    np.save(tmp_path / "floats.npy", np.zeros((1, 16), np.float32))
    np.save(tmp_path / "nan.npy", np.full((1, 3, 8, 8), np.nan, np.float32))
    files = [
        ("image", tmp_path / "small.npy"),
        ("tokens", tmp_path / "floats.npy"),
        ("image", tmp_path / "nan.npy"),
        ("image", tmp_path / "missing.npy"),
        ("image", Path(__file__)),
    ]
    with pytest.raises(CompileError) as caught:
        load([IMAGE, TOKENS], files)
    messages = [d.message for d in caught.value.diagnostics]
    assert {d.code for d in caught.value.diagnostics} == {"QAT008"}
    assert "dimension 2 is 4, not 8" in messages[0]
    assert "the element type is not int64" in messages[1]
    assert "NaN" in messages[2]
    assert messages[3].endswith("missing.npy: No such file or directory")
    assert messages[4].endswith("test_samples.py: it is no npy file")


def test_an_input_that_the_model_does_not_have_is_an_error_of_usage():
    with pytest.raises(CompileError) as caught:
        load([IMAGE, TOKENS], [("label", Path("small.npy")), ("image", Path("missing.npy"))])
    (found,) = caught.value.diagnostics
    assert (found.code, found.message, found.hint, caught.value.exit_code) == (
        "QAT007",
        "the model has no input label",
        "its inputs are image, tokens",
        2,
    )


def test_every_input_needs_as_many_files(tmp_path: Path):
    np.save(tmp_path / "image.npy", np.zeros((1, 3, 8, 8), np.float32))
    with pytest.raises(CompileError) as caught:
        load([IMAGE, TOKENS], [("image", tmp_path / "image.npy")])
    assert "image: 1, tokens: 0" in caught.value.diagnostics[0].message


def test_integers_out_of_range_are_refused(tmp_path: Path):
    np.save(tmp_path / "q.npy", np.array([300]))
    with pytest.raises(CompileError) as caught:
        load([Port("q", "uint8", (1,))], [("q", tmp_path / "q.npy")])
    assert "values outside uint8" in caught.value.diagnostics[0].message


@pytest.mark.parametrize(("dtype", "value"), [("float32", 1e300), ("float16", 1e6), ("float32", np.inf)])
def test_numbers_that_the_input_cannot_hold_are_told(tmp_path: Path, dtype: str, value: float) -> None:
    """As infinities they would saturate, whatever they are."""
    np.save(tmp_path / "x.npy", np.array([1.0, value]))
    with pytest.raises(CompileError, match=f"NaN, infinite or beyond {dtype}"):
        load([Port("x", dtype, (2,))], [("x", tmp_path / "x.npy")])
