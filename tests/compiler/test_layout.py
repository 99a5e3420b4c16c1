import pytest

from qatc.compiler.layout import layouts
from qatc.compiler.lowering import lower
from qatc.compiler.passes.propagate import propagate
from tests.graphs import net, stripped

QUANTIZED = """
net (float[N,4,4,2] x) => (float[N,3,4,4] y, float[N,4,3,4] t)
<float s = {0.5}, uint8 z = {128}, float[3] ws = {0.25, 0.5, 1.0}, int8[3] wz = {0,0,0},
 float[3,2,1,1] w = {1.0,-1.0,2.0,-2.0,3.0,4.0}>
{
  q = QuantizeLinear(x, s, z)
  d = DequantizeLinear(q, s, z)
  p = Transpose<perm=[0,3,1,2]>(d)
  wq = QuantizeLinear<axis=0>(w, ws, wz)
  wd = DequantizeLinear<axis=0>(wq, ws, wz)
  c = Conv(p, wd)
  rq = QuantizeLinear(c, s, z)
  y = DequantizeLinear(rq, s, z)
  t = Transpose<perm=[0,2,1,3]>(y)
}
"""


def test_a_transpose_between_interface_and_convolution_is_followed() -> None:
    graph = stripped(QUANTIZED)
    propagate(graph)
    assert layouts(lower(graph)) == {"x": "NHWC", "y": "NCHW", "t": "NHCW"}


def test_nothing_is_claimed_without_a_spatial_operator() -> None:
    graph = stripped("""
net (float[N,4] x) => (float[N,4] y)
<float s = {0.5}, uint8 z = {128}> { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d) }
""")
    propagate(graph)
    assert layouts(lower(graph)) == {}


@pytest.mark.parametrize("perm", ["", "[2,0,1]"])
def test_an_image_that_gets_its_batch_by_broadcasting_has_no_layout(perm: str) -> None:
    """It has three dimensions, its convolution four: it was NCHW, or with a Transpose a ValueError."""
    moved = f"b = Transpose<perm = {perm}>(a)" if perm else "b = Identity(a)"
    body = f"""
        a = A(x)
        {moved}
        k = A(mean)
        s = Sub(b, k)
        t = A(s)
        v = B(w)
        c = Conv(t, v)
        y = A(c)
    """
    constants = "float[1,2,1,1] mean = {0.5, 1.0}, float[1,2,1,1] w = {1.0, -1.0}"
    graph = stripped(net("(float[2,2,2] x) => (float[1,1,2,2] y)", body, constants))
    propagate(graph)
    assert layouts(lower(graph)) == {"y": "NCHW"}
