"""Parts of a model card, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from karpa_tf.reports.tables import figure


def metrics_table(metrics: Mapping[str, Any], names: Sequence[str], what: str = "model") -> str:
    """Returns a Markdown table of a model's (or policy's) figures and its baselines'."""
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in {f"this {what}": metrics, **metrics["baselines"]}.items():
        cells = [f"{row[key]:.4g}" if key in row else "" for key in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def costs_section(costs: Mapping[str, Any] | None) -> str:
    """Returns a section with `judging.costs.Costs`, given as a dict; "" where there are none."""
    if not costs:
        return ""
    table = costs["table"]
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for name, row in table.items():
        lines.append(f"| {name} | {' | '.join(figure(row[key]) if key in row else '' for key in names)} |")
    return "\n".join(["", "## Costs", "", *lines, "", f"How: {costs['how']}.", ""])


def settings_list(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a run as a Markdown code block."""
    lines = "\n".join(f"    {key}: {value}" for key, value in settings.items())
    return f"Settings of the run:\n\n{lines}"
