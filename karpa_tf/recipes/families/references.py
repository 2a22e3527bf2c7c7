"""What a classifier says of validation rows: kept with a run and in its exports, for `karpa-tf watch`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from karpa_tf.export.signature import Signature
from karpa_tf.judging.reference import REFERENCE as REFERENCE
from karpa_tf.judging.reference import Reference, make_reference, scores_of
from karpa_tf.training.run_folder import RunFolder, write_whole

# Rows at most, evenly spaced, and rows at a time.
_ROWS, _AT_ONCE = 2000, 64


def keep(
    folder: RunFolder, signature: Signature, rows: Mapping[str, np.ndarray], labels: Sequence[str]
) -> Reference | None:
    """Returns what `reference_of` does, and keeps it in the assets of a run; `folder` is the run's."""
    if reference := reference_of(signature, rows, labels):
        write_whole(folder.assets / REFERENCE, as_text(reference))
    return reference


def reference_of(
    signature: Signature, rows: Mapping[str, np.ndarray], labels: Sequence[str]
) -> Reference | None:
    """Returns what a signature says of rows that it has not learned from.

    Args:
        signature: a classifier's.
        rows: arrays (n, ...) by input.
        labels: of the rows, n of them.

    Returns:
        None: there are no rows with labels, or it is no classifier of them.
    """
    names = signature.names
    names = names.get("probabilities", ()) if isinstance(names, Mapping) else names
    if not labels or not set(labels) <= set(names):
        return None
    every = -(-len(labels) // _ROWS)
    rows, labels = {name: array[::every] for name, array in rows.items()}, labels[::every]
    parts = [
        signature({name: array[begin : begin + _AT_ONCE] for name, array in rows.items()})
        for begin in range(0, len(labels), _AT_ONCE)
    ]
    if not {"label", "probabilities"} <= set(parts[0]):
        return None
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    places = {name: place for place, name in enumerate(names)}
    return make_reference(
        list(names),
        [places[label] for label in labels],
        [places[label.decode()] for label in outputs["label"]],
        scores_of(outputs),
        "unknown_score" if "unknown_score" in outputs else "uncertainty",
    )


def as_text(reference: Reference) -> str:
    """Returns what the file holds."""
    return json.dumps(reference.as_json()) + "\n"
