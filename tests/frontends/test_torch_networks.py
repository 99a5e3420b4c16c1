"""Networks that users bring to `prepare_qat`: what PyTorch hides in them is written out, and becomes integers."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra `torch`)")
torch_qat: Any = pytest.importorskip("qatc.frontends.torch_qat")
tracing: Any = pytest.importorskip("qatc.frontends.torch_qat.tracing")

from qatc import CompileError, compile_model  # noqa: E402

nn: Any = torch.nn
F: Any = torch.nn.functional
STEPS, WIDTH = 6, 16


class On(nn.Module):
    """One layer, called with arguments of its own, as a part of a network."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.layer, self.options = layer, options

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.layer(x, **self.options) if y is None else self.layer(x, y, **self.options)


class Attends(nn.Module):
    """Self-attention behind a mask, or several."""

    def __init__(self, mask: Any = None, padding: Any = None, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, **options)
        self.register_buffer("mask", mask)
        self.register_buffer("padding", padding)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, attn_mask=self.mask, key_padding_mask=self.padding)


class Gpt(nn.Module):
    """Attention as it is written by hand, with a causal mask cut to size and a scale computed from a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head, self.drop = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 5), nn.Dropout(0.1)
        self.register_buffer("seen", torch.tril(torch.ones(9, 9)).view(1, 1, 9, 9))

    def forward(self, x: Any) -> Any:
        n, steps, width = x.size()
        q, k, v = (part.view(n, steps, 4, width // 4).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.seen[:, :, :steps, :steps] == 0, float("-inf"))
        y = (self.drop(F.softmax(scores, dim=-1)) @ v).transpose(1, 2).contiguous().view(n, steps, width)
        return self.head((x + y).mean(1))


class Product(nn.Module):
    """PyTorch's own product of attention, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Any) -> Any:
        q, k, v = self.qkv(x).chunk(3, -1)
        rate = 0.1 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)[:, -1]


class Functional(nn.Module):
    """Parameters and functions in place of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(8, WIDTH, 3) * 0.2), nn.Parameter(torch.randn(8) * 9)
        self.matrix = nn.Parameter(torch.randn(8, 5) * torch.logspace(-2, 0, 5))

    def forward(self, x: Any) -> Any:
        x = F.relu(F.conv1d(x.transpose(1, 2), self.kernel, self.bias, padding=1)).mean(2)
        return F.dropout(x, 0.5, self.training) @ self.matrix


class Dense(nn.Module):
    """Batch norm in front of convolutions, on what was concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(WIDTH, 8, 3, padding=1), nn.Conv1d(WIDTH + 8, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(WIDTH + 8)

    def forward(self, x: Any) -> Any:
        x = x.transpose(1, 2)
        return self.second(F.relu(self.norm(torch.cat([x, self.first(x)], 1)))).mean(2)


class Classifies(nn.Module):
    """The last output of a recurrent layer decides."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.layer(x)[0][:, -1])


def flat(results: Any) -> list[Any]:
    if isinstance(results, tuple | list):
        return [tensor for part in results for tensor in flat(part)]
    return [] if results is None else [results]


def assert_same(network: Any, *inputs: Any) -> Any:
    """What is written out computes what PyTorch does; returns it."""
    network.eval()
    traced = tracing.trace(copy.deepcopy(network), inputs, ())
    expected, found = flat(network(*inputs)), flat(traced(*inputs))
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)
    hidden = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.RNNBase)
    assert not [m for m in traced.modules() if isinstance(m, hidden)]
    assert F.scaled_dot_product_attention not in {n.target for n in traced.graph.nodes}
    return traced


# -- what is written out computes the same --------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_recurrent_layers(kind: str, layers: int, bidirectional: bool, batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
    assert_same(On(getattr(nn, kind)(WIDTH, 8, layers, **options)), torch.randn(3, STEPS, WIDTH))


def test_recurrent_layers_with_a_state() -> None:
    assert_same(On(nn.GRU(WIDTH, 8, 2, batch_first=True)), torch.randn(3, STEPS, WIDTH), torch.randn(2, 3, 8))


HIDES = torch.ones(STEPS, STEPS).triu(1).bool()
PADS = torch.zeros(4, STEPS).bool()
PADS[1, 4:] = True


@pytest.mark.parametrize(
    "network",
    [
        Attends(batch_first=True),
        Attends(batch_first=True, bias=False),
        Attends(HIDES, batch_first=True),
        Attends(torch.zeros(STEPS, STEPS).masked_fill(HIDES, -1e9), batch_first=True),
        Attends(HIDES.expand(16, STEPS, STEPS), PADS, batch_first=True),
        Attends(torch.ones(4, 4).triu(1).bool()),
        On(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True), src_mask=HIDES),
        On(nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True, norm_first=True), 2)),
        Gpt(),
        Product(),
    ],
)
def test_attention(network: Any) -> None:
    assert_same(network, torch.randn(4, STEPS, WIDTH))


def test_dropout_functions_follow_the_mode() -> None:
    network = Functional().train()
    x = torch.randn(4, STEPS, WIDTH)
    traced = tracing.trace(copy.deepcopy(network), (x,), ())
    assert not torch.equal(traced(x), traced(x))
    torch.testing.assert_close(traced.eval()(x), network.eval()(x))


# -- and becomes integers -------------------------------------------------------------------------------------------
def compiled(network: Any, tmp_path: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    x = torch.randn(4, STEPS, WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = torch_qat.prepare_qat(network.train(), x, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        loss = model(torch.randn(4, STEPS, WIDTH)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert math.isfinite(float(loss))
    torch_qat.freeze(model)
    torch_qat.export(model.eval(), tmp_path / "model.onnx", x)
    return compile_model(tmp_path / "model.onnx", qat=True, io="integer", output=tmp_path / "out")


@pytest.mark.parametrize("recipe", ["default", "drpai", "symmetric", "power-of-two", "lsq"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recurrent_networks_are_integers(kind: str, recipe: str, tmp_path: Path) -> None:
    network = Classifies(getattr(nn, kind)(WIDTH, 8, batch_first=True, bidirectional=True))
    result = compiled(network, tmp_path, recipe=recipe)
    assert result.coverage.share == 1.0
    assert not result.islands


def test_every_step_rounds_alike() -> None:
    x = torch.randn(4, STEPS, WIDTH)
    model = torch_qat.prepare_qat(Classifies(nn.GRU(WIDTH, 8, batch_first=True)), x)
    states = [
        str(user.target)
        for node in model.graph.nodes
        if node.op == "call_module" and str(node.target).endswith(".state")
        for user in node.users
    ]
    assert len(states) == STEPS + 1  # and the first one, zero
    assert len(set(states)) == 1


@pytest.mark.parametrize("network", [Functional(), Dense()])
def test_no_island(network: Any, tmp_path: Path) -> None:
    result = compiled(network, tmp_path)
    assert result.coverage.share == 1.0
    assert not result.islands


@pytest.mark.parametrize("network", [Gpt(), Product()])
def test_masked_attention_multiplies_in_integers(network: Any, tmp_path: Path) -> None:
    result = compiled(network, tmp_path)
    assert result.coverage.share == 1.0
    assert {island.op_type for island in result.islands} == {"Where", "Softmax"}


def test_shapes_are_constants_in_the_file(tmp_path: Path) -> None:
    """And so the multiply-accumulates of every matrix product are known; the batch stays free."""
    network = nn.Sequential(nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True), 1))
    result = compiled(network, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert not {"Shape", "Gather", "Concat"} & {node.op_type for node in graph.node}
    linear = 4 * WIDTH * WIDTH + 2 * 32 * WIDTH
    assert result.coverage.integer_macs == STEPS * (linear + 2 * STEPS * WIDTH)
    for batch in (1, 3):
        x = np.zeros((batch, STEPS, WIDTH), np.float32)
        (found,) = ort.InferenceSession(tmp_path / "model.onnx").run(None, {"input": x})
        assert np.asarray(found).shape == x.shape


def test_weights_of_functions_have_a_scale_per_channel(tmp_path: Path) -> None:
    compiled(Functional(), tmp_path)
    model = torch_qat.prepare_qat(Functional(), torch.randn(4, STEPS, WIDTH))
    grids = {name: m for name, m in model.named_modules() if hasattr(m, "fake_quant_enabled")}
    assert grids["fq_kernel"].scale.shape == (8,)
    assert grids["fq_matrix"].scale.shape == (5,)
    assert grids["fq_matrix"].ch_axis == 1
    assert "fq_bias" not in grids  # eight bits would be far too few


def test_what_stays_float_is_said() -> None:
    x = torch.randn(4, tracing.LONGEST + 1, WIDTH)
    network = Classifies(nn.GRU(WIDTH, 8, batch_first=True))
    with pytest.warns(UserWarning, match=r"stay float: layer \(GRU\)"):
        model = torch_qat.prepare_qat(network, x)
    assert isinstance(model.layer, nn.GRU)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch_qat.prepare_qat(network, x, exclude=["layer"])


class Shapely(nn.Module):
    """Sizes decide what is computed; the size of the batch does not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Any, mask: Any = None, twice: bool = False) -> Any:
        if mask is not None:
            x = x + mask
        if x.dim() == 3 and x.shape[-1] == WIDTH:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        total = sum(x[:, step] * (step + 1) for step in range(x.size(1)))
        for part in x.unbind(1):
            total = total + part
        n, width = total.shape
        return (self.head(total) / math.sqrt(width)).reshape(n, len(x.shape), -1) * (2 if twice else 1)


class Contents(nn.Module):
    def __init__(self, asks: Any) -> None:
        super().__init__()
        self.asks = asks

    def forward(self, x: Any) -> Any:
        return x * 2 if self.asks(x) else x


def test_sizes_may_decide() -> None:
    network = Shapely().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.head = nn.Linear(WIDTH, 6)
    traced = tracing.trace(copy.deepcopy(network), (torch.randn(4, STEPS, WIDTH),), ())
    assert torch.equal(traced.norm.running_mean, before["norm.running_mean"])
    assert [n.target for n in traced.graph.nodes if n.op == "placeholder"] == ["x"]
    x = torch.randn(7, STEPS, WIDTH)  # another batch
    torch.testing.assert_close(traced.eval()(x), network.eval()(x))


@pytest.mark.parametrize("asks", [lambda x: x.sum() > 0, lambda x: x.max().item() > 0, lambda x: float(x.mean()) > 0])
def test_contents_may_not(asks: Any) -> None:
    with pytest.raises(CompileError, match="cannot trace the model"):
        torch_qat.prepare_qat(Contents(asks), torch.randn(2, 3))
