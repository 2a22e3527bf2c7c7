"""Which signatures may be joined: those of which it was shown that each row is answered as if alone.

`karpa-tf export` runs every row of its examples alone and in batches of several sizes, and writes what it
saw into `assets.extra/rowwise.json`, which TensorFlow Serving ignores. A graph's shapes do not show whether a
softmax is over the batch or over the columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karpa_tf.serving.json_tensors import Spec

FILE = Path("assets.extra") / "rowwise.json"
_FORMAT = 1


@dataclass(frozen=True)
class Joining:
    """Whether the requests for a signature are joined.

    Attributes:
        joined: they are.
        reason: why, or why not; for people.
        lengths: by output, the output that says how wide each row is; what lies beyond is padding.
    """

    joined: bool
    reason: str
    lengths: Mapping[str, str] = field(default_factory=dict)


def read_evidence(version: Path) -> dict[str, Any]:
    """Returns what the exporter saw, by signature; nothing if it did not look, or at another graph."""
    try:
        found = json.loads((version / FILE).read_text(encoding="utf-8"))
        digest = hashlib.sha256((version / "saved_model.pb").read_bytes()).hexdigest()
        if found["format"] == _FORMAT and found["saved_model_sha256"] == digest:
            return {name: dict(entry) for name, entry in found["signatures"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass  # TensorFlow Serving's models have none, and nobody has promised its form
    return {}


def decide(
    inputs: Mapping[str, Spec], outputs: Mapping[str, Spec], evidence: Mapping[str, Any], wanted: bool | None
) -> Joining:
    """Decides for one signature.

    Args:
        inputs, outputs: type and shape by name.
        evidence: what the exporter saw of it, if anything.
        wanted: `--enable_batching`; None: join what was shown.
    """
    if wanted is False:
        return Joining(False, "--enable_batching is false")
    for name, (_, shape) in (*inputs.items(), *outputs.items()):
        if not shape or shape[0] != -1:
            return Joining(False, f'"{name}" does not come in rows of any number')
    lengths = {
        name: length
        for name, length in dict(evidence.get("lengths", {})).items()
        if name in outputs and outputs.get(length) in (("int32", (-1,)), ("int64", (-1,)))
    }
    if evidence.get("rowwise") is True:
        return Joining(True, str(evidence.get("reason", "shown at export")), lengths)
    if wanted:
        # An answer's width would be that of its neighbours.
        fixed = all(-1 not in (shape or ())[1:] for _, shape in inputs.values())
        for name, (_, shape) in outputs.items():
            if fixed and shape and -1 in shape[1:] and name not in lengths:
                return Joining(False, f'no output says how wide each row of "{name}" is')
        return Joining(True, "--enable_batching is true", lengths)
    if not evidence:
        return Joining(False, "no assets.extra/rowwise.json says that its rows do not depend on each other")
    return Joining(False, str(evidence.get("reason", "its rows depend on each other")))
