"""Labelled images: arrays in .npz, idx files, CIFAR-10's batches, class folders and archives of them, TFDS.

Whatever comes in leaves as uint8 of one size and one number of channels; what had to be changed or left out
for that stands in the notes, which the recipes print.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from karpa_tf.data.images.arrays import CIFAR, IDX, read_cifar, read_embedded, read_idx, read_npz
from karpa_tf.data.images.common import Broken, ImageData, Images, Reader, label_places
from karpa_tf.data.images.decode import decode_image, read_image
from karpa_tf.data.images.files import ARCHIVES, open_files
from karpa_tf.data.images.folders import read_class_folders
from karpa_tf.data.images.tfds import read_tfds
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import no_such_path, shares_to_cut, split_rows
from karpa_tf.errors import UserError

__all__ = [
    "ImageData",
    "Images",
    "decode_image",
    "label_places",
    "open_images",
    "open_test_images",
    "read_image",
]


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
    reader = Reader(size, channels, broken)
    given = read_given(source, reader)
    shares = shares_to_cut(given, validation_share, test_share)
    cut = split_rows(given["train"], *shares)
    splits = {**cut, **given, "train": cut["train"]}
    data = ImageData(source, splits, "test" in given, reader.notes, reader.bare)
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
    """Opens images to evaluate on: the data's own test split, or else every image.

    Args:
        source: as for `open_images`.
        size: width and height of what comes out.
        channels: 1 (grey) or 3 (colours).
        broken: whether an image that cannot be read is left out, or is an error.

    Returns:
        The images, and lines that the user should read.

    Raises:
        UserError: the source cannot be read, or makes no sense as labelled images.
    """
    reader = Reader(size, channels, broken)
    given = read_given(source, reader, only_test=True)
    if "test" in given:
        return given["test"], reader.notes
    every = list(given.values())
    pixels = np.concatenate([images.pixels for images in every])
    labels = [label for images in every for label in images.labels]
    return Images(pixels, labels, [name for images in every for name in images.names]), reader.notes


def read_given(source: str, reader: Reader, only_test: bool = False) -> dict[Split, Images]:
    """Reads images in the splits that they come in.

    Args:
        source: as for `open_images`.
        reader: gets the notes.
        only_test: a test split alone will do.

    Raises:
        UserError: the source cannot be read, or makes no sense as labelled images.
    """
    if source == "embedded":
        return {"train": read_embedded(reader)}
    if source.startswith("tfds:"):
        return read_tfds(source, reader)
    path = Path(source)
    if not path.exists():
        raise no_such_path(source, "an .npz, a folder or a .zip of class folders, idx files")
    if path.suffix == ".npz":
        return read_npz(path, reader, only_test)
    if not path.is_dir() and not path.name.lower().endswith(ARCHIVES):
        raise UserError(
            f"{source} is neither a folder nor an .npz, .zip or .tar.gz file; --data reads those, tfds:NAME "
            "and embedded."
        )
    with open_files(path) as files:
        by_name = {name.rsplit("/", 1)[-1]: read for name, read in files.read.items()}
        if any(map(IDX.match, by_name)):
            return read_idx(source, by_name, reader)
        if any(map(CIFAR.match, by_name)):
            return read_cifar(source, by_name, reader)
        return read_class_folders(path, files, reader)
