from __future__ import annotations

import gzip
import sys

import pytest

from karpa_tf.data.sources import embedded_documents, open_corpus, split_documents
from karpa_tf.errors import UserError
from tests.conftest import make_text


def read(source) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for split, text in open_corpus(str(source)).read():
        splits[split].append(text)
    return splits


def test_documents_are_split_90_5_5_and_always_alike() -> None:
    documents = [f"document {i}" for i in range(200)]
    once, twice = list(split_documents(documents)), list(split_documents(documents))
    assert once == twice
    assert [text for _, text in once] == documents
    counts = {name: sum(split == name for split, _ in once) for name in ("train", "validation", "test")}
    assert counts == {"train": 180, "validation": 10, "test": 10}


def test_embedded_text_is_english_prose_and_large_enough() -> None:
    documents = embedded_documents()
    assert sum(map(len, documents)) > 1_500_000
    assert any("statement" in text for text in documents)


def test_one_file_is_cut_into_blocks_at_paragraphs(tmp_path) -> None:
    text = make_text(400)
    path = tmp_path / "book.txt"
    path.write_text(text, encoding="utf-8")
    splits = read(path)
    assert all(splits.values())
    assert sorted("".join(text for blocks in splits.values() for text in blocks)) == sorted(text)
    share = sum(map(len, splits["train"])) / len(text)
    assert 0.85 < share < 0.95
    assert all(block.rstrip().endswith(".") for blocks in splits.values() for block in blocks)


def test_gzip_folder_and_file_hold_the_same_text(tmp_path) -> None:
    text = make_text(400)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    assert read(tmp_path / "plain") == read(tmp_path / "plain" / "a.txt") == read(tmp_path / "a.txt.gz")


def test_a_folder_with_its_own_test_split(tmp_path) -> None:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        for i in range(30):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} text {i}.", encoding="utf-8")
    splits = read(tmp_path)
    assert len(splits["test"]) == 30 and all(text.startswith("test") for text in splits["test"])
    assert all(text.startswith("train") for text in splits["train"] + splits["validation"])
    assert {split for split, _ in open_corpus(str(tmp_path)).as_test().read()} == {"test"}


def test_hidden_files_of_a_folder_are_left_out(tmp_path) -> None:
    folder = tmp_path / ".hidden parents count not"
    for name in ("a.txt", "b/C.TXT", ".ipynb_checkpoints/a-checkpoint.txt", "__MACOSX/._a.txt", "b/._C.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"Text {name}. ".encode() * 40 if "MAC" not in name else b"\0\xff\xfe")
    text = "".join(
        text for blocks in read(tmp_path / ".hidden parents count not").values() for text in blocks
    )
    assert "a.txt" in text and "C.TXT" in text and "checkpoint" not in text and "._" not in text


@pytest.mark.parametrize("encoding", ["utf-16", "gbk"])
def test_encodings_that_are_certain(tmp_path, encoding) -> None:
    text = "我们在这里，这是我的书。\n" * 90_000  # more than is read at once
    (tmp_path / "a.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    blocks = [text for part in read(tmp_path / "a.txt").values() for text in part]
    assert sorted("".join(blocks)) == sorted(text)


def test_byte_order_mark_and_windows_line_ends_go(tmp_path) -> None:
    path = tmp_path / "windows.txt"
    path.write_bytes(b"\xef\xbb\xbf" + make_text(400).replace("\n", "\r\n").encode())
    text = "".join(text for blocks in read(path).values() for text in blocks)
    assert "\ufeff" not in text and "\r" not in text


def bad_sources(folder):
    (folder / "empty.txt").write_text(" \n")
    (folder / "latin1.txt").write_bytes("café".encode("latin-1") * 100)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "broken.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:30])
    (folder / "nothing").mkdir()
    return {
        "missing.txt": 'There is no file or folder "',
        "empty.txt": "is empty",
        "latin1.txt": "is not UTF-8 text: byte 0xe9",
        "picture.png": "is not a .txt or .txt.gz file",
        "broken.txt.gz": "cannot be read",
        "nothing": "holds no .txt or .txt.gz file",
    }


def test_bad_sources_are_named(tmp_path) -> None:
    for name, sentence in bad_sources(tmp_path).items():
        with pytest.raises(UserError) as caught:
            read(tmp_path / name)
        assert sentence in str(caught.value) and name in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions work differently there")
def test_tfds_without_a_network_names_the_offline_choice(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError) as caught:
        open_corpus("tfds:no_such_data_set")
    assert "embedded" in str(caught.value)


def test_tfds_text_is_read_with_its_test_split(tmp_path, monkeypatch) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")

    class KarpaNotes(tfds.core.GeneratorBasedBuilder):
        """A data set made here, so that no network is needed."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"note": tfds.features.Text()})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples("train", 60),
                "test": self._generate_examples("test", 25),
            }

        def _generate_examples(self, name, count):
            for i in range(count):
                yield i, {"note": f"{name} note number {i}."}

    monkeypatch.setattr(tfds, "builder", lambda name: KarpaNotes(data_dir=str(tmp_path)))
    corpus = open_corpus("tfds:karpa_notes")
    splits: dict[str, list[str]] = {}
    for split, text in corpus.read():
        splits.setdefault(split, []).append(text)
    assert len(splits["test"]) == 25 and all(text.startswith("test") for text in splits["test"])
    assert len(splits["train"]) + len(splits["validation"]) == 60
