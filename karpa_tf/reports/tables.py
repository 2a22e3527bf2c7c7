"""Tables of figures, as a terminal shows them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Words in the names of figures of which small values are the better ones.
_LOWER = ("loss", "error", "mse", "mae", "frechet", "perplexity", "distance", "ece", "seconds", "bytes")


def lower_is_better(figure: str) -> bool:
    """Whether small values of a figure are the better ones, as its name says.

    Args:
        figure: its name, e.g. `validation_loss`.
    """
    return any(word in figure.lower().split("_") for word in _LOWER)


def format_table(table: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns the lines of a table.

    Args:
        table: a name a row, and its figures by column; what is no number is left out.
    """
    names = list(
        dict.fromkeys(name for row in table.values() for name, value in row.items() if _is_number(value))
    )
    width = max([len(row) for row in table] + [5])
    widths = [
        max(len(name), 8, *(len(figure(row[name])) for row in table.values() if name in row))
        for name in names
    ]
    cells = [f"{name:>{size}}" for name, size in zip(names, widths, strict=True)]
    lines = [" ".join([" " * width, *cells])]
    for row, values in table.items():
        cells = [
            f"{figure(values[name]):>{size}}" if name in values else " " * size
            for name, size in zip(names, widths, strict=True)
        ]
        lines.append(" ".join([f"{row:<{width}}", *cells]))
    return lines


def columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table of texts, each column as wide as its widest cell.

    Args:
        rows: cells by row, the first of them the header's; all as many.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def figure(value: float) -> str:
    """Returns a figure as a table shows it: four digits, but counts whole."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))
