"""What `gan` serves: images of z, or of seeds, and of classes by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.export.signature import Signature
from karpa_tf.lines import InALine
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

from . import check_label


class Generate(InALine):
    """Makes images in graph ops alone.

    Args:
        generator: of [z] or [z, label].
        names: of the classes; none: the generator takes no label.
        seeded: z is not given, but made of a seed.
    """

    def __init__(self, generator: keras.Model, names: Sequence[str], seeded: bool) -> None:
        self.generator, self.names, self.seeded = generator, list(names), seeded

    def __call__(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Makes an image of each row.

        Args:
            inputs: `z` float32 [n, latent], or `seed` int64 [n]: standard normal numbers by the counter-based
                Philox generator, of each row's seed alone; and, with classes, `label` string [n].

        Returns:
            `image` float32 [n, height, width] of 0 to 255, or with 3 channels behind.

        Raises:
            tf.errors.InvalidArgumentError: a label is none of the classes.
        """
        given = [of_seeds(inputs["seed"], self.generator.inputs[0].shape[1]) if self.seeded else inputs["z"]]
        if self.names:
            given.append(one_hot(inputs["label"], self.names))
        image = self.generator(given, training=False)
        return {"image": image[..., 0] if image.shape[-1] == 1 else image}


def of_seeds(seed: tf.Tensor, width: int) -> tf.Tensor:
    """Returns standard normal numbers float32 [n, width], a row of each seed int64 [n] alone."""

    def row(number: tf.Tensor) -> tf.Tensor:
        return tf.random.stateless_normal([width], tf.stack([number, 0]), alg="philox")

    numbers = tf.map_fn(row, seed, fn_output_signature=tf.TensorSpec([width], tf.float32))
    return tf.ensure_shape(numbers, [None, width])


def one_hot(label: tf.Tensor, names: Sequence[str]) -> tf.Tensor:
    """Returns float32 [n, classes] of labels string [n]; a label that is none of the classes is an error."""
    same = label[:, None] == tf.constant(names)[None]
    shown = ", ".join(names[:20]) + (" and others" if len(names) > 20 else "")
    known = tf.debugging.Assert(
        tf.reduce_all(tf.reduce_any(same, 1)),
        [f"There is no such class: label must be one of {shown}. Received:", label],
    )
    with tf.control_dependencies([known] if known is not None else []):
        return tf.cast(same, tf.float32)


def signatures(generator: keras.Model, names: Sequence[str]) -> dict[str, Signature]:
    """Returns what a run serves, `serving_default` of z and `sample` of seeds."""
    latent = generator.inputs[0].shape[1]
    first = {
        "serving_default": {"z": tf.TensorSpec([None, latent], tf.float32)},
        "sample": {"seed": tf.TensorSpec([None], tf.int64)},
    }
    label = {"label": tf.TensorSpec([None], tf.string)} if names else {}
    return {
        name: Signature(
            Generate(generator, names, "seed" in inputs),
            {**inputs, **label},
            variables=generator.weights,
            check=_check(names) if names else None,
        )
        for name, inputs in first.items()
    }


def _check(names: Sequence[str]) -> Callable[[int, Mapping[str, Any]], None]:
    def check(number: int, row: Mapping[str, Any]) -> None:
        check_label(row["label"], list(names), f"Row {number}: ")

    return check


def model_card(
    folder: RunFolder, generator: keras.Model, names: Sequence[str], metrics: Mapping[str, Any]
) -> str:
    """Returns the model card of a run."""
    latent = generator.inputs[0].shape[1]
    size = ", ".join(str(side) for side in generator.output.shape[1:] if side != 1)
    label = "; `label` string [n]" if names else ""
    of = f"{len(names)} classes: {', '.join(names)}" if names else "any class"
    shown = ["frechet", "precision", "recall", "confident_share", "rarest_class_share", "memorized_share"]
    facts = metrics["facts"]
    return f"""# {folder.recipe}

Makes images of {of}. Trained on {folder.read_config()["data"]}. They are synthetic: pictures of nothing
that there is.

- in: `z` float32 [n, {latent}], standard normal numbers{label}
- out: `image` float32 [n, {size}], 0 to 255
- signature `sample`: `seed` int64 [n] in the place of `z`: an image follows from its own seed and label alone

Against {facts["images"]} held-out images, in features of a classifier of the training images (accuracy
{metrics["judge_accuracy"]:.3f}); real images against them are the floor:

{metrics_table(metrics, shown)}

{settings_list(folder.read_config())}
"""
