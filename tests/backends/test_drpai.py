"""`-t drpai`: the files that a user of DRP-AI TVM expects, its command line in both spellings, calls of its tools."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from qatc import CompileError, cli, compile_model
from qatc.backends.drpai.arguments import ArgumentError, translate
from qatc.backends.drpai.frames import statistics
from qatc.backends.drpai.models import stripped
from qatc.backends.drpai.vendor import quantizer_command
from qatc.compiler.command.arguments import in_our_words
from qatc.compiler.passes.later import bring_down
from qatc.compiler.passes.modernize import modernize
from tests.graphs import loaded, net

MODEL = Path(__file__).resolve().parents[2] / "samples" / "models" / "resnet8_qat.onnx"
SHAPE = (1, 1, 16, 16)
RECIPE = Path(__file__).resolve().parents[1] / "corpus" / "drpai__resnet8"  # what the guide's own sample exports


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drpai") / "out"
    compile_model(
        MODEL, qat=True, target="drpai", io="integer", options={"quantization_option": "az True"}, output=folder
    )
    return folder


# -- files ---------------------------------------------------------------------------------------------------------
def test_the_reference_result_is_what_the_int8_model_computes(package: Path) -> None:
    raw = np.fromfile(package / "input_0.bin", np.float32)
    assert raw.tobytes() == (package / "interpreter_out" / "input_0.bin").read_bytes()
    assert raw.size == np.prod(SHAPE)
    assert -1 <= raw.min() < raw.max() < 1
    reference = np.fromfile(package / "interpreter_out" / "ref_result_0_fp32.bin", np.float32)
    manifest = json.loads((package / "manifest.json").read_text())
    given, wanted = manifest["inputs"][0]["params"], manifest["outputs"][0]["params"]
    q = np.clip(np.rint(raw / np.float32(given["scale"][0])) + given["zero_point"][0], given["qmin"], given["qmax"])
    session = ort.InferenceSession(package / "model.onnx")
    (output,) = session.run(None, {manifest["inputs"][0]["name"]: q.astype(np.uint8).reshape(SHAPE)})
    real = (np.asarray(output, np.float32) - wanted["zero_point"][0]) * np.float32(wanted["scale"][0])
    assert np.array_equal(real.ravel(), reference)


@pytest.mark.parametrize("name", ["stripped_fp32", "quantized_qdq"])
def test_the_models_for_the_vendors_tools(package: Path, name: str) -> None:
    model = onnx.load(package / "drpai" / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    kinds = {node.op_type for node in model.graph.node}
    assert ({"QuantizeLinear", "DequantizeLinear"} & kinds == set()) == (name == "stripped_fp32")
    assert {p.type.tensor_type.elem_type for p in (*model.graph.input, *model.graph.output)} == {onnx.TensorProto.FLOAT}
    x = np.fromfile(package / "input_0.bin", np.float32).reshape(SHAPE)
    reference = np.fromfile(package / "interpreter_out" / "ref_result_0_fp32.bin", np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(package / "drpai" / f"{name}.onnx", options)
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    assert np.asarray(output).argmax() == reference.argmax()
    assert np.abs(np.asarray(output).ravel() - reference).max() < 0.1 * np.abs(reference).max()


def test_parameters_and_preprocessing(package: Path) -> None:
    parameters = json.loads((package / "drpai" / "parameters.json").read_text())
    assert parameters["quantization_option"] == "az True"
    names = {t["name"] for t in json.loads((package / "quantization.json").read_text())["tensors"]}
    assert {t["name"] for t in parameters["tensors"]} == names
    for tensor in parameters["tensors"]:
        assert all(low <= 0 <= high for low, high in zip(tensor["min"], tensor["max"], strict=True))
    described = json.loads((package / "drpai" / "preprocess.json").read_text())
    assert described["input"]["shape"] == list(SHAPE)
    assert [step["op"] for step in described["steps"]] == ["resize", "normalize", "transpose"]


def test_gray_images_are_described_as_they_are_prepared(package: Path) -> None:
    described = json.loads((package / "drpai" / "preprocess.json").read_text())
    normalize = next(step for step in described["steps"] if step["op"] == "normalize")
    mean, std = statistics(1)
    assert (normalize["cof_add"], normalize["cof_mul"]) == ([-255 * mean[0]], [1 / (255 * std[0])])
    assert mean[0] == pytest.approx(np.mean([0.485, 0.456, 0.406]))


SPLIT = "q, r, s = Split<axis = 1, num_outputs = 3>(x) y = Concat<axis = 1>(r, s, q)"
RESIZE = 'y = Resize<mode = "nearest", antialias = 0, keep_aspect_ratio_policy = "stretch">(x, , k)'
GATES = "h = HardSwish(x) g = Gelu(h) y = Mish(g)"
NORMALIZED = "y = LayerNormalization<axis = 2, epsilon = 0.1>(x, f, b)"


@pytest.mark.parametrize(
    ("nodes", "size"),
    [(SPLIT, 5), (SPLIT, 6), (RESIZE, 5), (GATES, 5), (NORMALIZED, 5), ("y = ReduceMean(x, axes)", 5)],
)
def test_operators_of_later_opsets_in_opset_13(nodes: str, size: int) -> None:
    """Five channels are split into 2, 2 and 1."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 20]> g (float[1,{size},2] x) => (float[L,M,N] y)'
        " <float[3] k = {1.0, 1.0, 2.0}, int64[2] axes = {-1, 0}, float[2] f = {2.0, 3.0}, float[2] b = {0.5, 1.0}>"
        f" {{ {nodes} }}"
    )
    x = np.random.default_rng(0).normal(size=(1, size, 2)).astype(np.float32)
    (wanted,) = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString()).run(None, {"x": x})
    graph = loaded(text)
    modernize(graph)
    bring_down(graph, 13)
    found = stripped(graph)
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 13)]
    (result,) = ort.InferenceSession(found.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "message", "way_out"),
    [
        ("a = W(x)\ny = Relu(a)", "opset 13 cannot quantize to 16 bits", "quantize to 8 bits"),
        ("a = A(x)\ny = Trilu(a)", "Trilu has no form in opset 13", "end the exported network before it"),
        (
            "a = A(x)\ni = Constant<value = int64[1,2] {0, 1}>()\nu = Constant<value = float[1,2] {1, 2}>()\n"
            'y = ScatterElements<reduction = "max">(a, i, u)',
            "the model has no form in opset 13",
            "export the model with opset 13",
        ),
    ],
)
def test_what_has_no_form_in_opset_13_is_refused(body: str, message: str, way_out: str, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(net("(float[2,2] x) => (float[2,2] y)", body, opset=21)), tmp_path / "m.onnx")
    with pytest.raises(CompileError, match=message) as caught:
        compile_model(tmp_path / "m.onnx", target="drpai", output=tmp_path / "out")
    assert caught.value.diagnostics[-1].code == "QAT302"
    assert way_out in (caught.value.diagnostics[-1].hint or "")
    assert not (tmp_path / "out").exists()


def test_half_precision_results(tmp_path: Path) -> None:
    compile_model(MODEL, target="drpai", options={"cpu_data_type": "float16"}, output=tmp_path / "out")
    assert np.fromfile(tmp_path / "out" / "interpreter_out" / "ref_result_0_fp16.bin", np.float16).size == 10


# -- the command line ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("-a pytorch m.onnx", "-a -m pytorch m.onnx"),
        ("-a -m Tensorflow m.onnx", "-a -m Tensorflow m.onnx"),
        ("-q tools m.onnx", "-p quantizer_dir=tools m.onnx"),
        ("-c tools m.onnx", "-p quantizer_dir=tools m.onnx"),
        ("--quantization_tool=tools m.onnx", "-p quantizer_dir=tools m.onnx"),
        ("-q m.onnx", "m.onnx"),
        ("-d dir -v 091 m.onnx", "-p drp_compiler_dir=dir m.onnx"),
        ("-v m.onnx", "-v m.onnx"),
        ("-t /opt/poky m.onnx", "-p toolchain_dir=/opt/poky m.onnx"),
        ("-p domain=standard m.onnx", "-p domain=standard m.onnx"),
        ("-n 3 -f float16 m.onnx", "--samples 3 -p cpu_data_type=float16 m.onnx"),
        ("-s x=1,3,2,2 --level 0 -u --fp16 m.onnx", "-s x=1,3,2,2 m.onnx"),
        ("--explain --tolerance=max_lsb=2 m.onnx", "--explain --tolerance=max_lsb=2 m.onnx"),
    ],
)
def test_both_spellings(given: str, wanted: str) -> None:
    assert translate(given.split())[0] == wanted.split()


def test_quantizer_options_reach_the_tool_and_calibration() -> None:
    text = "--calibrate_method Percentile --opts percentile_value 99.99"
    found, said = translate(["-p", text, "m.onnx"])
    assert found == ["-p", f"quantization_option={text}", "--calibration-method", "percentile", "m.onnx"]
    assert len(said) == 2
    for wrong in (["-p", "--calibrate_method Magic"], ["-d"], ["-s", "big"], ["--images", "x"]):
        with pytest.raises(ArgumentError):
            translate(wrong)


def test_a_bare_shape_is_that_of_the_first_input() -> None:
    found, _ = translate(["-s", "1,1,16,16", str(MODEL)])
    assert found == [str(MODEL), "-s", "input=1,1,16,16"]


def test_a_model_that_cannot_be_read_is_told_by_the_compile(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for name, code in (("text.onnx", "QAT001"), ("missing.onnx", "QAT002")):
        line = ["compile", "-t", "drpai", "-s", "1,1,16,16", "--images", str(tmp_path), str(tmp_path / name)]
        done = CliRunner().invoke(cli.cli, line)
        assert (done.exit_code, f"error[{code}]" in done.output) == (1, True), done.output


def test_a_model_without_inputs_is_refused(tmp_path: Path) -> None:
    text = net("() => (float[1,8] y)", "a = A(c)\ny = Neg(a)", "float[1,8] c = {1,2,3,4,5,6,7,8}", opset=13)
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    line = ["compile", "-t", "drpai", "-s", "1,8", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.cli, line)
    assert (done.exit_code, "error[QAT302]" in done.output) == (1, True), done.output
    assert not (tmp_path / "out").exists()


def test_other_targets_keep_their_options() -> None:
    guide = ["m.onnx", "-a", "pytorch"]
    for target in (["-t", "drpai"], ["-tdrpai"], ["--target", "drpai"], ["--target=drpai"]):
        translated, said = in_our_words([*guide, *target])
        assert translated[:4] == ["m.onnx", "-a", "-m", "pytorch"]
        assert said == ["drpai: -a pytorch: the guide's spelling of -a -m pytorch"]
    for other in ([], ["-t", "onnx"], ["-o", "drpai"], ["-t", "nothing"]):
        assert in_our_words([*guide, *other]) == ([*guide, *other], [])


def test_the_guides_own_command(tmp_path: Path) -> None:
    line = ["compile", "-t", "drpai", str(MODEL), "-o", str(tmp_path / "out"), "-s", "1,1,16,16", "-a", "pytorch"]
    result = CliRunner().invoke(cli.cli, [*line, "-v", "091", "-p", "az True"])
    assert result.exit_code == 0, result.output
    assert "drpai: -v 091: no effect" in result.output
    assert (tmp_path / "out" / "interpreter_out" / "ref_result_0_fp32.bin").stat().st_size == 40


# -- the vendor's tools --------------------------------------------------------------------------------------------
def test_missing_tools_are_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_ROOT", raising=False)
    options = {"quantizer_dir": str(tmp_path / "none"), "drp_compiler_dir": str(tmp_path)}
    with pytest.raises(CompileError) as caught:
        compile_model(tmp_path / "no_model.onnx", target="drpai", options=options)
    assert caught.value.exit_code == 2
    assert [d.message.split(":")[0] for d in caught.value.diagnostics] == [
        "quantizer_dir", "drp_compiler_dir", "drp_compiler_dir",
    ]  # fmt: skip


def test_tools_are_called_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, root = tmp_path / "drpai_quant", tmp_path / "tvm"
    (tools / "drpai_quantizer").mkdir(parents=True)
    (tools / "drpai_quantizer" / "__init__.py").touch()
    (tools / "drpai_quantizer" / "cli_interface.py").write_text(
        "import sys\n"
        "output = sys.argv[sys.argv.index('--output_model_path') + 1]\n"
        "open(output, 'w').write(' '.join(a for a in sys.argv[1:] if '/' not in a))\n"
    )
    (root / "tutorials").mkdir(parents=True)
    (root / "tutorials" / "compile_onnx_model_quant.py").write_text(
        "import os, sys\n"
        "folder = sys.argv[sys.argv.index('-o') + 1]\n"
        "os.makedirs(folder)\n"
        "open(folder + '/deploy.json', 'w').write(' '.join(a for a in sys.argv[1:] if '/' not in a))\n"
    )
    monkeypatch.setenv("TVM_ROOT", str(root))
    monkeypatch.setenv("PRODUCT", "V2H")
    options = {"quantizer_dir": str(tools), "drp_compiler_dir": str(tools), "quantization_option": "az True"}
    compile_model(MODEL, target="drpai", options=options, output=tmp_path / "out")
    left = tmp_path / "out" / "drpai" / "vendor"
    quantized = (left / "model_quantization.onnx").read_text()
    assert quantized == "--calibrate_method MinMax --input_model_path --output_model_path --tvm az True"
    called = (left / "deploy" / "deploy.json").read_text()
    assert called == "-o -s 1,1,16,16 -i input -d -c -p az True -a -m pytorch"


def test_the_quantizers_own_lists_are_used(tmp_path: Path) -> None:
    """Its options take one --opts: what the user wrote there is joined."""
    (tmp_path / "exclude_operator").mkdir()

    def options(text: str) -> list[str]:
        given = {"quantizer_dir": str(tmp_path), "quantization_option": text}
        command = quantizer_command(Path("a"), Path("b"), "minmax", given)
        return command[command.index("--tvm") + 1 :]

    lists = ["exclude_act_func_dir", "./exclude_operator"]
    assert options("") == ["--opts", *lists]
    assert options("az True") == ["az", "True", "--opts", *lists]
    assert options("--opts percentile_value 99.9") == ["--opts", *lists, "percentile_value", "99.9"]
    assert options("--opts exclude_act_func_dir ./mine") == ["--opts", "exclude_act_func_dir", "./mine"]


TOOL = """import json, os, sys
flags = sys.argv[1:]
out = flags[flags.index("--output_model_path" if "--output_model_path" in flags else "-o") + 1]
if "-o" in flags:
    os.makedirs(out)
    out += "/deploy.json"
json.dump({"flags": flags, "folders": [f for f in flags if os.path.isdir(f)]}, open(out, "w"))
"""


def test_the_guides_command_with_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders relative to where the user is, as in the guide; the tools run in folders of their own."""
    images = pytest.importorskip("PIL.Image")
    for file in ("drpai_quant/drpai_quantizer/cli_interface.py", "tvm/tutorials/compile_onnx_model_quant.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(TOOL)
    for folder in ("translator", "sdk", "frames"):
        (tmp_path / folder).mkdir()
    images.new("L", (20, 20), 90).save(tmp_path / "frames" / "0.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TVM_ROOT", str(tmp_path / "tvm"))
    monkeypatch.setenv("PRODUCT", "V2H")
    line = ["compile", str(MODEL), "-t", "drpai", "-o", "out", "-a", "pytorch", "-d", "translator", "-q", "drpai_quant"]
    line += ["-p", "az True", "-v", "091", "-s", "1,1,16,16", "-n", "2", "--images", "frames", "--toolchain_dir", "sdk"]
    done = CliRunner().invoke(cli.cli, line)
    assert done.exit_code == 0, done.output
    vendor = tmp_path / "out" / "drpai" / "vendor"
    assert "az" in json.loads((vendor / "model_quantization.onnx").read_text())["flags"]
    called = json.loads((vendor / "deploy" / "deploy.json").read_text())
    named = {Path(folder).name for folder in called["folders"]}
    assert named >= {"translator", "drpai_quant", "sdk", "frames"}
    assert called["flags"][0] == str(MODEL)


def test_missing_folders_stop_the_guides_command(tmp_path: Path) -> None:
    line = ["compile", str(MODEL), "-t", "drpai", "-o", str(tmp_path / "out"), "-a", "pytorch", "-q", "drpai_quant"]
    done = CliRunner().invoke(cli.cli, line)
    assert done.exit_code == 2
    assert "quantizer_dir: there is no folder drpai_quant" in done.output
    assert not (tmp_path / "out").exists()


# -- images ----------------------------------------------------------------------------------------------------------
def test_images_become_ranges(tmp_path: Path) -> None:
    """The recipe of the guide leaves five ranges out; a folder of images is enough to find them."""
    images = pytest.importorskip("PIL.Image")
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (30 + i, 40), np.uint8)
        images.fromarray(pixels).save(tmp_path / f"{i}.png")
    line = ["compile", str(RECIPE / "model.onnx"), "-t", "drpai", "-o", str(tmp_path / "out"), "-a", "-m", "Pytorch"]
    bare = CliRunner().invoke(cli.cli, line)
    assert bare.exit_code == 0, bare.output
    assert "13 in float" in bare.output
    assert "QAT208" in bare.output  # and says which tensors have no range
    done = CliRunner().invoke(cli.cli, [*line, "--images", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "4 images, for ranges that the model leaves out" in done.output
    assert "100% of 3.07 M multiply-accumulates (27 operators, 0 in float)" in done.output


def test_a_damaged_image_is_told_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    line = ["compile", str(RECIPE / "model.onnx"), "-t", "drpai", "-o", str(tmp_path / "out"), "-a", "-m", "Pytorch"]
    done = CliRunner().invoke(cli.cli, [*line, "--images", str(tmp_path)])
    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert "QAT008 cannot read the image" in done.output
    assert "cut.png" in done.output


def test_an_image_that_grows_beyond_reason_is_named(tmp_path: Path) -> None:
    """One pixel high, it was to become as high as the input and a little more, and so wide."""
    pytest.importorskip("PIL.Image").new("L", (1 << 24, 1)).save(tmp_path / "line.png")
    with pytest.raises(CompileError, match=r"QAT008.*line\.png: 16777216 x 1 pixels become 306,783,378 x 18"):
        translate(["--images", str(tmp_path), str(MODEL)])


@pytest.mark.skipif(os.name != "posix", reason="names of 255 bytes, and pipes")
def test_what_cannot_be_looked_at_is_a_usage_error(tmp_path: Path) -> None:
    """It was QAT015, standard output cannot be written; a pipe was waited for."""
    done = CliRunner().invoke(cli.cli, ["compile", "-t", "drpai", "--images", "n" * 300, str(MODEL)])
    assert (done.exit_code, "File name too long" in done.output) == (2, True), done.output
    assert "QAT" not in done.output
    os.mkfifo(tmp_path / "pipe.onnx")
    done = CliRunner().invoke(cli.cli, ["compile", "-t", "drpai", "-s", "1,2", str(tmp_path / "pipe.onnx")])
    assert (done.exit_code, "is not a regular file" in done.output) == (1, True), done.output


def test_the_guides_recipe_keeps_its_accuracy(tmp_path: Path) -> None:
    """With calibration data: all products in integers, within half a point of the fake-quantized network."""
    result = compile_model(
        RECIPE / "model.onnx", qat=True, dialect="pytorch", target="drpai", calibrate=RECIPE / "calibration.npy",
        output=tmp_path / "out",
    )  # fmt: skip
    assert result.coverage.share == 1.0
    assert not result.islands
    x, y = np.load(RECIPE / "eval_x.npy"), np.load(RECIPE / "eval_y.npy")

    def right(model: Path, level: ort.GraphOptimizationLevel) -> float:
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(model, options)
        (output,) = session.run(None, {session.get_inputs()[0].name: x})
        return 100 * float((np.asarray(output).argmax(1) == y).mean())

    trained = right(RECIPE / "model.onnx", ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    deployed = right(tmp_path / "out" / "model.onnx", ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    assert trained > 90
    assert deployed >= trained - 0.5


def test_a_tool_that_fails_leaves_no_package(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CompileError, match="No module named"):
        compile_model(
            MODEL, target="drpai", options={"quantizer_dir": str(tmp_path / "empty")}, output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
