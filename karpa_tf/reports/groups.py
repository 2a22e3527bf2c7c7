"""Figures by group: lines of a table, what TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from karpa_tf.reports.tables import columns


def format_groups(
    column: str, figure: str, rows: Sequence[Mapping[str, Any]], gaps: Mapping[str, float]
) -> list[str]:
    """Returns the lines of a table of groups, its smallest group, and the widest equalized-odds gap.

    Args:
        column: that says what a row belongs to.
        figure: the name of what is shown.
        rows: as `judging.by_row.by_group` returns them.
        gaps: by label, as `judging.by_row.equalized_odds_gaps` returns them; {}: there are no labels.
    """
    cells = [
        [row["group"], f"{row['rows']:,}", f"{row['figure']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}"]
        for row in rows
    ]
    lines = list(columns([[column, "rows", figure, "95 % interval"], *cells]))
    smallest = rows[-1]
    lines.append(f"smallest group: {smallest['group']}, {smallest['rows']:,} rows")
    if gaps:
        label = max(gaps, key=lambda name: gaps[name])
        lines.append(f"equalized-odds gap: {gaps[label]:.4f} at most, of label {label}")
    return lines


def groups_markdown(
    column: str, figure: str, rows: Sequence[Mapping[str, Any]], gaps: Mapping[str, float]
) -> str:
    """Returns the same as Markdown, for TensorBoard; arguments as of `format_groups`."""
    lines = [f"| {column} | rows | {figure} | 95 % interval |", "|---|---|---|---|"]
    for row in rows:
        name = str(row["group"]).replace("|", "\\|")
        lines.append(
            f"| {name} | {row['rows']} | {row['figure']:.4f} | {row['low']:.4f} to {row['high']:.4f} |"
        )
    return "\n".join([*lines, "", *format_groups(column, figure, rows, gaps)[-1 - bool(gaps) :]])
