"""Classes are split so that what is tested on was never trained on: images, alphabets, glyphs, texts."""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from karpa_tf.data.images import Images
from karpa_tf.data.sources import SPLITS
from karpa_tf.errors import UserError
from karpa_tf.meta.classes import ClassTasks, split_by_class
from karpa_tf.meta.glyphs import EXAMPLES, SCRIPTS, read_glyphs
from karpa_tf.meta.images import open_image_tasks
from karpa_tf.meta.tasks import TaskData
from karpa_tf.meta.texts import open_text_tasks
from tests.conftest import write_class_folders, write_csv

SIZE = {"ways": 2, "shots": 1, "queries": 2}


def pictures(count: int, seed: int = 0, high: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (count, 8, 8), dtype=np.uint8)


def write_alphabets(path: Path, alphabets: dict[str, int], each: int = 4, high: int = 100) -> Path:
    """A zip as Omniglot's: a folder around alphabets of characters, whose names are the same in each."""
    labels = [f"{name}/character{i + 1:02}" for name, count in alphabets.items() for i in range(count)]
    places = np.repeat(np.arange(len(labels)), each)
    folder = path.with_suffix("") / "images_background"
    write_class_folders(folder, pictures(len(places), high=high), places, labels)
    with zipfile.ZipFile(path, "w") as file:
        for image in sorted(folder.rglob("*.png")):
            file.write(image, image.relative_to(folder.parent))
    return path


def classes(data: TaskData) -> dict[str, set[str]]:
    return {split: set(tasks.classes) for split, tasks in data.splits.items()}


def check_disjoint(data: TaskData) -> None:
    every = [x for found in classes(data).values() for x in found]
    assert set(data.splits) == set(SPLITS) and len(every) == len(set(every))


# --- Which class is of which split ----------------------------------------------------------------


@pytest.mark.parametrize(("count", "sizes"), [(10, (4, 3, 3)), (20, (10, 5, 5)), (100, (64, 16, 20))])
def test_a_fifth_of_the_classes_or_more_of_few(count: int, sizes: Sequence[int]) -> None:
    labels = [f"{i % count:03}" for i in range(3 * count)]
    places = split_by_class(labels, ["train"] * len(labels))
    assert tuple(len({labels[i] for i in places[split]}) for split in SPLITS) == sizes
    assert sorted(np.concatenate(list(places.values())).tolist()) == list(range(3 * count))


def test_splits_of_other_classes_stand() -> None:
    labels, given = list("aabbccdd"), ["train"] * 4 + ["test"] * 2 + ["validation"] * 2
    places = split_by_class(labels, given)
    assert {split: rows.tolist() for split, rows in places.items()} == {
        "train": [0, 1, 2, 3],
        "validation": [6, 7],
        "test": [4, 5],
    }


def test_splits_of_the_same_classes_are_split_anew_and_never_trained_on_a_test_row() -> None:
    labels = [f"{i % 10}" for i in range(40)]
    given = ["train"] * 30 + ["test"] * 10
    places = split_by_class(labels, given)
    tested = {labels[i] for i in places["test"]}
    assert len(tested) == 3 and len(places["test"]) == 12
    assert max(places["train"]) < 30 and max(places["validation"]) < 30
    assert not tested & {labels[i] for split in ("train", "validation") for i in places[split]}


# --- Images ---------------------------------------------------------------------------------------


def test_class_folders_are_split_by_class(tmp_path: Path) -> None:
    names = [f"thing {i}" for i in range(9)]
    folder = write_class_folders(tmp_path / "things", pictures(36), np.arange(36) % 9, names)
    data = open_image_tasks(str(folder), size=8, **SIZE)
    check_disjoint(data)
    assert data.record.sizes == {"train": 3, "validation": 3, "test": 3}
    assert data.splits["train"].shape == (8, 8, 1)
    again = open_image_tasks(str(folder), size=8, ways=3, shots=2, queries=1)
    assert again.record == data.record and classes(again) == classes(data)
    every = open_image_tasks(str(folder), size=8, only_test=True, **SIZE)
    assert classes(every) == {"test": set(names)}


def test_an_npz_of_one_set_of_classes_is_split_by_class(tmp_path: Path) -> None:
    y = np.arange(90) % 9
    x = pictures(90)
    np.savez(tmp_path / "a.npz", x_train=x[:72], y_train=y[:72], x_test=x[72:], y_test=y[72:])
    data = open_image_tasks(str(tmp_path / "a.npz"), size=8, **SIZE)
    check_disjoint(data)
    test, train = data.splits["test"], data.splits["train"]
    assert len(test.examples) == 30 and len(train.examples) == 24
    own = open_image_tasks(str(tmp_path / "a.npz"), size=8, ways=2, shots=1, queries=1, only_test=True)
    assert len(own.splits["test"].examples) == 18


def test_alphabets_are_split_by_alphabet(tmp_path: Path) -> None:
    path = write_alphabets(tmp_path / "o.zip", {"Greek": 6, "Latin": 6, "Korean": 6})
    data = open_image_tasks(str(path), size=8, **SIZE)
    check_disjoint(data)
    alphabets = {split: {x.split("/")[0] for x in found} for split, found in classes(data).items()}
    assert len(alphabets["test"]) == 1 and len(classes(data)["test"]) == 6
    # Of so few alphabets none is spared for validation.
    assert alphabets["train"] == alphabets["validation"] == {"Greek", "Latin", "Korean"} - alphabets["test"]
    assert data.notes[-1] == f"{path}: tested on {alphabets['test'].pop()}."


def test_a_task_to_train_on_is_of_one_alphabet_turned_alike(tmp_path: Path) -> None:
    path = write_alphabets(tmp_path / "o.zip", {"Greek": 8, "Latin": 9, "Korean": 7})
    tasks = open_image_tasks(str(path), ways=3, shots=1, queries=1, rotations=True).splits["train"]
    assert isinstance(tasks, ClassTasks)
    names = {tasks.floats([row]).tobytes(): tasks.classes[tasks.places[row]] for row in range(len(tasks.places))}
    support = tasks.sample(np.random.default_rng(0), 100, shots=1, queries=1).support
    found = [{names[image.tobytes()] for image in task} for task in support]
    kinds = [{(name.split("/")[0], name.partition(" ")[2]) for name in task} for task in found]
    assert all(len(task) == 3 for task in found) and all(len(kind) == 1 for kind in kinds)
    assert len(set.union(*kinds)) == 8, "two alphabets, each turned in four ways"


def test_many_alphabets_are_validated_on_alphabets_of_their_own(tmp_path: Path) -> None:
    path = write_alphabets(tmp_path / "o.zip", {f"A{i}": 2 for i in range(10)}, each=3)
    alphabets = [
        {x.split("/")[0] for x in of} for of in classes(open_image_tasks(str(path), **SIZE)).values()
    ]
    assert [len(of) for of in alphabets] == [6, 2, 2] and len(set.union(*alphabets)) == 10


def test_dark_on_light_is_inverted(tmp_path: Path) -> None:
    labels = np.arange(36) % 9
    ink = np.where(pictures(36) > 80, 255, 0).astype(np.uint8)
    names = [f"{i}" for i in range(9)]
    light = open_image_tasks(str(write_class_folders(tmp_path / "a", ink, labels, names)), size=8, **SIZE)
    dark = open_image_tasks(
        str(write_class_folders(tmp_path / "b", 255 - ink, labels, names)), size=8, **SIZE
    )
    a, b = (data.splits["train"].examples for data in (light, dark))
    assert np.array_equal(a, b) and a.mean() < 127
    assert not light.notes and "were inverted: ink is 1" in dark.notes[0]


def test_rotations_are_classes_to_train_on_alone(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(9)]
    folder = write_class_folders(tmp_path / "a", pictures(36), np.arange(36) % 9, names)
    plain, turned = (open_image_tasks(str(folder), size=8, rotations=r, **SIZE) for r in (False, True))
    found = classes(turned)
    base = classes(plain)["train"]
    assert found["train"] == {f"{x}{angle}" for x in base for angle in ("", " 90", " 180", " 270")}
    assert {s: found[s] for s in ("validation", "test")} == {
        s: classes(plain)[s] for s in ("validation", "test")
    }
    tasks: Any = turned.splits["train"]
    first = {name: tasks.examples[tasks.places == tasks.classes.index(name)] for name in tasks.classes}
    name = min(base)
    for k, angle in enumerate((" 90", " 180", " 270"), 1):
        assert np.array_equal(first[name + angle], np.rot90(first[name], k, axes=(1, 2)))


def test_what_is_too_small_or_there_twice_is_left_out_and_counted(tmp_path: Path) -> None:
    labels = np.concatenate([np.arange(40) % 10, [10, 11, 0]])
    images = pictures(43)
    images[-1] = images[0]
    names = [f"{i:02}" for i in range(12)]
    data = open_image_tasks(str(write_class_folders(tmp_path / "a", images, labels, names)), size=8, **SIZE)
    assert data.notes[0].endswith(": 1 image that came twice left out.")
    assert data.notes[1].endswith(": 2 classes of fewer than 3 images left out: 10 and so on.")
    assert len(set.union(*classes(data).values())) == 10


# --- Glyphs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def glyphs() -> dict[Any, Images]:
    return read_glyphs(14)


def test_glyphs_are_split_by_script(glyphs: dict[Any, Images]) -> None:
    assert list(glyphs) == list(SPLITS)
    for split, images in glyphs.items():
        counts = {label: images.labels.count(label) for label in set(images.labels)}
        assert set(counts.values()) == {EXAMPLES} and len(counts) > 50
        assert {label.split(" ")[0] for label in counts} == set(SCRIPTS[split])
        assert all(unicodedata.lookup(label) for label in counts)
    every = [script for scripts in SCRIPTS.values() for script in scripts]
    assert len(every) == len(set(every))


def test_no_two_letters_look_alike(glyphs: dict[Any, Images]) -> None:
    labels = {label for images in glyphs.values() for label in images.labels}
    for group in (
        {"LATIN CAPITAL LETTER O", "LATIN SMALL LETTER O", "GREEK CAPITAL LETTER OMICRON", "LISU LETTER O"},
        {"LATIN CAPITAL LETTER A", "GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A"},
        {"LATIN CAPITAL LETTER N", "HEBREW LETTER FINAL NUN", "ARMENIAN CAPITAL LETTER SEH"},
    ):
        assert len(labels & group) <= 2
    assert "LATIN CAPITAL LETTER A" in labels and "CYRILLIC CAPITAL LETTER A" not in labels
    assert "ARMENIAN SMALL LETTER OH" not in labels  # an o


def test_glyphs_are_ink_on_nothing_and_each_is_another(glyphs: dict[Any, Images]) -> None:
    pixels = np.concatenate([images.pixels for images in glyphs.values()])[..., 0]
    ink = pixels.mean(axis=(1, 2)) / 255
    assert ink.min() > 0.005 and ink.max() < 0.6 and pixels.max() == 255
    assert len(np.unique(pixels.reshape(len(pixels), -1), axis=0)) == len(pixels)


def test_glyphs_are_always_the_same(glyphs: dict[Any, Images]) -> None:
    read_glyphs.cache_clear()
    data = open_image_tasks(size=14, ways=5, shots=1, queries=15)
    check_disjoint(data)
    for split, tasks in data.splits.items():
        images = glyphs[split]
        assert np.array_equal(tasks.examples, images.pixels[np.argsort(images.labels, kind="stable")])


# --- Texts ----------------------------------------------------------------------------------------


def embed(texts: list[str]) -> np.ndarray:
    """Vectors that say which text it was."""
    return np.array([[len(text), int(text.split()[-1])] for text in texts], np.float64)


def test_texts_are_split_by_label_and_embedded_once(tmp_path: Path) -> None:
    rows = [(f"text of {i % 10} number {i}", f"label {i % 10}") for i in range(60)]
    write_csv(tmp_path / "t" / "train.csv", rows[:50])
    write_csv(tmp_path / "t" / "test.csv", rows[50:])
    asked: list[str] = []

    def once(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return embed(texts)

    data = open_text_tasks(str(tmp_path / "t"), once, **SIZE)
    check_disjoint(data)
    assert data.record.sizes == {"train": 4, "validation": 3, "test": 3}
    # 3 labels have all of their texts, the other 7 those of the training file.
    assert len(asked) == len(set(asked)) == 3 * 6 + 7 * 5
    for tasks in data.splits.values():
        assert tasks.shape == (2,)
        for vector, place in zip(tasks.examples, tasks.places, strict=True):
            assert tasks.classes[place] == f"label {int(vector[1]) % 10}"
    own = open_text_tasks(str(tmp_path / "t"), embed, ways=2, shots=1, queries=1)
    assert own.record == data.record


def test_texts_that_come_twice_are_left_out() -> None:
    texts = [f"number {i}" for i in range(36)] + ["Number  3"]
    data = open_text_tasks({"text": texts, "label": [f"{i % 9}" for i in range(37)]}, embed, **SIZE)
    assert data.notes == ["The table: 1 texts that came before were left out."]


# --- What cannot be -------------------------------------------------------------------------------


def of_images(path: Path, each: Sequence[int], **settings: int) -> None:
    labels = np.repeat(np.arange(len(each)), each)
    folder = write_class_folders(
        path / "a", pictures(len(labels)), labels, [f"{i:02}" for i in range(len(each))]
    )
    open_image_tasks(str(folder), size=8, **{**SIZE, **settings})


def of_zip(path: Path, names: Sequence[str], only_test: bool = False) -> None:
    with zipfile.ZipFile(path / "a.zip", "w") as file:
        for i, name in enumerate(names):
            Image.fromarray(pictures(1, i)[0]).save(path / "a.png")
            file.write(path / "a.png", name)
    open_image_tasks(str(path / "a.zip"), size=8, only_test=only_test, **SIZE)


CHARACTERS = [f"Greek/character{i:02}/{j}.png" for i in range(9) for j in range(3)]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda path: of_images(path, [4] * 10, ways=5),
            "5-way 1-shot tasks need 5 classes in each split, of 1 + 2 images each. Received: 4 to train on, "
            "3 to validate on, 3 to test on; the largest class holds 4 images.",
        ),
        (
            lambda path: of_images(path, [4] * 10, shots=7),
            "2-way 7-shot tasks need 2 classes in each split, of 7 + 2 images each. Received: 0 to train on, "
            "0 to validate on, 0 to test on; the largest class holds 4 images.",
        ),
        (lambda path: of_images(path, [1] * 9 + [4]), "the largest class holds 4 images."),
        (lambda path: of_images(path, [4, 4]), "Received: 1 to train on, 1 to validate on, 0 to test on"),
        (
            lambda path: of_images(path, [4] * 9, ways=1),
            "A task has 2 ways, 1 shot and 1 query of each class",
        ),
        (lambda path: of_zip(path, CHARACTERS), "a.zip holds one alphabet only, of 9 classes"),
        (lambda path: of_zip(path, ["1.png", "2.png"]), "1.png lies in no class folder"),
        (lambda path: of_zip(path, ["a/1.txt"]), "holds no images that Pillow reads"),
        (lambda path: open_image_tasks(str(path / "no.zip"), **SIZE), "There is no file or folder"),
        (
            lambda path: open_text_tasks(
                {"text": [f"number {i}" for i in range(8)], "label": list("aabbccdd")}, embed, **SIZE
            ),
            "The table: 2-way 1-shot tasks need 2 classes in each split, of 1 + 2 texts each.",
        ),
        (
            lambda path: open_text_tasks(str(write_csv(path / "t.csv", [("number 1", "")])), embed, **SIZE),
            'has nothing in the column "label"',
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, make: Callable[[Path], Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        make(tmp_path)
    assert sentence in str(error.value)


def test_one_alphabet_can_be_evaluated_on(tmp_path: Path) -> None:
    of_zip(tmp_path, CHARACTERS, only_test=True)
