"""What is judged and shown of each task of a model, and of single-task runs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.tables import Rows, label_ids
from karpa_tf.errors import UserError
from karpa_tf.judging.by_row import ByRow, of_labels, of_tags
from karpa_tf.judging.classification import (
    class_table,
    classification_metrics,
    confusion,
    most_frequent_baseline,
    svm_baseline,
)
from karpa_tf.judging.tagging import gazetteer_baseline, tag_metrics, type_table
from karpa_tf.recipe import recipe_of
from karpa_tf.recipes.families import ensembles
from karpa_tf.recipes.families.encoders import EncoderRecipe
from karpa_tf.recipes.families.examples import Texts, Words
from karpa_tf.reports.classification import format_class_table, format_confusions, write_classification
from karpa_tf.reports.tagging import format_type_table, write_tagging
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder, open_run

from . import named_values
from .batches import JointExamples
from .data import Head
from .joining import JointRows, Part, keys_of

# The figure of a kind of task that the score is the mean of, and the baseline that it must be better than.
FIGURES = {"texts": ("accuracy", "most frequent"), "words": ("f1_strict", "")}


def head_metrics(head: Head, view: Texts | Words, outputs: Sequence[Any]) -> dict[str, float]:
    """Returns the figures of a task, as its own recipe has them."""
    if isinstance(view, Texts):
        return classification_metrics(view.labels, view.probabilities(outputs))
    predicted, probabilities = view.predict(outputs, head.names)
    return tag_metrics(view.tags, predicted) | {"loss": view.loss(probabilities, head.names)}


def all_right(right: Mapping[str, np.ndarray], examples: JointExamples) -> dict[str, float]:
    """Returns `exact_rows`, the share of the rows of all tasks where all is right, if there are any."""
    rows = [right[name][places] for name, places in examples.joint.items() if len(places)]
    return {"exact_rows": float(np.all(rows, axis=0).mean())} if rows else {}


def named(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Returns figures under the name of their task."""
    return {f"{name}_{key}": value for key, value in figures.items()}


def baselines(head: Head, known: Part, rows: Part) -> dict[str, dict[str, float]]:
    """Returns the figures of what a task's own recipe is compared with."""
    if isinstance(known, Rows) and isinstance(rows, Rows):
        train, test = (label_ids(part.labels, head.names) for part in (known, rows))
        return {
            "tf-idf + svm": svm_baseline(known.texts, train, rows.texts, test),
            "most frequent": most_frequent_baseline(train, test),
        }
    sides: Any = [[[s.words for s in part], [s.tags for s in part]] for part in (known, rows)]  # type: ignore[union-attr]
    return {"gazetteer": gazetteer_baseline(*sides[0], *sides[1])}


def labelled(heads: Mapping[str, Head], part: JointRows) -> dict[str, Any]:
    """Returns the texts that each task of texts labels, as its signature takes them, and their labels."""
    texts = {name: part.of(name) for name, head in heads.items() if head.kind == "texts"}
    return {
        name: ({"text": np.array(rows.texts, object)}, rows.labels)
        for name, rows in texts.items()
        if isinstance(rows, Rows)
    }


def tables(name: str, head: Head, view: Texts | Words, outputs: Sequence[Any]) -> list[list[str]]:
    """Returns the lines of a task's tables."""
    if isinstance(view, Words):
        return [[name, *format_type_table(type_table(view.tags, view.predict(outputs, head.names)[0]))]]
    probabilities = view.probabilities(outputs)
    counts = confusion(view.labels, probabilities.argmax(1), len(head.names))
    rows = format_class_table(class_table(view.labels, probabilities, head.names))
    return [[name, *rows], format_confusions(counts, head.names)]


def figure_by_row(
    name: str, head: Head, view: Texts | Words, outputs: Sequence[Any], rows: Part
) -> tuple[str, ByRow]:
    """Returns the name of a task's main figure, and the figure row by row."""
    figure = f"{name}_{FIGURES[head.kind][0]}"
    if isinstance(view, Texts) and isinstance(rows, Rows):
        return figure, of_labels(rows.texts, view.labels, view.probabilities(outputs), head.names)
    words = [sentence.words for sentence in rows]  # type: ignore[union-attr]
    return figure, of_tags(words, view.tags, view.predict(outputs, head.names)[0])  # type: ignore[union-attr]


def figures_by_row(
    heads: Mapping[str, Head], examples: JointExamples, outputs: Sequence[Any], rows: JointRows
) -> dict[str, ByRow]:
    """Returns the main figure of each task, row by row."""
    views = examples.heads.items()
    return dict(
        figure_by_row(name, heads[name], view, examples.of(outputs, name), rows.of(name))
        for name, view in views
    )


def write(
    folder: Path, step: int, head: Head, view: Texts | Words, outputs: Sequence[Any], rows: Part
) -> None:
    """Writes what TensorBoard shows of a task at the end."""
    if isinstance(view, Texts) and isinstance(rows, Rows):
        write_classification(folder, step, view.labels, view.probabilities(outputs), head.names, rows.texts)
    elif isinstance(view, Words) and isinstance(rows, list):
        predicted, probabilities = view.predict(outputs, head.names)
        words, scores = [sentence.words for sentence in rows], view.by_sentence(probabilities)
        write_tagging(folder, step, words, view.tags, predicted, scores, head.names)


def beside(
    runs: str, folder: RunFolder, heads: Mapping[str, Head], rows: JointRows, examples: JointExamples
) -> tuple[dict[str, float], dict[str, int]]:
    """Evaluates runs of single tasks on the rows of a run of several.

    Args:
        runs: by task, as `intents=bert-classifier/1 slots=bert-tagger/1`.
        folder: of the run of several.
        heads: its tasks.
        rows: what they are evaluated on.
        examples: the same in batches.

    Returns:
        The figures of all of them by task, and `exact_rows` where there is a run of each task; and by task
        how many of the rows have a text that its run has learned from.

    Raises:
        UserError: a run is of no such task.
    """
    metrics: dict[str, float] = {}
    right: dict[str, np.ndarray] = {}
    seen: dict[str, int] = {}
    for name, path in named_values("--beside", runs, "RUN").items():
        if name not in examples.heads:
            raise UserError(
                f"--beside: there are no rows of a task {name}. There is: {', '.join(examples.heads)}."
            )
        single = open_run(path, folder.path.parent.parent)
        recipe = recipe_of(single).load()
        if not isinstance(recipe, EncoderRecipe) or single.read_config().get("text_b"):
            raise UserError(
                f"--beside takes runs of bert-classifier and bert-tagger. Received: {name}={path}."
            )
        own_names, names = sorted(heads[name].names), sorted(ensembles.labels_of(single))
        ensembles.check_labels(own_names, names, f"{folder.path}'s {name}", path)
        task, model = recipe.open_model(single)
        part: Any = rows.of(name)
        own = recipe.batch(task, part)
        outputs: Any = list(Outputs(model, own.batches))
        metrics |= named(name, recipe.metrics(task, outputs, own))
        right[name] = own.right(outputs, task.names)
        known = set(keys_of(recipe.open_data(task.config).splits["train"]))
        seen[name] = sum(key in known for key in keys_of(part))
    if set(right) == set(heads):
        metrics |= all_right(right, examples)
    return metrics, seen
