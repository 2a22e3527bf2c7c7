"""`karpa-tf explain` of the text recipes: the words that tell are found."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from karpa_tf.recipes.families.words import _without_each_word
from tests.conftest import make_intents


@pytest.fixture
def copy(tmp_path):
    """Copies a run, as explaining writes into it."""
    return lambda run: shutil.copytree(run, tmp_path / "logs" / run.parent.name / "1")


def explain(karpa, run: Path, *texts: str) -> list[dict]:
    result = karpa("explain", run, *texts, "--json")
    assert result.status == 0, result.err
    assert any(path.name.startswith("events") for path in (run / "explain").iterdir())
    return result.json["explanations"]


def test_a_classifiers_label_hangs_on_the_word_that_tells(classified, copy, karpa) -> None:
    text = next(text for text, label in make_intents(30) if label == "weather")
    (row,) = explain(karpa, copy(classified), text)
    assert row["input"] == {"text": text} and row["claim"] == "weather" and 0.3 < row["probability"] <= 1
    assert [w["word"] for w in row["words"]] == text.split()
    assert any(w["attribution"] > 0 for w in row["words"])


def test_words_are_cut_as_the_tagger_cuts_them() -> None:
    assert _without_each_word("房间很好！", "") == [
        ("房", "间很好！"),
        ("间", "房很好！"),
        ("很", "房间好！"),
        ("好", "房间很！"),
        ("！", "房间很好"),
    ]
    assert _without_each_word("Is it  raining, Ada?", "") == [
        ("Is", "it  raining, Ada?"),
        ("it", "Is raining, Ada?"),
        ("raining", "Is it  , Ada?"),
        (",", "Is it  raining Ada?"),
        ("Ada", "Is it  raining, ?"),
        ("?", "Is it  raining, Ada"),
    ]
    assert [word for word, _ in _without_each_word("a [MASK]. b", "[MASK]")] == ["a", "b"]
    assert _without_each_word("[MASK]", "[MASK]") == []


def test_a_chinese_text_is_explained_word_by_word(classified, copy, karpa) -> None:
    (row,) = explain(karpa, copy(classified), "房间很好")
    assert [w["word"] for w in row["words"]] == list("房间很好")


def test_a_taggers_entities_hang_on_themselves(tagged, copy, karpa) -> None:
    rows = explain(karpa, copy(tagged), "Yesterday Ada went to Oslo .")
    claims = {row["claim"]: row for row in rows}
    assert {"Ada: B-PERSON", "Oslo: B-CITY"} <= set(claims)
    words = {w["word"]: w["attribution"] for w in claims["Oslo: B-CITY"]["words"]}
    assert words["Oslo"] == max(words.values()) == pytest.approx(claims["Oslo: B-CITY"]["probability"])


def test_a_filling_is_explained_mask_by_mask(trained, copy, karpa) -> None:
    rows = explain(karpa, copy(trained), "the [MASK] ate grass in the [MASK].")
    assert [row["claim"].split(" is ")[0] for row in rows] == ["[MASK] 1", "[MASK] 2"]
    assert [w["word"] for w in rows[0]["words"]] == ["the", "ate", "grass", "in", "the"]


def test_people_read_lines_and_recipes_without_it_say_so(classified, frozen, copy, karpa) -> None:
    result = karpa("explain", copy(classified), "play a song")
    assert result.status == 0 and "play " in result.out
    result = karpa("explain", frozen / "q-learning" / "1", "3")
    assert result.status == 2 and "explain does not go with q-learning" in result.err
