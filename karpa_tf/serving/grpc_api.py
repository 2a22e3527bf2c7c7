"""TensorFlow Serving's gRPC API: PredictionService and ModelService, with health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from karpa_tf.serving import examples, proto_tensors, requests
from karpa_tf.serving.access import Tokens
from karpa_tf.serving.canary import CLIENT_ID
from karpa_tf.serving.examples import Limits
from karpa_tf.serving.json_tensors import Arrays, is_little, rows_of
from karpa_tf.serving.model import Model
from karpa_tf.serving.observing import Call, Observer
from karpa_tf.serving.readers import Readers
from karpa_tf.serving.refusal import Refusal, invalid
from karpa_tf.serving.registry import Registry

_OPEN = "/grpc.health.v1.Health/"
_METADATA_FIELDS = ["signature_def"]
_SERVICE = "/tensorflow.serving.PredictionService/"
_WITH_TENSORS = frozenset(_SERVICE + name for name in ("Predict", "Classify", "Regress", "MultiInference"))
# Bytes of a message that brings no tensors: the longest is a configuration of all models.
_LARGEST_QUESTION = 1 << 18
# Tasks of a MultiInference.
_MOST_TASKS = 64


def add_services(
    server: grpc.aio.Server,
    registry: Registry,
    observer: Observer,
    readers: Readers,
    workers: Executor,
    limits: Limits,
) -> health.aio.HealthServicer:
    """Adds everything this server answers over gRPC; returns the health service, to set its status."""
    calls = _Calls(registry, observer, readers, workers, limits)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(calls), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(calls), server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    described = (prediction_service_pb2, model_service_pb2, health_pb2)
    names = [name.full_name for file in described for name in file.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    return health_service


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without an accepted token, and messages that cannot be read.

    Only the health of the server is open to all.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "Send the metadata authorization: Bearer TOKEN with one of this server's tokens.",
            )

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Passes a call on, or answers it with UNAUTHENTICATED."""
        given = dict(details.invocation_metadata or ()).get("authorization")
        header = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
        if details.method.startswith(_OPEN) or self._tokens.accept(header):
            predicts = details.method in _WITH_TENSORS
            return _with_readable_messages(await continuation(details), predicts)
        return self._refusal


def _with_readable_messages(
    handler: grpc.RpcMethodHandler | None, predicts: bool
) -> grpc.RpcMethodHandler | None:
    """Makes a message that is none INTERNAL, as in TensorFlow Serving; gRPC itself says UNKNOWN."""
    if handler is None or handler.unary_unary is None:
        return handler

    def read(message: bytes) -> Any:
        if len(message) > requests.SMALL and predicts:
            return message  # read elsewhere, so that nothing waits for it
        if len(message) > _LARGEST_QUESTION:
            return requests.too_large(_LARGEST_QUESTION, len(message))
        try:
            return handler.request_deserializer(message)
        except DecodeError:
            return None

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request is None:
            await context.abort(
                grpc.StatusCode.INTERNAL, "The message cannot be read as this call's request."
            )
        if isinstance(request, Refusal):
            await context.abort(grpc.StatusCode[request.code], request.message)
        return await handler.unary_unary(request, context)

    def write(response: Any) -> bytes:
        return response if isinstance(response, bytes) else handler.response_serializer(response)

    return grpc.unary_unary_rpc_method_handler(answer, read, write)


class _Calls:
    """What the two services share: finding models, running them, and the form of refusals."""

    def __init__(
        self, registry: Registry, observer: Observer, readers: Readers, workers: Executor, limits: Limits
    ) -> None:
        self.registry = registry
        self._observer = observer
        self._readers = readers
        self._workers = workers
        self._limits = limits

    async def answer(
        self,
        api: str,
        context: grpc.aio.ServicerContext,
        request: Any,
        work: Callable[[Call], Awaitable[Any]],
    ) -> Any:
        """Does the work of a call, and records how it went."""
        start = time.perf_counter()
        who = partial(_client, context)
        call = Call("GRPC", api, context.peer(), bytes_in=_size(request), start=start, identify=who)
        try:
            response = await work(call)
            call.bytes_out = _size(response)
            return response
        except Refusal as refusal:
            call.status = refusal.code
            # Metadata of HTTP/2 has its limits.
            await context.abort(grpc.StatusCode[refusal.code], refusal.message[:2000])
        except asyncio.CancelledError:
            call.status = "CANCELLED"
            raise
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            call.status = "INTERNAL"
            await context.abort(
                grpc.StatusCode.INTERNAL, f"The server failed on this request: {type(error).__name__}."
            )
        finally:
            self._observer.finished(call)

    def find(self, request: Any, call: Call) -> Model:
        if not request.HasField("model_spec"):
            raise invalid("The request must have a model_spec.")
        spec = request.model_spec
        if not spec.name:
            raise invalid("The model_spec must have a name.")
        choice = spec.WhichOneof("version_choice")
        model = self.registry.find(
            spec.name,
            spec.version.value if choice == "version" else None,
            spec.version_label if choice == "version_label" else None,
            call,
        )
        call.found(model)
        call.signature = spec.signature_name or "serving_default"
        return model

    async def read(
        self, kind: str, request: Any, call: Call, context: grpc.aio.ServicerContext
    ) -> tuple[Any, Arrays]:
        """Returns a message without its tensors or examples, and these."""
        if isinstance(request, bytes):
            question = await self._readers.read_grpc(kind, request, _deadline(context))
        else:
            if kind != "multi_inference":
                self.find(request, call)  # what is not there is said before what is wrong
            question = requests.taken_apart(kind, request, self._limits)
        return question.message, question.arrays

    async def run(
        self, model: Model, arrays: Arrays, call: Call, context: grpc.aio.ServicerContext
    ) -> Arrays:
        call.rows = rows_of(list(arrays.values()))
        self._observer.received(call, arrays)
        outputs = await model.signature(call.signature).batcher.submit(arrays, _deadline(context))
        self._observer.answered(call, outputs)
        return outputs

    async def written(
        self, make: Callable[[], Message], *outputs: Arrays, write: Callable[[], bytes] | None = None
    ) -> Message | bytes:
        """Returns an answer, written by a thread where that takes long; `write` does it at once."""
        if all(map(is_little, outputs)):
            return make()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, write or (lambda: make().SerializeToString()))


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def Predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def work(call: Call) -> Any:
            asked, arrays = await self._calls.read("predict", request, call, context)
            model = self._calls.find(asked, call)
            signature = model.signature(call.signature)
            arrays = signature.completed(arrays)
            if set(arrays) != set(signature.inputs):
                raise invalid(
                    f"The signature takes the inputs {sorted(signature.inputs)}. "
                    f"Received: {[name[:60] for name in sorted(arrays)[:20]]}."
                )
            names = _chosen(asked.output_filter, signature.outputs)
            for name, (dtype, _) in signature.inputs.items():
                given = proto_tensors.type_name(arrays[name])
                if given != dtype:
                    raise invalid(f'"{name}" must be {dtype}. Received: {given}.')
            outputs = await self._calls.run(model, arrays, call, context)

            def make() -> predict_pb2.PredictResponse:
                response = predict_pb2.PredictResponse(model_spec=_spec(model, call.signature))
                for name in names:
                    proto_tensors.fill_proto(response.outputs[name], outputs[name], name)
                return response

            chosen = {name: outputs[name] for name in names}
            spec = _spec(model, call.signature)
            return await self._calls.written(make, chosen, write=lambda: predict_response(spec, chosen))

        return await self._calls.answer("predict", context, request, work)

    async def Classify(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def work(call: Call) -> Any:
            asked, arrays = await self._calls.read("classify", request, call, context)
            model = self._calls.find(asked, call)
            outputs, rows = await self._examples(model, arrays, call, context)

            def make() -> classification_pb2.ClassificationResponse:
                return classification_pb2.ClassificationResponse(
                    model_spec=_spec(model, call.signature), result=examples.to_classifications(outputs, rows)
                )

            return await self._calls.written(make, outputs)

        return await self._calls.answer("classify", context, request, work)

    async def Regress(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def work(call: Call) -> Any:
            asked, arrays = await self._calls.read("regress", request, call, context)
            model = self._calls.find(asked, call)
            outputs, rows = await self._examples(model, arrays, call, context)

            def make() -> regression_pb2.RegressionResponse:
                return regression_pb2.RegressionResponse(
                    model_spec=_spec(model, call.signature), result=examples.to_regressions(outputs, rows)
                )

            return await self._calls.written(make, outputs)

        return await self._calls.answer("regress", context, request, work)

    async def MultiInference(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        async def work(call: Call) -> Any:
            asked, arrays = await self._calls.read("multi_inference", request, call, context)
            if not asked.tasks:
                raise invalid("The request has no tasks.")
            if len(asked.tasks) > _MOST_TASKS:
                raise invalid(f"A request may have {_MOST_TASKS} tasks. Received: {len(asked.tasks)}.")
            answers: list[tuple[Any, Any, Arrays]] = []
            for task in asked.tasks:
                model = self._calls.find(task, call)
                outputs, rows = await self._examples(model, arrays, call, context)
                if task.method_name not in _RESULTS:
                    raise Refusal("UNIMPLEMENTED", "A task must be tensorflow/serving/regress or classify.")
                answers.append((_spec(model, call.signature), task.method_name, outputs))

            def make() -> inference_pb2.MultiInferenceResponse:
                response = inference_pb2.MultiInferenceResponse()
                for spec, method, outputs in answers:
                    field, convert = _RESULTS[method]
                    result = response.results.add(model_spec=spec)
                    getattr(result, field).CopyFrom(convert(outputs, rows))
                return response

            return await self._calls.written(make, *(outputs for _, _, outputs in answers))

        return await self._calls.answer("multi_inference", context, request, work)

    async def GetModelMetadata(
        self, request: get_model_metadata_pb2.GetModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        async def work(call: Call) -> get_model_metadata_pb2.GetModelMetadataResponse:
            if not request.metadata_field or set(request.metadata_field) != set(_METADATA_FIELDS):
                raise invalid(
                    f"metadata_field must be {_METADATA_FIELDS}. Received: {list(request.metadata_field)}."
                )
            model = self._calls.find(request, call)
            response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=_spec(model))
            packed = any_pb2.Any()
            packed.Pack(get_model_metadata_pb2.SignatureDefMap(signature_def=model.definitions))
            response.metadata["signature_def"].CopyFrom(packed)
            return response

        return await self._calls.answer("metadata", context, request, work)

    async def _examples(
        self, model: Model, arrays: Arrays, call: Call, context: grpc.aio.ServicerContext
    ) -> tuple[Arrays, int]:
        examples.check_signature(model.signature(call.signature).inputs)
        return await self._calls.run(model, arrays, call, context), len(arrays["inputs"])


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def GetModelStatus(
        self, request: get_model_status_pb2.GetModelStatusRequest, context: grpc.aio.ServicerContext
    ) -> get_model_status_pb2.GetModelStatusResponse:
        async def work(call: Call) -> get_model_status_pb2.GetModelStatusResponse:
            if not request.HasField("model_spec"):
                raise invalid("The request must have a model_spec.")
            spec = request.model_spec
            version = spec.version.value if spec.HasField("version") else None
            versions = self._calls.registry.status(spec.name, version)
            call.model = spec.name
            response = get_model_status_pb2.GetModelStatusResponse()
            for entry in versions:
                added = response.model_version_status.add(version=entry.number, state=entry.state)
                added.status.SetInParent()
                if entry.error:
                    added.status.error_code = grpc.StatusCode[entry.error.code].value[0]
                    added.status.error_message = entry.error.message
            return response

        return await self._calls.answer("status", context, request, work)

    async def HandleReloadConfigRequest(
        self, request: model_management_pb2.ReloadConfigRequest, context: grpc.aio.ServicerContext
    ) -> model_management_pb2.ReloadConfigResponse:
        async def work(call: Call) -> model_management_pb2.ReloadConfigResponse:
            await self._calls.registry.reload(request.config)
            response = model_management_pb2.ReloadConfigResponse()
            response.status.SetInParent()
            return response

        return await self._calls.answer("reload", context, request, work)


_RESULTS: dict[str, tuple[str, Callable[[Arrays, int], Any]]] = {
    "tensorflow/serving/regress": ("regression_result", examples.to_regressions),
    "tensorflow/serving/classify": ("classification_result", examples.to_classifications),
}


def _client(context: grpc.aio.ServicerContext) -> str:
    """Returns what a canary's share goes by: what the client calls itself, else its address, without port."""
    named = dict(context.invocation_metadata() or ()).get(CLIENT_ID)
    return named or unquote(context.peer()).partition(":")[2].rpartition(":")[0].strip("[]")


def _size(message: Message | bytes) -> int:
    return len(message) if isinstance(message, bytes) else message.ByteSize()


def _deadline(context: grpc.aio.ServicerContext) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


def predict_response(spec: model_pb2.ModelSpec, outputs: Arrays) -> bytes:
    """Returns the bytes of a PredictResponse: the tensors go there without a message of their own."""
    response = predict_pb2.PredictResponse(model_spec=spec)
    parts: list[Any] = [response.SerializeToString()]
    for name, array in outputs.items():
        tensor = proto_tensors.serialized(array, name)
        key = name.encode()
        # An entry of the map `outputs`: its key is field 1, its value field 2.
        size = sum(map(len, tensor))
        entry = [proto_tensors.field_head(1, len(key)) + key + proto_tensors.field_head(2, size), *tensor]
        parts += [proto_tensors.field_head(1, sum(map(len, entry))), *entry]
    return b"".join(parts)


def _chosen(asked: Any, outputs: Any) -> list[str]:
    names = list(asked)
    if len(set(names)) < len(names) or not set(names) <= set(outputs):
        received = [name[:60] for name in names[:20]]
        raise invalid(f"output_filter takes each of {sorted(outputs)} once. Received: {received}.")
    return names or list(outputs)


def _spec(model: Model, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=model.name, signature_name=signature)
    spec.version.value = model.version
    return spec
