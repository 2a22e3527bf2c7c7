"""WordPiece: learn a vocabulary, read a user's vocab.txt, tokenize inside TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError, did_you_mean

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)

# Enough for every alphabet in use; rarer characters of a text become [UNK].
_ALPHABET = 4000


class WordPiece:
    """A WordPiece vocabulary and its tokenizer.

    Attributes:
        pieces: the vocabulary in the order of its ids; a piece that goes on a word starts with `##`.
        lowercase: whether text is read in lower case and without accents.
    """

    def __init__(self, pieces: Sequence[str], lowercase: bool = True) -> None:
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

    @classmethod
    def load(cls, path: str | Path, lowercase: bool = True) -> WordPiece:
        """Reads a vocab.txt: one piece a line, in the order of the ids.

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
        return cls(pieces, lowercase)

    def save(self, path: str | Path) -> None:
        """Writes a vocab.txt that is there whole or not at all."""
        temporary = Path(path).with_suffix(".tmp")
        temporary.write_text("\n".join(self.pieces) + "\n", encoding="utf-8")
        temporary.replace(path)

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: index for index, piece in enumerate(self.pieces)}

    @property
    def pad_id(self) -> int:
        return self.ids[PAD]

    @property
    def mask_id(self) -> int:
        return self.ids[MASK]

    @cached_property
    def special_ids(self) -> list[int]:
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

    @cached_property
    def tokenizer(self) -> Any:
        """The keras-hub layer that does the work."""
        import keras_hub

        return keras_hub.tokenizers.WordPieceTokenizer(
            vocabulary=self.pieces,
            # `_normalize` has done both.
            lowercase=False,
            strip_accents=False,
            split_on_cjk=True,
            oov_token=UNKNOWN,
            special_tokens=list(SPECIAL),
            dtype="int32",
        )

    def tokenize(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Tokenizes text with graph ops; special tokens inside a text are read as plain signs.

        Args:
            text: string (n,).

        Returns:
            int32 ragged (n, pieces).
        """
        return self._tokenize(tf.convert_to_tensor(text, tf.string))

    @cached_property
    def _tokenize(self) -> tf.types.experimental.PolymorphicFunction:
        with tf.init_scope():
            # keras-hub makes its tables at the first call, and they must not belong to somebody's graph.
            tokenizer = self.tokenizer
            tokenizer(tf.constant([""]))
        # Outside a graph keras-hub returns lists; in one, a ragged tensor.
        return tf.function(
            lambda text: tokenizer(_normalize(text, self.lowercase)),
            input_signature=[tf.TensorSpec([None], tf.string)],
            autograph=False,
        )


def _normalize(text: tf.Tensor, lowercase: bool) -> tf.Tensor:
    """Does what `BertNormalizer` of Hugging Face does, and BERT's own code did, in graph ops.

    keras-hub folds case by NFKC, which makes "tm" of "™" and "," of the Chinese "，"; it takes a no-break
    space for a letter, and reads no further than to a zero byte.
    """
    import tensorflow_text

    text = tf.strings.regex_replace(text, r"[\t\n\r\p{Z}]", " ")
    text = tf.strings.regex_replace(text, r"[\p{C}\x{FFFD}]", "")
    if lowercase:
        text = tensorflow_text.normalize_utf8(text, "NFD")
        text = tf.strings.regex_replace(text, r"\p{Mn}", "")
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
