"""Almost no inner loop: only the last layer is adapted to a task.

Raghu et al. 2020, https://arxiv.org/abs/1909.09157.
"""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf import private
from karpa_tf.errors import UserError
from karpa_tf.meta.functional import Functional
from karpa_tf.meta.maml import MAML


class ANIL(MAML):
    """MAML whose steps are for the head alone (section 4).

    The body is the same for all tasks, so each example goes through it once, however many steps are made.

    Args:
        model: a Keras model of the functional API or Sequential, whose last layer with weights is the head.
        **kwargs: those of `MAML`.

    Raises:
        UserError: the model has no such head.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        with_weights = [layer for layer in model.layers if layer.trainable_variables]
        if private.graph_of(model) is None or len(with_weights) < 2:
            raise UserError(
                "anil adapts the last layer of a network: it takes a functional or Sequential Keras model of "
                "two layers with weights at least. "
                f"Received: {model.name}, {len(with_weights)} layers with weights."
            )
        middle = with_weights[-1].input
        self._body, self._head = keras.Model(model.inputs, middle), keras.Model(middle, model.outputs[0])
        super().__init__(model, **kwargs)

    def _functional(self, portable: bool) -> Functional:
        return Functional(self._head, transductive=self.transductive, portable=portable)

    def features(self, inputs: Any, training: bool = False, portable: bool = False) -> Any:
        """Returns what the head takes, of examples [t, n, ...].

        Args:
            inputs: the examples.
            training: as for the model.
            portable: see `Functional`.
        """
        body = Functional(self._body, transductive=self.transductive, portable=portable)
        return body([None] * len(body.variables), inputs, training)
