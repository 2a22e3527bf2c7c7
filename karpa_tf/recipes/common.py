"""What recipes share: beginning a run, its final figures, refusing what is not learned, the model card."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from karpa_tf.data.sources import DataRecord
from karpa_tf.errors import UserError
from karpa_tf.reports.tensorboard import write_final
from karpa_tf.settings import RunSettings
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.loop import History
from karpa_tf.training.run_folder import RunFolder, open_run, resolve_init, write_json

# Where a run notes what its data was.
_RECORD = "data.json"


def printer(chief: bool) -> Callable[..., Any]:
    """Returns a function that prints a line on standard error; at one worker of several."""
    return (lambda line: print(line, file=sys.stderr, flush=True)) if chief else (lambda line: None)


def tell_if_early(tell: Callable[..., Any], history: History, epochs: int, best: BestWeights) -> None:
    """Says so if training has stopped before its last epoch, and why."""
    if len(history) < epochs and best.best is not None:
        waited = "1 epoch" if best.wait == 1 else f"{best.wait} epochs"
        tell(
            f"Stopped early, after epoch {len(history)} of {epochs}: for {waited} no {best.monitor} was "
            f"better than {best.best:.4f}, that of epoch {best.best_epoch}, whose weights are kept "
            f"(--patience {best.patience})."
        )


def write_figures(
    folder: RunFolder, result: Mapping[str, Any], history: History, best_epoch: int, step: int, **more: float
) -> dict[str, float]:
    """Writes a supervised run's final figures and returns them.

    Args:
        folder: of the run.
        result: what the recipe's `evaluate` says of the best weights.
        history: of the training.
        best_epoch: from which they are, counted from 1.
        step: the last one.
        **more: further figures.
    """
    kept = history[best_epoch - 1]
    metrics = {
        **result["metrics"],
        **{f"validation_{k[4:]}": v for k, v in kept.items() if k[:4] == "val_"},
        **more,
    }
    folder.write_metrics(
        {
            **metrics,
            "best_epoch": best_epoch,
            "steps": step,
            "graph_traces": history.graph_traces,
            "baselines": result["baselines"],
            "facts": result["facts"],
        }
    )
    write_final(folder.path, metrics, step)
    return metrics


def finished_metrics(folder: RunFolder) -> dict[str, Any]:
    """Returns a run's metrics; raises a UserError if it has not ended."""
    metrics = folder.read_metrics()
    if metrics is None:
        raise UserError(f"{folder.path} has not ended: go on with `{folder.resume_command}`.")
    return metrics


def learned_or_refuse(folder: RunFolder, figure: str, chance: float, force: bool) -> dict[str, Any]:
    """Returns a finished run's metrics; refuses a run that has not ended or has not learned its task."""
    metrics = finished_metrics(folder)
    if metrics[figure] <= chance and not force:
        raise UserError(
            f"{folder.path} has not learned its task: {figure} {metrics[figure]:.3f}, and guessing gives "
            f"{chance:.3f}; train longer or with another learning_rate, or --force."
        )
    return metrics


def begin_run(
    folder: RunFolder,
    config: RunSettings,
    *,
    resume: bool,
    record: DataRecord | None = None,
    chief: bool = True,
    **facts: Any,
) -> None:
    """Writes what a run was told, and refuses to go on with other data than it began with.

    Args:
        folder: of the run.
        config: its settings.
        resume: the run goes on.
        record: of its data, if it has any.
        chief: whether this process writes.
        **facts: for environment.json.

    Raises:
        UserError: the data is not what it was, or `init` names no run.
    """
    if resume and record and ((folder.assets / _RECORD).exists() or folder.begun):
        check_data(folder, getattr(config, "data", ""), record)
    resolve_init(config, folder.path.parent.parent)
    if not chief:
        return
    if record:
        write_json(folder.assets / _RECORD, dataclasses.asdict(record))
    folder.write_environment(config.seed, **facts)
    folder.write_config(config)


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
        record = folder.assets / _RECORD
        known = json.loads(record.read_text(encoding="utf-8")).get("labels") if record.exists() else None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} or {_RECORD} beside it cannot be read ({error}); train again.") from None
    if not right or (known and known != labels):
        raise UserError(
            f"{path} is damaged: its labels are not those that {folder.path} was trained on; `"
            f"{folder.resume_command}` writes it again."
        )
    return labels


def check_data(folder: RunFolder, source: str, now: DataRecord) -> None:
    """Raises a UserError that says what differs, if the data is not what the run was trained on."""
    try:
        then = folder.read_json(f"assets/{_RECORD}")
        fingerprint, sizes, labels = then["fingerprint"], then.get("sizes", {}), then.get("labels", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.assets / _RECORD} cannot be read ({error}); train again.") from None
    if fingerprint == now.fingerprint:
        return
    differs = []
    gone, new = (sorted(set(a) - set(b)) for a, b in ((labels, now.labels), (now.labels, labels)))
    if sizes and gone:
        differs.append(f"no {', '.join(gone[:5])} any more")
    if sizes and new:
        differs.append(f"new: {', '.join(new[:5])}")
    for split, size in sizes.items():
        if size != now.sizes.get(split):
            differs.append(f"{now.sizes.get(split, 0):,} instead of {size:,} in {split}")
    if not differs:
        differs = ["as many of them, but others or in another order" if sizes else "its contents differ"]
    raise UserError(
        f"{source} is not the data that {folder.path} was trained on ({'; '.join(differs)}): bring that data "
        f"back; or train a new run on this data, with --init {folder.path} to begin with these weights."
    )


def metrics_table(metrics: Mapping[str, Any], names: Sequence[str], what: str = "model") -> str:
    """Returns a Markdown table of a model's (or policy's) figures and its baselines'."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in {f"this {what}": metrics, **metrics["baselines"]}.items():
        cells = [f"{row[key]:.4g}" if key in row else "" for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_list(folder: RunFolder) -> str:
    """Returns the settings of a run as a Markdown code block."""
    lines = "\n".join(f"    {key}: {value}" for key, value in folder.read_config().items())
    return f"Settings of the run:\n\n{lines}"
