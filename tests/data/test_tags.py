from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from karpa_tf.data.intents import embedded_intents
from karpa_tf.data.tags import (
    Sentence,
    open_tagged,
    open_test_sentences,
    read_conll,
    shared_sentences,
    split_sentences,
    tag_names,
    to_iob2,
)
from karpa_tf.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def sentence(text: str) -> Sentence:
    """`Ada/B-PER sings/O` to a sentence."""
    words, tags = zip(*(word.rsplit("/", 1) for word in text.split(" ")), strict=True)
    return Sentence(words, tags)


def conll(*sentences: str) -> str:
    return "\n\n".join(text.replace("/", "\t").replace(" ", "\n") for text in sentences) + "\n"


def numbered(count: int) -> list[Sentence]:
    return [
        sentence(f"Number/O {i}/B-NUM is/O {'even/B-KIND' if i % 2 == 0 else 'odd/O'}") for i in range(count)
    ]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data.conll"


# --- Schemes


@pytest.mark.parametrize(
    ("tags", "iob2"),
    [
        ("O O", "O O"),
        # IOB1: B- is only for an entity right behind another of its type.
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("I-PER I-LOC I-LOC B-LOC", "B-PER B-LOC I-LOC B-LOC"),
        # IOB2
        ("B-PER I-PER B-PER O B-LOC B-LOC", "B-PER I-PER B-PER O B-LOC B-LOC"),
        ("O I-PER B-LOC I-PER", "O B-PER B-LOC B-PER"),
        # BIOES
        ("S-PER S-PER B-LOC I-LOC E-LOC O", "B-PER B-PER B-LOC I-LOC I-LOC O"),
        ("B-PER E-PER B-PER E-PER", "B-PER I-PER B-PER I-PER"),
        ("B-PER E-PER I-PER S-PER I-PER", "B-PER I-PER B-PER B-PER B-PER"),
        ("E-PER O E-LOC", "B-PER O B-LOC"),
        # BILOU
        ("U-PER B-LOC I-LOC L-LOC U-LOC L-PER", "B-PER B-LOC I-LOC I-LOC B-LOC B-PER"),
        ("U-PER I-PER L-PER I-PER", "B-PER B-PER I-PER B-PER"),
        # BMES, BMEWO
        ("S-PER B-LOC M-LOC M-LOC E-LOC O", "B-PER B-LOC I-LOC I-LOC I-LOC O"),
        ("W-PER W-PER B-LOC E-LOC M-LOC", "B-PER B-PER B-LOC I-LOC B-LOC"),
        # Types may hold hyphens.
        ("B-work-of-art I-work-of-art I-work", "B-work-of-art I-work-of-art B-work"),
        ("", ""),
    ],
)
def test_tags_of_any_scheme_become_iob2(tags, iob2) -> None:
    assert to_iob2(tags.split()) == iob2.split()
    assert to_iob2(iob2.split()) == iob2.split()


@pytest.mark.parametrize(
    "tag", ["PER", "B", "B-", "-PER", "X-PER", "b-PER", "o", "", "BPER", "B_PER", "BI-PER"]
)
def test_what_is_no_tag(tag, path) -> None:
    with pytest.raises(ValueError):
        to_iob2(["O", tag])
    if tag:
        with pytest.raises(UserError, match="line 2"):
            read_conll(write(path, f"word O\nword {tag}\n"))


# --- Files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", ["", "\n", "\n\n\n"])
def test_any_line_ends(path, end, mark, last) -> None:
    content = "Ada\tB-PER\nsings\tO\n\n我\tO\n去\tO" + last
    found = read_conll(write(path, mark + content.replace("\n", end).encode()))
    assert found == [sentence("Ada/B-PER sings/O"), sentence("我/O 去/O")]


def test_tabs_or_spaces_and_any_number_of_columns(path) -> None:
    expected = [sentence("EU/B-ORG rejects/O call/O")]
    for content in (
        "EU NNP I-NP I-ORG\nrejects VBZ I-VP O\ncall NN I-NP O\n",
        "EU\tNNP\tI-NP\tI-ORG\nrejects\tVBZ\tI-VP\tO\ncall\tNN\tI-NP\tO\n",
        "EU \t\t  I-ORG\t\n  rejects   O  \ncall _ _ O\n",
    ):
        assert read_conll(write(path, content)) == expected
    # Numbers are written so in many languages, and tabs tell what is one token.
    assert read_conll(write(path, "1 000 000\tNUM\tB-SUM\nkr\tNOUN\tI-SUM\n")) == [
        Sentence(("1 000 000", "kr"), ("B-SUM", "I-SUM"))
    ]


def test_document_starts_and_blank_lines_with_spaces_end_a_sentence(path) -> None:
    content = "-DOCSTART- -X- -X- O\n\nA O\n \t \nB O\n\t\n\n\n-DOCSTART- O\nC O\n-DOCSTART-\nD O\n"
    assert [s.words for s in read_conll(write(path, content))] == [("A",), ("B",), ("C",), ("D",)]


def test_comments_and_the_token_that_looks_like_one(path) -> None:
    content = (
        "# sent_id = n-12\n# text = We are # B\nWe\tO\nare\tO\n#\tB-RANK\nB\tI-RANK\n\n"
        "# newpar\n# O\n1 B-RANK\n#yolo O\n# E-RANK\n"
    )
    assert read_conll(write(path, content)) == [
        sentence("We/O are/O #/B-RANK B/I-RANK"),
        sentence("#/O 1/B-RANK #yolo/O #/B-RANK"),
    ]


def test_odd_tokens_are_tokens(path) -> None:
    tokens = ['"', "'", ",", "O", "B-PER", "-", "🙂", "a\u200bb", "\\t", "e\u0301", "-docstart-"]
    content = "".join(f"{token}\tO\n" for token in tokens)
    assert [s.words for s in read_conll(write(path, content))] == [tuple(tokens)]


@pytest.mark.parametrize(
    "content",
    [
        # CoNLL-U: ranges and empty nodes are no words.
        "# sent_id = 1\n1\tAda\tada\tB-PER\n2-3\tzum\t_\t_\n2\tzu\tzu\tO\n3\tdem\tder\tO\n3.1\tx\t_\t_\n",
        # GermEval 2014: a comment with a tab.
        "#\thttp://x.de/y [2009]\n1\tAda\tB-PER\n2\tzu\tO\n3\tdem\tO\n\n",
        # Counted from 0, and on through the file.
        "0 Ada N B-PER\n1 zu N O\n2 dem N O\n",
        "7 Ada N B-PER\n8 zu N O\n9 dem N O\n",
    ],
)
def test_a_first_column_that_counts_the_words_is_never_the_token(path, content) -> None:
    notes: list[str] = []
    assert read_conll(write(path, content), notes=notes) == [sentence("Ada/B-PER zu/O dem/O")]
    assert len(notes) == 1 and "first column counts the words and was skipped" in notes[0]


def test_sentences_that_are_counted_each_from_1_or_one_after_the_other(path) -> None:
    expected = [sentence("Ada/B-PER sings/O"), sentence("Bob/B-PER sings/O")]
    for first in (1, 3):
        content = f"1\tAda\tN\tB-PER\n2\tsings\tV\tO\n\n{first}\tBob\tN\tB-PER\n{first + 1}\tsings\tV\tO\n"
        assert read_conll(write(path, content)) == expected


def test_numbers_that_are_tokens_stay_tokens(path) -> None:
    content = "1 B-SUM\n2 I-SUM\n\n3 NUM B-SUM\nand CC O\n4 NUM B-SUM\nfor IN O\n"
    assert read_conll(write(path, content)) == [
        sentence("1/B-SUM 2/I-SUM"),
        sentence("3/B-SUM and/O 4/B-SUM for/O"),
    ]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("\tO", " (nothing)"),
        (" O", " (nothing)"),
        ("\u200b\tO", " (U+200B ZERO WIDTH SPACE)"),
        ("\ufe0f O", " (U+FE0F VARIATION SELECTOR-16)"),
        ("\xa0\tO", " (U+00A0 NO-BREAK SPACE)"),
        ("\u3000 B-PER", " (U+3000 IDEOGRAPHIC SPACE)"),
        ("\x85\tO", " (U+0085)"),
        ("\u200d\ufe0f\tO", " (U+200D ZERO WIDTH JOINER, U+FE0F VARIATION SELECTOR-16)"),
    ],
)
def test_tokens_that_nobody_sees_are_left_out_or_stop_it(path, line, named) -> None:
    write(path, f"Ada B-PER\n{line}\nMoss I-PER\nsings O\n\nBob B-PER\n{line}\n")
    notes: list[str] = []
    assert read_conll(path, notes=notes) == [sentence("Ada/B-PER Moss/I-PER sings/O"), sentence("Bob/B-PER")]
    assert notes == [f"{path}: 2 lines with an empty or invisible token were left out: line 2 first{named}."]
    with pytest.raises(UserError, match="2 lines have an empty or invisible token: line 2 first"):
        open_tagged(str(path), broken="stop")
    with pytest.raises(UserError, match="2 lines have"):
        open_test_sentences(str(path), "stop")


def test_an_empty_token_in_counted_columns(path) -> None:
    notes: list[str] = []
    found = read_conll(write(path, "1\tAda\tB-PER\n2\t\tO\n3\tsings\tO\n"), notes=notes)
    assert found == [sentence("Ada/B-PER sings/O")] and "1 line with an empty" in notes[1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Ada B-PER\nsings\n\n", 'line 2: a line needs a token and a tag, with a space or tab between. '),
        ("A O\n\n\nO\n", "line 4: a line needs a token and a tag"),
        ("A O\n\u200b\n", "(U+200B ZERO WIDTH SPACE)"),
        ("\tO\n\tB-X\n", "2 lines have an empty or invisible token: line 1 first (nothing)"),
        ("1 A N O\n2 B N O\n4 C N B-X\n", "line 3: the first column seems to count the words"),
        ("1 A N O\n2 B N O\nC N B-X\n", "line 3: the first column seems to count the words"),
        ("Ada PER\n", 'line 1: "PER" is no tag; it must be O, or B-'),
        ("A O\n\nB O\nC x\nD O\n\nE O\n", 'line 4: "x" is no tag'),
        ("A O\n\nB O\nC B-X\nD B-", 'line 5: "B-" is no tag'),
        ("A O\r\n\r\nB O\r\nC x\r\n", 'line 4: "x" is no tag'),
        ("# c = d\nA O\n\n# e = f\nB O\nC x", 'line 6: "x" is no tag'),
        ("-DOCSTART- -X- O\n\nA B-X\nB X-X\nC O\n", 'line 4: "X-X" is no tag'),
        ("#yolo B-X\n#mañana x\n", 'line 2: "x" is no tag'),
        # The tag before, of the same name, is the bad one.
        ("A x\nB O\nC x\n", 'line 1: "x" is no tag'),
        ("", "is empty: it has no tagged words"),
        ("-DOCSTART- O\n\n# nothing here\n", "is empty: it has no tagged words"),
        ("Ada B-PER\nMünster B-LOC\n".encode("latin-1"), "is not UTF-8 text"),
        ("Ada B-PER\n".encode("utf-16-le"), "is not UTF-8 text (a zero byte in line 1)"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence(path, content, says) -> None:
    with pytest.raises(UserError) as caught:
        read_conll(write(path, content))
    assert str(caught.value).startswith(str(path)) and says in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_sources_that_are_not_there(tmp_path) -> None:
    write(tmp_path / "train.conll", "A O\n")
    with pytest.raises(UserError, match=r'no file or folder ".*trian\.conll"; did you mean "train\.conll"\?'):
        open_tagged(str(tmp_path / "trian.conll"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"holds no training data: there is no train\.conll"):
        open_tagged(str(tmp_path / "folder"))


# --- Folders


def test_a_folder_with_all_splits(tmp_path) -> None:
    write(tmp_path / "train.txt", conll("Ada/S-PER sings/O", "Bob/S-PER sings/O"))
    write(tmp_path / "valid.bio", conll("Eve/B-PER sings/O"))
    write(tmp_path / "test.conll", conll("Ada/B-PER sings/O", "Oslo/B-CITY sings/O"))
    tagged = open_tagged(str(tmp_path))
    assert tagged.brings_test
    assert tagged.splits["train"] == [sentence("Ada/B-PER sings/O"), sentence("Bob/B-PER sings/O")]
    assert tagged.splits["validation"] == [sentence("Eve/B-PER sings/O")]
    assert tagged.splits["test"] == open_test_sentences(str(tmp_path))
    assert shared_sentences(tagged.splits["train"], tagged.splits["test"]) == 1


def test_training_never_reads_the_test_split_that_data_brings(tmp_path) -> None:
    write(tmp_path / "train.conll", conll(*(f"A/B-X {i}/O" for i in range(40))))
    write(tmp_path / "test.conll", conll(*(f"B/B-X {i}/O" for i in range(20))))
    splits = open_tagged(str(tmp_path), validation_share=0.1, test_share=0.5).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [36, 4, 20]
    assert {s.words[0] for name in ("train", "validation") for s in splits[name]} == {"A"}


def test_one_file_brings_no_test_split(path) -> None:
    write(path, conll(*(f"A/B-X {i}/O" for i in range(100))))
    tagged = open_tagged(str(path))
    assert not tagged.brings_test
    assert [len(tagged.splits[name]) for name in ("train", "validation", "test")] == [90, 5, 5]
    assert len(open_test_sentences(str(path))) == 100
    assert tagged.fingerprint == open_tagged(str(path)).fingerprint
    assert tagged.fingerprint != open_tagged(str(path), test_share=0.1).fingerprint


def test_no_tag_but_o(path) -> None:
    for content in ("A O\n", conll(*(f"A/O {i}/O" for i in range(30)))):
        with pytest.raises(UserError, match="has no tag but O: there is nothing to learn"):
            open_tagged(str(write(path, content)))


# --- Splits


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (5, (3, 1, 1)), (60, (54, 3, 3))]
)
def test_small_files_have_a_validation_split(path, count, sizes) -> None:
    sentences = [sentence(f"A/B-X {i}/O") for i in range(count)]
    splits = split_sentences(sentences, 0.05, 0.05)
    assert tuple(len(splits[name]) for name in ("train", "validation", "test")) == sizes
    write(path, conll(*(f"A/B-X {i}/O" for i in range(count))))
    if count > 1:
        assert open_tagged(str(path)).splits == splits
    else:
        with pytest.raises(UserError, match=r"too few sentences.*Received: 1; a blank line ends a sentence"):
            open_tagged(str(path))


def test_one_sentence_is_left_to_learn_from() -> None:
    sentences = [sentence(f"{i}/O") for i in range(3)]
    for count in (1, 2, 3):
        for shares in ((0.05, 0.05), (0.0, 0.9), (0.5, 0.4)):
            assert split_sentences(sentences[:count], *shares)["train"]


def test_shares_are_kept() -> None:
    sentences = numbered(1000)
    for shares in ((0.05, 0.05), (0.1, 0.2), (0.5, 0.4), (0.2, 0.0)):
        splits = split_sentences(sentences, *shares)
        assert (len(splits["validation"]), len(splits["test"])) == (1000 * shares[0], 1000 * shares[1])
    splits = split_sentences(sentences, 0.0, 0.0)
    assert splits == {"train": sentences, "validation": [], "test": []}


def test_shares_must_leave_something_to_learn_from(path) -> None:
    write(path, conll(*(f"A/B-X {i}/O" for i in range(30))))
    with pytest.raises(UserError, match=r"leave nothing to learn from\. Received: 0\.4 and 0\.6"):
        open_tagged(str(path), validation_share=0.4, test_share=0.6)


def test_the_same_words_stay_on_one_side() -> None:
    words = [f"w{i % 40}" for i in range(200)]
    sentences = [sentence(f"{word}/{('O', 'B-X')[i % 2]} x/B-X") for i, word in enumerate(words)]
    splits = split_sentences(sentences, 0.2, 0.2)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 120,
        "validation": 40,
        "test": 40,
    }
    sides = defaultdict(set)
    for name, split in splits.items():
        for s in split:
            sides[s.words].add(name)
    assert all(len(names) == 1 for names in sides.values())


def test_every_type_stays_in_training() -> None:
    sentences = [sentence(f"a/B-T{i // 2} b/O {i}/O") for i in range(40)]
    splits = split_sentences(sentences, 0.4, 0.4)
    assert len(tag_names(splits["train"])) == 1 + 2 * 20
    assert (len(splits["validation"]), len(splits["test"])) == (16, 4)
    # One tagged sentence among many.
    for rare in range(10):
        sentences = [sentence("Oslo/B-CITY x/O" if i == rare else f"a/O {i}/O") for i in range(10)]
        assert tag_names(split_sentences(sentences, 0.3, 0.3)["train"]) == ["O", "B-CITY", "I-CITY"]


def test_the_split_depends_on_the_sentences_alone() -> None:
    sentences = numbered(100)
    np.random.seed(1)
    once = split_sentences(sentences, 0.1, 0.1)
    np.random.seed(2)
    assert split_sentences(sentences, 0.1, 0.1) == once
    # In the order of the data, and held out from everywhere in it.
    places = {name: [sentences.index(s) for s in split] for name, split in once.items()}
    assert all(found == sorted(found) for found in places.values())
    assert min(places["test"]) < 30 and max(places["test"]) > 70


def test_names_of_tags() -> None:
    sentences = [sentence("a/B-work-of-art b/O"), sentence("c/B-LOC"), sentence("d/B-LOC e/I-LOC")]
    assert tag_names(sentences) == ["O", "B-LOC", "I-LOC", "B-work-of-art", "I-work-of-art"]
    assert tag_names([]) == tag_names([sentence("a/O")]) == ["O"]


def test_words_that_are_in_training_are_counted() -> None:
    train = [sentence("a/O b/B-X"), sentence("c/O")]
    assert (
        shared_sentences(train, [sentence("a/B-X b/O"), sentence("a/O"), sentence("c/O"), sentence("c/O")])
        == 3
    )


# --- Embedded and TFDS


def test_embedded_sentences_are_the_intents_as_they_are_split() -> None:
    tagged = open_tagged("embedded", validation_share=0.3, test_share=0.3)
    for split, sentences in tagged.splits.items():
        mine = [x for x in embedded_intents() if x.split == split]
        assert sentences == [Sentence(x.words, x.tags) for x in mine]
    assert open_test_sentences("embedded") == tagged.splits["test"] and tagged.brings_test


def test_tfds_without_a_network_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_tagged("tfds:no_such_data_set")
    assert "tfds:no_such_data_set" in str(caught.value) and "embedded" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tfds_sentences(tmp_path, monkeypatch) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class KarpaNames(tfds.core.GeneratorBasedBuilder):
        """In the form of conll2003."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            tags = tfds.features.ClassLabel(names=["O", "I-PER", "B-PER"])
            features = {"tokens": tfds.features.Sequence(tfds.features.Text())}
            features = tfds.features.FeaturesDict(features | {"ner": tfds.features.Sequence(tags)})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name) for name in ("train", "dev", "test")}

        def _generate_examples(self, name):
            for i in range(4):
                yield i, {"tokens": ["José", name, str(i)], "ner": ["I-PER", "I-PER", "O"]}

    monkeypatch.setattr(tfds, "builder", lambda name: KarpaNames(data_dir=str(tmp_path)))
    splits = open_tagged("tfds:karpa_names").splits
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        assert sorted(s.words for s in splits[split]) == [("José", name, str(i)) for i in range(4)]
        assert {s.tags for s in splits[split]} == {("B-PER", "I-PER", "O")}


@pytest.mark.parametrize("line", ["New York B-LOC", "Oslo NN B-LOC"])
def test_lines_of_other_columns_are_said(path, line) -> None:
    """A token with a space in it, in columns that spaces separate, loses a part."""
    path.write_text(f"I O\nlive O\n{line}\n\nAda B-PER\n")
    notes: list[str] = []
    read_conll(path, notes=notes)
    assert len(notes) == 1 and "line 3 has 3 columns, those before 2" in notes[0]
    path.write_text("I\tO\nNew York\tB-LOC\n")
    assert read_conll(path, notes=notes)[0].words == ("I", "New York") and len(notes) == 1
