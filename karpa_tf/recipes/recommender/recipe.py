"""`recommender`: two towers and a re-ranker, from who took what to a served ranking.

    karpa-tf train recommender                                     simulated clicks on real texts
    karpa-tf train recommender --config movielens --data ml-100k   MovieLens 100k, which you bring
    karpa-tf predict recommender/latest '{"history": ["12"], "candidates": ["7", "50"]}'
    karpa-tf export recommender/latest --items new.csv             with further items, without training

What it reaches stands in the header of each YAML file beside this one; how it is measured, in
docs/recommender.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from karpa_tf.data.ratings import RatingSplits, open_ratings, read_items, split_ratings
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature
from karpa_tf.judging.ranking import nearest_items
from karpa_tf.recipe import EvaluateOptions, Evaluation, Explanation, Exported, PredictOptions, Recipe
from karpa_tf.recipes.families import common
from karpa_tf.training import runtime
from karpa_tf.training.loop import Stage
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run, check_data
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.two_towers import drawing_shares, held_out_batches, history_batches

from . import ABOUT, RecommenderExplainOptions, RecommenderExportOptions, RecommenderSettings
from .explaining import explain
from .judge import Judge, compare
from .network import Parts, Table, keep_table, read_table
from .served import RETRIEVED, Recommender, examples, model_card
from .steps import RerankStep, TwoTowerStep

# Users in an update of the re-ranker.
_USERS = 64


class Recommend(Recipe[RecommenderSettings]):
    """Ranks items for users."""

    about = ABOUT

    # --- Train

    def train(self, run: Run[RecommenderSettings]) -> dict[str, float]:
        """Trains the towers, then the re-ranker; returns the final figures, those of the test split."""
        config = run.settings
        splits = _open(config)
        run.begin(splits.record)
        run.say(*splits.ratings.notes, f"{splits.described(config.data)}; run {run.folder.path}")
        known = splits.matrix("train")
        table = Table.learn(splits.ratings.items, np.asarray(known.any(axis=0)), config.vocabulary_size)
        keep_table(run, table)
        parts = Parts(config, table)
        run.begin_with(parts.model)
        taken, asked = (_lists(splits, part) for part in ("train", "rerank"))
        steps = -(-len(splits.train) // (config.users * config.targets))
        log_q = np.log(np.maximum(drawing_shares(taken, len(table.items)), 1e-9)) if config.logq else None
        step = TwoTowerStep(
            parts.item_tower,
            parts.user_tower,
            parts.model,
            _optimizer(config.learning_rate, config.epochs * steps, config.weight_decay),
            table.words,
            log_q,
        )
        batches = history_batches(
            taken,
            users=config.users,
            targets=config.targets,
            history=config.history,
            seed=config.seed,
            steps_per_epoch=steps,
        )
        self._fit(run, Stage(step, batches, config.epochs), parts, splits, last=not parts.reranker)
        if parts.reranker:
            parts.reranker.get_layer("neighbours").assign(*nearest_items(known, config.neighbours))
            steps = -(-len(asked) // _USERS)
            reranking = RerankStep(
                parts.item_tower,
                parts.user_tower,
                parts.reranker,
                parts.model,
                _optimizer(config.rerank_rate, config.rerank_epochs * steps),
                table.words,
                table.ids,
                RETRIEVED,
            )
            batches = held_out_batches(taken, asked, users=_USERS, seed=config.seed, steps_per_epoch=steps)
            self._fit(run, Stage(reranking, batches, config.rerank_epochs, name="reranker"), parts, splits)
        return run.finish(lambda: self.evaluate(run.folder, EvaluateOptions(), run.steps))

    def _fit(
        self,
        run: Run[RecommenderSettings],
        stage: Stage,
        parts: Parts,
        splits: RatingSplits,
        *,
        last: bool = True,
    ) -> None:
        """Trains a stage; the weights of its best epoch are kept if it is the last one."""
        judge = Judge(parts)
        run.fit(
            dataclasses.replace(stage, validation=lambda: judge.validate(splits)),
            best=run.best_weights("val_ndcg_10", mode="max") if last else None,
            shown=("ndcg_10", "recall_10"),
            unit="users",
            units_per_step=stage.batches.batch_size if stage.batches else 1,
        )

    # --- Evaluate

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Judges a run's best weights on test ratings, and on items that training has not seen."""
        runtime.use_threads()
        config: Any = folder.open_config(self.about.settings)
        if options.data and options.data != config.data:
            raise UserError(
                f"evaluate takes no other data than {config.data}: a recommender is judged on held-out "
                f"ratings of its own items. Received: --data {options.data}."
            )
        splits = _open(config)
        check_data(folder, config.data, splits.record)
        simulated = ", simulated clicks" if config.data == "embedded" else ""
        return compare(self.open_model(folder), splits, f"{config.data}{simulated} (test split)")

    # --- Predict and export

    def open_model(self, folder: RunFolder, items: str = "") -> Parts:
        """Returns a run with its best weights.

        Args:
            folder: of the run.
            items: a table of further items.

        Raises:
            UserError: they cannot be read.
        """
        config: Any = folder.open_config(self.about.settings)
        table = read_table(folder)
        parts = Parts(config, table.joined(read_items(items)) if items else table)
        common.load_weights(parts.model, folder)
        return parts

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns what ranks candidates, as `predict` calls it."""
        return Recommender(self.open_model(folder)).signatures()["serving_default"]

    def explain(
        self, folder: RunFolder, inputs: Sequence[str], options: RecommenderExplainOptions
    ) -> Explanation:
        """Says which items of a history speak for what is recommended."""
        return explain(Recommender(self.open_model(folder)), inputs, options)

    def export(self, folder: RunFolder, options: RecommenderExportOptions) -> Exported:
        """Writes the next version of `savedmodels/recommender`, with the run's items and further ones."""
        metrics = common.learned_or_refuse(folder, "ndcg_10", "popularity", options.force)
        recommender = Recommender(self.open_model(folder, options.items))
        served = recommender.signatures()
        return common.export(
            folder,
            options,
            served.pop("serving_default"),
            others=served,
            examples=examples(recommender),
            assets={"items.jsonl": recommender.table.as_text()},
            model_card=model_card(folder, recommender, metrics),
        )


def _open(config: RecommenderSettings) -> RatingSplits:
    return split_ratings(
        open_ratings(config.data),
        test_share=config.test_share,
        validation_share=config.validation_share,
        rerank_share=config.rerank_share,
        cold_share=config.cold_share,
    )


def _lists(splits: RatingSplits, part: str) -> list[np.ndarray]:
    """Returns the rows of the table that each user took in a part, from 1."""
    return [np.flatnonzero(row) + 1 for row in splits.matrix(part)]


def _optimizer(rate: float, steps: int, decay: float = 0.0) -> AdamW:
    return AdamW(WarmupThenDecay(rate, steps), weight_decay=decay, global_clipnorm=5.0)
