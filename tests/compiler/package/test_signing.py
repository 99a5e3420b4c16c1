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
from qatc.compiler.package import signing
from qatc.compiler.package.signing import check_signature, sealer

MODEL = Path(__file__).resolve().parents[3] / "samples" / "models" / "resnet8_qat.onnx"
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

    monkeypatch.setattr("qatc.compiler.driver.compile.sealer", lambda *files: seal)
    out = tmp_path / "out"
    compile_model(MODEL, qat=True, output=out)
    assert (out / SIGNATURE).read_bytes() == b"signature"
    assert sorted([*seen[0], SIGNATURE]) == sorted(p.name for p in out.iterdir())
    assert "manifest.json" in seen[0]
    assert SIGNATURE not in (out / "manifest.json").read_text()
    assert verify_package(out).diagnostics == ()

    def broken(folder: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("qatc.compiler.driver.compile.sealer", lambda *files: broken)
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


# -- identities -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"identity": "a@b.c"}, "add --roots ROOTS.pem"),
        ({"roots": "r.pem"}, "add --identity NAME"),
        ({"key": "k.pem", "identity": "a@b.c"}, "give --key, or --identity with --roots"),
        ({"key": "k.pem", "roots": "r.pem"}, "give --key, or --identity with --roots"),
    ],
)
def test_questions_without_an_answer(tmp_path: Path, given: dict[str, str], said: str) -> None:
    """They need no library to be refused, and no package is looked at."""
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CompileError) as caught:
        verify_package(tmp_path, **given)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert caught.value.exit_code == 2
    assert [d.code for d in caught.value.diagnostics] == ["QAT007"]
    assert said in str(caught.value.diagnostics[0].hint)
    arguments = [word for name, value in given.items() for word in (f"--{name}", value)]
    done = CliRunner().invoke(cli, ["verify", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="without its private key"):
        compile_model(MODEL, certificate=tmp_path / "cert.pem", output=tmp_path / "out")


class Authority:
    """A root that issues certificates, with one step between."""

    def __init__(self, folder: Path, name: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        self.folder, self.name = folder, name
        self.root_key, self.middle_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self._issued(f"root of {name}", self.root_key, f"root of {name}", self.root_key, authority=True)
        self.middle = self._issued(f"{name}", self.middle_key, f"root of {name}", self.root_key, authority=True)
        self.roots = folder / f"{name}.roots.pem"
        self.roots.write_bytes(self._pem(self.root))

    def issue(self, key_file: Path, label: str, **how: Any) -> Path:
        """A certificate for the private key in a file, and the one it was issued under."""
        from cryptography.hazmat.primitives import serialization

        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        path = self.folder / f"{label}.cert.pem"
        path.write_bytes(
            self._pem(self._issued("a person", key, self.name, self.middle_key, **how)) + self._pem(self.middle)
        )
        return path

    @staticmethod
    def _pem(certificate: Any) -> bytes:
        from cryptography.hazmat.primitives import serialization

        found: bytes = certificate.public_bytes(serialization.Encoding.PEM)
        return found

    @staticmethod
    def _issued(
        subject: str,
        key: Any,
        issuer: str,
        signer: Any,
        *,
        names: Any = (),
        authority: bool = False,
        signs: bool = True,
    ) -> Any:
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        began = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)
        build = x509.CertificateBuilder(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]),
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]),
            key.public_key(),
            x509.random_serial_number(),
            began,
            began + datetime.timedelta(days=90),
        )
        build = build.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        usage = x509.KeyUsage(signs, False, False, False, not signs, authority, authority, False, False)
        build = build.add_extension(usage, critical=True)
        if names:
            build = build.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
        return build.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def authorities(keys: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    folder = tmp_path_factory.mktemp("authorities")
    return Authority(folder, "ours"), Authority(folder, "theirs")


@pytest.fixture(scope="module")
def certified(
    keys: dict[str, Path], authorities: tuple[Authority, Authority], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Packages by who signed them."""
    from cryptography import x509

    ours, theirs = authorities
    mail, host = x509.RFC822Name("build@example.com"), x509.DNSName("ci.example.com")
    certificates = {
        "build": ours.issue(keys["a"], "build", names=[mail, host]),
        "theirs": theirs.issue(keys["a"], "theirs", names=[mail]),
        "person": ours.issue(keys["b"], "person"),
        "unfit": ours.issue(keys["a"], "unfit", names=[mail], signs=False),
    }
    found: dict[str, Path] = {}
    for name, certificate in certificates.items():
        key = keys["b"] if name == "person" else keys["a"]
        found[name] = tmp_path_factory.mktemp("certified") / name
        compile_model(MODEL, qat=True, output=found[name], verify=False, sign=key, certificate=certificate)
    return found


def refusal(folder: Path, identity: str, roots: Path) -> str:
    """Why a package is refused, "" where it is not."""
    try:
        verify_package(folder, identity=identity, roots=roots, samples=False)
    except CompileError as error:
        known = (error.exit_code, [d.code for d in error.diagnostics]) == (3, ["QAT504"])
        return str(error) if known else f"unexpected: {error!r}"
    return ""


def test_identities(certified: dict[str, Path], authorities: tuple[Authority, Authority]) -> None:
    """The name that the certificate states, under the root that is trusted; though it expired long ago."""
    ours, theirs = authorities
    for name in ("build@example.com", "ci.example.com"):
        assert refusal(certified["build"], name, ours.roots) == ""
    assert refusal(certified["person"], "a person", ours.roots) == ""
    for name in ("Build@example.com", "build@example.com.evil", "example.com", "a person", ""):
        assert "was signed by build@example.com, ci.example.com, not by" in refusal(
            certified["build"], name, ours.roots
        )
    assert "does not hold" in refusal(certified["theirs"], "build@example.com", ours.roots)
    assert "does not hold" in refusal(certified["build"], "build@example.com", theirs.roots)
    assert "cannot be used for signing" in refusal(certified["unfit"], "build@example.com", ours.roots)


def test_an_identity_does_not_cover_another_package(
    signed: Path, certified: dict[str, Path], authorities: tuple[Authority, Authority], tmp_path: Path
) -> None:
    ours, _ = authorities
    folder = tmp_path / "out"
    shutil.copytree(certified["build"], folder)
    (folder / "check.py").write_text("import os\n")
    assert "does not hold" in refusal(folder, "build@example.com", ours.roots)
    assert "does not hold" in refusal(signed, "build@example.com", ours.roots)  # by a key alone
    (folder / SIGNATURE).write_bytes(b"{}")
    assert "does not hold" in refusal(folder, "build@example.com", ours.roots)


def test_certificates_that_are_none(
    keys: dict[str, Path], authorities: tuple[Authority, Authority], certified: dict[str, Path], tmp_path: Path
) -> None:
    ours, _ = authorities
    other = ours.issue(keys["b"], "other")
    for certificate in (keys["none"], tmp_path / "missing.pem", other, keys["a"]):
        with pytest.raises(CompileError, match="holds no certificate of this key") as caught:
            sealer(keys["a"], certificate)
        assert (caught.value.exit_code, [d.code for d in caught.value.diagnostics]) == (2, ["QAT007"])
    for roots in (keys["none"], tmp_path / "missing.pem", keys["a.pub"]):
        with pytest.raises(CompileError, match="holds no certificates") as caught:
            verify_package(certified["build"], identity="a", roots=roots)
        assert (caught.value.exit_code, [d.code for d in caught.value.diagnostics]) == (2, ["QAT007"])
