"""Which tokenizer a data set gets: the one it names, a prepared copy of it, or its own BPE."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from questtrain.config.schema import DataConfig
from questtrain.data.cache import cache_dir, exclusive
from questtrain.data.documents import read_documents
from questtrain.data.encoding import read_facts
from questtrain.data.hub import HubUnreachableError
from questtrain.data.records import MANIFEST, read_manifest
from questtrain.data.sources import Source, unreachable
from questtrain.data.text_rows import NotUtf8Error, TextField
from questtrain.data.tokenizer import Tokenizer, load_tokenizer
from questtrain.errors import UserError
from questtrain.store.files import write_text

log = logging.getLogger(__name__)

BOS = "<s>"
MIN_VOCAB_SIZE = 257
STDLIB_VOCAB_SIZE = 4096


def choose_tokenizer(config: DataConfig, source: Source) -> Tokenizer:
    """The tokenizer ``config`` names, or for stdlib the BPE trained on it."""
    name = config.tokenizer
    if name is None:
        if source.kind != "stdlib":
            raise UserError(
                f"data={config.name} needs data.tokenizer: a tokenizer.json, a SentencePiece "
                "model, or a hub name"
            )
        return _stdlib_tokenizer(config, source)
    if not Path(name).expanduser().exists():
        copy = _prepared_copy(config, source, name)
        if copy is not None:
            path, bos_id = copy
            return load_tokenizer(path, name, config.bos_token or bos_id)
    try:
        return load_tokenizer(name, bos=config.bos_token)
    except HubUnreachableError as error:
        if source.hub_dataset is None:
            raise
        raise unreachable(
            f"{source.hub_dataset} and its tokenizer {name}", str(error.__cause__)
        ) from error


def _prepared_copy(config: DataConfig, source: Source, tokenizer: str) -> tuple[Path, int] | None:
    """Tokenizer file and BOS of a prepared folder of this source, perhaps copied from elsewhere.

    With it, a machine that cannot reach the hub still finds the folder prepared for it.
    """
    for path in sorted(cache_dir(config).glob(f"*/{MANIFEST}")):
        with contextlib.suppress(UserError):  # another data set's damage is not ours to report
            manifest = read_manifest(path.parent)
            copy = path.parent / manifest.tokenizer["file"]
            if (
                manifest.source_sha256 == source.sha256
                and manifest.tokenizer["name"] == tokenizer
                and copy.exists()
            ):
                return copy, manifest.bos_id
    return None


def _stdlib_tokenizer(config: DataConfig, source: Source) -> Tokenizer:
    vocab_size = config.vocab_size or STDLIB_VOCAB_SIZE
    if vocab_size < MIN_VOCAB_SIZE:
        raise UserError(
            f"data.vocab_size={vocab_size} is too small for a byte-level BPE: the 256 bytes and "
            f"BOS alone are {MIN_VOCAB_SIZE}"
        )
    folder = cache_dir(config) / "tokenizers"
    path = folder / f"stdlib-{source.sha256[:12]}-{vocab_size}.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder):
            if not path.exists():  # another process may have made it meanwhile
                log.info("training a tokenizer of %d tokens in %s", vocab_size, path)
                write_text(path, train_bpe(_training_documents(config, source), vocab_size))
    return load_tokenizer(path, f"stdlib-bpe-{vocab_size}", config.bos_token)


def _training_documents(config: DataConfig, source: Source) -> Iterator[str]:
    for piece in source.pieces:
        for file in piece.files:
            with contextlib.suppress(NotUtf8Error):
                for document in read_documents(Path(file), TextField(config.text_field)):
                    if not read_facts(document).falls_to_validation(config.validation_fraction):
                        yield document.text


def train_bpe(documents: Iterable[str], vocab_size: int) -> str:
    """Train on ``documents``; returns the content of a ``tokenizer.json``.

    The vocabulary is BOS (id 0), the 256 bytes, and the merges, ``vocab_size`` in all unless the
    documents are too few for that many. Equal documents in equal order give an equal tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    content: str = tokenizer.to_str(pretty=True)
    return content
