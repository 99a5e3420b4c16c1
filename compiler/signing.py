"""Signatures of packages: who made it, and that nobody changed it since. Key pairs in files; nothing goes on line.

The `model-signing` library (extra `sign`) hashes every file of the package and signs the list as a Sigstore bundle,
which lies in the package as `package.sig`: made after the manifest, so no hash covers it, and it covers all the rest.
Keys are PEM files of the elliptic curves P-256, P-384 or P-521.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from qatc.compiler.diagnostics import CompileError, Diagnostic, fail, printable
from qatc.compiler.package.read import LARGEST_JSON, SIGNATURE, regular_file

if TYPE_CHECKING:
    from types import ModuleType

_INSTALL: Final = "pip install 'qatc[sign]'"
_MAKE: Final = "openssl ecparam -name prime256v1 -genkey -noout makes a key pair, openssl ec -pubout its public half"
_FAILED: Final = 3

Seal = Callable[[Path], bytes]


def sealer(key: Path | None) -> Seal | None:
    """What signs a finished folder with the private key in a PEM file; None without a key.

    The returned function takes the folder, which holds no signature yet, and returns the signature's bytes. They
    differ from run to run: ECDSA draws a number.

    Raises:
        CompileError: QAT010 where model-signing is not installed, QAT007 (exit code 2) where the file is no such key.
    """
    if key is None:
        return None
    signing: Any = _library("signing")
    config = signing.Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_signer(private_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _wrong_key("private", key, error) from error

    def seal(folder: Path) -> bytes:
        with TemporaryDirectory(prefix="qatc-") as scratch:
            path = Path(scratch) / SIGNATURE
            config.sign(folder, path)
            return path.read_bytes()

    return seal


def check_signature(folder: Path, key: Path) -> None:
    """Check that a package is what the owner of a key signed.

    Args:
        folder: the package.
        key: the public key, a PEM file.

    Raises:
        CompileError: QAT504 with exit code 3 where the package has no signature, one by another key, or files that are
            not what was signed; QAT010 where model-signing is not installed; QAT007 with exit code 2 for a wrong key.
    """
    verifying: Any = _library("verifying")
    config = verifying.Config().set_hashing_config(_hashing())
    try:
        config.use_elliptic_key_verifier(public_key=key)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _wrong_key("public", key, error) from error
    shown = printable(str(folder))
    try:
        path = regular_file(folder, SIGNATURE)
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError("the signature is larger than any signature is")
    except FileNotFoundError as error:
        raise _refused(f"{shown} is not signed", "compile it with --sign KEY.pem") from error
    except (OSError, ValueError) as error:
        raise _refused(f"the signature of {shown} cannot be read: {printable(str(error))}") from error
    try:
        config.verify(folder, path)
    except Exception as error:  # the library lets through whatever its parsers raise at a damaged signature
        reason = printable(str(error) or type(error).__name__)
        raise _refused(f"the signature of {shown} does not hold: {reason}") from error


def _hashing() -> Any:
    """Every file of the folder but the signature itself; links are an error."""
    hashing: Any = _library("hashing")
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _library(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        message = f"signatures need the library model-signing: {error}"
        raise CompileError([Diagnostic("QAT010", message, hint=_INSTALL)], 2) from error


def _wrong_key(kind: str, key: Path, error: Exception) -> CompileError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    message = f"{printable(str(key))} holds no {kind} key for signatures: {printable(reason)}"
    return CompileError([Diagnostic("QAT007", message, hint=_MAKE)], 2)


def _refused(
    message: str, hint: str = "do not use this package: ask whoever signed it for another copy"
) -> CompileError:
    error = fail("QAT504", message, hint=hint)
    error.exit_code = _FAILED
    return error
