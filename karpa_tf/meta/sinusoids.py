"""Sinusoids: the regression tasks of Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.1."""

from __future__ import annotations

import numpy as np

from karpa_tf.data.sources import DataRecord
from karpa_tf.meta.tasks import TaskBatch, TaskData, Tasks

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, np.pi), (-5.0, 5.0)


class Sinusoids(Tasks):
    """Tasks y = a sin(x - p), with an amplitude a of 0.1 to 5, a phase p of 0 to pi, x of -5 to 5.

    All three are uniform. Examples are float32 (1,), and so are their labels.
    """

    shape, ways, outputs = (1,), 0, 1

    def sample(self, rng: np.random.Generator, count: int, *, shots: int, queries: int) -> TaskBatch:
        """Draws tasks: a sinusoid each.

        Args:
            rng: which ones, together with its state alone.
            count: of tasks.
            shots: points of each to learn from.
            queries: others to answer.
        """
        amplitude, phase = (rng.uniform(*bounds, (count, 1, 1)) for bounds in (AMPLITUDES, PHASES))
        x = rng.uniform(*INPUTS, (count, shots + queries, 1))
        y = amplitude * np.sin(x - phase)
        x, y = x.astype(np.float32), y.astype(np.float32)
        return TaskBatch(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])


def open_sinusoids() -> TaskData:
    """Returns sinusoids. They do not run out, so that the splits are one: another draw is another task."""
    tasks = Sinusoids()
    record = DataRecord(f"sinusoids {AMPLITUDES} {PHASES} {INPUTS}", {})
    return TaskData("sinusoids", {"train": tasks, "validation": tasks, "test": tasks}, record)
