"""Old operators mean the same in their opset 13 form: ONNX Runtime runs the file before and after."""

from __future__ import annotations

import tracemalloc

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from qatc.compiler.passes.modernize import modernize
from qatc.compiler.passes.sums import axes_of
from qatc.compiler.shapes import infer_shapes
from tests.graphs import loaded, net, to_model

X = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)


def model(opset: int, body: str) -> str:
    """ONNX text of a model with float input x[2,3,4,5] and output y."""
    return f'<ir_version: 4, opset_import: ["" : {opset}]>\ng (float[2,3,4,5] x) => (float[] y) {{ {body} }}'


def run(proto: onnx.ModelProto, x: np.ndarray = X) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(None, {"x": x})]


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (11, "y = Unsqueeze<axes=[0, 5]>(x)"),
        (11, "s = Unsqueeze<axes=[0]>(x) y = Squeeze<axes=[0]>(s)"),
        (11, "y = ReduceSum<axes=[1, -1], keepdims=0>(x)"),
        (11, "a, b = Split<axis=3, split=[2, 3]>(x) y = Relu(b)"),
        (7, "y = Clip<min=-0.5, max=0.25>(x)"),
        (10, "y = Clip<max=0.25>(x)"),
        (9, 'y = Pad<mode="constant", pads=[0, 0, 1, 1, 0, 0, 2, 0], value=1.5>(x)'),
        (9, 'y = Pad<mode="reflect", pads=[0, 0, 1, 1, 0, 0, 2, 0]>(x)'),
        (9, "y = Slice<starts=[1, 0], ends=[3, -1], axes=[1, 3]>(x)"),
        (7, 'y = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]>(x)'),
        (9, 's = Constant<value = float[4] {1.0, 1.0, 2.0, 3.0}>() y = Upsample<mode="linear">(x, s)'),
        (10, 's = Constant<value = float[4] {1.0, 1.0, 1.5, 0.5}>() y = Resize<mode="nearest">(x, s)'),
        (10, 's = Constant<value = float[4] {1.0, 1.0, 1.5, 2.0}>() y = Resize<mode="linear">(x, s)'),
        (11, "y = Softmax(x)"),
        (11, "y = Softmax<axis=2>(x)"),
        (11, "y = Softmax<axis=3>(x)"),
        (11, "y = LogSoftmax<axis=-1>(x)"),
        (9, "v, i = TopK<axis=3, k=2>(x) y = Relu(v)"),
        (11, "a = Identity(x) d = Dropout(a) c = Cast<to=1>(d) y = Relu(c)"),
        (
            8,
            "c = Constant<value = float[3] {0.5, -1.0, 2.0}>() v = Constant<value = float[3] {0.5, 1.0, 2.0}>()"
            " y = BatchNormalization<epsilon=0.01>(x, c, c, c, v)",
        ),
        (7, "a = Relu(x) b = Neg(x) y = Sum(x, a, b)"),
        (13, "c = Constant<value = float[5] {0.5, -1.0, 2.0, 4.0, 8.0}>() b = Sum(x) y = Sum(c, b)"),
        (13, "a = ReduceMean<axes=[3], keepdims=0>(x) y = ReduceMean<axes=[2], keepdims=0>(a)"),
        (13, "a = ReduceMean<axes=[-3], keepdims=0>(x) y = ReduceMean<axes=[1, 0], keepdims=0>(a)"),
        (18, "i = Constant<value_ints=[1]>() a = ReduceMean(x, i) y = ReduceMean(a, i)"),
        (
            13,
            "i = Constant<value_ints=[1]>() a = ReduceSum<keepdims=0>(x, i) b = ReduceSum<keepdims=0>(a, i)"
            " y = ReduceSum<keepdims=0>(b, i)",
        ),
        (13, "y = Softmax<axis=1>(x)"),
        (18, "i = Shape<start=3>(x) c = CastLike(i, x) d = CastLike(c, c) y = Mul(x, d)"),
        (
            8,
            "c = Constant<value = float[1,1,1,1] {0.5}>() d = Constant<value = float {-0.5}>()"
            " a = Min(x, c) y = Max(d, a)",
        ),
    ],
)
def test_same_values_in_the_new_form(opset: int, body: str) -> None:
    text = model(opset, body)
    graph = loaded(text)
    modernize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert graph.opset == max(13, opset)
    after = to_model(graph)
    for want, got in zip(run(onnx.parser.parse_model(text)), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_means_that_count_from_the_end_are_one() -> None:
    """x.mean(-1).mean(-1): the file need not state how many dimensions there are in between."""
    text = model(13, "r = Relu(x) a = ReduceMean<axes=[-1], keepdims=0>(r) y = ReduceMean<axes=[-1], keepdims=0>(a)")
    graph = loaded(text)
    modernize(graph)
    assert [(n.op, n.attrs.get("axes")) for n in graph.nodes] == [("Relu", None), ("ReduceMean", [2, 3])]
    np.testing.assert_allclose(run(to_model(graph))[0], run(onnx.parser.parse_model(text))[0], rtol=1e-6)


def test_an_empty_tensor_leaves_an_input_of_resize_out() -> None:
    """As opset 11 does; since 18 ONNX Runtime refuses a Resize that names both scales and sizes."""
    text = model(
        11,
        "e = Constant<value = float[0] {}>() s = Constant<value = int64[4] {2, 3, 6, 8}>()"
        ' y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, e, e, s)',
    )
    graph = loaded(text)
    modernize(graph)
    graph.opset = 18
    np.testing.assert_allclose(run(to_model(graph))[0], run(onnx.parser.parse_model(text))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("operands", "attrs", "values"),
    [
        ("x, , s", "axes=[3, 1]", "float[2] {0.5, 2.0}"),
        ("x, , s", "axes=[-1]", "float[1] {1.5}"),
        ("x, , , s", "axes=[2, 3]", "int64[2] {3, 10}"),
    ],
)
def test_a_resize_of_some_axes_is_one_of_all(operands: str, attrs: str, values: str) -> None:
    text = model(18, f's = Constant<value = {values}>() y = Resize<mode="nearest", {attrs}>({operands})')
    graph = loaded(text)
    modernize(graph)
    assert "axes" not in graph.dump()
    plain = text.replace("axes=[-1]", "axes=[3]")  # ONNX Runtime 1.23 reads no negative ones
    np.testing.assert_array_equal(run(to_model(graph))[0], run(onnx.parser.parse_model(plain))[0])


def test_a_resize_of_axes_whose_others_tell_stays() -> None:
    for attrs in (
        'axes=[2, 3], keep_aspect_ratio_policy="not_larger"',
        "axes=[2, 3, 7]",
        "axes=[4, 5]",
        "axes=[2, -2]",
    ):
        body = f's = Constant<value = int64[2] {{3, 10}}>() y = Resize<mode="nearest", {attrs}>(x, , , s)'
        graph = loaded(model(18, body))
        modernize(graph)
        assert "axes" in graph.dump()


def test_constants_and_what_does_nothing_go() -> None:
    graph = loaded(
        model(17, "c = Constant<value = float {2.0}>() i = Identity(c) m = Mul(x, i) d = Dropout(m) y = Cast<to=1>(d)")
    )
    modernize(graph)
    assert graph.dump() == "graph opset 17\ninput x\ny = Mul(x, 2)\noutput y\n"


def test_a_cast_to_the_type_of_another_tensor() -> None:
    graph = loaded(
        model(18, "n = Shape<start=3>(x) a = CastLike(n, x) b = CastLike(a, x) c = Mul(x, b) y = CastLike(c, n)")
    )
    modernize(graph)
    assert graph.dump().splitlines()[2:5] == ["n = Shape[start=3](x)", "a = Cast[to=1](n)", "c = Mul(x, a)"]
    assert "y = Cast[to=7](c)" in graph.dump()


def test_an_input_that_is_an_output_keeps_its_copy() -> None:
    graph = loaded(model(17, "y = Identity(x)"))
    modernize(graph)
    assert graph.dump() == "graph opset 17\ninput x\ny = Identity(x)\noutput y\n"


def test_a_second_output_name_keeps_its_copy_but_nobody_reads_it() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2,3,4,5] x) => (float[] y, float[] z, float[] w)'
        " { y = Relu(x) z = Identity(y) w = Abs(z) }"
    )
    graph = loaded(text)
    modernize(graph)
    graph.verify(stripped=False)
    assert [t.name for t in graph.outputs] == ["y", "z", "w"]
    assert "w = Abs(y)" in graph.dump()


def test_a_dropout_whose_mask_is_read_stays() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2] x) => (float[] y, bool[] m) { y, m = Dropout(x) }'
    graph = loaded(text)
    graph.explains = True
    modernize(graph)
    assert "Dropout" in graph.dump()
    assert graph.explanation == ["modernize: dropout not at Dropout -> y: its mask is read"]


def test_axes_of() -> None:
    graph = loaded(model(13, "a = Constant<value_ints=[-1]>() y = ReduceSum(x, a)"))
    modernize(graph)
    assert axes_of(graph.nodes[0]) == (3,)
    graph = loaded(model(13, "y = ReduceMean<axes=[0, -2]>(x)"))
    assert axes_of(graph.nodes[0]) == (0, 2)
    graph = loaded(model(13, "y = ReduceMean(x)"))
    assert axes_of(graph.nodes[0]) == ()


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
def test_same_padding_of_stride_one_becomes_numbers(mode: str) -> None:
    """ONNX Runtime refuses SAME padding with dilations, which PyTorch exports for padding="same"."""
    weights = "w = ConstantOfShape<value = float[1] {0.5}>(s)"
    shape = "s = Constant<value = int64[4] {2, 3, 2, 3}>()"
    plain = f'{shape} {weights} y = Conv<auto_pad="{mode}", kernel_shape=[2, 3]>(x, w)'
    graph = loaded(model(17, plain))
    modernize(graph)
    (want,) = run(onnx.parser.parse_model(model(17, plain)))
    np.testing.assert_allclose(run(to_model(graph))[0], want, rtol=1e-6)
    spread = plain.replace("kernel_shape", "dilations=[3, 2], kernel_shape")
    dilated = loaded(model(17, spread))
    modernize(dilated)
    pads = "2,2,1,2" if mode == "SAME_LOWER" else "1,2,2,2"
    assert f"auto_pad=NOTSET dilations=[3,2] kernel_shape=[2,3] pads=[{pads}]" in dilated.dump()


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(
    "call",
    [
        'Conv<auto_pad="MODE", kernel_shape=[4, 3], strides=[2, 3]>(x, w)',
        'MaxPool<auto_pad="MODE", kernel_shape=[2, 3], strides=[3, 2]>(x)',
    ],
)
def test_same_padding_of_known_sizes_becomes_numbers(mode: str, call: str) -> None:
    weights = "s = Constant<value = int64[4] {2, 3, 4, 3}>() w = ConstantOfShape<value = float[1] {0.5}>(s)"
    text = model(17, f"{weights} y = {call.replace('MODE', mode)}")
    graph = loaded(text)
    modernize(graph)
    assert "auto_pad=NOTSET" in graph.dump()
    np.testing.assert_allclose(run(to_model(graph))[0], run(onnx.parser.parse_model(text))[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "sizes"),
    [("strides=[2, 2]", "1,3,H,W"), ("strides=[2]", "1,3,8,8"), ("kernel_shape=[3, 3, 3]", "1,3,8,8")],
)
def test_same_padding_of_unknown_sizes_stays(call: str, sizes: str) -> None:
    inits = "float[2,3,3,3] w"
    graph = loaded(
        f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[{sizes}] x, {inits}) => (float[a,b,c,d] y)'
        f' {{ y = Conv<auto_pad="SAME_UPPER", {call}>(x, w) }}'
    )
    modernize(graph)
    assert "auto_pad=SAME_UPPER" in graph.dump()


def test_same_padding_finds_its_kernel_behind_a_quantizer() -> None:
    text = model(
        17,
        "s = Constant<value = int64[4] {2, 3, 2, 3}>() w = ConstantOfShape<value = float[1] {0.5}>(s)"
        " c = Constant<value = float {0.1}>() z = Constant<value = int8 {0}>() q = QuantizeLinear(w, c, z)"
        ' d = DequantizeLinear(q, c, z) y = Conv<auto_pad="SAME_UPPER", dilations=[1, 2]>(x, d)',
    )
    graph = loaded(text)
    modernize(graph)
    assert "auto_pad=NOTSET dilations=[1,2] pads=[0,2,1,2]" in graph.dump()


@pytest.mark.parametrize(("dilations", "left"), [([1, 1], None), ([1, 2], [1, 2])])
def test_dilations_of_one_go_from_averages(dilations: list[int], left: list[int] | None) -> None:
    """With them ONNX Runtime (1.32) turns an average between Q/DQ into an operator that it then refuses."""
    text = f"y = AveragePool<kernel_shape = [2, 2], dilations = {dilations}>(x)"
    graph = loaded(net("(float[1,1,4,4] x) => (float[N,C,H,W] y)", text, opset=19))
    modernize(graph)
    assert graph.nodes[0].attr("dilations") == left


def test_dead_operators_are_no_readers() -> None:
    body = "{ r = Relu(x) d = Shape(r) e = Neg(r) y = Abs(r) }"
    graph = loaded(f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[2] x) => (float[2] y) {body}')
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["Relu", "Abs"]


@pytest.mark.parametrize("split", ["int64[2] {1, 3}", "int64 {3}"])
def test_a_sequence_that_is_taken_apart_is_a_split(split: str) -> None:
    """PyTorch's `split` and `chunk`, in an export that nothing optimized."""
    text = model(
        18,
        f"n = Constant<value = {split}>() i = Constant<value = int64 {{0}}>() j = Constant<value = int64 {{-1}}>()"
        " s = SplitToSequence<axis=2>(x, n) a = SequenceAt(s, j) b = SequenceAt(s, i) y = Concat<axis=2>(a, b)",
    )
    graph = loaded(text)
    modernize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert [n.op for n in graph.nodes] == ["Split", "Concat"]
    np.testing.assert_array_equal(run(to_model(graph))[0], run(onnx.parser.parse_model(text))[0])


@pytest.mark.parametrize(
    ("split", "axis", "place", "size"),
    [
        ("int64[3] {1, 1, 2}", " axis=2", -3, 1),
        ("int64[3] {1, 1, 2}", " axis=2", 2, 2),
        ("int64[3] {1, 1, 2}", " axis=-2", 1, 1),
        ("int64 {3}", " axis=-4", 0, 2),  # one part, smaller than asked for
        ("int64 {1}", "", 1, 1),  # along the first axis
    ],
)
def test_the_ends_of_a_sequence_are_within_it(split: str, axis: str, place: int, size: int) -> None:
    attribute = f"<{axis.strip()}>" if axis else ""
    text = model(
        18,
        f"n = Constant<value = {split}>() i = Constant<value = int64 {{{place}}}>()"
        f" s = SplitToSequence{attribute}(x, n) y = SequenceAt(s, i)",
    )
    graph = loaded(text)
    modernize(graph)
    assert [n.op for n in graph.nodes] == ["Split"]
    (found,) = run(to_model(graph))
    np.testing.assert_array_equal(found, run(onnx.parser.parse_model(text))[0])
    assert size in found.shape


@pytest.mark.parametrize(
    ("place", "split", "axis"),
    [(2, "int64[2] {1, 3}", 2), (-3, "int64[2] {1, 3}", 2), (0, "int64 {2}", 4), (0, "int64 {2}", -5)],
)
def test_places_beyond_a_sequence_are_not_taken(place: int, split: str, axis: int) -> None:
    graph = loaded(
        model(
            18,
            f"n = Constant<value = {split}>() i = Constant<value = int64 {{{place}}}>()"
            f" s = SplitToSequence<axis={axis}>(x, n) y = SequenceAt(s, i)",
        )
    )
    modernize(graph)
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT302", "error")]


def _collecting(grow: str, whole: str = "y = ConcatFromSequence<axis=0>(s)", shape: str = "float[N,2] y") -> str:
    """A Loop as PyTorch's dynamo exporter writes an EmbeddingBag: the rows of `x` from the last on, in a sequence."""
    body = (
        "body (int64 i, bool more, empty, int64 place) => (bool next, more_rows, int64 end) {"
        f" end = Sub(place, one) part = Gather<axis=0>(x, place) row = Unsqueeze(part, zeros) {grow}"
        " next = Greater(end, zero) }"
    )
    constants = "<int64 one = {1}, int64[1] zeros = {0}, int64 zero = {0}, int64 last = {2}, bool on = {1}>"
    loop = f'none = SequenceEmpty() s, left = Loop("", on, none, last) <body = {body}> {whole}'
    return f'<ir_version: 8, opset_import: ["" : 17]>\ng (float[N,2] x) => ({shape}) {constants} {{ {loop} }}'


@pytest.mark.parametrize(
    ("whole", "shape"),
    [
        ("y = ConcatFromSequence<axis=0>(s)", "float[N,2] y"),
        ("y = ConcatFromSequence<axis=-1>(s)", "float[1,N] y"),
        ("c = ConcatFromSequence<axis=0>(s) y = Cast<to=1>(c)", "float[N,2] y"),  # as the exporter writes it
    ],
)
def test_a_sequence_that_a_loop_collects_is_a_growing_tensor(whole: str, shape: str) -> None:
    text = _collecting("more_rows = SequenceInsert(empty, row)", whole, shape)
    graph = loaded(text)
    modernize(graph)
    graph.diagnostics.check()
    graph.verify(stripped=False)
    assert graph.nodes[0].op == "Loop"
    assert graph.nodes[0].outputs[0].name != "s"  # that is a sequence in the file, which verification reads
    assert not any("Sequence" in n.op for n in graph.nodes)
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    (found,) = run(to_model(graph), x)
    expected = x[[2, 1]] if "axis=0" in whole else x[[2, 1]].reshape(1, 4)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("grow", "whole", "shape"),
    [
        ("more_rows = SequenceInsert(empty, row, zero)", "y = ConcatFromSequence<axis=0>(s)", "float[N,2] y"),
        ("more_rows = SequenceInsert(empty, row)", "y = ConcatFromSequence<axis=0,new_axis=1>(s)", "float[N,1,2] y"),
        ("more_rows = SequenceInsert(empty, row)", "y = ConcatFromSequence<axis=0>(s)", "float[N,M] y"),
        ("more_rows = SequenceInsert(empty, row)", "y = SequenceAt(s, zero)", "float[N,2] y"),
        ("r = SequenceInsert(empty, row) more_rows = Identity(r)", "y = ConcatFromSequence<axis=0>(s)", "float[N,2] y"),
        (
            "l = SequenceLength(empty) more_rows = SequenceInsert(empty, row)",
            "y = ConcatFromSequence<axis=0>(s)",
            "float[N,2] y",
        ),
    ],
)
def test_other_sequences_of_loops_are_refused(grow: str, whole: str, shape: str) -> None:
    graph = loaded(_collecting(grow, whole, shape))
    modernize(graph)
    assert [(d.code, d.node) for d in graph.diagnostics] == [("QAT302", "SequenceEmpty -> none")]


def test_a_loop_that_has_a_sequence_which_its_body_does_not_make_is_refused() -> None:
    text = _collecting("more_rows = SequenceInsert(empty, row)")
    graph = loaded(text.replace("(bool next, more_rows, int64 end)", "(bool next)"))
    modernize(graph)
    assert [(d.code, d.node) for d in graph.diagnostics] == [("QAT302", "SequenceEmpty -> none")]


@pytest.mark.parametrize(
    "body",
    [
        "s = SplitToSequence(x) y = SequenceAt(s, i)",  # without the axis
        "s = SplitToSequence(x, n) y = SequenceAt(s, k)",  # which part is found at run time
        "s = SplitToSequence(x, k) y = SequenceAt(s, i)",
        "s = SplitToSequence(x, m) y = SequenceAt(s, i)",  # ONNX has no table of sizes
        "s = SplitToSequence(x, n) t = SequenceInsert(s, x) y = SequenceAt(t, i)",
        "s = SplitToSequence(x, n) t = SequenceErase(s, i) y = SequenceAt(t, i)",
    ],
)
def test_sequences_are_refused(body: str) -> None:
    constants = "<int64 i = {0}, int64[2] n = {1, 1}, int64[1,2] m = {1, 1}>"
    text = f"(float[2] x, int64 k) => (float[1] y) {constants} {{ {body} }}"
    graph = loaded(f'<ir_version: 8, opset_import: ["" : 17]>\ng {text}')
    modernize(graph)
    assert [(d.code, d.severity.value) for d in graph.diagnostics] == [("QAT302", "error")]


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        (
            "r = Relu(x) a = Min(r, c4) y = Max(zero, a)",
            ["Relu", "Clip", "Clip"],
        ),  # Keras' ReLU(max_value=1) through tf2onnx
        ("y = Min(x, c5)", ["Min"]),  # the number gives the result a rank more
        ("y = Max(x, row)", ["Max"]),
        ("y = Max(x, zero, c4)", ["Max"]),
    ],
)
def test_a_bound_that_is_a_number_is_a_clip(body: str, ops: list[str]) -> None:
    constants = "float zero = {0}, float[1,1,1,1] c4 = {1}, float[1,1,1,1,1] c5 = {1}, float[5] row = {1,2,3,4,5}"
    text = f'<ir_version: 8, opset_import: ["" : 13]>\ng (float[2,3,4,5] x) => (float[] y) <{constants}> {{ {body} }}'
    graph = loaded(text)
    modernize(graph)
    assert [n.op for n in graph.nodes] == ops
    np.testing.assert_array_equal(run(to_model(graph))[0], run(onnx.parser.parse_model(text))[0])


@pytest.mark.parametrize("opset", [11, 13, 14])
def test_a_hard_swish_in_a_file_too_old_for_it(opset: int) -> None:
    """tf2onnx writes TFLite's HARD_SWISH as this operator of opset 14, whatever opset it writes."""
    graph = loaded(model(opset, "h = HardSwish(x) y = Neg(h)"))
    modernize(graph)
    assert [n.op for n in graph.nodes] == (["HardSwish", "Neg"] if opset == 14 else ["HardSigmoid", "Mul", "Neg"])
    np.testing.assert_allclose(run(to_model(graph))[0], -X * np.clip(X / 6 + 0.5, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        '<ir_version: 8, opset_import: ["" : 13]>\ng (int32[2,4] x) => (uint8[2,4] y) <float s = {0.5}, uint8 z = {3}>'
        " { y = QuantizeLinear(x, s, z) }",
        '<ir_version: 8, opset_import: ["" : 13]>\ng (float[2,4] x) => (uint8[2,4] y) <float s = {0.5}, uint8 z = {3}>'
        " { i = Cast<to=6>(x) j = Neg(i) y = QuantizeLinear(j, s, z) }",
    ],
)
def test_what_is_quantized_is_real(text: str) -> None:
    """ONNX quantizes int32, too: its integers are the numbers."""
    graph = loaded(text)
    modernize(graph)
    graph.verify(stripped=False)
    (quantize,) = [n for n in graph.nodes if n.op == "QuantizeLinear"]
    cast = graph.producer(quantize.inputs[0])
    assert cast is not None
    assert (cast.op, cast.attr("to")) == ("Cast", onnx.TensorProto.FLOAT)
    model = to_model(graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.array([[-9, -1, 0, 1], [7, 126, 127, 1 << 30]], np.int32 if "int32[" in text else np.float32)
    wanted = np.clip((x.astype(np.int64) if "int32[" in text else -x.astype(np.int64)) * 2 + 3, 0, 255)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted)


@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("a = ReduceMean<axes=[3], keepdims=0>(x) y = ReduceMean<axes=[2], keepdims=0>(a)", [2, 3]),
        ("a = ReduceMean<axes=[1], keepdims=0>(x) y = ReduceMean<axes=[1, 2], keepdims=0>(a)", [1, 2, 3]),
        ("a = ReduceMean<axes=[1]>(x) y = ReduceMean<axes=[3]>(a)", [1, 3]),
        ("a = ReduceMean<axes=[-1], keepdims=0>(x) b = ReduceMean<axes=[-1], keepdims=0>(a)"
         " y = ReduceMean<axes=[0], keepdims=0>(b)", [0, 2, 3]),
    ],
)  # fmt: skip
def test_means_of_means_are_one(body: str, axes: list[int]) -> None:
    graph = loaded(model(13, body))
    infer_shapes(graph)
    modernize(graph)
    assert [(n.op, axes_of(n)) for n in graph.nodes] == [("ReduceMean", tuple(axes))]


@pytest.mark.parametrize(
    "body",
    [
        "a = ReduceMean<axes=[3], keepdims=0>(x) y = ReduceMean<axes=[2]>(a)",  # it keeps another dimension
        "a = ReduceMean<axes=[3], keepdims=0>(x) b = ReduceSum<keepdims=0>(a) y = Mul(b, b)",
        "a = ReduceMean<axes=[3]>(x) b = ReduceMean<axes=[2]>(a) c = ReduceMax(a) y = Add(b, c)",  # it is read twice
        "w = Constant<value_floats=[1.0, 2.0]>() v = Abs(w) a = ReduceMean<axes=[0]>(v) b = ReduceMean<axes=[0]>(a)"
        " y = Mul(x, b)",  # the scale of a weight
    ],
)
def test_other_reductions_stay_as_they_are(body: str) -> None:
    graph = loaded(model(13, body))
    modernize(graph)
    assert sum(n.op.startswith("Reduce") for n in graph.nodes) >= 2


def test_a_dimension_that_there_is_not_costs_nothing() -> None:
    """Dimensions are counted from those that are left: of a number like this one no list is made."""
    body = f"i = Constant<value_ints=[1]>() j = Constant<value_ints=[{1 << 40}]>()"
    body += " a = ReduceMean<keepdims=0>(x, i) y = ReduceMean<keepdims=0>(a, j)"
    graph = loaded(model(18, body))
    tracemalloc.start()
    modernize(graph)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    (node,) = graph.nodes
    assert axes_of(node) == (1, (1 << 40) + 1)
