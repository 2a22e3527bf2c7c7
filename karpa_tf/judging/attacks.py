"""Attacks: images changed a little, at every pixel by `epsilon` at most, so that a model goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import tensorflow as tf

from karpa_tf.errors import UserError

AttackKind = Literal["fgsm", "pgd"]


@dataclass(frozen=True)
class Attack:
    """An attack within a maximum norm, on images of 0 to 255.

    Attributes:
        kind: `fgsm`, one step along the sign of the gradient (Goodfellow et al. 2015,
            https://arxiv.org/abs/1412.6572, section 4), or `pgd`, several steps from a random start, each
            brought back into the bounds (Madry et al. 2018, https://arxiv.org/abs/1706.06083, section 2.1).
        epsilon: most that a value changes, of 255.
        steps: of pgd.
        step_size: of pgd, of 255; 0: 2.5 epsilon / steps.
    """

    kind: AttackKind
    epsilon: float
    steps: int = 10
    step_size: float = 0.0

    def __call__(
        self, logits: Callable[[Any], Any], images: tf.Tensor, labels: tf.Tensor, seed: Any
    ) -> tf.Tensor:
        """Returns the changed images, float32 of the same shape, within 0 to 255; in graph ops.

        Args:
            logits: images to logits (n, classes).
            images: (n, height, width, channels), 0 to 255.
            labels: int (n,).
            seed: int32 (2,), of the random start.
        """
        images = tf.cast(images, tf.float32)

        def slope(x: tf.Tensor) -> tf.Tensor:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits(x), tf.float32))
            return tf.sign(tape.gradient(loss, x))

        if self.kind == "fgsm":
            return tf.clip_by_value(images + self.epsilon * slope(images), 0.0, 255.0)
        low = tf.maximum(images - self.epsilon, 0.0)
        high = tf.minimum(images + self.epsilon, 255.0)
        size = self.step_size or 2.5 * self.epsilon / self.steps
        start = tf.random.stateless_uniform(tf.shape(images), seed, -self.epsilon, self.epsilon)

        def step(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, tf.clip_by_value(x + size * slope(x), low, high)

        begin = tf.clip_by_value(images + start, low, high)
        _, changed = tf.while_loop(lambda i, x: i < self.steps, step, (0, begin))
        return changed


def parse_attack(kind: str, epsilon: str) -> Attack | None:
    """Returns the attack that `--attack` and `--epsilon` ask for; `none`: None.

    Args:
        kind: `none`, `fgsm` or `pgd`.
        epsilon: a share of the range of a pixel: `8/255`, `0.03`.

    Raises:
        UserError: epsilon is no such share, or not above 0.
    """
    try:
        over, _, under = epsilon.partition("/")
        share = float(over) / (float(under) if under else 1.0)
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(
            f"--epsilon takes a share of a pixel's range, as in 8/255 or 0.03. Received: {epsilon}."
        )
    if kind == "none":
        return None
    return Attack("pgd" if kind == "pgd" else "fgsm", 255.0 * share, steps=10 if kind == "pgd" else 1)
