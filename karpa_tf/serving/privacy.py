"""The opt-in log of inputs: personal numbers are taken out before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

# Neither expression looks at a character more than a few times, whatever the text: a match begins where a
# word does, and what has been read is not read again.
_EMAIL = re.compile(r"(?<![^\s@<>\"'(),;:])[^\s@<>\"'(),;:]++@[^\s@<>\"'(),;:]+\.\w{2,}")
# Digits with at most three separators between them; their number separates cards from phones.
_DIGITS = re.compile(r"(?<![\w.])[+(]{0,2}\d(?:[\s().\-/]{0,3}\d)*+")
# Characters of a string that are written; the log is no place for more.
_LONGEST = 10_000
_CARD, _PHONE = range(13, 20), range(7, 16)


def redact(text: str) -> str:
    """Replaces e-mail addresses, phone numbers and card numbers in a text by `[email]` and so on.

    What looks like one is taken for one: an order number of ten digits goes as well.
    """
    return _DIGITS.sub(_redact_number, _EMAIL.sub("[email]", text))


def _redact_number(found: re.Match[str]) -> str:
    number, rest = found[0], ""
    following = found.string[found.end() : found.end() + 1]
    if following.isalnum() or following == "_":
        # The last digits belong to the word that follows.
        number = number.rstrip("0123456789")
        while number and not number[-1].isdecimal():
            number = number[:-1]
        rest = found[0][len(number) :]
    digits = [character for character in number if character.isdecimal()]
    return (_kind(digits) if len(digits) > 6 else number) + rest


def _kind(digits: list[str]) -> str:
    if len(digits) in _CARD and _luhn(digits):
        return "[card]"
    return "[phone]" if len(digits) in _PHONE else "[number]"


def _luhn(digits: list[str]) -> bool:
    """Whether the last digit is the check digit that cards have."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def describe_inputs(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns what the log may hold of inputs: redacted strings; of numbers only type and shape."""
    described: dict[str, Any] = {}
    for name, array in arrays.items():
        if array.dtype == object:
            described[name] = [_describe_string(item) for item in array.ravel()]
        else:
            described[name] = {"dtype": array.dtype.name, "shape": list(array.shape)}
    return described


def _describe_string(value: bytes) -> Any:
    try:
        text = value.decode()
        if len(text) > _LONGEST:
            # Not in the middle of a number or an address.
            begin = text[:_LONGEST].rstrip("0123456789 ().-/+\t\r\n")
            begin = begin[: max(begin.rfind(" "), begin.rfind("\n")) + 1]
            return f"{redact(begin)}... ({len(text)} characters)"
        return redact(text)
    except UnicodeDecodeError:
        return {"bytes": len(value)}
