"""Pictures of tasks and of fits."""

from __future__ import annotations

import numpy as np

from karpa_tf.reports.few_shot import draw_fit, draw_task

RIGHT, WRONG = [46, 125, 50], [198, 40, 40]


def test_a_query_has_the_frame_of_its_answer() -> None:
    rng = np.random.default_rng(0)
    support, query = rng.random([2, 10, 10, 1]), rng.random([4, 10, 10, 3])
    labels = np.array([0, 0, 1, 1])
    sheet = draw_task(support, np.array([1, 0]), query, labels, np.array([0, 1, 1, 0]))
    tile, left = 62, 12 + 62 + 12
    assert sheet.shape == (2 * tile, left + 2 * tile, 3) and sheet.dtype == np.uint8
    corners = [
        sheet[row * tile + 61, left + column * tile + 61].tolist() for row in (0, 1) for column in (0, 1)
    ]
    assert corners == [RIGHT, WRONG, RIGHT, WRONG]
    # The support image of class 0 is the second one, and its place is in the first row.
    assert sheet[3, 12 + 3, 0] == np.rint(255 * support[1, 0, 0, 0])
    assert sheet[3, left + 3].tolist() == np.rint(255 * query[0, 0, 0]).tolist()


def test_a_fit_is_drawn_for_each_number_of_steps() -> None:
    x = np.random.default_rng(0).uniform(-5, 5, 50)
    points = (x[:5], np.sin(x[:5]))
    one = draw_fit(points, (x, np.sin(x)), {0: np.zeros(50)})
    two = draw_fit(points, (x, np.sin(x)), {0: np.zeros(50), 10: 0.9 * np.sin(x)})
    assert one.shape == two.shape == (400, 600, 3) and one.dtype == np.uint8
    blue = [(p[..., 2].astype(int) > p[..., 0].astype(int) + 60).sum() for p in (one, two)]
    assert 0 < blue[0] < blue[1]
