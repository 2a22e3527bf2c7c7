"""A search: which trials there are, who trains them, what came of them, and what the winner is worth."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml

from karpa_tf.errors import UserError, write_whole
from karpa_tf.lines import InALine
from karpa_tf.recipe import RecipeFolder
from karpa_tf.reports.tables import columns, lower_is_better
from karpa_tf.search.halving import Job, lengths, next_job
from karpa_tf.search.options import SearchOptions
from karpa_tf.search.sampling import random_point, tpe_point
from karpa_tf.search.space import Dimension, parse_space, points_of
from karpa_tf.search.worker import read_curve, tag_of
from karpa_tf.settings import RunSettings
from karpa_tf.training.listing import list_runs
from karpa_tf.training.run_folder import RunFolder, create_run, locked
from karpa_tf.training.seeds import SeedRuns

STATE = "search.json"
_LOCK = ".search.lock"
_HAS_AFFINITY = hasattr(os, "sched_getaffinity")


class Search(InALine):
    """Tries settings of a recipe, each in a run of its own, and trains the best ones further.

    Args:
        folder: of the search; its trials are runs in `folder/RECIPE/NUMBER`.
        recipe: whose settings are searched.
        settings: of all trials, but for what the space says.
        options: of the search.

    Attributes:
        path: its folder.
        code: the folder of the recipe, if it is the user's own; else nothing.
        lengths: at which trials are compared.
        trials: their settings, as far as they differ.
        jobs: what was trained, in the order in which it was begun; None: nothing could be begun then.

    Raises:
        UserError: the options make no sense for the recipe.
    """

    def __init__(
        self, folder: Path, recipe: RecipeFolder, settings: RunSettings, options: SearchOptions
    ) -> None:
        about = recipe.about
        self.path = folder
        self.recipe = recipe
        self.code = str(recipe.path) if recipe.own else ""
        self.settings = settings
        self.options = options
        self.space = parse_space(options.space, about, recipe.name)
        for name in ("ensemble", "average", "folds", "curve"):
            if getattr(settings, name, 0):
                raise UserError(f"search trains plain runs: leave --{name} out.")
        if getattr(settings, "strategy", "") == "multi-worker":
            raise UserError("search trains on one machine. Received: strategy multi-worker.")
        self._check_values()
        if options.parallel > (
            cores := len(os.sched_getaffinity(0)) if _HAS_AFFINITY else os.cpu_count() or 1
        ):
            raise UserError(f"--parallel: there are {cores} cores here. Received: {options.parallel}.")
        self.count = min(options.trials, int(min(points_of(self.space), 2**31)))
        length = getattr(settings, settings.length)
        self.lengths = lengths(length, self.count, options.factor, options.rungs)
        self.monitor = tag_of(options.monitor, about)
        name = self.monitor.rsplit("/", 1)[-1]
        self.lower = lower_is_better(name) if options.mode == "auto" else options.mode == "min"
        self.trials: list[dict[str, Any]] = []
        self.jobs: list[Job | None] = []
        self.reasons: dict[int, str] = {}
        self.winner: dict[str, Any] = {}
        self._workers: list[_Worker] = []
        self._stopped = False

    def _check_values(self) -> None:
        """Raises a UserError for a value that the settings refuse, by itself and beside the first ones."""
        first = {dimension.name: dimension.at(0.0) for dimension in self.space}
        for dimension in self.space:
            for value in dimension.values or (dimension.low, dimension.high):
                try:
                    dataclasses.replace(self.settings, **{dimension.name: value})
                except UserError as error:
                    try:
                        dataclasses.replace(self.settings, **{**first, dimension.name: value})
                    except UserError:
                        raise UserError(f"--space: {error}") from None

    # --- On disk

    def write(self) -> None:
        """Writes search.json: all that a search which goes on needs."""
        state = {
            "recipe": self.code or self.recipe.name,
            "settings": dataclasses.asdict(self.settings),
            "options": dataclasses.asdict(self.options),
            "trials": self.trials,
            "jobs": [job and [job.trial, job.rung, job.value] for job in self.jobs],
            "reasons": {str(trial): reason for trial, reason in self.reasons.items()},
            "winner": self.winner,
        }
        write_whole(self.path / STATE, json.dumps(state, indent=1, ensure_ascii=False).encode() + b"\n")

    def read(self, state: Mapping[str, Any]) -> None:
        """Takes over what an earlier process has come to.

        Args:
            state: what search.json holds.
        """
        self.trials = list(state["trials"])
        self.jobs = [job and Job(*job) for job in state["jobs"]]
        self.reasons = {int(trial): reason for trial, reason in state["reasons"].items()}
        self.winner = dict(state["winner"])

    def run_of(self, trial: int) -> RunFolder:
        """Returns the run folder of a trial."""
        return RunFolder(self.path / self.recipe.name / str(trial + 1))

    @property
    def resume_command(self) -> str:
        """What goes on with the search."""
        name = self.code or self.recipe.name
        return shlex.join(["karpa-tf", "search", name, "--resume", str(self.path)])

    # --- Searching

    def run(self) -> None:
        """Trains trials until nothing is left to train.

        Raises:
            UserError: no trial has ended well.
            KeyboardInterrupt: Ctrl-C, or SIGTERM; everything is written.
        """
        with locked(self.path, _LOCK, f"The trials of {self.path} are being trained"), self._signals():
            try:
                self._train_all()
            finally:
                for worker in self._workers:
                    worker.end()
                self._workers = []
        if not any(job and job.value is not None for job in self.jobs):
            reason = next(iter(self.reasons.values()), "none was begun")
            raise UserError(
                f"No trial of {self.path} has ended well, so there is no winner; the first: {reason}"
            )

    def _train_all(self) -> None:
        """Begins job k when the jobs before k - parallel + 1 have ended."""
        waiting = [place for place, job in enumerate(self.jobs) if job and not self._ended(job)]
        running: dict[int, _Worker] = {}
        place = 0
        while True:
            until = max(0, place - self.options.parallel + 1)
            for earlier in [p for p in sorted(running) if p < until]:
                self._end(earlier, running.pop(earlier))
            if place < len(self.jobs):  # begun by an earlier process
                if place in waiting:
                    running[place] = self._begin(place, running)
                place += 1
                continue
            job = self._choose(until)
            if job is None and not running:
                return
            self.jobs.append(job)
            self.write()
            if job:
                running[place] = self._begin(place, running)
            place += 1

    def _ended(self, job: Job) -> bool:
        return job.value is not None or job.trial in self.reasons

    def _choose(self, until: int) -> Job | None:
        """Returns the next job, from what the jobs before `until` have come to."""
        begun = [job for job in self.jobs if job]
        known = [job for job in self.jobs[:until] if job]
        job = next_job(known, begun, self.count, len(self.lengths), self.options.factor, lower=self.lower)
        if job and job.trial == len(self.trials):
            self.trials.append(self._point(job.trial, known))
        return job

    def _point(self, trial: int, known: Sequence[Job]) -> dict[str, Any]:
        own = {dimension.name: getattr(self.settings, dimension.name) for dimension in self.space}
        if trial == 0 and all(_holds(dimension, own[dimension.name]) for dimension in self.space):
            return own  # so that the winner is no worse than what was given
        seed = self.options.search_seed
        if self.options.sampler == "tpe":
            last = {job.trial: job.value for job in known if job.value is not None}
            seen = [(self.trials[number], value) for number, value in last.items()]
            return tpe_point(self.space, seed, trial, seen, lower=self.lower)
        return random_point(self.space, seed, trial, self.trials)

    def _begin(self, place: int, running: Mapping[int, _Worker]) -> _Worker:
        job = self.jobs[place]
        assert job
        folder = self.run_of(job.trial)
        busy = [id(worker) for worker in running.values()]
        idle = [worker for worker in self._workers if id(worker) not in busy]
        if not idle:
            share = _cores(len(self._workers), self.options.parallel)
            idle = [_Worker(self.path / f"worker-{len(self._workers) + 1}.log", share, self._environment())]
            self._workers += idle
        worker = idle[0]
        try:
            settings = dataclasses.replace(self.settings, **self.trials[job.trial])
        except UserError as error:
            worker.answer = {"reason": str(error)}
            return worker
        if not (folder.path / "config.yaml").exists():
            if not folder.path.is_dir():
                words = ["search", self.recipe.name, "--resume", str(self.path)]
                folder = create_run(self.path, self.recipe.name, words, self.code)
            folder.assets.mkdir(exist_ok=True)
            folder.write_environment(settings.seed, code=self.code)
            folder.write_config(settings)
        worker.begin(
            {
                "recipe": self.code or self.recipe.name,
                "run": str(folder.path),
                "pause": self.lengths[job.rung],
                "monitor": self.monitor,
                "lower": self.lower,
            }
        )
        return worker

    def _end(self, place: int, worker: _Worker) -> None:
        job = self.jobs[place]
        assert job
        answer = worker.wait()
        if answer.get("stopped") or self._stopped:
            self._stopped = True
            raise KeyboardInterrupt
        if "value" in answer:
            job = dataclasses.replace(job, value=answer["value"])
        elif "known" in answer:  # it would be the same with every trial
            known = ", ".join(answer["known"]) or "none"
            raise UserError(
                f"--monitor: no trial has a figure {self.monitor} on validation. There is: {known}."
            )
        else:
            self.reasons[job.trial] = answer["reason"]
        if not worker.alive:
            self._workers.remove(worker)
        self.jobs[place] = job
        self.write()
        self._say(job)

    def _say(self, job: Job) -> None:
        came = self.reasons.get(job.trial) or f"{self.monitor.rsplit('/', 1)[-1]} {job.value:.4g}"
        length = f"{self.lengths[job.rung]:,} of {self.lengths[-1]:,} {self.settings.length}"
        print(
            f"trial {job.trial + 1} of {self.count}, {length}: {came}  ({_shown(self.trials[job.trial])})",
            file=sys.stderr,
            flush=True,
        )

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        if self.recipe.about.legacy_keras:
            environment["TF_USE_LEGACY_KERAS"] = "1"
        return environment

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Passes Ctrl-C and SIGTERM on: trials write their checkpoints, then the search stops."""

        def handle(number: int, frame: FrameType | None) -> None:
            self._stopped = True
            for worker in self._workers:
                worker.interrupt()

        with ExitStack() as stack:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, handle))
            yield

    # --- What came of it

    @property
    def best(self) -> Job:
        """The trial that was best at the last length that any has reached."""
        known = [job for job in self.jobs if job and job.value is not None]
        last = max(job.rung for job in known)
        sign = 1 if self.lower else -1
        return min(
            (job for job in known if job.rung == last), key=lambda job: (sign * (job.value or 0), job.trial)
        )

    def settings_of(self, trial: int) -> RunSettings:
        """Returns the settings of a trial."""
        return dataclasses.replace(self.settings, **self.trials[trial])

    def write_best(self) -> Path:
        """Writes the winner's settings as best.yaml, a file for `--config`; returns its path."""
        values = dataclasses.asdict(self.settings_of(self.best.trial))
        defaults = {field.name: field.default for field in dataclasses.fields(self.settings)}
        chosen = {
            name: value for name, value in values.items() if value != defaults[name] or name in self._names
        }
        text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
        head = (
            f"# The winner of {self.count} trials: {self.monitor.rsplit('/', 1)[-1]} {self.best.value:.4g}.\n"
        )
        path = self.path / "best.yaml"
        write_whole(path, (head + text).encode())
        return path

    @property
    def _names(self) -> list[str]:
        return [dimension.name for dimension in self.space]

    def train_winner(self, logs: str) -> dict[str, Any]:
        """Trains the winner again with fresh seeds, and returns their group as `seeds.groups` does.

        Args:
            logs: where the runs are, as those of `train --seeds` are.
        """
        command = ["search", self.recipe.name, "--resume", str(self.path.resolve())]
        seeds = ",".join(str(self.settings.seed + 1 + k) for k in range(self.options.winner_seeds))
        settings = self.settings_of(self.best.trial)
        first = None
        for row in list_runs(logs, self.code or self.recipe.name):
            said = Path(row["run"]) / "command.txt"
            if "group" in row and said.is_file() and shlex.split(said.read_text())[1:] == command:
                first = first or RunFolder(Path(row["run"]))
        return SeedRuns(settings, logs, self.recipe.name, self.code, seeds, command, first).train()

    def judge(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the winner reached in the search and again, on validation; and its final figures.

        Args:
            group: of its runs with fresh seeds.
        """
        again = []
        for run in group["runs"]:
            curve = read_curve(RunFolder(Path(run)), self.monitor)
            again.append((min if self.lower else max)(curve.values()))
        mean = sum(again) / len(again)
        value = self.best.value
        assert value is not None
        self.winner = {
            "trial": self.best.trial + 1,
            "settings": self.trials[self.best.trial],
            "search": value,
            "fresh_seeds": again,
            "fresh_mean": mean,
            "luck": (mean - value) if self.lower else (value - mean),
            "runs": list(group["runs"]),
            "metrics": group["metrics"],
            "deviations": group["deviations"],
        }
        self.write()
        return self.winner

    @functools.cached_property
    def importance(self) -> dict[str, float]:
        """Returns the share of each setting in the differences at the first length; {}: too few trials."""
        from karpa_tf.judging.importance import importances

        known = [job for job in self.jobs if job and job.rung == 0 and job.value is not None]
        points = [[d.place(self.trials[job.trial][d.name]) for d in self.space] for job in known]
        shares = importances(points, [job.value for job in known])
        return dict(zip(self._names, shares, strict=True)) if shares else {}

    def table(self) -> list[dict[str, Any]]:
        """Returns a row a trial, the best first."""
        last: dict[int, Job] = {}
        for job in self.jobs:
            if job and (job.value is not None or job.trial in self.reasons):
                last[job.trial] = job
        sign = 1 if self.lower else -1
        rows = sorted(
            last.values(),
            key=lambda job: (job.value is None, -job.rung, sign * (job.value or 0.0), job.trial),
        )
        return [
            {
                "trial": job.trial + 1,
                "run": str(self.run_of(job.trial).path),
                "settings": self.trials[job.trial],
                self.settings.length: self.lengths[job.rung],
                "value": job.value,
                **({"reason": self.reasons[job.trial]} if job.trial in self.reasons else {}),
            }
            for job in rows
        ]

    def report(self, winner: Mapping[str, Any]) -> Iterator[str]:
        """Yields lines on the trials, on what makes a difference, and on what the winner is worth.

        Args:
            winner: as `judge` returns it.
        """
        name = self.monitor.rsplit("/", 1)[-1]
        header = ["trial", self.settings.length, name, *self._names]
        rows = [
            [
                str(row["trial"]),
                f"{row[self.settings.length]:,}",
                row.get("reason", "") if row["value"] is None else f"{row['value']:.4g}",
                *map(str, row["settings"].values()),
            ]
            for row in self.table()
        ]
        yield from columns([header, *rows])
        whole = self.count * self.lengths[-1]
        yield (
            f"{self.trained:,} {self.settings.length} trained, {whole / self.trained:.1f} times fewer than "
            f"{self.count} trials in full"
        )
        if shares := self.importance:
            ranked = sorted(shares, key=lambda setting: -shares[setting])
            yield f"what makes a difference: {', '.join(f'{s} {shares[s]:.0%}' for s in ranked)}"
        luck = f"{winner['luck']:.2g}" if winner["luck"] > 0 else "nothing"
        yield (
            f"winner: trial {winner['trial']}, {_shown(winner['settings'])}; {name} on validation "
            f"{winner['search']:.4g} in the search, {winner['fresh_mean']:.4g} with "
            f"{len(winner['fresh_seeds'])} fresh seeds: {luck} of its lead was luck"
        )
        for figure, value in winner["metrics"].items():
            if not figure.startswith("validation_") and figure in winner["deviations"]:
                yield f"  {figure}  {value:.4g} +- {winner['deviations'][figure]:.2g}"
        yield f"settings: {self.path / 'best.yaml'}  runs: {', '.join(winner['runs'])}"

    @property
    def trained(self) -> int:
        """Epochs (episodes, steps) that were trained in all trials together."""
        furthest: dict[int, int] = {}
        for job in self.jobs:
            if job:
                furthest[job.trial] = max(furthest.get(job.trial, 0), self.lengths[job.rung])
        return sum(furthest.values())


class _Worker:
    """A process that trains trials, from here."""

    def __init__(self, log: Path, cores: set[int], environment: Mapping[str, str]) -> None:
        self.answer: dict[str, Any] | None = None
        self.alive = True
        self._busy = False
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "karpa_tf.search.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=dict(environment),
                process_group=0,  # a terminal sends Ctrl-C to a whole group; here it is passed on, once
            )
        if cores:
            os.sched_setaffinity(self._process.pid, cores)
        self._log = log

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin
        return self._process.stdin

    def begin(self, job: Mapping[str, Any]) -> None:
        """Has a trial trained."""
        self._input.write(json.dumps(job).encode() + b"\n")
        self._input.flush()
        self._busy = True

    def wait(self) -> dict[str, Any]:
        """Returns what came of the trial, when it has ended."""
        answer, self.answer = self.answer, None
        if answer is not None:
            return answer
        assert self._process.stdout
        line = self._process.stdout.readline()
        self._busy = False
        if line:
            return dict(json.loads(line))
        self.alive = False
        status = self._process.wait()
        how = (
            "was killed, perhaps for its memory"
            if status == -signal.SIGKILL
            else f"ended with status {status}"
        )
        return {"reason": f"The process that trained it {how}; {self._log} has what it said."}

    def interrupt(self) -> None:
        """Has the trial write its checkpoint and stop."""
        self._process.send_signal(signal.SIGINT)

    def end(self) -> None:
        """Ends the process, when a trial that it trains has stopped."""
        if self._busy:
            self.interrupt()
            self.wait()
        self._input.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


def _cores(number: int, parallel: int) -> set[int]:
    """Returns the cores of one of several workers; none: all."""
    if parallel == 1 or not _HAS_AFFINITY:
        return set()
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[number % parallel :: parallel]) or {cores[number % len(cores)]}


def _holds(dimension: Dimension, value: Any) -> bool:
    if dimension.values:
        return value in dimension.values
    return bool(dimension.low <= value <= dimension.high)


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def new_folder(logs: str | Path, recipe: str) -> Path:
    """Makes the folder of a new search, `LOGS/searches/RECIPE-NUMBER`, and returns it."""
    parent = Path(logs) / "searches"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (parent / f"{recipe}-{number}").mkdir()
            return parent / f"{recipe}-{number}"
        except FileExistsError:
            number += 1


def read_state(folder: Path) -> dict[str, Any]:
    """Returns what the search.json of a search holds.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not {"recipe", "settings", "options", "trials", "jobs", "reasons", "winner"} <= set(state):
            raise ValueError("it lacks a part")
        return dict(state)
    except FileNotFoundError:
        raise UserError(f"--resume: {folder} is no search: it holds no {STATE}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--resume: {path} is damaged ({error}); begin a new search.") from None
