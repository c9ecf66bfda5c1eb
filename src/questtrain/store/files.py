"""Files that are either complete or absent, whatever kills the process."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from questtrain.errors import UserError, WriteFailed, nearest
from questtrain.store.patience import TRANSIENT, patiently, read_patiently

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

REFUSED = (*FULL, errno.EIO, errno.EROFS)
"""What a disk says when it is full, over a quota or a size limit, or failing."""


@contextmanager
def writing(
    path: Path, needed: int | None = None, refused: Collection[int] = REFUSED
) -> Iterator[None]:
    """Around whatever writes ``path``: what the disk refuses (the error numbers ``refused``) is a
    WriteFailed that names the file, the bytes ``needed`` where they are known, and those that are
    free. Of nested ones the outermost speaks."""
    try:
        yield
    except OSError as error:
        # numpy's tofile tells of a short write without a number.
        number = errno.ENOSPC if type(error) is OSError and error.errno is None else error.errno
        if number is None or number not in refused:
            raise
        raise WriteFailed(number, os.strerror(number), str(path), _room(path, needed)) from error


def write_patiently(path: Path, write: Callable[[], T], needed: int | None = None) -> T:
    """What ``write`` returns, which writes ``path`` whole or leaves nothing of it: again where the
    file system fails for a moment (`patiently`), then WriteFailed as in `writing`.

    A file is written anew from its beginning and never flushed a second time: after a flush that
    failed, the next one may succeed without the lost pages (fsync(2), "errors").
    """
    with writing(path, needed, {*REFUSED, *TRANSIENT}):
        return patiently(f"writing {path}", write)


def _room(path: Path, needed: int | None) -> str:
    """`` (needs 1,000 bytes, 500 are free)``, as far as it is known."""
    known = [] if needed is None else [f"needs {needed:,} bytes"]
    folder = next((place for place in path.absolute().parents if place.is_dir()), None)
    if folder is not None:
        known.append(f"{shutil.disk_usage(folder).free:,} bytes are free")
    return f" ({', '.join(known)})" if known else ""


@contextmanager
def atomic_write(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` when the block ends; not at all if it raises.

    A link at ``path`` is replaced, never followed. The temporary name belongs to this process, so
    that two writers never meet in one file. WriteFailed as in `writing`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, needed):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: a reader sees the old content or the new, never a part."""
    _write_bytes(path, text.encode())


def copy_file(source: Path, path: Path) -> None:
    """Copy a small file's content atomically."""
    _write_bytes(path, read_patiently(source, Path.read_bytes))


def _write_bytes(path: Path, data: bytes) -> None:
    def write() -> None:
        with atomic_write(path, len(data)) as file:
            file.write(data)

    write_patiently(path, write, len(data))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, because JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def output_for(path: Path) -> Iterator[None]:
    """Around writing a file that the user named: its folder is made, and what the system refuses
    is a UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def last_lines(path: Path, size: int = 16_384) -> list[str]:
    """The lines in a text file's last ``size`` bytes, the first of them perhaps torn; none where
    the file cannot be read. Its time does not grow with the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on a file, which is made and stays; another process waits for the end."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class LineFile:
    """Appends whole lines to a text file; of one that the disk refuses, nothing is left."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """WriteFailed as in `write_patiently`."""
        data = (line + "\n").encode()
        write_patiently(self._path, lambda: self._append(data), len(data))

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            with writing(self._path, len(data)):
                while data:
                    data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(size)
            raise

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        self._file.close()


@contextmanager
def folder_to_publish(final: Path) -> Iterator[Path]:
    """An empty folder for `publish_folder`, in a hidden one beside ``final``; its parents are made.
    Nothing of it is left at the end. What killed processes left of theirs goes first: one that
    lives, on whatever machine, holds a lock in its own."""
    if not final.parent.exists():  # of a file mkdtemp says what is wrong
        final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        _remove_unlocked(left)
    hidden = Path(tempfile.mkdtemp(".tmp", f".{final.name}.", final.parent))
    try:
        with (hidden / "unlocked").open("w") as lock:
            with suppress(OSError):  # without file locks nobody removes it
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.replace(hidden / "unlocked", hidden / _LOCK)  # there it is locked from the start
            (hidden / "folder").mkdir()
            yield hidden / "folder"
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


_LOCK = "lock"


def _remove_unlocked(hidden: Path) -> None:
    """Remove a folder of `folder_to_publish`, unless its process lives or nothing tells."""
    with suppress(OSError), (hidden / _LOCK).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(hidden)


def publish_folder(temporary: Path, final: Path) -> None:
    """Make a finished folder appear under its final name at once, replacing an older one.

    Its files get the modes that a new file has here; some libraries write theirs as 0600.
    """
    mode = temporary.stat().st_mode & 0o666
    for file in temporary.rglob("*"):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    remove_folder(final)
    os.replace(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if there is one, so that no part of it ever stands under its name."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content; ReadFailed where its disk fails for long."""
    return read_patiently(path, _sha256_of)


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_hashes(hashes: Mapping[str, str]) -> str:
    """One for several files: of their names and hashes, a line each."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def no_such_folder(what: str, folder: Path) -> UserError:
    """What to raise for a folder that is not there: ``what`` was asked for, and the sibling of
    the nearest name. A file in its place is said to be one."""
    if folder.exists():
        return UserError(f"{what}: that is a file, where a folder belongs.")
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    close = nearest(folder.name, names)
    advice = "" if close is None else f" Did you mean {str(folder.with_name(close))!r}?"
    return UserError(f"{what}: there is no such folder.{advice}")
