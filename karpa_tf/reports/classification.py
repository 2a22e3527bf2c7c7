"""What a terminal and TensorBoard show of a classifier."""

from __future__ import annotations

import functools
import html
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.judging.classification import checked, confusion, most_confident_errors

# A matrix of more classes does not fit on a terminal, nor do more curves on a page.
_FEW = 10
_ERRORS = 20


# --- Tables for a terminal ------------------------------------------------------------------------

# A longer label moves the rest of its own line alone.
_LABEL_WIDTH = 40


def format_class_table(rows: Sequence[dict[str, Any]], key: str = "label") -> list[str]:
    """Returns aligned lines, the first one the heading.

    Args:
        rows: of `class_table`, or of the like with another key for the name.
        key: the name's.
    """
    names = [one_line(row[key]) for row in rows]
    width = min(max(_width(name) for name in (key, *names)), _LABEL_WIDTH)
    lines = [f"{_pad(key, width)}  precision  recall      f1  support"]
    for name, row in zip(names, rows, strict=True):
        lines.append(
            f"{_pad(name, width)}  {row['precision']:9.4f}  {row['recall']:.4f}  {row['f1']:.4f}"
            f"  {row['support']:7d}"
        )
    return lines


def format_confusions(matrix: np.ndarray, names: Sequence[str], most: int = 10) -> list[str]:
    """Returns lines `true -> predicted  count`, the most frequent first; up to ten classes: the matrix too.

    Args:
        matrix: int (classes, classes), a row a true class.
        names: of the classes.
        most: how many lines at most.
    """
    names = [one_line(name) for name in names]
    lines = []
    if len(names) <= _FEW:
        lines = [*_format_matrix(matrix, names), ""]
    wrong = np.array(matrix)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(names)) for place in order if wrong.flat[place]]
    if not pairs:
        return [*lines, "no confusions"]
    texts = [f"{names[true]} -> {names[predicted]}" for true, predicted in pairs]
    width = min(max(map(_width, texts)), 2 * _LABEL_WIDTH)
    digits = len(str(wrong.max()))
    for text, pair in zip(texts, pairs, strict=True):
        lines.append(f"{_pad(text, width)}  {wrong[pair]:{digits}d}")
    return lines


def _format_matrix(matrix: np.ndarray, names: Sequence[str]) -> list[str]:
    # Columns headed by letters, as a long name would make them wide; it stands behind its row.
    letters = max(map(_width, names)) > 12
    heads = [chr(ord("a") + i) for i in range(len(names))] if letters else list(names)
    corner = "true \\ predicted"
    width = max(map(_width, (corner, *heads)))
    cell = max(len(str(int(matrix.max(initial=0)))), *map(_width, heads))
    lines = [_pad(corner, width) + "".join("  " + _pad(head, cell, right=True) for head in heads)]
    for head, name, counts in zip(heads, names, matrix, strict=True):
        line = _pad(head, width) + "".join(f"  {int(count):{cell}d}" for count in counts)
        lines.append(f"{line}  {head} = {name}" if letters else line)
    return lines


def one_line(text: object) -> str:
    """The text with every stretch of white space and control characters as one space."""
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip()


def _pad(text: str, width: int, *, right: bool = False) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space


def _width(text: str) -> int:
    """Columns that a terminal takes for it: two for a Chinese character, none for an accent of its own."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


# --- TensorBoard ----------------------------------------------------------------------------------


def write_classification(
    folder: str | Path,
    step: int,
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    texts: Sequence[str],
) -> None:
    """Writes precision-recall curves, the confusion matrix as an image, and a table of the worst errors.

    Args:
        folder: of the event files.
        step: of the optimizer.
        labels: int (n,): the true classes.
        probabilities: float32 (n, classes).
        names: of the classes.
        texts: n, what was classified.
    """
    labels, probabilities = checked(labels, probabilities, names)
    predictions = probabilities.argmax(axis=1)
    with event_writer(folder):
        truth, predicted = (of[:, None] == np.arange(len(names)) for of in (labels, predictions))
        write_pr_curves(step, truth, predicted, probabilities, names)
        write_confusion(step, confusion(labels, predictions, len(names)), names)
        write_text(step, "errors", _errors(labels, probabilities, names, texts))


def _errors(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str], texts: Sequence[str]) -> str:
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = int((predictions != labels).sum())
    if not wrong:
        return "No errors: every prediction is right."
    worst = most_confident_errors(labels, probabilities, _ERRORS)
    lines = [
        f"{wrong:,} of {len(labels):,} predictions {'is' if wrong == 1 else 'are'} wrong; the surest of "
        "these come first.",
        "",
        "| text | true | predicted | confidence |",
        "|---|---|---|---|",
    ]
    for i in worst:
        true, predicted = markdown(names[labels[i]]), markdown(names[predictions[i]])
        # TensorBoard breaks a longer number in two.
        lines.append(f"| {markdown(texts[i])} | {true} | {predicted} | {confidence[i]:.2f} |")
    return "\n".join(lines)


@contextmanager
def event_writer(folder: str | Path) -> Iterator[None]:
    """Makes an event file of its own the default one; when the block ends it is on disk."""
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(folder))
    try:
        with writer.as_default():
            yield
    finally:
        writer.close()


def write_text(step: int, tag: str, text: str) -> None:
    """Writes Markdown into the default writer."""
    import tensorflow as tf

    tf.summary.text(tag, text, step)


def write_image(step: int, tag: str, image: np.ndarray, description: str = "") -> None:
    """Writes an image uint8 (height, width, 3) into the default writer."""
    import tensorflow as tf

    tf.summary.image(tag, image[None], step, description=description)


def write_pr_curves(
    step: int, truth: np.ndarray, predicted: np.ndarray, probabilities: np.ndarray, names: Sequence[str]
) -> None:
    """Writes `pr_curve/<name>` into the default writer.

    With more than ten classes it is the ten that do worst by f1, of those that occur, and `micro average`:
    every decision about every class in one curve.

    Args:
        step: of the optimizer.
        truth: bool (n, classes).
        predicted: bool (n, classes).
        probabilities: float32 (n, classes).
        names: of the classes.
    """
    import tensorflow as tf
    from tensorboard.plugins.pr_curve import summary

    columns = [(name, truth[:, i], probabilities[:, i]) for i, name in enumerate(names)]
    if len(names) > _FEW:
        worst = [columns[i] for i in _worst(truth, predicted)]
        columns = [("micro average", truth.ravel(), probabilities.ravel()), *worst]
    for name, positive, score in columns:
        tag = f"pr_curve/{one_line(name)}"
        (value,) = summary.pb(tag, positive, np.clip(score, 0, 1)).value
        # Not written as it is: its own tag would end in /pr_curves.
        tf.summary.write(tag, tf.make_ndarray(value.tensor), step, value.metadata)


def _worst(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    found = (truth & predicted).sum(axis=0)
    f1 = 2 * found / np.maximum(truth.sum(axis=0) + predicted.sum(axis=0), 1)
    occurs = np.flatnonzero(truth.any(axis=0))
    return occurs[np.argsort(f1[occurs], kind="stable")][:_FEW]


def write_confusion(step: int, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Writes the image `confusion` into the default writer; `confusion_image` says how it looks."""
    import tensorflow as tf

    description = (
        "Rows: the true class; columns: the predicted one; the darker, the larger a share of its row."
    )
    description += "".join(
        f" {short} = {markdown(name)}."
        for short, name in zip(_drawable(names), names, strict=True)
        if short != _short(name)
    )
    tf.summary.image("confusion", confusion_image(matrix, names)[None], step, description=description)


def markdown(text: object, longest: int = 200) -> str:
    """The text for a cell of a Markdown table: one line, cut at `longest` characters, shown as it is."""
    text = one_line(text)
    if len(text) > longest:
        text = text[: longest - 1] + "…"
    text = html.escape(text, quote=False)
    # An underscore within a word means nothing to Markdown.
    return re.sub(r"([\\`*\[\]|!]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


# --- The image ------------------------------------------------------------------------------------

# matplotlib's own font has no Chinese, Japanese or Korean; these are what systems bring.
_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Thai", "Noto Sans Devanagari", "Arial Unicode MS"),
)
_INCH = 100  # pixels
_LONGEST = 50  # characters of a name


def confusion_image(matrix: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix, a row a true class, its colour the share of the row.

    Up to 20 classes have their counts in the cells. The scale of the colour is stretched at its low end, so
    that a few errors are seen beside many right answers. A name that no font can draw becomes the number of
    its class, counted from 0.

    Args:
        matrix: int (classes, classes).
        names: of the classes.

    Returns:
        uint8 (height, width, 3).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    matrix, classes = np.asarray(matrix), len(names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    small = classes <= 20
    side = min(max(2.4, 0.5 * classes if small else max(10.0, 0.13 * classes)), 24.0)
    # Of very many classes not every one has the room for its name.
    ticks = np.arange(0, classes, -(-classes // 180))
    drawable = _drawable(names)
    labels = [drawable[i] for i in ticks]

    figure = Figure(figsize=(side, side), dpi=_INCH)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    norm = PowerNorm(0.4, 0, 1)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    style: dict[str, Any] = {"fontsize": 9 if small else 6.5, "fontfamily": _families(), "parse_math": False}
    slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if small else {"rotation": 90}
    axes.set_xticks(ticks, labels, **style, **slant)
    axes.set_yticks(ticks, labels, **style)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(ticks) == classes:
        # Lines between the cells lead the eye from a cell to its names.
        axes.set_xticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.85", linewidth=0.8 if small else 0.4)
        axes.tick_params(which="minor", length=0)
    if small:
        for row, column in np.ndindex(matrix.shape):
            color = "white" if norm(shares[row, column]) > 0.6 else "black"
            count = f"{matrix[row, column]:,}"
            axes.text(column, row, count, ha="center", va="center", fontsize=9, color=color)
    bar = figure.add_axes((1 + 0.3 / side, 0, 0.15 / side, min(1, 4 / side)))
    figure.colorbar(picture, cax=bar, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], label="share of the true class")

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A glyph that is missing after all; `_drawable` has done what can be done.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.1)
    buffer.seek(0)
    return np.round(imread(buffer, "png")[..., :3] * 255).astype(np.uint8)


def _short(name: object) -> str:
    text = one_line(name)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _drawable(names: Sequence[str]) -> list[str]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=family))) for family in _families()]

    def drawn(character: str) -> bool:
        invisible = unicodedata.category(character) in ("Cf", "Zs")
        return invisible or any(font.get_char_index(ord(character)) for font in fonts)

    shorts = [_short(name) for name in names]
    return [short if all(map(drawn, short)) else f"class {i}" for i, short in enumerate(shorts)]


@functools.cache
def _families() -> list[str]:
    from matplotlib.font_manager import findSystemFonts, fontManager

    # matplotlib lists the fonts once and keeps the list; one that came later is not in it.
    listed = {entry.fname for entry in fontManager.ttflist}
    for path in sorted(set(findSystemFonts()) - listed):
        with suppress(Exception):  # a file that is no font that it can draw
            fontManager.addfont(path)
    installed = {entry.name for entry in fontManager.ttflist}
    return ["DejaVu Sans", *(font for font in _FONTS if font in installed)]
