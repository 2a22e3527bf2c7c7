"""What `meta` serves: it learns each task of a request from its examples, and answers its queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.lines import InALine
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.protonet import ProtoNet

# Examples (rows, ...), as a request has them, to what the network takes.
Read = Callable[[tf.Tensor], tf.Tensor]


class LearnClasses(InALine):
    """Tasks of classes, learned and answered in graph ops alone.

    Args:
        algorithm: with its trained weights.
        read: makes of examples what the network takes.
        steps: on a task.
        ways: classes of a task, at most; None: as many as a request names, which prototypes allow.
    """

    def __init__(self, algorithm: Algorithm, read: Read, steps: int, ways: int | None) -> None:
        self.algorithm, self.read, self.steps, self.ways = algorithm, read, steps, ways

    def __call__(self, support: tf.Tensor, labels: tf.Tensor, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """Learns t tasks from k examples each, and answers n queries of each.

        Args:
            support: [t, k, ...].
            labels: string [t, k]; a row with the label "" is padding and is left out.
            query: [t, n, ...].

        Returns:
            `label` string [t, n]; `probabilities` float32 [t, n, ways], in the order of `classes` string
            [t, ways]: the labels of a task as they first occur, and "" behind them.

        Raises:
            tf.errors.InvalidArgumentError: a task has no labelled example or too many classes, or the inputs
                are not of the same tasks.
        """
        places, classes, used = number_labels(labels, self.ways)
        same = [
            tf.debugging.assert_equal(
                tf.shape(support)[:2],
                tf.shape(labels),
                "support and labels must have a label for each example: [tasks, examples] of both differ.",
            ),
            tf.debugging.assert_equal(
                tf.shape(support)[0], tf.shape(query)[0], "support and query must have as many tasks."
            ),
        ]
        with tf.control_dependencies(same):
            support, query = (_each(self.read, x) for x in (support, query))
        if isinstance(self.algorithm, ProtoNet):
            self.algorithm.ways = tf.shape(classes)[1]
        logits = self.algorithm.predict(
            support, places, query, steps=[self.steps], row_weights=used, portable=True
        )[0]
        probabilities = tf.nn.softmax(logits)
        label = tf.gather(classes, tf.argmax(probabilities, -1), batch_dims=1)
        return {"label": label, "probabilities": probabilities, "classes": classes}


class LearnNumbers(InALine):
    """Regressions, learned and answered in graph ops alone.

    Args:
        algorithm: with its trained weights.
        steps: on a task.
    """

    def __init__(self, algorithm: Algorithm, steps: int) -> None:
        self.algorithm, self.steps = algorithm, steps

    def __call__(self, support: tf.Tensor, targets: tf.Tensor, query: tf.Tensor) -> dict[str, tf.Tensor]:
        """Learns t functions from k points each, and answers n queries of each.

        Args:
            support: float32 [t, k, inputs].
            targets: float32 [t, k, outputs].
            query: float32 [t, n, inputs].

        Returns:
            `prediction` float32 [t, n, outputs].

        Raises:
            tf.errors.InvalidArgumentError: a support set is empty, or the inputs are not of the same tasks.
        """
        checks = [
            tf.debugging.assert_positive(
                tf.shape(support)[1], "The support set is empty: give an example at least."
            ),
            tf.debugging.assert_equal(
                tf.shape(support)[:2],
                tf.shape(targets)[:2],
                "support and targets must have a target for each example: [tasks, examples] of both differ.",
            ),
            tf.debugging.assert_equal(
                tf.shape(support)[0], tf.shape(query)[0], "support and query must have as many tasks."
            ),
        ]
        with tf.control_dependencies(checks):
            support = tf.identity(support)
        answers = self.algorithm.predict(support, targets, query, steps=[self.steps], portable=True)
        return {"prediction": answers[0]}


def number_labels(labels: tf.Tensor, ways: int | None) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Numbers the labels of each task in the order in which they first occur.

    Args:
        labels: string [t, k]; "" is padding.
        ways: most different labels of a task; None: as many as there are.

    Returns:
        int32 [t, k], the number of each label, 0 of padding; string [t, ways], the labels, "" behind them;
        float32 [t, k], 0 of padding and else 1.

    Raises:
        tf.errors.InvalidArgumentError: a task has no label, or too many.
    """
    used = labels != ""
    examples = tf.shape(labels)[1]
    with tf.control_dependencies([_some_label(used)]):
        same = labels[:, :, None] == labels[:, None, :]
    first = tf.argmax(tf.cast(same, tf.int32), -1, tf.int32)
    new = used & (first == tf.range(examples))
    rank = tf.cumsum(tf.cast(new, tf.int32), axis=1) - 1
    places = tf.where(used, tf.gather(rank, first, batch_dims=1), 0)
    counts = tf.reduce_sum(tf.cast(new, tf.int32), 1)
    most: Any = tf.reduce_max(counts)
    if ways is not None:
        message = f"A task may have {ways} classes at most, as many as the model was trained with."
        with tf.control_dependencies([tf.debugging.assert_less_equal(most, ways, message)]):
            most = tf.constant(ways)
    # Where each class occurs first.
    here = new[:, None, :] & (rank[:, None, :] == tf.range(most)[None, :, None])
    classes = tf.gather(labels, tf.argmax(tf.cast(here, tf.int32), -1), batch_dims=1)
    classes = tf.where(tf.range(most)[None] < counts[:, None], classes, "")
    if ways is not None:
        classes = tf.ensure_shape(classes, [None, ways])
    return places, classes, tf.cast(used, tf.float32)


def _some_label(used: tf.Tensor) -> Any:
    return tf.debugging.Assert(
        tf.reduce_all(tf.reduce_any(used, 1)),
        ["The support set is empty: each task needs an example with a label at least."],
    )


def _each(read: Read, examples: tf.Tensor) -> tf.Tensor:
    """Reads examples [t, rows, ...]."""
    shape = tf.shape(examples)
    flat = read(tf.reshape(examples, tf.concat([[-1], shape[2:]], 0)))
    read_shape = tf.concat([shape[:2], tf.shape(flat)[1:]], 0)
    return tf.ensure_shape(tf.reshape(flat, read_shape), [None, None, *flat.shape[1:]])


def check_row(labels_name: str) -> Callable[[int, Mapping[str, Any]], None]:
    """Returns the check of a row of `predict`: one task, with as many labels (or targets) as examples."""

    def check(number: int, row: Mapping[str, Any]) -> None:
        for name in ("support", labels_name, "query"):
            if not isinstance(row[name], list) or not row[name]:
                raise UserError(
                    f"Row {number}: {name} must be a list of one item at least. Received: "
                    f"{str(row[name])[:80]}."
                )
        if len(row["support"]) != len(row[labels_name]):
            raise UserError(
                f"Row {number}: support and {labels_name} must be as long as each other. Received: "
                f"{len(row['support'])} and {len(row[labels_name])}."
            )
        if labels_name == "labels" and not all(isinstance(label, str) for label in row["labels"]):
            raise UserError(f"Row {number}: labels must be texts. Received: {str(row['labels'])[:80]}.")

    return check


def signature_of(
    algorithm: Algorithm, read: Read, spec: tf.TensorSpec, *, variables: Sequence[Any], steps: int, ways: int
) -> Signature:
    """Returns what is served.

    Args:
        algorithm: with its trained weights.
        read: makes of examples what the network takes.
        spec: of examples [t, rows, ...].
        variables: that are read.
        steps: on a task.
        ways: classes of a task, at most; 0: a regression.
    """
    specs = {"support": spec, "query": spec}
    if ways:
        function: Any = LearnClasses(
            algorithm, read, steps, None if isinstance(algorithm, ProtoNet) else ways
        )
        specs["labels"] = tf.TensorSpec([None, None], tf.string)
        shown, labels = ["label"], "labels"
    else:
        function, labels = LearnNumbers(algorithm, steps), "targets"
        specs[labels], shown = tf.TensorSpec([None, None, 1], tf.float32), ["prediction"]
    inputs = {name: specs[name] for name in ("support", labels, "query")}
    return Signature(function, inputs, variables=variables, check=check_row(labels), shown=shown)
