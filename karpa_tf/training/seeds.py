"""Several seeds of one recipe: a group of runs, and what their figures say together.

Each seed is a run like any other, trained by a process of its own, so that it reaches what `train --seed`
reaches. Its environment.json names the group, by the number of the group's first run; config.yaml stays a
file that `--config` takes. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.recipe import About
from karpa_tf.settings import RunSettings
from karpa_tf.training.listing import list_runs
from karpa_tf.training.run_folder import RunFolder, create_run, locked, remove_if_unused

# In the folder of a group's first run.
GROUP_LOCK = ".seeds.lock"
# Of the intervals.
_CONFIDENCE = 0.95


def parse_seeds(text: str) -> list[int]:
    """Returns the seeds that `0:10` (the last one excluded) or `0,3,7` stands for.

    Raises:
        UserError: it is neither, or names less than two, or one of them twice.
    """
    parts = [part.strip() for part in (text.split(":") if ":" in text else text.split(","))]
    wrong = not all(part.isdecimal() for part in parts) or (":" in text and len(parts) != 2)
    seeds = [] if wrong else [int(part) for part in parts]
    if seeds and ":" in text:
        seeds = list(range(*seeds))
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds takes two seeds at least, as 0:10 (0 to 9) or 0,3,7; one is --seed. Received: {text}."
        )
    return seeds


# --- Training -------------------------------------------------------------------------------------


class SeedRuns(InALine):
    """Trains a recipe with one seed after the other.

    Args:
        settings: of the runs, whatever their `seed`.
        logs: where runs are.
        recipe: its name.
        code: the folder of the recipe, if it is the user's own.
        seeds: which, as `parse_seeds` takes them.
        command: the words behind `karpa-tf`, for command.txt.
        first: a run of the group to go on with; None: a new group.

    Raises:
        UserError: these are no seeds, several workers would train, or the run is none of a group.
    """

    def __init__(
        self,
        settings: RunSettings,
        logs: str | Path,
        recipe: str,
        code: str,
        seeds: str,
        command: Sequence[str],
        first: RunFolder | None = None,
    ) -> None:
        if getattr(settings, "strategy", "") == "multi-worker":
            raise UserError("--seeds trains on one machine. Received: strategy multi-worker.")
        if getattr(settings, "folds", 0):
            raise UserError("--seeds and --folds do not go together; cross-validate one seed.")
        if first and not first.group:
            raise UserError(
                f"--resume: {first.path} is no run of several seeds; leave --seeds out to go on with it."
            )
        self.seeds = seeds
        self.settings = {seed: dataclasses.replace(settings, seed=seed) for seed in parse_seeds(seeds)}
        self.logs = first.path.parent.parent if first else Path(logs)
        self.recipe = recipe
        self.code = code
        self.command = command
        self.group = first.group if first else ""
        self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None

    def train(self) -> dict[str, Any]:
        """Trains what is not finished, and returns the group as `groups` does.

        Raises:
            UserError: the training of a seed has failed.
            KeyboardInterrupt: Ctrl-C, or SIGTERM; the seed that was trained has stopped as any run does.
        """
        with self._signals(), ExitStack() as locks:
            if self.group:
                locks.enter_context(self._alone())
            self._check_lengths()
            for number, (seed, settings) in enumerate(self.settings.items(), 1):
                found = self._runs().get(seed)
                if found and _is_finished(found, settings):
                    continue
                begins = not self.group
                folder = found or self._new_run(settings)
                if begins:
                    locks.enter_context(self._alone())
                self._say(f"seed {seed}, {number} of {len(self.settings)}: {folder.path}")
                status = self._stopped or self._train(folder, settings)
                remove_if_unused(folder)
                if self._stopped or status:
                    self._stopped = self._stopped or status == 130
                    go_on = "nothing is kept"
                    if runs := self._runs():
                        done = sum(_is_finished(run, self.settings.get(s)) for s, run in runs.items())
                        go_on = (
                            f"{done} of {len(self.settings)} seeds are finished. Go on with: "
                            f"{self._resume_command(next(iter(runs.values())))}"
                        )
                    if self._stopped:
                        self._say(f"Stopped; {go_on}")
                        raise KeyboardInterrupt
                    raise UserError(f"The training of seed {seed} has failed, as said above; {go_on}")
        (group,) = (group for group in groups(self._rows()) if group["group"] == self._name)
        return group

    @property
    def _name(self) -> str:
        return f"{self.recipe}/{self.group}"

    def _alone(self) -> AbstractContextManager[None]:
        """Keeps the group for this process: two would train the same seeds, and count them twice."""
        first = next(iter(self._runs().values()))
        return locked(first.path, GROUP_LOCK, f"The seeds of {self._name} are being trained")

    def _check_lengths(self) -> None:
        """Raises a UserError if seeds of the group that are not asked for were trained for another length."""
        settings = next(iter(self.settings.values()))
        length = settings.length
        asked = getattr(settings, length)
        for seed, run in self._runs().items():
            config = run.read_config()
            if seed not in self.settings and config[length] != asked:
                raise UserError(
                    f"--seeds: seed {seed} of {self._name} has {length} {config[length]}, which would be "
                    f"averaged with {asked}: name it in --seeds too, or give --{length} {config[length]}."
                )

    def _runs(self) -> dict[int, RunFolder]:
        """Returns the runs of the group by their seeds."""
        if not self.group:
            return {}
        rows = [row for row in self._rows() if row.get("group") == self._name]
        return {row["config"]["seed"]: RunFolder(Path(row["run"])) for row in rows}

    def _rows(self) -> list[dict[str, Any]]:
        return list_runs(self.logs, self.code or self.recipe)

    def _new_run(self, settings: RunSettings) -> RunFolder:
        folder = create_run(self.logs, self.recipe, self.command, self.code)
        self.group = self.group or folder.path.name
        folder.write_environment(settings.seed, group=self.group)
        folder.write_config(settings)
        return folder

    def _train(self, folder: RunFolder, settings: RunSettings) -> int:
        """Goes on with a run, which may not have begun; returns the exit status of the process that does."""
        words = ["train", self.code or self.recipe, "--resume", str(folder.path)]
        if folder.read_config()[settings.length] != getattr(settings, settings.length):
            words += [f"--{settings.length}", str(getattr(settings, settings.length))]
        # The modules of this process, whatever started it.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "karpa_tf", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            process_group=0,  # a terminal sends Ctrl-C to a whole group; here it is passed on, once
        )
        try:
            return self._process.wait()
        finally:
            self._process = None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Passes signals on to the process that trains."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._stopped = True
            if self._process:
                self._process.send_signal(number)

        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, handle))
            yield

    def _resume_command(self, run: RunFolder) -> str:
        return f"{run.resume_command} --seeds {shlex.quote(self.seeds)}"

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


def _is_finished(folder: RunFolder, settings: RunSettings | None) -> bool:
    if settings is None or folder.read_metrics() is None:
        return False
    return bool(folder.read_config()[settings.length] == getattr(settings, settings.length))


# --- What a group says ----------------------------------------------------------------------------


def groups(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the groups among the rows of `list_runs`, with the figures of the runs that are finished.

    Each is `{"group", "runs", "seeds", "finished", "metrics", "deviations", "intervals"}`: the means by name,
    standard deviations (n - 1), and `[low, high]`, Student's 95 % interval of the mean.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if "group" in row:
            found.setdefault(row["group"], []).append(row)
    return [_group(name, mine) for name, mine in found.items()]


def _group(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    finished = [row for row in rows if row["status"] == "finished"]
    group: dict[str, Any] = {
        "group": name,
        "runs": [row["run"] for row in rows],
        "seeds": [row["config"]["seed"] for row in rows],
        "finished": len(finished),
        **{kind: {} for kind in ("metrics", "deviations", "intervals")},
    }
    for figure in finished[0]["metrics"] if finished else ():
        values = [row["metrics"].get(figure) for row in finished]
        if not all(isinstance(value, float) for value in values):
            continue
        group["metrics"][figure] = mean = statistics.fmean(values)
        if len(values) > 1:
            group["deviations"][figure] = deviation = statistics.stdev(values)
            half = half_width(len(values)) * deviation
            group["intervals"][figure] = [mean - half, mean + half]
    return group


def half_width(count: int) -> float:
    """Returns half of Student's 95 % interval of a mean of so many values, in standard deviations."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, (1 + _CONFIDENCE) / 2) / math.sqrt(count))


def format_group(group: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of a group: its figures, but for those of validation."""
    seeds = len(group["seeds"])
    yield f"{group['group']}: {seeds} seed{'s' * (seeds > 1)}, {group['finished']} finished"
    names = [name for name in group["intervals"] if not name.startswith("validation_")]
    width = max(map(len, names), default=0)
    for name in names:
        yield f"  {name:<{width}}  {_spread(group, name)}; 95 % interval of the mean {_interval(group, name)}"


def _spread(group: Mapping[str, Any], name: str) -> str:
    return f"{group['metrics'][name]:.4g} +- {group['deviations'][name]:.3g}"


def _interval(group: Mapping[str, Any], name: str) -> str:
    low, high = group["intervals"][name]
    return f"{low:.4g} to {high:.4g}"


def paper_line(group: Mapping[str, Any], about: About) -> str:
    """Returns a group's main figure in a line; empty where less than two runs are finished."""
    figure = about.figure or next(iter(group["intervals"]), "")
    if figure not in group["intervals"]:
        return ""
    config = RunFolder(Path(group["runs"][0])).read_config()
    subject = str(config.get("env") or config.get("data") or "")
    where = f" on {Path(subject).name}" if subject else ""
    what = figure.removeprefix("mean_").replace("_", " ")
    return (
        f"{group['group'].split('/')[0]}{where}: {what} {_spread(group, figure)} ({group['finished']} seeds, "
        f"95 % interval {_interval(group, figure)})"
    )


def draw(group: Mapping[str, Any], about: About) -> Path | None:
    """Draws the curves of a group beside its runs: the figure that About's first chart shows.

    Returns:
        The PNG file; None where less than two runs have such a curve.
    """
    from karpa_tf.reports.curves import draw_curves, read_scalars

    runs = [Path(run) for run in group["runs"]]
    recipe, number = group["group"].split("/")
    figure = next(iter(about.charts.values()))[0]
    tag = f"{recipe}/{figure}"
    curves = [
        curve
        for run in runs
        if (curve := read_scalars(run / "validation", tag) or read_scalars(run / "train", tag))
    ]
    if len(curves) < 2:
        return None
    path = runs[0].parent / f"seeds-{number}.png"
    title = f"{group['group']}: {len(curves)} seeds, mean and its 95 % interval"
    draw_curves(path, curves, half_width(len(curves)), title=title, x=about.steps, y=figure)
    return path
