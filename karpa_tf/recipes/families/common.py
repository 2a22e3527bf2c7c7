"""What recipes share: reading a run, and exporting it if it has learned its task."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from karpa_tf.data.batches import Batches
from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import describe, export_savedmodel
from karpa_tf.export.signature import Signature
from karpa_tf.recipe import Exported, ExportOptions
from karpa_tf.reports.model_card import costs_section, origin_section
from karpa_tf.training.pruning import Sparsity
from karpa_tf.training.run import RECORD, Run
from karpa_tf.training.run_folder import RunFolder, open_run
from karpa_tf.wordpiece import WordPiece


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
    **written: Any,
) -> Exported:
    """Writes the next version of a run's SavedModel.

    Args:
        folder: of the run.
        options: where to.
        signature: what it serves.
        others: further signatures by name.
        written: what else `export_savedmodel` takes: examples, assets, the model card.
    """
    written["model_card"] += origin_section(folder.read_config())
    written["model_card"] += costs_section((folder.read_metrics() or {}).get("costs"))
    signatures = {"serving_default": signature, **(others or {})}
    path = export_savedmodel(signatures, options.to, folder.recipe, force=options.force, **written)
    return Exported(format="savedmodel", path=str(path), signatures=describe(signatures))
