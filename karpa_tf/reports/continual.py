"""The accuracies of a classifier that learns tasks one after the other, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def format_accuracies(accuracies: Sequence[Sequence[float]]) -> list[str]:
    """Returns the lines of a table: a row after each task, a column a task, and the mean over those so far.

    Args:
        accuracies: row i has i values.
    """
    heads = [*(f"task {number}" for number in range(1, len(accuracies) + 1)), "mean"]
    lines = ["after task  " + "  ".join(f"{head:>7}" for head in heads)]
    for number, row in enumerate(accuracies, 1):
        cells = [*(f"{value:.4f}" for value in row), *[""] * (len(accuracies) - number)]
        cells.append(f"{np.mean(row):.4f}")
        lines.append(f"{number:>10}  " + "  ".join(f"{cell:>7}" for cell in cells))
    return lines


def draw_accuracies(accuracies: Sequence[Sequence[float]]) -> np.ndarray:
    """Draws them, a row after each task, a column a task.

    Args:
        accuracies: row i has i values.

    Returns:
        uint8 (height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(accuracies)
    values = np.full((count, count), np.nan)
    for number, row in enumerate(accuracies):
        values[number, : len(row)] = row
    side = min(max(4.0, 0.7 * count), 20.0)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    ticks, names = np.arange(count), [str(number) for number in range(1, count + 1)]
    axes.set_xticks(ticks, names)
    axes.set_yticks(ticks, names)
    axes.set(xlabel="accuracy on task", ylabel="after task")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black"
        )
    figure.colorbar(picture, ax=axes, shrink=0.8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
