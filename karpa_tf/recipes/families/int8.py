"""A BERT whose matrices are int8: smaller, and on many machines slower, which is measured and said."""

from __future__ import annotations

import dataclasses

import keras

from karpa_tf import private
from karpa_tf.judging.costs import Costs
from karpa_tf.reports.model_card import costs_section


def to_int8(model: keras.Model) -> None:
    """Turns the matrices of a model into int8, by Keras' own layers."""
    for layer in private.inner_layers(model):
        if isinstance(layer, (keras.layers.Dense, keras.layers.Embedding)):
            layer.quantize("int8")


def compare_int8(costs: Costs) -> str:
    """Returns a line on what an int8 export is beside the same in float32.

    Args:
        costs: of the models `float32` and `int8`.
    """
    plain, small = costs.table["float32"], costs.table["int8"]
    size, request, processor = (small[n] / plain[n] for n in ("bytes", "request_ms", "cpu_s_1000_rows"))
    return (
        f"int8 has {size:.2f} of float32's bytes, and takes {request:.2f} times as long for a lone request "
        f"and {processor:.2f} times the processor time"
        + (": smaller, and slower on this machine." if max(request, processor) > 1 else ".")
    )


def int8_section(costs: Costs | None) -> str:
    """Returns what a model card says of it; "" of a model in float32."""
    if not costs:
        return ""
    how = ["The matrices are int8 (Keras' `quantize`).", compare_int8(costs)]
    return costs_section(dataclasses.asdict(costs), "int8 beside float32", how)
