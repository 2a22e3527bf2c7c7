"""A version of a model in memory: its signatures, checked, loaded and warmed up."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import error_codes_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from karpa_tf.serving import buffers, examples, proto_tensors, requests, safety
from karpa_tf.serving.batching import Batcher, BatchLimits, RunReport
from karpa_tf.serving.joining import Joining, decide, read_evidence
from karpa_tf.serving.json_tensors import Arrays, Spec
from karpa_tf.serving.observing import Recent
from karpa_tf.serving.refusal import Refusal, invalid
from karpa_tf.serving.steadiness import is_steady

# As many as TensorFlow Serving replays.
_WARMUP_RECORDS = 1000
# Bytes of an array from which on copying it takes long enough to be noticed.
_LARGE = 1 << 18
_INTERNAL = re.compile(r"\{\{(function_node|node) .*?\}\} ?|\[Op:\w+\]( name:.*)?$")


def _register_text_ops() -> None:
    """Loads the tokenizer's ops. `import tensorflow_text` does the same, but fails without Keras."""
    spec = importlib.util.find_spec("tensorflow_text")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in sorted(Path(folder, "python", "ops").glob("*.so")):
            tf.load_op_library(str(library))


_register_text_ops()


class Signature:
    """One signature: what goes in, what comes out, and the queue before it.

    Attributes:
        inputs, outputs: type and shape by name.
        definition: the SignatureDef of the SavedModel.
        owner: the loaded SavedModel; the function alone does not keep its variables.
        steady: whether what it costs follows from the shapes of its inputs alone.
        evidence: what its exporter saw of its rows.
        defaults: of inputs that a request may leave out.
        unserved: why it is not served, "" if it is.
        example: a row that was recorded for warming up.
        batcher, joining: the queue, and whether it joins requests; there once the model is served.
    """

    batcher: Batcher
    joining: Joining

    def __init__(
        self,
        function: Any,
        owner: Any,
        definition: meta_graph_pb2.SignatureDef,
        evidence: Mapping[str, Any] | None = None,
    ) -> None:
        self.inputs = {key: _spec(info) for key, info in definition.inputs.items()}
        self.outputs = {key: _spec(info) for key, info in definition.outputs.items()}
        self.definition = definition
        self.example: Arrays | None = None
        self.evidence = evidence or {}
        self.defaults = {
            key: proto_tensors.to_array(value, key)
            for key, value in definition.defaults.items()
            if key in self.inputs
        }
        self.owner = owner
        self.unserved = _not_dense(definition)
        self._graph: _Graph | _SessionGraph | None = None
        if isinstance(owner, tf.compat.v1.Session):
            self._graph = None if self.unserved else _SessionGraph(owner, definition)
        elif not self.unserved:
            self._graph = _Graph(function, self.inputs, self.outputs)
        self.steady = self._graph is not None and self._graph.steady

    def completed(self, arrays: Arrays) -> Arrays:
        """Returns the arrays of a request with the defaults of those that it left out."""
        left_out = {name: value for name, value in self.defaults.items() if name not in arrays}
        return arrays | left_out if left_out else arrays

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Calls the graph, in this thread.

        Raises:
            Refusal: the graph does not take the values.
        """
        if self._graph is None:
            raise Refusal("UNIMPLEMENTED", self.unserved)
        try:
            return self._graph(arrays)
        except tf.errors.OpError as error:
            raise _refusal(error) from None
        except (TypeError, ValueError) as error:
            raise invalid(f"The signature does not take these values: {str(error).splitlines()[0]}") from None


class _Graph:
    """A signature's function, called by its op.

    Calling the function itself costs up to ten times as much Python: it binds its arguments, checks them and
    asks whether a gradient is wanted, for every variable.

    Args:
        function: of a loaded SavedModel.
        inputs, outputs: type and shape by name.
    """

    def __init__(self, function: Any, inputs: Mapping[str, Spec], outputs: Mapping[str, Spec]) -> None:
        specs = [
            tf.TensorSpec(shape and [None if n < 0 else n for n in shape], t) for t, shape in inputs.values()
        ]

        # Around the function, so that the order of what goes in and comes out is known.
        @tf.function(input_signature=specs, autograph=False)
        def in_order(*tensors: tf.Tensor) -> list[tf.Tensor]:
            results = function(**dict(zip(inputs, tensors, strict=True)))
            return [_plain(results[name]) for name in outputs]

        self._inputs = {name: dtype for name, (dtype, _) in inputs.items()}
        self._outputs = list(outputs)
        self._function = in_order.get_concrete_function()
        self._variables = self._function.captured_inputs
        self._types = [output.dtype for output in self._function.outputs]
        self.steady = is_steady(self._function.graph.as_graph_def())

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Takes and returns an array by name."""
        tensors = [_tensor(arrays[name], dtype) for name, dtype in self._inputs.items()]
        results = tf.raw_ops.StatefulPartitionedCall(
            args=[*tensors, *self._variables], Tout=self._types, f=self._function.name
        )
        return {name: _array(tensor.numpy()) for name, tensor in zip(self._outputs, results, strict=True)}


class _SessionGraph:
    """A signature of a TensorFlow 1 model, run in its session, as TensorFlow Serving runs it.

    TensorFlow 2's own loader takes none of whose signatures one is sparse, or names an input by a word of
    Python's; and tables of two models that have one name would be one table.

    Args:
        session: with the model in it.
        definition: of the signature.
    """

    steady = False

    def __init__(self, session: tf.compat.v1.Session, definition: meta_graph_pb2.SignatureDef) -> None:
        self._session = session
        self._inputs = {key: info.name for key, info in definition.inputs.items()}
        self._outputs = {key: info.name for key, info in definition.outputs.items()}

    def __call__(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Takes and returns an array by name."""
        feed = {tensor: arrays[name] for name, tensor in self._inputs.items()}
        results = self._session.run(self._outputs, feed)
        return {name: _array(value) for name, value in results.items()}


def _open_session(path: Path) -> tf.compat.v1.Session:
    threads = tf.config.threading
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads.get_intra_op_parallelism_threads(),
        inter_op_parallelism_threads=threads.get_inter_op_parallelism_threads(),
    )
    session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
    with session.graph.as_default():
        tf.compat.v1.saved_model.loader.load(session, ["serve"], str(path))
    return session


@dataclass
class Model:
    """A loaded version.

    Attributes:
        name, version: what it is called.
        path: its folder.
        signatures: those that can be asked, by name.
        definitions: every SignatureDef in the file, for the metadata.
        seconds: how long it took to load and warm up.
        recent: what it was like lately.
    """

    name: str
    version: int
    path: Path
    signatures: dict[str, Signature]
    definitions: Mapping[str, meta_graph_pb2.SignatureDef]
    seconds: float
    recent: Recent = field(default_factory=Recent)

    def signature(self, name: str) -> Signature:
        """Returns a signature; "" stands for serving_default.

        Raises:
            Refusal: there is none of that name.
        """
        name = name or "serving_default"
        if name not in self.signatures:
            raise requests.no_signature(self.name, name, self.signatures)
        return self.signatures[name]

    async def drain(self) -> None:
        """Waits until no request is in it."""
        for signature in self.signatures.values():
            await signature.batcher.drain()

    def open(
        self,
        limits: BatchLimits,
        executor: Executor,
        report: Callable[[str, RunReport], None] = lambda model, report: None,
    ) -> None:
        """Puts a queue before every signature; from here on it takes requests."""
        for signature in self.signatures.values():
            signature.joining = decide(signature.inputs, signature.outputs, signature.evidence, limits.join)
            signature.batcher = Batcher(
                signature.run,
                signature.inputs,
                signature.joining,
                limits,
                executor,
                lambda run: report(self.name, run),
                steady=signature.steady,
            )


def load_model(
    name: str, version: int, path: Path, *, allow_unsafe_ops: bool = False, warm_up: bool = True
) -> Model:
    """Loads a SavedModel and replays its warm-up requests.

    Args:
        name: the model's name.
        version: the version's number.
        path: the version's folder.
        allow_unsafe_ops: load it even if it calls Python or reads and writes files.
        warm_up: replay `assets.extra/tf_serving_warmup_requests`.

    Raises:
        Refusal: it cannot be loaded; the code and sentence stand in the model's status.
    """
    start = time.perf_counter()
    try:
        graph = _read_graph(path)
        if not allow_unsafe_ops:
            safety.check(graph, path)
        _check_files(graph, path)
        loaded: Any
        functions: Mapping[str, Any]
        if graph.object_graph_def.nodes:
            loaded = tf.saved_model.load(str(path), tags=["serve"])
            functions = loaded.signatures
        else:
            loaded = _open_session(path)
            functions = dict.fromkeys(name for name in graph.signature_def if not name.startswith("__"))
        evidence = read_evidence(path)
        signatures = {
            key: Signature(function, loaded, graph.signature_def[key], evidence.get(key))
            for key, function in functions.items()
            if key in graph.signature_def
        }
        model = Model(name, version, path, signatures, dict(graph.signature_def), 0.0)
        if warm_up:
            _warm_up(model)
    except tf.errors.OpError as error:
        raise _refusal(error) from None
    except Refusal:
        raise
    except Exception as error:  # a broken file can fail in any way, and must not take the server down
        reason = " ".join(str(error).split())[:300]
        if "Read less bytes" in reason:
            raise Refusal("DATA_LOSS", f"a file of {path / 'variables'} is cut off") from None
        raise Refusal("INTERNAL", f"{type(error).__name__}: {reason}") from None
    model.seconds = time.perf_counter() - start
    return model


def _read_graph(path: Path) -> meta_graph_pb2.MetaGraphDef:
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(file.read_bytes())
    except FileNotFoundError:
        raise Refusal("NOT_FOUND", f"{path} holds no saved_model.pb") from None
    except OSError as error:
        raise Refusal("UNAVAILABLE", f"{file} cannot be read: {error.strerror}") from None
    except DecodeError:
        raise Refusal("DATA_LOSS", f"{file} is not a SavedModel, or only a part of one") from None
    for graph in saved.meta_graphs:
        if "serve" in graph.meta_info_def.tags:
            return graph
    raise Refusal("NOT_FOUND", f'{file} holds no graph with the tag "serve"')


def _check_files(graph: meta_graph_pb2.MetaGraphDef, path: Path) -> None:
    """Says which file a version lacks, where TensorFlow would speak of nodes and readers."""
    for asset in graph.asset_file_def:
        if not (path / "assets" / asset.filename).exists():
            raise Refusal(
                "NOT_FOUND", f"{path / 'assets' / asset.filename} is missing; the version is not whole"
            )
    held = any(node.WhichOneof("kind") == "variable" for node in graph.object_graph_def.nodes)
    old = not graph.object_graph_def.nodes and any(
        node.op in ("VariableV2", "Variable", "VarHandleOp") for node in graph.graph_def.node
    )
    index = path / "variables" / "variables.index"
    if (held or old) and not index.exists():
        raise Refusal("NOT_FOUND", f"{index} is missing; the version is not whole")


def _warm_up(model: Model) -> None:
    """Replays recorded requests, so that the first client does not wait for TensorFlow to get ready."""
    file = model.path / "assets.extra" / "tf_serving_warmup_requests"
    if not file.is_file():
        return
    for record in tf.data.TFRecordDataset(str(file)).take(_WARMUP_RECORDS).as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind not in ("predict_log", "classify_log", "regress_log"):
            continue
        request = getattr(log, kind).request
        signature = model.signature(request.model_spec.signature_name)
        if kind == "predict_log":
            arrays = {key: proto_tensors.to_array(value, key) for key, value in request.inputs.items()}
            signature.run(signature.completed(arrays))
            if signature.example is None and all(
                len(array) if array.ndim else 0 for array in arrays.values()
            ):
                signature.example = {name: array[:1] for name, array in arrays.items()}
        else:
            examples.check_signature(signature.inputs)
            signature.run(examples.to_arrays(request.input, examples.Limits()))


def _spec(info: meta_graph_pb2.TensorInfo) -> Spec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    return (tf.dtypes.as_dtype(info.dtype).name if info.dtype else "", shape)


def _not_dense(definition: meta_graph_pb2.SignatureDef) -> str:
    """Returns a sentence that names a tensor which is none of one block of values, "" if all are."""
    for direction, infos in (("input", definition.inputs), ("output", definition.outputs)):
        for name, info in infos.items():
            encoding = info.WhichOneof("encoding")
            if encoding not in ("name", None):
                kind = "sparse" if encoding == "coo_sparse" else "ragged, or of another composite type"
                return (
                    f'The {direction} "{name}" is {kind}, which this server does not serve; export a plain '
                    "tensor in its place."
                )
    return ""


def _plain(tensor: tf.Tensor) -> tf.Tensor:
    """What comes straight from `tf.shape` carries a type that TensorFlow refuses to return from an op."""
    # There and back, which TensorFlow does not take out again, as it does a zero that is added.
    return tf.cast(tf.cast(tensor, tf.int64), tf.int32) if tensor.dtype == tf.int32 else tensor


def _tensor(array: np.ndarray, dtype: str) -> tf.Tensor:
    """As `tf.constant`, which copies an array twice and holds Python's lock all the while."""
    known = array.dtype.isbuiltin == 1 and array.dtype != object
    # Strings are taken over one by one; numbers of 8 bits have no other way.
    if array.nbytes < _LARGE or array.dtype.name != dtype or not (known or dtype == "bfloat16"):
        return tf.constant(array, dtype)
    # NumPy hands out the types that are its own; another's bits are told their type afterwards.
    there = buffers.in_place(array if known else array.view(np.uint16))
    tensor = tf.experimental.dlpack.from_dlpack(there.__dlpack__())
    return tensor if known else tf.bitcast(tensor, dtype)


def _array(value: Any) -> np.ndarray:
    """TensorFlow returns one string as bytes, which NumPy would cut at its trailing zeros."""
    return np.asarray(value, object) if isinstance(value, bytes) else np.asarray(value)


def _refusal(error: tf.errors.OpError) -> Refusal:
    code = error_codes_pb2.Code.Name(error.error_code)
    # Where in TensorFlow it was seen says nothing to a client.
    message = _INTERNAL.sub("", str(error.message).split("\n")[0]).strip()
    return Refusal(code, message[:1000])
