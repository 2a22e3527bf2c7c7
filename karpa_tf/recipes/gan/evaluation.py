"""Samples compared with real images, and real images with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from karpa_tf.judging.generation import (
    class_shares,
    format_shares,
    frechet_distance,
    memorized_share,
    nearest,
    precision_and_recall,
    sample_figures,
)
from karpa_tf.recipe import Evaluation
from karpa_tf.reports.pictures import sample_grid

from . import GanSettings
from .judge import FEW, SEED, Judge, accuracy_of_few, some_of_each
from .samples import Sampler

# Images that are compared at most; sets of samples, and of training images, that the distance is the mean of.
_MOST, _DRAWS = 5_000, 5
# Seeds of the samples, beyond those of pictures.
_FIRST_SEED = 1_000


@dataclass(frozen=True)
class Compared:
    """Images and their classes.

    Attributes:
        pixels: uint8 (n, height, width, channels).
        labels: int32 (n,).
    """

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, places: np.ndarray) -> Compared:
        """Returns some of them."""
        return Compared(self.pixels[places], self.labels[places])


def compare(
    test: Compared,
    training: Compared,
    judge: Judge,
    sampler: Sampler,
    config: GanSettings,
    names: list[str],
    synthetic: int,
) -> Evaluation:
    """Returns the figures of samples and, as baselines, those of real images and of independent pixels.

    Args:
        test: real images that were not trained on.
        training: those that were.
        judge: what sees features and classes in images.
        sampler: makes samples, of the classes of the test images.
        config: of the run.
        names: of the classes.
        synthetic: samples to add to a few real images; 0: leave that out.
    """
    rng = np.random.default_rng(SEED)
    count = min(len(test.labels), len(training.labels), _MOST)
    test = test.take(rng.permutation(len(test.labels))[:count])
    features, probabilities = judge(test.pixels)
    asked = test.labels if config.conditional else None
    rows: dict[str, dict[str, float]] = {}
    shares = {"test": class_shares(probabilities)}

    def row(name: str, sets: list[np.ndarray], asked: np.ndarray | None = None) -> None:
        """Adds the figures of several sets of images; all but the distance are those of the first one."""
        seen = [judge(pixels) for pixels in sets]
        precision, recall = precision_and_recall(features, seen[0][0])
        shares[name] = class_shares(seen[0][1])
        rows[name] = {
            "frechet": float(np.mean([frechet_distance(features, of) for of, _ in seen])),
            "precision": precision,
            "recall": recall,
            **sample_figures(seen[0][1], asked),
        }

    samples = [sampler.draw(test.labels, _FIRST_SEED + draw) for draw in range(_DRAWS)]
    row("model", samples, asked)
    row(
        "real images", [training.pixels[rng.permutation(len(training.labels))[:count]] for _ in range(_DRAWS)]
    )
    some = rng.integers(0, len(training.labels), test.pixels.shape)
    row("independent pixels", [np.take_along_axis(training.pixels, some, 0)])
    nearest_of_real, _ = nearest(test.pixels, training.pixels)
    for name, pixels in (("model", samples[0]), ("real images", test.pixels)):
        distances = nearest_of_real if name == "real images" else nearest(pixels, training.pixels)[0]
        rows[name]["nearest_distance"] = float(np.median(distances))
        rows[name]["memorized_share"] = memorized_share(distances, nearest_of_real)
    metrics = rows.pop("model")
    metrics["frechet_floor"] = rows["real images"]["frechet"]
    metrics["judge_accuracy"] = float((probabilities.argmax(1) == test.labels).mean())
    facts = {
        "images": count,
        "features": features.shape[1],
        "sets of samples": _DRAWS,
        "seed of the judge": SEED,
    }
    if synthetic and config.conditional:
        few = training.take(some_of_each(training.labels, FEW, SEED))
        labels = np.resize(np.arange(len(names), dtype=np.int32), synthetic)
        added = sampler.draw(labels, _FIRST_SEED + _DRAWS), labels
        given = (few.pixels, few.labels), (test.pixels, test.labels)
        metrics["accuracy_few_real"] = accuracy_of_few(config, given[0], None, given[1], len(names))
        metrics["accuracy_with_synthetic"] = accuracy_of_few(config, given[0], added, given[1], len(names))
        facts |= {"few real images": len(few.labels), "synthetic images": synthetic}
    return Evaluation(
        data="", metrics=metrics, baselines=rows, facts=facts, tables=[format_shares(names, shares)]
    )


def nearest_picture(sampler: Sampler, training: np.ndarray, seed: int, columns: int = 10) -> np.ndarray:
    """Returns samples in rows, and below each its nearest training image, as uint8 (height, width, 3).

    Args:
        sampler: makes the samples, some of each class.
        training: uint8 (n, height, width, channels).
        seed: of the samples.
        columns: of the picture.
    """
    labels = np.resize(np.arange(max(sampler.classes, 1)), 3 * columns)
    samples = sampler.draw(labels, seed)
    like = training[nearest(samples, training)[1]]
    pairs = [
        x for i in range(0, len(samples), columns) for x in (samples[i : i + columns], like[i : i + columns])
    ]
    return sample_grid(np.concatenate(pairs), columns)
