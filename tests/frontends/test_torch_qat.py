"""Training with `qatc.frontends.torch_qat`: what is exported states every range, and compiles to integers alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed (extra `torch`)")
torch_qat: Any = pytest.importorskip("qatc.frontends.torch_qat")

from qatc import CompileError, compile_model  # noqa: E402

nn: Any = torch.nn
parametrizations: Any = nn.utils.parametrizations
weight_norm = parametrizations.weight_norm
RECIPES = ["default", "drpai", "symmetric", "power-of-two", "lsq"]
INPUT = (2, 1, 16, 16)


def network() -> Any:
    """Every place that matters: Conv+BN, residual sums, a parameter, SiLU, ReLU6, transposed Conv, concat, pooling."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.first_bn = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.second, self.second_bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.silu, self.relu6 = nn.SiLU(), nn.ReLU6()
            self.head = nn.Linear(12, 10)
            self.place = nn.Parameter(torch.zeros(1, 8, 1, 1))

        def forward(self, x: Any) -> Any:
            first = torch.relu(self.first_bn(self.first(x)))
            total = self.silu(self.second_bn(self.second(first)) + first + self.place)
            wide = nn.functional.max_pool2d(self.relu6(self.up(total)), 2)
            return self.head(torch.cat([wide, total], 1).mean((2, 3)))

    torch.manual_seed(0)
    return Network()


def trained(model: Any, steps: int = 3) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(torch.randn(INPUT)), torch.tensor([1, 7]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch_qat.freeze(model)
    return model.eval()


def exported(model: Any, path: Path, **options: Any) -> onnx.ModelProto:
    torch_qat.export(model, path, torch.randn(INPUT), **options)
    return onnx.load(path)


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_integer_without_data(recipe: str, tmp_path: Path) -> None:
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe=recipe))
    exported(model, tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, dialect="pytorch", io="integer", output=tmp_path / "out")
    assert result.coverage.share == 1.0
    assert not result.islands
    assert {p.dtype for p in (*result.inputs, *result.outputs)} == {"uint8"}
    assert result.verification is not None
    assert result.verification.passed


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_file_computes_what_was_trained(recipe: str, tmp_path: Path) -> None:
    import onnxruntime as ort

    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe=recipe))
    exported(model, tmp_path / "model.onnx")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    x = torch.randn(5, *INPUT[1:])  # the batch is symbolic
    (found,) = ort.InferenceSession(tmp_path / "model.onnx", options).run(None, {"input": x.numpy()})
    step = float(model.fq_head.scale)
    assert np.abs(found - model(x).detach().numpy()).max() <= step * 1.01  # a tie may round the other way


def ranges(graph: Any) -> set[tuple[str, int, int]]:
    """The clips on integers: type, lowest, highest."""
    constants = {
        n.output[0]: onnx.numpy_helper.to_array(n.attribute[0].t) for n in graph.node if n.op_type == "Constant"
    }
    return {
        (constants[n.input[1]].dtype.name, int(constants[n.input[1]]), int(constants[n.input[2]]))
        for n in graph.node
        if n.op_type == "Clip" and n.input[1] in constants and constants[n.input[1]].dtype.kind in "ui"
    }


def test_every_range_is_in_the_file(tmp_path: Path) -> None:
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe="drpai", bits={"second": 4}))
    graph = exported(model, tmp_path / "model.onnx", opset=13).graph
    assert ranges(graph) == {("uint8", 0, 127), ("int8", -8, 7)}
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith(".scale")}
    assert {s.shape for s in scales.values()} == {(), (8,), (4,), (10,)}
    assert {"first.weight", "up.weight", "head.weight"} <= {t.name for t in graph.initializer}


def test_narrow_ranges_are_in_the_file(tmp_path: Path) -> None:
    """PyTorch's exporter refuses -127..127."""
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe="symmetric"))
    assert ("int8", -127, 127) in ranges(exported(model, tmp_path / "model.onnx").graph)


def test_the_guides_script_exports(tmp_path: Path) -> None:
    """Eager `prepare_qat` with the guide's configuration: what the DRP-AI sample does before it exports."""
    from torch.ao import quantization as tq

    activation = tq.FakeQuantize.with_args(
        observer=tq.MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8,
        qscheme=torch.per_tensor_affine, reduce_range=True,
    )  # fmt: skip
    weight = tq.FakeQuantize.with_args(
        observer=tq.MovingAveragePerChannelMinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric, reduce_range=False, ch_axis=0,
    )  # fmt: skip
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)).train()
    small.qconfig = tq.QConfig(activation=activation, weight=weight)
    tq.prepare_qat(small, inplace=True)
    model = trained(small)
    for observer in model.modules():
        if isinstance(observer, tq.FakeQuantize):
            observer.disable_observer()
    exported(model, tmp_path / "model.onnx", opset=13)
    assert ranges(onnx.load(tmp_path / "model.onnx").graph) == {("uint8", 0, 127)}
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert [island.op_type for island in result.islands] == ["Conv"]  # the guide leaves the input's range out


@pytest.mark.parametrize("recipe", ["symmetric", "power-of-two"])
def test_symmetric_recipes_have_no_zero_points(recipe: str) -> None:
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe=recipe))
    grids = [m for m in torch_qat.stateless_copy(model).modules() if isinstance(m, torch_qat.Rounding)]
    assert grids
    assert all(int(g.zero_point.abs().max()) == 0 for g in grids)
    if recipe == "power-of-two":
        assert all(float(torch.log2(g.scale)).is_integer() for g in grids)
    else:
        assert all(g.low == -127 for g in grids if g.axis >= 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_measuring_accuracy_moves_no_range(recipe: str) -> None:
    model = torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe=recipe)
    model(torch.randn(INPUT))

    def scales() -> list[Any]:
        return [m.scale.detach().clone() for m in model.modules() if hasattr(m, "fake_quant_enabled")]

    before = scales()
    model.eval()(100 * torch.randn(INPUT))
    assert all(torch.equal(one, other) for one, other in zip(before, scales(), strict=True))
    model.train()(100 * torch.randn(INPUT))
    assert not all(torch.equal(one, other) for one, other in zip(before, scales(), strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_training_can_be_resumed(recipe: str, tmp_path: Path) -> None:
    """A checkpoint goes into a network prepared anew, and a copy is as good as the model."""
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe=recipe))
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    again = torch_qat.prepare_qat(network(), 3 * torch.randn(INPUT), recipe=recipe)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=True))
    x = torch.randn(INPUT)
    files: list[bytes] = []
    for i, one in enumerate((model, again.eval(), copy.deepcopy(model))):
        torch.testing.assert_close(one(x), model(x), atol=0, rtol=0)
        torch_qat.export(one, tmp_path / f"{i}.onnx", x)
        files.append((tmp_path / f"{i}.onnx").read_bytes())
    assert files[0] == files[1] == files[2]


def test_a_target_brings_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "dpu.toml").write_text('name = "dpu"\nbackend = "qdq"\nrecipe = "power-of-two"\n')

    def top(**options: Any) -> tuple[int, int]:
        model = torch_qat.prepare_qat(network(), torch.randn(INPUT), **options)
        return int(model.fq_x.quant_min), int(model.fq_x.quant_max)

    assert top() == (0, 255)
    assert top(target="drpai") == (0, 127)
    assert top(target=str(tmp_path / "dpu.toml")) == (-128, 127)
    assert top(target="drpai", recipe="symmetric") == (-127, 127)


def test_learned_scales_learn_and_end_on_integers() -> None:
    model = torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe="lsq")
    trained(model, steps=20)
    before = float(model.fq_add.scale)
    model.train()
    trained(model, steps=3)
    assert float(model.fq_add.scale) != before


def test_concatenated_tensors_share_a_grid() -> None:
    model = torch_qat.prepare_qat(network(), torch.randn(INPUT))
    called = [str(n.target) for n in model.graph.nodes if n.op == "call_module" and str(n.target).startswith("fq_cat")]
    assert called == ["fq_cat"] * 3


def test_excluded_modules_stay_float(tmp_path: Path) -> None:
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), exclude=["head"]))
    exported(model, tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "out")
    assert [island.op_type for island in result.islands] == ["Gemm"]


def test_models_of_torch_ao_export_too(tmp_path: Path) -> None:
    """Fused fake quantizers, which no exporter of PyTorch's writes; batch norm folded as training simulated it."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))
    model = trained(prepare_qat_fx(small.train(), get_default_qat_qconfig_mapping("x86"), (torch.randn(INPUT),)))
    written = exported(model, tmp_path / "model.onnx")
    assert not {"BatchNormalization", "Div"} & {n.op_type for n in written.graph.node}
    result = compile_model(tmp_path / "model.onnx", output=tmp_path / "out")
    assert result.coverage.share == 1.0


def test_models_of_pt2e_export_too(tmp_path: Path) -> None:
    """Graph mode of torchao: fused fake quantizers, batch norm as arithmetic, a guard on the batch size."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    import onnxruntime as ort
    from torchao.quantization import pt2e
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.second, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 10)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.first(x)))
            return self.head((x + self.second(x)).mean((2, 3)))

    torch.manual_seed(0)
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    program = torch.export.export(Small(), (torch.randn(INPUT),)).module()
    model = prepare_qat_pt2e(program, quantizer)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        model(torch.randn(INPUT)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    pt2e.move_exported_model_to_eval(model)
    written = exported(model, tmp_path / "model.onnx")
    kinds = [n.op_type for n in written.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") > 5
    x = torch.randn(INPUT)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tmp_path / "model.onnx", options)
    (found,) = session.run(None, {"input": x.numpy()})
    assert np.abs(found - model(x).detach().numpy()).max() < 0.02 * np.abs(found).max()
    (other,) = session.run(None, {"input": torch.randn(5, *INPUT[1:]).numpy()})
    assert other.shape == (5, 10)  # the guard of the exported program allows two
    assert compile_model(tmp_path / "model.onnx", output=tmp_path / "out").coverage.share == 1.0


def test_wrong_requests_are_usage_errors(tmp_path: Path) -> None:
    x = torch.randn(INPUT)
    for options in ({"recipe": "drpia"}, {"exclude": ["nothing"]}, {"bits": {"first": 1}}, {"target": "onx"}):
        with pytest.raises(CompileError) as caught:
            torch_qat.prepare_qat(network(), x, **options)
        assert caught.value.exit_code == 2
    with pytest.raises(CompileError, match="no fake quantization"):
        torch_qat.export(network(), tmp_path / "m.onnx", x)
    with pytest.raises(CompileError, match="opset"):
        torch_qat.export(network(), tmp_path / "m.onnx", x, opset=11)


def test_power_of_two_is_deployed_bit_for_bit(tmp_path: Path) -> None:
    """Biases are exported as the integers that the accumulator adds: then nothing is left that could differ."""
    import onnxruntime as ort

    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), recipe="power-of-two"))
    exported(model, tmp_path / "model.onnx")
    compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    x = torch.randn(64, *INPUT[1:])
    (found,) = ort.InferenceSession(tmp_path / "out" / "model.onnx").run(None, {"input": x.numpy()})
    assert np.array_equal(found, torch_qat.stateless_copy(model)(x).detach().numpy())


LAYERS = {
    "norm without factors": lambda: [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU()],
    "padding same": lambda: [nn.Conv2d(1, 4, (3, 4), padding="same"), nn.ReLU()],
    "padding same, norm": lambda: [nn.Conv2d(1, 4, (3, 4), padding="same"), nn.BatchNorm2d(4), nn.ReLU()],
    "mirrored": lambda: [nn.Conv2d(1, 4, 4, padding="same", padding_mode="reflect"), nn.ReLU()],
    "mirrored, norm": lambda: [nn.Conv2d(1, 4, 4, padding="same", padding_mode="reflect"), nn.BatchNorm2d(4)],
    "transposed in groups": lambda: [nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2)],
    "normalized weights": lambda: [weight_norm(nn.Conv2d(1, 4, 3)), nn.ReLU()],
    "normalized weights, norm": lambda: [weight_norm(nn.Conv2d(1, 4, 3)), nn.BatchNorm2d(4), nn.ReLU()],
    "normalized weights, transposed": lambda: [nn.Conv2d(1, 4, 1), weight_norm(nn.ConvTranspose2d(4, 6, 2), dim=1)],
    "spectral norm": lambda: [parametrizations.spectral_norm(nn.Conv2d(1, 4, 3)), nn.ReLU()],
    "orthogonal weights": lambda: [nn.Conv2d(1, 8, 1), parametrizations.orthogonal(nn.Conv2d(8, 4, 1))],
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_every_make(kind: str, tmp_path: Path) -> None:
    layers = [*LAYERS[kind](), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)]
    model = nn.Sequential(*layers)
    model(torch.randn(INPUT))
    exported(trained(torch_qat.prepare_qat(model, torch.randn(INPUT))), tmp_path / "model.onnx")
    result = compile_model(tmp_path / "model.onnx", qat=True, output=tmp_path / "out")
    assert result.verification is not None
    assert (result.coverage.share, result.verification.passed) == (1.0, True)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("called", [lambda layer, x: layer(x, None), lambda layer, x: layer(x, hx=None)])
def test_a_first_state_of_none_is_none(kind: str, called: Any) -> None:
    class Network(nn.Module):
        def __init__(self, call: Any) -> None:
            super().__init__()
            self.layer, self.call = getattr(nn, kind)(4, 3, batch_first=True), call

        def forward(self, x: Any) -> Any:
            return self.call(self.layer, x)[0]

    x, results = torch.randn(2, 5, 4), []
    for call in (called, lambda layer, x: layer(x)):
        torch.manual_seed(0)
        results.append(torch_qat.prepare_qat(Network(call), x).eval()(x))
    assert torch.equal(*results)


def test_parameters_by_name_and_in_lists() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.weight = nn.Parameter(torch.ones(1, 1, 4)), nn.Parameter(torch.ones(2, 4))
            self.bias = nn.Parameter(torch.ones(2))

        def forward(self, x: Any) -> Any:
            x = torch.cat(tensors=[x, torch.cat([self.token, x], 1)], dim=1)
            return nn.functional.linear(x, bias=self.bias, weight=self.weight)

    model = torch_qat.prepare_qat(Network(), torch.randn(1, 3, 4))
    quantizers = {name: module for name, module in model.named_children() if name.startswith("fq_")}
    assert set(quantizers) >= {"fq_weight", "fq_linear"}
    assert "fq_bias" not in quantizers
    assert quantizers["fq_weight"].scale.shape == (2,)


def test_weights_that_nothing_rounds_are_said_to_stay_float() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = nn.Bilinear(16, 16, 4)

        def forward(self, x: Any) -> Any:
            return self.pair(x, x)

    with pytest.warns(UserWarning, match="these stay float: pair"):
        torch_qat.prepare_qat(Network(), torch.randn(INPUT))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils:FutureWarning")
def test_a_weight_that_a_hook_computes_is_refused() -> None:
    """A copy of the model would keep what it was when it was copied."""
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 4)))
    with pytest.raises(CompileError, match="a hook computes the weight of '0'"):
        torch_qat.prepare_qat(model, torch.randn(INPUT))


def test_batch_norm_without_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(CompileError, match="the batch norm '1' keeps no statistics"):
        torch_qat.prepare_qat(model, torch.randn(INPUT))


def test_biases_lie_on_the_grid_of_the_accumulator() -> None:
    model = trained(torch_qat.prepare_qat(network(), torch.randn(INPUT), bits={"second": 4}))
    stateless = torch_qat.stateless_copy(model)
    for name, given in (("first", "fq_x"), ("head", "fq_mean"), ("up", "fq_cat")):
        layer = stateless.get_submodule(name)
        weights = layer.weight_fake_quant if name != "up" else layer.parametrizations.weight[0]
        steps = layer.bias / (stateless.get_submodule(given).scale * weights.scale)
        assert float((steps - steps.round()).abs().max()) < 1e-2
    coarse = stateless.second.bias / (stateless.fq_relu.scale * stateless.second.weight_fake_quant.scale)
    assert float((coarse - coarse.round()).abs().max()) > 1e-2  # four bits: rounding would cost accuracy
