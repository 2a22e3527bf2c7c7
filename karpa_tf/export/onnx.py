"""ONNX files of the image networks, written layer by layer and checked with onnxruntime.

The converters that there are do not go with the versions of NumPy and protobuf that TensorFlow 2.21 brings;
and these networks are chains of a dozen kinds of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.litert import _signatures, check_probabilities, describe_file, publish_file
from karpa_tf.export.signature import Signature

_OPSET = 20


def export_onnx(
    model: keras.Model,
    flip: bool,
    signature: Signature,
    to: str | Path,
    name: str,
    *,
    images: np.ndarray,
    labels: np.ndarray,
    assets: Mapping[str, str],
    model_card: Callable[[str], str],
) -> tuple[Path, dict[str, Any], str]:
    """Writes `to/NAME-onnx/VERSION/model.onnx`: `image` float32 [n, ...] to `probabilities` float32.

    Args:
        model: a chain of layers, from images to logits.
        flip: whether an image and its mirror image are classified together.
        signature: what is served, to check the file by.
        to: the folder of all models.
        name: of the recipe.
        images: held-out images float32 to check it on.
        labels: their classes, int (n,).
        assets: text of files beside the model by name.
        model_card: makes Markdown, given what is to be said of size and accuracy.

    Returns:
        The file, its signatures, and a line that says its size and accuracy.

    Raises:
        UserError: onnx or onnxruntime is not installed, the network has a layer that has no counterpart here,
            or the file does not do what the model does.
    """
    try:
        import onnxruntime
    except ImportError:
        raise _missing() from None
    (spec,) = signature.inputs.values()
    content = to_onnx(model, flip, grey=spec.shape.rank == 3)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    expected = signature.function(image=tf.constant(images))["probabilities"].numpy()
    (found,) = session.run(["probabilities"], {"image": images})
    check_probabilities("ONNX", expected, found)
    note, line = describe_file("ONNX", "float32", content, labels, expected, found)

    files = {**assets, "model_card.md": model_card(note)}
    path = publish_file(content, "model.onnx", files, to, f"{name}-onnx")
    return path, _signatures(spec, expected, "n"), line


def to_onnx(model: keras.Model, flip: bool, grey: bool) -> bytes:
    """Returns the bytes of an ONNX model of a chain of Keras layers, with a softmax at its end.

    Args:
        model: from images (n, height, width, channels) to logits.
        flip: take the mean of the logits of an image and of its mirror image.
        grey: the file's images have no axis for the channel.

    Raises:
        UserError: onnx is not installed, or a layer has no counterpart here.
    """
    try:
        import onnx
    except ImportError:
        raise _missing() from None
    from onnx import TensorProto, helper

    _, height, width, channels = model.input.shape
    graph = _Graph()
    image = graph.add("Unsqueeze", "image", graph.constant(np.array([3]))) if grey else "image"
    logits = _chain(graph, model, image)
    if flip:
        ends = [graph.constant(np.array([value])) for value in (-1, np.iinfo(np.int64).min, 2, -1)]
        other = _chain(graph, model, graph.add("Slice", image, *ends))
        total = graph.add("Add", logits, other)
        logits = graph.add("Mul", total, graph.constant(np.float32(0.5)))
    graph.nodes.append(helper.make_node("Softmax", [logits], ["probabilities"], axis=1))
    shape = ["n", height, width, *([] if grey else [channels])]
    made = helper.make_graph(
        graph.nodes,
        model.name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", model.output.shape[-1]])],
        graph.constants,
    )
    # The oldest format of files that has these ops: older runtimes read it too.
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
    onnx.checker.check_model(result)
    return result.SerializeToString()


def _missing() -> UserError:
    return UserError("--format onnx needs onnx and onnxruntime: pip install 'karpa-tf[onnx]'.")


class _Graph:
    """Nodes and constants, named by their numbers; a constant that is used twice is there once."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._names: dict[bytes, str] = {}

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        array = np.ascontiguousarray(value)
        key = repr((array.dtype, array.shape)).encode() + array.tobytes()
        if key not in self._names:
            self._names[key] = f"constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]


def _chain(graph: _Graph, model: keras.Model, x: str) -> str:
    planes = False  # whether the channels come before height and width, as ONNX has them
    for layer in model.layers:
        kind = _kind(layer)
        if kind in ("InputLayer", "Dropout"):
            continue
        if kind in ("Conv2D", "WhitenedPatches") and not planes:
            x, planes = graph.add("Transpose", x, perm=[0, 3, 1, 2]), True
        if kind == "Flatten":
            if planes:
                x, planes = graph.add("Transpose", x, perm=[0, 2, 3, 1]), False
            x = graph.add("Flatten", x, axis=1)
            continue
        x = _layer(graph, layer, x, planes)
        if kind == "GlobalMaxPooling2D":
            planes = False
    return x


def _kind(layer: Any) -> str:
    # FastConv2D only trains in another way.
    return "Conv2D" if isinstance(layer, keras.layers.Conv2D) else type(layer).__name__


def _layer(graph: _Graph, layer: Any, x: str, planes: bool) -> str:
    kind = _kind(layer)
    axes = (-1, 1, 1) if planes else (-1,)

    def number(value: Any) -> np.ndarray:
        return np.asarray(value, np.float32)

    if kind == "Standardize":
        x = graph.add("Sub", x, graph.constant(number(layer.mean)))
        return graph.add("Mul", x, graph.constant(number([1.0 / d for d in layer.deviation])))
    if kind == "Dense":
        x = graph.add("MatMul", x, graph.constant(number(layer.kernel)))
        if layer.use_bias:
            x = graph.add("Add", x, graph.constant(number(layer.bias)))
        return _activation(graph, layer.activation, x)
    if kind in ("Conv2D", "WhitenedPatches"):
        kernel = graph.constant(number(layer.kernel).transpose(3, 2, 0, 1))
        bias = layer.bias if kind == "Conv2D" and layer.use_bias else None
        inputs = [x, kernel, *([] if bias is None else [graph.constant(number(bias))])]
        same = kind == "Conv2D" and layer.padding == "same"
        x = graph.add("Conv", *inputs, auto_pad="SAME_UPPER" if same else "VALID")
        return _activation(graph, layer.activation, x) if kind == "Conv2D" else x
    if kind == "FastBatchNormalization":
        gamma = np.float32(1) if layer.gamma is None else number(layer.gamma)
        factor = gamma / np.sqrt(number(layer.moving_variance) + np.float32(layer.epsilon))
        summand = number(layer.beta) - number(layer.moving_mean) * factor
        x = graph.add("Mul", x, graph.constant(factor.reshape(axes)))
        return graph.add("Add", x, graph.constant(summand.reshape(axes)))
    if kind == "MaxPooling2D":
        return graph.add("MaxPool", x, kernel_shape=list(layer.pool_size), strides=list(layer.strides))
    if kind == "GlobalMaxPooling2D":
        return graph.add("ReduceMax", x, graph.constant(np.array([2, 3])), keepdims=0)
    if kind == "Rescaling":
        return graph.add("Mul", x, graph.constant(number(layer.scale)))
    if kind == "Activation":
        return _activation(graph, layer.activation, x)
    raise UserError(f"--format onnx: the layer {layer.name} ({kind}) has no counterpart here.")


def _activation(graph: _Graph, activation: Any, x: str) -> str:
    name = getattr(activation, "__name__", "linear")
    if name == "linear":
        return x
    if name == "relu":
        return graph.add("Relu", x)
    if name == "gelu":
        return graph.add("Gelu", x)
    if name == "silu":
        return graph.add("Mul", x, graph.add("Sigmoid", x))
    raise UserError(f"--format onnx: the activation {name} has no counterpart here.")
