"""Structured pruning: attention heads and neurons are taken out of a network, which is smaller then.

Which ones is a matter of the first-order Taylor expansion of the loss: with a gate of 1 on a head or neuron,
the gradient of the gate says by how much the loss would change without it (Molchanov et al. 2017,
https://arxiv.org/abs/1611.06440, equation 7; for heads Michel et al. 2019, https://arxiv.org/abs/1905.10650,
equation 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.lines import InALine
from karpa_tf.models.bert import TransformerBlock


@dataclass(frozen=True, repr=False)
class Units(InALine):
    """The heads of a block, or the neurons of a layer.

    Attributes:
        kind: which of the two.
        layer: the block; or the activation behind the dense layer.
        count: how many there are.
        parts: the weights that belong to them: variable, axis, and how many entries in a row make a unit.
    """

    kind: Literal["heads", "neurons"]
    layer: keras.layers.Layer
    count: int
    parts: Sequence[tuple[Any, int, int]]


def units_of(model: keras.Model) -> list[Units]:
    """Returns the heads and neurons of a BERT's blocks, or the neurons of `build_image_mlp`, first to last.

    Args:
        model: built on `build_bert`, or by `build_image_mlp`.
    """
    found = []
    for block in (layer for layer in model.layers if isinstance(layer, TransformerBlock)):
        heads, width = block.config["heads"], block.head_width
        into = [block.query, block.key, block.value]
        parts = _dense_parts(into, block.attention_output, width)
        found.append(Units("heads", block, heads, parts))
        parts = _dense_parts([block.intermediate], block.output_dense, 1)
        found.append(Units("neurons", block, block.config["intermediate"], parts))
    hidden = [layer for layer in model.layers if layer.name.startswith("hidden_")]
    for layer, behind in zip(hidden, [*hidden[1:], model.get_layer("logits")] if hidden else [], strict=True):
        number = layer.name.removeprefix("hidden_")
        parts = _dense_parts([layer], behind, 1)
        parts += [(v, 0, 1) for norm in model.layers if norm.name == f"norm_{number}" for v in norm.weights]
        found.append(Units("neurons", model.get_layer(f"relu_{number}"), layer.units, parts))
    return found


def _dense_parts(into: Sequence[Any], out: Any, width: int) -> list[tuple[Any, int, int]]:
    parts = [(layer.kernel, 1, width) for layer in into]
    parts += [(layer.bias, 0, width) for layer in into if layer.use_bias]
    return [*parts, (out.kernel, 0, width)]


def importance(
    model: keras.Model, units: Sequence[Units], batches: Iterable[Any], loss: keras.losses.Loss
) -> list[np.ndarray]:
    """Returns how much the loss depends on each unit: the sum over examples of |d loss / d gate|.

    Args:
        model: of the units; it is called as it is in inference.
        units: of `units_of`.
        batches: tuples of features, labels and, if they have any, sample weights.
        loss: an average over a batch.

    Returns:
        A float64 array (count,) for each of the units.
    """
    graph, totals = private.graph_of(model), [np.zeros(one.count) for one in units]
    for features, labels, *weights in batches:
        gates = [tf.ones([len(labels), one.count]) for one in units]
        weight = float(tf.reduce_sum(weights[0])) if weights else len(labels)
        with tf.GradientTape() as tape:
            tape.watch(gates)
            outputs = private.run_graph(graph, features, _gated(units, gates))
            value = loss(labels, outputs, *weights)
        for total, slope in zip(totals, tape.gradient(value, gates), strict=True):
            total += np.abs(slope.numpy()).sum(axis=0) * weight
    return totals


def _gated(units: Sequence[Units], gates: Sequence[tf.Tensor]) -> Callable[[Any], Callable[..., Any]]:
    """Returns what calls layers with the outputs of their units multiplied by gates (batch, count)."""
    of_layer: dict[int, dict[str, tf.Tensor]] = {}
    for one, gate in zip(units, gates, strict=True):
        of_layer.setdefault(id(one.layer), {})[one.kind] = gate

    def operation(layer: Any) -> Callable[..., Any]:
        if isinstance(layer, TransformerBlock):
            block: Any = layer
            return partial(block, gates=of_layer.get(id(layer)))
        if id(layer) in of_layer:
            gate = of_layer[id(layer)]["neurons"]
            return lambda *args, **options: layer(*args, **options) * gate
        return layer

    return operation


def chosen(scores: np.ndarray, share: float) -> np.ndarray:
    """Returns the places of the units that stay, in their order: the most important ones, at least one.

    Args:
        scores: of `importance`, (count,).
        share: that goes, from 0 to below 1; a part of a unit is rounded.
    """
    gone = len(scores) - stay(len(scores), share)
    return np.sort(np.argsort(scores, kind="stable")[gone:])


def stay(count: int, share: float) -> int:
    """Returns how many of so many units stay when a share goes: one at least."""
    return max(1, count - round(share * count))


def smaller_weights(
    model: keras.Model, units: Sequence[Units], kept: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Returns the weights of a model without the units that go, in the order of `model.weights`.

    Args:
        model: of the units.
        units: of `units_of`.
        kept: of `chosen`, for each of them.
    """
    arrays: Mapping[int, np.ndarray] = {id(v): np.asarray(v) for v in model.weights}
    cut = dict(arrays)
    for one, places in zip(units, kept, strict=True):
        for variable, axis, width in one.parts:
            entries = (places[:, None] * width + np.arange(width)).reshape(-1)
            cut[id(variable)] = np.take(cut[id(variable)], entries, axis)
    return [cut[id(v)] for v in model.weights]
