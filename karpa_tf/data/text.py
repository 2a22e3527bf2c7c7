"""Text to batches: tokenized once and kept on disk, cut into windows, masked anew at every step."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import Batches, EpochOrder, slice_part
from karpa_tf.data.sources import SPLITS, Corpus, DataRecord, Split, open_corpus
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.wordpiece import WordPiece, learn_wordpiece

# Part of the cache's key: raise it when the tokenized form changes.
_FORMAT = 2
# Random numbers of one step that must not be alike: added to its seed.
_FIRST, _SECOND, _THIRD = ([number, 0] for number in (1, 2, 3))
# Seed of the masks of validation and test, which are the same for every run.
_FIXED_SEED = 15
_READ_AT_ONCE = 1 << 20
_COUNT_AT_ONCE = 1 << 24


@dataclass(frozen=True, repr=False)
class TextData(InALine):
    """Everything a masked language model is trained and evaluated with.

    Attributes:
        corpus: where the text comes from.
        wordpiece: the vocabulary.
        splits: the tokenized text.
        train: batches with new masks at every step.
        validation: batches with fixed masks.
        test: batches with fixed masks, every window in several of them where the text is short.
    """

    corpus: Corpus
    wordpiece: WordPiece
    splits: dict[Split, TokenizedSplit]
    train: Batches
    validation: Batches
    test: Batches

    @property
    def record(self) -> DataRecord:
        """What a run notes of this data."""
        return record_of(self.corpus, self.splits)


def load_text(
    source: str | Corpus = "embedded",
    *,
    vocabulary: str | Path | WordPiece = "",
    vocabulary_size: int = 10_000,
    lowercase: bool = True,
    sequence_length: int = 64,
    batch_size: int = 32,
    mask_rate: float = 0.15,
    whole_word_masking: bool = False,
    objective: Literal["masked", "every"] = "every",
    predict_rate: float = 0.5,
    seed: int = 0,
) -> TextData:
    """Turns a text source into batches for a masked language model.

    A batch is `(features, labels, sample_weights)`: features `token_ids` int32 (rows, sequence_length),
    `padding_mask` bool of the same shape and `masked_positions` int32 (rows, positions); labels int32
    and weights float32, both (rows, positions), where a weight of 0 marks a position that fills up.

    Args:
        source: `embedded`, a .txt or .txt.gz file, a folder of them, `tfds:NAME`, or an open corpus.
        vocabulary: a vocab.txt, or an open one; empty: learn one from the training split.
        vocabulary_size: largest number of pieces to learn.
        lowercase: read text in lower case and without accents; an open vocabulary has its own way.
        sequence_length: pieces in a window.
        batch_size: windows in a batch.
        mask_rate: share of the pieces of a window that are masked.
        whole_word_masking: mask all the pieces of a word together.
        objective: in training, take the loss at the masked pieces or at any of them.
        predict_rate: with `every`, the share of a window's pieces, drawn anew at each step, that the loss
            is taken at; half of them cost half as much, and teach almost as much.
        seed: of the masks, the windows' places and their order in training.

    Returns:
        The batches, with the vocabulary and the tokenized text.

    Raises:
        UserError: the source or the vocabulary cannot be used.
    """
    corpus = source if isinstance(source, Corpus) else open_corpus(source)
    if isinstance(vocabulary, WordPiece):
        wordpiece = vocabulary
    elif vocabulary:
        wordpiece = WordPiece.load(vocabulary, lowercase)
    else:
        wordpiece = cached_vocabulary(corpus, vocabulary_size, lowercase)
    splits = tokenize_corpus(corpus, wordpiece)
    masking = Masking(wordpiece, mask_rate, whole_word_masking)
    train = Windows(splits["train"], sequence_length)
    if len(train) == 0:
        raise UserError(
            f"{corpus.name} is too short: its training split has {splits['train'].size} pieces, and a "
            f"window takes {sequence_length}; give more text or a smaller sequence_length."
        )
    return TextData(
        corpus,
        wordpiece,
        splits,
        train=train.batches(
            batch_size, masking, predict_rate=predict_rate if objective == "every" else None, seed=seed
        ),
        validation=fixed_batches(splits["validation"], sequence_length, batch_size, masking),
        test=fixed_batches(splits["test"], sequence_length, batch_size, masking, test=True),
    )


# --- Tokenized text on disk -----------------------------------------------------------------------


def record_of(corpus: Corpus, splits: Mapping[Split, TokenizedSplit]) -> DataRecord:
    """Returns what a run notes of a text that was cut into pieces."""
    return DataRecord(corpus.fingerprint, {split: pieces.size for split, pieces in splits.items()})


@dataclass(frozen=True, repr=False)
class TokenizedSplit(InALine):
    """The pieces of a split's documents, one after the other.

    Attributes:
        pieces: (size,) ids; a file that is mapped, not read.
        borders: int64 (documents + 1,); document d is `pieces[borders[d]:borders[d + 1]]`.
    """

    pieces: np.ndarray
    borders: np.ndarray

    @property
    def size(self) -> int:
        return int(self.borders[-1])

    def counts(self, vocabulary_size: int) -> np.ndarray:
        """int64 (vocabulary_size,): how often each piece occurs; read in parts to spare memory."""
        total = np.zeros(vocabulary_size, np.int64)
        for begin in range(0, self.size, _COUNT_AT_ONCE):
            part = self.pieces[begin : begin + _COUNT_AT_ONCE]
            total += np.bincount(part, minlength=vocabulary_size)
        return total


def cache_folder() -> Path:
    """Returns where tokenized text is kept: $KARPA_TF_CACHE, or karpa_tf in the user's cache."""
    if folder := os.environ.get("KARPA_TF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "karpa_tf"


def cached_vocabulary(corpus: Corpus, size: int, lowercase: bool) -> WordPiece:
    """Learns the vocabulary of a corpus' training split, or reads the one learned before."""

    def learn(folder: Path) -> None:
        texts = (text for split, text in corpus.read() if split == "train")
        learn_wordpiece(texts, size, lowercase=lowercase).save(folder / "vocab.txt")

    folder = _cached("vocabulary", [corpus.fingerprint, size, lowercase], learn)
    return WordPiece.load(folder / "vocab.txt", lowercase)


def tokenize_corpus(corpus: Corpus, wordpiece: WordPiece) -> dict[Split, TokenizedSplit]:
    """Tokenizes a corpus into files in the cache, or opens those made before.

    A sentence of the training split is left out of the other two, and one of the test split out of
    validation, so that nothing a model is evaluated on has been seen.

    Raises:
        UserError: the cache cannot be written.
    """

    def tokenize(folder: Path) -> None:
        held_out: dict[Split, set[int]] = {"validation": set(), "test": set()}
        for split, text in corpus.read():
            if split != "train":
                held_out[split].update(map(_sentence_key, sentences(text)))
        seen: set[int] = set()

        def training() -> Iterator[str]:
            both = held_out["validation"] | held_out["test"]
            for split, text in corpus.read():
                if split == "train":
                    if both:
                        seen.update(both.intersection(map(_sentence_key, sentences(text))))
                    yield text

        def unseen(wanted: Split) -> Iterator[str]:
            dropped = seen | held_out["test"] if wanted == "validation" else seen
            for split, text in corpus.read():
                if split == wanted:
                    kept = [s for s in sentences(text) if _sentence_key(s) not in dropped]
                    yield "".join(kept)

        _write_split(folder, "train", training(), wordpiece)
        for split in ("validation", "test"):
            _write_split(folder, split, unseen(split), wordpiece)

    reading = [wordpiece.lowercase, sorted(wordpiece.options.items())]
    key = [corpus.fingerprint, reading, "\n".join(wordpiece.pieces)]
    folder = _cached("tokens", key, tokenize)
    return {split: _open_split(folder, split, wordpiece) for split in SPLITS}


_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])|\n[ \t]*\n\s*")


def sentences(text: str) -> list[str]:
    """Cuts text after each sentence and paragraph; joined, the parts are the text again."""
    parts = []
    begin = 0
    for match in _SENTENCE_END.finditer(text):
        parts.append(text[begin : match.end()])
        begin = match.end()
    parts.append(text[begin:])
    return parts


def _sentence_key(sentence: str) -> int:
    words = " ".join(sentence.casefold().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def _cached(kind: str, key: list[Any], make: Callable[[Path], None]) -> Path:
    """Returns a folder of the cache, made whole by `make` under a temporary name first."""
    name = hashlib.blake2b(json.dumps([_FORMAT, *key]).encode(), digest_size=16).hexdigest()
    folder = cache_folder() / kind / name
    if folder.is_dir():
        return folder
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        make(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same content
                raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"The cache {cache_folder()} cannot be written: {reason}; set KARPA_TF_CACHE to a folder "
            "with room."
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_split(folder: Path, split: str, texts: Iterable[str], wordpiece: WordPiece) -> None:
    borders = [0]
    with (folder / f"{split}.pieces").open("wb") as file:
        for batch in _in_batches(texts):
            # A long document goes through the tokenizer in parts.
            owned = [(index, part) for index, text in enumerate(batch) for part in _parts(text)]
            owner = [index for index, _ in owned]
            tokens = wordpiece.tokenize(tf.constant([part for _, part in owned]))
            file.write(tokens.flat_values.numpy().astype(_dtype(wordpiece)).tobytes())
            lengths = np.bincount(owner, tokens.row_lengths().numpy(), len(batch)).astype(np.int64)
            borders.extend((borders[-1] + np.cumsum(lengths)).tolist())
    np.save(folder / f"{split}.borders.npy", np.array(borders, np.int64))


def _in_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _READ_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parts(text: str) -> list[str]:
    if len(text) <= _READ_AT_ONCE:
        return [text]
    return re.findall(rf"(?s).{{1,{_READ_AT_ONCE}}}(?:\s|$)|.{{1,{_READ_AT_ONCE}}}", text)


def _dtype(wordpiece: WordPiece) -> type[np.unsignedinteger] | type[np.signedinteger]:
    return np.uint16 if len(wordpiece) <= 1 << 16 else np.int32


def _open_split(folder: Path, split: str, wordpiece: WordPiece) -> TokenizedSplit:
    path = folder / f"{split}.pieces"
    borders = np.load(folder / f"{split}.borders.npy")
    if borders[-1] == 0:
        return TokenizedSplit(np.zeros(0, _dtype(wordpiece)), borders)
    return TokenizedSplit(np.memmap(path, _dtype(wordpiece), mode="r"), borders)


# --- Windows --------------------------------------------------------------------------------------


class Windows(InALine):
    """Windows of a fixed length that never cross a document's border.

    Args:
        split: the tokenized text.
        length: pieces in a window; what is missing at a document's end is padding.
        most: keep at most so many windows, evenly spread.
        views: how often each window appears (with other masks).
    """

    def __init__(
        self, split: TokenizedSplit, length: int, *, most: int | None = None, views: int = 1
    ) -> None:
        begins, ends = split.borders[:-1], split.borders[1:]
        enough = ends - begins > 1  # one piece alone has no context to be predicted from
        begins, ends = begins[enough], ends[enough]
        counts = -(-(ends - begins) // length)
        first = np.cumsum(counts) - counts
        starts = np.repeat(begins - first * length, counts) + np.arange(counts.sum()) * length
        self.starts, self.begins, self.ends = (
            starts,
            np.repeat(begins, counts),
            np.repeat(ends, counts),
        )
        if most is not None and len(starts) > most:
            kept = np.linspace(0, len(starts) - 1, most).astype(np.int64)
            self.starts, self.begins, self.ends = (a[kept] for a in (self.starts, self.begins, self.ends))
        self.pieces = split.pieces
        self.length = length
        self.views = views

    def __len__(self) -> int:
        return len(self.starts) * self.views

    def read(self, rows: np.ndarray, shift: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reads windows.

        Args:
            rows: int64 (n,) numbers of windows; -1 gives an empty one.
            shift: int64 (n,) pieces by which each is moved, as far as its document goes.

        Returns:
            ids int32 (n, length), zero after the end, and the number of pieces int32 (n,).
        """
        rows = np.where(rows < 0, -1, rows % len(self.starts))
        start, begin, end = self.starts[rows], self.begins[rows], self.ends[rows]
        if shift is not None:
            start = np.clip(start + shift, begin, np.maximum(end - self.length, begin))
        count = np.where(rows < 0, 0, np.minimum(end - start, self.length))
        place = np.arange(self.length)
        index = np.minimum(start[:, None] + place, len(self.pieces) - 1)
        ids = np.where(place < count[:, None], self.pieces[index], 0)
        return ids.astype(np.int32), count.astype(np.int32)

    def batches(
        self,
        batch_size: int,
        masking: Masking,
        *,
        predict_rate: float | None = None,
        seed: int | None = None,
    ) -> Batches:
        """Returns batches of masked windows.

        Args:
            batch_size: windows in a batch.
            masking: how to choose and hide pieces.
            predict_rate: ask for this share of all pieces, and not for the masked ones.
            seed: training: shuffled, shifted and masked anew at every step. None: fixed masks, and
                every chosen piece is hidden, since that is what filling a mask asks for.
        """
        order = EpochOrder(len(self), batch_size, seed=seed or 0, shuffle=seed is not None)
        length = self.length

        def read(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            shift = None
            if seed is not None:
                rng = np.random.default_rng((seed, 1, int(step)))
                shift = rng.integers(-(length // 2), length // 2 + 1, batch_size)
            return self.read(order.rows(int(step)), shift)

        def load(step: tf.Tensor, part: int, parts: int) -> Any:
            ids, counts = tf.numpy_function(read, [step], [tf.int32, tf.int32], stateful=False)
            ids = tf.ensure_shape(ids, [batch_size, length])
            counts = tf.ensure_shape(counts, [batch_size])
            if seed is None:
                draw = tf.stack([tf.constant(_FIXED_SEED, tf.int64), step])
            else:
                draw = tf.stack([tf.constant(seed, tf.int64) + (1 << 32), step])
            # Masks are drawn for the whole global batch, so that they do not depend on the workers.
            chosen = masking.choose(ids, counts, draw)
            inputs = masking.hide(ids, chosen, draw, corrupt=seed is not None)
            if predict_rate is None:
                targets, most = chosen, masking.most(length)
                score = tf.cast(targets, tf.float32)
            else:
                targets, most = masking.allowed(ids, counts), max(1, round(length * predict_rate))
                score = tf.random.stateless_uniform(tf.shape(ids), draw + _THIRD, alg="philox")
                score = tf.where(targets, score, -1.0)
            ids, counts, inputs, targets, score = (
                slice_part(x, part, parts) for x in (ids, counts, inputs, targets, score)
            )
            positions = tf.argsort(score, axis=1, direction="DESCENDING", stable=True)[:, :most]
            positions = tf.ensure_shape(positions, [batch_size // parts, most])
            features = {
                "token_ids": inputs,
                "padding_mask": tf.range(length) < counts[:, None],
                "masked_positions": positions,
            }
            labels = tf.gather(ids, positions, batch_dims=1)
            weights = tf.cast(tf.gather(targets, positions, batch_dims=1), tf.float32)
            return features, labels, weights

        return Batches(load, order.steps_per_epoch, batch_size)


def fixed_batches(
    split: TokenizedSplit,
    sequence_length: int,
    batch_size: int,
    masking: Masking,
    *,
    test: bool = False,
) -> Batches:
    """Returns batches to evaluate a model on: at most 2,000 windows for validation, all of them for test.

    A short test split appears under up to eight different masks, because accuracy on a thousand
    positions would say little.

    Args:
        split: the tokenized text.
        sequence_length: pieces in a window.
        batch_size: windows in a batch.
        masking: hides pieces.
        test: it is the test split.

    Raises:
        UserError: the split has no text.
    """
    views = 1
    if test and split.size:
        views = int(np.clip(20_000 / (split.size * masking.rate), 1, 8))
    windows = Windows(split, sequence_length, most=None if test else 2_000, views=views)
    if len(windows) == 0:
        raise UserError(
            "The text is too short: nothing is left of its validation or test split once sentences of "
            "the training split are taken out; give more text."
        )
    return windows.batches(batch_size, masking)


# --- Masking --------------------------------------------------------------------------------------


class Masking(InALine):
    """Chooses pieces and hides them, with stateless random numbers in the graph.

    BERT's masking (Devlin et al. 2019, section 3.1): of the chosen pieces 80 % become [MASK], 10 %
    another piece, 10 % stay.

    Args:
        wordpiece: the vocabulary.
        rate: share of the pieces of a window that are chosen, above 0 and below 1.
        whole_word: choose all the pieces of a word together.

    Raises:
        UserError: the rate is out of bounds.
    """

    def __init__(self, wordpiece: WordPiece, rate: float = 0.15, whole_word: bool = False) -> None:
        if not 0 < rate < 1:
            raise UserError(f"mask_rate must lie between 0 and 1. Received: {rate}.")
        self.rate = rate
        self.whole_word = whole_word
        self._mask_id = wordpiece.mask_id
        special = np.zeros(len(wordpiece), bool)
        special[wordpiece.special_ids] = True
        self._special = special
        self._ordinary = np.flatnonzero(~special).astype(np.int32)
        self._continues = wordpiece.continues_word

    def most(self, length: int) -> int:
        """Returns how many pieces of a full window of that `length` are masked."""
        return max(1, round(length * self.rate))

    def allowed(self, ids: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Returns bool (rows, length): neither padding nor a special token.

        Args:
            ids: int32 (rows, length).
            counts: int32 (rows,) pieces in a row before its padding.
        """
        inside = tf.range(tf.shape(ids)[1]) < counts[:, None]
        return inside & ~tf.gather(self._special, ids)

    def choose(self, ids: tf.Tensor, counts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Chooses the pieces to mask.

        Args:
            ids: int32 (rows, length).
            counts: int32 (rows,) pieces in a row before its padding.
            seed: int64 (2,).

        Returns:
            bool (rows, length): exactly the rate's share of each row, rounded, and at least one; with
            whole words at most so many.
        """
        allowed = self.allowed(ids, counts)
        number = tf.reduce_sum(tf.cast(allowed, tf.float32), axis=1)
        budget = tf.maximum(tf.cast(tf.round(number * self.rate), tf.int32), 1)[:, None]
        scores = tf.random.stateless_uniform(tf.shape(ids), seed, alg="philox")
        if self.whole_word:
            word = tf.cumsum(tf.cast(~tf.gather(self._continues, ids), tf.int32), axis=1)
            scores = tf.gather(scores, tf.minimum(word, tf.shape(ids)[1] - 1), batch_dims=1)
        scores = tf.where(allowed, scores, 2.0)
        rank = tf.argsort(tf.argsort(scores, axis=1, stable=True), axis=1)
        chosen = rank < budget
        if self.whole_word:
            same = (word[:, :, None] == word[:, None, :]) & allowed[:, None, :]
            last = tf.reduce_max(tf.where(same, rank[:, None, :], -1), axis=2)
            whole = last < budget
            # A first word longer than the budget is cut rather than leaving the row without a mask.
            chosen = tf.where(tf.reduce_any(whole & allowed, axis=1, keepdims=True), whole, chosen)
        return chosen & allowed

    def hide(self, ids: tf.Tensor, chosen: tf.Tensor, seed: tf.Tensor, *, corrupt: bool) -> tf.Tensor:
        """Returns the ids with the chosen ones hidden, int32 (rows, length).

        Args:
            ids: int32 (rows, length).
            chosen: bool (rows, length).
            seed: int64 (2,).
            corrupt: 80/10/10 as BERT does; else all by [MASK].
        """
        masked = tf.where(chosen, self._mask_id, ids)
        if not corrupt:
            return masked
        kind = tf.random.stateless_uniform(tf.shape(ids), seed + _FIRST, alg="philox")
        other = tf.random.stateless_uniform(
            tf.shape(ids),
            seed + _SECOND,
            0,
            len(self._ordinary),
            tf.int32,
            alg="philox",
        )
        masked = tf.where(chosen & (kind > 0.8), tf.gather(self._ordinary, other), masked)
        return tf.where(chosen & (kind > 0.9), ids, masked)
