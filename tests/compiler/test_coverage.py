"""Coverage: multiply-accumulates of one sample, integer and float, counted as a person would."""

from __future__ import annotations

import onnx
import pytest

from qatc.compiler.coverage import coverage, islands
from qatc.compiler.integer import Float, IntegerGraph, Tensor
from qatc.compiler.lowering import lower
from qatc.compiler.passes.affine import fold_affine
from qatc.compiler.passes.propagate import propagate
from qatc.compiler.shapes import infer_shapes
from tests.graphs import net, stripped

D = "a = A(x)\nw = DequantizeLinear(wq, sD, zD)\n"


def counted(signature: str, body: str, constants: str = "") -> tuple[int, int]:
    graph = stripped(net(signature, body, constants))
    propagate(graph)
    fold_affine(graph)
    infer_shapes(graph)
    found = coverage(lower(graph))
    return found.integer_macs, found.float_macs


def lone(op: Float, shapes: dict[str, tuple[int, ...]]) -> IntegerGraph:
    """A graph of one operator, of whose result nothing is known."""
    tensors = {name: Tensor(name, "float32", shape) for name, shape in shapes.items()}
    return IntegerGraph("g", list(shapes), ["y"], [op], {**tensors, "y": Tensor("y", "float32")}, {}, 23)


def values(*shape: int) -> str:
    count = 1
    for size in shape:
        count *= size
    return f"[{','.join(map(str, shape))}] wq = {{{','.join(['1'] * count)}}}"


@pytest.mark.parametrize(
    ("signature", "body", "constants", "macs"),
    [
        ("(float[1,3,8,8] x) => (float[M] y)", "c = Conv(a, w)\ny = A(c)", "int8" + values(4, 3, 3, 3), 4 * 6 * 6 * 27),
        ("(float[N,3,8,8] x) => (float[M] y)", "c = Conv(a, w)\ny = A(c)", "int8" + values(4, 3, 3, 3), 4 * 6 * 6 * 27),
        (
            "(float[1,4,8,8] x) => (float[M] y)",
            "c = Conv<group = 4>(a, w)\ny = A(c)",
            "int8" + values(4, 1, 3, 3),
            4 * 6 * 6 * 9,
        ),
        (
            "(float[1,3,8] x) => (float[M] y)",
            "c = Conv<strides = [2]>(a, w)\ny = A(c)",
            "int8" + values(2, 3, 2),
            2 * 4 * 6,
        ),
        (
            "(float[1,3,4,4] x) => (float[M] y)",
            "c = ConvTranspose(a, w)\ny = A(c)",
            "int8" + values(3, 2, 2, 2),
            3 * 16 * 8,
        ),
        ("(float[2,5] x) => (float[M] y)", "c = Gemm(a, w)\ny = A(c)", "int8" + values(5, 7), 2 * 5 * 7),
        ("(float[5,2] x) => (float[M] y)", "c = Gemm<transA = 1>(a, w)\ny = A(c)", "int8" + values(5, 7), 2 * 5 * 7),
        ("(float[2,3,5] x) => (float[M] y)", "c = MatMul(a, w)\ny = A(c)", "int8" + values(5, 7), 6 * 5 * 7),
        ("(float[N,T,5] x) => (float[M] y)", "c = MatMul(a, w)\ny = A(c)", "int8" + values(5, 7), 5 * 7),
    ],
)
def test_products(signature: str, body: str, constants: str, macs: int) -> None:
    """In integers; in float it is the same count, once the weight is not quantized."""
    assert counted(signature, D + body, constants) == (macs, 0)
    plain = constants.replace("int8", "float").replace("wq", "w")
    assert counted(signature, "a = A(x)\n" + body, plain) == (0, macs)


def test_a_product_of_two_activations() -> None:
    signature = "(float[1,4,8] x, float[1,8,6] u) => (float[M] y)"
    assert counted(signature, "a = A(x)\nb = A(u)\nc = MatMul(a, b)\ny = A(c)") == (4 * 8 * 6, 0)


def test_recurrent_layers() -> None:
    body = "a = A(x)\nu, h, c = LSTM<hidden_size = 2>(a, w, r)\ny = Relu(u)"
    constants = f"float{values(1, 8, 3).replace('wq', 'w')}, float{values(1, 8, 2).replace('wq', 'r')}"
    assert counted("(float[5,1,3] x) => (float[M] y)", body, constants) == (0, 5 * 4 * 2 * (3 + 2))


def test_share_and_islands() -> None:
    graph = stripped(
        net(
            "(float[2,5] x) => (float[M] y)",
            D + "c = Gemm(a, w)\nr = Relu(c)\nb = A(r)\nd = MatMul(b, v)\ns = Softmax(d)\nt = Transpose(s)\ny = A(t)",
            f"int8{values(5, 7)}, float{values(7, 2).replace('wq', 'v')}",
        )
    )
    propagate(graph)
    infer_shapes(graph)
    lowered = lower(graph)
    found = coverage(lowered)
    assert (found.integer_macs, found.float_macs) == (70, 28)
    assert found.share == pytest.approx(70 / 98)
    assert (found.integer_ops, found.float_ops) == (1, 2)
    assert [(i.op_type, i.macs) for i in islands(lowered)] == [("MatMul", 28), ("Softmax", 0)]
    assert "weight" in islands(lowered)[0].reason


def test_nothing_to_multiply_is_wholly_integer() -> None:
    assert counted("(float[2] x) => (float[2] y)", "a = A(x)\nr = Relu(a)\ny = A(r)") == (0, 0)


@pytest.mark.parametrize(
    ("node", "shape", "constants", "macs"),
    [
        ("y = com.microsoft.FusedMatMul(x, w)", "2,3,5", "float[5,7] w", 6 * 5 * 7),
        ("y = com.microsoft.FusedMatMul<transB = 1>(x, w)", "2,3,5", "float[7,5] w", 6 * 5 * 7),
        ('y = com.microsoft.FusedGemm<activation = "Relu">(x, w, b)', "2,5", "float[5,7] w", 2 * 5 * 7),
        ("y = com.microsoft.Attention<num_heads = 2>(x, w, b)", "1,5,4", "float[4,12] w", 5 * 4 * 12 + 2 * 5 * 5 * 4),
        ("y = com.microsoft.BiasGelu(x, b)", "2,7", "float[5,7] w", 0),
    ],
)
def test_products_that_an_optimizer_fused(node: str, shape: str, constants: str, macs: int) -> None:
    """They stay in float, and count: else a network of attention would seem to be integer."""
    size = 1
    for part in constants[constants.index("[") + 1 : constants.index("]")].split(","):
        size *= int(part)
    width = constants[constants.index(",") + 1 : constants.index("]")]
    given = f"{constants} = {{{','.join(['1'] * size)}}}, float[{width}] b = {{{','.join(['0'] * int(width))}}}"
    head = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    sizes = ",".join("klm"[: shape.count(",") + 1])
    graph = stripped(f"{head} g (float[{shape}] x) => (float[{sizes}] y) <{given}> {{ {node} }}")
    found = coverage(lower(graph))
    assert (found.integer_macs, found.float_macs) == (0, macs)


def test_shapes_are_known_behind_fused_operators() -> None:
    """ONNX's inference knows none of them, and what it does not know is not counted."""
    head = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
    body = (
        "n, m, i, r = com.microsoft.SkipLayerNormalization(x, x, b, b) g = com.microsoft.BiasGelu(r, b) "
        "h = com.microsoft.FastGelu(n) s = Add(g, h) y = MatMul(s, w)"
    )
    given = "float[4,2] w = {1,1,1,1,1,1,1,1}, float[4] b = {0,0,0,0}"
    graph = stripped(f"{head} g (float[1,3,4] x) => (float[1,3,2] y) <{given}> {{ {body} }}")
    infer_shapes(graph)
    assert coverage(lower(graph)).float_macs == 3 * 4 * 2


@pytest.mark.parametrize(
    ("node", "given", "macs"),
    [
        # two queries of six numbers, three keys, values of eight: 3 * (2 * 6 + 2 * 8)
        ("com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v)", {"q": "1,2,6", "k": "1,3,6", "v": "1,3,8"}, 84),
        ("com.microsoft.MultiHeadAttention<num_heads=2>(q, k, v)", {"q": "1,2,6", "k": "1,2,3,3", "v": "1,2,3,4"}, 84),
        ("com.microsoft.MultiHeadAttention<num_heads = 2>(q)", {"q": "1,2,2,3,3"}, 2 * 2 * 12),
        (
            "com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v,,,, p, p)",
            {"q": "1,2,6", "k": "1,3,6", "v": "1,3,6", "p": "1,2,4,3"},
            2 * 12 * 7,
        ),
        (
            "com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, k, v, p, p, n, n)",
            {"q": "1,2,8", "k": "1,2,4", "v": "1,2,4", "p": "1,2,5,2", "n": "1"},
            2 * 16 * 7,
        ),
        (
            "com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q,,, p, p, n, n)",
            {"q": "1,2,16", "p": "1,2,5,2", "n": "1"},
            2 * 16 * 7,
        ),
        ("com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v)", {"q": "1,2,6", "k": "6", "v": "1,3,8"}, 0),
        # numbers of heads that are none, which ONNX Runtime refuses
        ("com.microsoft.MultiHeadAttention<num_heads = 0>(q)", {"q": "1,2,1,3,3"}, 2 * 2 * 6),
        ('com.microsoft.MultiHeadAttention<num_heads = "two">(q)', {"q": "1,2,1,3,3"}, 2 * 2 * 6),
        ("com.microsoft.GroupQueryAttention<num_heads = 0, kv_num_heads = -1>(q)", {"q": "1,2,4"}, 2 * 2 * 8),
        ("com.microsoft.QAttention<num_heads = 2>(q, w)", {"q": "1,5,4", "w": "4,12"}, 5 * 4 * 12 + 2 * 5 * 5 * 4),
        ("com.microsoft.MatMulNBits<K = 32, N = 8>(q, w, s)", {"q": "3,32", "w": "8,1,16", "s": "8"}, 3 * 32 * 8),
        ("com.microsoft.MatMulIntegerToFloat(q, w)", {"q": "3,4", "w": "4,5"}, 60),
        ('Einsum<equation = "bij,bjk,k->bi">(q, k, v)', {"q": "2,3,4", "k": "2,4,5", "v": "5"}, 2 * 3 * 4 * 5),
        ('Einsum<equation = "ii->i">(q)', {"q": "3,3"}, 0),
        ('Einsum<equation = "...i,i->...">(q, k)', {"q": "3,3", "k": "3"}, 0),
    ],
)  # fmt: skip
def test_products_inside_of_other_operators(node: str, given: dict[str, str], macs: int) -> None:
    """Two an attention: scores, and what they weigh."""
    shapes = {name: tuple(map(int, shape.split(","))) for name, shape in given.items()}
    parsed = onnx.parser.parse_node(f"y = {node}")
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in parsed.attribute}
    attrs = {k: v.decode() if isinstance(v, bytes) else v for k, v in attrs.items()}
    op = Float("op", tuple(parsed.input), ("y",), op_type=parsed.op_type, domain=parsed.domain, attrs=attrs, reason="-")
    assert coverage(lone(op, shapes)).float_macs == macs


@pytest.mark.parametrize(
    ("shapes", "attrs", "macs"),
    [
        (((1, 4, 2, 3), (1, 2, 5, 3), (1, 2, 5, 6)), {}, (4 * 2 * 3 + 4 * 2 * 6) * 5),
        (((1, 2, 12), (1, 5, 6), (1, 5, 12)), {"q_num_heads": 4, "kv_num_heads": 2}, (2 * 12 + 2 * 24) * 5),
    ],
)
def test_an_attention_of_onnx(shapes: tuple[tuple[int, ...], ...], attrs: dict[str, int], macs: int) -> None:
    """Groups of queries share keys and values."""
    op = Float("op", ("q", "k", "v"), ("y",), op_type="Attention", attrs=attrs, reason="-")
    assert coverage(lone(op, dict(zip("qkv", shapes, strict=True)))).float_macs == macs
