"""`bert-classifier`: a BERT that says which label a text has, from a table to a served model.

    karpa-tf train bert-classifier                                     intents, a small BERT from scratch
    karpa-tf train bert-classifier --data train.csv --preset FOLDER    your table, a pretrained BERT

What it reaches stands in the header of each YAML file beside this one.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches
from karpa_tf.data.sequences import dense_features, encode_texts, pack_texts, rows_of, sequence_batches
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import Columns, Rows, Table, label_ids, open_table, open_test_rows, shared_rows
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.judging.classification import class_table, classification_metrics, confusion, svm_baseline
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.recipe import (
    EvaluateOptions,
    Evaluation,
    ExplainOptions,
    Explanation,
    Exported,
    PredictOptions,
    Recipe,
)
from karpa_tf.recipes.families import common, encoders, folds
from karpa_tf.recipes.families.settings import BertExportOptions
from karpa_tf.recipes.families.words import Claim, explain_words
from karpa_tf.reports.classification import format_class_table, format_confusions, write_classification
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.wordpiece import WordPiece

from . import ABOUT, BertClassifierSettings

TRAINING_METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}
# Rows judged at once, and texts shown in the projector.
_JUDGED_AT_ONCE = 64
_PROJECTED = 1000


# --- Data and model -------------------------------------------------------------------------------


def open_data(config: BertClassifierSettings) -> Table:
    columns = Columns(config.text, config.label, config.text_b)
    table = open_table(config.data, columns, **folds.held_out_shares(config))
    splits = folds.hold_out_fold(
        config, table.splits, table.brings_test, lambda rows: (rows.keys(), rows.labels), Rows.take
    )
    return dataclasses.replace(table, splits=splits)


def make_batches(
    config: BertClassifierSettings,
    rows: Rows,
    names: Sequence[str],
    wordpiece: WordPiece,
    *,
    training: bool,
    say: Callable[[str], Any] = lambda line: None,
) -> tuple[Batches, np.ndarray]:
    """Returns batches of labelled texts, and, if not for training, the rows in the order of the batches."""
    sequences = encode_texts(wordpiece, rows.texts, rows.texts_b, config.sequence_length)
    if sequences.cut:
        are, were = ("is", "was") if sequences.cut == 1 else ("are", "were")
        say(
            f"{sequences.cut:,} of {len(rows):,} texts {are} longer than {config.sequence_length} pieces and "
            f"{were} cut; --sequence_length reads more."
        )
    labels = label_ids(rows.labels, names, config.data)
    weights = np.ones(len(rows), np.float32)
    if training and config.class_weights == "balanced":
        counts = np.bincount(labels, minlength=len(names))
        weights = (len(rows) / (len(names) * np.maximum(counts, 1)))[labels].astype(np.float32)
    batches = sequence_batches(
        sequences,
        labels,
        weights,
        wordpiece,
        batch_size=config.batch_size if training else _JUDGED_AT_ONCE,
        seed=config.seed if training else None,
        buckets=config.buckets,
        token_dropout=config.token_dropout,
    )
    return batches, np.zeros(0, int) if training else rows_of(sequences, _JUDGED_AT_ONCE)


def build_on(config: BertClassifierSettings, names: Sequence[str]) -> Callable[[keras.Model], keras.Model]:
    """Returns what makes the classifier of an encoder."""
    return lambda encoder: build_bert_classifier(
        encoder, len(names), pooling=config.pooling, dropout=config.dropout
    )


def probabilities_of(outputs: Outputs, order: np.ndarray) -> np.ndarray:
    """Returns probabilities float32 (rows, classes), in the order of the rows."""
    logits = np.concatenate([batch for batch, _, _ in outputs])[order >= 0]
    result = np.zeros_like(logits)
    result[order[order >= 0]] = tf.nn.softmax(logits).numpy()
    return result


# --- Train ----------------------------------------------------------------------------------------


def train(run: Run[BertClassifierSettings]) -> dict[str, float]:
    """Trains into a run folder and returns the final figures, those of the test split."""
    config, folder = run.settings, run.folder
    config.learning_rate = config.learning_rate or encoders.default_learning_rate(config)
    table = open_data(config)
    rows = table.splits
    names = table.record.labels
    shrunk = folds.shrink_batch(config, len(rows["train"]), run.strategy.num_replicas_in_sync)
    run.begin(table.record)
    run.say(*table.notes, shrunk)
    start = encoders.make_start(config, folder, rows["train"].texts + (rows["train"].texts_b or []))
    run.say(
        f"{config.data}: {len(rows['train']):,} texts to learn from, {len(rows['validation']):,} for "
        f"validation, {len(rows['test']):,} to test; {len(names)} labels; run {folder.path}",
        folds.thin_test(config, len(rows["test"]), rows["test"].labels, names, table.brings_test),
    )
    data, _ = make_batches(config, rows["train"], names, start.wordpiece, training=True, say=run.say)
    held_out, order = make_batches(config, rows["validation"], names, start.wordpiece, training=False)
    if run.chief:
        encoders.save_start(start, folder)
    run.write_asset("labels.json", names)

    weights = encoders.pretrain(run, start, rows["train"].texts)
    with run.strategy.scope():
        encoder = build_bert(**start.architecture, dropout=config.dropout, dtype=config.precision)
        model = build_on(config, names)(encoder)
        encoders.put_weights(model, start, weights, config.init)
        encoders.apply_method(model, config)
    run.say(encoders.describe_training(config, model, data, start))

    outputs = Outputs(model, held_out)
    labels = label_ids(rows["validation"].labels, names, config.data)

    def validation() -> dict[str, float]:
        return classification_metrics(labels, probabilities_of(outputs, order))

    pooled = keras.Model(model.input, model.get_layer("pool").output)

    def projector() -> tuple[np.ndarray, Labels]:
        shown = rows["validation"].take(range(min(_PROJECTED, len(rows["validation"]))))
        batches, places = make_batches(config, shown, names, start.wordpiece, training=False)
        vectors = np.concatenate([batch for batch, _, _ in Outputs(pooled, batches)])[places >= 0]
        order = places[places >= 0]
        return vectors, {
            "label": [shown.labels[i] for i in order],
            "text": [shown.texts[i][:80] for i in order],
        }

    encoders.fine_tune(
        run,
        model,
        data,
        validation,
        monitor=config.metric,
        metrics=TRAINING_METRICS,
        projector=projector,
    )
    return run.finish(lambda: Evaluation(**evaluate(folder, step=run.steps)))


# --- Evaluate -------------------------------------------------------------------------------------


def open_model(folder: RunFolder) -> tuple[BertClassifierSettings, list[str], encoders.Start, keras.Model]:
    """Returns the settings, labels, start and model of a run, with its best weights, in float32."""
    config = folder.open_config(BertClassifierSettings)
    names = common.read_labels(folder, "labels.json")
    start = encoders.read_start(folder)
    model = encoders.open_trained(config, folder, start, build_on(config, names))
    return config, names, start, model


def evaluate(folder: RunFolder, data: str | None = None, step: int | None = None) -> dict[str, Any]:
    """Judges a run's best weights on its test split, or on other data, beside a linear SVM on TF-IDF.

    Args:
        folder: of the run.
        data: a table; None: the run's own test split, or validation where it has none.
        step: write what TensorBoard shows of the judgement under this step.
    """
    runtime.use_threads()
    config, names, start, model = open_model(folder)
    table = open_data(config)
    check_data(folder, config.data, table.record)
    if data:
        rows, where = open_test_rows(data, Columns(config.text, config.label, config.text_b)), data
        for note in rows.notes:
            print(note, file=sys.stderr)
    else:
        split: Split = "test" if len(table.splits["test"]) else "validation"
        rows, where = table.splits[split], f"{config.data} ({split} split)"
    labels = label_ids(rows.labels, names, where)
    batches, order = make_batches(config, rows, names, start.wordpiece, training=False)
    probabilities = probabilities_of(Outputs(model, batches), order)
    metrics = classification_metrics(labels, probabilities)
    known = table.splits["train"]
    if step is not None:
        write_classification(folder.path / "validation", step, labels, probabilities, names, _joined(rows))
    return {
        "data": where,
        "metrics": metrics,
        "baselines": {
            "tf-idf + svm": svm_baseline(
                _joined(known), label_ids(known.labels, names, config.data), _joined(rows), labels
            ),
            "most frequent": _most_frequent(known.labels, rows.labels),
        },
        "facts": {"rows": len(rows), "rows whose text is in training": shared_rows(known, rows)},
        "tables": [
            format_class_table(class_table(labels, probabilities, names)),
            format_confusions(confusion(labels, probabilities.argmax(1), len(names)), names),
        ],
    }


def _joined(rows: Rows) -> list[str]:
    if rows.texts_b is None:
        return rows.texts
    return [f"{a} {b}" for a, b in zip(rows.texts, rows.texts_b, strict=True)]


def _most_frequent(known: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    (label, _), *_ = Counter(known).most_common(1)
    return {"accuracy": sum(x == label for x in labels) / len(labels)}


# --- Predict and export ---------------------------------------------------------------------------


class Classify:
    """The served function: texts to labels and probabilities, in graph ops alone.

    Args:
        model: gives logits.
        wordpiece: its vocabulary.
        names: the labels, in the order of the logits.
        length: most pieces that are read of a text.
    """

    def __init__(self, model: keras.Model, wordpiece: WordPiece, names: Sequence[str], length: int) -> None:
        self.model = model
        self.wordpiece = wordpiece
        self.names = list(names)
        self.length = length

    def __call__(self, text: tf.Tensor, text_b: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Classifies texts, or pairs of them.

        Args:
            text: string (n,).
            text_b: string (n,), for a model of pairs.

        Returns:
            `label` string (n,) and `probabilities` float32 (n, classes).
        """
        token_ids, segment_ids = pack_texts(self.wordpiece, text, text_b, length=self.length)
        logits = self.model(dense_features(token_ids, segment_ids, self.wordpiece.pad_id), training=False)
        probabilities = tf.nn.softmax(logits)
        label = tf.gather(tf.constant(self.names), tf.argmax(probabilities, axis=1))
        return {"label": label, "probabilities": probabilities}


def signature(folder: RunFolder) -> Signature:
    """Returns the classifier of a run, as `predict` calls it and `export` writes it: in float32."""
    config, names, start, model = open_model(folder)
    return _signature(config, names, start, model)


def _signature(
    config: BertClassifierSettings, names: Sequence[str], start: encoders.Start, model: keras.Model
) -> Signature:
    inputs = text_input()
    if config.text_b:
        inputs["text_b"] = tf.TensorSpec([None], tf.string)

    def check(number: int, row: Mapping[str, Any]) -> None:
        for name in inputs:
            if not str(row[name]).strip():
                raise UserError(f"Row {number} has an empty {name}: there is nothing to classify.")

    function = Classify(model, start.wordpiece, names, config.sequence_length)
    # Keras' `weights` leave the states of random numbers out.
    return Signature(function, inputs, variables=model.weights, check=check, names=names)


def explain(folder: RunFolder, inputs: Sequence[str]) -> dict[str, Any]:
    """Says what each word of texts adds to the probability of their label."""
    _, names, _, _ = opened = open_model(folder)

    def claims(outputs: Mapping[str, Any]) -> list[Claim]:
        place = names.index(outputs["label"])
        return [Claim(outputs["label"], lambda other, _: other["probabilities"][place])]

    return explain_words(folder, _signature(*opened), inputs, claims)


def export(
    folder: RunFolder, to: str | Path = "savedmodels", *, quantize: str = "none", force: bool = False
) -> dict[str, Any]:
    """Writes the next version of `savedmodels/bert-classifier` and returns its place and signatures."""
    config, names, start, model = open_model(folder)
    metrics = common.learned_or_refuse(folder, "accuracy", "most frequent", force)
    loss = ""
    if quantize == "int8":
        splits = open_data(config).splits
        rows = splits["test"] or splits["validation"]
        labels = label_ids(rows.labels, names, config.data)

        def accuracy(model: keras.Model) -> float:
            batches, order = make_batches(config, rows, names, start.wordpiece, training=False)
            return float((probabilities_of(Outputs(model, batches), order).argmax(1) == labels).mean())

        before = accuracy(model)
        encoders.quantize(model)
        after = accuracy(model)
        loss = encoders.quantization_note("accuracy", before, after, len(rows))
    signatures = {"serving_default": _signature(config, names, start, model)}
    path = export_savedmodel(
        signatures,
        to,
        folder.recipe,
        examples=_examples(config),
        assets={
            "vocab.txt": "\n".join(start.wordpiece.pieces) + "\n",
            "labels.txt": "".join(f"{' '.join(name.split())}\n" for name in names),
        },
        model_card=model_card(folder, config, names, metrics, loss),
        tolerance=encoders.export_tolerance(quantize),
        force=force,
    )
    return {"savedmodel": str(path), "signatures": describe(signatures)}


def _examples(config: BertClassifierSettings) -> list[dict[str, str]]:
    rows = open_data(config).splits["validation"]
    examples = [
        {"text": rows.texts[i], **({"text_b": rows.texts_b[i]} if rows.texts_b else {})}
        for i in range(min(4, len(rows)))
    ]
    return [*examples, {name: "[MASK] Ça va naïve 日本 🙂" for name in examples[0]}]


def model_card(
    folder: RunFolder,
    config: BertClassifierSettings,
    names: Sequence[str],
    metrics: dict[str, Any],
    quantization: str,
) -> str:
    reads = "`text` and `text_b` string [n]" if config.text_b else "`text` string [n]"
    return f"""# {folder.recipe}

Says which of {len(names)} labels a text has. Trained on {config.data}, from {config.preset}, method
{config.method}.

- in: {reads}; {config.sequence_length} pieces of it are read
- out: `label` string [n]; `probabilities` float32 [n, {len(names)}], in the order of `assets/labels.txt`

On {metrics["facts"]["rows"]} held-out rows:

{metrics_table(metrics, ["accuracy", "macro_f1", "ece", "loss"])}
{quantization}
{settings_list(folder.read_config())}
"""


# --- The recipe -----------------------------------------------------------------------------------


class BertClassifier(Recipe[BertClassifierSettings]):
    """A BERT that says which label a text has."""

    about = ABOUT

    def train(self, run: Run[BertClassifierSettings]) -> dict[str, float]:
        return train(run)

    def evaluate(self, folder: RunFolder, options: EvaluateOptions) -> Evaluation:
        return Evaluation(**evaluate(folder, options.data or None))

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        return signature(folder)

    def export(self, folder: RunFolder, options: BertExportOptions) -> Exported:
        return Exported.of(export(folder, options.to, quantize=options.quantize, force=options.force))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        return Explanation.of(explain(folder, inputs))
