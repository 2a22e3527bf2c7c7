"""Tasks of texts: a table split by label, each text the vector that an encoder makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from karpa_tf.data.tables import Columns, read_given
from karpa_tf.meta.classes import TaskSize, class_data, first_places, split_by_class, test_alone
from karpa_tf.meta.tasks import TaskData


def open_text_tasks(
    source: str | Mapping[str, Sequence[Any]],
    embed: Callable[[list[str]], np.ndarray],
    columns: Columns | None = None,
    *,
    ways: int,
    shots: int,
    queries: int,
    only_test: bool = False,
) -> TaskData:
    """Opens labelled texts as tasks, split by label; see `split_by_class`.

    Args:
        source: as for `open_table`: a .csv, .tsv, .jsonl ..., a folder with train.csv, columns in memory.
        embed: texts to their vectors, float32 (n, d); called once, with every text that is used.
        columns: names of the columns.
        ways: labels of a task.
        shots: texts of each label in the support set.
        queries: the same in the query set.
        only_test: give the test split alone: the data's own one, or else every text.

    Returns:
        Tasks of float32 (d,).

    Raises:
        UserError: the source cannot be read, or has too few labels, or too few texts of them.
    """
    name, task = source if isinstance(source, str) else "The table", TaskSize(ways, shots, queries)
    given = read_given(source, columns or Columns())
    texts = [text for rows in given.values() for text in rows.texts]
    labels = [label for rows in given.values() for label in rows.labels]
    come = [split for split, rows in given.items() for _ in rows.labels]
    notes = [note for rows in given.values() for note in rows.notes]
    once = first_places([key for rows in given.values() for key in rows.keys()])  # noqa: SIM118
    if len(once) < len(texts):
        notes.append(f"{name}: {len(texts) - len(once)} texts that came before were left out.")
    texts, labels, come = [texts[i] for i in once], [labels[i] for i in once], [come[i] for i in once]
    places = test_alone(come) if only_test else split_by_class(labels, come)
    used = np.concatenate(list(places.values()))
    vectors = np.split(
        np.asarray(embed([texts[i] for i in used]), np.float32),
        np.cumsum([len(x) for x in places.values()])[:-1],
    )
    rows = {
        split: (x, [labels[i] for i in at]) for (split, at), x in zip(places.items(), vectors, strict=True)
    }
    return class_data(name, rows, task, "text", notes)
