"""A source and a tokenizer → a folder of token shards, made once.

The folder's name holds a hash of all that defines the tokens, so that another tokenizer or a
changed file is another folder. What exists is never made again: a killed preparation continues
with the missing pieces, and a source that can grow (C4) gets more pieces when a run needs more.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from questtrain.config.schema import DataConfig
from questtrain.data.cache import cache_dir, exclusive
from questtrain.data.documents import is_plain
from questtrain.data.json_rows import COMPRESSIONS
from questtrain.data.parquet_rows import PARQUET_SUFFIX
from questtrain.data.piece import PieceTask
from questtrain.data.pool import Schedule, make_pieces
from questtrain.data.records import (
    FORMAT,
    GROWABLE,
    MANIFEST,
    SPLITS,
    Manifest,
    PieceRecord,
    ShardRecord,
    json_sha256,
    read_manifest,
    read_piece,
    totals,
)
from questtrain.data.shards import (
    TokenDataset,
    open_dataset,
    tightest,
    token_dtype,
    unigram_entropy,
)
from questtrain.data.sources import Piece, Source, list_source
from questtrain.data.tokenizer import Tokenizer
from questtrain.data.tokenizer_choice import choose_tokenizer
from questtrain.errors import PreparationStopped, ReadFailed, UserError
from questtrain.process import available_cores
from questtrain.store.files import copy_file
from questtrain.store.patience import passing_reason

log = logging.getLogger(__name__)


def prepare(config: DataConfig, tokens_needed: int | None = None) -> TokenDataset:
    """Make the token shards of ``config`` as far as they are missing, and open them.

    ``tokens_needed`` bounds the work for sources that can grow; the others are made whole, so that
    a longer run reads the same data in the same order. ``config.max_tokens`` bounds every source.
    Returns at once when everything exists. Raises UserError for bad input, PreparationStopped or
    ReadFailed where the hub or a file system fails for long: the next call goes on from there.
    """
    _check(config)
    source = list_source(config)
    _check_divisible(source, config)
    if source.kind not in GROWABLE:
        tokens_needed = None
    limit = tightest(tokens_needed, config.max_tokens)
    try:
        job = _Job(config, source, choose_tokenizer(config, source), limit)
        if not job.is_ready():
            job.make()
        dataset = open_dataset(job.folder, tokens_needed, config.max_tokens)
    except ReadFailed:
        raise
    except OSError as error:
        cannot = f"cannot use data.cache_dir={config.cache_dir}: {error}"
        if passing_reason(error):
            again = "When that works, the same command goes on"
            raise PreparationStopped(f"{cannot}. {again}") from error
        raise UserError(
            f"{cannot}. Choose a writable folder with "
            "data.cache_dir=… or the variable QUESTTRAIN_CACHE"
        ) from error
    _check_splits(dataset, config)
    return dataset


class _Job:
    """One folder to fill: which pieces it needs and which it has."""

    def __init__(
        self, config: DataConfig, source: Source, tokenizer: Tokenizer, limit: int | None
    ) -> None:
        self.config, self.source, self.tokenizer, self.limit = config, source, tokenizer, limit
        self.vocab_size = tokenizer.vocab_size
        if source.kind == "tokens":  # ids made elsewhere may use a padded vocabulary
            self.vocab_size = max(self.vocab_size, config.vocab_size or 0)
        defining = [FORMAT, source.sha256, tokenizer.sha256, tokenizer.bos_id, self.vocab_size]
        self.folder = cache_dir(config) / f"{config.name}-{json_sha256(defining)[:12]}"
        self.tokenizer_file = (
            "tokenizer.json" if tokenizer.path.suffix == ".json" else "tokenizer.model"
        )

    def is_ready(self) -> bool:
        """Whether the manifest promises enough tokens and no shard is absent."""
        if not (self.folder / MANIFEST).exists():
            return False
        manifest = read_manifest(self.folder)
        enough = self.limit is not None and (manifest.totals["train"]["tokens"] or 0) >= self.limit
        return (manifest.complete or enough) and _all_exist(self.folder, manifest.shards)

    def make(self) -> None:
        """Make the missing pieces, then the manifest."""
        (self.folder / "pieces").mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder):
            copy = self.folder / self.tokenizer_file
            if not copy.exists():
                copy_file(self.tokenizer.path, copy)
            done = self._done()
            schedule = Schedule(
                [self._task(piece) for piece in self.source.pieces],
                done,
                self.limit,
                _expected_tokens(self.source.pieces),
            )
            needed = schedule.needed()
            if needed:
                self.source.check_reachable(needed[0].files[0])
                count, name = len(needed), self.config.name
                log.info("preparing %d pieces of %s in %s", count, name, self.folder)
                workers = min(self.config.num_workers or available_cores(), count)
                with _progress(self.config.name, self.limit, done.values()) as bar:
                    make_pieces(schedule, workers, bar.update)
            manifest = self._manifest()
            manifest.write(self.folder)
        _report(manifest)

    def _done(self) -> dict[str, PieceRecord]:
        """Records of the pieces whose shards all exist, by name."""
        records = (read_piece(self.folder, piece.name) for piece in self.source.pieces)
        return {r.name: r for r in records if r is not None and _all_exist(self.folder, r.shards)}

    def _task(self, piece: Piece) -> PieceTask:
        by_hash = self.source.splits_by_hash
        return PieceTask(
            folder=str(self.folder),
            name=piece.name,
            split=piece.split,
            files=list(piece.files),
            tokenizer=str(self.folder / self.tokenizer_file),
            tokenizer_name=self.tokenizer.name,
            bos_id=self.tokenizer.bos_id,
            vocab_size=self.vocab_size,
            dtype_of_files=self.config.dtype,
            text_field=self.config.text_field,
            validation_fraction=self.config.validation_fraction if by_hash else None,
            source=self.source.kind,
            hub_dataset=self.source.hub_dataset,
        )

    def _manifest(self) -> Manifest:
        done = self._done()
        # Up to the first piece that is absent: a data set grows at its end only.
        made = list(takewhile(lambda piece: piece.name in done, self.source.pieces))
        records = [done[piece.name] for piece in made]
        names = [record.name for record in records]
        shards = [shard for record in records for shard in record.shards]
        return Manifest(
            name=self.config.name,
            source=self.source.definition,
            source_sha256=self.source.sha256,
            tokenizer={
                "name": self.tokenizer.name,
                "sha256": self.tokenizer.sha256,
                "file": self.tokenizer_file,
            },
            vocab_size=self.vocab_size,
            bos_id=self.tokenizer.bos_id,
            dtype=token_dtype(self.vocab_size),
            complete=len(made) == len(self.source.pieces),
            totals={
                split: totals([shard for shard in shards if shard.split == split])
                for split in SPLITS
            },
            unigram_entropy=unigram_entropy(self.folder, names, self.vocab_size),
            skipped=dict(sum((Counter(record.skipped) for record in records), Counter())),
            unknown_tokens=sum(record.unknown_tokens for record in records),
            lost_characters=sum(record.lost_characters for record in records),
            shards=shards,
        )


def _all_exist(folder: Path, shards: Iterable[ShardRecord]) -> bool:
    """Absent shards are made again; wrong sizes are left for `open_dataset` to complain about."""
    return all((folder / shard.file).exists() for shard in shards)


def _expected_tokens(pieces: Sequence[Piece]) -> int:
    """Rough training tokens of the first piece: 4 bytes a token of text, 2 when compressed."""
    piece = next(piece for piece in pieces if piece.split == "train")
    compressed = piece.files[0].endswith((*COMPRESSIONS, PARQUET_SUFFIX, ".bin"))
    return max(1, piece.size // (2 if compressed else 4))


def _report(manifest: Manifest) -> None:
    """Say once what was read otherwise than expected, and what the tokenizer did not know."""
    for shard in manifest.shards:
        if shard.offset or shard.dtype not in (None, manifest.dtype):
            header = f" after a header of {shard.offset} bytes" if shard.offset else ""
            log.info("%s holds %s ids%s", shard.file, np.dtype(shard.dtype).name, header)
    name = manifest.tokenizer["name"]
    if manifest.unknown_tokens:
        total = sum(shard.tokens for shard in manifest.shards)
        log.warning(
            "the tokenizer %s does not know all of the text: %s of %s tokens (%.2g%%) are its"
            " unknown token",
            name,
            f"{manifest.unknown_tokens:,}",
            f"{total:,}",
            100 * manifest.unknown_tokens / total,
        )
    if manifest.lost_characters:
        log.warning(
            "the tokenizer %s leaves out what it does not know: %s characters of the text are lost",
            name,
            f"{manifest.lost_characters:,}",
        )


def _check(config: DataConfig) -> None:
    if not 0 < config.validation_fraction < 1:
        raise UserError(
            f"data.validation_fraction={config.validation_fraction} must lie between 0 and 1, "
            "0.02 for example"
        )
    if config.dtype != "auto" and config.source != "tokens":
        raise UserError(
            f"data.dtype={config.dtype} is of files of token ids (data=tokens), which data="
            f"{config.name} does not read: leave it out"
        )
    for key in ("max_tokens", "num_workers"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise UserError(f"data.{key}={value} must be at least 1, or null for all")


def _check_divisible(source: Source, config: DataConfig) -> None:
    """One document cannot be on both sides; said before hours of work."""
    files = [Path(file) for piece in source.pieces for file in piece.files]
    if source.kind == "text" and source.splits_by_hash and len(files) == 1 and is_plain(files[0]):
        raise UserError(
            f"{files[0]} is one document (a plain-text file is one), which cannot be divided into "
            "training and validation: name data.validation_files, or give it a document a row "
            "(.jsonl, .parquet)"
        )


def _check_splits(dataset: TokenDataset, config: DataConfig) -> None:
    train, validation = (dataset.manifest.totals[split] for split in SPLITS)
    if not train["tokens"] and not validation["tokens"]:
        skipped = ", ".join(f"{count:,} {why}" for why, count in dataset.manifest.skipped.items())
        raise UserError(
            f"data={config.name} holds no text: everything was left out ({skipped or 'no rows'}). "
            "Check data.files and data.text_field"
        )
    found = (train["documents"] or 0) + (validation["documents"] or 0)
    for split, lacks in (
        (dataset.validation, "fell to validation"),
        (dataset.train, "is left for training"),
    ):
        if split.num_tokens == 0:
            raise UserError(
                f"none of the {found} documents of data={config.name} {lacks}. Add documents (a "
                "plain-text file is one), change data.validation_fraction="
                f"{config.validation_fraction}, or name data.validation_files"
            )


def _progress(name: str, limit: int | None, done: Iterable[PieceRecord]) -> tqdm[NoReturn]:
    """A bar of the tokens made, on standard error when that is a terminal."""
    return tqdm(
        desc=f"preparing {name}",
        total=limit,
        initial=sum(shard.tokens for record in done for shard in record.shards),
        unit=" tokens",
        unit_scale=True,
        disable=not sys.stderr.isatty(),
    )
