"""Sources: which files hold the documents, and how they are grouped into pieces.

A piece is the unit of work and of resumption: its documents become one token shard per split. The
order of the pieces, and of the documents in them, is a function of the files alone.
"""

from __future__ import annotations

import glob
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from questtrain.config.ranges import Text
from questtrain.config.schema import DataConfig
from questtrain.data.documents import CODE_SUFFIXES, check_suffix, suffix_of
from questtrain.data.hub import HubUnreachableError, check_hub
from questtrain.data.records import Split, json_sha256
from questtrain.data.text_rows import DataFileError
from questtrain.errors import UserError, unknown

KINDS = ("stdlib", "text", "c4", "tokens")
# Files of at least this size are pieces of their own; smaller ones are gathered.
LARGE_FILE_BYTES = 16 << 20
PIECE_BYTES = 64 << 20
# Files of allenai/c4 by subset: training, validation.
C4_FILES = {
    "en": (1024, 8),
    "en.noblocklist": (1024, 8),
    "en.noclean": (7168, 64),
    "realnewslike": (512, 1),
}
C4_FILE_BYTES = 320 << 20
LOOKED_AT = 10_000
"""Files of a folder that are looked at for advice."""


@dataclass(frozen=True)
class Piece:
    """Files whose documents become one shard per split; ``size`` is their bytes on disk."""

    split: Split
    index: int
    files: tuple[str, ...]
    size: int

    @property
    def name(self) -> str:
        """``train-00003``: unique in its source, and the order of the pieces."""
        return f"{self.split}-{self.index:05d}"


@dataclass(frozen=True)
class Source:
    """Where the documents come from.

    ``definition`` is everything that decides what the documents are and how they are split, short
    enough to print; ``files_sha256`` stands in it for the list of the files. ``hub_dataset`` is set
    when the pieces' files are names in that hub repository instead of local paths.
    """

    kind: str
    definition: dict[str, Any]
    pieces: tuple[Piece, ...]
    hub_dataset: str | None = None

    @cached_property
    def sha256(self) -> str:
        """Hash of the definition."""
        return json_sha256(self.definition)

    @property
    def splits_by_hash(self) -> bool:
        """Whether a hash of each document, rather than its file, decides its split."""
        return not any(piece.split == "validation" for piece in self.pieces)

    def check_reachable(self, file: str) -> None:
        """For a hub source: fail within seconds, with advice, if the hub cannot be reached for the
        ``file`` of a piece."""
        if self.hub_dataset is None:
            return
        try:
            check_hub(self.hub_dataset, file, "dataset")
        except HubUnreachableError as error:
            raise unreachable(self.hub_dataset, str(error)) from error


def unreachable(what: str, reason: str) -> HubUnreachableError:
    """The one message for C4 without a network."""
    return HubUnreachableError(
        f"cannot fetch {what}: {reason}. Train on local data instead: data=stdlib (needs nothing), "
        "or data=text data.files='corpus/**/*.jsonl.gz' data.tokenizer=tokenizer.json. To use C4 "
        "here, run `questtrain data prepare data=c4 …` on a machine with network "
        "and copy the folder it names into data.cache_dir, or download en/*.json.gz of allenai/c4 "
        "and pass data.files='en/*.json.gz' with a local data.tokenizer"
    )


def list_source(config: DataConfig) -> Source:
    """The source ``config`` describes, with its pieces; UserError if its files are not right."""
    match config.source:
        case "stdlib":
            return _stdlib(config)
        case "text":
            return _local(config)
        case "c4":
            return _local(config) if config.files else _hub_c4(config)
        case "tokens":
            return _tokens(config)
        case kind:
            raise unknown("data.source", kind, KINDS)


def _stdlib(config: DataConfig) -> Source:
    root = stdlib_root()
    files = _stdlib_files(root)
    if not files:
        raise UserError(
            f"data=stdlib: {root} holds no .py files (a stripped or zipped Python); use data=text"
        )
    # The version stands for the content: the same Python on another machine is the same data.
    listing = [sys.version, *((f.relative_to(root).as_posix(), f.stat().st_size) for f in files)]
    definition = {
        "source": "stdlib",
        "python": sys.version.split()[0],
        "files": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "files_sha256": json_sha256(listing),
        "validation_fraction": config.validation_fraction,
    }
    return Source("stdlib", definition, _pieces(_group(files), "train"))


def stdlib_root() -> Path:
    """Folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def _stdlib_files(root: Path) -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in ("site-packages", "dist-packages")]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: file.relative_to(root).as_posix())


def _local(config: DataConfig) -> Source:
    """Documents of local files: the sources text, and c4 from downloaded files."""
    files = expand(config.files, "data.files")
    validation = expand(config.validation_files, "data.validation_files")
    if config.source == "c4" and not validation:
        validation = [file for file in files if "validation" in file.name]
    files = [file for file in files if file not in set(validation)]
    if not files:
        raise UserError("data.files holds nothing but the validation files: name training files")
    for file in (*files, *validation):
        try:
            check_suffix(file)
        except DataFileError as error:
            raise UserError(f"{error}; token ids in .bin files are data=tokens") from error
    _check_not_empty([*files, *validation])
    definition = _definition(config, files, validation)
    definition["text_field"] = config.text_field
    if not validation:
        definition["validation_fraction"] = config.validation_fraction
    pieces = (*_pieces(_group(validation), "validation"), *_pieces(_group(files), "train"))
    return Source(config.source, definition, pieces)


def _hub_c4(config: DataConfig) -> Source:
    if config.hub_dataset is None or config.hub_subset is None:
        raise UserError("data=c4 needs data.hub_dataset and data.hub_subset, or data.files")
    if config.hub_subset not in C4_FILES:
        raise unknown("data.hub_subset", config.hub_subset, C4_FILES)
    subset = config.hub_subset
    train, validation = C4_FILES[subset]
    # One of the validation files holds 20 million tokens, far more than any validation reads.
    pieces = (
        _c4_piece(subset, "validation", 0, validation),
        *(_c4_piece(subset, "train", index, train) for index in range(train)),
    )
    definition = {
        "source": "c4",
        "hub_dataset": config.hub_dataset,
        "hub_subset": subset,
        "text_field": config.text_field,
    }
    return Source("c4", definition, pieces, hub_dataset=config.hub_dataset)


def _c4_piece(subset: str, split: Split, index: int, count: int) -> Piece:
    name = f"{subset}/c4-{split}.{index:05d}-of-{count:05d}.json.gz"
    return Piece(split, index, (name,), C4_FILE_BYTES)


def _tokens(config: DataConfig) -> Source:
    files = expand(config.files, "data.files")
    validation = expand(config.validation_files, "data.validation_files")
    for key, found in (("data.files", files), ("data.validation_files", validation)):
        if not found:
            raise UserError(
                f"data=tokens needs {key}: flat files of token ids, .npy, or llm.c's .bin"
            )
        for file in found:  # their names go into the manifest, which is text
            Text(lines=True).check(key, str(file))
    both = sorted(set(files) & set(validation))
    if both:
        raise UserError(f"{both[0]} stands in data.files and in data.validation_files")
    _check_not_empty([*files, *validation])
    pieces = (
        *_pieces([[file] for file in validation], "validation"),
        *_pieces([[file] for file in files], "train"),
    )
    definition = _definition(config, files, validation)
    if config.dtype != "auto":
        definition["dtype"] = config.dtype
    # These files stay where they are, and what is read from them is what they hold then. A copy
    # may bring size and times along; that it was changed, the system alone writes down.
    changes = [file.stat().st_ctime_ns for file in (*files, *validation)]
    definition["changes_sha256"] = json_sha256(changes)
    return Source("tokens", definition, pieces)


def expand(patterns: Sequence[str], key: str) -> list[Path]:
    """Absolute paths of the files that the paths and globs (``**`` included) match, sorted."""
    found: set[Path] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            some = f"{pattern.rstrip('/')}/**/*{_usual_suffix(path)}"
            raise UserError(f"{key}: {pattern} is a folder; write {some}")
        matches = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
        files = [match.absolute() for match in matches if match.is_file()]
        if not files:
            raise UserError(f"{key}: no file matches {pattern!r} (searched from {Path.cwd()})")
        found.update(files)
    return sorted(found)


def _usual_suffix(folder: Path) -> str:
    """How most names of documents end in a folder, of the first `LOOKED_AT` that it has."""
    files = (path for path in islice(folder.rglob("*"), LOOKED_AT) if path.is_file())
    counts = Counter(suffix for suffix in map(suffix_of, files) if suffix is not None)
    return max(counts, key=lambda suffix: (counts[suffix], suffix), default=".txt")


def _check_not_empty(files: Sequence[Path]) -> None:
    """Empty source code is ordinary (``__init__.py``); any other empty file is a broken copy."""
    empty = [f for f in files if f.stat().st_size == 0 and f.suffix not in CODE_SUFFIXES]
    if empty:
        names = ", ".join(str(file) for file in empty[:5]) + (", …" if len(empty) > 5 else "")
        raise UserError(
            f"{len(empty)} of {len(files)} data files are empty: {names}. Copy them again, or "
            "leave them out of data.files"
        )


def _definition(
    config: DataConfig, files: Sequence[Path], validation: Sequence[Path]
) -> dict[str, Any]:
    return {
        "source": config.source,
        "files": len(files),
        "validation_files": len(validation),
        "bytes": sum(file.stat().st_size for file in (*files, *validation)),
        "files_sha256": json_sha256([_stamps(files), _stamps(validation)]),
    }


def _stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    return [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]


def _pieces(groups: Iterable[Sequence[Path]], split: Split) -> tuple[Piece, ...]:
    return tuple(
        Piece(split, index, tuple(map(str, group)), sum(file.stat().st_size for file in group))
        for index, group in enumerate(groups)
    )


def _group(files: Sequence[Path]) -> list[Sequence[Path]]:
    """The files of each piece: the small ones dealt out in turn, then each large one by itself.

    Dealing makes every piece a sample of the whole corpus instead of one of its folders.
    """
    sizes = {file: file.stat().st_size for file in files}
    small = [file for file in files if sizes[file] < LARGE_FILE_BYTES]
    total = sum(sizes[file] for file in small)
    # Enough pieces for several cores, but not below a megabyte, and none that takes hours.
    count = max(min(8, total >> 20), total // PIECE_BYTES, 1)
    groups: list[Sequence[Path]] = [small[start::count] for start in range(min(count, len(small)))]
    return groups + [[file] for file in files if sizes[file] >= LARGE_FILE_BYTES]
