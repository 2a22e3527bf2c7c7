"""Tests of learning rates as functions of the step."""

import itertools

import pytest

from karpa_tf.training.schedule import WarmupThenDecay


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_the_rate_rises_to_the_peak_and_falls_to_the_end(end):
    rate = WarmupThenDecay(2.0, 100, 0.2, end)
    rates = [float(rate(step)) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[19] == pytest.approx(2.0)
    assert rates[:20] == sorted(rates[:20]) and rates[19:] == sorted(rates[19:], reverse=True)
    falls = [a - b for a, b in itertools.pairwise(rates[20:])]
    assert falls == pytest.approx([falls[0]] * len(falls), abs=1e-5)
    # The step after the last one would have the end's rate.
    assert float(rate(100)) == pytest.approx(2.0 * end, abs=1e-6)
    assert float(rate(500)) == pytest.approx(2.0 * end, abs=1e-6)
    assert WarmupThenDecay.from_config(rate.get_config()).get_config() == rate.get_config()
