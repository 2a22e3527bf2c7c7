"""Corrected shares, their intervals, and alarms: on small arrays whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.judging.reference import make_reference, read_reference, scores_of
from karpa_tf.watching.alarms import Cusum, InputAlarm, ShareAlarm, count_places, moved_shares
from karpa_tf.watching.shares import Intervals, cell_distributions, corrected_shares

CONFUSION = np.array([[900, 100], [300, 700]])


def test_shares_are_those_that_were_mixed() -> None:
    distributions = np.array([[0.9, 0.1], [0.3, 0.7]])
    shares = np.array([0.25, 0.75])
    found = corrected_shares(1000 * shares @ distributions, distributions)
    np.testing.assert_allclose(found, shares, atol=1e-3)
    # The inverse would give -0.17 and 1.17 here.
    found = corrected_shares(np.array([200, 800]), distributions)
    np.testing.assert_allclose(found, [0, 1], atol=1e-3)
    assert corrected_shares(np.zeros(2), distributions).sum() == pytest.approx(1)


def test_several_counts_are_corrected_at_once_as_one_by_one() -> None:
    random = np.random.default_rng(0)
    counts, distributions = random.integers(1, 50, (4, 6)), random.dirichlet(np.ones(6), size=(4, 3))
    together = corrected_shares(counts, distributions)
    for one, count, by in zip(together, counts, distributions, strict=True):
        np.testing.assert_allclose(one, corrected_shares(count, by), atol=1e-3)


def test_a_label_without_held_out_rows_is_like_all_of_them() -> None:
    found = cell_distributions(np.array([[8, 2], [0, 0]]))
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found > 0).all()
    np.testing.assert_allclose(found[1], [8.5 / 11, 2.5 / 11])


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    true, held = np.array([0.3, 0.7]), 0
    distributions = CONFUSION / CONFUSION.sum(axis=1, keepdims=True)
    for seed in range(100):
        rows = np.stack([random.multinomial(150, row) for row in distributions])
        counts = random.multinomial(300, true @ distributions)
        _, low, high = Intervals(rows, seed=seed)(counts)
        held += low[1] <= true[1] <= high[1]
    assert 90 <= held <= 99


def test_few_held_out_rows_make_intervals_wider() -> None:
    counts = np.array([120, 180])
    (_, low, high), (_, lower, higher) = (Intervals(CONFUSION // by)(counts) for by in (1, 20))
    assert (higher - lower > high - low).all()
    plain, _, _ = Intervals(None, 2)(counts)
    assert plain.tolist() == [0.4, 0.6]


def test_what_was_not_seen_may_be_there_all_the_same() -> None:
    shares, low, high = Intervals(None, 2)(np.array([0, 100]))
    assert shares.tolist() == [0, 1] and low[0] == 0 and high[1] == 1
    assert high[0] == pytest.approx(1 - 0.025**0.01) and low[1] == pytest.approx(0.025**0.01)


def test_a_sum_rises_falls_and_stays_within_its_bounds() -> None:
    cusum = Cusum(["up"], np.array([[-1.0, 2.0]]), 5)
    assert [cusum.add(1), cusum.add(0), cusum.add(1)] == [[], [], []]
    assert cusum.sums.tolist() == [3] and cusum.since.tolist() == [3] and cusum.level == 0.6
    assert cusum.add(1) == ["up"] and cusum.on == [0] and cusum.sums.tolist() == [5]
    assert cusum.add(1) == [] and cusum.sums.tolist() == [5]  # one alarm, while it is on
    again = Cusum(["up"], cusum.increments, 5)
    again.restore(cusum.state())
    for _ in range(5):
        again.add(0)
    assert again.on == [] and again.since.tolist() == [0] and cusum.on == [0]


def test_directions_of_two_labels_and_of_more() -> None:
    directions, after = moved_shares(np.array([0.4, 0.6]), 0.15)
    assert [tuple(d) for d in directions] == [(0, True), (0, False)]
    np.testing.assert_allclose(after, [[0.55, 0.45], [0.25, 0.75]])
    directions, after = moved_shares(np.array([0.1, 0.3, 0.6]), 0.15)
    assert len(directions) == 6
    np.testing.assert_allclose(after.sum(axis=1), 1)
    np.testing.assert_allclose(after[1], [0.05, 0.3 * 0.95 / 0.9, 0.6 * 0.95 / 0.9])  # half of what there is


@pytest.mark.parametrize("corrected", [False, True])
def test_false_alarms_come_as_seldom_as_was_asked_for(corrected: bool) -> None:
    distributions = cell_distributions(CONFUSION) if corrected else None
    frequencies = np.array([0.45, 0.55])
    alarm = ShareAlarm(np.array([450, 550]), distributions, false_alarms=500)
    again = ShareAlarm(np.array([450, 550]), distributions, false_alarms=500)
    assert alarm.bound == again.bound > 0
    random, times, count = np.random.default_rng(3), [], 0
    for cell in (random.random(30_000) >= frequencies[0]).astype(int):
        count += 1
        if alarm.add(cell):
            times.append(count)
            count, alarm.sums[:], alarm.on = 0, 0, []
    # The bound allows for a baseline that is a sample: a right one gives fewer.
    assert 400 < np.mean(times) < 1500


def test_a_shift_is_found_and_named() -> None:
    alarm = ShareAlarm(np.array([200, 300, 500]), labels=["a", "b", "c"], false_alarms=1000)
    random = np.random.default_rng(0)
    found = [alarm.add(cell) for cell in random.choice(3, 400, p=[0.5, 0.2, 0.3])]
    raised = [names for names in found if names]
    assert raised[0] == ["a up"] and found.index(raised[0]) < 100
    assert np.isfinite(alarm.increments).all()
    with pytest.raises(UserError, match="needs texts for its baseline"):
        ShareAlarm(np.zeros(3))


def test_many_rare_labels_have_a_finite_bound() -> None:
    alarm = ShareAlarm(np.array([*[3] * 30, 0]), false_alarms=200)
    assert len(alarm.names) == 62 and np.isfinite(alarm.bound)


def test_input_is_told_from_opinion() -> None:
    random = np.random.default_rng(0)
    true = random.integers(0, 2, 2000)
    predicted = np.where(random.random(2000) < 0.9, true, 1 - true)
    scores = random.beta(2, 5, 2000) + 0.1 * predicted
    reference = make_reference(["a", "b"], true, predicted, scores)

    normal = count_places(reference.places(predicted[:1000], scores[:1000]))

    def alarms(labels: np.ndarray, of: np.ndarray) -> list[list[str]]:
        alarm = InputAlarm(normal, false_alarms=2000)
        return [found for place in reference.places(labels, of) if (found := alarm.add_place(place))]

    some = np.flatnonzero(true == 1)[:600]  # of one label alone: an opinion, but the same input
    assert alarms(predicted[some], scores[some]) == []
    some = random.permutation(2000)[:400]
    assert alarms(predicted[some], scores[some] + 0.1)[0] == ["less sure"]
    assert alarms(predicted[some], scores[some] - 0.1) == [["more sure"]]
    # Only every fourth text is of another kind, and some of the others are surer: no drift of the mean.
    other = np.where(np.arange(400) % 4 == 0, 1.0, np.where(np.arange(400) % 4 == 1, 0.0, scores[some]))
    assert alarms(predicted[some], other) == [["some less sure"]]
    with pytest.raises(UserError, match="An alarm on input needs texts for its baseline"):
        InputAlarm([0] * 50)


def test_cells_are_labels_and_how_sure(tmp_path) -> None:
    random = np.random.default_rng(0)
    true, scores = random.integers(0, 2, 400), random.random(400)
    reference = make_reference(["a", "b"], true, true, scores)
    bins = reference.counts.shape[2]
    assert bins == 4 and reference.cells.shape == (2, 8) and reference.counts.sum() == 400
    # Each bin holds as many rows, and equal scores stand in the middle of their places.
    assert reference.counts[0, 0].min() >= 0.2 * reference.counts[0, 0].sum()
    same = make_reference(["a", "b"], [0, 1] * 30, [0, 1] * 30, [0.0] * 60)
    assert same.places(np.array([0, 1, 1]), np.array([0.0, -1.0, 1.0])).tolist() == [0.5, 0, 1]
    assert same.counts.shape == (2, 2, 1)
    places = reference.places(true, scores)
    again = np.zeros_like(reference.cells)
    np.add.at(again, (true, reference.cells_of(true, places)), 1)
    assert (again == reference.cells).all()
    path = tmp_path / "reference.json"
    path.write_text(json.dumps(reference.as_json()))
    read = read_reference(path)
    assert (read.counts == reference.counts).all() and (read.quantiles == reference.quantiles).all()
    for text in ("{", "[]", path.read_text().replace('"labels": ["a"', '"labels": ["c", "a"')):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read as what export writes of a classifier"):
            read_reference(path)
    with pytest.raises(ValueError, match="As many true labels"):
        make_reference(["a"], [], [], [])


def test_the_better_score_is_taken() -> None:
    outputs = {"probabilities": [[0.9, 0.1]], "unknown_score": [3.0]}
    assert scores_of(outputs).tolist() == [3]
    assert scores_of(outputs, "uncertainty").tolist() == pytest.approx([0.1])
    del outputs["unknown_score"]
    assert scores_of(outputs).tolist() == pytest.approx([0.1])
    with pytest.raises(KeyError):
        scores_of(outputs, "unknown_score")
