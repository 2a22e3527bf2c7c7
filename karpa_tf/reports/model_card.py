"""Parts of a model card, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def metrics_table(metrics: Mapping[str, Any], names: Sequence[str], what: str = "model") -> str:
    """Returns a Markdown table of a model's (or policy's) figures and its baselines'."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in {f"this {what}": metrics, **metrics["baselines"]}.items():
        cells = [f"{row[key]:.4g}" if key in row else "" for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def settings_list(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a run as a Markdown code block."""
    lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
    return f"Settings of the run:\n\n{lines}"
