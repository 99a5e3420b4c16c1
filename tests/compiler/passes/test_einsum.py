"""Einsum of two tensors: the same numbers from a matrix product, or left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from qatc.compiler.passes.modernize import modernize
from tests.frontends.networks import graph_of
from tests.frontends.running import run
from tests.graphs import to_model


def model(equation: str, shapes: list[list[Any]]) -> onnx.ModelProto:
    names = ["a", "b", "c"][: len(shapes)]
    inputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize(
    "equation",
    [
        "bhid,bhjd->bhij",
        "bhij,bhjd->bhid",
        "bihd,bjhd->bhij",
        "b h i j, b j h d -> b i h d",
        "bnd,df->bnf",
        "bnd,fd->bnf",
        "bndk,fk->bndf",
        "bihnd,hkd->bihnk",  # the relative positions of an image: one table for every row
        "bhnd,nkd->bhnk",
        "bhnd,nd->bhn",
        "ij,jk",
        "ji,jk->ki",
        "bi,bi->b",
        "bij,bj->bi",
        "bj,bij->bi",
        "ij,j->i",
        "i,ij->j",
        "i,i->",
        "bhi,ijd->bhjd",  # the heads of an attention
        "bhij,ijd->bhd",
        "bhi,ijd->bjhd",
        "bhij,ijdf->bhdf",
        "bhij,ij->bh",
        "bhij,bhij->b",
        "bij,bjdf->bidf",
        "bj,bjdf->bdf",
        "ijk,ijk->k",
    ],
)
def test_products_of_matrices(equation: str) -> None:
    sizes = dict(zip("bhijndfk", (2, 3, 4, 5, 6, 7, 8, 9), strict=True))
    operands = equation.replace(" ", "").split("->")[0].split(",")
    shapes = [[sizes[i] for i in o] for o in operands]
    source = model(equation, shapes)
    graph = graph_of(source)
    modernize(graph)
    graph.verify(stripped=False)
    assert "MatMul" in [n.op for n in graph.nodes]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=s).astype(np.float32) for s in shapes]
    np.testing.assert_allclose(run(to_model(graph), *values)[0], run(source, *values)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ii,ij->ij", [[3, 3], [3, 4]]),
        ("bbi,ij->bj", [[2, 2, 3], [3, 4]]),
        ("ijk,k->i", [[2, 3, 4], [4]]),  # j is summed in one operand alone
        ("bhij,ijd->bhd", [["b", 2, "i", 3], ["i", 3, 4]]),  # no known size of i
        ("bhij,ijd->bhd", [[2, 3, 1, 4], [3, 4, 5]]),  # i of the first operand is repeated
        ("...ij,...jk->...ik", [[2, 3, 4], [2, 4, 5]]),
        ("ij,jk,kl->il", [[2, 3], [3, 4], [4, 5]]),
        ("ij,kl->ijkl", [[2, 3], [3, 4]]),
        ("ij->ji", [[2, 3]]),
    ],
)
def test_everything_else_stays(equation: str, shapes: list[list[Any]]) -> None:
    graph = graph_of(model(equation, shapes))
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["Einsum"]
