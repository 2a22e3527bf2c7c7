"""Where text comes from, as a stream of documents that are split 90/5/5, always in the same way.

A source is `embedded`, a `.txt` or `.txt.gz` file, a folder of them, or `tfds:NAME`. A document is a
file, a record of TFDS, or a page of the Python reference. With fewer than 20 documents the documents
are cut into long blocks first, at paragraphs, and the blocks are split.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import inspect
import io
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from karpa_tf.data.cells import encoding_of, is_hidden
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# One document in 20 goes to validation and one to test: 90/5/5.
_GROUP = 20
# The split is part of the data, not of a run: it must not change with the run's seed.
_SPLIT_SEED = 20
_CHUNK = 1 << 20
_LARGEST_BLOCK = 1 << 16
_SMALLEST_BLOCK = 200


@dataclass(frozen=True, repr=False)
class DataRecord(InALine):
    """What a run notes of its data, to recognize it.

    Attributes:
        fingerprint: hash of the data and of how they are split.
        sizes: of the splits.
        labels: those of the training split; none for text.
    """

    fingerprint: str
    sizes: dict[str, int]
    labels: list[str] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class Corpus(InALine):
    """Text that can be read as often as needed.

    Attributes:
        name: what the user typed.
        fingerprint: hash of the text and of how it is split.
        read: returns (split, document) pairs, the same ones at each call.
        brings_test: the data holds a test split of its own.
    """

    name: str
    fingerprint: str
    read: Callable[[], Iterator[tuple[Split, str]]]
    brings_test: bool = False

    def as_test(self) -> Corpus:
        """Returns what `evaluate --data` reads: the data's own test split, or else all of it."""

        def read() -> Iterator[tuple[Split, str]]:
            for split, text in self.read():
                if split == "test" or not self.brings_test:
                    yield "test", text

        return Corpus(self.name, f"{self.fingerprint}-test", read, self.brings_test)


def open_corpus(source: str) -> Corpus:
    """Opens a text source.

    Args:
        source: `embedded`, a path, or `tfds:NAME`.

    Returns:
        The text, which is read when it is asked for.

    Raises:
        UserError: the source is missing, empty, not UTF-8, or needs a network that is not there.
    """
    if source == "embedded":
        documents = embedded_documents()
        return _corpus(source, _hash(text.encode() for text in documents), lambda: documents)
    if source.startswith("tfds:"):
        return _tfds_corpus(source)
    path = Path(source)
    if path.is_dir():
        return _folder_corpus(path)
    if not path.exists():
        raise UserError(
            f'There is no file or folder "{source}"; give a .txt, a .txt.gz, a folder of them, '
            "tfds:NAME, or embedded."
        )
    if not _is_text(path):
        raise UserError(f"{source} is not a .txt or .txt.gz file; received a {path.suffix} file.")
    return _files_corpus(source, [path])


def split_documents(documents: Iterable[str]) -> Iterator[tuple[Split, str]]:
    """Gives one document in each 20 to validation and one to test, chosen by a fixed seed.

    Fewer than 20 documents still give one to each.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    group: list[str] = []
    first = True

    def deal(size: int) -> Iterator[tuple[Split, str]]:
        validation, test = rng.choice(size, 2, replace=False) if size > 2 else (-1, -1)
        for index, text in enumerate(group):
            split: Split = "train"
            if index == validation:
                split = "validation"
            elif index == test:
                split = "test"
            yield split, text

    for document in documents:
        group.append(document)
        if len(group) == _GROUP:
            yield from deal(_GROUP)
            group, first = [], False
    yield from deal(len(group) if first else _GROUP)


# --- Embedded -------------------------------------------------------------------------------------

# A triple-quoted string that opens a line is nearly always a docstring.
_DOCSTRING = re.compile(r'^[ \t]*[rR]?"""(.*?)"""', re.DOTALL | re.MULTILINE)
_NOT_PROSE = ("test", "tests", "idle_test", "site-packages", "pydoc_data", "lib2to3", "idlelib")


def embedded_documents() -> list[str]:
    """Returns the topics of the Python reference and the standard library's docstrings, a module each.

    The text depends on the Python version alone.
    """
    import pydoc_data.topics

    documents = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if set(path.relative_to(library).parts[:-1]) & set(_NOT_PROSE):
            continue
        source = path.read_text(encoding="utf-8", errors="ignore")
        docstrings = [inspect.cleandoc(match[1]) for match in _DOCSTRING.finditer(source)]
        if docstrings:
            documents.append("\n\n".join(docstrings))
    return documents


# --- Files ----------------------------------------------------------------------------------------


def _is_text(path: Path) -> bool:
    return path.name.lower().endswith((".txt", ".txt.gz"))


def _folder_corpus(folder: Path) -> Corpus:
    found = (path for path in folder.rglob("*") if path.is_file() and _is_text(path))
    files = sorted(path for path in found if not is_hidden(path.relative_to(folder)))
    if not files:
        raise UserError(f"{folder} holds no .txt or .txt.gz file.")
    own_test = [path for path in files if path.relative_to(folder).parts[0] == "test"]
    if own_test and len(own_test) < len(files):
        rest = [path for path in files if path not in own_test]
        return _with_own_test(_files_corpus(str(folder), rest), _files_corpus("", own_test))
    return _files_corpus(str(folder), files)


def _with_own_test(rest: Corpus, test: Corpus) -> Corpus:
    """Data that brings a test split: training never reads it, and validation is cut from the rest."""

    def read() -> Iterator[tuple[Split, str]]:
        for split, text in rest.read():
            yield ("train" if split == "test" else split), text
        for _, text in test.read():
            yield "test", text

    fingerprint = _hash([rest.fingerprint.encode(), test.fingerprint.encode()])
    return Corpus(rest.name, fingerprint, read, brings_test=True)


def _files_corpus(name: str, files: list[Path]) -> Corpus:
    size = 0
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        size += _scan(path, digest.update)
    if size == 0:
        raise UserError(f"{name} is empty: there is no text to learn from.")
    if len(files) >= _GROUP:
        return _corpus(name, digest.hexdigest(), lambda: map(_read_whole, files))
    block = min(max(size // 100, _SMALLEST_BLOCK), _LARGEST_BLOCK)

    def blocks() -> Iterator[str]:
        for path in files:
            yield from _blocks(path, block)

    return _corpus(name, digest.hexdigest(), blocks)


def _corpus(name: str, fingerprint: str, documents: Callable[[], Iterable[str]]) -> Corpus:
    return Corpus(name, fingerprint, lambda: split_documents(text for text in documents() if text.strip()))


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _scan(path: Path, update: Callable[[bytes], object]) -> int:
    """Feeds a file's bytes to `update` and returns how many of them are no white space."""
    size = 0
    try:
        with _open(path) as file:
            while chunk := file.read(_CHUNK):
                update(chunk)
                size += len(chunk) if chunk.strip() else 0
    except (EOFError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path} cannot be read: {reason}.") from None
    return size


def _decoded(path: Path) -> Iterator[str]:
    """Yields a file's text in pieces; UTF-8 with or without a byte order mark, or as `encoding_of` says."""
    decoder: io.IncrementalNewlineDecoder | None = None
    position = 0
    with _open(path) as file:
        while True:
            chunk = file.read(_CHUNK)
            if decoder is None:
                inner = codecs.getincrementaldecoder(encoding_of(chunk))()
                decoder = io.IncrementalNewlineDecoder(inner, translate=True)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path} is not UTF-8 text: byte {error.object[error.start]:#04x} near position "
                    f"{position + error.start}; convert the file to UTF-8."
                ) from None
            position += len(chunk)
            yield text
            if not chunk:
                return


def _read_whole(path: Path) -> str:
    return "".join(_decoded(path))


# Where a block may end, best first: a blank line, the end of a sentence, of a line, of a word.
_CUTS = [
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"[.!?][\"')\]]*\s+|[。！？]"),
    re.compile(r"\n"),
    re.compile(r"\s"),
]


def _blocks(path: Path, size: int) -> Iterator[str]:
    buffer = ""
    for text in _decoded(path):
        buffer += text
        begin = 0
        while len(buffer) - begin > 2 * size:
            end = _cut(buffer, begin + size, begin + 2 * size)
            yield buffer[begin:end]
            begin = end
        buffer = buffer[begin:]
    if buffer.strip():
        yield buffer


def _cut(text: str, begin: int, end: int) -> int:
    for pattern in _CUTS:
        match = pattern.search(text, begin, end)
        if match:
            return match.end()
    return end


# --- TFDS -----------------------------------------------------------------------------------------


def _tfds_corpus(source: str) -> Corpus:
    name = source.removeprefix("tfds:")
    builder = open_tfds(name)
    import tensorflow_datasets as tfds

    texts = [
        key for key, feature in dict(builder.info.features).items() if isinstance(feature, tfds.features.Text)
    ]
    if not texts:
        raise UserError(f"{source} has no text feature; its features: {list(builder.info.features)}.")
    key = "text" if "text" in texts else texts[0]

    def documents(splits: list[str]) -> Iterator[str]:
        for split in splits:
            for example in tfds.as_numpy(builder.as_dataset(split=split)):
                yield example[key].decode("utf-8", errors="replace")

    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    fingerprint = _hash([builder.info.full_name.encode(), repr(sorted(sizes.items())).encode()])
    rest = [split for split in sizes if split != "test"]
    corpus = _corpus(source, fingerprint, lambda: documents(rest or ["test"]))
    if "test" in sizes and rest:
        return _with_own_test(corpus, _corpus(source, fingerprint, lambda: documents(["test"])))
    return corpus


def open_tfds(name: str) -> Any:
    """Returns the prepared builder of a TFDS data set, downloading it where there is a network.

    Raises:
        UserError: the data set is unknown, or cannot be downloaded.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    try:
        builder = tfds.builder(name)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"tfds:{name} is not available: {reason} Without a network use a local file or --data embedded."
        ) from None
    # Without a network its ten tries take minutes.
    downloader.MAX_RETRIES = min(getattr(downloader, "MAX_RETRIES", 2), 2)
    try:
        builder.download_and_prepare()
    except Exception as error:  # the downloader raises whatever its HTTP library does
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
        raise UserError(
            f"tfds:{name} could not be downloaded ({reason}); without a network use a local file or "
            "--data embedded."
        ) from None
    return builder


def _hash(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
