from __future__ import annotations

import csv
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from karpa_tf.data.intents import embedded_intents
from karpa_tf.data.tables import (
    Columns,
    Rows,
    label_ids,
    open_table,
    open_test_rows,
    read_table,
    shared_rows,
    split_rows,
)
from karpa_tf.errors import UserError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return path


def read(path: Path, content: str | bytes, columns: Columns | None = None) -> Rows:
    return read_table(write(path, content), columns or Columns())


def many(count: int, labels: int = 2, name: str = "text") -> list[tuple[str, str]]:
    return [(f"{name} {i}", f"label {i % labels}") for i in range(count)]


def as_rows(pairs) -> Rows:
    texts, labels = zip(*pairs, strict=True)
    return Rows(list(texts), None, list(labels))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data.csv"


# --- In memory


def test_columns_in_memory_are_read_as_the_same_ones_of_a_file(path) -> None:
    import pandas

    pairs = many(60, 3)
    columns = dict(zip(("text", "label"), map(list, zip(*pairs, strict=True)), strict=True))
    write_rows(path, [("text", "label"), *pairs])
    from_file = open_table(str(path))
    for source in (columns, pandas.DataFrame(columns), {name: np.array(x) for name, x in columns.items()}):
        table = open_table(source)
        assert table.splits == from_file.splits and table.record == from_file.record
        assert open_test_rows(source).texts == columns["text"]
    assert table.labels == ["label 0", "label 1", "label 2"]
    numbered = pandas.DataFrame({"review": columns["text"], "stars": [i % 2 for i in range(60)]})
    assert open_table(numbered, Columns("review", "stars")).labels == ["0", "1"]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            {"text": ["a", "b"], "labels": ["x", "y"]},
            'The table has no column "label"; did you mean "labels"',
        ),
        ({"text": ["a"], "kind": ["x"]}, r"name yours with Columns\(label=...\)"),
        ({"text": ["a", "b"], "label": ["x"]}, "have one length. Received: {'text': 2, 'label': 1}"),
        ({"text": ["a", float("nan")], "label": ["x", "y"]}, 'row 2 has nothing in the column "text"'),
        ({"text": ["a", 3], "label": ["x", "y"]}, 'The table, row 2: the cell of "text" must be a text'),
        ({"text": [], "label": []}, "The table is empty"),
        ({"text": ["a", "b"], "label": ["x", "x"]}, "The table has one label only"),
        (["a", "b"], "A table is a file's name or columns by name.*Received: list"),
    ],
)
def test_columns_in_memory_that_make_no_table_are_refused(source, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        open_table(source)


def test_a_series_is_no_table() -> None:
    import pandas

    with pytest.raises(UserError, match=r"A table is a file's name or columns by name.*Received: Series"):
        open_table(pandas.Series(["a", "b"]))


# --- Files


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_byte_order_mark_and_any_line_ends(path, end, mark) -> None:
    content = end.join(["text,label", "I lost my card,lost", "", "¿Dónde está?,dónde", ""])
    rows = read(path, mark + content.encode())
    assert rows == Rows(["I lost my card", "¿Dónde está?"], None, ["lost", "dónde"])


def test_quotes_commas_and_newlines_inside_fields(path) -> None:
    cells = [('He said "no", twice', "a"), ("two\nlines\n\nand more", "b"), (" , ", "c"), ("'single'", "d")]
    write_rows(path, [("text", "label"), *cells])
    assert read_table(path, Columns()).texts == [text.strip() for text, _ in cells]
    windows = b'text,label\r\n"two\r\nlines",a\r\nMidway "quoted" words,b\r\n'
    assert read(path, windows).texts == ["two\nlines", 'Midway "quoted" words']


def test_a_tsv_has_tabs_and_commas_are_text(tmp_path) -> None:
    rows = read(tmp_path / "data.TSV", "label\ttext\nyes\tright, of course\nno\tnever, no\n")
    assert rows == Rows(["right, of course", "never, no"], None, ["yes", "no"])


def test_quotes_in_a_tsv_may_be_plain_signs(tmp_path) -> None:
    path = tmp_path / "data.tsv"
    spoken = [('"Hello', "a"), ('he said."', "b"), ('"No" was all', "a"), ('5" wide', "b")]
    plain = "".join(f"{text}\t{label}\n" for text, label in [("text", "label"), *spoken])
    assert read(path, plain).texts == [text for text, _ in spoken]
    # As a program writes them, with line ends inside.
    cells = [('"Hello"', "a"), ("two\nlines and a\ttab", "b"), ('a "word" in it', "a")]
    write_rows(path, [("text", "label"), *cells])
    assert read_table(path, Columns()).texts == [text for text, _ in cells]


def test_other_columns_pairs_and_what_is_not_read(path) -> None:
    # With a spreadsheet's empty cells and row at the end.
    content = ' id , question,answer,Class \n1,"Who?",Me,"a, b"\n2,Where?,Here,c,,\n,,,\n'
    rows = read(path, content, Columns("question", "Class", "answer"))
    assert rows == Rows(["Who?", "Where?"], ["Me", "Here"], ["a, b", "c"])
    assert read(path, content, Columns("question", "Class")).texts_b is None


def test_text_and_labels_in_any_script(path) -> None:
    pairs = [
        ("我的卡丢了", "丢失的卡"),
        ("Где моя карта?", "карта, потеря"),
        ("🙂 ok", "🙂"),
        ("نعم", "c d\te"),
    ]
    write_rows(path, [("text", "label"), *pairs])
    rows = read_table(path, Columns())
    assert rows == as_rows(pairs)
    names = sorted(set(rows.labels))
    assert [names[i] for i in label_ids(rows.labels, names, "here")] == rows.labels


def test_a_cell_may_be_a_book(path) -> None:
    book = "A long story, in short. " * 20_000
    assert read(path, f'text,label\n"{book}",a\nshort,b\n').texts == [book.strip(), "short"]


WRONG: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty: it has no header and no rows"),
    "blank": ("\n \n\n", "is empty: it has no header and no rows"),
    "header": ("text,label\r\n\r\n", "is empty: it has no rows below its header"),
    "column": (
        "text,lable\na,b\n",
        """has no column "label"; did you mean "lable"? Its columns: 'text', 'lable'; """,
    ),
    "unlike": (
        "text,zz\na,b\n",
        """has no column "label". Its columns: 'text', 'zz'; name yours with --label.""",
    ),
    "semicolon": ("text;label\na;b\n", "has ';' between its cells"),
    "twice": ("text,label,text\na,b,c\n", 'has 2 columns "text"'),
    "latin-1": (b"text,label\ncaf\xe9,b\n", "is not UTF-8 text (invalid continuation byte at byte 14)"),
    "utf-16 unmarked": ("text,label\na,b\n".encode("utf-16-le"), "is not UTF-8 text (a zero byte in line 1)"),
    "zero": ("text,label\na,b\nc\0,d\n", "is not UTF-8 text (a zero byte in line 3)"),
    "no text": ("text,label\na,b\n\n  ,c\n", 'line 4 has nothing in the column "text"'),
    "NaN": ("text,label\na,b\nNaN,c\nnan,c\n", '2 rows (line 3 first) have nothing in the column "text"'),
    "no label": ("text,label\na,b\nc,\n", 'line 3 has nothing in the column "label"'),
    "too few": ("text,label\na,b\n\nc\n", 'line 4 has nothing in the column "label"'),
    "too many": ("text,label\na,b\nno, never,c\n", "line 3: 3 cells, but the header has 2"),
    "open": ('label,text\na,b\nc,"d\ne,f\n', "a quote that opens in the row of line 3 is never closed"),
    # Lines inside fields count as well.
    "lines": ('text,label\n"a\nb\nc",d\n"\n\n",e\n', 'line 5 has nothing in the column "text"'),
    "lines, many": ('text,label\n"a\nb",c\nd,e\nf,g,h\n', "line 5: 3 cells"),
    "lines, open": ('text,label\n"a\n\nb",c\n"d,e\nf,g\n', "the row of line 5 is never closed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_sentence(path, name) -> None:
    content, sentence = WRONG[name]
    with pytest.raises(UserError) as caught:
        read(path, content)
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_an_open_quote_in_a_tsv(tmp_path) -> None:
    with pytest.raises(UserError, match="the row of line 4 is never closed"):
        read(tmp_path / "data.tsv", 'text\tlabel\n"a\nb"\tc\n"d\te\n')


def test_the_flag_of_a_missing_column_is_named(path) -> None:
    for columns, flag in [
        (Columns("x"), "--text."),
        (Columns(label="x"), "--label."),
        (Columns(text_b="x"), "--text_b."),
    ]:
        with pytest.raises(UserError, match=f'no column "x".*{flag}'):
            read(path, "text,label,other\na,b,c\n", columns)


def test_sources_that_are_not_there(tmp_path) -> None:
    write(tmp_path / "train.csv", "text,label\na,b\n")
    with pytest.raises(UserError, match=r'no file or folder ".*tran.csv"; did you mean "train.csv"\?'):
        open_table(str(tmp_path / "tran.csv"))
    with pytest.raises(UserError, match=r'no file or folder "embeded"; did you mean "embedded"\?'):
        open_table("embeded")
    with pytest.raises(UserError, match=r'no file or folder ".*/no/where"\. Give a \.csv'):
        open_table(str(tmp_path / "no" / "where"))
    with pytest.raises(UserError, match=r"neither a \.csv nor a \.tsv"):
        open_table(str(write(tmp_path / "train.ods", "text,label\na,b\n")))
    with pytest.raises(UserError, match=r"train\.xlsx cannot be read as an Excel workbook: "):
        open_table(str(write(tmp_path / "train.xlsx", "text,label\na,b\n")))


# --- Folders


def test_a_folder_with_all_splits(tmp_path) -> None:
    write_rows(tmp_path / "train.csv", [("text", "label"), *many(20)])
    write_rows(tmp_path / "Dev.CSV", [("text", "label"), *many(4, name="held out")])
    write_rows(tmp_path / "test.tsv", [("text", "label"), *many(6, name="asked")])
    write(tmp_path / "notes.txt", "no table")
    (tmp_path / "test.csv").mkdir()
    table = open_table(str(tmp_path))
    assert table.brings_test
    assert table.splits["train"] == as_rows(many(20))
    assert table.splits["validation"] == as_rows(many(4, name="held out"))
    assert table.splits["test"] == as_rows(many(6, name="asked")) == open_test_rows(str(tmp_path))


def test_training_never_reads_the_test_split_that_data_brings(tmp_path) -> None:
    write_rows(tmp_path / "train.csv", [("text", "label"), *many(100)])
    write_rows(tmp_path / "test.csv", [("text", "label"), *many(10, name="asked")])
    splits = open_table(str(tmp_path), validation_share=0.1, test_share=0.3).splits
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (90, 10, 10)
    assert sorted(splits["train"].texts + splits["validation"].texts) == sorted(text for text, _ in many(100))


def test_one_file_brings_no_test_split(path) -> None:
    write_rows(path, [("text", "label"), *many(200)])
    table = open_table(str(path))
    assert not table.brings_test
    assert [len(table.splits[name]) for name in ("train", "validation", "test")] == [180, 10, 10]
    assert len(open_test_rows(str(path))) == 200


def test_wrong_folders(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds no training data: there is no train\.csv"):
        open_table(str(tmp_path))
    for name in ("dev.csv", "train.csv", "valid.tsv"):
        write_rows(tmp_path / name, [("text", "label"), *many(20)])
    with pytest.raises(UserError, match=r"has two files for validation: dev\.csv and valid\.tsv"):
        open_table(str(tmp_path))


def test_one_label_is_nothing_to_tell_apart(path) -> None:
    for count in (1, 50):
        write_rows(path, [("text", "label"), *many(count, labels=1)])
        with pytest.raises(UserError, match=r"has one label only \(label 0\)"):
            open_table(str(path))


def test_too_few_texts_to_hold_one_out(path) -> None:
    write_rows(path, [("text", "label"), ("a", "x"), ("b", "y"), ("A", "x")])
    with pytest.raises(UserError, match=r"too few texts.*Received: 3 rows, 2 labels"):
        open_table(str(path))
    write_rows(path, [("text", "label"), ("a", "x"), ("b", "y"), ("c", "x")])
    splits = open_table(str(path)).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [2, 1, 0]


def test_the_fingerprint_is_of_the_rows_and_their_splits(tmp_path) -> None:
    path = write_rows(tmp_path / "a.csv", [("text", "label"), *many(60)])
    again = write_rows(tmp_path / "b.tsv", [("label", "text"), *((label, text) for text, label in many(60))])
    assert open_table(str(path)).fingerprint == open_table(str(again)).fingerprint
    prints = {open_table(str(path), validation_share=share).fingerprint for share in (0.05, 0.1)}
    write_rows(path, [("text", "label"), *many(59), ("text 59", "label 0")])
    assert len(prints | {open_table(str(path)).fingerprint}) == 3


# --- Splits


def banking(rows: int = 3000) -> Rows:
    """77 labels, from one with a single text to one with hundreds, sorted by label; some texts twice."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, 78) ** 1.3
    labels = np.sort(np.concatenate([np.arange(77), rng.choice(77, rows - 77, p=weights / weights.sum())]))
    texts = [f"Text number {i}" for i in range(rows)]
    for i in range(0, rows - 1, 50):
        texts[i + 1] = f"  text NUMBER\n{i} "
    return Rows(texts, None, [f"label {i:02}" for i in labels])


def splits_of_labels(splits: dict[str, Rows]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, rows in splits.items():
        for label in rows.labels:
            found[label].add(name)
    return found


@pytest.mark.parametrize(
    "shares", [(0.05, 0.05), (0.05, 0.1), (0.1, 0.2), (0.25, 0.5), (0.3, 0.2), (0.001, 0.1)]
)
def test_shares_are_kept_whatever_they_are(shares) -> None:
    splits = split_rows(as_rows(many(1000, labels=4)), *shares)
    for name, share in zip(("validation", "test"), shares, strict=True):
        assert abs(len(splits[name]) - share * 1000) <= 1
        counts = Counter(splits[name].labels)
        assert share * 1000 < 4 or max(counts.values()) - min(counts.values()) <= 3


def test_splits_are_stratified_and_every_label_keeps_a_text_in_training() -> None:
    rows = banking()
    splits = split_rows(rows, 0.1, 0.1)
    assert sum(map(len, splits.values())) == len(rows)
    assert all("train" in names for names in splits_of_labels(splits).values())
    whole = Counter(rows.labels)
    for name in ("validation", "test"):
        assert len(splits[name]) == pytest.approx(300, abs=30)
        found = Counter(splits[name].labels)
        assert all(abs(found[label] - count / 10) <= 3 for label, count in whole.items())


def test_the_same_text_stays_on_one_side() -> None:
    splits = split_rows(banking(), 0.2, 0.2)
    sides = [set(splits[name].keys()) for name in ("train", "validation", "test")]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    twice = Rows(["Same"] * 50 + [f"text {i}" for i in range(50)], None, ["a", "b"] * 50)
    for rows in split_rows(twice, 0.2, 0.2).values():
        assert rows.texts.count("Same") in (0, 50)


def test_a_label_of_one_ambiguous_text_stays_in_training() -> None:
    # Texts with two labels, the second of which is nowhere else.
    pairs = [
        (f"text {i}", label) for i in range(40) for label in (("a", f"rare {i}") if i % 4 == 0 else ("b",))
    ]
    splits = split_rows(as_rows(pairs), 0.25, 0.25)
    assert all("train" in names for names in splits_of_labels(splits).values())
    assert len(splits["validation"]) and len(splits["test"])


def test_pairs_are_the_same_if_both_texts_are() -> None:
    rows = Rows(["a"] * 20, ["x"] * 10 + [f"other {i}" for i in range(10)], ["l", "m"] * 10)
    splits = split_rows(rows, 0.3, 0.0)
    assert len(splits["validation"]) and all(
        len(set(s.keys())) for s in (splits["train"], splits["validation"])
    )
    for split in splits.values():
        assert split.texts_b is not None and split.texts_b.count("x") in (0, 10)


def test_the_split_depends_on_the_rows_alone() -> None:
    rows = banking(500)
    np.random.seed(1)
    once = split_rows(rows, 0.1, 0.1)
    np.random.seed(2)
    assert split_rows(rows, 0.1, 0.1) == once
    # In the order of the data, which is sorted by label: training shuffles.
    places = [rows.texts.index(text) for text in once["train"].texts]
    assert places == sorted(places)
    # Not every tenth text: data may be in an order of its own.
    held_out = [
        int(text.split()[-1])
        for text in split_rows(as_rows(many(400, labels=1)), 0.1, 0.0)["validation"].texts
    ]
    assert np.std(np.diff(sorted(held_out))) > 2


def test_no_share_cuts_nothing() -> None:
    rows = as_rows(many(50))
    splits = split_rows(rows, 0.0, 0.0)
    assert splits["train"] == rows and not len(splits["validation"]) and not len(splits["test"])
    assert not len(split_rows(rows, 0.1, 0.0)["test"])


def test_shares_must_leave_something_to_learn_from(path) -> None:
    write_rows(path, [("text", "label"), *many(50)])
    with pytest.raises(UserError, match=r"leave nothing to learn from\. Received: 0\.5 and 0\.5"):
        open_table(str(path), validation_share=0.5, test_share=0.5)


# --- Labels and texts of other data


def test_places_of_labels() -> None:
    places = label_ids(["b", "a", "b"], ["a", "b"], "here")
    assert places.dtype == np.int32 and places.tolist() == [1, 0, 1]
    assert label_ids([], ["a"], "here").shape == (0,)


def test_labels_that_training_never_saw() -> None:
    names = [f"label {i}" for i in range(12)]
    with pytest.raises(UserError) as caught:
        label_ids(["label 3", "lable 3"], names, "test.csv")
    assert str(caught.value) == (
        'test.csv has the label "lable 3" (1 row), which training never saw; did you mean "label 3"? '
        f"Its labels: {', '.join(names[:10])} ...."
    )
    with pytest.raises(
        UserError, match=r'"x" \(2 rows\) and 1 other label, which training never saw\. Its labels'
    ):
        label_ids(["x", "x", "y"], names, "test.csv")


def test_texts_that_are_in_training_are_counted() -> None:
    train = as_rows([("I lost it", "a"), ("Where is it?", "b")])
    test = as_rows([(" i LOST\nit ", "b"), ("where is it", "b"), ("Where is it?", "b"), ("I lost it", "a")])
    assert shared_rows(train, test) == 3
    assert shared_rows(Rows(["a"], ["b"], ["l"]), Rows(["a", "a"], ["c", "B"], ["l", "l"])) == 1


# --- Embedded and TFDS


def test_embedded_rows_are_the_intents_as_they_are_split() -> None:
    table = open_table("embedded", validation_share=0.3, test_share=0.3)
    for split, rows in table.splits.items():
        mine = [sentence for sentence in embedded_intents() if sentence.split == split]
        assert rows.texts == [" ".join(sentence.words) for sentence in mine]
        assert rows.labels == [sentence.intent for sentence in mine]
    assert open_test_rows("embedded") == table.splits["test"] and table.brings_test


def test_tfds_without_a_network_is_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_table("tfds:no_such_data_set")
    assert "tfds:no_such_data_set" in str(caught.value) and "embedded" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def reviews(tmp_path, monkeypatch) -> None:
    """A TFDS data set made here; as in GLUE, the labels of its test split are kept secret."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class KarpaReviews(tfds.core.GeneratorBasedBuilder):
        """Reviews."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["bad", "good"])
            features = tfds.features.FeaturesDict(
                {"sentence": tfds.features.Text(), "kind": tfds.features.Text(), "label": label}
            )
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(60), "test": self._generate_examples(20, secret=True)}

        def _generate_examples(self, count, secret=False):
            for i in range(count):
                label = -1 if secret else ("bad", "good")[i % 2]
                yield i, {"sentence": f"Café {i}", "kind": f"kind {i % 3}", "label": label}

    monkeypatch.setattr(tfds, "builder", lambda name: KarpaReviews(data_dir=str(tmp_path)))


def test_tfds_rows(reviews) -> None:
    table = open_table("tfds:karpa_reviews", Columns("sentence"), test_share=0.1)
    assert not table.brings_test
    assert [len(table.splits[name]) for name in ("train", "validation", "test")] == [51, 3, 6]
    assert set(table.splits["train"].labels) == {"bad", "good"}
    assert all(text.startswith("Café ") for text in table.splits["train"].texts)
    table = open_table("tfds:karpa_reviews", Columns("sentence", "kind", "sentence"))
    assert table.brings_test and set(table.splits["test"].labels) == {"kind 0", "kind 1", "kind 2"}
    assert table.splits["test"].texts_b == table.splits["test"].texts
    with pytest.raises(UserError, match=r'has no feature "text"\. It has: .*sentence'):
        open_table("tfds:karpa_reviews")
