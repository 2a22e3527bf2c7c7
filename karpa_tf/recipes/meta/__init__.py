"""`meta`: settings and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from karpa_tf.data.cells import TABLES
from karpa_tf.errors import UserError
from karpa_tf.recipe import About, EvaluateOptions, Input
from karpa_tf.recipes.families.settings import whole_numbers
from karpa_tf.settings import (
    Bounds,
    Count,
    CountOrNone,
    NonNegative,
    Positive,
    RunSettings,
    defaults_of,
    option,
)

SINUSOIDS = "sinusoids"

# What tasks are made of.
Kind = Literal["sinusoids", "images", "texts"]

# What the value 0 of a setting stands for: by the kind of tasks, then by the algorithm.
_SUITS: dict[str, dict[str, dict[str, Any]]] = {
    "sinusoids": {
        "": {"iterations": 6_000, "meta_batch": 50, "queries": 10, "learning_rate": 0.01, "served_steps": 10},
        "maml": {"inner_rate": 0.01, "inner_steps": 2, "every_step": True},
        "fomaml": {"inner_rate": 0.01, "inner_steps": 2, "every_step": True},
        "anil": {"inner_rate": 0.01, "inner_steps": 2, "every_step": True},
        "reptile": {"inner_rate": 0.01, "inner_steps": 8, "learning_rate": 0.001},
        "imaml": {"inner_rate": 0.01, "inner_steps": 10, "learning_rate": 0.001, "iterations": 3_000},
    },
    "images": {
        "": {"iterations": 4_000, "meta_batch": 16, "queries": 5, "learning_rate": 0.003},
        "maml": {"inner_rate": 0.4, "inner_steps": 1, "served_steps": 1},
        "fomaml": {"inner_rate": 0.1, "inner_steps": 3, "served_steps": 10},
        "anil": {"inner_rate": 0.1, "inner_steps": 5, "served_steps": 5},
        "reptile": {"inner_rate": 0.1, "inner_steps": 8, "served_steps": 10, "learning_rate": 0.001},
        "imaml": {"inner_rate": 0.1, "inner_steps": 5, "served_steps": 5, "learning_rate": 0.001},
        "protonet": {"iterations": 1_500, "meta_batch": 8, "learning_rate": 0.002},
    },
    "texts": {
        "": {"iterations": 500, "meta_batch": 16, "queries": 10, "learning_rate": 0.001},
    },
}
# The same of the steps on a task, where nothing else is said.
_STEPS = {"inner_rate": 0.1, "inner_steps": 5, "served_steps": 5}


@dataclass(kw_only=True)
@defaults_of(__file__)
class MetaSettings(RunSettings):
    """Meta-learning: a network that learns a task from a few examples."""

    data: str = option(
        SINUSOIDS,
        "Tasks: sinusoids, glyphs (letters of many scripts), images as for mnist-mlp, above all a folder or "
        ".zip of class folders (in alphabets, as Omniglot's); or a table of texts and labels, with --preset.",
    )
    algorithm: Literal["auto", "maml", "fomaml", "reptile", "imaml", "anil", "protonet"] = option(
        "auto", "How it learns to learn; auto: maml, and protonet of texts."
    )
    ways: Annotated[int, Bounds(least=2)] = option(5, "Classes of a task.")
    shots: Count = option(5, "Examples of each class to learn from; of a sinusoid: points.")
    queries: CountOrNone = option(0, "Examples of each class to answer, in training; 0: what suits the data.")
    iterations: CountOrNone = option(0, "Updates of the weights; 0: what suits the data and the algorithm.")
    meta_batch: CountOrNone = option(0, "Tasks in an update; 0: what suits them.")
    learning_rate: NonNegative = option(
        0.0, "Adam's learning rate at first, which falls to 0 linearly; 0: what suits them."
    )
    inner_rate: NonNegative = option(
        0.0, "Learning rate of the steps on a task; 0: what suits the data and the algorithm."
    )
    inner_steps: CountOrNone = option(0, "Steps on a task, in training; 0: what suits them.")
    served_steps: CountOrNone = option(
        0, "Steps on a task when it is evaluated and served; 0: what suits them. protonet has none."
    )
    every_step: bool = option(
        False, "maml, fomaml, anil: descend on the loss after every step on a task, not after the last alone."
    )
    learn_rates: bool = option(False, "maml, fomaml, anil: learn an inner rate for each weight (Meta-SGD).")
    transductive: bool = option(
        False, "Images: normalize by the batch, that is by the other queries of a task; see the docs."
    )
    pull: Positive = option(2.0, "imaml: how strongly the steps on a task are held near where they begin.")
    cg_steps: Count = option(5, "imaml: steps of conjugate gradient.")
    rotations: bool = option(
        False, "Images turned by 90, 180 and 270 degrees are further classes to train on."
    )
    augment: bool = option(True, "Images to train on are moved, turned, scaled and slanted a little.")
    frame: bool = option(
        True, "Grey images are cropped to what is drawn and brought to one size, in the network itself."
    )
    image_size: Annotated[int, Bounds(least=8, most=256)] = option(28, "Width and height of the images.")
    color: bool = option(False, "Images have colours; else they are grey.")
    filters: Count = option(32, "Filters of each of the four convolutions.")
    units: str = option("40,40", "Units of each hidden layer, for sinusoids.")
    preset: str = option("", "Texts: the BERT that reads them, a folder or a name as for bert-classifier.")
    text: str = option("text", "Texts: the column of the texts.")
    label: str = option("label", "Texts: the column of the labels.")
    sequence_length: Annotated[int, Bounds(least=8)] = option(128, "Texts: most pieces of a text.")
    evaluate_every: Count = option(250, "Updates between two evaluations on tasks of the validation split.")
    validation_tasks: Annotated[int, Bounds(least=2)] = option(100, "Tasks of such an evaluation.")
    baseline_steps: CountOrNone = option(
        1_000, "Updates of the ordinary training that the figures are compared with; 0: without it."
    )
    init: str = option("", "A run whose best weights to start from.")

    length: ClassVar[str] = "iterations"

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense together."""
        super().__post_init__()
        whole_numbers("units", self.units)
        if self.kind == "texts" and not self.preset:
            raise UserError(
                f"Texts ({self.data}) need --preset, the BERT that reads them: a folder in keras-hub's or "
                "Hugging Face's form, or a name as for bert-classifier."
            )
        if self.kind == "sinusoids" and self.algorithm == "protonet":
            raise UserError(
                "protonet needs tasks of classes, and sinusoids have none: take --algorithm maml."
            )
        if self.transductive and self.kind != "images":
            raise UserError("transductive is for images: no other network here normalizes by the batch.")
        if self.learn_rates and self.algorithm not in ("auto", "maml", "fomaml", "anil"):
            raise UserError(f"learn_rates goes with maml, fomaml and anil. Received: {self.algorithm}.")

    @property
    def framed(self) -> bool:
        """Whether the network frames what is drawn."""
        return self.frame and self.kind == "images" and not self.color

    @property
    def kind(self) -> Kind:
        """What tasks are made of: sinusoids, images or texts."""
        if self.data == SINUSOIDS:
            return "sinusoids"
        return "texts" if self.preset or PurePath(self.data).suffix.lower() in TABLES else "images"

    def fill(self) -> None:
        """Puts what suits the data and the algorithm in the place of every 0."""
        if self.algorithm == "auto":
            self.algorithm = "protonet" if self.kind == "texts" else "maml"
        suits = _SUITS[self.kind]
        for name, value in {**_STEPS, **suits[""], **suits.get(self.algorithm, {})}.items():
            setattr(self, name, getattr(self, name) or value)
        if self.algorithm == "protonet":
            self.inner_steps = self.served_steps = 0


@dataclass(kw_only=True)
class MetaEvaluateOptions(EvaluateOptions):
    """How meta-learning is evaluated."""

    tasks: Annotated[int, Bounds(least=2)] = option(600, "Tasks to evaluate on.")
    shots: CountOrNone = option(0, "Examples of each class to learn from; 0: as in training.")


def inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature."""
    labels = "targets" if config.get("data") == SINUSOIDS else "labels"
    return {name: Input("json") for name in ("support", labels, "query")}


ABOUT = About(
    summary="learns to learn from few examples: MAML and its kin, on sinusoids, images or texts",
    default_data="sinusoids, as in MAML's paper; --data glyphs: letters of matplotlib's fonts",
    settings=MetaSettings,
    inputs=inputs,
    evaluate=MetaEvaluateOptions,
    charts={"accuracy": ["epoch/accuracy"], "mean squared error": ["epoch/mse"], "loss": ["epoch/loss"]},
)
