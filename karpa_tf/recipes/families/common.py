"""What recipes share: reading a run, refusing what is not learned, the model card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.training.run import RECORD
from karpa_tf.training.run_folder import RunFolder, open_run


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
