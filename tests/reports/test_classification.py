from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.judging.classification import class_table
from karpa_tf.reports import classification
from karpa_tf.reports.classification import (
    confusion_image,
    format_class_table,
    format_confusions,
    markdown,
    write_classification,
)
from tests.events import as_html, read_curves, read_events, read_image, read_text, read_values, tags_of
from tests.judging.samples import certain

# --- Tables for a terminal ------------------------------------------------------------------------


def test_class_table_is_aligned_in_any_script() -> None:
    long = "a label that is much longer than forty columns are"
    names = ["lost_card", "信用卡丢失", "café", "cafe\u0301", "two\nlines", long]
    labels = np.arange(6)
    lines = format_class_table(class_table(labels, certain(list(labels), 6), names))
    assert len(lines) == 7
    assert lines[0].split() == ["label", "precision", "recall", "f1", "support"]
    # Columns of a terminal: five more for the Chinese characters, one less for the accent.
    widths = [len(line) for line in lines]
    assert widths[0] == widths[1] == widths[2] + 5 == widths[3] == widths[4] - 1 == widths[5]
    assert lines[5].startswith("two lines ")
    assert lines[6].startswith(long)


def test_confusions_of_few_classes_come_with_the_matrix() -> None:
    matrix = np.array([[50, 2, 0], [12, 30, 0], [1, 0, 3]])
    assert format_confusions(matrix, ["no", "yes", "退款"]) == [
        "true \\ predicted    no   yes  退款",
        "no                  50     2     0",
        "yes                 12    30     0",
        "退款                 1     0     3",
        "",
        "yes -> no   12",
        "no -> yes    2",
        "退款 -> no   1",
    ]


def test_long_names_stand_behind_the_matrix() -> None:
    lines = format_confusions(np.array([[5, 1], [0, 7]]), ["card_payment_fee", "top_up"])
    assert lines == [
        "true \\ predicted  a  b",
        "a                 5  1  a = card_payment_fee",
        "b                 0  7  b = top_up",
        "",
        "card_payment_fee -> top_up  1",
    ]


def test_confusions_of_many_classes_come_alone_and_no_more_than_asked() -> None:
    matrix = np.diag(np.full(77, 40))
    matrix[3, 4], matrix[70, 2], matrix[1, 0] = 5, 9, 5
    names = [f"intent {i}" for i in range(77)]
    lines = format_confusions(matrix, names)
    assert lines == ["intent 70 -> intent 2  9", "intent 1 -> intent 0   5", "intent 3 -> intent 4   5"]
    assert format_confusions(matrix, names, most=1) == lines[:1]
    assert format_confusions(np.eye(77, dtype=int), names) == ["no confusions"]


# --- TensorBoard ----------------------------------------------------------------------------------


def write_random(folder: Path, classes: int, rows: int = 200, names: list[str] | None = None) -> np.ndarray:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes - 1, rows)  # the last class is absent
    probabilities = rng.dirichlet(np.full(classes, 0.3), rows).astype(np.float32)
    probabilities[: rows // 2] = certain(list(labels[: rows // 2]), classes, 0.9)
    names = names or [f"label {i}" for i in range(classes)]
    write_classification(folder, 7, labels, probabilities, names, [f"text {i}" for i in range(rows)])
    return labels


def test_curves_by_hand(tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]], np.float32)
    write_classification(tmp_path, 3, np.array([0, 0, 1, 1]), probabilities, ["no", "是/yes"], ["x"] * 4)
    assert tags_of(read_events(tmp_path)) == {"pr_curve/no", "pr_curve/是/yes", "confusion", "errors"}
    assert {event.step for event in read_events(tmp_path) if event.summary.value} == {3}
    curves = read_curves(tmp_path)
    assert set(curves) == {"pr_curve/no", "pr_curve/是/yes"}
    curve = curves["pr_curve/no"]
    at = {round(threshold, 3): i for i, threshold in enumerate(curve["thresholds"])}
    for threshold, found, wrong in ((0.0, 2, 2), (0.5, 2, 1), (0.65, 1, 1), (0.8, 1, 0)):
        i = at[threshold]
        assert (curve["true_positives"][i], curve["false_positives"][i]) == (found, wrong)
        assert curve["precision"][i] == pytest.approx(found / (found + wrong))
        assert curve["recall"][i] == found / 2


def test_few_classes_have_a_curve_each_even_one_that_is_absent(tmp_path: Path) -> None:
    write_random(tmp_path, 10)
    curves = read_curves(tmp_path)
    assert set(curves) == {f"pr_curve/label {i}" for i in range(10)}
    assert not any(curves["pr_curve/label 9"]["true_positives"])


def test_of_many_classes_the_worst_have_a_curve(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(30), 4)
    predictions = labels.copy()
    worst = [1, 4, 5, 9, 12, 13, 20, 21, 22, 28]
    for label in worst:
        predictions[np.flatnonzero(labels == label)[:2]] = 29
    labels = np.where(labels == 29, 1, labels)  # the class that is predicted wrongly does not occur
    names = [f"c{i}" for i in range(30)]
    probabilities = certain(list(predictions), 30, 0.95)
    write_classification(tmp_path, 0, labels, probabilities, names, ["x"] * len(labels))
    curves = read_curves(tmp_path)
    assert set(curves) == {"pr_curve/micro average", *(f"pr_curve/c{i}" for i in worst)}
    average = curves["pr_curve/micro average"]
    assert average["true_positives"][0] == len(labels)
    assert average["false_positives"][0] == len(labels) * 29
    assert average["precision"][100] == pytest.approx((labels == predictions).mean())


def test_errors_are_the_surest_first(tmp_path: Path) -> None:
    labels = np.zeros(40, int)
    probabilities = np.stack([np.linspace(0, 0.49, 40), 1 - np.linspace(0, 0.49, 40)], axis=1)
    probabilities[30:] = [1, 0]
    texts = [f"text {i}" for i in range(40)]
    texts[0] = "一|二\r\n三 `code` *star* <b>"
    texts[1] = "long " * 100
    write_classification(tmp_path, 0, labels, probabilities, ["no", "card_arrival"], texts)
    lines = read_text(tmp_path).split("\n")
    assert lines[0].startswith("30 of 40 predictions are wrong")
    assert len(lines) == 4 + 20
    assert [line.split(" | ")[0] for line in lines[6:]] == [f"| text {i}" for i in range(2, 20)]
    assert lines[6].endswith("| no | card_arrival | 0.97 |")
    page = as_html("\n".join(lines))
    assert "<td>一|二 三 `code` *star* &lt;b&gt;</td>" in page
    cut = ("long " * 100)[:199] + "…"
    assert f"<td>{cut}</td>" in page
    assert page.count("<tr>") == 21 and page.count("<td>") == 80


def test_without_errors_the_table_says_so(tmp_path: Path) -> None:
    write_classification(tmp_path, 0, np.array([0, 1]), certain([0, 1], 2), ["a", "b"], ["x", "y"])
    assert read_text(tmp_path) == "No errors: every prediction is right."


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a|b",
            "`tick | bar",
            "**bold** _it_ __init__ _a b_",
            "[link](http://x) ![image](y)",
            "back\\|slash \\",
        ),
        *(
            "<img src=x>",
            "&lt; AT&T",
            "1. a # b",
            "card_arrival",
            "信用卡",
            "مرحبا",
            "~~~",
            "``` x",
            "$5 {x}",
        ),
    ],
)
def test_cells_show_the_text_as_it_is(text: str) -> None:
    page = as_html(f"| a | b |\n|---|---|\n| {markdown(text)} | end |")
    shown = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f"<td>{shown}</td>\n<td>end</td>" in page


def test_writing_leaves_the_writers_of_others_alone(tmp_path: Path) -> None:
    with tf.summary.create_file_writer(str(tmp_path / "other")).as_default():
        write_random(tmp_path / "own", 2)
        tf.summary.scalar("after", 1.0, 0)
    assert tags_of(read_events(tmp_path / "other")) == {"after"}
    assert "after" not in tags_of(read_events(tmp_path / "own"))


# --- The image ------------------------------------------------------------------------------------


def test_image_of_two_classes(tmp_path: Path) -> None:
    write_random(tmp_path, 2, names=["negative", "positive"])
    height, width, _ = read_image(tmp_path).shape
    assert 250 < height < 600 and 300 < width < 700


def test_image_of_77_classes(tmp_path: Path) -> None:
    names = [f"balance_not_updated_after_cheque_{i}" for i in range(77)]
    write_random(tmp_path, 77, rows=500, names=names)
    height, width, _ = read_image(tmp_path).shape
    # A name needs its nine pixels.
    assert 9 * 77 < height < 2000 and 9 * 77 < width < 2000


def test_image_of_very_many_classes_has_bounds() -> None:
    image = confusion_image(np.eye(300, dtype=int), [str(i) for i in range(300)])
    assert max(image.shape) < 3000


def test_colour_is_the_share_of_the_row() -> None:
    # Rows of 10 and of 1,000 look the same; a row without any is blank, not an error.
    images = [confusion_image(np.diag([10, count, 0]), list("abc")) for count in (10, 1000)]
    full, blank = (8, 48, 107), (247, 251, 255)
    counts = [[(image == colour).all(axis=2).sum() for colour in (full, blank)] for image in images]
    assert min(counts[0]) > 5000
    np.testing.assert_allclose(counts[0], counts[1], rtol=0.05)


def test_names_of_any_kind_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine without fonts for Chinese.
    monkeypatch.setattr(classification, "_families", lambda: ["DejaVu Sans"])
    names = ["$\\5 to $10", "信用卡|丢失", "مرحبا", "naïve", "x" * 300, "two\nlines", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_random(tmp_path, 7, names=names)
    assert max(read_image(tmp_path).shape) < 1500
    description = read_values(tmp_path)["confusion"].metadata.summary_description
    assert "class 1 = 信用卡\\|丢失." in description
    assert "class 0" not in description and "class 3" not in description


def test_a_font_that_came_after_matplotlibs_list_is_found(tmp_path, monkeypatch) -> None:
    from fontTools.ttLib import TTFont
    from matplotlib import font_manager

    # DejaVu under the name of a font for Chinese that this machine need not have.
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    for number in (1, 4, 6, 16):
        font["name"].setName("Source Han Sans SC", number, 3, 1, 0x409)
        font["name"].setName("Source Han Sans SC", number, 1, 0, 0)
    font.save(tmp_path / "later.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "X11FontDirectories", [str(tmp_path)])
    listed = [entry for entry in font_manager.fontManager.ttflist if entry.name != "Source Han Sans SC"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", listed)
    classification._families.cache_clear()
    try:
        assert "Source Han Sans SC" in classification._families()
    finally:
        classification._families.cache_clear()
