"""Texts and words as BERT reads them: `[CLS] a [SEP]`, `[CLS] a [SEP] b [SEP]`, in batches of like lengths.

The packing is made of graph ops alone, and the served model runs the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.data.batches import BalancedOrder, Batches, LengthOrder, bucket_widths, slice_part
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.wordpiece import END, START, UNKNOWN, WordPiece

_AT_ONCE = 1024
# A word's pieces beyond this many say nothing more of it.
_PIECES_OF_A_WORD = 16


# --- Packing, in graph ops ------------------------------------------------------------------------


def pack_texts(
    wordpiece: WordPiece, text: tf.Tensor, text_b: tf.Tensor | None = None, *, length: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Turns texts, or pairs of them, into what BERT reads.

    Args:
        wordpiece: the vocabulary.
        text: string (n,).
        text_b: string (n,), the second text of each pair; None: no pairs.
        length: most pieces of a row; longer texts are cut at their ends, the longer of a pair first.

    Returns:
        token ids and segment ids, both int32 ragged (n, pieces).
    """
    parts = [wordpiece.tokenize(t) for t in (text, text_b) if t is not None]
    return _combine(wordpiece, parts, length)


def _combine(
    wordpiece: WordPiece, parts: list[tf.RaggedTensor], length: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    import tensorflow_text

    trimmer = tensorflow_text.RoundRobinTrimmer(length - 1 - len(parts))
    token_ids, segment_ids = tensorflow_text.combine_segments(
        trimmer.trim(parts), wordpiece.ids[START], wordpiece.ids[END]
    )
    return token_ids, tf.cast(segment_ids, tf.int32)


def pack_words(
    wordpiece: WordPiece, words: tf.RaggedTensor, *, length: int
) -> tuple[tf.RaggedTensor, tf.RaggedTensor]:
    """Turns words into what BERT reads; a long text becomes several rows, cut between words.

    Args:
        wordpiece: the vocabulary.
        words: string ragged (n, words).
        length: most pieces of a row.

    Returns:
        token ids int32 ragged (rows, pieces), and the places of the words' first pieces in them, int32
        ragged (rows, words). All words are there, in their order.
    """
    most = max(1, min(_PIECES_OF_A_WORD, (length - 2) // 2))
    free = length - 2 - most + 1  # a word that starts in here ends inside the row
    flat = words.flat_values
    pieces = wordpiece.tokenize(flat)[:, :most]
    # Every word needs a piece, those too of which nothing is left, e.g. a control character.
    nothing = tf.cast(pieces.row_lengths() == 0, tf.int64)
    unknown = tf.RaggedTensor.from_row_lengths(
        tf.fill([tf.reduce_sum(nothing)], wordpiece.ids[UNKNOWN]), nothing
    )
    pieces = tf.concat([pieces, unknown], axis=1)
    counts = pieces.row_lengths()
    # Where a word starts in its text, and so in which row of it.
    ends = tf.cumsum(counts)
    text = words.value_rowids()
    before = tf.concat([[0], ends], axis=0)
    start = ends - counts - tf.gather(tf.gather(before, words.row_starts()), text)
    window = start // free
    key = text * (tf.reduce_max(tf.concat([window, [0]], 0)) + 1) + window
    new = tf.concat([tf.ones_like(key[:1], tf.bool), key[1:] != key[:-1]], axis=0)
    row = tf.cumsum(tf.cast(new, tf.int64)) - 1
    rows = tf.reduce_sum(tf.cast(new, tf.int64))
    row_start = tf.boolean_mask(start, new)
    first = tf.cast(start - tf.gather(row_start, row) + 1, tf.int32)
    inside = tf.RaggedTensor.from_value_rowids(pieces.flat_values, tf.repeat(row, counts), nrows=rows)
    one = tf.ones([rows, 1], tf.int32)
    token_ids = tf.concat([one * wordpiece.ids[START], inside, one * wordpiece.ids[END]], axis=1)
    return token_ids, tf.RaggedTensor.from_value_rowids(first, row, nrows=rows)


def letter_cases(words: tf.Tensor) -> tf.Tensor:
    """Returns what kind of letters words have, in graph ops: int32, of the shape of `words`.

    1: none; 2: small ones; 3: a capital first; 4: capitals only, two at least; 5: capitals further in. 0
    is for what is no word's first piece.
    """
    has = [
        tf.strings.regex_full_match(words, pattern)
        for pattern in (
            r"[^\p{Lu}]*\p{Ll}[^\p{Lu}]*",
            r"[^\p{L}]*\p{Lu}[^\p{Lu}]*",
            r"[^\p{Ll}]*\p{Lu}[^\p{Ll}]*\p{Lu}[^\p{Ll}]*",
            r".*\p{Lu}.*",
        )
    ]
    case = tf.ones_like(has[0], tf.int32)
    for number, matches in reversed(list(enumerate(has, 2))):
        case = tf.where(matches, number, case)
    return case


def dense_features(token_ids: tf.RaggedTensor, segment_ids: tf.RaggedTensor | None, pad_id: int) -> Any:
    """Returns packed rows as the features of `build_bert`, padded at the right.

    Args:
        token_ids: int32 ragged (n, pieces).
        segment_ids: int32 ragged (n, pieces); None: all 0.
        pad_id: the id of [PAD].
    """
    ids = token_ids.to_tensor(pad_id)
    segments = tf.zeros_like(ids) if segment_ids is None else segment_ids.to_tensor(0)
    mask = tf.sequence_mask(token_ids.row_lengths(), tf.shape(ids)[1])
    return {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}


# --- Packed data ----------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Sequences(InALine):
    """Packed rows, one after the other.

    Attributes:
        token_ids: int32 (pieces,).
        segment_ids: int32 (pieces,).
        offsets: int64 (rows + 1,); row r is `[offsets[r]:offsets[r + 1]]`.
        cut: how many texts were longer than a row.
        case_ids: int32 (pieces,) of `letter_cases`, for words whose vocabulary has no capitals.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    offsets: np.ndarray
    cut: int = 0
    case_ids: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 (rows,): pieces of each row."""
        return np.diff(self.offsets)


def encode_texts(
    wordpiece: WordPiece, texts: Sequence[str], texts_b: Sequence[str] | None, length: int
) -> Sequences:
    """Packs texts, or pairs of them; see `pack_texts`.

    Args:
        wordpiece: the vocabulary.
        texts: the texts.
        texts_b: the second text of each pair; None: no pairs.
        length: most pieces of a row, 4 at least.

    Returns:
        A row a text, with how many were cut.

    Raises:
        UserError: `length` leaves no room for a text.
    """
    if length < 4:
        raise UserError(f"sequence_length must be at least 4. Received: {length}.")
    ids, segments, lengths = [], [], []
    cut = 0
    for begin in range(0, len(texts), _AT_ONCE):
        parts = [
            wordpiece.tokenize(tf.constant(column[begin : begin + _AT_ONCE]))
            for column in (texts, texts_b)
            if column is not None
        ]
        packed, kinds = _combine(wordpiece, parts, length)
        whole = tf.add_n([part.row_lengths() for part in parts]) + 1 + len(parts)
        cut += int(np.sum(whole.numpy() > length))
        ids.append(packed.flat_values.numpy())
        segments.append(kinds.flat_values.numpy())
        lengths.append(packed.row_lengths().numpy())
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return Sequences(np.concatenate(ids), np.concatenate(segments), offsets, cut)


def encode_words(
    wordpiece: WordPiece, sentences: Sequence[Sequence[str]], length: int
) -> tuple[Sequences, np.ndarray]:
    """Packs sentences of words; see `pack_words`.

    Args:
        wordpiece: the vocabulary.
        sentences: the words of each.
        length: most pieces of a row, 8 at least.

    Returns:
        the rows, and for every word of all sentences, in their order, the place of its first piece in
        `token_ids`, int64 (words,).

    Raises:
        UserError: `length` leaves no room for a word.
    """
    if length < 8:
        raise UserError(f"sequence_length must be at least 8 to tag words. Received: {length}.")
    ids, lengths, places = [], [], []
    begin = 0
    for index in range(0, len(sentences), _AT_ONCE):
        words = tf.ragged.constant([list(s) for s in sentences[index : index + _AT_ONCE]], tf.string, 1)
        packed, first = pack_words(wordpiece, words, length=length)
        starts = tf.gather(packed.row_starts(), first.value_rowids())
        places.append(begin + (starts + tf.cast(first.flat_values, tf.int64)).numpy())
        ids.append(packed.flat_values.numpy())
        lengths.append(packed.row_lengths().numpy())
        begin += len(ids[-1])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    token_ids = np.concatenate(ids)
    place = np.concatenate(places)
    cases = None
    if wordpiece.lowercase:
        cases = np.zeros_like(token_ids)
        cases[place] = letter_cases(tf.constant([word for s in sentences for word in s], tf.string)).numpy()
    return Sequences(token_ids, np.zeros_like(token_ids), offsets, case_ids=cases), place


def sequence_batches(
    sequences: Sequences,
    labels: Any,
    weights: Any,
    wordpiece: WordPiece,
    *,
    batch_size: int,
    seed: int | None = None,
    buckets: int | Sequence[int] = 4,
    token_dropout: float = 0.0,
    balanced: int = 0,
) -> Batches:
    """Returns batches of packed rows: features of `build_bert`, labels and sample weights.

    Args:
        sequences: the rows.
        labels: int32, one a row (rows,) or one a piece (pieces,); batches hold (batch,) or (batch, time). Or
            a dict of such arrays, which batches hold likewise.
        weights: float32 of the same shapes, what a label counts for in the loss; 0: not at all.
        wordpiece: whose [PAD] and [MASK] are used.
        batch_size: rows in a batch.
        seed: training: shuffled anew each epoch, in buckets of like lengths. None: sorted by length, as
            `rows_of` says.
        buckets: most widths that training batches may have; or the widths, rising, whose last holds the
            longest row.
        token_dropout: share of the pieces that are replaced by [MASK] in training.
        balanced: training: batches of two rows each of several labels, and so many rows in an epoch at
            least; 0: each row once.
    """
    lengths = sequences.lengths
    order: LengthOrder | BalancedOrder
    if not isinstance(buckets, int):
        order = LengthOrder(lengths, batch_size, list(buckets), seed)
    elif balanced and seed is not None:
        # The longest row of a batch is longer than most rows are.
        longest = np.random.default_rng(seed).choice(lengths, (1000, batch_size)).max(axis=1)
        widths = bucket_widths(np.append(longest, lengths.max()), buckets)
        order = BalancedOrder(np.asarray(labels), lengths, batch_size, widths, seed, balanced)
    else:
        order = LengthOrder(lengths, batch_size, bucket_widths(lengths, buckets), seed)
    facts = [*_as(np.int32, labels), *_as(np.float32, weights)]
    per_piece = [len(fact) == len(sequences.token_ids) and len(fact) != len(sequences) for fact in facts]
    special = np.isin(sequences.token_ids, wordpiece.special_ids)

    def read(step: np.ndarray) -> list[np.ndarray]:
        rows, width = order.batch(int(step))
        begins, ends = sequences.offsets[rows], sequences.offsets[rows + 1]
        index = begins[:, None] + np.arange(width)
        mask = (index < ends[:, None]) & (rows >= 0)[:, None]
        index = np.where(mask, index, 0)
        ids = sequences.token_ids[index]
        if token_dropout and seed is not None:
            rng = np.random.default_rng((seed, 3, int(step)))
            dropped = (rng.random(ids.shape) < token_dropout) & ~special[index]
            ids = np.where(dropped, wordpiece.mask_id, ids)
        ids = np.where(mask, ids, wordpiece.pad_id)
        segments = np.where(mask, sequences.segment_ids[index], 0)
        arrays = [ids.astype(np.int32), segments.astype(np.int32), mask]
        for fact, each_piece in zip(facts, per_piece, strict=True):
            here = np.where(mask, fact[index], 0) if each_piece else np.where(rows < 0, 0, fact[rows])
            arrays.append(here.astype(fact.dtype))
        if sequences.case_ids is not None:
            arrays.append(np.where(mask, sequences.case_ids[index], 0).astype(np.int32))
        return arrays

    def load(step: tf.Tensor, part: int, parts: int) -> Any:
        row, pieces = [batch_size], [batch_size, None]
        kinds = [tf.int32, tf.int32, tf.bool, *(tf.as_dtype(fact.dtype) for fact in facts)]
        shapes = [pieces, pieces, pieces, *(pieces if each_piece else row for each_piece in per_piece)]
        if sequences.case_ids is not None:
            kinds.append(tf.int32)
            shapes.append(pieces)
        arrays = tf.numpy_function(read, [step], kinds, stateful=False)
        ids, segments, mask, *more = (
            slice_part(tf.ensure_shape(a, shape), part, parts)
            for a, shape in zip(arrays, shapes, strict=True)
        )
        features = {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}
        if sequences.case_ids is not None:
            features["case_ids"] = more.pop()
        return features, *tf.nest.pack_sequence_as((labels, weights), more)

    return Batches(load, order.steps_per_epoch, batch_size)


def _as(kind: type, arrays: Any) -> list[np.ndarray]:
    return [np.asarray(array, kind) for array in tf.nest.flatten(arrays)]


def rows_of(sequences: Sequences, batch_size: int) -> np.ndarray:
    """Returns the rows of batches without a seed one after the other, int64, -1 where one fills up."""
    order = LengthOrder(sequences.lengths, batch_size, [])
    return np.concatenate([order.batch(step)[0] for step in range(order.steps_per_epoch)])


# Signs that stand apart from the word before or behind them.
_OPENING = r"[\"'“”‘«„(\[{<¿¡]"
_CLOSING = r"[\"'”’»)\]}>,;:!?…]"
_IDEOGRAPH = r"[\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}\x{20000}-\x{3134F}]"


def split_words(text: tf.Tensor) -> tf.RaggedTensor:
    """Splits texts into words, in graph ops: at white space, signs at a word's ends on their own.

    A full stop stays with an abbreviation (`U.S.`, `J.`) and an apostrophe inside its word; a Chinese
    character is a word of its own.

    Args:
        text: string (n,).

    Returns:
        string ragged (n, words).
    """
    # RE2's \s and TensorFlow's split go by ASCII alone.
    text = tf.strings.regex_replace(text, r"[\s\p{Z}\x{85}]+", " ")
    text = tf.strings.regex_replace(text, f"({_IDEOGRAPH}|[。，、！？；：])", r" \1 ")
    # Signs side by side part; twice, as no sign counts in two pairs at once.
    for pair in 2 * (f"({_CLOSING}|\\.)({_CLOSING})", f"({_OPENING})({_OPENING})"):
        text = tf.strings.regex_replace(text, pair, r"\1 \2")
    text = tf.strings.regex_replace(text, f"({_CLOSING})(\\.)( |$)", r"\1 \2\3")
    text = tf.strings.regex_replace(text, f"(^| )({_OPENING})([^ ])", r"\1\2 \3")
    text = tf.strings.regex_replace(text, f"([^ ])({_CLOSING})( |$)", r"\1 \2\3")
    # The stop of `London.`, but not that of `U.S.`, `J.` or `...`
    text = tf.strings.regex_replace(text, r"([^ .][^ .])\.( |$)", r"\1 .\2")
    return tf.strings.split(text)
