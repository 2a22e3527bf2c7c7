"""How objects print: in one line that a person reads, whatever they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

# Characters of a text, entries of a mapping or a sequence, and characters of the whole.
_TEXT, _ENTRIES, _LINE = 40, 4, 300


class InALine:
    """Prints as `Name(field=value, ...)`: an array as its type and shape, a long list as its length.

    Shown are the public attributes that are not empty. A dataclass asks for it with `repr=False`.
    """

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return in_a_line(type(self).__name__.lstrip("_"), shown)


def in_a_line(name: str, values: Mapping[str, Any]) -> str:
    """Returns `name(key=value, ...)`, each value in short; without those that are empty."""
    parts = [f"{key}={_short(value)}" for key, value in values.items() if not _is_empty(value)]
    return _cut(f"{name}({', '.join(parts)})", _LINE)


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, Mapping, Sequence, Set)) and not len(value))


def _short(value: Any) -> str:
    if isinstance(value, str):
        return repr(_cut(value, _TEXT))
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, (bool, int)):
        return repr(value)
    if isinstance(value, InALine):
        kind = type(value).__name__.lstrip("_")
        return f"{kind} [{len(value)}]" if hasattr(value, "__len__") else kind
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{getattr(value.dtype, 'name', value.dtype)} {value.shape}"
    if isinstance(value, Mapping):
        if len(value) > _ENTRIES:
            return f"{{{len(value)} entries}}"
        return f"{{{', '.join(f'{key}: {_short(item)}' for key, item in value.items())}}}"
    if isinstance(value, (Sequence, Set)) and not isinstance(value, (bytes, bytearray)):
        if len(value) > _ENTRIES:
            kinds = {type(item).__name__ for item in value}
            return f"[{len(value)} {kinds.pop() if len(kinds) == 1 else 'entries'}]"
        return f"[{', '.join(map(_short, value))}]"
    if name := getattr(value, "__qualname__", "") or getattr(value, "name", ""):
        return str(name)
    return type(value).__name__


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
