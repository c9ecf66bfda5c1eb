"""What each token stands for, as bytes that follow each other to the bytes of a text.

A tokenizer decodes whole lists of ids, and a character may be several tokens. Bytes can be joined
one token after the other, whatever the tokenizer.
"""

from __future__ import annotations

import json
import re

from questtrain.data import Tokenizer
from questtrain.data.tokenizer import JsonTokenizer

_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""The tokens of bytes that no other token holds, as SentencePiece spells them."""


class TokenTexts:
    """The bytes of a tokenizer's tokens, found when they are first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelling = {token: spelling for spelling, token in tokenizer.vocabulary().items()}
        self._alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else {}
        self._anchor = self._some_word()
        self._anchor_text = tokenizer.decode([self._anchor])
        self._known: dict[int, bytes | None] = {}

    def bytes_of(self, token: int) -> bytes | None:
        """What ``token`` adds to a text; None where it stands for no text, as BOS."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def bytes_of_first(self, token: int) -> bytes | None:
        """The same at the beginning of a text, where many tokenizers leave out a space."""
        found, first = self.bytes_of(token), self._tokenizer.decode([token])
        dropped = found is not None and found.startswith(b" ") and not first.startswith(" ")
        return found[1:] if found is not None and dropped else found

    def _find(self, token: int) -> bytes | None:
        alone, spelling = self._tokenizer.decode([token]), self._spelling.get(token, "")
        if self._alphabet:
            if not alone:
                return None
            if all(character in self._alphabet for character in spelling):
                return bytes(self._alphabet[character] for character in spelling)
            return spelling.encode()
        byte = _BYTE.fullmatch(spelling)
        if byte and alone != spelling:
            return bytes.fromhex(byte[1])
        both = self._tokenizer.decode([self._anchor, token])
        text = both.removeprefix(self._anchor_text) if both != self._anchor_text else ""
        return text.encode() if text else None

    def _some_word(self) -> int:
        """A token with text of its own, behind which others are tried."""
        return next(
            token
            for token in (*self._tokenizer.encode("a")[-1:], *sorted(self._spelling))
            if self._tokenizer.decode([token]).strip("\ufffd ")
        )


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether characters of tokens spell bytes, GPT-2's way."""
    if not isinstance(tokenizer, JsonTokenizer):
        return False
    content = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    return '"ByteLevel"' in json.dumps(content.get("decoder"))


def _byte_alphabet() -> dict[str, int]:
    """The characters by which GPT-2's vocabulary spells bytes: what is printable and no space by
    itself, the others by those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(0x100 + index): byte for index, byte in enumerate(others)}
