"""What the recipes of images share, whatever the network: data, training, evaluating.

Explaining stands in `image_explain.py`, exporting in `image_export.py`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation, image_batches
from karpa_tf.data.images import ImageData, Images, label_places, open_images, open_test_images, read_image
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import grouped, label_ids, shared_rows
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.judging.attacks import Attack, parse_attack
from karpa_tf.judging.by_row import of_labels
from karpa_tf.judging.classification import (
    class_table,
    classification_metrics,
    confusion,
    most_confident_errors,
    most_frequent_baseline,
    pixel_baselines,
)
from karpa_tf.recipe import Evaluation, ExplainOptions, Explanation, Exported, PredictOptions, Recipe
from karpa_tf.recipes.families import averages, certainty, common, ensembles, folds
from karpa_tf.recipes.families.image_explain import explain_images
from karpa_tf.recipes.families.image_export import export_images, served_pixels, validation_rows
from karpa_tf.recipes.families.pruned import remove_units
from karpa_tf.recipes.families.recognize import AT_ONCE, Logits, Trained, image_input, with_flip
from karpa_tf.recipes.families.rehearsal import rehearse
from karpa_tf.recipes.families.settings import ImageEvaluateOptions, ImageExportOptions, ImageSettings
from karpa_tf.recipes.families.teaching import Teacher
from karpa_tf.reports.classification import (
    event_writer,
    format_class_table,
    format_confusions,
    write_classification,
    write_image,
)
from karpa_tf.reports.pictures import error_grid, sample_grid, write_png
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.distillation import Distillation, TaughtRows
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import SGD, AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder, open_run, resolve_init
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep

S = TypeVar("S", bound=ImageSettings)

TRAINING_METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}
# Images that the projector shows.
_PROJECTED = 1000
# Training images that the channels' means and the whitened patches are taken from.
_MEASURED = 5000
# Images that are attacked at most, evenly spaced: each takes as long as dozens of predictions.
_ATTACKED = 1000
# Training images, at least, that the training accuracy of the best weights is taken on.
_OF_TRAINING = 5000


class ImageRecipe(Recipe[S]):
    """A recipe that recognizes images; a subclass makes the network."""

    # Of an image: 1 or 3.
    channels: ClassVar[int]

    @abstractmethod
    def build(self, config: S, shape: tuple[int, int, int], classes: int, **common: Any) -> keras.Model:
        """Makes the network: images of that shape to logits, by a layer of that name.

        Args:
            config: of the run.
            shape: height, width, channels.
            classes: how many.
            common: `mean` and `deviation` of each channel, and the `dtype`, as `karpa_tf.models` take them.
        """

    def initialize(self, model: keras.Model, images: np.ndarray) -> None:
        """Sets what a new network takes from training images, float32 (n, height, width, channels)."""

    def for_int8(self, model: keras.Model) -> keras.Model:
        """Returns a trained network of the same outputs that loses less by rounding."""
        return model

    def parent_to_cut(self, run: Run[S]) -> keras.Model | None:
        """Returns the network of which a run removes neurons, and sets the sizes of its own; None: none."""
        return None

    # --- Data and model

    def open_data(self, config: ImageSettings) -> ImageData:
        """Returns the images that the settings name, split, with folds for the fold of the run."""
        data = open_images(
            config.data,
            size=config.image_size,
            channels=self.channels,
            **folds.held_out_shares(config),
            broken=config.broken,
        )
        splits = folds.hold_out_fold(config, data.splits, data.brings_test, grouped, Images.take)
        data = dataclasses.replace(data, splits=splits)
        return rehearse(self.open_data, config, data, grouped, Images.take, Images.join)

    def open_model(self, folder: RunFolder) -> Trained:
        """Returns a run with its best weights.

        Raises:
            UserError: they cannot be read.
        """
        config: Any = folder.open_config(self.about.settings)
        names = common.read_labels(folder, "labels.json")
        if config.ensemble:  # its members see mirror images themselves
            model = ensembles.open_ensemble(self, folder)
            return Trained(dataclasses.replace(config, test_flip=False), names, model, folder)
        shape = (config.image_size, config.image_size, self.channels)
        with common.reading_weights(folder):
            measured = folder.read_json("assets/images.json")
            mean, deviation = measured["mean"], measured["deviation"]
            model = self.build(config, shape, len(names), mean=mean, deviation=deviation, dtype="float32")
            model.load_weights(folder.best_weights)
        return Trained(config, names, model, folder)

    # --- Ensembles

    def reads(self, folder: RunFolder) -> dict[str, Any]:
        return {"image_size": folder.open_config(self.about.settings).image_size}  # type: ignore[attr-defined]

    def member(self, folder: RunFolder) -> keras.Model:
        return self.open_model(folder).served

    def validation(self, folder: RunFolder) -> ensembles.Labelled:
        config: Any = folder.open_config(self.about.settings)
        part = self.open_data(config).splits["validation"]
        labels = label_ids(part.labels, common.read_labels(folder, "labels.json"), config.data)
        return lambda model: (labels, Logits(model, part.pixels).probabilities())

    # --- How sure a run is

    def judged(self, folder: RunFolder) -> keras.Model:
        return self.open_model(folder).judged

    def reader(self, folder: RunFolder, part: Images) -> tuple[np.ndarray, certainty.Read]:
        names = common.read_labels(folder, "labels.json")
        return label_ids(part.labels, names), lambda model: Logits(model, part.pixels)()

    def fit_certainty(self, run: Run[S], splits: Mapping[Split, Images]) -> None:
        certainty.fit(self, run, splits)

    # --- Averages

    def network(self, folder: RunFolder) -> keras.Model:
        return self.open_model(folder).model

    def rows_of(self, folder: RunFolder, model: keras.Model) -> averages.Rows:
        config: Any = folder.open_config(self.about.settings)
        data, names = self.open_data(config), common.read_labels(folder, "labels.json")

        def figures(on: str) -> Callable[[], dict[str, float]]:
            if on in ("validation", "test"):
                images = data.splits["validation" if on == "validation" else data.held_out]
            else:
                size = {"size": config.image_size, "channels": self.channels}
                images, _ = open_test_images(on, **size, broken=config.broken)
            labels, _ = label_places(images, names, on)
            found = Logits(with_flip(model) if config.test_flip else model, images.pixels)
            return lambda: classification_metrics(labels, found.probabilities())

        pixels = data.splits["train"].pixels
        batches = image_batches(
            pixels,
            np.zeros(len(pixels), np.int32),
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=augmentation(config),
        )
        count = min(batches.steps_per_epoch, -(-_MEASURED // config.batch_size))
        return averages.Rows(data, figures, batches.dataset(0, count).map(lambda images, *_: images))

    # --- Train

    def train(self, run: Run[S]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures, those of the test split."""
        config, folder = run.settings, run.folder
        if config.ensemble:
            return ensembles.join(self, run)
        if config.average:
            return averages.average(self, run)
        resolve_init(config, folder.path.parent.parent)
        parent = self.parent_to_cut(run)
        data = self.open_data(config)
        names, images = common.labels_in_order(config, data.labels, folder.recipe), data.splits
        shrunk = folds.shrink_batch(config, len(images["train"]), run.strategy.num_replicas_in_sync)
        run.say(
            *data.notes,
            shrunk,
            f"{config.data}: {len(images['train']):,} images to learn from, {len(images['validation']):,} "
            f"for validation, {len(images['test']):,} to test; {len(names)} classes; run {folder.path}",
            folds.thin_test(config, len(images["test"]), images["test"].labels, names, data.brings_test),
        )
        certainty.refuse_few(config, images["validation"])
        run.begin(dataclasses.replace(data.record, labels=names))
        labels = {split: label_ids(images[split].labels, names, config.data) for split in images}
        pixels = images["train"].pixels
        distillation = teach_images(run, pixels, labels["train"], names) if config.teacher else None
        written = distillation and isinstance(distillation.lesson, TaughtRows)
        batches = image_batches(
            pixels,
            np.arange(len(pixels)) if written else labels["train"],
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=augmentation(config),
        )
        mean, deviation = measure_or_take_over(run, pixels)
        run.write_asset("labels.json", names)
        run.write_asset("images.json", {"mean": mean, "deviation": deviation})

        weights = None
        if parent is not None and not run.goes_on:
            weights = remove_units(run, parent, batches, {"neurons": getattr(config, "prune_neurons", 0.0)})
        with run.strategy.scope():
            standard: dict[str, Any] = {"mean": mean, "deviation": deviation, "dtype": config.precision}
            model = self.build(config, pixels.shape[1:], len(names), **standard)
            measured = pixels[:: max(1, len(pixels) // _MEASURED)].astype(np.float32)
            self.initialize(model, (measured - mean) / np.array(deviation, np.float32))
            if parent is None:
                common.begin_with_labels(run, model, names, self.network)
            elif weights is not None:
                run.begin_with(model, weights)
            optimizer = make_optimizer(config, model, config.epochs * batches.steps_per_epoch)
            model.compile(optimizer, SparseCrossEntropy(label_smoothing=config.label_smoothing))
        parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        run.say(
            f"{model.name}: {parameters:,} parameters; {batches.steps_per_epoch} steps an epoch; "
            f"{config.precision}, {runtime.usable_cores()} cores"
        )
        held_out = Logits(with_flip(model) if config.test_flip else model, images["validation"].pixels)

        def validation() -> dict[str, float]:
            return classification_metrics(labels["validation"], held_out.probabilities())

        def projector() -> tuple[np.ndarray, Labels]:
            shown = images["validation"].take(range(min(_PROJECTED, len(images["validation"]))))
            inner = keras.Model(model.input, model.get_layer("logits").input)
            return Logits(inner, shown.pixels)(), {"label": shown.labels, "image": shown.names}

        attack = training_attack(model, config)
        sparsity = common.make_sparsity(run, model, batches)
        step = SupervisedStep(
            model,
            TRAINING_METRICS,
            accumulate=config.accumulate,
            attack=attack,
            sparsity=sparsity,
            distillation=distillation,
        )
        first = next(iter(batches.dataset(0, 1)))[0]
        run.fit(
            Stage(step, batches, config.epochs, validation=validation),
            best=run.best_weights(
                "val_accuracy",
                mode="max",
                patience=config.patience,
                last=config.keep == "last",
                after=sparsity.first_epoch(batches.steps_per_epoch) if sparsity else 0,
            ),
            shown=("accuracy",),
            units_per_step=config.batch_size,
            images={"augmented": lambda: sample_grid(first.numpy()[:64])},
            example=first,
            projector=projector,
        )
        options: Any = self.about.evaluate()

        def evaluate() -> Evaluation:
            self.fit_certainty(run, images)
            return self.evaluate(folder, options, run.steps)

        return run.finish(evaluate)

    # --- Evaluate

    def evaluate(
        self, folder: RunFolder, options: ImageEvaluateOptions, step: int | None = None
    ) -> Evaluation:
        """Recognizes the test split, or other data, and the same changed by an attack; so do baselines.

        A run without a test split is evaluated on validation.
        """
        against = parse_attack(options.attack, options.epsilon)
        runtime.use_threads()
        trained = self.open_model(folder)
        config, names, model = trained.config, trained.names, trained.served
        own = self.open_data(config)
        check_data(folder, config.data, own.record)
        notes: list[str] = []
        if options.data:
            size = {"size": config.image_size, "channels": self.channels}
            images, notes = open_test_images(options.data, **size, broken=config.broken)
            where = options.data
        else:
            images, where = own.splits[own.held_out], f"{config.data} ({own.held_out} split)"
        images, others = certainty.apart(model, images, names)
        labels, note = label_places(images, names, where)
        for line in filter(None, (*notes, note)):
            print(line, file=sys.stderr)
        answers = certainty.ask(model, lambda m: Logits(m, images.pixels)())
        strange = certainty.ask(model, lambda m: Logits(m, others.pixels)()) if len(others) else None
        probabilities = answers.probabilities
        sure, beside, facts = certainty.figures(folder, labels, answers, strange)
        metrics = classification_metrics(labels, probabilities)
        members = ensembles.beside_members(
            model, lambda m: classification_metrics(labels, Logits(m, images.pixels).probabilities())
        )
        training = own.splits["train"]
        training_labels = label_ids(training.labels, names, config.data)
        evaluation = Evaluation(
            data=where,
            metrics={**metrics, **sure},
            baselines={
                **beside,
                **members,
                **pixel_baselines(training.pixels, training_labels, images.pixels, labels),
                "most frequent": most_frequent_baseline(training_labels, labels),
            },
            facts={
                **facts,
                **common.kept_and_new(folder, labels, probabilities.argmax(1)),
                "images": len(images),
                "images that are in training": shared_rows(training, images),
                **ensembles.errors_beside(len(images), metrics, members),
            },
            tables=[
                format_class_table(class_table(labels, probabilities, names)),
                format_confusions(confusion(labels, probabilities.argmax(1), len(names)), names),
            ],
            by_row=lambda: {"accuracy": of_labels(images.names, labels, probabilities, names)},
        )
        if against:
            every = -(-len(images) // _ATTACKED)
            attacked = labels[::every]
            found = attacked_classes(model, images.pixels[::every], attacked, against)
            evaluation.metrics["robust_accuracy"] = float((found == attacked).mean())
            evaluation.facts["attack"] = (
                f"{against.kind}, epsilon {against.epsilon:g}/255, {against.steps} steps, "
                f"{len(attacked)} images"
            )
        if step is not None:
            reports = folder.path / "validation"
            write_classification(reports, step, labels, probabilities, names, images.names)
            grid = errors_picture(images, labels, probabilities, names)
            write_png(folder.path / "errors.png", grid)
            with event_writer(reports):
                about = "The most confident errors: true -> predicted, probability."
                write_image(step, "errors_grid", grid, about)
            sample = slice(None, None, max(1, len(training) // _OF_TRAINING))
            classes = Logits(model, training.pixels[sample])().argmax(axis=1)
            evaluation.metrics["training_accuracy"] = float((classes == training_labels[sample]).mean())
        return evaluation

    # --- Predict, explain, export

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns the network of a run, as `predict` calls it and `export` writes it: in float32."""
        return self.open_model(folder).signature()

    def served_rows(self, folder: RunFolder, count: int) -> dict[str, np.ndarray]:
        """Returns held-out images, evenly spaced."""
        data = self.open_data(self.open_model(folder).config)
        pixels = served_pixels(data.splits[data.held_out])
        return {"image": pixels[:: -(-len(pixels) // count)].astype(np.float32)}

    def validation_rows(self, folder: RunFolder) -> tuple[dict[str, np.ndarray], list[str]]:
        return validation_rows(self.open_data(self.open_model(folder).config))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        """Says what in images speaks for the label that a run gives them: integrated gradients.

        The images are files, or the names of held-out ones; if none is named, the first ones of the test
        split.
        """
        runtime.use_threads()
        trained = self.open_model(folder)
        if inputs and any(Path(path).exists() for path in inputs):
            size = trained.config.image_size
            pixels, shown = np.stack([read_image(path, size, self.channels) for path in inputs]), inputs
        else:
            data = self.open_data(trained.config)
            held = data.splits[data.held_out]
            places = {name: place for place, name in enumerate(held.names)}
            for name in inputs:
                if name not in places:
                    raise UserError(f'There is no file "{name}", and no held-out image of that name.')
            chosen = held.take([places[name] for name in inputs] if inputs else range(8))
            pixels, shown = chosen.pixels, chosen.names
        return explain_images(folder, trained, pixels, shown)

    def export(self, folder: RunFolder, options: ImageExportOptions) -> Exported:
        """Writes the next version of a model: a SavedModel, or a file of LiteRT or ONNX."""
        trained = self.open_model(folder)
        metrics = common.learned_or_refuse(folder, "accuracy", "most frequent", options.force)
        data = self.open_data(trained.config)
        return export_images(folder, options, trained, data, metrics, self.for_int8)


# --- Data and model -------------------------------------------------------------------------------


def augmentation(config: ImageSettings) -> Augmentation:
    fields = [field.name for field in dataclasses.fields(Augmentation)]
    return Augmentation(**{name: getattr(config, name) for name in fields})


def measure(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the mean and the standard deviation of each channel."""
    sample = pixels[:: max(1, len(pixels) // _MEASURED)].astype(np.float64)
    mean, deviation = sample.mean(axis=(0, 1, 2)), sample.std(axis=(0, 1, 2))
    return mean.round(3).tolist(), np.maximum(deviation, 1.0).round(3).tolist()


def measure_or_take_over(run: Run[Any], pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns `measure` of the pixels; of a run that begins with another one what that one has.

    Its weights expect images that are standardized so.
    """
    init = run.settings.init
    path = (run.folder if run.goes_on else open_run(init)).assets / "images.json" if init else None
    if path is None or not path.is_file():
        return measure(pixels)
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["mean"], found["deviation"]


def make_optimizer(config: ImageSettings, model: keras.Model, steps: int) -> keras.optimizers.Optimizer:
    rate = WarmupThenDecay(config.learning_rate, steps, config.warmup, config.last_rate)
    rates = {v.path: config.bias_rate for v in model.trainable_variables if v.path.endswith("beta")}
    common: dict[str, Any] = {"global_clipnorm": config.clip_norm or None, "rates": rates}
    if config.ema:
        common |= {"use_ema": True, "ema_momentum": config.ema}
    if config.optimizer == "sgd":
        lookahead = steps if config.lookahead else 0
        return SGD(rate, config.momentum, weight_decay=config.weight_decay, lookahead=lookahead, **common)
    optimizer = AdamW(rate, weight_decay=config.weight_decay, **common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    return optimizer


def teach_images(run: Run[Any], pixels: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Distillation:
    """Returns what a teacher says of images, uint8 (n, height, width, channels).

    It sees them as the student does (Beyer et al. 2022, https://arxiv.org/abs/2106.05237): where they are
    changed, in every step, and else once.
    """
    config, shape = run.settings, list(pixels.shape[1:])
    grey = shape[-1] == 1
    teacher = Teacher(run, names, image_input(shape))
    run.say(f"{teacher.folder.path} teaches")

    def served(images: tf.Tensor) -> tf.Tensor:
        images = tf.cast(images, tf.float32)
        return images[..., 0] if grey else images

    def ask(images: tf.Tensor, labels: tf.Tensor) -> tuple[Any, Any, Any]:
        return labels, teacher.ask({"image": served(images)}), config.teacher_share

    if augmentation(config) != Augmentation() or config.adversarial:
        return Distillation(ask, config.temperature)
    logits = teacher({"image": pixels[..., 0] if grey else pixels})
    shares = np.full(len(pixels), config.teacher_share)
    return Distillation(TaughtRows(labels, logits, shares), config.temperature)


def training_attack(model: keras.Model, config: ImageSettings) -> Callable[..., Any] | None:
    """One step from a random start, a quarter longer than the bound (Wong et al. 2020,
    https://arxiv.org/abs/2001.03994, section 4)."""
    if not config.adversarial:
        return None
    attack = Attack("pgd", config.adversarial, steps=1, step_size=1.25 * config.adversarial)

    def perturb(features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([config.seed, tf.cast(model.optimizer.iterations, tf.int32)])
        return attack(lambda x: model(x, training=False), features, labels, seed)

    return perturb


# --- Evaluate -------------------------------------------------------------------------------------


def errors_picture(
    images: Images, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    worst = most_confident_errors(labels, probabilities, 25)
    captions = [
        f"{names[labels[i]]} -> {names[probabilities[i].argmax()]} ({probabilities[i].max():.2f})"
        for i in worst
    ]
    return error_grid(images.pixels[worst], captions)


def attacked_classes(
    model: keras.Model, pixels: np.ndarray, labels: np.ndarray, attack: Attack
) -> np.ndarray:
    """Returns the classes int (n,) that a model finds in images which were changed against it."""
    batches = image_batches(pixels, labels, batch_size=AT_ONCE)

    @tf.function(autograph=False)
    def change(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return attack(lambda x: model(x, training=False), images, labels, seed)

    classes = []
    for number, (images, labels_, weights) in enumerate(batches.dataset()):
        changed = change(images, labels_, tf.constant([0, number]))
        real = int(tf.reduce_sum(weights))
        classes.append(model(changed[:real]).numpy().argmax(axis=1))
    return np.concatenate(classes)
