"""Learning rates as functions of the step."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="karpa_tf")
class WarmupThenDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to the peak, then falls linearly to zero at the last step.

    Args:
        peak: largest learning rate.
        steps: steps of the whole training.
        warmup: share of the steps in which it rises.
    """

    def __init__(self, peak: float, steps: int, warmup: float = 0.05) -> None:
        super().__init__()
        self.peak, self.steps, self.warmup = peak, steps, warmup

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32") + 1.0
        rising = max(self.warmup * self.steps, 1.0)
        falling = max(self.steps - rising, 1.0)
        share = ops.minimum(step / rising, (self.steps + 1.0 - step) / falling)
        return self.peak * ops.clip(share, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup}
