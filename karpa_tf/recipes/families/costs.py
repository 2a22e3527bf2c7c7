"""What runs cost beside each other: exported aside, loaded as a server loads them, and measured."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.export.loader import load_signature
from karpa_tf.export.savedmodel import write_savedmodel
from karpa_tf.export.signature import Signature
from karpa_tf.judging.costs import Costs, measure_costs
from karpa_tf.recipe import Recipe, recipe_of
from karpa_tf.recipes.families.ensembles import members_of
from karpa_tf.settings import RunSettings
from karpa_tf.training import runtime
from karpa_tf.training.pruning import zeros
from karpa_tf.training.run_folder import RunFolder, open_run

# Held-out rows that are measured with, at most.
ROWS = 256


def parents_of(folder: RunFolder, settings: RunSettings) -> dict[str, RunFolder]:
    """Returns the runs, by name, that a run comes of, whose costs stand beside its own; of most runs none."""
    members = {f"member {number}": member for number, member in enumerate(members_of(folder), 1)}
    paths = [getattr(settings, "teacher", ""), getattr(settings, "init", "") if is_pruned(settings) else ""]
    return members or {_name(run): run for run in map(open_run, filter(None, paths))}


def is_pruned(settings: RunSettings) -> bool:
    """Whether a run removes something of the weights that it begins with."""
    return any(getattr(settings, name, 0) for name in ("sparsity", "prune_heads", "prune_neurons"))


def compare_signatures(
    signatures: Mapping[str, Signature],
    rows: Mapping[str, np.ndarray],
    figures: Mapping[str, Mapping[str, float]],
) -> Costs:
    """Exports signatures aside, loads them and measures what they cost.

    Args:
        signatures: by the name of the model.
        rows: arrays (n, ...) by input.
        figures: what each reaches.
    """
    with tempfile.TemporaryDirectory() as aside:
        models = {}
        for number, (name, signature) in enumerate(signatures.items()):
            path = Path(aside) / str(number)
            write_savedmodel({"serving_default": signature}, path, {})
            models[name] = (path, load_signature(path))
        return measure_costs(models, rows, figures, threads=runtime.usable_cores())


def compare_with_parents(recipe: Recipe[Any], folder: RunFolder, parents: Mapping[str, RunFolder]) -> None:
    """Measures a finished run and those that it comes of, and keeps that as `costs` of its metrics.

    Args:
        recipe: of the run.
        folder: of the run.
        parents: the latter by name.
    """
    metrics = folder.final_metrics()
    signatures, figures = {}, {}
    for name, run in [*parents.items(), (_name(folder), folder)]:
        own = recipe if run is folder else recipe_of(run).load()
        reached = run.final_metrics()
        figure = own.about.figure or next(iter(reached))
        name = str(run.path) if name in signatures else name
        signatures[name] = own.signature(run, own.about.predict())
        figures[name] = {figure: reached[figure]}
        if getattr(folder.open_config(recipe.about.settings), "sparsity", 0):
            figures[name]["zeros"] = zeros(signatures[name].variables)
    costs = compare_signatures(signatures, recipe.served_rows(folder, ROWS), figures)
    folder.write_metrics({**metrics, "costs": dataclasses.asdict(costs)})


def _name(folder: RunFolder) -> str:
    return f"{folder.recipe}/{folder.path.resolve().name}"
