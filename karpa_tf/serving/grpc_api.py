"""TensorFlow Serving's gRPC API: PredictionService and ModelService, with health and reflection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from karpa_tf.serving import examples, proto_tensors
from karpa_tf.serving.access import Tokens
from karpa_tf.serving.batching import Arrays
from karpa_tf.serving.json_tensors import rows_of
from karpa_tf.serving.model import Model
from karpa_tf.serving.observing import Call, Observer
from karpa_tf.serving.refusal import Refusal, invalid
from karpa_tf.serving.registry import Registry

_OPEN = "/grpc.health.v1.Health/"
_METADATA_FIELDS = ["signature_def"]


def add_services(
    server: grpc.aio.Server, registry: Registry, observer: Observer
) -> health.aio.HealthServicer:
    """Adds everything this server answers over gRPC; returns the health service, to be told the truth."""
    calls = _Calls(registry, observer)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(calls), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(calls), server)
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    described = (prediction_service_pb2, model_service_pb2, health_pb2)
    names = [name.full_name for file in described for name in file.DESCRIPTOR.services_by_name.values()]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    return health_service


class Doorkeeper(grpc.aio.ServerInterceptor):
    """Refuses calls without an accepted token, and messages that cannot be read.

    Only the health of the server is open to all.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "Send the metadata authorization: Bearer TOKEN with a token this server knows.",
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
            return _with_readable_messages(await continuation(details))
        return self._refusal


def _with_readable_messages(handler: grpc.RpcMethodHandler | None) -> grpc.RpcMethodHandler | None:
    """Makes a message that is none INTERNAL, as in TensorFlow Serving; gRPC itself says UNKNOWN."""
    if handler is None or handler.unary_unary is None:
        return handler

    def read(message: bytes) -> Any:
        try:
            return handler.request_deserializer(message)
        except DecodeError:
            return None

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request is None:
            await context.abort(
                grpc.StatusCode.INTERNAL, "The message cannot be read as this call's request."
            )
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(answer, read, handler.response_serializer)


class _Calls:
    """What the two services share: finding models, running them, and the form of refusals."""

    def __init__(self, registry: Registry, observer: Observer) -> None:
        self.registry = registry
        self._observer = observer

    async def answer(
        self,
        api: str,
        context: grpc.aio.ServicerContext,
        request: Any,
        work: Callable[[Call], Awaitable[Any]],
    ) -> Any:
        """Does the work of a call, and records how it went."""
        call = Call("GRPC", api, context.peer(), bytes_in=request.ByteSize(), start=time.perf_counter())
        try:
            response = await work(call)
            call.bytes_out = response.ByteSize()
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
        )
        call.model, call.version = model.name, model.version
        call.signature = spec.signature_name or "serving_default"
        return model

    async def run(
        self, model: Model, arrays: Arrays, call: Call, context: grpc.aio.ServicerContext
    ) -> Arrays:
        call.rows = rows_of(list(arrays.values()))
        self._observer.received(call, arrays)
        remaining = context.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        return await model.signature(call.signature).batcher.submit(arrays, deadline)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def Predict(
        self, request: predict_pb2.PredictRequest, context: grpc.aio.ServicerContext
    ) -> predict_pb2.PredictResponse:
        async def work(call: Call) -> predict_pb2.PredictResponse:
            model = self._calls.find(request, call)
            signature = model.signature(call.signature)
            if set(request.inputs) != set(signature.inputs):
                raise invalid(
                    f"The signature takes the inputs {sorted(signature.inputs)}. "
                    f"Received: {sorted(request.inputs)}."
                )
            names = _chosen(request.output_filter, signature.outputs)
            arrays = {}
            for name, (dtype, _) in signature.inputs.items():
                arrays[name] = proto_tensors.to_array(request.inputs[name], name)
                given = proto_tensors.type_name(arrays[name])
                if given != dtype:
                    raise invalid(f'"{name}" must be {dtype}. Received: {given}.')
            outputs = await self._calls.run(model, arrays, call, context)
            response = predict_pb2.PredictResponse(model_spec=_spec(model, call.signature))
            for name in names:
                response.outputs[name].CopyFrom(proto_tensors.to_proto(outputs[name]))
            return response

        return await self._calls.answer("predict", context, request, work)

    async def Classify(
        self, request: classification_pb2.ClassificationRequest, context: grpc.aio.ServicerContext
    ) -> classification_pb2.ClassificationResponse:
        async def work(call: Call) -> classification_pb2.ClassificationResponse:
            model = self._calls.find(request, call)
            outputs, rows = await self._examples(model, request.input, call, context)
            return classification_pb2.ClassificationResponse(
                model_spec=_spec(model, call.signature), result=examples.to_classifications(outputs, rows)
            )

        return await self._calls.answer("classify", context, request, work)

    async def Regress(
        self, request: regression_pb2.RegressionRequest, context: grpc.aio.ServicerContext
    ) -> regression_pb2.RegressionResponse:
        async def work(call: Call) -> regression_pb2.RegressionResponse:
            model = self._calls.find(request, call)
            outputs, rows = await self._examples(model, request.input, call, context)
            return regression_pb2.RegressionResponse(
                model_spec=_spec(model, call.signature), result=examples.to_regressions(outputs, rows)
            )

        return await self._calls.answer("regress", context, request, work)

    async def MultiInference(
        self, request: inference_pb2.MultiInferenceRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.MultiInferenceResponse:
        async def work(call: Call) -> inference_pb2.MultiInferenceResponse:
            if not request.tasks:
                raise invalid("The request has no tasks.")
            response = inference_pb2.MultiInferenceResponse()
            for task in request.tasks:
                model = self._calls.find(task, call)
                outputs, rows = await self._examples(model, request.input, call, context)
                result = response.results.add(model_spec=_spec(model, call.signature))
                if task.method_name == "tensorflow/serving/regress":
                    result.regression_result.CopyFrom(examples.to_regressions(outputs, rows))
                elif task.method_name == "tensorflow/serving/classify":
                    result.classification_result.CopyFrom(examples.to_classifications(outputs, rows))
                else:
                    raise Refusal("UNIMPLEMENTED", "A task must be tensorflow/serving/regress or classify.")
            return response

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
        self, model: Model, given: input_pb2.Input, call: Call, context: grpc.aio.ServicerContext
    ) -> tuple[Arrays, int]:
        arrays = examples.to_arrays(given, model.signature(call.signature).inputs)
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


def _chosen(asked: Any, outputs: Any) -> list[str]:
    names = list(asked)
    if len(set(names)) < len(names) or not set(names) <= set(outputs):
        raise invalid(f"output_filter takes each of {sorted(outputs)} once. Received: {names}.")
    return names or list(outputs)


def _spec(model: Model, signature: str = "") -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=model.name, signature_name=signature)
    spec.version.value = model.version
    return spec
