from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from karpa_tf.judging.tagging import type_table
from karpa_tf.reports.tagging import format_type_table, write_tagging
from tests.events import as_html, read_curves, read_events, read_image, read_text, tags_of

NAMES = ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]


def test_type_table_is_aligned_in_any_script() -> None:
    true = [["B-PER", "I-PER", "O", "B-城市"], ["B-PER", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-城市"], ["I-PER", "B-ORG"]]
    rows = type_table(true, predicted)
    assert format_type_table(rows) == [
        "type  precision  recall      f1  support",
        "ORG      0.0000  0.0000  0.0000        0",
        "PER      1.0000  0.5000  0.6667        2",
        "城市     1.0000  1.0000  1.0000        1",
    ]
    assert format_type_table([]) == ["type  precision  recall      f1  support"]


def test_curves_by_hand(tmp_path: Path) -> None:
    # One sentence of three words, one of none, one of one; B-PER has 0.9, 0.2, 0.6 and 0.1.
    scores = [np.full([n, 5], 0.025, np.float32) for n in (3, 0, 1)]
    scores[0][:, 3] = [0.9, 0.2, 0.6]
    scores[2][:, 3] = 0.1
    true = [["B-PER", "I-PER", "O"], [], ["B-PER"]]
    words = [["a", "b", "c"], [], ["d"]]
    write_tagging(tmp_path, 5, words, true, true, scores, NAMES)
    tags = {f"pr_curve/{name}" for name in NAMES if name != "O"}
    assert tags_of(read_events(tmp_path)) == {*tags, "confusion", "errors"}
    assert {event.step for event in read_events(tmp_path) if event.summary.value} == {5}
    curves = read_curves(tmp_path)
    assert set(curves) == tags
    curve = curves["pr_curve/B-PER"]
    # At 0.5: 0.9 is right, 0.6 is not, and 0.1 is missed.
    assert [curve[name][100] for name in ("true_positives", "false_positives", "false_negatives")] == [
        1,
        1,
        1,
    ]


def test_without_scores_there_is_no_curve(tmp_path: Path) -> None:
    write_tagging(tmp_path, 0, [["a"]], [["O"]], [["B-X"]])
    assert tags_of(read_events(tmp_path)) == {"confusion", "errors"}


@pytest.mark.parametrize("kinds", [0, 5, 12])
def test_any_number_of_types(tmp_path: Path, kinds: int) -> None:
    names = ["O", *(f"{prefix}-{i}" for i in range(kinds) for prefix in "BI")]
    rng = np.random.default_rng(0)
    true = [list(rng.choice(names, 9)) for _ in range(60)]
    scores = [rng.dirichlet(np.ones(len(names)), 9).astype(np.float32) for _ in true]
    predicted = [[names[i] for i in s.argmax(axis=1)] for s in scores]
    write_tagging(tmp_path, 0, [["w"] * 9] * 60, true, predicted, scores, names)
    curves = read_curves(tmp_path)
    if kinds == 12:
        assert len(curves) == 11 and "pr_curve/micro average" in curves
    else:
        assert set(curves) == {f"pr_curve/{name}" for name in names[1:]}
    read_image(tmp_path)


def test_of_many_tags_those_predicted_worst_have_a_curve(tmp_path: Path) -> None:
    # Twelve tags, twice each. The first ten are taken for O once; were O not looked at, they would be right
    # and the words outside would count against the last two.
    names = ["O", *(f"B-{i}" for i in range(12))]
    true = [[name, name, "O"] for name in names[1:]]
    scores = np.full([12, 3, 13], 0.01, np.float32)
    scores[:, :2, 0] = 0.3
    for i in range(12):
        scores[i, :2, i + 1] = [0.4, 0.2 if i < 10 else 0.5]
    scores[:, 2, 0] = 0.8
    scores[:, 2, 12] = 0.1
    predicted = [[names[place] for place in sentence.argmax(axis=1)] for sentence in scores]
    write_tagging(tmp_path, 0, [["w"] * 3] * 12, true, predicted, list(scores), names)
    curves = read_curves(tmp_path)
    assert set(curves) == {"pr_curve/micro average", *(f"pr_curve/B-{i}" for i in range(10))}
    # The words outside are negatives of every tag; O itself is no decision of the average.
    average = curves["pr_curve/micro average"]
    assert (average["true_positives"][0], average["false_positives"][0]) == (24, 36 * 12 - 24)


def test_a_tag_that_training_never_saw(tmp_path: Path) -> None:
    scores = [np.full([1, 5], 0.2, np.float32)]
    write_tagging(tmp_path, 0, [["a"]], [["B-NEW"]], [["O"]], scores, NAMES)
    assert "**a**/O (B-NEW)" in read_text(tmp_path)
    assert "pr_curve/B-NEW" not in read_curves(tmp_path)


def test_errors_are_the_sentences_with_most_wrong_entities(tmp_path: Path) -> None:
    words = [["all", "right"], ["Manopo", "sang"], ["在", "北*京", "和", "a|b"]]
    true = [["O", "O"], ["B-PER", "O"], ["O", "B-LOC", "O", "B-PER"]]
    predicted = [["O", "O"], ["O", "O"], ["O", "B-PER", "O", "O"]]
    write_tagging(tmp_path, 0, words, true, predicted)
    lines = read_text(tmp_path).split("\n")
    assert lines[0].startswith("2 of 3 sentences have a wrong tag")
    assert lines[4:] == [
        "| 3 | 在 **北\\*京**/B-PER (B-LOC) 和 **a\\|b**/O (B-PER) |",
        "| 1 | **Manopo**/O (B-PER) sang |",
    ]
    page = as_html("\n".join(lines))
    assert "<strong>北*京</strong>/B-PER (B-LOC) 和 <strong>a|b</strong>/O (B-PER)</td>" in page


def test_errors_are_twenty_and_of_bounded_length(tmp_path: Path) -> None:
    # The longer, the more wrong; the last one is of right words but for two.
    sizes = range(1, 40)
    words = [*([f"w{size}"] * size for size in sizes), ["a"] * 30 + ["b"] + ["a"] * 10 + ["b"] + ["a"] * 500]
    true = [["O"] * len(sentence) for sentence in words]
    predicted = [["B-X" if word != "a" else "O" for word in sentence] for sentence in words]
    words.append(["x" * 1000] * 1000)
    true.append(["O"] * 1000)
    predicted.append(["B-X"] * 1000)
    write_tagging(tmp_path, 0, words, true, predicted)
    lines = read_text(tmp_path).split("\n")[4:]
    assert [int(line.split("|")[1]) for line in lines] == [1000, *range(39, 20, -1)]
    assert len(lines[0]) < 15_000 and lines[0].endswith(" … |")

    write_tagging(tmp_path / "one", 0, words[39:40], true[39:40], predicted[39:40])
    before, between, after = "… " + "a " * 8, " a" * 10 + " ", " a" * 8 + " …"
    sentence = f"{before}**b**/B-X (O){between}**b**/B-X (O){after}"
    assert read_text(tmp_path / "one").split("\n")[-1] == f"| 2 | {sentence} |"


def test_without_errors_the_table_says_so(tmp_path: Path) -> None:
    write_tagging(tmp_path / "right", 0, [["a"]], [["B-X"]], [["B-X"]])
    assert read_text(tmp_path / "right") == "No errors: every tag is right."
    write_tagging(tmp_path / "empty", 0, [[]], [[]], [[]], [np.zeros([0, 5])], NAMES)
    assert tags_of(read_events(tmp_path / "empty")) == {"errors"}
