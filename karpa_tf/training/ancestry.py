"""Which weights a run started from, by which it is seen whether two runs have a common start."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from karpa_tf.training.run_folder import RunFolder, open_run, write_json

# In the assets of a run.
_NOTE = "start.json"


def weights_digest(folder: RunFolder) -> str:
    """Returns a hash of a run's best weights, or of those of an ensemble's members."""
    files = sorted([*folder.path.glob("best.weights.h5"), *folder.path.glob("members/**/best.weights.h5")])
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def note_start(folder: RunFolder, weights: Sequence[Any], init: str = "") -> None:
    """Writes which weights a run starts from, as `start.json` in its assets.

    Args:
        folder: of the run.
        weights: its model's, before the first step.
        init: the run that they are of, if they are one's.
    """
    digest = hashlib.blake2b(digest_size=16)
    for array in map(np.asarray, weights):
        digest.update(str((array.shape, array.dtype)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    ancestors = lineage(open_run(init)) if init else set()
    write_json(folder.assets / _NOTE, {"weights": digest.hexdigest(), "ancestors": sorted(ancestors)})


def note_ancestors(folder: RunFolder, ancestors: set[str]) -> None:
    """Writes the same of a run that was made of others and learned nothing itself."""
    write_json(folder.assets / _NOTE, {"weights": "", "ancestors": sorted(ancestors)})


def lineage(folder: RunFolder) -> set[str]:
    """Returns hashes of the weights that a run is, started from, and comes of; a preset's among them.

    Two runs have a common start if these have something in common.
    """
    found = {weights_digest(folder)} if folder.best_weights.exists() else set()
    if (folder.assets / _NOTE).exists():
        note = folder.read_json(f"assets/{_NOTE}")
        found |= {note["weights"], *note["ancestors"]}
    if (folder.assets / "encoder.json").exists():
        found.add(folder.read_json("assets/encoder.json")["preset"])
    return found - {""}
