"""Inputs of several tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHARED = Path(__file__).parents[3] / "shared" / "data"


def certain(predictions: list[int], classes: int, confidence: float = 1.0) -> np.ndarray:
    """Probabilities of which `predictions` have `confidence`; the others share what is left."""
    rest = (1 - confidence) / max(classes - 1, 1)
    probabilities = np.full([len(predictions), classes], rest, np.float32)
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return probabilities
