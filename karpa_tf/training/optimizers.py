"""AdamW and SGD whose updates are one pass over the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from karpa_tf import private


@keras.saving.register_keras_serializable(package="karpa_tf")
class AdamW(private.OptimizerHooks, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with TensorFlow's fused multi-threaded kernel.

    The arguments, the update rule (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980, with the
    decoupled weight decay of Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), the
    variables and so the checkpoints are those of Keras, whose update consists of about ten
    element-wise ops per variable.

    The result differs on purpose in one case, that of sparse gradients (`tf.IndexedSlices`, as of
    an embedding looked up by `tf.gather`): Keras 3 squares the slices of one row before it adds
    them up. Here they are added up first, so that a sparse gradient has the effect of the equal
    dense one.

    Args:
        lazy: for sparse gradients, update only the rows that have one: the others keep their values
            and moments until they are seen again, as in TensorFlow Addons' LazyAdam. On a vocabulary of
            30,000 rows, of which a batch has a few hundred, the dense update is a third of a step.
        rates: factors of the learning rate by the path of a variable; 1 where none is given.
        **kwargs: those of `keras.optimizers.AdamW`.

    Raises:
        ValueError: `lazy` beside an argument that needs a gradient of every row.
    """

    def __init__(
        self, *args: Any, lazy: bool = False, rates: Mapping[str, float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for name in ("amsgrad", "loss_scale_factor", "gradient_accumulation_steps"):
            if lazy and getattr(self, name):
                raise ValueError(f"lazy does not go with {name}. Received: {name}={getattr(self, name)}.")
        self.lazy = lazy
        self.rates = dict(rates or {})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "lazy": self.lazy, "rates": dict(self.rates)}

    def apply(
        self,
        grads: Sequence[tf.Tensor | tf.IndexedSlices | None],
        trainable_variables: Sequence[Any] | None = None,
    ) -> None:
        """Updates the variables; a sparse gradient's repeated rows are added up first."""
        # Before everything else: clipping by norm too needs the sums.
        summed = _sum_rows if self.lazy else tf.convert_to_tensor
        grads = [summed(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        # Once for all variables: made for each of them, these scalars are a third of a step's graph.
        step = tf.cast(self.iterations + 1, tf.float32)
        rate = tf.cast(self.learning_rate, tf.float32)
        self._scalars = {
            "beta1_power": tf.pow(self.beta_1, step),
            "beta2_power": tf.pow(self.beta_2, step),
            "beta1": tf.constant(self.beta_1),
            "beta2": tf.constant(self.beta_2),
            "epsilon": tf.constant(self.epsilon),
        }
        self._decay = rate * self.weight_decay if self.weight_decay else None
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable, given its gradient of the same shape."""
        index = private.index_of(self, variable)
        factor = self._rates[index]
        if factor != 1.0:
            learning_rate = learning_rate * factor
        moments = private.moments(self, index)
        kept = 1.0
        if self._decay is not None and private.decays(self, variable):
            kept = 1.0 - self._decay * factor
        if isinstance(gradient, tf.IndexedSlices):
            self._update_rows(gradient, variable, moments, learning_rate, kept)
            return
        if tf.is_tensor(kept):
            variable.assign(variable * tf.cast(kept, variable.dtype))
        if self.amsgrad:
            super().update_step(gradient, variable, learning_rate)
            return
        dtype = variable.dtype
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            lr=tf.cast(learning_rate, dtype),
            grad=tf.cast(gradient, dtype),
            **{name: tf.cast(value, dtype) for name, value in self._scalars.items()},
        )

    def _update_rows(
        self, gradient: tf.IndexedSlices, variable: Any, moments: list[Any], rate: tf.Tensor, kept: Any
    ) -> None:
        rows, values, now = gradient.indices, tf.cast(gradient.values, variable.dtype), self._scalars
        m = self.beta_1 * tf.gather(moments[0], rows) + (1.0 - self.beta_1) * values
        v = self.beta_2 * tf.gather(moments[1], rows) + (1.0 - self.beta_2) * tf.square(values)
        rate = tf.cast(rate, tf.float32) * tf.sqrt(1.0 - now["beta2_power"]) / (1.0 - now["beta1_power"])
        rate, kept = tf.cast(rate, variable.dtype), tf.cast(kept, variable.dtype)
        new = tf.gather(variable, rows) * kept - rate * m / (tf.sqrt(v) + self.epsilon)
        for target, value in zip((variable, *moments), (new, m, v), strict=True):
            tf.raw_ops.ResourceScatterUpdate(resource=target.handle, indices=rows, updates=value)

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the moments of the variables."""
        super().build(variables)
        self._rates = [self.rates.get(getattr(v, "path", ""), 1.0) for v in variables]

    def clip_by_global_norm(self, gradients: Sequence[tf.Tensor | None]) -> Sequence[tf.Tensor | None]:
        """Returns the gradients scaled down to `global_clipnorm` together, as Keras does it."""
        # l2_loss sums the squares in one pass, without a tensor of them.
        squares = [tf.nn.l2_loss(tf.cast(_values(g), tf.float32)) for g in gradients if g is not None]
        norm = tf.sqrt(2.0 * tf.add_n(squares))
        scale = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm)
        return [None if g is None else _scaled(g, tf.cast(scale, g.dtype)) for g in gradients]


@keras.saving.register_keras_serializable(package="karpa_tf")
class SGD(keras.optimizers.SGD):
    """Gradient descent with Nesterov's momentum by TensorFlow's fused kernel, and L2 decay in the gradient.

    Unlike Keras' own `weight_decay` the decay goes through the momentum, as in the papers that convolutional
    networks' settings come from. A variable's own rate does not change how fast it decays.

    With `lookahead` slow weights follow the others (Zhang et al. 2019, https://arxiv.org/abs/1907.08610):
    every five steps they go a part of the way to them, and these go on from there. The part shrinks from all
    of it to a quarter as training goes on (Jordan 2024, https://arxiv.org/abs/2404.00498, section 3.4).

    Args:
        learning_rate: number or schedule.
        momentum: share of the last update that goes on.
        weight_decay: coefficient of the L2 penalty's gradient.
        rates: factors of the learning rate by the path of a variable; 1 where none is given.
        lookahead: steps of the whole training; 0: no slow weights.
        **kwargs: those of `keras.optimizers.SGD`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        *,
        weight_decay: float = 0.0,
        rates: Mapping[str, float] | None = None,
        lookahead: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, **{**kwargs, "nesterov": True, "weight_decay": None})
        self.l2 = weight_decay
        self.rates = dict(rates or {})
        self.lookahead = lookahead

    def get_config(self) -> dict[str, Any]:
        own = {"weight_decay": self.l2, "rates": dict(self.rates), "lookahead": self.lookahead}
        return {**super().get_config(), **own}

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the momenta of the variables, and the slow weights."""
        if self.built:
            return
        super().build(variables)
        self._rates = [self.rates.get(getattr(v, "path", ""), 1.0) for v in variables]
        if self.lookahead:
            self._slow = self.add_optimizer_variables(variables, "slow")
            for slow, variable in zip(self._slow, variables, strict=True):
                slow.assign(variable)

    def apply(
        self, grads: Sequence[tf.Tensor | None], trainable_variables: Sequence[Any] | None = None
    ) -> None:
        """Updates the variables."""
        super().apply(grads, trainable_variables)
        if self.lookahead:
            step = tf.cast(self.iterations, tf.int32)
            due = (step % 5 == 0) | (step == self.lookahead)
            tf.cond(due, lambda: self._meet(step), lambda: tf.constant(False))

    def _meet(self, step: tf.Tensor) -> tf.Tensor:
        progress = tf.minimum(tf.cast(step, tf.float32) / float(self.lookahead), 1.0)
        kept = 0.95**5 * progress**3
        for slow, variable in zip(self._slow, private.trained_variables(self), strict=True):
            share = tf.cast(kept, variable.dtype)
            value = share * tf.convert_to_tensor(slow) + (1.0 - share) * tf.convert_to_tensor(variable)
            for target in (slow, variable):
                # The handle is this replica's own.
                tf.raw_ops.AssignVariableOp(resource=target.value.handle, value=value)
        return tf.constant(True)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable, given its gradient of the same shape."""
        index = private.index_of(self, variable)
        factor, dtype = self._rates[index], variable.dtype
        gradient = tf.cast(tf.convert_to_tensor(gradient), dtype)
        if self.l2:
            gradient += self.l2 / factor * tf.convert_to_tensor(variable)
        if not self.momentum:  # Keras makes no momenta then
            variable.assign_sub(tf.cast(learning_rate * factor, dtype) * gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[index].value.handle,
            lr=tf.cast(learning_rate * factor, dtype),
            grad=gradient,
            momentum=tf.constant(self.momentum, dtype),
            use_nesterov=True,
        )


def _values(gradient: tf.Tensor | tf.IndexedSlices) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _scaled(gradient: tf.Tensor | tf.IndexedSlices, scale: tf.Tensor) -> tf.Tensor | tf.IndexedSlices:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * scale, gradient.indices, gradient.dense_shape)
    return gradient * scale


def _sum_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Adds up repeated rows; rows whose sum is zero are left out."""
    rows, place = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, place, tf.size(rows))
    some = tf.reduce_any(values != 0, axis=1)
    return tf.IndexedSlices(tf.boolean_mask(values, some), tf.boolean_mask(rows, some), gradient.dense_shape)


def rows_with_gradient(gradient: tf.Tensor) -> tf.IndexedSlices:
    """Returns the rows of a dense gradient (rows, width) that are not zero."""
    rows = tf.where(tf.reduce_any(gradient != 0, axis=1))[:, 0]
    return tf.IndexedSlices(tf.gather(gradient, rows), rows, tf.shape(gradient, tf.int64))
