"""Text in a file that is no text: wherever it stands, the answer is a diagnostic or a package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import FieldDescriptor
from onnx import TensorProto, helper

from qatc import CompileError, compile_model
from qatc.compiler.model.protos import all_bodies, all_nodes, body_depth, captured_names, tensors_of
from tests.hostile_models import FLOAT, const, outside, sound

_DEPTH = 9  # messages in messages: graph, node, attribute, graph, node, attribute, tensor, entry


def rich() -> onnx.ModelProto:
    """A model with every place for text that qatc could look at."""
    held = TensorProto(name="held", data_type=FLOAT, dims=[4])
    outside(held, "w.bin", length="16")
    constant = helper.make_node("Constant", [], ["k"], "constant", value=held)
    port = helper.make_tensor_value_info("t", FLOAT, ["n"])
    inner = helper.make_graph([constant, helper.make_node("Identity", ["k"], ["t"])], "inner", [], [port])
    choice = helper.make_node("If", ["c"], ["u"], "choice", then_branch=inner, else_branch=inner)
    listed = helper.make_node("Custom", ["q2"], ["l"], "listed", domain="d", tensors=[held, held], texts=["a", "b"])
    sparse = onnx.SparseTensorProto(values=const("sv", [1.0]), indices=const("si", [0], np.int64), dims=[4])
    listed.attribute.append(
        onnx.AttributeProto(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    )
    model = sound(
        nodes=[choice, listed, helper.make_node("Add", ["q2", "u"], ["y"])],
        result="y",
        extra=[const("c", True, np.bool_)],
    )
    model.opset_import.extend([helper.make_opsetid("d", 1), helper.make_opsetid("f", 1)])
    function = helper.make_function(
        "f", "F", ["a"], ["b"], [constant, helper.make_node("Add", ["a", "k"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(function)
    model.graph.value_info.append(helper.make_tensor_value_info("q2", FLOAT, ["n", 4]))
    model.metadata_props.add(key="key", value="value")
    note = model.graph.quantization_annotation.add(tensor_name="x")
    note.quant_parameter_tensor_names.add(key="finn_datatype", value="INT8")
    return model


def texts(message: Any, depth: int = _DEPTH) -> Iterator[tuple[Any, FieldDescriptor, int | None]]:
    """Every field of text in a message: its holder, its description, its index where it is repeated."""
    for field, value in list(message.ListFields()):
        repeated = hasattr(value, "add") or hasattr(value, "append")
        if field.type == FieldDescriptor.TYPE_STRING:
            yield from ((message, field, i) for i in range(len(value))) if repeated else ((message, field, None),)
        elif field.type == FieldDescriptor.TYPE_MESSAGE and depth:
            for inner in value if repeated else [value]:
                yield from texts(inner, depth - 1)


def marked(number: int, mark: str) -> bytes | None:
    """The rich model with `mark` in its text number so-and-so; None where there are fewer."""
    model = rich()
    for index, (holder, field, position) in enumerate(texts(model)):
        if index == number:
            if position is None:
                setattr(holder, field.name, mark)
            else:
                getattr(holder, field.name)[position] = mark
            return model.SerializeToString()
    return None


def refused(path: Path, output: Path) -> CompileError | None:
    try:
        compile_model(path, qat=True, verify=False, output=output)
    except CompileError as error:
        return error
    return None


@pytest.mark.parametrize("part", range(8))
def test_bytes_that_are_no_text(tmp_path: Path, part: int) -> None:
    path, mark = tmp_path / "model.onnx", "@@@@@@"
    (tmp_path / "w.bin").write_bytes(bytes(16))
    count = part
    while (data := marked(count, mark)) is not None:
        path.write_bytes(data.replace(mark.encode(), b"\xff\xfe\xed\xa0\x80\xff"))
        refusal = refused(path, tmp_path / "out")
        if refusal is not None:
            assert {d.code for d in refusal.diagnostics if d.severity.value == "error"} <= {"QAT001", "QAT004"}
            assert str(refusal).replace("\n", "").isprintable()
        count += 8
    assert count > 100


@pytest.mark.parametrize("text", ["finn_datatype", "INT8"])
def test_annotations_that_are_no_text(tmp_path: Path, text: str) -> None:
    """QONNX's dialect alone reads them; they ended its compiles in an exception."""
    path = tmp_path / "model.onnx"
    path.write_bytes(rich().SerializeToString().replace(text.encode(), b"\xff" * len(text)))
    (tmp_path / "w.bin").write_bytes(bytes(16))
    with pytest.raises(CompileError, match=r"QAT004.*not UTF-8"):
        compile_model(path, qat=True, verify=False, output=tmp_path / "out", dialect="qonnx")


def test_bodies_are_found_at_any_depth_and_nodes_with_them() -> None:
    """Two branches, one with a loop in it; what lies further in comes later."""
    port = helper.make_tensor_value_info("t", FLOAT, [1])
    step = helper.make_graph([helper.make_node("Neg", ["x"], ["n"], "step")], "step", [], [port])
    loop = helper.make_node("Loop", ["m", "", "t"], ["l"], "loop", body=step)
    branches = [helper.make_graph(n, name, [], [port]) for n, name in (([loop], "then"), ([], "else"))]
    choice = helper.make_node("If", ["c"], ["u"], "choice", then_branch=branches[0], else_branch=branches[1])
    several = helper.make_node("Custom", [], ["v"], "several", domain="d", graphs=branches[::-1])
    assert [g.name for g in all_bodies([choice, several])] == ["else", "then", "else", "then", "step", "step"]
    assert [n.name for n in all_nodes([choice])] == ["choice", "loop", "step"]
    assert captured_names(choice) == ["t", "m", "x"]


def test_attributes_of_every_kind_show_their_tensors() -> None:
    held = [TensorProto(name=name) for name in "ab"]
    sparse = [onnx.SparseTensorProto(values=t, indices=TensorProto(name=f"{t.name}_at")) for t in held]
    kinds = onnx.AttributeProto
    for attribute, names in (
        (kinds(type=kinds.TENSOR, t=held[0]), ["a"]),
        (kinds(type=kinds.TENSORS, tensors=held), ["a", "b"]),
        (kinds(type=kinds.SPARSE_TENSOR, sparse_tensor=sparse[0]), ["a", "a_at"]),
        (kinds(type=kinds.SPARSE_TENSORS, sparse_tensors=sparse), ["a", "a_at", "b", "b_at"]),
        (kinds(type=kinds.FLOAT, t=held[0]), []),  # the type decides, as in ONNX Runtime
    ):
        assert [t.name for t in tensors_of(attribute)] == names


@pytest.mark.parametrize(("depth", "codes"), [(0, []), (1, []), (10, []), (11, ["QAT005"])])
def test_bodies_lie_in_each_other_a_few_levels_deep(depth: int, codes: list[str], tmp_path: Path) -> None:
    """Loading them takes ONNX Runtime up to 1.23 twice the time for each level: thirty took it forever."""
    port = helper.make_tensor_value_info("t", FLOAT, None)
    node = helper.make_node("Identity", ["q2"], ["t"])
    for _ in range(depth):
        body = helper.make_graph([node], "body", [], [port])
        node = helper.make_node("If", ["c"], ["t"], then_branch=body, else_branch=leaf(port))
    node.output[0] = "y"
    assert body_depth([node]) == depth
    onnx.save(sound(nodes=[node], result="y", extra=[const("c", True, np.bool_)]), tmp_path / "model.onnx")
    try:
        compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
        found: list[str] = []
    except CompileError as error:
        found = [d.code for d in error.diagnostics]
    assert found == codes


def leaf(port: onnx.ValueInfoProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["q2"], ["t"])], "leaf", [], [port])
