"""`bert-classifier`: a BERT that says which label a text has, from a table to a served model.

    karpa-tf train bert-classifier                                     intents, a small BERT from scratch
    karpa-tf train bert-classifier --data train.csv --preset FOLDER    your table, a pretrained BERT

What it reaches stands in the header of each YAML file beside this one. How it is trained and exported:
`families/encoders.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from karpa_tf.data.sources import Split
from karpa_tf.data.tables import Rows, Table, grouped, label_ids, open_table, open_test_rows
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.judging.classification import (
    classification_metrics,
)
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.models.bert_masked_lm import build_bert_masked_lm
from karpa_tf.models.cloze import build_cloze
from karpa_tf.models.ensemble import SCALES
from karpa_tf.recipe import Evaluation, ExplainOptions, Explanation, Exported
from karpa_tf.recipes.families import certainty, folds
from karpa_tf.recipes.families.encoders import Data, EncoderRecipe
from karpa_tf.recipes.families.examples import Texts
from karpa_tf.recipes.families.rehearsal import rehearse
from karpa_tf.recipes.families.settings import BertExportOptions
from karpa_tf.recipes.families.words import Claim, explain_words
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training.contrastive import ContrastiveStep
from karpa_tf.training.distillation import Distillation
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.supervised import SupervisedStep

from . import ABOUT, BertClassifierSettings, BertEvaluateOptions, few
from .batches import EPOCH, PROJECTED, ClassifierTask, batch_texts, columns_of
from .card import model_card
from .classify import Classify, text_inputs
from .cloze import Patterns, calibrate
from .evaluating import evaluate_texts
from .teaching import teach_texts


class BertClassifier(EncoderRecipe[BertClassifierSettings, Rows, Texts]):
    """A BERT that says which label a text has."""

    about = ABOUT
    labels_file = "labels.json"
    counted = ("texts", "labels")
    figure = "accuracy"
    baseline = "most frequent"

    # --- Data

    def open_data(self, config: BertClassifierSettings) -> Table:
        shares = folds.held_out_shares(config)
        table = open_table(config.data, columns_of(config), needs_training=config.learns, **shares)
        splits = folds.hold_out_fold(config, table.splits, table.brings_test, grouped, Rows.take)
        table = few.rows_to_learn_from(config, dataclasses.replace(table, splits=splits))
        return rehearse(self.open_data, config, table, grouped, Rows.take, Rows.join)

    def check(self, config: BertClassifierSettings, names: Sequence[str], data: Data[Rows]) -> None:
        certainty.refuse_few(config, data.splits["validation"])
        for split, rows in data.splits.items():
            label_ids(rows.labels, names, f"{config.data} ({split} split)")

    def open_other(self, task: ClassifierTask, source: str) -> tuple[Rows, Sequence[str]]:
        rows = open_test_rows(source, columns_of(task.config))
        if not task.config.unknown_rate:  # else rows of other labels are unknown
            label_ids(rows.labels, task.names, source)  # an error names this data
        return rows, rows.notes

    def texts(self, part: Rows) -> list[str]:
        return part.texts

    def vocabulary_texts(self, part: Rows) -> list[str]:
        return part.texts + (part.texts_b or [])

    def kinds(self, names: Sequence[str], part: Rows) -> tuple[list[str], list[str]]:
        return list(names), part.labels

    def batch(self, task: ClassifierTask, part: Rows, training: bool = False) -> Texts:
        return batch_texts(task, part, training)

    # --- Model

    def build(self, task: ClassifierTask, encoder: keras.Model) -> keras.Model:
        config = task.config
        if config.method == "cloze":
            patterns = Patterns(task)
            masked_lm = encoder if "units" in task.architecture else build_bert_masked_lm(encoder)
            return build_cloze(masked_lm, patterns.words, len(config.patterns()))
        return build_bert_classifier(
            encoder,
            len(task.names),
            pooling=config.pooling,
            dropout=config.dropout,
            unit=config.method in ("fewshot", "zeroshot"),
        )

    # --- Train

    def train(self, run: Run[BertClassifierSettings]) -> dict[str, float]:
        config = run.settings
        config.batch_size = config.batch_size or (64 if config.method == "fewshot" else 16)
        return super().train(run)

    def rows_of_epoch(self, config: BertClassifierSettings, part: Rows) -> int:
        few_rows = config.shots or config.method in ("fewshot", "zeroshot", "cloze")
        return max(len(part), EPOCH) if few_rows else len(part)

    def learns(self, config: BertClassifierSettings) -> bool:
        return config.learns

    def teach(
        self, run: Run[BertClassifierSettings], task: ClassifierTask, data: Data[Rows]
    ) -> tuple[Texts, Distillation | None]:
        return teach_texts(run, task, data.splits) if task.config.teacher else super().teach(run, task, data)

    def make_step(self, task: ClassifierTask, model: keras.Model, **more: Any) -> SupervisedStep:
        if task.config.method == "fewshot":
            return ContrastiveStep(model, few.vectors_of(model), accumulate=task.config.accumulate)
        return super().make_step(task, model, **more)

    def compute(self, task: ClassifierTask, model: keras.Model, data: Data[Rows]) -> Callable[[], None]:
        method, splits = task.config.method, data.splits
        if method == "fewshot":
            return few.FitHead(task, model, splits["train"])
        if method == "zeroshot":
            few.name_head(task, model, splits["train"], splits["validation"])
        elif method == "cloze" and task.config.calibrate:
            calibrate(task, model)
        return super().compute(task, model, data)

    def options_of_best(self, config: BertClassifierSettings) -> dict[str, Any]:
        # With few rows the validation split would be most of what was learned from: it decides nothing.
        return {"last": True} if config.shots else super().options_of_best(config)

    def monitor(self, config: BertClassifierSettings) -> str:
        return config.metric

    def metrics(self, task: ClassifierTask, outputs: Outputs, examples: Texts) -> dict[str, float]:
        return classification_metrics(examples.labels, examples.probabilities(outputs))

    def vectors(self, task: ClassifierTask, model: keras.Model, part: Rows) -> tuple[np.ndarray, Labels]:
        """Returns the vectors that stand for the first texts, with their labels."""
        shown = part.take(range(min(PROJECTED, len(part))))
        texts = self.batch(task, shown)
        pooled = model
        if task.config.method != "cloze":
            pooled = keras.Model(model.input, model.get_layer("pool").output)
        return texts.rows(Outputs(pooled, texts.batches)), {
            "label": shown.labels,
            "text": [text[:80] for text in shown.texts],
        }

    # --- Evaluate

    def evaluate(
        self, folder: RunFolder, options: BertEvaluateOptions, step: int | None = None
    ) -> Evaluation:
        """Evaluates a run's best weights beside a linear SVM on TF-IDF."""
        return evaluate_texts(self, folder, options, step)

    # --- How sure a run is

    def judged(self, folder: RunFolder) -> keras.Model:
        return self.network(folder)

    def reader(self, folder: RunFolder, part: Rows) -> tuple[np.ndarray, certainty.Read]:
        texts = self.batch(self.open_task(folder)[0], part)
        return texts.labels, texts.read

    def fit_certainty(self, run: Run[BertClassifierSettings], splits: Mapping[Split, Rows]) -> None:
        certainty.fit(self, run, splits)

    # --- Predict and explain

    def served(self, task: ClassifierTask, model: keras.Model) -> Signature:
        inputs = text_inputs(task.config.text_b)

        def check(number: int, row: Mapping[str, Any]) -> None:
            for name in inputs:
                if not str(row[name]).strip():
                    raise UserError(f"Row {number} has an empty {name}: there is nothing to classify.")

        pack = Patterns(task) if task.config.method == "cloze" else None
        function = Classify(model, task.wordpiece, task.names, task.config.sequence_length, pack)
        # Keras' `weights` leave the states of random numbers out.
        return Signature(
            function, inputs, variables=model.weights, check=check, names=task.names, scales=SCALES
        )

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        """Says what each word of texts adds to the probability of their label."""
        task, model = self.open_model(folder)

        def claims(outputs: Mapping[str, Any]) -> list[Claim]:
            place = task.names.index(outputs["label"])
            return [Claim(outputs["label"], lambda other, _: other["probabilities"][place])]

        return explain_words(folder, self.served(task, model), inputs, claims)

    # --- Export

    def labels(self, part: Rows) -> list[str]:
        return part.labels

    def export(self, folder: RunFolder, options: BertExportOptions) -> Exported:
        if options.quantize == "int8" and folder.open_config(BertClassifierSettings).method == "cloze":
            raise UserError("quantize int8 does not go with method cloze, whose embedding is its output too.")
        return super().export(folder, options)

    def rows(self, part: Rows) -> list[dict[str, str]]:
        texts = {"text": part.texts, **({"text_b": part.texts_b} if part.texts_b else {})}
        return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]

    def model_card(
        self, folder: RunFolder, task: ClassifierTask, metrics: Mapping[str, Any], note: str
    ) -> str:
        return model_card(folder, task, metrics, note)
