"""`continual`: a classifier that learns tasks one after the other, from images or texts to a served model.

    karpa-tf train continual                                            digits in five pairs, replay
    karpa-tf train continual --data mnist.npz --method ewc --stream task
    karpa-tf train continual --data train.csv --preset FOLDER --tasks 7  intents

What it reaches stands in the header of default.yaml and in docs/continual.md.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from karpa_tf.data.images import Images
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import shared_rows
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.judging.continual import continual_metrics
from karpa_tf.recipe import EvaluateOptions, Evaluation, Exported, ExportOptions, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.image_export import served_pixels
from karpa_tf.recipes.families.vectors import first_encoder, read_encoder
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.continual import draw_accuracies, format_accuracies
from karpa_tf.reports.pictures import write_png
from karpa_tf.training import runtime
from karpa_tf.training.loop import Stage
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder

from . import ABOUT, ContinualSettings
from .data import check_tasks, open_data, open_other
from .judge import Judge, keep_weights, load_weights
from .methods import Learner, build_network
from .served import Trained, model_card
from .stream import deal

# What a run notes beside its labels, and what the splits are for.
_FACTS = "continual.json"
_SPLITS: dict[Split, str] = {"train": "rows to learn from", "validation": "for validation", "test": "to test"}


class Continual(Recipe[ContinualSettings]):
    """Learns tasks one after the other."""

    about = ABOUT

    # --- Train

    def train(self, run: Run[ContinualSettings]) -> dict[str, float]:
        """Trains on each task, a stage each, and returns the final figures, those on the test split."""
        config, folder = run.settings, run.folder
        encoder = first_encoder(run) if config.preset else None
        data = open_data(config, encoder)
        stream = deal(data.classes, config)
        for split, rows in data.splits.items():
            check_tasks(stream, rows, f"{config.data} ({split} split)")
        sizes = ", ".join(f"{len(data.splits[x]):,} {what}" for x, what in _SPLITS.items())
        run.say(
            *data.notes,
            f"{config.data}: {sizes}; {len(data.classes)} classes in {config.tasks} tasks, stream "
            f"{config.stream}, {config.method}; run {folder.path}",
        )
        refuse_growth(run)
        train, held_out = data.examples("train"), data.examples("validation")
        model = build_network(config, train.features.shape[1:], len(stream.names))
        learner = Learner(config, stream, train, model)
        run.begin(data.record)
        run.write_asset("labels.json", data.classes)
        facts = {"shape": train.features.shape[1:], "memory_bytes": learner.memory(), "epochs": config.epochs}
        run.write_asset(_FACTS, facts)
        run.begin_with(model)
        validation = Judge(stream, held_out, model)
        for task, classes in enumerate(stream.tasks):
            name = f"task_{task + 1}"
            if run.is_over(name):
                continue
            batches = learner.batches(task)
            few = ", ".join(classes[:5]) + (" ..." if len(classes) > 5 else "")
            run.say(f"task {task + 1} of {config.tasks} ({few}): {batches.steps_per_epoch} steps an epoch")
            run.fit(
                Stage(
                    learner.begin(task, config.epochs * batches.steps_per_epoch),
                    batches,
                    config.epochs,
                    validation=functools.partial(validation.figures, task + 1),
                    name=name,
                    own_tags=False,
                ),
                best=run.best_weights("val_accuracy", mode="max", last=True),
                shown=("accuracy",),
                unit="rows",
                units_per_step=batches.batch_size,
                lines_every=config.epochs,
                example=None if task else train.features[:1],
            )
            if run.chief:
                keep_weights(folder, task)
            learner.end(task)
        metrics = run.finish(lambda: self.evaluate(folder, EvaluateOptions(), run.steps))
        run.say(*format_accuracies(folder.final_metrics()["facts"]["accuracies"]))
        return metrics

    # --- Evaluate

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Evaluates the weights after each task on the test split, or on other data, of the tasks so far."""
        runtime.use_threads()
        trained = self.open_model(folder)
        config, stream, model = trained.config, trained.stream, trained.model
        own = open_data(config, trained.encoder)
        check_data(folder, config.data, own.record)
        if options.data:
            examples, notes = open_other(options.data, config, own.classes, trained.encoder)
            print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        else:
            examples = own.examples("test")
        where = options.data or f"{config.data} (test split)"
        check_tasks(stream, examples, where)
        judge, accuracies = Judge(stream, examples, model), []
        for task in range(len(stream.tasks)):
            load_weights(model, folder, task)
            accuracies.append(judge(task + 1))
        metrics: dict[str, float] = continual_metrics(accuracies)
        metrics["memory_bytes"] = folder.read_json(f"assets/{_FACTS}")["memory_bytes"]
        if step is not None:
            picture = draw_accuracies(accuracies)
            write_png(folder.path / "accuracies.png", picture)
            with event_writer(folder.path / "validation"):
                write_image(
                    step, "accuracies", picture, "A row after each task: the accuracy on each so far."
                )
        known = own.splits["train"]
        guess = np.bincount(stream.targets(known.labels), minlength=len(stream.names))
        return Evaluation(
            data=where,
            metrics=metrics,
            baselines={"most frequent": {"accuracy": float(np.mean(judge(len(stream.tasks), guess)))}},
            facts={
                "rows": len(examples),
                "rows that are in training": shared_rows(known, examples.rows),
                "accuracies": [[round(value, 4) for value in row] for row in accuracies],
            },
            tables=[format_accuracies(accuracies)],
        )

    # --- Predict and export

    def open_model(self, folder: RunFolder) -> Trained:
        """Returns a run with its last weights.

        Raises:
            UserError: they cannot be read.
        """
        config = folder.open_config(ContinualSettings)
        stream = deal(common.read_labels(folder, "labels.json"), config)
        with common.reading_weights(folder):
            shape = folder.read_json(f"assets/{_FACTS}")["shape"]
            model = build_network(config, shape, len(stream.names))
            model.load_weights(folder.best_weights)
        return Trained(config, stream, model, read_encoder(folder, config) if config.preset else None)

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what answers images or texts, as `predict` calls it and `export` writes it."""
        return self.open_model(folder).signature()

    def export(self, folder: RunFolder, options: ExportOptions) -> Exported:
        """Writes the next version of `savedmodels/continual`."""
        trained = self.open_model(folder)
        metrics = common.learned_or_refuse(folder, "accuracy", "most frequent", options.force)
        rows = open_data(trained.config, trained.encoder).splits["validation"]
        if isinstance(rows, Images):
            examples: list[dict[str, Any]] = [{"image": image.tolist()} for image in served_pixels(rows)[:4]]
        else:
            examples = [{"text": text} for text in rows.texts[:4]]
        return common.export(
            folder,
            options,
            trained.signature(),
            examples=examples,
            assets={"labels.txt": "".join(f"{' '.join(name.split())}\n" for name in trained.stream.names)},
            model_card=model_card(folder, trained, metrics),
        )


def refuse_growth(run: Run[ContinualSettings]) -> None:
    """Raises a UserError if a run is to go on with more epochs: the tasks behind it had fewer."""
    path = run.folder.assets / _FACTS
    if (
        run.resume
        and path.exists()
        and (had := run.folder.read_json(f"assets/{_FACTS}")["epochs"]) != (now := run.settings.epochs)
    ):
        raise UserError(
            f"--epochs are those of every task, and {run.folder.path} began with {had}: train a new run. "
            f"Received: {now}."
        )
