"""Tokenizers behind one small interface, from a local file or from the hub.

A literal ``<s>`` inside a document is text, never the BOS token: special tokens enter the stream
only where the data pipeline puts them.
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from questtrain.data.bos import CONFIG, choose_bos, post_processor_bos
from questtrain.data.hub import HubFileMissingError, HubUnreachableError, cached_file, hub_file
from questtrain.errors import UserError
from questtrain.store.files import sha256_of

FILENAMES = ("tokenizer.json", "tokenizer.model")
_SUFFIXES = "tokenizer.json (Hugging Face tokenizers) or tokenizer.model (SentencePiece)"


class EncodingError(UserError):
    """The tokenizer cannot encode a text, for a ``reason`` that is its own."""

    def __init__(self, tokenizer: str, reason: str) -> None:
        super().__init__(f"the tokenizer {tokenizer} cannot encode a text: {reason}")
        self.reason = reason


class Tokenizer(ABC):
    """Text ↔ token ids. ``path`` is the file that defines it, ``sha256`` the hash of that file.

    ``unknown_id`` stands for text that the vocabulary does not hold; None where there is none.
    """

    vocab_size: int
    bos_id: int
    unknown_id: int | None

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.sha256 = sha256_of(path)

    @property
    def label(self) -> str:
        """For records and tables: the hub name, or a file's name and the start of its hash."""
        name = Path(self.name).name if _looks_like_a_path(self.name) else self.name
        return name if name == self.name else f"{name}@{self.sha256[:8]}"

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without BOS or EOS."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, over all cores; EncodingError if one of them cannot be."""
        try:
            batch = self._encode_batch(texts)
        except BaseException as error:  # a panic of tokenizers' is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise EncodingError(self.name, str(error)) from error
        return [
            self._encode_without_bos(text) if self.bos_id in ids else ids
            for text, ids in zip(texts, batch, strict=True)
        ]

    @abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The library's ids of every text; ``bos_id`` may be among them."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; special tokens, and ids that only pad the vocabulary, are dropped."""

    @abstractmethod
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, by the token's own spelling."""

    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """Tokens that no text makes, BOS among them: their ids by their spelling."""

    def lost_characters(self, texts: Sequence[str]) -> int:
        """Characters, white space aside, that leave no trace in the ids of the texts."""
        return 0

    def _encode_without_bos(self, text: str) -> list[int]:
        """Ids of a text whose own make BOS of some of it, without that.

        The text is cut before the last character of what becomes BOS, wherever that happens (the
        Unigram models of ``tokenizers`` do it to special tokens, SentencePiece to user-defined
        ones), and the parts are encoded by themselves.
        """
        ids: list[int] = []
        while self.bos_id in (rest := self._encode_batch([text])[0]):
            without, with_bos = 0, len(text)  # lengths of text that do not and do make BOS
            while with_bos - without > 1:
                middle = (without + with_bos) // 2
                if self.bos_id in self._encode_batch([text[:middle]])[0]:
                    with_bos = middle
                else:
                    without = middle
            if without == 0:
                raise EncodingError(
                    self.name,
                    f"it makes the token that begins documents (id {self.bos_id}) of the "
                    f"character {text[0]!r}",
                )
            ids += self._encode_batch([text[:without]])[0]
            text = text[without:]
        return ids + rest


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json`` of the Hugging Face library ``tokenizers``."""

    def __init__(self, path: Path, name: str, bos: str | int | None) -> None:
        super().__init__(path, name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self._tokenizer = _from_content(content)
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"the tokenizer file {path} is damaged or no tokenizer.json: {error}"
            ) from error
        vocabulary = self.vocabulary()
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        added = content.get("added_tokens") or []
        special = [entry["content"] for entry in added if entry.get("special")]
        own = post_processor_bos(content.get("post_processor"))
        token = choose_bos(bos, own, path.parent, vocabulary, special, name)
        self.bos_id = vocabulary[token]
        self._special = {name: vocabulary[name] for name in (*special, token)}
        for entry in added:  # a token that is added and not special is found in any text
            if entry["content"] == token and not entry.get("special"):
                entry["special"] = True
                self._tokenizer = _from_content(content)
        model = content["model"]
        unknown = model.get("unk_token")
        self.unknown_id = model.get("unk_id") if unknown is None else vocabulary.get(unknown)
        self._loses = self.unknown_id is None and not _knows_all_bytes(content)

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return text

    def vocabulary(self) -> dict[str, int]:
        tokens: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return tokens

    def special_tokens(self) -> dict[str, int]:
        return self._special

    def lost_characters(self, texts: Sequence[str]) -> int:
        if not self._loses:
            return 0
        lost = 0
        for text, encoding in zip(
            texts, self._tokenizer.encode_batch(list(texts), add_special_tokens=False), strict=True
        ):
            kept = {i for start, end in encoding.offsets for i in range(start, end)}
            lost += sum(i not in kept and not c.isspace() for i, c in enumerate(text))
        return lost


def _from_content(content: dict[str, Any]) -> Any:
    """The library's tokenizer, set to encode whole documents in which no special token is seen."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
    # Files saved from a model's folder often truncate or pad; documents must do neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _knows_all_bytes(content: dict[str, Any]) -> bool:
    """Whether no character can be outside the vocabulary: bytes are its alphabet or its last
    resort."""
    steps = json.dumps([content.get("normalizer"), content.get("pre_tokenizer")])
    return bool(content["model"].get("byte_fallback")) or '"ByteLevel"' in steps


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, such as Llama 2's ``tokenizer.model``."""

    def __init__(self, path: Path, name: str, bos: str | int | None) -> None:
        import sentencepiece

        super().__init__(path, name)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except Exception as error:  # RuntimeError or OSError, by version
            raise UserError(
                f"the tokenizer file {path} is damaged or no SentencePiece model: {error}"
            ) from error
        processor = self._processor
        self.vocab_size = processor.vocab_size()
        self.unknown_id = processor.unk_id()
        pieces = self.vocabulary()
        special = [piece for piece, i in pieces.items() if processor.is_control(i)]
        own = processor.id_to_piece(processor.bos_id()) if processor.bos_id() >= 0 else None
        token = choose_bos(bos, own, path.parent, pieces, special, name)
        self.bos_id = pieces[token]
        self._special = {name: pieces[name] for name in (*special, token)}

    def vocabulary(self) -> dict[str, int]:
        return {self._processor.id_to_piece(i): i for i in range(self.vocab_size)}

    def special_tokens(self) -> dict[str, int]:
        return self._special

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(list(texts))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(i) for i in ids if i < self.vocab_size]
        text: str = self._processor.decode(known)
        return text


def load_tokenizer(
    source: str | Path, name: str | None = None, bos: str | int | None = None
) -> Tokenizer:
    """Load a tokenizer from a file, from a folder that holds one, or from the hub.

    ``name`` is what messages and manifests call it, by default ``source`` itself. ``bos`` is the
    token that begins documents, or the id of one that is settled; None leaves it to `choose_bos`.
    Raises UserError for missing or damaged files and for vocabularies without a BOS token, and
    HubUnreachableError, within seconds, when a hub name cannot be fetched.
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
        return JsonTokenizer(path, name, bos)
    if path.suffix == ".model" or ".model." in path.name:
        return SentencePieceTokenizer(path, name, bos)
    raise UserError(f"unknown kind of tokenizer file {path}: choose a {_SUFFIXES}")


def _file_in(folder: Path) -> Path:
    for filename in FILENAMES:
        if (folder / filename).is_file():
            return folder / filename
    raise UserError(f"the folder {folder} holds neither {' nor '.join(FILENAMES)}")


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
        return _first_of(repo)
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


def _first_of(repo: str) -> Path:
    for filename in FILENAMES:
        downloads = cached_file(repo, filename) is None
        try:
            path = hub_file(repo, filename)
        except HubFileMissingError:
            continue
        if downloads:  # with what may name its BOS, which comes to lie beside it
            with contextlib.suppress(UserError):
                hub_file(repo, CONFIG)
        return path
    raise HubFileMissingError(f"the hub repository {repo!r} has neither {' nor '.join(FILENAMES)}")
