"""`retriever`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, EvaluateOptions, ExportOptions, Input, PredictOptions
from karpa_tf.recipes.families.settings import BertSettings
from karpa_tf.settings import Count, Fields, defaults_of, option

# What entries are put in an order by.
Ranking = Literal["both", "dense", "bm25"]


@dataclass(kw_only=True)
@defaults_of(__file__)
class RetrieverSettings(BertSettings):
    """The nearest of a table's entries to a text."""

    data: str = option(
        "embedded",
        "Texts with their right answers: embedded (intents), a .csv, .tsv, .jsonl, .xlsx or .parquet file, a "
        "folder with train.csv and perhaps validation.csv and test.csv, tfds:NAME.",
    )
    entries: str = option(
        "", "The table of the entries: an id, a text and an answer each; empty: the training rows are these."
    )
    text: str = option("text", "Column of the text, in both tables.")
    answer: str = option("answer", "Column of the answer, in both tables.")
    entry: str = option("entry", "Column of the entries' ids.")
    ranking: Ranking = option(
        "both",
        "What is served: dense (cosines of a BERT's vectors), bm25 (pieces in common), or both, with a "
        "weight chosen on validation.",
    )
    top: Count = option(5, "Entries that are served for a text.")
    method: Literal["full", "lora", "none"] = option(  # type: ignore[assignment]
        "full",
        "What is tuned on pairs of texts with one answer: every weight, or low-rank adapters; none: the "
        "preset stays as it is.",
    )
    batch_size: Count = option(64, "Texts in an update of the weights; each is compared with the others.")

    learning_rates: ClassVar[dict[str, float]] = {"scratch": 5e-4, "full": 3e-5, "lora": 1e-3, "none": 0.0}
    refuses: ClassVar[tuple[str, ...]] = (
        *("folds", "fold", "sparsity", "prune_heads", "prune_neurons", "adversarial"),
    )

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense."""
        super().__post_init__()
        if len({self.text, self.answer, self.entry}) < 3:
            raise UserError(
                "text, answer and entry name three columns. Received: "
                f"{self.text}, {self.answer} and {self.entry}."
            )


@dataclass(kw_only=True)
class EntriesOption(Fields):
    """Other entries than those of the run."""

    entries: str = option(
        "", "A table of other entries than the run's, with the same columns; nothing is trained for them."
    )


@dataclass(kw_only=True)
class RetrieverEvaluateOptions(EntriesOption, EvaluateOptions):
    """How it is evaluated."""


@dataclass(kw_only=True)
class RetrieverPredictOptions(EntriesOption, PredictOptions):
    """How it is asked."""


@dataclass(kw_only=True)
class RetrieverExportOptions(EntriesOption, ExportOptions):
    """How it is exported."""


ABOUT = About(
    summary="the nearest of a table's entries to a text: BERT's vectors, BM25, or both",
    default_data="embedded: intents of home-assistant-intents, split by template",
    settings=RetrieverSettings,
    inputs=lambda config: {"text": Input("text", config.get("text", ""))},
    evaluate=RetrieverEvaluateOptions,
    predict=RetrieverPredictOptions,
    export=RetrieverExportOptions,
    charts={"recall": ["epoch/recall_at_1", "epoch/recall_at_5"], "loss": ["epoch/loss"]},
    figure="recall_at_1",
)
