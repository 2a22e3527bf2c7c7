"""Tasks of images: glyphs, class folders, Omniglot's alphabets, and all else that images come in."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from karpa_tf.data.images import Images, read_given
from karpa_tf.data.images.common import Reader, count
from karpa_tf.data.sources import Split
from karpa_tf.errors import UserError
from karpa_tf.meta.classes import TaskSize, class_data, first_places, split_by_class, test_alone
from karpa_tf.meta.glyphs import read_glyphs
from karpa_tf.meta.tasks import TaskData

GLYPHS = "glyphs"


def open_image_tasks(
    source: str = GLYPHS,
    *,
    ways: int,
    shots: int,
    queries: int,
    size: int = 28,
    channels: int = 1,
    rotations: bool = False,
    only_test: bool = False,
) -> TaskData:
    """Opens labelled images as tasks, split by class; see `split_by_class`.

    Args:
        source: `glyphs`, the letters of matplotlib's fonts, split by script (see `read_glyphs`); or what
            `open_images` takes, above all class folders. Where folders lie within folders (Omniglot's
            `Greek/character01`), the inner ones are classes and the outer ones alphabets: those tested on
            are of alphabets never trained on, and a task to train on is of one alphabet.
        ways: classes of a task.
        shots: images of each class in the support set.
        queries: the same in the query set.
        size: width and height of what comes out; images of another size are resized.
        channels: 1 (grey) or 3 (colours). What is dark on light in grey is inverted: ink is 1, paper 0.
        rotations: whether images turned by 90, 180 and 270 degrees are three more classes each, to train on;
            none are validated or tested on (Santoro et al. 2016, https://arxiv.org/abs/1605.06065).
        only_test: give the test split alone: glyphs' or the data's own one, or else every image.

    Returns:
        Tasks of float32 (size, size, channels), 0 to 1.

    Raises:
        UserError: the source cannot be read, or has too few classes or alphabets, or too few images of them.
    """
    task = TaskSize(ways, shots, queries)
    reader, inverted = Reader(size, channels, nested=True), False
    if source == GLYPHS:
        glyphs = read_glyphs(size)
        rows = {split: (np.repeat(x.pixels, channels, axis=-1), x.labels) for split, x in glyphs.items()}
    else:
        rows, inverted = _split(source, read_given(source, reader, only_test), reader, only_test)
    if only_test:
        rows = {"test": rows["test"]}
    elif rotations:
        x, labels = rows["train"]
        turned = np.concatenate([np.rot90(x, k, axes=(1, 2)) for k in range(4)])
        rows["train"] = (
            turned,
            [f"{label}{angle}" for angle in ("", " 90", " 180", " 270") for label in labels],
        )
    groups = {label: _alphabet(label) for label in rows.get("train", ((), ()))[1]}
    if not all(groups.values()):
        groups = {}
    data = class_data(source, rows, task, "image", reader.notes, groups)
    return dataclasses.replace(data, inverted=inverted)


def _alphabet(label: str) -> str:
    """Returns `Greek 90` of `Greek/character01 90`: turned letters are an alphabet of their own."""
    alphabet, _, letter = label.rpartition("/")
    return alphabet and alphabet + "".join(re.findall(r" (?:90|180|270)$", letter))


def _split(
    source: str, given: dict[Split, Images], reader: Reader, only_test: bool
) -> tuple[dict[Split, tuple[np.ndarray, list[str]]], bool]:
    """Returns pixels and labels by split, of classes or alphabets that no other has; and whether inverted."""
    pixels = np.concatenate([images.pixels for images in given.values()])
    labels = [label for images in given.values() for label in images.labels]
    come = [split for split, images in given.items() for _ in images.labels]
    keys = [key for images in given.values() for key in images.keys()]  # noqa: SIM118
    own = {label: label.rpartition("/")[0] for label in labels}
    if not only_test and all(re.fullmatch(r"character\d+", label) for label in own):
        raise UserError(
            f"{source} holds one alphabet only, of {len(own)} classes, and another one is needed to test on; "
            "put the folders of two alphabets or more side by side."
        )
    inverted = bool(reader.channels == 1 and np.median(pixels) > 127)
    if inverted:
        pixels = 255 - pixels
        reader.add(f"{source}: images are dark on light and were inverted: ink is 1, paper is 0.")
    once = first_places(keys)
    if len(once) < len(keys):
        reader.add(f"{source}: {count(range(len(keys) - len(once)))} that came twice left out.")
        pixels, labels, come = pixels[once], [labels[i] for i in once], [come[i] for i in once]
    groups = own if all(own.values()) else None
    places = test_alone(come) if only_test else split_by_class(labels, come, groups)
    if groups and not only_test:
        reader.add(f"{source}: tested on {', '.join(sorted({own[labels[i]] for i in places['test']}))}.")
    return {split: (pixels[rows], [labels[i] for i in rows]) for split, rows in places.items()}, inverted
