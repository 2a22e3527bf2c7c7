"""`recommender`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from karpa_tf.recipe import About, ExplainOptions, ExportOptions, Input
from karpa_tf.settings import Count, NonNegative, Positive, RunSettings, Share, defaults_of, option


@dataclass(kw_only=True)
@defaults_of(__file__)
class RecommenderSettings(RunSettings):
    """Two towers and a re-ranker."""

    data: str = option(
        "embedded",
        "A folder with the tables items (id, text, genre) and ratings (user, item), or MovieLens 100k's; "
        "embedded: simulated clicks on real texts.",
    )
    test_share: Share = option(0.25, "Share of the ratings for the test split, at random.")
    validation_share: Share = option(0.05, "Share of the other ratings for validation.")
    rerank_share: Share = option(
        0.05, "Share of them that the re-ranker learns from, and the towers do not; 0: there is no re-ranker."
    )
    cold_share: Share = option(
        0.1, "Share of the items that training does not see, to be judged as new ones."
    )
    vocabulary_size: Count = option(4_000, "Most pieces of words to learn from the items' texts.")
    width: Count = option(64, "Numbers of an item's vector, and of a user's.")
    id_dropout: Share = option(0.1, "Share of the items that an update takes for new ones, without an id.")
    history: Count = option(100, "Most items of a user's history that an update reads.")
    epochs: Count = option(20, "Passes of the towers over the training ratings.")
    users: Count = option(128, "Users in an update.")
    targets: Count = option(8, "Items of a user in an update that the others of his are to predict.")
    logq: bool = option(True, "Correct the sampled softmax by how often an item is drawn.")
    weight_decay: NonNegative = option(0.01, "Decay of the weights.")
    neighbours: Count = option(200, "Nearest items of an item that the re-ranker knows.")
    rerank_epochs: Count = option(10, "Passes of the re-ranker over its users.")
    rerank_rate: Positive = option(0.02, "Peak of the re-ranker's learning rate.")
    init: str = option("", "A run whose best weights to start from.")

    length: ClassVar[str] = "epochs"


@dataclass(kw_only=True)
class RecommenderExportOptions(ExportOptions):
    """What is exported beside the model."""

    items: str = option("", "A table of further items (id, text, genre), which need no training.")


@dataclass(kw_only=True)
class RecommenderExplainOptions(ExplainOptions):
    """What is explained."""

    item: str = option("", "The id of the item; empty: the best candidate of each row.")
    top: Count = option(5, "Items of the history to print, those that add most.")


ABOUT = About(
    summary="recommender: two towers and a re-ranker, which take new items and new users",
    default_data="embedded: simulated clicks on real texts, of SciPy and scikit-learn",
    settings=RecommenderSettings,
    inputs=lambda settings: {"history": Input("json"), "candidates": Input("json")},
    export=RecommenderExportOptions,
    explain=RecommenderExplainOptions,
    charts={"loss": ["epoch/loss"], "nDCG": ["epoch/ndcg_10"], "recall": ["epoch/recall_10"]},
    figure="ndcg_10",
)
