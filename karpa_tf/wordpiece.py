"""WordPiece: learn a vocabulary, read a user's vocab.txt, tokenize inside TensorFlow."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine, in_a_line

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)

# BERT calls a longer word unknown.
_LONGEST_WORD = 100
# What stands apart from the words beside it, as BERT's own code has it, in RE2's words.
_PUNCTUATION = r"[!-/:-@\[-`{-~]|\p{P}"
_IDEOGRAPH = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
)

# Enough for every alphabet in use; rarer characters of a text become [UNK].
_ALPHABET = 4000


class WordPiece(InALine):
    """A WordPiece vocabulary and its tokenizer.

    Args:
        pieces: the vocabulary in the order of its ids; a piece that goes on a word starts with `##`.
        lowercase: whether text is read in lower case.
        strip_accents: whether it is read without accents; None: if it is in lower case.
        split_ideographs: whether a Chinese character is a word of its own.
        added: pieces that are found in a text wherever they stand, as they are written (True) or in the text
            as it is read (False).

    Raises:
        UserError: a special token is missing, or a piece is there twice.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        lowercase: bool = True,
        *,
        strip_accents: bool | None = None,
        split_ideographs: bool = True,
        added: Mapping[str, bool] | None = None,
    ) -> None:
        for special in SPECIAL:
            if special not in pieces:
                raise UserError(
                    f"The vocabulary lacks the special token {special}; it needs all of "
                    f"{' '.join(SPECIAL)}, each on a line of its own{did_you_mean(special, pieces)}"
                )
        if len(set(pieces)) != len(pieces):
            twice = Counter(pieces).most_common(1)[0][0]
            raise UserError(f'The vocabulary holds "{twice}" more than once; each piece needs one id.')
        self.pieces = list(pieces)
        self.lowercase = lowercase
        self.strip_accents = lowercase if strip_accents is None else strip_accents
        self.split_ideographs = split_ideographs
        self.added = dict(added or {})

    @property
    def options(self) -> dict[str, Any]:
        """How it reads, beside `lowercase`: what is not as usual, to be given to a new one."""
        options: dict[str, Any] = {}
        if self.strip_accents != self.lowercase:
            options["strip_accents"] = self.strip_accents
        if not self.split_ideographs:
            options["split_ideographs"] = False
        if self.added:
            options["added"] = self.added
        return options

    @classmethod
    def load(cls, path: str | Path, lowercase: bool = True, **options: Any) -> WordPiece:
        """Reads a vocab.txt: one piece a line, in the order of the ids.

        Args:
            path: of the file.
            lowercase: whether text is read in lower case.
            options: further arguments of the class.

        Raises:
            UserError: the file is missing, not UTF-8, or lacks a special token.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"The vocabulary {path} cannot be read: {reason}.") from None
        pieces = [line.rstrip("\r") for line in lines]
        while pieces and not pieces[-1]:
            pieces.pop()
        return cls(pieces, lowercase, **options)

    def save(self, path: str | Path) -> None:
        """Writes a vocab.txt to `path`; it is there whole or not at all."""
        temporary = Path(path).with_suffix(".tmp")
        temporary.write_text("\n".join(self.pieces) + "\n", encoding="utf-8")
        temporary.replace(path)

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return in_a_line("WordPiece", {"pieces": self.pieces, "lowercase": self.lowercase, **self.options})

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each piece."""
        return {piece: index for index, piece in enumerate(self.pieces)}

    @property
    def pad_id(self) -> int:
        """The id of [PAD]."""
        return self.ids[PAD]

    @property
    def mask_id(self) -> int:
        """The id of [MASK]."""
        return self.ids[MASK]

    @cached_property
    def special_ids(self) -> list[int]:
        """The ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return [self.ids[token] for token in SPECIAL]

    @cached_property
    def continues_word(self) -> np.ndarray:
        """bool (pieces,): the piece goes on the word of the piece before it."""
        return np.array([piece.startswith("##") for piece in self.pieces])

    @cached_property
    def fills_mask(self) -> np.ndarray:
        """bool (pieces,): a whole word or sign, the only kind that reads well in place of a mask."""
        allowed = ~self.continues_word
        allowed[self.special_ids] = False
        return allowed

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes text with graph ops; special tokens inside a text are read as plain signs.

        Args:
            text: string (n,).

        Returns:
            int32 ragged (n, pieces).
        """
        text = tf.convert_to_tensor(text, tf.string)
        return self._eager(text) if tf.executing_eagerly() else self._tokenize(text)

    @cached_property
    def _eager(self) -> Any:
        # The calls of a tf.function are counted, and TensorFlow warns where several vocabularies are used.
        return self._tokenize.get_concrete_function()

    @cached_property
    def _tokenize(self) -> tf.types.experimental.PolymorphicFunction:
        import tensorflow_text

        with tf.init_scope():
            # What it is made of must not belong to somebody's graph. keras-hub's layer calls a word unknown
            # beyond 100 bytes; BERT does beyond 100 characters, which are 300 bytes in Thai.
            pieces_of = tensorflow_text.FastWordpieceTokenizer(
                self.pieces,
                token_out_type=tf.int32,
                unknown_token=UNKNOWN,
                no_pretokenization=True,
                max_bytes_per_word=4 * _LONGEST_WORD,
                support_detokenization=False,
            )
            words_of = self._words_of()

        def tokenize(text: tf.Tensor) -> tf.RaggedTensor:
            words = words_of(text)
            long = tf.strings.length(words.flat_values, "UTF8_CHAR") > _LONGEST_WORD
            words = words.with_flat_values(tf.where(long, UNKNOWN, words.flat_values))
            return pieces_of.tokenize(words).merge_dims(1, 2)

        return tf.function(tokenize, input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)

    def _words_of(self) -> Callable[[tf.Tensor], tf.RaggedTensor]:
        """Returns what turns texts (n,) into words, string ragged (n, words)."""

        def split(text: tf.Tensor) -> tf.RaggedTensor:
            import tensorflow_text

            stands_apart = f"{_PUNCTUATION}|{_IDEOGRAPH}" if self.split_ideographs else _PUNCTUATION
            return tensorflow_text.regex_split(text, f" |{stands_apart}", stands_apart)

        def normalize(text: tf.Tensor) -> tf.Tensor:
            return _normalize(text, self.lowercase, self.strip_accents)

        words: Callable[[tf.Tensor], tf.RaggedTensor] = split
        if folded := [token for token, as_written in self.added.items() if not as_written]:
            found = [text.decode() for text in normalize(tf.constant(folded)).numpy()]
            words = _cutting_out(dict(zip(found, folded, strict=True)), words)
        of_normalized = words

        def plain(text: tf.Tensor) -> tf.RaggedTensor:
            return of_normalized(normalize(text))

        as_written = {token: token for token, as_written in self.added.items() if as_written}
        return _cutting_out(as_written, plain) if as_written else plain


def _cutting_out(
    tokens: Mapping[str, str], words_of: Callable[[tf.Tensor], tf.RaggedTensor]
) -> Callable[[tf.Tensor], tf.RaggedTensor]:
    """Returns a `words_of` to which some texts are words of their own, wherever they stand.

    Args:
        tokens: the words that they become, by how they are found.
        words_of: what makes words of all else.
    """
    import tensorflow_text

    # The longest first: RE2 takes the first that fits.
    pattern = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))

    def cut_out(text: tf.Tensor) -> tf.RaggedTensor:
        # regex_split reads no further than to a zero byte; both signs are left out later.
        text = tf.strings.regex_replace(text, r"\x00", "\ufffd")
        parts = tensorflow_text.regex_split(text, pattern, pattern)
        flat = parts.flat_values
        found = tf.strings.regex_full_match(flat, pattern)
        own = tf.boolean_mask(flat, found)
        for token, word in tokens.items():
            if token != word:
                own = tf.where(own == token, word, own)
        own = tf.RaggedTensor.from_row_lengths(own, tf.cast(found, tf.int64))
        words = tf.concat([own, words_of(tf.where(found, "", flat))], axis=1)
        return parts.with_values(words).merge_dims(1, 2)

    return cut_out


def _normalize(text: tf.Tensor, lowercase: bool, strip_accents: bool) -> tf.Tensor:
    """Does what `BertNormalizer` of Hugging Face does, and BERT's own code did, in graph ops.

    keras-hub folds case by NFKC, which makes "tm" of "™" and "," of the Chinese "，"; it takes a no-break
    space for a letter, and reads no further than to a zero byte.
    """
    import tensorflow_text

    text = tf.strings.regex_replace(text, r"[\t\n\r\p{Z}]", " ")
    text = tf.strings.regex_replace(text, r"[\p{C}\x{FFFD}]", "")
    if strip_accents:
        text = tensorflow_text.normalize_utf8(text, "NFD")
        text = tf.strings.regex_replace(text, r"\p{Mn}", "")
    if lowercase:
        # One letter at a time: at a word's end, ICU would make another one of it.
        text = tf.strings.regex_replace(text, "Σ", "σ")
        text = tf.strings.lower(text, encoding="utf-8")
    return text


def learn_wordpiece(
    texts: Iterable[str],
    size: int = 10_000,
    *,
    lowercase: bool = True,
    min_frequency: int = 2,
    sample_characters: int = 8_000_000,
) -> WordPiece:
    """Learns a WordPiece vocabulary; the same texts always give the same one.

    Args:
        texts: documents, read until `sample_characters` have been seen.
        size: largest number of pieces.
        lowercase: read the texts in lower case and without accents.
        min_frequency: a piece that is seen less often is not learned.
        sample_characters: bound of what is read; 8 million take about ten seconds.

    Returns:
        The vocabulary, the special tokens first.

    Raises:
        UserError: `size` leaves no room beside the special tokens and the characters.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    normalizer = tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=lowercase
    )
    splitter = tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    sample: list[str] = []
    characters = 0
    starts: Counter[str] = Counter()
    goes_on: Counter[str] = Counter()
    for text in texts:
        text = text[: sample_characters - characters]
        characters += len(text)
        sample.append(text)
        words = Counter(w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        for word, count in words.items():
            starts[word[0]] += count
            for character in word[1:]:
                goes_on[f"##{character}"] += count
        if characters >= sample_characters:
            break

    # The trainer numbers characters in the order of a hash map, and breaks ties by number. Given the
    # alphabet beforehand, it has no choice left.
    alphabet = [piece for counts in (starts, goes_on) for piece in sorted(_most_frequent(counts, _ALPHABET))]
    first = list(dict.fromkeys([*SPECIAL, *alphabet]))
    if size < len(first):
        raise UserError(
            f"vocabulary_size {size} is too small: the special tokens and the characters of this text "
            f"are {len(first)} pieces already."
        )
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=min_frequency, special_tokens=first, show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    ids = tokenizer.get_vocab()
    return WordPiece(sorted(ids, key=ids.__getitem__), lowercase)


def _most_frequent(counts: Counter[str], limit: int) -> list[str]:
    return sorted(counts, key=lambda piece: (-counts[piece], piece))[:limit]
