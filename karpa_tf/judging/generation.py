"""Figures of generated images, from what a classifier sees in them: features and probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karpa_tf.errors import UserError

# A classifier is sure of an image from this probability on.
CONFIDENT = 0.9
# Neighbours that say how far the real images' region goes (Kynkaanniemi et al. 2019, section 5).
_NEIGHBOURS = 3


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Returns the squared Frechet distance of two sets of features, each taken for a normal distribution.

    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500, equation 6), but in features of one's own choice. It
    falls with the number of images, also between two sets of real ones: compare sets of one size, and with
    the distance between real ones.

    Args:
        real: float (n, width).
        generated: float (m, width).

    Raises:
        UserError: a set has fewer than two rows, or the widths differ.
    """
    _check(real, generated)
    means, covariances = zip(
        *((x.mean(0), np.cov(x.T)) for x in map(np.float64, (real, generated))), strict=True
    )
    root = _root(np.atleast_2d(covariances[0]))
    # The trace of the root of the product, by a symmetric matrix with the same eigenvalues.
    together = np.trace(_root(root @ np.atleast_2d(covariances[1]) @ root))
    traces = sum(float(np.trace(np.atleast_2d(c))) for c in covariances)
    return max(float(np.square(means[0] - means[1]).sum() + traces - 2 * together), 0.0)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def precision_and_recall(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Returns which share of the generated images is like real ones, and which share of those the other way.

    Kynkaanniemi et al. 2019 (https://arxiv.org/abs/1904.06991, equations 1 and 2): a row is like those of a
    set if it lies no farther from some row of it than that row's third neighbour in the set.

    Args:
        real: features float (n, width).
        generated: float (m, width).

    Raises:
        UserError: a set has too few rows, or the widths differ.
    """
    _check(real, generated, _NEIGHBOURS + 1)
    between = _distances(generated, real)
    reaches = [
        np.partition(_distances(x, x), _NEIGHBOURS, axis=1)[:, _NEIGHBOURS]  # the first one is the row itself
        for x in (real, generated)
    ]
    precision = (between <= reaches[0]).any(axis=1).mean()
    recall = (reaches[1] >= between.T).any(axis=1).mean()
    return float(precision), float(recall)


def sample_figures(probabilities: np.ndarray, asked: np.ndarray | None = None) -> dict[str, float]:
    """Returns what a classifier says of images.

    Args:
        probabilities: float (n, classes).
        asked: int (n,), the classes that were asked for.

    Returns:
        `confident_share`, of images with a probability of 0.9 or more; `rarest_class_share` and
        `commonest_class_share`, of the images taken for that class; `class_entropy` in nats, of these
        shares; with classes asked for `label_agreement`, the share of images taken for theirs.
    """
    found = probabilities.argmax(1)
    shares = class_shares(probabilities)
    some = shares[shares > 0]
    figures = {
        "confident_share": float((probabilities.max(1) >= CONFIDENT).mean()),
        "rarest_class_share": float(shares.min()),
        "commonest_class_share": float(shares.max()),
        "class_entropy": float((some * np.log(1 / some)).sum()),
    }
    return figures if asked is None else figures | {"label_agreement": float((found == asked).mean())}


def class_shares(probabilities: np.ndarray) -> np.ndarray:
    """Returns the share of rows that are taken for each class, float (classes,)."""
    return np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(probabilities)


def nearest(images: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance of each image to the nearest of others, and which one that is.

    Args:
        images: (n, ...), numbers of 0 to 255.
        among: (m, ...).

    Returns:
        The root of the mean squared difference of a pixel, float (n,), and the places int (n,).
    """
    flat = [np.float32(x).reshape(len(x), -1) for x in (images, among)]
    found = [_distances(part, flat[1]) for part in np.array_split(flat[0], -(-len(images) // 500))]
    distances, places = (np.concatenate([f(x, axis=1) for x in found]) for f in (np.min, np.argmin))
    return distances / np.sqrt(flat[0].shape[1]), places


def memorized_share(distances: np.ndarray, of_real: np.ndarray) -> float:
    """Returns the share of generated images that lie nearer to a training image than 99 % of real ones do.

    Args:
        distances: float (n,), of generated images to the nearest training image.
        of_real: float (m,), of real images that were not trained on. Of these the share is 0.01.
    """
    return float((distances < np.quantile(of_real, 0.01)).mean())


def format_shares(names: Sequence[str], shares: Mapping[str, np.ndarray]) -> list[str]:
    """Returns aligned lines of the share of each class, a column for each kind of images."""
    width = max(map(len, ("class", *names)))
    lines = [f"{'class':<{width}}  " + "  ".join(f"{kind:>9}" for kind in shares)]
    for place, name in enumerate(names):
        cells = "  ".join(f"{of[place]:9.3f}" for of in shares.values())
        lines.append(f"{name:<{width}}  {cells}")
    return lines


def _distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns Euclidean distances float (rows, others)."""
    squares = [np.square(x).sum(1) for x in (rows, others)]
    return np.sqrt(np.maximum(squares[0][:, None] + squares[1][None] - 2 * rows @ others.T, 0.0))


def _check(real: Any, generated: Any, least: int = 2) -> None:
    shapes = [np.shape(x) for x in (real, generated)]
    if any(len(s) != 2 or s[0] < least for s in shapes) or shapes[0][1] != shapes[1][1]:
        raise UserError(
            f"Two sets of features (rows, width) of one width are compared, of {least} rows each at least. "
            f"Received: {shapes[0]} and {shapes[1]}."
        )
