"""Changed images: what each change does, and that a batch is a function of seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation, augment, image_batches
from tests.conftest import make_images

PIXELS, LABELS = make_images(50, 12, 3)


def random(rows: int, seed: int = 0) -> tf.Tensor:
    return tf.random.stateless_uniform([rows, 8], [seed, 1])


def test_a_shift_moves_pixels_and_changes_none() -> None:
    moved = augment(tf.constant(PIXELS), Augmentation(shift=2), random(50)).numpy()
    padded = np.pad(PIXELS, ((0, 0), (2, 2), (2, 2), (0, 0)))
    places = set()
    for before, after in zip(padded, moved, strict=True):
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(before[y : y + 12, x : x + 12], after)
        ]
        assert len(fits) == 1
        places.add(fits[0])
    assert len(places) > 10


def test_a_reflected_edge_has_no_black() -> None:
    white = tf.fill([20, 12, 12, 3], tf.constant(255, tf.uint8))
    assert augment(white, Augmentation(shift=3, edge="reflect"), random(20)).numpy().min() == 255
    assert augment(white, Augmentation(shift=3), random(20)).numpy().min() == 0


def test_flips() -> None:
    flipped = augment(tf.constant(PIXELS), Augmentation(flip="random"), random(50)).numpy()
    same, mirrored = ((flipped == other).all(axis=(1, 2, 3)) for other in (PIXELS, PIXELS[:, :, ::-1]))
    assert (same | mirrored).all() and 10 < same.sum() < 40


def test_turns_and_sizes_keep_the_middle_bright() -> None:
    image = np.zeros([30, 13, 13, 1], np.uint8)
    image[:, 5:8, 5:8] = 255
    bent = augment(tf.constant(image), Augmentation(rotate=30, scale=0.2, shear=0.2), random(30)).numpy()
    assert (bent[:, 6, 6, 0] > 200).all() and len({picture.tobytes() for picture in bent}) == 30
    assert bent.dtype == np.uint8


def test_cutout_wipes_a_square() -> None:
    white = tf.fill([40, 12, 12, 3], tf.constant(255, tf.uint8))
    dark = (augment(white, Augmentation(cutout=4), random(40)).numpy() == 0).all(axis=3).sum(axis=(1, 2))
    assert dark.max() == 16 and dark.min() >= 4


# --- Batches


def batches(seed: int | None = 3, size: int = 16, **changes: object):
    changed = Augmentation(**{"shift": 2, "flip": "random", **changes}) if seed is not None else None
    return image_batches(PIXELS, LABELS, batch_size=size, seed=seed, augmentation=changed)


def read(data, start: int, stop: int, **parts: int) -> list:
    return [[x.numpy() for x in batch] for batch in data.dataset(start, stop, **parts)]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    whole, again, other = read(batches(), 0, 8), read(batches(), 5, 8), read(batches(4), 5, 8)
    for a, b, c in zip(whole[5:], again, other, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
        assert not np.array_equal(a[0], c[0])


def test_every_image_comes_once_an_epoch() -> None:
    plain = read(image_batches(PIXELS, LABELS, batch_size=16, seed=1), 0, 4)
    seen = [x.tobytes() for images, _, weights in plain for x in images[weights > 0]]
    assert sorted(seen) == sorted(x.tobytes() for x in PIXELS)
    # What fills the last batch up is not one image again and again.
    images, _, weights = plain[3]
    assert weights.sum() == 2 and len({x.tobytes() for x in images[weights == 0]}) > 5


def test_labels_belong_to_their_images() -> None:
    for images, labels, _ in read(image_batches(PIXELS, LABELS, batch_size=16, seed=1), 0, 4):
        for image, label in zip(images, labels, strict=True):
            (places,) = np.where((image == PIXELS).all(axis=(1, 2, 3)))
            assert LABELS[places[0]] == label


@pytest.mark.parametrize("parts", [2, 4])
def test_workers_share_the_same_batch(parts: int) -> None:
    whole = read(batches(), 2, 4)
    slices = [read(batches(), 2, 4, part=part, parts=parts) for part in range(parts)]
    for number, batch in enumerate(whole):
        for i, array in enumerate(batch):
            np.testing.assert_array_equal(array, np.concatenate([part[number][i] for part in slices]))


def test_alternating_flips_show_both_sides_in_two_epochs() -> None:
    data = batches(shift=0, flip="alternating")
    epochs = [
        {x.tobytes() for images, _, w in read(data, e * 4, e * 4 + 4) for x in images[w > 0]}
        for e in range(2)
    ]
    both = {x.tobytes() for x in (*PIXELS, *PIXELS[:, :, ::-1])}
    assert epochs[0] | epochs[1] == both and len(epochs[0]) == 50


def test_evaluating_changes_nothing_and_keeps_the_order() -> None:
    evaluated = read(batches(None, 32), 0, 2)
    images = np.concatenate([b[0] for b in evaluated])[:50]
    np.testing.assert_array_equal(images, PIXELS)
    assert np.concatenate([b[2] for b in evaluated]).sum() == 50
