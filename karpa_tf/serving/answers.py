"""What the REST API answers, written to bytes: pure functions, without TensorFlow.

Small answers are written in the event loop, larger ones in a thread, and large ones by the processes that
also read large requests (`readers`): a thread that writes for a second takes Python's lock again and again,
and the event loop then waits for it at every turn.
"""

from __future__ import annotations

from typing import Any

import orjson

from karpa_tf.serving import examples, json_tensors
from karpa_tf.serving.json_tensors import Arrays


def write_rest(api: str, by_rows: bool, rows: int, outputs: Arrays) -> list[bytes]:
    """Writes the answer of a predict, classify or regress request.

    Args:
        api: predict, classify or regress.
        by_rows: whether the request came in rows; predict.
        rows: how many examples there were; classify and regress.
        outputs: what the signature returned.

    Returns:
        The parts of the text.

    Raises:
        Refusal: the outputs are none that this can be made of.
    """
    if api == "predict":
        return (json_tensors.encode_rows if by_rows else json_tensors.encode_columns)(outputs)
    results: list[Any]
    if api == "classify":
        classified = examples.to_classifications(outputs, rows)
        results = [
            [[entry.label, entry.score] for entry in row.classes] for row in classified.classifications
        ]
    else:
        results = [entry.value for entry in examples.to_regressions(outputs, rows).regressions]
    return [orjson.dumps({"results": results})]
