"""LiteRT files (.tflite) for phones and small devices: converted, calibrated, checked with LiteRT itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import publish
from karpa_tf.export.signature import Signature
from karpa_tf.quiet import stderr_aside

TOLERANCE = 1e-5
# Share of the images in whose label an int8 file must agree with the model that it is made of.
AGREEMENT = 0.9


def export_litert(
    signature: Signature,
    to: str | Path,
    name: str,
    *,
    calibration: np.ndarray | None,
    images: np.ndarray,
    labels: np.ndarray,
    assets: Mapping[str, str],
    model_card: Callable[[str], str],
) -> tuple[Path, dict[str, Any], str]:
    """Writes `to/NAME-litert/VERSION/model.tflite`: `image` float32 [1, ...] to `probabilities` float32.

    Args:
        signature: of a classifier of images, with the output `probabilities`.
        to: the folder of all models.
        name: of the recipe.
        calibration: images float32 that int8 takes its ranges from; None: everything stays float32.
        images: held-out images float32 to check it on.
        labels: their classes, int (n,).
        assets: text of files beside the model by name.
        model_card: makes Markdown, given what is to be said of size and accuracy.

    Returns:
        The file, its signatures, and a line that says its size and accuracy.

    Raises:
        UserError: the interpreter is not installed, the network has an op that LiteRT lacks, or the file does
            not do what the model does.
    """
    interpreter_class = _interpreter()
    (spec,) = signature.inputs.values()
    one = tf.TensorSpec([1, *spec.shape[1:]], spec.dtype, "image")
    function = tf.function(
        lambda image: {"probabilities": signature.function(image=image)["probabilities"]}, autograph=False
    )
    holder = tf.Module()
    holder.weights = [variable.value for variable in signature.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function(one)], holder)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: _one_by_one(calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with stderr_aside():  # it prints its passes
            content = converter.convert()
    except Exception as error:  # the converter raises whatever comes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The network cannot be converted to LiteRT: {reason}.") from None

    expected = signature.function(image=tf.constant(images))["probabilities"].numpy()
    with stderr_aside():  # the interpreter greets
        found = _run(interpreter_class, content, images)
    kind = "float32" if calibration is None else "int8"
    if calibration is None:
        check_probabilities("LiteRT", expected, found)
    else:
        agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        if agreement < AGREEMENT:
            raise UserError(
                f"The int8 file agrees with the model on {agreement:.1%} of {len(images)} images only; "
                "nothing was exported. Try --quantize none."
            )
    note, line = describe_file("LiteRT", kind, content, labels, expected, found)

    files = {**assets, "model_card.md": model_card(note)}
    path = publish_file(content, "model.tflite", files, to, f"{name}-litert")
    return path, _signatures(spec, expected, 1), line


def publish_file(content: bytes, file: str, texts: Mapping[str, str], to: str | Path, name: str) -> Path:
    """Writes the next version of a model that is one file, with texts beside it, and returns its path."""

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / file).write_bytes(content)
        for other, text in texts.items():
            (folder / other).write_text(text, encoding="utf-8")

    return publish(write, to, name) / file


def check_probabilities(what: str, expected: np.ndarray, found: np.ndarray) -> None:
    """Raises a UserError if probabilities differ by more than the tolerance of all exports."""
    if expected.shape != found.shape or not np.allclose(expected, found, rtol=0, atol=TOLERANCE):
        worst = float(np.abs(expected - found).max()) if expected.shape == found.shape else float("nan")
        raise UserError(
            f"The {what} file differs from the model by {worst:.2g}, more than {TOLERANCE}; nothing was "
            "exported."
        )


def describe_file(
    what: str, kind: str, content: bytes, labels: np.ndarray, expected: np.ndarray, found: np.ndarray
) -> tuple[str, str]:
    """Returns what the model card and the terminal say of a file: its size and its accuracy."""
    before, after = ((p.argmax(axis=1) == labels).mean() for p in (expected, found))
    size = f"{len(content) / 1e6:.2f} MB"
    line = (
        f"{what}, {kind}, {size}: accuracy {after:.4f}, and {before:.4f} of the model itself, on "
        f"{len(labels)} held-out images"
    )
    return f"\nThis file: {line} ({after - before:+.4f}).\n", line


def _signatures(spec: tf.TensorSpec, probabilities: np.ndarray, batch: int | str) -> dict[str, Any]:
    shape = ", ".join(map(str, [batch, *spec.shape[1:]]))
    classes = probabilities.shape[1]
    return {
        "serving_default": {
            "inputs": {"image": f"float32 [{shape}]"},
            "outputs": {"probabilities": f"float32 [{batch}, {classes}]"},
        }
    }


def _interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise UserError(
            "--format litert is checked with LiteRT's interpreter, which is not installed: pip install "
            "'karpa-tf[litert]'."
        ) from None
    return Interpreter


def _one_by_one(images: np.ndarray) -> Iterator[list[np.ndarray]]:
    for image in images:
        yield [image[None]]


def _run(interpreter_class: Any, content: bytes, images: np.ndarray) -> np.ndarray:
    run = interpreter_class(model_content=content).get_signature_runner()
    return np.concatenate([run(image=image[None])["probabilities"] for image in images])
