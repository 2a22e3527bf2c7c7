"""A request that is not answered, or a version that is not loaded: the code and the sentence."""

from __future__ import annotations

# TensorFlow Serving's HTTP status for each of gRPC's codes.
_HTTP = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}


class Refusal(Exception):
    """Raised wherever the server says no; REST and gRPC turn it into their own form.

    Attributes:
        code: the name of one of gRPC's status codes.
        message: a sentence for the client. It may quote the request, so it is never logged.
        http_status: what REST answers; by default the one that goes with `code`.
    """

    def __init__(self, code: str, message: str, http_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = http_status or _HTTP.get(code, 500)


def invalid(message: str) -> Refusal:
    """Returns the refusal of a request that is wrong in itself."""
    return Refusal("INVALID_ARGUMENT", message)
