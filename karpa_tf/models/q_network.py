"""A network that gives each action of a state its value, for serving what `dqn` has learned."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers


def build_q_network(
    scale: Sequence[float],
    actions: int,
    *,
    units: int = 64,
    hidden_layers: int = 2,
    dueling: bool = False,
) -> keras.Model:
    """Builds the network that `karpa_tf.rl.dqn.QNetwork` trains in legacy Keras, in Keras 3.

    Args:
        scale: what each number of an observation is divided by.
        actions: how many.
        units: width of the hidden layers.
        hidden_layers: how many.
        dueling: value and advantages apart (Wang et al. 2016, equation 9).

    Returns:
        A model from observations, float32 (batch, len(scale)), to values, float32 (batch, actions). Its
        weights are those of the trained network, in the same order.

    Example:

        model = build_q_network([2.4, 2.0, 0.2, 2.0], 2)
        model(np.zeros([1, 4], "float32")).shape  # (1, 2)
    """
    # --- Layers
    rescale = layers.Rescaling([1 / value for value in scale], name="rescale")
    hidden = [layers.Dense(units, "relu", name=f"hidden_{i}") for i in range(hidden_layers)]
    advantage = layers.Dense(actions, name="advantage" if dueling else "q_values")
    value = layers.Dense(1, name="value") if dueling else None

    # --- Functional Model
    observation = keras.Input((len(scale),), name="observation")
    x = rescale(observation)
    for layer in hidden:
        x = layer(x)
    q_values = advantage(x)
    if value is not None:
        q_values = q_values - keras.ops.mean(q_values, axis=-1, keepdims=True) + value(x)
    return keras.Model(observation, q_values, name="q_network")
