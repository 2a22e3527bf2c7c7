"""The rows of a run, images or texts, as its network takes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from karpa_tf.data.images import ImageData, Images, label_places, open_images, open_test_images
from karpa_tf.data.sources import DataRecord, Split
from karpa_tf.data.tables import Columns, Rows, Table, label_ids, open_table, open_test_rows
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.recipes.families.vectors import Encoder

from . import ContinualSettings
from .stream import Stream


@dataclass(frozen=True, repr=False)
class Examples(InALine):
    """Labelled rows.

    Attributes:
        rows: as they were read.
        features: what the network takes: images uint8 (n, height, width, channels), vectors float32 (n, d).
    """

    rows: Images | Rows
    features: np.ndarray

    @property
    def labels(self) -> list[str]:
        """A class each."""
        return self.rows.labels

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, repr=False)
class ContinualData(InALine):
    """Rows by split.

    Attributes:
        splits: as they were read.
        classes: all of them, in the data's order.
        record: what a run notes of the data.
        encoder: makes vectors of texts.
        notes: lines that the user should read.
    """

    splits: Mapping[Split, Images | Rows]
    classes: list[str]
    record: DataRecord
    encoder: Encoder | None
    notes: list[str] = field(default_factory=list)

    def examples(self, split: Split) -> Examples:
        """Returns the rows of a split; texts are read by the encoder for it."""
        return as_examples(self.splits[split], self.encoder)


def as_examples(rows: Images | Rows, encoder: Encoder | None) -> Examples:
    """Returns rows with what the network takes; `encoder` makes vectors of texts."""
    if isinstance(rows, Images):
        return Examples(rows, rows.pixels)
    assert encoder
    return Examples(rows, encoder.embed(rows.texts))


def open_data(config: ContinualSettings, encoder: Encoder | None) -> ContinualData:
    """Opens the rows that the settings name, split.

    Raises:
        UserError: they cannot be read, or validation or test have a class that training never saw.
    """
    shares: dict[str, Any] = {"validation_share": config.validation_share, "test_share": config.test_share}
    data: Table | ImageData
    if encoder:
        data = open_table(config.data, Columns(config.text, config.label), **shares)
    else:
        *size, channels = config.shape
        data = open_images(config.data, size=size[0], channels=channels, broken=config.broken, **shares)
    for split, rows in data.splits.items():
        label_ids(rows.labels, data.labels, f"{config.data} ({split} split)")
    return ContinualData(data.splits, data.labels, data.record, encoder, data.notes)


def open_other(
    source: str, config: ContinualSettings, classes: list[str], encoder: Encoder | None
) -> tuple[Examples, list[str]]:
    """Opens other rows to evaluate a run on, and returns them with lines that the user should read.

    Raises:
        UserError: they cannot be read, or have a class that the run does not know.
    """
    rows: Images | Rows
    if encoder:
        rows = open_test_rows(source, Columns(config.text, config.label))
        label_ids(rows.labels, classes, source)
        notes = rows.notes
    else:
        *size, channels = config.shape
        rows, notes = open_test_images(source, size=size[0], channels=channels, broken=config.broken)
        places, note = label_places(rows, classes, source)
        rows = Images(rows.pixels, [classes[place] for place in places], rows.names)
        notes = [*notes, *([note] if note else [])]
    return as_examples(rows, encoder), notes


def check_tasks(stream: Stream, rows: Images | Rows | Examples, where: str) -> None:
    """Raises a UserError if there is a task without rows."""
    found = set(rows.labels)
    for number, classes in enumerate(stream.tasks, 1):
        if not found & set(classes):
            raise UserError(
                f"{where} has no rows of task {number} ({', '.join(classes[:5])}"
                f"{' ...' if len(classes) > 5 else ''}): each task needs some."
            )
