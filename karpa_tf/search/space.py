"""What a search may choose from: checked against the settings of a recipe before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.recipe import About
from karpa_tf.settings import convert, read_yaml, types_of

# Says what a trial is, not what is better.
_FIXED = ("seed", "data", "init", "strategy", "deterministic")


@dataclass(frozen=True, repr=False)
class Dimension(InALine):
    """What one setting may be: some values, or a range.

    Attributes:
        name: of the setting.
        values: to choose from; empty: a range.
        low: the least of a range.
        high: the most of it, which may be chosen.
        log: whether each factor of a range is as likely as another.
        whole: whether a range has whole numbers alone.
    """

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @property
    def points(self) -> float:
        """How many values there are; infinity in a range of numbers that are not whole."""
        return len(self.values) or (self.high - self.low + 1 if self.whole else math.inf)

    def at(self, share: float) -> Any:
        """Returns the value at a share of the way from the first to the last, from 0 to below 1."""
        if self.values:
            return self.values[int(share * len(self.values))]
        low, high = self.low, self.high
        if self.whole:
            low, high = low - 0.5, high + 0.5
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return int(min(max(round(value), self.low), self.high)) if self.whole else float(f"{value:.6g}")

    def place(self, value: Any) -> float:
        """Returns a value as a number, such that like values have like numbers."""
        if self.values:
            return float(self.values.index(value))
        return math.log(value) if self.log else float(value)


def parse_space(text: str, about: About, recipe: str) -> list[Dimension]:
    """Reads a space, from `NAME=FORM` words or from a YAML file that has `NAME: FORM` a line.

    A form is `1,2,3` (values), `LOW:HIGH` or `log:LOW:HIGH`; in YAML a list of values as well.

    Args:
        text: the words, or the path of the file.
        about: of the recipe, whose settings these are.
        recipe: its name, for errors.

    Returns:
        A dimension a setting, in the order that they are given.

    Raises:
        UserError: there is no such setting, a value is none of it, or there is nothing to choose from.
    """
    if not text.strip():
        raise UserError('--space says what may differ, as "learning_rate=log:1e-4:1e-2 units=64,128".')
    given = _from_yaml(Path(text)) if text.lower().endswith((".yaml", ".yml")) else _from_words(text)
    hints = types_of(about.settings)
    length = about.settings.length
    dimensions = []
    for name, form in given.items():
        if name not in hints:
            raise UserError(f'--space: {recipe} has no field "{name}"{did_you_mean(name, hints)}')
        if name == length:
            raise UserError(
                f"--space: {name} is the length of a training, of which trials get shares; give --{name} "
                "beside --space."
            )
        if name in _FIXED or name in getattr(about.settings, "refuses", ()):
            raise UserError(f"--space: {name} is no matter of choice; give --{name} beside --space.")
        dimensions.append(_dimension(name, hints[name], form))
    if all(dimension.points == 1 for dimension in dimensions):
        raise UserError(
            f"--space holds one point only: give two values of a setting at least. Received: {text}."
        )
    return dimensions


def _from_words(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in text.split():
        name, equals, form = word.partition("=")
        if not (name and equals and form):
            raise UserError(f"--space takes NAME=VALUES, as units=64,128. Received: {word}.")
        if name in found:
            raise UserError(f"--space: {name} is given more than once.")
        found[name] = form
    return found


def _from_yaml(path: Path) -> dict[str, str | Sequence[Any]]:
    if not path.is_file():
        raise UserError(f"--space: there is no file {path}.")
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"--space: {path} cannot be read as YAML: {' '.join(str(error).split()).rstrip(' .')}."
        ) from None
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"--space: {path} must hold one `field: values` a line.")
    for name, form in found.items():
        if isinstance(form, (Mapping, type(None))):
            raise UserError(
                f"--space: {path}: {name} takes values or a range, as [64, 128] or log:1e-4:1e-2. "
                f"Received: {form}."
            )
    return {str(name): form if isinstance(form, list) else str(form) for name, form in found.items()}


def _dimension(name: str, hint: Any, form: str | Sequence[Any]) -> Dimension:
    what = f"--space: {name}"
    kind = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if isinstance(form, str) and ":" in form and kind in (int, float):
        log = form.startswith("log:")
        parts = form.removeprefix("log:").split(":")
        if len(parts) != 2:
            raise UserError(
                f"{what} takes LOW:HIGH, log:LOW:HIGH or values apart by commas. Received: {form}."
            )
        low, high = (convert(what, hint, part, text=True) for part in parts)
        if low > high:
            raise UserError(f"{what}: the first number must be the smaller one. Received: {form}.")
        if log and low <= 0:
            raise UserError(f"{what}: log: takes numbers above 0. Received: {form}.")
        if low == high:
            return Dimension(name, (low,))
        return Dimension(name, (), low, high, log, kind is int)
    words = form.split(",") if isinstance(form, str) else form
    values = tuple(convert(what, hint, value, text=True) for value in words)
    if len(set(map(repr, values))) < len(values):
        raise UserError(f"{what} has a value twice. Received: {form}.")
    return Dimension(name, values)


def points_of(space: Sequence[Dimension]) -> float:
    """Returns how many settings there are to choose from; it may be infinity."""
    return math.prod(dimension.points for dimension in space)
