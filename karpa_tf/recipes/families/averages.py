"""A run whose weights are a mean of others': interpolation between two, and soups of several.

Which shares are tried is decided on validation splits alone; the test splits are read for the chosen one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import keras
import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.models.averaging import Statistics, mean_weights
from karpa_tf.recipe import About, Evaluation
from karpa_tf.recipes.families import ensembles
from karpa_tf.reports.interpolation import write_interpolation
from karpa_tf.reports.tables import format_table
from karpa_tf.training.ancestry import lineage, note_ancestors
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder, open_run

# What is noted in the assets: the shares, the figures of all that were tried, the barriers.
_NOTE = "average.json"
# Of a run's assets, what is of its own training alone.
_NOT_COPIED = (
    *("start.json", "data.json", "teacher.json", "pretraining.json", "ensemble.json", _NOTE),
    *ensembles.FITTED_TO_ONE,
)

Figures = dict[str, float]


class Rows(NamedTuple):
    """The data of a run, for a network with the run's labels.

    Attributes:
        data: all of it.
        figures: gives what computes figures on `validation` or `test` of it, or on other data.
        features: of its training in batches, for the statistics of batch normalization.
    """

    data: Any
    figures: Callable[[str], Callable[[], Figures]]
    features: Iterable[Any] = ()


class Averages(ensembles.Joins, Protocol):
    """A recipe whose runs can be averaged."""

    about: ClassVar[About]

    def network(self, folder: RunFolder) -> keras.Model:
        """Returns the network of a run with its best weights, in float32."""

    def rows_of(self, folder: RunFolder, model: keras.Model) -> Rows:
        """Opens the data of a run; the weights of the network, which gives figures, may change later."""

    def fit_certainty(self, run: Run[Any], splits: Mapping[Any, Any]) -> None:
        """Fits on validation rows how sure the run may be, once its best weights are kept."""


def average(recipe: Averages, run: Run[Any]) -> Figures:
    """Makes of the runs that `average` names one run, and returns its final figures.

    Args:
        recipe: of all of them.
        run: the new one.

    Raises:
        UserError: the runs are of different architectures, vocabularies or labels, have not ended, or one
            of them is an ensemble.
    """
    config, folder = run.settings, run.folder
    parents = [open_run(path) for path in config.averaged()]
    ensembles.check_members(recipe, parents, "Runs that are averaged")
    how = {name: getattr(config, name) for name in ("lambdas", "decide", "data2")}
    if config != parents[0].open_config(type(config)).averaging(config.average, **how):
        raise UserError("An average has the settings of its first run: `karpa-tf interpolate` takes them.")
    if joined := next((parent for parent in parents if ensembles.members_of(parent)), None):
        raise UserError(f"{joined.path} is an ensemble: it has no weights of its own to average.")
    model = recipe.network(parents[0])
    weights = [model.get_weights(), *(recipe.network(parent).get_weights() for parent in parents[1:])]
    for parent, arrays in zip(parents, weights, strict=True):
        _check_shapes(model, weights[0], arrays, parents[0], parent)
        _check_standardization(parents[0], parent)
    ancestors = _say_whether_it_can_work(run, parents)
    mix = _Mix(recipe, model, weights, parents, config)
    run.begin(ensembles.record_of(mix.first.data, parents[0]))
    for path in parents[0].assets.iterdir():
        if path.name not in _NOT_COPIED and path.is_file():
            shutil.copy2(path, folder.assets / path.name)
    if run.chief:
        note_ancestors(folder, ancestors)
    made = _soups(mix, run) if config.lambdas == "soup" else _interpolate(mix, run)
    chosen, shares, facts, note = made
    mix.put(shares)
    run.keep(model)
    run.write_asset(_NOTE, {"chosen": chosen, "shares": shares, **note})

    def evaluate() -> Evaluation:
        recipe.fit_certainty(run, mix.first.data.splits)
        found = recipe.evaluate(folder, recipe.about.evaluate(), 0)
        beside = mix.tested(shares, chosen)
        found.baselines = {**beside.pop(""), **found.baselines}
        found.facts |= {**facts, **beside}
        return found

    return run.finish(evaluate)


# --- What is tried --------------------------------------------------------------------------------


def _interpolate(mix: _Mix, run: Run[Any]) -> tuple[str, list[float], dict[str, str], dict[str, Any]]:
    """Returns the name, the shares, the facts and the note of the best point between two runs."""
    config = run.settings
    lambdas = [] if config.lambdas == "essay" else config.values_of_lambda()
    rows: dict[float, dict[str, Figures]] = {}
    if not lambdas:
        rows[0.0] = mix.figures([1.0, 0.0])
        losses = [figures["loss"] for figures in rows[0.0].values()]
        if len(losses) < 2:
            raise UserError(
                "--lambda essay is the first run's loss on its data over that on other data, and both runs "
                "have the same: give other data as --data2."
            )
        ratio = losses[0] / max(losses[1], 1e-12)
        lambdas = [round(min(max(ratio, 0.0), 1.0), 4)]
        run.say(
            f"lambda = L1(M1) / L2(M1) = {losses[0]:.4f} / {losses[1]:.4f} = {ratio:.4f}"
            f"{', clipped to 1' if ratio > 1 else ''}"
        )
    for value in sorted({0.0, *lambdas, 1.0}):
        if value not in rows:
            rows[value] = mix.figures([1.0 - value, value])
    rows = dict(sorted(rows.items()))
    best = max(lambdas, key=lambda value: mix.rank(rows[value]))
    barriers = mix.barriers(rows)
    named = {f"lambda {value:g}": mix.row(figures) for value, figures in rows.items()}
    facts = {
        "lambda": f"{best:g}" + (f", the best of {len(lambdas)} on validation" if len(lambdas) > 1 else ""),
        **(
            {f"barrier ({n})": said for n, said in mix.say_barriers(barriers).items()}
            if len(rows) > 2
            else {}
        ),
    }
    run.say(*format_table(named), *(f"{name}: {value}" for name, value in facts.items()))
    if run.chief:
        title = f"M1 = {mix.names[0]}, M2 = {mix.names[1]}"
        write_interpolation(run.folder.path, rows, mix.figure, best, title)
    curve = [{"lambda": value, **figures} for value, figures in rows.items()]
    return f"lambda {best:g}", [1.0 - best, best], facts, {"curve": curve, "barriers": barriers}


def _soups(mix: _Mix, run: Run[Any]) -> tuple[str, list[float], dict[str, str], dict[str, Any]]:
    """Returns the same of the better one of a uniform and a greedy soup (Wortsman et al. 2022, recipe 1)."""
    count = len(mix.names)
    single = [mix.figures([float(i == place) for i in range(count)]) for place in range(count)]
    rows = dict(zip(mix.names, single, strict=True))
    rows["uniform soup"] = mix.figures([1 / count] * count)
    ordered = sorted(range(count), key=lambda place: mix.rank(single[place]), reverse=True)
    taken, best = [ordered[0]], single[ordered[0]]
    for place in ordered[1:]:
        tried = mix.figures(_equal([*taken, place], count))
        # A run joins if the figure is no worse with it.
        if mix.rank(tried)[0] >= mix.rank(best)[0]:
            taken, best = [*taken, place], tried
    rows["greedy soup"] = best
    chosen = max(("uniform soup", "greedy soup"), key=lambda name: mix.rank(rows[name]))
    shares = [1 / count] * count if chosen == "uniform soup" else _equal(taken, count)
    facts = {
        "soup": f"{chosen}, the better one on validation",
        "greedy soup": f"of {', '.join(mix.names[place] for place in sorted(taken))}",
    }
    table = {name: mix.row(figures) for name, figures in rows.items()}
    run.say(*format_table(table), *(f"{name}: {value}" for name, value in facts.items()))
    return chosen, shares, facts, {"tried": rows}


def _equal(places: Sequence[int], count: int) -> list[float]:
    return [1 / len(places) if place in places else 0.0 for place in range(count)]


class _Mix:
    """Means of the weights of runs in one network, and their figures on the data of each."""

    def __init__(
        self,
        recipe: Averages,
        model: keras.Model,
        weights: Sequence[Sequence[np.ndarray]],
        parents: Sequence[RunFolder],
        config: Any,
    ) -> None:
        self.model, self.weights = model, weights
        self.names = [f"{parent.recipe}/{parent.path.resolve().name}" for parent in parents]
        if len(set(self.names)) < len(parents):
            self.names = [str(parent.path) for parent in parents]
        self.figure = recipe.about.figure
        # The rows of each data that a run has learned from.
        self.data: dict[str, Rows] = {}
        seen: set[str] = set()
        for parent in parents:
            fingerprint = parent.read_json(ensembles.RECORD)["fingerprint"]
            if fingerprint not in seen:
                name = Path(str(parent.read_config()["data"])).name
                if name in self.data:
                    name = f"{name} of {self.names[len(seen)]}"
                self.data[name] = recipe.rows_of(parent, model)
            seen.add(fingerprint)
        self.first = next(iter(self.data.values()))
        check_data(parents[0], config.data, self.first.data.record)
        self.statistics = Statistics(model, self.first.features)
        self.scorers = {name: rows.figures("validation") for name, rows in self.data.items()}
        self.decide = list(self.scorers)[: 1 if config.decide == "first" else None]
        if config.data2:
            self.scorers[Path(config.data2).name] = self.first.figures(config.data2)
        self.measured: dict[tuple[float, ...], dict[str, Figures]] = {}

    def put(self, shares: Sequence[float], *, as_it_is: bool = False) -> None:
        """Puts a mean into the network; a run `as_it_is` keeps the statistics that it has."""
        self.model.set_weights(mean_weights(self.weights, shares))
        if not as_it_is:
            self.statistics()

    def figures(self, shares: Sequence[float]) -> dict[str, Figures]:
        """Returns the figures on each data: validation, or all of what `data2` names."""
        key = tuple(shares)
        if key not in self.measured:
            self.put(shares)
            self.measured[key] = {name: score() for name, score in self.scorers.items()}
        return self.measured[key]

    def rank(self, figures: Mapping[str, Figures]) -> tuple[float, float]:
        """What decides: the mean of the main figure over validation splits, or of one; then of the loss."""
        mean = np.mean([figures[name][self.figure] for name in self.decide])
        return float(mean), -float(np.mean([figures[name]["loss"] for name in self.decide]))

    def row(self, figures: Mapping[str, Figures]) -> Figures:
        names = (self.figure, "loss")
        return {f"{data} {name}": found[name] for data, found in figures.items() for name in names}

    def barriers(self, rows: Mapping[float, Mapping[str, Figures]]) -> dict[str, dict[str, float]]:
        """Returns by how much the worst point is below (of a loss: above) the line between both runs.

        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2; Entezari et al. 2022.
        """
        found: dict[str, dict[str, float]] = {}
        for data in rows[0.0]:
            found[data] = {}
            for name, sign in ((self.figure, 1.0), ("loss", -1.0)):
                ends = rows[0.0][data][name], rows[1.0][data][name]
                gaps = {
                    value: sign * ((1 - value) * ends[0] + value * ends[1] - figures[data][name])
                    for value, figures in rows.items()
                }
                at = max(gaps, key=gaps.__getitem__)
                found[data] |= {name: max(0.0, gaps[at]), f"{name} at lambda": at}
        return found

    def say_barriers(self, barriers: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
        said = {}
        for data, found in barriers.items():
            height, at = found[self.figure], found[f"{self.figure} at lambda"]
            where = f" at lambda {at:g}" if height else ""
            said[data] = (
                f"{self.figure} {100 * height:.2f} points below the line between both runs{where}, loss "
                f"{found['loss']:.3f} above"
            )
        return said

    def tested(self, shares: Sequence[float], chosen: str) -> dict[str, Any]:
        """Returns the runs' figures on the first one's test split, by "", and a fact on each other data."""
        every = [[float(i == place) for i in range(len(self.names))] for place in range(len(self.names))]
        rows: dict[str, dict[str, Figures]] = {}
        for data, opened in self.data.items():
            score = opened.figures("test")
            rows[data] = {}
            for name, own in [*zip(self.names, every, strict=True), (chosen, list(shares))]:
                self.put(own, as_it_is=name != chosen)
                rows[data][name] = score()
        first, *others = self.data
        facts = {
            f"{self.figure} on the test split of {data}": "; ".join(
                f"{name} {figures[self.figure]:.4f}" for name, figures in rows[data].items()
            )
            for data in others
        }
        rows[first].pop(chosen)
        return {"": rows[first], **facts}


# --- Whether it can work --------------------------------------------------------------------------


def _check_shapes(
    model: keras.Model,
    weights: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    first: RunFolder,
    second: RunFolder,
) -> None:
    """Raises a UserError that names the first weight in which two networks differ."""
    if len(weights) != len(others):
        raise UserError(
            f"{first.path} and {second.path} are networks of different architectures: {len(weights)} and "
            f"{len(others)} arrays of weights."
        )
    for variable, one, other in zip(model.weights, weights, others, strict=True):
        if one.shape != other.shape:
            raise UserError(
                f"{first.path} and {second.path} are networks of different architectures: {variable.path} is "
                f"{one.shape} in one and {other.shape} in the other."
            )


def _check_standardization(first: RunFolder, second: RunFolder) -> None:
    """Raises a UserError if two networks of images take other means and deviations out of the pixels."""
    measured = [
        folder.read_json("assets/images.json") if (folder.assets / "images.json").is_file() else {}
        for folder in (first, second)
    ]
    if measured[0] != measured[1]:
        raise UserError(
            f"{first.path} and {second.path} standardize pixels in other ways, {measured[0]} and "
            f"{measured[1]}: begin the second with --init of the first, or train both on the same data."
        )


def _say_whether_it_can_work(run: Run[Any], parents: Sequence[RunFolder]) -> set[str]:
    """Says whether the runs have a common start; returns hashes of the weights that all of them come of."""
    every = [lineage(parent) for parent in parents]
    common = set.intersection(*every)
    names = " and ".join(str(parent.path) for parent in parents)
    if common:
        run.say(f"{names} have one architecture, the same labels, and a common start: a mean can work.")
    else:
        run.say(
            f"{names} have one architecture and the same labels, but no common start: their neurons stand in "
            "different orders, so a mean of their weights is expected to do far worse than either of them."
        )
    return common
