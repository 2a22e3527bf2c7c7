"""Images of a generator: many at once for figures, grids to look at, and a walk from one to another."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine
from karpa_tf.reports.pictures import sample_grid

_AT_ONCE = 256
# Images of a class, or rows, in a grid, and classes at most; steps of a walk, and walks.
_COLUMNS, _CLASSES, _STEPS = 10, 20, 10


class Sampler(InALine):
    """Makes images with a generator, traced once.

    Args:
        generator: of [z] or [z, label].
    """

    def __init__(self, generator: keras.Model) -> None:
        self.latent = generator.inputs[0].shape[1]
        self.classes = generator.inputs[1].shape[1] if len(generator.inputs) > 1 else 0
        specs = [tf.TensorSpec(x.shape, tf.float32) for x in generator.inputs]
        self._make = tf.function(
            lambda *inputs: generator(list(inputs), training=False), input_signature=specs, autograph=False
        )

    def __call__(self, z: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Returns images uint8 (n, height, width, channels).

        Args:
            z: float32 (n, latent).
            label: float32 (n, classes), not read where there are none.
        """
        inputs = [z, label] if self.classes else [z]
        parts = [[x[i : i + _AT_ONCE] for x in inputs] for i in range(0, len(z), _AT_ONCE)]
        return np.concatenate([self._make(*part).numpy() for part in parts]).round().astype(np.uint8)

    def draw(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Returns an image of each class in `labels` int (n,), as uint8 (n, height, width, channels)."""
        return self(self.noise(len(labels), seed), self.one_hot(labels))

    def noise(self, count: int, seed: int) -> np.ndarray:
        """Returns z float32 (count, latent), from a stream of its own."""
        return np.random.default_rng((seed, 8)).standard_normal((count, self.latent), np.float32)

    def one_hot(self, labels: np.ndarray) -> np.ndarray:
        """Returns float32 (n, classes)."""
        return np.eye(max(self.classes, 1), dtype=np.float32)[labels if self.classes else 0 * labels]

    def grid(self, seed: int) -> np.ndarray:
        """Returns the same samples each time as a picture, a row a class: uint8 (height, width, 3)."""
        rows = min(self.classes or _COLUMNS, _CLASSES)
        return sample_grid(self.draw(np.repeat(np.arange(rows), _COLUMNS), seed), _COLUMNS)

    def walks(self, seed: int) -> np.ndarray:
        """Returns a picture of walks, a row each, from an image of a class to one of the next class.

        On the way z stays as long as a random one (spherical interpolation, White 2016,
        https://arxiv.org/abs/1609.04468); the label goes straight.
        """
        ends = min(self.classes or _COLUMNS, _CLASSES)
        z, label = self.noise(ends, seed), self.one_hot(np.arange(ends))
        share = np.linspace(0, 1, _STEPS, dtype=np.float32)[None, :, None]
        steps = []
        for way, round_ in ((z, True), (label, False)):
            begin, end = way[:, None], np.roll(way, -1, axis=0)[:, None]
            weights = (1 - share, share)
            if round_:
                length = np.linalg.norm(begin, axis=-1, keepdims=True) * np.linalg.norm(
                    end, axis=-1, keepdims=True
                )
                angle = np.arccos(np.clip((begin * end).sum(-1, keepdims=True) / length, -1, 1))
                weights = tuple(np.sin(x * angle) / np.sin(angle) for x in weights)
            steps.append((weights[0] * begin + weights[1] * end).reshape(ends * _STEPS, -1))
        return sample_grid(self(*(x.astype(np.float32) for x in steps)), _STEPS)
