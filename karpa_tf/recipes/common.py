"""What recipes share at their ends: the final figures, refusing what is not learned, the model card."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from karpa_tf.errors import UserError
from karpa_tf.training.loop import History
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.tensorboard import write_final


def printer(chief: bool) -> Callable[..., Any]:
    """Returns a function that prints a line on standard error; at one worker of several."""
    return (lambda line: print(line, file=sys.stderr, flush=True)) if chief else (lambda line: None)


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
        raise UserError(
            f"{folder.path} has not ended: go on with `karpa-tf train {folder.recipe} --resume "
            f"{folder.path}`."
        )
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


def check_fingerprint(folder: RunFolder, data: str, fingerprint: str) -> None:
    """Raises a UserError if the data is not what the run was trained on."""
    if fingerprint not in (folder.assets / "data.json").read_text(encoding="utf-8"):
        raise UserError(
            f"{data} is not the data that {folder.path} was trained on; bring that data back, so that the "
            "test split and the baselines are the run's own."
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
