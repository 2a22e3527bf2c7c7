"""What a teacher says of texts: those to learn from, and others without labels."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import numpy as np

from karpa_tf import rows as files
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import Rows
from karpa_tf.recipes.families.teaching import Teacher
from karpa_tf.training.distillation import Distillation, TaughtRows
from karpa_tf.training.run import Run

from . import BertClassifierSettings, inputs
from .batches import ClassifierTask, Texts, batch_texts
from .classify import text_inputs


def teach_texts(
    run: Run[BertClassifierSettings], task: ClassifierTask, splits: Mapping[Split, Rows]
) -> tuple[Texts, Distillation]:
    """Returns what is learned from in batches, and what the teacher says of it.

    It is asked once, before the first step. Texts of `extra_data` get the label that it gives them, and
    nothing but its loss.

    Args:
        run: the one that is taught.
        task: of its model.
        splits: rows with labels.
    """
    config, known = run.settings, splits["train"]
    teacher = Teacher(run, task.names, text_inputs(config.text_b))
    extra = unlabelled(config, splits) if config.extra_data else known.take([])
    run.say(f"{teacher.folder.path} teaches: {len(known):,} texts with labels, {len(extra):,} without")
    second = None if known.texts_b is None else known.texts_b + (extra.texts_b or [])
    every = Rows(known.texts + extra.texts, second, known.labels + extra.labels)
    columns = {"text": every.texts, **({} if second is None else {"text_b": second})}
    arrays = {name: np.array([text.encode() for text in texts], object) for name, texts in columns.items()}
    # Texts of like length together: little is padding.
    order = np.argsort([sum(map(len, row)) for row in zip(*arrays.values(), strict=True)], kind="stable")
    logits = teacher({name: array[order] for name, array in arrays.items()})[np.argsort(order)]
    every.labels[len(known) :] = [task.names[place] for place in logits[len(known) :].argmax(axis=1)]
    texts = batch_texts(task, every, training=True, numbered=True)
    shares = np.where(np.arange(len(every)) < len(known), config.teacher_share, 1.0)
    lesson = TaughtRows(texts.labels[: len(every)], logits, shares)
    return texts, Distillation(lesson, config.temperature)


def unlabelled(config: BertClassifierSettings, splits: Mapping[Split, Rows]) -> Rows:
    """Returns the texts of `extra_data` that are in no split, each once; their labels are empty.

    Raises:
        UserError: they cannot be read.
    """
    expected = inputs({"text": config.text, "text_b": config.text_b})
    given = files.read([], config.extra_data, files.columns_of(expected)).match(expected, filled=True).inputs
    given = [row for row in given if row]  # blank lines
    second = [row["text_b"] for row in given] if config.text_b else None
    found = Rows([row["text"] for row in given], second, [""] * len(given))
    found = found.redacted() if config.redact else found
    seen = set(chain.from_iterable(rows.keys() for rows in splits.values()))
    places = {key: place for place, key in reversed([*enumerate(found.keys())]) if key not in seen}
    return found.take(sorted(places.values()))
