"""Files that are either complete or absent, whatever kills the process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from questtrain.errors import UserError, nearest


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at ``path`` when the block ends; not at all if it raises.

    The temporary name belongs to this process, so that two writers never meet in one file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: a reader sees the old content or the new, never a part."""
    with atomic_write(path) as file:
        file.write(text.encode())


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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; a line torn by a kill is left out, and a file that
    is not there is empty."""
    objects = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            objects.append(value)
    return objects


def last_lines(path: Path, size: int = 16_384) -> list[str]:
    """The lines in a text file's last ``size`` bytes, the first of them perhaps torn; none where
    the file cannot be read. Its time does not grow with the file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def publish_folder(temporary: Path, final: Path) -> None:
    """Make a finished folder appear under its final name at once, replacing an older one."""
    for file in temporary.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def no_such_folder(what: str, folder: Path) -> UserError:
    """What to raise for a folder that is not there: ``what`` was asked for, and the sibling of
    the nearest name."""
    parent = folder.parent
    names = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    close = nearest(folder.name, names)
    advice = "" if close is None else f" Did you mean {str(folder.with_name(close))!r}?"
    return UserError(f"{what}: there is no such folder.{advice}")
