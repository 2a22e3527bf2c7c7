"""`karpa-tf evaluate` of `bert-classifier`: a run beside baselines."""

from __future__ import annotations

import dataclasses
from typing import Any

from karpa_tf.data.tables import Rows, label_ids, read_groups, shared_rows
from karpa_tf.judging.by_row import ByRow, by_group, equalized_odds_gaps, of_labels
from karpa_tf.judging.classification import (
    class_table,
    classification_metrics,
    confusion,
    most_frequent_baseline,
    svm_baseline,
)
from karpa_tf.recipe import Evaluation
from karpa_tf.recipes.families import certainty, common, ensembles
from karpa_tf.recipes.families.encoders import EncoderRecipe
from karpa_tf.recipes.families.examples import Texts
from karpa_tf.reports.classification import (
    event_writer,
    format_class_table,
    format_confusions,
    write_classification,
    write_text,
)
from karpa_tf.reports.groups import format_groups, groups_markdown
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder

from . import BertClassifierSettings, BertEvaluateOptions, few
from .batches import columns_of, joined

Recipe = EncoderRecipe[BertClassifierSettings, Rows, Texts]


def evaluate_texts(
    recipe: Recipe, folder: RunFolder, options: BertEvaluateOptions, step: int | None
) -> Evaluation:
    """Evaluates a run's best weights on held-out texts.

    Texts of labels that it does not have count as unknown, where it says what is unknown.

    Args:
        recipe: of the run.
        folder: of the run.
        options: of the command.
        step: at the end of a training: the last step.

    Raises:
        UserError: the data is not what it was, or has labels that the run cannot judge.
    """
    runtime.use_threads()
    task, model = recipe.open_model(folder)
    every, known, where = recipe.held_out(folder, task, options)
    names = task.names
    rows, others = certainty.apart(model, every, names)
    label_ids(rows.labels, names, where)  # an error names this data
    texts = recipe.batch(task, rows)
    labels, answers = texts.labels, certainty.ask(model, texts.read)
    strange = None
    if len(others):
        others = dataclasses.replace(others, labels=names[:1] * len(others))
        strange = certainty.ask(model, recipe.batch(task, others).read)
    sure, beside, facts = certainty.figures(folder, labels, answers, strange)
    probabilities = answers.probabilities
    if step is not None:
        write_classification(folder.path / "validation", step, labels, probabilities, names, joined(rows))
    known_labels = label_ids(known.labels, names, task.config.data)
    metrics = classification_metrics(labels, probabilities)
    members = ensembles.beside_members(
        model, lambda m: recipe.metrics(task, Outputs(m, texts.batches), texts)
    )
    more = {**beside, **members}
    if few.has_frozen_baseline(task.config):
        more["frozen encoder"] = few.frozen_baseline(task, known, rows)

    def by_row() -> dict[str, ByRow]:
        return {"accuracy": of_labels(joined(rows), labels, probabilities, names)}

    grouped = _groups(folder, options, task.config, rows, **by_row()) if options.groups else {}
    return Evaluation(
        data=where,
        metrics={**metrics, **sure},
        baselines={
            **more,
            "tf-idf + svm": svm_baseline(joined(known), known_labels, joined(rows), labels),
            "most frequent": most_frequent_baseline(known_labels, labels),
        },
        facts={
            **facts,
            **common.kept_and_new(folder, labels, probabilities.argmax(1)),
            "rows": len(rows),
            "rows whose text is in training": shared_rows(known, rows),
            **ensembles.errors_beside(len(rows), metrics, members),
        },
        tables=[
            format_class_table(class_table(labels, probabilities, names)),
            format_confusions(confusion(labels, probabilities.argmax(1), len(names)), names),
            *([format_groups(**grouped)] if grouped else []),
        ],
        by_row=by_row,
        more={"groups": grouped} if grouped else {},
    )


def _groups(
    folder: RunFolder,
    options: BertEvaluateOptions,
    config: BertClassifierSettings,
    rows: Rows,
    accuracy: ByRow,
) -> dict[str, Any]:
    """Returns the accuracy of each group of rows, and shows it in TensorBoard."""
    groups = read_groups(options.data or config.data, columns_of(config), options.groups, rows)
    found: dict[str, Any] = {
        "column": options.groups,
        "figure": "accuracy",
        "rows": by_group(accuracy, groups),
        "gaps": equalized_odds_gaps(accuracy.truth, accuracy.answers, groups),
    }
    step = int(folder.final_metrics().get("steps", 0))
    with event_writer(folder.path / "validation"):
        write_text(step, f"groups/{options.groups}", groups_markdown(**found))
    return found
