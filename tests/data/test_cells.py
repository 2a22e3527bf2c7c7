"""What is read from files of texts and tables, whoever wrote them."""

from __future__ import annotations

import builtins
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from karpa_tf.data.cells import decode, encoding_of, read_sheet, read_text
from karpa_tf.data.tables import Columns, Rows, open_table, read_table
from karpa_tf.errors import UserError

CHINESE = "text,label\n我的卡丢了，在哪里可以重新办理？,卡\n这是我们的房间，不大，但是很好。,房\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "data.csv"


def read(path: Path, content: str | bytes) -> Rows:
    return read_table(write(path, content), Columns())


# --- Quotes


def test_a_stray_quote_that_joins_lines_is_an_error(path) -> None:
    # It opens in line 3, closes in line 5, and there the cell goes on.
    text = 'text,label\nfine,a\n"an open one,b\nlines between,a\na 19" rack,b\nlast,a\n'
    with pytest.raises(UserError, match=r"line 3, and behind its closing quote in line 5 the cell goes on"):
        read(path, text)


def test_a_stray_quote_in_one_line_is_a_sign(path) -> None:
    rows = read(path, 'text,label\n"Well" he said,a\n19" rack,b\n"a, b",a\n"open" and "shut",b\n')
    assert rows.texts == ['"Well" he said', '19" rack', "a, b", '"open" and "shut"']
    # Where a comma hides in such a cell, nobody knows where it ends.
    with pytest.raises(UserError, match=r"line 2: 3 cells, but the header has 2"):
        read(path, 'text,label\n"Well, well" he said,a\n')


def test_rows_that_hold_line_ends_are_counted(path) -> None:
    rows = read(path, 'text,label\none,a\n"two\nlines",b\n\n"three\n\nmore",a\n')
    assert rows.texts == ["one", "two\nlines", "three\n\nmore"]
    assert rows.notes == [
        f"{path} has 3 rows in 5 lines: 2 rows hold line ends in quotes, the longest from line 6 to 8."
    ]
    table = [f'"text\n{i}",{"ab"[i % 2]}' for i in range(60)]
    assert open_table(str(write(path, "\n".join(["text,label", *table])))).notes == [
        f"{path} has 60 rows in 120 lines: 60 rows hold line ends in quotes, the longest from line 2 to 3."
    ]


@pytest.mark.parametrize(
    "content",
    [
        '"text", "label"\n"a, b", "pos"\n"c", "neg"\n',
        '"text" , "label"\n"a, b" , "pos"\n"c" ,"neg"\n',
        "text , label\n'a' ,pos\n",
    ],
)
def test_blanks_beside_commas_are_no_part_of_cells(path, content) -> None:
    rows = read(path, content)
    assert rows.texts[0] in ("a, b", "'a'") and rows.labels[0] == "pos"


def test_backslashes_before_quotes(path) -> None:
    said = r'"he said \"no, no\" twice",a' + "\n" + r'"C:\new\dir, \"x\"",b' + "\n"
    assert read(path, f"text,label\n{said}").texts == ['he said "no, no" twice', r'C:\new\dir, "x"']
    # Where the quotes are right without them, backslashes are signs.
    assert read(path, 'text,label\n"C:\\dir\\",a\n"say ""x""",b\n').texts == ["C:\\dir\\", 'say "x"']
    assert read(path, 'text,label\n"say \\"x\\", C:\\\\",b\n').texts == ['say "x", C:\\\\']


# --- Delimiters and encodings


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_another_delimiter_is_read_where_all_lines_have_it(path, delimiter) -> None:
    content = [["id", "text", "label"], ["1", f"a{delimiter}b, c", "x"], ["2", "d\ne", "y"]]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(content)
    rows = read_table(path, Columns())
    assert rows.texts == [f"a{delimiter}b, c", "d\ne"] and rows.labels == ["x", "y"]
    assert rows.notes[:1] == [f"{path} has {delimiter!r} between its cells, and was read by that."]
    assert read(path, f"sep={delimiter}\ntext{delimiter}label\na, b{delimiter}x\n").texts == ["a, b"]
    # One line that does not fit, or one row alone, and it is not certain.
    for text in ("text;label\na;x\nb;c;y\n", "text;label\na;x\n", "text;label\na;x\nb\n"):
        with pytest.raises(UserError, match=r"has ';' between its cells; a \.csv needs commas"):
            read(path, text)


def test_a_column_whose_name_holds_a_semicolon(path) -> None:
    sheet = read_sheet(write(path, "a;b\n1;2\n3;4\n"), ["a;b"])
    assert sheet.header == ["a;b"] and sheet.rows == [["1;2"], ["3;4"]] and not sheet.notes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gbk", "gb18030"])
def test_encodings_that_are_certain(path, encoding) -> None:
    rows = read(path, CHINESE.encode(encoding))
    assert rows.texts == ["我的卡丢了，在哪里可以重新办理？", "这是我们的房间，不大，但是很好。"]
    assert rows.labels == ["卡", "房"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("la chambre était très sale, le café glacé", "latin-1"),
        ("Größe, Übung, schön und süß", "cp1252"),
        ("ÄÖ ÜÄ ßß éé àà çç ôô êê", "latin-1"),
        ("Привет, как дела? Это очень хорошо. Да, да", "cp1251"),
        ("Привет, как дела? Это очень хорошо. Да, да", "koi8-r"),
        ("죄송합니다 몸이 아파서 돈을 벌 수 없어요 몸이 죄 돈", "euc-kr"),
        ("これは日本語の文章です。漢字もあります。", "euc-jp"),
        ("これは日本語の文章です。漢字もあります。", "shift-jis"),
        ("這是一個中文句子，我們在這裡。", "big5"),
    ],
)
def test_other_encodings_are_refused(tmp_path, text, encoding) -> None:
    assert encoding_of(text.encode(encoding)) == "utf-8-sig"
    with pytest.raises(UserError, match=r"is not UTF-8 text \(.* at byte \d+\), line 2; convert it\."):
        read_text(write(tmp_path / "a.txt", b"first\n" + text.encode(encoding)))


def test_an_encoding_is_told_from_the_beginning_of_a_file() -> None:
    utf_8 = CHINESE.encode()
    assert all(encoding_of(utf_8[:size]) == "utf-8-sig" for size in range(20, 40))
    assert all(encoding_of(CHINESE.encode("gbk")[:size]) == "gb18030" for size in range(60, 70))
    with pytest.raises(UserError, match=r"input is not UTF-8 text .*line 1"):
        decode("naïve".encode("latin-1"), "input")


# --- Values


@pytest.mark.parametrize("label", ["NaN", "nan", "None", "null", "NA", "N/A", "0"])
def test_labels_are_any_texts(path, label) -> None:
    assert read(path, f"text,label\none,{label}\nNone,b\nnull,b\nNan bread,b\nNan,b\n") == Rows(
        ["one", "None", "null", "Nan bread", "Nan"], None, [label, "b", "b", "b", "b"]
    )


def test_json_lines(tmp_path) -> None:
    path = tmp_path / "DATA.JSONL"
    rows = [{"text": " a, b ", "label": True}, {"label": 3, "text": "c\n\u2028d", "id": [1]}]
    lines = [*map(json.dumps, rows), "", '{"text": "e", "label": 2.0}']
    assert read(path, "\n".join(lines)) == Rows(["a, b", "c\n\u2028d", "e"], None, ["True", "3", "2"])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("null", "line 2: a row is one JSON object, with a value a column. Received: null."),
        ("3", "line 2: a row is one JSON object"),
        ('["text"]', "line 2: a row is one JSON object"),
        ('"text"', "line 2: a row is one JSON object"),
        ('{"text": "a"', "line 2: a row is one JSON object"),
        ("[" * 100_000, "line 2: a row is one JSON object"),
        ('{"text": "a", "text": "b"}', 'line 2: "text" stands in it twice'),
        ('{"text": "a \\ud83d b", "label": "x"}', "line 2: \\ud83d is half of a surrogate pair"),
        ('{"id": {"a": ["\\udc00"]}, "text": "b", "label": "x"}', "line 2: \\udc00 is half of a surrogate"),
        ('{"text": 5, "label": "x"}', 'line 2: the cell of "text" must be a text in quotes. Received: 5.'),
        ('{"text": ["a"], "label": "x"}', 'line 2: the cell of "text" must be a text in quotes.'),
        ('{"text": "b", "label": 0.5}', 'line 2: the cell of "label" must be a text or a whole number.'),
        ('{"text": "b", "label": null}', 'line 2 has nothing in the column "label"'),
        ('{"text": null, "label": "x"}', 'line 2 has nothing in the column "text"'),
        ('{"label": "x"}', 'line 2 has nothing in the column "text"'),
    ],
)
def test_json_lines_that_are_no_rows(tmp_path, line, sentence) -> None:
    path = tmp_path / "data.jsonl"
    with pytest.raises(UserError) as caught:
        read(path, f'{{"text": "a", "label": "x"}}\n{line}\n')
    assert str(caught.value).startswith(str(path)) and sentence in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


# --- Excel and Parquet


def test_excel(tmp_path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Reviews"
    cells = [
        [None, None, None],
        [" text ", "label", "id"],
        ["a\nb", "x", 1],
        [5, True, 2.5],
        [None] * 3,
        ["c", 2],
    ]
    for row in cells:
        sheet.append(row)
    book.create_sheet("Empty")
    path = tmp_path / "data.XLSX"
    book.save(path)
    rows = read_table(path, Columns())
    assert rows == Rows(["a\nb", "5", "c"], None, ["x", "TRUE", "2"]) and not rows.notes
    book.create_sheet("Notes").append(["more"])
    sheet.append(["d", None])
    book.save(path)
    assert read_sheet(path).notes == [f'{path}: the sheet "Reviews" was read, and not "Notes".']
    with pytest.raises(UserError, match='row 7 has nothing in the column "label"'):
        read_table(path, Columns())


def test_parquet(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    columns = {"text": ["a", "b, c"], "label": [0, 1], "score": [0.5, None]}
    parquet.write_table(pyarrow.table(columns), path)
    assert read_table(path, Columns()) == Rows(["a", "b, c"], None, ["0", "1"])
    assert read_sheet(path).records()[1] == {"text": "b, c", "label": 1, "score": None}
    # A folder of splits takes every kind of file.
    write(tmp_path / "test.jsonl", '{"text": "d", "label": 1}')
    assert open_table(str(tmp_path), validation_share=0).splits["test"].labels == ["1"]
    with pytest.raises(UserError, match=r"data\.parquet cannot be read as a Parquet file: "):
        read_sheet(write(tmp_path / "data.parquet", "text,label\n"))


@pytest.mark.parametrize(("name", "package"), [("a.xlsx", "openpyxl"), ("a.parquet", "pyarrow")])
def test_what_is_not_installed_is_named(tmp_path, monkeypatch, name, package) -> None:
    true_import = builtins.__import__

    def without(module, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return true_import(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=rf"is read by {package}.*pip install 'karpa-tf\[tables\]'"):
        read_sheet(write(tmp_path / name, "x"))


def test_reading_imports_nothing_heavy() -> None:
    code = "import sys, karpa_tf.rows; sys.exit(bool({'tensorflow', 'numpy', 'pyarrow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
