"""`meta`: meta-learning, from tasks to a served model that learns a task of each request.

    karpa-tf train meta                                                  sinusoids, MAML
    karpa-tf train meta --data glyphs --algorithm protonet --shots 1     letters of scripts never seen
    karpa-tf train meta --data omniglot.zip --shots 1                    alphabets never seen
    karpa-tf train meta --data train.csv --preset FOLDER                 labels never seen, on a BERT

What it reaches stands in the header of each YAML file beside this one, and in docs/meta.md. The
algorithms are those of `karpa_tf.meta`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation
from karpa_tf.data.tables import Columns
from karpa_tf.export.signature import Signature
from karpa_tf.judging.few_shot import (
    Predict,
    best_setting,
    few_shot_metrics,
    logistic_regression,
    nearest_centroid,
    score,
)
from karpa_tf.meta.algorithm import Algorithm
from karpa_tf.meta.classes import ClassTasks
from karpa_tf.meta.images import open_image_tasks
from karpa_tf.meta.maml import MAML
from karpa_tf.meta.pretraining import pretrain, with_new_head
from karpa_tf.meta.sinusoids import open_sinusoids
from karpa_tf.meta.step import MetaStep
from karpa_tf.meta.tasks import TaskData, Tasks, task_batches
from karpa_tf.meta.texts import open_text_tasks
from karpa_tf.recipe import Evaluation, Exported, ExportOptions, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.few_shot import draw_fit, draw_task
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.training import runtime
from karpa_tf.training.loop import Stage
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.step import TracedByShape

from . import ABOUT, MetaEvaluateOptions, MetaSettings
from .encoder import Encoder, first_encoder, read_encoder
from .network import build_network, make_algorithm
from .served import signature_of

_AUGMENTATION = Augmentation(shift=2, rotate=12.0, scale=0.15, shear=0.2)
# After these numbers of steps on a task a run is evaluated.
_STEPS = (0, 1, 5, 10)
# Tasks of a batch in evaluation, and the seeds of what is drawn there: no training draws the same.
_AT_ONCE = 20
_VALIDATION_SEED, _TEST_SEED = 2**31, 2**31 + 1
# By how much an export may differ from the model in Python: each step on a task enlarges what rounding does.
_TOLERANCE = 1e-3
# Validation tasks that TensorBoard's figures by steps are of, and how many of them it shows.
_SHOWN, _PICTURES = 100, 3
# Points of a sinusoid that an evaluation asks for.
_POINTS = 100
# Rates that the pretrained network is fine-tuned with; the best on validation tasks is taken.
_RATES = (0.001, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Trained:
    """A run with its best weights."""

    config: MetaSettings
    algorithm: Algorithm
    inverted: bool
    encoder: Encoder | None


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
        run.say(*data.notes, *_describe(data, config), f"run {folder.path}")
        tasks = data.splits["train"]
        run.write_asset(
            "tasks.json", {"shape": tasks.shape, "outputs": tasks.outputs, "inverted": data.inverted}
        )
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
        held_out = _batches(data.splits["validation"], config, config.validation_tasks, _VALIDATION_SEED)
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
        batches = _batches(tasks, config, options.tasks, _TEST_SEED)
        steps = sorted({*_STEPS, config.served_steps}) if config.served_steps else [0]
        predictors = {"": answer(algorithm, steps)}
        known = own.splits["train"]
        if tasks.ways:
            predictors["nearest centroid"] = nearest_centroid()
            predictors["logistic regression"] = logistic_regression()
        else:
            predictors["mean of the support set"] = lambda _, labels, query: np.broadcast_to(
                np.mean(labels, 1, keepdims=True), (*query.shape[:2], tasks.outputs)
            )
        if config.baseline_steps:
            model = self._pretrained(folder, config, known)
            validation = _batches(own.splits["validation"], config, 60, _VALIDATION_SEED)
            fine_tune = _fine_tuning(model)
            rate = best_setting(validation, fine_tune, _RATES)
            predictors[f"pretrained, fine-tuned ({_STEPS[-1]} steps)"] = fine_tune(rate)
            if tasks.ways:
                features = keras.Model(model.input, model.layers[-1].input)
                predictors["pretrained, logistic regression"] = logistic_regression(
                    lambda examples: features(examples).numpy()
                )
        metric, scores = score(batches, predictors)
        metrics = _metrics(metric, scores.pop(""), steps, config.served_steps)
        baselines = {
            name: few_shot_metrics(metric, values[0] if values.ndim == 2 else values)
            for name, values in scores.items()
        }
        if tasks.ways:
            baselines["guessing"] = {"accuracy": 1 / tasks.ways}
        if step is not None:
            self._show(folder, step, config, steps, predictors[""], own.splits["validation"])
        where = f"{options.data or config.data} (test {'classes' if tasks.ways else 'tasks'})"
        return Evaluation(
            data=where,
            metrics=metrics,
            baselines=baselines,
            facts={"tasks": options.tasks, "ways": tasks.ways, "shots": config.shots, **_sizes(tasks)},
        )

    def _pretrained(self, folder: RunFolder, config: MetaSettings, known: Tasks) -> keras.Model:
        """Returns the same network, trained in the ordinary way; a run does that once."""
        body = build_network(config, known.shape, 0 if known.ways else known.outputs)
        path = folder.assets / "pretrained.weights.h5"
        if not path.exists():
            model = pretrain(body, known, steps=config.baseline_steps, seed=config.seed)
            model.save_weights(path)
            return model
        model = with_new_head(body, known)
        with common.reading_weights(folder):
            model.load_weights(path)
        return model

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
        batches = _batches(tasks, config, _SHOWN, _VALIDATION_SEED)
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
            algorithm = make_algorithm(config, tuple(tasks["shape"]), tasks["outputs"])
            algorithm.learner.load_weights(folder.best_weights)
        encoder = read_encoder(folder, config) if config.kind == "texts" else None
        return Trained(config, algorithm, tasks["inverted"], encoder)

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what learns tasks and answers queries, as `predict` calls it and `export` writes it."""
        return _signature(self.open_model(folder))

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
            _signature(trained),
            examples=_rows(trained),
            model_card=self.model_card(folder, trained, metrics),
            tolerance=_TOLERANCE,
        )

    def model_card(self, folder: RunFolder, trained: Trained, metrics: Mapping[str, Any]) -> str:
        config = trained.config
        metric = "mse" if config.kind == "sinusoids" else "accuracy"
        steps = f"{config.served_steps} gradient steps" if config.served_steps else "prototypes"
        if metric == "mse":
            task = f"{config.shots} points of a sinusoid"
            served = """- in: `support` and `targets` float32 [t, k, 1], `query` float32 [t, n, 1]
- out: `prediction` float32 [t, n, 1]"""
        else:
            task = f"{config.shots} examples of each of {config.ways} classes"
            kind = "string [t, k]" if config.kind == "texts" else "float32 [t, k, height, width], 0 to 255"
            same = kind.replace("k", "n", 1)
            served = f"""- in: `support` {kind}; `labels` string [t, k], any words ("": padding);
  `query` {same}
- out: `label` string [t, n]; `probabilities` float32 [t, n, ways], in the order of `classes`
  string [t, ways]"""
        return f"""# {folder.recipe}

Learns a task from the examples in the request itself, by {steps}, and answers its queries.
Trained on tasks of {config.data} by {config.algorithm}: {task}.

A request brings t tasks, with k examples to learn from and n queries each:

{served}

On {metrics["facts"]["tasks"]} tasks of classes that training has not seen:

{metrics_table(metrics, [metric, f"{metric}_ci95"])}

{settings_list(folder.read_config())}
"""


# --- Tasks ----------------------------------------------------------------------------------------


def open_tasks(config: MetaSettings, encoder: Encoder | None, other: str = "") -> TaskData:
    """Opens the tasks of a run, or those of other data, to evaluate on.

    Args:
        config: of the run.
        encoder: of texts.
        other: the other data.
    """
    if config.kind == "sinusoids":
        return open_sinusoids()
    size: dict[str, Any] = {"ways": config.ways, "shots": config.shots, "queries": config.queries}
    size["only_test"] = bool(other)
    if encoder:
        columns = Columns(config.text, config.label, "")
        return open_text_tasks(other or config.data, encoder.embed, columns, **size)
    return open_image_tasks(
        other or config.data,
        size=config.image_size,
        channels=3 if config.color else 1,
        rotations=config.rotations,
        **size,
    )


def _batches(tasks: Tasks, config: MetaSettings, count: int, seed: int) -> list[Sequence[np.ndarray]]:
    """Returns always the same tasks, in batches."""
    queries = config.queries if tasks.ways else _POINTS
    sizes = [min(_AT_ONCE, count - begin) for begin in range(0, count, _AT_ONCE)]
    return [
        tasks.sample(np.random.default_rng((seed, number)), size, shots=config.shots, queries=queries)
        for number, size in enumerate(sizes)
    ]


def _describe(data: TaskData, config: MetaSettings) -> list[str]:
    algorithm = f"{config.algorithm}, {config.iterations:,} updates of {config.meta_batch} tasks"
    if config.kind == "sinusoids":
        return [f"{config.data}: {config.shots} points each; {algorithm}"]
    sizes = ", ".join(
        f"{size} to {purpose}"
        for size, purpose in zip(
            (_sizes(data.splits[split])["classes"] for split in ("train", "validation", "test")),
            ("train on", "validate on", "test on"),
            strict=True,
        )
    )
    return [f"{config.data}: {config.ways} ways, {config.shots} shots; classes: {sizes}; {algorithm}"]


def _sizes(tasks: Tasks) -> dict[str, int]:
    return {"classes": len(tasks.classes)} if isinstance(tasks, ClassTasks) else {}


# --- Answers --------------------------------------------------------------------------------------


def answer(algorithm: Algorithm, steps: Sequence[int]) -> Predict:
    """Returns what answers queries after numbers of steps on a task; traced once a shape."""

    predict = TracedByShape(tf.function(functools.partial(algorithm.predict, steps=steps), autograph=False))
    return lambda *task: predict(*map(tf.constant, task)).numpy()


def _fine_tuning(model: keras.Model) -> Callable[[float], Predict]:
    """Returns what makes of a rate the fine-tuning of a network on each task; traced once for all rates."""
    variable = tf.Variable(0.0)
    answers = answer(MAML(model, inner_rate=variable), _STEPS[-1:])

    def make(rate: float) -> Predict:
        def predict(*task: Any) -> np.ndarray:
            variable.assign(rate)
            return answers(*task)

        return predict

    return make


def _metrics(metric: str, scores: np.ndarray, steps: Sequence[int], served: int) -> dict[str, float]:
    """Returns the figures: first those after as many steps as are served."""
    first = few_shot_metrics(metric, scores[steps.index(served)])
    return (
        first
        if len(steps) == 1
        else {
            **first,
            **{
                name: value
                for name, value in few_shot_metrics(metric, scores, steps).items()
                if "_after_" in name
            },
        }
    )


def _signature(trained: Trained) -> Signature:
    config = trained.config
    read: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    variables = list(trained.algorithm.learner.weights)
    if trained.encoder:
        spec = tf.TensorSpec([None, None], tf.string)
        read = trained.encoder
        variables += trained.encoder.model.weights
    elif config.kind == "images":
        size = [config.image_size] * 2 + [3] * config.color
        spec = tf.TensorSpec([None, None, *size], tf.float32)
        read = functools.partial(_pixels, grey=not config.color, inverted=trained.inverted)
    else:
        spec = tf.TensorSpec([None, None, 1], tf.float32)
    return signature_of(
        trained.algorithm,
        read,
        spec,
        variables=variables,
        steps=config.served_steps,
        ways=0 if config.kind == "sinusoids" else config.ways,
    )


def _pixels(images: tf.Tensor, grey: bool, inverted: bool) -> tf.Tensor:
    """Returns images of 0 to 255 as the network was trained on them."""
    images = images / 255.0
    if inverted:
        images = 1.0 - images
    return images[..., None] if grey else images


def _rows(trained: Trained) -> list[dict[str, Any]]:
    """Returns tasks to try an export with."""
    config = trained.config
    rng = np.random.default_rng(_VALIDATION_SEED)
    if config.kind == "texts":
        texts = ["a cup of tea", "tea, please", "where is the train?", "a ticket to Ghent"]
        row = {"support": texts, "labels": ["drink", "drink", "travel", "travel"]}
        other = {"support": ["日本", "Ça va naïve", "tea", "🙂"], "labels": ["a", "b", "b", ""]}
        query = ["a cup of coffee", "when does it leave?"]
        return [{**row, "query": query}, {**other, "query": query}]
    data = open_tasks(config, None)
    batch = data.splits["validation"].sample(rng, 4, shots=config.shots, queries=min(config.queries, 3))
    return [_row(trained, *values) for values in zip(*batch[:3], strict=True)]


def _row(trained: Trained, support: np.ndarray, labels: np.ndarray, query: np.ndarray) -> dict[str, Any]:
    """Returns a task as a request has it."""
    if trained.config.kind == "sinusoids":
        return {"support": support.tolist(), "targets": labels.tolist(), "query": query.tolist()}

    def pixels(images: np.ndarray) -> list[Any]:
        images = 255 * (1 - images if trained.inverted else images)
        return (images if trained.config.color else images[..., 0]).tolist()

    names = [f"class {label}" for label in labels]
    return {"support": pixels(support), "labels": names, "query": pixels(query)}
