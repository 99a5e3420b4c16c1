"""Signed packages: what was signed verifies wherever it is copied, and nothing else does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qatc import CompileError, compile_model, verify_package
from qatc.cli import cli
from qatc.compiler import signing
from qatc.compiler.signing import check_signature, sealer

MODEL = Path(__file__).resolve().parent.parent / "samples" / "models" / "resnet8_qat.onnx"
SIGNATURE = "package.sig"


# -- without the library ----------------------------------------------------------------------------------------------
def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError("No module named 'model_signing'")

    monkeypatch.setattr("importlib.import_module", missing)
    (tmp_path / "key.pem").write_text("x")
    for call in (lambda: sealer(tmp_path / "key.pem"), lambda: check_signature(tmp_path, tmp_path / "key.pem")):
        with pytest.raises(CompileError) as caught:
            call()
        (found,) = caught.value.diagnostics
        assert (found.code, found.hint) == ("QAT010", "pip install 'qatc[sign]'")
    assert sealer(None) is None


def test_the_seal_is_part_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that is sealed holds everything else; where sealing fails, the old package stays."""
    seen: list[list[str]] = []

    def seal(folder: Path) -> bytes:
        seen.append(sorted(p.name for p in folder.iterdir()))
        return b"signature"

    monkeypatch.setattr("qatc.compiler.driver.sealer", lambda key: seal)
    out = tmp_path / "out"
    compile_model(MODEL, qat=True, output=out)
    assert (out / SIGNATURE).read_bytes() == b"signature"
    assert sorted([*seen[0], SIGNATURE]) == sorted(p.name for p in out.iterdir())
    assert "manifest.json" in seen[0]
    assert SIGNATURE not in (out / "manifest.json").read_text()
    assert verify_package(out).diagnostics == ()

    def broken(folder: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("qatc.compiler.driver.sealer", lambda key: broken)
    with pytest.raises(OSError, match="Input/output"):
        compile_model(MODEL, qat=True, output=out)
    assert (out / SIGNATURE).read_bytes() == b"signature"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


# -- with it ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two key pairs, one on a curve that is not supported, and a file that holds none."""
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, found = tmp_path_factory.mktemp("keys"), dict[str, Path]()
    for name, curve in (("a", ec.SECP256R1()), ("b", ec.SECP384R1()), ("odd", ec.SECP256K1())):
        key = ec.generate_private_key(curve)
        found[name], found[f"{name}.pub"] = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        plain = form.NoEncryption()
        found[name].write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, plain))
        public = form.PublicFormat.SubjectPublicKeyInfo
        found[f"{name}.pub"].write_bytes(key.public_key().public_bytes(form.Encoding.PEM, public))
    found["none"] = folder / "none.pem"
    found["none"].write_text("no key\n")
    return found


@pytest.fixture(scope="module")
def signed(keys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("signed") / "out"
    compile_model(MODEL, qat=True, output=out, sign=keys["a"])
    return out


def test_what_was_signed_verifies_wherever_it_is(signed: Path, keys: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(signed, tmp_path / "elsewhere")
    for place in (signed, tmp_path / "elsewhere"):
        assert verify_package(place, key=keys["a.pub"]).diagnostics == ()
        assert verify_package(place).diagnostics == ()
    assert str(tmp_path).encode() not in (signed / SIGNATURE).read_bytes()


def test_the_signature_is_all_that_differs(signed: Path, tmp_path: Path) -> None:
    compile_model(MODEL, qat=True, output=tmp_path / "out")
    names = {p.relative_to(signed) for p in signed.rglob("*") if p.is_file()}
    assert names - {Path(SIGNATURE)} == {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")}
    for name in names - {Path(SIGNATURE)}:
        assert (signed / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


HARM: dict[str, Callable[[Path], object]] = {
    "a changed file": lambda folder: (folder / "check.py").write_text("import os\n"),
    "a missing file": lambda folder: (folder / "report.html").unlink(),
    "an added file": lambda folder: (folder / "more.py").write_text("x"),
    "an added git file": lambda folder: (folder / ".gitattributes").write_text("x"),
    "a changed signature": lambda folder: (folder / SIGNATURE).write_bytes(
        (folder / SIGNATURE).read_bytes().replace(b'"sig": "M', b'"sig": "N').replace(b'"sig":"M', b'"sig":"N')
    ),
    "no signature": lambda folder: (folder / SIGNATURE).unlink(),
    "an empty signature": lambda folder: (folder / SIGNATURE).write_bytes(b""),
    "a signature that is none": lambda folder: (folder / SIGNATURE).write_bytes(b'{"mediaType": 5}'),
    "a link": lambda folder: ((folder / SIGNATURE).unlink(), (folder / SIGNATURE).symlink_to("/dev/zero")),
}


@pytest.mark.parametrize("name", HARM)
def test_what_was_harmed_does_not(signed: Path, keys: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(signed, folder)
    HARM[name](folder)
    with pytest.raises(CompileError) as caught:
        verify_package(folder, key=keys["a.pub"])
    assert (caught.value.exit_code, [d.code for d in caught.value.diagnostics]) == (3, ["QAT504"])
    assert str(caught.value).replace("\n", "").isprintable()


def test_another_key(signed: Path, keys: dict[str, Path]) -> None:
    with pytest.raises(CompileError, match=r"does not hold: .*[Kk]ey mismatch"):
        verify_package(signed, key=keys["b.pub"])


@pytest.mark.parametrize("name", ["none", "odd", "missing", "a.pub"])
def test_keys_that_are_none(keys: dict[str, Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(CompileError) as caught:
        sealer(keys.get(name, tmp_path / "missing.pem"))
    assert (caught.value.exit_code, [d.code for d in caught.value.diagnostics]) == (2, ["QAT007"])
    if name != "a.pub":
        with pytest.raises(CompileError, match="holds no public key"):
            check_signature(tmp_path, keys.get(f"{name}.pub", keys["none"]))


def test_the_command(keys: dict[str, Path], tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run = CliRunner().invoke
    assert run(cli, ["compile", "-a", str(MODEL), "-o", out, "-q", "--sign", str(keys["b"])]).exit_code == 0
    assert run(cli, ["verify", out, "--key", str(keys["b.pub"])]).exit_code == 0
    refused = run(cli, ["verify", out, "--key", str(keys["a.pub"])])
    assert refused.exit_code == 3
    assert "QAT504" in refused.output
    assert run(cli, ["compile", "-a", str(MODEL), "-o", out, "--sign", str(keys["none"])]).exit_code == 2
    assert signing.SIGNATURE == SIGNATURE
