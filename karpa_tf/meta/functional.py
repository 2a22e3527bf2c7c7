"""Calls a Keras model with given weights: those of many tasks at once, a set of its own for each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from karpa_tf import private
from karpa_tf.lines import InALine


class Functional(InALine):
    """A built Keras model as a function of its weights; no layer is copied.

    The layers see the examples of all tasks as one batch. Those whose weights differ from task to task
    compute with all of them in one op: `Dense` is a batched matrix product, `Conv2D` a convolution in groups;
    normalizations scale by task. Any other layer with weights is called task by task. All of it can be
    differentiated as often as one likes; the number of tasks and examples may be unknown when it is traced.

    Args:
        model: a Keras model, or a layer; built.
        transductive: let `BatchNormalization` use the mean and the variance of the examples of a task that it
            is called with. Otherwise it uses its moving averages, in training too: no example's answer
            depends on those beside it.
        portable: use ops alone that every TensorFlow has a kernel of: slower convolutions. Gradients of
            convolutions in groups are missing on CPUs without oneDNN, and in float64.

    Attributes:
        variables: what is given: the trainable variables of the model, in Keras' order.
    """

    def __init__(
        self, model: keras.layers.Layer, *, transductive: bool = False, portable: bool = False
    ) -> None:
        self.model, self.transductive, self.portable = model, transductive, portable
        self.variables: list[keras.Variable] = list(model.trainable_variables)

    def tile(self, tasks: Any) -> list[tf.Tensor]:
        """Returns the present weights once for each task: tensors [tasks, *shape]."""
        return [tf.broadcast_to(v, tf.concat([[tasks], tf.shape(v)], 0)) for v in map(_value, self.variables)]

    def __call__(self, weights: Sequence[Any], inputs: Any, training: bool = False) -> tf.Tensor:
        """Returns the model's output [t, n, ...].

        Args:
            weights: for each of `variables` a tensor [t, *shape], or [*shape] for all tasks alike, or None
                for what the variable holds.
            inputs: [t, n, ...], or a structure of such as the model takes it.
            training: as for the model, e.g. whether to drop out.
        """
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        first = tf.nest.flatten(inputs)[0]
        tasks = first.shape[0] or tf.shape(first)[0]
        given = {id(v): w for v, w in zip(self.variables, weights, strict=True) if w is not None}
        call = _Call(self, given, tasks, training)
        flat = tf.nest.map_structure(lambda x: tf.reshape(x, _merged(x)), inputs)
        outputs = call.operation(self.model)(flat)
        return _by_task(outputs, tasks)


class _Call:
    """One call: the weights given, the number of tasks."""

    def __init__(
        self, functional: Functional, given: Mapping[int, tf.Tensor], tasks: Any, training: bool
    ) -> None:
        self.given, self.tasks, self.training = given, tasks, training
        self.transductive, self.portable = functional.transductive, functional.portable

    def operation(self, layer: Any) -> Callable[..., Any]:
        """Returns what is called in the place of a layer, model or op."""
        graph = private.graph_of(layer) if isinstance(layer, keras.Model) else None
        if graph is not None:
            return lambda inputs, **_: private.run_graph(graph, inputs, self.operation)
        variables = [v for v in getattr(layer, "variables", ()) if id(v) in self.given]
        by_task = any(self.given[id(v)].shape.rank > len(v.shape) for v in variables)
        rule = _RULES.get(type(layer))
        # Normalizations of Keras have wrong second gradients; see `_normalized`.
        if (
            rule
            and rule.fits(layer)
            and (by_task or type(layer) not in (keras.layers.Dense, keras.layers.Conv2D))
        ):
            call = rule.call
            return lambda x, **_: call(self, layer, tf.cast(x, layer.compute_dtype))
        extra = {}
        if isinstance(layer, keras.layers.Layer) and "training" in inspect.signature(layer.call).parameters:
            extra["training"] = self.training
        if not by_task:
            values = [self.given[id(v)] for v in variables]
            return lambda *args, **kw: _call_with(layer, variables, values, args, {**kw, **extra})
        return lambda *args, **kw: self._one_by_one(layer, variables, args, {**kw, **extra})

    def weights(self, variable: Any, dtype: Any) -> tf.Tensor:
        """Returns the weights of all tasks [t, *shape] that stand for a variable."""
        value = self.given.get(id(variable))
        value = tf.cast(_value(variable) if value is None else value, dtype)
        if value.shape.rank == len(variable.shape):
            value = tf.broadcast_to(value, tf.concat([[self.tasks], tf.shape(value)], 0))
        return value

    def _one_by_one(self, layer: Any, variables: Sequence[Any], args: Any, kwargs: Any) -> Any:
        values = [self.weights(v, v.dtype) for v in variables]
        parts = [_by_task(x, self.tasks) if tf.is_tensor(x) else x for x in args]
        tensors = [x for x in parts if tf.is_tensor(x)]

        def one(of_task: tuple[list[tf.Tensor], list[tf.Tensor]]) -> Any:
            rest = list(of_task[1])
            given = [rest.pop(0) if tf.is_tensor(x) else x for x in parts]
            return _call_with(layer, variables, of_task[0], given, kwargs)

        if isinstance(self.tasks, int):
            every = [one(([v[i] for v in values], [x[i] for x in tensors])) for i in range(self.tasks)]
            outputs = tf.nest.map_structure(lambda *of: tf.stack(of), *every)
        else:
            outputs = tf.vectorized_map(one, (values, tensors))
        return tf.nest.map_structure(lambda x: tf.reshape(x, _merged(x)), outputs)


def _call_with(layer: Any, variables: Sequence[Any], values: Sequence[Any], args: Any, kwargs: Any) -> Any:
    """Calls a layer with other values in its variables; what it would change in others stays as it is."""
    if not variables:
        return layer(*args, **kwargs)
    with keras.StatelessScope(list(zip(variables, values, strict=True)), initialize_variables=False):
        return layer(*args, **kwargs)


def _value(variable: Any) -> Any:
    return getattr(variable, "value", variable)


def _merged(x: tf.Tensor) -> Any:
    """Returns the shape of a tensor [t, n, ...] with both axes in one."""
    if x.shape[2:].is_fully_defined():
        return [-1, *x.shape[2:]]
    return tf.concat([[-1], tf.shape(x)[2:]], 0)


def _by_task(x: tf.Tensor, tasks: Any) -> tf.Tensor:
    """Returns a tensor [t * n, ...] as [t, n, ...]."""
    if x.shape[1:].is_fully_defined():
        return tf.reshape(x, [tasks, -1, *x.shape[1:]])
    return tf.reshape(x, tf.concat([[tasks, -1], tf.shape(x)[1:]], 0))


# --- Layers whose weights differ from task to task --------------------------------------------------


def _dense(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    kernel, width = call.weights(private.kernel(layer), x.dtype), x.shape[-1]
    outputs = tf.matmul(tf.reshape(x, [call.tasks, -1, width]), kernel)
    if layer.use_bias:
        outputs += call.weights(layer.bias, x.dtype)[:, None]
    if x.shape.rank == 2:
        outputs = tf.reshape(outputs, [-1, layer.units])
    else:
        outputs = tf.reshape(outputs, tf.concat([tf.shape(x)[:-1], [layer.units]], 0))
        outputs.set_shape([*x.shape[:-1], layer.units])
    return layer.activation(outputs)


def _convolution(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    kernel = call.weights(private.kernel(layer), x.dtype)
    convolve = _as_product
    if not call.portable and x.dtype == tf.float32 and groups_have_gradients():
        convolve = _in_groups
    outputs = _by_task(convolve(x, kernel, layer), call.tasks)
    if layer.use_bias:
        outputs += call.weights(layer.bias, x.dtype)[:, None, None, None]
    return layer.activation(tf.reshape(outputs, _merged(outputs)))


def _in_groups(x: tf.Tensor, kernel: tf.Tensor, layer: Any) -> tf.Tensor:
    """The tasks' channels side by side, each task a group of the convolution."""
    *size, channels, filters = kernel.shape[1:]
    tasks = tf.shape(kernel)[0] if kernel.shape[0] is None else kernel.shape[0]
    x = tf.transpose(tf.reshape(x, [tasks, -1, *x.shape[1:]]), [1, 2, 3, 0, 4])
    x = tf.reshape(x, [-1, *x.shape[1:3], tasks * channels])
    kernel = tf.reshape(tf.transpose(kernel, [1, 2, 3, 0, 4]), [*size, channels, tasks * filters])
    y = tf.nn.conv2d(x, kernel, layer.strides, layer.padding.upper())
    places = y.shape[1:3]
    y = tf.transpose(tf.reshape(y, [-1, *places, tasks, filters]), [3, 0, 1, 2, 4])
    return tf.reshape(y, [-1, *places, filters])


def _as_product(x: tf.Tensor, kernel: tf.Tensor, layer: Any) -> tf.Tensor:
    """Patches of the input, cut by slices (the op that cuts them has a slow gradient), times the kernels."""
    (height, width), (down, right) = layer.kernel_size, layer.strides
    places, padding = [], [[0, 0]]
    for length, size, stride in zip(x.shape[1:3], (height, width), (down, right), strict=True):
        same = layer.padding == "same"
        places.append(-(-length // stride) if same else (length - size) // stride + 1)
        missing = max((places[-1] - 1) * stride + size - length, 0) if same else 0
        padding.append([missing // 2, missing - missing // 2])
    x = tf.pad(x, [*padding, [0, 0]])
    patches = tf.concat(
        [
            x[:, i : i + (places[0] - 1) * down + 1 : down, j : j + (places[1] - 1) * right + 1 : right]
            for i in range(height)
            for j in range(width)
        ],
        -1,
    )
    tasks = tf.shape(kernel)[0] if kernel.shape[0] is None else kernel.shape[0]
    inner = height * width * x.shape[-1]
    y = tf.matmul(tf.reshape(patches, [tasks, -1, inner]), tf.reshape(kernel, [tasks, inner, layer.filters]))
    return tf.reshape(y, [-1, *places, layer.filters])


@functools.cache
def groups_have_gradients() -> bool:
    """Whether TensorFlow has the gradients of convolutions in groups here; on CPUs oneDNN brings them."""
    with tf.init_scope():
        x, kernel = tf.ones([1, 1, 1, 2]), tf.ones([1, 1, 1, 2])
        try:
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=[1, 1, 1, 2], filter=kernel, out_backprop=x, strides=[1] * 4, padding="SAME"
            )
            tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=[1, 1, 1, 2], out_backprop=x, strides=[1] * 4, padding="SAME"
            )
        except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
            return False
    return True


def _group_normalization(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    channels = x.shape[-1]
    inner = tf.reshape(x, [-1, tf.reduce_prod(tf.shape(x)[1:-1]), layer.groups, channels // layer.groups])
    y = tf.reshape(_normalized(inner, [1, 3], layer.epsilon), tf.shape(x))
    return _scaled(call, layer, tf.ensure_shape(y, x.shape))


def _layer_normalization(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    axes = [axis % x.shape.rank for axis in layer.axis]
    return _scaled(call, layer, _normalized(x, axes, layer.epsilon))


def _batch_normalization(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    if not call.transductive:
        mean, variance = (tf.cast(_value(v), x.dtype) for v in (layer.moving_mean, layer.moving_variance))
        return _scaled(call, layer, (x - mean) * tf.math.rsqrt(variance + layer.epsilon))
    inner = tf.reshape(x, [call.tasks, -1, x.shape[-1]])
    y = tf.reshape(_normalized(inner, [1], layer.epsilon), tf.shape(x))
    return _scaled(call, layer, tf.ensure_shape(y, x.shape))


def _normalized(x: tf.Tensor, axes: Sequence[int], epsilon: float) -> tf.Tensor:
    wide = tf.cast(x, tf.float32) if x.dtype.size < 4 else x
    # Not tf.nn.moments, as Keras has it: its variance takes the mean for a constant, which leaves the first
    # gradient right and makes the second one wrong.
    centred = wide - tf.reduce_mean(wide, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(centred), axes, keepdims=True)
    return tf.cast(centred * tf.math.rsqrt(variance + epsilon), x.dtype)


def _scaled(call: _Call, layer: Any, x: tf.Tensor) -> tf.Tensor:
    """Multiplies by the tasks' factors and adds their summands, over the last axes."""
    y = _by_task(x, call.tasks)
    for variable, apply in ((layer.gamma, tf.multiply), (layer.beta, tf.add)):
        if variable is not None:
            values = call.weights(variable, x.dtype)
            between = [1] * (y.shape.rank - values.shape.rank)
            y = apply(y, tf.reshape(values, [call.tasks, *between, *values.shape[1:]]))
    return tf.reshape(y, _merged(y))


def _is_plain(layer: Any) -> bool:
    return layer.groups == 1 and set(layer.dilation_rate) == {1} and layer.data_format == "channels_last"


def _is_last(layer: Any) -> bool:
    return layer.axis in (-1, layer.input_spec.ndim - 1)


class _Rule(NamedTuple):
    """What computes a kind of layer for all tasks, and whether it fits a layer of that kind."""

    call: Callable[[_Call, Any, tf.Tensor], tf.Tensor]
    fits: Callable[[Any], bool]


_RULES: dict[Any, _Rule] = {
    keras.layers.Dense: _Rule(_dense, lambda layer: not layer.lora_enabled),
    keras.layers.Conv2D: _Rule(_convolution, _is_plain),
    keras.layers.GroupNormalization: _Rule(_group_normalization, _is_last),
    keras.layers.LayerNormalization: _Rule(_layer_normalization, lambda layer: not layer.rms_scaling),
    keras.layers.BatchNormalization: _Rule(_batch_normalization, _is_last),
}
