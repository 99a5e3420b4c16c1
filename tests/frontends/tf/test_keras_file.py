"""Keras files are looked through before Keras loads them: what would run code is refused, networks are not."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qatc import CompileError
from qatc.frontends.tf.keras_file import check, findings

TFMOT = "tensorflow_model_optimization.python.core.quantization.keras"
NETWORK: dict[str, Any] = {
    "module": "tf_keras.src.engine.functional",
    "class_name": "Functional",
    "config": {
        "layers": [
            {"module": "keras.layers", "class_name": "InputLayer", "config": {"name": "x"}},
            {
                "module": f"{TFMOT}.quantize_wrapper",
                "class_name": "QuantizeWrapperV2",
                "config": {
                    "layer": {
                        "module": "keras.layers",
                        "class_name": "Dense",
                        "config": {
                            "activation": {"module": "builtins", "class_name": "function", "config": "relu"},
                            "kernel_initializer": {"module": "keras.initializers", "class_name": "Zeros", "config": {}},
                        },
                    },
                    "quantize_config": {"class_name": "Default8BitQuantizeConfig", "config": {}},
                },
            },
            {"class_name": "TFOpLambda", "config": {"function": "compat.v1.transpose"}},
            {"class_name": "TFOpLambda", "config": {"function": "math.multiply"}},
            {"class_name": "SlicingOpLambda", "config": {"function": "__operators__.getitem"}},
        ]
    },
}
HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"class_name": "Lambda", "config": {"function": ["4wEAAAA", None, None]}}, "a Lambda layer"),
    ({"class_name": "__lambda__", "config": {"value": "4wEAAAA"}}, "a lambda layer"),
    ({"class_name": "Dense", "config": {"function_type": "lambda"}}, "byte code"),
    ({"class_name": "RNN", "config": {"residual_fn_type": "lambda"}}, "byte code"),
    ({"class_name": "ResidualWrapper", "config": {}}, "ResidualWrapper"),
    ({"module": "os", "class_name": "function", "config": "system"}, "os.system"),
    ({"module": "builtins", "class_name": "exec", "config": {}, "registered_name": "exec"}, "builtins.exec"),
    ({"module": "builtins", "class_name": "function", "config": "exec"}, "builtins.exec"),
    ({"module": "subprocess", "class_name": "Popen", "config": {"args": ["id"]}}, "subprocess.Popen"),
    ({"module": "keras.utils", "class_name": "function", "config": "get_file"}, "keras.utils.get_file"),
    ({"module": "keras.layers", "class_name": "function", "config": "anything"}, "keras.layers.anything"),
    ({"module": "tf_keras.src.utils.generic_utils", "class_name": "os", "config": {}}, "generic_utils.os"),
    ({"module": "keras.src.utils.generic_utils", "class_name": "os", "config": {}}, "generic_utils.os"),
    ({"module": "my_package.layers", "class_name": "Own", "config": {}}, "belongs to neither Keras nor tfmot"),
    ({"class_name": "TFOpLambda", "config": {"function": "io.write_file"}}, "io.write_file"),
    ({"class_name": "TFOpLambda", "config": {"function": "io.gfile.rmtree"}}, "io.gfile.rmtree"),
    ({"class_name": "TFOpLambda", "config": {"function": "py_function"}}, "py_function"),
    ({"class_name": "TFOpLambda", "config": {"function": "compat.v1.gfile.Remove"}}, "gfile"),
    ({"class_name": "TFOpLambda", "config": {}}, "None"),
    ({"class_name": "ClassMethod", "config": {"cls_ref": "os"}}, "ClassMethod"),
]


def test_a_trained_network_holds_no_code() -> None:
    assert list(findings(NETWORK)) == []


def test_keras_within_tensorflow_names_its_own_modules_otherwise() -> None:
    quantizer = {"function": "quantization.fake_quant_with_min_max_vars"}
    layer = {"module": "keras.src.layers.core.tf_op_layer", "class_name": "TFOpLambda", "config": quantizer}
    assert list(findings({**NETWORK, "module": "keras.src.engine.functional", "extra": layer})) == []


@pytest.mark.parametrize(("entry", "said"), HOSTILE)
def test_code_is_found_wherever_it_is(entry: dict[str, Any], said: str) -> None:
    for place in (entry, [entry], {"layers": [[entry]]}, {"config": {"quantizer": {"deep": {"er": entry}}}}):
        assert any(said in found for found in findings(place)), place


KEYS = st.sampled_from(["class_name", "module", "config", "function", "x_type"]) | st.text()
SCALARS = st.none() | st.booleans() | st.floats() | st.text()


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner)))
def test_any_json_is_looked_through(value: object) -> None:
    assert all(isinstance(found, str) for found in findings(value))


def test_depth_is_no_obstacle() -> None:
    value: object = HOSTILE[0][0]
    for _ in range(100_000):
        value = [value]
    assert list(findings(value)) == ["a Lambda layer"]


# -- the archive ----------------------------------------------------------------------------------------------------
def archive(
    path: Path, config: object = NETWORK, *, version: str = "2.21.0", weights: bytes = b"", **others: bytes
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("metadata.json", json.dumps({"keras_version": version}))
        file.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        file.writestr("model.weights.h5", weights)
        for name, content in others.items():
            file.writestr(name.replace("__", "/"), content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(CompileError) as raised:
        check(path)
    return str(raised.value)


def test_a_plain_archive_passes(tmp_path: Path) -> None:
    check(archive(tmp_path / "net.keras"))
    optimizer = {"module": "my_optimizers", "class_name": "Own", "config": {}}
    check(archive(tmp_path / "net.keras", {**NETWORK, "compile_config": optimizer}))  # it is not loaded


@pytest.mark.parametrize(("entry", "said"), HOSTILE[:3])
def test_an_archive_with_code_is_refused(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    message = refused(archive(tmp_path / "net.keras", {"config": {"layers": [entry]}}))
    assert "QAT013" in message
    assert said in message
    assert "SavedModel" in message


def test_archives_with_more_in_them(tmp_path: Path) -> None:
    assert "assets/words" in refused(archive(tmp_path / "net.keras", assets__words=b""))
    weights = {"model.weights.npz": b"PK"}
    assert "model.weights.npz" in refused(archive(tmp_path / "net.keras", **weights))


def test_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "net.keras"
    path.write_bytes(b"not a model")
    assert "neither Keras's zip archive nor HDF5" in refused(path)
    whole = archive(tmp_path / "whole.keras").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a whole Keras archive" in refused(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", "{}")
    assert "metadata.json" in refused(path)
    assert "not JSON" in refused(archive(path, b"{"))
    assert "not JSON" in refused(archive(path, b"[" * 100_000))


def test_keras_3_is_named(tmp_path: Path) -> None:
    message = refused(archive(tmp_path / "net.keras", version="3.15.1"))
    assert "QAT012" in message
    assert "Keras 3.15.1" in message
    assert "tf_keras" in message


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path) -> None:
    message = refused(archive(tmp_path / "net.keras", b" " * ((1 << 26) + 1)))
    assert "QAT005" in message
    assert "67,108,865 bytes" in message


# -- HDF5 -----------------------------------------------------------------------------------------------------------
def outside(h5py: Any, group: Any, way: str) -> None:
    """Put something into HDF5 whose content lies in another file."""
    if way == "link":
        group["w"] = h5py.ExternalLink("/etc/other.h5", "w")
    elif way == "raw":
        group.create_dataset("w", (2,), "<f4", external=[("/etc/hostname", 0, 8)])
    else:
        layout = h5py.VirtualLayout((2,), "<f4")
        layout[:] = h5py.VirtualSource("/etc/other.h5", "w", (2,))
        group.create_virtual_dataset("w", layout)


@pytest.mark.parametrize("way", ["link", "raw", "virtual"])
@pytest.mark.parametrize("zipped", [False, True])
def test_weights_in_other_files_are_refused(tmp_path: Path, zipped: bool, way: str) -> None:
    h5py: Any = pytest.importorskip("h5py")
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(NETWORK)
        outside(h5py, file.create_group("layers/dense"), way)
    if zipped:
        path = archive(tmp_path / "net.keras", weights=path.read_bytes())
    message = refused(path)
    assert "QAT013" in message
    assert "/etc/" in message


def test_links_and_types_inside_are_no_obstacle(tmp_path: Path) -> None:
    h5py: Any = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(NETWORK)
        file["w"], file["again"], file["nowhere"] = [1.0, 2.0], h5py.SoftLink("/w"), h5py.SoftLink("/none")
        file["kind"] = file["w"].dtype
        layout = h5py.VirtualLayout((2,), "<f8")
        layout[:] = h5py.VirtualSource(file["w"])
        file.create_virtual_dataset("own", layout)
    check(tmp_path / "net.h5")
    check(archive(tmp_path / "net.keras", weights=(tmp_path / "net.h5").read_bytes()))


def test_a_description_that_is_no_text(tmp_path: Path) -> None:
    h5py: Any = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "net.h5", "w") as file:
        file.attrs["model_config"] = 5
    assert "not JSON" in refused(tmp_path / "net.h5")
