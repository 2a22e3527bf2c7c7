"""The tasks of a run: what it is trained on, and those that it is always evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from karpa_tf.data.tables import Columns
from karpa_tf.meta.classes import ClassTasks
from karpa_tf.meta.images import open_image_tasks
from karpa_tf.meta.sinusoids import open_sinusoids
from karpa_tf.meta.tasks import TaskData, Tasks
from karpa_tf.meta.texts import open_text_tasks
from karpa_tf.recipes.families.vectors import Encoder

from . import MetaSettings

# Tasks of a batch in evaluation, and the seeds of what is drawn there: no training draws the same.
_AT_ONCE = 20
VALIDATION_SEED, TEST_SEED = 2**31, 2**31 + 1
# Points of a sinusoid that an evaluation asks for.
_POINTS = 100


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


def same_tasks(tasks: Tasks, config: MetaSettings, count: int, seed: int) -> list[Sequence[np.ndarray]]:
    """Returns always the same tasks, in batches.

    Args:
        tasks: where they come from.
        config: how large they are.
        count: how many.
        seed: which ones.
    """
    queries = config.queries if tasks.ways else _POINTS
    sizes = [min(_AT_ONCE, count - begin) for begin in range(0, count, _AT_ONCE)]
    return [
        tasks.sample(np.random.default_rng((seed, number)), size, shots=config.shots, queries=queries)
        for number, size in enumerate(sizes)
    ]


def describe(data: TaskData, config: MetaSettings) -> str:
    """Returns a line on the tasks and on how they are learned from."""
    algorithm = f"{config.algorithm}, {config.iterations:,} updates of {config.meta_batch} tasks"
    if config.kind == "sinusoids":
        return f"{config.data}: {config.shots} points each; {algorithm}"
    sizes = ", ".join(
        f"{size} to {purpose}"
        for size, purpose in zip(
            (class_count(data.splits[split])["classes"] for split in ("train", "validation", "test")),
            ("train on", "validate on", "test on"),
            strict=True,
        )
    )
    return f"{config.data}: {config.ways} ways, {config.shots} shots; classes: {sizes}; {algorithm}"


def class_count(tasks: Tasks) -> dict[str, int]:
    """Returns the fact how many classes tasks are of, if they are of classes."""
    return {"classes": len(tasks.classes)} if isinstance(tasks, ClassTasks) else {}
