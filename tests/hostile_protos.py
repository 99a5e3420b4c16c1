"""Models that use what protobuf and the file format allow beyond what exporters write: part of the hostile models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile_bombs import ALL as _BOMBS
from tests.hostile_models import (
    CASES,
    FLOAT,
    INT8,
    SECRET,
    TIB,
    add,
    const,
    external,
    link,
    outside,
    saved,
    sound,
    tensor,
)

_MANY = 3_000


# -- floods of findings --------------------------------------------------------------------------------------------
def _floods() -> None:
    kind, node = "flood", helper.make_node

    def flooded(change: Callable[[onnx.ModelProto, int], object]) -> Callable[[Path], Path]:
        def make() -> onnx.ModelProto:
            model = sound()
            for number in range(_MANY):
                change(model, number)
            return model

        return saved(make)

    def empty(number: int) -> TensorProto:
        return TensorProto(name=f"empty {number}", data_type=FLOAT, dims=[5])

    def port(name: str, *dims: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, FLOAT, dims)

    add(kind, "weights without data", "QAT004", flooded(lambda m, i: m.graph.initializer.append(empty(i))))
    add(kind, "inputs of negative size", "QAT004", flooded(lambda m, i: m.graph.input.append(port(f"i{i}", -5))))
    add(kind, "outputs from nowhere", "QAT004", flooded(lambda m, i: m.graph.output.append(port(f"ghost{i}", 1))))
    add(kind, "inputs of one name", "QAT004", flooded(lambda m, i: m.graph.input.append(port("x", 1, 4))))

    def in_subgraph() -> onnx.ModelProto:
        inner = helper.make_graph([node("Identity", ["k"], ["t"])], "i", [], [port("t")], [*map(empty, range(_MANY))])
        choice = node("If", ["c"], ["u"], then_branch=inner, else_branch=inner)
        return sound(nodes=[choice], result="u", extra=[const("c", True, np.bool_)])

    def attributes() -> onnx.ModelProto:
        names = ["q2", *(f"t{i}" for i in range(_MANY))]
        nodes = [node("Neg", [a], [b]) for a, b in itertools.pairwise(names)]
        for number, each in enumerate(nodes):
            broken = onnx.AttributeProto(name=f"k{number}", type=onnx.AttributeProto.TENSOR, t=empty(number))
            each.attribute.append(broken)
        return sound(nodes=nodes, result=names[-1])

    add(kind, "tensors without data in a subgraph", "QAT004", saved(in_subgraph))
    add(kind, "attributes without data", "QAT004", saved(attributes))


# -- functions -----------------------------------------------------------------------------------------------------
def _functions() -> None:
    kind, node = "function", helper.make_node
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]

    def calling(*bodies: onnx.FunctionProto, first: onnx.NodeProto) -> onnx.ModelProto:
        model = sound(nodes=[first], result="y")
        model.ir_version = 10
        model.opset_import.append(helper.make_opsetid("f", 1))
        model.functions.extend(bodies)
        return model

    def doubling(call: Callable[[int, str, str], onnx.NodeProto], domain: str, last: list[onnx.NodeProto]) -> list[
        onnx.FunctionProto
    ]:  # fmt: skip
        """Functions 0 to 33: each calls the next one twice."""
        found: list[onnx.FunctionProto] = []
        for level in range(34):
            body = [call(level + 1, "x", "t"), call(level + 1, "t", "y")] if level < 33 else last
            name = call(level, "x", "y")
            function = helper.make_function(domain, name.op_type, ["x"], ["y"], body, imports)
            function.overload = name.overload
            found.append(function)
        return found

    neg = [node("Neg", ["x"], ["y"])]

    def overloads() -> onnx.ModelProto:
        def call(level: int, x: str, y: str) -> onnx.NodeProto:
            made = node("F", [x], [y], domain="f")
            made.overload = str(level)
            return made

        return calling(*doubling(call, "f", neg), first=call(0, "q2", "y"))

    def two_spellings() -> onnx.ModelProto:
        """The default domain is written in two ways."""

        def call(level: int, x: str, y: str) -> onnx.NodeProto:
            return node(f"F{level}", [x], [y], domain="ai.onnx")

        return calling(*doubling(call, "", neg), first=call(0, "q2", "y"))

    def constants() -> onnx.ModelProto:
        """Few operators, but each with its own copy of a constant."""
        held = numpy_helper.from_array(np.ones(1 << 16, np.float32), "k")
        last = [node("Constant", [], ["k"], value=held), node("ReduceMax", ["k"], ["r"], keepdims=0)]
        bodies = doubling(
            lambda n, x, y: node(f"F{n}", [x], [y], domain="f"), "f", [*last, node("Add", ["x", "r"], ["y"])]
        )
        del bodies[:16]
        return calling(*bodies, first=node("F16", ["q2"], ["y"], domain="f"))

    def same(*order: int) -> onnx.ModelProto:
        body = [neg, [node("F", ["x"], ["y"], domain="f")]]
        bodies = [helper.make_function("f", "F", ["x"], ["y"], body[i], imports) for i in order]
        return calling(*bodies, first=node("F", ["q2"], ["y"], domain="f"))

    add(kind, "overloads that double 33 times", "QAT005", saved(overloads))
    add(kind, "the default domain in two spellings, doubling", "QAT005", saved(two_spellings))
    add(kind, "a constant that is copied 131,072 times", "QAT005", saved(constants))
    add(kind, "the sound one of two of one name last", "QAT004", saved(lambda: same(1, 0)))
    add(kind, "the sound one of two of one name first", "QAT004", saved(lambda: same(0, 1)))


# -- external data -------------------------------------------------------------------------------------------------
def _data() -> None:
    kind, code = "external data", "QAT003"
    add(kind, "a folder of devices", code, external("dev/zero", link("dev", "/dev")))
    for name, location in (
        ("percent signs", f"%2e%2e/{SECRET}"),
        ("full-width letters", "\uff57.bin"),
        ("dots of Unicode", f"\u2025/{SECRET}"),
        ("a tilde", f"~/{SECRET}"),
        ("nothing but dots", "./."),
    ):
        add(kind, name, code, external(location))
    add(kind, "another case", "compiles QAT003", external("W.BIN"))  # as the file system sees it
    for name, offset in (("an underscore", "1_6"), ("a sign", "+0"), ("a space", " 0"), ("other digits", "\u0660")):
        add(kind, f"an offset with {name}", code, external("w.bin", offset=offset))

    def twice(key: str, first: str, second: str) -> Callable[[Path], Path]:
        def make() -> onnx.ModelProto:
            model = sound()
            held = tensor(model, "w")
            outside(held, "w.bin")
            del held.external_data[:]
            for value in (first, second):
                held.external_data.add(key=key, value=value)
            return model

        return with_file(make)

    def with_file(make: Callable[[], onnx.ModelProto], size: int = 16) -> Callable[[Path], Path]:
        def write(folder: Path) -> Path:
            with (folder / "w.bin").open("wb") as file:
                file.truncate(size)
            return saved(make)(folder)

        return write

    add(kind, "two places, the first outside", code, twice("location", f"../{SECRET}", "w.bin"))
    add(kind, "two places, the second outside", code, twice("location", "w.bin", f"../{SECRET}"))

    def packed(dtype: int) -> onnx.ModelProto:
        """Two elements a byte: they are unpacked, so that they cannot stay in the file."""
        held = TensorProto(name="k", data_type=dtype, dims=[1 << 20, 1 << 20])
        outside(held, "w.bin", length=str(1 << 39))
        nodes = [helper.make_node("DequantizeLinear", ["k", "one"], ["d"]), helper.make_node("Neg", ["q2"], ["y"])]
        model = sound(nodes=nodes, result="y", extra=[held, const("one", 1)])
        model.opset_import[0].version, model.ir_version = 21, 10
        return model

    for name in ("INT4", "UINT4"):
        dtype = TensorProto.DataType.Value(name)
        add(kind, f"half a terabyte of {name}", "QAT005 QAT011", with_file(lambda d=dtype: packed(d), TIB // 2))

    def in_spellings() -> onnx.ModelProto:
        """One file under many names."""
        model = sound()
        for number in range(_MANY):
            held = TensorProto(name=f"k{number}", data_type=INT8, dims=[4, 4])
            outside(held, "./" * number + "w.bin")
            model.graph.initializer.append(held)
        return model

    add(kind, "one file in 3,000 spellings", "compiles", with_file(in_spellings))


# -- forms that no exporter writes ---------------------------------------------------------------------------------
def _forms() -> None:
    kind, node = "form", helper.make_node

    def changed(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], Path]:
        def make() -> onnx.ModelProto:
            model = sound()
            change(model)
            return model

        return saved(make)

    def text_number() -> onnx.ModelProto:
        held = numpy_helper.from_array(np.array([b"1e999", b"x"], object), "k")
        nodes = [node("Cast", ["k"], ["f"], to=FLOAT), node("ReduceMax", ["f"], ["p"], keepdims=0)]
        return sound(nodes=[*nodes, node("Add", ["q2", "p"], ["y"])], result="y", extra=[held])

    def unknown(model: onnx.ModelProto) -> None:
        model.MergeFromString(b"\xa0\x1f\x01" * 200_000)

    def elsewhere(model: onnx.ModelProto) -> None:
        """Data outside, in parts of the file that nothing reads."""
        held = TensorProto(name="k", data_type=FLOAT, dims=[4])
        outside(held, f"../{SECRET}")
        model.training_info.add().initialization.initializer.append(held)
        body = [node("Constant", [], ["k"], value=held), node("Add", ["a", "k"], ["b"])]
        model.functions.append(helper.make_function("f", "unused", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
        model.opset_import.append(helper.make_opsetid("f", 1))

    def two_forms(model: onnx.ModelProto) -> None:
        tensor(model, "ws").float_data.extend([1.0] * 5)

    def not_external(model: onnx.ModelProto) -> None:
        tensor(model, "w").external_data.add(key="location", value=f"../{SECRET}")

    def output(name: str) -> Callable[[onnx.ModelProto], object]:
        return lambda model: model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, None))

    add(kind, "text that is cast to numbers", "QAT403", saved(text_number))
    add(kind, "200,000 unknown fields", "compiles", changed(unknown))
    add(kind, "data outside that nothing reads", "compiles QAT403", changed(elsewhere))
    add(kind, "a tensor in two forms", "compiles QAT004 QAT403", changed(two_forms))
    add(kind, "a place for data that are inside", "compiles QAT003 QAT403", changed(not_external))
    add(kind, "a weight that is an output", "compiles", changed(output("ws")))
    add(kind, "an input that is an output", "compiles", changed(output("x")))
    again = helper.make_attribute("axis", 0)
    add(
        kind,
        "an attribute that comes twice",
        "QAT004",
        changed(lambda m: m.graph.node[2].attribute.append(again)),
    )
    sparse = onnx.SparseTensorProto(values=const("v", [1.0]), indices=const("i", [0], np.int64), dims=[4])
    add(kind, "a sparse weight", "QAT302", changed(lambda m: m.graph.sparse_initializer.append(sparse)))


_floods()
_functions()
_data()
_forms()
assert CASES is _BOMBS
ALL = CASES  # with the bombs, and with these
