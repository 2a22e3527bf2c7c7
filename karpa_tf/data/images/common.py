"""What images are, whatever form they come in, and what a reader of any form is given."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from karpa_tf.data.sources import SPLITS, DataRecord, Split
from karpa_tf.data.tables import label_ids
from karpa_tf.lines import InALine

Broken = Literal["skip", "stop"]


@dataclass(frozen=True, repr=False)
class Images(InALine):
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
        """Returns the images at the places of `index`."""
        labels, names = [self.labels[i] for i in index], [self.names[i] for i in index]
        return Images(self.pixels[np.asarray(index, int)], labels, names)

    def join(self, others: Images) -> Images:
        """Returns the images with others of the same shape behind them."""
        pixels = np.concatenate([self.pixels, others.pixels])
        return Images(pixels, [*self.labels, *others.labels], [*self.names, *others.names])


@dataclass(frozen=True, repr=False)
class ImageData(InALine):
    """Images by split.

    Attributes:
        name: what the user typed.
        splits: the images; `test` may be empty.
        brings_test: the data holds a test split of its own.
        notes: lines that the user should read: files left out, images resized.
        bare: classes whose folder holds no image to train on.
    """

    name: str
    splits: dict[Split, Images]
    brings_test: bool
    notes: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The classes: numbers by their value, words by the alphabet."""
        found = set(self.splits["train"].labels)
        return sorted(found, key=lambda x: (0, int(x), x) if x.isdecimal() else (1, 0, x))

    @property
    def held_out(self) -> Split:
        """The split to evaluate on: `test`, or `validation` where there is none."""
        return "test" if len(self.splits["test"]) else "validation"

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
        """What a run notes of this data."""
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, self.labels)


@dataclass
class Reader:
    """What the readers of all forms are given, and what they have to say.

    Attributes:
        size: width and height that images get.
        channels: 1 or 3.
        broken: whether a file that cannot be read is left out, or ends it all.
        nested: whether a class is the innermost folder, named with those around it (`Greek/character01`), and
            not the outermost.
        notes: see `ImageData`.
        bare: the same.
    """

    size: int
    channels: int
    broken: Broken = "skip"
    nested: bool = False
    notes: list[str] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)

    def add(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def count(things: Sequence[Any], one: str = "image", many: str = "") -> str:
    """Returns `1 image` or `2 images`."""
    return f"1 {one}" if len(things) == 1 else f"{len(things):,} {many or one + 's'}"


def label_places(images: Images, names: Sequence[str], where: str) -> tuple[np.ndarray, str]:
    """Returns the places int32 (n,) of the labels in `names`, and a note if they had to be matched.

    Some files number the classes that others name (CIFAR-10's are numbered by the alphabet).

    Raises:
        UserError: a label that is not among them.
    """
    found = set(images.labels)
    numbers, words = (all(x.isdecimal() for x in some) for some in (found, names))
    if numbers and not words and max(map(int, found)) < len(names):
        note = f"{where} numbers its classes: 0 was taken for {names[0]}, 1 for {names[1]} and so on."
        return np.array([int(x) for x in images.labels], np.int32), note
    if words and not numbers and len(found) == len(names):
        ordered = sorted(found)
        note = f"{where} names its classes: {ordered[0]} was taken for 0, {ordered[1]} for 1 and so on."
        return label_ids(images.labels, ordered, where), note
    return label_ids(images.labels, names, where), ""
