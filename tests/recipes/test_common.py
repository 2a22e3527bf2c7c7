"""What recipes share at their ends."""

from __future__ import annotations

from karpa_tf.recipes.common import tell_if_early
from karpa_tf.training.callbacks import BestWeights
from karpa_tf.training.loop import History


def told(figures: list[float], epochs: int, patience: int) -> list[str]:
    best = BestWeights("unused.weights.h5", "val_accuracy", mode="max", patience=patience)
    best.best, best.best_epoch = max(figures), figures.index(max(figures)) + 1
    best.wait = len(figures) - best.best_epoch
    lines: list[str] = []
    tell_if_early(lines.append, History({"val_accuracy": value} for value in figures), epochs, best)
    return lines


def test_a_run_that_stops_early_says_so_and_why() -> None:
    assert told([0.5, 0.75, 0.7, 0.6], 12, 2) == [
        "Stopped early, after epoch 4 of 12: for 2 epochs no val_accuracy was better than 0.7500, that of "
        "epoch 2, whose weights are kept (--patience 2)."
    ]
    assert "for 1 epoch no" in told([0.5, 0.4], 3, 1)[0]
    assert told([0.5, 0.75, 0.7], 3, 2) == []
