"""`karpa-tf export` of the recipes of images: a SavedModel, or a file of LiteRT or ONNX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from karpa_tf.data.images import ImageData, Images
from karpa_tf.data.tables import label_ids
from karpa_tf.errors import UserError
from karpa_tf.export import litert, onnx
from karpa_tf.recipe import Exported
from karpa_tf.recipes.families import certainty, common
from karpa_tf.recipes.families.recognize import Trained
from karpa_tf.recipes.families.settings import ImageExportOptions
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training.run_folder import RunFolder

# Images that an exported file is checked on, and those that int8 takes its ranges from.
_CHECKED = 1000
_CALIBRATION = 500


def export_images(
    folder: RunFolder,
    options: ImageExportOptions,
    trained: Trained,
    data: ImageData,
    metrics: Mapping[str, Any],
    for_int8: Callable[[keras.Model], keras.Model],
) -> Exported:
    """Writes the next version of a model.

    Args:
        folder: of the run.
        options: where to, and in which form.
        trained: the run.
        data: its images.
        metrics: its figures.
        for_int8: the network to one that loses less by rounding.

    Raises:
        UserError: the network cannot be written in that form.
    """
    assets = {"labels.txt": "".join(f"{' '.join(name.split())}\n" for name in trained.names)}

    def card(note: str) -> str:
        return model_card(folder, trained, metrics, note) + certainty.section(folder, unknown=False)

    if options.format == "savedmodel":
        if options.quantize == "int8":
            raise UserError(
                "A SavedModel of images is exported in float32; --format litert makes an int8 file."
            )
        examples = [{"image": image.tolist()} for image in served_pixels(data.splits["validation"])[:4]]
        return common.export(
            folder,
            options,
            trained.signature(),
            held_out=validation_rows(data),
            examples=examples,
            assets=assets,
            model_card=model_card(folder, trained, metrics, ""),
        )
    held_out = data.splits[data.held_out]
    some = slice(None, None, -(-len(held_out) // _CHECKED))  # not the first ones: they may be of one class
    case: dict[str, Any] = {
        "labels": label_ids(held_out.labels, trained.names, trained.config.data)[some],
        "images": served_pixels(held_out)[some].astype(np.float32),
        "assets": assets,
        "model_card": card,
    }
    if options.format == "onnx":
        if options.quantize == "int8":
            raise UserError("ONNX files are written in float32; --format litert makes an int8 file.")
        flip = trained.config.test_flip
        network = certainty.put_on(trained.model, folder)
        written = onnx.export_onnx(network, flip, trained.signature(), options.to, folder.recipe, **case)
    else:
        calibration = None
        if options.quantize != "none":
            training = served_pixels(data.splits["train"])
            calibration = training[:: max(1, len(training) // _CALIBRATION)].astype(np.float32)
            trained = dataclasses.replace(trained, model=for_int8(trained.model))
        case["calibration"] = calibration
        written = litert.export_litert(trained.signature(), options.to, folder.recipe, **case)
    path, signatures, line = written
    return Exported(format=options.format, path=str(path), signatures=signatures, lines=[line])


def validation_rows(data: ImageData) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the validation images as the signature takes them, and their labels."""
    images = data.splits["validation"]
    return {"image": served_pixels(images).astype(np.float32)}, list(images.labels)


def served_pixels(images: Images) -> np.ndarray:
    """Returns the pixels as the signature has them: grey ones without an axis for the channel."""
    return images.pixels[..., 0] if images.pixels.shape[-1] == 1 else images.pixels


def model_card(folder: RunFolder, trained: Trained, metrics: Mapping[str, Any], note: str) -> str:
    config = trained.config
    *shape, channels = trained.model.input.shape
    size = ", ".join(map(str, ["n", *shape[1:], *([] if channels == 1 else [channels])]))
    mirrored = "; an image and its mirror image are recognized together" if config.test_flip else ""
    return f"""# {folder.recipe}

Says which of {len(trained.names)} classes an image shows. Trained on {config.data}.

- in: `image` float32 [{size}], 0 to 255{mirrored}
- out: `label` string [n]; `probabilities` float32 [n, {len(trained.names)}], in the order of `labels.txt`

On {metrics["facts"]["images"]} held-out images:

{metrics_table(metrics, ["accuracy", "macro_f1", "ece", "loss"])}
{note}
{settings_list(folder.read_config())}
"""
