"""The emitted model as a whole: movement, islands, names, weights in files, and how emission grows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qatc.backends.onnx import BACKEND
from qatc.backends.onnx.writer import Writer
from qatc.compiler.backend import Emission, bytes_of
from qatc.compiler.diagnostics import CompileError
from qatc.compiler.integer import Conv, Dequantize, Float, MatMul, Move, Pool, Quantize, raw_accumulator
from qatc.compiler.quant import QuantParams
from tests.backends.emitting import DOMAINS, Net, emitted, grid, integers, run_model, same

pytestmark = pytest.mark.usefixtures("exact_runtime")
INT32 = {"lo": -(2**31), "hi": 2**31 - 1}


# -- movement ---------------------------------------------------------------------------------------------------------
def moved(
    op_type: str, shape: tuple[int, ...], dtype: str, constants: list[Any], attrs: dict[str, Any]
) -> tuple[Net, str]:
    dice = np.random.default_rng(0)
    own = raw_accumulator((0.1,), 1) if dtype == "int32" else grid(dice, dtype)
    net = Net()
    x = net.input(
        dice.integers(-99, 99, shape).astype(np.int32) if dtype == "int32" else integers(dice, own, shape), own
    )
    return net, net.add(Move, [x, *(c and net.constant(c[0]) for c in constants)], own, op_type=op_type, attrs=attrs)


def ints(*values: int) -> list[Any]:
    return [np.array(values, np.int64)]


NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
MOVES: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Reshape", [ints(0, -1)], {}),
    ("Flatten", [], {"axis": 2}),
    ("Squeeze", [ints(0)], {}),
    ("Unsqueeze", [ints(0, 5)], {}),
    ("Slice", [ints(1), ints(9), ints(2), ints(3)], {}),
    ("Gather", [ints(3, 0, 1)], {"axis": 1}),
    ("Expand", [ints(2, 4, 8, 8)], {}),
    ("Tile", [ints(2, 1, 1, 2)], {}),
    ("Pad", [ints(0, 0, 1, 1, 0, 0, 2, 0)], {"mode": "edge"}),
    ("Pad", [ints(0, 0, 1, 1, 0, 0, 2, 0)], {"mode": "reflect"}),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "DCR"}),
    ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [], {"blocksize": 2}),
    ("Resize", ["", [np.array([1, 1, 2, 3], np.float32)]], NEAREST),
]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32"])
@pytest.mark.parametrize(("op_type", "constants", "attrs"), MOVES, ids=lambda v: v if isinstance(v, str) else "")
def test_every_integer_moves(op_type: str, constants: list[Any], attrs: dict[str, Any], dtype: str) -> None:
    results = same(*moved(op_type, (1, 4, 8, 8), dtype, constants, attrs))
    if dtype in ("uint8", "int8") and op_type not in ("DepthToSpace", "SpaceToDepth"):
        assert set(results["auto"].ops) == {op_type}


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_padding_with_an_integer(dtype: str) -> None:
    fill = [np.array(7, dtype)]
    same(*moved("Pad", (1, 4, 8, 8), dtype, [ints(0, 0, 1, 1, 0, 0, 2, 0), fill], {"mode": "constant"}))


def test_split_has_many_results() -> None:
    dice = np.random.default_rng(1)
    net, own = Net(), grid(dice)
    x = net.input(integers(dice, own, (2, 6)), own)
    outs = [net.tensor(f"part{i}", own, None) for i in range(2)]
    net.graph.ops.append(
        Move("split", (x, net.constant(np.array([2, 4]))), tuple(outs), op_type="Split", attrs={"axis": 1})
    )
    same(net, outs[0])
    same(net, outs[1])


@pytest.mark.parametrize(("before", "after"), [((2, 5, 4, 1), (2, 1, 5, 4)), ((2, 1, 5, 4), (2, 5, 4, 1))], ids=str)
def test_a_channel_of_one_is_transposed_to_its_place(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Both mean the same; ONNX Runtime cancels a Transpose against those around its convolutions, a Reshape not."""
    dice = np.random.default_rng(2)
    net, own = Net(), grid(dice)
    x = net.input(integers(dice, own, before), own)
    out = net.add(Move, [x, net.constant(np.array(after))], own, after, op_type="Reshape", attrs={})
    assert set(same(net, out)["auto"].ops) == {"Transpose"}


@pytest.mark.parametrize(
    ("op_type", "constants", "attrs"),
    [("Flatten", [], {"axis": 1}), ("Squeeze", [ints(2, 3)], {}), ("Reshape", [ints(0, -1)], {})],
    ids=["Flatten", "Squeeze", "Reshape"],
)
def test_pooled_features_are_flattened_channels_last(op_type: str, constants: list[Any], attrs: dict[str, Any]) -> None:
    dice = np.random.default_rng(3)
    net, own = Net(), grid(dice)
    pooled = net.add(Pool, [net.input(integers(dice, own, (2, 5, 4, 4)), own)], own, (2, 5, 1, 1), mode="average")
    inputs = [pooled, *(net.constant(c[0]) for c in constants)]
    out = net.add(Move, inputs, own, (2, 5), op_type=op_type, attrs=attrs)
    assert {"Transpose", "Flatten"} <= set(same(net, out)["auto"].ops)


def test_pooled_features_of_a_signal_are_reshaped() -> None:
    """Its convolutions have no second axis, so that nothing was computed channels-last."""
    dice = np.random.default_rng(4)
    net, own = Net(), grid(dice)
    signal = [net.input(integers(dice, own, (2, 5, 8)), own), net.constant(np.array([2]))]
    lifted = net.add(Move, signal, own, (2, 5, 1, 8), op_type="Unsqueeze", attrs={})
    pooled = net.add(Pool, [lifted], own, (2, 5, 1, 1), mode="average")
    out = net.add(Move, [pooled, net.constant(np.array([-1, 5]))], own, (2, 5), op_type="Reshape", attrs={})
    ops = set(same(net, out)["auto"].ops)
    assert "Reshape" in ops
    assert "Flatten" not in ops


# -- floats -----------------------------------------------------------------------------------------------------------
def test_an_island_is_its_operator() -> None:
    dice = np.random.default_rng(4)
    net, own = Net(), grid(dice)
    q = net.input(integers(dice, own, (3, 4)), own)
    real = net.add(Dequantize, [q])
    out = net.add(Float, [real], op_type="Softmax", attrs={"axis": -1}, reason="its result is not quantized")
    for result in same(net, out, within=1e-6).values():
        assert result.ops == {"DequantizeLinear": 1, "Softmax": 1}


def test_subgraphs_follow_renamed_tensors() -> None:
    """A branch that captures `outer` reads what the integer graph calls it."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["outer"], ["negated"])],
        "branch",
        [],
        [helper.make_tensor_value_info("negated", onnx.TensorProto.FLOAT, None)],
    )
    net = Net()
    flag = net.input(np.array(True))
    x = net.input(np.arange(3, dtype=np.float32))
    attrs = {"then_branch": branch, "else_branch": branch, "_captures": ["outer"]}
    out = net.add(Float, [flag, x], op_type="If", attrs=attrs, reason="control flow")
    net.graph.outputs = [out]
    (found,) = run_model(emitted(net.graph).complete(), net.feeds)
    np.testing.assert_array_equal(found, [0, -1, -2])


# -- names and form ---------------------------------------------------------------------------------------------------
def small(dice: np.random.Generator, classes: int = 6) -> Net:
    """Quantize, convolve, pool, classify, in float at both ends; one more tensor than the model keeps."""
    net, own = Net(), grid(dice)
    x = net.input(dice.normal(size=(2, 3, 8, 8)).astype(np.float32), None, ("batch", 3, 8, 8))
    q = net.add(Quantize, [x], own, ("batch", 3, 8, 8))
    w = net.constant(
        dice.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8), QuantParams.per_tensor(0.01, 0, "int8"), "weight"
    )
    fields: dict[str, Any] = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "groups": 1}
    y = net.add(Conv, [q, w], own, ("batch", 4, 8, 8), lo=30, hi=255, acc_scale=(own.scale[0] * 0.01,) * 4, **fields)
    y = net.add(Pool, [y], own, ("batch", 4), mode="average", keepdims=False)
    b = net.constant(
        dice.integers(-127, 128, (4, classes)).astype(np.int8), QuantParams.per_tensor(0.01, 0, "int8"), "head"
    )
    raw = net.add(
        MatMul,
        [y, b],
        raw_accumulator((own.scale[0] * 0.01,), 1),
        ("batch", classes),
        **INT32,
        acc_scale=(own.scale[0] * 0.01,),
    )
    net.graph.outputs = [net.add(Dequantize, [raw], None, ("batch", classes))]
    return net


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_form_of_a_model(domain: str) -> None:
    emission = emitted(small(np.random.default_rng(5)).graph, domain=domain)
    model = emission.model
    onnx.checker.check_model(model, full_check=domain == "standard")
    assert model.producer_name == "qatc"
    assert model.ir_version == 8
    domains = {entry.domain for entry in model.opset_import}
    assert domains == ({"", "com.microsoft"} if domain == "auto" else {""})
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 3, 8, 8]
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    for tensor in model.graph.initializer:
        assert tensor.dims or "_" in tensor.name  # scalars are named after their values
    values = [(t.data_type, tuple(t.dims), t.raw_data) for t in model.graph.initializer]
    assert len(set(values)) == len(values)


def test_only_the_ends_are_floats() -> None:
    model = emitted(small(np.random.default_rng(5)).graph).model
    ops = Counter(node.op_type for node in model.graph.node)
    integer = ["QLinearConv", "Clip", "QLinearGlobalAveragePool", "Flatten"]
    assert ops == Counter(["QuantizeLinear", *integer, "MatMulIntegerToFloat"])


def test_names_lead_to_tensors_that_exist() -> None:
    net = small(np.random.default_rng(5))
    emission = emitted(net.graph)
    graph = emission.model.graph
    there = (
        {o for n in graph.node for o in n.output} | {t.name for t in graph.initializer} | {i.name for i in graph.input}
    )
    assert set(emission.names.values()) <= there
    raw = net.graph.ops[-2].output
    assert raw not in emission.names  # the accumulator disappears in MatMulIntegerToFloat
    assert {"weight", "head", "x0"} <= set(emission.names)


def test_an_accumulator_that_others_read_stays() -> None:
    net = small(np.random.default_rng(5))
    raw = net.graph.ops[-2].output
    net.graph.outputs.append(raw)
    assert raw in emitted(net.graph).names


def test_equal_graphs_give_equal_bytes() -> None:
    first, second = (emitted(small(np.random.default_rng(6)).graph).model.SerializeToString() for _ in range(2))
    assert first == second


def test_emission_grows_linearly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of the writer, not seconds: twice the graph, twice the calls."""
    calls: Counter[str] = Counter()
    for name in ("array", "nodes", "fresh", "node_name"):
        plain = getattr(Writer, name)

        def counted(self: Writer, *args: Any, _name: str = name, _plain: Any = plain, **more: Any) -> Any:
            calls[_name] += 1
            return _plain(self, *args, **more)

        monkeypatch.setattr(Writer, name, counted)

    def chain(length: int) -> int:
        dice = np.random.default_rng(7)
        net, own = Net(), grid(dice)
        x = net.input(integers(dice, own, (1, 4, 4, 4)), own)
        for _ in range(length):
            w = net.constant(
                dice.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8), QuantParams.per_tensor(0.01, 0, "int8")
            )
            fields: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
            x = net.add(Conv, [x, w], own, (1, 4, 4, 4), acc_scale=(own.scale[0] * 0.01,) * 4, **fields)
        net.graph.outputs = [x]
        calls.clear()
        emitted(net.graph)
        return calls.total()

    assert chain(200) <= 2.05 * chain(100)


# -- weights apart ----------------------------------------------------------------------------------------------------
def write(emission: Emission, folder: Path) -> Path:
    def open_file(name: str) -> IO[bytes]:
        return (folder / name).open("wb")

    emission.write(open_file, "model.onnx")
    return folder / "model.onnx"


@pytest.mark.parametrize("data", ["auto", "file"])
def test_a_written_model_is_the_model(tmp_path: Path, data: str) -> None:
    net = small(np.random.default_rng(8), classes=5000)
    emission = emitted(net.graph, data=data)
    path = write(emission, tmp_path)
    assert (tmp_path / "model.onnx.data").exists() == (data == "file")
    assert bool(emission.external) == (data == "file")
    expected = run_model(emitted(net.graph).complete(), net.feeds)
    loaded = onnx.load(path)
    onnx.checker.check_model(path)
    np.testing.assert_array_equal(run_model(loaded, net.feeds)[0], expected[0])
    assert emission.complete().SerializeToString() == emitted(net.graph).complete().SerializeToString()


def test_large_weights_are_spliced_into_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above a limit weights stay out of the ModelProto although they end up in the same file."""
    net = small(np.random.default_rng(9), classes=5000)
    plain = write(emitted(net.graph), tmp_path).read_bytes()
    monkeypatch.setattr("qatc.backends.onnx.writer._KEPT_INSIDE", 1000)
    emission = emitted(net.graph)
    assert [name for name, _ in emission.external] == ["head"]
    assert emission.external[0][1] is net.graph.constants["head"]  # no copy was made
    (tmp_path / "apart").mkdir()
    path = write(emission, tmp_path / "apart")
    assert not path.with_suffix(".onnx.data").exists()
    assert onnx.load(path) == onnx.ModelProto.FromString(plain)
    assert emission.complete() == onnx.ModelProto.FromString(plain)


def test_external_data_is_aligned_and_complete(tmp_path: Path) -> None:
    net = small(np.random.default_rng(10), classes=5000)
    emission = emitted(net.graph, data="file")
    path = write(emission, tmp_path)
    model = onnx.load(path, load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data}
    data = (tmp_path / "model.onnx.data").read_bytes()
    assert set(places) == {name for name, _ in emission.external}
    for name, value in emission.external:
        start, size = int(places[name]["offset"]), int(places[name]["length"])
        assert start % 4096 == 0
        assert data[start : start + size] == value.tobytes()


def test_transposed_views_are_written_in_order() -> None:
    dice = np.random.default_rng(11)
    matrix = dice.integers(-128, 128, (300, 700)).astype(np.int8)
    for view in (
        matrix,
        matrix.T,
        matrix.T.reshape(700, 300, 1, 1),
        matrix[::2],
        matrix.reshape(2, 150, 700).transpose(2, 0, 1),
    ):
        assert bytes(bytes_of(view)) == view.tobytes()
    assert np.shares_memory(np.frombuffer(bytes_of(matrix), np.int8), matrix)


# -- options ----------------------------------------------------------------------------------------------------------
def test_options_are_checked_all_at_once() -> None:
    assert BACKEND.checked({})["domain"] == "auto"
    with pytest.raises(CompileError) as caught:
        BACKEND.checked({"domian": "auto", "data": "elsewhere"})
    assert caught.value.exit_code == 2
    assert [d.code for d in caught.value.diagnostics] == ["QAT007", "QAT007"]
    assert "did you mean domain" in str(caught.value)
    assert "auto, file" in str(caught.value)


def test_an_unknown_operator_is_a_bug() -> None:
    net = Net()
    x = net.input(np.zeros(3, np.float32))
    from qatc.compiler.integer import Op

    class Strange(Op):
        pass

    net.graph.outputs = [net.add(Strange, [x])]
    with pytest.raises(TypeError, match="Strange"):
        emitted(net.graph)
