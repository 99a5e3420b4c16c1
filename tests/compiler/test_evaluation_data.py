"""Data sets: arrays and images in all their forms give the samples that are in them; what is damaged says so."""

from __future__ import annotations

import builtins
import io
import os
import tracemalloc
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qatc import CompileError
from qatc.compiler.evaluation.catalog import Catalog
from qatc.compiler.evaluation.engine import Asked, Batches, Scoreboard, beyond
from qatc.compiler.evaluation.values import Dataset, Item, Ports
from qatc.compiler.quant import QuantParams
from qatc.compiler.result import Port

ONE = Ports((Port("input", "float32", ("n", 2, 3)),), (Port("scores", "float32", ("n", 4)),), labeled="scores")
TWO = Ports(
    (Port("a:0", "float32", ("n", 2)), Port("b", "int64", ("n",))), (Port("y", "float32", ("n", 1)),), labeled="y"
)
X = np.arange(30, dtype=np.float32).reshape(5, 2, 3)
LABELS = np.array([3, 1, 0, 2, 2])


def opened(path: Path, ports: Ports = ONE, name: str | None = None, **options: str) -> Dataset:
    return Catalog().loader(path, name).open(path, ports, options)


def check_samples(items: list[Item], x: np.ndarray, labels: np.ndarray | None = None) -> None:
    assert np.array_equal(np.stack([item.inputs["input"] for item in items]), x)
    if labels is None:
        assert [item.label for item in items] == [None] * len(x)
    else:
        assert np.array_equal(np.stack([np.asarray(item.label) for item in items]), labels)


def refused(path: Path, ports: Ports = ONE, **options: str) -> CompileError:
    with pytest.raises(CompileError) as caught:
        list(opened(path, ports, **options))
    assert all(d.hint for d in caught.value.diagnostics)
    return caught.value


# -- arrays ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("packed", [False, True])
def test_npz_by_names(tmp_path: Path, packed: bool) -> None:
    save = np.savez_compressed if packed else np.savez
    targets = np.ones((5, 4), np.float32)
    save(tmp_path / "d.npz", input=X, labels=LABELS, scores=targets)
    data = opened(tmp_path / "d.npz")
    assert len(data) == 5
    check_samples(list(data), X, LABELS)
    assert np.array_equal(np.stack([item.targets["scores"] for item in data]), targets)  # and once more


@pytest.mark.parametrize("names", [("input_0", "y"), ("x", "label"), ("images", "labels"), ("arr_0", "arr_1")])
def test_other_names(tmp_path: Path, names: tuple[str, str]) -> None:
    values: dict[str, Any] = {names[0]: X, names[1]: LABELS}
    np.savez(tmp_path / "d.npz", **values)
    check_samples(list(opened(tmp_path / "d.npz")), X, LABELS)


def test_npy_holds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    check_samples(list(opened(tmp_path / "d.npy")), X)
    assert "holds one array, the model has the inputs a:0, b" in str(refused(tmp_path / "d.npy", TWO))


def test_folders_of_either(tmp_path: Path) -> None:
    for name, part in (("0", slice(0, 2)), ("1", slice(2, 5))):
        np.savez(tmp_path / f"{name}.npz", input=X[part], labels=LABELS[part])
    check_samples(list(opened(tmp_path)), X, LABELS)
    single = tmp_path / "single"
    single.mkdir()
    np.save(single / "input_0.npy", X)
    np.save(single / "labels.npy", LABELS)
    check_samples(list(opened(single)), X, LABELS)


def test_several_inputs(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32).reshape(3, 2), np.array([7, 8, 9])
    np.savez(tmp_path / "d.npz", a_0=a, b=b, targets=a[:, :1])  # a file name has no colon
    for index, item in enumerate(opened(tmp_path / "d.npz", TWO)):
        assert np.array_equal(item.inputs["a:0"], a[index])
        assert item.inputs["b"] == b[index]
        assert np.array_equal(item.targets["y"], a[index, :1])


def test_labels_that_are_floats_are_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=np.full((5, 4), 0.5))
    assert [item.targets["scores"].tolist() for item in opened(tmp_path / "d.npz")] == [[0.5] * 4] * 5
    both = replace(ONE, outputs=(Port("more", "float32", ("n", 4)), *ONE.outputs))
    assert [list(item.targets) for item in opened(tmp_path / "d.npz", both)] == [["scores"]] * 5


def test_a_folder_of_both_kinds_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X)
    np.save(tmp_path / "labels.npy", LABELS)
    assert "holds both .npz files and .npy files, such as labels.npy" in str(refused(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"input": X, "weights": LABELS}, "holds the arrays input, weights; the model's inputs are input"),
        ({"input": X, "x": 2 * X}, "are the same input, output or labels: input, x"),
        ({"input": X, "labels": LABELS, "y": LABELS}, "are the same input, output or labels: input, labels, y"),
        ({"labels": LABELS}, "the model's inputs are input"),
        ({"input": X, "labels": LABELS[:3]}, "differ in length (input: 5, labels: 3)"),
        ({"input": np.asfortranarray(X)}, "Fortran order"),
        ({"input": np.float32(1)}, "the first axis counts samples"),
        ({"input": np.array(["a"])}, "no numbers but <U1"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: Mapping[str, Any], said: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(CompileError) as caught:
        list(Batches(ONE.inputs).of(iter(opened(tmp_path / "d.npz"))))
    assert said in str(caught.value)
    assert {d.code for d in caught.value.diagnostics} == {"QAT008"}


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([object()]), allow_pickle=True)
    assert "it holds Python objects, which are never loaded" in str(refused(tmp_path / "d.npy"))


def test_nothing_there(tmp_path: Path) -> None:
    assert "d.npz does not exist" in str(refused(tmp_path / "d.npz"))
    (tmp_path / "d.csv").write_text("1,2")
    message = str(refused(tmp_path / "d.csv"))
    assert "nobody reads" in message
    assert "npz: arrays by name" in message
    with pytest.raises(CompileError, match="unknown data set 'cvs'"):
        opened(tmp_path, ONE, "cvs")


@pytest.mark.filterwarnings("error")
def test_a_header_of_python_2_is_as_good(tmp_path: Path) -> None:
    plain = io.BytesIO()
    np.save(plain, X)
    (tmp_path / "d.npy").write_bytes(plain.getvalue().replace(b"(5, ", b"(5L, ", 1).replace(b" \n", b"\n", 1))
    assert len(list(opened(tmp_path / "d.npy"))) == len(X)


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_end_in_diagnostics(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes change, are lost or are added: samples or a coded error, nothing else."""
    stream = io.BytesIO()
    (np.savez_compressed if data.draw(st.booleans()) else np.savez)(stream, input=X, labels=LABELS)
    plain = io.BytesIO()
    np.save(plain, X)
    is_npz = data.draw(st.booleans())
    content = bytearray((stream if is_npz else plain).getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.mktemp("damaged") / ("d.npz" if is_npz else "d.npy")
    path.write_bytes(content)
    codes: set[str] = set()
    try:
        assert all("input" in item.inputs for item in opened(path))
    except CompileError as error:
        codes = {d.code for d in error.diagnostics}
    assert codes <= {"QAT008"}


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (b"(4, 1000000000)", "it ends before its last sample does"),
        (b"(-4, 1, 2)", "the shape [-4, 1, 2] is none"),
        (b"(4, -1, 2)", "the shape [4, -1, 2] is none"),
        (b"(18446744073709551616, 2, 3)", "are no samples"),  # more than len can say
        (b"(4611686018427387904, 0)", "are no samples"),  # so many that reading nothing never ends
    ],
)
def test_headers_that_promise_too_much(tmp_path: Path, shape: bytes, said: str) -> None:
    """A header may promise any size: memory is taken for what is there."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + b", }"
    header += b" " * (117 - len(header)) + b"\n"
    (tmp_path / "d.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    assert said in str(refused(tmp_path / "d.npy"))


@pytest.mark.parametrize("packed", [False, True])
def test_memory_does_not_depend_on_the_data(tmp_path: Path, packed: bool) -> None:
    big = np.zeros((400, 2, 3 * 4096), np.float32)  # 39 MB
    (np.savez_compressed if packed else np.savez)(tmp_path / "d.npz", input=big, labels=np.zeros(400, np.int64))
    del big
    tracemalloc.start()
    assert sum(1 for _ in opened(tmp_path / "d.npz")) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
@pytest.mark.parametrize("name", ["npy", "npz"])
def test_what_is_no_file_is_not_read(tmp_path: Path, name: str) -> None:
    """A pipe was waited for; of a device, such as /dev/zero, memory ran out."""
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CompileError, match=r"QAT008.*is no regular file"):
            opened(place, name=name)
    with pytest.raises(CompileError, match=r"QAT008.*No such file"):
        opened(tmp_path / "nothing", name=name)


def test_an_archive_of_many_arrays_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that were saved as an array each: to open an archive takes time in proportion to its arrays."""
    np.savez(tmp_path / "d.npz", *X)
    archives: list[Any] = []
    real = zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda path: archives.append(path) or real(path))
    assert "holds the arrays arr_0, arr_1, arr_2" in str(refused(tmp_path / "d.npz"))
    assert len(archives) == 1


def test_an_archive_is_not_trusted(tmp_path: Path) -> None:
    """Members with paths are names like others; nothing is unpacked."""
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        content = io.BytesIO()
        np.save(content, X)
        archive.writestr("../../input.npy", content.getvalue())
    assert "holds the arrays ../../input" in str(refused(tmp_path / "d.npz"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.npz"]


# -- batches --------------------------------------------------------------------------------------------------------
def items(x: np.ndarray) -> list[Item]:
    return [Item({"input": value}, index) for index, value in enumerate(x)]


@given(st.integers(1, 9), st.one_of(st.none(), st.integers(1, 9)), st.sampled_from(["n", 1, 4]))
def test_batches_hold_every_sample_once(count: int, size: int | None, batch: str | int) -> None:
    ports = (Port("input", "float32", (batch, 2, 3)),)
    x = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)
    if isinstance(batch, int) and size not in (None, batch):
        with pytest.raises(CompileError, match=f"do not fit the model, whose batch is {batch}"):
            Batches(ports, size)
        return
    found = list(Batches(ports, size).of(iter(items(x))))
    for each in found:
        assert each.feed["input"].shape[0] == len(each.items) + each.padding
        assert each.padding == 0 or batch == 4
        outputs = each.outputs({"scores": each.feed["input"] * 2})
        assert np.array_equal(outputs["scores"], np.stack([item.inputs["input"] * 2 for item in each.items]))
    assert [item.label for each in found for item in each.items] == list(range(count))
    sizes = {len(each.items) + each.padding for each in found}
    assert sizes == {batch} if isinstance(batch, int) else max(sizes) <= (size or 16)


def test_a_model_without_a_batch_takes_samples_one_by_one() -> None:
    ports = (Port("input", "float32", (2, 3)),)
    found = list(Batches(ports).of(iter(items(X))))
    assert [batch.feed["input"].shape for batch in found] == [(2, 3)] * 5
    assert found[0].outputs({"y": np.zeros(7)})["y"].shape == (1, 7)


def test_samples_that_have_every_axis_are_in_no_batch() -> None:
    ports = (Port("input", "float32", ("n", 3)),)
    assert [batch.feed["input"].shape for batch in Batches(ports, 1).of(iter(items(X)))] == [(2, 3)] * 5
    with pytest.raises(CompileError, match="batches of 2 samples cannot be made: a sample has every axis") as caught:
        next(Batches(ports, 2).of(iter(items(X))))
    assert caught.value.exit_code == 2


def test_samples_with_a_batch_of_their_own() -> None:
    ports = (Port("input", "float32", ("n", 2, 3)),)
    found = list(Batches(ports, 2).of(iter(items(X[:, None]))))
    assert [batch.feed["input"].shape[0] for batch in found] == [2, 2, 1]


def test_an_output_that_counts_something_else() -> None:
    batch = next(Batches((Port("input", "float32", ("n", 2, 3)),)).of(iter(items(X))))
    with pytest.raises(CompileError, match=r"the output \[3, 4\] does not count the 5 samples"):
        batch.outputs({"boxes": np.zeros((3, 4))})
    with pytest.raises(CompileError, match=r"the output \[\] does not count the 5 samples"):
        batch.outputs({"total": np.asarray(1.0)})
    alone = next(Batches((Port("input", "float32", ("n", 2, 3)),), 1).of(iter(items(X))))
    assert alone.outputs({"total": np.asarray(1.0)})["total"].tolist() == [1.0]


def test_samples_of_different_sizes() -> None:
    ports = (Port("input", "float32", ("n", "w")),)
    odd = [Item({"input": np.zeros(3, np.float32)}), Item({"input": np.zeros(4, np.float32)})]
    with pytest.raises(CompileError, match=r"samples of one batch have the shapes \[3\] and \[4\]"):
        list(Batches(ports).of(iter(odd)))
    assert [b.feed["input"].shape for b in Batches(ports, 1).of(iter(odd))] == [(1, 3), (1, 4)]


@pytest.mark.parametrize("name", ["labels", "scores"])
def test_labels_and_targets_of_different_shapes(name: str) -> None:
    """Of two files in one folder, say."""
    values = [np.zeros(4), np.zeros((4, 1))]
    odd = [Item({}, v) if name == "labels" else Item({}, targets={name: v}) for v in values]
    metric = Catalog().metrics.get("top1" if name == "labels" else "mse")
    board = Scoreboard([Asked(metric)], ["package"], ONE, {})
    board.begin(odd[0])
    with pytest.raises(CompileError, match=r"of one batch have the shapes \[4\] and \[4, 1\]") as caught:
        board.rows[0].add({"package": {"scores": np.zeros((2, 4))}}, odd)
    assert {d.code for d in caught.value.diagnostics} == {"QAT008"}


def test_targets_lack_axes_of_length_one_alone() -> None:
    """Another layout of as many elements is another array."""
    ports = replace(ONE, outputs=(Port("scores", "float32", ("n", 3, 2, 1)),))

    def scored(target: np.ndarray) -> float:
        item = Item({}, targets={"scores": target})
        board = Scoreboard([Asked(Catalog().metrics.get("mse"))], ["package"], ports, {})
        board.begin(item)
        board.rows[0].add({"package": {"scores": np.arange(6.0).reshape(1, 3, 2, 1)}}, [item])
        return board.scores()[0].values["package"]

    right = np.arange(6.0).reshape(3, 2)
    assert scored(right) == scored(right[None, ..., None, None]) == 0
    with pytest.raises(CompileError, match=r"shape \[1, 3, 2, 1\], what it is compared with \[1, 2, 3\]"):
        scored(right.T)


def test_integers_of_a_quantized_input_may_be_given_as_reals() -> None:
    port = Port("input", "uint8", ("n", 3), QuantParams.per_tensor(0.5, 10, "uint8"))
    real = next(Batches((port,)).of(iter([Item({"input": np.array([0.0, 1.0, 2.0], np.float32)})])))
    assert real.feed["input"].dtype == np.float32  # rounded when it is run
    whole = next(Batches((port,)).of(iter([Item({"input": np.array([10, 12, 14])})])))
    assert whole.feed["input"].tolist() == [[10, 12, 14]]
    assert whole.feed["input"].dtype == np.uint8


def test_data_beyond_the_range_are_counted() -> None:
    port = Port("input", "float32", ("n", 4), QuantParams.per_tensor(0.5, 0, "uint8"))
    assert beyond(port, np.array([[-0.2, 0.0, 127.7, 130.0]], np.float32)) == 0.25
    assert beyond(Port("input", "float32", ("n", 4)), np.array([[1e9]], np.float32)) == 0


# -- images ---------------------------------------------------------------------------------------------------------
NCHW = Ports((Port("input", "float32", ("n", 3, 4, 6)),), ONE.outputs)
NHWC = Ports((Port("input", "uint8", ("n", 4, 6, 3)),), ONE.outputs, {"input": "NHWC"})
Gray = Ports((Port("input", "float32", ("n", 1, 4, 6)),), ONE.outputs)


def ppm(path: Path, pixels: np.ndarray) -> None:
    """Write pixels [H, W, 3] or [H, W] without Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pixels.shape[:2]
    kind = b"P6" if pixels.ndim == 3 else b"P5"
    path.write_bytes(kind + b" %d %d 255\n" % (width, height) + pixels.astype(np.uint8).tobytes())


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape)


def test_images_of_the_right_size_are_read_exactly(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    image = pixels(0, 4, 6, 3)
    ppm(tmp_path / "cat" / "a.ppm", image)
    (one,) = opened(tmp_path, NCHW, mean="0.5,0.25,0.125", std="0.5")
    wanted = (image / np.float32(255) - np.array([0.5, 0.25, 0.125], np.float32)) / np.float32(0.5)
    assert np.allclose(one.inputs["input"], wanted.transpose(2, 0, 1), atol=1e-7)
    assert one.inputs["input"].dtype == np.float32
    (raw,) = opened(tmp_path, NHWC)
    assert np.array_equal(raw.inputs["input"], image)
    (turned,) = opened(tmp_path, NHWC, channels="bgr")
    assert np.array_equal(turned.inputs["input"], image[..., ::-1])
    ppm(tmp_path / "cat" / "a.ppm", image[..., 0])
    (gray,) = opened(tmp_path, Gray, scale="1")
    assert np.array_equal(gray.inputs["input"], image[None, ..., 0])


def test_an_image_beside_the_folders_of_classes_is_not_left_out(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for name in ("cat/a.ppm", "b.ppm"):
        ppm(tmp_path / name, pixels(0, 4, 6, 3))
    assert "b.ppm lies beside the folders of classes" in str(refused(tmp_path, NCHW))


def test_an_image_that_grows_beyond_reason_is_named(tmp_path: Path) -> None:
    """It kept its proportions until memory ran out."""
    pytest.importorskip("PIL")
    ppm(tmp_path / "thin.ppm", pixels(0, 1, 60_000))
    said = str(refused(tmp_path, NCHW, resize="4000"))
    assert "cannot read the image" in said
    assert "60000 x 1 pixels become 240,000,000 x 4,000" in said


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path: Path, dtype: str) -> None:
    """Pillow cuts them off at 255: a white picture."""
    pillow = pytest.importorskip("PIL.Image")
    pillow.fromarray(pixels(0, 4, 6).astype(dtype)).save(tmp_path / "a.tiff")
    assert "more than 8 bits" in str(refused(tmp_path, Gray))


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    image = pixels(1, 8, 10, 3)
    ppm(tmp_path / "a.ppm", image)
    (one,) = opened(tmp_path, NHWC, resize="8")  # the shorter side is 8 already
    assert np.array_equal(one.inputs["input"], image[2:6, 2:8])
    (half,) = opened(tmp_path, NHWC, filter="nearest", fit="stretch")
    assert half.inputs["input"].shape == (4, 6, 3)
    ppm(tmp_path / "a.ppm", np.repeat(np.repeat(pixels(2, 4, 6, 3), 2, 0), 2, 1))
    (small,) = opened(tmp_path, NHWC, filter="nearest")
    assert np.array_equal(small.inputs["input"], pixels(2, 4, 6, 3))


def test_classes_of_folders(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    for name in ("zebra", "ant"):
        ppm(tmp_path / name / "a.ppm", pixels(0, 4, 6, 3))
    assert [item.label for item in opened(tmp_path, NHWC)] == [0, 1]  # ant, zebra
    (tmp_path / "classes.txt").write_text("background\nzebra\nant\n", encoding="utf-8-sig")  # as Notepad writes it
    assert [item.label for item in opened(tmp_path, NHWC)] == [2, 1]
    (tmp_path / "classes.txt").write_text("zebra\n")
    assert "classes.txt does not list the folder ant" in str(refused(tmp_path, NHWC))
    numbers = tmp_path / "numbers"
    for name in ("2", "10"):
        ppm(numbers / name / "a.ppm", pixels(0, 4, 6, 3))
    assert sorted(item.label for item in opened(numbers, NHWC)) == [2, 10]  # type: ignore[type-var]
    assert [item.label for item in opened(numbers / "2", NHWC)] == [None]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"layout": "chw"}, "layout is 'chw', not nchw or nhwc"),
        ({"mean": "1,2"}, "mean is '1,2', not one number, or 3 with commas between"),
        ({"std": "0"}, "std is '0', not another number"),
        ({"fit": "squash"}, "fit is 'squash', not one of crop, stretch"),
        ({"scale": "nan"}, "scale is 'nan', not a number"),
        ({"resize": "0.5"}, "resize is '0.5', not a whole number of pixels"),
        ({"resize": "-5"}, "resize is '-5', not a whole number of pixels"),
        ({"resize": "1e30"}, "resize is '1e30', not a whole number of pixels"),
    ],
)
def test_wrong_options(tmp_path: Path, option: dict[str, str], said: str) -> None:
    pytest.importorskip("PIL")
    ppm(tmp_path / "a.ppm", pixels(0, 4, 6, 3))
    found = refused(tmp_path, NCHW, **option)
    assert said in str(found)
    assert found.exit_code == 2


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert "cannot read the image" in str(refused(tmp_path, NCHW))
    surface = np.zeros(31, "<u4")  # of a texture, whose reader raises NotImplementedError
    surface[[0, 2, 3, 18]] = 124, 8, 8, 32
    (tmp_path / "a.png").write_bytes(b"DDS " + surface.tobytes())
    assert "cannot identify image file" in str(refused(tmp_path, NCHW))
    ppm(tmp_path / "a.ppm", pixels(0, 4, 6, 3))
    assert "is no image of fixed size" in str(refused(tmp_path, ONE))


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("PIL"):
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    ppm(tmp_path / "a.ppm", pixels(0, 4, 6, 3))
    found = refused(tmp_path, NCHW)
    assert [d.code for d in found.diagnostics] == ["QAT010"]
    assert "qatc[images]" in str(found)
