"""Cross-validation by `--folds K`: K runs, each tested on another part of the data, and their mean.

Every fold is a run like any other, with `fold` in its settings: it resumes, is evaluated and exported by
itself. The run that was asked for holds no model, but which runs they are and what their figures say
together. A learning curve by `--curve` is trained likewise: a run a method and number of shots.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import keras
import numpy as np

from karpa_tf.data.sources import Split
from karpa_tf.data.tables import fold_places
from karpa_tf.errors import UserError
from karpa_tf.recipe import Recipe
from karpa_tf.recipes.families.settings import SplitSettings
from karpa_tf.training.run_folder import RunFolder, create_run, locked, remove_if_unused, write_json

_FOLDS, _CURVE = "folds.json", "curve.json"
# Below so many rows to test on, or of a class, a figure says little.
_ENOUGH = 50
_ENOUGH_OF_CLASS = 5

Rows = TypeVar("Rows")


def cross_validate(recipe: Recipe[Any], config: Any, folder: RunFolder, *, resume: bool) -> dict[str, float]:
    """Trains a run a fold, one after the other, and returns the means of their figures.

    Args:
        recipe: what is trained.
        config: with `folds`, and `fold` 0.
        folder: of the run that was asked for; its metrics.json gets the means and deviations.
        resume: go on with the folds that have begun.
    """
    every = {str(number): dataclasses.replace(config, fold=number) for number in range(1, config.folds + 1)}
    titles = [f"fold {number} of {config.folds}" for number in every]
    figures = _train_each(recipe, config, every, titles, folder, _FOLDS, resume=resume)
    names = [name for name in figures[0] if name != "run"]
    values = {name: [row[name] for row in figures] for name in names}
    means = {name: float(np.mean(value)) for name, value in values.items()}
    deviations = {name: float(np.std(value, ddof=1)) for name, value in values.items()}
    folder.write_metrics({**means, "deviations": deviations, "folds": figures})
    for name in names:
        if not name.startswith("validation_"):
            each = ", ".join(f"{value:.4f}" for value in values[name])
            _say(f"{name} {means[name]:.4f} +- {deviations[name]:.4f} ({each})")
    return means


def learning_curve(recipe: Recipe[Any], config: Any, folder: RunFolder, *, resume: bool) -> dict[str, float]:
    """Trains a run of the method, and one of method full, for each number of shots; says which one is better.

    Args:
        recipe: what is trained.
        config: with `curve`.
        folder: of the run that was asked for; its metrics.json gets a figure a run, as `fewshot_5`.
        resume: go on with the runs that have begun.

    Returns:
        The figures by method and number of shots, and `full_wins_from`: the least number of shots from which
        on full is the better one, if there is one but all rows.
    """
    numbers, methods = config.curve_shots(), (config.method, "full")
    every = {
        f"{method}_{shots or 'all'}": dataclasses.replace(config, curve="", method=method, shots=shots)
        for shots in numbers
        for method in methods
    }
    titles = [name.replace("_", ", shots ") for name in every]
    found = _train_each(recipe, config, every, titles, folder, _CURVE, resume=resume)
    figure = recipe.about.figure
    figures = {name: row[figure] for name, row in zip(every, found, strict=True)}
    _say(f"{figure:<10} {methods[0]:>8} {methods[1]:>8}")
    wins: list[int] = []
    for shots in numbers:
        own, full = (figures[f"{method}_{shots or 'all'}"] for method in methods)
        wins = [*wins, shots] if full > own else []
        _say(f"shots {shots or 'all':<4} {own:>8.4f} {full:>8.4f}")
    last = f"full is better than {config.method} from shots {wins[0] or 'all'} on" if wins else ""
    _say(f"{last or f'full is not better than {config.method} with the most shots'}.")
    metrics = {**figures, **({"full_wins_from": float(wins[0])} if wins and wins[0] else {})}
    folder.write_metrics({**metrics, "runs": dict(zip(every, found, strict=True))})
    return metrics


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _train_each(
    recipe: Recipe[Any],
    config: Any,
    every: Mapping[str, Any],
    titles: Sequence[str],
    folder: RunFolder,
    file: str,
    *,
    resume: bool,
) -> list[dict[str, Any]]:
    """Trains a run for each of several settings, one after the other.

    Args:
        recipe: what is trained.
        config: of the run that was asked for.
        every: the settings by name.
        titles: what the lines of progress call them.
        folder: of the run that was asked for.
        file: in its assets, with the runs by name.
        resume: go on with the runs that have begun.

    Returns:
        The path and the figures of each.
    """
    if config.strategy == "multi-worker":
        flag = "folds" if file == _FOLDS else "curve"
        raise UserError(f"--{flag} trains on one machine. Received: strategy multi-worker.")
    runs: dict[str, str] = {}
    if resume and (folder.assets / file).exists():
        runs = folder.read_json(f"assets/{file}")
    figures: list[dict[str, Any]] = []
    for (name, mine), title in zip(every.items(), titles, strict=True):
        begun = name in runs
        run = RunFolder(folder.path.parent / runs[name]) if begun else _new_run(folder)
        _say(f"{title}: {run.path}")
        done = run.read_metrics() if begun else None
        if done is None or run.read_config().get("epochs") != config.epochs:
            runs[name] = run.path.name
            _note(folder, config, file, runs)
            try:
                keras.utils.clear_session()
                with locked(run.path), _traced_once_more():
                    recipe.start(mine, run, resume=begun)
            finally:
                if not begun and not run.begun:  # it could not even start
                    remove_if_unused(run)
                    del runs[name]
                    _note(folder, config, file, runs)
            done = run.read_metrics() or {}
        figures.append({"run": str(run.path), **{k: v for k, v in done.items() if isinstance(v, float)}})
    return figures


@contextmanager
def _traced_once_more() -> Iterator[None]:
    """Keeps off the screen that functions are traced again and again: every fold has its own, once."""

    def other(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def _new_run(folder: RunFolder) -> RunFolder:
    command = (folder.path / "command.txt").read_text(encoding="utf-8").split(maxsplit=1)
    return create_run(folder.path.parent.parent, folder.recipe, command[1:], folder.code)


def _note(folder: RunFolder, config: SplitSettings, file: str, runs: Mapping[str, str]) -> None:
    """Makes of the folder a run that can be resumed; if none has begun, one that nothing is kept of."""
    write_json(folder.assets / file, runs)
    folder.write_environment(config.seed)
    folder.write_config(config)
    if runs:
        folder.checkpoints.mkdir(exist_ok=True)
    else:
        folder.checkpoints.rmdir()


def held_out_shares(config: SplitSettings) -> dict[str, float]:
    """Returns what is to be cut from the data: with folds, nothing to test on but the fold."""
    test_share = 0.0 if config.folds else config.test_share
    return {"validation_share": config.validation_share, "test_share": test_share}


def hold_out_fold(
    config: SplitSettings,
    splits: dict[Split, Rows],
    brings_test: bool,
    groups: Callable[[Rows], tuple[Sequence[Any], Sequence[str]]],
    take: Callable[[Rows, Sequence[int]], Rows],
) -> dict[Split, Rows]:
    """Returns the splits of the fold that a run is tested on; those that there are, without folds.

    Args:
        config: of the run.
        splits: its data's; the validation split is the same in all folds.
        brings_test: whether the data has a test split of its own.
        groups: rows to their keys (rows of one key stay together) and labels.
        take: some of the rows.

    Raises:
        UserError: the data brings a test split, or has too few rows.
    """
    if not config.folds:
        return splits
    if brings_test:
        raise UserError(
            f"--folds tests on all rows in turn, and {config.data} brings a test split, which training never "
            "reads; give the training file alone, or leave --folds out."
        )
    keys, labels = groups(splits["train"])
    test = fold_places(keys, labels, config.fold, config.folds)
    rest = sorted(set(range(len(labels))) - set(test))
    return {**splits, "train": take(splits["train"], rest), "test": take(splits["train"], test)}


def thin_test(
    config: SplitSettings,
    rows: int,
    labels: Sequence[str],
    names: Sequence[str],
    brings_test: bool,
) -> str:
    """Returns a line, if a test split is too small to say much; else nothing.

    Args:
        config: of the run.
        rows: to test on.
        labels: that are found there, as often as they are.
        names: all labels.
        brings_test: whether the split is the data's own.
    """
    counts = Counter(labels)
    few = [name for name in names if counts[name] < _ENOUGH_OF_CLASS]
    if config.folds or (rows >= _ENOUGH and not few):
        return ""
    what = f"There {'is 1 row' if rows == 1 else f'are {rows} rows'} to test on"
    if few:
        rarest = min(few, key=lambda name: counts[name])
        some = f'"{few[0]}" has' if len(few) == 1 else f"{len(few)} of {len(names)} labels have"
        what += f", and {some} fewer than {_ENOUGH_OF_CLASS} of them"
        what += f" ({counts[rarest]})" if len(few) == 1 else f' ("{rarest}": {counts[rarest]})'
    advice = "--test_share holds out more"
    if "folds" not in config.refuses:
        advice += ", and --folds 5 tests on all of them in turn"
    return f"{what}: such figures say little. {'More rows in it say more' if brings_test else advice}."


def shrink_batch(config: SplitSettings, rows: int, workers: int) -> str:
    """Makes a batch no larger than the training rows; returns a line that says so, or nothing."""
    parts = workers * config.accumulate
    largest = max(parts, rows // parts * parts)
    if config.batch_size <= largest or config.batch_size % parts:
        return ""
    before, config.batch_size = config.batch_size, largest
    return f"--batch_size {before} is more than the {rows} rows to learn from; it is {largest} here."
