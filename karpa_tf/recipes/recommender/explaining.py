"""Why an item is recommended: what each item of the history adds to its score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from karpa_tf import rows
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.recipe import Explanation

from . import ABOUT, RecommenderExplainOptions
from .served import Recommender


def contributions(recommender: Recommender, history: Sequence[str], item: str) -> tuple[float, list[float]]:
    """Returns an item's score, and by how much it would be lower without each item of the history.

    The score is computed anew each time, so that these are exact; they do not add up to the score, since what
    items say together is more or less than what each says.

    Args:
        recommender: that ranks.
        history: ids of the table.
        item: the id of what is ranked.
    """
    places = recommender.rows.lookup(tf.constant(history)).numpy()
    every = np.tile(places, (len(places) + 1, 1))
    every[1:][np.diag_indices(len(places))] = 0
    candidate = tf.fill([len(every), 1], recommender.rows.lookup(tf.constant(item)))
    score, *without = recommender.scores(tf.constant(every, tf.int32), candidate)[:, 0].numpy().tolist()
    return score, [score - other for other in without]


def explain(
    recommender: Recommender, inputs: Sequence[str], options: RecommenderExplainOptions
) -> Explanation:
    """Explains the best candidate of each row, or the one that the options name.

    Args:
        recommender: that ranks.
        inputs: rows as for `predict`.
        options: of the command.

    Raises:
        UserError: a row makes no sense, or the item is not in the table.
    """
    signature = recommender.signatures()["serving_default"]
    asked = rows.read(inputs).match(ABOUT.inputs({})).inputs
    items = recommender.table.items
    texts = dict(zip(items.ids, items.texts, strict=True))
    if options.item and options.item not in texts:
        raise UserError(
            f'There is no item "{options.item}" among the {len(texts):,} of the run'
            f"{did_you_mean(options.item, texts)}"
        )
    lines, explanations = [], []
    for number, (row, answer) in enumerate(zip(asked, signature.predict(asked), strict=True), 1):
        item = options.item or answer["ranked"][0]
        history = [name for name in dict.fromkeys(row["history"]) if name in texts]
        if not history:
            raise UserError(
                f"Row {number} has no history, so nothing in it speaks for an item; predict ranks for it."
            )
        score, parts = contributions(recommender, history, item)
        order = np.argsort(-np.array(parts), kind="stable")[: options.top]
        lines.append(f"{item}  {texts[item]}  score {score:.3f}")
        lines += [f"  {parts[place]:+.3f}  {history[place]}  {texts[history[place]]}" for place in order]
        added = {history[place]: parts[place] for place in np.argsort(-np.array(parts), kind="stable")}
        explanations.append({"item": item, "text": texts[item], "score": score, "contributions": added})
    return Explanation(explanations=explanations, lines=lines)
