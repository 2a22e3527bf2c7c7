"""Magnitude pruning: of each matrix more and more of the smallest weights become zero, and stay zero.

Zhu & Gupta 2017, "To prune, or not to prune", https://arxiv.org/abs/1710.01878. It makes files smaller when
they are compressed, and nothing faster: a matrix of zeros is multiplied as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.lines import InALine

# Share of the steps after which no more weights go, and how often some do until then. The rest of the steps
# train what is left.
_PRUNED_BY = 0.6
_TIMES = 50


class Sparsity(InALine):
    """The schedule of a training, and the matrices that it prunes.

    A weight that is zero is pruned: the weights are their own masks, so a checkpoint of them holds the masks
    as well.

    Args:
        model: built; pruned are its trained variables of two axes and more: kernels and embeddings.
        share: of each matrix that is zero in the end, from 0 to below 1.
        steps: of the whole training.

    Attributes:
        share: the same.
        end: the step at which that share is reached.
        every: steps between two prunings.
    """

    def __init__(self, model: keras.Model, share: float, steps: int) -> None:
        self.matrices = [v for v in model.trainable_variables if len(v.shape) > 1]
        self.share = share
        self.end = max(1, round(_PRUNED_BY * steps))
        self.every = max(1, self.end // _TIMES)

    def at(self, step: int) -> float:
        """Returns the share that is zero after a step: equation 1, with s_i = 0 and t_0 = 0."""
        return self.share * (1.0 - (1.0 - min(step / self.end, 1.0)) ** 3)

    def prune(self, step: int) -> None:
        """Sets the smallest weights to zero, if it is time for that.

        Args:
            step: how many steps were made.
        """
        if step > self.end or (step % self.every and step != self.end):
            return
        for matrix in self.matrices:
            values = np.array(matrix)
            count = int(self.at(step) * values.size)
            if count:
                # Exactly so many, also where several are equal; the zeros come first.
                values.reshape(-1)[np.argpartition(np.abs(values), count - 1, axis=None)[:count]] = 0.0
                matrix.assign(values)

    def masks(self, variables: Sequence[Any]) -> dict[int, tf.Tensor]:
        """Returns true where matrices were not pruned, by their places among variables."""
        matrices = {id(matrix) for matrix in self.matrices}
        return {place: tf.not_equal(v, 0.0) for place, v in enumerate(variables) if id(v) in matrices}

    def first_epoch(self, steps_per_epoch: int) -> int:
        """Returns the number, from 0, of the first epoch at whose end all is pruned that is to be."""
        return -(-self.end // steps_per_epoch) - 1


def masked(values: Any, mask: tf.Tensor) -> Any:
    """Returns a matrix, or its gradient, with zeros where weights were pruned.

    Args:
        values: of the matrix's shape; of an embedding's gradient perhaps some rows alone.
        mask: of the matrix.
    """
    if isinstance(values, tf.IndexedSlices):
        rows = masked(values.values, tf.gather(mask, values.indices))
        return tf.IndexedSlices(rows, values.indices, values.dense_shape)
    # Not by multiplying: that makes zeros of two signs, which compress badly.
    return tf.where(mask, values, tf.zeros([], values.dtype))


def zeros(variables: Sequence[Any]) -> float:
    """Returns the share of the numbers of variables that are zero."""
    arrays = [np.asarray(variable) for variable in variables]
    return sum(int(array.size - np.count_nonzero(array)) for array in arrays) / max(
        1, sum(a.size for a in arrays)
    )
