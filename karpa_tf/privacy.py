"""Personal data in text: e-mail addresses, IBANs, card and phone numbers, and names if a tagger finds them.

Each is replaced by a marker, as `[EMAIL]`. Other numbers stay: dates, order numbers, amounts. docs/privacy.md
says what is found, and what is not. The time that it takes grows with a text's length, whatever stands there.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Span", "Tagger", "redact", "redact_words", "spans", "spans_of_tags"]


class Span(NamedTuple):
    """A part of a text.

    Attributes:
        begin: place of its first character.
        end: place behind its last one.
        kind: what it is: `email`, `iban`, `card`, `phone`, or what a tagger says.
    """

    begin: int
    end: int
    kind: str


Tagger = Callable[[str], Iterable[tuple[int, int, str]]]
"""A text to the parts of it that are names, or whatever else it finds: (begin, end, kind) each."""


def redact(text: str, tagger: Tagger | None = None) -> str:
    """Returns a text with a marker in the place of each e-mail address, IBAN, card and phone number.

    Args:
        text: in any script.
        tagger: finds more, e.g. names.
    """
    parts, done = [], 0
    for begin, end, kind in spans(text, tagger):
        parts += [text[done:begin], f"[{kind.upper()}]"]
        done = end
    return "".join([*parts, text[done:]])


def spans(text: str, tagger: Tagger | None = None) -> list[Span]:
    """Returns what `redact` replaces, in the order of the text; no two overlap.

    Args:
        text: in any script.
        tagger: finds more, e.g. names; where it overlaps with an address or a number, it is not heeded.
    """
    folded = text if text.isascii() else text.translate(_FOLDED)
    found: list[Span] = []
    for kind, search in _SEARCHES:
        for begin, end in search(folded):
            found.append(Span(begin, end, kind))
        folded = _without(folded, found)
    found.sort()
    for span in sorted(Span(*span) for span in (tagger(text) if tagger else ())):
        if 0 <= span.begin < span.end <= len(text) and not any(
            span.begin < other.end and other.begin < span.end for other in found
        ):
            found.append(span)
    return sorted(found)


def redact_words(words: Sequence[str]) -> tuple[str, ...]:
    """Returns the words of a sentence with markers, each in its place: a number of three words has three.

    Args:
        words: of the sentence, as a tagger's data has them.
    """
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    found = spans(" ".join(words))
    result = []
    for (begin, behind), word in zip(pairwise(starts), words, strict=True):
        end, parts, done = behind - 1, [], begin
        for span in found:
            if span.begin < end and begin < span.end:
                parts += [word[done - begin : max(span.begin - begin, 0)], f"[{span.kind.upper()}]"]
                done = min(span.end, end)
        result.append("".join([*parts, word[done - begin :]]))
    return tuple(result)


def spans_of_tags(text: str, tokens: Iterable[str], tags: Iterable[str], types: Sequence[str]) -> list[Span]:
    """Returns the spans of what a tagger's signature gives for a text, for a `tagger` of `redact`.

    Args:
        text: that was tagged.
        tokens: its words, in the order of the text; "" fills up.
        tags: of the words, in IOB2.
        types: of the tags that count, e.g. `["PER"]`.
    """
    found: list[Span] = []
    place, going = 0, False
    for token, tag in zip(tokens, tags, strict=True):
        begin = text.find(token, place) if token else -1
        if begin < 0:
            continue
        place, kind = begin + len(token), tag[2:]
        counts = kind in types
        if counts and going and tag[0] == "I" and found[-1].kind == kind:
            found[-1] = Span(found[-1].begin, place, kind)
        elif counts:
            found.append(Span(begin, place, kind))
        going = counts
    return found


# --- Characters -----------------------------------------------------------------------------------


class _Folded(dict[int, str]):
    """Characters to those that the expressions below look for, one to one: any script's digits, wide ones."""

    def __missing__(self, code: int) -> str:
        char, plain = chr(code), chr(code)
        if (digit := unicodedata.decimal(char, None)) is not None:
            plain = str(digit)
        elif 0xFF01 <= code <= 0xFF5E:
            plain = chr(code - 0xFEE0)
        elif unicodedata.category(char) == "Pd" or code == 0x2212:
            plain = "-"
        elif unicodedata.category(char) == "Zs":
            plain = " "
        self[code] = plain
        return plain


_FOLDED = _Folded({code: chr(code) for code in range(128)})

# Letters of the scripts that put spaces between words: beside one of them a number is a part of a word. What
# stands around a number in Chinese, Japanese, Korean, Thai or Arabic may touch it.
_LETTER = r"A-Za-z\u00c0-\u052f"
_BEGIN = rf"(?<![0-9_{_LETTER}])"
_END = rf"(?![0-9_{_LETTER}])"

_Found = Iterator[tuple[int, int]]


def _without(text: str, found: Iterable[tuple[int, int, str]]) -> str:
    """Returns a text of the same length in which what was found is not found again."""
    parts, done = [], 0
    for begin, end, _ in sorted(found):
        parts += [text[done:begin], "\n" * (end - begin)]
        done = end
    return "".join([*parts, text[done:]])


def _search(
    pattern: re.Pattern[str], text: str, measure: Callable[[re.Match[str]], tuple[int, int] | None]
) -> _Found:
    """Yields what `measure` makes of a pattern's matches; one that it refuses hides none behind it."""
    place = 0
    while match := pattern.search(text, place):
        if span := measure(match):
            yield span
            place = span[1]
        else:
            place = match.start() + 1


# --- E-mail ---------------------------------------------------------------------------------------

_LOCAL = rf"[0-9{_LETTER}_.%+'~\-]"
_EMAIL = re.compile(
    rf"(?<!{_LOCAL}){_LOCAL}++@(?:[0-9{_LETTER}\-]{{1,63}}\.)+(?:xn--[0-9a-z\-]+|[{_LETTER}]{{2,63}})"
)


def _emails(text: str) -> _Found:
    for match in _EMAIL.finditer(text):
        local = match[0].partition("@")[0]
        if kept := local.lstrip("'.-%+~"):
            yield match.start() + len(local) - len(kept), match.end()


# --- What has a checksum --------------------------------------------------------------------------

# Lengths by country (SWIFT's registry of ISO 13616).
_IBAN_LENGTHS = {
    code[:2]: int(code[2:])
    for code in (  # noqa: SIM905
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
        "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 "
        "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
        "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 "
        "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
    ).split()
}
_IBAN = re.compile(_BEGIN + r"([A-Za-z]{2}) ?[0-9]{2}(?:[ .\-]?[0-9A-Za-z]){11,30}")


def _ibans(text: str) -> _Found:
    def measure(match: re.Match[str]) -> tuple[int, int] | None:
        length, read = _IBAN_LENGTHS.get(match[1].upper(), 0), match[0].translate(_NO_SEPARATORS)
        if not length or len(read) < length or not _mod97(read[:length]):
            return None
        kept = [place for place, char in enumerate(match[0]) if char.isalnum()]
        end = match.start() + kept[length - 1] + 1
        return (match.start(), end) if _ENDS.match(text, end) else None

    return _search(_IBAN, text, measure)


_ENDS = re.compile(_END)
_NO_SEPARATORS = dict.fromkeys(map(ord, " .-"))


def _mod97(iban: str) -> bool:
    """Whether an IBAN's check digits are right (ISO 7064, mod 97-10)."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


# Of 13 to 19 digits in groups of 3 at least.
_CARD = re.compile(_BEGIN + r"[2-6][0-9]{2,18}(?:[ .\-]{1,2}[0-9]{3,}){0,5}")
_GROUP = re.compile("[0-9]+")
# How a number of each issuer begins, and its lengths (ISO/IEC 7812).
_ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11,16}|35\d{14}|(?:6011|64[4-9]\d|65\d{2}|62\d{2}|81\d{2})\d{12,15}"
    r"|(?:50|5[6-8]|6\d)\d{11,17}"
)


def _cards(text: str) -> _Found:
    def measure(match: re.Match[str]) -> tuple[int, int] | None:
        # The longest that ends where a group does.
        digits = match[0].translate(_NO_SEPARATORS)
        length = len(digits)
        for group in [*_GROUP.finditer(match[0])][::-1]:
            if _ISSUERS.fullmatch(digits, 0, length) and _luhn(digits[:length]):
                end = match.start() + group.end()
                return (match.start(), end) if _ENDS.match(text, end) else None
            length -= len(group[0])
        return None

    return _search(_CARD, text, measure)


def _luhn(digits: str) -> bool:
    """Whether the last digit is the check digit that cards have."""
    doubled = sum(map("0516273849".index, digits[-2::-2]))
    return (doubled + sum(map(int, digits[-1::-2]))) % 10 == 0


# --- Phone numbers, which have none ---------------------------------------------------------------

# What looks like one and is none: dates with times, ISBNs of ten digits, cards and IBANs with a wrong digit.
_DATE = re.compile(
    r"(?<![0-9./\-])"
    r"(?:[0-9]{1,2}([./\-]) ?[0-9]{1,2}\1 ?(?:[0-9]{4}|[0-9]{2})|[0-9]{4}([./\-])[0-9]{1,2}\2[0-9]{1,2})"
    r"(?:,? [0-9]{1,2}[:.][0-9]{2})?(?![./\-]?[0-9])"
)
_GROUPED = re.compile(
    r"(?<![0-9])[0-9]{4}([ \-])[0-9]{4}\1[0-9]{4}\1[0-9]{4}"
    r"|[A-Z]{2}[0-9]{2}(?: [0-9A-Z]{4}){2,7}(?: [0-9A-Z]{1,4})?"
)
_ISBN = re.compile(r"[0-9]{1,5}([ \-])[0-9]{1,7}\1[0-9]{1,7}\1[0-9Xx]")
_START = _BEGIN + r"(?<![0-9][.,:/\-])"
_STOP = _END + r"(?![.,:/\-][0-9])"
_PHONES = re.compile(
    _START
    + r"(?P<number>"
    + "|".join(
        (
            # +49 (0)30 / 1234-5678, 0049 30 12345678: what begins with a country's code
            r"(?:\+|00(?=[1-9]))(?:[ ().\-/]{0,3}[0-9]){8,14}",
            # (555) 123-4567, (030) 1234567
            r"\([0-9]{2,5}\)[ \-/]{0,2}[0-9]{2,4}(?:[ .\-/]?[0-9]{2,5}){1,3}",
            # 030 / 1234567, 0171-2345678, 01 23 45 67 89, 01712345678: what begins with the trunk's 0
            r"0[1-9](?:[ .\-/]{0,3}[0-9]){7,10}",
            # 555-123-4567
            r"(?:1[ .\-])?[2-9][0-9]{2}([ .\-])[0-9]{3}\2[0-9]{4}",
            # 13812345678, 138 1234 5678
            r"1[3-9][0-9]([ \-]?)[0-9]{4}\3[0-9]{4}",
        )
    )
    + ")"
    + _STOP
)
# Any number of 6 to 15 digits, where a word before it says what it is.
_SAID = re.compile(
    r"(?:\b(?:tel|telephone|telefon|phone|call|fax|mobile|cell|whatsapp|handy|ring|text me|anrufen|ruf\w*)\b"
    r"|(?:telefon|handy|mobil|ruf)nummer|电话|電話|手机|手機|致电|致電|打|微信|传真|전화)[^0-9!?;\n]{0,20}"
    + _START
    + r"(?P<number>\(?[0-9](?:[ ().\-/]{0,2}[0-9]){5,14})"
    + _STOP,
    re.IGNORECASE,
)
_BEFORE = 40
_OTHER = re.compile(
    r"(?:#|№|\b(?:orders?|invoice|ticket|case|ref|reference|isbn|sku|serial|tracking|id|article|item|batch|account"
    r"|bestell\w*|rechnung\w*|auftrag\w*|artikel\w*|kunden\w*|vorgang\w*|sendung\w*|serien\w*|konto\w*)"
    r"|订单|訂單|单|發票|发票|编|編|货|流水|序列|快递)(?:[ -]?(?:number|num|no|nr|nummer|id)\b|[号號]码?)?"
    r"[ .:#]*(?:is|ist|lautet|[是为為])?[ :#]*$",
    re.IGNORECASE,
)


def _phones(text: str) -> _Found:
    for pattern in (_DATE, _GROUPED):
        text = pattern.sub(lambda match: "\n" * len(match[0]), text)
    text = _ISBN.sub(lambda match: "\n" * len(match[0]) if _is_isbn(match[0]) else match[0], text)

    def measure(match: re.Match[str]) -> tuple[int, int] | None:
        begin, end = match.span("number")
        if _OTHER.search(text[max(begin - _BEFORE, 0) : begin]):
            return None
        # A parenthesis that is closed behind the number is none of it.
        return begin + (text[begin] == "(" and ")" not in match["number"]), end

    found = list(_search(_PHONES, text, measure))
    yield from found
    yield from _search(_SAID, _without(text, [(*span, "") for span in found]), measure)


def _is_isbn(text: str) -> bool:
    """Whether the last of ten digits is the check digit of an ISBN, in which an X stands for 10."""
    digits = [char for char in text if char.isalnum()]
    if len(digits) != 10 or not "".join(digits[:-1]).isdecimal():
        return False
    last = 10 if digits[-1] in "Xx" else int(digits[-1])
    return (sum((10 - i) * int(d) for i, d in enumerate(digits[:-1])) + last) % 11 == 0


_SEARCHES: tuple[tuple[str, Callable[[str], _Found]], ...] = (
    ("email", _emails),
    ("iban", _ibans),
    ("card", _cards),
    ("phone", _phones),
)
