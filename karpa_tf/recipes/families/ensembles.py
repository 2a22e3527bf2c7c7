"""An ensemble as a run: it keeps copies of its members, and predicts with the mean of their probabilities.

`members/` of its folder is a folder of runs like `logs/`: each member is a run as any other, with its
settings, its assets and its weights, and the runs that they were copied from may be deleted.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import keras
import numpy as np

from karpa_tf.data.sources import DataRecord
from karpa_tf.errors import UserError
from karpa_tf.judging.mixtures import best_temperature, mixture_weights
from karpa_tf.judging.reference import REFERENCE
from karpa_tf.models.ensemble import Ensemble
from karpa_tf.recipe import About, Evaluation
from karpa_tf.recipes.families import certainty
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder, open_run

_MEMBERS = "members"
# What a run notes of its data.
RECORD = "assets/data.json"
# What of a run its copy has.
_KEPT = ("config.yaml", "environment.json", "metrics.json", "best.weights.h5", "assets", _MEMBERS)
# The row of a table that has the means of the members' figures.
_MEAN = "members' mean"
# In the assets of the ensemble: what was fitted on the validation split.
_FITTED = "ensemble.json"
# Assets that were fitted to the weights of one run, and say nothing of a run that comes of it.
FITTED_TO_ONE = (REFERENCE, *certainty.FILES)
# The least probability that a logarithm is taken of.
_SMALLEST = 1e-12

# A model to labels int (n,) and its probabilities float32 (n, classes) for them.
Labelled = Callable[[keras.Model], tuple[np.ndarray, np.ndarray]]


class Joins(Protocol):
    """A recipe whose runs can be joined."""

    about: ClassVar[About]

    def open_data(self, config: Any) -> Any:
        """Opens the data of a run, by split."""

    def reads(self, folder: RunFolder) -> dict[str, Any]:
        """Returns how a run reads its inputs: what members must have in common, by a name for people."""

    def member(self, folder: RunFolder) -> keras.Model:
        """Returns the model of a run as it is evaluated."""

    def validation(self, folder: RunFolder) -> Labelled:
        """Returns what a run's models say of its validation split."""

    def evaluate(self, folder: RunFolder, options: Any, step: int | None = None) -> Evaluation:
        """Returns the figures of a run on held-out data."""


def members_of(folder: RunFolder) -> list[RunFolder]:
    """Returns the copies of the members in an ensemble's folder, in their order."""
    paths = (folder.path / _MEMBERS / folder.recipe).glob("*")
    return [RunFolder(path) for path in sorted(paths, key=lambda path: int(path.name))]


def open_ensemble(recipe: Joins, folder: RunFolder) -> Ensemble:
    """Returns the model of an ensemble: its members', joined; raises a UserError if they are gone."""
    members, fitted = members_of(folder), {}
    if not members:
        raise UserError(f"{folder.path} has lost its {_MEMBERS}/: make the ensemble again.")
    if (folder.assets / _FITTED).exists():
        fitted = folder.read_json(f"assets/{_FITTED}")
    return Ensemble([recipe.member(member) for member in members], **fitted)


def join(recipe: Joins, run: Run[Any]) -> dict[str, float]:
    """Makes of the runs that `ensemble` names one run, and returns its final figures.

    Args:
        recipe: of all of them.
        run: the new one.

    Raises:
        UserError: the runs are no two, have not ended, or are of different tasks.
    """
    config, folder = run.settings, run.folder
    if not members_of(folder):
        parents = [open_run(path) for path in config.members()]
        check_members(recipe, parents)
        if config != parents[0].open_config(type(config)).joined(config.ensemble, config.weights):
            raise UserError(
                "An ensemble has the settings of its first member: `karpa-tf ensemble RUN...` takes them."
            )
        for number, parent in enumerate(parents, 1):
            _copy(parent, folder.path / _MEMBERS / folder.recipe / str(number))
    members = members_of(folder)
    data = recipe.open_data(config)
    run.begin(record_of(data, members[0]))
    for path in members[0].assets.iterdir():  # labels, vocabulary: what the ensemble is opened by
        if path.name not in (_FITTED, *FITTED_TO_ONE) and not (folder.assets / path.name).exists():
            shutil.copy2(path, folder.assets / path.name)
    for member in members[1:]:
        say_other_rows(run, member, f"Member {member.path.name}")
    if config.weights == "validation":
        labelled = recipe.validation(folder)
        found = [labelled(recipe.member(member)) for member in members]
        labels, each = found[0][0], np.stack([probabilities for _, probabilities in found])
        weights = mixture_weights(each, labels)
        mean = np.tensordot(weights, each, axes=1)
        temperature = best_temperature(np.log(np.maximum(mean, _SMALLEST)), labels)
        run.write_asset(_FITTED, {"weights": weights.tolist(), "temperature": temperature})
        shares = ", ".join(f"{weight:.3f}" for weight in weights)
        run.say(
            f"Fitted on {len(labels):,} rows of validation: weights {shares}; temperature {temperature:.3f}"
        )
    folder.checkpoints.mkdir(exist_ok=True)  # the sign of a run that has begun
    return run.finish(lambda: recipe.evaluate(folder, recipe.about.evaluate(), 0))


def record_of(data: Any, first: RunFolder) -> DataRecord:
    """Returns the record of a run's data, with the labels in the order of the first run that it comes of."""
    return dataclasses.replace(data.record, labels=labels_of(first))


def check_members(recipe: Joins, parents: Sequence[RunFolder], what: str = "An ensemble's members") -> None:
    """Raises a UserError unless these are two finished runs at least, of one task, that read inputs alike."""
    first, *others = parents
    for parent in parents:
        parent.final_metrics()
    labels, reads = labels_of(first), recipe.reads(first)
    for other in others:
        check_labels(labels, labels_of(other), str(first.path), str(other.path))
        for name, value in recipe.reads(other).items():
            if value != reads[name]:
                shown = [f" ({v})" if isinstance(v, (int, str)) else "" for v in (reads[name], value)]
                raise UserError(
                    f"{what} read their inputs alike, and {first.path}{shown[0]} and {other.path}{shown[1]} "
                    f"do not have the same {name}."
                )


def say_other_rows(run: Run[Any], parent: RunFolder, name: str) -> None:
    """Says of a run that another one comes of if it has perhaps learned from what the latter is tested on.

    Args:
        run: the latter; it has begun.
        parent: the former.
        name: what the former is called.
    """
    if run.chief and len({folder.read_json(RECORD)["fingerprint"] for folder in (run.folder, parent)}) > 1:
        run.say(
            f"{name} was trained on other rows than {run.settings.data}: some of the test split's may be "
            "among them; evaluate on rows that it has not seen, with --data."
        )


def labels_of(folder: RunFolder) -> list[str]:
    """Returns the labels of a run, as its data's record has them."""
    return list(folder.read_json(RECORD)["labels"])


def check_labels(labels: Sequence[str], others: Sequence[str], first: str, second: str) -> None:
    """Raises a UserError that says in which labels two runs, `first` and `second`, differ, if they do."""
    if list(labels) == list(others):
        return
    only = [
        f"only {name} has {', '.join(mine[:5])}{' ...' if len(mine) > 5 else ''}"
        for name, mine in (
            (first, [label for label in labels if label not in others]),
            (second, [label for label in others if label not in labels]),
        )
        if mine
    ]
    raise UserError(
        f"{first} and {second} are runs of different tasks: their labels differ "
        f"({'; '.join(only) or 'in their order'})."
    )


def beside_members(
    model: keras.Model, evaluate: Callable[[keras.Model], Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Returns the figures of an ensemble's members, and their means; nothing of another model.

    Args:
        model: perhaps an ensemble.
        evaluate: gives the figures of a model.
    """
    if not isinstance(model, Ensemble):
        return {}
    each = [dict(evaluate(member)) for member in model.members]
    rows = {f"member {number}": row for number, row in enumerate(each, 1)}
    return {_MEAN: {name: float(np.mean([row[name] for row in each])) for name in each[0]}, **rows}


def errors_beside(
    rows: int, metrics: Mapping[str, float], members: Mapping[str, Mapping[str, float]]
) -> dict[str, str]:
    """Returns the fact of how many errors an ensemble makes, and its members; nothing of another model.

    Args:
        rows: that it was evaluated on.
        metrics: its figures; they have the `accuracy`.
        members: what `beside_members` gave.
    """
    if not members:
        return {}
    own, mean = (rows * (1 - x["accuracy"]) for x in (metrics, members[_MEAN]))
    fewer = f", {abs(1 - own / mean):.0%} {'fewer' if own <= mean else 'more'} than theirs" if mean else ""
    return {"errors": f"{own:.0f} of {rows:,}; its members make {mean:.1f} on average{fewer}"}


def _copy(source: RunFolder, target: Path) -> None:
    target.mkdir(parents=True)
    for name in _KEPT:
        path = source.path / name
        if path.is_dir():
            shutil.copytree(path, target / name)
        elif path.exists():
            shutil.copy2(path, target / name)
