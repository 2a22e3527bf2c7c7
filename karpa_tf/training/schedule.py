"""Learning rates as functions of the step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from karpa_tf.lines import InALine


@keras.saving.register_keras_serializable(package="karpa_tf")
class WarmupThenDecay(InALine, keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to the peak, then falls linearly until the last step.

    Args:
        peak: largest learning rate.
        steps: steps of the whole training.
        warmup: share of the steps in which it rises.
        end: share of the peak that it falls to.
    """

    def __init__(self, peak: float, steps: int, warmup: float = 0.05, end: float = 0.0) -> None:
        super().__init__()
        self.peak, self.steps, self.warmup, self.end = peak, steps, warmup, end

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32") + 1.0
        rising = max(self.warmup * self.steps, 1.0)
        falling = max(self.steps - rising, 1.0)
        left = ops.clip((self.steps + 1.0 - step) / falling, 0.0, 1.0)
        return self.peak * ops.minimum(step / rising, self.end + (1.0 - self.end) * left)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup, "end": self.end}
