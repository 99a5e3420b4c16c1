"""Model files made to harm who compiles them, by kind: each is written into a folder of its own.

`CASES` maps a name to the function that writes the file (and whatever lies beside it) and the codes that it may end in.
Beside the model's folder lies `secret.bin`, which no compile may read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, INT8, UINT8 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT8, TensorProto.UINT8
TIB = 1 << 40
SECRET = "secret.bin"


@dataclass(frozen=True)
class Hostile:
    """A file to write: `write` gets an empty folder and returns the model's path; `codes` are what it may end in."""

    kind: str
    write: Callable[[Path], Path]
    codes: frozenset[str]  # errors; "compiles" where the file may as well be taken


CASES: dict[str, Hostile] = {}


def add(kind: str, name: str, codes: str, write: Callable[[Path], Path]) -> None:
    key = f"{kind}: {name}"
    if key in CASES:
        raise ValueError(f"two hostile models are called {key}")
    CASES[key] = Hostile(kind, write, frozenset(codes.split()))


def const(name: str, value: object, dtype: type[np.generic] = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def full(name: str, *shape: int, dtype: type[np.generic] = np.float32) -> TensorProto:
    """A constant of ones."""
    return const(name, np.ones(shape), dtype)


def saved(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(make().SerializeToString())
        return path

    return write


# -- a sound model to start from --------------------------------------------------------------------------------------
def sound(
    *,
    width: int = 4,
    weight_scale: np.ndarray | None = None,
    weight_zero: np.ndarray | None = None,
    scale: object = np.float32(0.02),
    zero: object = np.uint8(128),
    axis: int = 1,
    nodes: Sequence[onnx.NodeProto] = (),
    result: str = "q2",
    extra: Sequence[TensorProto] = (),
) -> onnx.ModelProto:
    """x[1,w] -> Q/DQ -> MatMul with an int8 weight per column -> Q/DQ -> `nodes` -> result."""
    count = width if weight_scale is None else np.asarray(weight_scale).size
    constants = {
        "s": np.asarray(scale),
        "z": np.asarray(zero),
        "w": (np.arange(width * width, dtype=np.int64).reshape(width, width) % 17 - 8).astype(np.int8),
        "ws": np.full(count, 0.05, np.float32) if weight_scale is None else weight_scale,
        "wz": np.zeros(count, np.int8) if weight_zero is None else weight_zero,
    }
    body = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q1"], "first quantizer"),
        helper.make_node("DequantizeLinear", ["q1", "s", "z"], ["d1"], "first dequantizer"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], "weight", axis=axis),
        helper.make_node("MatMul", ["d1", "dw"], ["m"], "product"),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["qm"], "second quantizer"),
        helper.make_node("DequantizeLinear", ["qm", "s", "z"], ["q2"], "second dequantizer"),
        *nodes,
    ]
    graph = helper.make_graph(
        body,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, width])],
        [helper.make_tensor_value_info(result, FLOAT, None)],
        [*(numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()), *extra],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def ints(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.int64), name)


# -- external data ----------------------------------------------------------------------------------------------------
def outside(proto: TensorProto, location: str, **entries: str) -> None:
    """Let a tensor's data lie in a file."""
    for name in ("raw_data", "float_data", "int32_data"):
        proto.ClearField(name)
    proto.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        proto.external_data.add(key=key, value=value)


def external(location: str, prepare: Callable[[Path], None] | None = None, **entries: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "w.bin").write_bytes(bytes(range(16)))
        if prepare is not None:
            prepare(folder)
        model = sound()
        outside(tensor(model, "w"), location, **entries)
        return saved(lambda: model)(folder)

    return write


def link(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).symlink_to(target)


def _data() -> None:
    absolute = lambda folder: str((folder.parent / SECRET).resolve())  # noqa: E731

    def write_absolute(folder: Path) -> Path:
        return external(absolute(folder))(folder)

    def hard(folder: Path) -> None:
        (folder / "hard.bin").hardlink_to(folder.parent / SECRET)

    def two_steps(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "up").symlink_to("../..")

    kind, code = "external data", "QAT003"
    for name, location in (
        ("one folder up", f"../{SECRET}"),
        ("up and down", f"sub/../../{SECRET}"),
        ("hidden in the middle", f"./.././{SECRET}"),
        ("many folders up", "../" * 40 + "etc/passwd"),
        ("a password file", "/etc/passwd"),
        ("a drive", "C:\\secret.bin"),
        ("a drive, forward", "C:/secret.bin"),
        ("a network share", "\\\\server\\share\\w.bin"),
        ("backslashes up", f"..\\{SECRET}"),
        ("a NUL", "w.bin\0.txt"),
        ("nothing", ""),
        ("the folder itself", "."),
        ("a URL", "file:///etc/passwd"),
        ("endless zeros", "/dev/zero"),
        ("the process's memory", "/proc/self/mem"),
        ("a missing file", "missing.bin"),
        ("a name of 100 kB", "n" * 100_000),
    ):
        add(kind, name, code, external(location))
    add(kind, "absolute path", code, write_absolute)
    add(kind, "symbolic link", code, external("l.bin", link("l.bin", f"../{SECRET}")))
    add(kind, "symbolic link to a device", code, external("zero", link("zero", "/dev/zero")))
    add(kind, "symbolic link to itself", code, external("loop", link("loop", "loop")))
    add(kind, "folder that is a link", code, external(f"up/{SECRET}", link("up", "..")))
    add(kind, "folder that is a link, below", code, external(f"sub/up/{SECRET}", two_steps))
    add(kind, "hard link", code, external("hard.bin", hard))
    add(kind, "FIFO", code, external("pipe", lambda folder: os.mkfifo(folder / "pipe")))
    add(kind, "folder", code, external("sub", lambda folder: (folder / "sub").mkdir()))
    add(kind, "empty file", code, external("none.bin", lambda folder: (folder / "none.bin").touch()))
    for name, entries in (
        ("offset beyond the file", {"offset": "4096"}),
        ("last byte beyond the file", {"offset": "1"}),
        ("negative offset", {"offset": "-16"}),
        ("offset of 2^70", {"offset": str(1 << 70)}),
        ("offset that is a word", {"offset": "begin"}),
        ("offset of 5,000 digits", {"offset": "9" * 5000}),
        ("length beyond the file", {"length": "4096"}),
        ("length of 4 TiB", {"length": str(4 * TIB)}),
        ("negative length", {"length": "-1"}),
        ("length that wraps around", {"offset": str((1 << 63) - 8), "length": "16"}),
    ):
        add(kind, name, code, external("w.bin", **entries))
    add(kind, "4 TiB of a sparse file", "QAT003 QAT004 QAT005 QAT011", _sparse)
    for place in (
        "a subgraph",
        "a subgraph of a subgraph",
        "a Constant",
        "a Constant in a subgraph",
        "a list of tensors",
        "a function",
    ):
        add(kind, f"outside, in {place}", "QAT003", _hidden(place))
    add(kind, "outside, in a sparse tensor", "QAT003 QAT302", _hidden("a sparse tensor"))


def _sparse(folder: Path) -> Path:
    """A terabyte tensor whose file is really that long, and takes no room on the disk."""
    with (folder / "w.bin").open("wb") as file:
        try:
            file.truncate(4 * TIB)
        except OSError:
            file.truncate(1 << 20)  # the file system has no files as long: then the tensor reaches beyond its end
    model = sound()
    w = tensor(model, "w")
    outside(w, "w.bin", length=str(4 * TIB))
    del w.dims[:]
    w.dims.extend([1 << 21, 1 << 21])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1 << 21
    tensor(model, "ws").CopyFrom(const("ws", 0.1))
    tensor(model, "wz").CopyFrom(const("wz", 0, np.int8))
    return saved(lambda: model)(folder)


def _hidden(place: str) -> Callable[[Path], Path]:
    """A tensor whose data lie outside, where a reader that looks at initializers alone does not see it."""

    def make() -> onnx.ModelProto:
        secret = TensorProto(name="k", data_type=FLOAT, dims=[4])
        outside(secret, f"../{SECRET}")
        constant = helper.make_node("Constant", [], ["k"], value=secret)
        read = helper.make_node("Identity", ["k"], ["t"])
        out = [helper.make_tensor_value_info("t", FLOAT, None)]
        model = sound()
        condition = const("c", True, np.bool_)
        match place:
            case "a Constant":
                nodes = [constant, helper.make_node("Add", ["q2", "k"], ["t"])]
                return sound(nodes=nodes, result="t")
            case "a list of tensors":
                node = helper.make_node("Custom", ["q2"], ["t"], domain="x", values=[secret])
                model = sound(nodes=[node], result="t")
                model.opset_import.append(helper.make_opsetid("x", 1))
                return model
            case "a sparse tensor":
                sparse = onnx.SparseTensorProto(values=secret, indices=ints("i", 0, 1, 2, 3), dims=[4])
                node = helper.make_node("Constant", [], ["k"])
                node.attribute.append(
                    onnx.AttributeProto(
                        name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse
                    )
                )
                return sound(nodes=[node, helper.make_node("Add", ["q2", "k"], ["t"])], result="t")
            case "a function":
                imports = [helper.make_opsetid("", 17)]
                body = [constant, helper.make_node("Add", ["a", "k"], ["b"])]
                function = helper.make_function("f", "F", ["a"], ["b"], body, imports)
                model = sound(nodes=[helper.make_node("F", ["q2"], ["t"], domain="f")], result="t")
                model.opset_import.append(helper.make_opsetid("f", 1))
                model.functions.append(function)
                return model
            case _:
                pass
        if place == "a Constant in a subgraph":
            inner = helper.make_graph([constant, read], "inner", [], out)
        else:
            inner = helper.make_graph([read], "inner", [], out, [secret])
        if "of a subgraph" in place:
            branch = helper.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=inner)
            inner = helper.make_graph([branch], "middle", [], out)
        choice = helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
        return sound(nodes=[choice, helper.make_node("Add", ["q2", "u"], ["v"])], result="v", extra=[condition])

    return saved(make)


# -- shapes -----------------------------------------------------------------------------------------------------------
def _shapes() -> None:
    kind = "shape"
    for name, dims in (
        ("huge dimensions without data", [1 << 20, 1 << 20]),
        ("dimensions whose product is 2^64", [1 << 32, 1 << 32]),
        ("dimensions whose product is beyond 2^64", [1 << 40, 1 << 40, 1 << 40]),
        ("dimensions whose product wraps to the size of the data", [(1 << 62) + 4, 4]),
        ("a negative dimension", [-4, 4]),
        ("two negative dimensions", [-4, -4]),
        ("a hundred thousand dimensions", [1] * 100_000),
        ("the largest dimension", [(1 << 63) - 1]),
        ("the smallest dimension", [-(1 << 63)]),
        ("a dimension less", [4, 3]),
        ("zero times infinity", [0, 1 << 62]),
    ):
        add(kind, name, "QAT003 QAT004 QAT005", saved(lambda dims=dims: _dims("w", dims)))
    for name, dims in (
        ("an input of 4 TiB", [1 << 20, 1 << 20]),
        ("an input beyond 2^64", [1 << 40, 1 << 40, 1 << 40]),
        ("a batch of 2^50", [1 << 50, 4]),
    ):
        add(kind, name, "QAT004 QAT005 QAT011 QAT403", saved(lambda dims=dims: _input(dims)))
    add(kind, "an input of negative size", "QAT004", saved(lambda: _input([-7, 4])))
    add(kind, "an input of no size", "compiles QAT004 QAT009 QAT403", saved(lambda: _input([0, 4])))
    add(kind, "an input of a thousand dimensions", "QAT004 QAT005 QAT009 QAT403", saved(lambda: _input([1] * 1000)))
    types = {"no type": 0, "type 77": 77, "type 2^31 - 1": (1 << 31) - 1, "strings": TensorProto.STRING}
    for name, dtype in types.items():
        add(kind, f"a weight of {name}", "QAT004 QAT104", saved(lambda dtype=dtype: _typed(dtype)))


def _dims(name: str, dims: Sequence[int]) -> onnx.ModelProto:
    model = sound()
    proto = tensor(model, name)
    del proto.dims[:]
    proto.dims.extend(dims)
    return model


def _input(dims: Sequence[int]) -> onnx.ModelProto:
    model = sound()
    shape = model.graph.input[0].type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        shape.dim.add(dim_value=dim)
    return model


def _typed(dtype: int) -> onnx.ModelProto:
    model = sound()
    content = tensor(model, "w").SerializeToString()
    proto = TensorProto.FromString(content)
    proto.data_type = dtype
    tensor(model, "w").CopyFrom(proto)
    return model


# -- structure --------------------------------------------------------------------------------------------------------
def _structure() -> None:
    kind, code = "structure", "QAT004"

    def nodes(*made: onnx.NodeProto, result: str = "y") -> Callable[[Path], Path]:
        return saved(lambda: sound(nodes=list(made), result=result))

    node = helper.make_node
    add(kind, "a cycle of two", code, nodes(node("Add", ["q2", "b"], ["a"]), node("Neg", ["a"], ["b"]), result="a"))
    add(kind, "a cycle of one", code, nodes(node("Add", ["q2", "y"], ["y"])))
    add(kind, "a cycle of 10,000", code, saved(lambda: _ring(10_000)))
    add(kind, "a cycle through a subgraph", code, saved(_ring_through_subgraph))
    add(kind, "two tensors of one name", code, nodes(node("Neg", ["q2"], ["y"]), node("Abs", ["q2"], ["y"])))
    add(kind, "a node that overwrites its input", code, nodes(node("Neg", ["q2"], ["x"]), node("Neg", ["q2"], ["y"])))
    add(kind, "a node that overwrites a weight", code, nodes(node("Neg", ["q2"], ["w"]), node("Neg", ["q2"], ["y"])))
    add(kind, "two inputs of one name", code, saved(lambda: _twice("input")))
    add(kind, "two outputs of one name", code, saved(lambda: _twice("output")))
    add(kind, "two weights of one name", code, saved(lambda: _twice("initializer")))
    add(kind, "a tensor from nowhere", code, nodes(node("Add", ["q2", "ghost"], ["y"])))
    add(kind, "an output from nowhere", code, nodes(result="ghost"))
    add(kind, "no operator", code, nodes(onnx.NodeProto(input=["q2"], output=["y"])))
    add(kind, "50,000 tensors from nowhere", code, saved(lambda: _ghosts(50_000)))
    add(
        kind,
        "a hundred thousand inputs of one node",
        "QAT004 QAT302 QAT403",
        nodes(node("Relu", ["q2"] * 100_000, ["y"])),
    )
    for depth in (30, 90, 2000):
        add(kind, f"subgraphs nested {depth} deep", "QAT005" if depth == 30 else "QAT001 QAT004", _nested(depth))
    add(kind, "a function that calls itself", code, saved(lambda: _functions({"a": ["a"]})))
    ring = {"a": ["b"], "b": ["c"], "c": ["Neg", "a"]}
    add(kind, "functions that call each other in a ring", code, saved(lambda: _functions(ring)))
    names = ["a", *(f"b{i}" for i in range(40))]
    doubling = {**{n: [after, after] for n, after in pairwise(names)}, names[-1]: ["Neg"]}
    add(kind, "functions that double 40 times", "QAT005", saved(lambda: _functions(doubling)))
    long = ["a", *(f"b{i}" for i in range(3000))]
    deep = {**{n: [after] for n, after in pairwise(long)}, long[-1]: ["Neg"]}
    add(kind, "functions nested 3,000 deep", code, saved(lambda: _functions(deep)))
    add(kind, "two functions of one name", "QAT004 QAT005 QAT302 QAT403", saved(_same_functions))
    add(kind, "a function without its body", "QAT004 QAT302 QAT403", saved(lambda: _functions({"a": []})))
    for name, content in (("cut in half", 0.5), ("its last byte missing", -1), ("its last kilobyte zero", 0)):
        add(kind, f"a file with {name}", "QAT001 QAT003 QAT004", _cut(content))
    add(kind, "an opset of the future", "QAT006", saved(lambda: _opset(4000)))
    add(kind, "a negative opset", "QAT006", saved(lambda: _opset(-1)))


def _ring(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{(i + 1) % count}"]) for i in range(count)]
    return sound(nodes=[*nodes, helper.make_node("Add", ["q2", "t0"], ["y"])], result="y")


def _ring_through_subgraph() -> onnx.ModelProto:
    out = [helper.make_tensor_value_info("t", FLOAT, None)]
    inner = helper.make_graph([helper.make_node("Neg", ["y"], ["t"])], "inner", [], out)
    choice = helper.make_node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
    condition = const("c", True, np.bool_)
    return sound(nodes=[choice, helper.make_node("Add", ["q2", "u"], ["y"])], result="y", extra=[condition])


def _twice(where: str) -> onnx.ModelProto:
    model = sound()
    held = getattr(model.graph, where)
    held.append(held[0])
    if where == "initializer":
        held[-1].raw_data = held[-1].raw_data[::-1]
    return model


def _ghosts(count: int) -> onnx.ModelProto:
    nodes = [helper.make_node("Add", ["q2", f"ghost{i}"], [f"y{i}"]) for i in range(count)]
    return sound(nodes=nodes, result="y1")


def _length(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def _nested(depth: int) -> Callable[[Path], Path]:
    """If in If in If ...: written byte by byte, since protobuf itself refuses to."""

    def field(number: int, content: bytes) -> bytes:
        return _length(number << 3 | 2) + _length(len(content)) + content

    def write(folder: Path) -> Path:
        leaf = helper.make_graph(
            [helper.make_node("Identity", ["q2"], ["t"])], "leaf", [], [helper.make_tensor_value_info("t", FLOAT, None)]
        )
        graph = leaf.SerializeToString()
        name = leaf.output[0].SerializeToString()
        kind = b"\xa0\x01\x05"  # AttributeProto.type = GRAPH
        for _ in range(depth):
            held = [field(5, field(1, branch) + field(6, graph) + kind) for branch in (b"then_branch", b"else_branch")]
            # both branches would double the file at each level: the second one is the leaf
            held[1] = field(5, field(1, b"else_branch") + field(6, leaf.SerializeToString()) + kind)
            node = field(1, b"c") + field(2, b"t") + field(4, b"If") + held[0] + held[1]
            graph = field(1, node) + field(2, b"g") + field(12, name)
        condition = const("c", True, np.bool_)
        model = sound(nodes=[helper.make_node("Add", ["q2", "u"], ["y"])], result="y", extra=[condition])
        node = field(1, b"c") + field(2, b"u") + field(4, b"If")
        node += field(5, field(1, b"then_branch") + field(6, graph) + kind)
        node += field(5, field(1, b"else_branch") + field(6, leaf.SerializeToString()) + kind)
        body = field(1, node) + model.graph.SerializeToString()
        model.ClearField("graph")
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString() + field(7, body))
        return path

    return write


def _functions(bodies: dict[str, list[str]]) -> onnx.ModelProto:
    """A model that calls f::a; each function chains calls of the operators in its list."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    model = sound(nodes=[helper.make_node("a", ["q2"], ["y"], domain="f")], result="y")
    model.opset_import.append(helper.make_opsetid("f", 1))
    for name, calls in bodies.items():
        nodes = [
            helper.make_node(
                op,
                ["x" if i == 0 else f"t{i - 1}"],
                ["y" if i == len(calls) - 1 else f"t{i}"],
                domain="f" if op in bodies else "",
            )
            for i, op in enumerate(calls)
        ]
        model.functions.append(helper.make_function("f", name, ["x"], ["y"], nodes, imports))
    return model


def _same_functions() -> onnx.ModelProto:
    model = _functions({"a": ["Neg"]})
    model.functions.append(_functions({"a": ["a"]}).functions[0])
    return model


def _cut(share: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        data = sound().SerializeToString()
        data = data[: int(len(data) * share)] if 0 < share < 1 else data[:-1] if share < 0 else data[:-64] + bytes(64)
        path = folder / "model.onnx"
        path.write_bytes(data)
        return path

    return write


def _opset(version: int) -> onnx.ModelProto:
    model = sound()
    model.opset_import[0].version = version
    return model


# -- parameters -------------------------------------------------------------------------------------------------------
def _parameters() -> None:
    kind = "parameters"
    wild = {
        "NaN": np.nan,
        "infinite": np.inf,
        "negative infinite": -np.inf,
        "zero": 0.0,
        "negative": -0.02,
        "denormal": 1e-42,
        "negative zero": -0.0,
    }
    dead = ("zero", "denormal", "negative zero")  # of one channel of a weight: it holds zeros, says a note
    for name, value in wild.items():
        add(kind, f"a scale that is {name}", "QAT201", saved(lambda v=value: sound(scale=np.float32(v))))
        scales = np.asarray([0.05, 0.05, value, 0.05], np.float32)
        add(
            kind,
            f"a channel's scale that is {name}",
            "compiles QAT201" if name in dead else "QAT201",
            saved(lambda s=scales: sound(weight_scale=s)),
        )
    codes = "QAT004 QAT103 QAT104 QAT202 QAT204 QAT302"
    for name, zero in (
        ("above its type", np.int32(300)),
        ("below its type", np.int32(-1)),
        ("of 2^31", np.int64(1 << 31)),
        ("that is a float", np.float32(1.5)),
    ):
        add(kind, f"a zero point {name}", codes, saved(lambda z=zero: sound(zero=z)))
    zeros = np.asarray([0, 0, 0, 200], np.int32)
    add(kind, "a channel's zero point above its type", codes, saved(lambda: sound(weight_zero=zeros)))
    for name, count in (("one less", 3), ("one more", 5), ("none", 0), ("a million", 1 << 20)):
        scales, none = np.full(count, 0.05, np.float32), np.zeros(count, np.int8)
        add(
            kind,
            f"scales for the channels: {name}",
            "QAT004 QAT104 QAT201 QAT204",
            saved(lambda s=scales, z=none: sound(weight_scale=s, weight_zero=z)),
        )
    add(
        kind,
        "zero points fewer than scales",
        "QAT004 QAT104 QAT204",
        saved(lambda: sound(weight_zero=np.zeros(3, np.int8))),
    )
    add(
        kind,
        "scales in two dimensions",
        "QAT004 QAT103 QAT104 QAT204",
        saved(lambda: sound(weight_scale=np.full((2, 2), 0.05, np.float32), weight_zero=np.zeros((2, 2), np.int8))),
    )
    for axis in (2, 7, -3, 1 << 40, -(1 << 40)):
        add(kind, f"axis {axis}", "QAT004 QAT104 QAT204", saved(lambda a=axis: sound(axis=a)))


# -- names ------------------------------------------------------------------------------------------------------------
NAMES = {
    "control characters": "\x1b[2J\x1b]0;owned\x07\r\n\x00\x7f",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&",
    "the end of a script": "</script><!--<script>",
    "path separators": "../../../etc/passwd",
    "backslashes": "..\\..\\windows\\system32",
    "an absolute path": "/etc/passwd",
    "100 kB": "n" * 100_000,
    "a direction override": "\u202egnp.exe",
    "nothing but spaces": "   ",
    "braces": "{0.__class__} %s %n ${HOME} $(id)",
    "a lone surrogate": "a\udcffb".encode("utf-8", "surrogateescape").decode("latin-1"),
}


def named(name: str, *, broken: bool) -> onnx.ModelProto:
    """The sound model with this name for every tensor, node and graph; broken: it also reads a tensor from nowhere."""
    nodes = [helper.make_node("Add", ["q2", "ghost"], ["y"])] if broken else []
    model = sound(nodes=nodes, result="y" if broken else "q2")
    graph = model.graph
    known = {n for node in graph.node for n in (*node.input, *node.output) if n}
    new = {old: f"{old}{name}" for old in known}
    for node in graph.node:
        node.name = f"{node.name}{name}"
        node.input[:] = [new.get(n, n) for n in node.input]
        node.output[:] = [new[n] for n in node.output]
    for held in (graph.input, graph.output, graph.initializer):
        for each in held:
            each.name = new[each.name]
    graph.name = name
    model.producer_name = name
    return model


def _names() -> None:
    for label, name in NAMES.items():
        add("name", f"{label}, in a broken model", "QAT004", saved(lambda n=name: named(n, broken=True)))


_data()
_shapes()
_structure()
_parameters()
_names()
