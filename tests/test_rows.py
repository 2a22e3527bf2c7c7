"""Rows in and out of `predict`."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from karpa_tf import rows
from karpa_tf.errors import UserError
from karpa_tf.recipe import find_recipe
from tests.conftest import write_csv

TEXT = {"text": rows.Input("text")}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def match(path: Path, inputs=TEXT, **options) -> rows.Rows:
    return rows.read([], str(path), rows.columns_of(inputs)).match(inputs, **options)


def texts(asked: rows.Rows) -> list[str]:
    return [row["text"] for row in asked.inputs]


# --- In


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,text\n1,a warm room, but loud\n2,b\n", "line 2: 3 cells, but the header has 2"),
        ("text\na warm room, but loud\nb\n", "line 2: 2 cells, but the header has 1"),
        ('text\na\n"b\nc\nd\n', "a quote that opens in the row of line 3 is never closed"),
        ('id,text\n1,"a\n2,b\n3,a 19" rack\n', "line 2, and behind its closing quote in line 4"),
        ("id,text,text\n1,a,b\n", 'has 2 columns "text"'),
        ("id,text\n1,a\n2\n", r"Row 2 has an empty text ("),
        ("id,text\n1,a\n2,\n", "line 3); fill it in or delete the row."),
        ('text\na\n""\nb\n', "line 3); fill it in or delete the row."),
        ("id,text\n1,NaN\n", "Row 1 has an empty text"),
        ("text;id\na;1\n", "has ';' between its cells"),
        ("texts\na\n", 'has no column "text"; did you mean "texts"?'),
        ("text\n", "is empty: it has no rows below its header"),
        (b"text\nna\xefve\n", "is not UTF-8 text (invalid continuation byte at byte 7), line 2; convert it."),
    ],
)
def test_predict_reads_tables_as_training_does(tmp_path, content, sentence) -> None:
    path = write(tmp_path / "in.csv", content)
    with pytest.raises(UserError) as caught:
        match(path, filled=True)
    assert sentence in str(caught.value) and str(path) in str(caught.value)


def test_tables_of_every_kind_keep_their_columns(tmp_path) -> None:
    long = "a long story " * 20_000
    table = [{"id": "7", "text": "one, two"}, {"id": "8", "text": long}]
    write(tmp_path / "a.CSV", f' id , text\n7,"one, two"\n8,{long}\n')
    write(tmp_path / "a.tsv", f"id\ttext\n7\tone, two\n8\t{long}\n")
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, table)))
    for name in ("a.CSV", "a.tsv", "a.jsonl"):
        asked = match(tmp_path / name)
        assert [text.strip() for text in texts(asked)] == ["one, two", long.strip()]
        assert [list(row) for row in asked.given] == [["id", "text"]] * 2
    asked = match(write(tmp_path / "b.csv", "id,text,id,\n1,a,2,3\n"))
    assert asked.given == [{"id": "1", "text": "a", "id (2)": "2", "": "3"}]


def test_the_column_of_the_run(tmp_path) -> None:
    inputs = find_recipe("bert-classifier").about.inputs({"text": "review", "text_b": "title"})
    path = write(tmp_path / "in.csv", "title,text,review\nt,x,r\n")
    assert match(path, inputs).inputs == [{"text": "r", "text_b": "t"}]
    # A file made for the signature goes as well.
    path = write(tmp_path / "in.csv", "text,text_b\nr,t\n")
    assert match(path, inputs).inputs == [{"text": "r", "text_b": "t"}]
    with pytest.raises(UserError, match="Row 2: A row is one JSON object with text, text_b"):
        rows.read(['{"review": "r", "title": "t"}', "{}"]).match(inputs)
    with pytest.raises(UserError, match='has no column "review"; did you mean "reviews"'):
        match(write(tmp_path / "in.csv", "reviews,title\nr,t\n"), inputs)
    typed = rows.read(['{"review": "r", "title": "t"}', '{"text": "R", "text_b": "T"}']).match(inputs)
    assert typed.inputs == [{"text": "r", "text_b": "t"}, {"text": "R", "text_b": "T"}]


def test_a_line_is_a_row(tmp_path) -> None:
    asked = match(write(tmp_path / "in.TXT", "one\n\n two \n   \nthree\n\n\n"), filled=True)
    assert asked.inputs == [{"text": "one"}, {}, {"text": " two "}, {}, {"text": "three"}]
    given = rows.read([], str(tmp_path / "in.TXT"))
    assert given.notes == [
        f"{tmp_path / 'in.TXT'}: 2 lines (2 first) are blank; a line is a row, and a blank one has no answer."
    ]
    assert texts(rows.read(["a", "", "b"]).match(TEXT)) == ["a", "", "b"]
    with pytest.raises(UserError, match=r"Row 2 has an empty text; fill"):
        rows.read(["a", " ", "b"]).match(TEXT, filled=True)
    with pytest.raises(UserError, match=r"There is nothing to predict in .*: no rows"):
        match(write(tmp_path / "in.txt", "\n \n"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("null", "line 2: a row is one JSON object"),
        ("3", "line 2: a row is one JSON object"),
        ('"text"', "line 2: a row is one JSON object"),
        ('[{"text": "a"}]', "line 2: a row is one JSON object"),
        ('{"text": 5}', 'line 2: "text" must be a text in quotes. Received: 5.'),
        ('{"text": null}', "Row 2 has an empty text"),
        ('{"text": "a \\ud83d"}', "line 2: \\ud83d is half of a surrogate pair"),
    ],
)
def test_json_lines_that_are_no_rows(tmp_path, line, sentence) -> None:
    with pytest.raises(UserError) as caught:
        match(write(tmp_path / "in.jsonl", f'{{"text": "a"}}\n{line}\n'), filled=True)
    assert sentence in str(caught.value) and str(caught.value).isprintable()


def test_standard_input_is_decoded_as_files_are(monkeypatch) -> None:
    def piped(data: bytes) -> rows.Given:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))
        return rows.read([])

    assert texts(piped("\ufeffnaïve\r\n日本\r\n".encode()).match(TEXT)) == ["naïve", "日本"]
    with pytest.raises(UserError, match=r"standard input is not UTF-8 text \(.*\), line 2; convert it"):
        piped("first\nla chambre était sale\n".encode("latin-1"))


def test_numbers_in_cells_are_read_as_json(tmp_path) -> None:
    inputs = find_recipe("dqn").about.inputs({"env": "CartPole-v1"})
    path = write(tmp_path / "in.csv", 'observation,id\n"[0.5, 1]",a\n7,b\n')
    assert [row["observation"] for row in match(path, inputs).inputs] == [[0.5, 1], 7]
    with pytest.raises(UserError, match='line 3: "image" is empty'):
        match(write(tmp_path / "in.csv", "image,id\n[[7]],a\n,b\n"), {"image": rows.Input("image")})


# --- Out

OUTPUTS = [
    {"label": "good", "probabilities": [0.25, 0.75]},
    {"label": "schlecht, é", "probabilities": [0.625, 0.375]},
]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_output_has_the_rows_and_a_column_a_class(tmp_path) -> None:
    given = [{"id": 1, "text": "a\nb", "tags": ["x"]}, {"id": 2, "text": 'c, "d"', "tags": None}]
    path = tmp_path / "out.csv"
    assert rows.write(str(path), given, OUTPUTS, ["schlecht, é", "good"]) == []
    first, second = read_csv(path)
    assert first == {
        "id": "1", "text": "a\nb", "tags": '["x"]', "label": "good", "confidence": "0.75",
        "schlecht, é": "0.25", "good": "0.75",
    }  # fmt: skip
    assert second["text"] == 'c, "d"' and second["tags"] == "" and second["label"] == "schlecht, é"
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    rows.write(str(tmp_path / "out.jsonl"), given, OUTPUTS, ["schlecht, é", "good"])
    line = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert list(line) == list(first) and line["confidence"] == 0.75 and line["tags"] == ["x"]
    rows.write(str(path), [{"text": "a"}], [{"label": "x", "probabilities": [1.0]}], [])
    assert path.read_bytes() == b"text,label,probabilities\r\na,x,[1.0]\r\n"


def test_columns_of_the_input_are_never_written_over(tmp_path) -> None:
    given = [{"text": "a", "label": "mine", "confidence": "", "good": "G", "label (predicted)": "L"}] * 2
    path = tmp_path / "out.csv"
    notes = rows.write(str(path), given, OUTPUTS, ["label", "good"])
    assert list(read_csv(path)[0].items()) == [
        *given[0].items(),
        ("label (predicted 2)", "good"),
        ("confidence (predicted)", "0.75"),
        ("label (predicted 3)", "0.25"),
        ("good (predicted)", "0.75"),
    ]
    assert len(notes) == 4 and '"good (predicted)", for "good" is a column of the input' in notes[3]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("out.xlsx", r"--output takes a \.csv or \.jsonl file"),
        ("nowhere/out.csv", "cannot be written: there is no folder"),
        ("folder.csv", "cannot be written: it is a folder"),
    ],
)
def test_an_output_that_cannot_be_written(tmp_path, name, sentence) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=sentence):
        rows.check_output(str(tmp_path / name))


# --- The command


@pytest.mark.parametrize(
    ("recipe", "config", "words", "sentence"),
    [
        (
            "bert-classifier",
            {"text": "text", "text_b": ""},
            ["--input", "none.csv"],
            "none.csv cannot be read: No such file",
        ),
        (
            "bert-classifier",
            {"text": "review", "text_b": ""},
            ["--input", "in.csv"],
            'has no column "review"',
        ),
        ("mlm-gru", {}, ["--input", "in.csv", "--output", "out.xls"], "--output takes a .csv or .jsonl"),
        ("mnist-mlp", {"image_size": 8}, ["a.png", "b.png"], 'There is no image "a.png"'),
        ("dqn", {"env": "CartPole-v1"}, ["one"], "Row 1: A row is one JSON object with observation"),
        ("mlm-gru", {}, ["one"], "has no weights yet; go on with"),
        ("bert-tagger", {"folds": 3, "fold": 0}, ["one"], "is the mean of 3 folds, and holds no model"),
    ],
)
def test_what_is_wrong_with_files_is_said_before_tensorflow_is_imported(
    tmp_path, recipe, config, words, sentence
) -> None:
    run = tmp_path / recipe / "1"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write(tmp_path / "in.csv", "x\na\n")
    code = (
        "import sys, karpa_tf.cli\n"
        "status = karpa_tf.cli.main(['predict', *sys.argv[1:]])\n"
        "sys.exit(9 if 'tensorflow' in sys.modules else status)"
    )
    command = [sys.executable, "-c", code, str(run), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_predict_keeps_what_it_was_given(classified, karpa, tmp_path) -> None:
    path = write_csv(tmp_path / "in.csv", [("play a song by Ada", "músic"), ("is it raining?", "weather")])
    result = karpa("predict", classified, "--input", path, "--json")
    assert result.json["inputs"][0] == {"text": "play a song by Ada", "label": "músic"}
    assert [set(row) for row in result.json["predictions"]] == [{"label", "probabilities"}] * 2
    out = tmp_path / "out.csv"
    result = karpa("predict", classified, "--input", path, "--output", out)
    assert result.status == 0 and '"label (predicted)"' in result.err
    first, second = read_csv(out)
    assert list(first) == ["text", "label", "label (predicted)", "confidence", "music", "timer", "weather"]
    assert (first["label"], first["label (predicted)"], second["label (predicted)"]) == (
        "músic",
        "music",
        "weather",
    )
    assert first["confidence"] == first["music"]
    write(tmp_path / "in.txt", "play a song by Ada\n\nis it raining?\n")
    result = karpa("predict", classified, "--input", tmp_path / "in.txt", "--json")
    assert result.status == 0 and "1 line" not in result.err and "line 2 is blank" in result.err
    assert [row.get("label") for row in result.json["predictions"]] == ["music", None, "weather"]


FILLED = {"masks": 1, "filled_text": "a b", "top_scores": [[0.5, 0.25], [0.0, 0.0]]}
FILLED["top_tokens"] = [["b", "c"], ["", ""]]
TAGGED = {"scores": [0.5, 0.0], "tags": ["O", "O"], "tokens": ["Ada", ""], "words": 1}


@pytest.mark.parametrize(
    ("outputs", "shown", "lines"),
    [
        (FILLED, ["filled_text", "top_tokens top_scores"], ["  a b", "    b 0.500  c 0.250"]),
        (TAGGED, ["tokens tags scores"], ["  Ada\tO\t0.500"]),
        ({"label": "x", "probabilities": [0.25, 0.75]}, [], ["  x  0.750"]),
        (
            {"label": "x", "probabilities": [0.5, 0.25], "known": True},
            ["label probabilities"],
            ["  x  0.500"],
        ),
        (
            {"a_label": "x", "a_probabilities": [1.0, 0.0], **TAGGED},
            ["a: a_label a_probabilities", "b: tokens tags"],
            ["  a: x  1.000", "  b:", "  Ada\tO"],
        ),
        ({"label": ["x", "y"], "probabilities": [0.5]}, ["of each: label"], ["  of each: ['x', 'y']"]),
        # By its shape this number could be the length of the list.
        ({"action": 2, "q_values": [0.5, 1.0]}, [], ["  action: 2", "  q_values: [0.5, 1.0]"]),
        ({"error": "There is no image."}, ["label"], ["  There is no image."]),
        ({}, ["label"], []),
    ],
)
def test_what_people_see_of_outputs_is_the_signatures_say(outputs, shown, lines) -> None:
    assert list(rows.format([{"text": "a"}], [outputs], shown)) == ["a", *lines]


def test_a_signature_shows_outputs_that_there_are() -> None:
    with pytest.raises(UserError, match=r"shows b; it must be among its outputs\. Received: a\."):
        list(rows.format([{"text": "a"}], [{"a": 1}], ["a b"]))


def test_a_png_takes_images_alone() -> None:
    found = rows.images_of([{"image": [[0.4, 260.0]]}, {}, {"image": [[1.6, -3.0]]}], "a.png")
    assert found.dtype == np.uint8 and found[..., 0].tolist() == [[[0, 255]], [[2, 0]]]
    with pytest.raises(UserError, match=r"A \.png takes images, and label was predicted"):
        rows.images_of([{"label": "a"}], "a.png")
    rows.check_output("a.png", pictures=True)
    with pytest.raises(UserError, match=r"--output takes a \.csv or \.jsonl file"):
        rows.check_output("a.png")
