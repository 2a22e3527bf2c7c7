"""Networks whose weights are means of others', and the statistics of batch normalization that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.lines import InALine


def mean_weights(networks: Sequence[Sequence[np.ndarray]], shares: Sequence[float]) -> list[np.ndarray]:
    """Returns the weighted mean of the weights of several networks of one architecture.

    Of two networks with shares 1 - lambda and lambda it is M1 + lambda (M2 - M1); of several with equal ones
    a uniform soup (Wortsman et al. 2022, Model soups, https://arxiv.org/abs/2203.05482).

    Args:
        networks: the arrays of each, in the order of `model.get_weights()`.
        shares: of the networks, adding up to 1.

    Returns:
        Arrays of the same shapes and dtypes.

    Raises:
        ValueError: there are not as many shares as networks, or they do not add up to 1.
    """
    if len(networks) != len(shares) or not np.isclose(sum(shares), 1):
        raise ValueError(
            f"A share each, adding up to 1, is needed. Received: {len(networks)} networks, shares "
            f"{list(shares)}."
        )
    if 1 in shares:  # one of them as it is, to the bit
        return list(networks[list(shares).index(1)])
    return [
        sum(share * array.astype(np.float64) for share, array in zip(shares, arrays, strict=True)).astype(
            arrays[0].dtype
        )
        for arrays in zip(*networks, strict=True)
    ]


class Statistics(InALine):
    """Computes the moving averages of a network's batch normalizations anew, from batches of its training.

    A mean of weights has other activations than the networks that it is a mean of, and their means and
    variances are not the means of theirs (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407, section
    3.2). Each call makes them the averages over the batches, with dropout as in training.

    Args:
        model: the network.
        batches: features of its training, a few thousand rows in all; none are read if nothing is to be done.

    Attributes:
        layers: names of the batch normalizations.
    """

    def __init__(self, model: keras.Model, batches: Any) -> None:
        self._normalizations = [
            layer
            for layer in private.inner_layers(model)
            if hasattr(layer, "moving_mean") and hasattr(layer, "momentum")
        ]
        self.layers = [layer.name for layer in self._normalizations]
        self._batches = batches
        self._forward = tf.function(lambda features: model(features, training=True), autograph=False)

    def __call__(self) -> None:
        """Sets the moving averages for the weights that the network has now."""
        if not self._normalizations:
            return
        momenta = [layer.momentum for layer in self._normalizations]
        averages = [v for layer in self._normalizations for v in (layer.moving_mean, layer.moving_variance)]
        sums, count = [np.zeros(v.shape) for v in averages], 0
        for layer in self._normalizations:
            layer.momentum = 0.0  # the averages are those of the last batch; read where the graph is made
        try:
            for features in self._batches:
                self._forward(features)
                sums = [total + np.asarray(v) for total, v in zip(sums, averages, strict=True)]
                count += 1
        finally:
            for layer, momentum in zip(self._normalizations, momenta, strict=True):
                layer.momentum = momentum
        for variable, total in zip(averages, sums, strict=True):
            variable.assign((total / count).astype(np.float32))
