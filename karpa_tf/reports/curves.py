"""Curves of several runs in one picture, read from their event files without TensorFlow."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.errors import writing


def read_scalars(folder: Path, tag: str) -> dict[int, float]:
    """Returns the values of a tag by their steps, from the event files of a folder."""
    from tensorboard.util import tensor_util

    values = {
        step: float(tensor_util.make_ndarray(value.tensor))
        for step, value in _values(folder)
        if value.tag == tag
    }
    return dict(sorted(values.items()))


def tags_of(folder: Path) -> set[str]:
    """Returns the tags in the event files of a folder."""
    return {value.tag for _, value in _values(folder)}


def read_images(folder: Path) -> dict[str, bytes]:
    """Returns the last picture of each tag, as PNG, from the event files of a folder."""
    found: dict[str, tuple[int, bytes]] = {}
    for step, value in _values(folder):
        # Width, height, and a picture each.
        parts = value.tensor.string_val
        if len(parts) > 2 and parts[2].startswith(b"\x89PNG") and step >= found.get(value.tag, (0, b""))[0]:
            found[value.tag] = step, parts[2]
    return {tag: data for tag, (_, data) in sorted(found.items())}


def _values(folder: Path) -> Iterator[tuple[int, Any]]:
    """Yields the steps and values of event files."""
    from tensorboard.compat.proto import event_pb2

    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        # A TFRecord: the length, its checksum, the bytes, their checksum. The last one may be cut.
        while place + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            if place + 12 + length > len(data):
                break
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
            for value in event.summary.value:
                yield event.step, value
            place += 16 + length


def draw_curves(
    path: Path, curves: Sequence[Mapping[int, float]], half_width: float, *, title: str, x: str, y: str
) -> None:
    """Draws curves thinly, their mean, and a band around it, into a PNG file.

    Args:
        path: of the file.
        curves: values by their steps, rising.
        half_width: of the band, in standard deviations of the curves.
        title: of the picture.
        x: what the steps are.
        y: what the values are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, mean, deviation = mean_of_curves(curves)
    half = half_width * deviation
    figure = Figure(figsize=(7, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(list(curve), list(curve.values()), color="tab:blue", alpha=0.3, linewidth=0.8)
    axes.fill_between(steps, mean - half, mean + half, color="tab:blue", alpha=0.25, linewidth=0)
    axes.plot(steps, mean, color="tab:blue", linewidth=2)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    with writing(path):
        figure.savefig(path, metadata={"Software": None})


def mean_of_curves(curves: Sequence[Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps, and the means and deviations (n - 1) there, float64 (steps,) each.

    A curve that ends before the others keeps its last value, as a run does that has stopped early; the steps
    begin where all have begun.
    """
    every = [(np.array(list(curve)), np.array(list(curve.values()))) for curve in curves]
    steps = np.unique(np.concatenate([own for own, _ in every]))
    steps = steps[steps >= max(own[0] for own, _ in every)]
    values = np.stack([np.interp(steps, own, value) for own, value in every])
    return steps, values.mean(axis=0), values.std(axis=0, ddof=1)
