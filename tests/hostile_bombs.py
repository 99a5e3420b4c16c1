"""Models that would fill the memory, or run for ever, with a few bytes of constants: part of the hostile models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.hostile_models import CASES, FLOAT, INT64, add, const, full, ints, saved, sound


# -- bombs ------------------------------------------------------------------------------------------------------------
def _bombs() -> None:
    """A few bytes of constants that would fill the memory: when they are folded, or when the model is run."""
    kind, codes = "bomb", "QAT004 QAT005 QAT011 QAT403"
    node = helper.make_node

    def bomb(
        name: str, *made: onnx.NodeProto, extra: Sequence[TensorProto] = (), end: str = "b", own: str = ""
    ) -> None:
        nodes = [*made, node("ReduceMax", [end], ["peak"], keepdims=0), node("Add", ["q2", "peak"], ["y"])]
        add(kind, name, f"{codes} {own}", saved(lambda: sound(nodes=nodes, result="y", extra=list(extra))))

    one = full("one", 1)
    few = full("few", 1 << 10, 1)
    for label, dims in (
        ("4 TiB", (1 << 20, 1 << 20)),
        ("beyond 2^64", (1 << 40, 1 << 40)),
        ("64 GiB", (1 << 17, 1 << 17)),
    ):
        bomb(f"Expand to {label}", node("Expand", ["one", "d"], ["b"]), extra=[one, ints("d", *dims)])
        bomb(f"ConstantOfShape of {label}", node("ConstantOfShape", ["d"], ["b"]), extra=[ints("d", *dims)])
    bomb("Tile", node("Tile", ["few", "r"], ["b"]), extra=[few, ints("r", 1 << 10, 1 << 20)])
    bomb(
        "Tile of a Tile",
        node("Tile", ["few", "r"], ["t"]),
        node("Tile", ["t", "r"], ["b"]),
        extra=[few, ints("r", 1, 1 << 15)],
    )
    start = [ints(n, v) for n, v in (("first", 0), ("last", 1 << 40), ("step", 1))]
    scalars = [const(t.name, numpy_helper.to_array(t)[0], np.int64) for t in start]
    bomb("Range", node("Range", ["first", "last", "step"], ["i"]), node("Cast", ["i"], ["b"], to=FLOAT), extra=scalars)
    floats = [
        numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in (("first", 0), ("last", 1), ("step", 1e-13))
    ]
    bomb("Range of small steps", node("Range", ["first", "last", "step"], ["b"]), extra=floats)
    doubling = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    bomb("Concat that doubles 40 times", *doubling, extra=[full("c0", 1)], end="c40")
    adding = [node("Add", [f"a{i}", f"u{i}"], [f"a{i + 1}"]) for i in range(6)]
    ones = [const(f"u{i}", np.ones([64 if j == i else 1 for j in range(6)])) for i in range(6)]
    bomb("Add that broadcasts to 64^6", *adding, extra=[full("a0", 1), *ones], end="a6")
    bomb(
        "Where that broadcasts",
        node("Where", ["yes", "few3", "row3"], ["b"]),
        extra=[full("yes", 1 << 14, 1, 1, dtype=np.bool_), full("few3", 1, 1 << 14, 1), full("row3", 1, 1, 1 << 14)],
    )
    bomb("Pad", node("Pad", ["few", "p"], ["b"]), extra=[few, ints("p", 0, 0, 1 << 20, 1 << 20)])
    bomb(
        "Resize",
        node("Resize", ["image", "", "by"], ["b"], mode="nearest"),
        extra=[full("image", 1, 1, 8, 8), const("by", [1, 1, 1 << 18, 1 << 18])],
    )
    bomb(
        "OneHot",
        node("OneHot", ["few64", "depth", "values"], ["b"]),
        extra=[ints("few64", *range(1 << 10)), const("depth", 1 << 30, np.int64), const("values", [0, 1])],
    )
    bomb(
        "EyeLike",
        node("ConstantOfShape", ["d"], ["z0"]),
        node("EyeLike", ["z0"], ["b"]),
        extra=[ints("d", 1 << 18, 1 << 18)],
    )
    bomb(
        "Gather that repeats",
        node("Gather", ["wide", "rows"], ["b"], axis=0),
        extra=[full("wide", 1, 1 << 18), ints("rows", *([0] * (1 << 16)))],
    )
    bomb(
        "MatMul of an outer product",
        node("MatMul", ["tall", "broad"], ["b"]),
        extra=[full("tall", 1 << 18, 1), full("broad", 1, 1 << 18)],
    )
    bomb(
        "Einsum of an outer product",
        node("Einsum", ["line", "line"], ["b"], equation="i,j->ij"),
        extra=[full("line", 1 << 18)],
    )
    bomb(
        "Col2Im",
        node("Col2Im", ["cols", "to", "block"], ["b"]),
        extra=[full("cols", 1, 1, 1), ints("to", 1 << 20, 1 << 20), ints("block", 1 << 20, 1 << 20)],
    )
    bomb(
        "CumSum over an Expand",
        node("Expand", ["one", "d"], ["e"]),
        node("CumSum", ["e", "axis"], ["b"]),
        extra=[one, ints("d", 1 << 20, 1 << 20), const("axis", 0, np.int64)],
    )
    bomb(
        "a window of zeros",
        node("ConstantOfShape", ["d"], ["e"]),
        node("Conv", ["e", "k"], ["b"], pads=[1 << 18] * 4),
        extra=[ints("d", 1, 1, 4, 4), full("k", 1, 1, 1, 1)],
    )
    bomb(
        "Mod that broadcasts",
        node("Mod", ["column", "line"], ["r"]),
        node("Cast", ["r"], ["b"], to=FLOAT),
        extra=[full("column", 1 << 17, 1, dtype=np.int64), full("line", 1, 1 << 17, dtype=np.int64)],
    )
    bomb(
        "MatMulInteger of an outer product",
        node("MatMulInteger", ["tall", "broad"], ["r"]),
        node("Cast", ["r"], ["b"], to=FLOAT),
        extra=[full("tall", 1 << 18, 1, dtype=np.uint8), full("broad", 1, 1 << 18, dtype=np.uint8)],
    )
    bomb(
        "GatherND that repeats",
        node("GatherND", ["wide", "rows"], ["b"]),
        extra=[full("wide", 1, 1 << 18), const("rows", np.zeros((1 << 17, 1)), np.int64)],
    )
    bomb(
        "AveragePool over padding",
        node("AveragePool", ["image"], ["b"], kernel_shape=[1 << 18] * 2, pads=[(1 << 18) - 1] * 4),
        extra=[full("image", 1, 1, 8, 8)],
    )
    bomb(
        "a long Range that is cast",
        node("Range", ["first", "last", "step"], ["i"]),
        node("Cast", ["i"], ["j"], to=INT64),
        node("Cast", ["j"], ["b"], to=FLOAT),
        extra=scalars,
    )
    bomb("RandomNormal", node("RandomNormal", [], ["b"], shape=[1 << 20, 1 << 20]), own="QAT111")
    bomb("a wide window", node("HannWindow", ["n"], ["b"]), extra=[const("n", 1 << 40, np.int64)])
    bomb(
        "Split into itself",
        node("Expand", ["one", "d"], ["e"]),
        node("Split", ["e"], ["b", "b2"], axis=0),
        extra=[one, ints("d", 1 << 20, 1 << 20)],
    )
    bomb("an Expand of the input", node("Expand", ["q2", "d"], ["b"]), extra=[ints("d", 1 << 36, 4)])
    bomb("a Tile of the input", node("Tile", ["q2", "r"], ["b"]), extra=[ints("r", 1 << 20, 1 << 20)])
    bomb("a Pad of the input", node("Pad", ["q2", "p"], ["b"]), extra=[ints("p", 0, 0, 1 << 36, 0)])
    growing = [node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    bomb("a Concat of the input, doubled 40 times", node("Identity", ["q2"], ["c0"]), *growing, end="c40")
    add(kind, "a Loop of 2^62 rounds", "QAT005 QAT403", saved(_endless))


def _endless() -> onnx.ModelProto:
    """A loop that adds one for ever."""
    inner = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go2"]), helper.make_node("Add", ["t", "t"], ["t2"])],
        "inner",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("t", FLOAT, None),
        ],
        [helper.make_tensor_value_info("go2", TensorProto.BOOL, []), helper.make_tensor_value_info("t2", FLOAT, None)],
    )
    rounds = const("rounds", 1 << 62, np.int64)
    loop = helper.make_node("Loop", ["rounds", "", "q2"], ["y"], body=inner)
    return sound(nodes=[loop], result="y", extra=[rounds])


_bombs()
ALL = CASES  # with the bombs in it
