"""What `bert-classifier` learns from few rows or none: which rows, and a head that is computed from vectors.

How it is used, and what it reaches: docs/few-shot.md.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import yaml

from karpa_tf.data.tables import Rows, Table, draw_shots
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.judging.classification import (
    classification_metrics,
    equal_frequencies,
    logistic_regression,
    softmax,
)
from karpa_tf.lines import InALine
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.models.presets import load_preset
from karpa_tf.recipes.families.settings import TEACHER
from karpa_tf.settings import read_yaml
from karpa_tf.training.evaluation import Outputs

from . import BertClassifierSettings
from .batches import ClassifierTask, batch_texts

# What the cosine of a text and the words of a label is multiplied by: with it, the probabilities on the
# training rows of banking77 were as often right as they said.
_ZEROSHOT_SCALE = 20.0
# Texts by which labels are made equally frequent: more change little.
_CALIBRATION_TEXTS = 1000


# --- Rows to learn from ---------------------------------------------------------------------------


def rows_to_learn_from(config: BertClassifierSettings, table: Table) -> Table:
    """Returns a table whose training split is what a run learns from.

    `shots` rows of each label, and the words of the labels where those count; with no rows to learn from,
    words alone.

    Raises:
        UserError: a label has fewer rows, or the words are not those of the labels.
    """
    known = rows = table.splits["train"]
    if config.shots:
        rows = draw_shots(rows, config.shots, config.seed, config.data)
    if config.method == "cloze":
        words = _of_labels(config.words_by_label(), table, "words")
        rows = rows if config.shots else _as_rows(words)
    elif config.learns_from_words:
        words = label_words(config.label_names, table)
        if config.method == "zeroshot":
            rows = _as_rows(words)
        else:  # a label of no letters says nothing
            words = {label: several for label, several in words.items() if any(map(str.isalpha, several[0]))}
            rows = _as_rows(words, rows)
    return table if rows is known else dataclasses.replace(table, splits={**table.splits, "train": rows})


def _as_rows(words: dict[str, list[str]], rows: Rows | None = None) -> Rows:
    """Returns rows, and behind them a row for each text of a label."""
    pairs = [(text, label) for label, several in words.items() for text in several]
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    return Rows([*rows.texts, *texts], None, [*rows.labels, *labels]) if rows else Rows(texts, None, labels)


def label_words(path: str, table: Table) -> dict[str, list[str]]:
    """Returns words for each label of a table.

    Args:
        path: of a YAML file, `label: words` or `label: [words, words]` a line; empty: the labels' own words.
        table: whose labels they are.

    Raises:
        UserError: the file cannot be read, lacks a label or has another one, or a label has no words.
    """
    if not path:
        return {label: [" ".join(_WORDS.findall(label)) or label] for label in table.labels}
    try:
        found = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"label_names: {path} cannot be read: {' '.join(str(error).split())[:200].rstrip('. ')}."
        ) from None
    if not isinstance(found, dict):
        raise UserError(f"label_names: {path} must hold one `label: words` a line.")
    words = {}
    for label, given in found.items():
        several = given if isinstance(given, list) else [given]
        words[str(label)] = ["" if text is None else str(text).strip() for text in several]
        if not all(words[str(label)] or [""]):
            raise UserError(f'label_names: {path} has no words for "{label}".')
    return _of_labels(words, table, f"label_names: {path}")


# `card_arrival`, `HassTurnOn` and `card-arrival` are words, too.
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[^\W\d_]?[^\WA-Z\d_]+|\d+")


def _of_labels(words: dict[str, list[str]], table: Table, where: str) -> dict[str, list[str]]:
    """Returns words in the order of a table's labels; raises a UserError if they are not those of the labels.

    Rows to learn from say which labels there are; without them the words do, and all that is tested on.
    """
    labels = table.labels if table.splits["train"] else sorted({*words, *table.labels})
    for label in words:
        if label not in labels:
            raise UserError(
                f'{where} has the label "{label}", which the data does not have{did_you_mean(label, labels)}'
            )
    if missing := [label for label in labels if label not in words]:
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f'{where} has no words for the label "{missing[0]}"{more}.')
    return {label: words[label] for label in labels}


# --- Heads ----------------------------------------------------------------------------------------


def vectors_of(model: keras.Model) -> keras.Model:
    """Returns the part of a classifier that gives vectors of length 1."""
    return keras.Model(model.input, model.get_layer("unit").output)


class Embedded(InALine):
    """Rows and the vectors that a model gives for them, again and again.

    Args:
        task: of the model.
        vectors: gives vectors of length 1.
        rows: the rows.
    """

    def __init__(self, task: ClassifierTask, vectors: keras.Model, rows: Rows) -> None:
        self._texts = batch_texts(task, rows, training=False)
        self._outputs = Outputs(vectors, self._texts.batches)
        self.labels = self._texts.labels

    def __call__(self) -> np.ndarray:
        """Returns vectors float32 (rows, width)."""
        return self._texts.rows(self._outputs)


class FitHead(InALine):
    """Puts logistic regression on the vectors of rows into a classifier's last layer, whenever it is called.

    Args:
        task: of the model.
        model: the classifier.
        rows: to learn from.
    """

    def __init__(self, task: ClassifierTask, model: keras.Model, rows: Rows) -> None:
        self._embedded = Embedded(task, vectors_of(model), rows)
        self._head, self._classes = model.get_layer("logits"), len(task.names)

    def __call__(self) -> None:
        vectors, labels = self._embedded(), self._embedded.labels
        self._head.set_weights(logistic_regression(vectors, labels, self._classes))


def name_head(task: ClassifierTask, model: keras.Model, words: Rows, texts: Rows) -> None:
    """Puts the vectors of the labels' words into a classifier's last layer.

    Args:
        task: of the model.
        model: the classifier.
        words: of the labels, a row each.
        texts: by which labels are made equally frequent; their labels are not read.
    """
    embedded = Embedded(task, vectors_of(model), words)
    vectors, labels = embedded(), embedded.labels
    kernel = np.stack([vectors[labels == label].mean(axis=0) for label in range(len(task.names))], axis=1)
    kernel *= _ZEROSHOT_SCALE / np.linalg.norm(kernel, axis=0)
    bias = np.zeros(len(task.names), np.float32)
    if task.config.calibrate and len(texts):
        some = np.random.default_rng(task.config.seed).permutation(len(texts))[:_CALIBRATION_TEXTS]
        known = Embedded(task, vectors_of(model), texts.take(sorted(some)))()
        bias = equal_frequencies(known @ kernel)
    model.get_layer("logits").set_weights([kernel, bias])


def has_frozen_baseline(config: BertClassifierSettings) -> bool:
    """Whether a run learns from few rows with a preset that gives vectors."""
    few = config.method == "fewshot" or (config.shots and config.method != "cloze")
    return bool(few and config.preset not in ("scratch", TEACHER))


def frozen_baseline(task: ClassifierTask, known: Rows, rows: Rows) -> dict[str, float]:
    """Evaluates logistic regression on the vectors of the preset as it is.

    Args:
        task: of the run.
        known: what it learns from.
        rows: what it is evaluated on.
    """
    preset = load_preset(task.config.preset)
    model = build_bert_classifier(build_bert(**preset.architecture), len(task.names), unit=True)
    preset.assign(model)
    learned, tested = (Embedded(task, vectors_of(model), part) for part in (known, rows))
    kernel, bias = logistic_regression(learned(), learned.labels, len(task.names))
    return classification_metrics(tested.labels, softmax(tested() @ kernel + bias))
