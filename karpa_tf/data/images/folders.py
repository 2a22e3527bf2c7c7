"""Images in class folders, of a folder or of an archive, perhaps below folders that name splits."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from karpa_tf.data.images.common import Images, Reader, count
from karpa_tf.data.images.decode import UNREADABLE, decode_image, reason, suffixes
from karpa_tf.data.images.files import Files
from karpa_tf.data.sources import SPLITS, Split
from karpa_tf.data.tables import FILES
from karpa_tf.data.text import cache_folder
from karpa_tf.errors import UserError

# What may stand beside `train` in the name of a folder of images without labels.
_UNLABELLED = ("pred", "predict", "prediction", "unlabeled", "unlabelled")


def read_class_folders(path: Path, files: Files, reader: Reader) -> dict[Split, Images]:
    """Reads the images of class folders.

    Raises:
        UserError: there are none, an image lies in no class folder, or the folders do not say which are the
            classes.
    """
    known = suffixes()
    listed = [name.split("/") for name in files.read if Path(name).suffix.lower() in known]
    others = [name for name in files.read if Path(name).suffix.lower() not in known]
    if not listed:
        first = f"; it holds {count(others, 'other file')}, {others[0]} first" if others else ""
        raise UserError(
            f"{path} holds no images that Pillow reads (.png, .jpg and the like) in class folders, no idx "
            f"files and no batches of CIFAR-10{first}."
        )
    depth = _depth(listed)
    split_of = _splits_of(path, [parts[depth:] for parts in listed], reader.nested)
    groups: dict[Split, list[tuple[list[str], str]]] = {}
    odd: list[str] = []
    for parts in listed:
        below = parts[depth:]
        split: Split = "train"
        if split_of:
            if below[0] not in split_of:
                odd.append("/".join(parts))
                continue
            split, below = split_of[below[0]], below[1:]
        groups.setdefault(split, []).append((below, "/".join(parts)))
    found = {split: _labelled(path, split, group, reader.nested) for split, group in groups.items()}
    found, twice = _once(path, found, files)
    _note(path, reader, odd, "image", "outside of the splits")
    _note(path, reader, others, "file", "no image that Pillow reads")
    _note(path, reader, _hidden_images(files, known), "hidden image", "")
    _note(path, reader, files.astray, "link", "leading nowhere, or back to a folder that holds it")
    _note(path, reader, files.empty, "folder", "empty")
    _note(path, reader, twice, "image", "of a linked folder that is read under another name already")
    below_splits = [name.split("/")[depth:] for name in files.empty]
    below_splits = [parts[1:] if parts[:1] and parts[0] in split_of else parts for parts in below_splits]
    classes = {label for group in found.values() for label, _ in group}
    reader.bare += sorted({parts[0] for parts in below_splits if len(parts) == 1} - classes)
    return _decoded(path, found, files.read, reader)


def _note(path: Path, reader: Reader, names: Sequence[str], what: str, why: str) -> None:
    if names:
        was = "was" if len(names) == 1 else "were"
        why = f" ({why})" if why else ""
        reader.add(
            f"{path}: {count(names, what)} {was} left out{why}: {names[0]}{' first' * (len(names) > 1)}."
        )


def _hidden_images(files: Files, known: set[str]) -> list[str]:
    # macOS puts a file of its own beside each of an archive's, by the same name behind "._".
    of_macos = re.compile(r"(^|/)(\._|__MACOSX)")
    return [name for name in files.hidden if Path(name).suffix.lower() in known and not of_macos.search(name)]


# --- Which folders are splits, and which are classes ----------------------------------------------


def _depth(listed: Sequence[Sequence[str]]) -> int:
    """Returns how many folders lie around everything, which say nothing."""
    depth = 0
    while all(len(parts) > depth + 2 for parts in listed) and len({p[depth] for p in listed}) == 1:
        depth += 1
    return depth


def _split_named(name: str) -> Split | None:
    """Returns the split that a folder's name speaks of: `training_set`, `seg_train`, `Test Images`."""
    words = re.findall("[a-z]+", name.lower())
    words += [re.sub("(set|data)$", "", word) for word in words]
    named = [split for split in SPLITS if set(words) & set(FILES[split])]
    return named[0] if len(named) == 1 else None


def _splits_of(path: Path, listed: Sequence[Sequence[str]], nested: bool) -> dict[str, Split]:
    """Returns the splits of the first folders by name; nothing where these are the classes.

    Raises:
        UserError: two folders for one split, or first folders that may be splits or classes.
    """
    inner: dict[str, set[str]] = {}
    for parts in listed:
        if len(parts) > 2:
            inner.setdefault(parts[0], set()).add(parts[1])
    exact = {name: split for name in inner for split in SPLITS if name.lower() in FILES[split]}
    named = {name: split for name in inner if (split := _split_named(name)) and split not in exact.values()}
    rest = [
        name
        for name in {parts[0] for parts in listed}
        if name not in {**exact, **named} and not set(re.findall("[a-z]+", name.lower())) & set(_UNLABELLED)
    ]
    # A folder of such a name may be a class (`steam_train`) where the others name no split.
    found = {**exact, **named} if "train" in exact.values() or not rest else exact
    if "train" in found.values():
        for split in SPLITS:
            several = sorted(name for name, of in found.items() if of == split)
            if len(several) > 1:
                raise UserError(
                    f"{path} has {len(several)} folders for the {split} split: {', '.join(several)}; join "
                    "them, or take all but one away."
                )
        # Beside them a split may lie without class folders; what lies there is then refused.
        plain = {parts[0] for parts in listed if parts[0].lower() in sum(FILES.values(), ())}
        return found | {name: s for name in plain for s in SPLITS if name.lower() in FILES[s]}
    first = sorted(inner)
    if not nested and len(first) > 1 and len({parts[0] for parts in listed}) == len(first):
        same = set.intersection(*inner.values())
        if len(same) > 1 and all(names == same for names in inner.values()):
            raise UserError(
                f"{path}: the folders {_some(first)} all hold folders of the same names "
                f"({_some(sorted(same))}), so either may be the classes: "
                "name the folders of splits train, validation and test, or put the images of a class "
                "directly into its folder."
            )
    return {}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (" and others" if len(names) > 4 else "")


def _labelled(
    path: Path, split: Split, group: Sequence[tuple[list[str], str]], nested: bool
) -> list[tuple[str, str]]:
    """Returns (class, name) of the images of a split."""
    # Archives often wrap a folder into one of its own name: training_set/training_set/cats.
    while all(len(below) > 2 for below, _ in group) and len({below[0] for below, _ in group}) == 1:
        if _split_named(group[0][0][0]) != split:
            break
        group = [(below[1:], name) for below, name in group]
    for below, name in group:
        if len(below) < 2:
            raise UserError(
                f"{path}: {name} lies in no class folder; put the images of each class into a folder "
                "that has its name."
            )
    return [("/".join(below[:-1]) if nested else below[0], name) for below, name in group]


def _once(
    path: Path, found: Mapping[Split, list[tuple[str, str]]], files: Files
) -> tuple[dict[Split, list[tuple[str, str]]], list[str]]:
    """Takes out the images of linked folders that are there under another name, and returns their names."""
    root = Path(path).resolve()
    seen = {root / name for group in found.values() for _, name in group if name not in files.real}
    kept: dict[Split, list[tuple[str, str]]] = {}
    twice: list[str] = []
    for split, group in found.items():
        for label, name in group:
            if name in files.real:
                if files.real[name] in seen:
                    twice.append(name)
                    continue
                seen.add(files.real[name])
            kept.setdefault(split, []).append((label, name))
    return kept, twice


# --- Decoding -------------------------------------------------------------------------------------


def _decoded(
    path: Path,
    groups: Mapping[Split, list[tuple[str, str]]],
    files: Mapping[str, Callable[[], bytes]],
    reader: Reader,
) -> dict[Split, Images]:
    """Decodes files, or takes what was decoded before from the cache."""
    contents: dict[str, bytes | OSError] = {}
    for names in groups.values():
        for _, name in names:
            try:
                contents[name] = files[name]()
            except OSError as error:
                contents[name] = error
    # The number is that of the way in which images are decoded.
    digest = hashlib.blake2b(repr((reader.size, reader.channels, 2)).encode(), digest_size=16)
    for name, data in contents.items():
        data = data if isinstance(data, bytes) else reason(data).encode()
        digest.update(repr((name, len(data))).encode())
        digest.update(data)
    cached = cache_folder() / f"images-{digest.hexdigest()}.npz"
    try:
        with np.load(cached) as file:
            pixels, sizes, errors = file["pixels"], file["sizes"], file["errors"].tolist()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pixels = np.zeros((len(contents), reader.size, reader.size, reader.channels), np.uint8)
        sizes = np.zeros((len(contents), 2), np.int64)
        errors = []
        for i, data in enumerate(contents.values()):
            try:
                if isinstance(data, OSError):
                    raise data
                pixels[i], sizes[i] = decode_image(data, reader.size, reader.channels)
                errors.append("")
            except UNREADABLE as error:
                errors.append(reason(error))
        cached.parent.mkdir(parents=True, exist_ok=True)
        temporary = cached.with_name(f".tmp-{cached.name}")
        np.savez(temporary, pixels=pixels, sizes=sizes, errors=np.array(errors))
        temporary.replace(cached)
    place = {name: i for i, name in enumerate(contents)}
    _report(path, list(contents), sizes, errors, reader)
    found: dict[Split, Images] = {}
    for split, listed in groups.items():
        kept = [(label, name) for label, name in listed if not errors[place[name]]]
        lost = sorted({label for label, _ in listed} - {label for label, _ in kept})
        if not kept:
            raise UserError(
                f"{path}: none of the {count(listed)} of the {split} split can be read, e.g. {listed[0][1]}: "
                f"{errors[place[listed[0][1]]]}."
            )
        if lost:
            reader.bare += lost if split == "train" else []
            reader.add(f"{path}: no image is left of {_some(lost)} in the {split} split.")
        index = [place[name] for _, name in kept]
        found[split] = Images(pixels[index], [x for x, _ in kept], [name for _, name in kept])
    return found


def _report(path: Path, names: list[str], sizes: Any, errors: list[str], reader: Reader) -> None:
    bad = [i for i, error in enumerate(errors) if error]
    if bad:
        first = f"{names[bad[0]]} ({errors[bad[0]]})"
        if len(bad) == len(names):
            raise UserError(f"{path}: none of its {count(bad)} can be read: {first}.")
        if reader.broken == "stop":
            raise UserError(
                f"{path}: {count(bad)} cannot be read: {first}; mend or delete it, or leave such files out "
                "with --broken skip."
            )
        was = "was" if len(bad) == 1 else "were"
        reader.add(f"{path}: {count(bad)} cannot be read and {was} left out: {first}.")
    seen = {(int(w), int(h)) for (w, h), error in zip(sizes, errors, strict=True) if not error}
    if seen != {(reader.size, reader.size)}:
        some = ", ".join(f"{w} x {h}" for w, h in sorted(seen)[:3])
        more = f" and {count(range(3, len(seen)), 'other size')}" if len(seen) > 3 else ""
        reader.add(f"{path}: images of {some}{more} were made {reader.size} x {reader.size}.")
