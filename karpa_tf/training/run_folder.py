"""The run folder `logs/<recipe>/<run>/`: the settings of a run, what it reached, and where its files are.

config.yaml         every field; loads again with `--config`
command.txt         the command line that started the run
environment.json    versions, commit, seed; the group that the run is of, and why it has failed, if so
metrics.json        final figures; written when the run has ended
checkpoints/        to resume
best.weights.h5     weights of the best validation loss
assets/             what evaluate and export need beside the weights: vocabulary, labels
train/ validation/  TensorBoard event files
tags.txt            words put on it, if there are any
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from filelock import FileLock, Timeout

from karpa_tf.errors import UserError, did_you_mean, writing
from karpa_tf.lines import InALine
from karpa_tf.recipe import all_recipes
from karpa_tf.settings import FORMAT, RunSettings, check_format, convert, read_yaml, types_of

_Settings = TypeVar("_Settings", bound=RunSettings)

_LOCK = ".lock"
# Words that were put on a run, one a line.
_TAGS = "tags.txt"

_PACKAGES = ("karpa-tf", "tensorflow", "keras", "keras-hub", "tensorflow-text", "numpy")


@dataclass(frozen=True, repr=False)
class RunFolder(InALine):
    """Paths and small files of one run.

    Attributes:
        path: of the folder, `logs/RECIPE/NUMBER`.
    """

    path: Path

    @property
    def recipe(self) -> str:
        """The name of its recipe."""
        return self.path.resolve().parent.name

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints are."""
        return self.path / "checkpoints"

    @property
    def best_weights(self) -> Path:
        """The weights of the best epoch."""
        return self.path / "best.weights.h5"

    @property
    def has_weights(self) -> bool:
        """Whether there is something to predict with: weights, a table of values, or members of it."""
        others = (self.assets / "q_values.npy", self.path / "members")
        return self.best_weights.exists() or any(path.exists() for path in others)

    @property
    def assets(self) -> Path:
        """What evaluate and export need beside the weights."""
        return self.path / "assets"

    @property
    def begun(self) -> bool:
        """Whether a first step was made: with it the folder of the checkpoints comes."""
        return self.checkpoints.is_dir()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on with."""
        return any(self.checkpoints.rglob("step-*.npz"))

    def write_config(self, config: RunSettings) -> None:
        """Writes the settings `config` as config.yaml."""
        values = {"format": FORMAT, **dataclasses.asdict(config)}
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_whole(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Returns the fields of config.yaml.

        Raises:
            UserError: it is damaged, or a newer version has written it.
        """
        path = self.path / "config.yaml"
        try:
            values = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"{path} is damaged: {' '.join(str(error).split())[:200]}.") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} is damaged: it holds no fields.")
        check_format(path, values.pop("format", FORMAT))
        return values

    def open_config(self, config: type[_Settings]) -> _Settings:
        """Returns the run's settings; a field that an older version did not have gets its default.

        Raises:
            UserError: config.yaml is damaged, or holds fields or values that this version does not have.
        """
        values = self.read_config()
        known = types_of(config)
        odd = sorted(set(map(str, values)) - set(known))
        if odd:
            raise UserError(
                f"{self.path / 'config.yaml'} was written by another version of karpa_tf (environment.json "
                f'beside it names that): this one has no field "{odd[0]}"{did_you_mean(odd[0], known)}'
            )
        try:
            return config(**{key: convert(key, known[key], values[key], text=True) for key in values})
        except UserError as error:
            raise UserError(f"{self.path / 'config.yaml'} is damaged: {error}") from None

    def read_json(self, name: str) -> Any:
        """Returns what the JSON file `name` of the run holds, e.g. `assets/policy.json`."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    @property
    def environment(self) -> dict[str, Any]:
        """What environment.json holds; nothing where there is none.

        Raises:
            UserError: it is damaged.
        """
        path = self.path / "environment.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}.") from None
        if not isinstance(found, dict):
            raise UserError(f"{path} is damaged: it holds no object.")
        return found

    @property
    def code(self) -> str:
        """The folder of the recipe that the run is of, if it is the user's own; else nothing.

        Raises:
            UserError: environment.json is damaged.
        """
        return self.environment.get("recipe", {}).get("path", "")

    @property
    def group(self) -> str:
        """The number of the first run of its group, if it is one of several seeds; else nothing."""
        return self.environment.get("group", "")

    @property
    def tags(self) -> list[str]:
        """Words that were put on it by `karpa-tf runs tag`."""
        path = self.path / _TAGS
        return path.read_text(encoding="utf-8").split() if path.is_file() else []

    def write_tags(self, tags: Sequence[str]) -> None:
        """Puts words on it, in the place of those that it has.

        Args:
            tags: without white space.
        """
        write_whole(self.path / _TAGS, "".join(f"{tag}\n" for tag in tags))

    @property
    def is_being_trained(self) -> bool:
        """Whether a process trains into it now: it holds the folder's lock."""
        if not (self.path / _LOCK).exists():
            return False
        lock = FileLock(self.path / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        except OSError:  # a folder of somebody else's
            return False
        lock.release()
        return False

    @property
    def resume_command(self) -> str:
        """What goes on with the run."""
        return shlex.join(["karpa-tf", "train", self.code or self.recipe, "--resume", str(self.path)])

    def write_environment(self, seed: int | None = None, *, code: str = "", **facts: Any) -> None:
        """Writes environment.json: versions, platform, commit; the group stays that was noted before.

        Args:
            seed: of the run.
            code: the folder of the recipe, if it is the user's own; empty: the one that was noted before.
            facts: what else there is to note.
        """
        if code := code or self.code:
            facts["recipe"] = {"name": self.recipe, "path": code}
        if group := self.group:
            facts["group"] = group
        write_json(self.path / "environment.json", {**environment(), "seed": seed, **facts})

    def note_failure(self, error: BaseException) -> str:
        """Writes into environment.json why a training failed, until it goes on; returns that.

        Args:
            error: what was raised.
        """
        reason = " ".join(str(error).split())[:300]
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        self.note(failed=reason)
        return reason

    def note(self, **facts: Any) -> None:
        """Adds facts to environment.json, until the run begins anew or goes on."""
        write_json(self.path / "environment.json", {**self.environment, **facts})

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes the final figures `metrics`; with them a run has ended."""
        write_json(self.path / "metrics.json", metrics)

    def read_metrics(self) -> dict[str, Any] | None:
        """Returns the final figures, or None while the run has not ended.

        Raises:
            UserError: metrics.json is damaged.
        """
        try:
            metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
            if not isinstance(metrics, dict):
                raise ValueError
            return metrics
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.path / 'metrics.json'} is damaged: train --resume writes it again."
            ) from None

    def final_metrics(self) -> dict[str, Any]:
        """Returns the final figures; raises a UserError if the run has not ended."""
        if (metrics := self.read_metrics()) is None:
            raise UserError(f"{self.path} has not ended: go on with `{self.resume_command}`.")
        return metrics


def create_run(logs: str | Path, recipe: str, command: Sequence[str], code: str = "") -> RunFolder:
    """Makes the next numbered folder; two processes never get the same one.

    Args:
        logs: of all runs.
        recipe: its name.
        command: the words behind `karpa-tf`.
        code: the folder of the recipe, if it is the user's own.

    Raises:
        UserError: `logs` cannot be written to.
    """
    parent = Path(logs) / recipe
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        number = max([int(p.name) for p in parent.iterdir() if p.name.isdecimal()], default=0) + 1
        while True:
            try:
                (parent / str(number)).mkdir()
                break
            except FileExistsError:
                number += 1
        folder = RunFolder(parent / str(number))
        folder.assets.mkdir()
        write_whole(folder.path / "command.txt", shlex.join(["karpa-tf", *command]) + "\n")
        if code:
            folder.write_environment(code=code)
    return folder


def no_run(logs: str | Path, recipe: str) -> RunFolder:
    """Returns a run folder that is never made, for a process that writes nothing."""
    return RunFolder(Path(logs) / recipe / "none")


def remove_if_unused(folder: RunFolder) -> None:
    """Removes the folder of a new run that ended before its first step."""
    if not folder.begun:
        shutil.rmtree(folder.path, ignore_errors=True)
        for parent in (folder.path.parent, folder.path.parent.parent):
            with suppress(OSError):
                parent.rmdir()  # only if nothing else is in it


@contextmanager
def locked(folder: str | Path, name: str = _LOCK, what: str = "") -> Iterator[None]:
    """Keeps a folder for one training at a time, across processes; the lock ends with its process.

    Raises:
        UserError: another training has it.
    """
    lock = lock_folder(folder, name, what)
    try:
        yield
    finally:
        lock.release()


def lock_folder(folder: str | Path, name: str = _LOCK, what: str = "") -> FileLock:
    """Returns the lock of a folder, taken; see `locked`. `what` begins the sentence if another has it."""
    lock = FileLock(Path(folder) / name)
    with writing(folder):
        try:
            # `is_being_trained` may have it for a moment.
            lock.acquire(timeout=0.2)
        except Timeout:
            raise UserError(
                f"{what or f'{folder} is being trained into'} by another process; wait until that has ended, "
                "or stop it."
            ) from None
    return lock


def resolve_init(config: RunSettings, logs: str | Path) -> None:
    """Puts the path of the run that is meant into `config.init`: `RECIPE/latest` is another one tomorrow.

    Raises:
        UserError: there is no such run.
    """
    init = getattr(config, "init", "")
    if init:
        config.init = str(open_run(init, logs).path.resolve())  # type: ignore[attr-defined]
    for name in ("teacher", "ensemble", "average", "rehearse_from"):
        # A path is left as it is: an ensemble has copies, and whoever needs the run says that it is gone.
        runs = [run for run in getattr(config, name, "").split(",") if run]
        if runs:
            found = [
                run if Path(run).is_absolute() else str(open_run(run, logs).path.resolve()) for run in runs
            ]
            setattr(config, name, ",".join(found))


def open_run(run: str | Path, logs: str | Path = "logs") -> RunFolder:
    """Opens a run.

    Args:
        run: its path, or `RECIPE/latest`: the newest one of a recipe.
        logs: the folder of all runs.

    Returns:
        Its folder.

    Raises:
        UserError: there is no such run.
    """
    if not str(run).strip():
        raise UserError('A run is named by its folder, or RECIPE/latest. Received: "".')
    path = Path(run)
    if path.name == "latest" and not path.exists():
        # The folder of a recipe of one's own may have the same name.
        runs = _runs_in(path.parent) or _runs_in(Path(logs) / path.parent)
        if not runs:
            recipe = path.parent.name
            hint = "; train one first."
            if recipe not in (known := recipes_in(logs)):
                hint = did_you_mean(recipe, known, hint)
            raise UserError(f"There is no run of {recipe} in {logs}{hint}")
        return RunFolder(runs[-1])
    for candidate in (path, Path(logs) / path):
        if (candidate / "config.yaml").is_file():
            return RunFolder(candidate)
    if not path.exists():
        raise UserError(f"There is no run {run}; `karpa-tf runs` lists those that there are.")
    raise UserError(f"{run} is not a run folder: it holds no config.yaml.")


def open_with_model(run: str | Path, logs: str | Path = "logs") -> RunFolder:
    """Opens a run that holds a model: not one that is the mean of folds or a learning curve.

    Args:
        run: as for `open_run`.
        logs: the folder of all runs.

    Raises:
        UserError: there is no such run, or it holds no model.
    """
    folder = open_run(run, logs)
    config = folder.read_config()
    if config.get("folds") and not config.get("fold"):
        raise UserError(
            f"{folder.path} is the mean of {config['folds']} folds, and holds no model; name a fold: "
            "its metrics.json lists them."
        )
    if config.get("curve"):
        raise UserError(
            f"{folder.path} is a learning curve, and holds no model; name one of its runs: its metrics.json "
            "lists them."
        )
    return folder


def find_events(name: str, logs: str | Path) -> Path:
    """Returns the folder that TensorBoard is to show: of a recipe, a run, another folder, or all of `logs`.

    Raises:
        UserError: there is none.
    """
    for candidate in (Path(logs) / name, *([Path(name)] if name else [])):
        if candidate.is_dir():
            return candidate
    if not name:
        raise UserError(f"There is no folder {logs}: train first, or name another one with --logs.")
    if name in recipes_in(logs):
        raise UserError(f"There is no run of {name} in {logs}; train one first.")
    return open_run(name, logs).path


def _runs_in(parent: Path) -> list[Path]:
    return [path for path in numbered(parent) if (path / "config.yaml").is_file()]


def numbered(parent: Path) -> list[Path]:
    """Returns the run folders of a recipe's folder, in their order."""
    if not parent.is_dir():
        return []
    return sorted((p for p in parent.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))


def recipes_in(logs: str | Path) -> list[str]:
    """Returns the names of the recipes that there are, and of those that there are runs of."""
    parents = sorted(Path(logs).iterdir()) if Path(logs).is_dir() else []
    return list(dict.fromkeys([*all_recipes(), *(p.name for p in parents if numbered(p))]))


def environment() -> dict[str, Any]:
    """Returns versions, platform and, in a git checkout, the commit."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that is there whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
