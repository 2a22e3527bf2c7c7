"""`karpa-tf explain` of the recipes of images: what in an image speaks for the label that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from karpa_tf.judging.attributions import integrated_gradients
from karpa_tf.recipe import Explanation
from karpa_tf.recipes.families.recognize import Logits, Trained
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.pictures import explanation, write_png
from karpa_tf.training.run_folder import RunFolder

# Of the integral.
_STEPS = 128


def explain_images(
    folder: RunFolder, trained: Trained, pixels: np.ndarray, shown: Sequence[str]
) -> Explanation:
    """Takes integrated gradients of the probability of each image's label.

    Writes a picture an image into `explain/` of the run, and the same for TensorBoard. The grid of the most
    confident errors is in the run since its training ended (`errors.png`).

    Args:
        folder: of the run.
        trained: the run.
        pixels: uint8 (n, height, width, channels).
        shown: names of the images.
    """
    model = trained.served
    probabilities = Logits(model, pixels).probabilities()
    classes = probabilities.argmax(axis=1)
    target = tf.constant(classes)
    rows = []
    out = folder.path / "explain"
    out.mkdir(exist_ok=True)
    with event_writer(out):
        for number, name in enumerate(shown):
            chosen = target[number]

            def probability(images: tf.Tensor, chosen: tf.Tensor = chosen) -> tf.Tensor:
                return tf.gather(tf.nn.softmax(model(images, training=False)), chosen, axis=1)

            image = pixels[number].astype(np.float32)
            # From black: in MNIST the ground, elsewhere no light.
            result = integrated_gradients(probability, image, np.zeros_like(image), _STEPS)
            label, share = trained.names[classes[number]], float(probabilities[number].max())
            picture = explanation(pixels[number], result.attributions, f"{label} ({share:.2f})")
            file = out / f"{number + 1}-{Path(name).stem[:60]}.png"
            write_png(file, picture)
            write_image(number, "explanation", picture, f"{name}: {label}")
            rows.append(
                {
                    "input": name,
                    "label": label,
                    "probability": share,
                    "completeness_gap": result.gap,
                    "file": str(file),
                }
            )
    lines = [f"{row['input']}: {row['label']} {row['probability']:.3f}  -> {row['file']}" for row in rows]
    errors = folder.path / "errors.png"
    if errors.exists():
        lines.append(f"the most confident errors of the run: {errors}")
    return Explanation(explanations=rows, lines=lines, more={"run": str(folder.path), "errors": str(errors)})
