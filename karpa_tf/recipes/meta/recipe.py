"""`meta`: meta-learning, from tasks to a served model that learns a task of each request.

    karpa-tf train meta                                                  sinusoids, MAML
    karpa-tf train meta --data glyphs --algorithm protonet --shots 1     letters of scripts never seen
    karpa-tf train meta --data omniglot.zip --shots 1                    alphabets never seen
    karpa-tf train meta --data train.csv --preset FOLDER                 labels never seen, on a BERT

What it reaches stands in the header of each YAML file beside this one, and in docs/meta.md. The
algorithms are those of `karpa_tf.meta`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation
from karpa_tf.export.signature import Signature
from karpa_tf.judging.by_row import of_values
from karpa_tf.judging.few_shot import Predict, few_shot_metrics, score
from karpa_tf.meta.step import MetaStep
from karpa_tf.meta.tasks import Tasks, task_batches
from karpa_tf.recipe import Evaluation, Exported, ExportOptions, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.vectors import first_encoder, read_encoder
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.few_shot import draw_fit, draw_task
from karpa_tf.training import runtime
from karpa_tf.training.loop import Stage
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay

from . import ABOUT, MetaEvaluateOptions, MetaSettings
from .comparison import answer, baselines
from .data import TEST_SEED, VALIDATION_SEED, class_count, describe, open_tasks, same_tasks
from .exporting import Trained, model_card, rows, signature
from .network import make_algorithm

_AUGMENTATION = Augmentation(shift=2, rotate=12.0, scale=0.15, shear=0.2)
# After these numbers of steps on a task a run is evaluated.
_STEPS = (0, 1, 5, 10)
# By how much an export may differ from the model in Python: each step on a task enlarges what rounding does.
_TOLERANCE = 1e-3
# Validation tasks that TensorBoard's figures by steps are of, and how many of them it shows.
_SHOWN, _PICTURES = 100, 3


class Meta(Recipe[MetaSettings]):
    """Learns to learn from few examples."""

    about = ABOUT

    # --- Train

    def train(self, run: Run[MetaSettings]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures, those on tasks of classes never seen."""
        config, folder = run.settings, run.folder
        config.fill()
        encoder = first_encoder(run) if config.kind == "texts" else None
        data = open_tasks(config, encoder)
        run.begin(data.record)
        run.say(*data.notes, describe(data, config), f"run {folder.path}")
        tasks = data.splits["train"]
        asset = {"shape": tasks.shape, "outputs": tasks.outputs, "inverted": data.inverted}
        run.write_asset("tasks.json", {**asset, "framed": config.framed})
        every = min(config.evaluate_every, config.iterations)
        epochs = -(-config.iterations // every)
        algorithm = make_algorithm(config, tasks.shape, tasks.outputs)
        run.begin_with(algorithm.learner)
        rate = WarmupThenDecay(config.learning_rate, epochs * every, warmup=0.0)
        step = MetaStep(algorithm, AdamW(rate, weight_decay=0.0, global_clipnorm=10.0))
        batches = task_batches(
            tasks,
            meta_batch=config.meta_batch,
            shots=config.shots,
            queries=config.queries,
            seed=config.seed,
            steps_per_epoch=every,
            augmentation=_AUGMENTATION if config.augment and config.kind == "images" else None,
        )
        held_out = same_tasks(data.splits["validation"], config, config.validation_tasks, VALIDATION_SEED)
        predict = answer(algorithm, [config.served_steps])

        def validation() -> dict[str, float]:
            metric, scores = score(held_out, {"": predict})
            return {metric: float(scores[""].mean())}

        metric = "accuracy" if tasks.ways else "mse"
        run.fit(
            Stage(step, batches, epochs, validation=validation),
            best=run.best_weights(f"val_{metric}", mode="max" if tasks.ways else "min"),
            shown=("accuracy",) if tasks.ways else (),
            unit="tasks",
            units_per_step=config.meta_batch,
            period="evaluation",
        )
        return run.finish(lambda: self.evaluate(folder, MetaEvaluateOptions(), run.steps))

    # --- Evaluate

    def evaluate(
        self, folder: RunFolder, options: MetaEvaluateOptions, step: int | None = None
    ) -> Evaluation:
        """Evaluates a run's best weights on tasks of classes that training has not seen; so are baselines."""
        runtime.use_threads()
        trained = self.open_model(folder)
        config, algorithm = trained.config, trained.algorithm
        config.shots = options.shots or config.shots
        own = open_tasks(config, trained.encoder)
        check_data(folder, config.data, own.record)
        data = own
        if options.data:
            data = open_tasks(config, trained.encoder, options.data)
            for note in data.notes:
                print(note, file=sys.stderr)
        tasks = data.splits["test"]
        batches = same_tasks(tasks, config, options.tasks, TEST_SEED)
        steps = sorted({*_STEPS, config.served_steps}) if config.served_steps else [0]
        predict = answer(algorithm, steps)
        predictors = {"": predict, **baselines(folder, config, own)}
        metric, scores = score(batches, predictors)
        found = scores.pop("")
        # First the figures after as many steps as are served.
        metrics = few_shot_metrics(metric, found[steps.index(config.served_steps)])
        if len(steps) > 1:
            metrics |= {k: v for k, v in few_shot_metrics(metric, found, steps).items() if "_after_" in k}
        compared = {
            name: few_shot_metrics(metric, values[0] if values.ndim == 2 else values)
            for name, values in scores.items()
        }
        if tasks.ways:
            compared["guessing"] = {"accuracy": 1 / tasks.ways}
        if step is not None:
            self._show(folder, step, config, steps, predict, own.splits["validation"])
        where = f"{options.data or config.data} (test {'classes' if tasks.ways else 'tasks'})"
        return Evaluation(
            data=where,
            metrics=metrics,
            baselines=compared,
            facts={"tasks": options.tasks, "ways": tasks.ways, "shots": config.shots, **class_count(tasks)},
            by_row=lambda: {
                metric: of_values(
                    [f"task {number}" for number in range(1, options.tasks + 1)],
                    found[steps.index(config.served_steps)],
                    lower=metric == "mse",
                )
            },
        )

    def _show(
        self,
        folder: RunFolder,
        step: int,
        config: MetaSettings,
        steps: Sequence[int],
        predict: Predict,
        tasks: Tasks,
    ) -> None:
        """Writes pictures of tasks, and the figures by the steps on a task, for TensorBoard."""
        batches = same_tasks(tasks, config, _SHOWN, VALIDATION_SEED)
        answers = np.asarray(predict(*batches[0][:3]))
        with event_writer(folder.path / "validation"):
            for number, (support, labels, query, truth) in enumerate(zip(*batches[0], strict=True)):
                if number == _PICTURES or config.kind == "texts":
                    break
                if config.kind == "images":
                    found = answers[list(steps).index(config.served_steps), number].argmax(-1)
                    picture = draw_task(support, labels, query, truth, found)
                else:
                    fits = {made: answers[i, number, :, 0] for i, made in enumerate(steps)}
                    picture = draw_fit((support[:, 0], labels[:, 0]), (query[:, 0], truth[:, 0]), fits)
                write_image(step, f"task_{number + 1}", picture)
        metric, scores = score(batches, {"": predict})
        with event_writer(folder.path / "steps_on_a_task"):
            for made, values in zip(steps, np.atleast_2d(scores[""]), strict=True):
                tf.summary.scalar(f"steps_on_a_task/{metric}", float(values.mean()), made)

    # --- Predict and export

    def open_model(self, folder: RunFolder) -> Trained:
        """Returns a run with its best weights.

        Raises:
            UserError: they cannot be read.
        """
        config: Any = folder.open_config(self.about.settings)
        with common.reading_weights(folder):
            tasks = folder.read_json("assets/tasks.json")
            # Runs that were trained before there was such a setting have none of it.
            config.frame = tasks.get("framed", False)
            algorithm = make_algorithm(config, tuple(tasks["shape"]), tasks["outputs"])
            algorithm.learner.load_weights(folder.best_weights)
        encoder = read_encoder(folder, config) if config.kind == "texts" else None
        return Trained(config, algorithm, tasks["inverted"], encoder)

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what learns tasks and answers queries, as `predict` calls it and `export` writes it."""
        return signature(self.open_model(folder))

    def export(self, folder: RunFolder, options: ExportOptions) -> Exported:
        """Writes the next version of `savedmodels/meta`."""
        trained = self.open_model(folder)
        config = trained.config
        if config.kind == "sinusoids":
            metrics = common.learned_or_refuse(
                folder, "mse", "mean of the support set", options.force, smaller=True
            )
        else:
            metrics = common.learned_or_refuse(folder, "accuracy", "guessing", options.force)
        return common.export(
            folder,
            options,
            signature(trained),
            examples=rows(trained),
            model_card=model_card(folder, trained, metrics),
            tolerance=_TOLERANCE,
        )
