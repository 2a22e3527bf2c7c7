"""What recipes share: reading a run, and exporting it if it has learned its task."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import COST, Signature
from karpa_tf.judging.reference import reference_file
from karpa_tf.recipe import Exported, ExportOptions
from karpa_tf.recipes.families import certainty, references
from karpa_tf.recipes.families.ensembles import labels_of
from karpa_tf.recipes.families.teaching import open_teacher
from karpa_tf.reports.model_card import costs_section, origin_section, redaction_section, training_cost
from karpa_tf.training.pruning import Sparsity
from karpa_tf.training.run import RECORD, Run
from karpa_tf.training.run_folder import RunFolder, open_run
from karpa_tf.wordpiece import WordPiece

# In the assets of a run that began with another one: how many labels that had.
_KEPT = "kept_labels.json"
# Methods that train the layer of the labels.
_TRAINING = ("full", "lora", "head")


def learned_or_refuse(
    folder: RunFolder, figure: str, guessing: str, force: bool, *, smaller: bool = False
) -> dict[str, Any]:
    """Returns a finished run's metrics; refuses a run that has not ended or has not learned its task.

    Args:
        folder: of the run.
        figure: what must be better than guessing.
        guessing: the baseline that guesses; "": it reaches 0.
        force: take what has not learned, too.
        smaller: the smaller figure is the better one.
    """
    metrics = folder.final_metrics()
    chance = metrics["baselines"].get(guessing, {}).get(figure, 0.0)
    if (metrics[figure] >= chance if smaller else metrics[figure] <= chance) and not force:
        raise UserError(
            f"{folder.path} has not learned its task: {figure} {metrics[figure]:.3f}, and guessing gives "
            f"{chance:.3f}; train longer or with another learning_rate, or --force."
        )
    return metrics


def first_vocabulary(init: str, lowercase: bool) -> Path | str:
    """Returns the vocabulary of the run that another begins with, or "" where there is none.

    Raises:
        UserError: that run reads text in another way.
    """
    if not init:
        return ""
    other = open_run(init)
    if other.read_config().get("lowercase", lowercase) != lowercase:
        raise UserError(
            f"--init: {init} was trained with lowercase {str(not lowercase).lower()}; give this run the same."
        )
    return other.assets / "vocab.txt"


def same_vocabulary(init: str, wordpiece: WordPiece, advice: str) -> None:
    """Raises a UserError if the run that another begins with has other pieces than this one."""
    if init and WordPiece.load(open_run(init).assets / "vocab.txt").pieces != wordpiece.pieces:
        raise UserError(f"--init: {init} has another vocabulary; {advice.format(open_run(init).assets)}.")


def labels_in_order(config: Any, labels: Sequence[str], recipe: str) -> list[str]:
    """Returns the labels of a run, in the order of its logits.

    Those of the run that it begins with come first, and the new ones behind them. With a teacher that has the
    same ones, they are in its order. What is computed from rows and not trained begins with none.

    Args:
        config: of the run.
        labels: of its data.
        recipe: of the run.

    Raises:
        UserError: the run that it begins with is one of another recipe, which has other labels.
    """
    teacher, trains = getattr(config, "teacher", ""), getattr(config, "method", "full") in _TRAINING
    if config.init and trains:
        other = open_run(config.init)
        before = labels_of(other)
        if set(before) != set(labels) and other.recipe != recipe:
            raise UserError(
                f"--init: {config.init} is a run of {other.recipe}, not of {recipe}, and has other labels."
            )
        return [*before, *(label for label in labels if label not in before)]
    if teacher and set(known := labels_of(open_teacher(teacher))) == set(labels):
        return known
    return list(labels)


def grown_weights(model: keras.Model, weights: Sequence[np.ndarray], before: int) -> list[np.ndarray]:
    """Returns the weights of a network for a network of more labels: the new labels' start as they are.

    Args:
        model: of more labels, the first of which are those of the other one; its last layer is `logits`.
        weights: of the other network, in the order of `model.weights`.
        before: how many labels that has.

    Raises:
        ValueError: they differ in more than the labels.
    """
    # A model that tells no labels apart has none.
    head = {id(v) for layer in model.layers if layer.name == "logits" for v in layer.weights}
    found = []
    for variable, array in zip(model.weights, weights, strict=True):
        value = np.array(variable)
        if id(variable) in head and array.shape[-1] == before:
            value[..., :before] = array
        elif array.shape == value.shape:
            value = array
        else:
            raise ValueError(f"{variable.path} is {value.shape} here and {array.shape} there")
        found.append(value)
    return found


def begin_with_labels(
    run: Run[Any],
    model: keras.Model,
    names: Sequence[str],
    open_network: Callable[[RunFolder], keras.Model],
    *,
    adapters: bool = False,
) -> None:
    """Puts the weights of the run that `init` names into a model of its labels and perhaps new ones.

    Args:
        run: that is trained; without `init` nothing is done.
        model: its own.
        names: its labels, as `labels_in_order` gives them.
        open_network: returns the network of a run.
        adapters: the other run keeps adapters alone, which are merged.

    Raises:
        UserError: the weights do not fit.
    """
    if not (init := run.settings.init):
        return
    other = open_run(init)
    before = labels_of(other)
    run.write_asset(_KEPT, len(before))
    if before == list(names) and not adapters:
        run.begin_with(model)
        return
    try:
        weights = grown_weights(model, open_network(other).get_weights(), len(before))
    except ValueError:
        weights = []  # refused in the words of every other misfit
    run.begin_with(model, weights)
    if (new := names[len(before) :]) and any(layer.name == "logits" for layer in model.layers):
        run.say(
            f"{init} has {len(before)} labels, which keep their weights; new: "
            f"{', '.join(new[:5])}{f' and {len(new) - 5} more' if len(new) > 5 else ''}"
        )


def kept_and_new(folder: RunFolder, true: np.ndarray, found: np.ndarray) -> dict[str, str]:
    """Returns a fact each on the labels that a run began with and on its new ones, if it has both.

    Args:
        folder: of the run.
        true: int (n,), the places of rows' labels.
        found: int (n,), those that the run gives.
    """
    if not (folder.assets / _KEPT).exists():
        return {}
    facts, count = {}, folder.read_json(f"assets/{_KEPT}")
    for name, mine in (("labels of init", true < count), ("new labels", true >= count)):
        if mine.any() and not mine.all():
            facts[name] = f"accuracy {(true == found)[mine].mean():.4f} on {mine.sum():,} rows"
    return facts


def make_sparsity(run: Run[Any], model: keras.Model, batches: Batches) -> Sparsity | None:
    """Returns how a run prunes its model as it is trained, and says so; None: it does not."""
    config = run.settings
    if not config.sparsity:
        return None
    sparsity = Sparsity(model, config.sparsity, config.epochs * batches.steps_per_epoch)
    run.say(
        f"Pruning: {config.sparsity:.0%} of the weights of each of {len(sparsity.matrices)} matrices become "
        f"zero by step {sparsity.end}. It makes files smaller when they are compressed, and nothing faster."
    )
    return sparsity


def load_weights(
    model: keras.Model,
    folder: RunFolder,
    load: Callable[[keras.Model, Path], Any] = keras.Model.load_weights,
) -> None:
    """Puts a run's best weights into a model; raises a UserError if they cannot be read or do not fit."""
    with reading_weights(folder):
        load(model, folder.best_weights)


@contextlib.contextmanager
def reading_weights(folder: RunFolder) -> Iterator[None]:
    """Makes a UserError of what goes wrong where a run's weights, or files beside them, are read."""
    missing = not folder.best_weights.exists()
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:150]
        if missing:
            reason = "it is not there; the run has not ended its first epoch"
        raise UserError(
            f"{folder.best_weights} cannot be read ({reason}); go on with `"
            f"{folder.resume_command}`, or train again."
        ) from None


def read_labels(folder: RunFolder, name: str) -> list[str]:
    """Returns the labels of a run, in the order of its model's outputs.

    Args:
        folder: of the run.
        name: of the file in its assets.

    Raises:
        UserError: the file is damaged, or its labels are not those of the run's data.
    """
    path = folder.assets / name
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
        right = isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)
        record = folder.assets / RECORD
        known = json.loads(record.read_text(encoding="utf-8")).get("labels") if record.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} or {RECORD} beside it cannot be read ({error}); train again.") from None
    if not right or (known and known != labels):
        raise UserError(
            f"{path} is damaged: its labels are not those that {folder.path} was trained on; `"
            f"{folder.resume_command}` writes it again."
        )
    return labels


def export(
    folder: RunFolder,
    options: ExportOptions,
    signature: Signature,
    others: Mapping[str, Signature] | None = None,
    held_out: tuple[Mapping[str, np.ndarray], Sequence[str]] | None = None,
    held_out_beside: Mapping[str, tuple[Mapping[str, np.ndarray], Sequence[str]]] | None = None,
    **written: Any,
) -> Exported:
    """Writes the next version of a run's SavedModel.

    Args:
        folder: of the run.
        options: where to.
        signature: what it serves.
        others: further signatures by name.
        held_out: of a classifier: validation rows as arrays by input, and their labels; see `references`.
        held_out_beside: the same of further signatures.
        written: what else `export_savedmodel` takes: examples, assets, the model card.
    """
    written["model_card"] += training_cost(folder.environment)
    written["model_card"] += certainty.section(folder)
    if threshold := certainty.threshold_file(folder):
        written["assets"] = {**written["assets"], "unknown.json": json.dumps(threshold, indent=2) + "\n"}
    written["model_card"] += origin_section(folder.read_config())
    written["model_card"] += redaction_section(folder.read_config())
    written["model_card"] += costs_section((folder.read_metrics() or {}).get("costs"))
    signatures = {"serving_default": signature, **(others or {})}
    found = {"serving_default": references.keep(folder, signature, *held_out)} if held_out else {}
    for name, rows in (held_out_beside or {}).items():
        found[name] = references.reference_of(signatures[name], *rows)
    written["extra"] = {
        reference_file(n): references.as_text(found_) for n, found_ in found.items() if found_
    }
    path = export_savedmodel(signatures, options.to, folder.recipe, force=options.force, **written)
    folder.note(**json.loads((path / "assets.extra" / COST).read_text(encoding="utf-8")))
    return Exported(format="savedmodel", path=str(path), signatures=describe(signatures))
