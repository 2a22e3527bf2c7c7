from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.sources import Corpus
from karpa_tf.data.text import (
    Masking,
    TokenizedSplit,
    Windows,
    cache_folder,
    load_text,
    sentences,
    tokenize_corpus,
)
from karpa_tf.errors import UserError
from karpa_tf.wordpiece import SPECIAL, WordPiece

LETTERS = WordPiece([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghij")])


def load(text_file, **options):
    options = {"sequence_length": 16, "batch_size": 8, "vocabulary_size": 200, **options}
    return load_text(str(text_file), **options)


def first(batches, start=0):
    return next(batches.dataset(start, start + 1).as_numpy_iterator())


# --- Tokenized text


def test_no_sentence_is_in_two_splits() -> None:
    texts = [
        ("train", "One is here. Two is here! Three is here?"),
        ("validation", "Two  is\nhere! Four is here. Five is here."),
        ("test", "One is here. Five is here. Six is here."),
    ]
    corpus = Corpus("three texts", "no sentence twice", lambda: iter(texts))
    pieces = [*SPECIAL, "one", "two", "three", "four", "five", "six", "is", "here", ".", "!", "?"]
    splits = tokenize_corpus(corpus, WordPiece(pieces))
    words = {
        name: {pieces[i] for i in split.pieces} & {"one", "two", "three", "four", "five", "six"}
        for name, split in splits.items()
    }
    assert words == {"train": {"one", "two", "three"}, "validation": {"four"}, "test": {"five", "six"}}


def test_sentences_join_to_the_text_again() -> None:
    text = 'He said "Stop." Then he left.\n\nA new paragraph\nin two lines! 日本语。也是。'
    parts = sentences(text)
    assert "".join(parts) == text
    assert [p.strip() for p in parts if p.strip()] == [
        'He said "Stop."',
        "Then he left.",
        "A new paragraph\nin two lines!",
        "日本语。",
        "也是。",
    ]


def test_tokenized_text_is_kept_on_disk(text_file) -> None:
    load(text_file)
    made = {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.pieces")}
    assert made
    load(text_file)
    assert {path: path.stat().st_mtime_ns for path in cache_folder().rglob("*.pieces")} == made


def test_a_cache_that_cannot_be_written(text_file, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KARPA_TF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="set KARPA_TF_CACHE to a folder with room"):
        load(text_file)


def test_text_shorter_than_a_window(tmp_path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A few words.")
    with pytest.raises(UserError, match="too short"):
        load(path, vocabulary_size=100)


# --- Windows


def test_windows_cover_every_piece_and_cross_no_border() -> None:
    split = TokenizedSplit(np.arange(5, 30, dtype=np.uint16), np.array([0, 10, 11, 25]))
    windows = Windows(split, 4)
    ids, counts = windows.read(np.arange(len(windows)))
    texts = [row[:count].tolist() for row, count in zip(ids, counts, strict=True)]
    # The document of one piece is left out: it has no context.
    assert [piece for text in texts for piece in text] == [*range(5, 15), *range(16, 30)]
    assert all(row[-1] < 15 or row[0] > 15 for row in texts)
    assert (ids[counts < 4][:, -1] == 0).all()


def test_shifted_windows_stay_in_their_document() -> None:
    split = TokenizedSplit(np.repeat([7, 8], 20).astype(np.uint16), np.array([0, 20, 40]))
    windows = Windows(split, 8)
    for shift in (-8, -3, 3, 8):
        ids, counts = windows.read(np.arange(len(windows)), np.full(len(windows), shift))
        assert (ids.min(axis=1) == ids.max(axis=1)).all()
        assert (counts == 8).all()


def test_an_epoch_holds_every_window_once(text_file) -> None:
    data = load(text_file, objective="masked", batch_size=7)
    whole = Windows(data.splits["train"], 16)
    rows = sum(
        int((features["padding_mask"].any(axis=1)).sum())
        for features, _, _ in data.train.dataset().as_numpy_iterator()
    )
    assert rows == len(whole)


# --- Masking


def test_masks_are_new_each_epoch_and_the_same_for_a_seed(text_file) -> None:
    data, again, other = (load(text_file, seed=seed) for seed in (3, 3, 4))
    steps = data.train.steps_per_epoch
    ids = first(data.train)[0]["token_ids"]
    np.testing.assert_array_equal(ids, first(again.train)[0]["token_ids"])
    assert (ids != first(other.train)[0]["token_ids"]).any()
    assert (ids != first(data.train, steps)[0]["token_ids"]).any()
    fixed = first(data.test)[0]["token_ids"]
    np.testing.assert_array_equal(fixed, first(other.test)[0]["token_ids"])


@pytest.mark.parametrize("whole_word", [False, True])
def test_masking_takes_its_share_and_never_special_tokens_or_padding(whole_word) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(5, len(LETTERS), (64, 40)).astype(np.int32)
    ids[:, 3] = LETTERS.ids["[UNK]"]
    counts = rng.integers(2, 41, 64).astype(np.int32)
    masking = Masking(LETTERS, 0.15, whole_word)
    chosen = masking.choose(tf.constant(ids), tf.constant(counts), tf.constant([1, 2], tf.int64)).numpy()
    inside = np.arange(40) < counts[:, None]
    allowed = inside & (ids != LETTERS.ids["[UNK]"])
    assert not (chosen & ~allowed).any()
    budget = np.maximum(np.round(allowed.sum(1) * 0.15), 1)
    if whole_word:
        assert (chosen.sum(1) <= budget).all() and (chosen.sum(1) >= 1).all()
    else:
        np.testing.assert_array_equal(chosen.sum(1), budget)


def test_whole_words_are_masked_together() -> None:
    text = ["a", "##b", "##c", "d", "e", "##f", "g", "h", "i", "##j", *"klmnopqrst"]
    ids = np.array([[LETTERS.ids[piece] for piece in text]])
    masking = Masking(LETTERS, 0.3, whole_word=True)
    together = {0: {0, 1, 2}, 4: {4, 5}, 8: {8, 9}}
    seen = set()
    for seed in range(40):
        chosen = masking.choose(
            tf.constant(ids, tf.int32), tf.constant([20]), tf.constant([seed, 0], tf.int64)
        )
        picked = set(np.flatnonzero(chosen.numpy()[0]))
        for word in together.values():
            assert picked & word in (set(), word)
            seen |= picked & word
    assert seen == {0, 1, 2, 4, 5, 8, 9}


def test_hidden_pieces_are_80_10_10_in_training_and_all_masks_otherwise() -> None:
    ids = tf.random.stateless_uniform([400, 50], [1, 1], 5, len(LETTERS), tf.int32)
    masking = Masking(LETTERS)
    seed = tf.constant([5, 6], tf.int64)
    chosen = masking.choose(ids, tf.fill([400], 50), seed)
    hidden = masking.hide(ids, chosen, seed, corrupt=True).numpy()
    at, before = hidden[chosen.numpy()], ids.numpy()[chosen.numpy()]
    assert abs((at == LETTERS.mask_id).mean() - 0.8) < 0.02
    assert abs((at == before).mean() - 0.1) < 0.02
    assert not np.isin(at, [LETTERS.ids[t] for t in SPECIAL if t != "[MASK]"]).any()
    np.testing.assert_array_equal(hidden[~chosen.numpy()], ids.numpy()[~chosen.numpy()])
    hidden = masking.hide(ids, chosen, seed, corrupt=False).numpy()
    assert (hidden[chosen.numpy()] == LETTERS.mask_id).all()


def test_labels_are_the_pieces_that_were_hidden(text_file) -> None:
    for objective in ("masked", "every"):
        data = load(text_file, objective=objective)
        features, labels, weights = first(data.train)
        at = np.take_along_axis(features["token_ids"], features["masked_positions"], axis=1)
        same = (at == labels) & (weights > 0)
        masked = (at == data.wordpiece.mask_id) & (weights > 0)
        assert masked.any()
        assert weights[~features["padding_mask"].any(axis=1)].sum() == 0
        # Every piece asked for is either hidden or shown as it was (or swapped, one in a hundred).
        share = (same | masked).sum() / weights.sum()
        assert share > (0.8 if objective == "masked" else 0.95)


def test_parts_of_a_batch_join_to_the_whole_batch(text_file) -> None:
    data = load(text_file)
    whole = first(data.train, 2)
    parts = [next(data.train.dataset(2, 3, part=part, parts=4).as_numpy_iterator()) for part in range(4)]
    joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
    tf.nest.map_structure(np.testing.assert_array_equal, whole, joined)
    with pytest.raises(ValueError, match="divide evenly"):
        data.train.dataset(0, 1, parts=3)


def test_a_run_goes_on_with_the_batch_it_would_have_seen(text_file) -> None:
    data = load(text_file)
    steps = data.train.steps_per_epoch
    through = list(data.train.dataset(0, steps + 3).as_numpy_iterator())
    later = list(data.train.dataset(steps + 1, steps + 3).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, through[-2:], later)
