"""Settings: what a value may be, said beside its field, and the files that values come from.

`convert` alone decides what a value may be, for the command line, a YAML file and Python alike. Nothing here
is heavy to import.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from karpa_tf.errors import UserError, did_you_mean

__all__ = [
    "Bounds",
    "Count",
    "CountOrNone",
    "Fields",
    "NonNegative",
    "Positive",
    "RunSettings",
    "Seed",
    "Share",
    "TrainingSettings",
    "UnitInterval",
    "defaults_of",
    "option",
]

# What a run's config.yaml calls the layout of its fields. One higher where a field changes its meaning.
FORMAT = 1

_Class = TypeVar("_Class")


# --- What a value may be --------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """Bounds of a number, for `Annotated`; None: there is none.

    Attributes:
        least: the number may be this or more.
        above: it must be more than this.
        most: it may be this or less.
        below: it must be less than this.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        names = {"least": "at least", "above": "above", "most": "at most", "below": "below"}
        given = {name: getattr(self, name) for name in names}
        return " and ".join(f"{names[name]} {x}" for name, x in given.items() if x is not None)


Count = Annotated[int, Bounds(least=1)]
"""A whole number of 1 or more."""
CountOrNone = Annotated[int, Bounds(least=0)]
"""A whole number of 0 or more."""
Positive = Annotated[float, Bounds(above=0)]
"""A number above 0."""
NonNegative = Annotated[float, Bounds(least=0)]
"""A number of 0 or more."""
Share = Annotated[float, Bounds(least=0, below=1)]
"""A number from 0 to below 1."""
UnitInterval = Annotated[float, Bounds(least=0, most=1)]
"""A number from 0 to 1."""
Seed = Annotated[int, Bounds(least=0, below=2**32)]
"""A seed of random numbers: a whole number from 0 to below 2**32."""

BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


def convert(name: str, hint: Any, value: Any, *, text: bool = False) -> Any:
    """Returns a value as a field has it.

    Args:
        name: of the field, for the error.
        hint: its type: int, float, bool or str, a Literal of texts, each perhaps with Bounds or None.
        value: that was given.
        text: a text may stand for a value of another type: it was typed, or is YAML's `1e-3`.

    Raises:
        UserError: it is none of that type, is out of bounds, or is NaN or infinite.
    """
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    alternatives = get_args(hint) if isinstance(hint, types.UnionType) else ()
    if alternatives:
        if value is None or (text and value in ("null", "")):
            return None
        hint = alternatives[0]
    received = f"Received: {value if text else repr(value)}"
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        if value in choices:
            return value
        shown = ", ".join(map(str, filter(None, choices)))
        raise UserError(f"{name} must be one of {shown}. {received}{did_you_mean(str(value), choices)}")
    found = _typed(hint, value, text)
    if found is None:
        what = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[hint]
        raise UserError(f"{name} must be {what}. {received}.")
    if bounds is not None and found not in bounds:
        raise UserError(f"{name} must be {bounds}. {received}.")
    return found


def _typed(kind: type, value: Any, text: bool) -> Any:
    """Returns the value in that type, or None if it is none of it."""
    if text and isinstance(value, str) and kind is not str:
        if kind is bool:
            return BOOLEANS.get(value.lower())
        try:
            value = kind(value)
        except ValueError:
            return None
    if kind is float and type(value) in (int, float):
        try:
            value = float(value)
        except OverflowError:
            return None
        return value if math.isfinite(value) else None
    return value if type(value) is kind else None


def option(default: Any, help: str) -> Any:
    """Returns a dataclass field.

    Args:
        default: its value where none is given.
        help: the sentence that `--help` prints for it.
    """
    return dataclasses.field(default=default, metadata={"help": help})


def types_of(cls: type) -> dict[str, Any]:
    """Returns the types of a class's fields, with their bounds."""
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if get_origin(hint) is not ClassVar}


@dataclass(kw_only=True, repr=False)
class Fields:
    """A dataclass whose values are what their types say; it prints those that are not the defaults."""

    def __init_subclass__(cls) -> None:
        # `@dataclass` makes one for a class that has none of its own.
        cls.__repr__ = Fields.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        set_ = {field.name: value for field, value in values.items() if value != field.default}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in set_.items())})"

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        for name, hint in types_of(type(self)).items():
            setattr(self, name, convert(name, hint, getattr(self, name)))


# --- Files ----------------------------------------------------------------------------------------


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


def read_settings(path: Path, settings: type[RunSettings], recipe: str) -> dict[str, Any]:
    """Reads the fields that a YAML file gives.

    Raises:
        UserError: it cannot be read, or holds a field that the recipe does not have, or a wrong value.
    """
    return _read_fields(path, types_of(settings), recipe)


def _read_fields(path: Path, hints: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    try:
        values = read_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()).rstrip("^ .")
        raise UserError(f"--config: {path} cannot be read as YAML: {reason}.") from None
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} must hold one `field: value` a line.")
    check_format(path, values.pop("format", FORMAT))
    for key, value in values.items():
        if key not in hints:
            raise UserError(f'{path}: {recipe} has no field "{key}"{did_you_mean(str(key), hints)}')
        try:
            values[key] = convert(key, hints[key], value, text=True)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return values


def check_format(path: Path, found: Any) -> None:
    """Raises a UserError if a file of settings is of a layout that this version does not read."""
    if found not in range(1, FORMAT + 1):
        raise UserError(
            f"{path} has format {found}, and this version of karpa_tf reads up to {FORMAT}: open it with the "
            "version that wrote it (environment.json beside it names that), or with a newer one."
        )


def defaults_of(module: str) -> Callable[[type[_Class]], type[_Class]]:
    """Returns a decorator: the values of default.yaml beside a module become a class's defaults.

    It stands below `@dataclass`.

    So a field has the same default on the command line, in a file of settings that leaves it out, and in
    Python.

    Args:
        module: its `__file__`.
    """

    def apply(cls: type[_Class]) -> type[_Class]:
        inherited = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        hints = get_type_hints(cls, include_extras=True)
        path = Path(module).with_name("default.yaml")
        for name, value in _read_fields(path, hints, path.parent.name.replace("_", "-")).items():
            field = vars(cls).get(name) or inherited[name]
            cls.__annotations__[name] = hints[name]
            setattr(cls, name, option(value, field.metadata["help"]))
        return cls

    return apply


# --- What several recipes have --------------------------------------------------------------------


@dataclass(kw_only=True)
class RunSettings(Fields):
    """Settings that every recipe has, supervised or not."""

    seed: Seed = option(0, "Seed of the weights, masks, dropout and order of the examples.")
    deterministic: bool = option(
        False, "Bit-identical results on one machine, even through --resume; may cost speed."
    )
    checkpoint_seconds: NonNegative = option(20.0, "Seconds between checkpoints to resume from.")
    keep_checkpoints: Count = option(2, "How many of the last checkpoints stay on disk.")
    learning_rate: Positive = option(1e-3, "Peak of the learning rate.")
    histograms: Literal["few", "all", "none"] = option(
        "few", "Weights that TensorBoard shows histograms of: six matrices at most, all, or none."
    )

    # The field that says how long a run is: the only one that may grow with --resume.
    length: ClassVar[str] = "epochs"

    def shown(self) -> dict[str, Any]:
        """Returns the settings that TensorBoard lists: a few, and all that are not the recipe's defaults."""
        main = ("data", "env", self.length, "batch_size", "learning_rate", "seed")
        fields = dataclasses.fields(self)
        other = [field.name for field in fields if getattr(self, field.name) != field.default]
        names = dict.fromkeys([*other, *main])
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass(kw_only=True)
class TrainingSettings(RunSettings):
    """Settings that every supervised recipe has."""

    data: str = option("embedded", "What to train on: a file, a folder, tfds:NAME, or the default.")
    epochs: Count = option(10, "Passes over the training data.")
    batch_size: Count = option(32, "Examples in an update of the weights, over all workers.")
    strategy: Literal["none", "mirrored", "multi-worker"] = option(
        "none", "Where to train: one device, every GPU of this machine, or TF_CONFIG's workers."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = option(
        "auto", "Arithmetic; auto takes mixed_bfloat16 where the CPU or GPU has it."
    )
    accumulate: Count = option(
        1, "Parts in which a batch is computed to save memory; the update stays the same."
    )
    clip_norm: NonNegative = option(1.0, "Largest global norm of the gradient; 0 leaves it as it is.")
    profile: str = option("", "START:STOP, the steps that TensorBoard's profiler records.")
    init: str = option("", "A run whose best weights to start from.")

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        if not self.data.strip():
            raise UserError('data is a file, a folder, tfds:NAME or embedded. Received: "".')
        if self.profile:
            self.profile_steps()

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
