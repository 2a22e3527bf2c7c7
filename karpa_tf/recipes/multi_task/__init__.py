"""`multi-task`: settings and options."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import ClassVar, Literal

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.recipe import About, EvaluateOptions, ExplainOptions, Input
from karpa_tf.recipes.families.settings import BertExportOptions, BertSettings
from karpa_tf.settings import NonNegative, Positive, defaults_of, option

EMBEDDED = "embedded"


@dataclass(kw_only=True)
@defaults_of(__file__)
class MultiTaskSettings(BertSettings):
    """One BERT under several heads: labels of texts, tags of words."""

    data: str = option(
        EMBEDDED,
        "Tasks as 'intents=train.csv slots=train.conll': each a table of texts and labels, or tagged words, "
        "as for bert-classifier and bert-tagger; or embedded (intents and slots of the same sentences).",
    )
    text: str = option("text", "Column of the text, in tables.")
    label: str = option("label", "Column of the label, in tables.")
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to a line whose token is empty or invisible: left out and counted, or an error."
    )
    pooling: Literal["mean", "cls"] = option("mean", "What stands for a text: the mean vector, or [CLS].")
    temperature: Positive = option(
        1.0,
        "How often each set of rows is drawn, by its size to the power of 1 / temperature: 1: each row once "
        "an epoch; the higher, the more alike.",
    )
    weights: Literal["fixed", "uncertainty"] = option(
        "fixed", "What each task's loss counts: what task_weights says, or learned by its uncertainty."
    )
    task_weights: str = option("", "fixed: weights as 'intents=1 slots=0.5'; 1 where none is given.")
    head_rate: NonNegative = option(
        5.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )

    refuses: ClassVar[tuple[str, ...]] = ("folds", "fold", "sparsity", "prune_heads", "prune_neurons")

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense."""
        super().__post_init__()
        if self.task_weights and self.weights == "uncertainty":
            raise UserError("task_weights goes with weights fixed; with uncertainty they are learned.")
        sources, weights = self.sources(), self.fixed_weights()
        if unknown := sorted(set(weights) - set(sources)):
            raise UserError(
                f"task_weights: there is no task {unknown[0]}{did_you_mean(unknown[0], sources)} There is: "
                f"{', '.join(sources)}."
            )

    def sources(self) -> dict[str, str]:
        """Returns where the data of each task is.

        Raises:
            UserError: it is not `NAME=PATH NAME=PATH`.
        """
        if self.data == EMBEDDED:
            return {"intents": EMBEDDED, "slots": EMBEDDED}
        found = named_values("data", self.data, "PATH")
        if len(found) < 2:
            raise UserError(
                f"multi-task takes two tasks at least; for one there are bert-classifier and bert-tagger. "
                f"Received: {self.data}."
            )
        for name, source in found.items():
            if source == EMBEDDED:
                raise UserError(
                    f"data: {EMBEDDED} stands alone: it is both of intents and slots. Received: "
                    f"{name}={source}."
                )
        return found

    def fixed_weights(self) -> dict[str, float]:
        """Returns the weights of `task_weights`.

        Raises:
            UserError: it is not `NAME=NUMBER NAME=NUMBER`, or a number is not above 0.
        """
        found = {}
        for name, text in named_values("task_weights", self.task_weights, "NUMBER").items():
            if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", text) or not float(text):
                raise UserError(f"task_weights are numbers above 0. Received: {name}={text}.")
            found[name] = float(text)
        return found


def named_values(field: str, words: str, what: str) -> dict[str, str]:
    """Returns values by task of `NAME=VALUE NAME=VALUE`; quotes keep a value with a space together.

    Args:
        field: what the error calls the words.
        words: that were given.
        what: the values are, for the error.

    Raises:
        UserError: a word is none of these, or two have one name.
    """
    found: dict[str, str] = {}
    try:
        given = shlex.split(words)
    except ValueError:
        raise UserError(f"{field} has a quote that does not end. Received: {words}.") from None
    for word in given:
        name, _, value = word.partition("=")
        if not value or not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) or name == "serving_default":
            raise UserError(
                f"{field} is NAME={what} NAME={what}, one a task, whose name has letters, digits and _. "
                f"Received: {word}."
            )
        if name in found:
            raise UserError(f"{field} has two tasks of the name {name}: {found[name]} and {value}.")
        found[name] = value
    return found


@dataclass(kw_only=True)
class MultiTaskEvaluateOptions(EvaluateOptions):
    """How several tasks are evaluated."""

    beside: str = option(
        "", "Runs of single tasks to compare with, as 'intents=bert-classifier/1 slots=bert-tagger/1'."
    )


ABOUT = About(
    summary="one BERT under several heads: labels of texts and tags of words in one pass",
    default_data="embedded: intents and slots of home-assistant-intents, split by template",
    settings=MultiTaskSettings,
    inputs=lambda config: {"text": Input("text", config.get("text", ""))},
    evaluate=MultiTaskEvaluateOptions,
    export=BertExportOptions,
    explain=ExplainOptions,
    charts={"score": ["epoch/score"], "exact rows": ["epoch/exact_rows"], "loss": ["epoch/loss"]},
    figure="score",
)
