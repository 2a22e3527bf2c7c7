"""The opt-in log of inputs: personal numbers are taken out before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

_EMAIL = re.compile(r"[^\s@<>\"'(),;:]+@[^\s@<>\"'(),;:]+\.\w{2,}")
# Digits with at most three separators between them; the number of digits tells cards from phones.
_DIGITS = re.compile(r"(?<![\w.])[+(]{0,2}\d(?:[\s().\-/]{0,3}\d){6,}(?!\w)")
_CARD, _PHONE = range(13, 20), range(7, 16)


def redact(text: str) -> str:
    """Replaces e-mail addresses, phone numbers and card numbers in a text by `[email]` and so on.

    What looks like one is taken for one: an order number of ten digits goes as well.
    """
    return _DIGITS.sub(_redact_number, _EMAIL.sub("[email]", text))


def _redact_number(found: re.Match[str]) -> str:
    digits = [character for character in found[0] if character.isdecimal()]
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
        return redact(value.decode())
    except UnicodeDecodeError:
        return {"bytes": len(value)}
