"""What the algorithms of meta-learning have in common: a network that learns how to learn a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.meta.adapt import absent, adapt, task_losses
from karpa_tf.meta.functional import Functional
from karpa_tf.meta.tasks import TaskBatch


class Learner(keras.Model):
    """A network together with a learned rate for each of its parameters: what is saved and loaded as one.

    Args:
        network: the Keras model.
        rate: where the rates begin.
    """

    def __init__(self, network: keras.Model, rate: float) -> None:
        super().__init__(name="learner")
        self.network = network
        start = keras.initializers.Constant(rate)
        self.rates = [
            self.add_weight(v.shape, start, v.dtype, name=f"rate_{number}")
            for number, v in enumerate(network.trainable_variables)
        ]
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns what the network answers before it has seen a task."""
        return self.network(inputs, training=training)


class Algorithm(InALine, ABC):
    """Learns weights from which a few gradient steps on a task's support set lead to its answers.

    Args:
        model: a built Keras model: one output [n, ways] of logits, or [n, outputs] of a regression.
        inner_rate: of the gradient steps on a task.
        inner_steps: how many of them, in training.
        learn_rates: learn a rate for each parameter (Meta-SGD, Li et al. 2017,
            https://arxiv.org/abs/1707.09835), beginning with `inner_rate`.
        transductive: see `Functional`: batch normalization may look at the whole query set.

    Raises:
        UserError: there is no inner step.

    Attributes:
        learner: the Keras model that is trained, saved and loaded: `model`, with the rates if they are
            learned.
    """

    # How much each step of the inner loop is pulled back to where it began.
    pull = 0.0

    def __init__(
        self,
        model: keras.Model,
        *,
        inner_rate: float = 0.01,
        inner_steps: int = 1,
        learn_rates: bool = False,
        transductive: bool = False,
    ) -> None:
        if inner_steps < 1:
            raise UserError(f"inner_steps must be 1 at least. Received: {inner_steps}.")
        self.inner_rate, self.inner_steps, self.learn_rates = inner_rate, inner_steps, learn_rates
        self.model, self.transductive = model, transductive
        self.learner = Learner(model, inner_rate) if learn_rates else model
        self.functional = self._functional(portable=False)

    def _functional(self, portable: bool) -> Functional:
        """Returns the function whose weights are adapted."""
        return Functional(self.model, transductive=self.transductive, portable=portable)

    def features(self, inputs: Any, training: bool = False, portable: bool = False) -> Any:
        """Returns what the adapted function takes, of examples [t, n, ...]: the examples themselves.

        Args:
            inputs: the examples.
            training: as for the model.
            portable: see `Functional`.
        """
        return inputs

    @property
    def variables(self) -> list[keras.Variable]:
        """What is learned across tasks: the weights, and the rates if they are."""
        return list(self.learner.trainable_variables)

    @property
    def rates(self) -> list[Any]:
        """The rate of each of the adapted variables: a number, or a tensor of its shape."""
        if not self.learn_rates:
            return [self.inner_rate] * len(self.functional.variables)
        rates = dict(zip(map(id, self.model.trainable_variables), self.learner.rates, strict=True))
        return [tf.convert_to_tensor(rates[id(v)].value) for v in self.functional.variables]

    @abstractmethod
    def gradients(self, batch: TaskBatch) -> tuple[list[tf.Tensor], dict[str, tf.Tensor]]:
        """Returns the gradient of each of `variables`, and figures by name: means over the batch.

        Args:
            batch: of tasks, tensors.
        """

    def predict(
        self,
        support: Any,
        labels: Any,
        query: Any,
        *,
        steps: Sequence[int] | None = None,
        row_weights: Any = None,
        portable: bool = False,
    ) -> tf.Tensor:
        """Returns the answers after the steps of the inner loop: [steps, t, n, ways] logits, or numbers.

        The number of tasks, of support rows and of queries may be unknown when it is traced.

        Args:
            support: [t, k, ...].
            labels: int [t, k], or float [t, k, outputs].
            query: [t, n, ...].
            steps: after which numbers of steps to answer, rising; None: after `inner_steps`.
            row_weights: [t, k]; rows of padding have 0. Classes without a row get next to no probability.
            portable: see `Functional`; for what is exported.

        Raises:
            UserError: the numbers of steps do not rise, or are below 0.
        """
        steps = [self.inner_steps] if steps is None else list(steps)
        if steps != sorted(set(steps)) or not steps or steps[0] < 0:
            raise UserError(f"steps must be whole numbers of 0 at least, rising. Received: {steps}.")
        functional = self._functional(portable=True) if portable else self.functional
        support, query = (self.features(x, portable=portable) for x in (support, query))
        anchor = weights = functional.tile(tf.shape(tf.nest.flatten(support)[0])[0])
        answers, made = [], 0
        for number in steps:
            if number > made:
                count: Any = tf.constant(number - made)
                weights = adapt(
                    functional,
                    weights,
                    support,
                    labels,
                    steps=count,
                    rates=self.rates,
                    row_weights=row_weights,
                    pull=self.pull,
                    anchor=anchor,
                )
            made = number
            answers.append(functional(weights, query))
        return mask_absent(tf.stack(answers), labels, row_weights)


def mask_absent(answers: tf.Tensor, labels: Any, row_weights: Any) -> tf.Tensor:
    """Returns logits [steps, t, n, ways] with next to nothing for classes that no row of a task is of."""
    labels = tf.convert_to_tensor(labels)
    if row_weights is None or not labels.dtype.is_integer:
        return answers
    ways = answers.shape[-1] or tf.shape(answers)[-1]
    return answers + absent(labels, tf.convert_to_tensor(row_weights), ways, answers.dtype)


def figures(outputs: tf.Tensor, labels: Any) -> dict[str, tf.Tensor]:
    """Returns the mean loss of a batch of tasks, and of classifications the accuracy.

    Args:
        outputs: [t, n, ways] or [t, n, outputs].
        labels: int [t, n] or float [t, n, outputs].
    """
    found = {"loss": tf.reduce_mean(task_losses(outputs, labels))}
    if labels.dtype.is_integer:
        hits = tf.argmax(outputs, -1, labels.dtype) == labels
        found["accuracy"] = tf.reduce_mean(tf.cast(hits, tf.float32))
    return found
