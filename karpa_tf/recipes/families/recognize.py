"""A trained network of images, and what it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import image_batches
from karpa_tf.export.signature import Signature
from karpa_tf.models.calibrated import features_of
from karpa_tf.models.ensemble import SCALES, logits_and_more
from karpa_tf.recipes.families.certainty import put_on
from karpa_tf.recipes.families.settings import ImageSettings
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder

# Images that a model reads at once.
AT_ONCE = 256


class Recognize:
    """The served function: images to labels and probabilities, in graph ops alone.

    Args:
        model: gives logits of images float32 (n, height, width, channels), 0 to 255.
        names: the labels, in the order of the logits.
    """

    def __init__(self, model: keras.Model, names: Sequence[str]) -> None:
        self.model = model
        self.names = list(names)

    def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Recognizes images float32 (n, height, width), or with 3 channels behind, of 0 to 255.

        Returns:
            `label` string (n,) and `probabilities` float32 (n, classes); of an ensemble also `disagreement`
            float32 (n,), and of a model that says what is unknown `known` bool and `unknown_score` float32
            (n,).
        """
        if image.shape.rank == 3:
            image = image[..., None]
        logits, more = logits_and_more(self.model, image)
        probabilities = tf.nn.softmax(logits)
        label = tf.gather(tf.constant(self.names), tf.argmax(probabilities, axis=1))
        return {"label": label, "probabilities": probabilities, **more}


@dataclass(frozen=True)
class Trained:
    """A run with its best weights, in float32."""

    config: ImageSettings
    names: list[str]
    model: keras.Model
    folder: RunFolder

    @property
    def judged(self) -> keras.Model:
        """The model with the mirror image, if the run says so, and without a temperature."""
        return with_flip(self.model) if self.config.test_flip else self.model

    @property
    def served(self) -> keras.Model:
        """The model as it is evaluated and served."""
        return put_on(self.judged, self.folder)

    def signature(self) -> Signature:
        """Returns what is served."""
        inputs = image_input(self.model.input.shape[1:])
        function = Recognize(self.served, self.names)
        return Signature(function, inputs, variables=self.model.weights, names=self.names, scales=SCALES)


def image_input(shape: Sequence[int]) -> dict[str, tf.TensorSpec]:
    """Returns the inputs of the signature for images of a shape; of grey ones without channels."""
    *size, channels = shape
    return {"image": tf.TensorSpec([None, *size, *([] if channels == 1 else [channels])], tf.float32)}


class Logits:
    """What a model says of the same images, again and again as it learns; traced once.

    Args:
        model: gives logits.
        pixels: uint8 (n, height, width, channels).
    """

    def __init__(self, model: keras.Model, pixels: np.ndarray) -> None:
        batches = image_batches(pixels, np.zeros(len(pixels), np.int32), batch_size=AT_ONCE)
        self._outputs = Outputs(model, batches)
        self._images = len(pixels)

    def __call__(self) -> np.ndarray:
        """Returns float32 (n, classes)."""
        return np.concatenate([logits for logits, _, _ in self._outputs])[: self._images]

    def probabilities(self) -> np.ndarray:
        """Returns float32 (n, classes)."""
        return tf.nn.softmax(self()).numpy()


def with_flip(model: keras.Model) -> keras.Model:
    """Returns a model whose logits are the mean of those of an image and of its mirror image."""
    image = keras.Input(model.input.shape[1:], name="image")
    features = features_of(model)
    outputs = [model.output] if features is None else [model.output, features]
    both = keras.Model(model.input, outputs)
    means = [0.5 * (a + b) for a, b in zip(both(image), both(keras.ops.flip(image, axis=2)), strict=True)]
    flipped = keras.Model(image, means[0], name=model.name)
    flipped.features = means[-1] if len(means) > 1 else None
    return flipped
