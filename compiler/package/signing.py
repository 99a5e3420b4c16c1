"""Signatures of packages: who made it, and that nobody changed it since. Key pairs in files; nothing goes on line.

The `model-signing` library (extra `sign`) hashes every file of the package and signs the list as a Sigstore bundle,
which lies in the package as `package.sig`: made after the manifest, so no hash covers it, and it covers all the rest.
Keys are PEM files of the elliptic curves P-256, P-384 or P-521. A certificate of the key says whose it is: then an
identity can be demanded, where the certificate was issued under a root that the user trusts.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qatc.compiler.damaged import reason
from qatc.compiler.diagnostics import CompileError, fail, misused, printable
from qatc.compiler.package.read import LARGEST_JSON, SIGNATURE, regular_file
from qatc.compiler.storage import scratch_folder

if TYPE_CHECKING:
    from types import ModuleType

_INSTALL: Final = "pip install 'qatc[sign]'"
_MAKE: Final = "openssl ecparam -name prime256v1 -genkey -noout makes a key pair, openssl ec -pubout its public half"
_FAILED: Final = 3
_UNREADABLE: Final = (OSError, ValueError, TypeError, AttributeError)  # of the library's own readers of PEM files

Seal = Callable[[Path], bytes]


def sealer(key: Path | None, certificate: Path | None = None) -> Seal | None:
    """What signs a finished folder with the private key in a PEM file; None without a key.

    The returned function takes the folder, which holds no signature yet, and returns the signature's bytes. They
    differ from run to run: ECDSA draws a number.

    Args:
        key: the private key.
        certificate: a PEM file of the key's certificate, and behind it those it was issued under, roots left out: they
            go into the signature, so that the identity in the certificate can be checked.

    Raises:
        CompileError: QAT010 where model-signing is not installed, QAT007 (exit code 2) where a file is no such key, or
            no certificate of it.
    """
    if key is None:
        if certificate is not None:
            raise misused("a certificate signs nothing without its private key", "add --sign KEY.pem")
        return None
    signing: Any = _library("model_signing.signing")
    config = signing.Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_signer(private_key=key)
    except _UNREADABLE as error:
        raise _wrong_key("private", key, error) from error
    if certificate is not None:
        _use_certificate(config, key, certificate)

    def seal(folder: Path) -> bytes:
        with scratch_folder() as scratch:
            path = scratch / SIGNATURE
            config.sign(folder, path)
            return path.read_bytes()

    return seal


def _use_certificate(config: Any, key: Path, certificate: Path) -> None:
    with scratch_folder() as scratch:  # the library wants one file for the first and one for the rest
        own, others = scratch / "own.pem", scratch / "others.pem"
        try:
            first, *rest = _certificates(certificate)
            own.write_bytes(first)
            others.write_bytes(b"".join(rest))
            config.use_certificate_signer(
                private_key=key, signing_certificate=own, certificate_chain=[others] if rest else []
            )
        except _UNREADABLE as error:
            message = f"{printable(str(certificate))} holds no certificate of this key: {reason(error)}"
            raise misused(message, "give a PEM file, the certificate of the key that --sign names first") from error


def _certificates(path: Path) -> list[bytes]:
    """The certificates of a PEM file, each as PEM; ValueError where there is none."""
    x509: Any = _library("cryptography.x509")
    pem: Any = _library("cryptography.hazmat.primitives.serialization").Encoding.PEM
    return [each.public_bytes(pem) for each in x509.load_pem_x509_certificates(path.read_bytes())]


def check_signature(
    folder: Path, key: Path | None = None, *, identity: str | None = None, roots: Path | None = None
) -> None:
    """Check that a package is what the owner of a key, or somebody whose certificate says so, signed.

    Args:
        folder: the package.
        key: the public key, a PEM file; or
        identity: the name (of mail, host, service or person) that the signer's certificate states, as it stands there,
        roots: and a PEM file of the certificates under which, and under no others, it must have been issued.

    Raises:
        CompileError: QAT504 with exit code 3 where the package has no signature, one by another key or identity, or
            files that are not what was signed; QAT010 where model-signing is not installed; QAT007 with exit code 2
            for a wrong key and for what cannot be checked.
    """
    _check_question(key, identity, roots)
    verifying: Any = _library("model_signing.verifying")
    config = verifying.Config().set_hashing_config(_hashing())
    try:
        if key is not None:
            config.use_elliptic_key_verifier(public_key=key)
        elif roots is not None:
            _certificates(roots)  # the library takes all the world's roots for a file without one
            config.use_certificate_verifier(certificate_chain=[roots])
    except _UNREADABLE as error:
        if key is None:
            message = f"{printable(str(roots))} holds no certificates: {reason(error)}"
            raise misused(message, "give a PEM file of the roots that you trust") from error
        raise _wrong_key("public", key, error) from error
    data = _signature(folder)
    with scratch_folder() as scratch:
        path = scratch / SIGNATURE
        path.write_bytes(data)  # what is verified is what the identity is read from
        shown = printable(str(folder))
        try:
            config.verify(folder, path)
            names = _identities(data) if identity is not None else []
        except Exception as error:  # the library lets through whatever its parsers raise at a damaged signature
            raise _refused(f"the signature of {shown} does not hold: {reason(error)}") from error
    if identity is not None and identity not in names:
        known = ", ".join(map(printable, names)) or "nobody"
        raise _refused(f"{shown} was signed by {known}, not by {printable(identity)}")


def _check_question(key: Path | None, identity: str | None, roots: Path | None) -> None:
    """An identity takes roots to trust, and a key needs neither."""
    if key is not None and (identity is not None or roots is not None):
        raise misused("a key is an identity of its own", "give --key, or --identity with --roots")
    if key is None and roots is None:
        message = (
            "an identity is only as good as who vouches for it: that of a public service would be checked with its "
            "roots and its log on the network, which qatc does not use"
        )
        hint = "add --roots ROOTS.pem, the certificates of the authority that you trust, or check a key with --key"
        raise misused(message, hint)
    if key is None and identity is None:
        raise misused("roots vouch for everybody they issued a certificate to", "add --identity NAME")


def _signature(folder: Path) -> bytes:
    shown = printable(str(folder))
    try:
        path = regular_file(folder, SIGNATURE)
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("the signature is larger than any signature is")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise _refused(f"{shown} is not signed", "compile it with --sign KEY.pem") from error
    except (OSError, ValueError) as error:
        raise _refused(f"the signature of {shown} cannot be read: {reason(error)}") from error


def _identities(bundle: bytes) -> list[str]:
    """The names in the certificate of a bundle that was verified: alternative names, else the common name."""
    x509: Any = _library("cryptography.x509")
    held = json.loads(bundle)["verificationMaterial"]["x509CertificateChain"]["certificates"][0]["rawBytes"]
    certificate = x509.load_der_x509_certificate(base64.b64decode(held, validate=True))
    try:
        stated = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return [str(each.value) for each in common]
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    return [name for kind in kinds for name in stated.get_values_for_type(kind)]


def _hashing() -> Any:
    """Every file of the folder but the signature itself; links are an error."""
    hashing: Any = _library("model_signing.hashing")
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        message = f"signatures need the library model-signing: {error}"
        raise misused(message, _INSTALL, "QAT010") from error


def _wrong_key(kind: str, key: Path, error: Exception) -> CompileError:
    return misused(f"{printable(str(key))} holds no {kind} key for signatures: {reason(error)}", _MAKE)


def _refused(
    message: str, hint: str = "do not use this package: ask whoever signed it for another copy"
) -> CompileError:
    error = fail("QAT504", message, hint=hint)
    error.exit_code = _FAILED
    return error
