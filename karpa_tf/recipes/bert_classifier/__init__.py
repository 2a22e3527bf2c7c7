"""`bert-classifier`: settings and options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, EvaluateOptions, ExplainOptions, Input
from karpa_tf.recipes.families.settings import (
    TEACHER,
    BertExportOptions,
    BertSettings,
    TaughtSettings,
)
from karpa_tf.settings import CountOrNone, NonNegative, defaults_of, option

# What stands for the text and for the word that is looked for, in a pattern.
TEXT, MASK = "{text}", "[MASK]"


@dataclass(kw_only=True)
@defaults_of(__file__)
class BertClassifierSettings(BertSettings, TaughtSettings):
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
    encoder: Literal["bert", "gru"] = option(
        "bert", "scratch: what reads the pieces: transformer blocks, or a bidirectional GRU of that width."
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced: every label counts as much as the others, however rare it is."
    )
    metric: Literal["accuracy", "macro_f1"] = option("accuracy", "What decides which epoch is the best.")
    head_rate: NonNegative = option(
        5.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )
    batch_size: CountOrNone = option(
        0, "Examples in an update of the weights, over all workers; 0: 64 with method fewshot, else 16."
    )
    method: Literal["full", "lora", "head", "fewshot", "zeroshot", "cloze"] = option(  # type: ignore[assignment]
        "full",
        "What is trained: every weight, low-rank adapters, or the head alone; from few rows or none: "
        "fewshot, zeroshot, cloze.",
    )
    shots: CountOrNone = option(
        0, "Rows of each label to learn from, drawn by the seed; 0: all of them, with cloze none."
    )
    curve: str = option(
        "", "Learning curve, as 1,2,5,10,all: a run of the method and one of full for each number of shots."
    )
    label_names: str = option(
        "",
        "A YAML file of words for each label, which count as rows of it: with zeroshot, fewshot and shots; "
        "empty: the labels' own; none: no words.",
    )
    pattern: str = option(
        "", "cloze: a text around the row's, as '{text} It was [MASK].'; several, apart by |, are averaged."
    )
    words: str = option("", "cloze: words for the mask by label, as pos=great,good;neg=bad.")
    calibrate: bool = option(
        True,
        "zeroshot: make labels equally frequent on the validation texts; cloze: take out what an empty text "
        "gives.",
    )

    extra_data: str = option(
        "", "teacher: more texts to learn from, without labels: a .txt of a text a line, or a table."
    )

    learning_rates: ClassVar[dict[str, float]] = {
        **BertSettings.learning_rates,
        "fewshot": 3e-5,
        "zeroshot": 0.0,
        "cloze": 1e-4,
    }

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense."""
        super().__post_init__()
        cloze, method = self.method == "cloze", self.method
        if self.encoder == "gru":
            for name, wrong in (
                (f"preset {self.preset}", self.preset != "scratch"),
                ("pretrain_data", self.pretrain_data),
                ("adversarial", self.adversarial),
                ("an odd width", self.width % 2),
            ):
                if wrong:
                    raise UserError(f"encoder gru is trained from scratch, and does not go with {name}.")
        if self.teacher and method not in ("full", "lora", "head"):
            raise UserError(f"A teacher goes with method full, lora or head. Received: method {method}.")
        if self.extra_data and not self.teacher:
            raise UserError("extra_data has no labels: only a run with a teacher can learn from it.")
        if self.preset == TEACHER and (not self.teacher or method != "full"):
            raise UserError(
                f"preset {TEACHER} begins with blocks of the teacher, and goes with teacher and method full. "
                f"Received: {self.teacher or 'no teacher'}, method {method}."
            )
        if method == "zeroshot" and self.shots:
            raise UserError(
                f"shots does not go with method zeroshot, which learns from no rows: method fewshot does. "
                f"Received: {self.shots}."
            )
        if method == "zeroshot" and not self.learns_from_words:
            raise UserError(
                "method zeroshot learns from the words of the labels alone, for one text: neither label_names"
                " none nor text_b goes with it."
            )
        if cloze and not (self.pattern and self.words):
            raise UserError(
                f"method cloze needs a pattern and words, as --pattern '{TEXT} It was {MASK}.' --words "
                f"'pos=great,good;neg=bad'. Received: {self.pattern or 'no pattern'} and "
                f"{self.words or 'no words'}."
            )
        if not cloze and (self.pattern or self.words):
            raise UserError(f"pattern and words go with method cloze. Received: method {method}.")
        if cloze:
            for name, set_ in (
                ("text_b", self.text_b),
                ("label_names", self.label_names),
                ("adversarial", self.adversarial),
                ("token_dropout", self.token_dropout),
                ("class_weights", self.class_weights.replace("none", "")),
            ):
                if set_:
                    raise UserError(f"{name} does not go with method cloze. Received: {set_}.")
            self.patterns(), self.words_by_label()
        if self.curve:
            self.curve_shots()

    def smaller(self, assets: Path) -> dict[str, Any]:
        if self.encoder == "gru":
            return {"width": max(2, self.width // 4 * 2)}
        encoder = json.loads((assets / "encoder.json").read_text(encoding="utf-8"))["architecture"]
        layers = max(1, encoder.get("layers", 2) // 2)
        plain = {"method": "full", "pattern": "", "words": "", "learning_rate": 0.0}
        return {"preset": TEACHER, "layers": layers, **plain}

    @property
    def learns(self) -> bool:
        """Whether there is anything to train: there is not with method zeroshot, and cloze without shots."""
        return bool(self.shots) or self.method not in ("zeroshot", "cloze")

    @property
    def needs_masked_lm(self) -> bool:
        """Whether the preset must bring the head of a masked language model: with method cloze."""
        return self.method == "cloze"

    @property
    def learns_from_words(self) -> bool:
        """Whether words of the labels count as rows of them."""
        if self.method == "cloze" or self.text_b or self.label_names == "none":
            return False
        return bool(self.method in ("fewshot", "zeroshot") or self.shots or self.label_names)

    def patterns(self) -> list[str]:
        """Returns the patterns of method cloze.

        Raises:
            UserError: one of them has no [MASK] or no {text}, or two.
        """
        found = [pattern.strip() for pattern in self.pattern.split("|")]
        for pattern in found:
            if pattern.count(TEXT) != 1 or pattern.count(MASK) != 1:
                raise UserError(
                    f"A pattern has one {TEXT} and one {MASK}, as '{TEXT} It was {MASK}.' Received: "
                    f"'{pattern}'."
                )
        return found

    def words_by_label(self) -> dict[str, list[str]]:
        """Returns the words of method cloze.

        Raises:
            UserError: they are not `label=word,word;label=word`.
        """
        found: dict[str, list[str]] = {}
        for part in filter(str.strip, self.words.split(";")):
            label, equals, words = (piece.strip() for piece in part.partition("="))
            several = [word.strip() for word in words.split(",")]
            if not equals or not label or not all(several) or label in found:
                raise UserError(
                    f"words are 'label=word,word;label=word', each label once. Received: '{part.strip()}'."
                )
            found[label] = several
        return found

    def curve_shots(self) -> list[int]:
        """Returns the numbers of shots of a learning curve, rising; 0, all rows, is the last.

        Raises:
            UserError: they are not two numbers at least, one of them perhaps `all`, or the method has none.
        """
        parts = [part.strip() for part in self.curve.split(",")]
        numbers = [0 if part == "all" else int(part) if part.isdecimal() else -1 for part in parts]
        if len(numbers) < 2 or len(set(numbers)) < len(numbers) or min(numbers) < 0 or "0" in parts:
            raise UserError(
                f"curve takes two numbers of shots at least, as 1,2,5,10,all. Received: {self.curve}."
            )
        if self.method not in ("fewshot", "lora", "head") or self.shots or self.folds:
            raise UserError(
                "curve compares method fewshot, lora or head with full, and goes neither with shots nor with "
                f"folds. Received: method {self.method}, shots {self.shots}, folds {self.folds}."
            )
        return sorted(numbers, key=lambda number: number or float("inf"))


def inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature: the columns that it was trained on."""
    found = {"text": Input("text", config.get("text", ""))}
    if config.get("text_b"):
        found["text_b"] = Input("text", config["text_b"])
    return found


@dataclass(kw_only=True)
class BertEvaluateOptions(EvaluateOptions):
    """The options of `karpa-tf evaluate`."""

    groups: str = option("", "A further column: the accuracy of each group of rows, with intervals.")


ABOUT = About(
    summary="BERT fine-tuned on a table of texts and labels",
    default_data="embedded: intents of home-assistant-intents, split by template",
    settings=BertClassifierSettings,
    inputs=inputs,
    evaluate=BertEvaluateOptions,
    export=BertExportOptions,
    explain=ExplainOptions,
    charts={"accuracy": ["epoch/accuracy"], "loss": ["epoch/loss"]},
    figure="accuracy",
)
