"""The network that MAML's paper learns sinusoids with; a small one for vectors of any kind."""

from __future__ import annotations

from collections.abc import Sequence

import keras


def build_sinusoid_mlp(
    inputs: int = 1, outputs: int = 1, *, units: Sequence[int] = (40, 40), dtype: str = "float32"
) -> keras.Model:
    """Builds dense layers with rectifiers and a linear one.

    Finn et al. 2017, https://arxiv.org/abs/1703.03400, section 5.1.

    Input: `x` float32 (batch, inputs). Output: (batch, outputs).

    Args:
        inputs: numbers of an example.
        outputs: numbers of an answer; 0: the last rectifier's, an embedding.
        units: of each hidden layer.
        dtype: of weights and arithmetic.
    """
    # === Functional Model ===
    first = x = keras.Input([inputs], name="x", dtype=dtype)
    for n, width in enumerate(units):
        x = keras.layers.Dense(width, "relu", dtype=dtype, name=f"dense_{n}")(x)
    if outputs:
        x = keras.layers.Dense(outputs, dtype=dtype, name="answer")(x)
    return keras.Model(first, x, name="sinusoid_mlp")
