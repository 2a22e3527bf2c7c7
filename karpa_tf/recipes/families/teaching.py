"""A run as a teacher of another one; it is asked by its signature alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.lines import InALine
from karpa_tf.recipe import recipe_of
from karpa_tf.recipes.families import ensembles
from karpa_tf.training.ancestry import weights_digest
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder, open_run

# In the assets of the run that is taught: a hash of the teacher's weights.
_NOTE = "teacher.json"
# Rows that a teacher is asked at once, and the least probability that it can give.
_AT_ONCE = 64
_SMALLEST = 1e-30


class Teacher(InALine):
    """The run that the setting `teacher` names.

    Args:
        run: the one that is taught; it notes which weights taught it, and does not go on with others.
        names: its labels.
        inputs: of its signature.

    Raises:
        UserError: the teacher is not there, has not ended, is no classifier, reads other inputs, has other
            labels, or is not what it was when the run began.
    """

    def __init__(self, run: Run[Any], names: Sequence[str], inputs: Mapping[str, tf.TensorSpec]) -> None:
        self.folder = open_teacher(run.settings.teacher)
        where = str(self.folder.path)
        recipe = recipe_of(self.folder).load()
        self.signature: Signature = recipe.signature(self.folder, recipe.about.predict())
        if not self.signature.names:
            raise UserError(f"{where} cannot teach: it gives no probabilities of labels.")
        ensembles.check_labels(list(self.signature.names), names, where, f"the data {run.settings.data}")
        own, others = ({name: str(spec) for name, spec in x.items()} for x in (self.signature.inputs, inputs))
        if own != others:
            raise UserError(
                f"{where} reads {_shown(self.signature.inputs)}, and what it is to teach reads "
                f"{_shown(inputs)}: both must have the same signature."
            )
        digest, path = weights_digest(self.folder), run.folder.assets / _NOTE
        if run.resume and path.exists() and run.folder.read_json(f"assets/{_NOTE}") != digest:
            raise UserError(
                f"{where} has other weights than when {run.folder.path} began to learn from it; bring those "
                "back, or train a new run."
            )
        run.write_asset(_NOTE, digest)
        ensembles.say_other_rows(run, self.folder, where)

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns logits float32 (rows, classes) of arrays (rows, ...) by input."""
        specs = self.signature.inputs
        answer = tf.function(lambda **tensors: self.ask(tensors), autograph=False)
        graph = answer.get_concrete_function(**specs)
        parts = []
        for begin in range(0, len(next(iter(arrays.values()))), _AT_ONCE):
            rows = {name: array[begin : begin + _AT_ONCE] for name, array in arrays.items()}
            parts.append(graph(**{name: tf.constant(rows[name], specs[name].dtype) for name in rows}))
        return np.concatenate([part.numpy() for part in parts])

    def ask(self, tensors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns logits float32 (rows, classes) of tensors by input, in graph ops."""
        return tf.math.log(tf.maximum(self.signature.function(**tensors)["probabilities"], _SMALLEST))


def open_teacher(path: str) -> RunFolder:
    """Returns the folder of the run that teaches; raises a UserError if it is not there, or has not ended."""
    try:
        folder = open_run(path)
    except UserError:
        raise UserError(
            f"There is no run {path}, which is to teach this one: bring it back, or train a new run with "
            '--teacher "".'
        ) from None
    folder.final_metrics()
    return folder


def _shown(inputs: Mapping[str, tf.TensorSpec]) -> str:
    return ", ".join(
        f"{name} {spec.dtype.name} [{', '.join('n' if d is None else str(d) for d in spec.shape)}]"
        for name, spec in inputs.items()
    )
