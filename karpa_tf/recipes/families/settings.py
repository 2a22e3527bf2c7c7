"""Settings and options that the recipes of a family share. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.recipe import EvaluateOptions, ExportOptions, Input
from karpa_tf.settings import (
    Bounds,
    Count,
    CountOrNone,
    NonNegative,
    Positive,
    RunSettings,
    Share,
    TrainingSettings,
    UnitInterval,
    option,
)

# --- Rows that are split --------------------------------------------------------------------------


@dataclass(kw_only=True)
class SplitSettings(TrainingSettings):
    """How rows are held out, and cross-validation."""

    validation_share: Annotated[float, Bounds(least=0.001, below=0.5)] = option(
        0.05, "Share of the data for validation where it brings none."
    )
    test_share: Annotated[float, Bounds(least=0, below=0.5)] = option(
        0.05, "Share of the data for the test split where it brings none."
    )
    folds: CountOrNone = option(
        0, "Cross-validation: so many runs, each tested on another part of the data; 0: no."
    )
    fold: CountOrNone = option(
        0, "With folds: only the run that is tested on this part, from 1; 0: all of them."
    )
    sparsity: Share = option(
        0.0, "Share of the weights of each matrix that become zero in training; see `karpa-tf prune`."
    )

    # Fields that its recipe does not take; `--help` leaves them out.
    refuses: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        for name in self.refuses:
            if value := getattr(self, name):
                raise UserError(f"{name} does not go with this recipe. Received: {value}.")
        if self.folds == 1 or self.fold > self.folds:
            raise UserError(
                f"folds must be 0, or 2 at least, and fold one of them. Received: {self.folds} and "
                f"{self.fold}."
            )

    def of_pruned(self) -> dict[str, Any]:
        """Returns what a run that prunes the weights of this one has otherwise."""
        return {}


# The preset that is made of blocks of the teacher.
TEACHER = "teacher"


# --- Runs that come of others ---------------------------------------------------------------------


@dataclass(kw_only=True)
class JoinedSettings(SplitSettings):
    """Runs that come of others: their mean, or the next version of one."""

    rehearse: UnitInterval = option(
        0.0,
        "init: share of the training rows of that run's data that are learned from as well; what that data "
        "holds out is held out here, too.",
    )
    rehearse_from: str = option("", "rehearse: another run than init, whose data it is.")

    ensemble: str = option(
        "", "Runs, apart by commas, whose mean this one is; the verb `ensemble` sets it, and trains nothing."
    )
    weights: Literal["equal", "validation"] = option(
        "equal",
        "ensemble: the plain mean; or weights of the runs and a temperature of their mean, fitted on the "
        "validation split.",
    )
    average: str = option(
        "",
        "Runs, apart by commas, whose weights this one has the mean of; the verb `interpolate` sets it, and "
        "trains nothing.",
    )
    lambdas: str = option(
        "0:1:0.1", "average: shares of the second run to try, as 0:1:0.1 or 0.2,0.4; or essay; or soup."
    )
    decide: Literal["all", "first"] = option(
        "all", "average: whose validation split decides: the mean of all runs', or the first run's alone."
    )
    data2: str = option("", "average: further rows to measure on; they decide nothing.")

    def __post_init__(self) -> None:
        """Raises a UserError for an ensemble or an average of less than two runs, or wrong lambdas."""
        super().__post_init__()
        for what, names in (("An ensemble", self.members()), ("An average", self.averaged())):
            if names and len(set(names)) < max(2, len(names)):
                raise UserError(f"{what} takes two runs at least, each once. Received: {', '.join(names)}.")
        if self.lambdas not in ("essay", "soup"):
            self.values_of_lambda()
        if self.average and self.lambdas != "soup" and len(self.averaged()) > 2:
            raise UserError(
                f"interpolate takes two runs; --soup takes more. Received: {', '.join(self.averaged())}."
            )
        if self.rehearse_from and not self.rehearse:
            raise UserError("rehearse_from goes with rehearse, a share above 0.")
        if self.rehearse and not (self.init or self.rehearse_from):
            raise UserError(
                "rehearse takes rows of the run that this one begins with: give that one as init."
            )

    def members(self) -> list[str]:
        """Returns the runs in `ensemble`."""
        return [name.strip() for name in self.ensemble.split(",") if name.strip()]

    def joined(self, ensemble: str, weights: str = "equal") -> Self:
        """Returns the settings of an `ensemble` with such `weights`, whose first member has these."""
        fields = dataclasses.fields(self)
        left_out = (*_OF_TRAINING, *(["unknown_rate"] if ensemble else []))  # the mean has no such score
        names: dict[str, Any] = {field.name: field.default for field in fields if field.name in left_out}
        return dataclasses.replace(
            self, **{**names, **self.rehearsed(), "ensemble": ensemble, "weights": weights}
        )

    def averaged(self) -> list[str]:
        """Returns the runs in `average`."""
        return [name.strip() for name in self.average.split(",") if name.strip()]

    def averaging(self, average: str, **how: Any) -> Self:
        """Returns the settings of an `average`, whose first run has these; `how` is what else is set."""
        return dataclasses.replace(self.joined(""), average=average, **{**self.of_weights(), **how})

    def of_weights(self) -> dict[str, Any]:
        """Returns what a run has otherwise that begins or ends with the weights of this one as a whole."""
        return {}

    def rehearsed(self) -> dict[str, Any]:
        """Returns the settings by which a run that comes of this one has the same rows, without its init."""
        return {"rehearse_from": self.rehearse_from or self.init} if self.rehearse else {}

    def of_pruned(self) -> dict[str, Any]:
        plain = {"average": "", "lambdas": "0:1:0.1", "decide": "all", "data2": ""}
        return {**super().of_pruned(), **plain, **self.rehearsed()}

    def values_of_lambda(self) -> list[float]:
        """Returns the numbers in `lambdas`, rising.

        Raises:
            UserError: they are neither START:STOP:STEP nor numbers apart by commas, or not within 0 and 1.
        """
        try:
            if ":" in self.lambdas:
                start, stop, step = map(float, self.lambdas.split(":"))
                count = round((stop - start) / step) + 1
                found = [round(start + i * step, 6) for i in range(count) if start + i * step < stop + 1e-6]
            else:
                found = [float(part) for part in self.lambdas.split(",")]
            if found and all(0 <= value <= 1 for value in found) and len(found) <= 1001:
                return sorted(set(found))
        except (ValueError, ZeroDivisionError, OverflowError):
            pass
        raise UserError(
            "lambda takes numbers from 0 to 1, as 0:1:0.1 (START:STOP:STEP) or 0.2,0.4, or essay. Received: "
            f"{self.lambdas}."
        )


# What a run that comes of others does not take over from the settings of the first of them.
_OF_TRAINING = (
    *("strategy", "init", "teacher", "ensemble", "weights", "extra_data", "pretrain_data"),
    *("average", "lambdas", "decide", "data2"),
    *("sparsity", "prune_heads", "prune_neurons"),
)
# What a run of another recipe takes over: which rows there are, and how they are read.
_OF_DATA = (
    *("data", "text", "label", "text_b", "broken", "validation_share", "test_share", "folds", "fold"),
    *("image_size", "sequence_length", "redact", "shots", "label_names", "rehearse", "rehearse_from"),
)


@dataclass(kw_only=True)
class TaughtSettings(JoinedSettings):
    """Classifiers: distillation, and what is unknown."""

    unknown_rate: Annotated[float, Bounds(least=0, most=0.5)] = option(
        0.0,
        "Share of known rows that may be called unknown: the model says of each row whether it is like what "
        "it has learned; 0: it does not.",
    )

    teacher: str = option(
        "", "A run, or an ensemble, whose probabilities to learn from as well; see `karpa-tf distill`."
    )
    teacher_share: UnitInterval = option(
        0.9, "teacher: share of its loss; the rest is that of the labels. 1: labels are not looked at."
    )
    temperature: Positive = option(
        2.0, "teacher: what its logits are divided by; the higher, the more its second thoughts count."
    )

    def student(self, teacher: str, assets: Path, kind: type[RunSettings]) -> dict[str, Any]:
        """Returns the settings of a run that learns from a run with these.

        Args:
            teacher: the path of the latter.
            assets: its folder of assets.
            kind: the settings of the recipe that learns.
        """
        names = {field.name for field in dataclasses.fields(kind)}
        if type(self) is not kind:
            return {
                "teacher": teacher,
                **{n: getattr(self, n) for n in _OF_DATA if n in names and hasattr(self, n)},
                **self.rehearsed(),
            }
        own = {name: getattr(self, name) for name in names if name not in _OF_TRAINING}
        return {**own, **self.rehearsed(), **self.smaller(assets), "teacher": teacher}

    def smaller(self, assets: Path) -> dict[str, Any]:
        """Returns the settings of a smaller network than that of a run with these; `assets` are the run's."""
        return {}


# --- BERT -----------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class BertSettings(SplitSettings):
    """Settings of fine-tuning a BERT, whatever for."""

    epochs: Count = option(6, "Most passes over the training data.")
    batch_size: Count = option(16, "Examples in an update of the weights, over all workers.")
    checkpoint_seconds: NonNegative = option(60.0, "Seconds between checkpoints to resume from.")
    learning_rate: NonNegative = option(
        0.0, "Peak of the learning rate; 0: what suits the preset and the method (see the docs)."
    )
    preset: str = option(
        "scratch",
        "Where to start: scratch, a keras-hub preset, hf://USER/MODEL, or a folder in keras-hub's or "
        "Hugging Face's form; teacher: some of the teacher's blocks.",
    )
    method: Literal["full", "lora", "head"] = option(
        "full", "What is trained: every weight, low-rank adapters, or the head alone."
    )
    lora_rank: Count = option(8, "Rank of the adapters.")
    lora_targets: str = option(
        "query,key,value,attention_output,intermediate,output", "Dense layers of a block that get adapters."
    )
    sequence_length: Annotated[int, Bounds(least=8)] = option(
        128, "Most pieces of a row; longer texts are cut."
    )
    buckets: Count = option(6, "Most widths of training batches; the step is traced once for each.")
    dropout: Share = option(0.1, "Share of the activations dropped in training.")
    weight_decay: NonNegative = option(0.01, "AdamW's decay of the matrices.")
    warmup: Share = option(0.1, "Share of the steps in which the learning rate rises.")
    layer_decay: UnitInterval = option(
        1.0, "Factor of the learning rate from each block to the one below it; 1: the same for all."
    )
    head_rate: NonNegative = option(
        1.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )
    patience: CountOrNone = option(
        3, "Epochs without a better validation figure before training stops; 0: never."
    )
    adversarial: NonNegative = option(
        0.0, "Length of the fast gradient method's move of the embedding; 0: none."
    )
    token_dropout: Share = option(0.0, "Share of the pieces replaced by [MASK] in training.")
    layers: Count = option(4, "scratch, teacher: transformer blocks.")
    heads: Count = option(4, "scratch: attention heads.")
    width: Count = option(256, "scratch: width of the blocks.")
    vocabulary_size: Count = option(8_000, "scratch: most pieces to learn from the data.")
    lowercase: bool = option(True, "scratch: read text in lower case, without accents.")
    redact: bool = option(
        False, "Put [EMAIL], [IBAN], [CARD] and [PHONE] in the place of such data in the texts."
    )
    pretrain_data: str = option(
        "", "Text to learn by masked words first: same (the training texts), or as for mlm-gru."
    )
    pretrain_epochs: Count = option(10, "Passes over pretrain_data.")
    prune_heads: Share = option(
        0.0, "Share of the attention heads of each block of init that is removed; see `karpa-tf prune`."
    )
    prune_neurons: Share = option(0.0, "The same of the neurons between the two dense layers of each block.")

    # What `learning_rate: 0` stands for, by method.
    learning_rates: ClassVar[dict[str, float]] = {"scratch": 5e-4, "full": 1e-4, "lora": 1e-3, "head": 5e-3}

    def __post_init__(self) -> None:
        """Raises a UserError for settings that make no sense."""
        super().__post_init__()
        known = ("query", "key", "value", "attention_output", "intermediate", "output")
        for target in self.targets():
            if target not in known:
                raise UserError(
                    f'lora_targets: there is no layer "{target}"{did_you_mean(target, known)} Known: '
                    f"{', '.join(known)}."
                )
        if self.preset == TEACHER and not hasattr(self, "teacher"):
            raise UserError(f"preset {TEACHER} goes with recipes that have a teacher: bert-classifier.")
        if self.pretrain_data and self.preset == TEACHER:
            raise UserError(
                f"pretrain_data does not go with preset {TEACHER}, whose blocks are trained already."
            )
        if self.redact and self.pretrain_data not in ("", "same"):
            raise UserError(
                "redact goes with pretrain_data same alone: other text is learned from as it is. Received: "
                f"{self.pretrain_data}."
            )
        if self.preset == "scratch" and self.method != "full":
            raise UserError(f"method {self.method} needs a preset: from scratch every weight must learn.")
        removed = {name: getattr(self, name) for name in ("sparsity", "prune_heads", "prune_neurons")}
        if any(removed.values()) and self.method != "full":
            raise UserError(f"Pruning trains every weight: method full. Received: method {self.method}.")
        if (self.prune_heads or self.prune_neurons) and not self.init:
            raise UserError(
                "prune_heads and prune_neurons remove something of a trained run: give it as init."
            )
        if self.width % self.heads:
            raise UserError(f"width must be a multiple of heads. Received: {self.width} and {self.heads}.")

    def of_pruned(self) -> dict[str, Any]:
        if self.method not in ("full", "lora", "head"):
            raise UserError(f"prune goes with methods full, lora and head. Received: a run of {self.method}.")
        # The weights are trained already; adapters are merged into them.
        return {**super().of_pruned(), "pretrain_data": "", **self.of_weights()}

    def of_weights(self) -> dict[str, Any]:
        return {"method": "full", "learning_rate": 0.0} if self.method in ("lora", "head") else {}

    @property
    def needs_masked_lm(self) -> bool:
        """Whether the preset must bring the head of a masked language model."""
        return False

    def targets(self) -> list[str]:
        """Returns the names in `lora_targets`."""
        return [name.strip() for name in self.lora_targets.split(",") if name.strip()]


@dataclass(kw_only=True)
class BertExportOptions(ExportOptions):
    """How a BERT is exported."""

    quantize: Literal["none", "int8"] = option("none", "int8: a quarter of the size.")


# --- Images ---------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ImageSettings(TaughtSettings):
    """Settings of recognizing images, whatever the network."""

    batch_size: Count = option(512, "Images in an update of the weights, over all workers.")
    checkpoint_seconds: NonNegative = option(60.0, "Seconds between checkpoints to resume from.")
    clip_norm: NonNegative = option(0.0, "Largest global norm of the gradient; 0 leaves it as it is.")
    image_size: Annotated[int, Bounds(least=8, most=1024)] = option(
        28, "Width and height of the images; others are resized."
    )
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to an image that cannot be read: left out and counted, or an error."
    )
    optimizer: Literal["adamw", "sgd"] = option(
        "adamw", "What makes the updates; sgd: with Nesterov's momentum."
    )
    momentum: Share = option(0.9, "sgd: share of an update that goes on in the next one.")
    weight_decay: NonNegative = option(0.0, "Decay of the weights: AdamW's, or the L2 penalty of sgd.")
    bias_rate: Annotated[float, Bounds(least=0.001)] = option(
        1.0, "Factor of the learning rate of batch normalization's biases."
    )
    lookahead: bool = option(
        False, "sgd: let the weights follow slower ones that meet them every five steps."
    )
    warmup: Share = option(0.1, "Share of the steps in which the learning rate rises; then it falls.")
    last_rate: Share = option(0.0, "Share of the learning rate that is left at the last step.")
    label_smoothing: Share = option(0.0, "Share of a label that is spread over all classes.")
    dropout: Share = option(0.0, "Share of the dense layers' activations dropped in training.")
    ema: Share = option(
        0.0, "Momentum of the running average of the weights that is evaluated and kept; 0: none."
    )
    shift: CountOrNone = option(0, "Most pixels that a training image is moved in each direction.")
    flip: Literal["none", "random", "alternating"] = option(
        "none", "Mirror training images: never, at random, or in every second epoch."
    )
    rotate: Annotated[float, Bounds(least=0, most=180)] = option(
        0.0, "Most degrees that a training image is turned."
    )
    scale: Share = option(0.0, "Most that it grows or shrinks, as a share of its size.")
    shear: NonNegative = option(0.0, "Most that it is slanted, as a share of its height.")
    cutout: CountOrNone = option(0, "Side of a square of it that is wiped out, in pixels.")
    edge: Literal["zero", "reflect"] = option("zero", "What moves in at its edges: black, or its reflection.")
    test_flip: bool = option(
        False, "Evaluate an image by the mean of it and its mirror image, when served too."
    )
    adversarial: Annotated[float, Bounds(least=0, below=256)] = option(
        0.0, "Train on images changed against the model, by so much of 255 at each pixel; 0: do not."
    )
    keep: Literal["best", "last"] = option(
        "best", "Whose weights are kept: the epoch's with the best validation accuracy, or the last one's."
    )
    patience: CountOrNone = option(
        0, "Epochs without a better validation accuracy before training stops; 0: never."
    )

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        if self.lookahead and self.optimizer != "sgd":
            raise UserError(f"--lookahead goes with --optimizer sgd. Received: {self.optimizer}.")
        if self.patience and self.keep == "last":
            raise UserError(f"--patience goes with --keep best. Received: {self.patience} and last.")


@dataclass(kw_only=True)
class ImageEvaluateOptions(EvaluateOptions):
    """How the recognition of images is evaluated."""

    attack: Literal["none", "fgsm", "pgd"] = option(
        "none", "Change the images against the model as well, and say what it still gets right."
    )
    epsilon: str = option("8/255", "Most that an attack changes a pixel.")


@dataclass(kw_only=True)
class ImageExportOptions(ExportOptions):
    """How it is exported."""

    format: Literal["savedmodel", "litert", "onnx"] = option(
        "savedmodel", "Also LiteRT for phones and small devices, or ONNX."
    )
    quantize: Literal["", "none", "int8"] = option(
        "", "With litert: int8, a quarter of the size, unless none is asked for."
    )


def image_inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature."""
    return {"image": Input("image")}


def whole_numbers(name: str, text: str) -> list[int]:
    """Returns the numbers of a field like `512,256`.

    Raises:
        UserError: it holds something else than whole numbers above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{name} takes whole numbers above 0, as in 512,256. Received: {text}.")
    return [int(part) for part in parts]


# --- Environments ---------------------------------------------------------------------------------

# Seeds of Gymnasium's environments from a billion on are those that evaluate a policy.
EnvironmentSeed = Annotated[int, Bounds(least=0, below=1_000_000)]


def observation_inputs(config: Mapping[str, Any]) -> dict[str, Input]:
    """Returns the inputs of a run's signature."""
    return {"observation": Input("json")}


TABULAR_CHARTS = {
    "return": ["episode/return"],
    "length of an episode": ["episode/length"],
    "epsilon": ["epsilon"],
    "learning rate": ["learning_rate"],
}


@dataclass(kw_only=True)
class TabularSettings(RunSettings):
    """Control with a table of values: states and actions are numbers."""

    seed: EnvironmentSeed = option(0, "Seed of the weights, masks, dropout and order of the examples.")
    env: str = option(
        "Taxi-v3",
        "Gymnasium's id of an environment whose states and actions are numbers, and its settings behind it: "
        "'karpa_tf/City-v0 size=12'.",
    )
    slippery: bool = option(
        True, "FrozenLake's ice: whether a step may go astray; other environments: ignored."
    )
    episodes: Count = option(10_000, "Episodes to learn from.")
    learning_rate: Positive = option(0.5, "Share of the TD error that goes into the table, at first.")
    learning_rate_end: UnitInterval = option(
        0.05, "The same in the end; it falls linearly over the episodes."
    )
    gamma: UnitInterval = option(0.99, "Discount of a step.")
    epsilon_start: UnitInterval = option(1.0, "Share of random actions at first.")
    epsilon_end: UnitInterval = option(
        0.0, "The same in the end; it falls linearly over the first 90 % of the episodes."
    )
    initial_value: float = option(0.0, "What the table holds at first; high values make it explore.")
    log_every: Count = option(100, "Episodes between two points of the learning curve.")

    length: ClassVar[str] = "episodes"
