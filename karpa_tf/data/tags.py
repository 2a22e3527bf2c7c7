"""Tagged words: CoNLL columns in IOB1, IOB2 or BIOES, folders of them, TFDS, and the embedded slots."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.sources import SPLITS, Split, open_tfds
from karpa_tf.data.tables import find_splits
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
    brings_test = "test" in given
    rest = given.get("train") or given["test"]
    cut = split_sentences(
        rest,
        0.0 if "validation" in given else validation_share,
        0.0 if brings_test else test_share,
    )
    splits = {**cut, **given, "train": cut["train"]}
    if source == "embedded":
        splits, brings_test = given, False
    if all(tag == OUTSIDE for sentence in splits["train"] for tag in sentence.tags):
        raise UserError(f"{source} has no tag but {OUTSIDE}: there is nothing to learn.")
    return Tagged(source, splits, brings_test)


def open_test_sentences(source: str) -> list[Sentence]:
    """Returns what `evaluate --data` reads: the data's own test split, or else every sentence."""
    given = _read(source)
    if source != "embedded" and "test" in given:
        return given["test"]
    return [sentence for split in given.values() for sentence in split]


def shared_sentences(train: Iterable[Sentence], test: Iterable[Sentence]) -> int:
    """Returns how many sentences of `test` have words that `train` has as well."""
    seen = {sentence.words for sentence in train}
    return sum(sentence.words in seen for sentence in test)


def split_sentences(
    sentences: Sequence[Sentence], validation_share: float, test_share: float
) -> dict[Split, list[Sentence]]:
    """Cuts validation and test out of sentences, always in the same way."""
    unique = list(dict.fromkeys(sentence.words for sentence in sentences))
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(unique))
    sizes = {"validation": 0, "test": 0}
    for name, share in (("validation", validation_share), ("test", test_share)):
        sizes[name] = min(max(1, round(share * len(unique))), len(unique) // 3) if share else 0
    places = {unique[i]: place for place, i in enumerate(order)}
    splits: dict[Split, list[Sentence]] = {split: [] for split in SPLITS}
    for sentence in sentences:
        place = places[sentence.words]
        if place < sizes["validation"]:
            splits["validation"].append(sentence)
        elif place < sizes["validation"] + sizes["test"]:
            splits["test"].append(sentence)
        else:
            splits["train"].append(sentence)
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
        raise UserError(
            f'There is no file or folder "{source}"; give a file in CoNLL columns (token first, tag last), '
            "a folder with train.conll, tfds:NAME, or embedded."
        )
    return {"train": read_conll(path)}


_COLUMNS = re.compile(r"[ \t]+")


def read_conll(path: Path) -> list[Sentence]:
    """Reads CoNLL columns: the token first, the tag last, a blank line between sentences.

    Raises:
        UserError: it cannot be read, is empty, or has a bad line; its file and number are named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it."
        ) from None
    sentences: list[Sentence] = []
    words: list[str] = []
    tags: list[str] = []

    def end(line: int) -> None:
        if words:
            try:
                sentences.append(Sentence(tuple(words), tuple(to_iob2(tags))))
            except ValueError as error:
                at = line - len(tags) + tags.index(str(error))
                raise UserError(
                    f'{path}, line {at}: "{error}" is no tag; it must be O, or B-, I-, E- or S- and a type.'
                ) from None
        words.clear()
        tags.clear()

    lines = text.replace("\r\n", "\n").split("\n")
    for number, line in enumerate(lines, 1):
        cells = _COLUMNS.split(line.strip(" \t"))
        if not line.strip() or cells[0] == "-DOCSTART-":
            end(number)
            continue
        if line.startswith("# ") and cells[-1] != OUTSIDE and "-" not in cells[-1][1:2]:
            end(number)  # a comment, as CoNLL-U has them
            continue
        if len(cells) < 2:
            raise UserError(
                f"{path}, line {number}: a line needs a token and a tag, with a space or tab between. "
                f'Received: "{line[:60]}".'
            )
        words.append(cells[0])
        tags.append(cells[-1])
    end(len(lines) + 1)
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
            found = to_iob2([names.int2str(int(tag)) for tag in example[tags]])
            sentences.append(Sentence(tuple(words), tuple(found)))
        return sentences

    wanted: dict[str, Split] = {
        "train": "train",
        "validation": "validation",
        "dev": "validation",
        "test": "test",
    }
    return {split: read(name) for name, split in wanted.items() if name in builder.info.splits}


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
