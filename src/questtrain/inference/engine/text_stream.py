"""An answer's text as it grows: whole characters, and nothing that may be part of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Joins the bytes of tokens to text and gives it out, up to the first of the ``stop`` strings
    to be complete. Lengths are in characters of the text so far."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._searches = [_Search(string) for string in stop]
        self._held = ""
        self.length = 0
        """Of all that was decoded."""
        self.given = 0
        """Of what was given out."""
        self.stopped = False
        """Whether a stop string is complete: nothing more is given out."""

    @property
    def is_within_character(self) -> bool:
        """Whether the last bytes begin a character that is not complete."""
        return bool(self._decoder.getstate()[0])

    def add(self, data: bytes, is_last: bool = False) -> str:
        """The text that ``data`` completes and that no stop string can begin in; with ``is_last``
        all of it, characters that are not complete as U+FFFD."""
        text = self._decoder.decode(data, is_last)
        if not self._searches:
            self.length += len(text)
            self.given = self.length
            return text
        self._held += text
        held = self._search(text)
        if is_last and not self.stopped:
            held = 0
        ready = self._held[: len(self._held) - held]
        self._held = "" if self.stopped else self._held[len(ready) :]
        self.given += len(ready)
        return ready

    def _search(self, text: str) -> int:
        """How many of the last characters so far, ``text`` included, are to be held back."""
        for index, character in enumerate(text):
            self.length += 1
            found = [s.length for s in self._searches if s.add(character)]
            if found:
                self.stopped = True
                return max(found) + len(text) - 1 - index
        return max(search.matched for search in self._searches)


class _Search:
    """For one string, a character at a time (Knuth, Morris and Pratt): ``matched`` is the length of
    its longest beginning that the text so far ends with."""

    def __init__(self, string: str) -> None:
        self._string, self.length, self.matched = string, len(string), 0
        self._shorter = [0]  # the next beginning that a beginning ends with, by its length - 1
        for character in string[1:]:
            self._shorter.append(self._longer(self._shorter[-1], character))

    def add(self, character: str) -> bool:
        """Whether the string is complete; then nothing is to be added any more."""
        self.matched = self._longer(self.matched, character)
        return self.matched == self.length

    def _longer(self, matched: int, character: str) -> int:
        while matched and self._string[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self._string[matched] == character)
