"""The warm-up file of a policy in the form of TF-Agents' PolicySaver."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from karpa_tf.export.savedmodel import write_requests


def write_policy_warmup(folder: Path, name: str, observations: np.ndarray) -> None:
    """Writes the warm-up file of a policy that TF-Agents saved: `action`, asked at first steps."""
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    arrays = {}
    for key, info in saved.meta_graphs[0].signature_def["action"].inputs.items():
        if key.endswith("observation"):
            arrays[key] = observations
        else:  # step type and reward of a first step are 0, its discount is 1
            shape = [len(observations), *(dim.size for dim in info.tensor_shape.dim[1:])]
            dtype = tf.dtypes.as_dtype(info.dtype).as_numpy_dtype
            arrays[key] = np.full(shape, key.endswith("discount"), dtype)
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    write_requests(extra, name, "action", [{key: array[:1] for key, array in arrays.items()}, arrays])
