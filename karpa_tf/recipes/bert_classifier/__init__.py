"""`bert-classifier`: settings and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from karpa_tf.recipe import About, ExplainOptions, Input
from karpa_tf.recipes.families.settings import BertExportOptions, BertSettings
from karpa_tf.settings import NonNegative, defaults_of, option


@dataclass(kw_only=True)
@defaults_of(__file__)
class BertClassifierSettings(BertSettings):
    """A BERT that says which label a text has."""

    data: str = option(
        "embedded",
        "Texts with labels: embedded (intents), a .csv, .tsv, .jsonl, .xlsx or .parquet file, a folder with "
        "train.csv and perhaps validation.csv and test.csv, tfds:NAME.",
    )
    text: str = option("text", "Column of the text.")
    label: str = option("label", "Column of the label.")
    text_b: str = option("", "Column of the second text, for pairs.")
    pooling: Literal["mean", "cls"] = option("mean", "What stands for the text: the mean vector, or [CLS].")
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: every label counts as much as the others, however rare it is."
    )
    metric: Literal["accuracy", "macro_f1"] = option("accuracy", "What decides which epoch is the best.")
    head_rate: NonNegative = option(
        5.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )


def inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature: the columns that it was trained on."""
    found = {"text": Input("text", config.get("text", ""))}
    if config.get("text_b"):
        found["text_b"] = Input("text", config["text_b"])
    return found


ABOUT = About(
    summary="BERT fine-tuned on a table of texts and labels",
    default_data="embedded: intents of home-assistant-intents, split by template",
    settings=BertClassifierSettings,
    inputs=inputs,
    export=BertExportOptions,
    explain=ExplainOptions,
    charts={"accuracy": ["epoch/accuracy"], "loss": ["epoch/loss"]},
    figure="accuracy",
)
