"""`retriever`: the nearest of a table's entries to a text, from tables to a served model.

    karpa-tf train retriever                                                      intents, a small BERT
    karpa-tf train retriever --data questions --entries faq.csv --preset FOLDER   your texts, a pretrained one
    karpa-tf export retriever/latest --entries new.csv                            other entries, no training

What it reaches stands in the header of each YAML file beside this one, and in docs/retriever.md. How it is
trained and exported: `families/encoders.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from karpa_tf.data.sequences import encode_texts, rows_of, sequence_batches
from karpa_tf.data.sources import Split
from karpa_tf.data.tables import label_ids, shared_rows
from karpa_tf.export.signature import Signature
from karpa_tf.judging.by_row import of_values
from karpa_tf.judging.retrieval import first_right_ranks, retrieval_metrics
from karpa_tf.recipe import Evaluation
from karpa_tf.recipes.families.encoders import EncoderRecipe, Task
from karpa_tf.recipes.families.examples import Texts, note_of_cut
from karpa_tf.recipes.families.vectors import Encoder, build_vectors
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.contrastive import ContrastiveStep
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder

from . import ABOUT, RetrieverEvaluateOptions, RetrieverSettings
from .data import (
    Questions,
    RetrieverData,
    check_answers,
    open_others,
    open_questions,
    to_learn_from,
)
from .search import Search, open_search

# Texts that are evaluated at once, that an epoch has at least, and that are shown in the projector.
_AT_ONCE, _EPOCH, _PROJECTED = 64, 1000, 1000


@dataclass(frozen=True, repr=False)
class RetrieverTask(Task[RetrieverSettings]):
    """What a run reads and gives.

    Attributes:
        search: what looks up.
    """

    search: Search


@dataclass(frozen=True, kw_only=True)
class Looked(Texts):
    """Entries, and behind them the texts that ask for their answers, in batches.

    Attributes:
        entries: how many of the rows are entries.
    """

    entries: int


class Retriever(EncoderRecipe[RetrieverSettings, Questions, Looked]):
    """The nearest of a table's entries to a text."""

    about = ABOUT
    labels_file = "answers.json"
    counted = ("texts", "answers")
    figure = "recall_at_1"
    baseline = "most frequent"

    # --- Data

    def open_data(self, config: RetrieverSettings) -> RetrieverData:
        return open_questions(config)

    def open_other(self, task: Any, source: str) -> tuple[Questions, Sequence[str]]:
        return open_others(source, task.config, task.search.entries)

    def texts(self, part: Questions) -> list[str]:
        return to_learn_from(part).texts

    def kinds(self, names: Sequence[str], part: Questions) -> tuple[list[str], list[str]]:
        return list(names), part.rows.labels

    def rows_of_epoch(self, config: RetrieverSettings, part: Questions) -> int:
        return max(_EPOCH, len(to_learn_from(part)))

    def batch(self, task: Task[RetrieverSettings], part: Questions, training: bool = False) -> Looked:
        """Returns pairs to learn from; or all entries, and the texts of a part behind them."""
        config = task.config
        rows = to_learn_from(part) if training else part.entries.rows.join(part.rows)
        sequences = encode_texts(task.wordpiece, rows.texts, None, config.sequence_length)
        labels = label_ids(rows.labels, task.names, config.data)
        batches = sequence_batches(
            sequences,
            labels,
            np.ones(len(rows), np.float32),
            task.wordpiece,
            batch_size=config.batch_size if training else _AT_ONCE,
            seed=config.seed if training else None,
            buckets=config.buckets,
            token_dropout=config.token_dropout,
            balanced=_EPOCH,
        )
        order = np.zeros(0, int) if training else rows_of(sequences, _AT_ONCE)
        note = note_of_cut(sequences, config.sequence_length)
        return Looked(batches=batches, order=order, note=note, labels=labels, entries=len(part.entries))

    # --- Model

    def build(self, task: Task[RetrieverSettings], encoder: keras.Model) -> keras.Model:
        return build_vectors(encoder)

    # --- Train

    def learns(self, config: RetrieverSettings) -> bool:
        return config.method != "none"

    def make_step(self, task: Task[RetrieverSettings], model: keras.Model, **more: Any) -> ContrastiveStep:
        return ContrastiveStep(model, model, accumulate=task.config.accumulate)

    def metrics(
        self, task: Task[RetrieverSettings], outputs: Iterable[Any], examples: Looked
    ) -> dict[str, float]:
        """Returns the figures of the ranking `dense`: entries and texts as `batch` gives them."""
        vectors, labels, count = examples.rows(outputs), examples.labels, examples.entries
        ranks = [
            first_right_ranks(vectors[rows] @ vectors[:count].T, labels[rows, None] == labels[:count])
            for rows in np.array_split(np.arange(count, len(labels)), -(-(len(labels) - count) // _AT_ONCE))
        ]
        return retrieval_metrics(np.concatenate(ranks))

    def vectors(
        self, task: Task[RetrieverSettings], model: keras.Model, part: Questions
    ) -> tuple[np.ndarray, Labels]:
        """Returns the vectors of the first texts, with their answers."""
        shown = part.rows.take(range(min(_PROJECTED, len(part))))
        vectors = Encoder(model, task.wordpiece, task.config.sequence_length).embed(shown.texts)
        return vectors, {"answer": shown.labels, "text": [text[:80] for text in shown.texts]}

    def fit_certainty(self, run: Run[RetrieverSettings], splits: Mapping[Split, Questions]) -> None:
        """Makes what looks up of the best weights, with a weight of the cosine for the validation rows."""
        if run.chief:
            task, model = super().open_model(run.folder)
            encoder = Encoder(model, task.wordpiece, task.config.sequence_length)
            search = Search(encoder, splits["validation"].entries)
            search.fit(splits["validation"])
            search.keep(run.folder, task.config)

    # --- What a run has

    def open_model(self, folder: RunFolder) -> tuple[RetrieverTask, keras.Model]:
        return self.open_asked(folder, None)

    def open_asked(self, folder: RunFolder, options: Any) -> tuple[RetrieverTask, keras.Model]:
        """Returns the same, with the entries that the options name."""
        task, model = super().open_model(folder)
        encoder = Encoder(model, task.wordpiece, task.config.sequence_length)
        search = open_search(folder, task.config, encoder, options.entries if options else "")
        return RetrieverTask(**vars(task), search=search), model

    # --- Evaluate

    def evaluate(
        self, folder: RunFolder, options: RetrieverEvaluateOptions, step: int | None = None
    ) -> Evaluation:
        """Evaluates the three rankings on held-out texts; the first one is what is served."""
        runtime.use_threads()
        task, _ = self.open_asked(folder, options)
        part, _, where = self.held_out(folder, task, options)
        search = task.search
        check_answers(part.rows, search.entries, where)
        ranks = search.ranks(part)
        figures = {name: retrieval_metrics(found) for name, found in ranks.items()}
        served, first = figures.pop(task.config.ranking), ranks[task.config.ranking] == 1
        guess = Counter(search.entries.answers).most_common(1)[0][0]
        often = part.rows.labels.count(guess) / len(part)
        return Evaluation(
            data=where,
            metrics=served,
            baselines={**figures, "most frequent": {"recall_at_1": often}},
            facts={
                "ranking": task.config.ranking,
                "weight of dense in both": search.weight,
                "rows": len(part),
                "entries": len(search.entries),
                "rows whose text is an entry's": shared_rows(search.entries.rows, part.rows),
            },
            by_row=lambda: {"recall_at_1": of_values(part.rows.texts, first)},
        )

    # --- Predict and export

    def served(self, task: Any, model: keras.Model) -> Signature:
        return task.search.signature(task.config.ranking, task.config.top)

    def assets(self, task: Any) -> dict[str, str]:
        return {"entries.csv": task.search.entries.as_csv(task.config)}

    def rows(self, part: Questions) -> list[dict[str, str]]:
        return [{"text": text} for text in part.rows.texts]

    def model_card(self, folder: RunFolder, task: Any, metrics: Mapping[str, Any], note: str) -> str:
        config, search = task.config, task.search
        width = min(config.top, len(search.entries))
        return f"""# {folder.recipe}

Looks a text up among {len(search.entries):,} entries, those of `assets/entries.csv`. Trained on
{config.data}, from {config.preset}, method {config.method}. Ranking: {config.ranking} (weight of the cosine
in both: {search.weight:g}).

- in: `text` string [n]; {config.sequence_length} pieces of it are read
- out: `entry`, `answer` string [n, {width}], `score` float32 [n, {width}]: the nearest ones, the best first

On {metrics["facts"]["rows"]} held-out texts, among the {metrics["facts"]["entries"]:,} entries of the run:

{metrics_table(metrics, ["recall_at_1", "recall_at_5", "mrr"])}
{note}
{settings_list(folder.read_config())}
"""
