"""Pictures of tasks: support and query sets with answers, sinusoids before and after the steps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

_RIGHT, _WRONG = (46, 125, 50), (198, 40, 40)
_FRAME, _GAP = 3, 12


def draw_task(
    support: np.ndarray,
    support_labels: np.ndarray,
    query: np.ndarray,
    query_labels: np.ndarray,
    answers: np.ndarray,
) -> np.ndarray:
    """Draws one task: a row for each class, with its number, support images, and queries with their answers.

    A query has a green frame if the answer is right; else a red one, with the number of the class answered.

    Args:
        support: float (k, height, width, channels), 0 to 1.
        support_labels: int (k,).
        query: float (n, height, width, channels).
        query_labels: int (n,).
        answers: int (n,), the classes answered.

    Returns:
        uint8 (height, width, 3).
    """
    tile = 2 * max(support.shape[1], 28) + 2 * _FRAME
    ways = int(support_labels.max()) + 1
    shots, queries = (int(np.bincount(of, minlength=ways).max()) for of in (support_labels, query_labels))
    sheet = Image.new("RGB", (2 * _GAP + (shots + queries) * tile, ways * tile), "white")
    draw = ImageDraw.Draw(sheet)
    for row in range(ways):
        draw.text((2, (row + 0.5) * tile), str(row), fill="black", anchor="lm")
        for column, i in enumerate(np.flatnonzero(support_labels == row)):
            _paste(sheet, support[i], (_GAP + column * tile, row * tile), tile)
        for column, i in enumerate(np.flatnonzero(query_labels == row)):
            place = (2 * _GAP + (shots + column) * tile, row * tile)
            right = answers[i] == row
            draw.rectangle((*place, place[0] + tile - 1, place[1] + tile - 1), _RIGHT if right else _WRONG)
            _paste(sheet, query[i], place, tile)
            if not right:
                draw.rectangle((*place, place[0] + 14, place[1] + 12), _WRONG)
                draw.text((place[0] + 3, place[1] + 1), str(answers[i]), fill="white")
    return np.asarray(sheet)


def _paste(sheet: Image.Image, image: np.ndarray, place: tuple[int, int], tile: int) -> None:
    pixels = np.rint(255 * np.broadcast_to(image, (*image.shape[:2], 3))).astype(np.uint8)
    side = tile - 2 * _FRAME
    picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST)
    sheet.paste(picture, (place[0] + _FRAME, place[1] + _FRAME))


def draw_fit(
    support: tuple[np.ndarray, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    fits: Mapping[int, np.ndarray],
) -> np.ndarray:
    """Draws one regression of one variable: the function, the points to learn it from, and what was learned.

    Args:
        support: x and y, float (k,).
        truth: x and y of the function, float (n,), in any order.
        fits: answers (n,) at the same x by the number of steps after which they were given.

    Returns:
        uint8 (height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    order = np.argsort(truth[0])
    axes.plot(truth[0][order], truth[1][order], color="black", linewidth=2, label="function")
    for number, (steps, fit) in enumerate(fits.items()):
        strength = (number + 1) / len(fits)
        label = "before" if steps == 0 else f"after {steps} step{'s' * (steps > 1)}"
        axes.plot(truth[0][order], fit[order], "--", color="tab:blue", alpha=strength, label=label)
    axes.plot(*support, "o", color="tab:red", label="support")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
