"""Every form that images come in gives the same pixels; what makes no sense is one sentence."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from karpa_tf.data.images import Images, decode_image, open_images, open_test_images, read_image
from karpa_tf.data.tables import shared_rows
from karpa_tf.errors import UserError
from tests.conftest import make_images, write_class_folders

NAMES = ["cat", "dog", "owl"]


def open_grey(source: object, **options: object):
    return open_images(str(source), **{"size": 10, "channels": 1, "test_share": 0.1, **options})


def open_colour(source: object, **options: object):
    return open_images(str(source), **{"size": 16, "channels": 3, **options})


def everything(data) -> Images:
    """All images of all splits in the order of their names."""
    parts = [part for part in data.splits.values() if len(part)]
    names = [name for part in parts for name in part.names]
    order = np.argsort(names)
    pixels = np.concatenate([part.pixels for part in parts])[order]
    labels = [label for part in parts for label in part.labels]
    return Images(pixels, [labels[i] for i in order], [names[i] for i in order])


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


# --- Forms


def test_arrays_of_keras_with_their_own_test_split(tmp_path) -> None:
    x, y = make_images(100, 10, 1)
    data = open_grey(save(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x[:9], y_test=y[:9]))
    assert data.brings_test and len(data.splits["test"]) == 9
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 100
    assert data.labels == ["0", "1", "2"]
    assert (
        data.splits["train"].pixels.shape[1:] == (10, 10, 1) and data.splits["train"].pixels.dtype == np.uint8
    )
    np.testing.assert_array_equal(data.splits["test"].pixels[..., 0], x[:9])


@pytest.mark.parametrize("kind", ["float", "unit", "channel", "channels first", "column"])
def test_arrays_in_other_clothes_are_the_same(kind: str, tmp_path) -> None:
    x, y = make_images(60, 10, 1)
    other = {
        "float": (x.astype(np.float64), y),
        "unit": (x / np.float32(255), y),
        "channel": (x[..., None], y),
        "channels first": (x[:, None], y),
        "column": (x, y[:, None].astype(np.uint8)),
    }[kind]
    plain = open_grey(save(tmp_path / "a.npz", x_train=x, y_train=y))
    dressed = open_grey(save(tmp_path / "b.npz", x_train=other[0], y_train=other[1]))
    assert plain.fingerprint == dressed.fingerprint


def test_a_dark_test_split_is_scaled_as_the_training_split_is(tmp_path) -> None:
    x, y = make_images(60, 10, 1)
    dark = np.ones((3, 10, 10))
    data = open_grey(save(tmp_path / "a.npz", x_train=x * 1.0, y_train=y, x_test=dark, y_test=y[:3]))
    assert data.splits["test"].pixels.max() == 1


def test_folder_zip_and_tar_are_the_same(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data" / "train", *make_images(60, 16, 3), NAMES).parent
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "cat" / ".hidden.png").write_bytes(b"")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, path.relative_to(folder.parent))
    with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as tar:
        tar.add(folder, ".")
    prints = {open_colour(p).fingerprint for p in (folder, tmp_path / "data.zip", tmp_path / "data.tar.gz")}
    assert len(prints) == 1
    assert open_colour(folder).labels == NAMES
    assert open_colour(folder).notes == [
        f"{folder}: 1 file was left out (no image that Pillow reads): train/cat/notes.txt.",
        f"{folder}: 1 hidden image was left out: train/cat/.hidden.png.",
    ]
    # Decoded once: the second time comes from the cache, also without the class folder's parent.
    assert open_colour(folder / "train").splits["train"].labels


def test_class_folders_below_splits(tmp_path) -> None:
    x, y = make_images(60, 16, 3)
    write_class_folders(tmp_path / "data" / "train", x, y, NAMES)
    write_class_folders(tmp_path / "data" / "test", x[:6], y[:6], NAMES)
    data = open_colour(tmp_path / "data")
    assert data.brings_test and len(data.splits["test"]) == 6
    assert shared_rows(data.splits["train"], data.splits["test"]) > 0
    test, _ = open_test_images(str(tmp_path / "data"), size=16, channels=3)
    assert len(test) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(packed: bool, tmp_path) -> None:
    x, y = make_images(60, 10, 1)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", x), ("labels-idx1", y.astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            content = head + array.tobytes()
            name = f"{split}-{kind}-ubyte"
            if packed:
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (tmp_path / name).write_bytes(content)
    data = open_grey(tmp_path)
    assert data.brings_test
    np.testing.assert_array_equal(data.splits["test"].pixels[..., 0], x)


def write_cifar(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_images(60, 32, 3)
    folder.mkdir()
    rows = x.transpose(0, 3, 1, 2).reshape(60, -1)
    for number in range(2):
        part = slice(number * 30, number * 30 + 30)
        batch = {b"data": rows[part], b"labels": y[part].tolist(), b"filenames": [b"a.png"] * 30}
        (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(batch, 2))
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": rows[:6], b"labels": y[:6].tolist()}, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, 2))
    return x, y


def test_cifar_batches(tmp_path) -> None:
    x, y = write_cifar(tmp_path / "cifar-10-batches-py")
    data = open_images(str(tmp_path / "cifar-10-batches-py"), size=32, channels=3)
    assert data.labels == NAMES
    np.testing.assert_array_equal(data.splits["test"].pixels, x[:6])
    assert data.splits["test"].labels == [NAMES[i] for i in y[:6]]


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path) -> None:
    folder = tmp_path / "cifar"
    write_cifar(folder)

    class Evil:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    (folder / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match="data_batch_1 cannot be read: it asks for"):
        open_images(str(folder), size=32, channels=3)
    assert not (tmp_path / "ran").exists()


def test_embedded_digits() -> None:
    data = open_images("embedded", size=28, channels=1)
    assert sum(map(len, data.splits.values())) == 5000
    assert data.labels == [str(digit) for digit in range(10)]
    assert data.splits["train"].pixels.max() == 255


# --- Splits


def test_the_split_is_stratified_and_always_the_same(tmp_path) -> None:
    x, y = make_images(300, 10, 1)
    path = save(tmp_path / "a.npz", x_train=x, y_train=y)
    first, second = (open_grey(path, validation_share=0.1) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    for split in ("validation", "test"):
        counts = [first.splits[split].labels.count(label) for label in first.labels]
        assert counts == [10, 10, 10]
    assert len({name for part in first.splits.values() for name in part.names}) == 300


def test_equal_images_stay_on_one_side(tmp_path) -> None:
    x, y = make_images(60, 10, 1)
    path = save(tmp_path / "a.npz", x_train=np.concatenate([x, x]), y_train=np.concatenate([y, y]))
    data = open_grey(path, validation_share=0.2)
    assert len(data.splits["test"]) and not shared_rows(data.splits["train"], data.splits["test"])
    assert not shared_rows(data.splits["train"], data.splits["validation"])


# --- Files of every kind


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK"])
def test_modes_of_images_become_one(mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = Image.new("RGB", (16, 16), "white").convert(mode)
    for channels in (1, 3):
        pixels, size = decode_image(encode(image, kind), 16, channels)
        assert pixels.shape == (16, 16, channels) and size == (16, 16)
        assert pixels.min() >= 250


def test_16_bits_become_8_and_not_white() -> None:
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    pixels, _ = decode_image(encode(Image.fromarray(values), "PNG"), 16, 1)
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))


def test_transparency_lies_on_white_and_exif_turns() -> None:
    clear, _ = decode_image(encode(Image.new("RGBA", (16, 16), (0, 0, 0, 0)), "PNG"), 16, 3)
    assert clear.min() == 255
    image = Image.new("L", (16, 16))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned, _ = decode_image(encode(image, "PNG", exif=exif), 16, 1)
    assert turned[15, 15, 0] == 255 and turned[0, 0, 0] == 0


@pytest.mark.parametrize(("top", "eight"), [(255, 1), (300, 1), (65535, 255)])
def test_16_bits_become_8_by_the_same_rule_however_dark_an_image_is(top: int, eight: int) -> None:
    values = np.linspace(0, top, 256).astype(np.uint16).reshape(16, 16)
    for kind in ("PNG", "TIFF", "PPM"):
        pixels, _ = decode_image(encode(Image.fromarray(values), kind), 16, 1)
        assert (pixels.min(), pixels.max()) == (0, eight), kind


def test_floats_are_0_to_1_and_32_bits_have_no_known_range() -> None:
    unit = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels, _ = decode_image(encode(Image.fromarray(unit), "TIFF"), 16, 1)
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))
    with pytest.raises(ValueError, match="floats must lie between 0 and 1, and these do from 0 to 255"):
        decode_image(encode(Image.fromarray(unit * 255), "TIFF"), 16, 1)
    with pytest.raises(ValueError, match="floats must lie"):
        decode_image(encode(Image.fromarray(np.where(unit > 0.5, np.nan, unit)), "TIFF"), 16, 1)
    with pytest.raises(ValueError, match="type int32 have no known range"):
        decode_image(encode(Image.fromarray(np.arange(256, dtype=np.int32).reshape(16, 16)), "TIFF"), 16, 1)


def test_every_file_that_pillow_reads_counts(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data", *make_images(60, 16, 3), NAMES)
    for path in (folder / "dog").glob("*.png"):
        Image.open(path).save(path.with_suffix(".jfif"), "JPEG")
        path.unlink()
    data = open_colour(folder)
    assert len(everything(data)) == 60 and everything(data).labels.count("dog") == 20 and not data.notes


def test_what_is_left_out_is_counted_and_named(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data", *make_images(60, 16, 3), NAMES)
    for name in ("README.md", "cat/a.heic", ".DS_Store", "dog/._0.png"):
        (folder / name).write_bytes(b"")
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "cat" / "0.png", folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    (folder / "fox").mkdir()
    (folder / "elk").symlink_to("nowhere")
    assert open_colour(folder).notes == [
        f"{folder}: 2 files were left out (no image that Pillow reads): README.md first.",
        f"{folder}: 1 hidden image was left out: .ipynb_checkpoints/0-checkpoint.png.",
        f"{folder}: 1 link was left out (leading nowhere, or back to a folder that holds it): elk.",
        f"{folder}: 1 folder was left out (empty): fox.",
    ]


# --- Links


def test_linked_class_folders_are_followed(tmp_path) -> None:
    store = write_class_folders(tmp_path / "store", *make_images(60, 16, 3), NAMES)
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    for name in NAMES:
        (folder / "train" / name).symlink_to(Path("..", "..", "store", name))
    assert open_colour(folder).fingerprint == open_colour(store).fingerprint
    assert not open_colour(folder).notes


def test_links_in_a_circle_add_nothing(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data", *make_images(60, 16, 3), NAMES)
    plain = open_colour(folder)
    (folder / "cat" / "up").symlink_to("..")
    (folder / "cat" / "dogs").symlink_to("../dog")
    (folder / "dog" / "cats").symlink_to("../cat")
    data = open_colour(folder)
    assert data.fingerprint == plain.fingerprint
    assert any("40 images were left out (of a linked folder that is read" in note for note in data.notes)
    assert any("links were left out (leading nowhere, or back" in note for note in data.notes)


def test_a_link_to_a_folder_beside_the_splits(tmp_path) -> None:
    folder = tmp_path / "data"
    write_class_folders(folder / "raw", *make_images(60, 16, 3), NAMES)
    (folder / "train").mkdir()
    for name in NAMES:
        (folder / "train" / name).symlink_to(f"../raw/{name}")
    data = open_colour(folder)
    assert everything(data).labels.count("cat") == 20 and len(everything(data)) == 60
    assert any(
        "60 images were left out (outside of the splits): raw/cat/0.png first" in n for n in data.notes
    )


# --- Which folders are splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("archive/training_set", "archive/test_set"),
        ("Training Images", "Testing Images"),
        ("trainset", "testset"),
        ("train", "test_data"),
    ],
)
def test_folders_named_after_splits_in_other_words(train: str, test: str, tmp_path) -> None:
    x, y = make_images(60, 16, 3)
    write_class_folders(tmp_path / train, x, y, NAMES)
    write_class_folders(tmp_path / test, x[:6], y[:6], NAMES)
    data = open_colour(tmp_path)
    assert data.labels == NAMES and data.brings_test and len(data.splits["test"]) == 6


def test_images_without_labels_beside_the_splits_are_left_out(tmp_path) -> None:
    x, y = make_images(60, 16, 3)
    write_class_folders(tmp_path / "seg_train" / "seg_train", x, y, NAMES)
    write_class_folders(tmp_path / "seg_pred", x[:6], y[:6] * 0, ["seg_pred"])
    data = open_colour(tmp_path)
    assert data.labels == NAMES and len(everything(data)) == 60
    assert any("6 images were left out (outside of the splits): seg_pred/seg_pred" in n for n in data.notes)


def test_classes_whose_names_speak_of_splits_stay_classes(tmp_path) -> None:
    names = ["steam_train", "test_tube", "owl"]
    x, y = make_images(60, 16, 3)
    assert open_colour(write_class_folders(tmp_path / "flat", x, y, names)).labels == sorted(names)
    deep = tmp_path / "deep"
    for number, name in enumerate(names):
        write_class_folders(deep / name, x[y == number], y[y == number] * 0, [f"kind {number}"])
    assert open_colour(deep).labels == sorted(names)


def test_first_folders_that_may_be_anything_are_refused(tmp_path) -> None:
    x, y = make_images(60, 16, 3)
    for name in ("part1", "part2"):
        write_class_folders(tmp_path / "parts" / name, x, y, NAMES)
    with pytest.raises(UserError, match=r"part1, part2 all hold folders of the same names \(cat, dog, owl\)"):
        open_colour(tmp_path / "parts")
    for name in ("val", "validation", "train"):
        write_class_folders(tmp_path / "two" / name, x, y, NAMES)
    with pytest.raises(UserError, match="2 folders for the validation split: val, validation"):
        open_colour(tmp_path / "two")


# --- Archives


def zipped(path: Path, rename: Callable[[str], str] = str) -> Path:
    """A .zip of class folders of 60 images."""
    folder = write_class_folders(path.with_suffix(""), *make_images(60, 16, 3), NAMES)
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted(folder.rglob("*.png")):
            file.write(image, rename(image.relative_to(folder).as_posix()))
    return path


def damaged(path: Path, of_entry: int, of_header: int, value: bytes, first: int = 60) -> Path:
    """Overwrites bytes of the first members' entries in a .zip's directory and of their own headers."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x01\x02", of_entry), (b"PK\x03\x04", of_header)):
        at = -1
        for _ in range(first):
            at = data.index(signature, at + 1)
            data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_a_zip_with_the_separators_of_windows(tmp_path) -> None:
    data = open_colour(zipped(tmp_path / "a.zip", lambda name: name.replace("/", "\\")))
    assert data.labels == NAMES and len(everything(data)) == 60


def test_a_zip_of_macos_keeps_its_names(tmp_path) -> None:
    path = zipped(tmp_path / "a.zip", lambda name: name.replace("cat", "貓"))
    data = open_colour(damaged(path, 9, 7, b"\0"))  # its names are UTF-8, and no flag says so
    assert data.labels == ["dog", "owl", "貓"]


def test_a_member_that_cannot_be_unpacked_is_left_out_or_stops_it(tmp_path) -> None:
    path = damaged(zipped(tmp_path / "a.zip"), 16, 14, b"\0\0\0\0", first=1)
    data = open_colour(path)
    assert len(everything(data)) == 59
    assert data.notes == [
        f"{path}: 1 image cannot be read and was left out: cat/0.png (Bad CRC-32 for file 'cat/0.png')."
    ]
    with pytest.raises(UserError, match=r"1 image cannot be read: cat/0\.png .*--broken skip"):
        open_colour(path, broken="stop")


def test_an_archive_that_python_cannot_unpack_is_one_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match=r"none of its 60 images can be read: .*packed by Deflate64"):
        open_colour(damaged(zipped(tmp_path / "a.zip"), 10, 8, b"\x09"))
    with pytest.raises(UserError, match=r"none of its 60 images can be read: .*it is encrypted"):
        open_colour(damaged(zipped(tmp_path / "b.zip"), 8, 6, b"\x01"))
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "a", ".")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match="damaged archive"):
        open_colour(path)


def test_a_split_or_a_class_of_which_nothing_is_left(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "train", *make_images(60, 16, 3), NAMES).parent
    for path in (folder / "train" / "owl").glob("*.png"):
        path.write_bytes(b"")
    data = open_colour(folder)
    assert data.labels == NAMES[:2]
    assert any("no image is left of owl in the train split" in note for note in data.notes)
    (folder / "test" / "cat").mkdir(parents=True)
    (folder / "test" / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"none of the 1 image of the test split can be read, e\.g\. test/cat/0"
    ):
        open_colour(folder)


def test_mixed_sizes_are_resized_and_it_is_said(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data", *make_images(60, 16, 3), NAMES)
    Image.new("RGB", (40, 20)).save(folder / "cat" / "wide.jpg")
    data = open_colour(folder)
    assert data.splits["train"].pixels.shape[1:] == (16, 16, 3)
    assert any("40 x 20" in note and "made 16 x 16" in note for note in data.notes)


def test_a_broken_image_is_named_and_left_out_or_stops_it(tmp_path) -> None:
    folder = write_class_folders(tmp_path / "data", *make_images(60, 16, 3), NAMES)
    (folder / "cat" / "broken.png").write_bytes(b"\x89PNG no more")
    whole = next((folder / "dog").glob("*.png"))
    whole.write_bytes(whole.read_bytes()[:-40])
    data = open_colour(folder)
    assert sum(map(len, data.splits.values())) == 59
    assert any("2 images cannot be read and were left out: cat/broken.png" in note for note in data.notes)
    with pytest.raises(UserError, match=r"2 images cannot be read: cat/broken\.png .*--broken skip"):
        open_colour(folder, broken="stop")


def test_an_image_to_predict_that_is_none(tmp_path) -> None:
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png cannot be read as an image: it is no image"):
        read_image(tmp_path / "text.png", 16, 3)
    with pytest.raises(UserError, match=r'no image ".*txt.png"; did you mean "text.png"'):
        read_image(tmp_path / "txt.png", 16, 3)


# --- What makes no sense

X, Y = make_images(30, 10, 1)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": X}, "no array y_train"),
        ({"x_trian": X, "y_train": Y}, 'no array x_train; did you mean "x_trian"'),
        ({"x_train": X.reshape(30, 100), "y_train": Y}, r"must have the shape .*Received: \(30, 100\)"),
        ({"x_train": np.zeros((3, 10, 10, 5)), "y_train": Y[:3]}, r"Received: \(3, 10, 10, 5\)"),
        ({"x_train": X, "y_train": Y[:-1]}, "one label for each image"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "one at least"),
        ({"x_train": X, "y_train": Y - 1}, "must be numbered from 0. Received: -1 to 1"),
        ({"x_train": X, "y_train": Y * 100}, "but none is 1: number the 3 classes from 0"),
        ({"x_train": X, "y_train": Y + 0.5}, "whole numbers or names"),
        ({"x_train": X, "y_train": Y * 0}, r"one class only \(0\)"),
        ({"x_train": X * 300.0, "y_train": Y}, "between 0 and 255"),
        ({"x_train": np.where(X > 9, np.nan, X), "y_train": Y}, "between 0 and 255"),
        ({"x_train": X.astype(str), "y_train": Y}, "must hold numbers"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "no array y_test"),
    ],
)
def test_arrays_that_make_no_sense_are_one_sentence(arrays: dict, sentence: str, tmp_path) -> None:
    with pytest.raises(UserError, match=sentence):
        open_grey(save(tmp_path / "a.npz", **arrays))


def test_other_things_that_make_no_sense(tmp_path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        open_grey(tmp_path / "missing")
    (tmp_path / "a.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="neither a folder nor"):
        open_grey(tmp_path / "a.csv")
    (tmp_path / "a.npz").write_text("no zip")
    with pytest.raises(UserError, match=r"cannot be read as an \.npz"):
        open_grey(tmp_path / "a.npz")
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(UserError, match="damaged archive"):
        open_grey(tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_grey(tmp_path / "empty")
    flat = write_class_folders(tmp_path / "flat", *make_images(3, 16, 3), NAMES)
    shutil.copy(next(flat.rglob("*.png")), flat / "loose.png")
    with pytest.raises(UserError, match=r"loose\.png lies in no class folder"):
        open_colour(flat)
    one = write_class_folders(tmp_path / "one", *make_images(9, 16, 3, classes=1), NAMES)
    with pytest.raises(UserError, match=r"one class only \(cat\)"):
        open_colour(one)
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0")
    with pytest.raises(UserError, match="cut off"):
        open_grey(tmp_path / "idx")


def test_tfds_images_keep_their_test_split(tmp_path, monkeypatch) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class KarpaPets(tfds.core.GeneratorBasedBuilder):
        """A data set made here, so that no network is needed."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=(None, None, 3))
            label = tfds.features.ClassLabel(names=["cat", "dog"])
            features = tfds.features.FeaturesDict({"image": image, "label": label})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

        def _generate_examples(self, count):
            for i in range(count):
                shade = np.full((20 + i % 3, 16, 3), 200 - i if i % 2 else 20 + i, np.uint8)
                yield i, {"image": shade, "label": i % 2}

    monkeypatch.setattr(tfds, "builder", lambda name: KarpaPets(data_dir=str(tmp_path)))
    for channels in (1, 3):
        data = open_images("tfds:karpa_pets", size=16, channels=channels, validation_share=0.1)
        assert data.brings_test and data.labels == ["cat", "dog"]
        assert {split: len(part) for split, part in data.splits.items()} == {
            "train": 36,
            "validation": 4,
            "test": 10,
        }
        for part in data.splits.values():
            assert part.pixels.shape[1:] == (16, 16, channels)
            shades = ["dog" if image.mean() > 100 else "cat" for image in part.pixels]
            assert shades == part.labels
