"""Checkpoints to resume from: one file each, written under a temporary name, checked when read."""

from __future__ import annotations

import json
import re
import time
import warnings
import zipfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock

from karpa_tf.errors import UserError, writing
from karpa_tf.lines import InALine
from karpa_tf.training.run_folder import lock_folder

_NAME = re.compile(r"step-(\d+)\.npz$")


class Checkpoints(InALine):
    """The last few checkpoints of a run.

    A checkpoint holds the values of variables, in their order, and a small state in JSON. It is a
    NumPy .npz file, whose parts carry checksums.

    Args:
        folder: where they are.
        keep: how many stay.
        seconds: time between two of them, for `due`.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, seconds: float = 20.0) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.seconds = seconds
        self._last = time.monotonic()
        self._lock: FileLock | None = None

    def begin(self) -> None:
        """Makes the folder, with a run's first step, and keeps it from other processes.

        Raises:
            UserError: it cannot be written, or another process trains into it.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock or lock_folder(self.folder)

    def release(self) -> None:
        """Lets other processes have the folder."""
        if self._lock:
            self._lock.release()
            self._lock = None

    def exist(self) -> bool:
        """Whether there is a checkpoint."""
        return bool(self._found())

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, step: int, variables: Sequence[keras.Variable], state: dict[str, Any]) -> None:
        """Writes a checkpoint, then deletes those beyond the last `keep`.

        Args:
            step: of the training; the file is named after it.
            variables: of Keras or TensorFlow, always in one order.
            state: what else there is to keep, as JSON holds it.

        Raises:
            UserError: the disk is full or cannot be written; earlier checkpoints are untouched.
        """
        values = {f"{index:05d}": np.asarray(v) for index, v in enumerate(variables)}
        values["state"] = np.frombuffer(
            json.dumps({**state, "step": step, "paths": _paths(variables)}).encode(), np.uint8
        )
        path = self.folder / f"step-{step:010d}.npz"
        temporary = path.with_suffix(".tmp")
        with writing(self.folder):
            try:
                self.begin()
                with temporary.open("wb") as file:
                    np.savez(file, **values)  # type: ignore[arg-type]
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        # Beyond the last few; and what a process that was killed here left half-written.
        for old in [*self._found()[: -self.keep], *self.folder.glob("step-*.tmp")]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def restore(self, variables: Sequence[keras.Variable], stage: str = "") -> dict[str, Any] | None:
        """Puts the newest whole checkpoint into the variables.

        A damaged one is passed over with a warning.

        Args:
            variables: as they were given to `save`.
            stage: of the training; a checkpoint of another one is left alone.

        Returns:
            The saved state with `step`, or None where there is no whole checkpoint (of this stage).

        Raises:
            UserError: the checkpoint belongs to another model.
        """
        for path in reversed(self._found()):
            found = self._load(path)
            if found is None:
                continue
            values, state = found
            if stage and state.get("stage", stage) != stage:
                return None
            self._check(path, [value for _, value in sorted(values.items())], state, variables)
            for variable, (_, value) in zip(variables, sorted(values.items()), strict=True):
                variable.assign(value)
            return state
        return None

    def newest_state(self) -> dict[str, Any] | None:
        """Returns the state of the newest whole checkpoint; None where there is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `restore` says it
            return next((found[1] for found in map(self._load, reversed(self._found())) if found), None)

    def _load(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Returns the arrays and the state of a checkpoint; None, and a warning, if it is damaged."""
        try:
            with np.load(path) as file:
                values = {name: file[name] for name in file.files}
            return values, json.loads(values.pop("state").tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(
                f"The checkpoint {path} is damaged ({error}); the one before it is used.", stacklevel=3
            )
            return None

    def _found(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.match(path.name))

    def _check(
        self,
        path: Path,
        values: Sequence[np.ndarray],
        state: dict[str, Any],
        variables: Sequence[keras.Variable],
    ) -> None:
        """Raises a UserError if what lies in a file does not fit, variable for variable, by its shape.

        Names are not compared: Keras numbers those of layers, and the second model of a process is another.
        """
        paths = _paths(variables)
        for place, (value, variable, then, now) in enumerate(
            zip_longest(values, variables, state["paths"], paths)
        ):
            shapes = [None if x is None else tuple(x.shape) for x in (value, variable)]
            if shapes[0] != shapes[1]:
                raise UserError(
                    f"The checkpoint {path} belongs to another model: its variable {place + 1} is {then} "
                    f"{shapes[0]}, that of this model {now} {shapes[1]}."
                )


def _paths(variables: Sequence[keras.Variable]) -> list[str]:
    return [getattr(v, "path", "") or v.name for v in variables]
