"""What goes wrong in the training of a GAN, said in a sentence as it happens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from karpa_tf.lines import InALine
from karpa_tf.training.loop import Diverged

# A discriminator's loss is 2 log 2 = 1.39 where it cannot tell; below this it leaves nothing to learn from.
_DEAD = 0.1
# Share of the highest entropy of the classes so far below which samples have collapsed.
_COLLAPSED = 0.75


class Alarms(InALine, keras.callbacks.Callback):
    """Says when the discriminator is dead and when samples collapse, each when it begins.

    Args:
        say: takes a sentence.
        entropy: of the classes of real images, in nats.

    Raises:
        Diverged: a loss is not a number.
    """

    # The steps of the run so far; the loop sets it.
    clock = 0

    def __init__(self, say: Callable[[str], None], entropy: float) -> None:
        super().__init__()
        self.say = say
        self.entropy = entropy
        self.highest = 0.0
        self.said: list[str] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        losses = logs["loss"], logs["discriminator_loss"]
        if not all(map(math.isfinite, losses)):
            raise Diverged(
                f"The losses are {losses[0]} and {losses[1]} before step {self.clock:,}: training stopped; "
                "try a smaller learning_rate, or precision float32."
            )
        self._note(
            "dead",
            losses[1] < _DEAD,
            f"The discriminator is dead: its loss is {losses[1]:.3f}, it tells every generated image, and "
            "the generator has nothing to learn from; try a smaller --discriminator_rate.",
        )
        entropy = logs["val_class_entropy"]
        self.highest = max(self.highest, entropy)
        self._note(
            "collapsed",
            entropy < _COLLAPSED * self.highest and self.highest > _COLLAPSED * self.entropy,
            f"The samples have collapsed: the entropy of their classes has fallen from {self.highest:.2f} to "
            f"{entropy:.2f} (real images: {self.entropy:.2f}); try a smaller --learning_rate or a larger "
            "--batch_size.",
        )

    def _note(self, name: str, wrong: bool, sentence: str) -> None:
        if wrong and name not in self.said:
            self.say(f"Alarm at step {self.clock:,}: {sentence}")
        self.said = [x for x in self.said if x != name] + [name] * wrong

    def get_state(self) -> dict[str, Any]:
        """Returns what was said and seen, for a checkpoint."""
        return {"highest": self.highest, "said": self.said}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from the `state` of a checkpoint."""
        self.highest, self.said = state["highest"], state["said"]
