"""The curve between two networks: a picture, and scalars over lambda, for TensorBoard and as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from karpa_tf.errors import writing
from karpa_tf.reports.classification import event_writer, write_image


def write_interpolation(
    folder: Path,
    rows: Mapping[float, Mapping[str, Mapping[str, float]]],
    figure: str,
    best: float,
    title: str,
) -> None:
    """Draws the main figure and the loss over lambda, as `interpolation.png` and in TensorBoard.

    The steps of the scalars `interpolation/*` are hundredths of lambda.

    Args:
        folder: of the run.
        rows: figures by data set, by lambda, rising.
        figure: the main one.
        best: the lambda that was chosen.
        title: of the picture.
    """
    import tensorflow as tf
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lambdas = list(rows)
    picture = Figure(figsize=(9, 3.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(picture)
    for axes, name in zip(picture.subplots(1, 2), (figure, "loss"), strict=True):
        for data in rows[lambdas[0]]:
            axes.plot(lambdas, [rows[value][data][name] for value in lambdas], marker=".", label=data)
        axes.axvline(best, color="grey", linewidth=0.8, linestyle="--")
        axes.set(xlabel="lambda: 0 is M1, 1 is M2", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    picture.suptitle(title, fontsize=9)
    path = folder / "interpolation.png"
    with writing(path):
        picture.savefig(path, metadata={"Software": None})
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())[..., :3]
    with event_writer(folder / "validation"):
        about = f"M1 + lambda (M2 - M1); {title}; dashed: the lambda that was chosen"
        write_image(round(100 * best), "interpolation", image, about)
        for value in lambdas:
            for data, figures in rows[value].items():
                for name in (figure, "loss"):
                    tf.summary.scalar(f"interpolation/{name} ({data})", figures[name], round(100 * value))
