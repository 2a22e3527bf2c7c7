"""`mlm-gru`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from karpa_tf.recipe import About, ExplainOptions, ExportOptions, Input, PredictOptions
from karpa_tf.settings import (
    Bounds,
    Count,
    CountOrNone,
    NonNegative,
    Share,
    TrainingSettings,
    UnitInterval,
    defaults_of,
    option,
)


@dataclass(kw_only=True)
@defaults_of(__file__)
class MlmGruSettings(TrainingSettings):
    """A masked language model: Embedding -> Bidirectional GRU -> softmax over the vocabulary."""

    data: str = option(
        "embedded",
        "Text: embedded (the Python reference), a .txt or .txt.gz file, a folder of them, tfds:NAME.",
    )
    vocabulary: str = option("", "Your own WordPiece vocab.txt; empty: learn one from the text.")
    vocabulary_size: Count = option(10_000, "Largest number of pieces to learn.")
    lowercase: bool = option(True, "Read text in lower case, without accents.")
    sequence_length: Annotated[int, Bounds(least=2)] = option(64, "Pieces in a window.")
    mask_rate: Share = option(0.15, "Share of the pieces of a window that are masked.")
    whole_word_masking: bool = option(False, "Mask all the pieces of a word together.")
    objective: Literal["masked", "every"] = option(
        "every",
        "Which pieces the loss is taken at: the masked ones, seen with the state that has read the "
        "mask, or every one, each from the states before and after it.",
    )
    predict_rate: UnitInterval = option(
        0.5, "With objective every: share of a window's pieces that the loss is taken at in a step."
    )
    embedding_size: Count = option(256, "Width of the embedding.")
    units: Count = option(256, "Units of the GRU in each direction.")
    dropout: Share = option(0.2, "Share of the activations dropped in training.")
    weight_decay: NonNegative = option(0.01, "AdamW's decay of the matrices.")
    warmup: Share = option(0.05, "Share of the steps in which the learning rate rises.")
    ema: Share = option(
        0.99, "Momentum of the running average of the weights that is evaluated and kept; 0: none."
    )
    patience: CountOrNone = option(
        5, "Epochs without a better validation loss before training stops; 0: never."
    )


@dataclass(kw_only=True)
class MlmGruPredictOptions(PredictOptions):
    """How masks are filled."""

    top_k: int = option(5, "How many fillings of a mask.")


@dataclass(kw_only=True)
class MlmGruExportOptions(ExportOptions):
    """How a fill-mask is exported."""

    top_k: int = option(5, "How many fillings of a mask.")


ABOUT = About(
    summary="masked language model: Embedding, bidirectional GRU, softmax",
    default_data="embedded: the Python reference and docstrings, in English",
    settings=MlmGruSettings,
    inputs=lambda config: {"text": Input("text")},
    predict=MlmGruPredictOptions,
    export=MlmGruExportOptions,
    explain=ExplainOptions,
    charts={"loss": ["epoch/loss"], "accuracy": ["epoch/top1_accuracy"]},
    figure="loss",
)
