"""A run that begins with the weights of another one, without some of its heads and neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.errors import UserError
from karpa_tf.models.pruning import chosen, importance, smaller_weights, units_of
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.run import Run

# Training examples, about, on which it is measured what is important.
_MEASURED = 1024


def remove_units(
    run: Run[Any], model: keras.Model, batches: Batches, shares: Mapping[str, float]
) -> list[np.ndarray]:
    """Returns the weights of a model without its least important heads and neurons, and says how many go.

    Args:
        run: that begins with them.
        model: of the run that `init` names.
        batches: to learn from.
        shares: of `heads` and of `neurons` that go, from each block or layer alike.

    Raises:
        UserError: the shares are so small that nothing would go.
    """
    units = units_of(model)
    count = min(-(-_MEASURED // batches.batch_size), batches.steps_per_epoch)
    rows = batches.dataset(0, count)
    scores = importance(model, units, rows, SparseCrossEntropy())
    kept = [chosen(score, shares.get(one.kind, 0.0)) for one, score in zip(units, scores, strict=True)]
    said = []
    for kind in dict.fromkeys(one.kind for one in units):
        places = [i for i, one in enumerate(units) if one.kind == kind]
        before, after = sum(units[i].count for i in places), sum(len(kept[i]) for i in places)
        said += [f"{before - after:,} of {before:,} {kind}"] if after < before else []
    if not said:
        asked = " and ".join(f"{share:g} of the {kind}" for kind, share in shares.items() if share)
        raise UserError(f"Nothing is removed by {asked}: that is less than half of one. Give a larger share.")
    examples = count * batches.batch_size
    run.say(f"Removing {' and '.join(said)}: the least important ones for {examples:,} training examples")
    return smaller_weights(model, units, kept)
