"""Tokenizers behind one small interface, from a local file or from the hub.

A literal ``<s>`` inside a document is text, never the BOS token: special tokens enter the stream
only where the data pipeline puts them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from questtrain.data.hub import HubFileMissingError, HubUnreachableError, hub_file
from questtrain.errors import UserError

BOS_TOKENS = (
    "<s>",
    "<|begin_of_text|>",
    "<|endoftext|>",
    "<bos>",
    "[BOS]",
    "<BOS>",
    "<|bos|>",
    "<|startoftext|>",
    "<|im_start|>",
)
_SUFFIXES = "tokenizer.json (Hugging Face tokenizers) or tokenizer.model (SentencePiece)"


class Tokenizer(ABC):
    """Text ↔ token ids. ``path`` is the file that defines it, ``sha256`` the hash of that file."""

    vocab_size: int
    bos_id: int

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    @property
    def label(self) -> str:
        """For records and tables: the hub name, or a file's name and the start of its hash."""
        name = Path(self.name).name if _looks_like_a_path(self.name) else self.name
        return name if name == self.name else f"{name}@{self.sha256[:8]}"

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without BOS or EOS."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, over all cores."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens, and ids that only pad the vocabulary, are dropped."""


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json`` of the Hugging Face library ``tokenizers``."""

    def __init__(self, path: Path, name: str) -> None:
        import tokenizers

        super().__init__(path, name)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"the tokenizer file {path} is damaged or no tokenizer.json: {error}"
            ) from error
        # Files saved from a model's folder often truncate or pad; documents must do neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.bos_id = _bos_id(vocabulary, name)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model file, as Llama 1 and 2 ship it."""

    def __init__(self, path: Path, name: str) -> None:
        import sentencepiece

        super().__init__(path, name)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:  # RuntimeError or OSError, by version
            raise UserError(
                f"the tokenizer file {path} is damaged or no SentencePiece model: {error}"
            ) from error
        self.vocab_size = self._processor.vocab_size()
        pieces = {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}
        own_bos = self._processor.bos_id()
        self.bos_id = own_bos if own_bos >= 0 else _bos_id(pieces, name)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(i) for i in ids if i < self.vocab_size]
        text: str = self._processor.decode(known)
        return text


def load_tokenizer(source: str | Path, name: str | None = None) -> Tokenizer:
    """Load a tokenizer from a file, from a folder that holds one, or from the hub.

    ``name`` is what messages and manifests call it, by default ``source`` itself. Raises UserError
    for missing or damaged files and for vocabularies without a BOS token, and HubUnreachableError,
    within seconds, when a hub name cannot be fetched.
    """
    name = name or str(source)
    path = Path(source).expanduser()
    if path.is_dir():
        path = _file_in(path)
    elif not path.is_file():
        if _looks_like_a_path(str(source)):
            raise UserError(f"no tokenizer file {path}: data.tokenizer takes a {_SUFFIXES}")
        path = _from_hub(str(source))
    if path.suffix == ".json":
        return JsonTokenizer(path, name)
    if path.suffix == ".model" or ".model." in path.name:
        return SentencePieceTokenizer(path, name)
    raise UserError(f"unknown kind of tokenizer file {path}: choose a {_SUFFIXES}")


def _bos_id(vocabulary: dict[str, int], name: str) -> int:
    for token in BOS_TOKENS:
        if token in vocabulary:
            return vocabulary[token]
    raise UserError(
        f"the tokenizer {name} has no token that can begin a document: its vocabulary needs one of "
        f"{', '.join(BOS_TOKENS)}"
    )


def _file_in(folder: Path) -> Path:
    for filename in ("tokenizer.json", "tokenizer.model"):
        if (folder / filename).is_file():
            return folder / filename
    raise UserError(f"the folder {folder} holds neither tokenizer.json nor tokenizer.model")


def _looks_like_a_path(source: str) -> bool:
    """Hub names are ``name`` or ``owner/name``; everything else is meant as a path."""
    return (
        source.startswith((".", "/", "~"))
        or source.count("/") > 1
        or source.endswith(".json")
        or ".model" in source
    )


def _from_hub(repo: str) -> Path:
    try:
        return _first_of(repo, ("tokenizer.json", "tokenizer.model"))
    except HubUnreachableError as error:
        raise HubUnreachableError(
            f"the tokenizer {repo!r} is no local file and cannot be fetched: {error}. Set "
            f"data.tokenizer to a local {_SUFFIXES}, or use data=stdlib, which needs no download"
        ) from error
    except UserError as error:
        raise UserError(
            f"the tokenizer {repo!r} is no local file and cannot be fetched: {error}. "
            f"data.tokenizer takes a hub name or a local {_SUFFIXES}"
        ) from error


def _first_of(repo: str, filenames: Sequence[str]) -> Path:
    for filename in filenames:
        try:
            return hub_file(repo, filename)
        except HubFileMissingError:
            continue
    raise HubFileMissingError(f"the hub repository {repo!r} has neither {' nor '.join(filenames)}")
