"""Files of token ids made elsewhere: how the ids lie in one.

Known are flat files (nanoGPT, Megatron's .bin), numpy's .npy and the .bin of llm.c. The last two
say what they hold. A flat file does not: its width is that of the vocabulary, unless its own bytes
say otherwise, because ids of 32 or 64 bits read as 16 would be as good as ids, most of them zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from questtrain.data.shards import token_dtype
from questtrain.errors import UserError

WIDTHS = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
"""data.dtype besides ``auto``, and numpy's name."""

NUMPY_MAGIC = b"\x93NUMPY"
LLMC_HEADER_BYTES = 1024
# (magic, version) → dtype: GPT-2's files, and Llama 3's.
LLMC = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
FOREIGN = {
    b"MMIDIDX\x00\x00": "the index of a Megatron data set: name the .bin beside it",
    b"LITPKDS": "a packed data set of lit-gpt: write its ids as a flat file",
    b"PAR1": "a parquet file: of documents it is data=text",
    b"ARROW1": "an Arrow file: write its ids as a flat file",
    b"PK\x03\x04": "a zip archive (.npz, a torch checkpoint): write its ids as .npy",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"\x1f\x8b\x08": "compressed with gzip: unpack it",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it",
}
SAMPLE_BYTES = 1 << 16
SAMPLES = 8
MIN_EVIDENCE = 32
"""Ids other than zero that a wider reading must explain before it is believed."""


@dataclass(frozen=True)
class Layout:
    """``tokens`` ids of ``dtype`` (numpy's name) from byte ``offset`` on; ``kind`` says it in
    words."""

    kind: str
    dtype: str
    offset: int
    tokens: int


def read_layout(path: Path, vocab_size: int, dtype: str) -> Layout:
    """How the ids lie in ``path``; ``dtype`` is data.dtype.

    UserError: another kind of file, cut short, a dtype that contradicts its header, or bytes that
    may be ids of several widths.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(16)
        for magic, advice in FOREIGN.items():
            if head.startswith(magic):
                raise UserError(f"the token file {path} is {advice}")
        layout = _numpy(path, file) if head.startswith(NUMPY_MAGIC) else _llmc(path, file, size)
        if layout is None:
            return _flat(path, file, size, vocab_size, dtype)
    if dtype != "auto" and np.dtype(WIDTHS[dtype]) != np.dtype(layout.dtype):
        raise UserError(
            f"data.dtype={dtype}, but the token file {path} is a {layout.kind} file whose header "
            f"says {np.dtype(layout.dtype).name}: leave data.dtype out"
        )
    needed = layout.offset + layout.tokens * np.dtype(layout.dtype).itemsize
    if size != needed:
        raise UserError(
            f"the token file {path} holds {size:,} bytes, its {layout.kind} header says "
            f"{needed:,}: it is truncated or damaged. Copy or write it again"
        )
    return layout


def _numpy(path: Path, file: BinaryIO) -> Layout:
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, column_first, dtype = read(file)
    except ValueError as error:
        raise UserError(f"the token file {path} is a damaged .npy file: {error}") from error
    if dtype.str not in WIDTHS.values():
        order = " of big-endian order" if dtype.str.startswith(">") else ""
        raise UserError(
            f"the token file {path} holds {dtype.name}{order}, no token ids: choose "
            f"{', '.join(WIDTHS)} (little-endian)"
        )
    if column_first and len(shape) > 1:
        raise UserError(f"the token file {path} is stored column by column: save it in C order")
    return Layout(".npy", dtype.str, file.tell(), int(np.prod(shape, dtype=np.int64)))


def _llmc(path: Path, file: BinaryIO, size: int) -> Layout | None:
    """The layout that a header of llm.c gives; None without such a header."""
    if size < LLMC_HEADER_BYTES:
        return None
    file.seek(0)
    magic, version, tokens = np.frombuffer(file.read(12), "<i4").tolist()
    if magic not in {known for known, _ in LLMC}:
        return None
    if (magic, version) not in LLMC:
        raise UserError(
            f"the token file {path} has llm.c's header in version {version}, which is unknown: "
            "write its ids as a flat file"
        )
    return Layout("llm.c", LLMC[magic, version], LLMC_HEADER_BYTES, tokens)


def _flat(path: Path, file: BinaryIO, size: int, vocab_size: int, dtype: str) -> Layout:
    expected = token_dtype(vocab_size)
    asked = WIDTHS.get(dtype)
    found = asked or _width(path, file, size, vocab_size, expected)
    itemsize = np.dtype(found).itemsize
    if size % itemsize:
        name = np.dtype(found).name
        reason = f"a vocabulary of {vocab_size:,} is stored as {name}"
        raise UserError(
            f"the token file {path} holds {size:,} bytes, no multiple of {itemsize}: "
            f"{f'data.dtype={name}' if asked else reason}. The file is truncated, or made with "
            "another width (data.dtype=…) or for another vocabulary"
        )
    return Layout("flat", found, 0, size // itemsize)


def _width(path: Path, file: BinaryIO, size: int, vocab_size: int, expected: str) -> str:
    """The dtype of a flat file's ids: the widest of which the file's samples are all ids."""
    samples = _samples(file, size)
    for dtype in ("<i8", "<u4"):
        itemsize = np.dtype(dtype).itemsize
        if itemsize <= np.dtype(expected).itemsize or size % itemsize:
            continue
        ids = np.concatenate([np.frombuffer(sample, dtype) for sample in samples])
        if not len(ids) or ids.min() < 0 or ids.max() >= vocab_size:
            continue
        if np.count_nonzero(ids) < MIN_EVIDENCE:
            names = [name for name, kind in WIDTHS.items() if kind in (expected, dtype)]
            raise UserError(
                f"the token file {path} is too short, or holds too many zeros, to tell whether its "
                f"ids are {' or '.join(names)}: say so with data.dtype=…"
            )
        return dtype
    return expected


def _samples(file: BinaryIO, size: int) -> Sequence[bytes]:
    """Pieces of the file, of whole ids whatever their width."""
    places = np.linspace(0, max(0, size - SAMPLE_BYTES), SAMPLES).astype(np.int64) // 8 * 8
    samples = []
    for place in np.unique(places):
        file.seek(int(place))
        data = file.read(SAMPLE_BYTES)
        samples.append(data[: len(data) // 8 * 8] if size >= 8 else data)
    return samples
