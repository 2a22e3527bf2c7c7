from __future__ import annotations

import math
import random

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.data.sequences import (
    Sequences,
    dense_features,
    encode_texts,
    encode_words,
    letter_cases,
    pack_texts,
    pack_words,
    rows_of,
    sequence_batches,
    split_words,
)
from karpa_tf.errors import UserError
from karpa_tf.wordpiece import SPECIAL, WordPiece

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDPIECE = WordPiece([*SPECIAL, *LETTERS, *(f"##{c}" for c in LETTERS), *".,!?'\"()", "我", "去"])
PAD, UNK, CLS, SEP, MASK = (WORDPIECE.ids[token] for token in SPECIAL)
STRINGS = tf.TensorSpec([None], tf.string)


def pieces_of(texts: list[str]) -> list[list[int]]:
    return WORDPIECE.tokenize(tf.constant(texts, tf.string)).to_list()


def make_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    """Texts of single letters and short words, up to `longest` pieces."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        words = ["".join(rng.choices(LETTERS, k=rng.randint(1, 4))) for _ in range(rng.randint(0, longest))]
        texts.append(" ".join(words)[:longest])
    return texts


def exported(function, *specs):
    """The function as it is exported: traced once for batches of any size."""
    return tf.function(function, input_signature=specs or [STRINGS], autograph=False)


def lists(*ragged: tf.RaggedTensor) -> list[list[list[int]]]:
    return [r.to_list() for r in ragged]


# --- Texts


def packed_by_hand(length: int, *pieces: list[int]) -> tuple[list[int], list[int]]:
    parts = [list(part) for part in pieces]
    while sum(map(len, parts)) > length - 1 - len(parts):
        longest = max(map(len, parts))
        # Of two that are equally long the second.
        next(part for part in reversed(parts) if len(part) == longest).pop()
    token_ids = [CLS, *(piece for part in parts for piece in [*part, SEP])]
    segment_ids = [0, *(number for number, part in enumerate(parts) for _ in [*part, SEP])]
    return token_ids, segment_ids


@pytest.mark.parametrize("length", [4, 5, 9, 16, 64])
def test_texts_are_packed_as_by_hand(length) -> None:
    texts = make_texts(60, 30)
    expected = [packed_by_hand(length, pieces) for pieces in pieces_of(texts)]
    found = lists(*pack_texts(WORDPIECE, tf.constant(texts), length=length))
    assert found == [list(column) for column in zip(*expected, strict=True)]
    if length < 30:
        assert max(map(len, found[0])) == length


@pytest.mark.parametrize("length", [4, 5, 9, 16, 64])
def test_pairs_are_cut_at_the_longer_text_first(length) -> None:
    first, second = make_texts(80, 30, seed=1), make_texts(80, 30, seed=2)
    pieces = zip(pieces_of(first), pieces_of(second), strict=True)
    expected = [packed_by_hand(length, a, b) for a, b in pieces]
    found = lists(*pack_texts(WORDPIECE, tf.constant(first), tf.constant(second), length=length))
    assert found == [list(column) for column in zip(*expected, strict=True)]


def test_packing_texts_inside_a_graph() -> None:
    pack = exported(lambda text: pack_texts(WORDPIECE, text, length=8))
    for texts in (["abc", "", "我去 a", "日 \t\n"], [""], make_texts(20, 20)):
        assert lists(*pack(tf.constant(texts))) == lists(*pack_texts(WORDPIECE, tf.constant(texts), length=8))
    pairs = exported(lambda a, b: pack_texts(WORDPIECE, a, b, length=8), STRINGS, STRINGS)
    found = lists(*pairs(tf.constant(["a b c d e f", "", "a"]), tf.constant(["a b c d", "", "b"])))
    expected = [
        packed_by_hand(8, a, b)
        for a, b in zip(*map(pieces_of, (["a b c d e f", "", "a"], ["a b c d", "", "b"])), strict=True)
    ]
    assert found == [list(column) for column in zip(*expected, strict=True)]
    ids, segments = pack(tf.constant([], tf.string))
    assert ids.shape[0] == segments.shape[0] == 0
    assert pack(tf.constant(["", "[CLS]"]))[0].to_list()[0] == [CLS, SEP]
    assert CLS not in pack(tf.constant(["[CLS] [SEP] [MASK]"]))[0].to_list()[0][1:]


def test_a_text_of_100_000_characters() -> None:
    for text in ("word " * 20_000, "x" * 100_000, "我" * 100_000, "!" * 100_000):
        sequences = encode_texts(WORDPIECE, [text, "a b"], None, 32)
        assert sequences.cut == (text[0] != "x")  # a word that long is one [UNK]
        assert sequences.lengths.tolist() == [32 if sequences.cut else 3, 4]


def test_encoded_texts_are_the_packed_ones() -> None:
    first, second = make_texts(1100, 12, seed=3), make_texts(1100, 12, seed=4)
    for texts_b in (None, second):
        sequences = encode_texts(WORDPIECE, first, texts_b, 10)
        columns = [tf.constant(first)] + ([tf.constant(second)] if texts_b else [])
        token_ids, segment_ids = pack_texts(WORDPIECE, *columns, length=10)
        assert len(sequences) == 1100
        np.testing.assert_array_equal(sequences.token_ids, token_ids.flat_values)
        np.testing.assert_array_equal(sequences.segment_ids, segment_ids.flat_values)
        np.testing.assert_array_equal(sequences.offsets, token_ids.row_splits)
        whole = [len(pieces) + 2 for pieces in pieces_of(first)]
        if texts_b:
            whole = [n + len(pieces) + 1 for n, pieces in zip(whole, pieces_of(second), strict=True)]
        assert sequences.cut == sum(n > 10 for n in whole) > 0
    with pytest.raises(UserError, match=r"at least 4\. Received: 3"):
        encode_texts(WORDPIECE, ["a"], None, 3)


# --- Words

WORDS = [
    [],
    ["ada", "sings"],
    ["a"] * 40,
    ["abcdefghijklmnopqrstuvwxyz"] * 3,
    ["\x01", "a", "\u200b", "日", "我", " ", "O'Neill", "x" * 5000],
    [],
    [letter * (1 + number % 9) for number, letter in enumerate(LETTERS * 4)],
    [],
]


@pytest.mark.parametrize(("length", "graph"), [(8, False), (9, False), (13, True), (24, False), (200, False)])
def test_every_word_is_there_once_and_in_its_order(length, graph) -> None:
    def pack(words):
        return pack_words(WORDPIECE, words, length=length)

    if graph:
        pack = tf.function(
            pack, input_signature=[tf.RaggedTensorSpec([None, None], tf.string)], autograph=False
        )
    token_ids, first = lists(*pack(tf.ragged.constant(WORDS, tf.string, 1)))
    most = min(16, (length - 2) // 2)
    expected = [[(pieces or [UNK])[:most] for pieces in pieces_of(words)] for words in WORDS]
    row = 0
    for text in filter(None, expected):
        while text:
            ids, places = token_ids[row], first[row]
            assert len(ids) <= length and ids[0] == CLS and ids[-1] == SEP
            # From each first piece to the next.
            ends = [*places[1:], len(ids) - 1]
            assert places[0] == 1
            here = [ids[begin:end] for begin, end in zip(places, ends, strict=True)]
            assert here == text[: len(here)]
            text = text[len(here) :]
            row += 1
    assert row == len(token_ids) == len(first)


def test_rows_are_filled_well() -> None:
    words = tf.ragged.constant([["a"] * 1000], tf.string, 1)
    token_ids, _ = pack_words(WORDPIECE, words, length=128)
    assert token_ids.shape[0] <= math.ceil(1000 / (126 - 16 + 1))


def test_batches_without_words() -> None:
    pack = exported(lambda text: pack_words(WORDPIECE, split_words(text), length=16))
    for texts in ([], [""], ["", "  ", "\n"]):
        token_ids, first = pack(tf.constant(texts, tf.string))
        assert token_ids.shape[0] == first.shape[0] == 0
        assert token_ids.flat_values.dtype == first.flat_values.dtype == tf.int32
    assert lists(*pack(tf.constant(["", "a", ""]))) == [[[CLS, WORDPIECE.ids["a"], SEP]], [[1]]]


def test_encoded_words_are_the_packed_ones() -> None:
    sentences = [words for words in WORDS for _ in range(200)]
    sequences, places = encode_words(WORDPIECE, sentences, 13)
    token_ids, first = pack_words(WORDPIECE, tf.ragged.constant(sentences, tf.string, 1), length=13)
    np.testing.assert_array_equal(sequences.token_ids, token_ids.flat_values)
    np.testing.assert_array_equal(sequences.offsets, token_ids.row_splits)
    assert len(places) == sum(map(len, sentences))
    # Each row's places, and in each row its words.
    rows = np.searchsorted(sequences.offsets, places, "right") - 1
    np.testing.assert_array_equal(places - sequences.offsets[rows], first.flat_values)
    np.testing.assert_array_equal(rows, first.value_rowids())
    with pytest.raises(UserError, match=r"at least 8 to tag words\. Received: 7"):
        encode_words(WORDPIECE, [["a"]], 7)


def test_capitals_are_seen_at_the_first_pieces_of_an_uncased_vocabulary() -> None:
    kinds = {"1,000": 1, "我": 1, "": 1, "it's": 2, "über": 2, "Ada": 3, "Ärger": 3, "I": 3, "'Tis": 3}
    kinds |= {"U.S.": 4, "ÖBB": 4, "B2B": 4, "iPhone": 5, "McDonald": 5, "USAs": 5}
    assert letter_cases(tf.constant(list(kinds))).numpy().tolist() == list(kinds.values())
    sequences, places = encode_words(WORDPIECE, [["McDonald", "sings"], [], ["Ada"]], 16)
    assert sequences.case_ids is not None and sequences.case_ids[places].tolist() == [5, 2, 3]
    assert np.delete(sequences.case_ids, places).sum() == 0
    cased = WordPiece([*WORDPIECE.pieces, "M"], lowercase=False)
    assert encode_words(cased, [["McDonald"]], 16)[0].case_ids is None


def test_sentences_without_words_can_be_encoded() -> None:
    sequences, places = encode_words(WORDPIECE, [[], []], 16)
    assert len(sequences) == 0 and len(places) == 0


# --- Splitting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" \n\t  ", ""),
        ("one", "one"),
        ("  many   spaces\n\nand\tlines\r\n", "many spaces and lines"),
        # White space of other scripts.
        ("no\u00a0break ideographic\u3000space thin\u2009one line\u2028end next\u0085line", None),
        ("He left London.", "He left London ."),
        ("Ada, Bob; Eve: no! why?", "Ada , Bob ; Eve : no ! why ?"),
        ('He said "no".', 'He said " no " .'),
        ('("Stop!") he said.', '( " Stop ! " ) he said .'),
        ("“Oui”, «non», ‘si’…", "“ Oui ” , « non » , ‘ si ’ …"),
        ("¿Dónde? ¡Aquí!", "¿ Dónde ? ¡ Aquí !"),
        # Any number of signs.
        ("Wow!!!!!!! ?!?!?!", "Wow ! ! ! ! ! ! ! ? ! ? ! ? !"),
        ('(((((["deep"])))))).', '( ( ( ( ( [ " deep " ] ) ) ) ) ) ) .'),
        # Abbreviations, initials, numbers.
        ("U.S. troops, J. Doe, e.g. p.m.", "U.S. troops , J. Doe , e.g. p.m."),
        ("(the U.S.), (e.g.).", "( the U.S. ) , ( e.g. ) ."),
        ("wait... what...?", "wait... what... ?"),
        ("1,000.50 3.14, 5:30 $5.00.", "1,000.50 3.14 , 5:30 $5.00 ."),
        ("O'Brien's dogs' don't", "O'Brien's dogs ' don't"),
        ("see http://a.b/c?d=e&f, mail x@y.zz.", "see http://a.b/c?d=e&f , mail x@y.zz ."),
        ("Saint-Denis e-mail a/b", "Saint-Denis e-mail a/b"),
        ("我去Oslo，好。𠀀 豈", "我 去 Oslo ， 好 。 𠀀 豈"),
        ("《红楼梦》（书）", "《 红 楼 梦 》（ 书 ）"),
        ("hi 🙂! 👩‍👩‍👧, ok🙂", "hi 🙂 ! 👩‍👩‍👧 , ok🙂"),
        ("Привет, мир.", "Привет , мир ."),
    ],
)  # fmt: skip
def test_words_and_signs(text, words) -> None:
    expected = text.split() if words is None else words.split()
    found = exported(split_words)(tf.constant([text, "", text])).to_list()
    assert [[word.decode() for word in row] for row in found] == [expected, [], expected]


def test_no_character_is_lost() -> None:
    rng = random.Random(0)
    signs = (
        "aaabcZé 12 .,!?'\"“”‘’()[]{}<>«»¿¡…;:-_/\\&@#$%^*~`|=+"
        + "我去。，「」日本🙂👧\u200d\u0301\u00a0\u3000\n\t"
    )
    texts = ["".join(rng.choices(signs, k=rng.randint(0, 60))) for _ in range(600)]
    for text, words in zip(texts, split_words(tf.constant(texts)).to_list(), strict=True):
        assert b"".join(words).decode() == "".join(text.split()), text
        assert all(words)


def test_splitting_and_its_result_are_stable() -> None:
    text = " ".join(make_texts(20, 30)) + ' He said: "Stop!" (in the U.S.), e.g., "now".'
    once = [word.decode() for word in split_words(tf.constant([text])).to_list()[0]]
    assert [w.decode() for w in split_words(tf.constant([" ".join(once)])).to_list()[0]] == once
    assert split_words(tf.constant([b"\xff\xfe bad \xc3"])).to_list() == [[b"\xff\xfe", b"bad", b"\xc3"]]


# --- Features


def test_dense_features_are_padded_at_the_right() -> None:
    ids, segments = tf.ragged.constant([[CLS, 7, SEP], [CLS, SEP]]), tf.ragged.constant([[0, 1, 1], [0, 0]])
    features = dense_features(ids, segments, 9)
    assert features["token_ids"].numpy().tolist() == [[CLS, 7, SEP], [CLS, SEP, 9]]
    assert features["segment_ids"].numpy().tolist() == [[0, 1, 1], [0, 0, 0]]
    assert features["padding_mask"].numpy().tolist() == [[True, True, True], [True, True, False]]
    assert not dense_features(ids, None, 9)["segment_ids"].numpy().any()


def test_dense_features_inside_a_graph() -> None:
    make = exported(lambda text: dense_features(*pack_texts(WORDPIECE, text, length=8), PAD))
    for texts in (["a b c", ""], ["a"]):
        features = make(tf.constant(texts))
        wanted = [packed_by_hand(8, pieces)[0] for pieces in pieces_of(texts)]
        width = max(map(len, wanted))
        assert features["token_ids"].numpy().tolist() == [ids + [PAD] * (width - len(ids)) for ids in wanted]
        assert features["padding_mask"].numpy().sum(axis=1).tolist() == [len(ids) for ids in wanted]


# --- Batches


def make_sequences(rows: int = 83, longest: int = 30) -> Sequences:
    texts = [f"{text} z" for text in make_texts(rows, longest, seed=5)]
    return encode_texts(WORDPIECE, texts, texts[::-1], 48)


def batches_of(sequences: Sequences, *, per_piece: bool = False, **options):
    """Labels that tell what they belong to: the row's number, or the piece's place."""
    count = len(sequences.token_ids) if per_piece else len(sequences)
    labels = np.arange(count, dtype=np.int32)
    weights = (1 + labels % 3).astype(np.float32)
    options = {"batch_size": 8, "seed": 3, "buckets": 3, **options}
    return sequence_batches(sequences, labels, weights, WORDPIECE, **options)


def arrays(dataset):
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("per_piece", [False, True])
def test_an_epoch_holds_every_row_once_as_it_is(seed, per_piece) -> None:
    sequences = make_sequences()
    batches = batches_of(sequences, seed=seed, per_piece=per_piece)
    assert batches.steps_per_epoch == 11 and batches.batch_size == 8
    seen = []
    widths = set()
    for features, labels, weights in arrays(batches.dataset()):
        ids, segments, mask = (features[k] for k in ("token_ids", "segment_ids", "padding_mask"))
        assert ids.dtype == segments.dtype == labels.dtype == np.int32
        assert mask.dtype == bool and weights.dtype == np.float32
        assert ids.shape == segments.shape == mask.shape and len(ids) == 8
        assert labels.shape == weights.shape == (ids.shape if per_piece else (8,))
        widths.add(ids.shape[1])
        assert (ids[~mask] == PAD).all() and not segments[~mask].any()
        for i in range(8):
            if not mask[i].any():  # fills up
                assert not weights[i].any()
                continue
            row = (
                int(np.searchsorted(sequences.offsets, labels[i][0], "right")) - 1 if per_piece else labels[i]
            )
            begin, end = sequences.offsets[row : row + 2]
            assert mask[i].tolist() == [True] * (end - begin) + [False] * (len(mask[i]) - (end - begin))
            np.testing.assert_array_equal(ids[i][mask[i]], sequences.token_ids[begin:end])
            np.testing.assert_array_equal(segments[i][mask[i]], sequences.segment_ids[begin:end])
            if per_piece:
                np.testing.assert_array_equal(labels[i][mask[i]], np.arange(begin, end))
                np.testing.assert_array_equal(weights[i], np.where(mask[i], 1 + labels[i] % 3, 0))
            else:
                assert weights[i] == 1 + row % 3
            seen.append(int(row))
    assert sorted(seen) == list(range(len(sequences)))
    if seed is None:
        assert seen == [row for row in rows_of(sequences, 8) if row >= 0]
        assert sequences.lengths[seen].tolist() == sorted(sequences.lengths)
    else:
        assert len(widths) <= 3


def test_batches_are_new_each_epoch_and_the_same_for_a_seed() -> None:
    sequences = make_sequences()
    batches, again, other = (batches_of(sequences, seed=seed) for seed in (3, 3, 4))
    steps = batches.steps_per_epoch
    two = arrays(batches.dataset(0, 2 * steps))
    tf.nest.map_structure(np.testing.assert_array_equal, two, arrays(again.dataset(0, 2 * steps)))
    first = [labels.tolist() for _, labels, _ in two[:steps]]
    assert first != [labels.tolist() for _, labels, _ in two[steps:]]
    assert first != [labels.tolist() for _, labels, _ in arrays(other.dataset())]
    fixed = [arrays(batches_of(sequences, seed=None).dataset(steps * e, steps * (e + 1))) for e in (0, 4)]
    tf.nest.map_structure(np.testing.assert_array_equal, *fixed)


def test_any_step_can_be_computed_alone_and_parts_join_to_a_batch() -> None:
    options = {"per_piece": True, "token_dropout": 0.3}
    through = arrays(batches_of(make_sequences(), **options).dataset(0, 25))
    for step in (24, 11, 0):
        # Of another process, which has seen no other step.
        batches = batches_of(make_sequences(), **options)
        (alone,) = arrays(batches.dataset(step, step + 1))
        tf.nest.map_structure(np.testing.assert_array_equal, alone, through[step])
    parts = [arrays(batches.dataset(9, 13, part=part, parts=2)) for part in (0, 1)]
    joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
    tf.nest.map_structure(np.testing.assert_array_equal, joined, through[9:13])


def test_the_shapes_say_what_is_known() -> None:
    features, labels, weights = batches_of(make_sequences()).dataset(parts=2).element_spec
    assert {k: v.shape.as_list() for k, v in features.items()} == {
        name: [4, None] for name in ("token_ids", "segment_ids", "padding_mask")
    }
    assert labels.shape.as_list() == weights.shape.as_list() == [4]


def test_capitals_come_with_the_words_they_belong_to() -> None:
    sentences = [["Ada", "sings"], ["U.S.", "a", "b", "McDonald"], ["x"] * 9]
    sequences, places = encode_words(WORDPIECE, sentences, 16)
    labels = np.arange(len(sequences.token_ids), dtype=np.int32)
    weights = np.isin(labels, places).astype(np.float32)
    batches = sequence_batches(sequences, labels, weights, WORDPIECE, batch_size=4, seed=0)
    ((features, labels, weights),) = arrays(batches.dataset())
    assert features["case_ids"].dtype == np.int32
    assert sequences.case_ids is not None
    np.testing.assert_array_equal(
        features["case_ids"], np.where(features["padding_mask"], sequences.case_ids[labels], 0)
    )
    np.testing.assert_array_equal(features["case_ids"] > 0, weights > 0)
    assert "case_ids" not in arrays(batches_of(make_sequences()).dataset(0, 1))[0][0]


def test_dropout_replaces_its_share_and_never_special_tokens() -> None:
    sequences = encode_texts(WORDPIECE, ["a b c d 日 e f g h i j k"] * 400, ["l m n"] * 400, 32)
    for rate in (0.0, 0.1, 0.5):
        dropped = total = 0
        batches = batches_of(sequences, token_dropout=rate, batch_size=50)
        for features, labels, _ in arrays(batches.dataset()):
            ids, mask = features["token_ids"], features["padding_mask"]
            true = sequences.token_ids.reshape(400, -1)[labels]
            special = np.isin(true, [CLS, SEP, UNK])
            assert (ids[mask & (ids != true)] == MASK).all() and (ids[~mask] == PAD).all()
            np.testing.assert_array_equal(ids[special], true[special])
            dropped += (ids[~special] == MASK).sum()
            total += (~special).sum()
        assert abs(dropped / total - rate) < 0.02
    # New ones each epoch, and none without a seed.
    steps = batches.steps_per_epoch
    epochs = arrays(batches_of(sequences, token_dropout=0.5, batch_size=400).dataset(0, 2))
    by_row = [features["token_ids"][np.argsort(labels)] for features, labels, _ in epochs]
    assert steps > 1 and (by_row[0] != by_row[1]).any()
    for features, _, _ in arrays(batches_of(sequences, token_dropout=0.5, seed=None).dataset()):
        assert MASK not in features["token_ids"]


def test_fewer_rows_than_a_batch() -> None:
    ((features, labels, weights),) = arrays(batches_of(make_sequences(rows=3), batch_size=8).dataset())
    assert (weights > 0).sum() == 3 and features["padding_mask"].any(axis=1).sum() == 3
    assert sorted(labels[weights > 0]) == [0, 1, 2]


# --- A real vocabulary


@pytest.fixture(scope="module")
def real(minilm):
    """A pretrained model's vocabulary in our hands, and its own tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    return WordPiece.load(minilm / "vocab.txt", True), theirs


REAL = [
    "café naïve",
    "Ünïcödé ÀÉÎÕÜ ŁÓDŹ Zoë Çelik Ørsted İzmir e\u0301 o\u0308",
    "我爱北京天安门。a我b 豈",
    "日本語 ひらがな カタカナ",
    "Привет, мир! Ёлка й ελληνικά",
    "Hello 🙂 ok🙂 🎉",
    "Don't!?... (a) [b] {c} <d> #e $5 ^f `g` ~h |i +j =k \\l /m _n_ -o-",
    "“quotes” ‘single’ – — ¿sí? ¡no! «oui»",
    "https://www.example.com/a?b=c&d=%20#x_y user@mail.org",
    "I'm in the U.S.A. at 3.14 or 1,000,000.50 p.m.",
    "tabs\tand\nlines\r\nand   spaces  ",
    "unaffable electroencephalographically",
    "x" * 99 + " " + "x" * 101,
    "£ ° © §",
    "",
    "   ",
    # What keras-hub's own folding of case and white space would read otherwise.
    "我爱北京，你呢？（好）",
    "and so on… ™ ½ ² № ﬁne Straße",
    "no\u00a0break ideographic\u3000space line\u2028end",
    "ctrl\x01 \x7fchars \x1f in\x85side",
    "cut\x00 here",
    "soft\u00adhyphen zero\u200bwidth \ufeffmark 👩\u200d👧",
    "한국어 텍스트",
    "λόγος ΣΊΣΥΦΟΣ",
    "´ ¨ \ufffd \ue000 x",
]


@pytest.mark.parametrize("text", REAL)
def test_pieces_are_those_of_the_models_own_tokenizer(real, text) -> None:
    ours, theirs = real
    ids = ours.tokenize(tf.constant([text])).numpy()[0].tolist()
    assert [ours.pieces[i] for i in ids] == theirs.encode(text, add_special_tokens=False).tokens
    packed, _ = pack_texts(ours, tf.constant([text]), length=512)
    assert packed.to_list()[0] == theirs.encode(text).ids
