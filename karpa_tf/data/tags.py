"""Tagged words: CoNLL columns in IOB1, IOB2, BIOES or BMES, folders of them, TFDS, and the embedded slots."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
from karpa_tf.data.tables import find_splits, no_such_path, read_text, shares_to_cut, with_training
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.privacy import redact_words

OUTSIDE = "O"
# Of files in CoNLL columns.
SUFFIXES = (".conll", ".txt", ".tsv", ".bio", ".iob", ".iob2", ".bioes")
_SPLIT_SEED = 22
# Prefixes of IOB1, IOB2, BIOES, BILOU, BMES and BMEWO, and what they are in IOB2.
_PREFIX = {"B": "B", "I": "I", "M": "I", "E": "I", "L": "I", "S": "B", "U": "B", "W": "B"}

Broken = Literal["skip", "stop"]


@dataclass(frozen=True, repr=False)
class Sentence(InALine):
    """Words and their tags.

    Attributes:
        words: the words.
        tags: a tag each, in IOB2.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Tagged(InALine):
    """Sentences by split.

    Attributes:
        name: what the user typed.
        splits: the sentences; `test` may be empty.
        brings_test: the data holds a test split of its own.
        notes: lines that the user should read: words left out, a column that was skipped.
    """

    name: str
    splits: dict[Split, list[Sentence]]
    brings_test: bool
    notes: list[str] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Hash of the sentences and of how they are split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            # In the words that earlier runs were noted with.
            every = ", ".join(f"Sentence(words={s.words}, tags={s.tags})" for s in self.splits[split])
            digest.update(f"({split!r}, [{every}])".encode())
        return digest.hexdigest()

    @property
    def record(self) -> DataRecord:
        """What a run notes of this data."""
        labels = tag_names(self.splits["train"])
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, labels)


def open_tagged(
    source: str,
    *,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    broken: Broken = "skip",
    redact: bool = False,
) -> Tagged:
    """Opens tagged sentences and splits them.

    Args:
        source: `embedded` (slots of intents), a CoNLL file, a folder with train.conll (or .txt, .bio,
            .iob) and perhaps validation and test, or `tfds:NAME`.
        validation_share: share of the training sentences that become the validation split where the
            data brings none.
        test_share: the same for the test split.
        broken: whether a line whose token is empty or invisible is left out, or is an error.
        redact: put markers in the place of words that are personal data; tags stay.

    Returns:
        Sentences by split; those of the same words stay on one side.

    Raises:
        UserError: the source cannot be read, a line is not in CoNLL's form, or no word is tagged.
    """
    notes: list[str] = []
    given = _read(source, broken, notes, redact)
    shares = shares_to_cut(given, validation_share, test_share)
    cut = split_sentences(given["train"], *shares)
    splits = {**cut, **given, "train": cut["train"]}
    if len(tag_names(splits["train"])) == 1:
        raise UserError(f"{source} has no tag but {OUTSIDE}: there is nothing to learn.")
    if not splits["validation"] and shares[0]:
        raise UserError(
            f"{source} has too few sentences to hold one out for validation: training needs one of each "
            f"type. Received: {len(given['train'])}; a blank line ends a sentence."
        )
    return Tagged(source, splits, "test" in given, notes)


def open_test_sentences(
    source: str, broken: Broken = "skip", notes: list[str] | None = None, redact: bool = False
) -> list[Sentence]:
    """Returns sentences to evaluate on: the data's own test split, or else every sentence.

    Args:
        source: as for `open_tagged`.
        broken: whether a line whose token is empty or invisible is left out, or is an error.
        notes: gets the lines that the user should read.
        redact: put markers in the place of words that are personal data; tags stay.

    Raises:
        UserError: the source cannot be read, or a line is not in CoNLL's form.
    """
    given = _read(source, broken, [] if notes is None else notes, redact)
    if "test" in given:
        return given["test"]
    return [sentence for split in given.values() for sentence in split]


def shared_sentences(train: Iterable[Sentence], test: Iterable[Sentence]) -> int:
    """Returns how many sentences of `test` have words that `train` has as well."""
    seen = {sentence.words for sentence in train}
    return sum(sentence.words in seen for sentence in test)


def split_sentences(
    sentences: Sequence[Sentence], validation_share: float, test_share: float
) -> dict[Split, list[Sentence]]:
    """Cuts validation and test out of sentences, always in the same way; every type stays in training."""
    types: dict[tuple[str, ...], set[str]] = {}
    for sentence in sentences:
        types.setdefault(sentence.words, set()).update(tag[2:] for tag in sentence.tags if tag != OUTSIDE)
    unique = list(types)
    due: list[Split] = []
    shares: list[tuple[Split, float]] = [("validation", validation_share), ("test", test_share)]
    for split, share in shares:
        due += [split] * (max(1, round(share * len(unique))) if share else 0)
    homes: dict[tuple[str, ...], Split] = {}
    kept = Counter(kind for kinds in types.values() for kind in kinds)
    left = len(unique)
    for i in np.random.default_rng(_SPLIT_SEED).permutation(len(unique)):
        words = unique[i]
        if due and left > 1 and all(kept[kind] > 1 for kind in types[words]):
            homes[words] = due.pop(0)
            kept.subtract(types[words])
            left -= 1
    splits: dict[Split, list[Sentence]] = {name: [] for name in SPLITS}
    for sentence in sentences:
        splits[homes.get(sentence.words, "train")].append(sentence)
    return splits


def tag_names(sentences: Iterable[Sentence]) -> list[str]:
    """Returns the tags of a tagger: O, then B- and I- of every type that occurs.

    Args:
        sentences: whose types they are.
    """
    types = sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Returns the tags of a sentence in IOB2.

    Args:
        tags: in IOB1, IOB2, BIOES, BILOU or BMES, one a word.

    Raises:
        ValueError: a tag that is neither O nor PREFIX-TYPE.
    """
    result = []
    before = ""  # type of the entity that the word before belongs to
    ended = True
    for tag in tags:
        if tag == OUTSIDE:
            result.append(tag)
            before, ended = "", True
            continue
        prefix, dash, kind = tag.partition("-")
        if prefix not in _PREFIX or not dash or not kind:
            raise ValueError(tag)
        # IOB1 begins an entity by I, but for one right behind another of its type.
        begins = _PREFIX[prefix] == "B" or ended or kind != before
        result.append(f"{'B' if begins else 'I'}-{kind}")
        before, ended = kind, prefix in "ESLUW"
    return result


# --- Reading --------------------------------------------------------------------------------------


def _read(source: str, broken: Broken, notes: list[str], redact: bool) -> dict[Split, list[Sentence]]:
    found = _read_plain(source, broken, notes)
    if not redact:
        return found
    return {split: [Sentence(redact_words(s.words), s.tags) for s in part] for split, part in found.items()}


def _read_plain(source: str, broken: Broken, notes: list[str]) -> dict[Split, list[Sentence]]:
    if source == "embedded":
        from karpa_tf.data.intents import embedded_intents

        return {
            split: [Sentence(s.words, s.tags) for s in embedded_intents() if s.split == split]
            for split in SPLITS
        }
    if source.startswith("tfds:"):
        return _read_tfds(source, broken, notes)
    path = Path(source)
    if path.is_dir():
        return {s: read_conll(file, broken, notes) for s, file in find_splits(path, SUFFIXES).items()}
    if not path.exists():
        raise no_such_path(
            source, "a file in CoNLL columns (token first, tag last), a folder with train.conll"
        )
    return {"train": read_conll(path, broken, notes)}


# A token may hold spaces where tabs divide the columns.
_TABS, _BLANKS = re.compile(r" *\t[ \t]*"), re.compile(r" +")
_TAG = re.compile(f"{OUTSIDE}|[{''.join(_PREFIX)}]-.+")
# A number that counts words, and what CoNLL-U puts between them: ranges and empty nodes.
_NUMBERED, _BETWEEN = re.compile("[0-9]+"), re.compile(r"[0-9]+[-.][0-9]+")
# Characters that count as letters, signs or marks and show nothing on their own: fillers of Hangul, the empty
# Braille pattern, the joiner of graphemes, and the variation selectors that emojis leave behind.
_BLANK = {0x115F, 0x1160, 0x3164, 0xFFA0, 0x2800, 0x034F, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}


class _Line(NamedTuple):
    number: int
    text: str
    cells: list[str]


def read_conll(path: Path, broken: Broken = "skip", notes: list[str] | None = None) -> list[Sentence]:
    """Reads CoNLL columns: the token first, the tag last, a blank line between sentences.

    A first column that counts the words, as CoNLL-U and GermEval have it, is skipped.

    Args:
        path: the file.
        broken: whether a line whose token is empty or invisible is left out, or is an error. Published files
            have some: what was an emoji once.
        notes: gets a line on what was left out.

    Raises:
        UserError: it cannot be read, is empty, or has a bad line; its file and number are named.
    """
    notes = [] if notes is None else notes
    blocks = _blocks(read_text(path))
    counted = _counts_words(path, blocks)
    if counted:
        notes.append(
            f"{path}: its first column counts the words and was skipped; the second is taken for the token, "
            "the last for the tag."
        )
        # Ranges (3-4) and places between words (3.1) are none of the words; # begins a comment.
        blocks = [[line for line in block if line.cells[0].isdecimal()] for block in blocks]
    dropped: list[tuple[int, str]] = []
    width, uneven = 0, ""
    sentences: list[Sentence] = []
    for block in blocks:
        words: list[str] = []
        tags: list[str] = []
        for line in block:
            cells = line.cells[1:] if counted else line.cells
            # A tag alone, behind where a token should be.
            lost = len(cells) == 1 and (counted or line.text[:1].isspace()) and _is_tag(cells[0])
            if lost or (len(cells) > 1 and not _visible(cells[0])):
                dropped.append((line.number, "" if lost else cells[0]))
                _check_tag(path, line)
                continue
            if len(cells) < 2:
                raise UserError(
                    f"{path}, line {line.number}: a line needs a token and a tag, with a space or tab "
                    f'between. Received: "{line.text[:60]}"{_code_points(line.text)}.'
                )
            _check_tag(path, line)
            width = width or len(cells)
            if len(cells) != width:
                uneven = uneven or f"line {line.number} has {len(cells)} columns, those before {width}"
            words.append(cells[0])
            tags.append(cells[-1])
        if words:
            sentences.append(Sentence(tuple(words), tuple(to_iob2(tags))))
    if dropped:
        number, token = dropped[0]
        what = f"line {number}{' first' * (len(dropped) > 1)}{_code_points(token) or ' (nothing)'}"
        lines = "1 line" if len(dropped) == 1 else f"{len(dropped):,} lines"
        if broken == "stop" or not sentences:
            has = "has" if len(dropped) == 1 else "have"
            raise UserError(
                f"{path}: {lines} {has} an empty or invisible token: {what}; mend or delete them, or leave "
                "them out with --broken skip."
            )
        was = "was" if len(dropped) == 1 else "were"
        notes.append(f"{path}: {lines} with an empty or invisible token {was} left out: {what}.")
    if not sentences:
        raise UserError(f"{path} is empty: it has no tagged words.")
    if uneven:
        notes.append(
            f"{path}: {uneven}; the first is taken for the token and the last for the tag, so that a token "
            "with a space in it needs tabs between the columns."
        )
    return sentences


def _blocks(text: str) -> list[list[_Line]]:
    """Returns the lines of a file, cut where sentences end."""
    blocks: list[list[_Line]] = [[]]
    for number, line in enumerate(text.split("\n"), 1):
        cells = (_TABS if "\t" in line else _BLANKS).split(line.strip(" ").rstrip())
        comment = line.startswith("# ") and not _is_tag(cells[-1])  # as CoNLL-U has them
        if not line.strip() or cells[0] == "-DOCSTART-" or comment:
            blocks.append([])
        else:
            blocks[-1].append(_Line(number, line, cells))
    return [block for block in blocks if block]


def _counts_words(path: Path, blocks: Sequence[Sequence[_Line]]) -> bool:
    """Whether the first of three columns or more counts the words.

    Raises:
        UserError: it nearly does: numbers would become the tokens.
    """
    lines, numbers, pairs, steps = 0, 0, 0, 0
    odd: _Line | None = None  # the first that breaks the count
    for block in blocks:
        before: int | None = None
        for line in block:
            first, wide = line.cells[0], len(line.cells) > 2
            if first == "#" or _BETWEEN.fullmatch(first):
                continue
            lines += 1
            pairs += line is not block[0]
            number = int(first) if _NUMBERED.fullmatch(first) and len(line.cells) > 1 else None
            numbers += number is not None and wide
            if before is not None and number == before + 1:
                steps += wide
            elif number is None or before is not None:
                odd = odd or line
            before = number
    if (not steps or steps < 0.5 * pairs) and (numbers < 2 or numbers < lines):
        return False
    if odd:
        raise UserError(
            f"{path}, line {odd.number}: the first column seems to count the words, but does not here; put "
            f'the token first. Received: "{odd.text[:60]}".'
        )
    return True


def _is_tag(cell: str) -> bool:
    return _TAG.fullmatch(cell) is not None


def _check_tag(path: Path, line: _Line) -> None:
    if not _is_tag(line.cells[-1]):
        raise UserError(
            f'{path}, line {line.number}: "{line.cells[-1][:60]}" is no tag; it must be O, or B-, I-, M-, E- '
            "or S- and a type."
        )


def _visible(token: str) -> bool:
    """Whether a token has a character that can be seen."""
    return any(unicodedata.category(c)[0] not in "CZ" and ord(c) not in _BLANK for c in token)


def _code_points(text: str) -> str:
    """Returns ` (U+200B ZERO WIDTH SPACE)` for a text that cannot be seen, and nothing for one that can."""
    if not text or _visible(text):
        return ""
    shown = [f"U+{ord(c):04X} {unicodedata.name(c, '')}".rstrip() for c in text[:3]]
    return f" ({', '.join(shown)})"


def _read_tfds(source: str, broken: Broken, notes: list[str]) -> dict[Split, list[Sentence]]:
    builder = open_tfds(source.removeprefix("tfds:"))
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    tags = next((name for name in ("ner", "ner_tags", "tags") if name in features), None)
    if "tokens" not in features or tags is None:
        raise UserError(f"{source} has no features tokens and ner (or tags). It has: {', '.join(features)}.")
    names = features[tags].feature

    dropped: list[str] = []

    def read(split: str) -> list[Sentence]:
        sentences = []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            words = [_text(token) for token in example["tokens"]]
            given = [names.int2str(int(tag)) for tag in example[tags]]
            dropped.extend(word for word in words if not _visible(word))
            kept = [i for i, word in enumerate(words) if _visible(word)]
            words, given = [words[i] for i in kept], [given[i] for i in kept]
            try:
                if words:
                    sentences.append(Sentence(tuple(words), tuple(to_iob2(given))))
            except ValueError as error:
                raise UserError(f'{source} has the tag "{error}", which is neither O nor B-TYPE.') from None
        return sentences

    wanted: dict[str, Split] = {
        "train": "train",
        "validation": "validation",
        "dev": "validation",
        "test": "test",
    }
    found = {split: read(name) for name, split in wanted.items() if name in builder.info.splits}
    if dropped:
        one = len(dropped) == 1
        tokens = "1 empty or invisible token" if one else f"{len(dropped):,} empty or invisible tokens"
        first = _code_points(dropped[0]) or " (nothing)"
        if broken == "stop":
            raise UserError(f"{source} has {tokens}{first}; leave such out with --broken skip.")
        notes.append(f"{source}: {tokens} {'was' if one else 'were'} left out{first}.")
    return with_training(source, found)


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
