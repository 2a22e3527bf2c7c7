"""Integrated gradients: which parts of an input speak for what a model says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine

_AT_ONCE = 64


@dataclass(frozen=True, repr=False)
class Attribution(InALine):
    """What each part of an input adds to the model's output.

    Attributes:
        attributions: float64 of the shape of the input.
        difference: the output at the input less that at the baseline. By the completeness axiom it is the
            sum of the attributions.
        gap: how far that sum is off, for want of steps.
    """

    attributions: np.ndarray
    difference: float
    gap: float


def integrated_gradients(
    function: Callable[[Any], Any], input: np.ndarray, baseline: np.ndarray, steps: int = 128
) -> Attribution:
    """Integrates the gradient of an output on the straight way from a baseline to an input.

    Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", https://arxiv.org/abs/1703.01365,
    section 3, by the midpoint rule.

    Args:
        function: inputs float32 (n, ...) to an output each, (n,).
        input: float32 (...).
        baseline: float32 of the same shape: what says nothing, e.g. a black image.
        steps: points on the way.

    Raises:
        ValueError: the shapes differ.
    """
    if input.shape != baseline.shape:
        raise ValueError(f"Input and baseline need one shape. Received: {input.shape} and {baseline.shape}.")
    input, baseline = input.astype(np.float32), baseline.astype(np.float32)
    way = input - baseline
    total = np.zeros(input.shape, np.float64)
    places = (np.arange(steps, dtype=np.float32) + 0.5) / steps

    # No tf.function: each call has a function of its own, and tracing it takes longer than the few runs.
    def slopes(points: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(points)
            output = function(points)
        return tape.gradient(output, points)

    for begin in range(0, steps, _AT_ONCE):
        share = places[begin : begin + _AT_ONCE].reshape(-1, *[1] * input.ndim)
        total += slopes(tf.constant(baseline + share * way)).numpy().astype(np.float64).sum(axis=0)
    attributions = way * total / steps
    ends = np.asarray(function(tf.constant(np.stack([baseline, input]))), np.float64)
    difference = float(ends[1] - ends[0])
    return Attribution(attributions, difference, abs(float(attributions.sum()) - difference))
