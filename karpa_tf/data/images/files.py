"""The files of a folder or of an archive, by name; what is hidden, linked or packed in an odd way."""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from karpa_tf.data.images.decode import reason
from karpa_tf.errors import UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass
class Files:
    """What lies in a folder or in an archive.

    Attributes:
        read: what reads each file, by its name with `/` between folders, in order; raises an OSError that
            says why it cannot be read.
        hidden: names of hidden files, and of what macOS puts into archives.
        empty: names of folders with nothing in them.
        astray: names of links that lead nowhere or back to a folder that they are in, of pipes and the like.
        real: for files below a linked folder, where they really are.
    """

    read: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    astray: list[str] = field(default_factory=list)
    real: dict[str, Path] = field(default_factory=dict)


@contextmanager
def open_files(path: Path) -> Iterator[Files]:
    """Yields the files of a folder, or those of an archive, which stays open.

    Raises:
        UserError: it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            files = _open(path, stack)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error) as error:
            raise UserError(f"{path} is a damaged archive: {reason(error)}.") from None
        except OSError as error:
            why = error.strerror or reason(error)
            raise UserError(f"{error.filename or path} cannot be read: {why}.") from None
        files.hidden = sorted(filter(_hidden, files.read))
        files.read = {name: files.read[name] for name in sorted(files.read) if not _hidden(name)}
        yield files


def _open(path: Path, stack: ExitStack) -> Files:
    files = Files()
    if path.is_dir():
        _visit(path, "", [], False, files)
    elif path.suffix.lower() == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(path))
        for member in archive.infolist():
            if not _name(member).endswith("/"):
                files.read[_name(member)] = partial(_unpack, archive, member)
    else:
        tar = stack.enter_context(tarfile.open(path))  # noqa: SIM115
        for entry in tar.getmembers():
            if not entry.isdir():
                files.read[entry.name.removeprefix("./")] = partial(_extract, tar, entry)
    return files


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in name.split("/"))


def _visit(folder: Path, name: str, above: list[str], linked: bool, files: Files) -> None:
    """Collects the files of a folder and those below it.

    Args:
        folder: where they are.
        name: of the folder, with a `/` behind it; nothing at the top.
        above: where the folders that this one is in really are. A link to one of them would go in circles.
        linked: whether one of them is a link.
        files: gets them.
    """
    real = os.path.realpath(folder)
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if not entries and name:
        files.empty.append(name.removesuffix("/"))
    for entry in entries:
        path, inner = folder / entry.name, f"{name}{entry.name}"
        if entry.is_dir():
            if entry.is_symlink() and os.path.realpath(path) in (*above, real):
                files.astray.append(inner)
            else:
                _visit(path, f"{inner}/", [*above, real], linked or entry.is_symlink(), files)
        elif entry.is_file():
            files.read[inner] = path.read_bytes
            if linked:
                files.real[inner] = Path(real) / entry.name
        else:  # a link to nothing, or no file at all
            files.astray.append(inner)


# --- Archives -------------------------------------------------------------------------------------


def _name(member: zipfile.ZipInfo) -> str:
    """Returns a member's name as it was meant."""
    name = member.filename
    if not member.flag_bits & 0x800:
        # Without the flag of UTF-8 it counts as cp437; macOS writes UTF-8 all the same.
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    # Some programs of Windows write their own separator.
    return name if "/" in name else name.replace("\\", "/")


def _unpack(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & 1:
        raise OSError("it is encrypted: unpack the archive with its password and give the folder")
    try:
        return file.read(member)
    except NotImplementedError:
        method = "Deflate64" if member.compress_type == 9 else f"method {member.compress_type}"
        raise OSError(
            f"it is packed by {method}, which Python cannot unpack: unpack the archive and give the folder"
        ) from None
    except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise OSError(reason(error)) from None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    try:
        file = tar.extractfile(member)
    except (tarfile.TarError, KeyError) as error:
        raise OSError(reason(error)) from None
    if file is None:
        raise OSError("it is no file")
    try:
        return file.read()
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise OSError(reason(error)) from None
