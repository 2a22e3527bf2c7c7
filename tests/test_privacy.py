"""What is taken for personal data in text, and what is not."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from karpa_tf.data.tables import Columns, open_table, open_test_rows
from karpa_tf.data.tags import open_tagged, open_test_sentences
from karpa_tf.privacy import Span, redact, redact_words, spans, spans_of_tags
from karpa_tf.recipes.multi_task import MultiTaskSettings
from karpa_tf.recipes.multi_task.data import open_tasks
from tests.conftest import BERT_TINY, make_intents, make_tagged, write_conll, write_csv
from tests.documents import DOCS, ROOT, printed, python_blocks


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to ada.lovelace+x@example.co.uk, please", "write to [EMAIL], please"),
        ("MAX@EXAMPLE.COM", "[EMAIL]"),
        ("ä.ö@exämple.de!", "[EMAIL]!"),
        ("请发到ada＠example.com谢谢", "请发到[EMAIL]谢谢"),
        ("mailto:'ada@example.com'", "mailto:'[EMAIL]'"),
        ("ask @ada or ada@localhost", "ask @ada or ada@localhost"),
        ("call +49 (0)30 / 1234-5678 now", "call [PHONE] now"),
        ("(555) 123-4567", "[PHONE]"),
        ("call me at (5551234567)", "call me at ([PHONE])"),
        ("Telefon 5551234, bitte", "Telefon [PHONE], bitte"),
        ("order 5551234567 or 5551234567", "order 5551234567 or 5551234567"),
        ("订单号13812345678,请打13812345678联系", "订单号13812345678,请打[PHONE]联系"),
        ("٠١٢٣٤٥٦٧٨٩", "[PHONE]"),
        ("call 555.123.4567.", "call [PHONE]."),
        ("card 4111 1111 1111 1111, thanks", "card [CARD], thanks"),
        ("1234 5500-0000-0000-0004 42", "1234 [CARD] 42"),
        ("卡号４１１１１１１１１１１１１１１１请", "卡号[CARD]请"),
        ("378282246310005", "[CARD]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("IBAN DE89 3704 0044 0532 0130 00 bitte", "IBAN [IBAN] bitte"),
        ("gb82west12345698765432 and GB82WEST12345698765432x", "[IBAN] and GB82WEST12345698765432x"),
        ("DE88 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
        ("转账到DE89370400440532013000谢谢", "转账到[IBAN]谢谢"),
        ("version 2.21.0 of 2026 costs 1,000", "version 2.21.0 of 2026 costs 1,000"),
        ("on 05.11.2026 14:30, at 2026-11-26T10:00:00", "on 05.11.2026 14:30, at 2026-11-26T10:00:00"),
        ("ISBN 0-306-40615-2, 978-3-16-148410-0", "ISBN 0-306-40615-2, 978-3-16-148410-0"),
        ("192.168.100.200 since 1764183600", "192.168.100.200 since 1764183600"),
        ("x 1 2 3 4 5 6 7 8a call 0171 2345678b now", "x 1 2 3 4 5 6 7 8a call 0171 2345678b now"),
        ("the [MASK] of 12 men", "the [MASK] of 12 men"),
    ],
)
def test_what_is_taken_out(text: str, kept: str) -> None:
    assert redact(text) == kept
    assert redact(kept) == kept


@pytest.mark.parametrize("seed", [0, 3])
def test_what_has_a_checksum_is_found_in_made_lines(seed: int) -> None:
    made = runpy.run_path(str(ROOT / "benchmarks" / "privacy.py"))
    figures = made["score"](made["make_lines"](2000, seed))
    assert min(row["there"] for row in figures.values()) > 250
    assert min(figures[kind]["f1"] for kind in ("email", "iban", "card")) >= 0.99
    assert figures["phone"]["f1"] >= 0.97


def test_each_character_is_looked_at_a_few_times() -> None:
    """With expressions that begin again at every character, these would take hours."""
    texts = ("1 " * 50_000 + "a", "a" * 200_000, "a@" * 50_000, "." * 200_000 + "@", "+(" * 50_000)
    for text in (*texts, "444 " * 5_000, "DE89 " * 5_000, "0171 234 " * 5_000, "call 12345 " * 5_000):
        assert redact(text) == text or "0171" in text


def test_a_tagger_finds_names_where_nothing_else_is() -> None:
    text = "Ada Lovelace, ada@example.com, asks Bob"

    def tagger(given: str) -> list[tuple[int, int, str]]:
        assert given == text
        return [(0, 12, "name"), (14, 17, "name"), (len(text) - 3, len(text), "name"), (90, 95, "name")]

    assert redact(text, tagger) == "[NAME], [EMAIL], asks [NAME]"
    assert spans(text, tagger)[1] == Span(14, 29, "email")


def test_tags_become_spans() -> None:
    text = "Ada Lovelace met Bob, Ada of  London"
    tokens = ["Ada", "Lovelace", "met", "Bob", ",", "Ada", "of", "London", ""]
    tags = ["B-PER", "I-PER", "O", "B-PER", "O", "B-PER", "O", "B-LOC", ""]
    found = spans_of_tags(text, tokens, tags, ["PER"])
    assert [text[begin:end] for begin, end, _ in found] == ["Ada Lovelace", "Bob", "Ada"]
    assert redact(text, lambda t: spans_of_tags(t, tokens, tags, ["LOC"])).endswith(" of  [LOC]")


def test_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = python_blocks(DOCS / "privacy.md")
    exec(script, {})
    assert capsys.readouterr().out.splitlines() == printed(script)


def test_words_keep_their_places() -> None:
    words = ["call", "0171", "2345678", "or", "a@b.de", "(4111", "1111", "1111", "1111)."]
    kept = ("call", "[PHONE]", "[PHONE]", "or", "[EMAIL]", "([CARD]", "[CARD]", "[CARD]", "[CARD]).")
    assert redact_words(words) == kept


def test_tables_are_redacted_before_they_are_split(tmp_path: Path) -> None:
    rows = [(f"{text} for user{n}@example.com", label) for n, (text, label) in enumerate(make_intents(40))]
    path = write_csv(tmp_path / "rows.csv", [*rows, *rows])
    table = open_table(str(path), Columns(redact=True))
    texts = [text for split in table.splits.values() for text in split.texts]
    assert len(texts) == 80 and all(text.endswith(" for [EMAIL]") for text in texts)
    keys = [set(split.keys()) for split in table.splits.values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2]
    assert open_test_rows(str(path), Columns(redact=True)).texts[0] == f"{make_intents(40)[0][0]} for [EMAIL]"
    assert open_table(str(path)).fingerprint != table.fingerprint


def test_tagged_words_are_redacted_and_keep_their_tags(tmp_path: Path) -> None:
    sentences = [[*sentence, ("ada@b.de", "O")] for sentence in make_tagged(30)]
    path = str(write_conll(tmp_path / "rows.conll", sentences))
    plain, found = open_test_sentences(path), open_test_sentences(path, redact=True)
    assert [sentence.tags for sentence in plain] == [sentence.tags for sentence in found]
    assert {sentence.words[-1] for sentence in found} == {"[EMAIL]"}
    splits = open_tagged(path, redact=True).splits.values()
    assert {sentence.words[-1] for part in splits for sentence in part} == {"[EMAIL]"}


def test_every_task_of_several_is_redacted(tmp_path: Path) -> None:
    texts = write_csv(tmp_path / "rows.csv", [(f"{text} a@b.de", label) for text, label in make_intents(40)])
    words = write_conll(tmp_path / "rows.conll", [[*words, ("a@b.de", "O")] for words in make_tagged(40)])
    config = MultiTaskSettings(data=f"texts={texts} words={words}", redact=True)
    every = [text for part in open_tasks(config).splits.values() for text in part.texts]
    assert len(every) > 60 and all(text.endswith("[EMAIL]") for text in every)


def test_nothing_of_it_is_in_a_run_or_what_it_exports(karpa, classified, tmp_path: Path) -> None:
    rows = [
        (f"{text} says zyxwv{n % 3}@example.com", label) for n, (text, label) in enumerate(make_intents(90))
    ]
    data = write_csv(tmp_path / "rows.csv", rows)
    words = ["--data", data, "--epochs", 1, "--logs", tmp_path / "logs", *BERT_TINY]
    result = karpa("train", "bert-classifier", *words, "--redact", "--json")
    assert result.status == 0, result.err
    run, to = tmp_path / "logs" / "bert-classifier" / "1", tmp_path / "savedmodels"
    assert karpa("export", run, "--to", to, "--force").status == 0
    files = [path for folder in (run, to) for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if b"zyxwv" in path.read_bytes()]
    (card,) = to.rglob("model_card.md")
    assert "in which [EMAIL], [IBAN], [CARD] and [PHONE] stand" in card.read_text(encoding="utf-8")
    vocabulary = (run / "assets" / "vocab.txt").read_text(encoding="utf-8").split()
    assert "email" in vocabulary
    words = ["--init", classified, "--rehearse", 0.5, *words]
    result = karpa("train", "bert-classifier", *words, "--redact")
    assert result.status == 2 and "has read its texts without redact" in result.err
    result = karpa("train", "bert-classifier", "--redact", "--pretrain_data", "embedded")
    assert result.status == 2 and "redact goes with pretrain_data same alone" in result.err
