from __future__ import annotations

import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.wordpiece import SPECIAL, WordPiece, learn_wordpiece
from tests.conftest import make_text


def test_learning_is_the_same_every_time_and_bounded_in_size() -> None:
    text = [make_text(300)]
    once, twice = learn_wordpiece(text, 120), learn_wordpiece(text, 120)
    assert once.pieces == twice.pieces
    assert len(once) == 120
    assert once.pieces[: len(SPECIAL)] == list(SPECIAL)
    assert {"cat", "grass"} <= set(learn_wordpiece(text, 400).pieces)


def test_learning_reads_a_bounded_sample() -> None:
    read = []

    def texts():
        for i in range(100):
            read.append(i)
            yield "some words of a text " * 10

    learn_wordpiece(texts(), 100, sample_characters=1000)
    assert len(read) < 10


def test_tokenizing_in_any_script() -> None:
    wordpiece = WordPiece([*SPECIAL, "cafe", "s", "##s", "日", "本", "语", "!", "при", "##вет"])

    def pieces(text):
        return [wordpiece.pieces[i] for i in wordpiece.tokenize(tf.constant([text])).numpy()[0]]

    assert pieces("Cafés!") == ["cafe", "##s", "!"]
    assert pieces("日本语") == ["日", "本", "语"]  # no spaces in Chinese
    assert pieces("Привет") == ["при", "##вет"]
    assert pieces("unknown") == ["[UNK]"]
    assert pieces("") == []


def test_a_mask_in_training_text_is_plain_text() -> None:
    wordpiece = WordPiece([*SPECIAL, "[", "]", "mask"])
    ids = wordpiece.tokenize(tf.constant(["[MASK]"])).numpy()[0]
    assert wordpiece.mask_id not in ids


def test_what_may_fill_a_mask() -> None:
    wordpiece = WordPiece([*SPECIAL, "word", "##s", "."])
    assert [p for p, ok in zip(wordpiece.pieces, wordpiece.fills_mask, strict=True) if ok] == ["word", "."]


def test_bad_vocabularies(tmp_path) -> None:
    path = tmp_path / "vocab.txt"
    with pytest.raises(UserError, match="cannot be read"):
        WordPiece.load(path)
    path.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n")
    with pytest.raises(UserError, match=r"lacks the special token \[MASK\]"):
        WordPiece.load(path)
    path.write_text("\n".join([*SPECIAL, "word", "word"]))
    with pytest.raises(UserError, match='"word" more than once'):
        WordPiece.load(path)
    with pytest.raises(UserError, match="vocabulary_size 10 is too small"):
        learn_wordpiece([make_text(10)], 10)


def test_a_saved_vocabulary_loads_again(tmp_path) -> None:
    wordpiece = learn_wordpiece([make_text(300)], 150)
    wordpiece.save(tmp_path / "vocab.txt")
    assert WordPiece.load(tmp_path / "vocab.txt").pieces == wordpiece.pieces
