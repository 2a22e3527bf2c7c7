"""What recognizing images takes, whatever the network: data, fit, evaluate, explain, predict, export.

`mnist_mlp.py` and `cifar10_cnn.py` say which network; the rest is the same and stands here.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.data.augmentation import Augmentation, image_batches
from karpa_tf.data.images import ImageData, Images, open_images, open_test_images, read_image
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import label_ids, shared_rows
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import Signature
from karpa_tf.judging.attacks import Attack, parse_attack
from karpa_tf.judging.attributions import integrated_gradients
from karpa_tf.judging.classification import (
    class_table,
    classification_metrics,
    confusion,
    most_confident_errors,
    most_frequent_baseline,
    pixel_baselines,
)
from karpa_tf.recipe import Evaluation, ExplainOptions, Explanation, Exported, PredictOptions, Recipe
from karpa_tf.recipes.families import common, folds
from karpa_tf.recipes.families.settings import ImageEvaluateOptions, ImageExportOptions, ImageSettings
from karpa_tf.reports.classification import (
    event_writer,
    format_class_table,
    format_confusions,
    write_classification,
    write_image,
)
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.reports.pictures import error_grid, explanation, sample_grid, write_png
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import SGD, AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep

TRAINING_METRICS = {"accuracy": keras.metrics.sparse_categorical_accuracy}
# Images judged at once, and shown in the projector.
_JUDGED_AT_ONCE = 256
_PROJECTED = 1000
# Training images that the channels' means and the whitened patches are taken from.
_MEASURED = 5000
# Images that are attacked at most, evenly spaced: each takes as long as dozens of predictions.
_ATTACKED = 1000
# Images that an exported file is checked on.
_CHECKED = 1000
# Training images, at least, that the training accuracy of the best weights is taken on.
_JUDGED_OF_TRAINING = 5000


@dataclass(frozen=True)
class Network:
    """What tells the recipes apart.

    Attributes:
        config: their settings.
        channels: 1 or 3.
        build: makes the network: (config, shape of an image, classes, mean, deviation, dtype) to a model
            that gives logits, by a layer of that name.
        start: sets what a new network takes from training images, float32 (n, height, width, channels).
        for_int8: makes a trained network of the same outputs that loses less by rounding.
    """

    config: type[ImageSettings]
    channels: int
    build: Callable[..., keras.Model]
    start: Callable[[keras.Model, np.ndarray], Any] = lambda model, images: None
    for_int8: Callable[[keras.Model], keras.Model] = lambda model: model


# --- Data and model -------------------------------------------------------------------------------


def open_data(network: Network, config: ImageSettings) -> ImageData:
    data = open_images(
        config.data,
        size=config.image_size,
        channels=network.channels,
        **folds.held_out_shares(config),
        broken=config.broken,
    )
    splits = folds.hold_out_fold(
        config, data.splits, data.brings_test, lambda images: (images.keys(), images.labels), Images.take
    )
    return dataclasses.replace(data, splits=splits)


def augmentation(config: ImageSettings) -> Augmentation:
    fields = [field.name for field in dataclasses.fields(Augmentation)]
    return Augmentation(**{name: getattr(config, name) for name in fields})


def label_places(images: Images, names: Sequence[str], where: str) -> tuple[np.ndarray, str]:
    """Returns the places int32 (n,) of the labels in `names`, and a note if they had to be matched.

    Some files number the classes that others name (CIFAR-10's are numbered by the alphabet).

    Raises:
        UserError: a label that is not among them.
    """
    found = set(images.labels)
    numbers, words = (all(x.isdecimal() for x in some) for some in (found, names))
    if numbers and not words and max(map(int, found)) < len(names):
        note = f"{where} numbers its classes: 0 was taken for {names[0]}, 1 for {names[1]} and so on."
        return np.array([int(x) for x in images.labels], np.int32), note
    if words and not numbers and len(found) == len(names):
        ordered = sorted(found)
        note = f"{where} names its classes: {ordered[0]} was taken for 0, {ordered[1]} for 1 and so on."
        return label_ids(images.labels, ordered, where), note
    return label_ids(images.labels, names, where), ""


def measure(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Returns the mean and the standard deviation of each channel."""
    sample = pixels[:: max(1, len(pixels) // _MEASURED)].astype(np.float64)
    mean, deviation = sample.mean(axis=(0, 1, 2)), sample.std(axis=(0, 1, 2))
    return mean.round(3).tolist(), np.maximum(deviation, 1.0).round(3).tolist()


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


class Logits:
    """What a model says of the same images, again and again as it learns; traced once.

    Args:
        model: gives logits.
        pixels: uint8 (n, height, width, channels).
    """

    def __init__(self, model: keras.Model, pixels: np.ndarray) -> None:
        batches = image_batches(pixels, np.zeros(len(pixels), np.int32), batch_size=_JUDGED_AT_ONCE)
        self._outputs = Outputs(model, batches)
        self._images = len(pixels)

    def __call__(self) -> np.ndarray:
        """Returns float32 (n, classes)."""
        return np.concatenate([logits for logits, _, _ in self._outputs])[: self._images]


def with_flip(model: keras.Model) -> keras.Model:
    """Returns a model whose logits are the mean of those of an image and of its mirror image."""
    image = keras.Input(model.input.shape[1:], name="image")
    mirrored = keras.ops.flip(image, axis=2)
    return keras.Model(image, 0.5 * (model(image) + model(mirrored)), name=model.name)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    return tf.nn.softmax(logits).numpy()


# --- Train ----------------------------------------------------------------------------------------


def train(network: Network, run: Run[Any]) -> dict[str, float]:
    """Trains into a run folder and returns the final figures, those of the test split."""
    config, folder = run.settings, run.folder
    data = open_data(network, config)
    names, images = data.labels, data.splits
    shrunk = folds.shrink_batch(config, len(images["train"]), run.strategy.num_replicas_in_sync)
    run.say(
        *data.notes,
        shrunk,
        f"{config.data}: {len(images['train']):,} images to learn from, {len(images['validation']):,} for "
        f"validation, {len(images['test']):,} to test; {len(names)} classes; run {folder.path}",
        folds.thin_test(config, len(images["test"]), images["test"].labels, names, data.brings_test),
    )
    run.begin(data.record)
    labels = {split: label_ids(images[split].labels, names, config.data) for split in images}
    batches = image_batches(
        images["train"].pixels,
        labels["train"],
        batch_size=config.batch_size,
        seed=config.seed,
        augmentation=augmentation(config),
    )
    mean, deviation = measure(images["train"].pixels)
    run.write_asset("labels.json", names)
    run.write_asset("images.json", {"mean": mean, "deviation": deviation})

    shape = images["train"].pixels.shape[1:]
    with run.strategy.scope():
        model = network.build(config, shape, len(names), mean, deviation, config.precision)
        measured = images["train"].pixels[:: max(1, len(images["train"]) // _MEASURED)]
        network.start(model, (measured.astype(np.float32) - mean) / np.array(deviation, np.float32))
        put_weights(model, config.init)
        steps = config.epochs * batches.steps_per_epoch
        model.compile(
            make_optimizer(config, model, steps), SparseCrossEntropy(label_smoothing=config.label_smoothing)
        )
    every = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    run.say(
        f"{model.name}: {every:,} parameters; {batches.steps_per_epoch} steps an epoch; {config.precision}, "
        f"{runtime.usable_cores()} cores"
    )

    held_out = Logits(with_flip(model) if config.test_flip else model, images["validation"].pixels)

    def validation() -> dict[str, float]:
        return classification_metrics(labels["validation"], probabilities_of(held_out()))

    def projector() -> tuple[np.ndarray, Labels]:
        shown = images["validation"].take(range(min(_PROJECTED, len(images["validation"]))))
        inner = keras.Model(model.input, model.get_layer("logits").input)
        return Logits(inner, shown.pixels)(), {"label": shown.labels, "image": shown.names}

    step = SupervisedStep(
        model, TRAINING_METRICS, accumulate=config.accumulate, attack=_training_attack(model, config)
    )
    first = next(iter(batches.dataset(0, 1)))[0]
    run.fit(
        Stage(step, batches, config.epochs, validation=validation),
        best=run.best_weights(
            "val_accuracy", mode="max", patience=config.patience, last=config.keep == "last"
        ),
        shown=("accuracy",),
        units_per_step=config.batch_size,
        images={"augmented": lambda: sample_grid(first.numpy()[:64])},
        example=first,
        projector=projector,
    )
    return run.finish(lambda: Evaluation(**evaluate(network, folder, step=run.steps)))


def _training_attack(model: keras.Model, config: ImageSettings) -> Callable[..., Any] | None:
    """One step from a random start, a quarter longer than the bound (Wong et al. 2020,
    https://arxiv.org/abs/2001.03994, section 4)."""
    if not config.adversarial:
        return None
    attack = Attack("pgd", config.adversarial, steps=1, step_size=1.25 * config.adversarial)

    def perturb(features: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([config.seed, tf.cast(model.optimizer.iterations, tf.int32)])
        return attack(lambda x: model(x, training=False), features, labels, seed)

    return perturb


def put_weights(model: keras.Model, init: str) -> None:
    """Puts the best weights of another run into a model."""
    if not init:
        return
    from karpa_tf.training.run_folder import open_run

    try:
        model.load_weights(open_run(init).best_weights)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"--init: the weights of {init} do not fit ({reason}); it must be a run of the same network and "
            "as many classes."
        ) from None


# --- Evaluate -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A run with its best weights, in float32."""

    config: Any
    names: list[str]
    model: keras.Model

    @property
    def served(self) -> keras.Model:
        """The model as it is judged and served: with the mirror image, if the run says so."""
        return with_flip(self.model) if self.config.test_flip else self.model


def open_model(network: Network, folder: RunFolder) -> Trained:
    """Returns a run with its best weights.

    Raises:
        UserError: they cannot be read.
    """
    config = folder.open_config(network.config)
    names = common.read_labels(folder, "labels.json")
    try:
        measured = folder.read_json("assets/images.json")
        shape = (config.image_size, config.image_size, network.channels)
        args = (config, shape, len(names), measured["mean"], measured["deviation"], "float32")
        model = network.build(*args)
        model.load_weights(folder.best_weights)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{folder.path} cannot be opened ({reason}); go on with `"
            f"{folder.resume_command}`, or train again."
        ) from None
    return Trained(config, names, model)


def evaluate(
    network: Network,
    folder: RunFolder,
    data: str | None = None,
    *,
    attack: str = "none",
    epsilon: str = "8/255",
    step: int | None = None,
) -> dict[str, Any]:
    """Judges a run's best weights on its test split, or on other data, beside simple baselines.

    Args:
        network: of the recipe.
        folder: of the run.
        data: labelled images; None: the run's own test split, or validation where it has none.
        attack: fgsm or pgd: change the images against the model as well, and report the accuracy on those.
        epsilon: the most that an attack changes a pixel, as `parse_attack` reads it.
        step: write what TensorBoard shows of the judgement under this step.
    """
    against = parse_attack(attack, epsilon)
    runtime.use_threads()
    trained = open_model(network, folder)
    config, names = trained.config, trained.names
    own = open_data(network, config)
    check_data(folder, config.data, own.record)
    notes: list[str] = []
    if data:
        size = {"size": config.image_size, "channels": network.channels}
        images, notes = open_test_images(data, **size, broken=config.broken)
        where = data
    else:
        split: Split = "test" if len(own.splits["test"]) else "validation"
        images, where = own.splits[split], f"{config.data} ({split} split)"
    labels, note = label_places(images, names, where)
    for line in (*notes, *filter(None, [note])):
        print(line, file=sys.stderr)
    probabilities = probabilities_of(Logits(trained.served, images.pixels)())
    metrics = classification_metrics(labels, probabilities)
    known = own.splits["train"]
    known_labels = label_ids(known.labels, names, config.data)
    facts: dict[str, Any] = {
        "images": len(images),
        "images that are in training": shared_rows(known, images),
    }
    if against:
        every = -(-len(images) // _ATTACKED)
        some, truth = images.pixels[::every], labels[::every]
        attacked = attack_images(trained.served, some, truth, against)
        logits = np.concatenate([trained.served(part).numpy() for part in attacked])
        metrics["robust_accuracy"] = float((logits.argmax(axis=1) == truth).mean())
        facts["attack"] = (
            f"{against.kind}, epsilon {against.epsilon:g}/255, {against.steps} steps, {len(some)} images"
        )
    result: dict[str, Any] = {
        "data": where,
        "metrics": metrics,
        "baselines": {
            **pixel_baselines(known.pixels, known_labels, images.pixels, labels),
            "most frequent": most_frequent_baseline(known_labels, labels),
        },
        "facts": facts,
        "tables": [
            format_class_table(class_table(labels, probabilities, names)),
            format_confusions(confusion(labels, probabilities.argmax(1), len(names)), names),
        ],
    }
    if step is not None:
        write_classification(folder.path / "validation", step, labels, probabilities, names, images.names)
        grid = errors_picture(images, labels, probabilities, names)
        write_png(folder.path / "errors.png", grid)
        with event_writer(folder.path / "validation"):
            write_image(
                step, "errors_grid", grid, "The most confident errors: true -> predicted, probability."
            )
        sample = slice(None, None, max(1, len(known) // _JUDGED_OF_TRAINING))
        logits = Logits(trained.served, known.pixels[sample])()
        metrics["training_accuracy"] = float((logits.argmax(axis=1) == known_labels[sample]).mean())
    return result


def errors_picture(
    images: Images, labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    worst = most_confident_errors(labels, probabilities, 25)
    captions = [
        f"{names[labels[i]]} -> {names[probabilities[i].argmax()]} ({probabilities[i].max():.2f})"
        for i in worst
    ]
    return error_grid(images.pixels[worst], captions)


def attack_images(
    model: keras.Model, pixels: np.ndarray, labels: np.ndarray, attack: Attack
) -> list[np.ndarray]:
    """Returns the images, changed against the model, in batches of float32."""
    batches = image_batches(pixels, labels, batch_size=_JUDGED_AT_ONCE)

    @tf.function(autograph=False)
    def change(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return attack(lambda x: model(x, training=False), images, labels, seed)

    parts = []
    for number, (images, labels_, weights) in enumerate(batches.dataset()):
        real = int(tf.reduce_sum(weights))
        parts.append(change(images, labels_, tf.constant([0, number])).numpy()[:real])
    return parts


# --- Explain --------------------------------------------------------------------------------------


def explain(network: Network, folder: RunFolder, inputs: Sequence[str], steps: int = 128) -> dict[str, Any]:
    """Says what in images speaks for the label that a run gives them: integrated gradients.

    Writes a picture an image into `explain/` of the run, and the same for TensorBoard. The grid of the most
    confident errors is in the run since its training ended (`errors.png`).

    Args:
        network: of the recipe.
        folder: of the run.
        inputs: paths of image files; none: the first images of the test split.
        steps: of the integral.
    """
    runtime.use_threads()
    trained = open_model(network, folder)
    size = trained.config.image_size
    if inputs:
        pixels = np.stack([read_image(path, size, network.channels) for path in inputs])
        shown = list(inputs)
    else:
        own = open_data(network, trained.config).splits
        first = (own["test"] if len(own["test"]) else own["validation"]).take(range(8))
        pixels, shown = first.pixels, first.names
    model = trained.served
    probabilities = probabilities_of(Logits(model, pixels)())
    classes = probabilities.argmax(axis=1)
    target = tf.constant(classes)

    rows = []
    out = folder.path / "explain"
    out.mkdir(exist_ok=True)
    with event_writer(out):
        for number, name in enumerate(shown):
            chosen = target[number]

            def probability(images: tf.Tensor, chosen: tf.Tensor = chosen) -> tf.Tensor:
                return tf.gather(tf.nn.softmax(model(images, training=False)), chosen, axis=1)

            image = pixels[number].astype(np.float32)
            # From black: in MNIST the ground, elsewhere no light.
            result = integrated_gradients(probability, image, np.zeros_like(image), steps)
            label, share = trained.names[classes[number]], float(probabilities[number].max())
            picture = explanation(pixels[number], result.attributions, f"{label} ({share:.2f})")
            file = out / f"{number + 1}-{Path(name).stem[:60]}.png"
            write_png(file, picture)
            write_image(number, "explanation", picture, f"{name}: {label}")
            rows.append(
                {
                    "input": name,
                    "label": label,
                    "probability": share,
                    "completeness_gap": result.gap,
                    "file": str(file),
                }
            )
    lines = [f"{row['input']}: {row['label']} {row['probability']:.3f}  -> {row['file']}" for row in rows]
    errors = folder.path / "errors.png"
    if errors.exists():
        lines.append(f"the most confident errors of the run: {errors}")
    return {"run": str(folder.path), "explanations": rows, "errors": str(errors), "lines": lines}


# --- Predict and export ---------------------------------------------------------------------------


class Recognize:
    """The served function: images to labels and probabilities, in graph ops alone.

    Args:
        model: gives logits of images float32 (n, height, width, channels), 0 to 255.
        names: the labels, in the order of the logits.
    """

    def __init__(self, model: keras.Model, names: Sequence[str]) -> None:
        self.model = model
        self.names = list(names)

    def __call__(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
        """Recognizes images float32 (n, height, width), or with 3 channels behind, of 0 to 255.

        Returns:
            `label` string (n,) and `probabilities` float32 (n, classes).
        """
        if image.shape.rank == 3:
            image = image[..., None]
        probabilities = tf.nn.softmax(self.model(image, training=False))
        label = tf.gather(tf.constant(self.names), tf.argmax(probabilities, axis=1))
        return {"label": label, "probabilities": probabilities}


def signature(network: Network, folder: RunFolder) -> Signature:
    """Returns the network of a run, as `predict` calls it and `export` writes it: in float32."""
    return _signature(network, open_model(network, folder))


def _signature(network: Network, trained: Trained) -> Signature:
    size = trained.config.image_size
    shape = [None, size, size] if network.channels == 1 else [None, size, size, network.channels]
    inputs = {"image": tf.TensorSpec(shape, tf.float32)}
    function = Recognize(trained.served, trained.names)
    return Signature(function, inputs, variables=trained.model.weights, names=trained.names)


def export(
    network: Network,
    folder: RunFolder,
    to: str | Path = "savedmodels",
    *,
    format: str = "savedmodel",
    quantize: str = "",
    force: bool = False,
) -> dict[str, Any]:
    """Writes the next version of a model and returns its place and signatures.

    Args:
        network: of the recipe.
        folder: of the run.
        to: the folder of all models.
        format: `savedmodel` for TensorFlow Serving, `litert` for phones and small devices, `onnx`.
        quantize: litert: `int8` (the default) or `none`.
        force: export even what has not learned its task.
    """
    trained = open_model(network, folder)
    metrics = common.learned_or_refuse(folder, "accuracy", "most frequent", force)
    own = open_data(network, trained.config).splits
    served = _signature(network, trained)
    examples = [{"image": image.tolist()} for image in _bare(own["validation"].pixels[:4])]
    labels_txt = "".join(f"{' '.join(name.split())}\n" for name in trained.names)
    if format == "savedmodel":
        if quantize == "int8":
            raise UserError(
                "A SavedModel of images is exported in float32; --format litert makes an int8 file."
            )
        signatures = {"serving_default": served}
        path = export_savedmodel(
            signatures,
            to,
            folder.recipe,
            examples=examples,
            assets={"labels.txt": labels_txt},
            model_card=card(network, folder, trained, metrics),
            force=force,
        )
        return {"savedmodel": str(path), "signatures": describe(signatures)}
    from karpa_tf.export import litert, onnx

    held_out = own["test"] if len(own["test"]) else own["validation"]
    some = slice(None, None, -(-len(held_out) // _CHECKED))  # not the first ones: they may be of one class
    case: dict[str, Any] = {
        "labels": label_ids(held_out.labels, trained.names, trained.config.data)[some],
        "images": _bare(held_out.pixels[some]).astype(np.float32),
        "assets": {"labels.txt": labels_txt},
        "model_card": lambda note: card(network, folder, trained, metrics, note),
    }
    if format == "onnx":
        return onnx.export_onnx(trained.model, trained.config.test_flip, served, to, folder.recipe, **case)
    calibration = None
    if quantize != "none":
        calibration = _bare(own["train"].pixels[:: max(1, len(own["train"]) // 500)]).astype(np.float32)
        served = _signature(network, dataclasses.replace(trained, model=network.for_int8(trained.model)))
    return litert.export_litert(served, to, folder.recipe, calibration=calibration, **case)


def _bare(pixels: np.ndarray) -> np.ndarray:
    """Grey images without their channel, as the signature has them."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def card(
    network: Network, folder: RunFolder, trained: Trained, metrics: Mapping[str, Any], note: str = ""
) -> str:
    config = trained.config
    shape = f"n, {config.image_size}, {config.image_size}" + (", 3" if network.channels == 3 else "")
    mirrored = "; an image and its mirror image are judged together" if config.test_flip else ""
    return f"""# {folder.recipe}

Says which of {len(trained.names)} classes an image shows. Trained on {config.data}.

- in: `image` float32 [{shape}], 0 to 255{mirrored}
- out: `label` string [n]; `probabilities` float32 [n, {len(trained.names)}], in the order of `labels.txt`

On {metrics["facts"]["images"]} held-out images:

{metrics_table(metrics, ["accuracy", "macro_f1", "ece", "loss"])}
{note}
{settings_list(folder.read_config())}
"""


# --- The recipe -----------------------------------------------------------------------------------


class ImageRecipe(Recipe[ImageSettings]):
    """What the recipes of images do alike; a subclass says its network."""

    network: ClassVar[Network]

    def train(self, run: Run[ImageSettings]) -> dict[str, float]:
        return train(self.network, run)

    def evaluate(self, folder: RunFolder, options: ImageEvaluateOptions) -> Evaluation:
        data, attack, epsilon = options.data or None, options.attack, options.epsilon
        return Evaluation(**evaluate(self.network, folder, data, attack=attack, epsilon=epsilon))

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        return signature(self.network, folder)

    def export(self, folder: RunFolder, options: ImageExportOptions) -> Exported:
        how: dict[str, Any] = {"format": options.format, "quantize": options.quantize, "force": options.force}
        return Exported.of(export(self.network, folder, options.to, **how))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        return Explanation.of(explain(self.network, folder, inputs))
