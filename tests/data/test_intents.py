from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hassil.intents import Intents, TextSlotList
from hassil.recognize import recognize_all
from home_assistant_intents import get_intents

from karpa_tf.data.intents import _NAMES, _VALUES, IntentSentence, embedded_intents
from karpa_tf.data.sources import SPLITS


@pytest.fixture(scope="module")
def sentences() -> list[IntentSentence]:
    return embedded_intents()


def slots(sentence: IntentSentence) -> dict[str, str]:
    """The words of each slot; raises KeyError where an I- has no B- of its own."""
    found: dict[str, str] = {}
    last = "O"
    for word, tag in zip(sentence.words, sentence.tags, strict=True):
        assert re.fullmatch(r"O|[BI]-\w+", tag)
        if tag.startswith("I-"):
            assert last[2:] == tag[2:], sentence
            found[tag[2:]] += f" {word}"
        elif tag.startswith("B-"):
            assert tag[2:] not in found, sentence
            found[tag[2:]] = word
        last = tag
    return found


def test_two_processes_make_the_same_sentences_without_tensorflow() -> None:
    program = (
        "import hashlib, random, sys\n"
        "import numpy as np\n"
        "random.seed(int(sys.argv[1])); np.random.seed(int(sys.argv[1]))\n"
        "from karpa_tf.data.intents import embedded_intents\n"
        "text = repr([(x, x.template) for x in embedded_intents()])\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, seed],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_a_call_leaves_the_next_one_and_the_global_random_state_alone() -> None:
    state = np.random.get_state()[1].tolist()
    first = embedded_intents()
    first.clear()
    assert embedded_intents()
    assert np.random.get_state()[1].tolist() == state


def test_no_template_and_no_text_is_in_two_splits(sentences) -> None:
    splits = defaultdict(set)
    for sentence in sentences:
        splits[sentence.template].add(sentence.split)
    assert all(len(found) == 1 for found in splits.values())
    assert max(Counter(sentence.words for sentence in sentences).values()) == 1
    train = sum(found == {"train"} for found in splits.values())
    assert 0.75 < train / len(splits) < 0.82


def test_every_intent_is_in_every_split_and_none_dominates(sentences) -> None:
    counts = Counter((sentence.intent, sentence.split) for sentence in sentences)
    intents = {sentence.intent for sentence in sentences}
    assert len(intents) >= 25
    assert all(counts[intent, split] for intent in intents for split in SPLITS)
    assert max(Counter(sentence.intent for sentence in sentences).values()) <= 300
    assert 5_000 <= len(sentences) <= 7_000


def test_only_intents_with_fewer_than_three_templates_are_left_out(sentences) -> None:
    used = defaultdict(set)
    for sentence in sentences:
        used[sentence.intent].add(sentence.template)
    for name, intent in get_intents("en")["intents"].items():
        templates = {text for block in intent["data"] for text in block["sentences"]}
        if len(templates) < 3:
            assert name not in used
        else:
            # A template may make nothing but what another one made before.
            assert len(used[name]) >= 0.9 * len(templates), name


def test_tags_are_iob2_and_those_of_validation_and_test_are_learned_in_train(sentences) -> None:
    tags = defaultdict(set)
    for sentence in sentences:
        slots(sentence)
        tags[sentence.split].update(sentence.tags)
    assert {"O", "B-area", "I-area", "B-name", "I-name"} <= tags["train"]
    assert tags["validation"] | tags["test"] <= tags["train"]


def test_sentences_are_plain_text(sentences) -> None:
    for sentence in sentences:
        text = " ".join(sentence.words)
        assert text.split() == list(sentence.words)
        assert not re.search(r"[{}<>\[\]()|;\\]", text)
        assert re.fullmatch(r"[a-zI0-9 '.%°/-]+", text), text


def test_rows_are_not_in_the_order_of_their_classes(sentences) -> None:
    assert len({sentence.intent for sentence in sentences[:100]}) > 15
    assert {sentence.split for sentence in sentences[:100]} == set(SPLITS)


def test_hassil_hears_the_same_intent_and_slots(sentences) -> None:
    intents = Intents.from_dict(get_intents("en"))
    lists = {name: TextSlotList.from_strings(_VALUES[name], name=name) for name in ("area", "floor")}
    names = [(name, name, {"domain": domain}) for domain in _NAMES for name in _NAMES[domain]]
    lists["name"] = TextSlotList.from_tuples(names, name="name")
    for sentence in sentences[:150]:
        expected = slots(sentence)
        heard = [
            {entity.name: entity.text.strip() for entity in result.entities_list if entity.text}
            for result in recognize_all(
                " ".join(sentence.words), intents, slot_lists=lists, intent_context={"area": "somewhere"}
            )
            if result.intent.name == sentence.intent
        ]
        # A word may hold more than the slot: "50%".
        assert any(
            found.keys() == expected.keys() and all(found[slot] in expected[slot] for slot in found)
            for found in heard
        ), sentence
