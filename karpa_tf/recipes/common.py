"""What recipes of supervised learning share at their ends: refusing what is not learned, the model card."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from karpa_tf.configs import TrainingConfig
from karpa_tf.errors import UserError
from karpa_tf.training.run_folder import RunFolder


def printer(chief: bool) -> Callable[..., Any]:
    """Returns a function that prints a line on standard error; at one worker of several."""
    return (lambda line: print(line, file=sys.stderr, flush=True)) if chief else (lambda line: None)


def learned_or_refuse(folder: RunFolder, figure: str, chance: float, force: bool) -> dict[str, Any]:
    """Returns a finished run's metrics; refuses a run that has not ended or has not learned its task."""
    metrics = folder.read_metrics()
    if metrics is None:
        raise UserError(
            f"{folder.path} has not ended: go on with `karpa-tf train {folder.recipe} --resume "
            f"{folder.path}`."
        )
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


def metrics_table(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns a Markdown table of a model's figures and its baselines'."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in {"this model": metrics, **metrics["baselines"]}.items():
        cells = [f"{row[key]:.4g}" if key in row else "" for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_list(config: TrainingConfig) -> str:
    """Returns the settings of a run as a Markdown code block."""
    lines = "\n".join(f"    {key}: {value}" for key, value in dataclasses.asdict(config).items())
    return f"Settings of the run:\n\n{lines}"
