"""Tagged words: CoNLL columns in IOB1, IOB2 or BIOES, folders of them, TFDS, and the embedded slots."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.sources import SPLITS, DataRecord, Split, open_tfds
from karpa_tf.data.tables import find_splits, no_such_path, read_text, shares_to_cut, with_training
from karpa_tf.errors import UserError

OUTSIDE = "O"
_SUFFIXES = (".conll", ".txt", ".tsv", ".bio", ".iob", ".iob2", ".bioes")
_SPLIT_SEED = 22
# Prefixes of IOB1, IOB2, BIOES and BILOU, and what they are in IOB2.
_PREFIX = {"B": "B", "I": "I", "E": "I", "L": "I", "S": "B", "U": "B"}


@dataclass(frozen=True)
class Sentence:
    """Words and their tags in IOB2."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Tagged:
    """Sentences by split.

    Attributes:
        name: what the user typed.
        splits: the sentences; `test` may be empty.
        brings_test: the data holds a test split of its own.
    """

    name: str
    splits: dict[Split, list[Sentence]]
    brings_test: bool

    @property
    def fingerprint(self) -> str:
        """Hash of the sentences and of how they are split."""
        digest = hashlib.blake2b(digest_size=16)
        for split in SPLITS:
            digest.update(repr((split, self.splits[split])).encode())
        return digest.hexdigest()

    @property
    def record(self) -> DataRecord:
        labels = tag_names(self.splits["train"])
        return DataRecord(self.fingerprint, {k: len(v) for k, v in self.splits.items()}, labels)


def open_tagged(source: str, *, validation_share: float = 0.05, test_share: float = 0.05) -> Tagged:
    """Opens tagged sentences and splits them.

    Args:
        source: `embedded` (slots of intents), a CoNLL file, a folder with train.conll (or .txt, .bio,
            .iob) and perhaps validation and test, or `tfds:NAME`.
        validation_share: share of the training sentences that become the validation split where the
            data brings none.
        test_share: the same for the test split.

    Returns:
        Sentences by split; those of the same words stay on one side.

    Raises:
        UserError: the source cannot be read, a line is not in CoNLL's form, or no word is tagged.
    """
    given = _read(source)
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
    return Tagged(source, splits, "test" in given)


def open_test_sentences(source: str) -> list[Sentence]:
    """Returns what `evaluate --data` reads: the data's own test split, or else every sentence."""
    given = _read(source)
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
    """Returns the tags of a tagger: O, then B- and I- of every type that occurs."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != OUTSIDE})
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Turns the tags of a sentence, in IOB1, IOB2, BIOES or BILOU, into IOB2.

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
        before, ended = kind, prefix in "ESLU"
    return result


# --- Reading --------------------------------------------------------------------------------------


def _read(source: str) -> dict[Split, list[Sentence]]:
    if source == "embedded":
        from karpa_tf.data.intents import embedded_intents

        return {
            split: [Sentence(s.words, s.tags) for s in embedded_intents() if s.split == split]
            for split in SPLITS
        }
    if source.startswith("tfds:"):
        return _read_tfds(source)
    path = Path(source)
    if path.is_dir():
        return {split: read_conll(file) for split, file in find_splits(path, _SUFFIXES).items()}
    if not path.exists():
        raise no_such_path(
            source, "a file in CoNLL columns (token first, tag last), a folder with train.conll"
        )
    return {"train": read_conll(path)}


# A token may hold spaces where tabs divide the columns.
_TABS, _BLANKS = re.compile(r" *\t[ \t]*"), re.compile(r" +")
_TAG = re.compile(f"{OUTSIDE}|[{''.join(_PREFIX)}]-.+")


def read_conll(path: Path) -> list[Sentence]:
    """Reads CoNLL columns: the token first, the tag last, a blank line between sentences.

    Raises:
        UserError: it cannot be read, is empty, or has a bad line; its file and number are named.
    """
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []

    def end() -> None:
        if words:
            sentences.append(Sentence(tuple(words), tuple(to_iob2(tags))))
        words.clear()
        tags.clear()

    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = (_TABS if "\t" in line else _BLANKS).split(line.strip(" ").rstrip())
        good = _TAG.fullmatch(cells[-1]) is not None
        comment = line.startswith("# ") and not good  # as CoNLL-U has them
        if not line.strip() or cells[0] == "-DOCSTART-" or comment:
            end()
        elif len(cells) < 2 or not cells[0]:
            raise UserError(
                f"{path}, line {number}: a line needs a token and a tag, with a space or tab between. "
                f'Received: "{line[:60]}".'
            )
        elif not good:
            raise UserError(
                f'{path}, line {number}: "{cells[-1][:60]}" is no tag; it must be O, or B-, I-, E- or S- '
                "and a type."
            )
        else:
            words.append(cells[0])
            tags.append(cells[-1])
    end()
    if not sentences:
        raise UserError(f"{path} is empty: it has no tagged words.")
    return sentences


def _read_tfds(source: str) -> dict[Split, list[Sentence]]:
    builder = open_tfds(source.removeprefix("tfds:"))
    import tensorflow_datasets as tfds

    features = dict(builder.info.features)
    tags = next((name for name in ("ner", "ner_tags", "tags") if name in features), None)
    if "tokens" not in features or tags is None:
        raise UserError(f"{source} has no features tokens and ner (or tags). It has: {', '.join(features)}.")
    names = features[tags].feature

    def read(split: str) -> list[Sentence]:
        sentences = []
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            words = [_text(token) for token in example["tokens"]]
            given = [names.int2str(int(tag)) for tag in example[tags]]
            try:
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
    return with_training(source, found)


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
