"""npy files: whatever is in one, it is read as numpy reads it, or refused before memory is taken."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qatc.compiler.diagnostics import CompileError
from qatc.compiler.npy import mapped_npy, npy_array
from qatc.compiler.package import source_file
from qatc.compiler.package.samples import npy_bytes


@given(
    arrays.arrays(
        st.sampled_from([np.dtype(t) for t in ("?", "i1", "<u2", ">i4", "<f2", ">f8", "<u8", "<c8")]),
        arrays.array_shapes(min_dims=0, min_side=0),
    ),
    st.booleans(),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
)
def test_every_plain_array_comes_back(array: np.ndarray, fortran: bool, version: tuple[int, int]) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array, order="F" if fortran else "C"), version)
    found = npy_array(stream.getvalue())
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fortran", [False, True])
def test_what_python_2_wrote_is_read_without_a_word(tmp_path: Path, fortran: bool) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = f"{{'descr': '<f4', 'fortran_order': {fortran}, 'shape': (2L, 3L), }}".ljust(117).encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + array.tobytes("F" if fortran else "C")
    (tmp_path / "x.npy").write_bytes(data)
    np.testing.assert_array_equal(mapped_npy(tmp_path / "x.npy"), array)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are needed")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    for path in (tmp_path / "x.npy", tmp_path):
        with pytest.raises(ValueError, match="no regular file"):
            mapped_npy(path)
    with pytest.raises(CompileError, match="QAT002"):
        source_file(tmp_path / "x.npy")


def archived() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", b"x")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no npy file"),
        (archived(), "an archive of arrays"),
        (npy_bytes(np.zeros(4))[:30], "EOF|header"),
        (npy_bytes(np.zeros(4))[:-1], "does not fit"),
        (npy_bytes(np.zeros(4)) + b"x", "does not fit"),
        (npy_bytes(np.zeros(4)).replace(b"(4,)", b"(9**99,)"), "."),
        (npy_bytes(np.zeros(4)).replace(b"(4,), }     ", b"(999999,), }"), "does not fit"),
        (npy_bytes(np.zeros(4)).replace(b"(4,), ", b"(-4,),"), "is none"),
        (npy_bytes(np.zeros(4)).replace(b"}" + b" " * 20, b"}\n   <U0  \n\0\0".ljust(21)), "."),
        (npy_bytes(np.zeros(4)).replace(b"'<f8'", b"'|O' "), "never loaded"),
        (npy_bytes(np.zeros(4)).replace(b"'<f8'", b"'<U2'"), "no numbers but <U2"),
        (npy_bytes(np.zeros(4)).replace(b"'<f8'", b"'<M8'"), "no numbers"),
        (npy_bytes(np.zeros(4)).replace(b"\x01\x00v", b"\x04\x00v"), "no npy file"),
    ],
)
def test_hostile_npy_is_refused_before_memory_is_taken(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        npy_array(data)


TOKENS = [b"{", b"}", b"(", b"'", b'"', b"L", b"\n", b"\\", b"\0", b"-1", b"1e9", b"9" * 30, b"None", b"[", b"#", b"O",
          b"<U0", b"f4,f4", b"'descr'", b"b''", b"\x0c"]  # fmt: skip


@settings(max_examples=400)
@pytest.mark.filterwarnings("ignore")  # numpy reads headers as Python source, and warns as Python does
@given(st.lists(st.tuples(st.integers(8, 127), st.integers(0, 4), st.sampled_from(TOKENS)), min_size=1, max_size=4))
def test_any_npy_header_is_read_or_refused(changes: list[tuple[int, int, bytes]]) -> None:
    """Numpy reads headers as Python source, and lets through what that raises."""
    content = bytearray(npy_bytes(np.zeros(4)))
    for at, length, token in changes:
        content[at : at + length] = token
    seen = "refused"
    with contextlib.suppress(ValueError):
        seen = str(npy_array(bytes(content)).dtype.kind)
    assert seen in ("refused", *"biufc")
