"""`bert-tagger`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from karpa_tf.recipe import About, ExplainOptions, Input
from karpa_tf.recipes.families.settings import BertExportOptions, BertSettings, JoinedSettings
from karpa_tf.settings import defaults_of, option


@dataclass(kw_only=True)
@defaults_of(__file__)
class BertTaggerSettings(BertSettings, JoinedSettings):
    """A BERT that tags words: named entities, slots."""

    # Whole sentences of tags say more than a label each, and there are fewer of them to learn from.
    learning_rates: ClassVar[dict[str, float]] = BertSettings.learning_rates | {"full": 2e-4}

    data: str = option(
        "embedded",
        "Tagged words: embedded (slots), a file in CoNLL columns, a folder with train.conll and perhaps "
        "validation and test, tfds:NAME.",
    )
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to a line whose token is empty or invisible: left out and counted, or an error."
    )


ABOUT = About(
    summary="BERT fine-tuned on tagged words: named entities, slots",
    default_data="embedded: slots of home-assistant-intents, split by template",
    settings=BertTaggerSettings,
    inputs=lambda config: {"text": Input("text")},
    export=BertExportOptions,
    explain=ExplainOptions,
    charts={"F1": ["epoch/f1", "epoch/f1_strict"], "loss": ["epoch/loss"]},
    figure="f1",
)
