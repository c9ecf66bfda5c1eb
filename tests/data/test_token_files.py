"""Files of token ids as others write them: read right, or refused by name."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from questtrain.data import prepare
from questtrain.data.inspect import describe
from questtrain.data.loader import Windows
from questtrain.errors import UserError

IDS = np.random.default_rng(0).integers(0, 290, 5000)
VOCABULARIES = [300, 65_536, 70_000]


def llm_c(ids: np.ndarray, dtype: str = "<u2", magic: int = 20240520, version: int = 1) -> bytes:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    return header.tobytes() + ids.astype(dtype).tobytes()


def npy(ids: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, ids)
    return file.getvalue()


LAYOUTS = {
    "uint16": IDS.astype("<u2").tobytes(),
    "uint32": IDS.astype("<u4").tobytes(),
    "int32": IDS.astype("<i4").tobytes(),
    "int64": IDS.astype("<i8").tobytes(),
    "npy uint16": npy(IDS.astype("<u2")),
    "npy int64": npy(IDS),
    "npy rows": npy(IDS.astype("<i4").reshape(50, 100)),
    "llm.c": llm_c(IDS),
    "llm.c llama 3": llm_c(IDS, "<u4", 20240801, 7),
}


@pytest.fixture
def tokens(tmp_path: Path, make_config):
    """A configuration whose training file holds some bytes; the other one is as asked for."""

    def make(content: bytes, **fields: object):
        (tmp_path / "train.bin").write_bytes(content)
        width = str(fields.get("dtype", "uint32"))
        (tmp_path / "val.bin").write_bytes(IDS[:200].astype(width).tobytes())
        files = {"files": [f"{tmp_path}/train.bin"], "validation_files": [f"{tmp_path}/val.bin"]}
        return make_config("tokens", **(files | fields))

    return make


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_known_layouts_are_read_right(tokens, layout: str, vocab_size: int) -> None:
    """Whatever the vocabulary; the width of each file is its own."""
    if layout == "uint16" and vocab_size > 65_536:
        with pytest.raises(UserError, match=r"data\.dtype if its ids are not uint32"):
            prepare(tokens(LAYOUTS[layout], vocab_size=vocab_size))
        return
    dataset = prepare(tokens(LAYOUTS[layout], vocab_size=vocab_size))
    np.testing.assert_array_equal(dataset.train.shards[0].read(), IDS)
    np.testing.assert_array_equal(dataset.validation.shards[0].read(), IDS[:200])
    np.testing.assert_array_equal(
        Windows(dataset.train, 7).read(np.array([0, 3])), [IDS[:8], IDS[21:29]]
    )
    dataset.verify()
    assert dataset.unigram_entropy == pytest.approx(np.log(290), rel=0.01)
    facts = describe(dataset)
    assert facts["train"]["tokens"] == len(IDS)
    assert facts["dtype"] == ", ".join(
        sorted({np.dtype(dataset.train.shards[0].dtype).name, "uint32"})
    )


def test_a_file_of_zeros_in_front_is_known_by_its_rest(tokens) -> None:
    ids = np.concatenate([np.zeros(50_000, np.int64), IDS])
    dataset = prepare(tokens(ids.astype("<u4").tobytes()))
    np.testing.assert_array_equal(dataset.train.shards[0].read(), ids)


@pytest.mark.parametrize("content", [np.array([7, 0, 9, 0], "<u2"), np.zeros(4000, "<u2")])
def test_bytes_that_may_be_either(tokens, content: np.ndarray) -> None:
    data = content.tobytes()
    with pytest.raises(UserError, match=r"uint16 or (uint32|int64): say so with data\.dtype"):
        prepare(tokens(data))
    for dtype, count in (("uint16", len(content)), ("uint32", len(content) // 2)):
        assert prepare(tokens(data, dtype=dtype)).train.num_tokens == count


def test_the_dtype_that_is_asked_for(tokens) -> None:
    data = IDS.astype("<u2").tobytes()
    assert prepare(tokens(data, dtype="uint16")).train.num_tokens == len(IDS)
    with pytest.raises(
        UserError, match=r"holds the id .* or data\.dtype if its ids are not uint32"
    ):
        prepare(tokens(data, dtype="uint32"))
    with pytest.raises(UserError, match=r"no multiple of 8: data\.dtype=int64"):
        prepare(tokens(data[:-2], dtype="int64"))
    with pytest.raises(UserError, match=r"dtype=int64, but .* \.npy file whose header says uint16"):
        prepare(tokens(npy(IDS.astype("<u2")), dtype="int64"))
    config = tokens(data, dtype="uint16")
    config.source = "text"
    with pytest.raises(UserError, match=r"data\.dtype=uint16 is of files of token ids"):
        prepare(config)


def test_a_dtype_that_is_none(tmp_path: Path, capsys) -> None:
    """Refused before any file is looked at."""
    from questtrain.cli.main import main

    words = ["data=tokens", "data.files=a", "data.validation_files=b", "data.tokenizer=c"]
    assert main(["data", "prepare", *words, "data.dtype=uint8"]) == 2
    message = capsys.readouterr().err
    assert "unknown data.dtype 'uint8': choose from auto, uint16, uint32, int32, int64" in message


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (llm_c(IDS)[:-10], r"holds 11,014 bytes, its llm\.c header says 11,024: it is truncated"),
        (llm_c(IDS) + b"\0\0", "header says 11,024"),
        (llm_c(IDS, version=9), "llm.c's header in version 9, which is unknown"),
        (npy(IDS)[:-8], r"its \.npy header says"),
        (npy(IDS)[:20], r"damaged \.npy file"),
        (npy(IDS.astype(">i4")), r"holds int32 of big-endian order, no token ids"),
        (npy(IDS.astype("f4")), "holds float32, no token ids"),
        (npy(np.asfortranarray(IDS.reshape(50, 100))), "column by column"),
        (b"MMIDIDX\x00\x00" + bytes(100), "the index of a Megatron data set"),
        (gzip.compress(IDS.tobytes()), "compressed with gzip: unpack it"),
        (zipped(), "a zip archive"),
        (b"PAR1" + bytes(100), "a parquet file: of documents it is data=text"),
        (np.array([5, -100] * 50, "<i4").tobytes(), "holds the id 65,535 at token 3"),
        (np.array([-1, 5] * 50, "<i4").tobytes(), "holds the id 65,535 at token 0"),
    ],
)
def test_other_files_are_refused_by_name(tokens, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        prepare(tokens(content))
    assert "train.bin" in str(caught.value)


def test_negative_ids(tokens) -> None:
    """The padding of loss masks is no token."""
    with pytest.raises(UserError, match="holds the id -100 at token 1"):
        prepare(tokens(np.array([5, -100] * 50, "<i4").tobytes(), dtype="int32"))


def test_a_file_replaced_with_its_times_is_read_again(tokens, tmp_path: Path) -> None:
    """Size and times of a copy may be the original's; what is read is what it holds."""
    import os

    config = tokens(IDS.astype("<u2").tobytes())
    prepare(config)
    path = tmp_path / "train.bin"
    before = path.stat()
    path.write_bytes(IDS[::-1].astype("<u2").tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    np.testing.assert_array_equal(
        np.bincount(prepare(config).train.shards[0].read()), np.bincount(IDS)
    )
    prepare(config).verify()


def test_a_name_that_is_not_utf8_is_refused(tokens, tmp_path: Path) -> None:
    """It could not stand in the manifest."""
    config = tokens(IDS.astype("<u2").tobytes())
    odd = tmp_path / "\udce9.bin"
    odd.write_bytes(IDS.astype("<u2").tobytes())
    config.files = [str(tmp_path / "?.bin")]
    with pytest.raises(UserError, match=r"data\.files=.* bytes that are not UTF-8"):
        prepare(config)
