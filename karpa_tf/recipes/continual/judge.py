"""What a run reaches after each task: the weights that are kept, and their accuracies on held-out rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np

from karpa_tf.errors import UserError, writing
from karpa_tf.judging.continual import task_accuracies
from karpa_tf.lines import InALine
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.recognize import Logits
from karpa_tf.training.run_folder import RunFolder

from .data import Examples
from .stream import Stream


class Judge(InALine):
    """What a network reaches on held-out rows, again and again as it learns.

    Args:
        stream: of the tasks.
        rows: held out.
        model: the network.
    """

    def __init__(self, stream: Stream, rows: Examples, model: keras.Model) -> None:
        self.stream, self._logits = stream, Logits(model, rows.features)
        self._truth = stream.targets(rows.labels), stream.task_of(rows.labels)

    def __call__(self, seen: int, guess: np.ndarray | None = None) -> list[float]:
        """Returns the accuracy on each of the first `seen` tasks, when so many have been learned.

        Args:
            seen: how many.
            guess: float (outputs,), logits to take for every row in the place of the network's.
        """
        targets, tasks = self._truth
        logits = self._logits() if guess is None else np.broadcast_to(guess, [len(tasks), len(guess)])
        return task_accuracies(logits, targets, tasks, self.stream.candidates(seen), seen)

    def figures(self, seen: int) -> dict[str, float]:
        """Returns them by name, and their mean."""
        found = self(seen)
        each = {f"task_{number}": value for number, value in enumerate(found, 1)}
        return {"accuracy": float(np.mean(found)), **each}


def weights_after(folder: RunFolder, task: int) -> Path:
    """Returns where the weights after a task, from 0, are kept."""
    return folder.assets / f"task_{task + 1}.weights.h5"


def keep_weights(folder: RunFolder, task: int) -> None:
    """Keeps the weights after a task: its last epoch's."""
    path = weights_after(folder, task)
    temporary = path.with_name(f".tmp-{path.name}")
    with writing(path):
        shutil.copyfile(folder.best_weights, temporary)
        temporary.replace(path)


def load_weights(model: keras.Model, folder: RunFolder, task: int) -> None:
    """Puts the weights after a task into the network.

    Raises:
        UserError: the run has not learned that task, or they cannot be read.
    """
    path = weights_after(folder, task)
    if not path.exists():
        raise UserError(
            f"{folder.path} has not learned task {task + 1} yet; go on with `{folder.resume_command}`."
        )
    with common.reading_weights(folder):
        model.load_weights(path)
