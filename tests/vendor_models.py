"""One small model of every vendor's nodes: what fuzzing starts from beside the corpus, which has few of them."""

from __future__ import annotations

import onnx

_QONNX, _TRAINED = "qonnx.custom_op.general", "com.microsoft"
_ROUND = f'{_QONNX}.Quant<signed=1, narrow=0, rounding_mode="ROUND">'
_SHAPE = "kernel_shape=[3,3], pads=[1,1,1,1]"
_CONV = f"Conv<{_SHAPE}>"
_FLOATS = ", ".join(f"{(7 * i % 19 - 9) / 16}" for i in range(36))
_INTEGERS = ", ".join(f"{7 * i % 19 - 9}" for i in range(36))
_STEPS = ", ".join(f"{i / 2 - 2}" for i in range(7))
_CONSTANTS = (
    f"float[2,2,3,3] w = {{{_FLOATS}}}, int8[2,2,3,3] wq = {{{_INTEGERS}}}, float[2] bias = {{0.5, -0.25}}"
    f", int32[2] bq = {{3, -4}}, float[1,7] t = {{{_STEPS}}}"
    ", float s = {0.0625}, float u = {0.125}, float z = {0}, float b = {8}, float four = {4}, float one = {1}"
    ", float lo = {-4}, float hi = {3.96875}, float wl = {-0.5625}, float wh = {0.5625}"
    ", float[2] sc = {0.0625, 0.03125}, float[2] zc = {0, 0}, int64 axis = {0}, int64 low = {-128}, int64 high = {127}"
    ", uint64[2] deq = {998244352, 998244352}, uint8 zu = {128}, int8 zi = {0}, int16 zs = {0}"
)

_NODES: dict[str, str] = {
    "qonnx": f"a = {_ROUND}(x, s, z, b) v = {_ROUND}(w, s, z, b) k = {_ROUND}(bias, s, z, b) c = {_CONV}(a, v, k)"
    f" r = Relu(c) y = {_ROUND}(r, u, z, four)",
    "qonnx bipolar": f"a = {_QONNX}.BipolarQuant(x, one) v = {_QONNX}.BipolarQuant(w, s) c = {_CONV}(a, v)"
    f" y = {_QONNX}.BipolarQuant(c, one)",
    "qonnx trunc": f"a = {_ROUND}(x, s, z, b) d = Add(a, a)"
    f' y = {_QONNX}.Trunc<rounding_mode="FLOOR">(d, s, z, b, four)',
    "finn": f"a = {_ROUND}(x, s, z, b) v = {_ROUND}(w, s, z, b) c = {_CONV}(a, v)"
    f' y = {_QONNX}.MultiThreshold<out_scale=0.25, out_bias=-1.0, out_dtype="INT4", data_layout="NCHW">(c, t)',
    "mqbench": "a = LearnablePerTensorAffine(x, s, z, low, high) v = FixedPerChannelAffine(w, sc, zc, axis, low, high)"
    f" c = {_CONV}(a, v, bias) y = FakeQuantizeTqtAffine<quant_min=-128, quant_max=127>(c, s, z)",
    "sophgo": "a = Sophgo_custom.FixedPerTensorAffine(x, s, z, low, high)"
    f" v = Sophgo_custom.FixedPerChannelAffine(w, sc, zc, axis, low, high) c = {_CONV}(a, v, bias)"
    " y = Sophgo_custom.FixedPerTensorAffine(c, u, z, low, high)",
    "openvino": "a = org.openvinotoolkit.FakeQuantize<levels=256>(x, lo, hi, lo, hi)"
    f" v = org.openvinotoolkit.FakeQuantize<levels=255>(w, wl, wh, wl, wh) c = {_CONV}(a, v, bias)"
    " y = org.openvinotoolkit.FakeQuantize<levels=256>(c, lo, hi, lo, hi)",
    "quark": "aq = com.amd.quark.ExtendedQuantizeLinear(x, s, zu) a = com.amd.quark.ExtendedDequantizeLinear(aq, s, zu)"
    f" v = com.vai.quantize.VitisDequantizeLinear(wq, s, zi) c = {_CONV}(a, v)"
    " y = com.vai.quantize.FixNeuron<bit_width=8>(c, s, zi)",
    "mct": "a = mct_quantizers.ActivationSymmetricQuantizer<num_bits=8, threshold=4.0, signed=1>(x)"
    " v = mct_quantizers.WeightsSymmetricQuantizer<num_bits=8, per_channel=1, channel_axis=0, signed=1>(w, sc)"
    f" c = {_CONV}(a, v, bias)"
    " y = mct_quantizers.ActivationUniformQuantizer<num_bits=8, min_range=-4.0, max_range=3.96875>(c)",
    "horizon": "aq = horizon.HzQuantize<bits=8>(x, s, zi) a = horizon.HzDequantize(aq, s, zi)"
    f" v = horizon.HzDequantize(wq, s, zi) c = {_CONV}(a, v)"
    " yq = horizon.HzQuantize<bits=16>(c, s, zs) y = horizon.HzDequantize(yq, s, zs)",
    "ascend": 'aq = AscendQuant<scale = 8.0, offset = 0.0, dst_type = "INT8">(x)'
    f" c = {_CONV}(aq, wq, bq) y = AscendDequant(c, deq)",
    "microsoft": "aq = com.microsoft.QuantizeLinear(x, s, zu) a = com.microsoft.DequantizeLinear(aq, s, zu)"
    f" v = com.microsoft.DequantizeLinear<axis=0>(wq, sc, zi) c = {_CONV}(a, v)"
    " yq = com.microsoft.QuantizeLinear(c, u, zu) y = com.microsoft.DequantizeLinear(yq, u, zu)",
    "qoperator": f"aq = QuantizeLinear(x, s, zu) c = QLinearConv<{_SHAPE}>(aq, s, zu, wq, s, zi, u, zu, bq)"
    " d = com.microsoft.QLinearAdd(c, u, zu, aq, s, zu, u, zu)"
    f" p = com.microsoft.QLinearAveragePool<{_SHAPE}>(d, u, zu, u, zu)"
    " l = com.microsoft.QLinearLeakyRelu<alpha=0.125>(p, u, zu, u, zu) y = DequantizeLinear(l, u, zu)",
    "tensorrt": f"a = trt.TRT_FP8QuantizeLinear(x, s) v = trt.TRT_FP8DequantizeLinear(a, s) y = {_CONV}(v, w)",
}
_DOMAINS = sorted({_QONNX, _TRAINED, "Sophgo_custom", "org.openvinotoolkit", "com.amd.quark", "com.vai.quantize",
                   "mct_quantizers", "horizon", "trt"})  # fmt: skip


def vendor_models() -> dict[str, onnx.ModelProto]:
    """The models by what they are of: a quantized convolution of [1, 2, 6, 6] in float32, or its like."""
    opsets = ", ".join(['"" : 17', *(f'"{domain}" : 1' for domain in _DOMAINS)])
    signature = "g (float[1,2,6,6] x) => (float[1,2,6,6] y)"
    return {
        name: onnx.parser.parse_model(
            f"<ir_version: 8, opset_import: [{opsets}]> {signature} <{_CONSTANTS}> {{ {nodes} }}"
        )
        for name, nodes in _NODES.items()
    }
