"""The words behind a verb: plain argparse, made from dataclasses, with errors of one sentence."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.settings import BOOLEANS, Fields, convert, types_of


class Parser(argparse.ArgumentParser):
    """Reads the words behind a verb; whatever is wrong with them is a UserError of one sentence.

    Options and words come in any order. A field of type bool may stand alone or take a value, as
    `--deterministic` and `--deterministic false`.

    Args:
        command: the verb, and perhaps more.
        description: for `--help`.
        words: names and help of what is given without a flag; a name ending in `?` may be left out, and one
            ending in `*` takes all that is left.
    """

    def __init__(self, command: str, description: str, words: dict[str, str] | None = None) -> None:
        super().__init__(f"karpa-tf {command}", None, description, allow_abbrev=False, add_help=False)
        self.words = words or {}
        self.flags = ["--help", "--logs", "--json"]
        self._booleans: set[str] = set()
        self.add_argument("--help", "-h", action="store_true", help="Print this.")
        self.add_argument("--logs", default="logs", metavar="FOLDER", help="Folder of the runs.")
        self.add_argument("--json", action="store_true", help="Print one JSON object on standard output.")

    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog}: {message}.")

    def add_fields(self, cls: type[Fields]) -> None:
        """Adds a flag for each field of a dataclass; in what is parsed stand only those that are given."""
        for field in dataclasses.fields(cls):
            shown = SUPPRESS if field.name in getattr(cls, "refuses", ()) else help_of(field)
            self.add_field(f"--{field.name}", types_of(cls)[field.name], shown)

    def add_field(self, flag: str, hint: Any, help: str, group: Any = None, *, checked: bool = True) -> None:
        """Adds a flag for a value of that type, to a group of `add_argument_group` or to all."""
        metavar = _metavar(hint)
        self.flags.append(flag)
        if metavar == _BOOLEAN:
            self._booleans.add(flag)
        read = functools.partial(convert, flag, hint, text=True) if checked else str
        (group or self).add_argument(
            flag, type=read, default=SUPPRESS, metavar=metavar, help=help.replace("%", "%%")
        )

    def read(self, words: Sequence[str], elsewhere: Callable[[str], str] = lambda flag: "") -> Namespace:
        """Returns the words and options by name.

        Args:
            words: behind the verb.
            elsewhere: a flag that the verb does not take to a sentence on it, or to nothing.
        """
        args, more = self.read_known(words)
        for word in more:
            flag = word.split("=")[0]
            near = did_you_mean(flag, self.flags)
            raise UserError(elsewhere(flag) or f"{self.prog} has no option {flag}{near}")
        return args

    def read_known(self, words: Sequence[str]) -> tuple[Namespace, list[str]]:
        """Returns the words and options by name, and the flags that are none of its own."""
        end = words.index("--") if "--" in words else len(words)
        args, rest = self.parse_known_args(self._with_values(words[:end]))
        if args.help:
            self._print_help()
        flags = [
            word for word in rest if word[:1] == "-" and word[1:2] not in "0123456789." and " " not in word
        ]
        left = [word for word in rest if word not in flags] + list(words[end + 1 :])
        for name in self.words:
            key = name.rstrip("?*")
            if name.endswith("*"):
                setattr(args, key, left)
                left = []
            elif left:
                setattr(args, key, left.pop(0))
            elif name.endswith("?"):
                setattr(args, key, "")
            elif not flags:
                self.error(f"{key.upper()} is missing: {self.words[name].rstrip('.')}")
        if left and not flags:
            raise UserError(f"{self.prog} takes no more words. Received: {left[0]}.")
        return args, flags

    def _with_values(self, words: Sequence[str]) -> list[str]:
        """Gives flags that stand alone their value."""
        alone = [
            word in self._booleans and (not behind or behind[0].lower() not in (*BOOLEANS, "null"))
            for word, behind in ((word, words[place + 1 : place + 2]) for place, word in enumerate(words))
        ]
        return [f"{word}=true" if is_alone else word for word, is_alone in zip(words, alone, strict=True)]

    def _print_help(self) -> None:
        for name, help in self.words.items():
            nargs = {"?": "?", "*": "*"}.get(name[-1])
            self.add_argument(name.rstrip("?*"), nargs=nargs, metavar=name.rstrip("?*").upper(), help=help)
        self.print_help()
        raise SystemExit(0)


_BOOLEAN = "[true|false]"


def help_of(field: dataclasses.Field[Any]) -> str:
    """Returns what `--help` says of a field."""
    default = str(field.default).lower() if isinstance(field.default, bool) else field.default
    shown = "" if field.default in ("", None) else f" (default: {default})"
    return field.metadata["help"] + shown


def _metavar(hint: Any) -> str:
    """Returns what stands for a value in `--help`."""
    if get_origin(hint) is Literal:
        return "{" + ",".join(filter(None, get_args(hint))) + "}"
    if isinstance(hint, UnionType) or hasattr(hint, "__metadata__"):
        return _metavar(get_args(hint)[0])
    return {bool: _BOOLEAN, int: "N", float: "X"}.get(hint, "TEXT")
