"""Predicting with a SavedModel from disk, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf
import tensorflow_text  # noqa: F401  (registers the tokenizer's ops)
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature


def load_signature(path: str | Path, name: str = "serving_default") -> Signature:
    """Loads a signature of a SavedModel.

    Raises:
        UserError: the folder cannot be loaded, or has no such signature.
    """
    try:
        model = tf.saved_model.load(str(path))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be loaded as a SavedModel: {reason}.") from None
    if name not in model.signatures:
        raise UserError(f'{path} has no signature "{name}"; it has {sorted(model.signatures)}.')
    concrete = model.signatures[name]
    _, inputs = concrete.structured_input_signature
    # Inputs for which the file has a default are not asked for; every row has the same.
    defaults = _defaults(Path(path), name)
    inputs = {key: spec for key, spec in inputs.items() if key not in defaults}

    def function(**tensors: tf.Tensor) -> dict[str, Any]:
        return concrete(**tensors, **defaults)

    return Signature(function, inputs, resources=[model])


def _defaults(path: Path, name: str) -> dict[str, tf.Tensor]:
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((path / "saved_model.pb").read_bytes())
    for graph in saved.meta_graphs:
        if name in graph.signature_def:
            given = graph.signature_def[name].defaults
            return {key: tf.constant(tf.make_ndarray(value)) for key, value in given.items()}
    return {}
