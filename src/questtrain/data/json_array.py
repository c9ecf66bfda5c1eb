"""The elements of a JSON array, one at a time: a file larger than the memory may be one array."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
NEAR = 16
"""Characters from the end of what is read within which an error, or the end of a number, may mean
that more must be read; a string without an end may begin anywhere."""


class DamagedArrayError(ValueError):
    """What is wrong, and at which character of the text."""


def array_elements(blocks: Iterator[str]) -> Iterator[Any]:
    """The elements of the array that ``blocks``, one after another, are the text of.

    Raises DamagedArrayError as soon as it is read.
    """
    text = _Text(blocks)
    text.expect("[")
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.expect(",")
            yield text.value()
    text.expect("]")
    if text.peek():
        raise text.error("more after the array's end", text.at)


class _Text:
    """What is read of the text and not yet used up begins at ``at``."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self.at = 0
        self._blocks = blocks
        self._text = ""
        self._dropped = 0
        self._decoder = json.JSONDecoder()

    def error(self, message: str, at: int) -> DamagedArrayError:
        """That what was read is no array, and at which character of the file."""
        return DamagedArrayError(f"{message} at character {self._dropped + at + 1:,}")

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self.at)
            self.at = self.at if match is None else match.end()
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._read(1):
                return ""

    def expect(self, character: str) -> None:
        """Pass over the next character."""
        if self.peek() != character:
            raise self.error(f"expected {character!r}", self.at)
        self.at += 1

    def value(self) -> Any:
        """The next value; more is read, twice as much each time, until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.at)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated") or (
                    error.pos >= len(self._text) - NEAR
                )
                if not incomplete or not self._read(len(self._text) - self.at):
                    raise self.error(error.msg, error.pos) from error
                continue
            # A number that ends near the end of what is read may go on.
            if end > len(self._text) - NEAR and self._read(NEAR):
                continue
            self.at = end
            return value

    def _read(self, characters: int) -> bool:
        """Read at least so many more, and drop what is used up; False, and all as it was, at the
        end."""
        blocks = []
        while characters > 0 and (block := next(self._blocks, "")):
            blocks.append(block)
            characters -= len(block)
        if not blocks:
            return False
        self._dropped += self.at
        self._text = self._text[self.at :] + "".join(blocks)
        self.at = 0
        return True
